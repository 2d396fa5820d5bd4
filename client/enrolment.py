"""What a site sends to be enrolled: a request for a certificate (PKCS #10) of its node key."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID


def certificate_request(node_key: ec.EllipticCurvePrivateKey, *, site: str) -> bytes:
    """The request (PEM), signed by the key, which stays here; the coordinator decides the name."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name)
    return request.sign(node_key, hashes.SHA384()).public_bytes(Encoding.PEM)
