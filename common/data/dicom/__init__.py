"""The one door to DICOM files: pixels with their meaning, nothing that identifies."""

from common.data.dicom.facts import Facts, read_facts
from common.data.dicom.header import is_dicom
from common.data.dicom.identity import Finding, identity_findings
from common.data.dicom.pixels import (
    AIR_HU,
    Slice,
    SlicePosition,
    read_ct_slice,
    read_grey,
    read_mask,
    read_slice_position,
    series_key,
)
from common.data.dicom.stored import MAX_PIXELS, MAX_VOXELS
from common.data.dicom.volume import read_volume

__all__ = [
    "AIR_HU",
    "MAX_PIXELS",
    "MAX_VOXELS",
    "Facts",
    "Finding",
    "Slice",
    "SlicePosition",
    "identity_findings",
    "is_dicom",
    "read_ct_slice",
    "read_facts",
    "read_grey",
    "read_mask",
    "read_slice_position",
    "read_volume",
    "series_key",
]
