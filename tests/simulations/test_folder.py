"""Where a run may start or go on: never over another, never on other data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image as Pillow

from client.cohort import open_cohort
from common.config import Study, load_study
from common.errors import BadInput
from simulations.folder import check_folder, legs, open_folder, read_split
from simulations.sites import simulated_sites


def study(tiny: Path, *changes: str) -> Study:
    """The tiny study."""
    return load_study(tiny / "study.yaml", changes)


def begin(tiny: Path, out: Path) -> None:
    """Make the run directory of the tiny study, with its data as they are now."""
    wanted = study(tiny)
    cohorts = {
        name: open_cohort(site, wanted, torch.device("cpu"))
        for name, site in simulated_sites(wanted).items()
    }
    open_folder(out, wanted, cohorts)


def refusal(out: Path, wanted: Study, *, resume: bool) -> str:
    """Why a run may not start or go on."""
    with pytest.raises(BadInput) as refused:
        check_folder(out, wanted, resume=resume)
    return str(refused.value)


def test_a_new_or_empty_folder_is_free(tiny: Path, tmp_path: Path) -> None:
    """A run starts where nothing is, also where a kill left one file in its being written."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / ".study.yaml.partial").touch()
    for name in ("new", "empty", "cut"):
        check_folder(tmp_path / name, study(tiny), resume=False)


def test_a_begun_run_goes_on_only_with_resume(tiny: Path, tmp_path: Path) -> None:
    """Without --resume nothing is overwritten; with it the same study goes on."""
    begin(tiny, tmp_path / "run")
    assert "--resume" in refusal(tmp_path / "run", study(tiny), resume=False)
    check_folder(tmp_path / "run", study(tiny), resume=True)


@pytest.mark.parametrize(
    "change", ["seed=2", "training.rounds=3", "simulation.sites.east.exclude=[east-1]"]
)
@pytest.mark.parametrize("resume", [False, True])
def test_another_studys_folder_is_refused(
    tiny: Path, tmp_path: Path, change: str, resume: bool
) -> None:
    """A study that differs in anything that changes numbers needs a folder of its own."""
    begin(tiny, tmp_path / "run")
    text = refusal(tmp_path / "run", study(tiny, change), resume=resume)
    assert "another study" in text


def test_what_is_no_run_is_refused(tiny: Path, tmp_path: Path) -> None:
    """A folder with other things in it, a file, and nothing to resume."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    (tmp_path / "file").touch()
    assert "no empty folder" in refusal(tmp_path / "photos", study(tiny), resume=False)
    assert "no empty folder" in refusal(tmp_path / "file", study(tiny), resume=False)
    assert "no run to go on with" in refusal(tmp_path / "new", study(tiny), resume=True)


@pytest.mark.parametrize("name", ["x" * 300, "file/below"])
def test_a_place_that_can_not_be_is_refused(tiny: Path, tmp_path: Path, name: str) -> None:
    """A name that is too long, or below a file, is a sentence and no traceback."""
    (tmp_path / "file").touch()

    def start() -> None:
        check_folder(tmp_path / name, study(tiny), resume=False)
        begin(tiny, tmp_path / name)

    with pytest.raises(BadInput, match="--out"):
        start()


def test_a_run_does_not_go_on_with_other_data(tiny: Path, tmp_path: Path) -> None:
    """One changed image at one site stops a resume, and the sentence names the site."""
    begin(tiny, tmp_path / "run")
    Pillow.new("L", (32, 32), 9).save(tiny / "images" / "north-0-0.png")
    moved = tiny.rename(tiny.parent / "moved")  # cohorts of a path stay open in a process
    with pytest.raises(BadInput, match="the data of site north have changed"):
        begin(moved, tmp_path / "run")


@pytest.mark.parametrize("name", ["north", "south"])
def test_a_run_does_not_go_on_with_other_sites(tiny: Path, tmp_path: Path, name: str) -> None:
    """A site that left the data, or is new in them, stops a resume too."""
    begin(tiny, tmp_path / "run")
    moved = tiny.rename(tiny.parent / "moved")
    lines = (moved / "manifest.csv").read_text().splitlines(keepends=True)
    if name == "north":
        lines = [line for line in lines if ",north," not in line]
    else:
        lines.append(lines[-1].split(",")[0].replace("-1.", "-0.") + ",new,south,dark,F\n")
        lines.pop(-3)  # the image's own line
    (moved / "manifest.csv").write_text("".join(lines))
    with pytest.raises(BadInput, match=f"the data of site {name} have changed"):
        begin(moved, tmp_path / "run")


def test_moved_data_are_the_same_data(tiny: Path, tmp_path: Path) -> None:
    """What counts is what the files hold, not where they are."""
    begin(tiny, tmp_path / "run")
    moved = tiny.rename(tiny.parent / "moved")
    check_folder(tmp_path / "run", study(moved), resume=True)
    begin(moved, tmp_path / "run")


def test_a_folder_a_fold(tiny: Path, tmp_path: Path) -> None:
    """Without folds the run directory is the one leg; with K folds there are K below it."""
    assert [(leg.fold, leg.out) for leg in legs(study(tiny), tmp_path)] == [(0, tmp_path)]
    found = [(leg.fold, leg.out) for leg in legs(study(tiny, "data.folds=2"), tmp_path)]
    assert found == [(1, tmp_path / "folds" / "1"), (2, tmp_path / "folds" / "2")]


def test_the_split_is_kept_by_key(tiny: Path, tmp_path: Path) -> None:
    """Which patient is on which side is kept under keys; a site that wasn't there has none."""
    begin(tiny, tmp_path / "run")
    split = read_split(tmp_path / "run", "north")
    assert sorted(split.values()) == [0] * 2 + [1] * 6
    assert not any(key.startswith("north") for key in split)
    assert read_split(tmp_path / "run", "nowhere") == {}
