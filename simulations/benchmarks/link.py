"""What the link costs: rounds of a 1 MB model with three sites, memory at 350 MB and with 64 sites.

Server and sites are processes of this machine with mutual TLS; training adds one. A round is all
that a round is: instruct, answer, reply, check, spool, average, checkpoint. Peaks are of resident
memory above what each process held before the study began, in models.
"""

from __future__ import annotations

import datetime
import multiprocessing
import resource
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import grpc
import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.enrolment import certificate_request
from client.keys import open_keys
from client.link import CHANNEL_OPTIONS, channel_credentials, run_site, speak_for
from client.link import Connection as Server
from common.config import Link, Policy, SiteSettings, Study, parse
from common.errors import RefusalCode
from common.messages import Reply, decode_instruction, encode_refusal, encode_reply
from common.models import Layout
from server import provision
from server.checkpoint import read_history
from server.exchange import Federation
from server.link import open_link
from server.rounds import run_rounds

SMALL, SMALL_SITES, SMALL_ROUNDS = 1_000_000, 3, 25  # bytes
LARGE, LARGE_SITES, LARGE_ROUNDS = 350_000_000, 2, 2
CROWD, CROWD_BYTES = 64, 44_700_000  # sites that push a ResNet-18 at once
WARM_ROUNDS, LONG_ROUNDS = 50, 500
IDLE_S = 10.0


@dataclass(frozen=True, slots=True)
class _Held:
    """What a site's process says of itself."""

    peak_bytes: int  # above what it began with
    resident_bytes: int
    cpu_s: float  # so far


def measure() -> dict[str, object]:
    """Median seconds of a round, idle CPU, and peaks of memory."""
    small = _study(SMALL, sites=SMALL_SITES, rounds=SMALL_ROUNDS, idle_s=IDLE_S)
    large = _study(LARGE, sites=LARGE_SITES, rounds=LARGE_ROUNDS, idle_s=0.0)
    return {
        "median_round_s": small["median_round_s"],
        "small": small,
        "large": large,
        "crowd": _crowd(),
        "growth": _growth(),
    }


def _study(size_bytes: int, *, sites: int, rounds: int, idle_s: float) -> dict[str, object]:
    names = [f"site-{number}" for number in range(sites)]
    content = {"classes": ["a", "b"], "data": {"kind": "manifest"}, "training": {"rounds": rounds}}
    study = parse(Study, content, where="benchmark")
    layout = Layout(("w",), ((size_bytes // 4,),))
    with tempfile.TemporaryDirectory() as folder, _federation(Path(folder), names) as pipes:
        root = Path(folder)
        with open_link(root / "federation.yaml", folder=root / "replies") as grid:
            grid.wait_for_sites(sites, timeout_s=120)
            before_s = [_cpu_s(), *(_tells(pipe).cpu_s for pipe in pipes)]
            time.sleep(idle_s)
            after_s = [_cpu_s(), *(_tells(pipe).cpu_s for pipe in pipes)]
            before = _reset_peak()
            federation = Federation(study, 0, grid.sites, layout, root / "run")
            (root / "run").mkdir()
            run_rounds(
                grid, federation, np.random.default_rng(0).random(layout.size, dtype=np.float32)
            )
        history = read_history(root / "run" / "history.jsonl")
        lines = [line for line in history if not line.get("closing")]
        if any(len(line["joined"]) < sites for line in lines):
            raise AssertionError("a site missed a round: it is no fair measurement")
        peaks = [_tells(pipe).peak_bytes for pipe in pipes]
    found: dict[str, object] = {
        "bytes": size_bytes,
        "sites": sites,
        "median_round_s": round(statistics.median(line["seconds"] for line in lines[1:]), 3),
    }
    if idle_s:
        server, *own = (
            round((after - before) / idle_s, 4)
            for before, after in zip(before_s, after_s, strict=True)
        )
        return found | {"server_idle_cpu": server, "site_idle_cpu": max(own)}
    return found | {  # of a small model they would only tell what gRPC needs
        "server_peak_models": round((_peak_bytes() - before) / size_bytes, 2),
        "site_peak_models": round(max(peaks) / size_bytes, 2),
    }


def _crowd() -> dict[str, object]:
    """Many sites push at once; they are threads of one process, and share what they push."""
    names = [f"site-{number:02}" for number in range(CROWD)]
    content = {"classes": ["a", "b"], "data": {"kind": "manifest"}, "training": {"rounds": 1}}
    study = parse(Study, content, where="benchmark")
    layout = Layout(("w",), ((CROWD_BYTES // 4,),))
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        texts = [site.model_dump_json() for site in enrol(root, names)]
        process = context.Process(target=_push, args=(texts,), daemon=True)
        with open_link(root / "federation.yaml", folder=root / "replies") as grid:
            process.start()
            try:
                grid.wait_for_sites(CROWD, timeout_s=300)
                federation = Federation(study, 0, grid.sites, layout, root / "run")
                (root / "run").mkdir()
                initial = np.zeros(layout.size, dtype=np.float32)
                before = _reset_peak()
                run_rounds(grid, federation, initial)
            finally:
                process.kill()
                process.join()
        line = read_history(root / "run" / "history.jsonl")[0]
        if len(line["joined"]) < CROWD:
            raise AssertionError(f"sites missed the round: {line['left_out']}")
    above = _peak_bytes() - before
    return {
        "bytes": CROWD_BYTES,
        "sites": CROWD,
        "round_s": line["seconds"],
        "server_peak_models": round(above / CROWD_BYTES, 2),
        "server_peak_bound_models": round((4 * CROWD_BYTES + 64e6) / CROWD_BYTES, 2),
    }


def _push(texts: list[str]) -> None:
    """The crowd's process: each site pushes the same weights without fetching what it was sent."""
    reply = encode_reply(Reply(np.ones(CROWD_BYTES // 4, dtype=np.float32), {}))
    speak_for(1, run_id=1)

    def serve(site: SiteSettings) -> None:
        assert site.link is not None
        assert site.state is not None
        node_key = open_keys(site.state).node
        credentials = channel_credentials(site.link, node_key)
        options = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
        with grpc.secure_channel(site.link.server, credentials, options) as channel:
            server = Server(channel, node_key)
            server.activate(heartbeat_s=30)
            while True:
                found = server.ask()
                if found is None:
                    continue
                message = found[0]
                if message.metadata.message_type == "train":
                    server.send(Message(reply, reply_to=message))
                else:
                    refusal = encode_refusal(RefusalCode.BAD_INSTRUCTION)
                    server.send(Message(refusal, reply_to=message))

    sites = [SiteSettings.model_validate_json(text) for text in texts]
    threads = [threading.Thread(target=serve, args=(site,), daemon=True) for site in sites]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _growth() -> dict[str, object]:
    """Resident memory that many trivial rounds add, in MB, after the first few."""
    layout = Layout(("w",), ((2500,),))
    with tempfile.TemporaryDirectory() as folder, _federation(Path(folder), ["a", "b"]) as pipes:
        root = Path(folder)
        with open_link(root / "federation.yaml", folder=root / "replies") as grid:
            grid.wait_for_sites(2, timeout_s=120)
            found: list[list[int]] = []
            for number, rounds in enumerate((WARM_ROUNDS, LONG_ROUNDS)):
                content = {
                    "classes": ["a", "b"],
                    "data": {"kind": "manifest"},
                    "training": {"rounds": rounds},
                }
                study = parse(Study, content, where="benchmark")
                out = root / f"run-{number}"
                out.mkdir()
                federation = Federation(study, 0, grid.sites, layout, out)
                run_rounds(grid, federation, np.zeros(layout.size, dtype=np.float32))
                found.append([_resident_bytes(), *(_tells(pipe).resident_bytes for pipe in pipes)])
    server, *sites = (
        round((after - before) / 1e6, 1) for before, after in zip(*found, strict=True)
    )
    return {"rounds": LONG_ROUNDS, "server_mb": server, "site_mb": max(sites)}


def enrol(folder: Path, names: list[str]) -> list[SiteSettings]:
    """Make a federation in a folder: federation.yaml, all keys, and each site's settings."""
    now = datetime.datetime.now(datetime.UTC)
    provision.make_authority(folder, name="benchmark", now=now)
    provision.make_server_certificate(folder, host="127.0.0.1", now=now)
    provision.make_coordinator_key(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    lines = [f"listen: {address}", "sites:"]
    settings = []
    for name in names:
        state = folder / name
        request = certificate_request(open_keys(state).node, site=name)
        (state / "site.pem").write_bytes(
            provision.sign_request(folder, request, site=name, now=now)
        )
        lines.append(f"  {name}: {{node_key: {provision.node_key(request)}}}")
        link = Link(
            server=address,
            authority=folder / provision.AUTHORITY,
            certificate=state / "site.pem",
            coordinator=folder / provision.COORDINATOR,
        )
        settings.append(SiteSettings(name=name, state=state, link=link, policy=Policy()))
    (folder / "federation.yaml").write_text("\n".join(lines) + "\n")
    return settings


@contextmanager
def _federation(folder: Path, names: list[str]) -> Iterator[list[Connection]]:
    """Enrol sites and start their processes; gives a pipe to each."""
    processes, pipes = [], []
    context = multiprocessing.get_context("spawn")
    for site in enrol(folder, names):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(site.model_dump_json(), theirs), daemon=True)
        processes.append(process)
        pipes.append(ours)
    try:
        for process in processes:
            process.start()
        yield pipes
    finally:
        for process in processes:
            process.kill()
            process.join()


def _serve(text: str, pipe: Connection) -> None:
    """A site's process: answers with the weights plus one, and tells what it holds when asked."""
    app = ClientApp()
    before = _resident_bytes()

    @app.train()
    def on_train(message: Message, context: Context) -> Message:
        weights = decode_instruction(message.content).weights + np.float32(1)
        return Message(encode_reply(Reply(weights, {})), reply_to=message)

    @app.evaluate()
    def on_evaluate(message: Message, context: Context) -> Message:
        return Message(encode_reply(Reply(None, {})), reply_to=message)

    @app.query()
    def on_query(message: Message, context: Context) -> Message:
        return Message(encode_refusal(RefusalCode.BAD_INSTRUCTION), reply_to=message)

    def tell() -> None:
        while True:
            pipe.recv()
            pipe.send(_Held(_peak_bytes() - before, _resident_bytes(), _cpu_s()))

    threading.Thread(target=tell, daemon=True).start()
    run_site(SiteSettings.model_validate_json(text), app)


def _tells(pipe: Connection) -> _Held:
    pipe.send("tell")
    found: _Held = pipe.recv()
    return found


def _reset_peak() -> int:
    """Let the peak begin anew; returns what is resident now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # proc(5)
    return _resident_bytes()


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak) * 1024


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
