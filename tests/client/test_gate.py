"""The only way out: what may leave leaves exactly so, and nothing else does."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import client.gate
from client.gate import (
    GateFailure,
    Passed,
    PassedArray,
    pass_refusal,
    pass_reply,
    pass_statement,
    seal,
)
from client.statement import make_statement, sign
from common.chain import Head
from common.config import ManifestData, Metric, Release, SiteSettings, Study, Wire
from common.errors import REFUSAL_SENTENCES, RefusalCode
from common.messages import Reply, decode_refusal, decode_reply, decode_statement, encode_reply
from common.models import Layout

LAYOUT = Layout(("head.bias", "head.weight"), ((2,), (2, 4)))
RELEASED = ("loss", "accuracy")
PATIENT = "Mustermann^Erika"
HEAD = Head(3, "ab" * 32)
SENTENCE = r"^gate: [a-z0-9 ,']+\.$"  # what a failure says: words, and no value


def weights() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Ten values."""
    return np.linspace(-1, 1, 10, dtype=np.float32)


def passed(reply: Reply, *, layout: Layout | None = LAYOUT, max_bytes: int = 1000) -> Passed:
    """What the gate lets out."""
    return pass_reply(reply, layout=layout, released=RELEASED, max_bytes=max_bytes)


def wire(content: RecordDict) -> bytes:
    """The records as Flower would serialise them."""
    found: bytes = recorddict_to_proto(content).SerializeToString()
    return found


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    arrays(np.float32, 10, elements=finite),
    st.dictionaries(st.sampled_from(RELEASED), st.floats(0, 1), max_size=2),
)
def test_a_reply_passes_unchanged(flat: Any, metrics: dict[str, float]) -> None:
    """Every finite array of the model's length and every released metric arrives bit by bit."""
    found = passed(Reply(flat, metrics))
    decoded = decode_reply(found.content)
    assert decoded.weights is not None
    assert found.values is not None
    assert decoded.weights.tobytes() == found.values.tobytes() == flat.tobytes()
    assert decoded.metrics == metrics == found.metrics
    assert set(found.content) == {"metrics", "weights"}
    assert [(a.name, a.shape, a.dtype) for a in found.arrays] == [("weights", (10,), "float32")]


def test_an_evaluation_passes_without_any_array() -> None:
    """An evaluation's reply has its metrics and nothing else."""
    found = passed(Reply(None, {"loss": 0.5}), layout=None)
    assert decode_reply(found.content) == Reply(None, {"loss": 0.5})
    assert found.arrays == ()


def test_the_encoded_array_is_a_header_and_four_bytes_a_value() -> None:
    """A view of a large array takes none of its neighbours with it."""
    large = np.full(1000, 7.0, dtype=np.float32)
    large[::100] = weights()
    found = passed(Reply(large[::100], {}))
    data = found.content.array_records["weights"]["packed"].data
    assert len(data) == 128 + 4 * 10
    assert data[128:] == weights().tobytes()


class Louder(float):
    """A number that is more than its value."""

    def __init__(self, _value: float) -> None:
        self.said = PATIENT


class Wider(np.ndarray[Any, Any]):
    """An array of a type of its own."""


class TwoFaced(dict[str, float]):
    """A mapping that tells each reader something else."""

    def __iter__(self) -> Iterator[str]:
        return iter(["loss"])

    def keys(self) -> Any:
        return [PATIENT]

    def __getitem__(self, name: str) -> float:
        return 0.5


def changed(place: int, value: float) -> np.ndarray[Any, Any]:
    """Weights with one other value."""
    flat = weights()
    flat[place] = value
    return flat


# What a fault in the site's own code could hand to the gate.
@pytest.mark.parametrize(
    "reply",
    [
        Reply(changed(0, np.nan), {}),
        Reply(changed(9, np.inf), {}),
        Reply(changed(5, -np.inf), {}),
        Reply(np.frombuffer(b"\x01\x00\xa0\x7f" * 10, "<f4"), {}),  # a payload in a NaN
        Reply(weights()[:9], {}),
        Reply(np.append(weights(), np.float32(0)), {}),
        Reply(weights()[:0], {}),
        Reply(weights().reshape(2, 5), {}),
        Reply(weights().astype(np.float64), {}),  # type: ignore[arg-type]
        Reply(weights().astype(">f4"), {}),
        Reply(weights().astype(np.float16), {}),  # type: ignore[arg-type]
        Reply(weights().view(np.int32), {}),  # type: ignore[arg-type]
        Reply(np.array([PATIENT] * 10), {}),  # type: ignore[arg-type]
        Reply(np.array([PATIENT] * 10, dtype=object), {}),  # type: ignore[arg-type]
        Reply(np.zeros(10, dtype=[("x", "f4")]), {}),  # type: ignore[arg-type]
        Reply(weights().view(Wider), {}),
        Reply(np.ma.masked_array(weights(), mask=[True] * 10), {}),
        Reply(weights().tolist(), {}),  # type: ignore[arg-type]
        Reply(weights().tobytes(), {}),  # type: ignore[arg-type]
        Reply(None, {}),
        Reply(weights(), {"macro_auroc": 0.5}),  # not released
        Reply(weights(), {PATIENT: 0.5}),
        Reply(weights(), {"loss": math.nan}),
        Reply(weights(), {"loss": math.inf}),
        Reply(weights(), {"loss": -0.1}),
        Reply(weights(), {"accuracy": 1.1}),
        Reply(weights(), {"accuracy": 1}),
        Reply(weights(), {"accuracy": True}),
        Reply(weights(), {"loss": 10**18}),
        Reply(weights(), {"loss": [0.1, 0.2]}),  # type: ignore[dict-item]
        Reply(weights(), {"loss": PATIENT}),  # type: ignore[dict-item]
        Reply(weights(), {"loss": Louder(0.5)}),
        Reply(weights(), {"loss": np.float64(0.5)}),
        Reply(weights(), TwoFaced(loss=0.5)),
        Reply(weights(), None),  # type: ignore[arg-type]
        Reply(weights(), {}, HEAD),  # there is no receipt yet
    ],
)
def test_what_the_site_should_not_say_stays(reply: Reply) -> None:
    """Other arrays, other metrics and values that are none fail, and the text names no value."""
    with pytest.raises(GateFailure, match=SENTENCE) as failure:
        passed(reply)
    assert PATIENT not in str(failure.value)
    assert failure.value.__cause__ is None


@pytest.mark.parametrize(
    "read",
    [
        Reply(weights(), {"loss": 0.25}),
        Reply(weights(), {"loss": 0.5}, HEAD),
        Reply(weights()[:9], {"loss": 0.5}),
        Reply(None, {"loss": 0.5}),
        Reply(changed(0, np.nan), {"loss": 0.5}),
        Reply(changed(9, np.inf), {"loss": 0.5}),
        Reply(changed(9, -np.inf), {"loss": 0.5}),
    ],
)
def test_what_a_server_would_read_counts(monkeypatch: pytest.MonkeyPatch, read: Reply) -> None:
    """Records that decode to something else than what was checked are never sent."""
    monkeypatch.setattr(client.gate, "decode_reply", lambda _content, **_form: read)
    with pytest.raises(GateFailure, match=SENTENCE):
        passed(Reply(weights(), {"loss": 0.5}))


def test_an_array_on_an_evaluation_stays() -> None:
    """Where no array may leave, none does."""
    with pytest.raises(GateFailure, match=SENTENCE):
        passed(Reply(weights(), {}), layout=None)


def _add_record(content: RecordDict) -> None:
    content["more"] = ConfigRecord({"name": PATIENT})


def _add_metric_record(content: RecordDict) -> None:
    content["more"] = MetricRecord({"loss": 0.5})


def _add_array_record(content: RecordDict) -> None:
    content["more"] = ArrayRecord({"packed": Array(weights())})


def _add_array(content: RecordDict) -> None:
    content.array_records["weights"]["more"] = Array(weights())


def _rename_array(content: RecordDict) -> None:
    record = content.array_records["weights"]
    content["weights"] = ArrayRecord({PATIENT: record["packed"]})


def _drop_array(content: RecordDict) -> None:
    content["weights"] = ArrayRecord({})


def _drop_weights(content: RecordDict) -> None:
    del content["weights"]


def _drop_metrics(content: RecordDict) -> None:
    del content["metrics"]


def _another_kind(content: RecordDict) -> None:
    content["weights"] = ConfigRecord({"packed": PATIENT})


def _metrics_as_text(content: RecordDict) -> None:
    content["metrics"] = ConfigRecord({"loss": 0.5})


def _metrics_list(content: RecordDict) -> None:
    content["metrics"] = MetricRecord({"loss": [0.5]})


def _set(**fields: Any) -> Callable[[RecordDict], None]:
    """Sets fields of the encoded array."""

    def change(content: RecordDict) -> None:
        array = content.array_records["weights"]["packed"]
        for name, value in fields.items():
            setattr(array, name, value)

    return change


def _data(edit: Callable[[bytes], bytes]) -> Callable[[RecordDict], None]:
    """Edits the encoded array's bytes."""

    def change(content: RecordDict) -> None:
        array = content.array_records["weights"]["packed"]
        array.data = edit(array.data)

    return change


class Padded(bytes):
    """Bytes with an attribute."""

    said = PATIENT


# What a fault in the encoder, or code put in its place, could do to the records.
MUTATIONS: dict[str, Callable[[RecordDict], None]] = {
    "another record": _add_record,
    "another metric record": _add_metric_record,
    "another array record": _add_array_record,
    "another array": _add_array,
    "an array's name": _rename_array,
    "no array": _drop_array,
    "no weights": _drop_weights,
    "no metrics": _drop_metrics,
    "text for weights": _another_kind,
    "text for metrics": _metrics_as_text,
    "a list of metrics": _metrics_list,
    "text in the dtype": _set(dtype=f"float32 {PATIENT}"),
    "text in the serialisation": _set(stype=PATIENT),
    "another shape": _set(shape=(2, 5)),
    "a shape of bools": _set(shape=(True,) * 10),
    "longer": _data(lambda data: data + b"\0"),
    "shorter": _data(lambda data: data[:-1]),
    "one value more": _data(lambda data: data + b"\0\0\0\0"),
    "text in the header's padding": _data(lambda data: data.replace(b"  \n", b"J \n", 1)),
    "text behind": _data(lambda data: data + PATIENT.encode()),
    "a pickle": _data(lambda data: b"\x80\x04N." + data[4:]),
    "fortran order": _data(lambda data: data.replace(b"False", b"True ", 1)),
    "another byte order": _data(lambda data: data.replace(b"<f4", b">f4", 1)),
    "whole numbers": _data(lambda data: data.replace(b"<f4", b"<i4", 1)),
    "bytes of their own type": _data(Padded),
    "a byte array": _data(bytearray),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutated_records_stay(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Records that differ in one field from what they should be are never sent."""

    def encode(reply: Reply, **form: Any) -> RecordDict:
        content = encode_reply(reply, **form)
        MUTATIONS[name](content)
        return content

    monkeypatch.setattr(client.gate, "encode_reply", encode)
    with pytest.raises(GateFailure, match=SENTENCE) as failure:
        passed(Reply(weights(), {"loss": 0.5}))
    assert PATIENT not in str(failure.value)


@pytest.mark.parametrize(
    ("form", "dtype", "size"), [("bfloat16", "uint16", 5), ("int8", "uint8", 6)]
)
def test_short_wires_hold_the_values_exactly(form: Wire, dtype: str, size: int) -> None:
    """What was rounded for the study's wire passes as it is; anything else is never sent."""
    update = np.array([0.5, -0.25, 0.0, 1.0, -1.0], dtype=np.float32)
    layout = Layout(("w",), ((5,),))

    def through(values: np.ndarray, most: float = 1e6) -> Passed:
        reply = Reply(values, {"loss": 0.5})
        return pass_reply(reply, layout=layout, released=["loss"], max_bytes=int(most), wire=form)

    found = through(update)
    assert found.arrays == (PassedArray("weights", (size,), dtype),)
    assert found.content["weights"]["packed"].dtype == dtype
    assert np.array_equal(decode_reply(found.content, wire=form).weights, update)
    with pytest.raises(ValueError, match="flat float32"):
        decode_reply(found.content)
    for wrong in (update + np.float32(1e-7), update[:4], np.append(update, update)):
        with pytest.raises(GateFailure):
            through(wrong.astype(np.float32))
    for value in (np.nan, np.inf):
        with pytest.raises(GateFailure):
            through(np.where(update == 0, np.float32(value), update))


def test_nothing_hangs_on_to_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attributes and cached chunks, which Flower would send, are left behind."""

    def encode(reply: Reply, **form: Any) -> RecordDict:
        content = encode_reply(reply, **form)
        content.said = PATIENT  # type: ignore[attr-defined]
        array = content.array_records["weights"]["packed"]
        array.said = PATIENT  # type: ignore[attr-defined]
        array.__dict__["_chunks"] = Array(np.full(10, 9, dtype=np.float32)).slice_array()
        return content

    plain = passed(Reply(weights(), {}))
    monkeypatch.setattr(client.gate, "encode_reply", encode)
    content = passed(Reply(weights(), {})).content
    array = content.array_records["weights"]["packed"]
    assert "said" not in {*vars(content), *vars(array)}
    plain_array = plain.content.array_records["weights"]["packed"]
    assert list(array.children) == list(plain_array.children)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 128 + 40 - 1), value=st.integers(0, 255))
def test_any_byte_of_the_encoded_array_counts(
    monkeypatch: pytest.MonkeyPatch, place: int, value: int
) -> None:
    """A byte that changes is a byte of a weight, or nothing is sent."""

    def encode(reply: Reply, **form: Any) -> RecordDict:
        content = encode_reply(reply, **form)
        array = content.array_records["weights"]["packed"]
        array.data = array.data[:place] + bytes([value]) + array.data[place + 1 :]
        return content

    with monkeypatch.context() as patch:
        patch.setattr(client.gate, "encode_reply", encode)
        before = wire(encode_reply(Reply(weights(), {})))
        try:
            found = wire(passed(Reply(weights(), {})).content)
        except GateFailure:
            return
    differs = sum(map(int.__ne__, before, found))
    assert differs == 0 if place < 128 else differs <= 1


def test_every_metric_has_its_range() -> None:
    """A metric that is added to the configuration stays at home until the gate knows its range."""
    for name in get_args(Metric):
        found = pass_reply(Reply(None, {name: 1.0}), layout=None, released=(name,), max_bytes=99)
        assert found.metrics == {name: 1.0}


def test_the_order_of_metrics_says_nothing() -> None:
    """Two orders of the same metrics leave as the same bytes."""
    one = passed(Reply(weights(), {"loss": 0.5, "accuracy": 0.25}))
    other = passed(Reply(weights(), {"accuracy": 0.25, "loss": 0.5}))
    assert wire(one.content) == wire(other.content)
    assert one.sha256 == other.sha256


@pytest.mark.parametrize(
    "other",
    [
        Reply(changed(3, -0.0), {"loss": 0.5}),
        Reply(weights(), {"loss": 0.5000000000000001}),
        Reply(weights(), {"accuracy": 0.5}),
        Reply(weights(), {}),
    ],
)
def test_the_hash_covers_all_that_leaves(other: Reply) -> None:
    """Another bit of a weight or a metric gives another hash."""
    one = Reply(changed(3, 0.0), {"loss": 0.5})
    assert passed(one).sha256 == passed(one).sha256 != passed(other).sha256


def test_bytes_are_counted() -> None:
    """A reply of as many bytes as allowed passes; one more doesn't."""
    reply = Reply(weights(), {"loss": 0.5})
    assert passed(reply).n_bytes == 128 + 40 + 8
    assert passed(reply, max_bytes=176).n_bytes == 176
    with pytest.raises(GateFailure, match=SENTENCE):
        passed(reply, max_bytes=175)


def test_a_seal_adds_the_head_alone() -> None:
    """A sealed reply is what passed and the receipts' head; it can be decoded."""
    found = passed(Reply(weights(), {"loss": 0.5}))
    sealed = seal(found, HEAD)
    assert set(sealed) == {"metrics", "weights", "receipts"}
    assert decode_reply(sealed).head == HEAD
    assert sealed["weights"] is found.content["weights"]


@pytest.mark.parametrize("head", [Head(-1, "ab" * 32), Head(1, PATIENT), Head(10**13, "ab" * 32)])
def test_a_head_that_is_none_stays(head: Head) -> None:
    """Text in the place of a hash doesn't leave with the seal."""
    with pytest.raises(GateFailure, match=SENTENCE) as failure:
        seal(passed(Reply(weights(), {})), head)
    assert PATIENT not in str(failure.value)


@pytest.mark.parametrize("code", RefusalCode)
def test_a_refusal_is_its_code_and_its_sentence(code: RefusalCode) -> None:
    """Each code of the list leaves with its own fixed sentence."""
    error = pass_refusal(code)
    assert decode_refusal(error) is code
    assert error.reason == REFUSAL_SENTENCES[code]


def test_no_other_text_leaves_as_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A code that is only text, and a sentence that was changed, fail."""
    with pytest.raises(GateFailure, match=SENTENCE):
        pass_refusal("internal")  # type: ignore[arg-type]
    changed_error = pass_refusal(RefusalCode.INTERNAL)
    changed_error.__dict__["_reason"] = PATIENT
    monkeypatch.setattr(client.gate, "encode_refusal", lambda _code: changed_error)
    with pytest.raises(GateFailure, match=SENTENCE):
        pass_refusal(RefusalCode.INTERNAL)


def signed(site: SiteSettings) -> bytes:
    """A statement of `site`, which has 12 patients and 34 images."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    study = Study(classes=("dark", "bright"), data=ManifestData())
    statement = make_statement(
        site,
        study,
        fold=0,
        rounds_joined=2,
        epsilon=None,
        receipts=HEAD,
        patients=12,
        images=34,
        version="0.1.0",
        key=key,
    )
    return sign(statement, key)


def test_a_statement_leaves_as_it_was_signed() -> None:
    """The signed bytes pass whole."""
    site = SiteSettings(name="north", release=Release(counts=True))
    content = signed(site)
    found = pass_statement(content, site=site)
    assert decode_statement(found.content) == content
    assert (found.n_bytes, found.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert (found.arrays, found.metrics, found.values) == ((), {}, None)


@pytest.mark.parametrize(
    ("content", "site"),
    [
        (PATIENT.encode(), SiteSettings(name="north")),
        (b"", SiteSettings(name="north")),
        (signed(SiteSettings(name="north")) + b" ", SiteSettings(name="north")),
        (
            signed(SiteSettings(name="north")).replace(b"north", b"south"),
            SiteSettings(name="south"),
        ),
        (signed(SiteSettings(name="north")), SiteSettings(name="south")),
        (signed(SiteSettings(name="n", release=Release(counts=True))), SiteSettings(name="n")),
        (bytearray(signed(SiteSettings(name="north"))), SiteSettings(name="north")),
    ],
)
def test_a_statement_with_more_stays(content: Any, site: SiteSettings) -> None:
    """Other text, a changed or foreign statement, and counts that aren't released fail."""
    with pytest.raises(GateFailure, match=SENTENCE) as failure:
        pass_statement(content, site=site)
    assert PATIENT not in str(failure.value)
