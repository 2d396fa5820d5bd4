"""Files that are either wholly written or not at all, and the folder for caches."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from common.errors import BadInput


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replace `path` by `content` so that a kill or a full disk leaves the old file or the new.

    A file that is there keeps its mode and, where that is allowed, its owner.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            if path.exists():
                before = path.stat()
                os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
                with suppress(PermissionError):
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where decoded images are kept, readable by this user alone.

    `FEDWARD_CACHE` if set, else `fedward` in the user's cache folder. Raises BadInput when it
    can't be made.
    """
    base = os.environ.get("FEDWARD_CACHE")
    folder = Path(base) if base else _user_cache() / "fedward"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"FEDWARD_CACHE: the cache folder {folder} can't be made ({error.strerror}); "
            "set FEDWARD_CACHE to a folder that can be written."
        ) from None
    return folder


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
