"""What the coordinator signs and keeps: authority, server certificate, sites' certificates (X.509).

Private keys are made where they are used and never travel: the authority's and the server's here,
a site's node key at the site, which sends a request (PKCS #10) with the public part. A certificate
binds that key to the site's name. All keys are P-384 without a password, in files that only their
owner reads (0600); the coordinator's signing key is Ed25519.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.enrolment import openssh, requested_key
from common.errors import BadInput

AUTHORITY, AUTHORITY_KEY = "ca.pem", "ca.key"
SERVER, SERVER_KEY = "server.pem", "server.key"
COORDINATOR, COORDINATOR_KEY = "coordinator.pem", "coordinator.key"
AUTHORITY_DAYS, CERTIFICATE_DAYS = 3650, 825  # the latter: what browsers and auditors accept
_LOOPBACK = "127.0.0.1"
_CLOCKS_DIFFER = datetime.timedelta(hours=1)


def make_authority(folder: Path, *, name: str, now: datetime.datetime) -> None:
    """Make the federation's own authority in `folder`: ca.key and ca.pem.

    Args:
        folder: where; what is there already is refused.
        name: the federation's.
        now: its certificate is valid from an hour before, for ten years.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _name(f"{name} authority")
    certificate = (
        _builder(subject, subject, key.public_key(), now=now, days=AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    _write(folder / AUTHORITY_KEY, _private(key))
    _write(folder / AUTHORITY, certificate.public_bytes(Encoding.PEM))


def make_server_certificate(folder: Path, *, host: str, now: datetime.datetime) -> None:
    """Make server.key and server.pem in the authority's folder, for a host name or an address."""
    key, certificate = server_certificate(folder, host=host, now=now)
    _write(folder / SERVER_KEY, key)
    _write(folder / SERVER, certificate)


def server_certificate(folder: Path, *, host: str, now: datetime.datetime) -> tuple[bytes, bytes]:
    """A server's new private key and its certificate (PEM), by the authority in `folder`.

    It is for the machine's loopback, too: Flower's own SuperLink calls itself there.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = _sign(
        folder,
        subject=host,
        public_key=key.public_key(),
        names=[_host(name) for name in dict.fromkeys([host, _LOOPBACK])],
        purpose=ExtendedKeyUsageOID.SERVER_AUTH,
        now=now,
    )
    return _private(key), certificate


def make_coordinator_key(folder: Path) -> None:
    """Make the key that signs instructions, and its public half for the sites."""
    key = Ed25519PrivateKey.generate()
    _write(folder / COORDINATOR_KEY, _private(key))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    _write(folder / COORDINATOR, public)


def sign_request(folder: Path, request: bytes, *, site: str, now: datetime.datetime) -> bytes:
    """A site's certificate (PEM) for its request; whatever else the request asks is ignored.

    Args:
        folder: the authority's.
        request: PKCS #10 in PEM, signed by the site's node key.
        site: the name that the certificate gives it.
        now: valid from an hour before, for 825 days.

    Raises:
        BadInput: it is no request of a P-384 key that signed it.
    """
    public_key = _requested(request)
    return _sign(
        folder,
        subject=site,
        public_key=public_key,
        names=[x509.DNSName(site)],
        purpose=ExtendedKeyUsageOID.CLIENT_AUTH,
        now=now,
    )


def node_key(request: bytes) -> str:
    """The node key that a site's request is for, as federation.yaml lists it."""
    return openssh(_requested(request))


def _requested(request: bytes) -> ec.EllipticCurvePublicKey:
    try:
        return requested_key(request)
    except ValueError:
        raise BadInput(
            "the request must be a certificate request (PKCS #10, PEM) signed by a P-384 key; "
            "let the site make it again."
        ) from None


def _sign(
    folder: Path,
    *,
    subject: str,
    public_key: ec.EllipticCurvePublicKey,
    names: list[x509.GeneralName],
    purpose: x509.ObjectIdentifier,
    now: datetime.datetime,
) -> bytes:
    """A certificate by the authority in `folder` (PEM)."""
    authority = x509.load_pem_x509_certificate((folder / AUTHORITY).read_bytes())
    key = load_pem_private_key((folder / AUTHORITY_KEY).read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    certificate = (
        _builder(_name(subject), authority.subject, public_key, now=now, days=CERTIFICATE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA384())
    )
    return certificate.public_bytes(Encoding.PEM)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    *,
    now: datetime.datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return x509.DNSName(host)


def _private(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def replace_secret(path: Path, content: bytes) -> None:
    """Put a file for its owner alone in the place of one that may be there."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    _write(new, content)
    new.replace(path)


def _write(path: Path, content: bytes) -> None:
    """A new file for its owner alone; never over one that is there."""
    try:
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise BadInput(
            f"{path}: is there already, and sites may rely on it; move it away first if you mean "
            "to replace it."
        ) from None
    with os.fdopen(opened, "wb") as file:
        file.write(content)
