"""Show 3: killed at any step between reservation and reply, a site goes on as if it never was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
KILLS = Path(__file__).parent / "site_kills.py"
STEPS = 2  # noisy ones in a round


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory, write_tiny: Any) -> dict[str, Any]:
    """What happened, by the moment of the kill."""
    folder = write_tiny(tmp_path_factory.mktemp("kills") / "tiny", {"north": 8}, images=1)
    run = subprocess.run(
        [sys.executable, str(KILLS), str(folder)],
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_every_step_is_a_moment_to_be_killed_at(stories: dict[str, Any]) -> None:
    """Before and after each of the eight steps, between noisy steps, before every sync to disk."""
    assert {story["ended"] for story in stories.values()} == {"killed"}
    assert sum("fsync" not in moment for moment in stories) == 17
    assert sum("fsync" in moment for moment in stories) >= 4
    for kind in ("secret", "weights", "sent"):
        assert any(kind in story["before"] for story in stories.values()), kind


def test_the_same_instruction_gets_the_same_bytes(stories: dict[str, Any]) -> None:
    """What a killed process had drawn, trained or sent is what the next one draws and sends."""
    seen = 0
    for moment, story in stories.items():
        before, after = story["before"], story["after"]
        assert after["first"] == after["again"] == after["sent"], moment
        for kind in ("secret", "weights", "sent"):
            if kind in before and kind in after:  # a settled round shows no secret
                assert after[kind] == before[kind], moment
                seen += 1
    assert seen > len(stories)


def test_the_ledger_is_charged_once(stories: dict[str, Any]) -> None:
    """Round 1, which was answered before, and round 2; both settled."""
    for moment, story in stories.items():
        found = story["rounds"], story["steps"], story["unsettled"]
        assert found == (2, 2 * STEPS, 0), moment


def test_the_receipts_are_whole(stories: dict[str, Any]) -> None:
    """One receipt a message, however often it was begun, and nothing that a kill left."""
    for moment, story in stories.items():
        assert story["problems"] == [], moment
        assert story["receipts"] == [1, 2], moment
        assert story["left_over"] == [], moment


def test_the_secret_is_gone(stories: dict[str, Any]) -> None:
    """Neither a row nor a byte of it is left in the ledger's files."""
    for moment, story in stories.items():
        assert (story["secrets"], story["secret_found"]) == (0, False), moment
