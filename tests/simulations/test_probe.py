"""What each model costs here: steps of the real training loop, each in a process of its own."""

from __future__ import annotations

import os
import signal

import pytest

from common.errors import BadInput
from simulations import probe
from simulations.probe import ENGINES, KINDS, Step, probe_models, text


def test_a_probe_takes_real_steps(capfd: pytest.CaptureFixture[str]) -> None:
    """Every kind of step of a small model and of a frozen one takes time, and memory is counted."""
    told: list[tuple[int, int]] = []
    names = ("cnn-small", "frozen-efficientnet-lite0")
    probes = probe_models(names, on_step=lambda done, total: told.append((done, total)))
    assert told == [(done, 8) for done in range(1, 9)]
    assert tuple(one.name for one in probes) == names
    for one in probes:
        assert tuple(one.steps) == KINDS == ("sgd", "fast", "opacus", "plain")
        assert one.as_json()["private"], one.steps
        assert all(step.seconds > 0 and step.peak_mib >= 0 for step in one.steps.values())
    whole, head = probes
    assert all(whole.steps[kind].seconds > head.steps[kind].seconds for kind in KINDS)
    assert capfd.readouterr().err == ""


def dies(_name: str, _kind: str) -> Step:
    """As when the system kills the process that asks for too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def refuses(_name: str, _kind: str) -> Step:
    """As an engine does that can't train a layer."""
    raise BadInput("no rule for this layer.")


def asks_for_too_much(_name: str, _kind: str) -> Step:
    """As torch does when the system refuses memory."""
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")


@pytest.mark.parametrize(
    ("step", "said"),
    [(dies, "killed"), (refuses, "no rule for this layer."), (asks_for_too_much, "memory")],
)
def test_a_step_that_fails_is_told_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, step: object, said: str
) -> None:
    """A model that doesn't fit, or can't be trained privately, has a sentence for its figures."""
    monkeypatch.setattr(probe, "_step", step)
    (one,) = probe_models(("cnn-small",), on_step=lambda _done, _total: None)
    assert all(said in one.steps[kind].problem for kind in KINDS)
    assert one.as_json()["private"] is False
    shown = text([one])
    assert all(f"cnn-small, {engine}: " in shown for engine in ENGINES)


def test_a_fault_of_our_own_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is no refusal and no lack of memory ends with its traceback."""
    monkeypatch.setattr(probe, "_step", lambda _name, _kind: 1 / 0)
    with pytest.raises(RuntimeError, match="cnn-small"):
        probe_models(("cnn-small",), on_step=lambda _done, _total: None)
    assert "ZeroDivisionError" in capfd.readouterr().err
