"""What fedward relies on inside Flower 1.39; a failure here means: read the new version first."""

from __future__ import annotations

import hashlib
import inspect
from importlib.metadata import version

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor
from flwr.common import constant
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2
from flwr.proto.fleet_pb2_grpc import FleetServicer
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.task_identity import TaskIdentity

from common.objects import CHUNK_BYTES, check_object, inflate_message
from server.link import Fleet


@pytest.fixture(autouse=True)
def _in_a_flower_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages can only be made by somebody."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def test_the_version_is_the_one_that_was_read() -> None:
    """1.39 is the last whose sites speak gRPC; its internals move between minors."""
    assert version("flwr").startswith("1.39.")


def test_the_fleet_protocol_has_the_calls_that_are_answered() -> None:
    """Each call of the protocol is answered by our own, and there is no other."""
    calls = {name for name in vars(FleetServicer) if not name.startswith("_")}
    assert calls == {
        "ActivateNode",
        "ConfirmMessageReceived",
        "DeactivateNode",
        "GetFab",
        "GetRun",
        "PullMessages",
        "PullObject",
        "PushMessages",
        "PushObject",
        "RegisterNode",
        "SendNodeHeartbeat",
        "UnregisterNode",
    }
    assert calls <= vars(Fleet).keys()


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (fleet_pb2.ActivateNodeRequest, {"public_key", "heartbeat_interval"}),
        (fleet_pb2.ActivateNodeResponse, {"node_id"}),
        (fleet_pb2.DeactivateNodeRequest, {"node_id"}),
        (fleet_pb2.PullMessagesRequest, {"node"}),
        (fleet_pb2.PullMessagesResponse, {"messages_list", "message_object_trees"}),
        (fleet_pb2.PushMessagesRequest, {"node", "messages_list", "message_object_trees"}),
        (fleet_pb2.PushMessagesResponse, {"results", "objects_to_push", "session_id"}),
        (heartbeat_pb2.SendNodeHeartbeatRequest, {"node", "heartbeat_interval"}),
        (message_pb2.ConfirmMessageReceivedRequest, {"node", "message_object_id"}),
        (message_pb2.ObjectTree, {"object_id", "children"}),
        (message_pb2.PullObjectRequest, {"node", "run_id", "object_id"}),
        (message_pb2.PullObjectResponse, {"object_found", "object_available", "object_content"}),
        (message_pb2.PushObjectRequest, {"node", "run_id", "object_id", "object_content"}),
        (message_pb2.PushObjectResponse, {"stored"}),
        (
            message_pb2.Metadata,
            {"message_id", "src_node_id", "dst_node_id", "reply_to_message_id", "message_type"},
        ),
    ],
)
def test_the_protocols_messages_have_the_fields_that_are_used(
    message: type, fields: set[str]
) -> None:
    """Fields are read and set by name."""
    assert fields <= {field.name for field in message.DESCRIPTOR.fields}  # type: ignore[attr-defined]


def test_the_constants_are_those_of_the_protocol() -> None:
    """Chunk size, the server's own node id, and the headers of the node authentication."""
    assert constant.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE == CHUNK_BYTES
    assert constant.SUPERLINK_NODE_ID == 1
    headers = constant.PUBLIC_KEY_HEADER, constant.TIMESTAMP_HEADER, constant.SIGNATURE_HEADER
    assert headers == ("flwr-public-key-bin", "flwr-timestamp", "flwr-signature-bin")
    source = inspect.getsource(NodeAuthClientInterceptor)
    assert "now().isoformat()" in source
    assert 'timestamp.encode("ascii")' in source


def test_objects_are_written_as_they_are_read_here() -> None:
    """Every kind of record comes back from Flower's objects, in one piece and named by hash."""
    array = Array(np.arange(2 * CHUNK_BYTES // 4 + 3, dtype=np.float32))
    again = Array(np.zeros(3 * CHUNK_BYTES // 4, dtype=np.float32))  # the same chunk, repeatedly
    content = RecordDict(
        {
            "a": ArrayRecord({"x": array, "zeros": again}),
            "c": ConfigRecord({"text": "é", "n": 3, "raw": b"\0\1", "yes": True}),
            "m": MetricRecord({"loss": 0.1}),
        }
    )
    message = Message(content, 7, "train", group_id="3")
    with no_object_id_recompute():
        objects = {name: o.deflate() for name, o in get_all_nested_objects(message).items()}
        tree = get_object_tree(message)
    assert {node.object_id for node in iterate_object_tree(tree)} == objects.keys()
    for node in iterate_object_tree(tree):
        found = objects[node.object_id]
        assert hashlib.sha256(found).hexdigest() == node.object_id
        assert check_object(node.object_id, found) == tuple(c.object_id for c in node.children)
    read = inflate_message(tree.object_id, objects.__getitem__, most_bytes=10 * CHUNK_BYTES)
    assert read.object_id == message.object_id
    assert read.content.array_records["a"]["x"].data == array.data
    assert read.content.array_records["a"]["zeros"].data == again.data
    with pytest.raises(ValueError, match="no message"):
        inflate_message(tree.object_id, objects.__getitem__, most_bytes=4 * CHUNK_BYTES)


def test_envelopes_travel_without_content() -> None:
    """What announces a message holds its metadata and its error, and none of its content."""
    message = Message(RecordDict({"c": ConfigRecord({"secret": 1})}), 7, "train")
    message.metadata.__dict__["_message_id"] = message.object_id
    sent = message_to_proto(remove_content_from_message(message))
    assert b"secret" not in sent.SerializeToString()
    read = message_from_proto(sent)
    assert read.metadata.message_id == message.metadata.message_id
    reply = Message(Error(1001, "why"), reply_to=read)
    assert message_from_proto(message_to_proto(reply)).error.code == 1001
    assert reply.metadata.reply_to_message_id == message.metadata.message_id
    assert ArrayChunk(memoryview(b"x")).deflate() == b"ArrayChunk  1\0x"
