"""The units' own command lines, without systemd, behind as much of their fence as namespaces give.

Each runs as a user of its own without privileges, in a read-only root with the unit's folders alone
to write; server and site each have a network of their own, joined by a line on which a second
address answers. What systemd does beyond that (the filters of system calls and address families,
control groups) isn't here: `test_units.py` has systemd's own judgement of those.
"""

from __future__ import annotations

import configparser
import ipaddress
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fedward

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "deploy" / "systemd"
SERVER, OTHER, SITE = "192.0.2.10", "192.0.2.11", "192.0.2.20"  # the drop-in's example is SERVER
PORT = 9092
UNIT = {"server": ("fedward-server@.service", "first"), "site": ("fedward-site@.service", "alpha")}
UIDS = {"fedward": 64101, "fedward-server": 64102}
MOST_S = 120.0
ALONE = ("unshare", "--mount", "--propagation", "private")  # mounts that nobody else sees
PYTHON, SOURCE = "/opt/python", "/opt/source"  # not where they are here: that may be below /tmp
SHOWN = {
    "/usr": "/usr",
    sys.base_prefix: sys.base_prefix,
    sys.prefix: PYTHON,
    str(ROOT): SOURCE,
}
# What each unit says and fence.sh does, whatever else the unit says.
ALWAYS = {
    "UMask": "0077",
    "ProtectSystem": "strict",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "ProtectProc": "invisible",
    "ProtectHome": "yes",
    "LimitCORE": "0",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
}
# Looks around from within: who it is, where it can write, whom it can reach, whom it sees.
PROBE = """
import json, os, socket, sys, tempfile
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines())
writes = []
for folder, _, _ in os.walk("/"):
    if folder != "/proc" and not folder.startswith("/proc/"):
        try:
            tempfile.TemporaryFile(dir=folder).close()
            writes.append(folder)
        except OSError:
            pass
reaches = {}
for address in sys.argv[2:]:
    try:
        socket.create_connection((address, int(sys.argv[1])), timeout=5).close()
        reaches[address] = "answers"
    except OSError as error:
        reaches[address] = error.strerror or str(error)
print(json.dumps({
    "uid": os.getuid(), "status": status, "writes": writes, "reaches": reaches,
    "processes": [name for name in os.listdir("/proc") if name.isdigit()], "pid": os.getpid(),
}))
"""


@dataclass(frozen=True)
class Unit:
    """A unit of deploy/systemd with its drop-ins, of one instance."""

    service: configparser.SectionProxy

    @property
    def program(self) -> list[str]:
        """ExecStart."""
        return shlex.split(self.service["ExecStart"])

    @property
    def user(self) -> str:
        """User."""
        return self.service["User"]

    @property
    def writable(self) -> list[str]:
        """The folders that it may write, but for the temporary ones."""
        said = self.service
        paths = said.get("ReadWritePaths", "").split()
        paths += [f"/var/lib/{name}" for name in said.get("StateDirectory", "").split()]
        return paths + [f"/var/cache/{name}" for name in said.get("CacheDirectory", "").split()]

    @property
    def environment(self) -> dict[str, str]:
        """Environment, and what systemd sets for a user."""
        said = dict(one.split("=", 1) for one in self.service["Environment"].split())
        return {"PATH": "/usr/bin:/usr/sbin", "HOME": f"/var/lib/{self.user}", "USER": self.user,
                "OMP_NUM_THREADS": "1", **said}  # fmt: skip

    @property
    def reachable(self) -> list[str]:
        """The addresses to which it has a way: a route each."""
        denied = self.service.get("IPAddressDeny") == "any"
        return self.service.get("IPAddressAllow", "").split() if denied else ["default"]


def read_unit(name: str, instance: str) -> Unit:
    """The later of two settings holds, as in systemd for those that are read here."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    for file in (UNITS / name, *sorted((UNITS / f"{name}.d").glob("*.conf"))):
        parser.read_string(file.read_text().replace("%i", instance))
    return Unit(parser["Service"])


Socket = tuple[str, int]  # what listens: its protocol and port; else the other end


@dataclass(frozen=True)
class Fence:
    """A root for both, and a network for each, in a process that holds it."""

    room: Path
    networks: dict[str, subprocess.Popen[str]]

    def inside(self, who: str, *program: str) -> list[str]:
        """The command that runs a program in a network."""
        return ["nsenter", f"--net=/proc/{self.networks[who].pid}/ns/net", *program]

    def log(self, name: str) -> Path:
        """What a program says."""
        return self.room.parent / f"{name}.log"

    def start(self, who: str, *program: str, log: Path) -> subprocess.Popen[bytes]:
        """A program behind the fence of a unit."""
        unit, script = read_unit(*UNIT[who]), Path(__file__).with_name("fence.sh")
        shown = " ".join(map("=".join, SHOWN.items()))
        fence = (*ALONE, "sh", str(script))
        given = (str(self.room), str(UIDS[unit.user]), shown, " ".join(unit.writable))
        with log.open("wb") as out:
            return subprocess.Popen(
                self.inside(who, *fence, *given, *program),
                env=unit.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def sockets(self, who: str) -> set[Socket]:
        """Those of all processes in a network (proc(5), net/tcp and its like)."""
        found = set()
        for kind in ("tcp", "tcp6", "udp", "udp6"):
            table = Path(f"/proc/{self.networks[who].pid}/net/{kind}").read_text()
            for line in table.splitlines()[1:]:
                (_, own), (address, other) = (end.split(":") for end in line.split()[1:3])
                there = str(ipaddress.IPv4Address(bytes.fromhex(address[-8:])[::-1]))
                # One without another end listens, or, as UDP, takes what comes.
                found.add((kind[:3], int(own, 16)) if other == "0000" else (there, int(other, 16)))
        return found

    def look(self, who: str) -> dict[str, Any]:
        """What a program behind the fence of a unit sees."""
        program, log = (f"{PYTHON}/bin/python", "-c", PROBE), self.log(f"seen-{who}")
        process = self.start(who, *program, str(PORT), SERVER, OTHER, log=log)
        assert process.wait(MOST_S) == 0, log.read_text()
        return dict(json.loads(log.read_text()))


def ran(*command: str) -> None:
    """It must end well."""
    subprocess.run(command, check=True, timeout=MOST_S)


@pytest.fixture(scope="module")
def fence(
    tmp_path_factory: pytest.TempPathFactory, write_tiny: Callable[..., Path]
) -> Iterator[Fence]:
    """The room as the runbook furnishes a machine, and the line between the two networks."""
    needed = ("unshare", "nsenter", "setpriv", "chroot", "mount", "ip")
    missing = [name for name in needed if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(missing) or 'namespaces'}")
    mounts = "mount -t proc none /mnt && mount -t tmpfs none /mnt && mknod /mnt/null c 1 3"
    tried = [*ALONE, "sh", "-c", mounts]
    if subprocess.run(tried, check=False, capture_output=True, timeout=MOST_S).returncode != 0:
        pytest.skip("this user may mount or make no device here, not even in its own namespace")
    with ExitStack() as ends:
        networks = {who: network(ends) for who in ("server", "site")}
        made = Fence(furnish(tmp_path_factory.mktemp("fence"), write_tiny), networks)
        # Made in the server's network with its other end in the site's: the machine's has no part.
        line = ("ip", "link", "add", "line", "type", "veth", "peer", "line", "netns")
        ran(*made.inside("server", *line, str(networks["site"].pid)))
        routes = {"server": ["default"], "site": read_unit(*UNIT["site"]).reachable}
        addresses = {"server": [SERVER, OTHER], "site": [SITE]}
        ran(*made.inside("server", "ip", "link", "set", "lo", "up"))
        for who in networks:
            for address in addresses[who]:
                ran(*made.inside(who, "ip", "address", "add", f"{address}/32", "dev", "line"))
            ran(*made.inside(who, "ip", "link", "set", "line", "up"))
            for route in routes[who]:
                ran(*made.inside(who, "ip", "route", "add", route, "dev", "line"))
        yield made


def network(ends: ExitStack) -> subprocess.Popen[str]:
    """A process that holds a network of its own, where not even loopback is up."""
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo made && exec sleep 3600"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    ends.callback(holder.wait, MOST_S)
    ends.callback(holder.kill)
    assert holder.stdout is not None
    if holder.stdout.readline() != "made\n":
        pytest.skip("this user may make no namespace here")
    return holder


def furnish(home: Path, write_tiny: Callable[..., Path]) -> Path:
    """A federation of one site, its files where the runbook puts them, and a bare system."""
    coordinator, room = home / "coordinator", home / "room"
    coordinator.mkdir()
    (coordinator / "federation.yaml").write_text(f"server: {SERVER}:{PORT}\nsites:\n  alpha:\n")
    with chdir(coordinator):
        words = ["federation", "provision", "federation.yaml", "--trial"]
        assert CliRunner().invoke(fedward.app, words).exit_code == 0
    tiny = write_tiny(room / "srv", {"alpha": 12})
    state = room / "var/lib/fedward"
    shutil.copytree(coordinator / "alpha", state / "alpha")
    file = state / "alpha" / "site.yaml"
    text = file.read_text().replace("\ndata:", "\ndata: /srv/manifest.csv")
    text = text.replace("\ndeclared_patients:", "\ndeclared_patients: 10")
    file.write_text(f"{text}policy: {{approval: automatic}}\n")
    keys = room / "etc/fedward-server"
    keys.mkdir(parents=True)
    for name in ("federation.yaml", "ca.pem", "server.pem", "server.key", "coordinator.key"):
        shutil.copy(coordinator / name, keys / name)
    study = (tiny / "study.yaml").read_text().partition("simulation:")[0]
    study = study.replace("privacy: {", "privacy: {enabled: true, ")
    (keys / "first.yaml").write_text(f"{study}model: {{name: cnn-small}}\n")
    (room / "etc/passwd").write_text(
        "".join(f"{u}:x:{n}:{n}::/var/lib/{u}:/usr/sbin/nologin\n" for u, n in UIDS.items())
    )
    program = room / "opt/fedward/bin/fedward"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {PYTHON}/bin/python {SOURCE}/fedward.py "$@"\n')
    program.chmod(0o755)
    for name in ("dev", "proc", "tmp", "var/tmp", *(there.strip("/") for there in SHOWN.values())):
        (room / name).mkdir(parents=True, exist_ok=True)
    for path in (p for p in Path("/").iterdir() if p.is_symlink() and not (room / p.name).exists()):
        if str(path.readlink()).startswith("usr/"):  # /bin, /lib, /lib64, /sbin
            (room / path.name).symlink_to(path.readlink())
    for who, folders in (("fedward", [state]), ("fedward-server", [keys])):
        unit = next(u for u in (read_unit(*UNIT[n]) for n in UNIT) if u.user == who)
        for folder in (*folders, *(room / name.strip("/") for name in unit.writable)):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
            for path in (folder, *folder.rglob("*")):
                os.chown(path, UIDS[who], UIDS[who])
    return room


@dataclass(frozen=True)
class Ended:
    """What came of a study behind the fences."""

    result: dict[str, Any]
    codes: tuple[int, int]  # of server and site
    seen: dict[str, dict[str, Any]]  # by the probe, while the server listened
    sockets: dict[str, set[Socket]]  # all that were ever seen in the network of each
    journal: dict[str, str]


@pytest.fixture(scope="module")
def ended(fence: Fence) -> Ended:
    """Two private rounds of the units' own command lines."""
    running: dict[str, subprocess.Popen[bytes]] = {}

    def start(who: str) -> subprocess.Popen[bytes]:
        running[who] = fence.start(who, *read_unit(*UNIT[who]).program, log=fence.log(who))
        return running[who]

    try:
        server, end = start("server"), time.monotonic() + MOST_S
        while "listening on" not in fence.log("server").read_text():
            assert server.poll() is None
            assert time.monotonic() < end
            time.sleep(0.2)
        seen = {who: fence.look(who) for who in UNIT}
        site = start("site")
        end = time.monotonic() + MOST_S
        sockets: dict[str, set[Socket]] = {who: set() for who in UNIT}
        while server.poll() is None:
            assert time.monotonic() < end
            for who in UNIT:
                sockets[who] |= fence.sockets(who)
            time.sleep(0.05)
        site.terminate()
        codes = server.wait(MOST_S), site.wait(MOST_S)
    finally:
        for who, process in running.items():
            process.kill()
            process.wait(MOST_S)
            print(fence.log(who).read_text())
    result = json.loads((fence.room / "var/lib/fedward-server/first/result.json").read_text())
    journal = {who: fence.log(who).read_text() for who in UNIT}
    return Ended(result, codes, seen, sockets, journal)


@pytest.mark.parametrize("who", UNIT)
def test_the_fence_is_the_units(who: str) -> None:
    """A unit asks for all that the fence here does, so the fence is no tighter than the unit."""
    service = read_unit(*UNIT[who]).service
    assert {name: service.get(name) for name in ALWAYS} == ALWAYS


def test_server_and_site_finish_a_study(ended: Ended) -> None:
    """The units' command lines need nothing that the fence keeps from them; the site is stopped."""
    assert ended.codes == (0, 0)
    assert ended.result["privacy"]["enabled"]
    assert ended.result["sites"]["alpha"]["rounds_joined"] == 2


def test_the_site_reaches_the_server_alone(ended: Ended) -> None:
    """Another address answers on the same line at the same port, but not to the site."""
    assert ended.seen["server"]["reaches"] == {SERVER: "answers", OTHER: "answers"}
    reaches = ended.seen["site"]["reaches"]
    assert reaches == {SERVER: "answers", OTHER: "Network is unreachable"}


def test_the_ports_are_those_of_the_security_page(ended: Ended) -> None:
    """The site has connections to the server alone and listens nowhere; the server at one port."""
    assert ended.sockets["site"] == {(SERVER, PORT)}
    looking = {SERVER, OTHER}  # what is left of the probe's own connections
    server = {one for one in ended.sockets["server"] if one[0] not in looking}
    assert {one for one in server if one[0] != SITE} == {("tcp", PORT)}


def test_the_journal_names_no_patient(ended: Ended) -> None:
    """Nor an image: what the units write is of studies, rounds and sites."""
    assert "round 2 of 2: 1 of 1 sites" in ended.journal["server"]
    assert f"connected to {SERVER}:{PORT}" in ended.journal["site"]
    assert [said for said in ended.journal.values() if re.search(r"alpha-\d|\.png", said)] == []


@pytest.mark.parametrize(
    ("who", "folders"),
    [
        ("server", ["/var/lib/fedward-server"]),
        ("site", ["/var/lib/fedward/alpha/state", "/var/cache/fedward/alpha"]),
    ],
)
def test_each_writes_its_own_folders_alone(ended: Ended, who: str, folders: list[str]) -> None:
    """State, cache and temporary folders; neither settings, keys and images nor the system."""
    own = [*folders, "/tmp", "/var/tmp"]
    writes = ended.seen[who]["writes"]
    assert set(own) <= set(writes)
    assert [one for one in writes if not any(re.match(rf"{w}(/|$)", one) for w in own)] == []


@pytest.mark.parametrize("who", UNIT)
def test_each_is_nobody_else(ended: Ended, who: str) -> None:
    """Its own user without a capability or a way to one, who sees no other's process."""
    seen = ended.seen[who]
    assert seen["uid"] == UIDS[read_unit(*UNIT[who]).user]
    assert seen["status"]["NoNewPrivs"] == "1"
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    assert {int(seen["status"][name], 16) for name in names} == {0}
    assert "1" not in seen["processes"]
    assert str(seen["pid"]) in seen["processes"]
