"""Statements as a coordinator reads them: bounded, strict, and only as they were signed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from common.privacy.epsilon import Epsilon, Randomness, TrustModel, Unit
from common.privacy.not_covered import NotCovered
from common.signed import public_hex
from common.statement import (
    MOST_BYTES,
    StatedEpsilon,
    read_statement,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
EPSILON = Epsilon(value=2.5, delta=1e-6, unit=Unit.PATIENT, randomness=Randomness.SEEDED)


def content(**changes: Any) -> dict[str, Any]:
    """A statement as plain JSON values."""
    return {
        "format": 1,
        "site": "north",
        "key": public_hex(KEY),
        "study": "ab" * 32,
        "fold": 0,
        "rounds_joined": 5,
        "privacy": EPSILON.as_json(),
        "receipts": {"count": 7, "sha256": "0a" * 32},
        "patients": None,
        "images": None,
        "not_covered": ["participation"],
        "fedward": "0.1.0",
    } | changes


def written(value: Any) -> bytes:
    """Canonical JSON, by the words of the docstring."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def signed(statement: Any, domain: bytes = b"fedward statement 1\n") -> bytes:
    """A statement properly signed, whatever it says."""
    signature = KEY.sign(domain + written(statement)).hex()
    return written({"statement": statement, "signature": signature})


def test_a_statement_is_read() -> None:
    """What follows from a well formed statement is a typed one."""
    read = read_statement(signed(content()))
    assert (read.site, read.rounds_joined, read.receipts.count) == ("north", 5, 7)
    assert read.privacy is not None
    assert read.privacy.bound() == EPSILON
    assert read.not_covered == (NotCovered.PARTICIPATION,)
    assert read_statement(signed(content(privacy=None, patients=46))).patients == 46


def privacy(**changes: Any) -> dict[str, Any]:
    """The privacy of a statement with other words or numbers."""
    return {"privacy": EPSILON.as_json() | changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"more": 1},
        {"format": 2},
        {"format": 1.0},
        {"site": "no/rth"},
        {"site": "north\n"},
        {"study": "AB" * 32},
        {"study": "ab" * 31},
        {"rounds_joined": -1},
        {"rounds_joined": 5.0},
        {"rounds_joined": "5"},
        {"rounds_joined": True},
        {"rounds_joined": 10**30},
        {"patients": 1.5},
        {"fedward": "0.1.0 <script>"},
        {"fedward": "1" * 41},
        {"not_covered": ["anything a site wants to say"]},
        {"receipts": {"count": 7}},
        {"receipts": {"count": 7, "sha256": "0a" * 32, "more": 1}},
        {"receipts": "7:" + "0a" * 32},
        privacy(epsilon=-1.0),
        privacy(epsilon=float("nan")),
        privacy(epsilon=float("inf")),
        privacy(delta=1.0),
        privacy(unit="hospital"),
        privacy(adjacency="replace one patient"),
        privacy(guarantee="differential privacy per patient"),
        privacy(trust_model="everybody"),
        privacy(randomness="secret"),
        {"privacy": {"epsilon": 2.5}},
        {"key": "00" * 32},
        {"key": "ff" * 32},
    ],
)
def test_what_is_no_statement_is_refused(changes: dict[str, Any]) -> None:
    """A proper signature doesn't help what is out of range, unknown or contradictory."""
    with pytest.raises(ValueError, match=r"expected|must be"):
        read_statement(signed(content() | changes))


@pytest.mark.parametrize("name", sorted(content()))
def test_nothing_may_be_missing(name: str) -> None:
    """Every key is there, so that none can be overlooked."""
    less = content()
    del less[name]
    with pytest.raises(ValueError, match="expected"):
        read_statement(signed(less))


@given(st.data())
def test_no_byte_can_be_changed(data: st.DataObject) -> None:
    """Whatever other byte stands at whatever place, the statement isn't read."""
    text = bytearray(signed(content()))
    place = data.draw(st.integers(0, len(text) - 1))
    text[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != text[place]))
    with pytest.raises(ValueError, match=r"expected|must be"):
        read_statement(bytes(text))


@given(st.binary(max_size=200))
def test_anything_else_is_refused(text: bytes) -> None:
    """Bytes that are no JSON, no object or no text are a ValueError and nothing worse."""
    with pytest.raises(ValueError, match="expected"):
        read_statement(text)


@pytest.mark.parametrize(
    "text",
    [
        b" " + signed(content()),
        signed(content()).replace(b":", b": ", 1),
        json.dumps(json.loads(signed(content()))).encode(),
        signed(content()).replace(b'"north"', b'"\\u006eorth"'),
        b'{"signature":"' + b"0" * 128 + b'",' + signed(content())[1:],
        b"[" * 10_000,
    ],
)
def test_there_is_one_way_to_write_a_statement(text: bytes) -> None:
    """Another spelling of the same values, which could hide something, is refused."""
    with pytest.raises(ValueError, match="expected"):
        read_statement(text)


def test_a_statement_has_an_end() -> None:
    """Too many bytes are refused before they are looked at."""
    with pytest.raises(ValueError, match="at most"):
        read_statement(signed(content(not_covered=["participation"] * MOST_BYTES)))


def test_a_receipt_s_signature_is_no_statement_s() -> None:
    """The same key signs both, but never so that one passes for the other."""
    with pytest.raises(ValueError, match="signed by the key"):
        read_statement(signed(content(), domain=b"fedward receipt 1\n"))
    with pytest.raises(ValueError, match="signed by the key"):
        read_statement(signed(content(), domain=b""))


@pytest.mark.parametrize("unit", Unit)
@pytest.mark.parametrize("randomness", Randomness)
@pytest.mark.parametrize("trust_model", TrustModel)
def test_an_epsilon_comes_back_whole(
    unit: Unit, randomness: Randomness, trust_model: TrustModel
) -> None:
    """Writing and reading a bound changes nothing about it."""
    bound = Epsilon(
        value=0.1, delta=1e-7, unit=unit, randomness=randomness, trust_model=trust_model
    )
    text = StatedEpsilon.of(bound).canonical()
    assert json.loads(text) == bound.as_json()
    assert StatedEpsilon.from_canonical(text).bound() == bound
