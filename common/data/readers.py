"""The data formats that fedward reads: a new one is one file beside this and one case here."""

from __future__ import annotations

from common.config import IldData, ManifestData
from common.data.ild import IldReader
from common.data.manifest import ManifestReader
from common.data.source import Reader


def build_reader(data: ManifestData | IldData) -> Reader:
    """The reader that a study's `data` asks for."""
    match data:
        case ManifestData():
            return ManifestReader()
        case IldData():
            return IldReader(
                patch_size=data.patch_size_px, stride=data.stride_px, min_share=data.min_share
            )
