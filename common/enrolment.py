"""An enrolment: a site's certificate request (PKCS #10) and its receipts' public key, in PEM.

The request is signed by the site's node key. The name in it only says which site is asking; which
name a certificate gets is the coordinator's decision.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from cryptography.x509.oid import NameOID

from common.certificates import spoken
from common.errors import BadInput

_PUBLIC_KEY = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)
_MOST_BYTES = 65_536


@dataclass(frozen=True)
class Enrolment:
    """Which site asks, with which keys.

    Attributes:
        site: the name in the request.
        request: the certificate request (PEM).
        node_key: in OpenSSH's form, as federation.yaml lists it.
        receipts_key: Ed25519, hexadecimal.
    """

    site: str
    request: bytes
    node_key: str
    receipts_key: str

    @property
    def fingerprint(self) -> str:
        """What site and coordinator compare by telephone: over both keys and the name."""
        return spoken("\n".join([self.site, self.node_key, self.receipts_key]).encode())


def read_enrolment(path: Path) -> Enrolment:
    """An enrolment that a site wrote; raises BadInput for anything else."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES)
    except OSError as error:
        raise BadInput(
            f"{path}: can't be read ({error.strerror}); name the enrolment.pem that the site sent."
        ) from None
    try:
        return _parsed(content)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadInput(
            f"{path}: must be an enrolment as `fedward site init` writes it (a certificate request "
            "signed by a P-384 key, and an Ed25519 public key); have the site send it again."
        ) from None


def requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    """The public key that a request is for; raises ValueError unless it signed the request."""
    parsed = x509.load_pem_x509_csr(request)
    key = parsed.public_key()
    if not (
        parsed.is_signature_valid
        and isinstance(key, ec.EllipticCurvePublicKey)
        and isinstance(key.curve, ec.SECP384R1)
    ):
        raise ValueError("no request of a P-384 key that signed it")
    return key


def openssh(key: ec.EllipticCurvePublicKey) -> str:
    """A node key as federation.yaml lists it."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _parsed(content: bytes) -> Enrolment:
    request = x509.load_pem_x509_csr(content)
    (name,) = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    (public,) = _PUBLIC_KEY.findall(content)
    receipts_key = load_pem_public_key(public)
    if not isinstance(receipts_key, Ed25519PublicKey):
        raise ValueError("no Ed25519 key")
    pem = request.public_bytes(Encoding.PEM)
    return Enrolment(
        site=str(name.value),
        request=pem,
        node_key=openssh(requested_key(pem)),
        receipts_key=receipts_key.public_bytes_raw().hex(),
    )
