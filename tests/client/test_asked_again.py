"""An answer that was given is given again, whatever the site has become since; and what goes."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client import cohort
from client.ledger_commands import restore
from client.outbox import open_outbox
from client.receipts import ReceiptsDamaged
from common.config import Budget, Policy
from common.errors import RefusalCode
from common.messages import EVALUATE, TRAIN, decode_refusal, decode_reply
from common.models import pack, study_model


@pytest.fixture
def ours(ward: Path, tmp_path: Path, hospital: Callable[..., Any]) -> Any:
    """A hospital with data of its own, which may change."""
    data = tmp_path / "data"
    shutil.copytree(ward, data)
    return hospital(
        data=data / "manifest.csv",
        policy=Policy(approval="automatic"),
        budget=Budget(epsilon=20.0),
        release={"metrics": ("loss",)},
    )


def more_patients(manifest: Path) -> None:
    """Twelve new patients are in the data when the site's process is started again."""
    with manifest.open(newline="") as file:
        lines = list(csv.DictReader(file))
    with manifest.open("a", newline="") as file:
        table = csv.DictWriter(file, list(lines[0]))
        for number in range(12):
            image = Path(lines[0]["path"]).with_stem(f"new-{number}").as_posix()
            shutil.copy(manifest.parent / lines[0]["path"], manifest.parent / image)
            table.writerow(lines[0] | {"patient": f"new-{number}", "path": image})
    cohort._open.cache_clear()


@pytest.mark.parametrize("killed", ["client.receipts.Receipts.append", "client.site.seal"])
@pytest.mark.parametrize("side", ["train_rows", "test_rows"])
def test_who_objects_is_in_nothing_that_leaves_later(
    ours: Any, monkeypatch: pytest.MonkeyPatch, side: str, killed: str
) -> None:
    """A reply that was kept, receipted or not, stays once anybody in its data has objected."""

    def kill(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    study = ours.study("training.rounds=2")
    with monkeypatch.context() as patch:
        patch.setattr(killed, kill)
        with pytest.raises(KeyboardInterrupt):
            ours.ask(ours.instruct(study))
    assert sizes(ours) == {(TRAIN, 1): True}
    before = cohort.open_cohort(ours.settings, study, torch.device("cpu"))
    objecting = before.names[before.dataset.patients[getattr(before, side)(0)[0]]]
    settings = ours.settings.model_copy(update={"exclude": (objecting,)})
    site = type(ours)(settings, ours.coordinator)
    refused = site.ask(site.instruct(study))
    assert decode_refusal(refused.error) is RefusalCode.ROUND_ASKED_AGAIN
    weights_of(site.ask(site.instruct(study, round_number=2)))
    weights_of(ours.ask(ours.instruct(study)))  # with their consent again it is still there


def weights_of(answer: Any) -> Any:
    """Of a reply."""
    assert not answer.has_error(), answer.error
    return decode_reply(answer.content).weights


@pytest.mark.parametrize("change", ["data", "declared", "both"])
def test_a_reply_is_given_again_though_the_site_has_changed(ours: Any, change: str) -> None:
    """The same bytes, charged once, with the same receipt; the next round sees what is new."""
    study = ours.study()
    first = ours.ask(ours.instruct(study))
    before, receipts = ours.ledger.spent(None, delta=1e-5), ours.receipts.head
    site = ours
    if change != "declared":
        more_patients(ours.settings.data)
    if change != "data":
        settings = ours.settings.model_copy(update={"declared_patients": 13})
        site = type(ours)(settings, ours.coordinator)
    again = site.ask(site.instruct(study))
    assert np.array_equal(weights_of(again), weights_of(first))
    assert decode_reply(again.content).metrics == decode_reply(first.content).metrics
    assert ours.ledger.spent(None, delta=1e-5) == before
    assert ours.receipts.head == receipts
    weights_of(site.ask(site.instruct(study, round_number=2)))
    after = ours.ledger.spent(None, delta=1e-5)
    assert (after.patients > before.patients) == (change != "declared")


def test_other_weights_are_still_another_question(ours: Any) -> None:
    """Data that have changed are no way to have a round trained twice."""
    study = ours.study()
    ours.ask(ours.instruct(study))
    before = ours.ledger.spent(None, delta=1e-5)
    more_patients(ours.settings.data)
    other = pack(study_model(study)) + np.float32(0.01)
    refused = ours.ask(ours.instruct(study, weights=other))
    assert decode_refusal(refused.error) is RefusalCode.ROUND_ASKED_AGAIN
    assert ours.ledger.spent(None, delta=1e-5) == before


def test_a_lost_reply_is_not_made_again_from_other_data(ours: Any) -> None:
    """A damaged file is as good as none: then the round was answered for other data."""
    study = ours.study()
    ours.ask(ours.instruct(study))
    before = ours.ledger.spent(None, delta=1e-5)
    for file in (ours.settings.state / "outbox").glob("*/*.reply"):
        file.write_bytes(file.read_bytes()[:-1])
    more_patients(ours.settings.data)
    refused = ours.ask(ours.instruct(study))
    assert decode_refusal(refused.error) is RefusalCode.ROUND_ASKED_AGAIN
    assert ours.ledger.spent(None, delta=1e-5) == before


def sizes(site: Any) -> dict[tuple[str, int], bool]:
    """Which replies are still there, by kind and round."""
    folder = site.settings.state / "outbox"
    found = {}
    for file in folder.glob("*/*.reply"):
        _, number, kind, *_ = file.name.split("-")
        found[kind, int(number)] = file.stat().st_size > 0
    return found


def test_a_hospital_keeps_every_reply_until_its_study_ends(ours: Any) -> None:
    """A server that comes back from yesterday's backup gets yesterday's answers."""
    study = ours.study("training.rounds=4")
    answers = [ours.ask(ours.instruct(study, round_number=n)) for n in range(1, 5)]
    assert all(sizes(ours).values())
    again = ours.ask(ours.instruct(study, round_number=1))
    assert np.array_equal(weights_of(again), weights_of(answers[0]))


def test_a_simulated_site_keeps_the_last_two_rounds(ours: Any) -> None:
    """Its disk holds two replies, however many rounds there are; it still knows all of them."""
    settings = ours.settings.model_copy(update={"link": None, "randomness": "seeded-for-testing"})
    site = type(ours)(settings, ours.coordinator)
    study = site.study("training.rounds=4")
    for number in range(1, 5):
        weights_of(site.ask(site.instruct(study, round_number=number), TRAIN, sign=False))
    site.ask(site.instruct(study, round_number=5), EVALUATE, sign=False)
    kept = {(TRAIN, 1): False, (TRAIN, 2): False, (TRAIN, 3): False, (TRAIN, 4): True}
    assert sizes(site) == kept | {(EVALUATE, 5): True}
    assert len(open_outbox(settings.state).earlier(study.sha256, 0)) == 5


def test_a_restore_that_cant_be_written_down_charges_nothing(ours: Any) -> None:
    """Receipts whose last line was changed are found before the ledger is touched."""
    study = ours.study()
    ours.ask(ours.instruct(study))
    receipts = ours.settings.state / "receipts.jsonl"
    whole = receipts.read_bytes()
    at = whole.rfind(b'"time":"') + len(b'"time":"')
    receipts.write_bytes(whole[:at] + b"1" + whole[at + 1 :])
    before = ours.ledger.spent(None, delta=1e-5)
    with pytest.raises(ReceiptsDamaged):
        restore(ours.settings, [study], receipts_heads=[], now=datetime.now(UTC))
    assert ours.ledger.spent(None, delta=1e-5) == before
    receipts.write_bytes(whole)
    restore(ours.settings, [study], receipts_heads=[], now=datetime.now(UTC))
    assert ours.ledger.spent(None, delta=1e-5).restores == 1
