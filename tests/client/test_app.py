"""What a site answers, and what it never says: local text, unreleased metrics, foreign buffers."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import client.site
from client.app import app
from client.cohort import Stored, open_cohort
from client.keys import open_keys
from client.ledger import open_ledger
from common.config import Policy, Release, SiteSettings, Study, load_study
from common.errors import REFUSAL_SENTENCES, BadInput, RefusalCode
from common.messages import (
    EVALUATE,
    TRAIN,
    Instruction,
    Reply,
    decode_refusal,
    decode_reply,
    encode_instruction,
)
from common.models import frozen_encoder, pack, study_model, trained_layout, weights_sha256

PATIENT = "Mustermann^Erika"


@pytest.fixture(autouse=True)
def _in_a_flower_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages can only be made by somebody."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def site(folder: Path, state: str = "state", **settings: Any) -> SiteSettings:
    """The site `north` with repeatable randomness, which agrees to everything."""
    said = {"declared_patients": 10, "randomness": "seeded-for-testing"} | settings
    policy = Policy(approval="automatic", privacy="optional", min_patients=1)
    located = {"data": folder / "manifest.csv", "state": folder / state}
    return SiteSettings(name="north", policy=policy, **located, **said)


def told(study: Study) -> Study:
    """The study as it travels: how it is simulated stays at home."""
    return Study.model_validate_json(study.canonical())


def instruct(
    study: Study, *, fold: int = 0, round_number: int = 1, weights: np.ndarray | None = None
) -> RecordDict:
    """An instruction with the study's initial weights, or others."""
    given = pack(study_model(study)) if weights is None else weights
    sha256 = weights_sha256(given, trained_layout(study_model(study)))
    return encode_instruction(Instruction(told(study), fold, round_number, given, sha256))


def ask(content: RecordDict, settings: SiteSettings, kind: str = TRAIN) -> Message:
    """The site's answer to a message."""
    config = {"site": settings.model_dump_json()}
    return app(Message(content, 7, kind), Context(1, 7, config, RecordDict(), {}))


def reply(content: RecordDict, settings: SiteSettings, kind: str = TRAIN) -> Reply:
    """The site's answer where it accepts."""
    message = ask(content, settings, kind)
    assert not message.has_error(), message.error
    return decode_reply(message.content)


def refusal(content: RecordDict, settings: SiteSettings) -> RefusalCode:
    """The code of the site's refusal, whose text is the fixed sentence."""
    message = ask(content, settings)
    assert message.has_error()
    code = decode_refusal(message.error)
    assert code is not None
    assert message.error.reason == REFUSAL_SENTENCES[code]
    return code


def test_training_gives_new_weights_and_released_metrics(tiny: Path) -> None:
    """A training reply holds the trained weights and the metrics that the policy names."""
    study = load_study(tiny / "study.yaml")
    settings = site(tiny, release=Release(metrics=("loss", "accuracy")))
    found = reply(instruct(study), settings)
    before = pack(study_model(study))
    assert found.weights is not None
    assert found.weights.shape == before.shape
    assert not np.array_equal(found.weights, before)
    assert set(found.metrics) == {"loss", "accuracy"}


def test_metrics_are_those_of_the_incoming_weights(tiny: Path) -> None:
    """Scoring comes before training: a training message reports what an evaluation would."""
    study = load_study(tiny / "study.yaml")
    settings = site(tiny, release=Release(metrics=("loss",)))
    evaluated = reply(instruct(study), settings, EVALUATE)
    assert evaluated.weights is None
    assert evaluated.metrics == reply(instruct(study), settings).metrics


@pytest.mark.parametrize("state", ["state", "other"])
def test_training_keeps_nothing_between_messages(tiny: Path, state: str) -> None:
    """The same instruction gives the same bytes, stored or made anew, whatever came between."""
    study = load_study(tiny / "study.yaml")
    first = reply(instruct(study), site(tiny)).weights
    other = np.full_like(pack(study_model(study)), 0.01)
    reply(instruct(study, round_number=2, weights=other), site(tiny))
    again = reply(instruct(study), site(tiny, state)).weights
    assert first is not None
    assert again is not None
    assert again.tobytes() == first.tobytes()


@pytest.mark.parametrize("change", ["round", "weights", "fold"])
def test_the_seeded_secret_depends_on_all_that_it_should(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Another round, other weights and another fold each draw other randomness."""
    study = load_study(tiny / "study.yaml", ["data.folds=4"])
    seen: list[bytes] = []
    train = client.site.train_round

    def watched(*args: Any, secret: Any, **named: Any) -> None:
        seen.append(secret.reveal())
        train(*args, secret=secret, **named)

    monkeypatch.setattr(client.site, "train_round", watched)
    reply(instruct(study, fold=1), site(tiny, "first"))
    reply(instruct(study, fold=1), site(tiny, "second"))
    other = {
        "round": instruct(study, fold=1, round_number=2),
        "weights": instruct(study, fold=1, weights=pack(study_model(study)) * np.float32(2)),
        "fold": instruct(study, fold=2),
    }
    reply(other[change], site(tiny, "third"))
    assert seen[0] == seen[1] != seen[2]


def test_a_secret_site_draws_noise_of_its_own(tiny: Path) -> None:
    """Without seeded randomness nobody draws the same, but asked again a site gives what it gave.

    Noise that is drawn twice for the same weights would be half the noise.
    """
    study = load_study(tiny / "study.yaml", ["privacy.enabled=true"])
    open_keys(tiny / "first")
    shutil.copytree(tiny / "first" / "keys", tiny / "second" / "keys")  # all else is the same
    first, other, again = (
        reply(instruct(study), site(tiny, state, randomness="secret")).weights
        for state in ("first", "second", "first")
    )
    assert first is not None
    assert other is not None
    assert again is not None
    assert first.tobytes() != other.tobytes()
    assert first.tobytes() == again.tobytes()


def test_each_private_round_is_charged_once(tiny: Path) -> None:
    """A round that is asked again costs nothing more; an evaluation costs nothing."""
    study = load_study(tiny / "study.yaml", ["privacy.enabled=true"])
    settings = site(tiny, randomness="secret")
    for round_number in (1, 1, 2, 2):
        reply(instruct(study, round_number=round_number), settings)
    reply(instruct(study, round_number=3), settings, EVALUATE)
    ledger = open_ledger(tiny / "state", key=open_keys(tiny / "state").ledger)
    (charged,) = ledger.taken(study.sha256).history
    assert charged.steps == 2 * study.privacy.steps_per_round


def test_without_privacy_a_lost_reply_is_made_again(tiny: Path) -> None:
    """There is nothing to hide, so what was interrupted or lost comes to the same weights."""
    study = load_study(tiny / "study.yaml")
    settings = site(tiny, randomness="secret")
    first = reply(instruct(study), settings).weights
    shutil.rmtree(tiny / "state" / "outbox" / study.sha256)
    again = reply(instruct(study), settings).weights
    assert first is not None
    assert again is not None
    assert first.tobytes() == again.tobytes()


def test_with_privacy_a_lost_reply_is_never_made_again(tiny: Path) -> None:
    """Its secret is erased: other noise on the same weights would give them away."""
    study = load_study(tiny / "study.yaml", ["privacy.enabled=true"])
    settings = site(tiny, randomness="secret")
    reply(instruct(study), settings)
    shutil.rmtree(tiny / "state" / "outbox" / study.sha256)
    assert refusal(instruct(study), settings) is RefusalCode.RECORDS_DAMAGED


class Watched(np.ndarray):
    """Images that note which of them were looked at."""

    seen: set[int]

    def __getitem__(self, rows: Any) -> Any:
        self.seen |= set(rows.tolist())
        return np.asarray(self)[rows]


@pytest.mark.parametrize("released", [False, True])
def test_without_a_released_metric_no_test_image_is_read(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, released: bool
) -> None:
    """What the policy keeps in is not even computed."""
    study = load_study(tiny / "study.yaml")
    settings = site(tiny, release=Release(metrics=("accuracy",) if released else ()))
    cohort = open_cohort(settings, told(study), torch.device("cpu"))
    watched = np.array(cohort.inputs.parts[0]).view(Watched)
    watched.seen = set()
    replaced = replace(cohort, inputs=Stored((watched,)))
    monkeypatch.setattr(client.site, "open_cohort", lambda *_: replaced)
    found = reply(instruct(study), settings)
    expected = set(cohort.train_rows(0).tolist())
    if released:
        expected |= set(cohort.test_rows(0).tolist())
    assert watched.seen == expected
    assert set(found.metrics) == ({"accuracy"} if released else set())


def changed(**settings: Any) -> Callable[[RecordDict], None]:
    """Sets fields of the instruction."""

    def change(content: RecordDict) -> None:
        content.config_records["instruction"].update(settings)

    return change


def _drop_round(content: RecordDict) -> None:
    del content.config_records["instruction"]["round"]


def _edit_study(content: RecordDict) -> None:
    record = content.config_records["instruction"]
    record["study"] = str(record["study"]).replace('"rounds":2', '"rounds":3')


def _extra_record(content: RecordDict) -> None:
    content["more"] = ConfigRecord({"run": "import os"})


def _two_arrays(content: RecordDict) -> None:
    content.array_records["weights"]["again"] = Array(np.zeros(2, dtype=np.float32))


def _too_short(content: RecordDict) -> None:
    content["weights"] = ArrayRecord({"packed": Array(np.zeros(2, dtype=np.float32))})


def _not_finite(content: RecordDict) -> None:
    array = np.frombuffer(content.array_records["weights"]["packed"].data[128:], "<f4").copy()
    array[5] = np.inf
    content["weights"] = ArrayRecord({"packed": Array(array)})


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (changed(command="rm -rf /"), RefusalCode.BAD_INSTRUCTION),
        (changed(study_sha256="0" * 64), RefusalCode.BAD_INSTRUCTION),
        (changed(round=0), RefusalCode.BAD_INSTRUCTION),
        (changed(round=3), RefusalCode.BAD_INSTRUCTION),  # more than the study's rounds
        (changed(round=4), RefusalCode.BAD_INSTRUCTION),
        (changed(fold=1), RefusalCode.BAD_INSTRUCTION),
        (changed(study="{}"), RefusalCode.BAD_INSTRUCTION),
        (_drop_round, RefusalCode.BAD_INSTRUCTION),
        (_edit_study, RefusalCode.BAD_INSTRUCTION),
        (_extra_record, RefusalCode.BAD_INSTRUCTION),
        (_two_arrays, RefusalCode.BAD_WEIGHTS),
        (_too_short, RefusalCode.BAD_WEIGHTS),
        (_not_finite, RefusalCode.BAD_WEIGHTS),
    ],
)
def test_what_is_not_an_instruction_is_refused(
    tiny: Path, change: Callable[[RecordDict], None], code: RefusalCode
) -> None:
    """Unknown fields, another hash, impossible rounds and misshapen weights have their code."""
    content = instruct(load_study(tiny / "study.yaml"))
    change(content)
    assert refusal(content, site(tiny)) is code


def test_an_unknown_model_is_refused(tiny: Path) -> None:
    """A model that the site has not installed is no reason to look for one."""
    study = load_study(tiny / "study.yaml", ["model.name=resnet-9000"])
    weights = np.zeros(3, dtype=np.float32)
    content = encode_instruction(Instruction(told(study), 0, 1, weights, "0" * 64))
    assert refusal(content, site(tiny)) is RefusalCode.BAD_INSTRUCTION


def test_a_delta_too_large_for_the_site_is_refused(tiny: Path) -> None:
    """The site compares delta with its own declared number of patients."""
    study = load_study(tiny / "study.yaml", ["privacy.enabled=true"])
    settings = site(tiny, declared_patients=20_000)
    assert refusal(instruct(study), settings) is RefusalCode.BAD_INSTRUCTION


def test_nobody_to_train_on_is_refused(tiny: Path) -> None:
    """A site whose only patient is on the test side says so."""
    study = load_study(tiny / "study.yaml", ["data.test_share=0.99"])
    excluded = tuple(f"north-{number}" for number in range(1, 8))
    settings = site(tiny, exclude=excluded, declared_patients=1)
    assert refusal(instruct(study), settings) is RefusalCode.NO_TRAINING_PATIENTS


def test_diverged_weights_stay_at_home(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are not finite are refused before they leave."""

    def diverges(module: torch.nn.Module, *_: object, **__: object) -> None:
        with torch.no_grad():
            next(module.parameters()).fill_(float("nan"))

    monkeypatch.setattr(client.site, "train_round", diverges)
    content = instruct(load_study(tiny / "study.yaml"))
    assert refusal(content, site(tiny)) is RefusalCode.DIVERGED


def test_outputs_that_overflow_cost_the_metrics_only(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finite weights with infinite outputs have no metrics; that is no fault of the instruction."""

    def overflows(*_: object, **__: object) -> None:
        raise BadInput("not finite")

    monkeypatch.setattr(client.site, "predict_cohort", overflows)
    study = load_study(tiny / "study.yaml")
    settings = site(tiny, release=Release(metrics=("loss",)))
    answer = reply(instruct(study), settings)
    assert answer.metrics == {}


def test_an_unreadable_image_is_refused_without_its_name(
    tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken file gives a code; neither its name nor its folder is in the reply or the log."""
    (tiny / "images" / "north-2-1.png").write_bytes(b"no image")
    with caplog.at_level(logging.DEBUG):
        code = refusal(instruct(load_study(tiny / "study.yaml")), site(tiny))
    assert code is RefusalCode.DATA_UNREADABLE
    assert "data-unreadable" in caplog.text
    assert "north-2" not in caplog.text
    assert str(tiny) not in caplog.text


def test_an_exceptions_text_never_leaves_the_process(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault whose text names a patient becomes the code `internal`, and a place in the log."""

    def fails(*_: object) -> None:
        raise KeyError(PATIENT)

    monkeypatch.setattr(client.site, "open_cohort", fails)
    with caplog.at_level(logging.DEBUG):
        code = refusal(instruct(load_study(tiny / "study.yaml")), site(tiny))
    assert code is RefusalCode.INTERNAL
    assert "KeyError in fails" in caplog.text
    assert PATIENT not in caplog.text


def test_a_broken_site_file_is_refused_without_its_text(
    tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Settings that can't be parsed are nobody else's business."""
    context = Context(1, 7, {"site": json.dumps({"nmae": PATIENT})}, RecordDict(), {})
    content = instruct(load_study(tiny / "study.yaml"))
    with caplog.at_level(logging.DEBUG):
        message = app(Message(content, 7, TRAIN), context)
    assert message.has_error()
    assert PATIENT not in message.error.reason + caplog.text


@pytest.mark.parametrize("changes", [[], ["privacy.enabled=true"]])
def test_buffers_of_a_frozen_encoder_do_not_move(tiny: Path, changes: list[str]) -> None:
    """BatchNorm statistics would carry private data out of training; they stay as installed."""
    changes = [*changes, "model.name=frozen-efficientnet-lite0", "data.image_size_px=32"]
    study = load_study(tiny / "study.yaml", changes)
    found = reply(instruct(study), site(tiny, release=Release(metrics=("loss",))))
    used = frozen_encoder(client.site._model(study.canonical()))
    fresh = frozen_encoder(study_model(study))
    assert used is not None
    assert fresh is not None
    buffers = dict(fresh[0].named_buffers())
    assert buffers
    assert all(torch.equal(b, buffers[name]) for name, b in used[0].named_buffers())
    assert found.weights is not None
    assert found.weights.shape == (1280 * 2 + 2,)
