"""The interstitial-lung-disease data set of Geneva (HUG): its texts, masks and patches."""

from common.data.ild.patches import Region, pixels_inside
from common.data.ild.reader import TREE, TREES, IldReader

__all__ = ["TREE", "TREES", "IldReader", "Region", "pixels_inside"]
