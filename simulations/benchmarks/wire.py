"""What a short wire saves and costs: bytes on the socket, and how far the update is off.

A server and a site on this machine with mutual TLS; every byte between them goes through a counter
below TLS, so that gRPC's, TLS' and Flower's own are in. Updates are normal, of another scale for
each of twenty layers, and the same for each wire; after three rounds the weights are compared with
the exact sum.
"""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import get_args

import grpc
import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from client.keys import open_keys
from client.link import CHANNEL_OPTIONS, Connection, channel_credentials
from common.config import SiteSettings, Study, Wire, parse
from common.errors import RefusalCode
from common.messages import EVALUATE, TRAIN, Reply, decode_instruction, encode_refusal, encode_reply
from common.models import Layout
from common.wire import short
from server.exchange import Federation
from server.link import open_link
from server.rounds import run_rounds
from simulations.benchmarks.link import enrol

SIZE, LAYERS, ROUNDS = 2_500_000, 20, 3  # values: 10 MB as float32


class _Counter:
    """Bytes that have gone up to the server, and down from it."""

    up = 0
    down = 0


def measure() -> dict[str, object]:
    """Bytes a round and relative error of the summed update, for each wire."""
    found: dict[str, object] = {"values": SIZE, "rounds": ROUNDS}
    for wire in get_args(Wire):
        found[wire] = _measured(wire)
    return found


def _measured(wire: Wire) -> dict[str, float]:
    content = {
        "classes": ["a", "b"],
        "data": {"kind": "manifest"},
        "training": {"rounds": ROUNDS},
        "federation": {"wire": wire},
    }
    study = parse(Study, content, where="benchmark")
    layout = Layout(("w",), ((SIZE,),))
    initial = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    counter = _Counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (site,) = enrol(root, ["site"])
        with (
            open_link(root / "federation.yaml", folder=root / "replies") as grid,
            _counting(site, counter) as address,
            _serving(site, address, wire),
        ):
            (root / "run").mkdir()
            federation = Federation(study, 0, grid.sites, layout, root / "run")
            final = run_rounds(grid, federation, initial).weights
    exact = sum((_update(number) for number in range(1, ROUNDS + 1)), np.zeros(SIZE, np.float32))
    off = np.linalg.norm((final - initial) - exact) / np.linalg.norm(exact)
    return {
        "up_bytes_a_round": round(counter.up / ROUNDS),
        "up_bytes_a_value": round(counter.up / ROUNDS / SIZE, 3),
        "down_bytes_a_round": round(counter.down / ROUNDS),
        "relative_error": float(f"{off:.2e}"),
    }


def _update(round_number: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(round_number)
    scales = np.repeat(10.0 ** -np.linspace(1, 4, LAYERS), SIZE // LAYERS)
    return (rng.normal(size=SIZE) * scales).astype(np.float32)


@contextmanager
def _serving(site: SiteSettings, address: str, wire: Wire) -> Iterator[None]:
    """The site, as a thread; it ends when the server does."""
    assert site.link is not None
    assert site.state is not None
    node_key = open_keys(site.state).node
    credentials = channel_credentials(site.link, node_key)

    def serve() -> None:
        with (
            suppress(grpc.RpcError),  # the server has ended
            grpc.secure_channel(address, credentials, CHANNEL_OPTIONS) as channel,
        ):
            connection = Connection(channel, node_key)
            connection.activate(heartbeat_s=30)
            while True:
                found = connection.ask()
                if found is not None:
                    connection.send(_answer(connection.fetch(*found, most_bytes=1e9), wire))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield


def _answer(message: Message, wire: Wire) -> Message:
    kind = message.metadata.message_type
    if kind not in (TRAIN, EVALUATE):
        return Message(encode_refusal(RefusalCode.BAD_INSTRUCTION), reply_to=message)
    if kind == EVALUATE:
        return Message(encode_reply(Reply(None, {})), reply_to=message)
    instruction = decode_instruction(
        message.content, kind=kind, site="site", verify=lambda _text, _signature: True
    )
    update = _update(instruction.round_number)
    if wire == "float32":
        leaving = instruction.weights + update
    else:
        leaving = short(update, wire, np.random.default_rng(instruction.round_number))
    return Message(encode_reply(Reply(leaving, {}), wire=wire), reply_to=message)


@contextmanager
def _counting(site: SiteSettings, counter: _Counter) -> Iterator[str]:
    """Forwards a port to the server and counts; gives the address to dial."""
    assert site.link is not None
    host, port = site.link.server.rsplit(":", 1)

    def forward(source: socket.socket, target: socket.socket, name: str) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
                setattr(counter, name, getattr(counter, name) + len(data))

    def accept(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                inner, _ = listening.accept()
                outer = socket.create_connection((host, int(port)))
                for ends in ((inner, outer, "up"), (outer, inner, "down")):
                    threading.Thread(target=forward, args=ends, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, args=(listening,), daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
