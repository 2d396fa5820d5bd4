"""Pruning the cache: leftovers of killed processes, and entries that nobody has used for long.

    images-<key>/            decoded images of a site, with what was derived from them
    phantom-<key>/           a generated data set
    contents-<key>.json      remembered hashes of files
    .partial-*, .<name>-*    being written, or left behind by a kill

An entry was last used when its folder says so (`mark_used`). What is unfinished is a leftover once
nothing in it has changed for a day: its writer may run in another container, where it can't be
asked, but it writes all the time.

Safe beside other processes: an entry is first moved away under a leftover's name, so nobody takes
half of it for whole, and whoever has it open keeps it, since a memory map outlives its file's name.
Other names are nobody's business here, and no symbolic link is followed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DAY_S: Final = 86_400.0
LEFTOVER_AFTER_S: Final = DAY_S
LEFTOVERS: Final = "leftovers of killed processes"
ENTRIES: Final[Mapping[str, re.Pattern[str]]] = {
    "data sets of decoded images": re.compile(r"images-[0-9a-f]{64}"),
    "phantoms": re.compile(r"phantom-[0-9a-f]{64}"),
    "lists of file hashes": re.compile(r"contents-[0-9a-f]{32}\.json"),
}
# Before the last hyphen what is being written, behind it what `tempfile` adds.
_UNFINISHED = re.compile(
    r"\.(partial|phantom-[0-9a-f]{64}|contents-[0-9a-f]{32}\.json)-[a-z0-9_]{8}"
)
_UNFINISHED_INSIDE = re.compile(r"\..+\.f32-[a-z0-9_]{8}")


@dataclass(frozen=True, slots=True)
class Pruned:
    """What came of a pruning: how many and how many bytes."""

    removed: Mapping[str, tuple[int, int]]  # by what it was
    unfinished: tuple[int, int]  # left alone, since somebody may be writing them
    stuck: int  # could not be removed

    def text(self) -> str:
        """For people."""
        freed = sum(size for _, size in self.removed.values())
        lines = [f"Freed {_size(freed)}." if self.removed else "Nothing to remove."]
        lines += [
            f"  {count} {what}, {_size(size)}" for what, (count, size) in self.removed.items()
        ]
        if self.unfinished[0]:
            lines.append(
                f"Left alone: {self.unfinished[0]} unfinished, {_size(self.unfinished[1])}; they "
                "changed within a day, so a process may be writing them."
            )
        if self.stuck:
            lines.append(f"{self.stuck} could not be removed: check the cache's permissions.")
        return "\n".join(lines)


def mark_used(entry: Path) -> None:
    """Note that an entry is used now, where it is there and can be written."""
    with contextlib.suppress(OSError):
        os.utime(entry)


def prune(cache: Path, *, unused_days: float, now_s: float) -> Pruned:
    """Remove leftovers, and entries that were not used for `unused_days`, inside `cache` alone.

    Args:
        unused_days: at least 1: a running process opens all that it needs in its first hours.
        now_s: the time, in seconds since the epoch.
    """
    removed: dict[str, tuple[int, int]] = {}
    unfinished, stuck = (0, 0), 0
    limits_s = dict.fromkeys(ENTRIES, max(unused_days, 1) * DAY_S) | {LEFTOVERS: LEFTOVER_AFTER_S}
    for path, what in _ours(cache):
        changed_s, size = _measured(path)
        if now_s - changed_s < limits_s[what]:
            unfinished = _plus(unfinished, size) if what == LEFTOVERS else unfinished
        elif _discarded(path):
            removed[what] = _plus(removed.get(what, (0, 0)), size)
        else:
            stuck += 1
    return Pruned(removed, unfinished, stuck)


def _ours(cache: Path) -> Iterator[tuple[Path, str]]:
    """Every entry and all that is unfinished, with what it is."""
    for path in _listed(cache):
        if _UNFINISHED.fullmatch(path.name):
            yield path, LEFTOVERS
        for what, name in ENTRIES.items():
            if name.fullmatch(path.name):
                yield path, what
                inside = _listed(path) if path.is_dir() else []
                yield from ((p, LEFTOVERS) for p in inside if _UNFINISHED_INSIDE.fullmatch(p.name))


def _listed(folder: Path) -> list[Path]:
    """What is in a folder, without links; nothing where somebody has just removed it."""
    try:
        with os.scandir(folder) as found:
            return sorted(Path(entry.path) for entry in found if not entry.is_symlink())
    except FileNotFoundError:
        return []


def _measured(path: Path) -> tuple[float, int]:
    """When anything in it last changed, and how many bytes it has."""
    changed_s, size = 0.0, 0
    inside = (
        Path(folder, name)
        for folder, folders, files in os.walk(path)
        for name in (*folders, *files)
    )
    for place in (path, *inside):
        with contextlib.suppress(FileNotFoundError):  # somebody is at work there
            status = place.lstat()
            changed_s = max(changed_s, status.st_mtime)
            size += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return changed_s, size


def _discarded(path: Path) -> bool:
    """Whether an entry or leftover is gone now."""
    try:
        if path.is_dir() and not path.name.startswith("."):
            path = path.rename(path.with_name(f".partial-{secrets.token_hex(4)}"))
        if path.is_dir():
            shutil.rmtree(path)  # removes links, never what they lead to
        else:
            path.unlink()
    except FileNotFoundError:  # another pruning is at it too
        return True
    except OSError:
        return False
    return True


def _plus(total: tuple[int, int], size: int) -> tuple[int, int]:
    return total[0] + 1, total[1] + size


def _size(count: int) -> str:
    """Bytes for people.

    >>> _size(999), _size(1_500_000)
    ('999 bytes', '1.5 MB')
    """
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
