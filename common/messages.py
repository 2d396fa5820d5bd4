"""What travels between server and site, as typed values and as Flower records.

An instruction carries the study as canonical JSON, the fold, the round, the incoming weights as one
array and the last head of the site's receipts that the server has seen; a reply carries the new
weights, the metrics that the site releases and the new head; a refusal carries a code from a closed
list. At the end a site is asked for its signed statement. Between machines, the coordinator signs
what it asks, for one site and one use. Nothing else has a place here: no pickle, no class path.
"""

from __future__ import annotations

import functools
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict
from numpy.typing import NDArray

from common.chain import Head
from common.config import Metric, Study, Wire, parse_json
from common.errors import BadInput, RefusalCode, SiteRefusal
from common.signing import Sign, Verify
from common.wire import DTYPES, pack, unpack

TRAIN, EVALUATE, QUERY = "train", "evaluate", "query"  # Flower's message types
R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)

_SETTINGS = {"study", "study_sha256", "fold", "round", "known_head", "weights_sha256"}
_QUESTION = {"study_sha256", "fold", "known_head"}
_MOST_STATEMENT_BYTES = 65_536
_METRICS = frozenset(get_args(Metric))
UNREACHABLE = 900  # error code by which the server's end of the link answers for a silent site
REVOKED = 901  # the same for one that the coordinator has shut out
CLOCK_HEADER = "fedward-time"  # seconds since the epoch, with each answer of the link's server
_FIRST_CODE = 1000  # Flower keeps the small ones for itself


@dataclass(frozen=True, slots=True)
class Instruction:
    """What the server asks of a site in one round."""

    study: Study
    fold: int  # 0: the study has one split
    round_number: int  # from 1
    weights: NDArray[np.float32]  # (size,)
    weights_sha256: str  # signed; who knows the model's layout checks that it is theirs
    known_head: Head | None = None  # of the site's receipts, as the server saw it last


@dataclass(frozen=True, slots=True)
class Reply:
    """What a site answers; `weights` is None on an evaluation.

    Where the study's wire is a short one, `weights` is their difference from the incoming ones.
    """

    weights: NDArray[np.float32] | None  # (size,)
    metrics: Mapping[str, float]
    head: Head | None = None  # of the site's receipts, this reply's included


@dataclass(frozen=True, slots=True)
class Question:
    """Which study's signed statement the server asks for."""

    study_sha256: str
    fold: int
    known_head: Head | None = None  # of the site's receipts, as the server saw it last


def encode_instruction(instruction: Instruction) -> RecordDict:
    """An instruction as Flower records."""
    settings = ConfigRecord(
        {
            "study": instruction.study.canonical(),
            "study_sha256": instruction.study.sha256,
            "fold": instruction.fold,
            "round": instruction.round_number,
            "known_head": "" if instruction.known_head is None else str(instruction.known_head),
            "weights_sha256": instruction.weights_sha256,
        }
    )
    weights = _array(instruction.weights, "float32")
    return RecordDict({"weights": weights, "instruction": settings})


def signed(content: RecordDict, sign: Sign, *, kind: str, site: str) -> RecordDict:
    """An encoded instruction or question with the coordinator's signature.

    It binds all that is asked (of the study and the weights, their hashes) to the site's name and
    to the kind of message, so that nobody can ask another site, or another thing, with it.
    """
    signature = sign(_signed_text(content, kind=kind, site=site))
    return RecordDict({**content, "signature": ConfigRecord({"ed25519": signature})})


def with_known_head(instruction: RecordDict, head: Head | None) -> RecordDict:
    """An encoded instruction for the one site that has shown this head; its weights are shared."""
    settings = ConfigRecord(dict(_record(instruction, "instruction", ConfigRecord) or {}))
    settings["known_head"] = "" if head is None else str(head)
    return RecordDict({**instruction, "instruction": settings})


def decode_instruction(
    content: RecordDict, *, kind: str = TRAIN, site: str = "", verify: Verify | None = None
) -> Instruction:
    """Flower records as an instruction; raises SiteRefusal when anything is not as it should be.

    But for one thing: whether `weights_sha256` is the weights'. That takes the model's layout.

    Args:
        content: what came.
        kind: Flower's type of the message it came in.
        site: the name of the site that reads it.
        verify: whether a signature is the coordinator's; None where nobody signs (a simulation).
    """
    content = _unsigned(content, verify, kind=kind, site=site)
    settings = _record(content, "instruction", ConfigRecord)
    if settings is None or set(content) != {"weights", "instruction"} or set(settings) != _SETTINGS:
        raise SiteRefusal(RefusalCode.BAD_INSTRUCTION)
    text, fold, round_number = (settings[name] for name in ("study", "fold", "round"))
    known, sha256 = settings["known_head"], settings["weights_sha256"]
    if not (
        isinstance(text, str)
        and type(fold) is int
        and type(round_number) is int
        and isinstance(known, str)
        and isinstance(sha256, str)
    ):
        raise SiteRefusal(RefusalCode.BAD_INSTRUCTION)
    try:
        study = _parse_study(text)
        known_head = Head.parse(known) if known else None
    except (BadInput, ValueError):
        raise SiteRefusal(RefusalCode.BAD_INSTRUCTION) from None
    folds = study.data.folds
    known_fold = fold == 0 if folds is None else 1 <= fold <= folds
    known_round = 1 <= round_number <= study.training.rounds + 1  # the last only evaluates
    if study.sha256 != settings["study_sha256"] or not (known_fold and known_round):
        raise SiteRefusal(RefusalCode.BAD_INSTRUCTION)
    weights = _flat(content, "weights", "float32")
    if weights is None:
        raise SiteRefusal(RefusalCode.BAD_WEIGHTS)
    return Instruction(study, fold, round_number, weights, sha256, known_head)


def encode_reply(reply: Reply, *, wire: Wire = "float32") -> RecordDict:
    """A reply as Flower records; raises ValueError for values that `wire` doesn't hold exactly."""
    records = RecordDict({"metrics": MetricRecord(dict(reply.metrics))})
    if reply.weights is not None:
        records["weights"] = _array(pack(reply.weights, wire), DTYPES[wire])
    return records if reply.head is None else with_head(records, reply.head)


def with_head(reply: RecordDict, head: Head) -> RecordDict:
    """An encoded reply with the head of the receipts, which exists only once it is receipted."""
    return RecordDict({**reply, "receipts": ConfigRecord({"head": str(head)})})


def decode_reply(content: RecordDict, *, wire: Wire = "float32") -> Reply:
    """Flower records as a reply; raises ValueError with the reason when they are none."""
    record = _record(content, "metrics", MetricRecord)
    if record is None or not set(content) <= {"weights", "metrics", "receipts"}:
        raise ValueError("the reply must hold metrics, weights, receipts and nothing else")
    metrics = {name: value for name, value in record.items() if isinstance(value, float)}
    if len(metrics) < len(record) or not all(map(math.isfinite, metrics.values())):
        raise ValueError("the reply's metrics must be single finite floats")
    if not metrics.keys() <= _METRICS:
        raise ValueError(f"the reply's metrics must be among {', '.join(sorted(_METRICS))}")
    if "weights" not in content:
        return Reply(None, metrics, _head(content))
    packed = _flat(content, "weights", DTYPES[wire])
    weights = None if packed is None else unpack(packed, wire)
    if weights is None:
        raise ValueError(f"the reply's weights must be one flat {DTYPES[wire]} array")
    return Reply(weights, metrics, _head(content))


def _head(content: RecordDict) -> Head | None:
    if "receipts" not in content:
        return None
    record = _record(content, "receipts", ConfigRecord)
    if record is None or set(record) != {"head"} or not isinstance(record["head"], str):
        raise ValueError("the reply's receipts must be one head")
    return Head.parse(record["head"])


def encode_question(question: Question) -> RecordDict:
    """A question for the site's statement as Flower records."""
    known = "" if question.known_head is None else str(question.known_head)
    asked = ConfigRecord(
        {"study_sha256": question.study_sha256, "fold": question.fold, "known_head": known}
    )
    return RecordDict({"question": asked})


def decode_question(
    content: RecordDict, *, site: str = "", verify: Verify | None = None
) -> Question:
    """Flower records as a question; arguments and errors are those of `decode_instruction`."""
    content = _unsigned(content, verify, kind=QUERY, site=site)
    asked = _record(content, "question", ConfigRecord)
    if asked is None or set(content) != {"question"} or set(asked) != _QUESTION:
        raise SiteRefusal(RefusalCode.BAD_INSTRUCTION)
    study_sha256, fold, known = (asked[name] for name in ("study_sha256", "fold", "known_head"))
    if not (
        isinstance(study_sha256, str)
        and len(study_sha256) == 64
        and type(fold) is int
        and isinstance(known, str)
    ):
        raise SiteRefusal(RefusalCode.BAD_INSTRUCTION)
    try:
        return Question(study_sha256, fold, Head.parse(known) if known else None)
    except ValueError:
        raise SiteRefusal(RefusalCode.BAD_INSTRUCTION) from None


def encode_statement(signed: bytes) -> RecordDict:
    """A site's signed statement as Flower records."""
    return RecordDict({"statement": ConfigRecord({"signed": signed})})


def decode_statement(content: RecordDict) -> bytes:
    """Flower records as a signed statement, unread; raises ValueError when they are none."""
    record = _record(content, "statement", ConfigRecord)
    if record is None or set(content) != {"statement"} or set(record) != {"signed"}:
        raise ValueError("the reply must hold a statement and nothing else")
    signed = record["signed"]
    if not isinstance(signed, bytes) or len(signed) > _MOST_STATEMENT_BYTES:
        raise ValueError(f"a statement must be bytes, {_MOST_STATEMENT_BYTES} at most")
    return signed


def encode_refusal(code: RefusalCode) -> Error:
    """A refusal as Flower's error: the code and its fixed sentence, never local text."""
    return Error(_FIRST_CODE + list(RefusalCode).index(code), str(SiteRefusal(code)))


def decode_refusal(error: Error) -> RefusalCode | None:
    """The code of a refusal; None for an error that no fedward site sends. Its text is ignored."""
    position = error.code - _FIRST_CODE
    codes = list(RefusalCode)
    return codes[position] if 0 <= position < len(codes) else None


def payload_bytes(content: RecordDict) -> int:
    """Bytes of the records' values, without what the transport adds."""
    size = 0
    for record in content.values():
        if isinstance(record, ArrayRecord):
            size += sum(len(array.data) for array in record.values())
        elif isinstance(record, ConfigRecord):
            size += len(repr(dict(record)))
        else:
            size += 8 * len(record)
    return size


def _record(content: RecordDict, name: str, kind: type[R]) -> R | None:
    """The record of this name, if there is one and it is of this kind.

    Not by `content.array_records` and its like: what they return refers to the content, which
    keeps it, so that a model's memory would wait for the garbage collector.
    """
    record = content.get(name)
    return record if isinstance(record, kind) else None


def _array(flat: NDArray[Any], dtype: str) -> ArrayRecord:
    """One array, as numpy writes it; written here, since numpy would hold it three times."""
    values = np.ascontiguousarray(flat, dtype=np.dtype(dtype).newbyteorder("<"))
    data = b"".join((_header(values.size, dtype), values.data))
    return ArrayRecord({"packed": Array(dtype, (values.size,), "numpy.ndarray", data)})


def _unsigned(content: RecordDict, verify: Verify | None, *, kind: str, site: str) -> RecordDict:
    """The content without its signature; raises SiteRefusal where that is missing or wrong."""
    rest = RecordDict({name: record for name, record in content.items() if name != "signature"})
    if verify is not None:
        record = _record(content, "signature", ConfigRecord)
        signature = None if record is None or set(record) != {"ed25519"} else record["ed25519"]
        if not (
            isinstance(signature, bytes)
            and verify(_signed_text(rest, kind=kind, site=site), signature)
        ):
            raise SiteRefusal(RefusalCode.BAD_SIGNATURE)
    return rest


def _signed_text(content: RecordDict, *, kind: str, site: str) -> bytes:
    """What is signed, as canonical JSON; the study's own text is in it by its hash."""
    asked = {
        name: {key: value for key, value in record.items() if key != "study"}
        for name, record in content.items()
        if isinstance(record, ConfigRecord)
    }
    said = {"fedward": "asked of a site, 1", "kind": kind, "site": site, "asked": asked}
    return json.dumps(said, sort_keys=True, separators=(",", ":"), default=repr).encode()


def _flat(content: RecordDict, name: str, dtype: str) -> NDArray[Any] | None:
    """The one flat array (size,) of a record, or None when it is anything else.

    The bytes must be what numpy writes for an array of their length, so no parser ever meets a
    header that somebody else composed.
    """
    record = _record(content, name, ArrayRecord)
    if record is None or list(record) != ["packed"] or record["packed"].stype != "numpy.ndarray":
        return None
    data, width = record["packed"].data, np.dtype(dtype).itemsize
    size = (len(data) - len(_header(0, dtype))) // width
    header = _header(max(size, 0), dtype)
    if not data.startswith(header) or len(data) != len(header) + width * size:
        return None
    return np.frombuffer(data, dtype=np.dtype(dtype).newbyteorder("<"), offset=len(header))


def _header(size: int, dtype: str) -> bytes:
    """What numpy writes before the values of an array (size,)."""
    buffer = io.BytesIO()
    descr = np.dtype(dtype).newbyteorder("<").str
    described = {"descr": descr, "fortran_order": False, "shape": (size,)}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


@functools.lru_cache(maxsize=16)
def _parse_study(text: str) -> Study:
    study = parse_json(Study, text, where="study")
    if "simulation" in study.model_fields_set:
        raise BadInput("study: says how it is simulated, which is nobody's business here.")
    return study
