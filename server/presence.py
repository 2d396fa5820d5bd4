"""What those who watch a run directory are told: that a process is at work, and whom it waits for.

A process locks the run directory; the lock goes with it however it ends, and what it had told of
its waiting is then believed no longer.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import BadInput
from common.files import write_atomically

_WAITING = "waiting.json"
_TRIES, _PAUSE_S = 5, 0.1  # whoever looks holds the lock too, for a moment


@dataclass(frozen=True, slots=True)
class Waiting:
    """A wait that can't go on without people.

    Attributes:
        missing: how many sites are missing.
        sites: why each that may still come hasn't, by name.
        until: when the wait ends, in seconds since 1970.
    """

    missing: int
    sites: Mapping[str, str]
    until: float


@contextmanager
def at_work(run_dir: Path) -> Iterator[None]:
    """Be the one process at work in a run directory; raises BadInput where another is."""
    with _opened(run_dir) as folder:
        if not _locked(folder):
            raise BadInput(
                f"{run_dir}: another process is at work there. Wait until it has ended, or end it."
            )
        yield


def is_at_work(run_dir: Path) -> bool:
    """Whether a process is at work in a run directory."""
    with _opened(run_dir) as folder:
        try:
            fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # held; or a file system without locks, where nobody can tell
            return True
    return False


def tell(run_dir: Path, waiting: Waiting | None) -> None:
    """Say whom the process waits for; None: for nobody any more."""
    if waiting is None:
        (run_dir / _WAITING).unlink(missing_ok=True)
    else:
        write_atomically(run_dir / _WAITING, json.dumps(asdict(waiting)).encode())


def told(run_dir: Path) -> Waiting | None:
    """Whom the process at work waits for; None: for nobody, or it has waited long enough."""
    try:
        waiting = Waiting(**json.loads((run_dir / _WAITING).read_bytes()))
    except FileNotFoundError:
        return None
    return waiting if waiting.until > time.time() else None


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(folder: int) -> bool:
    """Lock a folder, unless another process has."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE_S)
        except OSError:  # a file system without locks: nobody is kept out
            return True
        else:
            return True
    return False
