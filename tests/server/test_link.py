"""Nobody gets in who isn't enrolled, and who is enrolled reaches nobody but the server."""

from __future__ import annotations

import datetime
import hashlib
import logging
import re
import resource
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.node_pb2 import Node

import server.door
import server.link
from client.enrolment import certificate_request
from client.keys import open_keys
from client.link import CHANNEL_OPTIONS, Connection
from common.errors import BadInput, RunFailed
from common.health import prometheus_text
from common.messages import UNREACHABLE
from server import provision
from server.door import LARGE_AT_ONCE, Refused, node_id
from server.exchange import refusal_of
from server.link import LinkGrid, _Bad, _flat, open_link
from server.presence import Waiting

SITES = {"alpha": "", "mallory": ""}
NODE_ALPHA = 40_202_503_117_626_263  # must never change: sites are known by it
VALUES = np.arange(100_000, dtype=np.float32)
NOW = datetime.datetime.now(datetime.UTC)
MOST_S = 60.0  # no test waits longer, and none has to be faster
Enrol = Callable[..., Path]


@dataclass
class Running:
    """A server that runs, and the folder of its federation."""

    grid: LinkGrid
    folder: Path

    @property
    def address(self) -> str:
        """Where it listens."""
        return self.grid._door.register.federation.listen


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test waits for nobody."""
    monkeypatch.setattr(server.link, "HOLD_S", 0.3)


@pytest.fixture
def running(tmp_path: Path, enrol: Enrol) -> Iterator[Running]:
    """A federation of an honest and a hostile site, whose server runs."""
    federation = enrol(tmp_path / "federation", SITES)
    with open_link(federation, folder=tmp_path / "replies") as grid:
        yield Running(grid, federation.parent)


@dataclass
class Caller:
    """Calls by hand, with whatever a caller could bring along."""

    stub: Any
    key: ec.EllipticCurvePrivateKey
    node: int
    clock_off_s: float = 0.0

    def __call__(self, name: str, request: Any) -> Any:
        return getattr(self.stub, name)(request, timeout=MOST_S, metadata=self.headers())

    def headers(self) -> tuple[tuple[str, str | bytes], ...]:
        """Flower's node authentication."""
        now = (NOW_() + datetime.timedelta(seconds=self.clock_off_s)).isoformat()
        return (
            ("flwr-public-key-bin", public(self.key)),
            ("flwr-timestamp", now),
            ("flwr-signature-bin", self.key.sign(now.encode(), ec.ECDSA(hashes.SHA256()))),
        )

    def ask(self) -> Any:
        """Ask for a message."""
        return self("PullMessages", PullMessagesRequest(node=Node(node_id=self.node)))


def NOW_() -> datetime.datetime:  # noqa: N802 # beside NOW, which is fixed
    """The time, now."""
    return datetime.datetime.now(datetime.UTC)


def public(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public half in PEM."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The private half in PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@contextmanager
def call_as(
    running: Running,
    site: str,
    *,
    certificate: bytes | None = None,
    key: ec.EllipticCurvePrivateKey | None = None,
    signs: ec.EllipticCurvePrivateKey | None = None,
    node: int | None = None,
) -> Iterator[Caller]:
    """Calls as a site, or as one that has only some of what the site has."""
    own = key or open_keys(running.folder / site / "state").node
    shown = certificate or (running.folder / site / "site.pem").read_bytes()
    authority = (running.folder / "ca.pem").read_bytes()
    credentials = grpc.ssl_channel_credentials(authority, private(own), shown)
    with grpc.secure_channel(running.address, credentials, CHANNEL_OPTIONS) as channel:
        yield Caller(FleetStub(channel), signs or own, node_id(site) if node is None else node)


@contextmanager
def honest(running: Running, site: str = "alpha") -> Iterator[None]:
    """A site that answers everything with twice what it was sent, while the block runs."""
    credentials = grpc.ssl_channel_credentials(
        (running.folder / "ca.pem").read_bytes(),
        private(key := open_keys(running.folder / site / "state").node),
        (running.folder / site / "site.pem").read_bytes(),
    )
    stop = threading.Event()

    def serve() -> None:
        with grpc.secure_channel(running.address, credentials, CHANNEL_OPTIONS) as channel:
            connection = Connection(channel, key)
            connection.activate(heartbeat_s=30)
            while not stop.is_set():
                found = connection.ask()
                if found is not None:
                    message = connection.fetch(*found, most_bytes=1e9)
                    with suppress(grpc.RpcError):  # withdrawn meanwhile
                        connection.send(Message(doubled(message.content), reply_to=message))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(MOST_S)


def packed(values: np.ndarray) -> RecordDict:
    """Records as they travel, more or less."""
    return RecordDict({"w": ArrayRecord({"a": Array(values)}), "c": ConfigRecord({"round": 1})})


def doubled(content: RecordDict) -> RecordDict:
    """What an honest site answers."""
    return packed(content.array_records["w"]["a"].numpy() * 2)


def ask(running: Running, site: str, values: np.ndarray = VALUES) -> str:
    """Ask a site; returns the message's id."""
    (message_id,) = running.grid.push_messages([Message(packed(values), node_id(site), "train")])
    return message_id


def unharmed(running: Running) -> None:
    """The honest site's reply comes back as it was sent, once."""
    with honest(running):
        message = Message(packed(VALUES), node_id("alpha"), "train")
        (reply,) = running.grid.send_and_receive([message], timeout=MOST_S)
    assert np.array_equal(reply.content.array_records["w"]["a"].numpy(), VALUES * 2)


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """How a call is refused; a call that is not fails the test."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def reply_to(message_id: str, *, src: int, dst: int = 1, tree: ObjectTree | None = None) -> Any:
    """The announcement of a reply by hand."""
    message = MessageProto()
    message.metadata.message_id = "0" * 64
    message.metadata.src_node_id, message.metadata.dst_node_id = src, dst
    message.metadata.reply_to_message_id = message_id
    return PushMessagesRequest(
        node=Node(node_id=node_id("mallory")),
        messages_list=[message],
        message_object_trees=[tree or ObjectTree(object_id="0" * 64)],
    )


@pytest.mark.parametrize("equal", [False, True])
def test_a_site_answers_what_it_is_asked(running: Running, equal: bool) -> None:
    """Arrays of several chunks, equal ones too, come back to the bit, in an envelope of ours."""
    values = np.random.default_rng(0).normal(size=3_000_000).astype(np.float32) * (not equal)
    with honest(running):
        message = Message(packed(values), node_id("alpha"), "train")
        (reply,) = running.grid.send_and_receive([message], timeout=MOST_S)
    assert reply.metadata.src_node_id == node_id("alpha")
    assert reply.metadata.reply_to_message_id == message.metadata.message_id
    assert np.array_equal(reply.content.array_records["w"]["a"].numpy(), values * 2)


def test_an_instruction_waits_until_it_is_answered(running: Running) -> None:
    """A site that was killed asks again and gets the same; nothing once it was withdrawn."""
    message_id = ask(running, "mallory")
    with call_as(running, "mallory") as call:
        ids = [call.ask().messages_list[0].metadata.message_id for _ in range(2)]
        assert ids == [message_id] * 2
        running.grid._boxes.withdraw("mallory")
        assert not call.ask().messages_list


def test_who_waits_is_answered_at_once(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call for messages that came too early ends when there is one, not when it is over."""
    monkeypatch.setattr(server.link, "HOLD_S", MOST_S - 5)
    with call_as(running, "mallory") as call:
        threading.Timer(0.3, lambda: ask(running, "mallory")).start()
        started = time.monotonic()
        assert call.ask().messages_list
        assert time.monotonic() - started < MOST_S - 10


def test_no_certificate_no_connection(running: Running, capfd: pytest.CaptureFixture[str]) -> None:
    """TLS ends before the first call of a caller without one, or without TLS; gRPC logs why."""
    authority = (running.folder / "ca.pem").read_bytes()
    request = ActivateNodeRequest(public_key=b"")
    with grpc.secure_channel(running.address, grpc.ssl_channel_credentials(authority)) as channel:
        code, _ = refusal(lambda: FleetStub(channel).ActivateNode(request, timeout=MOST_S))
        assert code is grpc.StatusCode.UNAVAILABLE
    with grpc.insecure_channel(running.address) as channel:
        code, _ = refusal(lambda: FleetStub(channel).ActivateNode(request, timeout=MOST_S))
        assert code is grpc.StatusCode.UNAVAILABLE
    unharmed(running)
    logged, end = "", time.monotonic() + MOST_S
    reasons = {"PEER_DID_NOT_RETURN_A_CERTIFICATE", "WRONG_VERSION_NUMBER"}
    while any(reason not in logged for reason in reasons):  # by a thread of gRPC's own
        assert time.monotonic() < end, logged
        logged += capfd.readouterr().err
        time.sleep(0.02)


def test_another_authoritys_certificate_is_worth_nothing(running: Running, tmp_path: Path) -> None:
    """The right name and the right key, signed by somebody else, end in TLS."""
    (tmp_path / "other").mkdir()
    provision.make_authority(tmp_path / "other", name="test", now=NOW)
    key = open_keys(running.folder / "mallory" / "state").node
    request = certificate_request(key, site="mallory")
    forged = provision.sign_request(tmp_path / "other", request, site="mallory", now=NOW)
    with call_as(running, "mallory", certificate=forged) as call:
        assert refusal(call.ask)[0] is grpc.StatusCode.UNAVAILABLE
    unharmed(running)


def test_an_expired_certificate_is_worth_nothing(running: Running) -> None:
    """A certificate that has ended ends in TLS."""
    key = open_keys(running.folder / "mallory" / "state").node
    request = certificate_request(key, site="mallory")
    then = NOW - datetime.timedelta(days=1000)
    old = provision.sign_request(running.folder, request, site="mallory", now=then)
    with call_as(running, "mallory", certificate=old) as call:
        assert refusal(call.ask)[0] is grpc.StatusCode.UNAVAILABLE


def test_certificate_key_and_node_are_one_site(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    """Any two of three that don't belong together are refused, logged by name, and counted."""
    other = open_keys(running.folder / "alpha" / "state").node
    unknown = ec.generate_private_key(ec.SECP384R1())
    request = certificate_request(unknown, site="mallory")
    rekeyed = provision.sign_request(running.folder, request, site="mallory", now=NOW)
    stranger = provision.sign_request(running.folder, request, site="eve", now=NOW)
    cases = [
        ({"signs": other}, "not the one that is registered"),
        ({"signs": unknown}, "not the one that is registered"),
        ({"certificate": rekeyed, "key": unknown}, "not for the node key"),
        ({"certificate": stranger, "key": unknown}, "not registered"),
        ({"node": node_id("alpha")}, "another site's"),
        ({"node": 1}, "another site's"),
    ]
    for given, reason in cases:
        with call_as(running, "mallory", **given) as call, caplog.at_level(logging.WARNING):
            code, details = refusal(call.ask)
        assert code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
        assert reason in details
    assert sum(running.grid.refused().values()) == len(cases)
    assert {"mallory", "eve"} == {site for site, _ in running.grid.refused()}
    assert "refused a call of mallory: the node id is another site's" in caplog.text
    unharmed(running)


def test_a_signature_is_of_the_key_and_of_now(running: Running) -> None:
    """An old time, a time of another day and a signature of something else are refused."""
    with call_as(running, "mallory") as call:
        call.clock_off_s = -900
        code, details = refusal(call.ask)
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert re.search(r"clock is 90\d s behind the server's", details)
        metadata = (
            ("flwr-public-key-bin", public(call.key)),
            ("flwr-timestamp", NOW_().isoformat()),
            ("flwr-signature-bin", call.key.sign(b"else", ec.ECDSA(hashes.SHA256()))),
        )
        request = PullMessagesRequest(node=Node(node_id=call.node))
        _, details = refusal(
            lambda: call.stub.PullMessages(request, metadata=metadata, timeout=MOST_S)
        )
        assert "has not signed" in details
        _, details = refusal(lambda: call.stub.PullMessages(request, timeout=MOST_S))
        assert "not the one that is registered" in details


def test_a_revoked_site_is_out_at_once(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an open connection too: neither the call that waits nor the next is answered."""
    monkeypatch.setattr("server.door._LOOK_AGAIN_S", 0.0)
    message_id = ask(running, "mallory")
    with call_as(running, "mallory") as call:
        assert call.ask().messages_list
        path = running.folder / "federation.yaml"
        lines = path.read_text().splitlines()
        lines[-1] = lines[-1].replace("}", ", revoked: true}")
        path.write_text("\n".join(lines))
        code, details = refusal(call.ask)
        assert (code, details) == (grpc.StatusCode.PERMISSION_DENIED, "the site is revoked")
    (reply,) = running.grid.pull_messages([message_id])
    assert refusal_of(reply) == "revoked by the coordinator"
    assert "mallory" not in running.grid.sites.values()
    unharmed(running)


def test_a_revoked_site_does_not_stop_the_round(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked by rounds that began before, it is answered for at once, and the others go on."""
    monkeypatch.setattr("server.door._LOOK_AGAIN_S", 0.0)
    nodes = list(running.grid.sites)
    path = running.folder / "federation.yaml"
    path.write_text(path.read_text().rstrip()[:-1] + ", revoked: true}\n")
    with honest(running):
        messages = [Message(packed(VALUES), node, "train") for node in nodes]
        replies = list(running.grid.send_and_receive(messages, timeout=MOST_S))
    assert sorted(refusal_of(reply) if reply.has_error() else "" for reply in replies) == [
        "",
        "revoked by the coordinator",
    ]


def test_who_is_revoked_while_it_waits_gets_nothing(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that was let in before is not answered after."""
    monkeypatch.setattr("server.door._LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(server.link, "HOLD_S", 10.0)
    ask(running, "mallory")
    posted = running.grid._boxes.posted("mallory")
    running.grid._boxes.withdraw("mallory")

    def revoke_and_post() -> None:
        path = running.folder / "federation.yaml"
        path.write_text(path.read_text().rstrip()[:-1] + ", revoked: true}\n")
        running.grid._boxes.post("mallory", posted)

    with call_as(running, "mallory") as call:
        threading.Timer(0.3, revoke_and_post).start()
        assert refusal(call.ask)[1] == "the site is revoked"


def test_a_hostile_site_reaches_nobody(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    """It can neither instruct another site, nor answer for it, nor touch what it is sent."""
    theirs = ask(running, "alpha")
    objects = list(running.grid._boxes.posted("alpha").objects)
    own = ask(running, "mallory", VALUES + 1)
    shared = set(objects) & set(running.grid._boxes.posted("mallory").objects)
    me, node = node_id("mallory"), Node(node_id=node_id("mallory"))
    with call_as(running, "mallory") as call, caplog.at_level(logging.WARNING):
        attacks = [
            ("PushMessages", reply_to("", src=1, dst=node_id("alpha"))),  # an instruction
            ("PushMessages", reply_to("", src=me, dst=node_id("alpha"))),
            ("PushMessages", reply_to(theirs, src=me)),  # an answer to another's message
            ("PushMessages", reply_to(theirs, src=node_id("alpha"))),  # in another's name
            ("PushMessages", reply_to(own, src=node_id("alpha"))),
            ("PushMessages", reply_to(own, src=1)),
            ("PushMessages", reply_to(own, src=me, dst=node_id("alpha"))),
            ("PushMessages", PushMessagesRequest(node=node)),
            ("ConfirmMessageReceived", confirm(theirs)),
            ("RegisterNode", RegisterNodeFleetRequest(public_key=public(call.key))),
            *[("PullObject", pull(o)) for o in objects if o not in shared],
            *[("PushObject", push(o, b"x")) for o in objects],
        ]
        for name, request in attacks:
            code, _ = refusal(lambda name=name, request=request: call(name, request))
            assert code in (
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.PERMISSION_DENIED,
                grpc.StatusCode.NOT_FOUND,
            ), name
    assert "refused a call of mallory: a message that is no reply" in caplog.text
    assert running.grid._boxes.posted("alpha", theirs)
    with honest(running):
        replies, end = list(running.grid.pull_messages([theirs])), time.monotonic() + MOST_S
        while not replies and time.monotonic() < end:
            replies = list(running.grid.pull_messages([theirs]))
    assert np.array_equal(replies[0].content.array_records["w"]["a"].numpy(), VALUES * 2)
    unharmed(running)


def confirm(message_id: str) -> ConfirmMessageReceivedRequest:
    """Says that a message has been received."""
    return ConfirmMessageReceivedRequest(
        node=Node(node_id=node_id("mallory")), run_id=1, message_object_id=message_id
    )


def pull(object_id: str) -> PullObjectRequest:
    """Asks for an object."""
    return PullObjectRequest(node=Node(node_id=node_id("mallory")), run_id=1, object_id=object_id)


def push(object_id: str, content: bytes) -> PushObjectRequest:
    """Sends an object."""
    return PushObjectRequest(
        node=Node(node_id=node_id("mallory")),
        run_id=1,
        object_id=object_id,
        object_content=content,
    )


def test_a_flood_is_refused_and_fills_no_log(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Too many calls are refused cheaply, and others are served meanwhile.

    The door's clock stands still: however slow the machine is, nobody earns a call meanwhile.
    """
    flooding = threading.Event()

    def flood() -> None:
        with call_as(running, "mallory") as call:
            while not flooding.is_set():
                with suppress(grpc.RpcError):
                    call("SendNodeHeartbeat", heartbeat)

    heartbeat = SendNodeHeartbeatRequest(node=Node(node_id=node_id("mallory")))
    threads = [threading.Thread(target=flood, daemon=True) for _ in range(3)]
    monkeypatch.setattr("server.door.MOST_CALLS", 100)
    monkeypatch.setattr("server.door.time", SimpleNamespace(monotonic=lambda: 0.0))
    end = time.monotonic() + MOST_S
    with caplog.at_level(logging.WARNING):
        for thread in threads:
            thread.start()
        try:
            while running.grid.refused().get(("mallory", "too many calls"), 0) < 100:
                assert time.monotonic() < end, running.grid.refused()
                time.sleep(0.05)
            unharmed(running)
        finally:
            flooding.set()
            for thread in threads:
                thread.join(MOST_S)
    assert len([line for line in caplog.messages if "mallory" in line]) < 30


def test_calls_are_rationed(running: Running) -> None:
    """After so many calls in a row a site has to wait; the others have not."""
    with call_as(running, "mallory") as call:
        door = running.grid._door
        now = time.monotonic()
        door._calls["mallory"] = (1.5, now)
        call.ask()
        door._calls["mallory"] = (0.0, time.monotonic() + 60)
        code, details = refusal(call.ask)
        assert (code, details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls")
    unharmed(running)


def test_calls_without_a_body_hold_nobody_else(running: Running) -> None:
    """A site that opens many calls and sends no request in any of them stands in its own way."""
    go_on = threading.Event()

    def nothing() -> Iterator[bytes]:
        go_on.wait(MOST_S)
        yield from ()

    own = open_keys(running.folder / "mallory" / "state").node
    credentials = grpc.ssl_channel_credentials(
        (running.folder / "ca.pem").read_bytes(),
        private(own),
        (running.folder / "mallory" / "site.pem").read_bytes(),
    )
    with ExitStack() as stack:
        opened = []
        for _ in range(8):  # connections of 8 calls each: more than the server has threads
            options = (("grpc.use_local_subchannel_pool", 1),)
            channel = grpc.secure_channel(running.address, credentials, options)
            call = channel.stream_unary("/flwr.proto.Fleet/PullMessages")
            stack.enter_context(channel)
            signed = Caller(None, own, 0).headers()
            opened += [call.future(nothing(), timeout=MOST_S, metadata=signed) for _ in range(8)]
        end = time.monotonic() + MOST_S
        while running.grid.refused().get(("mallory", "too many calls at once"), 0) < 20:
            assert time.monotonic() < end, running.grid.refused()
            time.sleep(0.05)
        unharmed(running)
        assert sum(not one.done() for one in opened) >= 8
        go_on.set()


def test_large_objects_travel_few_at_once(running: Running) -> None:
    """One of a site, so many in all; who waits too long is told to come again."""
    door = running.grid._door
    give_back = door.one_large("mallory", timeout_s=MOST_S)
    with pytest.raises(Refused, match="too many large"):
        door.one_large("mallory", timeout_s=0.01)
    others = [door.one_large(f"site-{n}", timeout_s=MOST_S) for n in range(LARGE_AT_ONCE - 1)]
    with pytest.raises(Refused, match="too many large"):
        door.one_large("alpha", timeout_s=0.01)
    give_back()
    door.one_large("alpha", timeout_s=MOST_S)()
    door.one_large("mallory", timeout_s=MOST_S)()
    for give_back in others:
        give_back()
    with call_as(running, "mallory") as call:
        code, details = refusal(
            lambda: call.stub.PullObject(pull("0" * 64), timeout=1000, metadata=call.headers())
        )
        assert (code, details) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "the call's deadline is not within 120 s",
        )
    unharmed(running)
    assert door._large._value == LARGE_AT_ONCE  # each place was given back


def test_large_trees_are_not_walked() -> None:
    """A tree of more objects than the reply can have is refused by its number, unread."""

    class Many:
        object_id = "0" * 64
        children = range(60_000)

    with pytest.raises(_Bad, match="more objects"):
        _flat(Many(), most_objects=100)  # type: ignore[arg-type]


def test_who_is_late_is_no_attacker(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    """What belongs to a message that was replaced is dropped: not taken, and not counted."""
    caplog.set_level(logging.INFO)
    first = ask(running, "mallory")
    objects = list(running.grid._boxes.posted("mallory").objects)
    with call_as(running, "mallory") as call:
        assert call.ask().messages_list
        chunk, content = chunk_of(b"x")
        tree = ObjectTree(object_id="0" * 64, children=[ObjectTree(object_id=chunk)])
        announced = call("PushMessages", reply_to(first, src=call.node, tree=tree))
        second = ask(running, "mallory", VALUES + 1)
        only = set(objects) - set(running.grid._boxes.posted("mallory").objects)
        late = push(chunk, content)
        late.session_id = announced.session_id
        for name, request in [
            ("PushObject", late),
            ("PushMessages", reply_to(first, src=call.node, tree=tree)),
            ("ConfirmMessageReceived", confirm(first)),
            *[("PullObject", pull(one)) for one in only],
        ]:
            code, _ = refusal(lambda name=name, request=request: call(name, request))
            assert code is grpc.StatusCode.NOT_FOUND, name
        assert not running.grid.refused()
        assert running.grid._door.late["mallory"] == 3 + len(only)
        assert "refused" not in caplog.text
        assert call.ask().messages_list[0].metadata.message_id == second
        code, _ = refusal(lambda: call("ConfirmMessageReceived", confirm("f" * 64)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert sum(running.grid.refused().values()) == 1


def test_who_names_what_it_was_never_asked_is_not_late(running: Running) -> None:
    """Asked for nothing, or with a name of its own making, a site is refused and counted."""
    theirs = ask(running, "alpha")
    objects = list(running.grid._boxes.posted("alpha").objects)
    own = ask(running, "mallory", VALUES + 1)
    shared = set(running.grid._boxes.posted("mallory").objects)
    foreign = next(name for name in objects if name not in shared)
    with call_as(running, "mallory") as call:
        call.ask()
        chunk, content = chunk_of(b"x")
        tree = ObjectTree(object_id="0" * 64, children=[ObjectTree(object_id=foreign)])
        call("PushMessages", reply_to(own, src=call.node, tree=tree))
        running.grid._boxes.withdraw("mallory")
        unknown = push(chunk, content)
        unknown.session_id = "0" * 64  # of the reply that it announced
        attacks = [
            ("PushMessages", reply_to(theirs, src=call.node)),
            ("ConfirmMessageReceived", confirm(theirs)),
            ("PullObject", pull(foreign)),  # although it has called an object of its own so
            ("PullObject", pull("0" * 64)),
            ("PushObject", unknown),
        ]
        for name, request in attacks:
            code, details = refusal(lambda name=name, request=request: call(name, request))
            assert (code, details) == (
                grpc.StatusCode.INVALID_ARGUMENT,
                "of nothing it was asked",
            ), name
    assert running.grid.refused() == {("mallory", "of nothing it was asked"): len(attacks)}
    assert not running.grid.late()


def test_a_reply_to_the_server_before_is_late(running: Running) -> None:
    """A site that has asked this server for nothing yet: a few times, and for nobody else's."""
    theirs = ask(running, "alpha")
    with call_as(running, "mallory") as call:
        code, _ = refusal(lambda: call("PushMessages", reply_to(theirs, src=call.node)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        before = [
            refusal(lambda: call("PushMessages", reply_to("e" * 64, src=call.node)))[0]
            for _ in range(6)
        ]
    assert before == [grpc.StatusCode.NOT_FOUND] * 4 + [grpc.StatusCode.INVALID_ARGUMENT] * 2
    assert running.grid.late() == {"mallory": 4}


def test_a_call_that_says_nothing_is_refused(running: Running) -> None:
    """Bytes that are no request, and none at all, are counted as the site's."""
    own = open_keys(running.folder / "mallory" / "state").node
    credentials = grpc.ssl_channel_credentials(
        (running.folder / "ca.pem").read_bytes(),
        private(own),
        (running.folder / "mallory" / "site.pem").read_bytes(),
    )
    with grpc.secure_channel(running.address, credentials, CHANNEL_OPTIONS) as channel:
        call = channel.stream_unary("/flwr.proto.Fleet/PullMessages")
        for requests in ([b"\xff\xff"], []):
            metadata = Caller(None, own, 0).headers()
            code, _ = refusal(
                lambda requests=requests, metadata=metadata: call(
                    iter(requests), timeout=MOST_S, metadata=metadata
                )
            )
            assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert running.grid.refused() == {
        ("mallory", "a request that can't be read"): 1,
        ("mallory", "a call without a request"): 1,
    }


def test_reasons_are_few(running: Running) -> None:
    """Whatever an object's head holds: the same few reasons, so that they fill no memory."""
    rng = np.random.default_rng(0)
    with call_as(running, "mallory") as call:
        for _ in range(60):
            head = bytes(rng.choice(list(b"Array \xff\xc3,0"), rng.integers(1, 30)))
            content = b"ArrayRecord" + head + b"\0"
            name = hashlib.sha256(content).hexdigest()
            own = ask(running, "mallory")
            tree = ObjectTree(object_id=name)
            call("PushMessages", reply_to(own, src=call.node, tree=tree))
            refusal(lambda name=name, content=content: call("PushObject", push(name, content)))
    reasons = {reason for _, reason in running.grid.refused()}
    assert 1 <= len(reasons) <= 4, reasons


def test_a_site_stays_revoked_though_the_file_was_unreadable_for_a_while(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that can't be read is read again, and /health says so meanwhile."""
    monkeypatch.setattr("server.door._LOOK_AGAIN_S", 0.0)
    path = running.folder / "federation.yaml"
    path.write_text(path.read_text().rstrip()[:-1] + ", revoked: true}\n")
    load = server.door.load_federation

    def unreadable(_path: Path) -> None:
        raise BadInput("federation.yaml: can't be read.")

    with monkeypatch.context() as patch, call_as(running, "mallory") as call:
        patch.setattr("server.door.load_federation", unreadable)
        call.ask()  # as it was
        assert "federation.yaml can't be read" in running.grid.health().wrong
    assert server.door.load_federation is load
    with call_as(running, "mallory") as call:
        assert refusal(call.ask)[1] == "the site is revoked"
    assert not running.grid.health().wrong


def test_connections_without_a_certificate_end(
    tmp_path: Path, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who connects and says nothing is shut out after a while; files may be as many as allowed."""
    monkeypatch.setattr(server.link, "HANDSHAKE_S", 0.5)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[1], 512), limits[1]))
    try:
        federation = enrol(tmp_path / "federation", SITES)
        with open_link(federation, folder=tmp_path / "replies") as grid, ExitStack() as stack:
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limits[1], limits[1])
            host, port = grid._door.register.federation.listen.split(":")
            idle = stack.enter_context(socket.create_connection((host, int(port)), MOST_S / 2))
            with suppress(ConnectionResetError):
                while idle.recv(1000):  # gRPC's own greeting may come first
                    pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_who_has_left_is_missing(running: Running) -> None:
    """A site that said that it stops isn't waited with; its next call brings it back."""
    with call_as(running, "mallory") as call:
        call.ask()
        assert running.grid._boxes.here() == ("mallory",)
        call("DeactivateNode", DeactivateNodeRequest(node_id=call.node))
        assert running.grid._boxes.here() == ()
        call.ask()
        assert running.grid._boxes.here() == ("mallory",)


def test_a_pause_asks_nothing(running: Running) -> None:
    """While paused nothing is asked of any site; afterwards the same round goes on."""
    running.grid.pause()
    assert running.grid.health().wrong == "paused until SIGUSR2"
    replies: list[Message] = []

    def send() -> None:
        message = Message(packed(VALUES), node_id("alpha"), "train")
        replies.extend(running.grid.send_and_receive([message], timeout=MOST_S))

    thread = threading.Thread(target=send, daemon=True)
    with honest(running):
        thread.start()
        thread.join(0.5)
        assert running.grid._boxes.waiting() == 0
        assert not replies
        assert "fedward_paused 1" in prometheus_text(running.grid.health().samples)
        running.grid.go_on()
        thread.join(MOST_S)
    assert len(replies) == 1
    assert not running.grid.health().wrong
    assert 0.4 < running.grid.paused_s < MOST_S


def test_numbers_for_the_coordinator(running: Running) -> None:
    """Who is here, what came and went, what was refused: in Prometheus' form."""
    unharmed(running)
    with call_as(running, "mallory") as call:
        refusal(lambda: call("ConfirmMessageReceived", confirm("f" * 64)))
        call.ask()
        refusal(lambda: call("RegisterNode", RegisterNodeFleetRequest(public_key=b"")))
    text = prometheus_text(running.grid.health().samples)
    assert 'fedward_site_here{site="mallory"} 1' in text
    assert 'fedward_site_silent_seconds{site="alpha"}' in text
    assert "fedward_replies_total 1\n" in text
    assert 'site="mallory",reason="the node id is another site\'s"} 1' in text
    sizes = dict(re.findall(r"^fedward_(received|sent)_bytes_total (\d+)$", text, re.M))
    assert all(VALUES.nbytes < int(size) < VALUES.nbytes + 10_000 for size in sizes.values())


def test_a_reply_is_bounded_by_what_was_asked(running: Running) -> None:
    """Neither more objects nor more bytes than a reply can have are taken."""
    own = ask(running, "mallory")
    many = ObjectTree(object_id="0" * 64)
    for number in range(1000):
        many.children.append(ObjectTree(object_id=f"{number:064x}"))
    deep = ObjectTree(object_id="f" * 64)
    for number in range(60):
        deep = ObjectTree(object_id=f"{number:064x}", children=[deep])
    with call_as(running, "mallory") as call:
        for tree in (many, deep):
            announced = reply_to(own, src=node_id("mallory"), tree=tree)
            code, _ = refusal(lambda announced=announced: call("PushMessages", announced))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
        chunk = chunk_of(b"x" * 2**20)
        tree = ObjectTree(object_id="0" * 64, children=[ObjectTree(object_id=chunk[0])])
        call("PushMessages", reply_to(own, src=node_id("mallory"), tree=tree))
        code, details = refusal(lambda: call("PushObject", push(*chunk)))
        assert "larger than it may be" in details
    unharmed(running)


def chunk_of(data: bytes) -> tuple[str, bytes]:
    """A chunk's name and content, as Flower writes them."""
    content = b"ArrayChunk  %d\0" % len(data) + data
    return hashlib.sha256(content).hexdigest(), content


def test_objects_that_make_no_message_are_a_bad_reply(running: Running) -> None:
    """What can't be put together is an empty reply, which the rounds leave out."""
    own = ask(running, "mallory")
    name, content = chunk_of(b"x")
    with call_as(running, "mallory") as call:
        tree = ObjectTree(object_id=name)
        call("PushMessages", reply_to(own, src=node_id("mallory"), tree=tree))
        code, _ = refusal(lambda: call("PushObject", push(name, content + b"y")))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        call("PushObject", push(name, content))
    (reply,) = running.grid.pull_messages([own])
    assert not reply.has_error()
    assert len(reply.content) == 0


def test_a_silent_site_is_left_out_and_comes_back(
    tmp_path: Path, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence of `offline_after_s` is answered for; the next round finds the site again."""
    federation = enrol(tmp_path / "federation", SITES, offline_after_s=0.6)
    with open_link(federation, folder=tmp_path / "replies") as grid:
        running = Running(grid, federation.parent)
        message = Message(packed(VALUES), node_id("alpha"), "train")
        (reply,) = grid.send_and_receive([message], timeout=MOST_S)
        assert reply.error.code == UNREACHABLE
        assert "alpha" not in {grid.sites[node] for node in grid.get_node_ids()}
        end = time.monotonic() + MOST_S
        with honest(running):
            while reply.has_error() and time.monotonic() < end:  # it takes a moment to come
                message = Message(packed(VALUES), node_id("alpha"), "train")
                (reply,) = grid.send_and_receive([message], timeout=MOST_S)
        assert np.array_equal(reply.content.array_records["w"]["a"].numpy(), VALUES * 2)


def test_waiting_for_sites_says_who_is_missing(running: Running) -> None:
    """The bound is kept; the sentence, and what a watcher is told, name only who hasn't called."""
    told: list[Waiting] = []
    began = time.time()
    with honest(running):
        running.grid.wait_for_sites(1, timeout_s=MOST_S)
        with pytest.raises(RunFailed, match=r"1 of the 2 .* missing: mallory\."):
            running.grid.wait_for_sites(2, timeout_s=0.3, tell=told.append)
    (waiting,) = told
    assert (waiting.missing, waiting.sites) == (1, {"mallory": "has not called yet"})
    assert 0 < waiting.until - began <= MOST_S


def test_node_ids_stay() -> None:
    """A site's node id depends on its name alone, and is none of Flower's own."""
    assert node_id("alpha") == NODE_ALPHA
    assert node_id("alpha") != node_id("mallory")


def test_what_hinders_the_server_is_a_sentence(
    tmp_path: Path, running: Running, enrol: Enrol
) -> None:
    """A port in use, a missing key, an expired certificate: each says what to do."""
    path = running.folder / "federation.yaml"
    with (
        pytest.raises(BadInput, match=r"another server running"),
        open_link(path, folder=tmp_path / "again"),
    ):
        pass
    other = enrol(tmp_path / "other", SITES)
    (other.parent / "server.pem").unlink()
    (other.parent / "server.key").unlink()
    then = NOW - datetime.timedelta(days=1000)
    provision.make_server_certificate(other.parent, host="127.0.0.1", now=then)
    with pytest.raises(BadInput, match="has expired"), open_link(other, folder=tmp_path / "x"):
        pass
    (other.parent / "coordinator.key").unlink()
    with (
        pytest.raises(BadInput, match=r"coordinator\.key"),
        open_link(other, folder=tmp_path / "x"),
    ):
        pass


def test_replies_leave_nothing_behind(running: Running, tmp_path: Path) -> None:
    """Once it is taken, a reply is no longer on the server's disk."""
    unharmed(running)
    assert list((tmp_path / "replies").iterdir()) == []
    shutil.rmtree(tmp_path / "replies")
