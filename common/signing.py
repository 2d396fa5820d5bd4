"""The coordinator's signature on what is asked of a site: Ed25519 (RFC 8032)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from common.errors import BadInput

Sign = Callable[[bytes], bytes]  # the signature of these bytes
Verify = Callable[[bytes, bytes], bool]  # whether the second are the signature of the first


def read_signing_key(path: Path) -> Sign:
    """The coordinator's private key (PEM), as what it is for; raises BadInput."""
    key = _read(path, lambda pem: load_pem_private_key(pem, password=None))
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path)
    return key.sign


def read_verify_key(path: Path) -> Verify:
    """The coordinator's public key (PEM), as what it is for; raises BadInput."""
    key = _read(path, load_pem_public_key)
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path)

    def verify(text: bytes, signature: bytes) -> bool:
        try:
            key.verify(signature, text)
        except InvalidSignature:
            return False
        return True

    return verify


def _read(path: Path, parse: Callable[[bytes], object]) -> object:
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise BadInput(
            f"{path}: the coordinator's key can't be read ({error.strerror}); put it there or "
            "mend the path."
        ) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _no_key(path) from None


def _no_key(path: Path) -> BadInput:
    return BadInput(
        f"{path}: must be an Ed25519 key without a password, in PEM; ask the coordinator for it."
    )
