"""What `data check` and `data manifest` need to know of a file: nothing that names a person."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from common.data.dicom.header import PIXEL_DATA, Header, one_way, opened, tags

MAX_MANUFACTURER = 64  # characters, as LO has them (PS3.5 6.2)

_TAGS = tags(
    *("Modality", "Manufacturer", "PatientID", "IssuerOfPatientID", "StudyInstanceUID"),
    *("SeriesInstanceUID", "SOPInstanceUID", "Rows", "Columns", "NumberOfFrames"),
)


@dataclass(frozen=True, slots=True)
class Facts:
    """One file in short; a key is one-way, equal for equal identifiers, empty where absent."""

    modality: str  # (0008,0060), or empty
    manufacturer: str  # (0008,0070), a company, tidied; or empty
    patient_key: str  # of PatientID (0010,0020) and its issuer
    study_key: str
    series_key: str
    sop_key: str
    rows: int  # 0 where the file is no image, as are columns and frames
    columns: int
    frames: int


def read_facts(path: Path) -> Facts:
    """The facts of `path`, from its header alone; raises BadData where it is no DICOM file.

    A patient number is short enough to be guessed from its key: before it is kept, the caller mixes
    the key with the site's secret.
    """
    with opened(path, _TAGS, last=PIXEL_DATA - 1) as header:
        patient = header.text("PatientID")
        issued = f"{header.text('IssuerOfPatientID')}\0{patient}" if patient else ""
        rows, columns = _count(header, "Rows"), _count(header, "Columns")
        return Facts(
            modality=re.sub(r"[^A-Z0-9 _]", "", header.text("Modality"))[:16],
            manufacturer=_tidy(header.text("Manufacturer")),
            patient_key=one_way(issued),
            study_key=one_way(header.text("StudyInstanceUID")),
            series_key=one_way(header.text("SeriesInstanceUID")),
            sop_key=one_way(header.text("SOPInstanceUID")),
            rows=rows,
            columns=columns,
            frames=_count(header, "NumberOfFrames", absent=1) if rows and columns else 0,
        )


def _count(header: Header, keyword: str, *, absent: int = 0) -> int:
    return max(int(header.number(keyword, default=absent)), 0)


def _tidy(company: str) -> str:
    """The company's name in plain characters, one blank between words.

    >>> _tidy("SIEMENS\\n  Healthineers\\x07 ")
    'SIEMENS Healthineers'
    """
    plain = re.sub(r"[^\w .,&/()+-]", " ", company, flags=re.ASCII)
    return " ".join(plain.split())[:MAX_MANUFACTURER]
