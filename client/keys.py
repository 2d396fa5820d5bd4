"""The site's own keys: made here at first use, read by its own user alone, never sent or shown.

`<state>/keys/` (0700; each file 0600) is whole or not there, since it is made beside and renamed.

| file | what it is | what it is for |
|---|---|---|
| `node.pem` | EC P-384, OpenSSH format (Flower's) | the server knows the site by it |
| `receipts.pem` | Ed25519, PKCS #8 (RFC 8410) | signs receipts and statements |
| `ledger.key` | 32 random bytes | hides the ledger's patients, binds its rows |
| `pseudonyms.key` | 32 random bytes | hides the cache's patients |
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from client.state import locked, make_private, sync_folder, write_private
from common.errors import BadInput

FOLDER = "keys"
NODE, RECEIPTS, LEDGER, PSEUDONYMS = "node.pem", "receipts.pem", "ledger.key", "pseudonyms.key"
RECEIPTS_CHAIN = "receipts.jsonl"  # in the state folder; signed, so it is never there without keys
_NEXT = f"{RECEIPTS}.next"
_BYTES = 32

# What the loss of each key means and how to go on without a backup (client/README.md, "Keys").
_WITHOUT = {
    NODE: "the server no longer knows this site; make a new one and have the coordinator register "
    "it",
    RECEIPTS: "what has left can still be verified, but nothing new can be signed; set "
    f"{RECEIPTS_CHAIN} aside, make a new key and tell the coordinator",
    LEDGER: "nobody in the ledger can be recognised, so nothing may be trained; set the ledger "
    "aside, make a new key and charge all earlier studies by `fedward privacy ledger restore`",
    PSEUDONYMS: "the cache can't be recognised; make a new one, and images are decoded again",
    _NEXT: "remove it and rotate the receipt key again",
}
Key = TypeVar("Key")


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class SiteKeys:
    """The four keys of a site; neither shown, compared nor pickled."""

    node: ec.EllipticCurvePrivateKey
    receipts: Ed25519PrivateKey
    ledger: bytes
    pseudonyms: bytes

    def __reduce__(self) -> NoReturn:
        raise TypeError("A site's keys are neither copied nor sent: open them where they are used.")


def open_keys(state: Path) -> SiteKeys:
    """The site's keys, made if this is their first use.

    Args:
        state: the site's state folder (`state` of site.yaml); made (0700) if it isn't there.

    Raises:
        BadInput: a key is missing while others, or receipts, are there; is damaged; can be read by
            others; or the folder can't be read or written.
    """
    folder = state / FOLDER
    try:
        if not _used(folder):
            if (state / RECEIPTS_CHAIN).exists():
                raise BadInput(
                    f"{folder}: all of the site's keys are gone, though they have been used. Put "
                    "the folder back from the backup; without one, see Keys in client/README.md."
                )
            _make(make_private(state))
    except OSError as error:
        raise _unusable(folder, error) from None
    return read_keys(state)


def read_keys(state: Path) -> SiteKeys:
    """The site's keys, which must be there; raises BadInput as `open_keys` does."""
    folder = state / FOLDER
    return SiteKeys(
        node=_parsed(folder / NODE, _node),
        receipts=read_receipt_key(state),
        ledger=_parsed(folder / LEDGER, _random),
        pseudonyms=_parsed(folder / PSEUDONYMS, _random),
    )


def read_receipt_key(state: Path) -> Ed25519PrivateKey:
    """The key of the receipts alone; raises BadInput as `open_keys` does."""
    return _parsed(state / FOLDER / RECEIPTS, _ed25519)


def next_receipt_key(state: Path) -> Ed25519PrivateKey:
    """The key that is to follow `receipts.pem`, the same until it is taken into use."""
    path = state / FOLDER / _NEXT
    try:
        if not path.exists():
            write_private(path, [_pkcs8(Ed25519PrivateKey.generate())])
    except OSError as error:
        raise _unusable(path, error) from None
    return _parsed(path, _ed25519)


def adopt_receipt_key(state: Path) -> None:
    """Take `next_receipt_key` into use; the old key is gone."""
    folder = state / FOLDER
    (folder / _NEXT).replace(folder / RECEIPTS)
    sync_folder(folder)


def _make(state: Path) -> None:
    """All four keys at once; of two processes that make them, the second finds the first's."""
    folder, partial = state / FOLDER, state / f".{FOLDER}.partial"
    with locked(state / f"{FOLDER}.lock"):
        if _used(folder):
            return
        if partial.exists():  # of a process that was killed: nobody has used them
            shutil.rmtree(partial)
        partial.mkdir(mode=0o700)
        node = ec.generate_private_key(ec.SECP384R1())
        write_private(partial / NODE, [_openssh(node)])
        write_private(partial / RECEIPTS, [_pkcs8(Ed25519PrivateKey.generate())])
        write_private(partial / LEDGER, [secrets.token_bytes(_BYTES)])
        write_private(partial / PSEUDONYMS, [secrets.token_bytes(_BYTES)])
        partial.rename(folder)
        sync_folder(state)


def _used(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _parsed(path: Path, parse: Callable[[bytes], Key]) -> Key:
    try:
        with path.open("rb") as file:
            modes = os.fstat(file.fileno()).st_mode, path.parent.stat().st_mode
            content = file.read()
    except FileNotFoundError:
        raise BadInput(
            f"{path}: the key is missing, though others are there. Put it back from the backup; "
            f"without one, {_WITHOUT[path.name]} (Keys in "
            "client/README.md)."
        ) from None
    except OSError as error:
        raise _unusable(path, error) from None
    if any(stat.S_IMODE(mode) & 0o077 for mode in modes):
        raise BadInput(
            f"{path}: others than its owner may read or change it. Run chmod 700 on the folder and "
            "chmod 600 on the file; if somebody may have read it, replace it (Keys in "
            "client/README.md)."
        )
    try:
        return parse(content)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadInput(
            f"{path}: is damaged or another kind of key. Put it back from the backup; without one, "
            f"{_WITHOUT[path.name]} (Keys in client/README.md)."
        ) from None


def _node(content: bytes) -> ec.EllipticCurvePrivateKey:
    key = load_ssh_private_key(content, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("no P-384 key")
    return key


def _ed25519(content: bytes) -> Ed25519PrivateKey:
    key = load_pem_private_key(content, password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("no Ed25519 key")
    return key


def _random(content: bytes) -> bytes:
    if len(content) != _BYTES:
        raise ValueError(f"{len(content)} bytes")
    return content


def _openssh(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def _pkcs8(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _unusable(path: Path, error: OSError) -> BadInput:
    return BadInput(
        f"{path}: can't be read or written ({error.strerror}); run as the user who owns the site's "
        "state folder, and mend its permissions or `state` in site.yaml."
    )
