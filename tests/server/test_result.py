"""What the coordinator says about privacy: no better than the weakest statement, and never bare."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.statement import sign
from common.config import Study, parse
from common.privacy.epsilon import Epsilon, Randomness, TrustModel, Unit
from common.signed import public_hex
from common.statement import ReceiptsHead, StatedEpsilon, Statement
from server.checkpoint import append_history
from server.result import Result, result_of

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
STUDY = parse(
    Study,
    {
        "classes": ["dark", "bright"],
        "data": {"kind": "manifest"},
        "privacy": {
            "enabled": True,
            "sampling_rate": 0.5,
            "steps_per_round": 2,
            "images_per_patient": 4,
        },
    },
    where="study",
)
GOOD = Epsilon(value=8.0, delta=1e-7, unit=Unit.PATIENT, randomness=Randomness.SECRET)
SEEDED = Epsilon(value=3.0, delta=1e-5, unit=Unit.PATIENT, randomness=Randomness.SEEDED)
EXAM = Epsilon(value=3.0, delta=1e-5, unit=Unit.EXAM, randomness=Randomness.SECRET)
CENTRAL = Epsilon(
    value=3.0,
    delta=1e-5,
    unit=Unit.PATIENT,
    randomness=Randomness.SECRET,
    trust_model=TrustModel.CENTRAL,
)


def state(leg: Path, site: str, epsilon: Epsilon | None, *, fold: int = 0) -> None:
    """Keep a site's statement as the rounds do."""
    said = Statement(
        site=site,
        key=public_hex(KEY),
        study=STUDY.sha256,
        fold=fold,
        rounds_joined=1,
        privacy=None if epsilon is None else StatedEpsilon.of(epsilon),
        receipts=ReceiptsHead(count=0, sha256="0" * 64),
        patients=None,
        images=None,
        not_covered=(),
        fedward="1.0",
    )
    (leg / "sites" / site).mkdir(parents=True)
    (leg / "sites" / site / "statement.json").write_bytes(sign(said, KEY))


def history(leg: Path, *sites: str) -> None:
    """One round with these sites."""
    leg.mkdir(parents=True, exist_ok=True)
    line = {
        "round": 1,
        "fold": 0,
        "weights_sha256": "0" * 64,
        "metrics": {},
        "heads": {},
        "left_out": {},
        "bytes_up": 1,
        "bytes_down": 1,
        "joined": list(sites),
        "seconds": 0.1,
    }
    append_history(leg / "history.jsonl", line)


def read(legs: Mapping[int, Path], **registered: str) -> Result:
    """The result of these legs, whose sites' keys are registered unless another one is given."""
    keys = {"alpha": public_hex(KEY), "beta": public_hex(KEY), **registered}
    return result_of(
        STUDY,
        legs,
        engine="grpc",
        receipts_keys=keys,
        refused={},
        late={"alpha": 2},
        seconds=1.0,
    )


def ended(leg: Path, stated: Mapping[str, Epsilon | None]) -> Result:
    """A study with alpha and beta, of which these have stated something."""
    history(leg, "alpha", "beta")
    for site, epsilon in stated.items():
        state(leg, site, epsilon)
    return read({0: leg})


def shown(result: Result) -> str:
    """The page's text."""
    return unescape(result.page())


def test_the_bound_is_no_better_than_the_weakest_statement(tmp_path: Path) -> None:
    """One seeded site leaves no guarantee; the largest epsilon and the largest delta hold."""
    privacy = ended(tmp_path, {"alpha": GOOD, "beta": SEEDED}).privacy()
    assert (privacy["epsilon"], privacy["delta"]) == (8.0, 1e-5)
    assert privacy["guarantee"] == "none (seeded)"
    assert "guarantee: none (seeded)" in privacy["sentence"]


UNCOMBINED: dict[str, Mapping[str, Epsilon | None]] = {
    "another unit": {"alpha": GOOD, "beta": EXAM},
    "another trust model": {"alpha": GOOD, "beta": CENTRAL},
    "no statement": {"alpha": GOOD},
    "no privacy": {"alpha": GOOD, "beta": None},
}


@pytest.mark.parametrize("case", UNCOMBINED)
def test_what_can_not_be_combined_is_said_for_each_site(tmp_path: Path, case: str) -> None:
    """No number for the whole; the sentence and the page say what each site has stated."""
    result = ended(tmp_path, UNCOMBINED[case])
    privacy, page = result.privacy(), shown(result)
    assert "epsilon" not in privacy
    assert "guarantee" not in privacy
    said = {"no statement": "beta: no statement", "no privacy": "beta: trained without"}
    for text in (f"alpha: {GOOD}", said.get(case, f"beta: {UNCOMBINED[case].get('beta')}")):
        assert text in privacy["sentence"]
        assert text in page
    assert privacy["without_statement"] == (["beta"] if case == "no statement" else [])
    assert privacy["without_privacy"] == (["beta"] if case == "no privacy" else [])


@pytest.mark.parametrize("stated", [{"alpha": GOOD, "beta": SEEDED}, {"alpha": GOOD}])
def test_no_epsilon_is_bare(tmp_path: Path, stated: Mapping[str, Epsilon | None]) -> None:
    """On the page a site's epsilon stands with all that it means, and nowhere else."""
    page = shown(ended(tmp_path, stated))
    for epsilon in stated.values():
        assert f"<dd>{epsilon}</dd>" in page
    bare = re.sub(r"epsilon \S+ per patient \(delta [^()]*\([^)]*\)\)", "", page)
    for epsilon in stated.values():
        bare = bare.replace(str(epsilon), "")
    bare = bare.replace(f"at most {read({0: tmp_path}).combined}", "")
    assert not re.search(r"\b(8\.00|3\.00)\b", bare)


@pytest.mark.parametrize("registered", [{"beta": "f" * 64}, {"beta": ""}])
def test_a_key_that_nobody_registered_is_said(tmp_path: Path, registered: dict[str, str]) -> None:
    """Another key than the registered one, or none registered: not verified, and said so."""
    ended(tmp_path, {"alpha": GOOD, "beta": GOOD})
    result = read({0: tmp_path}, **registered)
    sites: dict[str, Any] = result.as_json()["sites"]
    assert {name: site["verified"] for name, site in sites.items()} == {
        "alpha": True,
        "beta": False,
    }
    text = "signed by a key that is not registered"
    assert f"<dd>{GOOD}; {text}</dd>" in shown(result)
    assert result.privacy()["sentence"].endswith(f"{text}: beta")


def test_a_statement_counts_all_folds_or_none(tmp_path: Path) -> None:
    """What a site stated before it joined another fold would say too little."""
    legs = {1: tmp_path / "1", 2: tmp_path / "2"}
    for fold, leg in legs.items():
        history(leg, "alpha", "beta")
        state(leg, "alpha", GOOD, fold=fold)
    state(legs[1], "beta", GOOD, fold=1)
    result = read(legs)
    assert result.privacy()["without_statement"] == ["beta"]
    assert result.sites["alpha"].epsilon == GOOD


def test_late_calls_are_told(tmp_path: Path) -> None:
    """In numbers and on the page."""
    result = ended(tmp_path, {})
    assert result.as_json()["late_calls"] == {"alpha": 2}
    assert "too late" in shown(result)
