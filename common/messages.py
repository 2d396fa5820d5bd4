"""What travels between server and site, as typed values and as Flower records.

An instruction carries the study as canonical JSON, the fold, the round and the incoming weights as
one array; a reply carries the new weights and the metrics that the site releases; a refusal
carries a code from a closed list. Nothing else has a place here: no pickle, no class path.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict
from numpy.typing import NDArray

from common.config import Metric, Study, parse_json
from common.errors import BadInput, RefusalCode, SiteRefusal

TRAIN, EVALUATE = "train", "evaluate"  # Flower's message types
_SETTINGS = {"study", "study_sha256", "fold", "round"}
_METRICS = frozenset(get_args(Metric))
_FIRST_CODE = 1000  # Flower keeps the small ones for itself


@dataclass(frozen=True, slots=True)
class Instruction:
    """What the server asks of a site in one round."""

    study: Study
    fold: int  # 0: the study has one split
    round_number: int  # from 1
    weights: NDArray[np.float32]  # (size,)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a site answers; `weights` is None on an evaluation."""

    weights: NDArray[np.float32] | None  # (size,)
    metrics: Mapping[str, float]


def encode_instruction(instruction: Instruction) -> RecordDict:
    """An instruction as Flower records."""
    settings = ConfigRecord(
        {
            "study": instruction.study.canonical(),
            "study_sha256": instruction.study.sha256,
            "fold": instruction.fold,
            "round": instruction.round_number,
        }
    )
    return RecordDict({"weights": _array(instruction.weights), "instruction": settings})


def decode_instruction(content: RecordDict) -> Instruction:
    """Flower records as an instruction; raises SiteRefusal when anything is not as it should be."""
    settings = content.config_records.get("instruction")
    if settings is None or set(content) != {"weights", "instruction"} or set(settings) != _SETTINGS:
        raise SiteRefusal(RefusalCode.BAD_INSTRUCTION)
    text, fold, round_number = (settings[name] for name in ("study", "fold", "round"))
    if not (isinstance(text, str) and type(fold) is int and type(round_number) is int):
        raise SiteRefusal(RefusalCode.BAD_INSTRUCTION)
    try:
        study = _parse_study(text)
    except BadInput:
        raise SiteRefusal(RefusalCode.BAD_INSTRUCTION) from None
    folds = study.data.folds
    known_fold = fold == 0 if folds is None else 1 <= fold <= folds
    known_round = 1 <= round_number <= study.training.rounds + 1  # the last only evaluates
    if study.sha256 != settings["study_sha256"] or not (known_fold and known_round):
        raise SiteRefusal(RefusalCode.BAD_INSTRUCTION)
    weights = _flat(content, "weights")
    if weights is None:
        raise SiteRefusal(RefusalCode.BAD_WEIGHTS)
    return Instruction(study, fold, round_number, weights)


def encode_reply(reply: Reply) -> RecordDict:
    """A reply as Flower records."""
    records = RecordDict({"metrics": MetricRecord(dict(reply.metrics))})
    if reply.weights is not None:
        records["weights"] = _array(reply.weights)
    return records


def decode_reply(content: RecordDict) -> Reply:
    """Flower records as a reply; raises ValueError with the reason when they are none."""
    record = content.metric_records.get("metrics")
    if record is None or not set(content) <= {"weights", "metrics"}:
        raise ValueError("the reply must hold metrics, weights and nothing else")
    metrics = {name: value for name, value in record.items() if isinstance(value, float)}
    if len(metrics) < len(record) or not all(map(math.isfinite, metrics.values())):
        raise ValueError("the reply's metrics must be single finite floats")
    if not metrics.keys() <= _METRICS:
        raise ValueError(f"the reply's metrics must be among {', '.join(sorted(_METRICS))}")
    weights = _flat(content, "weights") if "weights" in content else None
    if "weights" in content and weights is None:
        raise ValueError("the reply's weights must be one flat float32 array")
    return Reply(weights, metrics)


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
    arrays = sum(len(a.data) for record in content.array_records.values() for a in record.values())
    settings = sum(len(repr(dict(record))) for record in content.config_records.values())
    return arrays + settings + sum(8 * len(record) for record in content.metric_records.values())


def _array(flat: NDArray[np.float32]) -> ArrayRecord:
    return ArrayRecord({"packed": Array(flat)})


def _flat(content: RecordDict, name: str) -> NDArray[np.float32] | None:
    """The one flat float32 array (size,) of a record, or None when it is anything else.

    The bytes must be what numpy writes for an array of their length, so no parser ever meets a
    header that somebody else composed.
    """
    record = content.array_records.get(name)
    if record is None or list(record) != ["packed"] or record["packed"].stype != "numpy.ndarray":
        return None
    data = record["packed"].data
    size = (len(data) - len(_header(0))) // 4
    header = _header(max(size, 0))
    if not data.startswith(header) or len(data) != len(header) + 4 * size:
        return None
    return np.frombuffer(data, dtype="<f4", offset=len(header))


def _header(size: int) -> bytes:
    """What numpy writes before the values of a float32 array (size,)."""
    buffer = io.BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": (size,)}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


@functools.lru_cache(maxsize=16)
def _parse_study(text: str) -> Study:
    study = parse_json(Study, text, where="study")
    if "simulation" in study.model_fields_set:
        raise BadInput("study: says how it is simulated, which is nobody's business here.")
    return study
