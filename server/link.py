"""The server's end of Flower's Fleet protocol (flwr 1.39): an own gRPC server, and a Grid over it.

Flower's own Fleet service is not used, only its protocol: once a node is known, it lets that node
instruct, answer for and disturb others; it forgets an instruction once it is handed out, so a site
that is killed misses the round; and it answers in a site's name after a minute of silence. Here
every call comes through the door (`server/door.py`) and reaches the caller's own box alone
(`server/mailbox.py`): there is no way to name another site. Asking for messages waits until there
is one, so nobody has to poll.

Each call is taken as a stream of one request: so the caller is known before anything of it is read,
and one that never sends its request holds nobody's place but its own.
"""

# ruff: noqa: N802 # the protocol's own names
from __future__ import annotations

import ctypes
import datetime
import functools
import logging
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc
from cryptography import x509
from flwr.app import Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.constant import (
    PUBLIC_KEY_HEADER,
    SIGNATURE_HEADER,
    SUPERLINK_NODE_ID,
    TIMESTAMP_HEADER,
)
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from common.errors import BadInput, RunFailed
from common.health import Health, Sample, memory
from common.messages import CLOCK_HEADER, REVOKED, TRAIN, UNREACHABLE, payload_bytes, signed
from common.objects import MOST_CHUNK_BYTES, NO_MESSAGE, inflate_message
from common.signing import Sign, read_signing_key
from server.door import CALLS_AT_ONCE, Credentials, Door, Refused, Register, named, node_id
from server.mailbox import Mailboxes, Posted, Upload, most_objects
from server.presence import Waiting

logger = logging.getLogger("fedward.link")

RUN_ID = 1  # nothing is keyed on Flower's runs
HOLD_S = 20.0  # how long a site's call for messages may wait; sites allow for more
_POLL_PAUSE_S = 0.2
HANDSHAKE_S = 10.0  # for TCP and TLS, before anything is known of the caller
_TAKE_S = 0.25  # how long the Grid waits for a reply before the rounds look at their deadline
_REPLY_EXTRA_BYTES = 2**18  # a reply may be as large as what was asked, and its metrics and heads
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # mallopt(3)
_MUCH_BYTES = 2**22  # of a reply, after which memory is worth tidying
_MOST_DEPTH = 8  # message, records, record, array, chunk
_SAY_MISSING_S = 60.0
_NOT_YET = "has not called yet"
_STOP_S = 10.0  # gRPC's own end, past its grace
_MOST_CALL_S = 120.0  # the longest deadline of a call: so long it may hold its site's places

_LARGE = ("PullObject", "PushObject")  # calls that carry an object
_NEVER_ASKED = "of nothing it was asked"
_NO_LONGER = "of what is no longer asked"
_REFUSED = {
    "unknown": grpc.StatusCode.UNAUTHENTICATED,
    "forbidden": grpc.StatusCode.PERMISSION_DENIED,
    "busy": grpc.StatusCode.RESOURCE_EXHAUSTED,
}

Request = TypeVar("Request")
Response = TypeVar("Response")


class _Bad(Exception):
    """A call of a known site that can't be done; not counted as an attack where it is `late`.

    `reason` is one of a few texts: it is counted and logged by it.
    """

    def __init__(self, reason: str, *, late: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.late = late


def _guarded(
    do: Callable[[Fleet, str, Request], Response],
) -> Callable[[Fleet, Iterator[Request], grpc.ServicerContext], Response]:
    """A method of the protocol that is done for the site that calls, and for nobody else."""

    @functools.wraps(do)
    def method(self: Fleet, requests: Iterator[Request], context: grpc.ServicerContext) -> Response:
        credentials = _credentials(context)
        context.set_trailing_metadata(((CLOCK_HEADER, f"{time.time():.3f}"),))
        try:
            site = self.door.admit(credentials)
            with self.door.one_of_few(site):
                if do.__name__ in _LARGE:
                    give_back = self.door.one_large(site, timeout_s=_left_s(context))
                    if not context.add_callback(give_back):  # the caller is gone
                        give_back()
                request = _only(requests)
                self.door.check_node(site, _node(request))
                if self.boxes.hear(site):
                    logger.info("site %s is here", site)
                return do(self, site, request)
        except Refused as refused:
            self.door.note(named(credentials.certificate), refused.counted)
            code, reason = _REFUSED[refused.why], refused.reason
        except _Bad as bad:
            if bad.late:
                self.door.note_late(site)
            else:
                self.door.note(site, bad.reason)
            code = grpc.StatusCode.NOT_FOUND if bad.late else grpc.StatusCode.INVALID_ARGUMENT
            reason = bad.reason
        except Exception as error:  # the process's edge: one site's call must not end the study
            logger.exception("a call of %s failed", named(credentials.certificate))
            full = isinstance(error, OSError)  # the disk, which somebody may mend
            code = grpc.StatusCode.UNAVAILABLE if full else grpc.StatusCode.INTERNAL
            reason = "the server can't do it now; its own log says why"
        context.abort(code, reason)
        raise AssertionError("abort raises")

    return method


class Fleet:
    """Flower's Fleet protocol over the boxes."""

    def __init__(self, door: Door, boxes: Mailboxes) -> None:
        self.door = door
        self.boxes = boxes

    @_guarded
    def ActivateNode(self, site: str, request: ActivateNodeRequest) -> ActivateNodeResponse:
        """Tell a site its node id."""
        return ActivateNodeResponse(node_id=node_id(site))

    @_guarded
    def DeactivateNode(self, site: str, request: DeactivateNodeRequest) -> DeactivateNodeResponse:
        """A site says that it stops; what it was asked waits for its return."""
        self.boxes.leave(site)
        logger.info("site %s has left", site)
        return DeactivateNodeResponse()

    @_guarded
    def SendNodeHeartbeat(
        self, site: str, request: SendNodeHeartbeatRequest
    ) -> SendNodeHeartbeatResponse:
        """A site says that it is alive."""
        return SendNodeHeartbeatResponse(success=True)

    @_guarded
    def PullMessages(self, site: str, request: PullMessagesRequest) -> PullMessagesResponse:
        """What a site is to answer, as soon as there is something; nothing after a while."""
        posted = self.boxes.wait_for_post(site, timeout_s=HOLD_S)
        self.door.check(site)  # it may have been revoked while it waited
        if posted is None:
            return PullMessagesResponse()
        return PullMessagesResponse(
            messages_list=[posted.message], message_object_trees=[posted.tree]
        )

    @_guarded
    def PullObject(self, site: str, request: PullObjectRequest) -> PullObjectResponse:
        """An object of what the site was asked."""
        try:
            content = self.boxes.posted(site).read(request.object_id)
        except KeyError:
            raise self._not_asked(site, request.object_id) from None
        self.boxes.count_down(len(content))
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    @_guarded
    def ConfirmMessageReceived(
        self, site: str, request: ConfirmMessageReceivedRequest
    ) -> ConfirmMessageReceivedResponse:
        """A site has fetched its message, which stays here until it is answered all the same."""
        try:
            self.boxes.posted(site, request.message_object_id)
        except KeyError:
            raise self._not_asked(site, request.message_object_id) from None
        return ConfirmMessageReceivedResponse()

    @_guarded
    def PushMessages(self, site: str, request: PushMessagesRequest) -> PushMessagesResponse:
        """Announce a reply: to what the site was asked, from the site, to the server."""
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise _Bad("not one message")
        (message,), (tree,) = request.messages_list, request.message_object_trees
        metadata = message.metadata
        if not metadata.reply_to_message_id:
            raise _Bad("a message that is no reply")
        if metadata.src_node_id != node_id(site) or metadata.dst_node_id != SUPERLINK_NODE_ID:
            raise _Bad("a reply in another's name, or to another")
        asked = metadata.reply_to_message_id
        try:
            most = most_objects(self.boxes.posted(site, asked).most_reply_bytes)
            missing = self.boxes.begin_reply(
                site, asked, tree.object_id, _flat(tree, most_objects=most)
            )
        except KeyError:
            raise self._not_asked(site, asked) from None
        except ValueError as error:
            raise _Bad(str(error)) from None
        return PushMessagesResponse(
            results={metadata.message_id: 0}, objects_to_push=missing, session_id=tree.object_id
        )

    @_guarded
    def PushObject(self, site: str, request: PushObjectRequest) -> PushObjectResponse:
        """An object of the reply that the site has announced."""
        try:
            self.boxes.add(site, request.object_id, request.object_content)
        except KeyError:
            # Not by the session that the call names: it may name any.
            late = self.boxes.is_late_reply(site, request.object_id)
            raise _Bad(_NO_LONGER if late else _NEVER_ASKED, late=late) from None
        except ValueError as error:
            raise _Bad(str(error)) from None
        return PushObjectResponse(stored=True)

    @_guarded
    def _refuse(self, site: str, request: Any) -> NoReturn:
        """Sites are enrolled by the coordinator alone, and code never travels."""
        raise _Bad("not offered here")

    def _not_asked(self, site: str, name: str) -> _Bad:
        late = self.boxes.is_late(site, asked=name)
        return _Bad(_NO_LONGER if late else _NEVER_ASKED, late=late)

    RegisterNode: Any = _refuse
    UnregisterNode: Any = _refuse
    GetRun: Any = _refuse
    GetFab: Any = _refuse


class LinkGrid(Grid):
    """A Grid whose nodes are the enrolled sites, wherever they are."""

    def __init__(self, door: Door, boxes: Mailboxes, *, sign: Sign) -> None:
        self._door = door
        self._boxes = boxes
        self._sign = sign
        self._run = Run.create_empty(RUN_ID)
        self._asked: dict[str, Message] = {}  # by site, without content
        self._names: dict[int, str] = {}  # of every site that was ever in, by node id
        self._round = 0
        self._paused = False  # a plain flag: a signal's handler sets it, in whatever it interrupts
        self.paused_s = 0.0  # in all

    @property
    def sites(self) -> dict[int, str]:
        """The sites that are in, by node id."""
        found = {node_id(site): site for site in sorted(self._door.register.sites())}
        self._names |= found
        return found

    def set_run(self, run: Run) -> None:
        """Set the run, as Flower's processes do."""
        self._run = run

    @property
    def run(self) -> Run:
        """The one run of this process."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to a site."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes of sites that can be reached."""
        return [node for node, site in self.sites.items() if self._reachable(site)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sign messages and put them into their sites' boxes; returns their ids.

        Waits while paused: what was asked before is still answered meanwhile.
        """
        began_s = time.monotonic()
        while self._paused:
            time.sleep(_POLL_PAUSE_S)
        self.paused_s += time.monotonic() - began_s
        ids = []
        with no_object_id_recompute():  # arrays are shared: hashed once for all sites
            for message in messages:
                site = self._site(message.metadata.dst_node_id)  # revoked: nobody can fetch it
                kind = message.metadata.message_type
                if kind == TRAIN and message.metadata.group_id.isdecimal():
                    self._round = int(message.metadata.group_id)
                message.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
                message.content = signed(message.content, self._sign, kind=kind, site=site)
                posted = _posted(message)
                self._asked[site] = remove_content_from_message(message)
                self._boxes.post(site, posted)
                ids.append(posted.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """One reply to one of these messages, after a short wait; one, to have one in memory."""
        ids = set(message_ids)
        taken = self._boxes.take(ids, timeout_s=_TAKE_S)
        if taken is not None:
            site, posted, upload = taken
            if upload.size > _MUCH_BYTES:
                _trim_memory()
            try:
                return [self._reply(site, posted, upload)]
            finally:
                upload.close()
        for site, asked in self._asked.items():
            if asked.metadata.message_id in ids and not self._reachable(site):
                self._boxes.withdraw(site)
                return [self._absent(site, asked)]
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """All replies that come in time."""
        waiting = set(self.push_messages(messages))
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (end is None or time.monotonic() < end):
            arrived = list(self.pull_messages(waiting))
            replies += arrived
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
        return replies

    def wait_for_sites(
        self,
        minimum: int,
        *,
        timeout_s: float,
        tell: Callable[[Waiting], object] = lambda _: None,
    ) -> None:
        """Wait until so many sites have called; `tell` hears whom it waits for, at each change.

        Raises:
            RunFailed: too few have, in all that time; says who is missing.
        """
        end, say, until = time.monotonic() + timeout_s, 0.0, time.time() + timeout_s
        known: set[str] | None = None
        while len(here := set(self._boxes.here()) & set(self.sites.values())) < minimum:
            away = sorted(set(self.sites.values()) - here)
            missing = ", ".join(away)
            if known != (known := here):
                tell(Waiting(minimum - len(here), dict.fromkeys(away, _NOT_YET), until))
            if time.monotonic() > end:
                raise RunFailed(
                    f"{len(here)} of the {minimum} sites that the study needs have called within "
                    f"{timeout_s:g} s; missing: {missing}. Ask them to run `fedward site run`, "
                    "then start the same command again."
                )
            if time.monotonic() > say:
                logger.info("waiting for %d of %s", minimum - len(here), missing)
                say = time.monotonic() + _SAY_MISSING_S
            time.sleep(0.1)

    def pause(self) -> None:
        """Ask nothing more of the sites until told to go on; they stay connected."""
        self._paused = True
        logger.warning("paused: nothing is asked of the sites until SIGUSR2")

    def go_on(self) -> None:
        """End a pause."""
        self._paused = False
        logger.warning("going on")

    def health(self) -> Health:
        """How the link is: who is here, what has come and gone."""
        here, boxes, door = set(self._boxes.here()), self._boxes, self._door
        sites = sorted(self.sites.values())
        wrong = {
            "federation.yaml can't be read, so nobody can be revoked": door.register.wrong,
            "paused until SIGUSR2": self._paused,
        }
        return Health(
            wrong="; ".join(text for text, holds in wrong.items() if holds),
            samples=(
                Sample("fedward_round", self._round, "The round that was asked for last."),
                Sample("fedward_paused", self._paused, "1 while paused."),
                Sample("fedward_waiting_sites", boxes.waiting(), "Sites that are to answer."),
                *(
                    Sample(
                        "fedward_site_here",
                        site in here,
                        "1: has called and not left.",
                        labels={"site": site},
                    )
                    for site in sites
                ),
                *(
                    Sample(
                        "fedward_site_silent_seconds",
                        boxes.silent_s(site),
                        "Since a site called last, or the server began.",
                        labels={"site": site},
                    )
                    for site in sites
                ),
                *(
                    Sample(
                        "fedward_refused_calls_total",
                        count,
                        "Calls that were refused.",
                        "counter",
                        {"site": site, "reason": reason},
                    )
                    for (site, reason), count in sorted(self.refused().items())
                ),
                *(
                    Sample(
                        "fedward_late_calls_total",
                        count,
                        "Calls about what was withdrawn meanwhile.",
                        "counter",
                        {"site": site},
                    )
                    for site, count in sorted(self.late().items())
                ),
                Sample("fedward_replies_total", boxes.replies, "Whole replies.", "counter"),
                Sample("fedward_received_bytes_total", boxes.bytes_up, "Of replies.", "counter"),
                Sample(
                    "fedward_sent_bytes_total", boxes.bytes_down, "Of what was asked.", "counter"
                ),
                *memory(),
            ),
        )

    def refused(self) -> Mapping[tuple[str, str], int]:
        """How many calls were refused so far, by site and reason."""
        return dict(self._door.refused)

    def late(self) -> Mapping[str, int]:
        """How many calls came too late so far, by site."""
        return dict(self._door.late)

    def _reply(self, site: str, posted: Posted, upload: Upload) -> Message:
        """What came back, in an envelope of our own: nothing of the site's is taken from it."""
        asked = self._asked[site]
        if not self._reachable(site):  # revoked since
            return self._absent(site, asked)
        try:
            reply = inflate_message(
                upload.reply_id, upload.read, most_bytes=posted.most_reply_bytes
            )
        except ValueError:
            self._door.note(site, NO_MESSAGE)
            return Message(RecordDict(), reply_to=asked)  # which the rounds leave out as bad
        if reply.has_error():
            return Message(reply.error, reply_to=asked)
        return Message(reply.content if reply.has_content() else RecordDict(), reply_to=asked)

    def _reachable(self, site: str) -> bool:
        most_s = self._door.register.federation.offline_after_s
        return site in self._door.register.sites() and self._boxes.silent_s(site) <= most_s

    def _absent(self, site: str, asked: Message) -> Message:
        """What is answered in place of a site that can't answer."""
        if site in self._door.register.sites():
            return Message(Error(UNREACHABLE, "not reachable"), reply_to=asked)
        return Message(Error(REVOKED, "revoked"), reply_to=asked)

    def _site(self, node: int) -> str:
        return self.sites.get(node) or self._names[node]


@contextmanager
def open_link(federation_file: Path, *, folder: Path) -> Iterator[LinkGrid]:
    """Listen for the federation's sites while the block runs.

    Args:
        federation_file: federation.yaml; what it revokes while this runs is out at once.
        folder: where replies wait until the rounds take them.

    Raises:
        BadInput: a file is missing or wrong, a certificate has expired, the port is taken.
    """
    _give_memory_back()
    _open_many_files()
    register = Register(federation_file)
    federation = register.federation
    sign = read_signing_key(federation.coordinator_key)
    certificate = read_certificate(federation.certificate)
    credentials = grpc.ssl_server_credentials(
        [(_file(federation.certificate_key), certificate)],
        root_certificates=read_certificate(federation.authority),
        require_client_auth=True,
    )
    TaskIdentity.run_id, TaskIdentity.task_id = RUN_ID, 1
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    boxes, door = Mailboxes(folder), Door(register)
    calls = CALLS_AT_ONCE * len(federation.sites) + 8
    server = grpc.server(
        ThreadPoolExecutor(calls, thread_name_prefix="call"),
        options=_options(),
        maximum_concurrent_rpcs=calls,
    )
    server.add_generic_rpc_handlers((_handler(Fleet(door, boxes)),))
    try:
        server.add_secure_port(federation.listen, credentials)
    except RuntimeError:
        raise BadInput(
            f"federation.yaml: `listen` {federation.listen} can't be used; is another server "
            "running there? Stop it, or change the port."
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    server.start()
    logger.info("listening on %s for %d sites", federation.listen, len(register.sites()))
    try:
        yield LinkGrid(door, boxes, sign=sign)
    finally:
        boxes.close()
        server.stop(grace=1.0).wait(_STOP_S)


def read_certificate(path: Path) -> bytes:
    """A certificate (PEM) that is valid now; raises BadInput."""
    content = _file(path)
    try:
        certificate = x509.load_pem_x509_certificate(content)
    except ValueError:
        raise BadInput(f"{path}: must be a certificate in PEM; make it again.") from None
    end = certificate.not_valid_after_utc
    if end < datetime.datetime.now(datetime.UTC):
        raise BadInput(f"{path}: the certificate has expired on {end:%Y-%m-%d}; make a new one.")
    return content


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(
            f"{path}: can't be read ({error.strerror}); put it there, or mend federation.yaml."
        ) from None


def _open_many_files() -> None:
    """As many file descriptors as the system allows; each connection takes one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # a sandbox that allows no change
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _give_memory_back() -> None:
    """Let freed chunks go back to the system at once, which glibc would keep, a few a thread."""
    with suppress(OSError, AttributeError):  # another C library keeps what it likes
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, 2**20)
        library.mallopt(_M_ARENA_MAX, 2)  # else a heap a thread, each as full as it ever was


def _trim_memory() -> None:
    """Give back what is free in between: TLS leaves a model's bytes in thousands of pieces."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _options() -> list[tuple[str, int]]:
    largest = MOST_CHUNK_BYTES + 2**16
    return [
        ("grpc.so_reuseport", 0),  # a second server on the port is refused, and doesn't share it
        ("grpc.max_receive_message_length", largest),
        ("grpc.max_send_message_length", largest),
        ("grpc.max_concurrent_streams", CALLS_AT_ONCE),  # on one connection
        # What a call that has to wait for its turn may send ahead; without, many sites' calls would
        # each have a whole object in memory.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 2**18),
        # Whoever has no certificate, or doesn't call, holds no file descriptor for long. A site
        # calls at each heartbeat, and gRPC connects it anew by itself if it doesn't.
        ("grpc.server_handshake_timeout_ms", round(HANDSHAKE_S * 1000)),
        ("grpc.max_connection_idle_ms", 600_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]


def _posted(message: Message) -> Posted:
    """A message as it waits in a box; gives it its id. Chunks stay views of the shared arrays."""
    message_id = message.object_id
    message.metadata.__dict__["_message_id"] = message_id
    objects: dict[str, bytes | InflatableObject] = {
        object_id: found if isinstance(found, ArrayChunk) else found.deflate()
        for object_id, found in get_all_nested_objects(message).items()
    }
    return Posted(
        message_id=message_id,
        message=message_to_proto(remove_content_from_message(message)),
        tree=get_object_tree(message),
        objects=objects,
        most_reply_bytes=payload_bytes(message.content) + _REPLY_EXTRA_BYTES,
    )


def _handler(fleet: Fleet) -> grpc.GenericRpcHandler:
    """The protocol's methods by their names, each for a stream that brings its one request."""
    service = fleet_pb2.DESCRIPTOR.services_by_name["Fleet"]
    methods = {
        method.name: grpc.stream_unary_rpc_method_handler(
            getattr(fleet, method.name),
            request_deserializer=functools.partial(_read, method.input_type._concrete_class),
            response_serializer=method.output_type._concrete_class.SerializeToString,
        )
        for method in service.methods
    }
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _read(kind: Any, content: bytes) -> Any:
    """A request, or the error: gRPC itself would end the call without a word about whose it is."""
    try:
        return kind.FromString(content)
    except DecodeError as error:
        return error


def _only(requests: Iterator[Request]) -> Request:
    """The request of a call, once it is there."""
    try:
        request = next(requests)
    except StopIteration:
        raise _Bad("a call without a request") from None
    except grpc.RpcError:  # its line broke
        raise _Bad("a call that broke off", late=True) from None
    if isinstance(request, DecodeError):
        raise _Bad("a request that can't be read")
    return request


def _left_s(context: grpc.ServicerContext) -> float:
    """Seconds until a call's deadline, which its caller sets; raises Refused where it is far."""
    left: float | None = context.time_remaining()
    if left is None or left > _MOST_CALL_S:
        raise Refused(f"the call's deadline is not within {_MOST_CALL_S:g} s")
    return left


def _flat(tree: ObjectTree, *, most_objects: int) -> dict[str, tuple[str, ...]]:
    """Each object's children; raises _Bad for a tree that no message has, before it is read."""
    found: dict[str, tuple[str, ...]] = {}
    left = [most_objects]  # an array may have the same chunk again: once in the tree all the same

    def add(node: ObjectTree, depth: int) -> None:
        left[0] -= 1
        if len(node.children) > left[0] or left[0] < 0:
            raise _Bad("a reply of more objects than it may have")
        children = tuple(child.object_id for child in node.children)
        if depth > _MOST_DEPTH or found.setdefault(node.object_id, children) != children:
            raise _Bad("a reply whose objects make no message")
        for child in node.children:
            add(child, depth + 1)

    add(tree, 1)
    return found


def _node(request: Any) -> int | None:
    """The node id that a request speaks for; None where it asks for one."""
    if isinstance(request, ActivateNodeRequest):
        return None
    if "node" in request.DESCRIPTOR.fields_by_name:
        return int(request.node.node_id)
    return int(getattr(request, "node_id", 0))


def _credentials(context: grpc.ServicerContext) -> Credentials:
    metadata = dict(context.invocation_metadata())
    (certificate,) = context.auth_context()["x509_pem_cert"]  # TLS let nobody in without
    shown = metadata.get(TIMESTAMP_HEADER, "")
    return Credentials(
        certificate=certificate,
        public_key=bytes(metadata.get(PUBLIC_KEY_HEADER, b"")),
        time=shown if isinstance(shown, str) else "",
        signature=bytes(metadata.get(SIGNATURE_HEADER, b"")),
    )
