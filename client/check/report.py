"""The check of a site's data: all that would have to be mended, and what is worth knowing.

The report stays at the site. It has no value of any header, but names of files and folders, and
those can tell who a patient is: of identifying files it names at most three.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from client.check.files import Seen, look
from client.check.found import Found, Kind, Owner, Unit, counted, printable, shown
from client.check.where import find
from common.data.dicom import Finding
from common.errors import BadData, BadInput

EXAMPLES = 3  # files named of many
_SHOWN = 10  # lines of one kind of problem in the text
STAYS = (
    "This report stays at the site: it names files and folders, which can tell who a patient is. "
    "A clean result is no proof: faces and free text in places of its own are out of sight."
)
_KINDS: Mapping[Kind, str] = {
    "manifest": "A manifest and its images",
    "ild": "The ILD format",
    "mrnet": "The MRNet format",
    "folder": "A folder",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A file that can't be read."""

    file: str
    why: str


@dataclass(frozen=True, slots=True)
class Group:
    """Files that have something in common which they shouldn't have."""

    what: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Identity:
    """One attribute that tells, or may tell, who the patient is; never its value."""

    finding: Finding
    files: int
    examples: tuple[str, ...]  # at most EXAMPLES


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found."""

    kind: Kind
    files: int  # that are images or should be
    dicom_files: int
    patients: int | None  # None: the data don't say whose an image is
    studies: int  # DICOM
    series: int  # DICOM
    images_by_class: Mapping[str, int]
    patients_by_class: Mapping[str, int]
    unreadable: tuple[Fault, ...]
    refused: tuple[str, ...]  # what the reader of this format says
    contradictory: tuple[Group, ...]
    identity: tuple[Identity, ...]
    duplicates: tuple[Group, ...]  # the same pixels under another name, nothing else amiss
    values: tuple[float, float] | None  # least and largest of all pixels, in the files' own unit
    blank: tuple[str, ...]  # files whose pixels are all equal
    without_pixels: tuple[str, ...]  # DICOM files that are no images
    stray: tuple[str, ...]  # files that are neither DICOM nor images
    unlisted: tuple[str, ...]  # images beside a manifest that it doesn't name
    closed: tuple[str, ...]  # folders beside a manifest that can't be listed
    strange_labels: tuple[Group, ...]  # of ILD texts: of no class, so their regions are none

    @property
    def mend(self) -> bool:
        """Whether something would have to be mended."""
        identifying = any(one.finding.level == "mend" for one in self.identity)
        return bool(self.unreadable or self.refused or self.contradictory or identifying)

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        content = asdict(self) | {"to_mend": self.mend, "note": STAYS}
        content["identity"] = [
            asdict(one.finding) | {"files": one.files, "examples": list(one.examples)}
            for one in self.identity
        ]
        return content

    def text(self) -> str:
        """All of it for people, long lists cut short."""
        return printable("\n".join(_text(self)))


def check(path: Path, *, on_file: Callable[[int, int], None] = lambda _done, _all: None) -> Checked:
    """Look at every image of the data set at `path`, changing nothing.

    Args:
        path: a folder, manifest.csv, site.yaml or study.yaml.
        on_file: told how many steps are done, and of how many, after each.

    Raises BadInput where there is no data set.
    """
    found = find(path)
    total = len(found.owners) + len(found.units)
    seen: dict[Path, Seen] = {}
    for done, file in enumerate(sorted(found.owners)):
        on_file(done, total)
        seen[file] = look(file, listed=found.kind == "manifest")
    images = {file: one for file, one in seen.items() if one.form != "other" or one.fault}
    if not images and not found.problems:
        raise BadInput(f"{path}: holds no DICOM file and no image; name the folder that does.")
    owners = {file: _owner(found, file, one) for file, one in images.items()}
    faults = [Fault(_name(found, f), one.fault) for f, one in images.items() if one.fault]
    by_class: dict[str, list[str]] = defaultdict(list)
    for done, unit in enumerate(found.units, start=len(seen)):
        on_file(done, total)
        if any(path in images and images[path].fault for path in unit.source.paths):
            continue
        try:
            for label in _labels(unit):
                by_class[label].append(f"{unit.owner.site} {unit.owner.patient}")
        except BadData as problem:
            first = unit.source.path
            why = str(problem).removeprefix(f"{first.name}: ")
            faults.append(Fault(_name(found, first), why))
    on_file(total, total)
    contradictory, duplicates = _alike(found, images, owners)
    facts = [one.facts for one in images.values() if one.facts is not None]
    pictures = {file: one for file, one in images.items() if file not in found.masks}
    ranges = [one.values for one in pictures.values() if one.values]
    patients = {(owner.site, owner.patient) for owner in owners.values() if owner.patient}

    def names(files: Iterable[Path]) -> tuple[str, ...]:
        return tuple(_name(found, file) for file in files)

    return Checked(
        kind=found.kind,
        files=len(images),
        dicom_files=sum(one.form == "DICOM" for one in images.values()),
        patients=len(patients) or None,
        studies=len({one.study_key for one in facts} - {""}),
        series=len({one.series_key for one in facts} - {""}),
        images_by_class={label: len(of) for label, of in sorted(by_class.items())},
        patients_by_class={label: len(set(of)) for label, of in sorted(by_class.items())},
        unreadable=tuple(faults),
        refused=found.problems,
        contradictory=contradictory,
        identity=_identity(found, images),
        duplicates=duplicates,
        values=(min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None,
        blank=names(file for file, one in pictures.items() if one.blank),
        without_pixels=names(
            f for f, one in images.items() if one.facts and not one.facts.frames and not one.fault
        ),
        stray=names(file for file in seen if file not in images),
        unlisted=names(found.unlisted),
        closed=names(found.closed),
        strange_labels=tuple(
            Group(f"label: {label:.80}", names(sorted(texts)))
            for label, texts in found.strange.items()
        ),
    )


def _owner(found: Found, file: Path, seen: Seen) -> Owner:
    """Whose a file is: in a folder of files, its header alone can tell."""
    if found.kind == "folder" and seen.facts is not None:
        return Owner(seen.facts.patient_key)
    return found.owners[file]


def _labels(unit: Unit) -> Iterator[str]:
    """The class of every image that the reader gives; none or several where it may have them."""
    for image in unit.reader.decode(unit.source):
        if unit.owner.labels is not None:
            yield from unit.owner.labels
        elif isinstance(image.label, int):
            yield unit.classes[image.label]


def _alike(
    found: Found, images: Mapping[Path, Seen], owners: Mapping[Path, Owner]
) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """What contradicts itself, and what is there twice: pixels, DICOM studies, patients."""
    by_pixels: dict[bytes, list[Path]] = defaultdict(list)
    by_study: dict[str, list[Path]] = defaultdict(list)
    by_owner: dict[tuple[str, str], dict[str, Path]] = defaultdict(dict)
    for file, one in images.items():
        if one.pixels and not one.blank and file not in found.masks:
            by_pixels[one.pixels].append(file)
        if one.facts and one.facts.study_key:
            by_study[one.facts.study_key].append(file)
        owner = owners[file]
        if one.facts and one.facts.patient_key and owner.patient and file not in found.masks:
            by_owner[owner.site, owner.patient].setdefault(one.facts.patient_key, file)
    contradictory, duplicates = [], []
    for files in by_pixels.values():
        of = [owners[file] for file in files]
        if len({owner.labels for owner in of} - {None}) > 1:
            what = "the same pixels, different labels"
        else:
            what = _strangers(of, "the same pixels")
        group = tuple(_name(found, file) for file in files)
        if what:
            contradictory.append(Group(what, group))
        elif len(files) > len({owner.part for owner in of}):
            duplicates.append(Group("the same pixels", group))
    for files in by_study.values():
        what = _strangers([owners[file] for file in files], "one DICOM study (StudyInstanceUID)")
        if what:
            one_of_each = {(owners[file].site, owners[file].patient): file for file in files}
            group = tuple(_name(found, file) for file in one_of_each.values())
            contradictory.append(Group(what, group))
    for file_of in by_owner.values():
        if len(file_of) > 1:
            group = tuple(_name(found, file) for file in file_of.values())
            contradictory.append(Group("one patient, different headers (PatientID)", group))
    return tuple(contradictory), tuple(duplicates)


def _strangers(owners: Sequence[Owner], shared: str) -> str:
    """A sentence where what is shared belongs to several, as far as that is known; else empty."""
    if len({owner.site for owner in owners} - {""}) > 1:
        return f"{shared}, different sites"
    if len({owner.patient for owner in owners} - {""}) > 1:
        return f"{shared}, different patients"
    return ""


def _identity(found: Found, images: Mapping[Path, Seen]) -> tuple[Identity, ...]:
    """Every finding with its files: what must be mended first, then notes, by kind."""
    files_of: dict[Finding, list[Path]] = defaultdict(list)
    for file, one in images.items():
        for finding in one.findings:
            if finding.kind == "burned-in" and file in found.masks:
                continue  # codes of labels, saved as captured pictures often are
            files_of[finding].append(file)
    ordered = sorted(files_of.items(), key=lambda item: (item[0].level, item[0].kind, item[0]))
    return tuple(
        Identity(finding, len(files), tuple(_name(found, file) for file in files[:EXAMPLES]))
        for finding, files in ordered
    )


def _name(found: Found, file: Path) -> str:
    return shown(file, found.root)


def _text(checked: Checked) -> Iterator[str]:
    whose = "exam" if checked.kind == "mrnet" else "patient"  # MRNet names no patients
    counts = [counted(checked.files, "file"), f"{checked.dicom_files} of them DICOM"]
    if checked.studies or checked.series:
        counts += [counted(checked.studies, "study", "studies"), f"{checked.series} series"]
    counts.append(f"{whose}s unknown" if not checked.patients else counted(checked.patients, whose))
    yield f"{_KINDS[checked.kind]}: {', '.join(counts)}."
    if checked.images_by_class:
        width = max(map(len, checked.images_by_class))
        yield ""
        yield f"{'class':{width}}  images  {whose + 's':>8}"
        for name, images in checked.images_by_class.items():
            yield f"{name:{width}}  {images:6}  {checked.patients_by_class[name]:8}"
    if checked.values and checked.kind in ("manifest", "folder"):  # for trees it fits
        low, high = checked.values
        yield ""
        yield fill(
            f"Pixel values from {low:g} to {high:g}. A study's data.intensity says which of them "
            "become black and white (0 and 255 unless it says otherwise).",
            100,
        )
    yield from _part("Can't be read", [f"{one.file}: {one.why}" for one in checked.unreadable])
    yield from _part("Refused by the reader of this format", checked.refused)
    yield from _part("Contradictory", map(_group, checked.contradictory))
    yield from _identity_text(checked, "mend", "Tells who a patient is, or may")
    yield from _part("Note: the same pixels twice", map(_group, checked.duplicates))
    yield from _part(
        "Note: labels of no class, whose regions are left out: mend them or the site's `labels`",
        map(_group, checked.strange_labels),
    )
    yield from _identity_text(checked, "note", "Note: look at these in the export")
    notes = {
        "all pixels are equal": checked.blank,
        "DICOM without pixels, left out": checked.without_pixels,
        "neither DICOM nor an image, left out": checked.stray,
        "beside the manifest, which doesn't name it": checked.unlisted,
        "folders beside the manifest that can't be listed, left out": checked.closed,
    }
    for note, files in notes.items():
        if files:
            yield ""
            yield f"Note: {note}: {_some(files)}"
    yield ""
    yield "Something has to be mended." if checked.mend else "Nothing has to be mended."
    yield STAYS


def _part(title: str, lines: Iterable[str]) -> Iterator[str]:
    lines = list(lines)
    if lines:
        yield ""
        yield f"{title} ({len(lines)}):"
        yield from (f"  {line}" for line in lines[:_SHOWN])
        if len(lines) > _SHOWN:
            yield f"  ... and {len(lines) - _SHOWN} more (--json lists all)"


def _identity_text(checked: Checked, level: str, title: str) -> Iterator[str]:
    """Keywords that are in the same files on one line, below what to do about them."""
    by_why: dict[str, dict[tuple[int, str], list[Identity]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for one in checked.identity:
        if one.finding.level == level:
            by_why[one.finding.why][one.files, one.examples[0]].append(one)
    if by_why:
        yield ""
        yield f"{title} (DICOM PS3.15 Annex E, Basic Profile):"
    for why, by_files in by_why.items():
        yield f"  {why}"
        for (files, example), alike in sorted(by_files.items(), reverse=True):
            where = "" if files == checked.files else f" (such as {example})"
            keywords = ", ".join(one.finding.keyword for one in alike)
            yield fill(
                f"{counted(files, 'file')}{where}: {keywords}",
                100,
                initial_indent=" " * 4,
                subsequent_indent=" " * 8,
            )


def _group(group: Group) -> str:
    return f"{group.what}: {_some(group.files)}"


def _some(files: Sequence[str]) -> str:
    more = len(files) - EXAMPLES
    return ", ".join(files[:EXAMPLES]) + (f" and {more} more" if more > 0 else "")
