"""The coordinator's signature: what it binds, and that nothing else passes for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import ConfigRecord, RecordDict

from common.chain import Head
from common.config import Study, parse
from common.errors import BadInput, RefusalCode, SiteRefusal
from common.messages import (
    EVALUATE,
    QUERY,
    TRAIN,
    Instruction,
    Question,
    decode_instruction,
    decode_question,
    encode_instruction,
    encode_question,
    signed,
    with_known_head,
)
from common.signing import Sign, Verify, read_signing_key, read_verify_key
from server.provision import COORDINATOR, COORDINATOR_KEY, make_coordinator_key

CONTENT = {"classes": ["a", "b"], "data": {"kind": "manifest"}, "training": {"rounds": 4}}
STUDY = parse(Study, CONTENT, where="test")
OTHER = parse(Study, CONTENT | {"seed": 2}, where="test")
WEIGHTS = np.arange(7, dtype=np.float32)
SHA256 = "0b" * 32  # said to be theirs
HEAD = Head(3, "0a" * 32)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sign, Verify]:
    """A coordinator's two halves, read from its files."""
    folder = tmp_path_factory.mktemp("keys")
    make_coordinator_key(folder)
    return read_signing_key(folder / COORDINATOR_KEY), read_verify_key(folder / COORDINATOR)


def instruction(study: Study = STUDY, round_number: int = 2) -> RecordDict:
    """An instruction to a site that has shown its head."""
    content = encode_instruction(Instruction(study, 0, round_number, WEIGHTS, SHA256))
    return with_known_head(content, HEAD)


def refused(content: RecordDict, verify: Verify, *, kind: str = TRAIN, site: str = "a") -> None:
    """Fails unless the content is refused for its signature."""
    with pytest.raises(SiteRefusal) as caught:
        decode_instruction(content, kind=kind, site=site, verify=verify)
    assert caught.value.code is RefusalCode.BAD_SIGNATURE


def test_a_signed_instruction_comes_back(keys: tuple[Sign, Verify]) -> None:
    """What was signed for this site and use is read as it was written, in a simulation too."""
    sign, verify = keys
    content = signed(instruction(), sign, kind=TRAIN, site="a")
    for given in (verify, None):
        read = decode_instruction(content, kind=TRAIN, site="a", verify=given)
        assert (read.round_number, read.known_head) == (2, HEAD)
        assert read.weights.tobytes() == WEIGHTS.tobytes()


def changed(name: str, key: str, value: object) -> Callable[[RecordDict], None]:
    """Sets one field of a record."""

    def change(content: RecordDict) -> None:
        content[name] = ConfigRecord(dict(content[name]) | {key: value})  # type: ignore[arg-type]

    return change


def _other_study(content: RecordDict) -> None:
    content["instruction"] = instruction(OTHER)["instruction"]


def _no_signature(content: RecordDict) -> None:
    del content["signature"]


def _more(content: RecordDict) -> None:
    content["more"] = ConfigRecord({"run": "import os"})


CHANGES = {
    "fold": changed("instruction", "fold", 1),
    "round": changed("instruction", "round", 3),
    "known head": changed("instruction", "known_head", ""),
    "hash of the weights": changed("instruction", "weights_sha256", "0c" * 32),
    "study": _other_study,
    "a field more": changed("instruction", "more", 1),
    "a record more": _more,
    "signature": changed("signature", "ed25519", bytes(64)),
    "signature's type": changed("signature", "ed25519", "text"),
    "signature's name": changed("signature", "rsa", b"x"),
    "no signature": _no_signature,
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_any_change_breaks_the_signature(keys: tuple[Sign, Verify], name: str) -> None:
    """Each field is bound: whatever is changed, added or left out is refused for its signature."""
    sign, verify = keys
    content = signed(instruction(), sign, kind=TRAIN, site="a")
    CHANGES[name](content)
    refused(content, verify)


def test_a_signature_is_for_one_site_and_one_use(keys: tuple[Sign, Verify], tmp_path: Path) -> None:
    """Another site, another kind of message and another coordinator's key are refused."""
    sign, verify = keys
    content = signed(instruction(), sign, kind=TRAIN, site="a")
    refused(content, verify, site="b")
    refused(content, verify, kind=EVALUATE)
    make_coordinator_key(tmp_path)
    refused(content, read_verify_key(tmp_path / COORDINATOR))


def test_the_question_for_a_statement_is_signed_too(keys: tuple[Sign, Verify]) -> None:
    """A question is read by its site alone, and an instruction's signature is none for it."""
    sign, verify = keys
    asked = Question(STUDY.sha256, 0)
    content = signed(encode_question(asked), sign, kind=QUERY, site="a")
    assert decode_question(content, site="a", verify=verify) == asked
    assert decode_question(content) == asked
    other = signed(encode_question(asked), sign, kind=TRAIN, site="a")
    for wrong, site in ((content, "b"), (other, "a"), (encode_question(asked), "a")):
        with pytest.raises(SiteRefusal) as caught:
            decode_question(wrong, site=site, verify=verify)
        assert caught.value.code is RefusalCode.BAD_SIGNATURE


def test_a_key_file_that_is_none_is_a_sentence(tmp_path: Path) -> None:
    """A missing file, garbage, the other half and another kind of key each say what to do."""
    make_coordinator_key(tmp_path)
    (tmp_path / "garbage").write_bytes(b"x")
    elliptic = ec.generate_private_key(ec.SECP384R1())
    pem = elliptic.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "elliptic").write_bytes(pem)
    for read, names in (
        (read_signing_key, ("garbage", "elliptic", COORDINATOR)),
        (read_verify_key, ("garbage", "elliptic", COORDINATOR_KEY)),
    ):
        for name in names:
            with pytest.raises(BadInput, match="must be an Ed25519 key"):
                read(tmp_path / name)
        with pytest.raises(BadInput, match=r"can't be read \(No such file"):
            read(tmp_path / "missing")
