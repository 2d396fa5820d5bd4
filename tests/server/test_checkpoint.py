"""Checkpoints and history: whole or not there, and what a kill or a damaged disk leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.errors import RunFailed
from server.checkpoint import (
    Checkpoint,
    append_history,
    last_checkpoint,
    read_history,
    truncate_history,
    write_checkpoint,
)

STUDY = "a" * 64


def write_rounds(folder: Path, rounds: int) -> list[Path]:
    """Checkpoints of so many rounds; round r holds the value r. The files left, newest last."""
    for number in range(1, rounds + 1):
        weights = np.full(3, number, dtype=np.float32)
        write_checkpoint(folder, Checkpoint(number, weights), study_sha256=STUDY)
    return sorted(folder.iterdir())


def test_the_last_checkpoint_comes_back(tmp_path: Path) -> None:
    """The newest round is read with its exact weights."""
    write_rounds(tmp_path, 3)
    found = last_checkpoint(tmp_path, study_sha256=STUDY)
    assert found is not None
    assert found.round_number == 3
    assert found.weights.tolist() == [3, 3, 3]


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    """Older checkpoints than the last two go, also past round 10; no partial file stays."""
    names = [path.name for path in write_rounds(tmp_path, 11)]
    assert names == ["round-000010.safetensors", "round-000011.safetensors"]


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-4], lambda data: b"x"])
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path: Path, damage: object) -> None:
    """A newest checkpoint that is empty, cut short or garbage costs one round, not the study."""
    newest = write_rounds(tmp_path, 4)[-1]
    newest.write_bytes(damage(newest.read_bytes()))  # type: ignore[operator]
    found = last_checkpoint(tmp_path, study_sha256=STUDY)
    assert found is not None
    assert found.round_number == 3


def test_a_failed_write_leaves_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails in the middle of a write leaves the checkpoints as they were."""
    before = {path: path.read_bytes() for path in write_rounds(tmp_path, 2)}

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_checkpoint(tmp_path, Checkpoint(3, np.zeros(3, np.float32)), study_sha256=STUDY)
    assert {path: path.read_bytes() for path in sorted(tmp_path.iterdir())} == before


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    """A folder without checkpoints, or no folder, gives none."""
    assert last_checkpoint(tmp_path / "none", study_sha256=STUDY) is None


def test_another_studys_checkpoint_is_refused(tmp_path: Path) -> None:
    """The checkpoints of another study are never gone on with."""
    write_rounds(tmp_path, 1)
    with pytest.raises(RunFailed, match="another study"):
        last_checkpoint(tmp_path, study_sha256="b" * 64)


def test_history_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    """Lines of rounds that will be run again go, and so does what they ended with."""
    path = tmp_path / "history.jsonl"
    for number in (1, 2, 3):
        append_history(path, {"round": number})
    append_history(path, {"round": 3, "closing": True})
    truncate_history(path, after_round=3)
    assert len(read_history(path)) == 4
    truncate_history(path, after_round=2)
    assert read_history(path) == [{"round": 1}, {"round": 2}]


def test_half_a_line_is_ignored(tmp_path: Path) -> None:
    """A line that a kill cut short is left out, and what is appended later stands on its own."""
    path = tmp_path / "history.jsonl"
    append_history(path, {"round": 1})
    with path.open("a") as file:
        file.write('{"round": 2, "metr')
    assert read_history(path) == [{"round": 1}]
    truncate_history(path, after_round=2)
    append_history(path, {"round": 2})
    assert read_history(path) == [{"round": 1}, {"round": 2}]


def test_no_history_is_no_fault(tmp_path: Path) -> None:
    """Before the first round there is nothing to read or to cut, and nothing appears."""
    path = tmp_path / "history.jsonl"
    truncate_history(path, after_round=0)
    assert read_history(path) == []
    assert not path.exists()
