"""The network part of `fedward site check`: it finds what would keep the site out, and says so."""

from __future__ import annotations

import datetime
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import client.link
from client.enrolment import certificate_request
from client.keys import open_keys
from client.link_check import Looked, _through_proxy, look
from client.state import lock_state
from common.config import load_federation, load_site
from server import provision
from server.link import LinkGrid, open_link

Enrol = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine's environment says."""
    for name in ("https_proxy", "http_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def federation(tmp_path: Path, enrol: Enrol) -> Path:
    """federation.yaml of a federation of one site."""
    return enrol(tmp_path / "federation", {"alpha": ""})


def looked(federation: Path, **change: object) -> list[Looked]:
    """What the site finds."""
    site = load_site(federation.parent / "alpha" / "site.yaml")
    assert site.link is not None
    state = federation.parent / "alpha" / "state"
    node_key = open_keys(state).node
    return list(look(site.link.model_copy(update=change), node_key, state=state))


def test_all_is_well(federation: Path, tmp_path: Path) -> None:
    """Certificates, port, TLS, key and clock, each in a sentence; the site is not said to be in."""
    with open_link(federation, folder=tmp_path / "replies") as grid:
        found = looked(federation)
        assert grid._boxes.here() == ()
        assert not grid.refused()
    assert not any(one.mend or one.attention for one in found)
    said = " ".join(one.sentence for one in found)
    for expected in ("certificate", "TLS", "node key", "clock is 0 s"):
        assert expected in said


def test_a_running_site_is_not_said_to_have_left(
    federation: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside `fedward site run`, which holds the state folder, the check only says it is there."""
    caplog.set_level("INFO")
    with open_link(federation, folder=tmp_path / "replies"):
        with lock_state(federation.parent / "alpha" / "state"):
            assert not any(one.mend or one.attention for one in looked(federation))
        assert "has left" not in caplog.text
        looked(federation)
        assert "site alpha has left" in caplog.text


@pytest.mark.parametrize("shown", ["soon", "nan", "", "1e999"])
def test_a_clock_that_is_none_is_not_compared(
    federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str
) -> None:
    """Whatever a server says in its header, the check goes on without it."""

    class Odd(float):
        def __format__(self, _how: str) -> str:
            return shown

    clock = SimpleNamespace(**vars(time) | {"time": lambda: Odd(time.time())})
    monkeypatch.setattr("server.link.time", clock)
    with open_link(federation, folder=tmp_path / "replies"):
        found = looked(federation)
    assert found[-1].sentence == "the server knows this site by its certificate and node key."
    assert not any(one.mend or one.attention for one in found)


@pytest.mark.parametrize(
    ("server", "named", "through"),
    [
        ("fl.example.org:9092", {}, False),
        ("fl.example.org:9092", {"https_proxy": "http://p:1"}, True),
        ("fl.example.org:9092", {"https_proxy": ""}, False),
        ("fl.example.org:9092", {"grpc_proxy": "p", "no_proxy": "a, .EXAMPLE.org"}, False),
        ("fl.example.org:9092", {"http_proxy": "p", "no_proxy": "example.com,,"}, True),
        (
            "fl.example.org:9092",
            {"http_proxy": "p", "no_proxy": "example.org", "no_grpc_proxy": "x"},
            True,
        ),
        ("10.1.2.3:9092", {"http_proxy": "p", "no_proxy": "10.1.0.0/16"}, False),
        ("10.2.2.3:9092", {"http_proxy": "p", "no_proxy": "10.1.0.0/16"}, True),
        ("[::1]:9092", {"http_proxy": "p", "no_proxy": "::1"}, False),
    ],
)
def test_the_way_is_the_one_that_grpc_takes(
    monkeypatch: pytest.MonkeyPatch, server: str, named: dict[str, str], through: bool
) -> None:
    """A proxy that no_proxy excepts the server from isn't gone through."""
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    assert _through_proxy(server) is through


def test_a_server_beside_the_proxy_is_looked_at(
    federation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Name and port are tried where gRPC goes there directly."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    assert "HTTP proxy" in looked(federation)[1].sentence
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    assert "nobody answers" in worst(looked(federation))


def worst(found: list[Looked]) -> str:
    """The last sentence, which must be one that says what is wrong."""
    assert found[-1].mend or found[-1].attention
    assert not any(one.mend for one in found[:-1])
    return found[-1].sentence


def test_nobody_answers(federation: Path) -> None:
    """A server that isn't there and a name that nobody knows."""
    assert "nobody answers" in worst(looked(federation))
    assert "isn't known here" in worst(looked(federation, server="fl.invalid:9092"))


def test_another_server_answers(federation: Path, tmp_path: Path, enrol: Enrol) -> None:
    """Another authority's certificate, one for another name, and what speaks no TLS."""
    other = enrol(tmp_path / "other", {"alpha": ""})
    with open_link(other, folder=tmp_path / "replies"):
        address = load_federation(other).listen
        assert "no certificate of the federation's authority" in worst(
            looked(federation, server=address)
        )
    with open_link(federation, folder=tmp_path / "replies"):
        address = load_federation(federation).listen.replace("127.0.0.1", "localhost")
        assert "for that name" in worst(looked(federation, server=address))
    with socket.create_server(("127.0.0.1", 0)) as plain:
        plain.settimeout(0.1)
        client_address = f"127.0.0.1:{plain.getsockname()[1]}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("client.link_check._CALL_S", 0.5)
            assert "nobody answers" in worst(looked(federation, server=client_address))


def test_the_server_knows_another_key(federation: Path, tmp_path: Path) -> None:
    """A site that was revoked, and a certificate for another key."""
    path = federation.read_text()
    federation.write_text(path.rstrip()[:-1] + ", revoked: true}\n")
    with open_link(federation, folder=tmp_path / "replies"):
        assert "the site is revoked" in worst(looked(federation))
    other = certificate_request(open_keys(tmp_path / "other").node, site="alpha")
    now = datetime.datetime.now(datetime.UTC)
    signed = provision.sign_request(federation.parent, other, site="alpha", now=now)
    (federation.parent / "alpha" / "site.pem").write_bytes(signed)
    assert "not for this site's node key" in worst(looked(federation))


def test_clocks_are_compared(
    federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two minutes off is worth a sentence; ten minutes off is what the server refuses."""
    grid: LinkGrid
    with open_link(federation, folder=tmp_path / "replies") as grid:
        for off_s, said in ((-120, "120 s behind"), (120, "120 s ahead of")):
            with monkeypatch.context() as patch:
                shifted(patch, off_s)
                assert said in worst(looked(federation))
        with monkeypatch.context() as patch:
            shifted(patch, -600)
            assert "clock is 60" in worst(looked(federation))
        assert sum(grid.refused().values()) == 1


def shifted(patch: pytest.MonkeyPatch, off_s: float) -> None:
    """Let the site's clock, and not the server's, be off."""

    class Shifted(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return datetime.datetime.now(tz) + datetime.timedelta(seconds=off_s)

    clock = SimpleNamespace(monotonic=time.monotonic, time=lambda: time.time() + off_s)
    calendar = SimpleNamespace(datetime=Shifted, UTC=datetime.UTC, timedelta=datetime.timedelta)
    patch.setattr(client.link, "time", clock)
    patch.setattr(client.link, "datetime", calendar)
