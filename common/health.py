"""What a process says about itself on loopback: health, and numbers as Prometheus reads them.

The text format is Prometheus' 0.0.4. It listens on 127.0.0.1 alone, answers GET alone, and holds
counts, times and sizes: nobody's data, no path, no key.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

from common.errors import BadInput


@dataclass(frozen=True, slots=True)
class Sample:
    """One number; samples of one name stand together, with different labels."""

    name: str  # fedward_..., with its unit; a counter ends in _total
    value: float
    about: str  # one sentence for the name
    kind: Literal["counter", "gauge"] = "gauge"
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Health:
    """How a process is now."""

    wrong: str  # what is wrong, in a sentence; empty where nothing is
    samples: tuple[Sample, ...]


def memory() -> tuple[Sample, Sample]:
    """Resident memory of this process, now and at most."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    resident = pages * resource.getpagesize()
    return (
        Sample("fedward_resident_bytes", resident, "Resident memory."),
        Sample("fedward_resident_peak_bytes", peak, "The most resident memory so far."),
    )


def prometheus_text(samples: Iterable[Sample]) -> str:
    r"""Samples in Prometheus' text format.

    >>> print(prometheus_text([Sample("fedward_rounds_total", 3, "Rounds.", "counter")]), end="")
    # HELP fedward_rounds_total Rounds.
    # TYPE fedward_rounds_total counter
    fedward_rounds_total 3
    """
    lines, said = [], set()
    for sample in samples:
        if sample.name not in said:
            lines += [f"# HELP {sample.name} {sample.about}", f"# TYPE {sample.name} {sample.kind}"]
            said.add(sample.name)
        labels = ",".join(f'{key}="{_escaped(text)}"' for key, text in sample.labels.items())
        lines.append(
            f"{sample.name}{{{labels}}} {sample.value:.15g}"
            if labels
            else f"{sample.name} {sample.value:.15g}"
        )
    return "\n".join(lines) + "\n"


@contextmanager
def listening(port: int | None, look: Callable[[], Health]) -> Iterator[None]:
    """Answer on 127.0.0.1 while the block runs: `/health` (200 or 503) and `/metrics`.

    Args:
        port: None: nobody listens.
        look: asked anew for each answer, from another thread.

    Raises:
        BadInput: the port can't be used.
    """
    if port is None:
        yield
        return

    class Answer(BaseHTTPRequestHandler):
        timeout = 5  # seconds for a request to come

        def do_GET(self) -> None:
            if self.path not in ("/health", "/metrics"):
                self._send(404, "expected /health or /metrics\n")
                return
            found = look()
            if self.path == "/metrics":
                self._send(200, prometheus_text(found.samples))
            else:
                self._send(503 if found.wrong else 200, f"{found.wrong or 'ok'}\n")

        def _send(self, status: int, text: str) -> None:
            content = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_said: object) -> None:
            """Whoever looks is not logged."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Answer)
    except OSError as error:
        raise BadInput(
            f"health_port {port} can't be used ({error.strerror}); choose another, or leave it out."
        ) from None
    thread = threading.Thread(target=server.serve_forever, name="health", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
