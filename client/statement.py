"""The site's statement at a study's end: made from what it counted itself, and signed."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.chain import Head
from common.config import SiteSettings, Study
from common.privacy.epsilon import Epsilon, Unit
from common.privacy.not_covered import NotCovered
from common.signed import public_hex
from common.statement import (
    ReceiptsHead,
    SignedStatement,
    StatedEpsilon,
    Statement,
    signed_bytes,
)


def make_statement(
    site: SiteSettings,
    study: Study,
    *,
    fold: int,
    rounds_joined: int,
    epsilon: Epsilon | None,
    receipts: Head,
    patients: int,
    images: int,
    version: str,
    key: Ed25519PrivateKey,
) -> Statement:
    """What the site says about its part in a study.

    Args:
        site: names the site, and says by `release` whether its counts may leave.
        study: the study.
        fold: of the study; 0 where it has one split.
        rounds_joined: rounds whose weights left.
        epsilon: what they cost the worst-off unit of this study; None without privacy.
        receipts: head of the receipts before this statement's own.
        patients, images: of the site; they leave only with `release.counts`.
        version: of fedward.
        key: will sign it; see `sign`.

    Returns:
        The statement. It says by name what the training's privacy doesn't cover here.
    """
    released = site.release.counts
    return Statement(
        site=site.name,
        key=public_hex(key),
        study=study.sha256,
        fold=fold,
        rounds_joined=rounds_joined,
        privacy=None if epsilon is None else StatedEpsilon.of(epsilon),
        receipts=ReceiptsHead(count=receipts.count, sha256=receipts.sha256),
        patients=patients if released else None,
        images=images if released else None,
        not_covered=() if epsilon is None else _not_covered(site, epsilon.unit),
        fedward=version,
    )


def sign(statement: Statement, key: Ed25519PrivateKey) -> bytes:
    """The signed statement as `common.statement.read_statement` takes it.

    Raises:
        ValueError: the statement names another key.
    """
    if statement.key != public_hex(key):
        raise ValueError("a statement must be signed by the key that it names")
    signature = key.sign(signed_bytes(statement)).hex()
    return SignedStatement(statement=statement, signature=signature).canonical()


def _not_covered(site: SiteSettings, unit: Unit) -> tuple[NotCovered, ...]:
    applies = {
        NotCovered.RELEASED_METRICS: bool(site.release.metrics),
        NotCovered.RELEASED_COUNTS: site.release.counts,
        NotCovered.SEVERAL_EXAMS: unit is Unit.EXAM,
        NotCovered.SEVERAL_IMAGES: unit is Unit.IMAGE,
    }
    return tuple(name for name in NotCovered if applies.get(name, True))
