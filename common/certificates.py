"""What is read off certificates and keys: names, days left, fingerprints (X.509, RFC 5280)."""

from __future__ import annotations

import datetime
import hashlib
import logging

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

WARN_DAYS = 60

logger = logging.getLogger("fedward")


def fingerprint(pem: bytes) -> str:
    """A certificate or public key as people compare it by telephone; raises ValueError."""
    if b"BEGIN CERTIFICATE" in pem:
        return spoken(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER))
    key = load_pem_public_key(pem)
    return spoken(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


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


def warn_before_expiry(pem: bytes, *, what: str, remedy: str, now: datetime.datetime) -> None:
    """Log a warning for a certificate that has less than 60 days to live.

    Args:
        pem: the certificate.
        what: its name in the sentence, such as "the site's certificate".
        remedy: what a person should do.
        now: the present, with a time zone.
    """
    left = days_left(pem, now=now)
    if left < WARN_DAYS:
        logger.warning("%s expires in %.0f days; %s", what, left, remedy)
