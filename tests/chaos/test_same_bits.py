"""Simulation is deployment: one process and processes over gRPC, to the last bit and charge."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

ROUNDS = 20
AWAY = {"east": (7,), "west": (3, 7, 8)}  # rounds; twice by itself, once with another


@pytest.mark.timeout(600)
def test_a_federation_gives_a_simulations_bits_and_charges(
    found: Callable[..., Any], told: Any
) -> None:
    """Private, 20 rounds, sites absent in some: same weights, rounds and ledgers in both."""
    absences = [f"simulation.sites.{name}.absent_rounds={[*AWAY[name]]}" for name in AWAY]
    federation = found(ROUNDS, "federation.min_sites=1", *absences)
    roll = federation.folder / "roll"
    roll.mkdir()
    federation.more["server"] = {"roll": str(roll)}
    simulated = federation.simulate()
    server = federation.serve()
    sites = {name: federation.join(name) for name in federation.names}
    for number in range(1, ROUNDS + 2):  # the last is the closing evaluation
        told.wait_until((roll / f"asks-{number}").exists, f"round {number} begins")
        assert server.poll() is None
        away = [name for name in AWAY if number in AWAY[name]]
        for name in federation.names:
            if name in away:
                assert sites[name].stop() == 0
            elif sites[name].poll() is not None:
                sites[name] = federation.join(name)
        (roll / "away.new").write_text(json.dumps(away))
        (roll / "away.new").rename(roll / f"away-{number}")
    assert server.wait() == 0
    assert [site.stop() for site in sites.values()] == [0, 0, 0]

    told.same_as_undisturbed(federation, simulated)
    rounds = told.history(federation.out)[:ROUNDS]
    for name in federation.names:
        missed = {line["round"] for line in rounds if name in line["left_out"]}
        assert missed == set(AWAY.get(name, ()))
        state = federation.site_yaml(name).parent / "state"
        assert len(told.charged(state)) == ROUNDS - len(missed)


@pytest.mark.parametrize("wire", ["bfloat16", "int8"])
def test_short_updates_give_the_same_bits_too(
    found: Callable[..., Any], told: Any, wire: str
) -> None:
    """Rounded by chance on the way, in both the same way; fewer bytes go up."""
    federation = found(2, "federation.min_sites=3", f"federation.wire={wire}")
    simulated = federation.simulate()
    server = federation.serve()
    sites = [federation.join(name) for name in federation.names]
    assert server.wait() == 0
    assert [site.stop() for site in sites] == [0, 0, 0]
    told.same_as_undisturbed(federation, simulated)
    first = json.loads((federation.out / "history.jsonl").read_text().splitlines()[0])
    assert first["bytes_up"] < 0.6 * first["bytes_down"]
