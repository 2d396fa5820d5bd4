"""A draft of a manifest from a folder of DICOM files or images; labels are left to fill in.

A line is a volume where a folder holds the slices of one CT, MR or PET series and nothing else, as
exports write them, and they can be read as one; else it is a file. So a folder of mixed series is
one line a file, and so is anything of other modalities.

A patient is a key of the number in the header, hashed with a secret of
32 bytes that stays beside the manifest, readable by its user alone. Later drafts into the same
folder give the same patient the same key, and nobody without that file can guess whose it is. A
path, though, has the names of folders and files as they are, and those may name a patient.
"""

from __future__ import annotations

import csv
import io
import os
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.check.found import counted, printable, shown, walk
from common.config import SITE_NAME, SITE_NAME_RULE
from common.data.dataset import pseudonym
from common.data.dicom import Facts, is_dicom, read_facts, read_volume
from common.data.pictures import PICTURES
from common.errors import BadData, BadInput

COLUMNS = ("path", "patient", "site", "label", "modality", "manufacturer", "series")
SECRET = ".fedward-secret"
SLICED = ("CT", "MR", "PT")  # modalities (0008,0060) whose series are volumes
_SHOWN = 10  # files named at once

FOLDERS = ("", "patient", "label")
Line = dict[str, str]


@dataclass(frozen=True, slots=True)
class Drafted:
    """What a draft holds and what it left out."""

    table: Path
    lines: int
    volumes: int  # lines that are folders
    patients: int  # named
    without_patient: int  # lines
    without_label: int  # lines
    no_volumes: tuple[tuple[str, str], ...]  # folders of slices listed one by one, and why
    left_out: tuple[tuple[str, str], ...]  # files and why

    def text(self) -> str:
        """For people: what is there and what they have to fill in."""
        said = [
            f"{self.table}: {counted(self.lines, 'line')} of {counted(self.patients, 'patient')}; "
            f"{counted(self.volumes, 'volume')} (folders of one series), "
            f"{counted(self.lines - self.volumes, 'file')}.",
            "Paths keep the names of folders and files: rename what names a patient.",
        ]
        if self.without_label:
            said.append(f"{counted(self.without_label, 'line')} without a label: fill it in.")
        if self.without_patient:
            said.append(
                f"{counted(self.without_patient, 'line')} without a patient: fill in one word for "
                "each, the same for all images of a patient."
            )
        if self.patients == 1 < self.lines:
            said.append("All headers name one patient: if that is a dummy, fill in who is who.")
        if self.volumes == self.lines:
            said.append("A study reads them with data.slices.")
        elif self.volumes:
            said.append(
                "A study reads either volumes (with data.slices) or pictures: remove the lines of "
                "one kind, or draft with --pictures for one line a file."
            )
        for title, what in (
            ("Folders of slices that are no volume, listed one by one", self.no_volumes),
            ("Left out", self.left_out),
        ):
            if what:
                said.append(f"{title} ({len(what)}):")
                said += [f"  {name}: {why}" for name, why in what[:_SHOWN]]
                if len(what) > _SHOWN:
                    said.append(f"  ... and {len(what) - _SHOWN} more")
        return printable("\n".join(said))


def draft(
    folder: Path,
    table: Path,
    *,
    site: str = "",
    folders: str = "",
    pictures: bool = False,
    on_file: Callable[[int, int], None] = lambda _done, _all: None,
) -> Drafted:
    """Write a manifest of all images below `folder` to `table`, which must not be there yet.

    Args:
        folder: DICOM files, images or both.
        table: in `folder` or above it, since a manifest's paths lead downwards.
        site: what the column `site` says; without it there is no such column.
        folders: what the folders directly in `folder` stand for, one of FOLDERS: a patient (used
            where no header names one), a label or nothing.
        pictures: one line a file, whatever the series.
        on_file: told how many files are done, and of how many, after each.

    Raises BadInput where there is no image, or where the table can't be written.
    """
    folder, table = Path(os.path.abspath(folder)), Path(os.path.abspath(table))
    _check(folder, table, site, folders)
    facts: dict[Path, Facts | None] = {}
    left_out: list[tuple[str, str]] = []
    files = [path for path in walk(folder) if path != table]
    for done, path in enumerate(files):
        on_file(done, len(files))
        try:
            facts[path] = _facts(path, table.parent)
        except BadData as problem:
            why = str(problem).removeprefix(f"{path.name}: ")
            left_out.append((shown(path, folder), why))
    on_file(len(files), len(files))
    if not facts:
        raise BadInput(f"{folder}: holds no DICOM file and no image; name the folder that does.")
    secret = _secret(table.parent)
    volumes, none = (set(), {}) if pictures else _volumes(files, facts, table.parent)
    lines: dict[Path, Line] = {}
    for path, one in facts.items():
        place = path.parent if path.parent in volumes else path
        top = path.relative_to(folder).parts[0] if path.parent != folder else ""
        lines[place] = _line(one, folders, top, secret) | {
            "path": place.relative_to(table.parent).as_posix(),
            "site": site,
        }
    _write(table, [name for name in COLUMNS if name != "site" or site], list(lines.values()))
    patients = [line["patient"] for line in lines.values()]
    return Drafted(
        table=table,
        lines=len(lines),
        volumes=len(volumes),
        patients=len(set(patients) - {""}),
        without_patient=patients.count(""),
        without_label=sum(not line["label"] for line in lines.values()),
        no_volumes=tuple((shown(path, folder), why) for path, why in none.items()),
        left_out=tuple(left_out),
    )


def _check(folder: Path, table: Path, site: str, folders: str) -> None:
    if not folder.is_dir():
        raise BadInput(f"{folder}: is no folder; name the one that holds the images.")
    if site and not re.fullmatch(SITE_NAME, site):
        raise BadInput(f"--site must be {SITE_NAME_RULE}; got {site!r:.80}.")
    if folders not in FOLDERS:
        raise BadInput(f"--folders must be patient or label; got {folders!r:.80}.")
    if os.path.lexists(table):
        raise BadInput(f"{table}: is there already and stays as it is; name another file by --out.")
    if not folder.is_relative_to(table.parent):
        raise BadInput(
            f"--out must be in {folder} or in a folder above it, since a manifest's paths lead "
            f"downwards; got {table}."
        )


def _facts(path: Path, top: Path) -> Facts | None:
    """What a header says, None for an image without one; raises BadData for what is no image."""
    name = path.relative_to(top).as_posix()
    if name != name.strip() or not name.isprintable():
        raise BadData("a table can't hold its name; rename it.")
    if is_dicom(path):
        facts = read_facts(path)
        if not facts.frames:
            raise BadData("is DICOM without pixels.")
        return facts
    if path.suffix.lower() not in PICTURES:
        raise BadData("is neither DICOM nor an image.")
    return None


def _volumes(
    files: Sequence[Path], facts: Mapping[Path, Facts | None], top: Path
) -> tuple[set[Path], dict[Path, str]]:
    """The folders that are volumes, and why others that could be are none.

    Several slices of one patient and nothing else, not even a folder, nor the table, which goes to
    the folder `top`.
    """
    inside: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        inside[path.parent].append(path)
    above = {parent for folder in inside for parent in folder.parents}
    volumes, none = set(), {}
    for folder, paths in inside.items():
        slices = [one for path in paths if (one := facts.get(path)) and one.modality in SLICED]
        if len(slices) < 2 or folder in above:
            continue
        try:
            read_volume(paths)  # with any stray, which a manifest's reader would take too
        except BadData as problem:
            none[folder] = str(problem)
            continue
        if len({one.patient_key for one in slices}) > 1:
            none[folder] = "the headers name several patients (PatientID) in one series."
        elif folder == top:
            none[folder] = "the manifest lies in it: name --out in the folder above."
        else:
            volumes.add(folder)
    return volumes, none


def _line(facts: Facts | None, folders: str, top: str, secret: bytes) -> Line:
    """What a header says, and `top`, the name of the folder that the image is in."""
    patient = facts.patient_key if facts else ""
    if not patient and folders == "patient":
        patient = top
    series = facts.series_key if facts else ""
    return {
        "patient": pseudonym(patient, secret)[:16] if patient else "",
        "label": top if folders == "label" else "",
        "modality": facts.modality if facts else "",
        "manufacturer": facts.manufacturer if facts else "",
        "series": pseudonym(series, secret)[:16] if series else "",
    }


def _secret(folder: Path) -> bytes:
    """The folder's secret, made when it is first asked for."""
    path = folder / SECRET
    try:
        if not path.exists():
            with os.fdopen(
                os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
            ) as file:
                file.write(secrets.token_bytes(32))
        secret = path.read_bytes()
    except OSError as error:
        raise BadInput(
            f"{path}: can't be written or read ({error.strerror}); name a file in a folder above "
            "by --out, or mend the permissions."
        ) from None
    if len(secret) != 32:
        raise BadInput(f"{path}: is not what an earlier draft wrote; put it back or remove it.")
    return secret


def _write(table: Path, names: Sequence[str], lines: Sequence[Line]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    try:
        with table.open("x", encoding="utf-8") as file:
            file.write(text.getvalue())
    except OSError as error:
        raise BadInput(f"{table}: can't be written ({error.strerror}); name another.") from None
