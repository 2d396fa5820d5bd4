"""The network part of `fedward site check`: would the server let this site in?

Name, port, TLS, certificates, node key and clock, in this order, until something is wrong. It makes
the calls with which a site says that it is there and that it leaves (not where its own process is
there, which hasn't left), and sends nothing else.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from client.link import CHANNEL_OPTIONS, Connection, channel_credentials
from client.state import lock_state
from common.certificates import WARN_DAYS, days_left
from common.config import Link
from common.errors import BadInput

_CALL_S = 10.0
_CLOCK_S = 60.0  # off by more is worth a sentence; the server refuses five minutes
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # as gRPC looks for them
_NO_PROXIES = ("no_grpc_proxy", "no_proxy")


@dataclass(frozen=True, slots=True)
class Looked:
    """One thing that was looked at, in a sentence."""

    sentence: str
    mend: bool = False  # the site can't take part before it is mended
    attention: bool = False


def look(link: Link, node_key: ec.EllipticCurvePrivateKey, *, state: Path) -> Iterator[Looked]:
    """Go the way that `fedward site run` goes; ends with the first thing that is wrong.

    Args:
        link: how the site reaches the server.
        node_key: the site's own key.
        state: its state folder, which a running site holds.
    """
    try:
        credentials = channel_credentials(link, node_key)
        left = days_left(link.certificate.read_bytes(), now=datetime.datetime.now(datetime.UTC))
    except BadInput as error:
        yield Looked(str(error), mend=True)
        return
    said = f"the site's certificate is for its node key and lasts {left:.0f} days"
    soon = left < WARN_DAYS
    yield Looked(said + ("; ask the coordinator for a new one." if soon else "."), attention=soon)
    if _through_proxy(link.server):
        yield Looked("the server is reached through the HTTP proxy that the environment names.")
    else:
        wrong = yield from _look_directly(link)
        if wrong:
            return
    yield from _look_inside(link, credentials, node_key, state)


def _through_proxy(server: str) -> bool:
    """Whether gRPC goes through a proxy: its own reading of the environment (`http_proxy_mapper`).

    The first of the variables that is there counts; an entry is the end of a host's name, or an
    address or network.
    """
    if not any(os.environ.get(name) for name in _PROXIES):
        return False
    host = server.rsplit(":", 1)[0].strip("[]")
    said = next((os.environ[name] for name in _NO_PROXIES if name in os.environ), "")
    entries = [entry.strip() for entry in said.split(",") if entry.strip()]
    return not any(host.lower().endswith(e.lower()) or _is_within(host, e) for e in entries)


def _is_within(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:  # names
        return False


def at_work(state: Path) -> bool:
    """Whether a process of the site holds its state folder just now; makes no file."""
    if not (state / "lock").is_file():
        return False
    try:
        with lock_state(state):
            return False
    except BadInput:
        return True


def _look_directly(link: Link) -> Generator[Looked, None, bool]:
    """Name, port and the server's certificate; returns whether something is wrong."""
    host, port = link.server.rsplit(":", 1)
    host = host.strip("[]")
    context = ssl.create_default_context(cafile=str(link.authority))
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, int(port)), timeout=_CALL_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            shown = secure.getpeercert(binary_form=True)
    except socket.gaierror:
        yield Looked(f"the name {host} isn't known here: mend `link.server`, or DNS.", mend=True)
        return True
    except ssl.SSLCertVerificationError as error:
        yield Looked(
            f"what answers at {link.server} has no certificate of the federation's authority for "
            f"that name, valid now ({error.verify_message}); ask the coordinator.",
            mend=True,
        )
        return True
    except OSError as error:  # also where TLS fails in another way, or ends
        yield Looked(
            f"nobody answers at {link.server} ({error.strerror or type(error).__name__}): is the "
            "server running, and does the firewall let this machine out to it?",
            attention=True,
        )
        return True
    assert shown is not None  # verified above
    end = x509.load_der_x509_certificate(shown).not_valid_after_utc
    yield Looked(
        f"{link.server} answers by TLS, with a certificate of the federation's authority that ends "
        f"on {end:%Y-%m-%d}."
    )
    return False


def _look_inside(
    link: Link,
    credentials: grpc.ChannelCredentials,
    node_key: ec.EllipticCurvePrivateKey,
    state: Path,
) -> Iterator[Looked]:
    """Whether the server knows the node key, and how far the clocks are apart."""
    with grpc.secure_channel(link.server, credentials, options=CHANNEL_OPTIONS) as channel:
        connection = Connection(channel, node_key)
        try:
            off_s = connection.compare_clocks(timeout_s=_CALL_S)
            if not at_work(state):
                connection.deactivate()
        except grpc.RpcError as error:
            away = error.code() in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
            )
            details = (error.details() or "")[:200]
            said = "can't be reached" if away else "refuses this site"
            yield Looked(f"{link.server} {said} ({details}).", mend=not away, attention=away)
            return
    yield Looked("the server knows this site by its certificate and node key.")
    if off_s is None:
        return
    off = f"this machine's clock is {abs(off_s):.0f} s {'behind' if off_s > 0 else 'ahead of'}"
    far = abs(off_s) > _CLOCK_S
    remedy = "; set it, best by NTP: the server refuses a site that is five minutes off."
    yield Looked(f"{off} the server's{remedy if far else '.'}", attention=far)
