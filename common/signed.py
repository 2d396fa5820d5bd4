"""Values that are signed: one text for each (canonical JSON), Ed25519 signatures (RFC 8032)."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # a SHA-256 or an Ed25519 public key
Signature = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


class Signable(BaseModel):
    """A frozen value that has exactly one text: strict types, no unknown keys, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def canonical(self) -> bytes:
        """The value as JSON with sorted keys and no blanks, in ASCII, on one line."""
        content = self.model_dump(mode="json")
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return text.encode("ascii")

    @classmethod
    def from_canonical(cls, text: bytes) -> Self:
        """The value of exactly this text; raises ValueError for every other spelling of it."""
        try:
            value = cls.model_validate_json(text)
        except ValidationError:
            raise ValueError(f"expected what a {cls.__name__} looks like in JSON") from None
        if value.canonical() != text:
            raise ValueError(f"expected the one way in which a {cls.__name__} is written")
        return value


def public_hex(key: Ed25519PrivateKey) -> str:
    """The public half of a key, hexadecimal."""
    return key.public_key().public_bytes_raw().hex()


def sha256_hex(content: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def is_signed(content: bytes, signature: str, *, key: str) -> bool:
    """Whether this is the Ed25519 signature of `content` by `key`; both hexadecimal."""
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
        public.verify(bytes.fromhex(signature), content)
    except (InvalidSignature, ValueError):  # ValueError: not every 32 bytes are a key
        return False
    return True
