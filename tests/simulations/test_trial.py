"""A federation on one machine in one step."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509

from client.keys import read_keys
from common.config import load_federation, load_site
from common.errors import BadInput
from server.federation import revoke
from simulations.trial import make_trial

NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    """A file that names two hospitals."""
    file = tmp_path / "federation.yaml"
    file.write_text("server: localhost:9092\nsites:\n  alpha:\n  beta:\n")
    return file


def test_all_sites_are_enrolled(federation: Path) -> None:
    """Each has settings, keys of its own, and the certificate of its node key."""
    made = make_trial(federation, now=NOW)
    assert set(load_federation(federation).enrolled) == {"alpha", "beta"}
    for path in made:
        link = load_site(path).link
        assert link is not None
        certificate = x509.load_pem_x509_certificate(link.certificate.read_bytes())
        assert certificate.public_key() == read_keys(path.parent / "state").node.public_key()


def test_again_it_enrols_only_who_is_new(federation: Path) -> None:
    """Keys and settings stay; a site that was added is made."""
    make_trial(federation, now=NOW)
    before = {path: path.read_bytes() for path in federation.parent.rglob("*.pem")}
    federation.write_text(federation.read_text() + "  gamma:\n")
    made = make_trial(federation, now=NOW)
    assert [path.parent.name for path in made] == ["alpha", "beta", "gamma"]
    assert {path: path.read_bytes() for path in before} == before
    assert set(load_federation(federation).enrolled) == {"alpha", "beta", "gamma"}


def test_a_revoked_site_is_not_let_in_again(federation: Path) -> None:
    """A trial gives no way around a revocation."""
    make_trial(federation, now=NOW)
    revoke(federation, "beta")
    with pytest.raises(BadInput, match="was revoked"):
        make_trial(federation, now=NOW)
    assert set(load_federation(federation).enrolled) == {"alpha"}
