"""A DICOM file's attributes, read without trust (PS3.5 encoding, PS3.10 file format).

Errors name the file and the attribute at fault, never a value of the header: pydicom's own
exceptions, warnings and log lines may quote values, so they end here.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from common.errors import BadData

MAX_INFLATED = 2**27  # bytes of a deflated data set; more is a bomb, not an image
MAX_READS = 500_000  # of an inflated data set: two or three an element
PIXEL_DATA = 0x7FE00010
_START_BYTES = 2**15  # most headers are shorter
_PREAMBLE, _PREFIX_END = 128, 132  # bytes

# The kinds of exception that pydicom and its decoders raise on files cut, flipped or made up.
FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BytesLengthException,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,  # with RecursionError: sequences nested by the thousand
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its warnings quote values

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Header:
    """What one file says of itself; asking for what it doesn't say raises BadData by name."""

    name: str  # of the file, for messages
    preamble: bytes  # 128, before the prefix DICM
    meta: Dataset  # group 0002
    syntax: UID  # (0002,0010)
    data: Dataset

    def refuse(self, fault: str) -> BadData:
        """The error that says what is wrong with this file."""
        return BadData(f"{self.name}: {fault}")

    def attempt(self, action: Callable[[], T], fault: str) -> T:
        """What `action` returns; BadData with this fault where pydicom or a decoder fails."""
        try:
            return action()
        except FAULTS:
            raise self.refuse(fault) from None

    def text(self, keyword: str) -> str:
        """The attribute as text, empty where absent."""
        return self.attempt(
            lambda: _text(self.data, keyword), f"{keyword} can't be read; export the file again."
        )

    def numbers(
        self, keyword: str, count: int, *, default: tuple[float, ...] | None = None
    ) -> tuple[float, ...]:
        """The attribute's `count` finite numbers, or `default` where it is absent or empty."""
        return numbers_of(self, self.data, keyword, count, default=default)

    def number(self, keyword: str, *, default: float | None = None) -> float:
        """The attribute's one finite number, or `default` where it is absent or empty."""
        return self.numbers(keyword, 1, default=None if default is None else (default,))[0]


def numbers_of(
    header: Header,
    data: Dataset,
    keyword: str,
    count: int,
    *,
    default: tuple[float, ...] | None = None,
) -> tuple[float, ...]:
    """As `Header.numbers`, for an item of one of the file's sequences."""

    def read() -> tuple[float, ...]:
        numbers = _numbers(data, keyword)
        if default is not None and not numbers:
            return default
        if len(numbers) != count or not all(map(math.isfinite, numbers)):
            raise ValueError
        return numbers

    return header.attempt(read, f"{keyword} is missing or broken; export the file again.")


def _text(data: Dataset, keyword: str) -> str:
    element = data.get_item(_tag(keyword))
    if element is None:
        return ""
    if isinstance(element, RawDataElement) and element.VR in ("CS", "UI") and element.value:
        return str(element.value, "latin-1").strip(" \0")
    value = data.get(keyword)
    return "" if value is None else str(value).strip(" \0")


def _numbers(data: Dataset, keyword: str) -> tuple[float, ...]:
    """The attribute's numbers; the usual ones from their bytes, which saves most of the time."""
    element = data.get_item(_tag(keyword))
    if element is None:
        return ()
    if isinstance(element, RawDataElement) and element.value:
        if element.VR in ("DS", "IS"):
            return tuple(map(float, element.value.strip(b" \0").split(b"\\")))
        if element.VR == "US":
            order = "<" if element.is_little_endian else ">"
            return struct.unpack(f"{order}{len(element.value) // 2}H", element.value)
    value = data.get(keyword)
    if value is None or value == "":
        return ()
    return tuple(map(float, value if isinstance(value, MultiValue | list) else (value,)))


def has(data: Dataset, keyword: str) -> bool:
    """Whether the attribute is there, perhaps empty."""
    return data.get_item(_tag(keyword), keep_deferred=True) is not None


@cache
def _tag(keyword: str) -> BaseTag:
    """The keyword's tag in pydicom's own class, which it looks up several times as fast."""
    return Tag(keyword)


def tags(*keywords: str) -> frozenset[int]:
    """The tags of these keywords; plain integers, since pydicom's own class compares slowly."""
    return frozenset(int(_tag(keyword)) for keyword in keywords)


@contextmanager
def opened(path: Path, only: Collection[int] = (), *, last: int) -> Iterator[Header]:
    """The header of `path`, with pydicom's warnings held back while it is used.

    Args:
        only: tags to keep, by `tags`; all when empty.
        last: no tag above this one is looked at, which saves most of the time.

    Raises BadData where `path` is no DICOM file, is broken or can't be opened.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield _parsed(path, only, last)


def is_dicom(path: Path) -> bool:
    """Whether `path` begins as DICOM files do (PS3.10 7.1); BadData where it can't be opened."""
    try:
        with path.open("rb") as file:
            return _is_prefixed(file.read(_PREFIX_END))
    except OSError:
        raise BadData(f"{path.name}: the file can't be opened; check its permissions.") from None


def one_way(identifier: str) -> str:
    """A one-way key, equal where two identifiers are equal; empty where there is none.

    Nobody can read the identifier in it, but who guesses it can check the guess: mix in a secret
    before a key of a patient is kept.

    >>> one_way("1.2.3") == one_way(" 1.2.3 "), one_way(" ")
    (True, '')
    """
    stripped = identifier.strip(" \0")
    return hashlib.sha256(stripped.encode(errors="replace")).hexdigest()[:16] if stripped else ""


def _parsed(path: Path, only: Collection[int], last: int) -> Header:
    try:
        with path.open("rb") as file:
            return _from_start(path.name, file, only, last) or _whole(path.name, file, only, last)
    except FAULTS:
        raise BadData(
            f"{path.name}: expected a DICOM file; it is none, is cut short or can't be opened."
        ) from None


def _from_start(name: str, file: BinaryIO, only: Collection[int], last: int) -> Header | None:
    """The header by way of the file's first bytes in memory, if they reach to the pixels.

    pydicom asks at every element where it stands, and memory answers faster than a file.
    """
    start = io.BytesIO(file.read(_START_BYTES))
    passed = []
    last_here = min(last, PIXEL_DATA - 1)

    def stop(tag: int, *_: object) -> bool:
        if int(tag) > last_here:
            passed.append(tag)
        return bool(passed)

    try:
        header = _parse(name, start, only, stop)
    except (BadData, *FAULTS):
        return None  # perhaps cut within an element
    if not passed or header.syntax == DeflatedExplicitVRLittleEndian:
        return None
    if last >= PIXEL_DATA:
        file.seek(start.tell())
        implicit, little = header.data.original_encoding
        header.data.update(
            read_dataset(
                file,
                bool(implicit),
                bool(little),
                stop_when=lambda tag, *_: tag > last,
                specific_tags=list(only),
                at_top_level=False,  # or a length may be taken for the kind of value
            )
        )
    return header


def _whole(name: str, file: BinaryIO, only: Collection[int], last: int) -> Header:
    file.seek(0)
    return _parse(name, file, only, lambda tag, *_: tag > last)


def _parse(name: str, source: BinaryIO, only: Collection[int], stop: Callable[..., bool]) -> Header:
    start = source.read(_PREFIX_END)
    if not _is_prefixed(start):
        raise ValueError
    meta = read_dataset(source, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    syntax = UID(_text(meta, "TransferSyntaxUID"))
    if not syntax.is_transfer_syntax:
        raise BadData(f"{name}: TransferSyntaxUID is missing or unknown; export the file again.")
    if syntax == DeflatedExplicitVRLittleEndian:
        source = _inflated(source)
    data = read_dataset(
        source,
        syntax.is_implicit_VR,
        syntax.is_little_endian,
        stop_when=stop,
        specific_tags=list(only),
    )
    return Header(name, start[:_PREAMBLE], meta, syntax, data)


def _is_prefixed(start: bytes) -> bool:
    return start[_PREAMBLE:] == b"DICM"


def _inflated(file: BinaryIO) -> BinaryIO:
    """What follows in `file`, inflated (PS3.5 A.5) but never beyond MAX_INFLATED."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(file.read(), MAX_INFLATED)
    if not inflater.eof:
        raise ValueError
    return _Inflated(data)


class _Inflated(io.BytesIO):
    """Inflated bytes; a few may have become millions of empty elements, so reads are counted."""

    reads_left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise ValueError
        return super().read(size)
