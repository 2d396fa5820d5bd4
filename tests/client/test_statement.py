"""A site's statement: what it counted, and no number that its policy keeps back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.statement import make_statement, sign
from common.chain import Head
from common.config import SiteSettings, Study, parse
from common.privacy.epsilon import Epsilon, Randomness, Unit
from common.privacy.not_covered import NotCovered
from common.signed import public_hex
from common.statement import Statement, read_statement

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
HEAD = Head(7, "0a" * 32)
STUDY = parse(Study, {"classes": ["dark", "bright"], "data": {"kind": "manifest"}}, where="study")


def site(release: Mapping[str, Any] | None = None) -> SiteSettings:
    """A hospital with a policy on what it releases."""
    return parse(SiteSettings, {"name": "north", "release": release or {}}, where="site.yaml")


def stated(
    settings: SiteSettings,
    study: Study = STUDY,
    *,
    randomness: Randomness | None = Randomness.SECRET,
    unit: Unit = Unit.PATIENT,
) -> Statement:
    """What a site with 46 patients says after 5 rounds."""
    epsilon = None
    if randomness is not None:
        epsilon = Epsilon(value=2.5, delta=1e-6, unit=unit, randomness=randomness)
    return make_statement(
        settings,
        study,
        fold=0,
        rounds_joined=5,
        epsilon=epsilon,
        receipts=HEAD,
        patients=46,
        images=811,
        version="0.1.0",
        key=KEY,
    )


def test_a_statement_says_all_that_an_epsilon_means() -> None:
    """Study, unit, epsilon, delta, adjacency, trust model, guarantee, source of randomness."""
    said = stated(site())
    assert (said.site, said.study, said.rounds_joined) == ("north", STUDY.sha256, 5)
    assert said.privacy is not None
    assert said.privacy.model_dump(mode="json") == {
        "epsilon": 2.5,
        "delta": 1e-6,
        "unit": "patient",
        "adjacency": "add/remove one patient",
        "trust_model": "local: the site adds its noise itself; server and other sites need no "
        "trust",
        "randomness": "secret",
        "guarantee": "differential privacy per patient",
    }
    assert said.receipts.head() == HEAD
    assert said.key == public_hex(KEY)


def test_counts_leave_only_by_policy() -> None:
    """Without `release.counts` what leaves has no number of patients or images."""
    kept = json.loads(sign(stated(site()), KEY))["statement"]
    assert (kept["patients"], kept["images"]) == (None, None)
    assert not {46, 811} & {value for value in kept.values() if isinstance(value, int)}
    released = stated(site({"counts": True}))
    assert (released.patients, released.images) == (46, 811)


def test_seeded_randomness_promises_nothing() -> None:
    """A simulated statement says that there is no guarantee."""
    said = stated(site(), randomness=Randomness.SEEDED)
    assert said.privacy is not None
    assert said.privacy.guarantee == "none (seeded)"


def test_without_privacy_there_is_no_epsilon() -> None:
    """Nothing is covered, so nothing is listed as not covered."""
    said = stated(site(), randomness=None)
    assert said.privacy is None
    assert said.not_covered == ()


def test_what_is_not_covered_depends_on_what_leaves() -> None:
    """Exact metrics and counts are named where they leave, weaker units where they are used."""
    always = {
        NotCovered.DECLARED_NUMBER,
        NotCovered.PARTICIPATION,
        NotCovered.CHOICES,
        NotCovered.ROUNDING,
        NotCovered.SEVERAL_SITES,
    }
    assert set(stated(site()).not_covered) == always
    with_metrics = stated(site({"metrics": ["loss"]})).not_covered
    assert set(with_metrics) == always | {NotCovered.RELEASED_METRICS}
    with_counts = stated(site({"counts": True})).not_covered
    assert set(with_counts) == always | {NotCovered.RELEASED_COUNTS}
    for unit, name in (
        (Unit.EXAM, NotCovered.SEVERAL_EXAMS),
        (Unit.IMAGE, NotCovered.SEVERAL_IMAGES),
    ):
        weaker = stated(site(), unit=unit)
        assert set(weaker.not_covered) == always | {name}


def test_a_signed_statement_is_read_as_it_was_made() -> None:
    """What the site signs is what the coordinator reads."""
    said = stated(site())
    assert read_statement(sign(said, KEY)) == said
    assert sign(said, KEY) == sign(said, KEY)


def test_another_key_signs_nothing() -> None:
    """A statement is signed by the key that it names."""
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    with pytest.raises(ValueError, match="names"):
        sign(stated(site()), other)
