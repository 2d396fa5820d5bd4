"""Who is calling: certificate, node key and node id must be one site, on every call.

TLS has already checked that the certificate is by the federation's authority and that the caller
holds its key. Here it must carry the node key that federation.yaml lists for the site it names; the
call must be signed by that key (Flower's node authentication: a signature of the time) and speak
for that site's node id. federation.yaml is read again when it changes, so a site that is revoked
there is out at its next call.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import NameOID

from common.config import FederationFile, load_federation
from common.errors import BadInput

logger = logging.getLogger("fedward.link")
CLOCK_S = 300.0  # how far a site's clock may be off
CALLS_AT_ONCE = 8  # of one site: one waits, one sends or fetches, one is a sign of life
LARGE_AT_ONCE = 4  # objects on their way, of all sites: each takes several times 5 MiB
MOST_CALLS = 512  # at once after a pause; then so many a second
_LOOK_AGAIN_S = 1.0


class Refused(Exception):
    """A call that is not answered; `reason` goes to the caller and to the log."""

    def __init__(
        self,
        reason: str,
        *,
        why: Literal["unknown", "forbidden", "busy"] = "unknown",
        counted: str | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.why = why
        self.counted = counted or reason  # under which it is counted: without numbers of its own


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a call brings along."""

    certificate: bytes  # PEM, checked by TLS
    public_key: bytes  # PEM
    time: str  # ISO 8601
    signature: bytes  # of the time, by that key


def node_id(site: str) -> int:
    """A site's node id: the same in every run and after every restart; never Flower's 0 or 1."""
    return int.from_bytes(hashlib.sha256(site.encode()).digest()[:7]) + 2


class Register:
    """federation.yaml as it is now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._changed()  # before: what changes meanwhile is read again
        self.federation = load_federation(path)
        self.wrong = ""  # why the file can't be read now; until then it counts as it was
        self._looked_s = time.monotonic()
        self._lock = threading.Lock()

    def sites(self) -> Mapping[str, bytes]:
        """The node keys (PEM) of the sites that are in, by their names."""
        with self._lock:
            if time.monotonic() - self._looked_s >= _LOOK_AGAIN_S:
                self._looked_s = time.monotonic()
                self._look()
            return _keys(self.federation)

    def _look(self) -> None:
        stamp = self._changed()
        if stamp == self._stamp:
            self.wrong = ""
            return
        try:
            loaded = load_federation(self._path)
            _keys(loaded)  # one that can't be read is found here, not at the next call
        except (BadInput, ValueError, UnsupportedAlgorithm) as error:  # read again at the next look
            wrong = f"{error} Until it can be read, the server goes on with the file as it was."
            if wrong != self.wrong:
                logger.error(wrong)
            self.wrong = wrong
        else:
            self.federation, self._stamp, self.wrong = loaded, stamp, ""

    def _changed(self) -> tuple[int, int]:
        try:
            found = self._path.stat()
        except OSError:
            return 0, 0
        return found.st_mtime_ns, found.st_ino


@dataclass
class Door:
    """Lets calls of enrolled sites in, and counts the others."""

    register: Register
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)  # by site and reason
    late: Counter[str] = field(default_factory=Counter)  # calls about what was withdrawn, by site
    _calls: dict[str, tuple[float, float]] = field(default_factory=dict)  # left, and at what time
    _inside: Counter[str] = field(default_factory=Counter)  # calls that are being answered
    _large: threading.Semaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(LARGE_AT_ONCE)
    )
    _own_large: dict[str, threading.Lock] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def admit(self, credentials: Credentials) -> str:
        """The name of the site that calls; raises Refused with the reason why it is let in not.

        Args:
            credentials: what the call brought.
        """
        name, certified = _certified(credentials.certificate)
        self.check(name)
        key = self.register.sites()[name]
        if certified != key:
            raise Refused("the certificate is not for the node key that is registered")
        if credentials.public_key != key:
            raise Refused("the node key is not the one that is registered")
        if not _signed(credentials.public_key, credentials.time, credentials.signature):
            raise Refused("the node key has not signed the call")
        self._count(name)
        off_s = _off_s(credentials.time)
        if abs(off_s) > CLOCK_S:
            raise Refused(
                f"the site's clock is {abs(off_s):.0f} s {'behind' if off_s > 0 else 'ahead of'} "
                "the server's; set it, best by NTP",
                counted="the site's clock is off",
            )
        return name

    def check_node(self, site: str, node: int | None) -> None:
        """Raise Refused where a call speaks for another node than its site's (None: for none)."""
        if node not in (None, node_id(site)):
            raise Refused("the node id is another site's", why="forbidden")

    def check(self, site: str) -> None:
        """Raise Refused unless the site is in the federation, now."""
        if site not in self.register.sites():
            listed = self.register.federation.sites
            revoked = site in listed and listed[site].revoked
            reason = "the site is revoked" if revoked else "the site is not registered"
            raise Refused(reason, why="forbidden")

    @contextmanager
    def one_of_few(self, site: str) -> Iterator[None]:
        """Answer a call, if not too many of this site are being answered; raises Refused."""
        with self._lock:
            if self._inside[site] >= CALLS_AT_ONCE:
                raise Refused("too many calls at once", why="busy")
            self._inside[site] += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside[site] -= 1

    def one_large(self, site: str, *, timeout_s: float) -> Callable[[], None]:
        """Wait for a place for a large object: few at once, and one a site; raises Refused.

        Returns:
            Gives the place back; to be called once, when the object is no longer on its way.
        """
        with self._lock:
            own = self._own_large.setdefault(site, threading.Lock())
        end = time.monotonic() + timeout_s
        if not own.acquire(timeout=timeout_s):
            raise Refused("too many large objects at once", why="busy")
        if not self._large.acquire(timeout=max(0.0, end - time.monotonic())):
            own.release()
            raise Refused("too many large objects at once", why="busy")

        def give_back() -> None:
            self._large.release()
            own.release()

        return give_back

    def note(self, site: str, reason: str) -> None:
        """Count a call that was refused; of many alike only some are logged."""
        with self._lock:
            self.refused[site, reason] += 1
            count = self.refused[site, reason]
        if _is_told(count):
            logger.warning("refused a call of %s: %s (%d so far)", site, reason, count)

    def note_late(self, site: str) -> None:
        """Count a call about what was withdrawn meanwhile: dropped, and nobody's fault."""
        with self._lock:
            self.late[site] += 1
            count = self.late[site]
        if _is_told(count):
            logger.info("a call of %s came too late and is dropped (%d so far)", site, count)

    def _count(self, site: str) -> None:
        now = time.monotonic()
        with self._lock:
            left, before = self._calls.get(site, (float(MOST_CALLS), now))
            left = min(float(MOST_CALLS), left + (now - before) * MOST_CALLS) - 1
            self._calls[site] = max(left, 0.0), now
        if left < 0:
            raise Refused("too many calls", why="busy")


def _is_told(count: int) -> bool:
    return count & (count - 1) == 0  # 1, 2, 4, 8...: a flood fills no log


def named(certificate: bytes) -> str:
    """Whom a certificate by the federation's authority names, for the log."""
    try:
        return _certified(certificate)[0]
    except Refused:
        return "nobody"


@functools.lru_cache(maxsize=1024)
def _certified(certificate: bytes) -> tuple[str, bytes]:
    """The name and the public key (PEM) in a certificate."""
    try:
        parsed = x509.load_pem_x509_certificate(certificate)
        (name,) = parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        key = parsed.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return str(name.value), key
    except ValueError:
        raise Refused("the certificate names nobody") from None


@functools.lru_cache(maxsize=4)
def _keys_by_text(texts: tuple[tuple[str, str], ...]) -> Mapping[str, bytes]:
    return {name: public_pem(text) for name, text in texts}


def _keys(federation: FederationFile) -> Mapping[str, bytes]:
    return _keys_by_text(tuple(federation.enrolled.items()))


def public_pem(node_key: str) -> bytes:
    """A node key as federation.yaml lists it, in PEM; raises BadInput."""
    try:
        key = load_ssh_public_key(node_key.encode())
    except ValueError:
        raise BadInput(
            f"federation.yaml: {node_key[:40]}... is no node key; copy it again from the site's "
            "request."
        ) from None
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@functools.lru_cache(maxsize=1024)  # a site signs the time once for several calls
def _signed(public_key: bytes, text: str, signature: bytes) -> bool:
    key = load_pem_public_key(public_key)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        key.verify(signature, text.encode(), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _off_s(text: str) -> float:
    """Seconds by which a clock that showed this is behind ours."""
    try:
        shown = datetime.datetime.fromisoformat(text)
        return (datetime.datetime.now(datetime.UTC) - shown).total_seconds()
    except (ValueError, TypeError):
        raise Refused("the call bears no time") from None
