"""An enrolled site sends what is valid but for one field: refused or left out, and no harm done."""

from __future__ import annotations

import hashlib
import json
import math
import random
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import Array, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.node_pb2 import Node

import server.link
from client.keys import open_keys
from client.link import CHANNEL_OPTIONS, Connection
from common.messages import Reply, decode_reply, encode_reply
from server.door import node_id
from server.link import LinkGrid, open_link

WEIGHTS = np.arange(5000, dtype=np.float32)
Enrol = Callable[..., Path]
MOST_S = 60.0  # no test waits longer, and none has to be faster
Pieces = list[list[Any]]  # of an object: kind, names of its children, body


@contextmanager
def connected(folder: Path, site: str, address: str) -> Iterator[Connection]:
    """A site's connection."""
    key: ec.EllipticCurvePrivateKey = open_keys(folder / site / "state").node
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    certificate = (folder / site / "site.pem").read_bytes()
    credentials = grpc.ssl_channel_credentials(
        (folder / "ca.pem").read_bytes(), private, certificate
    )
    with grpc.secure_channel(address, credentials, CHANNEL_OPTIONS) as channel:
        connection = Connection(channel, key)
        connection.activate(heartbeat_s=30)
        yield connection


@pytest.fixture
def hostile(
    tmp_path: Path, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[LinkGrid, Connection, Path]]:
    """A server, a hostile site's connection to it, and the federation's folder."""
    monkeypatch.setattr(server.link, "HOLD_S", 0.0)
    monkeypatch.setattr(server.link, "_TAKE_S", 0.02)
    monkeypatch.setattr("server.door.MOST_CALLS", 1_000_000)
    path = enrol(tmp_path / "federation", {"alpha": "", "mallory": ""})
    with open_link(path, folder=tmp_path / "replies") as grid:
        address = grid._door.register.federation.listen
        with connected(path.parent, "mallory", address) as connection:
            yield grid, connection, path.parent


def unharmed(grid: LinkGrid, folder: Path) -> None:
    """The other site's reply comes back whole."""

    def answer() -> None:
        with connected(folder, "alpha", grid._door.register.federation.listen) as connection:
            found, end = None, time.monotonic() + MOST_S
            while found is None:
                assert time.monotonic() < end
                found = connection.ask()
            message = connection.fetch(*found, most_bytes=1e9)
            connection.send(Message(encode_reply(Reply(WEIGHTS, {})), reply_to=message))

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    message = Message(encode_reply(Reply(WEIGHTS, {})), node_id("alpha"), "train")
    (reply,) = grid.send_and_receive([message], timeout=MOST_S)
    thread.join(MOST_S)
    assert decode_reply(reply.content).weights is not None


def spoil(message: Any, rng: random.Random) -> None:
    """Change one field of a protobuf message, or of one inside it."""
    field = rng.choice(message.DESCRIPTOR.fields)
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value.clear()
    elif field.message_type is not None:
        inner = (
            value if not hasattr(value, "add") else (rng.choice(value) if value else value.add())
        )
        if hasattr(value, "add") and rng.random() < 0.3:
            value.add().CopyFrom(inner)
        else:
            spoil(inner, rng)
    elif hasattr(value, "append"):
        text = field.type == field.TYPE_STRING
        value.append(value[0] if value else ("x" if text else 0))
    else:
        setattr(message, field.name, another(value, rng))


def another(value: Any, rng: random.Random) -> Any:
    """A value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([0, 1, 2, node_id("alpha"), 2**31 - 1])
    if isinstance(value, float):
        return rng.choice([math.nan, math.inf, -1.0, 0.0, 1e300])
    if isinstance(value, bytes):
        return rng.choice([b"", value[:-1], value + b"\0", rng.randbytes(50), b"\xff" * 100_000])
    return rng.choice(["", value[:-1], value + "0", "f" * 64, "\u0000", "é" * 1000])


def calls(asked: str, rng: random.Random) -> list[tuple[str, Any]]:
    """One valid call of each kind."""
    node = Node(node_id=node_id("mallory"))
    chunk = b"ArrayChunk  4\0data"
    name = hashlib.sha256(chunk).hexdigest()
    reply = MessageProto()
    reply.metadata.message_id = reply.metadata.message_type = "train"
    reply.metadata.src_node_id, reply.metadata.dst_node_id = node.node_id, 1
    reply.metadata.reply_to_message_id = asked
    tree = ObjectTree(object_id=name)
    return [
        ("ActivateNode", ActivateNodeRequest(public_key=b"", heartbeat_interval=30)),
        ("DeactivateNode", DeactivateNodeRequest(node_id=node.node_id)),
        ("SendNodeHeartbeat", SendNodeHeartbeatRequest(node=node, heartbeat_interval=30)),
        ("PullMessages", PullMessagesRequest(node=node)),
        ("PullObject", PullObjectRequest(node=node, run_id=1, object_id=asked)),
        (
            "ConfirmMessageReceived",
            ConfirmMessageReceivedRequest(node=node, run_id=1, message_object_id=asked),
        ),
        (
            "PushMessages",
            PushMessagesRequest(
                node=node,
                messages_list=[reply],
                message_object_trees=[tree],
                clientapp_runtime_list=[1.0],
            ),
        ),
        (
            "PushObject",
            PushObjectRequest(node=node, run_id=1, object_id=name, object_content=chunk),
        ),
    ]


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.long)])
def test_calls_with_one_wrong_field_do_no_harm(
    hostile: tuple[LinkGrid, Connection, Path], count: int
) -> None:
    """None of them ends in a fault of the server, and the study goes on."""
    grid, connection, folder = hostile
    rng = random.Random(1)
    codes = set()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        if number % 50 == 0:
            message = Message(encode_reply(Reply(WEIGHTS, {})), node_id("mallory"), "train")
            (asked,) = grid.push_messages([message])
        name, request = rng.choice(calls(asked, rng))
        if rng.random() < 0.9:
            spoil(request, rng)
        try:
            connection._call(name, request)
        except grpc.RpcError as error:
            codes.add(error.code())
    status = grpc.StatusCode
    assert codes <= {status.INVALID_ARGUMENT, status.PERMISSION_DENIED, status.NOT_FOUND}
    assert len(codes) >= 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    unharmed(grid, folder)


def send(connection: Connection, asked: str, root: str, contents: dict[str, bytes]) -> None:
    """Announce and send objects as a reply."""

    def tree(name: str) -> ObjectTree:
        names = contents[name].split(b"\0")[0].decode().split(" ")[1].split(",")
        return ObjectTree(object_id=name, children=[tree(child) for child in names if child])

    reply = MessageProto()
    reply.metadata.src_node_id, reply.metadata.dst_node_id = node_id("mallory"), 1
    reply.metadata.reply_to_message_id = asked
    node = Node(node_id=node_id("mallory"))
    request = PushMessagesRequest(
        node=node, messages_list=[reply], message_object_trees=[tree(root)]
    )
    for name in connection._call("PushMessages", request).objects_to_push:
        pushed = PushObjectRequest(
            node=node, run_id=1, object_id=name, object_content=contents[name]
        )
        connection._call("PushObject", pushed)


def spoiled(rng: random.Random) -> tuple[str, dict[str, bytes]]:
    """A reply as objects, each well named, with one thing in one of them changed."""
    chunk, array = spoiled_array(rng)
    arrays = made("ArrayRecord", [array[0]], json.dumps({"packed": array[0]}).encode())
    metrics = MetricRecord({"loss": rng.choice([0.5, math.nan, 1, [1.0, 2.0]])})
    config = ConfigRecord({"head": rng.choice(["1:" + "0" * 64, "x", b"x"])})
    parts = {"weights": arrays, "metrics": (metrics.object_id, metrics.deflate())}
    if rng.random() < 0.5:
        parts["receipts"] = (config.object_id, config.deflate())
    if rng.random() < 0.1:
        parts[rng.choice(["more", "instruction"])] = arrays
    names = {name: part[0] for name, part in parts.items()}
    if rng.random() < 0.1:
        names["metrics"] = rng.choice([array[0], "f" * 64, ""])
    content = made(
        rng.choice(["RecordDict"] * 9 + ["ArrayRecord"]),
        list(dict.fromkeys(part[0] for part in parts.values())),
        json.dumps(names).encode(),
    )
    envelope = Message(RecordDict(), node_id("mallory"), "train").deflate().split(b"\0", 1)[1]
    body = rng.choice([envelope] * 9 + [rng.randbytes(20), b"", envelope[:-3]])
    message = made(rng.choice(["Message"] * 9 + ["RecordDict"]), [content[0]], body)
    objects = [chunk, array, *parts.values(), content, message]
    return message[0], dict(objects)


def spoiled_array(rng: random.Random) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    """A chunk and its array, one of whose properties may be anything."""
    good = Array(WEIGHTS)
    data = rng.choice([good.data] * 3 + [good.data[:-1], b"\x93NUMPY", good.data + b"\0" * 4])
    chunk = made("ArrayChunk", [], data)
    described: dict[str, Any] = {
        "dtype": "float32",
        "shape": [5000],
        "stype": "numpy.ndarray",
        "arraychunk_ids": [0],
    }
    described[rng.choice(list(described))] = rng.choice(
        [None, [], [-1], [0, 0], [0] * 60_000, [2**60], "object", {"a": 1}, [[0]], math.nan]
    )
    return chunk, made("Array", [chunk[0]], json.dumps(described).encode())


def made(kind: str, children: list[str], body: bytes) -> tuple[str, bytes]:
    """An object's name and content, as Flower writes them."""
    content = f"{kind} {','.join(children)} {len(body)}".encode() + b"\0" + body
    return hashlib.sha256(content).hexdigest(), content


@pytest.mark.parametrize("count", [120, pytest.param(3_000, marks=pytest.mark.long)])
def test_replies_with_one_wrong_part_are_left_out(
    hostile: tuple[LinkGrid, Connection, Path], count: int
) -> None:
    """Shapes, sizes, nesting, NaN and types: what comes out is a good reply or none."""
    grid, connection, folder = hostile
    rng = random.Random(2)
    good, codes = 0, set()
    for _ in range(count):
        message = Message(encode_reply(Reply(WEIGHTS, {})), node_id("mallory"), "train")
        (asked,) = grid.push_messages([message])
        try:
            send(connection, asked, *spoiled(rng))
        except grpc.RpcError as error:
            codes.add(error.code())
            continue
        (reply,) = list(grid.pull_messages([asked]))
        assert not reply.has_error()
        try:
            answer = decode_reply(reply.content)
        except ValueError:
            continue
        good += 1
        assert answer.weights is None or answer.weights.dtype == np.float32
    assert 0 < good < count
    assert codes <= {grpc.StatusCode.INVALID_ARGUMENT}
    unharmed(grid, folder)


def test_a_good_reply_passes_the_same_way(hostile: tuple[LinkGrid, Connection, Path]) -> None:
    """The way by which the spoiled ones are sent lets an unspoiled one through."""
    grid, connection, _ = hostile
    message = Message(encode_reply(Reply(WEIGHTS, {})), node_id("mallory"), "train")
    (asked,) = grid.push_messages([message])
    chunk = made("ArrayChunk", [], Array(WEIGHTS).data)
    described = {
        "dtype": "float32",
        "shape": [5000],
        "stype": "numpy.ndarray",
        "arraychunk_ids": [0],
    }
    array = made("Array", [chunk[0]], json.dumps(described).encode())
    arrays = made("ArrayRecord", [array[0]], json.dumps({"packed": array[0]}).encode())
    metrics = MetricRecord({})
    parts = [arrays, (metrics.object_id, metrics.deflate())]
    names = {"weights": arrays[0], "metrics": metrics.object_id}
    content = made("RecordDict", [part[0] for part in parts], json.dumps(names).encode())
    envelope = Message(RecordDict(), node_id("mallory"), "train").deflate().split(b"\0", 1)[1]
    root = made("Message", [content[0]], envelope)
    send(connection, asked, root[0], dict([chunk, array, *parts, content, root]))
    (reply,) = list(grid.pull_messages([asked]))
    weights = decode_reply(reply.content).weights
    assert weights is not None
    assert np.array_equal(weights, WEIGHTS)
