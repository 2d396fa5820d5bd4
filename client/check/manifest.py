"""A manifest as it is, whole or not: a table that is refused still says which files to look at."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from client.check.found import Found, Owner, SettingsOf, Unit, keeps, sources, walk
from common.config import Study
from common.data.dicom import is_dicom
from common.data.manifest import ManifestReader
from common.data.pictures import PICTURES, STACKS
from common.data.readers import build_reader
from common.data.source import Reader, Source
from common.errors import BadData

_NO_CLASSES = ("", "path", "patient", "site", "split")  # columns
_IMAGES = (*PICTURES, ".dcm")  # suffixes

Line = Mapping[str, str]  # cells by our names of the columns


def find_manifest(data: Path, study: Study | None, settings_of: SettingsOf) -> Found:
    """The images of a manifest.csv, or of a folder that holds one."""
    table = data / "manifest.csv" if data.is_dir() else data
    settings = settings_of("")
    labels = settings.labels
    lines = list(_lines(table, settings.columns))
    files = [_files(table.parent, line.get("path", "")) for line in lines]
    classes = _classes(lines, labels) if study is None else study.classes
    folders = any(
        os.path.isdir(table.parent / line["path"])
        for line, paths in zip(lines, files, strict=True)
        if paths
    )

    def reader(volumes: bool) -> Reader:
        if study is not None:
            return build_reader(study, settings)
        return ManifestReader(
            task="multi-label" if classes and "label" not in lines[0] else "multi-class",
            volumes=volumes,
            columns=tuple(sorted(settings.columns.items())),
            labels=tuple(sorted(labels.items())),
        )

    problems: list[str] = []
    sources(reader(folders), table, classes, problems)
    owners: dict[Path, Owner] = {}
    units = []
    for line, paths in zip(lines, files, strict=True):
        patient, site = line.get("patient", ""), line.get("site", "")
        if paths and keeps(settings_of(site), patient, site):
            owner = Owner(patient, site, _labels(line, classes, labels))
            owners |= dict.fromkeys(paths, owner)
            source = Source(paths[0], patient, site, None, others=paths[1:])
            units.append(Unit(reader(_is_volume(paths[0], folders)), source, owner, classes))
    listed = {path for paths in files for path in paths}
    closed: list[Path] = []
    beside = [path for path in walk(table.parent, closed) if _is_image(path)]
    return Found(
        "manifest",
        table.parent,
        owners,
        tuple(units),
        problems=tuple(problems),
        unlisted=tuple(path for path in beside if path not in listed),
        closed=tuple(closed),
    )


def _is_volume(first: Path, folders: bool) -> bool:
    """How to read a line where no study says so; `folders`: some line of the table is a folder.

    A volume's reader takes DICOM of one frame, too.
    """
    suffix = first.suffix.lower()
    return suffix not in PICTURES or (folders and suffix in STACKS)


def _is_image(path: Path) -> bool:
    suffix = path.suffix.lower()
    try:
        return suffix in _IMAGES or (not suffix and is_dicom(path))
    except BadData:  # it can't be opened
        return False


def _lines(table: Path, columns: Mapping[str, str]) -> Iterator[Line]:
    """The table's lines; none where it can't be read, as its reader will say."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            names = [name.strip() for name in next(reader, [])]
            renamed = set(columns.values())
            places = {name: at for at, name in enumerate(names) if name not in renamed}
            places |= {
                ours: names.index(theirs) for ours, theirs in columns.items() if theirs in names
            }
            for raw in reader:
                cells = [cell.strip() for cell in raw]
                if any(cells):
                    cells += [""] * (len(names) - len(cells))
                    yield {name: cells[at] for name, at in places.items()}
    except (OSError, UnicodeDecodeError, csv.Error):
        return


def _classes(lines: Sequence[Line], labels: Mapping[str, str]) -> tuple[str, ...]:
    """The classes a table speaks of: its labels, else its columns of nothing but 0 and 1."""
    if lines and "label" not in lines[0]:
        names = [name for name in lines[0] if name not in _NO_CLASSES]
        found = [name for name in names if {line[name] for line in lines} <= {"0", "1"}]
    else:
        found = sorted({line["label"] for line in lines} - {""})
    return tuple(dict.fromkeys(labels.get(name, name) for name in found))


def _labels(
    line: Line, classes: Sequence[str], labels: Mapping[str, str]
) -> tuple[str, ...] | None:
    if "label" in line:
        return (labels.get(line["label"], line["label"]),) if line["label"] else None
    true = {labels.get(name, name) for name, cell in line.items() if cell == "1"}
    return tuple(name for name in classes if name in true)


def _files(folder: Path, cell: str) -> tuple[Path, ...]:
    """The files that a line means; none where its reader refuses the path."""
    relative = PurePosixPath(cell)
    if not cell or relative.is_absolute() or ".." in relative.parts:
        return ()
    path = folder / relative
    if os.path.isfile(path):
        return (path,)
    if not os.path.isdir(path) or not os.access(path, os.R_OK):
        return ()
    names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    return tuple(path / name for name in names if os.path.isfile(path / name))
