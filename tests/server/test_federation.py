"""A coordinator provisions a federation, lets sites in, and shuts them out."""

from __future__ import annotations

import datetime
import stat
from pathlib import Path
from threading import Thread

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from client.enrolment import init_site
from common.certificates import days_left, fingerprint, named_hosts
from common.config import load_federation, load_site
from common.errors import BadInput
from server.federation import provision, revoke, sign

NOW = datetime.datetime.now(datetime.UTC)
HEAD = "# ours\nname: lungs\nserver: lungs.example:9092   # what sites call\n"
FEDERATION = f"{HEAD}sites:\n  alpha:\n  beta:\n"


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    """A provisioned federation of two hospitals that aren't enrolled yet."""
    return provisioned(tmp_path / "coordinator", FEDERATION)


def provisioned(folder: Path, text: str) -> Path:
    """A federation's file, and what provisioning makes beside it."""
    folder.mkdir()
    file = folder / "federation.yaml"
    file.write_text(text)
    provision(file, now=NOW)
    return file


def enrolment_of(federation: Path, site: str, *, at: str = "hospital") -> Path:
    """What the site sends after `fedward site init`."""
    home = federation.parents[1] / at / site
    init_site(federation.parent / "kits" / site, out=home)
    return home / "enrolment.pem"


def keys_of(federation: Path, site: str) -> str | None:
    """The node key that the file lists."""
    return load_federation(federation).sites[site].node_key


def test_provisioning_makes_all_that_a_server_needs(federation: Path) -> None:
    """The file loads with what was made; only its owner reads secrets; the certificate is right."""
    folder, loaded = federation.parent, load_federation(federation)
    for path in (loaded.certificate_key, loaded.coordinator_key, folder / "ca.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    server = loaded.certificate.read_bytes()
    assert named_hosts(server) == ("lungs.example", "127.0.0.1")
    certificate, authority = map(
        x509.load_pem_x509_certificate, (server, loaded.authority.read_bytes())
    )
    certificate.verify_directly_issued_by(authority)
    key = load_pem_private_key(loaded.certificate_key.read_bytes(), None)
    assert key.public_key() == certificate.public_key()
    assert loaded.enrolled == {}


def test_a_kit_holds_no_secret(federation: Path) -> None:
    """Nothing private is in it, and its settings are for this site and server."""
    kit = federation.parent / "kits" / "alpha"
    assert {path.name for path in kit.iterdir()} == {
        "site.yaml",
        "README.md",
        "ca.pem",
        "coordinator.pem",
    }
    assert not [path for path in kit.iterdir() if b"PRIVATE" in path.read_bytes()]
    site = load_site(kit / "site.yaml")
    assert site.name == "alpha"
    assert site.link is not None
    assert site.link.server == "lungs.example:9092"
    assert site.policy.approval == "manual"


def test_provisioning_again_changes_nothing_that_is_good(federation: Path) -> None:
    """A second run keeps every byte; a new site gets its kit from the same authority."""
    before = {path: path.read_bytes() for path in federation.parent.rglob("*.*")}
    assert provision(federation, now=NOW).made == ()
    assert {path: path.read_bytes() for path in before} == before
    federation.write_text(FEDERATION + "  gamma:\n")
    assert provision(federation, now=NOW).made == ("kits/gamma",)


@pytest.mark.parametrize("why", ["soon over", "another host", "damaged", "another authority's"])
def test_a_server_certificate_that_is_no_good_is_made_anew(federation: Path, why: str) -> None:
    """Provisioning renews it where it ends within 60 days, or isn't the right one."""
    folder, now, made = federation.parent, NOW, ("server.pem", "server.key")
    before = (folder / "server.pem").read_bytes()
    if why == "soon over":
        assert provision(federation, now=NOW + datetime.timedelta(days=764)).made == ()
        now = NOW + datetime.timedelta(days=766)
    elif why == "another host":
        federation.write_text(FEDERATION.replace("lungs.example", "192.0.2.7"))
        made = (*made, "kits/alpha", "kits/beta")
    elif why == "damaged":
        (folder / "server.pem").write_bytes(before[:200])
    else:
        for name in ("ca.pem", "ca.key"):
            (folder / name).unlink()
        made = ("ca.pem", "ca.key", *made, "kits/alpha", "kits/beta")
    assert provision(federation, now=now).made == made
    after = (folder / "server.pem").read_bytes()
    assert after != before
    assert days_left(after, now=now) > 800


def test_signing_lets_a_site_in(federation: Path) -> None:
    """Its keys are in the file, its certificate is the authority's, the fingerprint is its own."""
    home = federation.parents[1] / "hospital" / "alpha"
    told = init_site(federation.parent / "kits" / "alpha", out=home)
    signed = sign(federation, home / "enrolment.pem", now=NOW)
    assert (signed.site, signed.fingerprint) == ("alpha", told.enrolment)
    assert told.authority == fingerprint((federation.parent / "ca.pem").read_bytes())
    certificate = x509.load_pem_x509_certificate(signed.certificate.read_bytes())
    certificate.verify_directly_issued_by(
        x509.load_pem_x509_certificate((home / "ca.pem").read_bytes())
    )
    assert certificate.subject.rfc4514_string() == "CN=alpha"
    assert set(load_federation(federation).enrolled) == {"alpha"}
    assert load_federation(federation).sites["alpha"].receipts_key is not None


STYLES = {
    "a name alone": "sites:\n  alpha:          # Hannover\n  beta:\n",
    "braces": "sites:\n  alpha: {}   # Hannover\n  beta: {revoked: false}\n# the end\n",
    "blocks": "sites:\n  alpha:\n    # soon\n    revoked: false   # no\n\n  # next\n  beta: {}\n",
    "one line": "sites: {alpha: {}, beta: {revoked: false}}  # both\nwait_for_sites_s: 60\n",
    "no line at the end": "sites:\n  beta:\n  alpha:",
    "quoted": "sites:\n  'alpha': {}\n  \"beta\": {}\n",
}


@pytest.mark.parametrize("style", STYLES)
def test_what_a_person_wrote_stays(tmp_path: Path, style: str) -> None:
    """However the file is written: comments and other keys keep their text, through all changes."""
    text = HEAD + STYLES[style]
    file = provisioned(tmp_path / "coordinator", text)
    sign(file, enrolment_of(file, "alpha"), now=NOW)
    sign(file, enrolment_of(file, "beta"), now=NOW)
    revoke(file, "alpha")
    loaded = load_federation(file)
    assert set(loaded.enrolled) == {"beta"}
    assert loaded.sites["alpha"].revoked
    inner = ("revoked: false   # no",)  # within what is replaced
    for line in text.splitlines():
        comment = line.partition("#")[2]
        assert comment in file.read_text() or any(part in line for part in inner)


def test_the_same_enrolment_renews(federation: Path) -> None:
    """A year later the same keys get a certificate that lasts a year longer."""
    enrolment = enrolment_of(federation, "alpha")
    first = sign(federation, enrolment, now=NOW)
    text, old = federation.read_text(), first.certificate.read_bytes()
    later = NOW + datetime.timedelta(days=365)
    sign(federation, enrolment, now=later)
    assert federation.read_text() == text
    new = first.certificate.read_bytes()
    assert days_left(new, now=later) == pytest.approx(days_left(old, now=later) + 365, abs=0.1)


def test_another_key_needs_a_revocation_first(federation: Path) -> None:
    """Who asks with new keys is refused, until the old ones are revoked; those never come back."""
    first = enrolment_of(federation, "alpha")
    sign(federation, first, now=NOW)
    second = enrolment_of(federation, "alpha", at="elsewhere")
    before = federation.read_text()
    with pytest.raises(BadInput, match="another node key"):
        sign(federation, second, now=NOW)
    assert federation.read_text() == before
    revoke(federation, "alpha")
    with pytest.raises(BadInput, match="was revoked"):
        sign(federation, first, now=NOW)
    assert load_federation(federation).enrolled == {}
    sign(federation, second, now=NOW)
    assert set(load_federation(federation).enrolled) == {"alpha"}
    revoke(federation, "alpha")
    for known in (first, second):
        with pytest.raises(BadInput, match="was revoked"):
            sign(federation, known, now=NOW)
    sign(federation, enrolment_of(federation, "alpha", at="third"), now=NOW)
    with pytest.raises(BadInput, match="was revoked"):
        sign(federation, first, now=NOW)


def test_another_receipts_key_is_not_slipped_in(federation: Path, tmp_path: Path) -> None:
    """The node key alone, stolen, doesn't let anybody sign statements with keys of their own."""
    enrolment = enrolment_of(federation, "alpha")
    sign(federation, enrolment, now=NOW)
    other = enrolment_of(federation, "alpha", at="elsewhere")
    request, _, _ = enrolment.read_bytes().partition(b"-----BEGIN PUBLIC")
    _, mark, key = other.read_bytes().partition(b"-----BEGIN PUBLIC")
    forged = tmp_path / "forged.pem"
    forged.write_bytes(request + mark + key)
    before = federation.read_text()
    with pytest.raises(BadInput, match="another receipts key"):
        sign(federation, forged, now=NOW)
    assert federation.read_text() == before


def test_without_the_authority_the_old_certificate_stays(federation: Path) -> None:
    """A renewal that can't be signed leaves the server with what it has."""
    folder = federation.parent
    before = {name: (folder / name).read_bytes() for name in ("server.pem", "server.key")}
    key = folder / "ca.key"
    hidden = key.rename(folder.parent / "safe.key")
    with pytest.raises(BadInput, match=r"ca\.key"):
        provision(federation, now=NOW + datetime.timedelta(days=800))
    assert {name: (folder / name).read_bytes() for name in before} == before
    hidden.rename(key)
    assert "server.pem" in provision(federation, now=NOW + datetime.timedelta(days=800)).made


def test_a_link_to_the_file_stays_one(federation: Path) -> None:
    """What the server reads is changed, wherever the name leads; its mode stays."""
    real = federation.rename(federation.with_name("real.yaml"))
    federation.symlink_to(real)
    real.chmod(0o640)
    sign(federation, enrolment_of(federation, "alpha"), now=NOW)
    revoke(federation, "alpha")
    assert federation.is_symlink()
    assert load_federation(real).sites["alpha"].revoked
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_two_at_once_lose_nothing(federation: Path) -> None:
    """Of two revocations at the same moment both are kept."""
    for site in ("alpha", "beta"):
        sign(federation, enrolment_of(federation, site), now=NOW)
    text = federation.read_text()
    for _ in range(20):
        federation.write_text(text)
        threads = [Thread(target=revoke, args=(federation, site)) for site in ("alpha", "beta")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert load_federation(federation).enrolled == {}


def test_line_ends_stay(tmp_path: Path) -> None:
    """A file that was written on another system keeps its way of ending lines."""
    text = (HEAD + "sites:\n  alpha:\n  beta:\n").replace("\n", "\r\n")
    file = provisioned(tmp_path / "coordinator", "sites: {alpha: }\n")
    file.write_bytes(text.encode())
    provision(file, now=NOW)
    revoke(file, "beta")
    assert file.read_bytes().count(b"\r\n") == text.count("\r\n")


def test_no_two_sites_share_a_key(federation: Path) -> None:
    """A key of one site is refused in another's name."""
    enrolment = enrolment_of(federation, "alpha")
    sign(federation, enrolment, now=NOW)
    (enrolment.parent / "site.yaml").write_text("name: beta\nstate: state\n")
    init_site(federation.parent / "kits" / "alpha", out=enrolment.parent)
    with pytest.raises(BadInput, match="alpha has this very node key"):
        sign(federation, enrolment, now=NOW)
    assert keys_of(federation, "beta") is None


def test_a_stranger_is_not_signed(federation: Path, tmp_path: Path) -> None:
    """A name that the file doesn't list is refused, and nothing is written for it."""
    other = provisioned(tmp_path / "other", f"{HEAD}sites:\n  gamma:\n")
    before = sorted(federation.parent.rglob("*"))
    with pytest.raises(BadInput, match="has no site 'gamma'; it has alpha, beta"):
        sign(federation, enrolment_of(other, "gamma"), now=NOW)
    with pytest.raises(BadInput, match="has no site 'gamma'"):
        revoke(federation, "gamma")
    assert sorted(federation.parent.rglob("*")) == before


@pytest.mark.parametrize("damage", ["cut", "no second key", "forged", "text", "gone"])
def test_a_damaged_enrolment_is_refused(federation: Path, damage: str) -> None:
    """One sentence says what was expected; the file stays as it is."""
    enrolment = enrolment_of(federation, "alpha")
    content, before = enrolment.read_bytes(), federation.read_bytes()
    if damage == "cut":
        enrolment.write_bytes(content[: len(content) // 3])
    elif damage == "no second key":
        enrolment.write_bytes(content[: content.index(b"-----BEGIN PUBLIC")])
    elif damage == "forged":
        line = content.splitlines()[3]
        enrolment.write_bytes(content.replace(line, line.swapcase()))
    elif damage == "text":
        enrolment.write_text("please let us in")
    else:
        enrolment.unlink()
    with pytest.raises(BadInput, match=r"enrolment\.pem"):
        sign(federation, enrolment, now=NOW)
    assert federation.read_bytes() == before


def test_files_made_elsewhere_are_left_to_their_owner(tmp_path: Path) -> None:
    """A file that names its own authority isn't provisioned over."""
    with pytest.raises(BadInput, match="authority must not be set"):
        provisioned(tmp_path / "coordinator", f"{FEDERATION}authority: /etc/ssl/ca.pem\n")
    assert [path.name for path in (tmp_path / "coordinator").iterdir()] == ["federation.yaml"]


def test_signing_needs_the_authority(federation: Path) -> None:
    """Where its key was carried away, the sentence asks for it and nothing is written."""
    enrolment, before = enrolment_of(federation, "alpha"), federation.read_bytes()
    (federation.parent / "ca.key").unlink()
    with pytest.raises(BadInput, match=r"ca\.key: can't be read"):
        sign(federation, enrolment, now=NOW)
    assert federation.read_bytes() == before
