"""The gate: the only way out of a site.

Whatever leaves is taken apart into plain bytes, numbers and codes, checked, and put together anew
from just these, so that nothing else can hang on to it: no attribute of a record, no second array,
no buffer behind a view, no subclass that behaves in its own way, no text but fixed sentences.

Allowed are: a reply (the model's weights as one array in a training reply, the metrics that the
site releases, then the head of its receipts), a refusal (a code of the closed list) and the signed
statement at a study's end. What fails raises GateFailure, and then nothing is sent.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord, Error, MetricRecord, RecordDict
from numpy.typing import NDArray

from common.chain import Head
from common.config import SiteSettings, Wire
from common.errors import REFUSAL_SENTENCES, FedwardError, RefusalCode
from common.messages import (
    Reply,
    decode_reply,
    decode_statement,
    encode_refusal,
    encode_reply,
    encode_statement,
    payload_bytes,
    with_head,
)
from common.models import Layout
from common.statement import read_statement
from common.wire import BLOCK, DTYPES

_MOST: Final[Mapping[str, float]] = {  # what a metric can be; none is below 0
    "loss": math.inf,
    "accuracy": 1.0,
    "balanced_accuracy": 1.0,
    "macro_auroc": 1.0,
}
_ROUNDING: Final = 1e-9  # by which a sum of shares may miss its range


class GateFailure(FedwardError):
    """What was about to leave isn't what may leave, so nothing does; the sentence has no value."""


@dataclass(frozen=True, slots=True)
class PassedArray:
    """One array that leaves, for the receipt."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def n_bytes(self) -> int:
        """Of its values."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Passed:
    """Something that went through the gate, and what a receipt says of it."""

    content: RecordDict
    n_bytes: int  # of its values
    arrays: tuple[PassedArray, ...]
    metrics: Mapping[str, float]
    values: NDArray[np.float32] | None  # (size,) the weights as they leave
    sha256: str  # of all that leaves, but for the receipts' head that is added to it


def pass_reply(
    reply: Reply,
    *,
    layout: Layout | None,
    released: Collection[str],
    max_bytes: int,
    wire: Wire = "float32",
) -> Passed:
    """A reply as the records that leave.

    Args:
        reply: without a head: `seal` adds it once there is a receipt.
        layout: of the model that is trained; None for an evaluation, on which no array leaves.
        released: names of the metrics that the site lets out; any of them may be missing.
        max_bytes: the largest message.
        wire: how the values travel; a short one holds them exactly, or they don't pass.

    Raises:
        GateFailure: anything else than the model's own finite float32 values and finite released
            metrics in their range, or too many bytes.
    """
    # An array of another kind would be converted, and nobody would know what it had been.
    flat = reply.weights
    if flat is not None and (type(flat) is not np.ndarray or flat.dtype != np.float32):
        raise GateFailure("gate: the weights are no plain float32 array.")
    if flat is not None and layout is not None and flat.shape != (layout.size,):
        raise GateFailure("gate: the weights are not as many as the model's.")
    try:
        encoded = encode_reply(reply, wire=wire)
    except (AttributeError, TypeError, ValueError):
        raise GateFailure("gate: the reply can't be encoded.") from None
    if set(encoded) != ({"metrics"} if layout is None else {"metrics", "weights"}):
        raise GateFailure("gate: the reply has other records than this kind of message may have.")
    metrics = _plain_metrics(encoded["metrics"], released)
    content = RecordDict({"metrics": MetricRecord(dict(metrics))})
    if layout is not None:
        content["weights"] = ArrayRecord({"packed": _plain_array(encoded["weights"], layout, wire)})
    values = _decoded(content, metrics, layout, wire)
    n_bytes = payload_bytes(content)
    if n_bytes > max_bytes:
        raise GateFailure("gate: the reply is larger than the site allows.")
    arrays = () if layout is None else (leaving_array(layout, wire),)
    return Passed(content, n_bytes, arrays, metrics, values, reply_sha256(values, metrics))


def _plain_metrics(record: object, released: Collection[str]) -> dict[str, float]:
    if not isinstance(record, MetricRecord):
        raise GateFailure("gate: the reply's metrics are none.")
    metrics: dict[str, float] = {}
    for name, value in sorted(record.items()):  # an order would be a message, too
        if type(name) is not str or name not in released or name not in _MOST:
            raise GateFailure("gate: the reply has a metric that the site doesn't release.")
        if type(value) is not float or not math.isfinite(value):
            raise GateFailure("gate: a metric is no finite float.")
        if not -_ROUNDING <= value <= _MOST[name] + _ROUNDING:
            raise GateFailure("gate: a metric is out of its range.")
        metrics[name] = value
    return metrics


def leaving_array(layout: Layout, wire: Wire) -> PassedArray:
    """The only array that ever leaves: the model's values in the form in which they travel."""
    blocks = -(-layout.size // BLOCK) if wire == "int8" else 0
    return PassedArray("weights", (layout.size + blocks,), DTYPES[wire])


def _plain_array(record: object, layout: Layout, wire: Wire) -> Array:
    """The only array, anew, of its bytes alone."""
    if not isinstance(record, ArrayRecord) or list(record) != ["packed"]:
        raise GateFailure("gate: the reply has other arrays than the model's.")
    array, form = record["packed"], leaving_array(layout, wire)
    said = array.dtype, array.shape, array.stype
    if said != (form.dtype, form.shape, "numpy.ndarray") or type(array.data) is not bytes:
        raise GateFailure(f"gate: the weights are not the model's, as {wire}.")
    return Array(form.dtype, form.shape, "numpy.ndarray", array.data)


def _decoded(
    content: RecordDict, metrics: Mapping[str, float], layout: Layout | None, wire: Wire
) -> NDArray[np.float32] | None:
    """The weights that a server would read, which are checked as it would read them."""
    try:
        # Raises unless the array is numpy's own header and 4 bytes a value, and nothing else.
        decoded = decode_reply(content, wire=wire)
    except ValueError:
        raise GateFailure("gate: the reply can't be decoded again.") from None
    if decoded.metrics != metrics or decoded.head is not None:
        raise GateFailure("gate: the reply decodes to something else.")
    flat = decoded.weights
    if layout is None:
        return None
    if flat is None or flat.shape != (layout.size,):
        raise GateFailure("gate: the weights are not as many as the model's.")
    # What isn't a number is its array's least and largest value; two passes without a copy.
    if not (math.isfinite(flat.min(initial=0)) and math.isfinite(flat.max(initial=0))):
        raise GateFailure("gate: the weights are not finite.")
    return flat


def reply_sha256(values: NDArray[np.float32] | None, metrics: Mapping[str, float]) -> str:
    """Hash over all that a reply says, hexadecimal.

    Args:
        values: the weights (size,), or None on an evaluation.
        metrics: by name.
    """
    exact = [[name, value.hex()] for name, value in sorted(metrics.items())]
    said = {"metrics": exact, "size": None if values is None else values.size}
    digest = hashlib.sha256(json.dumps(said).encode() + b"\n")
    if values is not None:
        digest.update(np.ascontiguousarray(values, dtype="<f4").data)
    return digest.hexdigest()


def seal(passed: Passed, head: Head) -> RecordDict:
    """What passed, with the head of the receipts that now cover it; raises GateFailure."""
    try:
        plain = Head.parse(str(head))
    except ValueError:
        raise GateFailure("gate: the receipts' head is none.") from None
    return with_head(passed.content, plain)


def pass_refusal(code: RefusalCode) -> Error:
    """A refusal as what leaves: a code of the closed list and its fixed sentence."""
    if type(code) is not RefusalCode:
        raise GateFailure("gate: the refusal's code is not in the list.")
    error = encode_refusal(code)
    if error.reason != REFUSAL_SENTENCES[code]:
        raise GateFailure("gate: the refusal's sentence is not the fixed one.")
    return Error(error.code, REFUSAL_SENTENCES[code])


def pass_statement(signed: bytes, *, site: SiteSettings) -> Passed:
    """A signed statement as the records that leave.

    Its schema has no free text and its form is canonical, so nothing else fits into its bytes.

    Raises:
        GateFailure: no statement, another site's, or with counts that the site doesn't release.
    """
    if type(signed) is not bytes:
        raise GateFailure("gate: the statement is no bytes.")
    try:
        plain = decode_statement(encode_statement(signed))
        statement = read_statement(plain)
    except ValueError:
        raise GateFailure("gate: the statement can't be read as one.") from None
    counted = (statement.patients, statement.images) != (None, None)
    if statement.site != site.name or (counted and not site.release.counts):
        raise GateFailure("gate: the statement has what the site doesn't release.")
    sha256 = hashlib.sha256(plain).hexdigest()
    return Passed(encode_statement(plain), len(plain), (), {}, None, sha256)
