"""The site's end of the link: it answers, keeps on trying, and takes nothing that it shouldn't."""

from __future__ import annotations

import datetime
import http.client
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

import client.link
import server.link
from client.enrolment import certificate_request
from client.keys import open_keys
from client.link import Connection, run_site
from client.state import lock_state, state_folder
from common.config import Policy, SiteSettings, load_site
from common.errors import BadInput, RefusalCode
from common.messages import decode_refusal, encode_refusal
from server import provision
from server.door import node_id
from server.link import LinkGrid, open_link

VALUES = np.arange(10, dtype=np.float32)
MOST_S = 60.0  # no test waits longer, and none has to be faster
Enrol = Callable[..., Path]
Answer = Callable[[Message], RecordDict]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test waits for nobody."""
    monkeypatch.setattr(client.link, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(client.link, "_LONGEST_PAUSE_S", 0.5)
    monkeypatch.setattr(server.link, "HOLD_S", 0.3)


@pytest.fixture
def federation(tmp_path: Path, enrol: Enrol) -> Path:
    """federation.yaml of a federation of one site, `alpha`."""
    return enrol(tmp_path / "federation", {"alpha": ""})


def settings(federation: Path) -> SiteSettings:
    """The site's."""
    return load_site(federation.parent / "alpha" / "site.yaml")


@contextmanager
def serving(site: SiteSettings, answer: Answer) -> Iterator[None]:
    """A site process, as a thread that ends with the block."""
    app, stop, call = ClientApp(), threading.Event(), Connection._call

    @app.train()
    def on_train(message: Message, context: Context) -> Message:
        assert SiteSettings.model_validate_json(str(context.node_config["site"])) == site
        if "refuse" in context.node_config:
            code = RefusalCode(str(context.node_config["refuse"]))
            return Message(encode_refusal(code), reply_to=message)
        return Message(answer(message), reply_to=message)

    def call_or_end(self: Connection, name: str, request: Any, **more: float) -> Any:
        if stop.is_set():
            raise SystemExit
        return call(self, name, request, **more)

    def run() -> None:
        with suppress(SystemExit):
            run_site(site, app)

    thread = threading.Thread(target=run, daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "_call", call_or_end)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(MOST_S + 30)  # longer than the longest call
            assert not thread.is_alive()


def packed(values: np.ndarray) -> RecordDict:
    """Records that hold an array."""
    return RecordDict({"w": ArrayRecord({"a": Array(values)})})


def doubled(message: Message) -> RecordDict:
    """What the site answers."""
    return packed(message.content.array_records["w"]["a"].numpy() * 2)


def ask(grid: LinkGrid, values: np.ndarray = VALUES) -> Message:
    """The site's reply."""
    message = Message(packed(values), node_id("alpha"), "train")
    (reply,) = grid.send_and_receive([message], timeout=MOST_S)
    return reply


def test_a_site_outlives_its_server(
    federation: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It finds the server after each start, says once what was wrong, and answers as ever."""
    with caplog.at_level(logging.INFO), serving(settings(federation), doubled):
        time.sleep(0.5)  # nobody is there yet
        for _ in range(2):
            with open_link(federation, folder=tmp_path / "replies") as grid:
                for _ in range(2):
                    found = ask(grid).content.array_records["w"]["a"].numpy()
                    assert np.array_equal(found, VALUES * 2)
            time.sleep(0.5)
    assert sum("connected to" in line for line in caplog.messages) == 2
    said = [line for line in caplog.messages if "reached" in line or "connected" in line]
    assert all(one != other for one, other in pairwise(said))
    assert any("can't be reached" in line for line in said)


def test_a_reply_outlives_a_break(
    federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed on its way is sent again, without being computed again."""
    asked = []
    whole = server.link.Mailboxes.add
    failures = iter([OSError("disk full"), OSError("disk full")])

    def fails_at_first(self: object, *given: object) -> None:
        error = next(failures, None)
        if error is not None:
            raise error
        whole(self, *given)  # type: ignore[arg-type]

    def answer(message: Message) -> RecordDict:
        asked.append(message.metadata.message_id)
        return doubled(message)

    monkeypatch.setattr(server.link.Mailboxes, "add", fails_at_first)
    with (
        open_link(federation, folder=tmp_path / "replies") as grid,
        serving(settings(federation), answer),
    ):
        assert ask(grid).has_content()
    assert len(asked) == 1


def test_a_reply_to_a_server_that_is_gone_is_dropped(
    federation: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that began anew asks anew; what the old one had asked is no longer wanted."""
    working, go_on = threading.Event(), threading.Event()

    def answer(message: Message) -> RecordDict:
        working.set()
        go_on.wait(MOST_S)
        return doubled(message)

    with serving(settings(federation), answer), caplog.at_level(logging.WARNING):
        with open_link(federation, folder=tmp_path / "replies") as grid:
            grid.push_messages([Message(packed(VALUES), node_id("alpha"), "train")])
            assert working.wait(MOST_S)
        with open_link(federation, folder=tmp_path / "replies") as grid:
            go_on.set()
            found = ask(grid, VALUES + 1).content.array_records["w"]["a"].numpy()
            assert np.array_equal(found, VALUES * 2 + 2)
    assert "no longer wants a reply" in caplog.text


@pytest.mark.parametrize(("values", "fetched"), [(8_000_000, 0), (400_000, 1)])
def test_what_is_too_large_is_not_fetched(
    federation: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: int,
    fetched: int,
) -> None:
    """Above the policy's ceiling the site refuses: from the number of chunks, or at the first."""
    site = settings(federation).model_copy(update={"policy": Policy(max_message_mb=1.0)})
    pulled = []
    read = server.link.Posted.read

    def counted(self: server.link.Posted, object_id: str) -> bytes:
        pulled.append(object_id)
        return read(self, object_id)

    monkeypatch.setattr(server.link.Posted, "read", counted)
    with open_link(federation, folder=tmp_path / "replies") as grid, serving(site, doubled):
        reply = ask(grid, np.random.default_rng(0).normal(size=values).astype("f4"))
    assert decode_refusal(reply.error) is RefusalCode.TOO_LARGE
    assert len(pulled) == fetched


def test_a_fault_of_the_app_is_a_code(
    federation: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The text of what the app raised neither leaves nor is logged; the site lives on."""

    def answer(message: Message) -> RecordDict:
        raise KeyError("Mustermann^Erika")

    with (
        caplog.at_level(logging.DEBUG),
        open_link(federation, folder=tmp_path / "replies") as grid,
        serving(settings(federation), answer),
    ):
        for _ in range(2):
            reply = ask(grid)
            assert decode_refusal(reply.error) is RefusalCode.INTERNAL
    assert "Mustermann" not in caplog.text + reply.error.reason


def test_numbers_for_the_sites_engineer(federation: Path, tmp_path: Path) -> None:
    """On its own loopback: whether the server answers, what was asked, refused, and its size."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    site = settings(federation)
    assert site.link is not None
    site = site.model_copy(update={"link": site.link.model_copy(update={"health_port": port})})
    calls = iter([False, True])

    def answer(message: Message) -> RecordDict:
        if next(calls):
            raise KeyError
        return doubled(message)

    with serving(site, answer):
        assert "has not been reached yet" in look(port, "/health")
        with open_link(federation, folder=tmp_path / "replies") as grid:
            for _ in range(2):
                ask(grid)
            assert look(port, "/health") == "ok\n"
            text = look(port, "/metrics")
            end = time.monotonic() + MOST_S
            while 'code="internal"' not in text and time.monotonic() < end:
                text = look(port, "/metrics")
    for line in (
        "fedward_connected 1",
        'fedward_messages_total{type="train"} 2',
        'fedward_refusals_total{code="internal"} 1',
        "fedward_late_replies_total 0",
    ):
        assert f"{line}\n" in text
    sizes = re.findall(r"^fedward_(?:received|sent)_bytes_total (\d+)$", text, re.M)
    assert all(VALUES.nbytes < int(size) < 10_000 for size in sizes)


def look(port: int, path: str) -> str:
    """What the site's own page says."""
    end = time.monotonic() + MOST_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=MOST_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        except ConnectionRefusedError:  # it is about to start
            assert time.monotonic() < end
            time.sleep(0.02)
        finally:
            connection.close()


def test_silence_of_the_server_is_said() -> None:
    """After so long without an answer the site isn't well, and says for how long."""
    traffic = client.link.Traffic(heard_s=time.monotonic() - 100)
    assert not traffic.health(silence_s=1000).wrong
    assert "has not answered for 100 s" in traffic.health(silence_s=50).wrong


def test_it_works_through_a_proxy(
    federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where https_proxy names one, all goes through it, and TLS ends at the server only."""
    for name in ("no_proxy", "no_grpc_proxy", "grpc_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with forwarding() as (port, asked), open_link(federation, folder=tmp_path / "r") as grid:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        with serving(settings(federation), doubled):
            assert ask(grid).has_content()
    address = grid._door.register.federation.listen
    assert asked
    assert set(asked) == {f"CONNECT {address} HTTP/1.1"}


@contextmanager
def forwarding() -> Iterator[tuple[int, list[str]]]:
    """An HTTP proxy on this machine; gives its port and the first line of each request."""
    asked: list[str] = []

    def forward(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                target.sendall(data)
        except OSError:
            pass

    def serve(inner: socket.socket) -> None:
        request = inner.recv(65_536).decode()
        asked.append(request.splitlines()[0])
        host, port = request.split()[1].split(":")
        outer = socket.create_connection((host, int(port)))
        inner.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for pair in ((inner, outer), (outer, inner)):
            threading.Thread(target=forward, args=pair, daemon=True).start()

    def accept(listening: socket.socket) -> None:
        try:
            while True:
                serve(listening.accept()[0])
        except OSError:
            pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, args=(listening,), daemon=True).start()
        yield listening.getsockname()[1], asked


def test_a_server_that_does_not_hold_calls_is_not_stormed(
    federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each call for messages ends at once, the pauses between them grow."""
    calls: list[float] = []
    wait = server.link.Mailboxes.wait_for_post

    def counted(self: server.link.Mailboxes, site: str, *, timeout_s: float) -> object:
        calls.append(time.monotonic())
        return wait(self, site, timeout_s=0.0)

    monkeypatch.setattr(server.link.Mailboxes, "wait_for_post", counted)
    with (
        open_link(federation, folder=tmp_path / "replies") as grid,
        serving(settings(federation), doubled),
    ):
        end = time.monotonic() + MOST_S
        while len(calls) < 6:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert calls[5] - calls[0] > 0.79 * (0.05 + 0.1 + 0.2 + 0.4 + 0.8)
        assert ask(grid).has_content()


def test_pauses_grow_up_to_a_bound() -> None:
    """Each is about twice the one before, up to the longest, and begins anew after a success."""
    pauses = client.link._Pauses(1.0, 10.0)
    taken = [pauses.take() for _ in range(8)]
    expected = [1, 2, 4, 8, 10, 10, 10, 10]
    assert all(0.79 * e <= t <= 1.21 * e for t, e in zip(taken, expected, strict=True))
    pauses.reset()
    assert pauses.take() < 1.21


def test_one_process_a_site(federation: Path) -> None:
    """A second process of a site is told so; it would answer the same instruction twice."""
    site = settings(federation)
    with (
        lock_state(state_folder(site)),
        pytest.raises(BadInput, match="another process of this site"),
    ):
        run_site(site, ClientApp())


def test_what_hinders_the_site_is_a_sentence(federation: Path, tmp_path: Path) -> None:
    """No link, a certificate that is missing, ended or another key's: each says what to do."""
    site, folder, app = settings(federation), federation.parent, ClientApp()
    with pytest.raises(BadInput, match="`link` is missing"):
        run_site(site.model_copy(update={"link": None}), app)
    now = datetime.datetime.now(datetime.UTC)
    path = folder / "alpha" / "site.pem"
    for key, then, said in (
        (open_keys(folder / "alpha" / "state").node, now - datetime.timedelta(1000), "has expired"),
        (ec.generate_private_key(ec.SECP384R1()), now, "not for this site's node key"),
    ):
        request = certificate_request(key, site="alpha")
        path.write_bytes(provision.sign_request(folder, request, site="alpha", now=then))
        with pytest.raises(BadInput, match=said):
            run_site(site, app)
    path.unlink()
    with pytest.raises(BadInput, match=r"site\.pem: can't be read"):
        run_site(site, app)
