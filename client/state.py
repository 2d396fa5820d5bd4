"""A site's state folder: its owner's alone, files whole or not there, one process at a time.

It also remembers whether code that came with a study has ever worked on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from common.config import SiteSettings
from common.errors import BadInput
from common.privacy.epsilon import TrustModel

_AT_ONCE = 2**26  # bytes
_SENT_CODE = "sent-code"


def state_folder(site: SiteSettings) -> Path:
    """Where a site keeps what must outlive a process; made where it isn't there yet.

    Raises:
        BadInput: site.yaml names none, or it can't be made.
    """
    if site.state is None:
        raise BadInput(
            "site.yaml: `state` is missing; name a folder on a disk that is backed up, for what "
            "must outlive a process: approvals, ledger, receipts and replies."
        )
    return make_private(site.state)


def make_private(folder: Path) -> Path:
    """`folder` itself, made for its owner alone where it isn't there; raises BadInput."""
    if folder.is_dir():
        return folder
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(folder.parent)
    except OSError as error:
        raise BadInput(
            f"{folder}: the folder can't be made ({error.strerror}); name another `state` in "
            "site.yaml, or mend its permissions."
        ) from None
    return folder


def note_sent_code(state: Path) -> None:
    """Remember for ever that the code at work on `state` was sent here with a study."""
    if trust_model(state) is TrustModel.LOCAL:
        write_private(state / _SENT_CODE, [])


def trust_model(state: Path | None) -> TrustModel:
    """Who has to be trusted for what a site's records say, whoever writes them today."""
    sent = state is not None and (state / _SENT_CODE).exists()
    return TrustModel.SENT if sent else TrustModel.LOCAL


def write_private(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Make the file `path` of these pieces, for its owner alone; a kill leaves all of it or none.

    Once this returns, the file outlives a power failure. One writer at a time.

    Raises:
        OSError: the disk is full or broken; nothing half-written stays behind.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # of a process that was killed, or a link to somewhere else
    try:
        opened = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(opened, "wb") as file:
            for piece in pieces:
                for start in range(0, len(piece), _AT_ONCE):
                    file.write(piece[start : start + _AT_ONCE])
                    if len(piece) > _AT_ONCE:  # hundreds of megabytes: the memory has other uses
                        file.flush()
                        os.fdatasync(file.fileno())
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make names that were added to or removed from `folder` outlive a power failure."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextlib.contextmanager
def locked(file: Path, *, busy: str | None = None) -> Iterator[None]:
    """Hold the lock that `file` stands for; the system lets go of it when the process ends.

    Args:
        file: made where it isn't there; its folder must be.
        busy: what to say where another process holds it; without, wait for it.

    Raises:
        BadInput: `busy`, and another process holds it.
    """
    with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "wb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
        except BlockingIOError:
            raise BadInput(busy) from None
        yield


@contextlib.contextmanager
def lock_state(state: Path) -> Iterator[None]:
    """Work on a site's state folder as the only process that does.

    Raises:
        BadInput: another process is at work there.
    """
    busy = (
        f"{state}: another process of this site is at work there; stop it first, or wait until it "
        "has ended. Two would answer the same instruction twice."
    )
    with locked(state / "lock", busy=busy):
        yield
