"""`fedward site receipts`: a table that a person can read, and a verdict with an exit code."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

import fedward
from client.keys import open_keys
from client.receipts import Asked, Receipts, Refused, Sent, SentArray, rotate_receipt_key
from client.receipts_table import list_receipts
from common.chain import Head
from common.config import load_site
from common.errors import RefusalCode
from common.privacy.epsilon import Epsilon, Randomness, Unit
from common.signed import public_hex
from common.statement import StatedEpsilon

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STUDY = "ab" * 32


def says(folder: Path, *options: str) -> Result:
    """The command on the site of this folder."""
    return CliRunner().invoke(
        fedward.app, ["site", "receipts", str(folder / "site.yaml"), *options]
    )


def quiet(_head: Head) -> None:
    """No journal."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A site that has sent weights and a statement, refused twice and changed its key."""
    (tmp_path / "site.yaml").write_text("name: north\nstate: state\n")
    state = tmp_path / "state"
    book = Receipts(state / "receipts.jsonl", open_keys(state).receipts, quiet)
    bound = Epsilon(value=1.23401, delta=1e-5, unit=Unit.PATIENT, randomness=Randomness.SECRET)
    train = Sent(
        asked=Asked(kind="train", study=STUDY, fold=0, round=3, weights="cd" * 32),
        sha256="ef" * 32,
        bytes=4128,
        arrays=(SentArray(name="packed", shape=(1000,), dtype="float32", bytes=4000),),
        metrics={"loss": 0.123456},
        epsilon=StatedEpsilon.of(bound),
    )
    statement = Sent(
        asked=Asked(kind="statement", study=STUDY, fold=2, round=None, weights=None),
        sha256="01" * 32,
        bytes=900,
        arrays=(),
        metrics={},
        epsilon=None,
    )
    refusal = Refused(asked=train.asked, code=RefusalCode.OVER_BUDGET)
    for entry in (train, refusal, Refused(asked=None, code=RefusalCode.BAD_INSTRUCTION), statement):
        book.append(entry, now=NOW)
    rotate_receipt_key(state, now=NOW, announce=quiet)
    return tmp_path


def head_of(folder: Path) -> str:
    """The head as the command tells it."""
    return str(json.loads(says(folder, "--json").stdout)["head"])


def test_the_table_says_what_left_and_what_was_refused(folder: Path) -> None:
    """One row a receipt; epsilon's meaning, totals and the head stand below."""
    said = says(folder)
    assert said.exit_code == 0
    _, _, train, over, unread, statement, key, _, *below = said.stdout.splitlines()
    assert train.split() == [
        *("1", "2026-01-02", "03:04:05", "abababab", "3", "train", "packed", "(1,000"),
        *("float32),", "loss", "0.1235;", "4,128", "bytes", "1.24"),
    ]
    assert "train refused" in over
    assert "over-budget: The site's privacy budget doesn't allow this round." in over
    assert unread.split()[3:5] == ["refused", "bad-instruction:"]
    assert statement.split()[3:] == ["abababab", "2", "statement", "900", "bytes"]
    public = public_hex(open_keys(folder / "state").receipts)
    assert key.split()[3:] == ["new", "key", "signs", "from", "here", "on:", f"{public[:16]}..."]
    assert below == [
        "Study abababab: epsilon per patient (delta 1e-05, add/remove one patient, local: the site "
        "adds its noise itself; server and other sites need no trust; guarantee: differential "
        "privacy per patient)",
        "2 messages left (1 statement, 1 train), 5,028 bytes; 2 refusals listed.",
        f"Head: {head_of(folder)}",
        "Keep the head elsewhere, and compare some day: --verify --head HEAD.",
    ]


def test_json_has_every_line(folder: Path) -> None:
    """What the table rounds, JSON has in full."""
    said = json.loads(says(folder, "--json").stdout)
    assert [line["entry"]["type"] for line in said["receipts"]] == [
        "sent", "refused", "refused", "sent", "new-key",
    ]  # fmt: skip
    assert said["receipts"][0]["entry"]["epsilon"]["epsilon"] == 1.23401
    assert (said["messages"], said["bytes"], said["refusals"]) == (2, 5028, 2)
    assert said["head"].startswith("5:")
    as_json = list_receipts(load_site(folder / "site.yaml")).as_json()
    assert json.loads(json.dumps(as_json)) == as_json == said  # no value of Python's own


def test_a_whole_chain_is_said_to_be_whole(folder: Path) -> None:
    """Exit code 0, and what can't be seen without a head is said."""
    said = says(folder, "--verify")
    assert said.exit_code == 0
    assert said.stdout.startswith("Whole: 5 lines.")
    assert "only with --head" in said.stdout
    compared = says(folder, "--verify", "--head", head_of(folder))
    assert (compared.exit_code, "only with" in compared.stdout) == (0, False)
    assert json.loads(says(folder, "--verify", "--json").stdout) == {
        "whole": True,
        "head": head_of(folder),
        "problems": [],
    }


def test_each_problem_is_named_by_its_line(folder: Path) -> None:
    """A changed line: exit code 1, where it is, and the table still shows the others."""
    path = folder / "state" / "receipts.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"bytes":4128', b'"bytes":4129'))
    said = says(folder, "--verify")
    assert said.exit_code == 1
    assert said.stdout.startswith("line 1: was changed after it was signed.\nline 2: ")
    found = json.loads(says(folder, "--verify", "--json").stdout)
    assert found["whole"] is False
    sentence = said.stdout.splitlines()[0].removeprefix("line 1: ")
    assert found["problems"][0] == {"line": 1, "sentence": sentence}
    path.write_bytes(path.read_bytes().replace(b'"bytes":4129', b'"bytes":    '))
    assert says(folder).stdout.splitlines()[2].split(maxsplit=1) == [
        *("1", "can't be read; see --verify")
    ]
    assert json.loads(says(folder, "--json").stdout)["receipts"][0] is None


def test_cut_lines_need_a_head(folder: Path) -> None:
    """--head alone verifies too, and finds lines that are missing at the end."""
    head = head_of(folder)
    path = folder / "state" / "receipts.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))
    said = says(folder, "--head", head)
    assert said.exit_code == 1
    assert "4 lines are there, but the known head names 5" in said.stdout


def test_a_lost_key_is_a_problem_of_its_own(folder: Path) -> None:
    """The lines are compared with one another all the same."""
    (folder / "state" / "keys" / "receipts.pem").unlink()
    said = says(folder, "--verify")
    assert said.exit_code == 1
    assert "receipts.pem: the key is missing" in said.stdout
    assert "line" not in said.stdout.replace("pipeline", "")
    (found,) = json.loads(says(folder, "--verify", "--json").stdout)["problems"]
    assert found["line"] == 0


def test_another_site_s_chain_is_not_this_one_s(folder: Path) -> None:
    """Whole lines by another key are a problem of the last one."""
    path = folder / "state" / "receipts.jsonl"
    path.unlink()
    Receipts(path, Ed25519PrivateKey.generate(), quiet).append(
        Refused(asked=None, code=RefusalCode.BAD_INSTRUCTION), now=NOW
    )
    said = says(folder, "--verify")
    assert (said.exit_code, said.stdout) == (1, "line 1: is not signed by the site's own key.\n")


@pytest.mark.parametrize("head", ["5", "5:ab", "x:" + "0a" * 32, "5:" + "0A" * 32])
def test_a_head_that_is_none_is_bad_input(folder: Path, head: str) -> None:
    """Exit code 2, and what a head looks like."""
    said = says(folder, "--verify", "--head", head)
    assert said.exit_code == 2
    assert "--head: a head is COUNT:HASH" in said.stderr


def test_a_site_without_a_state_folder_is_bad_input(folder: Path) -> None:
    """The sentence names the key."""
    (folder / "site.yaml").write_text("name: north\n")
    said = says(folder)
    assert said.exit_code == 2
    assert "state" in said.stderr


def test_where_only_refusals_left_the_totals_say_so(tmp_path: Path) -> None:
    """No kinds are listed where no message left."""
    (tmp_path / "site.yaml").write_text("name: north\nstate: state\n")
    state = tmp_path / "state"
    book = Receipts(state / "receipts.jsonl", open_keys(state).receipts, quiet)
    book.append(Refused(asked=None, code=RefusalCode.BAD_INSTRUCTION), now=NOW)
    book.append(Refused(asked=None, code=RefusalCode.BAD_INSTRUCTION), now=NOW)
    said = says(tmp_path).stdout
    assert "\n0 messages left, 0 bytes; 2 refusals listed.\n" in said
    once, twice = said.splitlines()[2:4]
    assert "times" not in once
    assert twice.endswith(" (2 times)")


def test_an_array_has_its_shape(folder: Path) -> None:
    """An array of several dimensions is named as people write it."""
    state = folder / "state"
    book = Receipts(state / "receipts.jsonl", open_keys(state).receipts, quiet)
    asked = Asked(kind="train", study=STUDY, fold=0, round=4, weights="cd" * 32)
    array = SentArray(name="w", shape=(2, 3000), dtype="float32", bytes=24_000)
    sent = Sent(
        asked=asked, sha256="0f" * 32, bytes=24_000, arrays=(array,), metrics={}, epsilon=None
    )
    book.append(sent, now=NOW)
    assert "w (2 x 3,000 float32); 24,000 bytes" in says(folder).stdout


def test_before_the_first_message_there_is_nothing(tmp_path: Path) -> None:
    """Reading makes neither folder nor key."""
    (tmp_path / "site.yaml").write_text("name: north\nstate: state\n")
    assert says(tmp_path).stdout == "Nothing has left this site yet.\n"
    assert says(tmp_path, "--verify").stdout.startswith("Whole: 0 lines.")
    assert says(tmp_path, "--head", "1:" + "0a" * 32).exit_code == 1
    assert not (tmp_path / "state").exists()


def test_a_restore_is_a_row_that_says_what_was_given_up(folder: Path) -> None:
    """Whoever reads the table sees that messages may be missing above."""
    state = folder / "state"
    book = Receipts(state / "receipts.jsonl", open_keys(state).receipts, quiet)
    lost = Head(9, "9" * 64)
    book.restore([lost, Head(8, "8" * 64)], ledger=Head(3, "3" * 64), now=NOW)
    row = next(line for line in says(folder).stdout.splitlines() if "restored" in line)
    assert row.split("restored", 1)[1].strip() == (
        "messages may be missing above; given up: 8:88888888888888..., 9:99999999999999..."
    )
    book.restore([], ledger=Head(3, "3" * 64), now=NOW)
    assert "missing above; nothing given up\n" in says(folder).stdout
    assert says(folder, "--head", str(lost)).exit_code == 0
