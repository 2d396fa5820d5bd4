"""What is read off certificates and keys: names, days left, fingerprints (X.509, RFC 5280)."""

from __future__ import annotations

import base64
import datetime
import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

WARN_DAYS = 60  # before a certificate ends: time enough to have a new one signed


def plain_pem(content: bytes) -> bytes:
    """One certificate or one public key, written anew: nothing beside it is taken along.

    Raises:
        ValueError: none is there, or more than one.
    """
    if b"BEGIN CERTIFICATE" in content:
        (certificate,) = x509.load_pem_x509_certificates(content)
        return certificate.public_bytes(Encoding.PEM)
    if content.count(b"-----BEGIN") != 1:
        raise ValueError("expected one public key")
    return load_pem_public_key(content).public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )


def fingerprint(pem: bytes) -> str:
    """A certificate or public key as people compare it by telephone; raises ValueError."""
    lines = plain_pem(pem).decode("ascii").splitlines()
    return spoken(base64.b64decode("".join(lines[1:-1])))


def spoken(content: bytes) -> str:
    """The first 128 bits of SHA-256, in groups of four digits.

    >>> spoken(b"")
    'e3b0 c442 98fc 1c14 9afb f4c8 996f b924'
    """
    digits = hashlib.sha256(content).hexdigest()[:32]
    return " ".join(digits[at : at + 4] for at in range(0, 32, 4))


def named_hosts(pem: bytes) -> tuple[str, ...]:
    """The host names and addresses that a certificate is for; raises ValueError."""
    certificate = x509.load_pem_x509_certificate(pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = (str(address) for address in names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def days_left(pem: bytes, *, now: datetime.datetime) -> float:
    """Days until a certificate expires, negative afterwards; raises ValueError."""
    end = x509.load_pem_x509_certificate(pem).not_valid_after_utc
    return (end - now) / datetime.timedelta(days=1)
