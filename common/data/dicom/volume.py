"""Volumes: a series' slices in anatomical order, or the frames of one file (PS3.3 C.7.6.2.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from common.data.dicom.header import PIXEL_DATA, Header, numbers_of, opened, tags
from common.data.dicom.pixels import functional_group, grey_frames, series_key
from common.data.dicom.stored import MAX_VOXELS, PIXEL_TAGS, stored_pixels
from common.errors import BadData

SAME_PLACE_MM = 1e-3  # headers round to about a micrometre
SAME_DIRECTION = 1e-3  # of a unit vector's component

_PLACE_TAGS = tags(
    *("SeriesInstanceUID", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient"),
    *("SliceLocation", "Rows", "Columns", "NumberOfFrames"),
)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a slice or a frame stands, as far as the header says."""

    name: str  # of the file or frame, for messages
    position_mm: tuple[float, ...]  # ImagePositionPatient (0020,0032), or empty
    orientation: tuple[float, ...]  # ImageOrientationPatient (0020,0037), or empty
    location_mm: tuple[float, ...]  # SliceLocation (0020,1041), or empty
    number: tuple[float, ...]  # InstanceNumber (0020,0013), or empty


def read_volume(paths: Sequence[Path]) -> NDArray[np.float32]:
    """(slices, height, width) of one series, one file a slice, or of one multi-frame file.

    Slices ascend towards the patient's left, back or head, whichever is closest to their normal;
    where positions are missing, by SliceLocation, then by InstanceNumber. Values as `read_grey`
    gives them. Raises BadData, naming files and attribute, where slices are of several series or
    sizes, stand at one place, or can't be put in order.
    """
    if not paths:
        raise BadData("a volume needs at least one DICOM file; its folder has none.")
    if len(paths) == 1:
        return _frames(paths[0])
    order, (rows, columns) = _slices_in_order(paths)
    volume = np.empty((len(paths), rows, columns), np.float32)
    for place, index in enumerate(order):
        with opened(paths[index], PIXEL_TAGS, last=PIXEL_DATA) as header:
            volume[place] = grey_frames(header, stored_pixels(header, frames=1))[0]
    return volume


def _slices_in_order(paths: Sequence[Path]) -> tuple[list[int], tuple[int, int]]:
    """Indices of the files from one end of the series to the other, and their (rows, columns)."""
    places, series, sizes = [], [], []
    for path in paths:
        with opened(path, _PLACE_TAGS, last=max(_PLACE_TAGS)) as header:
            if header.number("NumberOfFrames", default=1) != 1:
                raise header.refuse("NumberOfFrames must be 1 beside other slices of a volume.")
            places.append(_place(header, header.name, (header.data,) * 2))
            series.append(series_key(header.text("SeriesInstanceUID")))
            sizes.append((int(header.number("Rows")), int(header.number("Columns"))))
    _agree(paths, series, "SeriesInstanceUID")
    _agree(paths, sizes, "Rows and Columns")
    if len(paths) * sizes[0][0] * sizes[0][1] > MAX_VOXELS:
        raise BadData(f"{paths[0].name}: its series has more than {MAX_VOXELS} pixels.")
    order = _order(places)
    if order is None:
        raise BadData(
            f"{paths[0].name}: ImagePositionPatient, SliceLocation and InstanceNumber are all"
            " missing here or in other slices; the series can't be put in order."
        )
    return order, sizes[0]


def _frames(path: Path) -> NDArray[np.float32]:
    """The frames of one file, in anatomical order if it gives their places, else as stored."""
    with opened(path, PIXEL_TAGS | _PLACE_TAGS, last=PIXEL_DATA) as header:
        grey = grey_frames(header, stored_pixels(header))
        places = [
            _place(
                header,
                f"{header.name}, frame {frame + 1}",
                (
                    functional_group(header, frame, "PlanePositionSequence") or Dataset(),
                    functional_group(header, frame, "PlaneOrientationSequence") or Dataset(),
                ),
            )
            for frame in range(len(grey))
        ]
        order = _order(places) if len(grey) > 1 else None
        return grey if order is None else grey[order]


def _place(header: Header, name: str, items: tuple[Dataset, Dataset]) -> _Place:
    """`items` hold the position and the orientation: the file itself, or groups of a frame."""
    return _Place(
        name,
        numbers_of(header, items[0], "ImagePositionPatient", 3, default=()),
        numbers_of(header, items[1], "ImageOrientationPatient", 6, default=()),
        numbers_of(header, items[0], "SliceLocation", 1, default=()),
        numbers_of(header, items[0], "InstanceNumber", 1, default=()),
    )


def _agree(paths: Sequence[Path], values: Sequence[object], keyword: str) -> None:
    for path, value in zip(paths, values, strict=True):
        if value != values[0]:
            raise BadData(
                f"{paths[0].name} and {path.name}: {keyword} differs; a volume is one series of"
                " slices of one size."
            )


def _order(places: Sequence[_Place]) -> list[int] | None:
    """Indices from one end to the other by the best attribute that all have; None without any."""
    if all(place.position_mm and place.orientation for place in places):
        keyword, along = "ImagePositionPatient", _along_normal(places)
    elif all(place.location_mm for place in places):
        keyword, along = "SliceLocation", [place.location_mm[0] for place in places]
    elif all(place.number for place in places):
        keyword, along = "InstanceNumber", [place.number[0] for place in places]
    else:
        return None
    order = sorted(range(len(places)), key=along.__getitem__)
    for one, other in pairwise(order):
        if along[other] - along[one] < SAME_PLACE_MM:
            raise BadData(
                f"{places[one].name} and {places[other].name}: {keyword} puts both at one place;"
                " a volume has one slice a place."
            )
    return order


def _along_normal(places: Sequence[_Place]) -> list[float]:
    """Positions in mm along the common normal, towards the patient's left, back or head."""
    orientations = np.array([place.orientation for place in places])  # (slices, 6)
    apart = np.abs(orientations - orientations[0]).max(axis=1) > SAME_DIRECTION
    if apart.any():
        raise BadData(
            f"{places[0].name} and {places[int(apart.argmax())].name}: ImageOrientationPatient"
            " differs; a volume's slices are parallel."
        )
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    normal *= np.sign(normal[np.abs(normal).argmax()])
    along: list[float] = (np.array([place.position_mm for place in places]) @ normal).tolist()
    return along
