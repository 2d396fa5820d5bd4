"""Starts fedward's processes as forks of one that has imported everything: no start takes 15 s.

    python tests/chaos/nursery.py

Reads one JSON object a line and answers each with one. `{"start": [...], "log": PATH}` runs a
command line in a fork and gives its process id; `{"poll": ID}` gives its exit code, or null while
it runs. When its standard input ends, it kills what it has started.

What a started process is put into, by further keys: `network` is a network namespace's file; `roll`
is a folder where the test says, round by round, which sites are away (see `call_the_roll`).
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_PDEATHSIG, _CLONE_NEWNET = 1, 0x40000000  # prctl(2), setns(2)
_ROLL_S = 120.0


def warm() -> None:
    """Import what fedward's processes would; no thread and no channel may come of it."""
    sys.path.insert(0, str(ROOT))
    import torch._dynamo  # torch's optimizers import it when they are made

    import client.app
    import client.link
    import common.privacy._opacus
    import server.serve
    import simulations.progress
    import simulations.runner

    # A page takes longer to draw than a tiny study to train.
    simulations.runner.write_report = lambda path, _content: path.touch()
    modules = client.app, client.link, common.privacy._opacus, server.serve, simulations.progress
    assert torch._dynamo is not None
    assert all(modules)


def become(job: dict[str, Any]) -> None:
    """Run a command line in this fork, as its own process would."""
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, theirs in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(ours, theirs)
    if "network" in job:
        space = os.open(job["network"], os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(space, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    if "roll" in job:
        call_the_roll(Path(job["roll"]))
    import fedward

    fedward.app(job["start"])


def call_the_roll(folder: Path) -> None:
    """The server stops before each round until the test has said who is away, and the others call.

    It writes `asks-N` and waits for `away-N`, a JSON list of names. Those are then silent for
    longer than any `offline_after_s`, without the test having to wait for that.
    """
    from common.messages import QUERY
    from server.link import LinkGrid
    from server.mailbox import Mailboxes

    away: set[str] = set()
    push, silent_s = LinkGrid.push_messages, Mailboxes.silent_s

    def push_messages(grid: LinkGrid, messages: Iterable[Any]) -> Iterable[str]:
        messages = list(messages)
        asked = messages[0].metadata
        if asked.message_type == QUERY:
            return push(grid, messages)
        answer = folder / f"away-{asked.group_id}"
        (folder / answer.name.replace("away", "asks")).touch()
        wait_until(answer.exists)
        away.clear()
        away.update(json.loads(answer.read_text()))
        wait_until(lambda: set(grid._boxes.here()) | away >= set(grid.sites.values()))
        return push(grid, messages)

    LinkGrid.push_messages = push_messages  # type: ignore[method-assign]
    Mailboxes.silent_s = (  # type: ignore[method-assign]
        lambda boxes, site: math.inf if site in away else silent_s(boxes, site)
    )


def wait_until(happened: Any) -> None:
    """Wait, but not for ever."""
    end = time.monotonic() + _ROLL_S
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError("nobody called the roll")
        time.sleep(0.01)


def start(job: dict[str, Any]) -> int:
    """The process id of a new fork."""
    child = os.fork()
    if child:
        return child
    code: Any = 99
    try:
        become(job)
    except SystemExit as ended:
        code = ended.code
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


def poll(child: int) -> int | None:
    """The exit code, or minus the signal; None while it runs."""
    found, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def main() -> None:
    """Answer line by line until there are no more."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warm()
    answers.write('"ready"\n')
    running: set[int] = set()
    for line in sys.stdin:
        job = json.loads(line)
        if "start" in job:
            answer: int | None = start(job)
            running.add(answer)  # type: ignore[arg-type] # a process id
        else:
            answer = poll(job["poll"])
            running -= set() if answer is None else {job["poll"]}
        answers.write(json.dumps(answer) + "\n")
    for child in running:
        os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    main()
