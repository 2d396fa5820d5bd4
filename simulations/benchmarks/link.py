"""What the link costs: rounds of a 1 MB model with three sites, and memory at 350 MB.

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
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.enrolment import certificate_request
from client.keys import open_keys
from client.link import run_site
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
IDLE_S = 10.0


def measure() -> dict[str, object]:
    """Median seconds of a round, idle CPU, and peaks of memory."""
    small = _study(SMALL, sites=SMALL_SITES, rounds=SMALL_ROUNDS, idle_s=IDLE_S)
    large = _study(LARGE, sites=LARGE_SITES, rounds=LARGE_ROUNDS, idle_s=0.0)
    return {
        "median_round_s": small["median_round_s"],
        "small": small,
        "large": large,
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
            idle_before = _cpu_s()
            time.sleep(idle_s)
            idle = (_cpu_s() - idle_before) / idle_s if idle_s else None
            before = _resident_bytes()
            federation = Federation(study, 0, grid.sites, layout, root / "run")
            (root / "run").mkdir()
            run_rounds(
                grid, federation, np.random.default_rng(0).random(layout.size, dtype=np.float32)
            )
        history = read_history(root / "run" / "history.jsonl")
        lines = [line for line in history if not line.get("closing")]
        if any(len(line["joined"]) < sites for line in lines):
            raise AssertionError("a site missed a round: it is no fair measurement")
        peaks = [_peak_of(pipe) for pipe in pipes]
    found: dict[str, object] = {
        "bytes": size_bytes,
        "sites": sites,
        "median_round_s": round(statistics.median(line["seconds"] for line in lines[1:]), 3),
    }
    if idle is not None:
        return found | {"server_idle_cpu": round(idle, 4)}
    return found | {  # of a small model they would only tell what gRPC needs
        "server_peak_models": round((_peak_bytes() - before) / size_bytes, 2),
        "site_peak_models": round(max(peaks) / size_bytes, 2),
    }


@contextmanager
def _federation(folder: Path, names: list[str]) -> Iterator[list[Connection]]:
    """Enrol sites and start their processes; gives a pipe to each."""
    now = datetime.datetime.now(datetime.UTC)
    provision.make_authority(folder, name="benchmark", now=now)
    provision.make_server_certificate(folder, host="127.0.0.1", now=now)
    provision.make_coordinator_key(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    lines = [f"listen: {address}", "sites:"]
    processes, pipes = [], []
    context = multiprocessing.get_context("spawn")
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
        site = SiteSettings(name=name, state=state, link=link, policy=Policy())
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(site.model_dump_json(), theirs), daemon=True)
        processes.append(process)
        pipes.append(ours)
    (folder / "federation.yaml").write_text("\n".join(lines) + "\n")
    try:
        for process in processes:
            process.start()
        yield pipes
    finally:
        for process in processes:
            process.kill()
            process.join()


def _serve(text: str, pipe: Connection) -> None:
    """A site's process: answers with the weights plus one, and says its peak when asked."""
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
        pipe.recv()
        pipe.send(_peak_bytes() - before)

    threading.Thread(target=tell, daemon=True).start()
    run_site(SiteSettings.model_validate_json(text), app)


def _peak_of(pipe: Connection) -> int:
    pipe.send("peak")
    peak: int = pipe.recv()
    return peak


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
