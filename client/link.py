"""The site's end of Flower's Fleet protocol (flwr 1.39): outbound only, until it is stopped.

It asks the server for a message, hands it to the installed ClientApp, sends the reply, and asks
again; through restarts of the server and loss of the network of any length. No code ever arrives.
gRPC goes through an HTTP proxy where `https_proxy` says so (`no_proxy`: not). The channel is TLS
with the site's certificate, whose key is the node key, which also signs each call.
"""

from __future__ import annotations

import datetime
import logging
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from flwr.app import Context, Message, RecordDict, UserConfig
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.constant import PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.task_identity import TaskIdentity

from client.keys import open_keys
from client.state import lock_state, state_folder
from common.certificates import WARN_DAYS
from common.config import Link, SiteSettings
from common.errors import BadInput, RefusalCode
from common.health import Health, Sample, listening, memory
from common.messages import CLOCK_HEADER, EVALUATE, QUERY, TRAIN, decode_refusal, encode_refusal
from common.objects import CHUNK_BYTES, MOST_CHUNK_BYTES, check_object, inflate_message

logger = logging.getLogger("fedward.link")

_CALL_S = 60.0  # each call's deadline; the server answers a call for messages within 20 s
_OBJECT_S = 110.0  # of a call that carries an object: it may have to wait for its turn
_SIGNED_FOR_S = 10.0  # a signed time serves the calls of so many seconds
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
_SHORT_PAUSE_S, _IDLE_PAUSE_S = (
    0.05,
    2.0,
)  # only where a server answers at once that there is nothing
_KINDS = (TRAIN, EVALUATE, QUERY)
# Not there, or about to end: a server that stops answers who waits in a call with CANCELLED.
_AWAY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)
_UNWANTED = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)  # late, or refused

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MOST_CHUNK_BYTES + 2**16),
    ("grpc.max_send_message_length", MOST_CHUNK_BYTES + 2**16),
    ("grpc.keepalive_time_ms", 30_000),  # also keeps a proxy's line open
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.enable_retries", 0),
)


@dataclass
class _Pauses:
    """Pauses that double up to a bound, each by chance a little shorter or longer."""

    first_s: float
    longest_s: float
    _next_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._next_s = self.first_s

    def reset(self) -> None:
        """Begin again with the shortest."""
        self._next_s = self.first_s

    def take(self) -> float:
        """The next pause in seconds."""
        pause, self._next_s = self._next_s, min(2 * self._next_s, self.longest_s)
        return pause * random.uniform(0.8, 1.2)


@dataclass
class Traffic:
    """What has come and gone since the process began; read by another thread."""

    heard_s: float | None = None  # when the server answered last, by the monotonic clock
    bytes_down: int = 0
    bytes_up: int = 0
    asked: Counter[str] = field(default_factory=Counter)  # messages, by type
    refused: Counter[str] = field(default_factory=Counter)  # answers that were refusals, by code
    unwanted: int = 0  # replies that came too late

    def health(self, *, silence_s: float) -> Health:
        """How the site is; something is wrong after so long a silence of the server's."""
        silent = None if self.heard_s is None else time.monotonic() - self.heard_s
        wrong = ""
        if silent is None:
            wrong = "the server has not been reached yet"
        elif silent > silence_s:
            wrong = f"the server has not answered for {silent:.0f} s"
        contact = (
            ()
            if silent is None
            else (
                Sample("fedward_server_silent_seconds", silent, "Since the server answered last."),
            )
        )
        return Health(
            wrong,
            (
                Sample("fedward_connected", not wrong, "1: the server answers."),
                *contact,
                *(
                    Sample(
                        "fedward_messages_total",
                        count,
                        "Messages by type.",
                        "counter",
                        {"type": kind},
                    )
                    for kind, count in sorted(dict(self.asked).items())
                ),
                *(
                    Sample(
                        "fedward_refusals_total",
                        count,
                        "Refusals by code.",
                        "counter",
                        {"code": code},
                    )
                    for code, count in sorted(dict(self.refused).items())
                ),
                Sample("fedward_late_replies_total", self.unwanted, "Unwanted.", "counter"),
                Sample("fedward_received_bytes_total", self.bytes_down, "Asked.", "counter"),
                Sample("fedward_sent_bytes_total", self.bytes_up, "Of replies.", "counter"),
                *memory(),
            ),
        )


class _TooLarge(Exception):
    """A message larger than the site's policy allows."""


class Connection:
    """Calls to the server, each with a deadline and signed by the node key."""

    def __init__(
        self,
        channel: grpc.Channel,
        node_key: ec.EllipticCurvePrivateKey,
        traffic: Traffic | None = None,
    ) -> None:
        self._stub: Any = FleetStub(channel)
        self._traffic = traffic or Traffic()
        self._key = node_key
        self._public_key = node_key.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        self._headers: tuple[tuple[str, str | bytes], ...] = ()
        self._signed_s = float("-inf")
        self._lock = threading.Lock()
        self._node = Node()

    def activate(self, *, heartbeat_s: float) -> int:
        """Ask for the site's node id, which later calls name."""
        request = ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=heartbeat_s)
        self._node = Node(node_id=self._call("ActivateNode", request).node_id)
        return int(self._node.node_id)

    def compare_clocks(self, *, timeout_s: float) -> float | None:
        """Ask for the node id, and by how many seconds the server's clock is ahead of this one.

        None where the server doesn't say, or says what is no time.
        """
        request = ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=30.0)
        before = time.time()
        answer, call = self._stub.ActivateNode.with_call(
            request, timeout=timeout_s, metadata=self._authentication()
        )
        self._node = Node(node_id=answer.node_id)
        shown = dict(call.trailing_metadata()).get(CLOCK_HEADER, "nan")
        try:
            off_s = float(shown) - (before + time.time()) / 2
        except ValueError:
            return None
        return off_s if math.isfinite(off_s) else None

    def deactivate(self) -> None:
        """Say that the site stops."""
        request = DeactivateNodeRequest(node_id=self._node.node_id)
        self._call("DeactivateNode", request, timeout_s=2.0)

    def heartbeat(self, *, heartbeat_s: float) -> None:
        """Say that the site is alive."""
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=heartbeat_s)
        self._call("SendNodeHeartbeat", request)

    def ask(self) -> tuple[Message, ObjectTree] | None:
        """What the site is to answer, without its content, and the names of its objects."""
        found = self._call("PullMessages", PullMessagesRequest(node=self._node))
        if not found.messages_list:
            return None
        try:
            return message_from_proto(found.messages_list[0]), found.message_object_trees[0]
        except (ValueError, IndexError):  # the server's fault: nobody to answer
            logger.error("the server sent a message that is none; it is passed over")
            return None

    def fetch(self, message: Message, tree: ObjectTree, *, most_bytes: float) -> Message:
        """A message with its content.

        Raises:
            _TooLarge: it has more bytes than that; nothing more was fetched.
            ValueError: its objects make no message.
        """
        objects: dict[str, bytes] = {}
        size = 0
        for node in iterate_object_tree(tree):
            if node.object_id in objects:
                continue
            request = PullObjectRequest(
                node=self._node, run_id=message.metadata.run_id, object_id=node.object_id
            )
            content = self._call("PullObject", request, timeout_s=_OBJECT_S).object_content
            size += len(content)
            self._traffic.bytes_down += len(content)
            if size > most_bytes:
                raise _TooLarge
            check_object(node.object_id, content)
            objects[node.object_id] = content
        whole = inflate_message(tree.object_id, objects.__getitem__, most_bytes=int(most_bytes))
        whole.metadata.__dict__["_message_id"] = message.metadata.message_id
        return whole

    def send(self, reply: Message) -> None:
        """Send a reply; sent again after a break, only what the server still lacks travels."""
        run_id = reply.metadata.run_id
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            announced = self._call(
                "PushMessages",
                PushMessagesRequest(
                    node=self._node,
                    messages_list=[message_to_proto(remove_content_from_message(reply))],
                    message_object_trees=[get_object_tree(reply)],
                    clientapp_runtime_list=[0.0],  # how long a site works is nobody's business
                ),
            )
            objects = get_all_nested_objects(reply)
            for object_id in announced.objects_to_push:
                content = objects[object_id].deflate()
                request = PushObjectRequest(
                    node=self._node,
                    run_id=run_id,
                    session_id=announced.session_id,
                    object_id=object_id,
                    object_content=content,
                )
                self._call("PushObject", request, timeout_s=_OBJECT_S)
                self._traffic.bytes_up += len(content)

    def _call(self, name: str, request: Any, *, timeout_s: float = _CALL_S) -> Any:
        answer = getattr(self._stub, name)(
            request, timeout=timeout_s, metadata=self._authentication()
        )
        self._traffic.heard_s = time.monotonic()
        return answer

    def _authentication(self) -> tuple[tuple[str, str | bytes], ...]:
        """Flower's node authentication: the public key, the time, its signature."""
        with self._lock:
            if time.monotonic() - self._signed_s > _SIGNED_FOR_S:
                now = datetime.datetime.now(datetime.UTC).isoformat()
                signature = self._key.sign(now.encode(), ec.ECDSA(hashes.SHA256()))
                self._headers = (
                    (PUBLIC_KEY_HEADER, self._public_key),
                    (TIMESTAMP_HEADER, now),
                    (SIGNATURE_HEADER, signature),
                )
                self._signed_s = time.monotonic()
            return self._headers


def run_site(site: SiteSettings, app: ClientApp) -> None:
    """Serve the federation until the process is stopped.

    Args:
        site: site.yaml; the app gets it as JSON under `site` of its node configuration.
        app: answers each message, one at a time; under `refuse` it gets the code with which it is
            to refuse a message that was not fetched.

    Raises:
        BadInput: the link's files are missing or wrong, the certificate has expired, or another
            process of this site is at work.
    """
    link = site.link
    if link is None:
        raise BadInput(
            "site.yaml: `link` is missing; add the server's address and the files that the "
            "coordinator sent."
        )
    state = state_folder(site)
    with lock_state(state):
        node_key = open_keys(state).node
        credentials = channel_credentials(link, node_key)
        traffic = Traffic()
        worker = _Worker(site, app, traffic)
        silence_s = _CALL_S + 2 * link.heartbeat_s
        with listening(link.health_port, lambda: traffic.health(silence_s=silence_s)):
            pauses, said = _Pauses(_FIRST_PAUSE_S, _LONGEST_PAUSE_S), ""
            while True:
                try:
                    with _connected(link, credentials, node_key, traffic) as connection:
                        worker.node = connection.activate(heartbeat_s=link.heartbeat_s)
                        logger.info("connected to %s", link.server)
                        said = ""
                        worker.serve(connection, link.heartbeat_s, on_contact=pauses.reset)
                except grpc.RpcError as error:
                    reason = _reason(error)
                    if reason != said:  # once, however long it lasts
                        logger.warning("%s: %s; trying again.", link.server, reason)
                        said = reason
                time.sleep(pauses.take())


class _Worker:
    """Answers messages; keeps a reply until the server has it or no longer wants it."""

    def __init__(self, site: SiteSettings, app: ClientApp, traffic: Traffic) -> None:
        self.node = 0
        self._traffic = traffic
        self._app = app
        self._site = site.model_dump_json()
        self._most_bytes = site.policy.max_message_mb * 1e6
        self._reply: Message | None = None
        self._last = ""  # id of the message that was answered last

    def serve(
        self, connection: Connection, heartbeat_s: float, *, on_contact: Callable[[], None]
    ) -> None:
        """Ask, answer and send, until the connection fails."""
        idle = _Pauses(_SHORT_PAUSE_S, _IDLE_PAUSE_S)
        again = _Pauses(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        with _heartbeat(connection, heartbeat_s):
            while True:
                self._send(connection)
                asked_s = time.monotonic()
                found = connection.ask()
                on_contact()
                if found is None:
                    if time.monotonic() - asked_s < 1.0:  # a server that doesn't let us wait
                        time.sleep(idle.take())
                    continue
                idle.reset()
                message, tree = found
                if message.metadata.message_id == self._last:  # our answer was not taken
                    time.sleep(again.take())
                else:
                    again.reset()
                self._last = message.metadata.message_id
                self._reply = self._answer(connection, message, tree)
                self._count(message.metadata.message_type)

    def _send(self, connection: Connection) -> None:
        if self._reply is None:
            return
        try:
            connection.send(self._reply)
        except grpc.RpcError as error:
            if error.code() not in _UNWANTED:
                raise
            logger.warning("the server no longer wants a reply (%s)", error.details())
            self._traffic.unwanted += 1
        self._reply = None

    def _count(self, kind: str) -> None:
        self._traffic.asked[kind if kind in _KINDS else "other"] += 1
        if self._reply is not None and self._reply.has_error():
            code = decode_refusal(self._reply.error)
            self._traffic.refused[code.value if code else "other"] += 1

    def _answer(self, connection: Connection, message: Message, tree: ObjectTree) -> Message | None:
        """The app's reply; None where the message was withdrawn meanwhile.

        What can't be fetched goes to the app as well, empty and with the reason, since every
        refusal gets its receipt there.
        """
        speak_for(self.node, run_id=message.metadata.run_id)
        config: UserConfig = {"site": self._site}
        try:
            if _least_bytes(tree) > self._most_bytes:
                raise _TooLarge
            message = connection.fetch(message, tree, most_bytes=self._most_bytes)
        except _TooLarge:
            config["refuse"] = RefusalCode.TOO_LARGE.value
        except ValueError:
            config["refuse"] = RefusalCode.BAD_INSTRUCTION.value
        except grpc.RpcError as error:
            if error.code() not in _UNWANTED:
                raise
            return None
        context = Context(message.metadata.run_id, self.node, config, RecordDict(), {})
        try:
            return self._app(message=message, context=context)
        except Exception as error:  # the process's edge; the text may hold a patient's name
            logger.error("the app failed (%s)", type(error).__name__)
            return Message(encode_refusal(RefusalCode.INTERNAL), reply_to=message)


def speak_for(node: int, *, run_id: int) -> None:
    """From now on Flower makes this process's messages in the name of this node and run."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, 1, node


@contextmanager
def _connected(
    link: Link,
    credentials: grpc.ChannelCredentials,
    node_key: ec.EllipticCurvePrivateKey,
    traffic: Traffic,
) -> Iterator[Connection]:
    with grpc.secure_channel(link.server, credentials, options=CHANNEL_OPTIONS) as channel:
        connection = Connection(channel, node_key, traffic)
        try:
            yield connection
        except KeyboardInterrupt:  # stopped: the server need not wait for our next sign of life
            with suppress(grpc.RpcError):
                connection.deactivate()
            raise


@contextmanager
def _heartbeat(connection: Connection, interval_s: float) -> Iterator[None]:
    """Signs of life while the block works; a lost one is no matter, the next call tells."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(interval_s):
            with suppress(grpc.RpcError, ValueError):  # ValueError: the channel is closed
                connection.heartbeat(heartbeat_s=interval_s)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()


def channel_credentials(
    link: Link, node_key: ec.EllipticCurvePrivateKey
) -> grpc.ChannelCredentials:
    """The files of a site's link as gRPC wants them; raises BadInput for a wrong one."""
    certificate = _file(link.certificate)
    _check_certificate(link.certificate, certificate, node_key)
    private_key = node_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return grpc.ssl_channel_credentials(_file(link.authority), private_key, certificate)


def _check_certificate(path: Path, content: bytes, node_key: ec.EllipticCurvePrivateKey) -> None:
    try:
        certificate = x509.load_pem_x509_certificate(content)
    except ValueError:
        raise BadInput(f"{path}: must be a certificate in PEM; ask the coordinator.") from None
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    ends = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    if certificate.public_key() != node_key.public_key():
        raise BadInput(
            f"{path}: is not for this site's node key; ask the coordinator to sign this site's "
            "request again."
        )
    if left <= datetime.timedelta():
        raise BadInput(
            f"{path}: the certificate has expired on {ends}; ask the coordinator to sign this "
            "site's request again."
        )
    if left.days < WARN_DAYS:
        logger.warning("%s: the certificate ends on %s; ask for a new one.", path, ends)


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(
            f"{path}: can't be read ({error.strerror}); the coordinator sends it. Put it there, "
            "or mend `link` in site.yaml."
        ) from None


def _least_bytes(tree: ObjectTree) -> int:
    """An array of n chunks has n - 1 full ones; nothing else has more than a few children."""
    most = max(len(node.children) for node in iterate_object_tree(tree))
    return max(0, most - 4) * CHUNK_BYTES


def _reason(error: grpc.RpcError) -> str:
    """What went wrong with a call, for the engineer."""
    code, details = error.code(), error.details() or ""
    if code in _AWAY:
        return f"can't be reached ({details[:200]})"
    return f"refuses this site ({details[:200]})"
