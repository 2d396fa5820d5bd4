"""What a coordinator does with federation.yaml: provision the federation, sign sites, revoke them.

`provision` makes, beside the file, the authority, the server's certificate, the key that signs
instructions, and for each site a kit: a folder without any secret, to be sent to the hospital.
There `fedward site init` makes the site's keys and an enrolment, which comes back and is signed.
Nobody is let in on paper alone: both sides read fingerprints to each other over the telephone.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from common.certificates import days_left, fingerprint, named_hosts
from common.config import FederationFile, load_federation
from common.enrolment import Enrolment, read_enrolment
from common.errors import BadInput
from common.files import write_atomically
from common.plain_yaml import load_yaml, read_yaml
from server.provision import (
    AUTHORITY,
    AUTHORITY_KEY,
    COORDINATOR,
    COORDINATOR_KEY,
    SERVER,
    SERVER_KEY,
    make_authority,
    make_coordinator_key,
    make_server_certificate,
    sign_request,
)

KITS = "kits"
RENEW_DAYS = 60  # a server certificate with less to live is made anew

_SETTINGS = """\
# {name}: the hospital's own file; its word beats the server's.
# Every key that may stand here, with a sentence: fedward schema site --yaml
# Paths are relative to this file.
name: {name}
data:                # a manifest.csv, or the root of an ILD or MRNet tree
declared_patients:   # a round number, public; no more than there are
state: state         # keys, ledger, receipts, replies: on a disk that is backed up
link:
  server: {server}
"""
_README = """\
# {name} in the federation {federation}

This folder holds no secret. Whoever sent it can't see your images, and gets nothing but what your
own `site.yaml` lets out. Go on at the machine that has the images, with fedward installed there:

1. `fedward site init {name}` (this folder) makes your keys in `state/keys`, which never leave that
   machine, and `enrolment.pem`. It prints fingerprints.
2. Telephone the coordinator, by a number that you knew before. Have them read to you the
   fingerprints of the authority and of the coordinator's key, and read them the enrolment's.
3. Send them `enrolment.pem`. What comes back goes beside your settings as `site.pem`.
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
    federation, folder = load_federation(file), file.absolute().parent
    _own_files(federation, folder, file)
    made = []
    try:
        if not (folder / AUTHORITY).exists():
            make_authority(folder, name=federation.name, now=now)
            made += [AUTHORITY, AUTHORITY_KEY]
        if not (folder / COORDINATOR).exists():
            make_coordinator_key(folder)
            made += [COORDINATOR, COORDINATOR_KEY]
        host = federation.server.rpartition(":")[0].strip("[]")
        if not _server_is_good(folder, host, now=now):
            for old in (SERVER, SERVER_KEY):
                (folder / old).unlink(missing_ok=True)
            make_server_certificate(folder, host=host, now=now)
            made += [SERVER, SERVER_KEY]
        authority, coordinator = ((folder / n).read_bytes() for n in (AUTHORITY, COORDINATOR))
        for name in federation.sites:
            made += _write_kit(
                folder / KITS / name,
                {
                    "site.yaml": _SETTINGS.format(name=name, server=federation.server).encode(),
                    "README.md": _README.format(
                        name=name, federation=federation.name, server=federation.server
                    ).encode(),
                    AUTHORITY: authority,
                    COORDINATOR: coordinator,
                },
            )
    except OSError as error:
        raise BadInput(
            f"{folder}: can't be read or written ({error.strerror}); run as the user who owns it."
        ) from None
    return Provisioned(
        tuple(made), authority=fingerprint(authority), coordinator=fingerprint(coordinator)
    )


def sign(file: Path, request: Path, *, now: datetime.datetime) -> Signed:
    """Let a site in: its certificate beside its kit, its keys in federation.yaml.

    The same enrolment again renews the certificate. Another node key is taken only of a site that
    was never enrolled or has been revoked.

    Args:
        file: federation.yaml.
        request: the site's enrolment.pem, or what it was renamed to.
        now: the certificate is valid from an hour before.

    Raises:
        BadInput: the enrolment is damaged, of no site of the file, or has a key it may not have.
    """
    federation, folder = load_federation(file), file.absolute().parent
    enrolment = read_enrolment(request)
    _may_have(federation, enrolment, file)
    try:
        certificate = sign_request(folder, enrolment.request, site=enrolment.site, now=now)
    except OSError as error:
        raise BadInput(
            f"{folder}: {AUTHORITY} and {AUTHORITY_KEY} can't be read ({error.strerror}); put them "
            "there, or run fedward federation provision first."
        ) from None
    path = folder / KITS / enrolment.site / "site.pem"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, certificate)
    keys = {"node_key": enrolment.node_key, "receipts_key": enrolment.receipts_key}
    _change(file, enrolment.site, {**keys, "revoked": None})
    return Signed(
        enrolment.site,
        path,
        fingerprint=enrolment.fingerprint,
        days=days_left(certificate, now=now),
    )


def revoke(file: Path, site: str) -> str:
    """Shut a site out, also of a server that runs; returns a sentence. Raises BadInput."""
    _known(load_federation(file), site, file)
    _change(file, site, {"revoked": True})
    return (
        f"{site} is out from now on, of running servers too. To let it in again, with new keys, "
        "sign a new enrolment."
    )


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
    """Raise BadInput unless the site may have this node key."""
    _known(federation, enrolment.site, file)
    public = enrolment.node_key.split()[1]
    for name, site in federation.sites.items():
        same = site.node_key is not None and site.node_key.split()[1] == public
        if name != enrolment.site:
            if same:
                raise BadInput(
                    f"{file.name}: {name} has this very node key; each site makes its own by "
                    "fedward site init."
                )
        elif same and site.revoked:
            raise BadInput(
                f"{file.name}: this key of {name} was revoked; have the site make a new node key "
                "(A site's key is lost, in deploy/RUNBOOK.md) and enrol with that."
            )
        elif site.node_key is not None and not same and not site.revoked:
            raise BadInput(
                f"{file.name}: {name} is enrolled with another node key. If that one is lost or "
                f"known to others, run fedward federation revoke {file.name} {name} first; if not, "
                "somebody else is asking."
            )


def _change(file: Path, site: str, changes: dict[str, object]) -> None:
    """Set keys of a site in federation.yaml (None: remove); the rest keeps its very text."""
    content = read_yaml(file)
    values = {**(content["sites"][site] or {}), **changes}
    values = {key: value for key, value in values.items() if value is not None}
    text = file.read_text()
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
    write_atomically(file, changed.encode())


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
