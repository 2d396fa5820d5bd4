"""How a site joins: settings from its kit, its own keys, and what it sends to be enrolled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from client.keys import SiteKeys, open_keys
from client.state import make_private, state_folder, write_private
from common.certificates import fingerprint, plain_pem
from common.config import SiteSettings, load_site, parse
from common.enrolment import read_enrolment
from common.errors import BadInput
from common.plain_yaml import read_yaml

SETTINGS, AUTHORITY, COORDINATOR = "site.yaml", "ca.pem", "coordinator.pem"
ENROLMENT = "enrolment.pem"

_TEMPLATE = """\
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


@dataclass(frozen=True)
class Joining:
    """What a site has to tell the coordinator, and to hear from them."""

    site: str
    folder: Path
    enrolment: str
    authority: str
    coordinator: str

    def text(self) -> str:
        """For a person."""
        return f"""\
{self.site}: settings, keys and {ENROLMENT} are in {self.folder}. The keys never leave this machine.

1. Telephone the coordinator, by a number that you knew before. They read to you, and you compare
     authority         {self.authority}
     coordinator's key {self.coordinator}
   You read to them
     enrolment         {self.enrolment}
2. Send them {self.folder / ENROLMENT}. What comes back goes to {self.folder / "site.pem"}.
3. Edit {self.folder / SETTINGS}: data, declared_patients, and what you allow.
4. fedward site check {self.folder / SETTINGS}"""


def init_site(kit: Path, *, out: Path | None = None) -> Joining:
    """Make a site of the kit that the coordinator sent; again, it writes the enrolment anew.

    Whoever carries the kit could have changed it. So nothing of it is taken but a name, an address,
    one certificate and one public key, whose fingerprints are compared by telephone.

    Args:
        kit: a folder with site.yaml, ca.pem and coordinator.pem.
        out: the site's own folder, another than the kit; by default one of the site's name, here.
            Settings and keys that are there stay.

    Raises:
        BadInput: the kit isn't whole, names another authority or coordinator than the one that is
            relied on already, is the site's folder itself, or that can't be written.
    """
    name, server = _asked(kit / SETTINGS)
    trusted = {part: _plain(kit / part) for part in (AUTHORITY, COORDINATOR)}
    folder = out or Path(name)
    if folder.resolve() == kit.resolve():
        raise BadInput(
            f"{kit}: the kit can't be the site's own folder, since whoever sent it could have put "
            "keys there; name another --out, or move the kit."
        )
    try:
        make_private(folder)
        for part, content in trusted.items():
            _keep(folder / part, content)
        if not (folder / SETTINGS).exists():
            settings = _TEMPLATE.format(name=name, server=server)
            write_private(folder / SETTINGS, [settings.encode()])
        site = load_site(folder / SETTINGS)
        keys = open_keys(state_folder(site))
        write_private(folder / ENROLMENT, [enrolment(keys, site=site.name)])
    except OSError as error:
        raise BadInput(
            f"{folder}: can't be written ({error.strerror}); run as the user who shall own the "
            "site, or name another --out."
        ) from None
    authority, coordinator = map(fingerprint, trusted.values())
    return Joining(
        site.name,
        folder,
        enrolment=read_enrolment(folder / ENROLMENT).fingerprint,
        authority=authority,
        coordinator=coordinator,
    )


def enrolment(keys: SiteKeys, *, site: str) -> bytes:
    """What is sent to be enrolled (PEM): public parts alone."""
    receipts = keys.receipts.public_key()
    public = receipts.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return certificate_request(keys.node, site=site) + public


def certificate_request(node_key: ec.EllipticCurvePrivateKey, *, site: str) -> bytes:
    """The request (PEM), signed by the key, which stays here; the coordinator decides the name."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name)
    return request.sign(node_key, hashes.SHA384()).public_bytes(Encoding.PEM)


def _asked(settings: Path) -> tuple[str, str]:
    """The name and the server's address in a kit's settings; the rest of them isn't read."""
    _read(settings)
    content = read_yaml(settings)
    link = content.get("link")
    server = link.get("server") if isinstance(link, dict) else None
    asked = {"name": content.get("name"), "link": {"server": server}}
    site = parse(SiteSettings, asked, where=settings.name)
    assert site.link is not None
    return site.name, site.link.server


def _plain(path: Path) -> bytes:
    """One certificate or public key of a kit, without what else its file may hold."""
    try:
        return plain_pem(_read(path))
    except ValueError:
        raise BadInput(
            f"{path}: must be one certificate, or one public key; have the coordinator send the "
            "kit again."
        ) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(
            f"{path}: can't be read ({error.strerror}); name the folder that the coordinator sent, "
            f"with {SETTINGS}, {AUTHORITY} and {COORDINATOR}."
        ) from None


def _keep(path: Path, content: bytes) -> None:
    """Write what the site will rely on; never over something else."""
    if not path.exists():
        write_private(path, [content])
    elif path.read_bytes() != content:
        raise BadInput(
            f"{path}: the kit's differs from the one that this site relies on. If the coordinator "
            "confirms the new one over the telephone, set the old one aside and run this again; if "
            "not, somebody else sent the kit."
        )
