"""What befalls machines: full disks, clocks that are off, certificates that end, cut networks."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(900)  # starting processes is slow on a busy machine
ROOT = Path(__file__).parents[2]


def ran(*command: object) -> str:
    """Run a command of the system; skips where this machine or user can't."""
    try:
        done = subprocess.run(
            [str(one) for one in command], check=False, capture_output=True, text=True, timeout=60
        )
    except FileNotFoundError:
        pytest.skip(f"there is no {command[0]} here")
    if done.returncode:
        pytest.skip(f"{' '.join(map(str, command[:3]))}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of this size at the folder, with what was in it."""
    kept = folder.with_name(folder.name + ".kept")
    folder.rename(kept)
    folder.mkdir(mode=0o700)
    ran("mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", folder)
    try:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        yield
    finally:
        shutil.copytree(folder, kept, dirs_exist_ok=True)
        ran("umount", "-l", folder)
        folder.rmdir()
        kept.rename(folder)


def fill(folder: Path) -> Path:
    """Leave not a byte free; returns the file to remove."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (2**16, 2**8, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
    return path


@pytest.mark.parametrize("where", ["site", "server"])
def test_a_full_disk_stops_a_study_that_goes_on_once_there_is_room(
    found: Callable[..., Any], told: Any, where: str
) -> None:
    """Nobody pays for what could not be kept; the same command ends it with the same bits."""
    federation = found(4, "federation.min_sites=3")
    undisturbed = federation.simulate()
    federation.out.mkdir()
    full = federation.out if where == "server" else federation.site_yaml("west").parent / "state"
    with small_disk(full, "16m"):
        server = federation.serve()
        sites = [federation.join(name) for name in federation.names]
        told.wait_until(lambda: federation.rounds() >= 1, "a round is done")
        filler = fill(full)
        told.wait_until(
            lambda: "No space left" in federation.log("server").read_text() or server.poll(),
            "the server notices",
        )
        filler.unlink()
        if where == "site" or server.wait():  # it may itself have waited for room
            assert server.wait() == 1
            assert federation.serve().wait() == 0
        assert [site.stop() for site in sites] == [0, 0, 0]
        told.same_as_undisturbed(federation, undisturbed)


def test_a_clock_that_is_off_is_said_clearly(found: Callable[..., Any], told: Any) -> None:
    """Ten minutes: the site isn't let in and says why; once it is set, the study ends."""
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not libraries:
        pytest.skip("no libfaketime here: apt-get install faketime")
    federation = found(2, "federation.min_sites=3")
    undisturbed = federation.simulate()
    server = federation.serve()
    others = [federation.join(name) for name in ("east", "north")]
    log = federation.log("west")
    said = log.open("w")
    wrong = subprocess.Popen(
        [sys.executable, ROOT / "fedward.py", "site", "run", federation.site_yaml("west")],
        env=os.environ
        | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "LD_PRELOAD": str(libraries[0]),
            "FAKETIME": "+10m",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        },
        stdout=said,
        stderr=said,
    )
    try:
        told.wait_until(lambda: "clock" in log.read_text(), "the site says it", 180)
        assert wrong.poll() is None
    finally:
        wrong.kill()
        wrong.wait(30)
        said.close()
    assert "refuses this site (the site's clock is 600 s ahead of the server's; set it" in (
        log.read_text()
    )
    assert federation.rounds() == 0
    right = federation.join("west")
    assert server.wait() == 0
    assert [site.stop() for site in (*others, right)] == [0, 0, 0]
    told.same_as_undisturbed(federation, undisturbed)


def test_a_certificate_that_has_ended_is_said_and_renewed(
    found: Callable[..., Any], told: Any
) -> None:
    """A site with it doesn't start, and says what to do; with a new one the study goes on."""
    from client.enrolment import certificate_request
    from client.keys import open_keys
    from server.provision import sign_request

    federation = found(4, "federation.min_sites=3")
    undisturbed = federation.simulate()
    server = federation.serve()
    sites = {name: federation.join(name) for name in federation.names}
    told.wait_until(lambda: federation.rounds() >= 1, "a round is done")
    assert sites["west"].stop() == 0
    home, now = federation.site_yaml("west").parent, datetime.datetime.now(datetime.UTC)
    request = certificate_request(open_keys(home / "state").node, site="west")
    long_ago = now - datetime.timedelta(days=4000)
    for made, code in ((long_ago, 2), (now, None)):
        signed = sign_request(federation.file.parent, request, site="west", now=made)
        (home / "site.pem").write_bytes(signed)
        sites["west"] = federation.join("west")
        if code is not None:
            assert sites["west"].wait() == code
    assert "the certificate has expired on" in federation.log("west").read_text()
    assert server.wait() == 0
    assert [site.stop() for site in sites.values()] == [0, 0, 0]
    told.same_as_undisturbed(federation, undisturbed)


@pytest.fixture
def network() -> Iterator[dict[str, str]]:
    """Two network namespaces, `server` and `site`, joined by a line; their files."""
    holders = []
    try:
        for _ in range(2):
            ready = "ip link set lo up && echo made && exec sleep 3600"
            command = ["unshare", "--net", "sh", "-c", ready]
            if shutil.which("ip") is None:
                pytest.skip("there is no ip here: apt-get install iproute2")
            holder = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            holders.append(holder)
            assert holder.stdout is not None
            if holder.stdout.readline() != "made\n":
                pytest.skip("this user may make no network namespace here")
        one, other = (str(holder.pid) for holder in holders)
        inside = ("nsenter", "--net", "-t")
        line = ("ip", "link", "add", "line", "type", "veth", "peer", "line", "netns", other)
        ran(*inside, one, *line)
        for pid, address in ((one, "192.0.2.1/24"), (other, "192.0.2.2/24")):
            ran(*inside, pid, "ip", "address", "add", address, "dev", "line")
            ran(*inside, pid, "ip", "link", "set", "line", "up")
        yield {"server": f"/proc/{one}/ns/net", "site": f"/proc/{other}/ns/net"}
    finally:
        for holder in holders:
            holder.kill()
            holder.wait(30)


@pytest.mark.parametrize(
    "cut_s", [4.0, pytest.param(60.0, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
def test_a_cut_network_only_takes_time(
    found: Callable[..., Any], told: Any, network: dict[str, str], cut_s: float
) -> None:
    """The line is down in the middle of a round, then up again: nothing lost, nothing doubled."""
    federation = found(4, "federation.min_sites=3")
    federation.move("192.0.2.1")
    federation.more = {name: {"network": network["site"]} for name in federation.names}
    federation.more["server"] = {"network": network["server"]}
    undisturbed = federation.simulate()
    server = federation.serve()
    sites = [federation.join(name) for name in federation.names]
    told.wait_until(lambda: federation.rounds() >= 2, "two rounds are done")
    line = ("nsenter", f"--net={network['site']}", "ip", "link", "set", "line")
    ran(*line, "down")
    time.sleep(cut_s)
    before = federation.rounds()
    ran(*line, "up")
    assert before < 4
    assert server.wait(300) == 0
    assert [site.stop() for site in sites] == [0, 0, 0]
    told.same_as_undisturbed(federation, undisturbed)
