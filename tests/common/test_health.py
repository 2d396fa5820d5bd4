"""What a process says about itself: well-formed, on loopback, and nothing that nobody asked for."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from common.errors import BadInput
from common.health import Health, Sample, listening, memory, prometheus_text


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def asking(found: Health) -> Iterator[http.client.HTTPConnection]:
    """A connection to a process that is so."""
    port = free_port()
    with listening(port, lambda: found):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            yield connection
        finally:
            connection.close()


def get(connection: http.client.HTTPConnection, path: str) -> tuple[int, str]:
    """Status and text."""
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_numbers_are_written_as_prometheus_reads_them() -> None:
    """One head a name, labels with what would end them escaped, large counts in full."""
    samples = [
        Sample("fedward_a_total", 2**40, "A.", "counter", {"site": 'a"b\\c\nd'}),
        Sample("fedward_a_total", 1, "A.", "counter", {"site": "x"}),
        Sample("fedward_b_seconds", 0.25, "B."),
    ]
    assert prometheus_text(samples).splitlines() == [
        "# HELP fedward_a_total A.",
        "# TYPE fedward_a_total counter",
        'fedward_a_total{site="a\\"b\\\\c\\nd"} 1099511627776',
        'fedward_a_total{site="x"} 1',
        "# HELP fedward_b_seconds B.",
        "# TYPE fedward_b_seconds gauge",
        "fedward_b_seconds 0.25",
    ]


def test_health_and_metrics_are_answered() -> None:
    """200 while all is well, 503 with the sentence when it isn't, 404 for anything else."""
    with asking(Health("", memory())) as connection:
        assert get(connection, "/health") == (200, "ok\n")
        status, text = get(connection, "/metrics")
        assert status == 200
        assert "fedward_resident_bytes " in text
        assert get(connection, "/etc/passwd")[0] == 404
        connection.request("POST", "/health")
        assert connection.getresponse().status == 501
    with asking(Health("paused", ())) as connection:
        assert get(connection, "/health") == (503, "paused\n")


def test_only_this_machine_is_answered() -> None:
    """It listens on the loopback address alone."""
    port = free_port()
    with listening(port, lambda: Health("", ())):
        table = open("/proc/net/tcp").read()  # noqa: SIM115
    addresses = [row.split()[1] for row in table.splitlines()[1:]]
    assert [one.split(":")[0] for one in addresses if one.endswith(f":{port:04X}")] == ["0100007F"]


def test_a_port_in_use_is_a_sentence() -> None:
    """It says which setting to change; without a port nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match="health_port"), listening(port, lambda: Health("", ())):
            pass
    with listening(None, lambda: Health("", ())):
        pass
