"""A terminal's view of a running or finished study: rounds, sites, curves, privacy, faults.

It reads what the run directory holds anyway (study.yaml, history.jsonl, statements, result.json,
whom a process at work waits for), of a simulation or of a server, and asks nobody.
"""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from common.config import Study, load_study
from common.errors import BadInput, RunFailed
from common.statement import Statement, read_statement
from server.checkpoint import read_history
from server.presence import Waiting, is_at_work, told

EVERY_S = 1.0
RESTART_S = 90.0  # a service manager takes 60 s to start what has failed
WIDTH = 24  # rounds that a curve shows
_BARS = "▁▂▃▄▅▆▇█"

Spent = Callable[[int], str]  # of a number of rounds


@dataclass(frozen=True)
class View:
    """One leg of a study (a fold, or the whole of it) as its files tell it.

    Attributes:
        study: the study.
        leg: which fold of how many; empty without folds.
        rounds: the history's lines of the rounds that are done.
        closing: the last line, of the evaluation after them.
        statements: what sites have signed, by name.
        finished: whether the whole study has its result.
        at_work: whether a process is at work on it.
        waiting: whom that process waits for.
        silent_s: seconds since anything was written.
    """

    study: Study
    leg: str
    rounds: Sequence[Mapping[str, Any]]
    closing: Mapping[str, Any] | None
    statements: Mapping[str, Statement]
    finished: bool
    at_work: bool
    waiting: Waiting | None
    silent_s: float


def watch(run_dir: Path, *, spent: Callable[[Study], Spent]) -> None:
    """Show a study until it has ended or stopped; once, where nobody watches a terminal.

    Args:
        run_dir: of `fedward simulate` or `fedward server`.
        spent: of a study, what to say on privacy after so many rounds.

    Raises:
        BadInput: no run is there.
        RunFailed: no process is at work on it; on a terminal one may still be started.
    """
    view = read_view(run_dir)
    of_rounds = spent(view.study)
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.print(shown(view, of_rounds))
    else:
        with Live(shown(view, of_rounds), console=console, auto_refresh=False) as live:
            left_s = RESTART_S
            while not view.finished and left_s > 0:
                time.sleep(EVERY_S)
                view = read_view(run_dir)
                live.update(shown(view, of_rounds), refresh=True)
                left_s = RESTART_S if view.at_work else left_s - EVERY_S
    if not (view.finished or view.at_work):
        raise RunFailed(
            "the study has not ended, and no process of this machine is at work on it. Start the "
            f"same command again with --out {run_dir} (a simulation: also with --resume), unless "
            "it runs on another machine; it goes on where it was."
        )


def read_view(run_dir: Path) -> View:
    """What a run directory tells now; raises BadInput where it is none."""
    file = run_dir / "study.yaml"
    if not file.is_file():
        raise BadInput(
            f"{run_dir}: holds no run (no study.yaml); name the --out of a simulation or a server."
        )
    study = load_study(file)
    at_work = is_at_work(run_dir)  # before: a process goes once its result is there
    folder, leg = _leg(run_dir, study)
    lines = read_history(folder / "history.jsonl")
    latest = max(path.stat().st_mtime for path in (file, *folder.glob("history.jsonl")))
    return View(
        study,
        leg,
        rounds=[line for line in lines if not line.get("closing")],
        closing=next((line for line in lines if line.get("closing")), None),
        statements=_statements(folder / "sites", study),
        finished=(run_dir / "result.json").is_file(),
        at_work=at_work,
        waiting=told(run_dir) if at_work else None,
        silent_s=max(0.0, time.time() - latest),
    )


def shown(view: View, spent: Spent) -> Group:
    """The view for a terminal."""
    study, done = view.study, len(view.rounds)
    head = Text.assemble(
        (study.name, "bold"),
        f", study {study.sha256[:12]}{view.leg}: round {done} of {study.training.rounds}",
    )
    bar = ProgressBar(total=study.training.rounds, completed=done, width=2 * WIDTH)
    privacy = _signed(view.statements) or ([spent(done)] if done else [])
    return Group(head, bar, Text(), Text(_pace(view)), *map(Text, privacy), _sites(view))


def curve(values: Sequence[float]) -> str:
    """The last values as bars between their smallest and largest.

    >>> curve([3.0, 2.0, 1.0])
    '█▅▁'
    """
    last = [value / 2 for value in values[-WIDTH:]]  # halved: no difference is infinite
    low, high = min(last, default=0.0), max(last, default=0.0)
    if low == high:
        return _BARS[0] * len(last)
    steps = len(_BARS) - 1
    return "".join(_BARS[round((value - low) / (high - low) * steps)] for value in last)


def _leg(run_dir: Path, study: Study) -> tuple[Path, str]:
    """The folder of the leg at work (the last, once all are done), and its name."""
    if study.data.folds is None:
        return run_dir, ""
    folders = [run_dir / "folds" / str(fold) for fold in range(1, study.data.folds + 1)]
    begun = [folder for folder in folders if folder.is_dir()] or folders[:1]
    return begun[-1], f", fold {len(begun)} of {len(folders)}"


def _pace(view: View) -> str:
    left = view.study.training.rounds - len(view.rounds)
    if view.finished:
        return "finished; the numbers are in result.json"
    if not view.at_work:
        return "stopped: no process of this machine is at work on it"
    if view.waiting:
        return _waits(view.waiting)
    if not view.rounds:
        return f"waiting for the first round's end, for {_time(view.silent_s)} now"
    mean = sum(line["seconds"] for line in view.rounds) / len(view.rounds)
    last = f"the last ended {_time(view.silent_s)} ago"
    if not left:
        return f"{_time(mean)} a round; {last}; what follows the rounds is at work"
    return f"{_time(mean)} a round, about {_time(mean * left)} to go; {last}"


def _waits(waiting: Waiting) -> str:
    """Whom the study waits for, why, and until when on this machine's clock."""
    until = datetime.datetime.fromtimestamp(waiting.until)
    whom = "a site" if waiting.missing == 1 else f"{waiting.missing} sites"
    sites = [f"  {site}: {why}" for site, why in waiting.sites.items()]
    return "\n".join([f"waiting for {whom}, until {until:%Y-%m-%d %H:%M}:", *sites])


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _sites(view: View) -> Table:
    """A line a site; a loss is of the weights that the round began with, on the site's own data."""
    table = Table("site", "rounds", "loss", "left out", box=box.SIMPLE_HEAD)
    lines = [*view.rounds, *([view.closing] if view.closing else [])]
    for site in sorted({name for line in lines for name in (*line["metrics"], *line["left_out"])}):
        joined = sum(site in line["joined"] for line in view.rounds)
        losses = [
            line["metrics"][site]["loss"]
            for line in lines
            if "loss" in line["metrics"].get(site, {})
        ]
        loss = f"{curve(losses)} {losses[-1]:.3f}" if losses else "not released"
        # As text: what a site sent must not style the terminal.
        table.add_row(*map(Text, (site, str(joined), loss, _faults(view, site))))
    return table


def _signed(statements: Mapping[str, Statement]) -> list[str]:
    """What the sites have signed on privacy, each text once, with who signed it."""
    who: dict[str, list[str]] = {}
    for site, statement in statements.items():
        privacy = statement.privacy
        said = "trained without privacy" if privacy is None else str(privacy.bound())
        who.setdefault(said, []).append(site)
    return [f"{', '.join(sites)} signed: {said}" for said, sites in who.items()]


def _faults(view: View, site: str) -> str:
    """Why a site was left out, each reason with its rounds."""
    reasons: dict[str, list[str]] = {}
    for line in view.rounds:
        if site in line["left_out"]:
            reasons.setdefault(line["left_out"][site], []).append(str(line["round"]))
    if view.closing and site in view.closing["left_out"]:
        reasons.setdefault(view.closing["left_out"][site], []).append("the end")
    return "\n".join(f"{_some(rounds)}: {reason}" for reason, rounds in reasons.items())


def _some(rounds: Sequence[str]) -> str:
    """Which rounds, in few words."""
    return ", ".join(rounds) if len(rounds) <= 4 else f"{rounds[0]} ... {rounds[-1]}"


def _statements(folder: Path, study: Study) -> dict[str, Statement]:
    found = {}
    for path in sorted(folder.glob("*/statement.json")):
        try:
            statement = read_statement(path.read_bytes())
        except ValueError:  # half-copied, or edited: it says nothing
            continue
        if (statement.site, statement.study) == (path.parent.name, study.sha256):
            found[statement.site] = statement
    return found
