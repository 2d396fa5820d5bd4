"""What a study over the link asks for before anybody waits for it."""

from __future__ import annotations

import json
import logging
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from common.config import load_federation, load_study, to_yaml
from common.errors import BadInput, RunFailed
from common.models import pack, study_model
from server import presence
from server import serve as serving
from server.checkpoint import Checkpoint, append_history, write_checkpoint
from server.link import LinkGrid
from server.serve import serve
from server.watch import View, read_view

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


def test_who_watches_sees_whom_a_server_waits_for(
    tiny: Path, tmp_path: Path, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first moment, and until it gives up; it alone works in the run directory."""
    federation = enrol(tmp_path / "federation", {"a": "", "b": ""}, wait_for_sites_s=60)
    study, out = load_study(tiny / "study.yaml"), tmp_path / "run"
    seen: list[View] = []

    def tell(run_dir: Path, waiting: presence.Waiting) -> None:
        presence.tell(run_dir, waiting)
        seen.append(read_view(out))
        with pytest.raises(BadInput, match="another process is at work"):
            serve(study, federation, out=out)
        raise KeyboardInterrupt

    monkeypatch.setattr(serving, "tell", tell)
    with pytest.raises(KeyboardInterrupt):
        serve(study, federation, out=out)
    (view,) = seen
    assert view.waiting is not None
    assert view.waiting.sites == dict.fromkeys("ab", "has not called yet")
    assert view.waiting.missing == study.federation.min_sites
    assert not read_view(out).at_work
    assert read_view(out).waiting is None


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


def test_a_study_that_has_ended_stays_as_it_is(
    tiny: Path, tmp_path: Path, federation: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same command gives the result that is there, and says so; nothing is written anew."""
    study, out = load_study(tiny / "study.yaml"), tmp_path / "run"
    out.mkdir()
    (out / "study.yaml").write_text(to_yaml(study))
    (out / "result.json").write_text('{"refused_calls": [1]}')
    (out / "report.html").write_text("as it was")
    with caplog.at_level(logging.INFO):
        assert serve(study, federation, out=out) == {"refused_calls": [1]}
    assert "has ended" in caplog.text
    assert (out / "report.html").read_text() == "as it was"


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


def test_signals_pause_and_go_on(
    tiny: Path, tmp_path: Path, federation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGUSR1 pauses and SIGUSR2 goes on; before and after the rounds they end nothing."""
    said: list[str] = []

    def signals(*_given: object, **_more: object) -> None:
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.raise_signal(number)

    def too_early(*_given: object) -> dict[int, Path]:
        signals()
        assert not said
        return {0: tmp_path / "run"}

    monkeypatch.setattr(LinkGrid, "pause", lambda _grid: said.append("pause"))
    monkeypatch.setattr(LinkGrid, "go_on", lambda _grid: said.append("go on"))
    monkeypatch.setattr(serving, "legs_of", too_early)
    monkeypatch.setattr(serving, "_train", signals)
    monkeypatch.setattr(serving, "write_result", too_late)
    before = signal.signal(signal.SIGUSR1, lambda *_: said.append("by default"))
    try:
        with pytest.raises(Ended):
            serve(load_study(tiny / "study.yaml"), federation, out=tmp_path / "run")
        assert said == ["pause", "go on"]
        signal.raise_signal(signal.SIGUSR1)  # and afterwards it means what it meant
        assert said[2:] == ["by default"]
    finally:
        signal.signal(signal.SIGUSR1, before)


class Ended(Exception):
    """The end of a test's study."""


def too_late(*_given: object, **_more: object) -> None:
    """Signals after the rounds."""
    signal.raise_signal(signal.SIGUSR1)
    raise Ended
