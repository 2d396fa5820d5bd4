"""The round's secret: hidden, and separate by purpose."""

from __future__ import annotations

import hmac
import pickle
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from hypothesis import example, given
from hypothesis import strategies as st

from common.privacy.epsilon import Randomness
from common.privacy.randomness import RoundSecret, _encode

BYTES = bytes(range(32))


@pytest.fixture
def secret() -> RoundSecret:
    """A secret of known bytes."""
    return RoundSecret(BYTES, randomness=Randomness.SEEDED)


def seeded(**changes: Any) -> RoundSecret:
    """A simulated round's secret, with one thing changed."""
    arguments: dict[str, Any] = {
        "seed": 1,
        "study_hash": "a",
        "fold": 0,
        "round_number": 1,
        "weights_sha256": "b",
        "data_fingerprint": "c",
    } | changes
    return RoundSecret.seeded(arguments.pop("seed"), **arguments)


def test_the_bytes_are_never_shown_or_pickled(secret: RoundSecret) -> None:
    """Neither repr nor pickle gives the bytes away."""
    assert repr(secret) == "RoundSecret(<hidden>, randomness='seeded')"
    assert str(secret) == f"{secret}" == repr(secret)
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(secret)


def test_an_erased_secret_draws_nothing(secret: RoundSecret) -> None:
    """After erasing, the buffer is zero and every use is an error."""
    buffer = secret._material
    assert bytes(buffer) == BYTES
    secret.erase()
    assert not any(buffer)
    for use in (secret.reveal, lambda: secret.stream("x"), lambda: secret.key("x")):
        with pytest.raises(RuntimeError, match="erased"):
            use()


def test_a_secret_has_32_bytes() -> None:
    """A shorter key is refused."""
    with pytest.raises(ValueError, match="32 bytes"):
        RoundSecret(b"short", randomness=Randomness.SECRET)


def test_the_operating_system_gives_fresh_bytes() -> None:
    """Two real rounds share nothing, and only they count as secret."""
    one, other = RoundSecret.from_os(), RoundSecret.from_os()
    assert one.reveal() != other.reveal()
    assert one.randomness is Randomness.SECRET
    assert seeded().randomness is Randomness.SEEDED


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"study_hash": "A"},
        {"fold": 1},
        {"round_number": 2},
        {"weights_sha256": "B"},
        {"data_fingerprint": "C"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_argument_of_a_seeded_round_matters(change: dict[str, Any]) -> None:
    """The same arguments repeat the bytes; any other gives other bytes."""
    assert seeded().reveal() == seeded().reveal()
    assert seeded(**change).reveal() != seeded().reveal()


def test_a_simulated_round_stays_what_it_was() -> None:
    """A study can be repeated with a later version: the same seed gives the same bytes for ever."""
    assert seeded().reveal().hex() == (
        "7f484743693ad824d6c279d8ae3a330f2963c333fd2bf3a95718af62cfe7f8b5"
    )


def test_streams_differ_by_purpose_parts_and_round(secret: RoundSecret) -> None:
    """No two purposes, parts or rounds share a stream; the same ones do."""
    streams = [
        secret.stream("noise"),
        secret.stream("images"),
        secret.stream("noise", 1),
        secret.stream("noise", "1"),
        secret.stream("noise", 1, 1),
        secret.stream("noise", 11),
        seeded().stream("noise"),
        seeded(round_number=2).stream("noise"),
    ]
    assert len({stream.bytes(16) for stream in streams}) == len(streams)
    assert secret.stream("noise").bytes(16) == secret.stream("noise").bytes(16)


parts = st.lists(st.one_of(st.text(), st.integers()), max_size=4)


@given(parts, parts)
@example(["a", "b"], ["as1:b"])
@example(["a", "b"], ["asb"])
def test_different_parts_never_collide(one: list[str | int], other: list[str | int]) -> None:
    """The encoding is injective: 1 is not "1", and ("ab", "c") is not ("a", "bc")."""
    same = one == other and [type(p) for p in one] == [type(p) for p in other]
    assert (_encode(*one) == _encode(*other)) == same


def test_the_stream_is_chacha20_keyed_by_the_secret(secret: RoundSecret) -> None:
    """The words are those of OpenSSL's ChaCha20 under a key that needs the secret to know."""
    key = hmac.digest(BYTES, b"s5:noisei1:7", "sha256")
    words = secret.stream("noise", 7).bit_generator.random_raw(32)
    keystream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(256))
    assert words.astype("<u8").tobytes() == keystream
