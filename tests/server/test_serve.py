"""What a study over the link asks for before anybody waits for it."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from common.config import load_federation, load_study, to_yaml
from common.errors import BadInput, RunFailed
from common.models import pack, study_model
from server.checkpoint import Checkpoint, append_history, write_checkpoint
from server.serve import _pausable, serve

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


def test_nothing_is_begun_where_nobody_can_be_heard(
    tiny: Path, tmp_path: Path, federation: Path
) -> None:
    """A port that is taken leaves no study.yaml behind; once it is free, the same command works."""
    study = load_study(tiny / "study.yaml")
    host, port = load_federation(federation).listen.split(":")
    with (
        socket.create_server((host, int(port))),
        pytest.raises(BadInput, match="another server running"),
    ):
        serve(study, federation, out=tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(RunFailed, match="missing"):
        serve(study, federation, out=tmp_path / "run")
    assert (tmp_path / "run" / "study.yaml").is_file()


def test_a_study_that_only_has_to_end_waits_for_nobody(
    tiny: Path, tmp_path: Path, enrol: Enrol
) -> None:
    """Killed after its last round it ends with result, report and model, whoever is there."""
    federation = enrol(tmp_path / "federation", {"a": "", "b": ""}, offline_after_s=0.2)
    study, out = load_study(tiny / "study.yaml"), tmp_path / "run"
    weights = pack(study_model(study))
    write_checkpoint(out / "checkpoints", Checkpoint(2, weights), study_sha256=study.sha256)
    for number in (1, 2):
        append_history(out / "history.jsonl", line(number))
    (out / "study.yaml").write_text(to_yaml(study))
    result = serve(study, federation, out=out)
    assert result == json.loads((out / "result.json").read_text())
    assert result["sites"]["a"]["rounds_joined"] == 2
    assert result["sites"]["b"]["left_out"] == {"bad reply: <b>": 2, "not reachable": 1}
    assert result["evaluation"] == {}
    page = (out / "report.html").read_text()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "no statement" in page
    assert (out / "model.safetensors").is_file()
    assert serve(study, federation, out=out)["weights_sha256"] == result["weights_sha256"]


def line(number: int) -> dict[str, object]:
    """A round's, as the history has it."""
    return {
        "round": number,
        "fold": 0,
        "weights_sha256": "0" * 64,
        "metrics": {"a": {"loss": 0.5}},
        "heads": {},
        "left_out": {"b": "bad reply: <b>"},
        "bytes_up": 1,
        "bytes_down": 1,
        "joined": ["a"],
        "seconds": 0.1,
    }


def test_signals_pause_and_go_on() -> None:
    """SIGUSR1 pauses, SIGUSR2 goes on, and afterwards both mean what they meant."""
    said: list[str] = []

    class Grid:
        def pause(self) -> None:
            said.append("pause")

        def go_on(self) -> None:
            said.append("go on")

    before = signal.getsignal(signal.SIGUSR1)
    with _pausable(Grid()):  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR2)
    assert said == ["pause", "go on"]
    assert signal.getsignal(signal.SIGUSR1) == before
