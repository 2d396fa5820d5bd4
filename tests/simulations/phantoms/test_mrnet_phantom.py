"""The MRNet phantom: frozen parameters, real frequencies, the same bytes, lesions that show."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from common.config import MRNET_LABELS
from common.data.mrnet import PLANES, MrnetReader
from common.errors import BadInput
from simulations.phantoms import mrnet
from simulations.phantoms.mrnet import (
    KINDS,
    Exam,
    Findings,
    MrnetPhantom,
    exams_of,
    findings_of,
    volumes,
    write_mrnet_phantom,
)

SMALL = MrnetPhantom(exams=11, hospitals=2, seed=2)
FROZEN_SHA256 = "9c3fac9417edc319a7789b4526654f665d7652222ac1ff61be918a12e81e7e86"
FROZEN_VOLUMES = {  # over all exams of SMALL, by plane: slices, mean, standard deviation
    "axial": [326, 50.89, 36.65],
    "coronal": [330, 119.10, 71.96],
    "sagittal": [357, 45.48, 27.98],
}


def digests(folder: Path) -> dict[str, str]:
    """The hash of every file under a folder, by its path inside."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def volumes_of(folder: Path, plane: str) -> list[np.ndarray]:
    """All volumes of one plane."""
    return [np.load(file) for file in sorted(folder.rglob(f"{plane}/*.npy"))]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small phantom, written once."""
    folder = tmp_path_factory.mktemp("phantom") / "small"
    write_mrnet_phantom(folder, SMALL)
    return folder


# --- what is frozen -----------------------------------------------------------------------------


def test_the_default_phantom_is_frozen() -> None:
    """Defaults and constants have the hash under which results are published."""
    assert MrnetPhantom().sha256 == FROZEN_SHA256


def test_the_volumes_are_those_of_the_frozen_version(small: Path) -> None:
    """The code makes the volumes that its version stands for: raise `version` to change them."""
    for plane, frozen in FROZEN_VOLUMES.items():
        volumes = volumes_of(small, plane)
        voxels = np.concatenate([volume.ravel() for volume in volumes])
        got = [sum(map(len, volumes)), voxels.mean(dtype=float), voxels.std(dtype=float)]
        # Not to the last digit: another CPU may round a voxel the other way.
        assert got == pytest.approx(frozen, abs=0.01), plane


def test_every_parameter_and_constant_is_in_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another seed or another constant is another phantom."""
    first = MrnetPhantom().sha256
    assert MrnetPhantom(seed=1).sha256 != first
    monkeypatch.setattr(mrnet, "CONSTANTS", mrnet.Constants(texture=0.07))
    assert MrnetPhantom().sha256 != first


def test_the_label_says_when_it_is_larger_than_the_real_set() -> None:
    """Up to 1,250 exams it is a phantom, above that a scaled phantom."""
    assert MrnetPhantom(exams=1250).label == "phantom"
    assert MrnetPhantom(exams=1251).label == "scaled phantom"


# --- the same bytes -----------------------------------------------------------------------------


def test_the_same_parameters_give_the_same_bytes(small: Path, tmp_path: Path) -> None:
    """Written twice, the trees are equal byte for byte."""
    write_mrnet_phantom(tmp_path / "again", SMALL)
    assert digests(tmp_path / "again") == digests(small)


def by_exam(folder: Path, phantom: MrnetPhantom) -> dict[tuple[int, ...], list[str]]:
    """The hashes of each exam's three volumes, by what its random streams are keyed by."""
    hashes = digests(folder)
    return {
        (exam.hospital, exam.part, exam.kind, exam.place): sorted(
            digest for name, digest in hashes.items() if Path(name).name == f"{exam.number:04}.npy"
        )
        for exam in exams_of(phantom)
    }


def test_an_exam_does_not_depend_on_the_others(small: Path, tmp_path: Path) -> None:
    """With more exams and label noise, the same ones have the same volumes, under other numbers."""
    more = MrnetPhantom(exams=16, hospitals=2, seed=2, label_noise=0.05)
    write_mrnet_phantom(tmp_path / "more", more)
    before, after = by_exam(small, SMALL), by_exam(tmp_path / "more", more)
    assert len(before) == 11
    assert len(after) == 16
    both = before.keys() & after.keys()
    assert len(both) >= 8
    assert all(before[exam] == after[exam] for exam in both)
    volumes = [digest for digests_ in after.values() for digest in digests_]
    assert len(set(volumes)) == 48  # no two are the same


def test_another_seed_gives_other_volumes(small: Path, tmp_path: Path) -> None:
    """No volume is the same under another seed."""
    write_mrnet_phantom(tmp_path / "other", MrnetPhantom(exams=2, hospitals=1, seed=1))
    files = [digests(folder) for folder in (small, tmp_path / "other")]
    seen, other = ({h for name, h in f.items() if name.endswith(".npy")} for f in files)
    assert not seen & other


# --- which exams --------------------------------------------------------------------------------


def label_counts(phantom: MrnetPhantom) -> list[list[int]]:
    """For train and valid: exams, and those with each label, and with both tears."""
    counts = []
    for part in (0, 1):
        kinds = [list(KINDS.values())[exam.kind] for exam in exams_of(phantom) if exam.part == part]
        by_label = [sum(label in kind for kind in kinds) for label in MRNET_LABELS]
        counts.append([len(kinds), *by_label, sum(len(kind) == 3 for kind in kinds)])
    return counts


def test_frequencies_are_the_published_ones() -> None:
    """1,130 + 120 exams: abnormal, ACL, meniscus and both tears as in the real set."""
    for shift in (0.0, 1.0):
        phantom = MrnetPhantom(shift=shift)
        assert label_counts(phantom) == [[1130, 913, 208, 397, 125], [120, 95, 54, 52, 31]]


def test_fewer_exams_keep_the_shares() -> None:
    """200 exams have the same shares, up to rounding."""
    for small, real in zip(
        label_counts(MrnetPhantom(exams=200)), label_counts(MrnetPhantom()), strict=True
    ):
        assert np.abs(np.array(small) - np.array(real) * 200 / 1250).max() <= 2
    assert sum(row[0] for row in label_counts(MrnetPhantom(exams=200))) == 200


def test_ids_are_ordered_by_label_as_the_published_ones() -> None:
    """Numbers run through; in each hospital's part normals come first, meniscal tears last."""
    exams = list(exams_of(MrnetPhantom(exams=60, hospitals=3)))
    assert [exam.number for exam in exams] == list(range(60))
    assert [exam.part for exam in exams] == sorted(exam.part for exam in exams)
    for hospital in range(3):
        kinds = [exam.kind for exam in exams if exam.hospital == hospital and exam.part == 0]
        assert kinds == sorted(kinds)
        assert {0, 4} <= set(kinds)


@pytest.mark.parametrize(
    ("phantom", "sizes"),
    [
        (MrnetPhantom(), [335, 279, 239, 210, 187]),
        (MrnetPhantom(exams=200), [53, 45, 38, 34, 30]),
        (MrnetPhantom(equal_sizes=True), [250] * 5),
        (MrnetPhantom(exams=11, hospitals=3, equal_sizes=True), [4, 4, 3]),
        (MrnetPhantom(exams=8, hospitals=4), [2] * 4),
    ],
)
def test_exams_are_shared_out_over_the_hospitals(phantom: MrnetPhantom, sizes: list[int]) -> None:
    """Sizes add up to the exams, fall from hospital to hospital, and can be equal."""
    counted = Counter(exam.hospital for exam in exams_of(phantom))
    assert [counted[hospital] for hospital in range(phantom.hospitals)] == sizes


def test_the_mix_follows_the_hospital_only_with_shift() -> None:
    """With shift each hospital has more of its favoured kind than the set; without, as much."""
    for shift in (0.0, 1.0):
        table = sum(mrnet._tables(MrnetPhantom(shift=shift)))
        shares = table / table.sum(axis=1, keepdims=True)
        overall = table.sum(axis=0) / table.sum()
        for hospital in range(5):
            more = shares[hospital, hospital] - overall[hospital]
            assert (more > 0.04) == (shift == 1.0)
            assert shift or np.abs(shares - overall).max() < 0.02


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 12).flatmap(
        lambda hospitals: st.builds(
            MrnetPhantom,
            exams=st.integers(2 * hospitals, 400),
            hospitals=st.just(hospitals),
            shift=st.floats(0, 2),
            equal_sizes=st.booleans(),
        )
    )
)
def test_any_number_of_exams_is_shared_out_exactly(phantom: MrnetPhantom) -> None:
    """No exam is lost or made twice, and no hospital is without any."""
    exams = list(exams_of(phantom))
    assert len(exams) == phantom.exams
    keys = {(exam.hospital, exam.part, exam.kind, exam.place) for exam in exams}
    assert len(keys) == phantom.exams
    assert {exam.hospital for exam in exams} == set(range(phantom.hospitals))


# --- what is in the trees -----------------------------------------------------------------------


def test_the_reader_reads_every_hospital(small: Path) -> None:
    """Each hospital's tree gives its exams with three planes; no number is in two trees."""
    patients = []
    for hospital in (1, 2):
        sources = MrnetReader().find(small / f"hospital-{hospital}", MRNET_LABELS)
        patients += [source.patient for source in sources]
        (image,) = MrnetReader().decode(sources[0])
        assert [plane.shape[1:] for plane in image.planes] == [(224, 224)] * 3
    assert sorted(patients) == [f"{number:04d}" for number in range(11)]


def test_volumes_are_as_published(small: Path) -> None:
    """uint8 (slices, 256, 256), 17 to 61 slices that differ between planes and exams."""
    lengths = []
    for plane in PLANES:
        volumes = volumes_of(small, plane)
        assert len(volumes) == 11
        for volume in volumes:
            assert volume.dtype == np.uint8
            assert volume.shape[1:] == (256, 256)
            assert 17 <= len(volume) <= 61
            assert volume.min() == 0
            assert volume.max() > 150
        lengths.append([len(volume) for volume in volumes])
    assert all(len(set(along)) > 2 for along in lengths)
    assert all(len(set(of_exam)) > 1 for of_exam in zip(*lengths, strict=True))


def test_label_files_have_no_header(small: Path) -> None:
    """Lines `0000,0`, in the order of the numbers, and an ACL or meniscal tear is abnormal."""
    files = sorted(small.rglob("*.csv"))
    assert len(files) == 3 * 3  # 11 exams are too few for a `valid` at both hospitals
    labels: dict[str, dict[str, str]] = {}
    for file in files:
        lines = list(csv.reader(file.read_text().splitlines()))
        assert [exam for exam, _ in lines] == sorted(exam for exam, _ in lines)
        for exam, value in lines:
            labels.setdefault(exam, {})[file.stem.split("-")[1]] = value
    assert len(labels) == 11
    for label in labels.values():
        assert set(label) == set(MRNET_LABELS)
        assert set(label.values()) <= {"0", "1"}
        assert label["abnormal"] == "1" or set(label.values()) == {"0"}


def test_the_card_says_what_it_is(small: Path) -> None:
    """Label, hash and parameters stand beside the trees, with the ceiling."""
    card = json.loads((small / "phantom.json").read_text())
    assert card["label"] == "phantom"
    assert card["sha256"] == SMALL.sha256
    assert card["parameters"]["exams"] == 11
    assert card["auroc_ceiling"] == dict.fromkeys(MRNET_LABELS, 1.0)


# --- label noise --------------------------------------------------------------------------------


def noisy_labels(phantom: MrnetPhantom) -> tuple[np.ndarray, np.ndarray]:
    """True and written labels, (exams, labels), without a volume being made."""
    exams = list(exams_of(phantom))
    true = [[label in list(KINDS.values())[exam.kind] for label in MRNET_LABELS] for exam in exams]
    return np.array(true), np.array([mrnet._written_labels(phantom, exam) for exam in exams])


def test_label_noise_flips_the_share_it_says() -> None:
    """5 % of each label is wrong, in both directions and independently; without noise none."""
    true, written = noisy_labels(MrnetPhantom(exams=10_000, label_noise=0.05))
    wrong = true != written
    assert wrong.mean(axis=0) == pytest.approx([0.05] * 3, abs=0.008)
    for label in range(3):
        for value in (False, True):
            assert wrong[true[:, label] == value, label].mean() == pytest.approx(0.05, abs=0.02)
    assert np.corrcoef(wrong.T)[np.triu_indices(3, 1)] == pytest.approx([0] * 3, abs=0.05)
    true, written = noisy_labels(MrnetPhantom(exams=100))
    assert np.array_equal(true, written)


def test_the_ceiling_is_what_a_perfect_reader_gets() -> None:
    """The formula agrees with the AUROC of the truth against the written labels."""
    phantom = MrnetPhantom(exams=20_000, label_noise=0.05)
    true, written = noisy_labels(phantom)
    for label, name in enumerate(MRNET_LABELS):
        assert phantom.ceiling[name] == pytest.approx(
            auroc(true[:, label].astype(float), written[:, label]), abs=0.01
        )
    assert MrnetPhantom().ceiling == dict.fromkeys(MRNET_LABELS, 1.0)


# --- what lesions do ----------------------------------------------------------------------------


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mann-Whitney's U as a share of the pairs."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    statistic = mannwhitneyu(positive, negative).statistic
    return float(statistic) / (len(positive) * len(negative))


def test_no_single_number_tells_the_label() -> None:
    """Over the exams of one hospital, mean, deviation and slices say little about any label."""
    phantom = MrnetPhantom(exams=60, hospitals=1, shift=0)
    features, labels = [], []
    for exam in exams_of(phantom):
        planes = volumes(phantom, exam, findings_of(phantom, exam)).values()
        features.append([f(volume) for volume in planes for f in (np.mean, np.std, len)])
        labels.append([label in list(KINDS.values())[exam.kind] for label in MRNET_LABELS])
    for scores in np.array(features).T:
        for label in np.array(labels).T:
            assert 0.2 < auroc(scores, label) < 0.8


@pytest.mark.parametrize(
    "findings",
    [
        Findings(fluid=1.5, acl=0.7),
        Findings(fluid=1.5, meniscus=0.7),
        Findings(fluid=6.0),
        Findings(fluid=1.5, marrow=0.7),
        Findings(fluid=1.5, cartilage=0.7),
    ],
    ids=["acl", "meniscus", "effusion", "marrow", "cartilage"],
)
def test_a_lesion_is_local_and_spans_slices(findings: Findings) -> None:
    """The same knee without it differs in few voxels, but in several slices of each plane."""
    exam = Exam(hospital=0, part=0, kind=3, place=0, number=0)
    whole = volumes(SMALL, exam, Findings(fluid=1.5))
    for plane, ill in volumes(SMALL, exam, findings).items():
        assert ill.shape == whole[plane].shape
        changed = np.abs(ill.astype(int) - whole[plane]) > 20
        assert changed.mean() < 0.05
        assert (changed.sum(axis=(1, 2)) > 40).mean() > 0.1, plane


def test_hospitals_differ_with_shift_and_only_with_shift() -> None:
    """At shift 1 the hospitals have noise of their own, at shift 0 the same."""
    for shift, differ in ((1.0, True), (0.0, False)):
        phantom = MrnetPhantom(exams=10, hospitals=2, shift=shift)
        noise = []
        for hospital in (0, 1):
            exam = Exam(hospital=hospital, part=0, kind=0, place=0, number=0)
            axial = volumes(phantom, exam, Findings(fluid=1.0))["axial"]
            noise.append(float(axial[:, :8, :8].mean()))  # air shows nothing but noise
        assert (abs(noise[0] / noise[1] - 1) > 0.25) == differ


# --- writing ------------------------------------------------------------------------------------


def test_writing_again_changes_nothing(small: Path) -> None:
    """A folder that holds this very phantom is left alone; another phantom is refused."""
    before = {file: file.stat().st_mtime_ns for file in small.rglob("*")}
    write_mrnet_phantom(small, SMALL)
    assert {file: file.stat().st_mtime_ns for file in small.rglob("*")} == before
    with pytest.raises(BadInput, match="this very phantom"):
        write_mrnet_phantom(small, MrnetPhantom(exams=11, hospitals=2, seed=1))


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    """Nobody's files are mixed with a phantom's; an empty folder is filled."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("...")
    with pytest.raises(BadInput, match="empty or new"):
        write_mrnet_phantom(tmp_path / "mine", SMALL)
    (tmp_path / "empty").mkdir()
    write_mrnet_phantom(tmp_path / "empty", MrnetPhantom(exams=2, hospitals=1))
    assert (tmp_path / "empty" / "phantom.json").is_file()


def test_an_interruption_leaves_nothing_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When writing stops midway, neither the folder nor any rest of it is there."""
    whole = mrnet._write_exam

    def interrupted(trees: Path, phantom: MrnetPhantom, exam: Exam) -> None:
        if exam.number == 2:
            raise KeyboardInterrupt
        whole(trees, phantom, exam)

    monkeypatch.setattr(mrnet, "_write_exam", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_mrnet_phantom(tmp_path / "phantom", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_all_bad_parameters_are_named_at_once() -> None:
    """Every parameter out of its range is in the one sentence."""
    with pytest.raises(BadInput, match=r"exams .* shift .* got 3; label_noise .* got 0.2"):
        MrnetPhantom(exams=3, hospitals=2, shift=3, label_noise=0.2)
