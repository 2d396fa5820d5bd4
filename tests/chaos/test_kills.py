"""Processes that are killed at random, again and again: the study ends as if nobody had been."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(900)  # starting processes is slow on a busy machine
MOST_S = 300.0  # until the next round is done


def killed_on_the_way(
    federation: Any, told: Any, plan: list[tuple[int, str, float]]
) -> list[tuple[int, str, float]]:
    """Run the study; kill whom the plan says and start it again; returns the kills that were.

    The plan: in which round, which process, after which part of the time that the last one took.
    """
    running = {"server": federation.serve()}
    running |= {name: federation.join(name) for name in federation.names}
    done = []
    for number, victim, part in plan:
        told.wait_until(
            lambda number=number: (
                federation.rounds() >= number - 1 or running["server"].poll() is not None
            ),
            f"round {number} begins",
            MOST_S,
        )
        end = time.monotonic() + part * last_round_s(federation.out)
        while time.monotonic() < end and federation.rounds() < number:
            time.sleep(0.01)
        if running["server"].poll() is not None:
            break
        running[victim].kill()
        running[victim] = federation.serve() if victim == "server" else federation.join(victim)
        done.append((number, victim, part))
    assert running.pop("server").wait(2 * MOST_S) == 0
    assert [site.stop() for site in running.values()] == [0] * len(running)
    return done


def last_round_s(run: Path) -> float:
    """How long the last round took; a second where there was none."""
    history = run / "history.jsonl"
    lines = history.read_text().splitlines() if history.exists() else []
    return float(json.loads(lines[-1]).get("seconds", 1.0)) if lines else 1.0


def test_three_kills_change_nothing(found: Callable[..., Any], told: Any) -> None:
    """Server and two sites, each at a seeded moment of a private study: nothing lost or doubled."""
    chance = random.Random(6)
    federation = found(6, "federation.min_sites=3")
    victims = ["server", *chance.sample(federation.names, 2)]
    plan = [
        (number, victim, chance.random())
        for number, victim in zip((2, 3, 5), chance.sample(victims, 3), strict=True)
    ]
    undisturbed = federation.simulate()
    assert killed_on_the_way(federation, told, plan) == plan
    told.same_as_undisturbed(federation, undisturbed)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(3))
def test_kills_in_every_round_change_nothing(
    found: Callable[..., Any], told: Any, seed: int
) -> None:
    """The server and a site, killed in each of ten rounds and while the study closes."""
    chance = random.Random(seed)
    federation = found(10, "federation.min_sites=3")
    plan = [
        (number, victim, chance.random())
        for number in range(1, 12)
        for victim in chance.sample(["server", chance.choice(federation.names)], 2)
    ]
    undisturbed = federation.simulate()
    assert len(killed_on_the_way(federation, told, plan)) >= 20
    told.same_as_undisturbed(federation, undisturbed)


def test_a_server_from_a_backup_pays_nobody_twice(
    found: Callable[..., Any], told: Any, tmp_path: Path
) -> None:
    """Put back as it was after round 2, when it had done 4: sites answer with what they kept."""
    federation = found(5, "federation.min_sites=3")
    undisturbed = federation.simulate()
    server = federation.serve()
    sites = [federation.join(name) for name in federation.names]
    for rounds, copy in ((2, True), (4, False)):
        told.wait_until(lambda rounds=rounds: federation.rounds() >= rounds, f"{rounds} rounds")
        server.kill()
        if copy:
            shutil.copytree(federation.out, tmp_path / "yesterday")
        else:
            shutil.rmtree(federation.out)
            shutil.copytree(tmp_path / "yesterday", federation.out)
        server = federation.serve()
    assert server.wait() == 0
    assert [site.stop() for site in sites] == [0, 0, 0]
    told.same_as_undisturbed(federation, undisturbed)
