"""What travels: it comes back as it was, and everything else is refused with a code."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import Study, parse
from common.errors import REFUSAL_SENTENCES, RefusalCode, SiteRefusal
from common.messages import (
    Instruction,
    Reply,
    decode_instruction,
    decode_refusal,
    decode_reply,
    encode_instruction,
    encode_refusal,
    encode_reply,
    payload_bytes,
)

STUDY = parse(
    Study,
    {
        "classes": ["a", "b"],
        "data": {"kind": "manifest", "folds": 3},
        "training": {"rounds": 4},
        "simulation": {"data": "/home/somebody/secret", "sites": {"north": {"exclude": ["Ann"]}}},
    },
    where="test",
)
WEIGHTS = np.linspace(-1, 1, 7, dtype=np.float32)
SHA256 = "0b" * 32  # said to be theirs


def instruction(fold: int = 1, round_number: int = 1) -> Instruction:
    """A good instruction."""
    return Instruction(STUDY, fold, round_number, WEIGHTS, SHA256)


def packed(array: np.ndarray) -> ArrayRecord:
    """An array record as messages carry them."""
    return ArrayRecord({"packed": Array(array)})


def raw(data: bytes, stype: str = "numpy.ndarray") -> ArrayRecord:
    """An array record whose bytes somebody else composed."""
    return ArrayRecord({"packed": Array("float32", (7,), stype, data)})


def saved(array: np.ndarray, **how: Any) -> bytes:
    """What numpy writes."""
    buffer = io.BytesIO()
    np.save(buffer, array, **how)
    return buffer.getvalue()


def zipped(array: np.ndarray) -> bytes:
    """What numpy writes for several arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


BAD_ARRAYS = {
    "float64": packed(WEIGHTS.astype(np.float64)),
    "big-endian": packed(WEIGHTS.astype(">f4")),
    "integers": packed(np.arange(7)),
    "two axes": packed(WEIGHTS[None]),
    "no axis": packed(np.array(1, dtype=np.float32)),
    "another name": ArrayRecord({"other": Array(WEIGHTS)}),
    "two arrays": ArrayRecord({"packed": Array(WEIGHTS), "more": Array(WEIGHTS)}),
    "no array": ArrayRecord({}),
    "empty": raw(b""),
    "cut": raw(saved(WEIGHTS)[:-1]),
    "cut by a value": raw(saved(WEIGHTS)[:-4]),
    "too long": raw(saved(WEIGHTS) + b"\0\0\0\0"),
    "pickle": raw(saved(np.array([{"a": 1}], dtype=object), allow_pickle=True)),
    "zip": raw(zipped(WEIGHTS)),
    "claims a terabyte": raw(saved(WEIGHTS).replace(b"(7,), }", b"(274877906944,), }")),
    "another way to write": raw(saved(WEIGHTS), stype="pickle"),
}


def test_an_instruction_comes_back() -> None:
    """What a site reads is what the server wrote, to the bit."""
    for size in (0, 1, 7, 12345):
        weights = np.random.default_rng(size).normal(size=size).astype(np.float32)
        sent = Instruction(STUDY, 2, 5, weights, SHA256)
        read = decode_instruction(encode_instruction(sent))
        assert (read.fold, read.round_number, read.weights_sha256) == (2, 5, SHA256)
        assert read.study.canonical() == STUDY.canonical()
        assert read.weights.dtype == np.float32
        assert read.weights.tobytes() == weights.tobytes()


def test_how_it_is_simulated_does_not_travel() -> None:
    """Neither paths nor a site's own settings are in an instruction."""
    text = repr(encode_instruction(instruction()))
    for local in ("simulation", "secret", "Ann", "north"):
        assert local not in text


@pytest.mark.parametrize("name", list(BAD_ARRAYS))
def test_other_weights_are_refused(name: str) -> None:
    """Anything but one flat float32 array as numpy writes it is refused, and never parsed."""
    content = encode_instruction(instruction())
    content["weights"] = BAD_ARRAYS[name]
    with pytest.raises(SiteRefusal) as caught:
        decode_instruction(content)
    assert caught.value.code is RefusalCode.BAD_WEIGHTS
    answer = RecordDict({"weights": BAD_ARRAYS[name], "metrics": MetricRecord({})})
    with pytest.raises(ValueError, match="flat float32"):
        decode_reply(answer)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("study", "{}"),
        ("study", "["),
        ("study", "[" * 100_000),
        ("study", b"{}"),
        ("study", STUDY.canonical().replace('"rounds":4', '"rounds":0')),
        ("study", STUDY.canonical().replace('"rounds":4', '"rounds":"4"')),
        ("study", STUDY.canonical().replace('"rounds":4', '"rounds":5')),
        ("study", STUDY.canonical()[:-1] + ',"simulation":{}}'),
        ("study", STUDY.canonical()[:-1] + ',"code":"import os"}'),
        ("study_sha256", "0" * 64),
        ("study_sha256", 5),
        ("fold", 0),
        ("fold", 4),
        ("fold", -1),
        ("fold", True),
        ("fold", 1.0),
        ("fold", "1"),
        ("round", 0),
        ("round", 6),
        ("round", [1]),
        ("class_path", "os.system"),
    ],
)
def test_a_malformed_instruction_is_refused(key: str, value: Any) -> None:
    """Each setting is checked for type and range; one that nobody knows is refused too."""
    content = encode_instruction(instruction())
    content["instruction"] = ConfigRecord(
        dict(content.config_records["instruction"]) | {key: value}
    )
    with pytest.raises(SiteRefusal) as caught:
        decode_instruction(content)
    assert caught.value.code is RefusalCode.BAD_INSTRUCTION


def test_folds_and_rounds_have_ends() -> None:
    """The last round only evaluates; a study without folds knows fold 0 alone."""
    assert decode_instruction(encode_instruction(instruction(3, 5))).round_number == 5
    single = STUDY.model_copy(update={"data": STUDY.data.model_copy(update={"folds": None})})
    whole = Instruction(single, 0, 1, WEIGHTS, SHA256)
    assert decode_instruction(encode_instruction(whole)).fold == 0
    with pytest.raises(SiteRefusal):
        decode_instruction(encode_instruction(replace(whole, fold=1)))


@pytest.mark.parametrize("name", ["study", "study_sha256", "fold", "round"])
def test_a_missing_setting_is_refused(name: str) -> None:
    """No setting has a default on the wire."""
    content = encode_instruction(instruction())
    del content.config_records["instruction"][name]
    with pytest.raises(SiteRefusal):
        decode_instruction(content)


def test_records_that_nobody_asked_for_are_refused() -> None:
    """Instruction and reply hold their records and no other, each of its own kind."""
    content = encode_instruction(instruction())
    content["extra"] = ConfigRecord({"a": 1})
    with pytest.raises(SiteRefusal):
        decode_instruction(content)
    swapped = encode_instruction(instruction())
    swapped["instruction"] = packed(WEIGHTS)
    with pytest.raises(SiteRefusal):
        decode_instruction(swapped)
    answer = encode_reply(Reply(WEIGHTS, {}))
    answer["extra"] = ConfigRecord({"patients": "Ann"})
    with pytest.raises(ValueError, match="nothing else"):
        decode_reply(answer)
    with pytest.raises(ValueError, match="nothing else"):
        decode_reply(RecordDict({"metrics": ConfigRecord({"loss": 1.0})}))
    with pytest.raises(ValueError, match="nothing else"):
        decode_reply(RecordDict({}))


def test_a_reply_comes_back() -> None:
    """Weights and metrics arrive as they were; an evaluation has no weights."""
    metrics = {"loss": 0.25, "accuracy": 0.5}
    read = decode_reply(encode_reply(Reply(WEIGHTS, metrics)))
    assert read.weights is not None
    assert read.weights.tobytes() == WEIGHTS.tobytes()
    assert read.metrics == metrics
    assert decode_reply(encode_reply(Reply(None, {}))) == Reply(None, {})


@pytest.mark.parametrize(
    "metrics",
    [
        {"loss": float("nan")},
        {"loss": float("inf")},
        {"loss": [0.1, 0.2]},
        {"loss": 1},
        {"patient Ann": 0.5},
    ],
)
def test_other_metrics_are_refused(metrics: dict[str, Any]) -> None:
    """A metric is one finite float with a name that a policy knows."""
    with pytest.raises(ValueError, match="metrics must be"):
        decode_reply(RecordDict({"metrics": MetricRecord(metrics)}))


@pytest.mark.parametrize("code", list(RefusalCode))
def test_a_refusal_is_a_code_and_its_fixed_sentence(code: RefusalCode) -> None:
    """Each code comes back, and its text is the one written down for it."""
    error = encode_refusal(code)
    assert decode_refusal(error) is code
    assert error.reason == REFUSAL_SENTENCES[code]


def test_the_text_of_a_refusal_is_ignored() -> None:
    """Only the code counts; codes of Flower's own are none of ours."""
    said = encode_refusal(RefusalCode.DIVERGED)
    assert decode_refusal(Error(said.code, "Ann's scan is missing")) is RefusalCode.DIVERGED
    for code in (0, 1, 999, 1000 + len(RefusalCode), -1):
        assert decode_refusal(Error(code, "x")) is None


def test_payload_counts_the_values() -> None:
    """The bytes of weights and settings, and eight a metric."""
    answer = encode_reply(Reply(np.zeros(1000, np.float32), {"loss": 1.0, "accuracy": 0.5}))
    assert 4000 + 16 <= payload_bytes(answer) < 4000 + 16 + 256
    content = encode_instruction(instruction())
    assert payload_bytes(content) > len(STUDY.canonical()) + WEIGHTS.nbytes
    assert payload_bytes(RecordDict({"x": ConfigRecord({"y": b"\xff"})})) > 0


VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.booleans(),
    st.lists(st.integers(-5, 5), max_size=3),
)
RECORDS = st.one_of(
    st.dictionaries(
        st.sampled_from(["study", "study_sha256", "fold", "round", "x"]), VALUES, max_size=4
    ).map(ConfigRecord),
    st.dictionaries(
        st.sampled_from(["loss", "x"]), st.floats() | st.integers(0, 9), max_size=2
    ).map(MetricRecord),
    st.binary(max_size=200).map(raw),
    st.integers(0, 300).map(lambda at: raw(saved(WEIGHTS)[:at] + b"9" + saved(WEIGHTS)[at + 1 :])),
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["weights", "instruction", "metrics", "x"]), RECORDS)
def test_a_mutated_instruction_is_read_or_refused(name: str, record: Any) -> None:
    """Whatever record is swapped in, the only exception is a refusal."""
    content = encode_instruction(instruction())
    content[name] = record
    try:
        decode_instruction(content)
    except SiteRefusal as refusal:
        code = refusal.code
    else:
        code = None
    expected = {"weights": {RefusalCode.BAD_WEIGHTS, None}}  # a bit of a value may change
    assert code in expected.get(name, {RefusalCode.BAD_INSTRUCTION})


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["weights", "metrics", "x"]), RECORDS)
def test_a_mutated_reply_is_read_or_refused(name: str, record: Any) -> None:
    """Whatever record is swapped in, the only exception is ValueError, without the content."""
    answer = encode_reply(Reply(WEIGHTS, {"loss": 0.5}))
    answer[name] = record
    said = ""
    try:
        read = decode_reply(answer)
    except ValueError as error:
        said = str(error)
    else:
        assert json.dumps(dict(read.metrics), allow_nan=False)
    assert len(said) < 120
