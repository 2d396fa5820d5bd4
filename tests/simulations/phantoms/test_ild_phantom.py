"""The ILD phantom: frozen parameters, the same bytes each time, a tree that the reader reads."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pydicom
import pytest

from common.data.dicom import read_ct_slice
from common.data.ild import IldReader
from common.errors import BadInput
from simulations.phantoms import ild
from simulations.phantoms.ild import PATTERNS, IldPhantom, write_ild_phantom

SMALL = IldPhantom(patients=10, hospitals=2, seed=3)
FROZEN_SHA256 = "0a8775c41f86a82326421fae865c80982cfde68bbd2806309337741908617941"
FROZEN_PATCHES = {  # of SMALL: how many patches, their mean and standard deviation in HU
    "healthy": [70, -919.89, 81.61],
    "emphysema": [73, -923.25, 84.66],
    "ground_glass": [61, -727.35, 102.80],
    "fibrosis": [90, -826.02, 132.21],
    "micronodules": [45, -893.74, 111.61],
}


def digests(folder: Path) -> dict[str, str]:
    """The hash of every file under a folder, by its path inside."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small phantom, written once."""
    folder = tmp_path_factory.mktemp("phantom") / "small"
    write_ild_phantom(folder, SMALL)
    return folder


def patients_of(folder: Path, hospital: int) -> list[Path]:
    """The patient folders of one hospital."""
    return sorted((folder / f"hospital-{hospital}" / "ILD_DB_txtROIs").iterdir())


# --- what is frozen -----------------------------------------------------------------------------


def test_the_default_phantom_is_frozen() -> None:
    """Defaults and constants have the hash under which results are published."""
    assert IldPhantom().sha256 == FROZEN_SHA256


def test_the_images_are_those_of_the_frozen_version(small: Path) -> None:
    """The code makes the images that its version stands for: raise `version` to change them."""
    patches: dict[int, list[np.ndarray]] = {}
    for hospital in (1, 2):
        for source in IldReader().find(small / f"hospital-{hospital}", tuple(PATTERNS)):
            for image in IldReader().decode(source):
                patches.setdefault(image.label, []).append(image.planes[0])
    got = {
        name: [len(patches[i]), np.mean(patches[i], dtype=float), np.std(patches[i], dtype=float)]
        for i, name in enumerate(PATTERNS)
    }
    for name, frozen in FROZEN_PATCHES.items():
        # Within a tenth of a HU: another CPU may round a pixel the other way.
        assert got[name] == pytest.approx(frozen, abs=0.1), name


def test_every_parameter_and_constant_is_in_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another seed or another constant is another phantom."""
    first = IldPhantom().sha256
    assert IldPhantom(seed=1).sha256 != first
    monkeypatch.setattr(ild, "CONSTANTS", ild.Constants(nodule_hu=601.0))
    assert IldPhantom().sha256 != first


def test_the_label_says_when_it_is_larger_than_the_real_set() -> None:
    """Up to 110 patients it is a phantom, above that a scaled phantom."""
    assert IldPhantom(patients=110).label == "phantom"
    assert IldPhantom(patients=111).label == "scaled phantom"


# --- the same bytes -----------------------------------------------------------------------------


def test_the_same_parameters_give_the_same_bytes(small: Path, tmp_path: Path) -> None:
    """Written twice, the trees are equal byte for byte; another seed gives other pixels."""
    write_ild_phantom(tmp_path / "again", SMALL)
    assert digests(tmp_path / "again") == digests(small)


def test_a_patient_does_not_depend_on_the_others(small: Path, tmp_path: Path) -> None:
    """With more patients, the first ones keep their files byte for byte."""
    write_ild_phantom(tmp_path / "more", IldPhantom(patients=11, hospitals=2, seed=3))
    before, after = digests(small), digests(tmp_path / "more")
    for files in (before, after):
        del files["phantom.json"]
    assert len(after) > len(before)
    assert before.items() <= after.items()


def test_another_seed_gives_other_images(small: Path, tmp_path: Path) -> None:
    """No slice is the same under another seed."""
    write_ild_phantom(tmp_path / "other", IldPhantom(patients=2, hospitals=1, seed=4))
    assert not set(digests(small).values()) & set(digests(tmp_path / "other").values())


# --- what is in it ------------------------------------------------------------------------------


def test_every_hospital_has_every_pattern(small: Path) -> None:
    """The reader finds all five patterns at each hospital, 20 to 60 patches a patient."""
    for hospital in (1, 2):
        sources = IldReader().find(small / f"hospital-{hospital}", tuple(PATTERNS))
        images = [image for source in sources for image in IldReader().decode(source)]
        assert {image.label for image in images} == set(range(len(PATTERNS)))
        patients = {source.patient for source in sources}
        assert patients == {folder.name for folder in patients_of(small, hospital)}
        assert 20 <= len(images) / len(patients) <= 60


def test_every_patient_has_several_regions_and_a_slice_without(small: Path) -> None:
    """Each patient has two regions on every slice but one, and more than one pattern."""
    for folder in patients_of(small, 1):
        (text,) = folder.glob("*.txt")
        assert re.fullmatch(r"(CT-INSPIRIUM|Tho)-\d{4}\.txt", text.name)
        slices = re.findall(r"slice_number: (\d+)", text.read_text())
        assert sorted(slices.count(number) for number in "123") == [0, 2, 2]
        assert len(set(re.findall(r"label: (\w+)", text.read_text()))) >= 2


def test_headers_are_fictitious_and_complete(small: Path) -> None:
    """Slices are CT images in HU with a spacing of their own and an obviously made-up name."""
    spacings = set()
    for folder in patients_of(small, 1):
        (text,) = folder.glob("*.txt")
        for number, file in enumerate(sorted(folder.glob("*.dcm")), start=1):
            header = pydicom.dcmread(file)
            assert header.Modality == "CT"
            assert str(header.PatientName).startswith("Phantom^")
            assert header.InstanceNumber == number
            assert f"Series: {header.SeriesInstanceUID}" in text.read_text()
            assert read_ct_slice(file).hounsfield.shape == (256, 256)
        spacings.add(tuple(header.PixelSpacing))
    assert len(spacings) == len(patients_of(small, 1))


def test_no_two_files_share_an_instance_uid(small: Path) -> None:
    """Every slice and mask has a SOPInstanceUID of its own; the trees share their slices."""
    uids: dict[str, set[str]] = {}
    for file in small.rglob("*.dcm"):
        uid = pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID
        assert uid.is_valid
        uids.setdefault(uid, set()).add(hashlib.sha256(file.read_bytes()).hexdigest())
    assert len(uids) == 30 + 30 + 20  # slices, lung masks, label maps of the annotated slices
    assert all(len(contents) == 1 for contents in uids.values())


def test_patterns_attenuate_as_their_descriptions_say(small: Path) -> None:
    """On average emphysema is darker than healthy lung, haze and fibrosis brighter."""
    for hospital in (1, 2):
        means: dict[str, list[float]] = {name: [] for name in PATTERNS}
        for source in IldReader().find(small / f"hospital-{hospital}", tuple(PATTERNS)):
            for image in IldReader().decode(source):
                means[list(PATTERNS)[image.label]].append(float(image.planes[0].mean()))
        hu = {name: np.mean(values) for name, values in means.items()}
        assert hu["emphysema"] < hu["healthy"] < hu["micronodules"]
        assert hu["healthy"] < hu["fibrosis"]
        assert hu["healthy"] < hu["ground_glass"]


# --- trees --------------------------------------------------------------------------------------


def patches_of(folder: Path, reader: IldReader) -> list[tuple[str, int, bytes]]:
    """Patient, label and pixels of each patch of the first hospital."""
    return sorted(
        (source.patient, image.label, image.planes[0].tobytes())
        for source in reader.find(folder / "hospital-1", tuple(PATTERNS))
        for image in reader.decode(source)
    )


def test_all_trees_say_the_same(tmp_path: Path) -> None:
    """Polygons and label maps give the same patches, inside the lung masks, quirks included."""
    write_ild_phantom(tmp_path / "p", IldPhantom(patients=8, hospitals=1))
    found = patches_of(tmp_path / "p", IldReader())
    assert len({patient for patient, *_ in found}) == 8
    for regions in ("text", "masks"):
        for lung_mask in (False, True):
            reader = IldReader(regions=regions, lung_mask=lung_mask)
            assert patches_of(tmp_path / "p", reader) == found


def test_some_patients_have_the_quirks_of_the_real_set(tmp_path: Path) -> None:
    """The seventh patient has two series in folders of their own, the fifth irregular names."""
    write_ild_phantom(tmp_path / "p", IldPhantom(patients=8, hospitals=1))
    texts = tmp_path / "p/hospital-1/ILD_DB_txtROIs"
    by_patient = {
        folder.name: [path.relative_to(folder) for path in sorted(folder.rglob("*.*"))]
        for folder in texts.iterdir()
    }
    two_series = [name for name, paths in by_patient.items() if len({p.parent for p in paths}) > 1]
    odd = [name for name, paths in by_patient.items() if str(paths[0]).startswith("CT--")]
    assert two_series == ["100007"]
    assert odd == ["100005"]


def test_wrong_labels_are_as_many_as_asked_and_move_no_pixel(tmp_path: Path) -> None:
    """At 5 % some regions are called otherwise; slices and outlines are the same."""
    right, wrong = (IldPhantom(patients=10, hospitals=1, label_noise=e) for e in (0.0, 0.05))
    write_ild_phantom(tmp_path / "right", right)
    write_ild_phantom(tmp_path / "wrong", wrong)
    trees = [tmp_path / name / "hospital-1/ILD_DB_txtROIs" for name in ("right", "wrong")]
    slices = [
        {name: digest for name, digest in digests(tree).items() if name.endswith(".dcm")}
        for tree in trees
    ]
    assert slices[0] == slices[1]
    lines = [
        [line for text in sorted(tree.rglob("*.txt")) for line in text.read_text().splitlines()]
        for tree in trees
    ]
    changed = [(a, b) for a, b in zip(*lines, strict=True) if a != b]
    assert all(a.startswith("label: ") and b.startswith("label: ") for a, b in changed)
    assert 1 <= len(changed) <= 8  # of 40
    rng = np.random.default_rng(0)
    called = [ild._label(rng, "healthy", 0.05) for _ in range(10_000)]
    assert called.count("healthy") == pytest.approx(9500, abs=100)
    assert called.count("fibrosis") == pytest.approx(125, abs=50)
    assert all(0.96 < value < 0.98 for value in wrong.ceiling.values())
    assert set(right.ceiling.values()) == {1.0}


# --- hospitals ----------------------------------------------------------------------------------


def mean_noise(folder: Path, hospital: int) -> float:
    """The fine-scale variation in the chest wall's corner, over a hospital's slices."""
    slices = (folder / f"hospital-{hospital}" / "ILD_DB_txtROIs").rglob("*.dcm")
    corners = [read_ct_slice(file).hounsfield[:24, :24] for file in slices]
    return float(np.mean([np.std(corner) for corner in corners]))


def test_hospitals_differ_with_shift_and_only_with_shift(tmp_path: Path) -> None:
    """At shift 1 the hospitals have noise of their own, at shift 0 the same."""
    for shift, differ in ((1.0, True), (0.0, False)):
        folder = tmp_path / str(shift)
        write_ild_phantom(folder, IldPhantom(patients=4, hospitals=2, shift=shift))
        first, second = (mean_noise(folder, hospital) for hospital in (1, 2))
        assert (abs(first / second - 1) > 0.25) == differ


@pytest.mark.parametrize(
    ("phantom", "sizes"),
    [
        (IldPhantom(), [29, 24, 21, 19, 17]),
        (IldPhantom(equal_sizes=True), [22] * 5),
        (IldPhantom(patients=8, hospitals=3, equal_sizes=True), [3, 3, 2]),
        (IldPhantom(patients=4, hospitals=4), [1] * 4),
    ],
)
def test_patients_are_shared_out_over_the_hospitals(phantom: IldPhantom, sizes: list[int]) -> None:
    """Sizes add up to the patients, fall from hospital to hospital, and can be equal."""
    assert ild._hospital_sizes(phantom) == sizes


def test_class_mix_follows_the_hospital_only_with_shift() -> None:
    """With shift each hospital favours a pattern of its own; without, all mixes are even."""
    for hospital in range(5):
        mix = ild._main_patterns(IldPhantom(), hospital, 16)
        assert max(set(mix), key=mix.count) == list(PATTERNS)[hospital]
        assert set(mix) == set(PATTERNS)
        even = ild._main_patterns(IldPhantom(shift=0), hospital, 20)
        assert {name: even.count(name) for name in PATTERNS} == dict.fromkeys(PATTERNS, 4)


# --- writing ------------------------------------------------------------------------------------


def test_writing_again_changes_nothing(small: Path) -> None:
    """A folder that holds this very phantom is left alone; another phantom is refused."""
    before = {file: file.stat().st_mtime_ns for file in small.rglob("*")}
    write_ild_phantom(small, SMALL)
    assert {file: file.stat().st_mtime_ns for file in small.rglob("*")} == before
    with pytest.raises(BadInput, match="this very phantom"):
        write_ild_phantom(small, IldPhantom(patients=10, hospitals=2, seed=4))


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    """Nobody's files are mixed with a phantom's; an empty folder is filled."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("...")
    with pytest.raises(BadInput, match="empty or new"):
        write_ild_phantom(tmp_path / "mine", SMALL)
    (tmp_path / "empty").mkdir()
    write_ild_phantom(tmp_path / "empty", IldPhantom(patients=1, hospitals=1))
    assert (tmp_path / "empty" / "phantom.json").is_file()


def test_an_interruption_leaves_nothing_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When writing stops midway, neither the folder nor any rest of it is there."""
    whole = ild._write_slice

    def interrupted(path: Path, *args: object, slice_number: int) -> None:
        if slice_number == 3:
            raise KeyboardInterrupt
        whole(path, *args, slice_number=slice_number)  # type: ignore[arg-type]

    monkeypatch.setattr(ild, "_write_slice", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_ild_phantom(tmp_path / "phantom", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_all_bad_parameters_are_named_at_once() -> None:
    """Every parameter out of its range is in the one sentence."""
    with pytest.raises(BadInput, match=r"patients .* shift .* got 3"):
        IldPhantom(patients=2, hospitals=3, shift=3)
