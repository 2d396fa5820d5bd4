"""The runbook is true: its commands exist, and its drills, run word by word, do what they say."""

from __future__ import annotations

import datetime
import os
import re
import shlex
import shutil
import socket
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import grpc
import pytest
import typer
from typer.testing import CliRunner

import fedward
from client.keys import open_keys
from client.link import Connection
from client.receipts import Receipts, Refused
from client.receipts_table import verify_receipts
from common.certificates import days_left, fingerprint
from common.config import load_federation, load_site
from common.errors import RefusalCode
from common.signed import public_hex
from server import provision
from server.federation import sign
from server.link import open_link

ROOT = Path(__file__).parents[2]
PAGES = ("deploy/RUNBOOK.md", "deploy/SECURITY.md", "deploy/container/README.md")
RUNBOOK = (ROOT / "deploy" / "RUNBOOK.md").read_text()
NOW = datetime.datetime.now(datetime.UTC)
MOST_S = 60.0
SENT_TO_SERVER = ("federation.yaml", "ca.pem", "server.pem", "server.key", "coordinator.key")


def blocks(heading: str, language: str = "sh") -> list[str]:
    """The code blocks below a heading, up to the next one."""
    (section,) = re.findall(
        rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", RUNBOOK, re.DOTALL | re.MULTILINE
    )
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", section, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in found]


def commands(page: str) -> list[str]:
    """Each `fedward` command that a page of deploy/ shows, in blocks and in its text."""
    text = (ROOT / page).read_text()
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("fedward ")]
    inline = re.findall(r"`(fedward [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return sorted({*lines, *(" ".join(line.split()) for line in inline)})


@pytest.mark.parametrize("line", [line for page in PAGES for line in commands(page)])
def test_each_command_exists(line: str) -> None:
    """Every command that the pages show is one of the command line's, with options it has."""
    words = shlex.split(line)[1:]
    command = typer.main.get_command(fedward.app)
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    if words:  # a text may name the command alone
        command.make_context(command.name, words)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Every relative link of deploy's pages leads to a file, and to a heading that it has."""
    where = ROOT / page
    for target, _, anchor in re.findall(
        r"\]\((?!http)([^)#]*)(#([a-z0-9-]+))?\)", where.read_text()
    ):
        there = where.parent / target if target else where
        assert there.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in heads}
            assert anchor in anchors


@dataclass(frozen=True)
class Federation:
    """The runbook's three places, as folders of one machine."""

    home: Path

    @property
    def coordinator(self) -> Path:
        """The folder with federation.yaml and ca.key."""
        return self.home / "coordinator"

    @property
    def server(self) -> Path:
        """/etc/fedward-server."""
        return self.home / "server"

    @property
    def site(self) -> Path:
        """/var/lib/fedward, with the site alpha in it."""
        return self.home / "site"

    @property
    def file(self) -> Path:
        """The coordinator's federation.yaml."""
        return self.coordinator / "federation.yaml"

    @property
    def asked(self) -> list[str]:
        """What systemd was asked for, in order."""
        log = self.home / "systemctl.log"
        return log.read_text().splitlines() if log.exists() else []

    def run(self, block: str, *, at: Path) -> str:
        """What a block of the runbook says there, line by line; each must end well."""
        said = []
        before = os.umask(0o077)
        try:
            # The folder of the site is another here; all else stands as it is written.
            for line in block.replace("/var/lib/fedward", str(self.site)).splitlines():
                if line.startswith("cd "):
                    at = at / line.removeprefix("cd ")
                else:
                    said.append(self._line(line, at))
        finally:
            os.umask(before)
        return "\n".join(said)

    def _line(self, line: str, at: Path) -> str:
        """`fedward` runs in this process, whose imports are done; systemctl is only noted."""
        program, *words = shlex.split(line)
        if program == "fedward":
            with chdir(at):
                called = CliRunner().invoke(fedward.app, words)
            code, said = called.exit_code, f"{called.output}{called.exception or ''}"
        elif program == "systemctl":
            with (self.home / "systemctl.log").open("a") as log:
                log.write(" ".join(words) + "\n")
            return ""
        else:
            done = subprocess.run(
                shlex.split(line),
                cwd=at,
                check=False,
                capture_output=True,
                text=True,
                timeout=MOST_S,
            )
            code, said = done.returncode, done.stdout + done.stderr
        assert code == 0, f"{line}: {said}"
        return said

    def send_enrolment(self) -> None:
        """What the site sends, where the coordinator keeps it."""
        kept = self.coordinator / "enrolments"
        kept.mkdir(exist_ok=True)
        shutil.copy(self.site / "alpha" / "enrolment.pem", kept / "alpha.pem")

    def send_certificate(self) -> None:
        """What the coordinator sends back."""
        shutil.copy(self.coordinator / "kits/alpha/site.pem", self.site / "alpha" / "site.pem")

    def send_kit(self) -> None:
        """The kit, as it is now."""
        shutil.rmtree(self.site / "kit", ignore_errors=True)
        shutil.copytree(self.coordinator / "kits" / "alpha", self.site / "kit")

    def send_to_server(self, *names: str) -> None:
        """Files that the coordinator brings to the server."""
        self.server.mkdir(exist_ok=True)
        for name in names:
            shutil.copy(self.coordinator / name, self.server / name)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """The server runs, with the files that it has now."""
        with open_link(self.server / "federation.yaml", folder=self.home / "replies"):
            yield


@pytest.fixture(scope="module")
def afternoon(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A federation by the runbook's own first steps; to be copied."""
    made = Federation(tmp_path_factory.mktemp("afternoon"))
    for folder in (made.coordinator, made.site):
        folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (text,) = blocks("First federation", "yaml")
    made.file.write_text(text.replace("lungs.example:9092", address) + f"listen: {address}\n")
    provision_, init, sign_, *_ = blocks("First federation")
    made.run(provision_, at=made.coordinator)
    made.send_kit()
    told = made.run(init, at=made.site)
    made.send_enrolment()
    signed = made.run(sign_, at=made.coordinator)
    (read_out,) = re.findall(r"enrolment +([0-9a-f ]{39})", told)
    assert read_out in signed  # what one side reads out is what the other sees
    assert fingerprint((made.coordinator / "ca.pem").read_bytes()) in told
    made.send_certificate()
    made.send_to_server(*SENT_TO_SERVER)
    return made


@pytest.fixture
def federation(afternoon: Federation, tmp_path: Path) -> Federation:
    """A federation of its own for each drill."""
    copy = Federation(tmp_path / "federation")
    shutil.copytree(afternoon.home, copy.home)
    return copy


def call(site: Path) -> str:
    """How the server answers a site of this folder: `in`, or the gRPC code."""
    link, key = load_site(site / "site.yaml").link, open_keys(site / "state").node
    assert link is not None
    credentials = grpc.ssl_channel_credentials(
        link.authority.read_bytes(), provision._private(key), link.certificate.read_bytes()
    )
    with grpc.secure_channel(link.server, credentials) as channel:
        try:
            Connection(channel, key).activate(heartbeat_s=30)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "in"


def test_the_first_afternoon_ends_with_a_site_that_is_let_in(federation: Federation) -> None:
    """By the runbook's own steps; the site's folder and the server's hold what they should."""
    with federation.serving():
        assert call(federation.site / "alpha") == "in"
    assert not (federation.server / "ca.key").exists()
    for secret in ("server.key", "coordinator.key"):
        assert (federation.server / secret).stat().st_mode & 0o077 == 0


def test_a_sites_certificate_is_renewed(federation: Federation) -> None:
    """One that is nearly over becomes one for 825 days, for the same keys."""
    site = federation.site / "alpha"
    past = NOW - datetime.timedelta(days=800)
    sign(federation.file, federation.coordinator / "enrolments/alpha.pem", now=past)
    federation.send_certificate()
    before, registered = (site / "site.pem").read_bytes(), federation.file.read_text()
    assert days_left(before, now=NOW) < 26
    renew, restart = blocks("A site's certificate is renewed")
    federation.run(renew, at=federation.coordinator)
    federation.send_certificate()
    federation.run(restart, at=federation.home)
    assert federation.asked == ["restart fedward-site@alpha"]
    assert days_left((site / "site.pem").read_bytes(), now=NOW) > 824
    assert federation.file.read_text() == registered
    with federation.serving():
        assert call(site) == "in"


def test_the_servers_certificate_is_renewed(federation: Federation) -> None:
    """Sites go on to the renewed server with the files that they have."""
    folder = federation.coordinator
    for name in ("server.pem", "server.key"):
        (folder / name).unlink()
    provision.make_server_certificate(
        folder, host="127.0.0.1", now=NOW - datetime.timedelta(days=790)
    )
    renew, restart = blocks("The server's certificate is renewed")
    federation.run(renew, at=folder)
    assert days_left((folder / "server.pem").read_bytes(), now=NOW) > 824
    federation.send_to_server("server.pem", "server.key")
    federation.run(restart, at=federation.home)
    assert federation.asked == ["restart fedward-server@first"]
    with federation.serving():
        assert call(federation.site / "alpha") == "in"


def test_a_site_is_revoked(federation: Federation) -> None:
    """It is out of the running server as soon as the file is there."""
    site = federation.site / "alpha"
    (revoke,) = blocks("A site is revoked")
    with federation.serving():
        assert call(site) == "in"
        federation.run(revoke, at=federation.coordinator)
        federation.send_to_server("federation.yaml")
        assert comes_to(lambda: call(site), "PERMISSION_DENIED")


def comes_to(look: Callable[[], str], wanted: str) -> bool:
    """Whether it does, within some seconds."""
    end = time.monotonic() + 20
    while look() != wanted:
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def test_a_sites_key_is_lost(federation: Federation, tmp_path: Path) -> None:
    """A new key gets in, the old one never again; receipts and the other keys are as they were."""
    site = federation.site / "alpha"
    keys = open_keys(site / "state")
    receipts = Receipts(site / "state" / "receipts.jsonl", keys.receipts, lambda _head: None)
    head = receipts.append(Refused(asked=None, code=RefusalCode.INTERNAL), now=NOW)
    thief = tmp_path / "thief"
    shutil.copytree(site, thief)
    stop, make, let_in, start = blocks("A site's key is lost or known to others")
    federation.run(stop, at=federation.home)
    federation.run(make, at=federation.site)
    federation.send_enrolment()
    federation.run(let_in, at=federation.coordinator)
    federation.send_to_server("federation.yaml")
    federation.send_certificate()
    federation.run(start, at=federation.home)
    assert federation.asked == ["stop fedward-site@alpha", "start fedward-site@alpha"]
    with federation.serving():
        assert call(site) == "in"
        assert call(thief) != "in"
    after = open_keys(site / "state")
    assert (after.ledger, public_hex(after.receipts)) == (keys.ledger, public_hex(keys.receipts))
    listed = load_federation(federation.file).sites["alpha"].receipts_key
    assert listed == public_hex(keys.receipts)
    assert verify_receipts(load_site(site / "site.yaml"), str(head)).problems == ()


def test_the_authority_is_rotated(federation: Federation, tmp_path: Path) -> None:
    """Then only who has followed is let in, and nobody trusts what the old authority signed."""
    site, stale = federation.site / "alpha", tmp_path / "stale"
    shutil.copytree(site, stale)
    replace, follow, server, restart = blocks("The authority is rotated")
    federation.run(replace, at=federation.coordinator)
    federation.send_to_server(*SENT_TO_SERVER)
    federation.send_kit()
    told = federation.run(follow, at=federation.site)
    assert fingerprint((federation.coordinator / "ca.pem").read_bytes()) in told
    federation.run(server + restart, at=federation.home)
    assert federation.asked == ["restart fedward-server@first", "restart fedward-site@alpha"]
    with federation.serving():
        assert call(site) == "in"
        assert call(stale) == "UNAVAILABLE"  # it doesn't know this server
        shutil.copy(site / "ca.pem", stale / "ca.pem")
        assert call(stale) == "UNAVAILABLE"  # the server doesn't know its certificate
    with_old_files = {path.name for path in (federation.coordinator / "old").iterdir()}
    assert with_old_files == {"ca.pem", "ca.key"}


def test_a_lost_disk_is_restored(
    federation: Federation, tmp_path: Path, write_tiny: Callable[..., Path]
) -> None:
    """The backup comes back, all that the study may ever take is charged, the site may join."""
    tiny = write_tiny(tmp_path / "tiny", {"alpha": 12})
    site = federation.site / "alpha"
    text = (site / "site.yaml").read_text().replace("declared_patients:", "declared_patients: 10")
    (site / "site.yaml").write_text(text.replace("\ndata:", f"\ndata: {tiny / 'manifest.csv'}"))
    study = (tiny / "study.yaml").read_text().partition("simulation:")[0]
    (federation.site / "first.yaml").write_text(
        study.replace("privacy: {", "privacy: {enabled: true, ")
    )
    save, fetch, restore = blocks("Backup, restore, lost disk")
    federation.run(save, at=federation.home)
    shutil.rmtree(site)
    federation.run(fetch, at=federation.home)
    with federation.serving():
        said = federation.run(restore, at=federation.site)
    assert "The ledger is whole" in said
    assert "Nothing must be mended" in said
    assert federation.asked == [f"{do} fedward-site@alpha" for do in ("stop", "start", "stop")]
    shown = federation.run("fedward privacy ledger show alpha/site.yaml", at=federation.site)
    assert "all (restored)" in shown
