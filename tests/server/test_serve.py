"""What a study over the link asks for before anybody waits for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from common.config import load_study, to_yaml
from common.errors import BadInput, RunFailed
from server.serve import serve

Enrol = Callable[..., Path]


@pytest.fixture
def federation(tmp_path: Path, enrol: Enrol) -> Path:
    """A federation of two sites that nobody runs."""
    return enrol(tmp_path / "federation", {"a": "", "b": ""}, wait_for_sites_s=0.2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("federation.min_sites=3", "must be at most 2"),
        ("federation.weights={a: 2, eve: 1}", "got eve"),
        ("model.name=resnet-9000", "resnet-9000"),
    ],
)
def test_what_can_not_work_is_refused_first(
    tiny: Path, tmp_path: Path, federation: Path, change: str, said: str
) -> None:
    """Sites that aren't there and unknown models: nothing is written, nobody waits."""
    study = load_study(tiny / "study.yaml", [change])
    with pytest.raises(BadInput, match=said):
        serve(study, federation, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_directory_is_of_one_study(tiny: Path, tmp_path: Path, federation: Path) -> None:
    """Another study's run, and a folder of something else, are left alone."""
    out = tmp_path / "run"
    out.mkdir()
    other = load_study(tiny / "study.yaml", ["seed=9"])
    (out / "study.yaml").write_text(to_yaml(other))
    study = load_study(tiny / "study.yaml")
    with pytest.raises(BadInput, match="another study"):
        serve(study, federation, out=out)
    (out / "study.yaml").rename(out / "thesis.yaml")
    with pytest.raises(BadInput, match="no empty folder"):
        serve(study, federation, out=out)


def test_a_study_that_nobody_joins_ends_and_can_go_on(
    tiny: Path, tmp_path: Path, federation: Path
) -> None:
    """The bound is kept, the missing are named, and the same command may be given again."""
    study = load_study(tiny / "study.yaml")
    for _ in range(2):
        with pytest.raises(RunFailed, match=r"missing: a, b\."):
            serve(study, federation, out=tmp_path / "run")
