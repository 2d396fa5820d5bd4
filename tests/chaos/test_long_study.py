"""A study of 2,000 rounds while sites come and go: neither memory nor files nor rounds grow."""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROUNDS, EVERY = 2000, 50
SETTLED = 200  # rounds, after which nothing may grow
MORE_BYTES, MORE_FILES = 16 * 2**20, 4


class Held(NamedTuple):
    """What a process holds."""

    resident_bytes: int
    files: int


def held(pid: int) -> Held:
    """As the kernel counts it."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Held(pages * resource.getpagesize(), len(os.listdir(f"/proc/{pid}/fd")))


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_two_thousand_rounds_are_flat(found: Callable[..., Any], told: Any) -> None:
    """Two of three sites leave and come back, again and again; server and third hold no more."""
    chance = random.Random(24)
    federation = found(
        ROUNDS, "federation.min_sites=1", "privacy.enabled=false", offline_after_s=2.0
    )
    for name in federation.names:
        path = federation.site_yaml(name)
        path.write_text(
            path.read_text().replace("min_patients: 1", "min_patients: 1, privacy: optional")
        )
    server = federation.serve()
    sites = {name: federation.join(name) for name in federation.names}
    steady = {"server": server.pid, "east": sites["east"].pid}
    before: dict[str, Held] = {}
    for number in range(EVERY, ROUNDS, EVERY):
        told.wait_until(lambda number=number: federation.rounds() >= number, f"round {number}", 600)
        if number == SETTLED:
            before = {name: held(pid) for name, pid in steady.items()}
        name = chance.choice(["north", "west"])
        if sites[name].poll() is None:
            assert sites[name].stop() == 0
        else:
            sites[name] = federation.join(name)
    after = {name: held(pid) for name, pid in steady.items()}
    assert server.wait(600) == 0
    for name in steady:
        assert after[name].resident_bytes - before[name].resident_bytes <= MORE_BYTES, name
        assert after[name].files - before[name].files <= MORE_FILES, name
    lines = [
        json.loads(line) for line in (federation.out / "history.jsonl").read_text().splitlines()
    ]
    seconds = [line["seconds"] for line in lines if len(line.get("joined", ())) == 1]
    assert statistics.median(seconds[-SETTLED:]) <= 2 * statistics.median(seconds[:SETTLED])
    assert {len(line["joined"]) for line in lines[:-1]} == {1, 2, 3}
