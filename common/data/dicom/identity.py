"""The de-identification check: what of a file DICOM's Basic Profile would remove or replace.

DICOM PS3.15 Annex E. It tells and changes nothing, and a clean result is no proof: free text that
the profile does not list, recognisable faces and pseudonyms that can be undone are out of its
sight. What it decides:

- An attribute counts when it is present and says something: not empty, not zeros, and not a dummy
  such as ANONYMOUS. PatientIdentityRemoved (0012,0062) = YES excuses nothing that is there, but
  for one case: PatientID, and a PatientName equal to it, may then be the pseudonym by which images
  are grouped, and is only noted.
- UIDs are only noted: no file shows whether its own were replaced.
- What an option kept, as DeidentificationMethodCodeSequence (0012,0064) declares it, is only noted:
  dates (113106, 113107), UIDs (113110), safe private elements (113111).
- A sequence that the profile lists is one finding; any other is searched.
- The profile passes over what PS3.10 puts before the data set, but names travel there too. The
  preamble and the file meta's private information may hold anything, as private elements may; no
  option speaks of them, so none excuses them. A preamble of zeros, or of a TIFF header and zeros
  (PS3.10 7.1), is none. Application entities' titles and addresses stand in most files and tell of
  a program or a machine, seldom of a person: they are only noted. MediaStorageSOPInstanceUID
  repeats SOPInstanceUID and isn't noted twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from common.data.dicom.burned_in import shows_text
from common.data.dicom.header import Header, opened, tags
from common.data.dicom.pixels import grey_frames
from common.data.dicom.profile import UIDS, is_identifying
from common.data.dicom.stored import Stored, stored_pixels
from common.errors import BadData

Kind = Literal["identifying", "date", "uid", "private", "burned-in"]
Element = DataElement | RawDataElement

MAX_DEPTH = 32  # of sequences in sequences
_EVERYTHING = 0xFFFFFFFF
_PATIENT_NAME, _PATIENT_ID = 0x00100010, 0x00100020

WHY: dict[Kind, str] = {
    "identifying": "The Basic Profile removes it: delete it, empty it or write a dummy.",
    "date": "The Basic Profile removes dates and times: empty it, or shift all of a patient's alike"
    " and declare 113107 in DeidentificationMethodCodeSequence.",
    "uid": "No file shows whether its UIDs were replaced: make sure that the exporter did.",
    "private": "Private elements may hold anything: delete them, or declare 113111 in"
    " DeidentificationMethodCodeSequence where only safe ones are left.",
    "burned-in": "The picture may show a name: look at it, cover the text, and set"
    " BurnedInAnnotation to NO once it is clean.",
}
_RETAINED: dict[str, Kind] = {
    "113106": "date",
    "113107": "date",
    "113110": "uid",
    "113111": "private",
}
_DUMMY = re.compile(
    r"anon(ymous|ymi[sz]ed)?|de-?identified|removed|redacted|dummy|none|null|unknown|n/?a|x+"
    r"|[-^.:0\s\0]*y?|19000101|19700101|00010101",
    re.IGNORECASE,
)
# Ultrasound, screen captures, film, endoscopes and the like write into the picture by habit.
_WRITES_INTO_PIXELS = frozenset({"ES", "GM", "HC", "OT", "RF", "SC", "US", "XA", "XC"})
_CAPTURE_CLASS = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture; multi-frame: .1 and so on

_TITLES = tags(
    "SourceApplicationEntityTitle", "SendingApplicationEntityTitle",
    "ReceivingApplicationEntityTitle", "SourcePresentationAddress",
    "SendingPresentationAddress", "ReceivingPresentationAddress",
)  # fmt: skip
_PRIVATE_INFORMATION = tags("PrivateInformationCreatorUID", "PrivateInformation")
_PLAIN_PREAMBLE = re.compile(rb"((II\*\0|MM\0\*).{4})?\0*", re.DOTALL)


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing about a file that should be mended, or noted; never its value."""

    # Or (gggg,eeee) where the dictionary has none, (gggg,xxxx) of private elements, FilePreamble.
    keyword: str
    kind: Kind
    level: Literal["mend", "note"]
    why: str  # and what to do


def identity_findings(path: Path) -> tuple[Finding, ...]:
    """What in `path` would have to be mended before it counts as de-identified, sorted.

    Raises BadData where `path` is no DICOM file or can't be read to its end.
    """
    with opened(path, last=_EVERYTHING) as header:
        retained = {kind for code, kind in _RETAINED.items() if code in _declared_methods(header)}
        pseudonym = _pseudonym(header)
        found = set()
        for tag, element in _elements(header):
            kind = _kind(tag)
            if kind is None or _says_nothing(element):
                continue
            noted = kind == "uid" or kind in retained or _is_pseudonym(tag, element, pseudonym)
            found.add(Finding(_name(tag), kind, "note" if noted else "mend", WHY[kind]))
        return tuple(sorted(found | set(_before_data_set(header)) | set(_burned_in(header))))


def _before_data_set(header: Header) -> Iterator[Finding]:
    """Findings in the preamble and the file meta (PS3.10 7.1)."""
    if not _PLAIN_PREAMBLE.fullmatch(header.preamble):
        why = "The file's first 128 bytes may hold anything: fill them with zeros."
        yield Finding("FilePreamble", "private", "mend", why)
    for element in header.meta.values():
        tag = int(element.tag)
        if _says_nothing(element):
            continue
        if tag in _PRIVATE_INFORMATION:
            why = "The file meta's private information may hold anything: delete it."
            yield Finding(_name(tag), "private", "mend", why)
        elif tag in _TITLES:
            why = "It tells where the file came from or went: make sure that it names no person."
            yield Finding(_name(tag), "identifying", "note", why)


def _elements(header: Header) -> Iterator[tuple[int, Element]]:
    """Every element, those within sequences too but for sequences that are findings themselves."""
    waiting: list[tuple[Dataset, int]] = [(header.data, 0)]
    while waiting:
        data, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise header.refuse(f"its sequences are nested deeper than {MAX_DEPTH}.")
        for element in list(data.values()):
            tag = int(element.tag)
            yield tag, element
            if _kind(tag) in (None, "uid") and _is_sequence(tag, element):
                items = header.attempt(
                    partial(_items, data, tag),
                    f"{_name(tag)} can't be read; export the file again.",
                )
                waiting.extend((item, depth + 1) for item in items)


def _items(data: Dataset, tag: int) -> list[Dataset]:
    return [item for item in data[tag].value if isinstance(item, Dataset)]


def _kind(tag: int) -> Kind | None:
    """Which kind of finding the attribute would be, if it says anything."""
    if tag >> 16 & 1:
        return "private"
    if tag in UIDS:
        return "uid"
    if _dictionary_vr(tag) in ("DA", "DT", "TM"):
        return "date"
    if is_identifying(tag) or _dictionary_vr(tag) == "PN":
        return "identifying"
    return None


def _says_nothing(element: Element) -> bool:
    """Whether the value is empty, zeros, or a dummy that no one could be told by."""
    value = element.value
    if isinstance(value, Sequence):
        return len(value) == 0
    text = str(value, "latin-1") if isinstance(value, bytes) else str(value or "")
    return _DUMMY.fullmatch(text.strip(" \0")) is not None


def _pseudonym(header: Header) -> object:
    """What may be the patient's pseudonym, in a file that declares the identity removed."""
    if header.text("PatientIdentityRemoved") != "YES" or _PATIENT_ID not in header.data:
        return None
    return header.data.get_item(_PATIENT_ID).value


def _is_pseudonym(tag: int, element: Element, pseudonym: object) -> bool:
    return tag in (_PATIENT_ID, _PATIENT_NAME) and element.value == pseudonym


def _declared_methods(header: Header) -> set[str]:
    """CodeValues of DeidentificationMethodCodeSequence."""
    return header.attempt(
        lambda: {
            str(item.get("CodeValue"))
            for item in header.data.get("DeidentificationMethodCodeSequence") or ()
        },
        "DeidentificationMethodCodeSequence can't be read; export the file again.",
    )


def _burned_in(header: Header) -> Iterator[Finding]:
    """Text in the picture: as the header declares it, as its origin suggests, as it looks."""
    if "PixelData" not in header.data:
        return
    declared = header.text("BurnedInAnnotation")
    # With the dot, or 1.1.77 (visible light, eyes, whole slides) would count as captures too.
    is_capture = f"{header.text('SOPClassUID')}.".startswith(f"{_CAPTURE_CLASS}.")
    suspect = is_capture or header.text("Modality") in _WRITES_INTO_PIXELS
    if declared == "YES" or (declared != "NO" and suspect):
        yield Finding("BurnedInAnnotation", "burned-in", "mend", WHY["burned-in"])
    try:
        if _shows_text(header):
            yield Finding("PixelData", "burned-in", "mend", WHY["burned-in"])
    except BadData:
        why = "The pixels can't be decoded, so nobody has looked for text in them."
        yield Finding("PixelData", "burned-in", "note", why)


def _shows_text(header: Header) -> bool:
    """Whether the first or the middle frame does."""
    stored = stored_pixels(header)
    return any(
        shows_text(grey_frames(header, Stored(frame[None], stored.photometric))[0])
        for frame in np.asarray(stored.values)[sorted({0, len(stored.values) // 2})]
    )


def _is_sequence(tag: int, element: Element) -> bool:
    return "SQ" in (element.VR, _dictionary_vr(tag))


def _dictionary_vr(tag: int) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return ""


def _name(tag: int) -> str:
    group, element = tag >> 16, tag & 0xFFFF
    if group & 1:
        return f"({group:04x},xxxx)"
    return keyword_for_tag(tag) or f"({group:04x},{element:04x})"
