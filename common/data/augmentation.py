"""Random changes of training images, each from that image alone, computed on whole batches.

Rotation, scaling, translation and elastic displacement (coarse random vectors, smoothly
interpolated: Ronneberger et al., MICCAI 2015, arXiv:1505.04597) are one bilinear `grid_sample` with
a grid for each image. torchvision's functionals give a whole batch one transform, so they would be
a loop, 2.7 times as slow for 16 patches and 1.3 times for 4 exams (one core); they blur twice and
clamp intensities to [0, 1]. The tests compare with them.
Cutout: DeVries & Taylor 2017, arXiv:1708.04552. Mixup: Zhang et al., ICLR 2018, arXiv:1710.09412.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from common.config import Augmentation
from common.data.preprocessing import BLANK

_ELASTIC_POINTS = 4  # random vectors along each side


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What happens to one image, in the order of the fields; by default nothing."""

    contrast: float = 1.0  # factor about 0, the middle of [-1, 1]
    brightness: float = 0.0  # added
    mirrored: tuple[bool, bool] = (False, False)  # upside down, left to right
    scale: float = 1.0  # about the centre; above 1 enlarges
    angle_deg: float = 0.0  # clockwise about the centre
    shift_px: tuple[float, float] = (0.0, 0.0)  # down, right
    elastic_px: NDArray[np.float64] | None = None  # (2, H, W) displacements down, right
    noise: NDArray[np.float32] | None = None  # of the image's shape; added
    cutout_px: tuple[int, int, int] = (0, 0, 0)  # top, left, side


def augment(
    batch: Tensor, settings: Augmentation, generators: Sequence[np.random.Generator]
) -> Tensor:
    """Change each image of a batch at random, all but `mixup`.

    All slices of an exam are changed alike, except that each has its own noise. Slices of volumes
    whose pixels are all equal are padding and stay as they are. What comes in from outside an image
    is blank (-1). Values may leave [-1, 1].

    Formal guarantees:
        An image's result depends, to the last bit, on the image, `settings` and the image's own
        generator alone. With generators that depend on nobody else's presence (they need not be
        secret), a patient's gradients depend on nobody else either, so clipping bounds him as
        without augmentation and epsilon stays the same.

    Args:
        batch: pictures (B, C, H, W) or volumes (B, P, S, H, W), float32.
        settings: the largest changes.
        generators: B of them; drawn from on the CPU, whatever the batch's device.

    Returns:
        A new tensor like `batch`; `batch` itself, and nothing drawn, where all is off.
    """
    if not len(batch) or settings.model_copy(update={"mixup": 0.0}) == Augmentation():
        return batch
    shape = tuple(batch.shape[1:])
    return apply(batch, [draw(settings, generator, shape) for generator in generators])


def draw(settings: Augmentation, generator: np.random.Generator, shape: tuple[int, ...]) -> Change:
    """The change of one image of `shape`: uniform within the settings, flips half of the time.

    What is drawn for one setting is the same whichever others are on.
    """
    *_, height, width = shape
    # One call for nearly all: a site draws for every image of every step.
    unit = generator.uniform(-1, 1, size=9).tolist()
    contrast, brightness, upside_down, sideways, scale, angle, down, right, longest = unit
    top, left = generator.random(2).tolist()
    points = generator.uniform(-1, 1, size=(2, _ELASTIC_POINTS, _ELASTIC_POINTS))
    elastic = noise = None
    if settings.elastic_px:
        elastic = _smooth(points, height, width)
        elastic *= settings.elastic_px * longest / np.hypot(*elastic).max()
    if settings.noise:
        noise = generator.standard_normal(shape, dtype=np.float32)
        noise *= settings.noise
    side = round(settings.cutout * min(height, width))
    return Change(
        contrast=1 + settings.contrast * contrast,
        brightness=settings.brightness * brightness,
        mirrored=(
            "vertical" in settings.flips and upside_down < 0,
            "horizontal" in settings.flips and sideways < 0,
        ),
        scale=1 + settings.scaling * scale,
        angle_deg=settings.rotation_deg * angle,
        shift_px=(settings.translation * height * down, settings.translation * width * right),
        elastic_px=elastic,
        noise=noise,
        cutout_px=(int(top * (height - side + 1)), int(left * (width - side + 1)), side),
    )


def apply(batch: Tensor, changes: Sequence[Change]) -> Tensor:
    """A new tensor like `batch`, each image after its own change; padding slices stay."""
    if len(changes) != len(batch):
        raise ValueError(f"expected a change for each of {len(batch)} images; got {len(changes)}.")
    images = batch.flatten(1, -3)  # (B, C, H, W), of volumes (B, P*S, H, W)

    def each(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=batch.device).view(-1, 1, 1, 1)

    result = images * each([change.contrast for change in changes])
    result += each([change.brightness for change in changes])
    for image, change in zip(result, changes, strict=True):
        axes = [axis for axis, mirrored in zip((-2, -1), change.mirrored, strict=True) if mirrored]
        if axes:
            image.copy_(image.flip(axes))
    # Decided for each image alone: sampled in its old place, an image has other last bits.
    moved = [place for place, change in enumerate(changes) if _moves(change)]
    if moved:
        grid = _grid([changes[place] for place in moved], images)
        # grid_sample finds 0 outside.
        result[moved] = grid_sample(result[moved].sub_(BLANK), grid, align_corners=False) + BLANK
    for image, change in zip(result, changes, strict=True):
        if change.noise is not None:
            image += torch.from_numpy(change.noise).to(batch.device).view_as(image)
        top, left, side = change.cutout_px
        image[:, top : top + side, left : left + side] = BLANK
    if batch.ndim == 5:
        padding = images.amin(dim=(2, 3)) == images.amax(dim=(2, 3))  # (B, P*S)
        result[padding] = images[padding]
    return result.view_as(batch)


def mixup(
    inputs: Tensor, targets: Tensor, alpha: float, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Each image mixed with another of the batch, and its targets in the same proportion.

    Never under privacy, where the configuration refuses it: a mixed image holds two patients, so
    that clipping per patient bounds neither. A padding slice stays one only where both exams have
    padding there.

    Args:
        inputs: (B, ...).
        targets: (B, K) float: one-hot classes, or 0 and 1 for each label.
        alpha: proportions are drawn from Beta(alpha, alpha); 0 mixes and draws nothing.
        generator: of the whole batch.
    """
    if not alpha:
        return inputs, targets
    other = torch.from_numpy(generator.permutation(len(inputs))).to(inputs.device)
    own = generator.beta(alpha, alpha, size=len(inputs))

    def mixed(values: Tensor) -> Tensor:
        share = torch.from_numpy(own).to(values).view(-1, *[1] * (values.ndim - 1))
        return share * values + (1 - share) * values[other]

    return mixed(inputs), mixed(targets)


def _moves(change: Change) -> bool:
    turned = change.scale != 1 or change.angle_deg != 0
    return turned or any(change.shift_px) or change.elastic_px is not None


def _grid(changes: Sequence[Change], images: Tensor) -> Tensor:
    """(B, H, W, 2): where each pixel of the result comes from, as grid_sample has it."""
    height, width = images.shape[-2:]

    def each(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)

    # In pixels from the centre, undoing the changes from the last to the first. No matrix product:
    # its last bits may depend on how many images there are.
    down = (torch.arange(height) - (height - 1) / 2).view(1, -1, 1)
    right = (torch.arange(width) - (width - 1) / 2).view(1, 1, -1)
    still = np.zeros((2, height, width))
    elastic = torch.from_numpy(
        np.stack([still if change.elastic_px is None else change.elastic_px for change in changes])
    )
    down = down - elastic[:, 0] - each([change.shift_px[0] for change in changes])
    right = right - elastic[:, 1] - each([change.shift_px[1] for change in changes])
    angles = [math.radians(change.angle_deg) for change in changes]
    cos, sin = each([math.cos(angle) for angle in angles]), each([math.sin(a) for a in angles])
    scale = each([change.scale for change in changes])
    from_right = (cos * right + sin * down) / scale
    from_down = (cos * down - sin * right) / scale
    return torch.stack([2 * from_right / width, 2 * from_down / height], dim=-1).to(images)


def _smooth(points: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """(2, points, points) as (2, H, W) by cubic splines; the outermost points are the corners."""
    return _spline(height) @ points @ _spline(width).T


@functools.lru_cache(maxsize=8)
def _spline(length: int) -> NDArray[np.float64]:
    """(length, points): the weights of the points."""
    from scipy.interpolate import CubicSpline

    ends = np.linspace(0, 1, _ELASTIC_POINTS)
    weights: NDArray[np.float64] = CubicSpline(ends, np.eye(_ELASTIC_POINTS))(
        np.linspace(0, 1, length)
    )
    return weights
