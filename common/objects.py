"""A Flower message put together from its content-addressed objects, in little memory and bounds.

An object is `KIND CHILDREN SIZE\\0BODY` and its name is the SHA-256 of that (flwr 1.39,
`supercore/inflatable`); a message holds records, which hold arrays, which hold chunks of 5 MiB.
Flower's own way to put one together holds an array three times; this holds it once, and never more
than it was told.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

Read = Callable[[str], bytes]  # an object's content by its name
Thing = Array | ArrayRecord | ConfigRecord | Message | MetricRecord | RecordDict

CHUNK = "ArrayChunk"
CHUNK_BYTES = 5 * 2**20  # all chunks of an array but its last
MOST_CHUNK_BYTES = CHUNK_BYTES + 1024  # with its head
NO_MESSAGE = "the objects make no message"
MOST_OTHER_BYTES = 2**18  # records and messages: text and a few numbers
_KINDS: dict[str, type[ArrayRecord | ConfigRecord | Message | MetricRecord | RecordDict]] = {
    "ArrayRecord": ArrayRecord,
    "ConfigRecord": ConfigRecord,
    "Message": Message,
    "MetricRecord": MetricRecord,
    "RecordDict": RecordDict,
}


def check_object(object_id: str, content: bytes) -> tuple[str, ...]:
    """The names of an object's children, if it is one.

    Raises:
        ValueError: it is none; of a few texts, none with anything of the object's in it.
    """
    if hashlib.sha256(content).hexdigest() != object_id:
        raise ValueError("an object's name must be the hash of its content")
    kind, children, body = _parts(content)
    if kind != CHUNK and kind != "Array" and kind not in _KINDS:
        raise ValueError("an object of an unknown kind")
    if len(content) > (MOST_CHUNK_BYTES if kind == CHUNK else MOST_OTHER_BYTES):
        raise ValueError("an object larger than its kind may be")
    if kind == CHUNK and (children or not body):
        raise ValueError("a chunk must hold bytes, and no other object")
    return children


def inflate_message(message_id: str, read: Read, *, most_bytes: int) -> Message:
    """Put a message together.

    Args:
        message_id: the name of the message's own object.
        read: gives an object's content, once `check_object` has passed it.
        most_bytes: the largest size of all its arrays together.

    Raises:
        ValueError: the objects make no message.
    """
    left = [most_bytes]
    try:
        message = _inflate(message_id, read, left)
    except Exception:  # whatever Flower's parsers meet in bytes that somebody composed
        raise ValueError(NO_MESSAGE) from None
    if not isinstance(message, Message):
        raise ValueError(NO_MESSAGE)
    return message


def _inflate(object_id: str, read: Read, left: list[int]) -> Thing:
    """An object with all below it; what its arrays take is taken from `left`, a number of bytes."""
    content = read(object_id)
    kind, children, body = _parts(content)
    if kind == "Array":
        return _array(json.loads(bytes(body)), children, read, left)
    found: dict[str, Any] = {child: _inflate(child, read, left) for child in children}
    return _KINDS[kind].inflate(content, found)


def _array(
    described: dict[str, object], children: tuple[str, ...], read: Read, left: list[int]
) -> Array:
    """An array, filled chunk by chunk."""
    places, shape = described["arraychunk_ids"], described["shape"]
    if not isinstance(shape, list) or not isinstance(places, list):
        raise ValueError("an array must have a shape and chunks")
    data = io.BytesIO()  # hands its bytes over uncopied
    for place in places:
        _, _, body = _parts(read(children[place]))
        left[0] -= len(body)
        if left[0] < 0:
            raise ValueError("an array larger than it may be")
        data.write(body)
    stype = str(described["stype"])
    return Array(str(described["dtype"]), tuple(shape), stype, data.getvalue())


def _parts(content: bytes) -> tuple[str, tuple[str, ...], memoryview]:
    """Kind, names of the children, body."""
    end = content.find(b"\0", 0, MOST_OTHER_BYTES)
    if end < 0:
        raise ValueError("an object must have a head")
    head = content[:end].split(b" ")
    if len(head) != 3 or not content[:end].isascii():
        raise ValueError("an object's head must be its kind, its children and its size")
    kind, children, size = (part.decode("ascii") for part in head)
    body = memoryview(content)[end + 1 :]
    if size != str(len(body)):
        raise ValueError("an object's head must say its size")
    named = tuple(children.split(",")) if children else ()
    if kind != "Array" and len(set(named)) < len(named):  # each would be made anew
        raise ValueError("an object must name each child once")
    return kind, named, body
