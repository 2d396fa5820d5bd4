"""A data set that was found but not yet read: its files, whose they are, what its reader says."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from common.config import SimulatedSite, SiteSettings
from common.data.source import Reader, Source
from common.errors import BadData, BadInput

Kind = Literal["manifest", "ild", "mrnet", "folder"]
Settings = SiteSettings | SimulatedSite
SettingsOf = Callable[[str], Settings]  # by the site's name, empty where the data don't say


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a file is, as far as the data set says: empty where it doesn't."""

    patient: str = ""
    site: str = ""
    labels: tuple[str, ...] | None = None  # None: unknown, or not one for the whole file
    part: str = ""  # of a data set that holds the same slices in several trees


@dataclass(frozen=True, slots=True)
class Unit:
    """What a reader decodes together."""

    reader: Reader
    source: Source
    owner: Owner
    classes: tuple[str, ...]  # what the labels of decoded images are indices of


@dataclass(frozen=True, slots=True)
class Found:
    """A data set before its images are read."""

    kind: Kind
    root: Path  # what names of files are relative to
    owners: Mapping[Path, Owner]  # of every file to read
    units: tuple[Unit, ...] = ()
    masks: frozenset[Path] = frozenset()  # maps of labels: alike by nature
    problems: tuple[str, ...] = ()  # what its reader would refuse
    unlisted: tuple[Path, ...] = ()  # images that nothing speaks of
    closed: tuple[Path, ...] = ()  # folders beside a manifest that can't be listed
    strange: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)  # labels of no class


def keeps(settings: Settings, patient: str, site: str) -> bool:
    """Whether a patient's images are used under these settings: no others are looked at."""
    if patient in settings.exclude:
        return False
    if isinstance(settings, SimulatedSite):
        return True
    if settings.include is not None:
        return patient in settings.include
    return site in ("", settings.name)


def sources(
    reader: Reader, root: Path, classes: Sequence[str], problems: list[str]
) -> tuple[Source, ...]:
    """What the reader finds; adds to `problems` each sentence of its refusal."""
    try:
        return tuple(reader.find(root, classes))
    except BadData as refusal:
        problems += str(refusal).splitlines()
        return ()


def shown(path: Path, root: Path) -> str:
    """The name of a file for people, who may have given it characters that no terminal shows."""
    name = path.relative_to(root).as_posix()
    return name if name.isprintable() else ascii(name)


def printable(text: str) -> str:
    """Text for a terminal: line breaks stay; any other character that none shows is written out."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def counted(number: int, what: str, several: str = "") -> str:
    """A number with its noun.

    >>> counted(1, "line"), counted(2, "study", "studies")
    ('1 line', '2 studies')
    """
    return f"{number} {what if number == 1 else several or what + 's'}"


def walk(root: Path, closed: list[Path] | None = None) -> list[Path]:
    """Every file below a folder in order, without dot-files or what links to folders lead to.

    Adds to `closed` each folder that can't be listed; without it, raises BadInput there.
    """

    def refuse(error: OSError) -> None:
        if closed is not None:
            closed.append(Path(error.filename))
            return
        raise BadInput(
            f"{error.filename}: the folder can't be listed ({error.strerror}); make it readable."
        )

    found = []
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
    return found
