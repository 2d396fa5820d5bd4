"""One file, looked at: can it be read, what do its pixels hash to, does it tell who the patient is.

De-identification is checked after DICOM PS3.15 Annex E; of other images only the picture is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.data.dicom import Facts, Finding, identity_findings, is_dicom, read_facts, read_volume
from common.data.dicom.burned_in import shows_text
from common.data.pictures import PICTURES, STACKS, read_picture, read_stack
from common.errors import BadData

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_TEXT = Finding(
    "the picture's pixels",
    "burned-in",
    "mend",
    "Text in a picture can name the patient, or give the class away: look at it and cover it.",
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one file is; nothing in it names a patient."""

    form: Literal["DICOM", "image", "other"]
    fault: str = ""  # why it can't be read, without the file's name
    pixels: bytes = b""  # hash of what was decoded; empty without pixels
    values: tuple[float, float] | None = None  # least and largest of its pixels
    facts: Facts | None = None  # of DICOM
    findings: tuple[Finding, ...] = ()

    @property
    def blank(self) -> bool:
        """Whether all pixels are equal."""
        return self.values is not None and self.values[0] == self.values[1]


def look(path: Path, *, listed: bool) -> Seen:
    """Read the file once through; `listed`: the data set says that it is an image."""
    form: Literal["DICOM", "image", "other"] = "other"
    fault = ""
    facts: Facts | None = None
    findings: tuple[Finding, ...] = ()
    volume: NDArray[np.float32] | None = None
    try:
        if is_dicom(path) or path.suffix.lower() in _DICOM_SUFFIXES:
            form = "DICOM"
            facts = read_facts(path)
            findings = identity_findings(path)
            volume = read_volume([path]) if facts.frames else None
        elif path.suffix.lower() in PICTURES:
            form = "image"
            volume = _read_image(path)
            findings = (_TEXT,) if shows_text(volume[len(volume) // 2]) else ()
        elif listed:
            fault = "expected a DICOM file or an image; it is none. Replace or remove it."
    except BadData as problem:
        fault = str(problem).removeprefix(f"{path.name}: ")
    if volume is None:
        return Seen(form, fault, facts=facts, findings=findings)
    values = float(volume.min()), float(volume.max())
    return Seen(form, fault, _hash(volume), values, facts, findings)


def _read_image(path: Path) -> NDArray[np.float32]:
    """A picture as one slice, or a stack: (slices, height, width)."""
    try:
        return read_picture(path)[None]
    except BadData:
        if path.suffix.lower() not in STACKS:
            raise
        return read_stack(path)


def _hash(volume: NDArray[np.float32]) -> bytes:
    digest = hashlib.blake2b(repr(volume.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(volume).data)
    return digest.digest()
