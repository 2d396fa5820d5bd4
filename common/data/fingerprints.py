"""Hashes of files' contents, remembered from one run to the next.

A file is read again unless its device, inode, size and both of its times are those of the last
reading: `mtime` can be set back, `ctime` can't. A file that changed just before it was read is not
remembered, since another change within the same tick of the clock would leave no trace (as git
handles "racily clean" entries). What is remembered names no file: paths are hashed with a key.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from common.data.cache import mark_used
from common.errors import BadData

_TICK_S = 3.0  # longer than the coarsest clock of a file system (FAT: 2 s)


def content_hashes(paths: Sequence[Path], *, memory: Path, key: bytes) -> tuple[str, ...]:
    """The SHA-256 of each file's content, hexadecimal.

    Args:
        memory: a folder of this user's alone; each set of paths has a file of its own there, so
            runs on different data don't overwrite one another. A folder that can't be written
            costs time, nothing else.
        key: secret of the site, for the names of what is remembered.

    Raises:
        BadData: a file can't be read.
    """
    names = [hmac.digest(key, os.fsencode(path.absolute()), "sha256").hex()[:32] for path in paths]
    file = memory / f"contents-{hashlib.sha256(' '.join(names).encode()).hexdigest()[:32]}.json"
    known = _remembered(file)
    found: dict[str, tuple[str, str]] = {}  # by name: state of the file, hash of its content
    lasting = {}
    for name, path in zip(names, paths, strict=True):
        try:
            state = _state(os.stat(path))
            if known.get(name, ("", ""))[0] == state:
                found[name] = lasting[name] = known[name]
                continue
            content, state, settled = _read(path)
        except OSError as error:
            raise BadData(
                f"{path.name}: can't be read ({error.strerror}); make it readable or "
                "remove it from the data."
            ) from None
        found[name] = state, content
        if settled:
            lasting[name] = state, content
    if lasting == known:
        mark_used(file)
    else:
        with contextlib.suppress(OSError):  # it saves time, and the next run may have more luck
            _remember(file, lasting)
    return tuple(found[name][1] for name in names)


def _read(path: Path) -> tuple[str, str, bool]:
    """The hash of a file's content, the state it was read in, and whether both belong together."""
    with path.open("rb") as file:
        now_s = time.time()
        before = os.fstat(file.fileno())
        content = hashlib.file_digest(file, "sha256").hexdigest()
        after = os.fstat(file.fileno())
    settled = max(after.st_mtime, after.st_ctime) + _TICK_S < now_s
    return content, _state(after), settled and _state(before) == _state(after)


def _state(status: os.stat_result) -> str:
    """What changes whenever the content does."""
    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
    return f"{status.st_dev} {status.st_ino} {status.st_size} {times}"


def _remembered(file: Path) -> dict[str, tuple[str, str]]:
    """State and content hash by name; empty where nothing is remembered or it can't be read."""
    try:
        content = json.loads(file.read_bytes())
        return {str(name): (str(state), str(digest)) for name, (state, digest) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _remember(file: Path, content: dict[str, tuple[str, str]]) -> None:
    """Replace the file at once, under a name of its own until then: two runs may write it."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(json.dumps(content).encode())
        os.replace(partial, file)
    finally:
        Path(partial).unlink(missing_ok=True)
