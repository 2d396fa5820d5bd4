"""Random changes of images, compared with plain loops, exact transforms and torchvision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from common.config import Augmentation
from common.data.augmentation import Change, apply, augment, draw, mixup

ALL = Augmentation(
    rotation_deg=20,
    translation=0.1,
    scaling=0.2,
    flips=("horizontal", "vertical"),
    brightness=0.2,
    contrast=0.2,
    noise=0.1,
    elastic_px=2,
    cutout=0.2,
)


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """As a site computes: deterministic algorithms, one thread."""
    before, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    yield
    torch.use_deterministic_algorithms(before)
    torch.set_num_threads(threads)


def random_images(*shape: int, seed: int = 0) -> Tensor:
    """Values spread over [-1, 1]."""
    values = np.random.default_rng(seed).uniform(-1, 1, shape)
    return torch.from_numpy(values.astype(np.float32))


def generators(*seeds: int) -> list[np.random.Generator]:
    """One for each image."""
    return [np.random.default_rng(seed) for seed in seeds]


def one(image: Tensor, change: Change) -> Tensor:
    """A picture (H, W) after a change."""
    return apply(image[None, None], [change])[0, 0]


def moved_plainly(image: NDArray[np.float64], change: Change) -> NDArray[np.float64]:
    """(H, W) by a loop over the pixels: the pixel's place by a matrix that takes the image's
    places to the result's, inverted; four neighbours weighted by hand, -1 outside."""
    height, width = image.shape
    angle = np.radians(change.angle_deg)
    forward = np.eye(3)
    forward[:2, :2] = change.scale * np.array(
        [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    )  # (down, right): clockwise takes what is on the right downwards
    forward[:2, 2] = change.shift_px
    backward = np.linalg.inv(forward)
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    result = np.full((height, width), -1.0)
    for place in np.ndindex(height, width):
        offset = np.array(place) - centre
        if change.elastic_px is not None:
            offset = offset - change.elastic_px[:, place[0], place[1]]
        down, right = (backward @ [*offset, 1])[:2] + centre
        value = 0.0
        for row in (int(np.floor(down)), int(np.floor(down)) + 1):
            for column in (int(np.floor(right)), int(np.floor(right)) + 1):
                weight = (1 - abs(down - row)) * (1 - abs(right - column))
                inside = 0 <= row < height and 0 <= column < width
                value += weight * (image[row, column] if inside else -1)
        result[place] = value
    return result


# Nothing to do


@pytest.mark.parametrize("off", [Augmentation(), Augmentation(mixup=1)])
def test_off_is_the_batch_itself(off: Augmentation) -> None:
    """With all settings off nothing is copied and nothing drawn; mixup is another function's."""
    batch, generator = random_images(1, 1, 8, 8), np.random.default_rng(0)
    assert augment(batch, off, [generator]) is batch
    assert generator.random() == np.random.default_rng(0).random()


def test_an_empty_batch_stays_empty() -> None:
    """Poisson sampling may pick nobody."""
    batch = random_images(0, 1, 8, 8)
    assert augment(batch, ALL, []) is batch


def test_no_change_changes_nothing() -> None:
    """An image that nothing happens to keeps its bits, whatever happens to its neighbours."""
    batch = random_images(2, 1, 8, 8)
    found = apply(batch, [Change(), Change(angle_deg=30, mirrored=(True, True))])
    assert torch.equal(found[0], batch[0])
    assert not torch.equal(found[1], batch[1])


def test_every_image_needs_a_generator() -> None:
    """Too few or too many are a mistake of the caller's, not a broadcast."""
    for count in (1, 3):
        with pytest.raises(ValueError, match=f"each of 2 images; got {count}"):
            augment(random_images(2, 1, 8, 8), ALL, generators(*range(count)))


@pytest.mark.parametrize("shape", [(3, 1, 16, 16), (3, 2, 4, 16, 16)])
def test_the_input_is_left_alone(shape: tuple[int, ...]) -> None:
    """The result is a new tensor of the same shape and type; the batch keeps its values."""
    batch = random_images(*shape)
    found = augment(batch, ALL, generators(1, 2, 3))
    assert torch.equal(batch, random_images(*shape))
    assert (found.shape, found.dtype) == (batch.shape, torch.float32)
    for flips in ((), ("horizontal",)):
        only = Augmentation(cutout=0.5, flips=flips)
        augment(batch, only, generators(1, 2, 3))
        assert torch.equal(batch, random_images(*shape))


# Geometry


@pytest.mark.parametrize(("angle", "quarters"), [(90.0, -1), (-90.0, 1), (180.0, 2)])
def test_quarter_turns_are_exact(angle: float, quarters: int) -> None:
    """A clockwise quarter turn is torch.rot90 (which counts anticlockwise)."""
    image = random_images(9, 9)
    assert torch.allclose(
        one(image, Change(angle_deg=angle)), torch.rot90(image, quarters), atol=1e-5
    )


@pytest.mark.parametrize(("down", "right"), [(3, 0), (0, -2), (-1, 4)])
def test_whole_pixels_are_a_roll(down: int, right: int) -> None:
    """A translation by whole pixels moves them, and what comes in is -1."""
    image = random_images(8, 10)
    expected = torch.roll(image, (down, right), (0, 1))
    expected[: max(down, 0)] = expected[8 + min(down, 0) :] = -1
    expected[:, : max(right, 0)] = expected[:, 10 + min(right, 0) :] = -1
    found = one(image, Change(shift_px=(down, right)))
    assert torch.allclose(found, expected, atol=1e-5)


def test_scaling_enlarges_about_the_centre() -> None:
    """At twice the size, the middle half fills the image as bilinear enlargement has it."""
    image = random_images(8, 8)
    expected = torch.nn.functional.interpolate(
        image[None, None, 2:6, 2:6], scale_factor=2, mode="bilinear"
    )[0, 0]
    found = one(image, Change(scale=2))
    assert torch.allclose(found[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-5)


def test_shrinking_leaves_a_blank_frame() -> None:
    """At half the size, a bright image covers the middle half; the rest is -1."""
    found = one(torch.ones(8, 8), Change(scale=0.5))
    assert torch.allclose(found[2:6, 2:6], torch.ones(4, 4))
    assert found.sum() == pytest.approx(16 - 48, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    angle=st.floats(-180, 180),
    scale=st.floats(0.5, 1.5),
    shift=st.tuples(st.floats(-4, 4), st.floats(-4, 4)),
    elastic=st.booleans(),
)
def test_any_movement_is_the_plain_loop(
    shape: tuple[int, int], angle: float, scale: float, shift: tuple[float, float], elastic: bool
) -> None:
    """All movements at once are those of a loop over the pixels that inverts a matrix."""
    displacement = np.random.default_rng(0).uniform(-1, 1, (2, *shape)) if elastic else None
    image = random_images(*shape)
    change = Change(angle_deg=angle, scale=scale, shift_px=shift, elastic_px=displacement)
    found = one(image, change).numpy()
    assert found == pytest.approx(moved_plainly(image.numpy().astype(float), change), abs=1e-4)


def test_movements_are_torchvisions() -> None:
    """Rotation, scaling and translation together, and elastic alone, are torchvision's, wherever
    no blank is near."""
    from torchvision.transforms.v2 import functional

    image = random_images(1, 33, 25)
    change = Change(angle_deg=17, scale=1.2, shift_px=(2, -3))
    expected = functional.affine(
        image,
        angle=17,
        translate=[-3, 2],
        scale=1.2,
        shear=[0, 0],
        interpolation=functional.InterpolationMode.BILINEAR,
    )
    assert torch.allclose(
        apply(image[None], [change])[0, :, 9:-9, 7:-7], expected[:, 9:-9, 7:-7], atol=1e-4
    )
    change = draw(Augmentation(elastic_px=3), np.random.default_rng(0), (1, 33, 25))
    assert change.elastic_px is not None
    down, right = -change.elastic_px  # torchvision says where from, in halves of the image
    given = torch.from_numpy(np.stack([right * 2 / 25, down * 2 / 33], axis=-1)[None]).float()
    expected = functional.elastic(image, given)
    found = apply(image[None], [change])[0]
    assert torch.allclose(found[:, 4:-4, 4:-4], expected[:, 4:-4, 4:-4], atol=1e-4)


def test_flips_are_exact() -> None:
    """Mirroring moves pixels and computes nothing."""
    image = random_images(5, 7)
    assert torch.equal(one(image, Change(mirrored=(True, False))), image.flip(0))
    assert torch.equal(one(image, Change(mirrored=(False, True))), image.flip(1))
    assert torch.equal(one(image, Change(mirrored=(True, True))), image.flip(0, 1))


# Values


def test_contrast_is_about_the_middle_and_comes_before_brightness() -> None:
    """A pixel x becomes contrast * x + brightness, unclipped."""
    image = random_images(6, 6)
    found = one(image, Change(contrast=1.5, brightness=-0.2))
    assert torch.allclose(found, 1.5 * image - 0.2)


def test_blank_is_minus_one_whatever_the_brightness() -> None:
    """What comes in from outside and what is cut out are -1 in the result."""
    found = one(torch.zeros(8, 8), Change(brightness=0.5, shift_px=(0, 3), cutout_px=(0, 6, 2)))
    assert torch.allclose(found[:, :3], torch.tensor(-1.0))
    assert torch.equal(found[:2, 6:], torch.full((2, 2), -1.0))
    assert torch.allclose(found[2:, 3:], torch.tensor(0.5))


def test_noise_is_gaussian_and_its_own_everywhere() -> None:
    """Mean 0 and the standard deviation asked for; another draw in each pixel and slice."""
    batch = random_images(1, 2, 4, 64, 64)
    noise = augment(batch, Augmentation(noise=0.3), generators(1)) - batch
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(0.3, rel=0.02)
    assert (noise.abs() < 0.3).float().mean() == pytest.approx(0.683, abs=0.01)
    slices = noise.flatten(0, 2).flatten(1)
    assert (torch.corrcoef(slices) - torch.eye(8)).abs().max() < 0.08


def test_cutout_is_one_blank_square_inside() -> None:
    """Its side is the share of the shorter side, and every pixel is cut now and then."""
    batch = torch.ones(400, 1, 8, 12)
    found = augment(batch, Augmentation(cutout=0.5), generators(*range(400)))[:, 0]
    blank = found == -1
    assert set(blank.any(dim=2).sum(dim=1).tolist()) == {4}
    assert set(blank.any(dim=1).sum(dim=1).tolist()) == {4}
    assert set(blank.sum(dim=(1, 2)).tolist()) == {16}
    assert (found[~blank] == 1).all()
    assert blank.any(dim=0).all()
    corners = {tuple(square.nonzero()[0].tolist()) for square in blank}
    assert len(corners) == 5 * 9


# Draws


def test_draws_fill_their_range_and_never_leave_it() -> None:
    """Every setting is the largest change either way: nearly reached, never exceeded."""
    generator = np.random.default_rng(0)
    changes = [draw(ALL, generator, (1, 20, 30)) for _ in range(500)]

    def spread(values: Sequence[float], low: float, high: float) -> None:
        tenths = np.histogram(values, bins=10, range=(low, high))[0]
        assert low <= min(values)
        assert max(values) <= high
        assert tenths.min() > 20
        assert tenths.sum() == 500

    spread([change.angle_deg for change in changes], -20, 20)
    spread([change.scale for change in changes], 0.8, 1.2)
    spread([change.shift_px[0] for change in changes], -2, 2)
    spread([change.shift_px[1] for change in changes], -3, 3)
    spread([change.brightness for change in changes], -0.2, 0.2)
    spread([change.contrast for change in changes], 0.8, 1.2)
    longest = [np.hypot(*change.elastic_px).max() for change in changes]  # type: ignore[misc] # on
    spread(longest, 0, 2)
    for axis in (0, 1):
        assert 200 < sum(change.mirrored[axis] for change in changes) < 300
    assert 80 < sum(all(change.mirrored) for change in changes) < 170


def test_only_the_flips_that_are_named() -> None:
    """Each direction by itself."""
    for flips, axis in ((("vertical",), 0), (("horizontal",), 1)):
        changes = [
            draw(Augmentation(flips=flips), generator, (1, 8, 8))
            for generator in generators(*range(40))
        ]
        assert 5 < sum(change.mirrored[axis] for change in changes) < 35
        assert not any(change.mirrored[1 - axis] for change in changes)


def test_elastic_displacement_is_smooth() -> None:
    """Neighbouring pixels move almost alike: nothing is torn or folded."""
    change = draw(Augmentation(elastic_px=3), np.random.default_rng(0), (1, 64, 64))
    assert change.elastic_px is not None
    for axis in (1, 2):
        assert np.abs(np.diff(change.elastic_px, axis=axis)).max() < 0.5
    assert np.abs(change.elastic_px).max() > 0.1


def test_a_draw_doesn_t_depend_on_the_other_settings() -> None:
    """Turning noise on or elastic off leaves an image's rotation as it was."""
    full = draw(ALL, np.random.default_rng(5), (1, 16, 16))
    for name, value in ALL:
        if value and name != "rotation_deg":
            less = ALL.model_copy(update={name: Augmentation.model_fields[name].default})
            other = draw(less, np.random.default_rng(5), (1, 16, 16))
            assert other.angle_deg == full.angle_deg
            assert other.shift_px == full.shift_px or name == "translation"
            assert name in ("noise", "elastic_px") or np.array_equal(other.noise, full.noise)  # type: ignore[arg-type] # on


# Who depends on whom


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from([(1,), (2, 3)]),
    side=st.integers(8, 19),
    rows=st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True),
    off=st.sets(st.sampled_from([name for name, value in ALL if value]), max_size=6),
)
def test_an_image_doesn_t_depend_on_its_neighbours(
    kind: tuple[int, ...], side: int, rows: list[int], off: set[str]
) -> None:
    """Alone, among all, or in any order among some, an image's result has the same bits: under
    privacy nobody's input tells who else is there."""
    defaults = {name: Augmentation.model_fields[name].default for name in off}
    some = ALL.model_copy(update=defaults)
    batch = random_images(8, *kind, side, side + 3)
    among_all = augment(batch, some, generators(*range(8)))
    among_some = augment(batch[rows], some, generators(*rows))
    assert torch.equal(among_some, among_all[rows])
    alone = augment(batch[rows[:1]], some, generators(rows[0]))
    assert torch.equal(alone[0], among_all[rows[0]])


def test_the_same_generators_give_the_same_bits() -> None:
    """Another generator gives another image."""
    batch = random_images(2, 1, 16, 16)
    first, again = (augment(batch, ALL, generators(1, 2)) for _ in range(2))
    assert torch.equal(first, again)
    other = augment(batch, ALL, generators(1, 3))
    assert torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


def test_all_slices_of_an_exam_move_together() -> None:
    """What is at one place in all slices and planes stays together."""
    picture = random_images(1, 16, 16)
    exam = picture.expand(2, 5, 16, 16)
    found = augment(exam[None], ALL.model_copy(update={"noise": 0.0}), generators(4))[0]
    alone = augment(picture[None], ALL.model_copy(update={"noise": 0.0}), generators(4))[0]
    assert torch.equal(found, alone.expand(2, 5, 16, 16))


def test_padding_slices_stay_as_they_are() -> None:
    """A slice whose pixels are all equal is still that, with the same value; others change."""
    batch = random_images(2, 2, 4, 16, 16)
    batch[0, 0, 3] = -1
    batch[1, 1, :2] = 0.25
    padding = batch.amin(dim=(3, 4)) == batch.amax(dim=(3, 4))
    found = augment(batch, ALL, generators(1, 2))
    assert torch.equal(found[padding], batch[padding])
    assert torch.equal(found.amin(dim=(3, 4)) == found.amax(dim=(3, 4)), padding)
    assert (found[~padding] != batch[~padding]).flatten(1).any(dim=1).all()


def test_a_constant_picture_is_changed() -> None:
    """Pictures have no padding."""
    assert augment(torch.zeros(1, 1, 8, 8), Augmentation(noise=0.1), generators(1)).std() > 0


# Mixup


def test_mixup_without_alpha_is_the_batch_itself() -> None:
    """Nothing is copied and nothing drawn."""
    inputs, targets, generator = random_images(2, 1, 4, 4), torch.eye(2), np.random.default_rng(0)
    found = mixup(inputs, targets, alpha=0, generator=generator)
    assert found[0] is inputs
    assert found[1] is targets
    assert generator.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize("shape", [(6, 1, 4, 4), (6, 3, 2, 4, 4), (6, 10)])
def test_mixup_mixes_images_and_targets_alike(shape: tuple[int, ...]) -> None:
    """Each result is its image and one other, in the proportion that its targets tell."""
    inputs, targets = random_images(*shape), torch.eye(6)
    mixed, proportions = mixup(inputs, targets, alpha=1, generator=np.random.default_rng(3))
    assert torch.allclose(proportions.sum(dim=1), torch.ones(6))
    assert ((proportions > 0).sum(dim=1) <= 2).all()
    assert torch.allclose(mixed, torch.tensordot(proportions, inputs, dims=1), atol=1e-6)
    assert torch.equal(inputs, random_images(*shape))
    assert len({round(value, 4) for value in proportions.diagonal().tolist()}) > 3


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_draws_from_beta(alpha: float) -> None:
    """Proportions have the mean of Beta(alpha, alpha), 1/2, and its variance."""
    generator = np.random.default_rng(0)
    _, proportions = mixup(torch.zeros(1000, 1), torch.eye(1000), alpha=alpha, generator=generator)
    drawn = proportions.diagonal()
    assert drawn.mean() == pytest.approx(0.5, abs=0.04)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


def test_mixed_padding_is_padding() -> None:
    """A slice is empty after mixup where it is in both exams, and only there."""
    inputs = random_images(2, 1, 3, 8, 8)
    inputs[:, 0, 0] = -1
    inputs[1, 0, 1] = -1
    for generator in generators(*range(8)):
        mixed, proportions = mixup(inputs, torch.eye(2), alpha=1, generator=generator)
        if proportions[0, 0] < 1:  # otherwise mixed with itself
            break
    empty = mixed.amin(dim=(3, 4)) == mixed.amax(dim=(3, 4))
    assert proportions[0, 0] < 1
    assert empty[0, 0].tolist() == [True, False, False]
