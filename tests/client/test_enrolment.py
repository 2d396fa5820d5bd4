"""A site is made of the coordinator's kit, and of keys that it makes itself."""

from __future__ import annotations

import datetime
import stat
from pathlib import Path

import pytest

from client.enrolment import init_site
from client.keys import open_keys, read_keys
from common.config import load_site
from common.enrolment import read_enrolment
from common.errors import BadInput
from common.signed import public_hex
from server.federation import provision

NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """What the coordinator sends."""
    file = tmp_path / "coordinator" / "federation.yaml"
    file.parent.mkdir()
    file.write_text("server: lungs.example:9092\nsites:\n  alpha:\n")
    provision(file, now=NOW)
    return file.parent / "kits" / "alpha"


def test_a_site_has_its_own_keys(kit: Path, tmp_path: Path) -> None:
    """The enrolment is of the keys in the state folder, and holds their public parts alone."""
    home = tmp_path / "alpha"
    init_site(kit, out=home)
    keys = read_keys(home / "state")
    enrolment = read_enrolment(home / "enrolment.pem")
    assert enrolment.site == "alpha"
    assert enrolment.receipts_key == public_hex(keys.receipts)
    text = (home / "enrolment.pem").read_bytes()
    assert b"PRIVATE" not in text
    assert not any(secret in text for secret in (keys.ledger, keys.pseudonyms))
    assert stat.S_IMODE((home / "state" / "keys").stat().st_mode) == 0o700


def test_a_site_is_made_beside_the_kit(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --out the site's folder has the site's name, here; it is never the kit itself."""
    monkeypatch.chdir(kit.parent)
    with pytest.raises(BadInput, match="can't be the site's own folder"):
        init_site(Path("alpha"))
    assert not (kit / "state").exists()
    monkeypatch.chdir(tmp_path)
    init_site(kit)
    assert (tmp_path / "alpha" / "site.yaml").is_file()


def test_who_carries_the_kit_plants_nothing(kit: Path, tmp_path: Path) -> None:
    """Keys, links and settings that are put into it aren't taken: fingerprints don't cover them."""
    open_keys(kit / "state")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (kit / ".ca.pem.partial").symlink_to(victim)
    settings = (kit / "site.yaml").read_text()
    bad = (
        f"state: {kit / 'state'}\npolicy: {{approval: automatic}}\nrandomness: seeded-for-testing\n"
    )
    (kit / "site.yaml").write_text(settings + bad)
    (kit / "ca.pem").write_bytes(b"ssh-ed25519 AAAA carrier\n" + (kit / "ca.pem").read_bytes())
    home = tmp_path / "alpha"
    home.mkdir()
    (home / ".ca.pem.partial").symlink_to(victim)
    init_site(kit, out=home)
    assert victim.read_text() == "mine"
    site = load_site(home / "site.yaml")
    assert site.state == home / "state"
    assert (site.policy.approval, site.randomness) == ("manual", "secret")
    assert b"carrier" not in (home / "ca.pem").read_bytes()
    planted = read_keys(kit / "state").node.public_key()
    assert read_keys(home / "state").node.public_key() != planted


@pytest.mark.parametrize("name", ["ca.pem", "coordinator.pem"])
def test_a_second_authority_in_a_kit_is_refused(kit: Path, tmp_path: Path, name: str) -> None:
    """All of such a file would be trusted, and the fingerprint would be the first one's."""
    (kit / name).write_bytes((kit / name).read_bytes() * 2)
    with pytest.raises(BadInput, match="must be one certificate, or one public key"):
        init_site(kit, out=tmp_path / "alpha")
    assert not (tmp_path / "alpha").exists()


def test_again_it_changes_no_key_and_no_setting(kit: Path, tmp_path: Path) -> None:
    """A second run keeps what the hospital wrote, and gives the same fingerprint."""
    home = tmp_path / "alpha"
    first = init_site(kit, out=home)
    settings = (
        (home / "site.yaml").read_text().replace("declared_patients:", "declared_patients: 90")
    )
    (home / "site.yaml").write_text(settings)
    (home / "enrolment.pem").unlink()
    assert init_site(kit, out=home) == first
    assert (home / "site.yaml").read_text() == settings
    assert load_site(home / "site.yaml").declared_patients == 90
    assert (home / "enrolment.pem").is_file()


@pytest.mark.parametrize("name", ["ca.pem", "coordinator.pem"])
def test_nobody_slips_in_another_coordinator(kit: Path, tmp_path: Path, name: str) -> None:
    """A later kit with other keys is refused, and the trusted ones stay."""
    home = tmp_path / "alpha"
    init_site(kit, out=home)
    trusted = (home / name).read_bytes()
    for secret in kit.parents[1].glob("*.[kp]e[ym]"):
        secret.unlink()
    provision(kit.parents[1] / "federation.yaml", now=NOW)
    assert (kit / name).read_bytes() != trusted
    with pytest.raises(BadInput, match="somebody else sent the kit"):
        init_site(kit, out=home)
    assert (home / name).read_bytes() == trusted


@pytest.mark.parametrize("missing", ["site.yaml", "ca.pem", "coordinator.pem"])
def test_a_kit_that_is_not_whole_makes_nothing(kit: Path, tmp_path: Path, missing: str) -> None:
    """The sentence names the file, and no folder is left behind."""
    (kit / missing).unlink()
    with pytest.raises(BadInput, match=missing):
        init_site(kit, out=tmp_path / "alpha")
    assert not (tmp_path / "alpha").exists()


def test_a_damaged_key_in_the_kit_makes_nothing(kit: Path, tmp_path: Path) -> None:
    """What can't be read as a certificate or a key is never relied on."""
    (kit / "ca.pem").write_text(
        "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"
    )
    with pytest.raises(BadInput, match="must be one certificate"):
        init_site(kit, out=tmp_path / "alpha")
    assert not (tmp_path / "alpha").exists()
