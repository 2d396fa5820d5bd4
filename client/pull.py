"""A cohort from a PACS into a folder with a manifest: whole, de-identified series only.

    OUT/manifest.csv                               a line a series; never rewritten, only added to
    OUT/images/<study>/<series>/<instance>.dcm     as the PACS sent them; the names are one-way keys
    OUT/.pull/                                     series on their way, and the folder's secret

Any kill leaves this true: a file in .pull has its name only once it is written, synced and checked;
a series moves into images/ only once all its files are there and its line is in the manifest. So
what is in images/ is whole and was listed, and a line that someone took out again stays out.

A patient's number is short enough to be guessed, so the manifest has it hashed with the folder's
secret: the same name in each run into this folder, another one elsewhere.
"""

from __future__ import annotations

import csv
import fcntl
import hmac
import io
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from itertools import zip_longest
from pathlib import Path

from client.dicomweb import (
    FoundSeries,
    FoundStudy,
    NotServed,
    Service,
    retrieve,
    search_instances,
    search_series,
    search_studies,
)
from common.config import SITE_NAME, SITE_NAME_RULE
from common.data.dicom import identity_findings, read_facts
from common.data.dicom.header import one_way
from common.errors import BadData, BadInput
from common.files import write_atomically

# What a list may hold, and what one of its lines looks like: nothing that a PACS takes as a
# wildcard (* ?) or as several values (backslash, and comma in UIDs), which would fetch strangers.
LISTS: Mapping[str, re.Pattern[str]] = {
    "PatientID": re.compile(r"[^*?\\]{1,64}"),
    "AccessionNumber": re.compile(r"[^*?\\]{1,16}"),
    "StudyInstanceUID": re.compile(r"[0-9.]{1,64}"),
}
COLUMNS = ("path", "patient", "site", "label", "modality", "manufacturer", "slices")
_MODALITY = re.compile(r"[A-Z0-9_ ]{2,16}")  # CS, PS3.5 section 6.2
_SHOWN = 10  # problems or lines named at once


@dataclass(frozen=True, slots=True)
class Listed:
    """Patients, orders or studies that someone wrote down, one a line."""

    keyword: str  # one of LISTS
    values: Mapping[str, int] = field(repr=False)  # each with its line in the file


@dataclass(frozen=True, slots=True)
class Query:
    """Which series to fetch: those that meet all of it.

    Args:
        modalities: DICOM Modality (0008,0060), any of them: CT, MR, DX, ...
        listed: only these patients, orders or studies.
        since, until: StudyDate (0008,0020), both days included.
        study_description, series_description: (0008,1030) and (0008,103E), * and ? as wildcards,
            upper and lower case alike.

    Raises BadInput where it would ask for nothing, or for all that the PACS holds.
    """

    modalities: tuple[str, ...]
    listed: Listed | None = None
    since: date | None = None
    until: date | None = None
    study_description: str = "*"
    series_description: str = "*"

    def __post_init__(self) -> None:
        """Collect what is wrong and say it at once."""
        problems = [
            f"--modality must be as DICOM writes it, such as CT, MR or DX; got {name!r:.40}"
            for name in self.modalities
            if not _MODALITY.fullmatch(name)
        ]
        if not self.modalities:
            problems.append("--modality must name at least one, such as CT")
        if self.listed is None and self.since is None:
            problems.append("--list or --from must be given; else all that the PACS holds is meant")
        if self.since and self.until and self.until < self.since:
            problems.append(f"--to must not be before --from; got {self.until} and {self.since}")
        if problems:
            raise BadInput("\n".join(f"{problem}." for problem in problems))


@dataclass(frozen=True, slots=True)
class Pulled:
    """What came of a pull: numbers, keywords and line numbers, nothing that identifies."""

    studies: int  # matched
    series: int  # matched
    whole: int  # of these, in images/ now
    fetched: int  # files retrieved by this run and kept
    refused: Mapping[str, int]  # series by what their first refused file holds
    refused_series: int
    missing: Mapping[str, int]  # series or studies by what the PACS answered instead
    without_patient: int  # lines of the manifest without a patient, since PatientID was empty
    without_label: int  # lines of the manifest without a label
    grown: int  # series in images/ of which the PACS now has another number of files
    unlisted: int  # series in images/ that have no line in the manifest
    lines_without_study: tuple[int, ...]  # lines of the list

    def text(self) -> str:
        """For people: what is there, and what they may want to do about it."""
        said = [
            f"{self.whole} of {self.series} series ({self.studies} studies) are there; "
            f"{self.fetched} files fetched now."
        ]
        if self.lines_without_study:
            shown = ", ".join(map(str, self.lines_without_study[:_SHOWN]))
            more = len(self.lines_without_study) - _SHOWN
            said.append(
                f"{len(self.lines_without_study)} entries of the list match no study: line {shown}"
                + (f" and {more} more." if more > 0 else ".")
            )
        if self.without_patient:
            said.append(
                f"{self.without_patient} lines of manifest.csv name no patient (PatientID is "
                "empty): fill in the same word for each series of a patient."
            )
        if self.without_label:
            said.append(f"{self.without_label} lines of manifest.csv have no label: fill them in.")
        if self.grown:
            said.append(
                f"{self.grown} series have another number of files in the PACS now: remove their "
                "folders and lines to fetch them anew."
            )
        if self.unlisted:
            said.append(
                f"{self.unlisted} series in images/ have no line in manifest.csv: they stay out; "
                "remove their folders to have them fetched and listed again."
            )
        return "\n".join(said)

    def failure(self) -> str:
        """Why the cohort isn't whole, empty where it is."""
        said = []
        if self.refused_series:
            said.append(
                f"{self.refused_series} of {self.series} series were refused and not kept, since "
                "they tell who the patient is, or nobody could look: "
                f"{_counted(self.refused)}. Have the PACS' export or "
                "a gateway de-identify them (DICOM PS3.15, annex E); fedward changes no file."
            )
        if self.missing:
            total = sum(self.missing.values())
            said.append(f"{total} series could not be had: {_counted(self.missing)}.")
        return " ".join([*said, "Then run the same command again."]) if said else ""


def read_list(path: Path) -> Listed:
    """The entries of a list: its first line says what they are, each other line is one.

    Raises BadInput with every bad line's number (never its text).
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise BadInput(f"{path}: can't be read ({error.strerror}); name a text file.") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path}: is no text in UTF-8; save it as such.") from None
    keyword = lines[0] if lines else ""
    if keyword not in LISTS:
        raise BadInput(
            f"{path.name}: line 1 must say what the other lines hold: {', '.join(LISTS)}."
        )
    entries = [(number, line) for number, line in enumerate(lines[1:], start=2) if line]
    bad = [str(number) for number, line in entries if not LISTS[keyword].fullmatch(line)]
    if bad:
        raise BadInput(
            f"{path.name}: one {keyword} a line is expected, without *, ? or \\; "
            f"mend line {', '.join(bad[:_SHOWN])}" + (", ..." if len(bad) > _SHOWN else ".")
        )
    if not entries:
        raise BadInput(f"{path.name}: expected at least one {keyword} below line 1; got none.")
    return Listed(keyword, {line: number for number, line in reversed(entries)})


def pull(
    service: Service,
    query: Query,
    out: Path,
    *,
    site: str = "",
    label: str = "",
    limit: int | None = None,
    on_series: Callable[[int, int], None] = lambda _done, _total: None,
) -> Pulled:
    """Fetch the series that `query` means into `out`; go on where an earlier call stopped.

    Args:
        service: the PACS.
        query: which series.
        out: the folder; made, readable by this user alone, where it isn't there yet.
        site: what the manifest's column `site` says; empty where all images are one site's.
        label: what its column `label` says for series that are new; empty to fill in by hand.
        limit: at most so many studies, always the same ones of those that match.
        on_series: told how many series are done, and of how many, after each.

    Raises BadInput for what a person must mend first, RunFailed where the PACS stops answering.
    """
    if site and not re.fullmatch(SITE_NAME, site):
        raise BadInput(f"--site must be {SITE_NAME_RULE}; got {site!r:.80}.")
    with _opened(out) as folder:
        found = _find(service, query, limit)
        outcomes = list(found.faults)
        for done, series in enumerate(found.series):
            on_series(done, len(found.series))
            outcomes.append(_bring(service, series, folder, site=site, label=label))
        on_series(len(found.series), len(found.series))
        _, lines = _read_table(folder.table)
        places = {place.relative_to(out).as_posix() for place in folder.images.glob("*/*")}
        return Pulled(
            studies=found.studies,
            series=len(found.series),
            whole=sum(outcome.whole for outcome in outcomes),
            fetched=sum(outcome.fetched for outcome in outcomes),
            refused=Counter(keyword for outcome in outcomes for keyword in outcome.refused),
            refused_series=sum(bool(outcome.refused) for outcome in outcomes),
            missing=Counter(outcome.fault for outcome in outcomes if outcome.fault),
            without_patient=_empty(lines, "patient"),
            without_label=_empty(lines, "label"),
            grown=sum(outcome.grown for outcome in outcomes),
            unlisted=len(places - {line["path"].strip() for line in lines}),
            lines_without_study=found.lines_without_study,
        )


@dataclass(frozen=True, slots=True)
class _Folder:
    table: Path
    images: Path
    own: Path  # what is nobody else's business
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of one series; a study that can't be listed counts as one."""

    whole: bool = False
    fetched: int = 0
    refused: tuple[str, ...] = ()
    fault: str = ""
    grown: bool = False


@dataclass(frozen=True, slots=True)
class _Found:
    studies: int
    series: tuple[FoundSeries, ...]
    faults: tuple[_Outcome, ...]
    lines_without_study: tuple[int, ...]


@contextmanager
def _opened(out: Path) -> Iterator[_Folder]:
    """The folder's parts, for this process alone while the block runs."""
    table, images, own = out / "manifest.csv", out / "images", out / ".pull"
    _, lines = _read_table(table)
    for path in (out, images, own):
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise BadInput(f"{path}: a file is in the way; name another folder by --out.") from None
    with (own / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(
                f"{out}: another pull is writing there; wait for it, or name another folder."
            ) from None
        if not (own / "secret").exists():
            if lines:
                raise BadInput(
                    f"{table} has lines, but {own / 'secret'} is gone: patients would get new "
                    "names. Put it back, or name another folder."
                )
            write_atomically(own / "secret", secrets.token_bytes(32))
        folder = _Folder(table, images, own, (own / "secret").read_bytes())
        _partial(folder).unlink(missing_ok=True)  # of a run that was killed: never checked
        yield folder


def _find(service: Service, query: Query, limit: int | None) -> _Found:
    """All that the query means, in an order that only the UIDs decide."""
    values: Mapping[str, int] = query.listed.values if query.listed else {}
    studies: dict[str, FoundStudy] = {}
    lines = []
    for value in values or ("",):
        matched = _matching_studies(service, query, value)
        studies |= {study.uid: study for study in matched}
        if value and not matched:
            lines.append(values[value])
    kept = sorted(studies, key=one_way)[:limit]
    series: list[FoundSeries] = []
    faults = []
    for uid in kept:
        try:
            series += sorted(_matching_series(service, query, uid), key=lambda one: one.uid)
        except NotServed as error:
            faults.append(_Outcome(fault=str(error)))
    if not series and not faults:
        raise BadInput(
            f"{service.url} has no series that matches ({len(studies)} studies match, with none "
            "of this modality and description); ask for others."
        )
    return _Found(len(kept), tuple(series), tuple(faults), tuple(sorted(lines)))


def _matching_studies(service: Service, query: Query, value: str) -> list[FoundStudy]:
    """Studies that meet the query, as far as a study can; `value` is the list's entry, if any.

    What the PACS returns is checked again, since one that doesn't know a filter may leave it out.
    Descriptions are compared here only, so that wildcards mean the same with every PACS.
    """
    keyword = query.listed.keyword if query.listed else ""
    first = f"{query.since:%Y%m%d}" if query.since else ""
    last = f"{query.until:%Y%m%d}" if query.until else ""
    filters = {keyword: value} if keyword else {}
    if first or last:
        filters["StudyDate"] = f"{first}-{last}"
    found = [
        study
        for modality in query.modalities
        for study in search_studies(
            service,
            filters | {"ModalitiesInStudy": modality},
            keywords=[*LISTS, "StudyDescription"],
        )
    ]
    return [
        study
        for study in found
        if (not keyword or study.values[keyword] == value)
        and (not (first or last) or (first or "0") <= study.date[:8] <= (last or "9"))
        and _like(study.values["StudyDescription"], query.study_description)
    ]


def _matching_series(service: Service, query: Query, study_uid: str) -> list[FoundSeries]:
    return [
        series
        for series in search_series(service, study_uid)
        if series.modality in query.modalities
        and _like(series.description, query.series_description)
    ]


def _like(text: str, pattern: str) -> bool:
    """Whether the text is as the pattern, in which * stands for any text and ? for one character.

    >>> _like("Thorax 1.0 LUNG", "*lung"), _like("Thorax", "thor"), _like("", "*")
    (True, False, True)
    """
    parts = {"*": ".*", "?": "."}
    regex = "".join(parts.get(character, re.escape(character)) for character in pattern)
    return re.fullmatch(regex, text, re.IGNORECASE | re.DOTALL) is not None


def _bring(
    service: Service, series: FoundSeries, folder: _Folder, *, site: str, label: str
) -> _Outcome:
    """One series into images/ and the manifest; what was fetched before is not fetched again."""
    place = folder.images / one_way(series.study_uid) / one_way(series.uid)
    if place.is_dir():
        there = sum(1 for _ in place.glob("*.dcm"))
        return _Outcome(whole=True, grown=series.instances not in (None, there))
    staging = folder.own / one_way(series.uid)
    staging.mkdir(mode=0o700, exist_ok=True)
    fetched = 0
    try:
        paths = {uid: staging / f"{one_way(uid)}.dcm" for uid in search_instances(service, series)}
        for uid, path in paths.items():
            if path.exists():
                continue
            refused = _keep(retrieve(service, series, uid), path, partial=_partial(folder))
            if refused:
                shutil.rmtree(staging)  # what one file tells, the others may
                return _Outcome(fetched=fetched, refused=refused)
            fetched += 1
        for stray in set(staging.iterdir()) - set(paths.values()):
            stray.unlink()  # no longer part of the series
        if not paths:
            return _Outcome(fault="a series without files")
        line = _line(folder, sorted(paths.values()), place)
    except (NotServed, BadData) as error:
        fault = str(error) if isinstance(error, NotServed) else "a file that can't be read"
        return _Outcome(fetched=fetched, fault=fault)
    _add_line(folder.table, line | ({"site": site} if site else {}) | {"label": label})
    place.parent.mkdir(mode=0o700, exist_ok=True)
    staging.rename(place)
    return _Outcome(whole=True, fetched=fetched)


def _keep(content: bytes, path: Path, *, partial: Path) -> tuple[str, ...]:
    """Store the file under its name if it tells nobody's identity; else the keywords that do.

    Pixels that can't be decoded are refused too: nobody has looked for a name in them.
    """
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        findings = identity_findings(partial)
        refused = {one.keyword for one in findings if one.level == "mend"}
        if any((one.kind, one.level) == ("burned-in", "note") for one in findings):
            refused.add("pixels that can't be decoded")
        if not refused:
            partial.replace(path)
        return tuple(sorted(refused))
    finally:
        partial.unlink(missing_ok=True)


def _partial(folder: _Folder) -> Path:
    return folder.own / "partial.dcm"


def _line(folder: _Folder, paths: Sequence[Path], place: Path) -> dict[str, str]:
    """The manifest's line of a series; raises NotServed where it is no image of one patient."""
    facts = [read_facts(path) for path in paths]
    if len({fact.patient_key for fact in facts}) > 1:
        raise NotServed("files of several patients in one series")
    if not all(fact.frames for fact in facts):
        raise NotServed("a file without pixels")
    patient = facts[0].patient_key
    named = hmac.digest(folder.secret, patient.encode(), "sha256").hex()[:16] if patient else ""
    return {
        "path": place.relative_to(folder.table.parent).as_posix(),
        "patient": named,
        "modality": facts[0].modality,
        "manufacturer": facts[0].manufacturer,
        "slices": str(sum(fact.frames for fact in facts)),
    }


def _read_table(table: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The manifest's columns and lines; those of a new one where there is none."""
    if not table.exists():
        return list(COLUMNS), []
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            names = [name.strip() for name in next(reader, [])]
            lines = [
                dict(zip_longest(names, cells[: len(names)], fillvalue=""))
                for cells in reader
                if any(cells)
            ]
    except (UnicodeDecodeError, csv.Error):
        raise BadInput(f"{table}: is no CSV in UTF-8; export it again as one.") from None
    missing = [name for name in ("path", "patient") if name not in names]  # all others may change
    if missing:
        raise BadInput(
            f"{table}: the column {', '.join(missing)} is missing; its first line must name the "
            "columns, with commas between. Mend it or name another folder."
        )
    return names, lines


def _add_line(table: Path, line: Mapping[str, str]) -> None:
    """Add a line below what the person's table holds, which stays as it is to the byte."""
    names, lines = _read_table(table)
    if any(there["path"].strip() == line["path"] for there in lines):
        return
    if table.exists():
        content = table.read_bytes()
    else:
        names = [name for name in names if name in line]
        content = _row(names, "\n")
    end = "\r\n" if b"\r\n" in content else "\n"
    if not content.endswith(b"\n"):
        content += end.encode()
    write_atomically(table, content + _row([line.get(name, "") for name in names], end))


def _empty(lines: Sequence[Mapping[str, str]], column: str) -> int:
    return sum(not line[column].strip() for line in lines if column in line)


def _row(cells: Sequence[str], end: str) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator=end).writerow(cells)
    return text.getvalue().encode()


def _counted(counts: Mapping[str, int]) -> str:
    """Most frequent first: `PatientName (3), PatientBirthDate (1)`."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{what} ({count})" for what, count in ordered)
