"""The data formats that fedward reads: a new one is one file beside this and one case here."""

from __future__ import annotations

from common.config import IldData, ManifestData, MrnetData, SimulatedSite, SiteSettings, Study
from common.data.ild import TREES as ILD_TREES
from common.data.ild import IldReader
from common.data.manifest import ManifestReader
from common.data.mrnet import DIGITS as MRNET_DIGITS
from common.data.mrnet import TREE as MRNET_TREE
from common.data.mrnet import MrnetReader
from common.data.source import Reader


def build_reader(study: Study, site: SiteSettings | SimulatedSite) -> Reader:
    """The reader that a study's `data` asks for, knowing what the site calls things."""
    data, labels = study.data, tuple(sorted(site.labels.items()))
    match data:
        case ManifestData():
            return ManifestReader(
                task=study.task,
                volumes=data.slices is not None,
                columns=tuple(sorted(site.columns.items())),
                labels=labels,
            )
        case IldData():
            return IldReader(
                regions=data.regions,
                patch_size=data.patch_size_px,
                stride=data.stride_px,
                min_share=data.min_share,
                label_rule=data.label_rule,
                random_shift=data.random_shift_px,
                pixel_spacing_mm=data.pixel_spacing_mm,
                lung_mask=data.lung_mask,
                labels=labels,
            )
        case MrnetData():
            return MrnetReader(
                read_planes=data.read_planes,
                crop_px=data.crop_px,
                foreground_crop=data.foreground_crop,
                official_split=data.official_split,
            )


def tree_name(data: IldData | MrnetData) -> str:
    """The name of a format's tree below a hospital's folder."""
    return MRNET_TREE if isinstance(data, MrnetData) else ILD_TREES[data.regions]


def patient_name(data: ManifestData | IldData | MrnetData, name: str) -> str:
    """A patient's (MRNet: an exam's) name as the format's reader gives it.

    People write an exam's number as 7; whoever objects must be found all the same.
    """
    return name.zfill(MRNET_DIGITS) if isinstance(data, MrnetData) else name
