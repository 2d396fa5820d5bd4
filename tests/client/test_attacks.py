"""Show 1: a server in the wrong hands against a real site: refused or harmless, with a receipt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

import client.site
from client.approval import withdraw
from client.gate import GateFailure, reply_sha256
from client.receipts import Line, Refused, Sent
from client.training import privacy_plan
from common.chain import Head
from common.config import Policy
from common.errors import REFUSAL_SENTENCES, BadData, RefusalCode
from common.messages import (
    EVALUATE,
    QUERY,
    TRAIN,
    Question,
    decode_refusal,
    decode_reply,
    decode_statement,
    encode_question,
    signed,
)
from common.models import pack, study_model
from common.statement import read_statement

PATIENT, HIDDEN = "Mustermann-Erika", "ward-seven"  # as in conftest.py
HARMLESS = None
Attack = Callable[[Any, Any], Any]
ATTACKS: dict[str, tuple[Attack, RefusalCode | None]] = {}


def attack(name: str, code: RefusalCode | None) -> Callable[[Attack], Attack]:
    """List an attack: it asks the site whatever it likes and returns the last answer."""

    def listed(function: Attack) -> Attack:
        assert name not in ATTACKS
        ATTACKS[name] = function, code
        return function

    return listed


def changed(content: RecordDict, **fields: Any) -> RecordDict:
    """An instruction with other fields, or without those that are None."""
    asked = {**content["instruction"], **fields}  # type: ignore[arg-type]
    kept = {name: value for name, value in asked.items() if value is not None}
    return RecordDict({**content, "instruction": ConfigRecord(kept)})


def edited(site: Any, study: Any, **sections: Any) -> RecordDict:
    """An instruction whose study has other text, hashed and signed as if all were right."""
    text = json.loads(study.canonical())
    for name, value in sections.items():
        section, _, key = name.partition("__")
        if key:
            text[section][key] = value
        else:
            text[section] = value
    said = json.dumps(text, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(said.encode()).hexdigest()
    return changed(site.instruct(study), study=said, study_sha256=digest)


def with_array(content: RecordDict, array: Array, name: str = "packed") -> RecordDict:
    """An instruction with another array in place of the weights."""
    return RecordDict({**content, "weights": ArrayRecord({name: array})})


def initial(study: Any) -> np.ndarray:
    """The study's initial weights."""
    return pack(study_model(study))


# Who asks.


@attack("an instruction without a signature", RefusalCode.BAD_SIGNATURE)
def _(site: Any, study: Any) -> Any:
    return site.ask(site.instruct(study), sign=False)


@attack("a signature by somebody else's key", RefusalCode.BAD_SIGNATURE)
def _(site: Any, study: Any) -> Any:
    forged = Ed25519PrivateKey.generate().sign
    content = signed(site.instruct(study), forged, kind=TRAIN, site="north")
    return site.ask(content, sign=False)


@attack("a hash that isn't the weights'", RefusalCode.BAD_SIGNATURE)
def _(site: Any, study: Any) -> Any:
    return site.ask(changed(site.instruct(study), weights_sha256="0" * 64))


@attack("an instruction that was signed for another site", RefusalCode.BAD_SIGNATURE)
def _(site: Any, study: Any) -> Any:
    sign = site.coordinator.sign
    return site.ask(signed(site.instruct(study), sign, kind=TRAIN, site="east"), sign=False)


@attack("an evaluation's signature on a training message", RefusalCode.BAD_SIGNATURE)
def _(site: Any, study: Any) -> Any:
    sign = site.coordinator.sign
    return site.ask(signed(site.instruct(study), sign, kind=EVALUATE, site="north"), sign=False)


@attack("weights exchanged after they were signed", RefusalCode.BAD_SIGNATURE)
def _(site: Any, study: Any) -> Any:
    content = signed(site.instruct(study), site.coordinator.sign, kind=TRAIN, site="north")
    return site.ask(with_array(content, Array(initial(study) * np.float32(3))), sign=False)


@attack("a round's number changed after it was signed", RefusalCode.BAD_SIGNATURE)
def _(site: Any, study: Any) -> Any:
    content = signed(site.instruct(study), site.coordinator.sign, kind=TRAIN, site="north")
    return site.ask(changed(content, round=2), sign=False)


@attack("a question without a signature", RefusalCode.BAD_SIGNATURE)
def _(site: Any, study: Any) -> Any:
    return site.ask(encode_question(Question(study.sha256, 0)), QUERY, sign=False)


# Other arrays and other fields.


@attack("arrays under another name", RefusalCode.BAD_WEIGHTS)
def _(site: Any, study: Any) -> Any:
    return site.ask(with_array(site.instruct(study), Array(initial(study)), "features"))


@attack("an extra array", RefusalCode.BAD_WEIGHTS)
def _(site: Any, study: Any) -> Any:
    content = site.instruct(study)
    content["weights"]["images"] = Array(np.zeros(4, dtype=np.float32))
    return site.ask(content)


@attack("weights in double precision", RefusalCode.BAD_WEIGHTS)
def _(site: Any, study: Any) -> Any:
    return site.ask(with_array(site.instruct(study), Array(initial(study).astype(np.float64))))


@attack("a pickled array", RefusalCode.BAD_WEIGHTS)
def _(site: Any, study: Any) -> Any:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"cos\nsystem\n."
    return site.ask(with_array(site.instruct(study), Array("object", (1,), "numpy.ndarray", data)))


@attack("weights of another model", RefusalCode.BAD_WEIGHTS)
def _(site: Any, study: Any) -> Any:
    return site.ask(site.instruct(study, weights=np.zeros(7, dtype=np.float32)))


@attack("no weights at all", RefusalCode.BAD_WEIGHTS)
def _(site: Any, study: Any) -> Any:
    return site.ask(site.instruct(study, weights=np.zeros(0, dtype=np.float32)))


@attack("an extra record with code", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    more = ConfigRecord({"run": "import os; os.system('env')"})
    return site.ask(RecordDict({**site.instruct(study), "hook": more}))


@attack("an extra field: other metrics", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    return site.ask(changed(site.instruct(study), metrics=["loss", "patient_names"]))


@attack("an extra field: the data set's size", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    return site.ask(changed(site.instruct(study), num_examples=True))


@attack("a field of another type", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    return site.ask(changed(site.instruct(study), study=study.canonical().encode()))


@attack("metrics in place of the instruction", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    return site.ask(RecordDict({**site.instruct(study), "instruction": MetricRecord({"round": 1})}))


@attack("a kind of message that nobody knows", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    return site.ask(site.instruct(study), "train.upload_data")


@attack("an empty message", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    return site.ask(RecordDict())


# A study other than the one that was approved.


@attack("no privacy", RefusalCode.PRIVACY_REQUIRED)
def _(site: Any, study: Any) -> Any:
    return site.ask(site.instruct(site.study("privacy.enabled=false")))


@attack("image units", RefusalCode.WEAK_UNIT)
def _(site: Any, study: Any) -> Any:
    return site.ask(site.instruct(site.study("privacy.unit=image")))


@attack("a larger epsilon", RefusalCode.OVER_BUDGET)
def _(site: Any, study: Any) -> Any:
    return site.ask(site.instruct(site.study("privacy.target_epsilon=100")))


@attack("a larger delta", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    return site.ask(edited(site, study, privacy__target_delta=0.5))


@attack("a noise multiplier of the server's own", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    return site.ask(edited(site, study, privacy__noise_multiplier=0.0))


@attack("a clipping norm that is infinite", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    return site.ask(edited(site, study, privacy__max_grad_norm=float("inf")))


@attack("more rounds in the approved study", RefusalCode.NOT_APPROVED)
def _(site: Any, study: Any) -> Any:
    return site.ask(site.instruct(site.study("training.rounds=50")))


@attack("another split of the patients", RefusalCode.NOT_APPROVED)
def _(site: Any, study: Any) -> Any:
    return site.ask(site.instruct(site.study("seed=77")))


@attack("another clipping norm in the approved study", RefusalCode.NOT_APPROVED)
def _(site: Any, study: Any) -> Any:
    return site.ask(site.instruct(site.study("privacy.max_grad_norm=1000")))


@attack("another study's text under the approved hash", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    other = site.study("privacy.max_grad_norm=1000")
    return site.ask(changed(site.instruct(other), study_sha256=study.sha256))


@attack("the approved study in another spelling", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    text = json.dumps(json.loads(study.canonical()), indent=1).replace('"rounds": 2', '"rounds":9')
    return site.ask(changed(site.instruct(study), study=text))


@attack("how the study is simulated", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    return site.ask(edited(site, study, simulation={"data": f"/{HIDDEN}"}))


@attack("a model by its class path", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    return site.ask(edited(site, study, model={"name": "os.system"}))


@attack("a path as the study's name", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    return site.ask(edited(site, study, name="../../keys/ledger.key"))


@attack("a study of too many words", RefusalCode.TOO_LARGE)
def _(site: Any, study: Any) -> Any:
    return site.ask(site.instruct(site.study(f"classes={[f'c{n}' for n in range(9999)]}")))


@attack("a study nested a thousand times", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    return site.ask(changed(site.instruct(study), study='{"a":' * 100_000 + "1" + "}" * 100_000))


@attack("a flood of new studies", RefusalCode.TOO_MANY_STUDIES)
def _(site: Any, study: Any) -> Any:
    answers = [site.ask(site.instruct(site.study(f"seed={seed}"))) for seed in range(100, 110)]
    assert len(list((site.settings.state / "studies").glob("*.json"))) == 10
    return answers[-1]


@attack("a bigger message", RefusalCode.TOO_LARGE)
def _(site: Any, study: Any) -> Any:
    small = Policy(max_message_mb=0.1)
    site = type(site)(site.settings.model_copy(update={"policy": small}), site.coordinator)
    return site.ask(site.instruct(study))


@attack("another format of data", RefusalCode.DATA_UNREADABLE)
def _(site: Any, study: Any) -> Any:
    other = site.study("data={kind: ild, image_size_px: 16}")
    site.approve(other)
    return site.ask(site.instruct(other))


@attack("classes that the data don't have", RefusalCode.DATA_UNREADABLE)
def _(site: Any, study: Any) -> Any:
    other = site.study("classes=[ill, healthy]")
    site.approve(other)
    return site.ask(site.instruct(other))


@attack("a second study beyond the budget", RefusalCode.OVER_BUDGET)
def _(site: Any, study: Any) -> Any:
    other = site.study("seed=5")
    site.approve(other)
    for number in (1, 2):
        assert not site.ask(site.instruct(study, round_number=number)).has_error()
    site.ask(site.instruct(other))
    return site.ask(site.instruct(other, round_number=2))


@attack("a study whose own cap is too low", RefusalCode.OVER_BUDGET)
def _(site: Any, study: Any) -> Any:
    return site.ask(site.instruct(site.study("privacy.lifetime_epsilon=0.001")))


# Rounds.


@attack("a round after the last", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    return site.ask(site.instruct(study, round_number=3))


@attack("a round of the far future", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    return site.ask(changed(site.instruct(study), round=2**62))


@attack("a round below the first", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    return site.ask(changed(site.instruct(study), round=-1))


@attack("a fold that the study doesn't have", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    return site.ask(changed(site.instruct(study), fold=1))


@attack("the same round with other weights", RefusalCode.ROUND_ASKED_AGAIN)
def _(site: Any, study: Any) -> Any:
    assert not site.ask(site.instruct(study)).has_error()
    return site.ask(site.instruct(study, weights=initial(study) + np.float32(0.1)))


@attack("the same round's evaluation of other weights", RefusalCode.ROUND_ASKED_AGAIN)
def _(site: Any, study: Any) -> Any:
    assert not site.ask(site.instruct(study)).has_error()
    other = initial(study) + np.float32(0.1)
    return site.ask(site.instruct(study, weights=other), EVALUATE)


@attack("an earlier round", RefusalCode.ROUND_OUT_OF_ORDER)
def _(site: Any, study: Any) -> Any:
    assert not site.ask(site.instruct(study, round_number=2)).has_error()
    return site.ask(site.instruct(study, round_number=1))


@attack("a replay", HARMLESS)
def _(site: Any, study: Any) -> Any:
    content = signed(site.instruct(study), site.coordinator.sign, kind=TRAIN, site="north")
    first, spent = site.ask(content, sign=False), site.ledger.taken(study.sha256)
    again = site.ask(content, sign=False)
    assert left(again) == left(first)
    assert site.ledger.taken(study.sha256) == spent
    return again


@attack("a replay after the site has withdrawn", RefusalCode.WITHDRAWN)
def _(site: Any, study: Any) -> Any:
    assert not site.ask(site.instruct(study)).has_error()
    withdraw(site.settings, study.sha256, now_s=1.0)
    return site.ask(site.instruct(study))


@attack("a head that the site never had", RefusalCode.RECORDS_DAMAGED)
def _(site: Any, study: Any) -> Any:
    return site.ask(site.instruct(study, known_head=Head(9, "9" * 64)))


@attack("a head that is none", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    return site.ask(changed(site.instruct(study), known_head=f"1:{HIDDEN}"))


# Weights.


@attack("weights that are not finite", RefusalCode.BAD_WEIGHTS)
def _(site: Any, study: Any) -> Any:
    weights = initial(study)
    weights[5] = np.nan
    return site.ask(site.instruct(study, weights=weights))


@attack("weights that overflow", RefusalCode.BAD_WEIGHTS)
def _(site: Any, study: Any) -> Any:
    return site.ask(site.instruct(study, weights=np.full_like(initial(study), 1e30)))


@attack("weights crafted to cancel", HARMLESS)
def _(site: Any, study: Any) -> Any:
    weights = np.where(np.arange(initial(study).size) % 2, 9999, -9999).astype(np.float32)
    answer = site.ask(site.instruct(study, weights=weights))
    moved = decode_reply(answer.content).weights - weights
    assert_moved_as_noise(moved, site, study)
    return answer


@attack("weights under which nothing is learnt", HARMLESS)
def _(site: Any, study: Any) -> Any:
    weights = np.zeros_like(initial(study))
    answer = site.ask(site.instruct(study, weights=weights))
    assert_moved_as_noise(decode_reply(answer.content).weights, site, study)
    return answer


def assert_moved_as_noise(moved: np.ndarray, site: Any, study: Any) -> None:
    """Nobody moved the weights by more than the clipping allows, and the noise is there."""
    plan = privacy_plan(study, declared=site.settings.declared_patients)
    step = study.privacy.learning_rate * plan.max_grad_norm / plan.expected_patients
    patients = 12 * plan.steps_per_round * step
    noise = np.sqrt(plan.steps_per_round * moved.size) * plan.noise_multiplier * step
    # Weights of 1e4 are stored in steps of 1e-3, which is a rounding of its own.
    assert 0.9 * noise - patients < np.linalg.norm(moved) < 1.1 * noise + patients


# What the site knows of its patients.


@attack("exact metrics by an evaluation", HARMLESS)
def _(site: Any, study: Any) -> Any:
    answer = site.ask(site.instruct(study), EVALUATE)
    assert set(answer.content) == {"metrics", "receipts"}
    return answer


@attack("the data set's size by what a missing patient changes", HARMLESS)
def _(site: Any, study: Any) -> Any:
    fewer = {"exclude": (f"{PATIENT}-3",), "state": site.settings.state / "other"}
    other = type(site)(site.settings.model_copy(update=fewer), site.coordinator)
    other.approve(study)
    answers = [one.ask(one.instruct(study)) for one in (site, other)]
    shapes = [decode_reply(answer.content).weights.shape for answer in answers]
    assert shapes[0] == shapes[1]
    assert last(site).epsilon == last(other).epsilon
    return answers[0]


@attack("the data set's size by the statement", HARMLESS)
def _(site: Any, study: Any) -> Any:
    site.ask(site.instruct(study))
    answer = site.ask(encode_question(Question(study.sha256, 0)), QUERY)
    statement = read_statement(decode_statement(answer.content))
    assert (statement.patients, statement.images, statement.rounds_joined) == (None, None, 1)
    return answer


@attack("a statement on a study that nobody approved", RefusalCode.NOT_APPROVED)
def _(site: Any, study: Any) -> Any:
    other = site.study("seed=5")
    site.ask(site.instruct(other))
    return site.ask(encode_question(Question(other.sha256, 0)), QUERY)


@attack("statements on folds that the study doesn't have", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    for fold in (-1, 2**31, 7):
        answer = site.ask(encode_question(Question(study.sha256, fold)), QUERY)
    assert not (site.settings.state / "statements").exists()
    return answer


@attack("a path in place of a study's hash", RefusalCode.NOT_APPROVED)
def _(site: Any, study: Any) -> Any:
    path = "../keys/ledger.key".rjust(64, "/")
    return site.ask(encode_question(Question(path, 0)), QUERY)


@attack("a question with another one in it", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    asked = ConfigRecord({"study_sha256": study.sha256, "fold": 0, "counts": True})
    return site.ask(RecordDict({"question": asked}), QUERY)


@attack("a training message as a question", RefusalCode.BAD_INSTRUCTION)
def _(site: Any, study: Any) -> Any:
    return site.ask(site.instruct(study), QUERY)


FAULTS: dict[str, tuple[Exception, RefusalCode]] = {
    "a missing key": (KeyError(PATIENT), RefusalCode.INTERNAL),
    "a file's name": (OSError(5, "failed", f"/{HIDDEN}/{PATIENT}"), RefusalCode.RECORDS_DAMAGED),
    "a data set's fault": (BadData(f"{PATIENT}: no image"), RefusalCode.DATA_UNREADABLE),
    "a library's words": (RuntimeError(f"shape of {PATIENT}"), RefusalCode.INTERNAL),
    "text that is none": (
        UnicodeDecodeError("utf-8", PATIENT.encode(), 0, 1, HIDDEN),
        RefusalCode.INTERNAL,
    ),
    "no memory left": (MemoryError(PATIENT), RefusalCode.INTERNAL),
    "too deep": (RecursionError(PATIENT), RefusalCode.INTERNAL),
    "the gate's own": (GateFailure(PATIENT), RefusalCode.INTERNAL),
}


def left(answer: Any) -> bytes:
    """Every byte that the server can read of an answer."""
    if answer.has_error():
        return f"{answer.error.code} {answer.error.reason}".encode()
    parts = [f"{answer.metadata.message_type}".encode()]
    for name, record in answer.content.items():
        parts.append(name.encode())
        for key, value in record.items():
            data = value.data if isinstance(value, Array) else repr(value).encode()
            parts += [key.encode(), repr(getattr(value, "shape", "")).encode(), data]
    return b"\n".join(parts)


def last(site: Any) -> Any:
    """What the last receipt says."""
    return Line.from_canonical(site.receipts.path.read_bytes().splitlines()[-1]).entry


def assert_nothing_local(answer: Any, site: Any) -> None:
    """No patient, folder, file, key or column of the hospital is in what left."""
    said = left(answer)
    state = site.settings.state
    local = [PATIENT.encode(), b"Erika", HIDDEN.encode(), b"manifest", b".png", b"images/"]
    local += [str(path).encode() for path in (state, state.parent, Path.cwd())]
    local += [(state / "keys" / name).read_bytes() for name in ("ledger.key", "pseudonyms.key")]
    assert [text for text in local if text in said] == []


def assert_refused(answer: Any, site: Any, code: RefusalCode) -> None:
    """A code, its fixed sentence, and a receipt of the refusal."""
    assert answer.has_error(), "answered"
    assert decode_refusal(answer.error) is code
    assert answer.error.reason == REFUSAL_SENTENCES[code]
    receipt = last(site)
    assert isinstance(receipt, Refused)
    assert receipt.code is code


def assert_harmless(answer: Any, site: Any, study: Any) -> None:
    """Only what an honest server gets, and its receipt says so."""
    assert not answer.has_error(), answer.error
    receipt = last(site)
    assert isinstance(receipt, Sent)
    assert receipt.metrics == {}
    if set(answer.content) == {"statement"}:
        return
    reply = decode_reply(answer.content)
    assert reply.metrics == {}
    assert reply.head == site.receipts.head
    assert receipt.sha256 == reply_sha256(reply.weights, {})
    if reply.weights is not None:
        assert set(answer.content) == {"metrics", "receipts", "weights"}
        assert reply.weights.shape == initial(study).shape
        assert receipt.epsilon.guarantee == "differential privacy per patient"


@pytest.fixture
def site(hospital: Callable[..., Any]) -> Any:
    """A site with the default policy, whose steward has approved one study."""
    found = hospital()
    found.approve(found.study())
    return found


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_or_harmless(site: Any, name: str) -> None:
    """Each has its code or gets what an honest server gets; a receipt says so; no text leaves."""
    asked, code = ATTACKS[name]
    study, before = site.study(), site.receipts.head
    answer = asked(site, study)
    assert_nothing_local(answer, site)
    if code is HARMLESS:
        assert_harmless(answer, site, study)
    else:
        assert_refused(answer, site, code)
    assert site.receipts.head.count > before.count
    assert site.receipts.problems(site.receipts.head) == []
    site.ledger.verify(site.receipts.ledger_head)


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("place", ["open_cohort", "train_round", "pass_reply"])
def test_an_exception_never_speaks(
    site: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: str,
    name: str,
) -> None:
    """Wherever it comes from, whatever it says: a code leaves, and the log names no patient."""
    error, code = FAULTS[name]

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(client.site, place, fails)
    answer = site.ask(site.instruct(site.study()))
    assert_nothing_local(answer, site)
    assert_refused(answer, site, code)
    assert PATIENT not in caplog.text


def test_the_attacks_are_as_many_as_the_issue_asks() -> None:
    """At least 25 by name."""
    assert len(ATTACKS) >= 25
