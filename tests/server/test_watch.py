"""What a person sees who watches a study."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from common.errors import BadInput, RunFailed
from server import watch as module
from server.presence import Waiting, at_work, tell
from server.watch import curve, read_view, shown, watch


def text_of(run: Path, *, width: int = 120) -> str:
    """The view as lines of text."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(shown(read_view(run), lambda rounds: f"spent in {rounds}"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be changed."""
    return shutil.copytree(finished / "run", tmp_path / "run")


@pytest.fixture
def at_it(run: Path) -> Iterator[None]:
    """A process is at work on the run."""
    with at_work(run):
        yield


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A terminal, where time flies; what it waited is written down."""
    waited: list[float] = []
    monkeypatch.setattr(Console, "is_terminal", property(lambda _: True))
    monkeypatch.setattr(module.time, "sleep", waited.append)
    return waited


def cut(run: Path, rounds: int) -> None:
    """As the run was after so many rounds."""
    (run / "result.json").unlink()
    for path in run.glob("sites/*/statement.json"):
        path.unlink()
    history = run / "history.jsonl"
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:rounds]))


def test_a_finished_run_is_whole(run: Path) -> None:
    """Every site with its rounds and its last loss, and what the sites signed."""
    said = text_of(run)
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert "tiny" in said
    assert "round 2 of 2" in said
    assert "finished" in said
    for site, metrics in lines[-1]["metrics"].items():
        (row,) = [line for line in said.splitlines() if line.strip().startswith(f"{site} ")]
        assert f"{metrics['loss']:.3f}" in row
        assert row.split()[1] == "2"
    assert said.count("signed:") == 1
    assert "spent in" not in said


@pytest.mark.usefixtures("at_it")
def test_a_run_at_work_says_how_far_it_is(run: Path) -> None:
    """Rounds done, what is left, and what it cost so far; half a line does no harm."""
    cut(run, 1)
    with (run / "history.jsonl").open("a") as file:
        file.write('{"round": 2, "met')
    said = text_of(run)
    assert "round 1 of 2" in said
    assert "spent in 1" in said
    assert "to go" in said
    assert "finished" not in said


@pytest.mark.usefixtures("at_it")
def test_a_run_that_just_began_says_so(run: Path) -> None:
    """No round, no site, no division by zero."""
    cut(run, 0)
    said = text_of(run)
    assert "round 0 of 2" in said
    assert "waiting for the first round" in said


def test_who_was_left_out_is_told_with_why_and_when(run: Path) -> None:
    """One line a reason, with its rounds; a site that never took part has a row too."""
    history = run / "history.jsonl"
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    for line in lines[:2]:
        line["left_out"] = {"far": "unreachable", "west": "over-budget"}
        line["joined"].remove("west")
        del line["metrics"]["west"]
    history.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = {line.split()[0]: line for line in text_of(run).splitlines() if line.strip()}
    assert "1, 2: over-budget" in rows["west"]
    assert rows["west"].split()[1] == "0"
    assert "1, 2: unreachable" in rows["far"]
    assert "not released" in rows["far"]


def test_who_is_waited_for_is_told_with_why_and_until_when(run: Path) -> None:
    """A line a site, while a process at work waits; afterwards, or once it is gone, none."""
    cut(run, 1)
    noon = time.mktime((2099, 7, 4, 12, 0, 0, 0, 0, -1))
    why = {"north": "has not approved the study", "west": "not reachable"}
    tell(run, Waiting(2, why, until=noon))
    with at_work(run):
        lines = [line.rstrip() for line in text_of(run).splitlines()]
        at = lines.index("waiting for 2 sites, until 2099-07-04 12:00:")
        assert lines[at + 1 : at + 3] == [f"  {site}: {reason}" for site, reason in why.items()]
        tell(run, Waiting(1, why, until=time.time() - 1))
        assert "waiting" not in text_of(run)
        tell(run, Waiting(1, why, until=noon))
        assert "waiting for a site, until" in text_of(run)
    assert "waiting" not in text_of(run)
    assert "stopped: no process of this machine is at work on it" in text_of(run)


def test_folds_show_the_one_at_work(run: Path) -> None:
    """With folds the last that has begun is shown, and which it is."""
    cut(run, 1)
    file = run / "study.yaml"
    file.write_text(file.read_text().replace("folds: null", "folds: 3"))
    for fold in ("1", "2"):
        (run / "folds" / fold).mkdir(parents=True)
        shutil.copy(run / "history.jsonl", run / "folds" / fold / "history.jsonl")
    assert "fold 2 of 3: round 1 of 2" in text_of(run)


def test_watching_ends_with_the_study(
    run: Path,
    terminal: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a terminal the view follows the files, until the result is there."""
    result = (run / "result.json").read_text()
    cut(run, 1)

    def sleep(seconds: float) -> None:
        terminal.append(seconds)
        assert len(terminal) < 5
        if len(terminal) == 3:
            (run / "result.json").write_text(result)

    monkeypatch.setattr(module.time, "sleep", sleep)
    watch(run, spent=lambda _study: str)
    assert len(terminal) == 3
    assert "finished" in capsys.readouterr().out


def test_watching_ends_where_nobody_is_at_work(
    run: Path, terminal: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that ended or was killed is said at once; after a while, what to do about it."""
    cut(run, 1)
    with pytest.raises(RunFailed, match=f"Start the same command again with --out {run} "):
        watch(run, spent=lambda _study: str)
    assert sum(terminal) == module.RESTART_S
    assert "stopped: no process of this machine is at work on it" in capsys.readouterr().out


def test_a_server_that_is_started_again_is_watched_on(
    run: Path, terminal: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time that a service manager takes is no end; each time that it stops counts anew."""
    result = (run / "result.json").read_text()
    cut(run, 1)
    servers = contextlib.ExitStack()

    def sleep(seconds: float) -> None:
        terminal.append(seconds)
        if sum(terminal) in (80, 170):
            servers.enter_context(at_work(run))
        if sum(terminal) == 90:
            servers.close()
        if sum(terminal) == 300:
            (run / "result.json").write_text(result)

    monkeypatch.setattr(module.time, "sleep", sleep)
    with servers:
        watch(run, spent=lambda _study: str)
    assert sum(terminal) == 300


def test_without_a_terminal_it_is_shown_once(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a file or a pipe there is one view; of a run at work, too, and of one that stopped."""
    cut(run, 1)
    monkeypatch.setattr(module.time, "sleep", lambda _: pytest.fail("waited"))
    with at_work(run):
        watch(run, spent=lambda _study: str)
    assert capsys.readouterr().out.count("round 1 of 2") == 1
    with pytest.raises(RunFailed, match="no process of this machine is at work"):
        watch(run, spent=lambda _study: str)
    assert capsys.readouterr().out.count("round 1 of 2") == 1


def test_a_folder_without_a_run_is_said(tmp_path: Path) -> None:
    """The sentence says what to name."""
    with pytest.raises(BadInput, match="holds no run"):
        read_view(tmp_path)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], ""), ([1.0], "▁"), ([2.0, 2.0], "▁▁"), ([1.0, 8.0, 4.5], "▁█▅"), ([0.0] * 99, "▁" * 24)],
)
def test_a_curve_lies_between_its_extremes(values: list[float], expected: str) -> None:
    """The smallest value is the lowest bar, the largest the highest; the last 24 are shown."""
    assert curve(values) == expected
