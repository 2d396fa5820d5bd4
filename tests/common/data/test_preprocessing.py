"""From a file's pixels to the model's input, compared with plain ways to the same."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as Pillow

from common.config import Intensity, Step
from common.data.preprocessing import Preprocessing, resample_slices
from common.errors import BadData

ROOT = Path(__file__).parents[3]
UNIT = Intensity(low=-1, high=1)  # changes last bits only
STEPS: tuple[Step, ...] = ("min-max", "equalize", "clahe", "median", "gaussian")
SLICE_STEPS = STEPS[1:]


def random_volume(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Values spread over [-1, 1], of other spread and mean in each slice."""
    generator = np.random.default_rng(seed)
    spread = generator.uniform(0.1, 0.4, (shape[0], 1, 1))
    middle = generator.uniform(-0.5, 0.5, (shape[0], 1, 1))
    volume = middle + spread * generator.uniform(-1, 1, shape)
    return volume.astype(np.float32)


def after(step: Step, volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """A square volume after one step, without any resizing."""
    count, size, _ = volume.shape
    found: NDArray[np.float32] = Preprocessing(size, UNIT, (step,), count).apply((volume,))[0]
    return found


def as_before(pixels: NDArray[np.float32], size: int, intensity: Intensity) -> NDArray[np.float32]:
    """What the first release made of a picture (H, W)."""
    low, high = intensity.low, intensity.high
    scaled: Any = (np.clip(pixels, low, high) - low) * (2 / (high - low)) - 1
    height, width = scaled.shape
    if (height, width) == (size, size):
        return np.asarray(scaled, dtype=np.float32)
    scale = size / max(height, width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    resized = Pillow.fromarray(scaled).resize((columns, rows), Pillow.Resampling.BILINEAR)
    top, left = (size - rows) // 2, (size - columns) // 2
    square = np.full((size, size), -1, dtype=np.float32)
    square[top : top + rows, left : left + columns] = np.asarray(resized)
    return square


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    size=st.sampled_from([8, 32]),
    low=st.floats(-2000, 0),
    width_of_window=st.floats(0.1, 3000),
    seed=st.integers(0, 99),
)
def test_pictures_keep_their_bits(
    height: int, width: int, size: int, low: float, width_of_window: float, seed: int
) -> None:
    """A picture is what it was in the first release, to the last bit: old models stay valid."""
    intensity = Intensity(low=low, high=low + width_of_window)
    generator = np.random.default_rng(seed)
    pixels = generator.uniform(-2000, 3000, (1, height, width)).astype(np.float32)
    found = Preprocessing(size, intensity).apply((pixels,))
    assert found.shape == (1, size, size)
    assert found.dtype == np.float32
    assert found[0].tobytes() == as_before(pixels[0], size, intensity).tobytes()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([8, 32]))
def test_any_shape_becomes_a_square(height: int, width: int, size: int) -> None:
    """The image keeps its proportions and lies in the middle, padded with the lowest value."""
    out = Preprocessing(size, UNIT).apply((np.ones((1, height, width), np.float32),))[0]
    inside = out > -1
    rows, columns = inside.any(axis=1).sum(), inside.any(axis=0).sum()
    assert out[inside] == pytest.approx(1)
    assert rows * columns == inside.sum()
    assert rows == max(1, round(height * size / max(height, width)))
    assert columns == max(1, round(width * size / max(height, width)))
    above, left = np.argmax(inside.any(axis=1)), np.argmax(inside.any(axis=0))
    assert abs(2 * above + rows - size) <= 1
    assert abs(2 * left + columns - size) <= 1


def test_shrinking_averages() -> None:
    """Resizing is antialiased: a fine checkerboard becomes grey and no moiré."""
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 2 - 1)[None].astype(np.float32)
    assert np.abs(Preprocessing(8, UNIT).apply((board,))[0, 1:-1, 1:-1]).max() < 0.05


def test_a_very_long_image_fits_into_memory() -> None:
    """One row of four million pixels is not padded to a square of its length."""
    out = Preprocessing(8, UNIT).apply((np.ones((1, 1, 4_000_000), np.float32),))
    assert (out > -1).sum() == 8


def test_a_window_is_linear_and_clips() -> None:
    """Low becomes -1 and high +1, linearly; what lies outside is clipped."""
    ramp = np.linspace(-2000, 1000, 64, dtype=np.float32).reshape(1, 8, 8)
    out = Preprocessing(8, Intensity(low=-1400, high=200)).apply((ramp,))
    assert out == pytest.approx(np.clip((ramp + 1400) / 800 - 1, -1, 1), abs=1e-5)


def test_without_clipping_it_is_the_z_score() -> None:
    """low = mean - sd and high = mean + sd give (x - mean) / sd, far outside too."""
    pixels = np.linspace(-500, 500, 64, dtype=np.float32).reshape(1, 8, 8)
    out = Preprocessing(8, Intensity(low=58 - 49, high=58 + 49, clip=False)).apply((pixels,))
    assert out == pytest.approx((pixels - 58) / 49, abs=1e-5)
    assert out.max() > 9


@pytest.mark.parametrize("shapes", [[(2, 8, 8)], [(1, 8, 8), (1, 8, 8)], [(0, 8, 8)], []])
def test_a_volume_is_no_picture(shapes: list[tuple[int, ...]]) -> None:
    """Where the study reads pictures, anything but one slice is refused with the remedy."""
    planes = tuple(np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(BadData, match=r"expected a picture.*data\.slices"):
        Preprocessing(8, UNIT).apply(planes)


def test_planes_may_differ_in_everything() -> None:
    """Planes of other sizes and lengths become one array, each in its place."""
    planes = tuple(
        np.full(shape, value, np.float32)
        for shape, value in (((5, 9, 9), -0.5), ((12, 20, 20), 0.0), ((1, 4, 4), 0.5))
    )
    preprocessing = Preprocessing(8, UNIT, slices=4)
    out = preprocessing.apply(planes)
    assert out.shape == preprocessing.shape(3) == (3, 4, 8, 8)
    assert out.dtype == np.float32
    assert out.mean(axis=(1, 2, 3)).tolist() == [-0.5, 0.0, 0.5]


def test_large_stacks_are_possible() -> None:
    """36 slices of 448x448, as some of the literature has them."""
    preprocessing = Preprocessing(448, UNIT, ("min-max",), slices=36)
    assert preprocessing.apply((random_volume(20, 64, 64),)).shape == (1, 36, 448, 448)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("step", STEPS)
def test_the_readers_arrays_are_left_alone(step: Step, clip: bool) -> None:
    """What comes in is not written to; a read-only array will do."""
    volume = random_volume(3, 8, 8)
    volume.flags.writeable = False
    intensity = Intensity(low=-1, high=1, clip=clip)
    Preprocessing(8, intensity, (step,), slices=3).apply((volume,))
    assert np.array_equal(volume, random_volume(3, 8, 8))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99),
    count=st.integers(1, 4),
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    steps=st.lists(st.sampled_from(STEPS), max_size=3),
    fit=st.sampled_from(["resample", "pad"]),
)
def test_values_stay_between_the_ends(
    seed: int,
    count: int,
    shape: tuple[int, int],
    steps: list[Step],
    fit: Literal["resample", "pad"],
) -> None:
    """Whatever the steps and the image's size, every value is finite and in [-1, 1]."""
    preprocessing = Preprocessing(8, UNIT, tuple(steps), slices=3, fit=fit)
    out = preprocessing.apply((random_volume(count, *shape, seed=seed),))
    assert np.isfinite(out).all()
    assert out.min() >= -1 - 1e-6
    assert out.max() <= 1 + 1e-6


def test_min_max_is_of_each_plane() -> None:
    """Each volume's own lowest value becomes -1 and its highest +1, exactly; slices share them."""
    planes = (random_volume(4, 8, 8, seed=1), random_volume(4, 8, 8, seed=2))
    out = Preprocessing(8, UNIT, ("min-max",), slices=4).apply(planes)
    for plane, found in zip(planes, out, strict=True):
        low, high = plane.min(), plane.max()
        assert found == pytest.approx((plane - low) / (high - low) * 2 - 1, abs=1e-6)
        assert (found.min(), found.max()) == (-1, 1)
    assert (out.min(axis=(2, 3)) > -1).any()


def test_a_constant_plane_is_blank_after_min_max() -> None:
    """There is no range to stretch: all becomes -1."""
    assert (after("min-max", np.full((3, 8, 8), 0.7, np.float32)) == -1).all()


def test_equalize_makes_values_uniform() -> None:
    """In each slice by itself, the share of pixels below a value is the value's place."""
    volume = np.random.default_rng(0).normal(-0.5, 0.1, (2, 64, 64)).astype(np.float32)
    volume[1] = volume[1] * 2 + 1
    out = after("equalize", volume)
    for pixels, found in zip(volume, out, strict=True):
        ranks = pixels.ravel().argsort().argsort() / pixels.size  # in [0, 1)
        assert np.abs(found.ravel() - (2 * ranks - 1)).max() < 0.06


def test_equalize_and_clahe_are_scikit_images() -> None:
    """Each slice is what scikit-image makes of it alone, stretched to its range first."""
    from skimage.exposure import equalize_adapthist, equalize_hist

    volume = random_volume(3, 32, 32)
    functions: dict[Step, Any] = {"equalize": equalize_hist, "clahe": equalize_adapthist}
    for step, function in functions.items():
        for pixels, found in zip(volume, after(step, volume), strict=True):
            unit = (pixels - pixels.min()) / (pixels.max() - pixels.min())
            assert found == pytest.approx(function(unit) * 2 - 1, abs=1e-3)


def test_clahe_takes_values_beyond_the_ends() -> None:
    """With `clip: false` an image may be anywhere; scikit-image alone would refuse it."""
    volume = random_volume(1, 16, 16)
    far = Preprocessing(16, Intensity(low=-1, high=1, clip=False), ("clahe",), slices=1)
    assert far.apply((volume * 4 + 8,))[0] == pytest.approx(after("clahe", volume), abs=1e-3)


def test_clahe_shows_local_contrast() -> None:
    """A faint texture in a dark corner gains more than the same texture over the whole range."""
    texture = np.indices((64, 64)).sum(axis=0) % 8 / 8
    pixels = np.linspace(-1, 0.9, 64)[:, None] + 0.02 * texture
    out = after("clahe", pixels[None].astype(np.float32))[0]
    assert out[:8].std(axis=1).mean() > 3 * pixels[:8].std(axis=1).mean()


def neighbourhood(
    pixels: NDArray[np.float32], row: int, column: int, *, reach: int
) -> NDArray[np.float32]:
    """A pixel's square neighbourhood, mirrored about the image's edges."""
    padded = np.pad(pixels, reach, mode="symmetric")
    return padded[row : row + 2 * reach + 1, column : column + 2 * reach + 1]


def test_median_is_of_three_by_three() -> None:
    """Each pixel becomes the median of nine of its own slice."""
    volume = random_volume(2, 7, 7)
    out = after("median", volume)
    for number, row, column in np.ndindex(2, 7, 7):
        around = neighbourhood(volume[number], row, column, reach=1)
        assert out[number, row, column] == pytest.approx(np.median(around), abs=1e-6)


def test_gaussian_has_a_sigma_of_one_pixel() -> None:
    """Each pixel becomes the mean of its own slice's, weighted by exp(-d^2 / 2)."""
    volume = random_volume(2, 9, 9)
    out = after("gaussian", volume)
    bell = np.exp(-(np.arange(-4, 5) ** 2) / 2)
    weights = np.outer(bell, bell) / bell.sum() ** 2
    for number, row, column in np.ndindex(2, 9, 9):
        around = neighbourhood(volume[number], row, column, reach=4)
        assert out[number, row, column] == pytest.approx((around * weights).sum(), abs=1e-6)


@pytest.mark.parametrize("step", SLICE_STEPS)
def test_slices_don_t_know_each_other(step: Step) -> None:
    """All steps but min-max give a slice the same bits whatever its neighbours are."""
    volume = random_volume(3, 16, 16)
    other = volume.copy()
    other[0], other[2] = other[2] * 0.5, -1
    assert np.array_equal(after(step, volume)[1], after(step, other)[1])
    assert not np.array_equal(after(step, volume)[0], after(step, other)[0])


@given(st.sampled_from(SLICE_STEPS), st.floats(-1, 1, width=32), st.sampled_from([8, 11]))
@settings(max_examples=40, deadline=None)
def test_constant_slices_stay_constant(step: Step, value: float, size: int) -> None:
    """A slice of equal pixels comes out as it came in, resized or not: it can be left out."""
    volume = random_volume(3, 8, 8)
    volume[1] = value
    out = Preprocessing(size, UNIT, (step,), slices=3).apply((volume,))[0]
    assert (out[1] == out[1, 0, 0]).all()
    assert out[1, 0, 0] == pytest.approx(value, abs=1e-6)
    assert out[0].min() < out[0].max()


def test_steps_are_taken_in_order() -> None:
    """A median before min-max removes the outlier that would set the range after it."""
    volume = random_volume(1, 8, 8) * 0.1
    volume[0, 4, 4] = 1
    median_first = Preprocessing(8, UNIT, ("median", "min-max")).apply((volume,))
    median_last = Preprocessing(8, UNIT, ("min-max", "median")).apply((volume,))
    assert median_first.max() == 1
    assert median_last.max() < 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 40), st.integers(0, 99))
def test_resampling_is_linear_interpolation(length: int, count: int, seed: int) -> None:
    """Each pixel's column along the slices is np.interp at the centres of the new cells."""
    volume = random_volume(length, 2, 3, seed=seed)
    out = resample_slices(volume, count)
    centres = (np.arange(count) + 0.5) * length / count - 0.5
    assert out.shape == (count, 2, 3)
    for row, column in np.ndindex(2, 3):
        expected = np.interp(centres, np.arange(length), volume[:, row, column])
        assert out[:, row, column] == pytest.approx(expected, abs=1e-5)


def test_slices_of_the_right_number_keep_their_bits() -> None:
    """Nothing is interpolated where nothing needs to be."""
    volume = random_volume(12, 8, 8)
    for fit in ("resample", "pad"):
        out = Preprocessing(8, UNIT, slices=12, fit=fit).apply((volume,))
        assert out[0] == pytest.approx(volume, abs=1e-6)
    assert resample_slices(volume, 12) is volume


def test_blank_slices_stay_blank_when_resampled() -> None:
    """Between two equal slices the result has their bits, so padding is still known."""
    volume = np.full((7, 4, 4), np.float32(0.1))
    assert (resample_slices(volume, 5) == np.float32(0.1)).all()


def test_resizing_before_or_after_resampling_is_the_same() -> None:
    """Both are linear, so the cheaper order is free to take."""
    volume = random_volume(11, 20, 20)
    out = Preprocessing(8, UNIT, slices=4).apply((volume,))[0]
    resized = np.concatenate([Preprocessing(8, UNIT).apply((pixels[None],)) for pixels in volume])
    assert out == pytest.approx(resample_slices(resized, 4), abs=1e-6)


def test_pad_keeps_a_volume_s_own_slices() -> None:
    """Own slices come first, with the bits of the resized slices; the rest is -1 throughout."""
    volume = random_volume(3, 12, 12)
    out = Preprocessing(8, UNIT, slices=5, fit="pad").apply((volume,))[0]
    for pixels, found in zip(volume, out[:3], strict=True):
        assert np.array_equal(found, Preprocessing(8, UNIT).apply((pixels[None],))[0])
    assert (out[3:] == -1).all()


def test_pad_resamples_longer_volumes() -> None:
    """There is no room for all slices: none is cut off, all are interpolated."""
    volume = random_volume(9, 8, 8)
    padded, resampled = (
        Preprocessing(8, UNIT, slices=4, fit=fit).apply((volume,)) for fit in ("pad", "resample")
    )
    assert np.array_equal(padded, resampled)


def test_every_field_is_in_the_repr() -> None:
    """The cache's key is made of it: two that differ in any field never share an entry."""
    base = Preprocessing(8, UNIT)
    others = [
        replace(base, image_size_px=9),
        replace(base, intensity=Intensity(low=-1, high=1, clip=False)),
        replace(base, steps=("median",)),
        replace(base, slices=3),
        replace(base, fit="pad"),
    ]
    assert len({repr(one) for one in (base, *others)}) == 6
    assert repr(base) == repr(Preprocessing(8, Intensity(low=-1, high=1)))


def test_slow_libraries_are_not_imported_before_they_are_needed() -> None:
    """A study without steps waits for neither scikit-image nor SciPy."""
    code = "import sys, common.data.preprocessing; print({'skimage', 'scipy'} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, text=True
    )
    assert found.stdout.strip() == "set()"
