"""What the coordinator signs: for whom, for what, for how long; and that it never overwrites."""

from __future__ import annotations

import datetime
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from client.enrolment import certificate_request
from common.errors import BadInput
from server import provision
from server.door import public_pem

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A coordinator's."""
    provision.make_authority(tmp_path, name="test", now=NOW)
    provision.make_server_certificate(tmp_path, host="fl.example.org", now=NOW)
    provision.make_coordinator_key(tmp_path)
    return tmp_path


def test_every_file_is_its_owners_alone(folder: Path) -> None:
    """Keys and certificates alike have mode 0600, and none is written twice."""
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert set(modes.values()) == {0o600}
    assert len(modes) == 6
    before = (folder / "ca.key").read_bytes()
    with pytest.raises(BadInput, match="is there already"):
        provision.make_authority(folder, name="test", now=NOW)
    assert (folder / "ca.key").read_bytes() == before


def test_a_sites_certificate_says_what_the_coordinator_said(folder: Path) -> None:
    """Name, key, purpose and end are the coordinator's; nothing that was asked for is copied."""
    key = ec.generate_private_key(ec.SECP384R1())
    wish = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")])
    wanted = x509.BasicConstraints(ca=True, path_length=None)
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(wish)
        .add_extension(wanted, critical=True)
        .sign(key, hashes.SHA384())
        .public_bytes(Encoding.PEM)
    )
    signed = provision.sign_request(folder, request, site="north", now=NOW)
    certificate = x509.load_pem_x509_certificate(signed)
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    certificate.verify_directly_issued_by(authority)
    assert [name.value for name in certificate.subject] == ["north"]
    assert certificate.public_key() == key.public_key()
    find = certificate.extensions.get_extension_for_class
    assert not find(x509.BasicConstraints).value.ca
    assert list(find(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert (certificate.not_valid_after_utc - NOW).days == provision.CERTIFICATE_DAYS
    assert public_pem(provision.node_key(request)).startswith(b"-----BEGIN PUBLIC KEY")


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("fl.example.org", ["fl.example.org", "127.0.0.1"]),
        ("127.0.0.1", ["127.0.0.1"]),
        ("[::1]", ["::1", "127.0.0.1"]),
    ],
)
def test_the_servers_certificate_is_for_its_host(
    tmp_path: Path, host: str, names: list[str]
) -> None:
    """A host name and an address are both found by the sites that dial them; and the loopback."""
    provision.make_authority(tmp_path, name="test", now=NOW)
    provision.make_server_certificate(tmp_path, host=host, now=NOW)
    certificate = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in found] == names


def test_what_is_no_request_is_refused(folder: Path) -> None:
    """Garbage, a request that somebody changed, and a key of another kind say what to do."""
    key = ec.generate_private_key(ec.SECP384R1())
    good = x509.load_pem_x509_csr(certificate_request(key, site="north"))
    der = bytearray(good.public_bytes(Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)
    weak = certificate_request(ec.generate_private_key(ec.SECP256R1()), site="north")
    for request in (b"", b"garbage", forged, weak):
        with pytest.raises(BadInput, match="must be a certificate request"):
            provision.sign_request(folder, request, site="north", now=NOW)
