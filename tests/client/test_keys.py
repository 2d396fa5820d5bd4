"""The site's keys: made once, for its own user alone, and what is said when one is amiss."""

from __future__ import annotations

import functools
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from client.keys import SiteKeys, adopt_receipt_key, next_receipt_key, open_keys, read_keys
from common.errors import BadInput
from common.signed import public_hex

ROOT = Path(__file__).parents[2]
NAMES = ("node.pem", "receipts.pem", "ledger.key", "pseudonyms.key")


def secrets_of(keys: SiteKeys) -> tuple[object, ...]:
    """All that makes the keys what they are."""
    node = keys.node.private_numbers().private_value
    return node, keys.receipts.private_bytes_raw(), keys.ledger, keys.pseudonyms


def forked(work: Callable[[], object]) -> int:
    """Run `work` in a process of its own; its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def test_keys_are_made_once_and_read_afterwards(tmp_path: Path) -> None:
    """The second opening finds the keys of the first; no two sites have the same."""
    first = secrets_of(open_keys(tmp_path / "site"))
    assert secrets_of(open_keys(tmp_path / "site")) == first
    assert secrets_of(read_keys(tmp_path / "site")) == first
    other = secrets_of(open_keys(tmp_path / "other"))
    assert not set(first) & set(other)
    assert first[2] != first[3]
    assert len(open_keys(tmp_path / "site").ledger) == 32


def test_only_the_owner_may_read_them(tmp_path: Path) -> None:
    """Folders are 0700 and files 0600 whatever the umask is."""
    before = os.umask(0)
    try:
        open_keys(tmp_path / "state")
        next_receipt_key(tmp_path / "state")
    finally:
        os.umask(before)
    folder = tmp_path / "state" / "keys"
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in folder.iterdir()} == {*NAMES, "receipts.pem.next"}
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_node_key_is_what_flower_reads(tmp_path: Path) -> None:
    """Flower's supernode takes an OpenSSH key on a NIST curve."""
    keys = open_keys(tmp_path)
    loaded = load_ssh_private_key((tmp_path / "keys" / "node.pem").read_bytes(), None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    assert isinstance(loaded.curve, ec.SECP384R1)
    assert loaded.public_key() == keys.node.public_key()


def test_keys_are_neither_shown_nor_pickled(tmp_path: Path) -> None:
    """No text of the keys holds a secret, and pickle refuses them."""
    keys = open_keys(tmp_path)
    for text in (repr(keys), str(keys), f"{keys}"):
        assert text.startswith("<client.keys.SiteKeys object")
        assert repr(keys.ledger) not in text
    with pytest.raises(TypeError, match="neither copied nor sent"):
        pickle.dumps(keys)


def test_processes_that_start_at_once_have_the_same_keys(tmp_path: Path) -> None:
    """Of several first openings one makes the keys, and all have them."""
    state, (reading, writing) = tmp_path / "state", os.pipe()
    start, go = os.pipe()
    children = []
    for _ in range(6):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(go)
                os.read(start, 1)  # ends when the parent lets go
                os.write(writing, repr(secrets_of(open_keys(state))).encode() + b"\n")
                status = 0
            finally:  # whatever happens, no second pytest goes on from here
                os._exit(status)
        children.append(child)
    os.close(go)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
    os.close(writing)
    with os.fdopen(reading) as lines:
        said = lines.read().splitlines()
    assert len(said) == 6
    assert set(said) == {repr(secrets_of(read_keys(state)))}
    assert {path.name for path in state.iterdir()} == {"keys", "keys.lock"}


def test_a_kill_while_they_are_made_leaves_none_or_all(tmp_path: Path) -> None:
    """After a kill at any sync or rename the next opening has four keys, which then stay."""

    def dies_at(state: Path, step: int) -> None:
        steps = iter(range(step))

        def deadly(call: Callable[..., None]) -> Callable[..., None]:
            def once(*arguments: object, **named: object) -> None:
                if next(steps, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                call(*arguments, **named)

            return once

        os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)
        os.rename, os.mkdir = deadly(os.rename), deadly(os.mkdir)
        open_keys(state)

    killed = 0
    for step in range(100):
        state = tmp_path / str(step)
        status = forked(functools.partial(dies_at, state, step))
        first = secrets_of(open_keys(state))
        assert secrets_of(read_keys(state)) == first
        assert not list(state.glob(".keys*"))
        if status == 0:
            break
        assert status == signal.SIGKILL
        killed += 1
    assert killed >= 12


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("node.pem", "the server no longer knows this site"),
        ("receipts.pem", "nothing new can be signed"),
        ("ledger.key", "nothing may be trained"),
        ("pseudonyms.key", "decoded again"),
    ],
)
def test_a_key_that_is_missing_or_damaged_is_explained(
    tmp_path: Path, name: str, means: str
) -> None:
    """The sentence names the file, says what its loss means, and nothing is made anew."""
    open_keys(tmp_path)
    path = tmp_path / "keys" / name
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole + b"x" if name[-4:] == ".key" else b"x"):
        path.write_bytes(content)
        with pytest.raises(BadInput, match="damaged") as damaged:
            open_keys(tmp_path)
        assert means in str(damaged.value)
        assert str(path) in str(damaged.value)
    path.unlink()
    with pytest.raises(BadInput, match="missing") as missing:
        open_keys(tmp_path)
    assert means in str(missing.value)
    assert not path.exists()


def test_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    """Keys in each other's place, or on another curve, are no keys."""
    open_keys(tmp_path)
    folder = tmp_path / "keys"
    node, receipts = (folder / "node.pem").read_bytes(), (folder / "receipts.pem").read_bytes()
    (folder / "node.pem").write_bytes(receipts)
    with pytest.raises(BadInput, match=r"node\.pem: is damaged or another kind"):
        open_keys(tmp_path)
    (folder / "node.pem").write_bytes(node)
    (folder / "receipts.pem").write_bytes(node)
    with pytest.raises(BadInput, match=r"receipts\.pem: is damaged or another kind"):
        open_keys(tmp_path)


@pytest.mark.parametrize("name", ["", *NAMES])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, name: str, mode: int) -> None:
    """One bit for the group or for others, on a file or on the folder, is enough."""
    open_keys(tmp_path)
    path = tmp_path / "keys" / name
    path.chmod(mode | (0o100 if not name else 0))
    with pytest.raises(BadInput, match="chmod 600"):
        open_keys(tmp_path)


def test_all_keys_gone_is_no_first_use(tmp_path: Path) -> None:
    """Where receipts are there, the site had keys: new ones are not made in silence."""
    open_keys(tmp_path)
    (tmp_path / "receipts.jsonl").touch()
    shutil.rmtree(tmp_path / "keys")
    for _ in range(2):
        with pytest.raises(BadInput, match="keys are gone"):
            open_keys(tmp_path)
        (tmp_path / "keys").mkdir(exist_ok=True)


def test_a_state_folder_that_is_none_is_bad_input(tmp_path: Path) -> None:
    """A file where the folder should be is said in one sentence."""
    (tmp_path / "state").touch()
    with pytest.raises(BadInput, match="state"):
        open_keys(tmp_path / "state")


def test_the_next_receipt_key_stays_until_it_is_adopted(tmp_path: Path) -> None:
    """Asking again gives the same key, and adopting it leaves no trace of the old one."""
    old = open_keys(tmp_path)
    following = next_receipt_key(tmp_path)
    assert isinstance(following, Ed25519PrivateKey)
    assert public_hex(next_receipt_key(tmp_path)) == public_hex(following)
    adopt_receipt_key(tmp_path)
    new = open_keys(tmp_path)
    assert public_hex(new.receipts) == public_hex(following) != public_hex(old.receipts)
    assert secrets_of(new)[2:] == secrets_of(old)[2:]
    assert {path.name for path in (tmp_path / "keys").iterdir()} == set(NAMES)
    assert public_hex(next_receipt_key(tmp_path)) != public_hex(following)


def test_keys_receipts_and_statements_come_without_torch_opacus_and_flower() -> None:
    """What guards the site starts at once and depends on little."""
    code = (
        "import sys, client.keys, client.receipts, client.receipts_table, client.statement\n"
        "print(*{name.partition('.')[0] for name in sys.modules} & {'torch', 'opacus', 'flwr'})"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert said.stdout.strip() == ""
