"""What a site signs at a study's end: how private its part was, as it counted itself.

A statement travels as canonical JSON with its Ed25519 signature. The key it names is the one that
signs the site's receipts; whoever reads a statement compares it with the key that the site was
registered with, since a signature alone only says that nobody changed the text.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.chain import Head
from common.config import SITE_NAME
from common.privacy.epsilon import Epsilon, Randomness, TrustModel, Unit
from common.privacy.not_covered import NotCovered
from common.signed import Hex32, Signable, Signature, is_signed

MOST_BYTES = 16_384
_DOMAIN = b"fedward statement 1\n"  # the same key also signs receipts

Count = Annotated[int, Field(ge=0, le=1_000_000_000)]


class StatedEpsilon(Signable):
    """An `Epsilon` with all that it means, as JSON."""

    epsilon: float
    delta: float
    unit: Unit
    adjacency: str
    trust_model: TrustModel
    randomness: Randomness
    guarantee: str

    @classmethod
    def of(cls, bound: Epsilon) -> Self:
        """The same bound as it is written."""
        return cls(
            epsilon=bound.value,
            delta=bound.delta,
            unit=bound.unit,
            adjacency=bound.adjacency,
            trust_model=bound.trust_model,
            randomness=bound.randomness,
            guarantee=bound.guarantee,
        )

    def bound(self) -> Epsilon:
        """The bound itself."""
        return Epsilon(
            value=self.epsilon,
            delta=self.delta,
            unit=self.unit,
            randomness=self.randomness,
            trust_model=self.trust_model,
        )

    @model_validator(mode="after")
    def _means_what_it_says(self) -> Self:
        """Its words are those of its numbers: no text of its own, no promise from a seed."""
        if self.bound().as_json() != self.model_dump(mode="json"):
            raise ValueError("adjacency and guarantee must follow from unit and randomness")
        return self


class ReceiptsHead(Signable):
    """A `Head` as JSON."""

    count: Count
    sha256: Hex32

    def head(self) -> Head:
        """The head itself."""
        return Head(self.count, self.sha256)


class Statement(Signable):
    """What one site says about its part in one fold of a study."""

    format: Literal[1] = 1
    site: str = Field(pattern=SITE_NAME)
    key: Hex32  # public: signs this and the site's receipts
    study: Hex32
    fold: Count  # 0: the study has one split
    rounds_joined: Count  # whose weights left
    privacy: StatedEpsilon | None  # null: trained without
    receipts: ReceiptsHead  # before this statement's own
    patients: Count | None  # null: the site doesn't release it
    images: Count | None
    not_covered: tuple[NotCovered, ...]
    fedward: str = Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+-]{0,39}$")  # version


class SignedStatement(Signable):
    """A statement with the signature of `signed_bytes`: what leaves."""

    statement: Statement
    signature: Signature


def signed_bytes(statement: Statement) -> bytes:
    """What is signed: with a name of its own, so that no receipt passes for a statement."""
    return _DOMAIN + statement.canonical()


def read_statement(content: bytes) -> Statement:
    """The statement of a site, whole and as it was signed.

    Args:
        content: a `SignedStatement` in its canonical form, at most `MOST_BYTES`.

    Returns:
        The statement; its `key` is still to be compared with the site's registered one.

    Raises:
        ValueError: too long, not a statement, or changed after it was signed.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"a statement has at most {MOST_BYTES} bytes; got {len(content)}")
    signed = SignedStatement.from_canonical(content)
    statement = signed.statement
    if not is_signed(signed_bytes(statement), signed.signature, key=statement.key):
        raise ValueError("a statement must be signed by the key that it names")
    return statement
