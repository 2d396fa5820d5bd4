"""What a coordinator does with federation.yaml: provision the federation, sign sites, revoke them.

`provision` makes, beside the file, the authority, the server's certificate, the key that signs
instructions, and for each site a kit: a folder without any secret, to be sent to the hospital.
There `fedward site init` makes the site's keys and an enrolment, which comes back and is signed.
Nobody is let in on paper alone: both sides read fingerprints to each other over the telephone.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from common.certificates import days_left, fingerprint, named_hosts
from common.config import FederatedSite, FederationFile, load_federation
from common.enrolment import Enrolment, read_enrolment
from common.errors import BadInput
from common.files import write_atomically
from common.plain_yaml import load_yaml
from server.provision import (
    AUTHORITY,
    AUTHORITY_KEY,
    COORDINATOR,
    COORDINATOR_KEY,
    SERVER,
    SERVER_KEY,
    make_authority,
    make_coordinator_key,
    replace_secret,
    server_certificate,
    sign_request,
)

KITS = "kits"
RENEW_DAYS = 60  # a server certificate with less to live is made anew

_SETTINGS = "name: {name}\nlink: {{server: '{server}'}}\n"
_README = """\
# {name} in the federation {federation}

This folder holds no secret. Whoever sent it can't see your images, and gets nothing but what your
own `site.yaml` lets out. Go on at the machine that has the images, with fedward installed there:

1. `fedward site init THIS_FOLDER --out {name}` makes the site's folder, `{name}`: its settings,
   `site.yaml`; its keys in `state/keys`, which never leave that machine; and `enrolment.pem`. Of
   this folder it takes a name, an address, a certificate and a key. It prints fingerprints.
2. Telephone the coordinator, by a number that you knew before. Have them read to you the
   fingerprints of the authority and of the coordinator's key, and read them the enrolment's.
3. Send them `enrolment.pem`. What comes back goes beside `site.yaml` as `site.pem`.
4. Edit `site.yaml`: where the data are, how many patients you declare, what you allow.
5. `fedward site check site.yaml` says whether you can join; it sends no data.
6. `fedward site run site.yaml` waits for studies. `fedward site status site.yaml` shows each in
   words, and none begins before `fedward site approve site.yaml HASH`.

The server is {server}; your firewall need let out nothing else, and nothing in.
"""


@dataclass(frozen=True)
class Provisioned:
    """What is there now, and what of it is new."""

    made: tuple[str, ...]
    authority: str
    coordinator: str

    def text(self) -> str:
        """For a person."""
        made = "\n".join(f"  {one}" for one in self.made) or "  nothing: all was there"
        return (
            f"Made:\n{made}\n\n"
            f"Send each folder of {KITS} to its hospital. Over the telephone, read them\n"
            f"  authority         {self.authority}\n"
            f"  coordinator's key {self.coordinator}\n"
            "and have them read you the fingerprint of their enrolment before you sign it.\n"
            f"Who has {AUTHORITY_KEY} can pose as your server: keep it elsewhere, where only you "
            "can reach it."
        )


@dataclass(frozen=True)
class Signed:
    """A site that was let in."""

    site: str
    certificate: Path
    fingerprint: str
    days: float

    def text(self) -> str:
        """For a person."""
        return (
            f"{self.site} is enrolled for {self.days:.0f} days, by the enrolment\n"
            f"  {self.fingerprint}\n"
            "If that is not what the hospital read to you, revoke it at once. Send the hospital\n"
            f"  {self.certificate}"
        )


def provision(file: Path, *, now: datetime.datetime) -> Provisioned:
    """Make what a federation needs beside its file; what is there and still good stays.

    Args:
        file: federation.yaml; its sites need no keys yet.
        now: certificates are valid from an hour before.

    Raises:
        BadInput: the file is wrong, names other files than the ones made here, or the folder can't
            be written.
    """
    with _alone(file) as folder:
        federation = load_federation(file)
        _own_files(federation, folder, file)
        made = []
        if not (folder / AUTHORITY).exists():
            make_authority(folder, name=federation.name, now=now)
            made += [AUTHORITY, AUTHORITY_KEY]
        if not (folder / COORDINATOR).exists():
            make_coordinator_key(folder)
            made += [COORDINATOR, COORDINATOR_KEY]
        host = federation.server.rpartition(":")[0].strip("[]")
        if not _server_is_good(folder, host, now=now):
            # Whatever is missing, the old pair stays until there is a new one.
            key, certificate = server_certificate(folder, host=host, now=now)
            replace_secret(folder / SERVER_KEY, key)
            replace_secret(folder / SERVER, certificate)
            made += [SERVER, SERVER_KEY]
        authority, coordinator = ((folder / n).read_bytes() for n in (AUTHORITY, COORDINATOR))
        for name in federation.sites:
            words = {"name": name, "server": federation.server, "federation": federation.name}
            kit = {
                "site.yaml": _SETTINGS.format(**words).encode(),
                "README.md": _README.format(**words).encode(),
                AUTHORITY: authority,
                COORDINATOR: coordinator,
            }
            made += _write_kit(folder / KITS / name, kit)
    return Provisioned(
        tuple(made), authority=fingerprint(authority), coordinator=fingerprint(coordinator)
    )


def sign(file: Path, request: Path, *, now: datetime.datetime) -> Signed:
    """Let a site in: its certificate beside its kit, its keys in federation.yaml.

    The same enrolment again renews the certificate. Another node key is taken only of a site that
    was never enrolled or has been revoked; a key that was revoked never again.

    Args:
        file: federation.yaml.
        request: the site's enrolment.pem, or what it was renamed to.
        now: the certificate is valid from an hour before.

    Raises:
        BadInput: the enrolment is damaged, of no site of the file, or has a key it may not have.
    """
    enrolment = read_enrolment(request)
    name = enrolment.site
    with _alone(file) as folder:
        federation = load_federation(file)
        _may_have(federation, enrolment, file)
        site = federation.sites[name]
        before = [*site.revoked_keys, *([site.node_key] if site.revoked and site.node_key else [])]
        keys = {"node_key": enrolment.node_key, "receipts_key": enrolment.receipts_key}
        changed = _changed(file, name, {**keys, "revoked": None, "revoked_keys": before or None})
        certificate = sign_request(folder, enrolment.request, site=name, now=now)
        path = folder / KITS / name / "site.pem"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, certificate)
        write_atomically(file.resolve(), changed)
    return Signed(
        name, path, fingerprint=enrolment.fingerprint, days=days_left(certificate, now=now)
    )


def revoke(file: Path, site: str) -> str:
    """Shut a site out, also of a server that runs; returns a sentence. Raises BadInput."""
    with _alone(file):
        _known(load_federation(file), site, file)
        write_atomically(file.resolve(), _changed(file, site, {"revoked": True}))
    return (
        f"{site} is out from now on; a running server on this file refuses it at its next call. To "
        "let it in again, with a new node key, sign a new enrolment."
    )


@contextmanager
def _alone(file: Path) -> Iterator[Path]:
    """Work beside a federation's file as the only process that does; gives its folder.

    Raises:
        BadInput: the folder, or what lies there, can't be read or written.
    """
    folder = file.resolve().parent
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise BadInput(
            f"{file}: can't be read ({error.strerror}); name an existing federation.yaml."
        ) from None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield folder
    except OSError as error:
        raise BadInput(
            f"{error.filename or folder}: can't be read or written ({error.strerror}); run as the "
            f"user who owns the folder, with {AUTHORITY_KEY} there where a certificate is signed."
        ) from None
    finally:
        os.close(opened)


def _own_files(federation: FederationFile, folder: Path, file: Path) -> None:
    named = {
        "authority": (federation.authority, AUTHORITY),
        "certificate": (federation.certificate, SERVER),
        "certificate_key": (federation.certificate_key, SERVER_KEY),
        "coordinator_key": (federation.coordinator_key, COORDINATOR_KEY),
    }
    other = [key for key, (path, name) in named.items() if path != folder / name]
    if other:
        raise BadInput(
            f"{file.name}: {', '.join(other)} must not be set, since provisioning makes these "
            "files beside it; remove the keys, or make the files yourself."
        )


def _server_is_good(folder: Path, host: str, *, now: datetime.datetime) -> bool:
    """Whether the server's certificate is there, for this host, this authority and long enough."""
    try:
        pem, key = (folder / SERVER).read_bytes(), (folder / SERVER_KEY).read_bytes()
        certificate = x509.load_pem_x509_certificate(pem)
        authority = x509.load_pem_x509_certificate((folder / AUTHORITY).read_bytes())
        certificate.verify_directly_issued_by(authority)
        ours = load_pem_private_key(key, password=None).public_key() == certificate.public_key()
    except Exception:  # missing, damaged, another authority's: made anew
        return False
    return ours and host in named_hosts(pem) and days_left(pem, now=now) >= RENEW_DAYS


def _write_kit(kit: Path, files: dict[str, bytes]) -> list[str]:
    """Write what is missing or out of date; returns the names of what was."""
    kit.mkdir(parents=True, exist_ok=True)
    old = [n for n, text in files.items() if not _holds(kit / n, text)]
    for name in old:
        write_atomically(kit / name, files[name])
    return [f"{KITS}/{kit.name}"] if old else []


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _known(federation: FederationFile, site: str, file: Path) -> None:
    if site not in federation.sites:
        raise BadInput(
            f"{file.name}: has no site {site!r}; it has {', '.join(sorted(federation.sites))}. "
            "Mend the name, or add the site and run fedward federation provision."
        )


def _may_have(federation: FederationFile, enrolment: Enrolment, file: Path) -> None:
    """Raise BadInput unless the site may have these keys."""
    _known(federation, enrolment.site, file)
    for name, site in federation.sites.items():
        if name != enrolment.site and _public(enrolment.node_key) in _all_keys(site):
            raise BadInput(
                f"{file.name}: {name} has this very node key, or had it; each site makes its own "
                "by fedward site init."
            )
    site = federation.sites[enrolment.site]
    if site.node_key is None:
        return
    same = _public(site.node_key) == _public(enrolment.node_key)
    if _public(enrolment.node_key) in map(_public, site.revoked_keys) or (same and site.revoked):
        raise BadInput(
            f"{file.name}: this key of {enrolment.site} was revoked; have the site make a new node "
            "key (A site's key is lost, in deploy/RUNBOOK.md) and enrol with that."
        )
    if not same and not site.revoked:
        raise BadInput(
            f"{file.name}: {enrolment.site} is enrolled with another node key. If that one is lost "
            f"or known to others, run fedward federation revoke {file.name} {enrolment.site} "
            "first; if not, somebody else is asking."
        )
    if same and site.receipts_key not in (None, enrolment.receipts_key):
        raise BadInput(
            f"{file.name}: {enrolment.site} is enrolled with another receipts key. If the site "
            "confirms over the telephone that it has a new one, remove its receipts_key from the "
            "file and sign again; if not, somebody else is asking."
        )


def _public(node_key: str) -> str:
    """The key itself, without what stands around it."""
    return node_key.split()[1]


def _all_keys(site: FederatedSite) -> set[str]:
    """The node keys that a site has or had."""
    return {
        _public(key) for key in (*site.revoked_keys, *([site.node_key] if site.node_key else []))
    }


def _changed(file: Path, site: str, changes: dict[str, object]) -> bytes:
    """The file with keys of a site set (None: removed); the rest keeps its very text.

    Raises:
        BadInput: the site is written in a way that can't be edited.
    """
    text = file.read_bytes().decode("utf-8-sig")
    content = load_yaml(text, where=file.name)
    values = {**(content["sites"][site] or {}), **changes}
    values = {key: value for key, value in values.items() if value is not None}
    start, end = _span(yaml.compose(text), "sites", site)
    inner = ", ".join(f"{key}: {json.dumps(value)}" for key, value in values.items())
    blank = "" if text[start - 1].isspace() else " "
    changed = f"{text[:start]}{blank}{{{inner}}}{text[end:]}"
    content["sites"][site] = values
    if load_yaml(changed, where=file.name) != content:
        raise BadInput(
            f"{file.name}: sites.{site} is written in a way that can't be edited here; write it as "
            f"{site}: {{{inner}}}"
        )
    return changed.encode()


def _span(node: Any, *keys: str) -> tuple[int, int]:
    """Where the value at these keys begins and ends in the text."""
    for wanted in keys:
        node = next(value for key, value in node.value if key.value == wanted)
    return node.start_mark.index, _end(node)


def _end(node: Any) -> int:
    """Where a node's text ends; a block's own mark is after the blank lines that follow it."""
    if getattr(node, "flow_style", True) or not node.value:
        return int(node.end_mark.index)
    return max(_end(value) for _, value in node.value)
