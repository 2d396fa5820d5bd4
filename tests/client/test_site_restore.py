"""A site that lost its disk: an old copy is refused, a restore pays for what may be missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

import client.app
import fedward
from client.ledger_commands import whole_study
from common.chain import Head
from common.errors import RefusalCode
from common.messages import decode_refusal, decode_reply
from common.models import pack, study_model
from common.privacy.lifetime import lifetime_epsilon

ROUNDS = 4


def says(*arguments: object) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(fedward.app, [str(argument) for argument in arguments])


@pytest.fixture
def site(hospital: Callable[..., Any]) -> Any:
    """A hospital whose steward has approved the study, with room in its budget for two."""
    site = hospital(budget={"epsilon": 40.0})
    site.approve(site.study(f"training.rounds={ROUNDS}"))
    return site


def asked(site: Any, round_number: int, known: Head | None) -> Any:
    """The answer to a round's instruction."""
    study = site.study(f"training.rounds={ROUNDS}")
    weights = pack(study_model(study)) + np.float32(round_number / 100)
    return site.ask(
        site.instruct(study, round_number=round_number, weights=weights, known_head=known)
    )


def replied(site: Any, round_number: int, known: Head | None) -> Head:
    """The head that the site shows with its reply."""
    answer = asked(site, round_number, known)
    assert not answer.has_error(), answer.error
    head = decode_reply(answer.content).head
    assert head is not None
    return head


def code(answer: Any) -> RefusalCode | None:
    """Of a refusal."""
    return decode_refusal(answer.error) if answer.has_error() else None


def files(site: Any, folder: Path) -> tuple[Path, Path]:
    """The site's site.yaml and the study's file, as its engineer has them."""
    settings = site.settings.model_dump(mode="json", exclude_unset=True)
    (folder / "site.yaml").write_text(yaml.safe_dump(settings))
    study = folder / "approved.yaml"
    study.write_text(yaml.safe_dump(json.loads(site.study("training.rounds=4").canonical())))
    return folder / "site.yaml", study


def lose_disk(state: Path, backup: Path) -> None:
    """The backup takes the place of the state folder; whatever was open is closed."""
    shutil.rmtree(state)
    shutil.copytree(backup, state)
    client.app._site.cache_clear()


def test_from_a_backup_to_the_next_round(site: Any, tmp_path: Path) -> None:
    """Two rounds are lost with a disk: refused, restored, charged whole, and the study goes on."""
    state, backup = site.settings.state, tmp_path / "backup"
    head = replied(site, 1, None)
    shutil.copytree(state, backup)
    for round_number in (2, 3):
        head = replied(site, round_number, head)
    lose_disk(state, backup)
    assert code(asked(site, 4, head)) is RefusalCode.RECORDS_DAMAGED

    site_yaml, study_yaml = files(site, tmp_path)
    command = ("privacy", "ledger", "restore", site_yaml, "--study", study_yaml)
    assert says(*command, "--head", "9").exit_code == 2
    restored = says(*command, "--head", head)
    assert restored.exit_code == 0, restored.output

    newest = replied(site, 4, head)
    listed = says("site", "receipts", site_yaml).stdout
    assert f"given up: {str(head)[:16]}" in listed
    assert says("site", "receipts", site_yaml, "--head", head).exit_code == 0
    assert says("site", "receipts", site_yaml, "--head", newest).exit_code == 0
    assert says("privacy", "ledger", "verify", site_yaml).exit_code == 0
    whole = whole_study(site.study("training.rounds=4"), site.settings).mechanism
    two_rounds = whole._replace(steps=whole.steps // ROUNDS * 2)  # before the backup and after
    spent = site.ledger.spent(None, delta=1e-5).epsilon
    assert spent.value == lifetime_epsilon([whole, two_rounds], delta=1e-5)


@pytest.mark.parametrize("lost", ["receipts.jsonl", "ledger.sqlite"])
def test_one_of_two_old_copies_is_found_by_the_other(site: Any, tmp_path: Path, lost: str) -> None:
    """Ledger and receipts remember one another, so that no server has to; a restore mends both."""
    state = site.settings.state
    replied(site, 1, None)
    shutil.copy(state / lost, tmp_path / lost)
    replied(site, 2, None)
    replied(site, 3, None)
    shutil.copy(tmp_path / lost, state / lost)
    assert code(asked(site, 4, None)) is RefusalCode.RECORDS_DAMAGED
    assert site.ledger.spent(None, delta=1e-5).unsettled == 0
    site_yaml, study_yaml = files(site, tmp_path)
    restored = says("privacy", "ledger", "restore", site_yaml, "--study", study_yaml)
    assert restored.exit_code == 0, restored.output
    replied(site, 4, None)
