"""Checkpoints: the weights after each round, atomic, the last two kept; resume starts from one."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import RunFailed
from common.files import write_atomically

KEPT = 2


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A study after `round_number` rounds."""

    round_number: int
    weights: NDArray[np.float32]  # (size,)


def write_checkpoint(folder: Path, checkpoint: Checkpoint, *, study_sha256: str) -> None:
    """Keep a round's weights; older checkpoints than the last two go."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {
        "study_sha256": study_sha256,
        "round": str(checkpoint.round_number),
        "sha256": _hash(checkpoint.weights),
    }
    content = save({"weights": checkpoint.weights}, metadata)
    write_atomically(folder / f"round-{checkpoint.round_number:06d}.safetensors", content)
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()


def last_checkpoint(folder: Path, *, study_sha256: str) -> Checkpoint | None:
    """The newest checkpoint that can be read, or None; raises RunFailed for another study's."""
    for path in _newest_first(folder):
        try:
            with safe_open(path, framework="np") as tensors:
                metadata = tensors.metadata()
                weights = tensors.get_tensor("weights")
        except (OSError, SafetensorError):
            continue  # damaged after it was written: the one before it is as good, a round back
        if metadata["study_sha256"] != study_sha256:
            raise RunFailed(f"{folder}: holds checkpoints of another study; name another --out.")
        if metadata["sha256"] == _hash(weights):
            return Checkpoint(int(metadata["round"]), weights)
    return None


def append_history(path: Path, line: dict[str, Any]) -> None:
    """One more line of `history.jsonl`, on disk before the round's checkpoint is."""
    with path.open("a") as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of a history; a line that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def truncate_history(path: Path, *, after_round: int) -> None:
    """Forget what a killed run wrote of rounds that will be run again."""
    _write_history(path, [line for line in read_history(path) if line["round"] <= after_round])


def closing_line(path: Path) -> dict[str, Any] | None:
    """The line of the closing evaluation, where that was done."""
    return next((line for line in read_history(path) if line.get("closing")), None)


def end_history(path: Path, line: dict[str, Any]) -> None:
    """Put the last line, now whole, in place of the closing evaluation's."""
    _write_history(path, [one for one in read_history(path) if not one.get("closing")] + [line])


def _write_history(path: Path, lines: list[dict[str, Any]]) -> None:
    if path.exists():
        text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
        write_atomically(path, text.encode())


def _hash(weights: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(weights).data).hexdigest()


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("round-*.safetensors"), reverse=True)
