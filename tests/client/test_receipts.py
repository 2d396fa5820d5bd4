"""Receipts: nothing that is done to the chain goes unseen, and no kill breaks it."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import logging
import os
import random
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from client import receipts
from client.keys import open_keys
from client.receipts import (
    EMPTY,
    Asked,
    Line,
    NewKey,
    Receipts,
    ReceiptsDamaged,
    Refused,
    Restored,
    Sent,
    SentArray,
    problems,
    rotate_receipt_key,
)
from common.chain import Head
from common.errors import RefusalCode
from common.privacy.epsilon import Epsilon, Randomness, Unit
from common.signed import is_signed, public_hex, sha256_hex
from common.statement import StatedEpsilon

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
PUBLIC = public_hex(KEY)
EPSILON = Epsilon(value=0.1, delta=1e-5, unit=Unit.PATIENT, randomness=Randomness.SECRET)


def asked(number: int, study: str = "ab" * 32) -> Asked:
    """The instruction of round `number`."""
    return Asked(kind="train", study=study, fold=0, round=number, weights=f"{number:064x}")


def sent(number: int, *, content: str = "message") -> Sent:
    """The reply to round `number`."""
    return Sent(
        asked=asked(number),
        sha256=sha256_hex(f"{content} {number}".encode()),
        bytes=4096,
        arrays=(SentArray(name="packed", shape=(1000,), dtype="float32", bytes=4000),),
        metrics={"loss": 0.1 + number, "accuracy": 0.5},
        epsilon=StatedEpsilon.of(EPSILON),
    )


def refused(code: RefusalCode = RefusalCode.NOT_APPROVED) -> Refused:
    """A refusal of round 1."""
    return Refused(asked=asked(1), code=code)


def chain(folder: Path, key: Ed25519PrivateKey = KEY) -> Receipts:
    """The receipts of a site without a journal."""
    return Receipts(folder / "receipts.jsonl", key, announce=lambda _: None)


def entries(book: Receipts) -> list[Sent | Refused | NewKey | Restored]:
    """What the lines say."""
    return [Line.from_canonical(text).entry for text in book.path.read_bytes().splitlines()]


@pytest.fixture
def book(tmp_path: Path) -> Receipts:
    """No receipts yet."""
    return chain(tmp_path)


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk isn't waited for, where many lines are written."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """A chain of 1,000 lines of all kinds, each with its newline."""
    book = chain(tmp_path_factory.mktemp("thousand"))
    head = EMPTY
    with pytest.MonkeyPatch.context() as patch, book._locked() as descriptor:
        patch.setattr(os, "fsync", lambda _: None)
        for number in range(1, 1001):
            entry = refused() if number % 10 == 0 else sent(number)
            head = book._write(descriptor, entry, after=head, now=NOW)
    assert book.problems(head) == []
    lines = book.path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1000
    return lines


@pytest.fixture
def memorised() -> Iterator[None]:
    """A line that was looked at once isn't parsed again: it would say the same."""
    parse = functools.lru_cache(maxsize=None)(Line.from_canonical)
    check = functools.lru_cache(maxsize=None)(is_signed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Line, "from_canonical", parse)
        patch.setattr(Line, "signed_bytes", functools.lru_cache(maxsize=None)(Line.signed_bytes))
        patch.setattr(Line, "__hash__", lambda line: hash(line.signature))
        patch.setattr("client.receipts.is_signed", check)
        yield


# What a line says.


def test_a_line_says_what_left_and_follows_the_line_above(book: Receipts) -> None:
    """Number, time in UTC, entry, and the hash of the line above; nothing before the first."""
    assert book.head == EMPTY
    assert not book.path.exists()
    east = NOW.astimezone(timezone(timedelta(hours=5)))
    first, second = book.append(sent(1), now=NOW), book.append(refused(), now=east)
    lines = [Line.from_canonical(text) for text in book.path.read_bytes().splitlines()]
    assert [line.number for line in lines] == [1, 2] == [first.count, second.count]
    assert {line.time for line in lines} == {"2026-01-02T03:04:05Z"}
    assert [line.entry for line in lines] == [sent(1), refused()]
    assert [line.previous for line in lines] == [EMPTY.sha256, first.sha256]
    assert second.sha256 == sha256_hex(book.path.read_bytes().splitlines()[1])
    assert book.head == second
    assert book.problems(second) == []
    assert book.path.stat().st_mode & 0o777 == 0o600


def test_the_last_ledger_head_is_remembered(book: Receipts) -> None:
    """A ledger that was put back from an old copy is found by what the receipts say."""
    assert book.ledger_head is None
    book.append(sent(1), now=NOW)
    assert book.ledger_head is None
    for number in (2, 3):
        paid = sent(number).model_copy(update={"ledger": str(Head(5 * number, "0a" * 32))})
        book.append(paid, now=NOW)
    for entry in (sent(4), refused()):
        book.append(entry, now=NOW)
    assert book.ledger_head == Head(15, "0a" * 32)


def test_the_signature_is_over_what_the_docstring_says(book: Receipts) -> None:
    """Whoever has the public key can check a line without fedward: plain JSON and Ed25519."""
    book.append(sent(1), now=NOW)
    content = json.loads(book.path.read_bytes())
    signature, content["signature"] = content["signature"], "0" * 128
    signed = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    KEY.public_key().verify(bytes.fromhex(signature), b"fedward receipt 1\n" + signed)
    assert content["key"] == PUBLIC


def test_the_same_message_has_one_line(book: Receipts) -> None:
    """A reply sent again from the outbox gets its old head, however much came in between."""
    heads = [book.append(sent(number), now=NOW) for number in (1, 2, 3)]
    later = sent(2).model_copy(update={"epsilon": None})  # other studies may go on meanwhile
    assert book.append(later, now=NOW + timedelta(days=1)) == heads[1]
    assert [book.append(sent(number), now=NOW) for number in (3, 1)] == [heads[2], heads[0]]
    assert book.head == heads[2]


def test_other_bytes_or_another_question_are_another_message(book: Receipts) -> None:
    """Only what is the same in instruction and content is the same message."""
    book.append(sent(1), now=NOW)
    others = [sent(1, content="other")] + [
        sent(1).model_copy(update={"asked": asked(1).model_copy(update=change)})
        for change in ({"kind": "evaluate"}, {"fold": 1}, {"round": 2}, {"study": "0" * 64})
    ]
    assert [book.append(other, now=NOW).count for other in others] == [2, 3, 4, 5, 6]
    assert book.problems() == []


def test_several_messages_to_one_question_keep_their_own_heads(book: Receipts) -> None:
    """Each of them, sent again, is found: the first, the last and those between."""
    messages = [sent(1, content=content) for content in ("one", "two", "three")]
    heads = [book.append(message, now=NOW) for message in messages]
    book.append(sent(2), now=NOW)
    assert [book.append(message, now=NOW) for message in messages] == heads


def test_the_machine_s_time_zone_changes_nothing(
    book: Receipts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line's time is UTC wherever the site is."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        book.append(sent(1), now=NOW)
    time.tzset()
    assert Line.from_canonical(book.path.read_bytes()[:-1]).time == "2026-01-02T03:04:05Z"


def test_a_refusal_of_the_same_instruction_is_no_message(book: Receipts) -> None:
    """A refused round that is answered after all gets its line."""
    book.append(refused(), now=NOW)
    assert book.append(sent(1), now=NOW).count == 2


def test_a_flood_of_refusals_is_counted_not_listed(book: Receipts, unsynced: None) -> None:
    """600 refusals leave 21 lines that say how many there were; a message begins anew."""
    book.append(sent(1), now=NOW)
    for _ in range(600):
        book.append(refused(), now=NOW)
    times = [entry.times for entry in entries(book)[1:] if isinstance(entry, Refused)]
    assert times == [*range(1, 17), 32, 64, 128, 256, 512]
    other = book.append(refused(RefusalCode.BAD_INSTRUCTION), now=NOW)
    assert entries(book)[-1] == refused(RefusalCode.BAD_INSTRUCTION)
    assert other.count == 23
    book.append(sent(2), now=NOW)
    book.append(refused(), now=NOW)
    assert entries(book)[-1] == refused()
    assert book.problems() == []


def test_a_damaged_count_of_refusals_begins_again(book: Receipts) -> None:
    """The count is no more than a help against floods: without it each refusal gets its line."""
    for content in (b"", b"[1]", b"{", b'{"not-approved":"7"}'):
        book.path.with_name("refusals.json").write_bytes(content)
        book.append(refused(), now=NOW)
    assert [entry.times for entry in entries(book) if isinstance(entry, Refused)] == [1, 1, 1, 1]


# What is done to the chain.

Damage = Callable[[list[bytes], int], list[bytes]]


def changed(lines: list[bytes], place: int) -> list[bytes]:
    """One byte is another."""
    line = bytearray(lines[place])
    at = random.Random(place).randrange(len(line))
    line[at] = line[at] ^ 1 or 1
    return [*lines[:place], bytes(line), *lines[place + 1 :]]


def dropped(lines: list[bytes], place: int) -> list[bytes]:
    """A line is gone."""
    return [*lines[:place], *lines[place + 1 :]]


def swapped(lines: list[bytes], place: int) -> list[bytes]:
    """Two neighbours have changed places."""
    first = min(place, len(lines) - 2)
    return [*lines[:first], lines[first + 1], lines[first], *lines[first + 2 :]]


def exchanged(lines: list[bytes], place: int) -> list[bytes]:
    """A line has changed places with one far away."""
    other = (place + len(lines) // 3) % len(lines)
    found = list(lines)
    found[place], found[other] = found[other], found[place]
    return found


def doubled(lines: list[bytes], place: int) -> list[bytes]:
    """A line stands there twice."""
    return [*lines[: place + 1], *lines[place:]]


def torn(lines: list[bytes], place: int) -> list[bytes]:
    """The end of a line is missing, its newline too."""
    half = lines[place][: len(lines[place]) // 2]
    return [*lines[:place], half, *lines[place + 1 :]]


def cut(lines: list[bytes], place: int) -> list[bytes]:
    """The chain ends before this line."""
    return lines[:place]


def cut_within(lines: list[bytes], place: int) -> list[bytes]:
    """The chain ends in the middle of this line."""
    return [*lines[:place], lines[place][:-1]]


DAMAGES = (changed, dropped, swapped, exchanged, doubled, torn, cut, cut_within)


def unseen(lines: list[bytes], places: range) -> list[tuple[str, int]]:
    """Damages that nobody would notice."""
    whole, head = b"".join(lines), Head(len(lines), sha256_hex(lines[-1][:-1]))
    assert problems(whole, key=PUBLIC, known_head=head) == []
    return [
        (damage.__name__, place)
        for damage in DAMAGES
        for place in places
        if not problems(b"".join(damage(lines, place)), key=PUBLIC, known_head=head)
    ]


@pytest.mark.usefixtures("memorised")
def test_damage_among_a_thousand_lines_is_found(thousand: list[bytes]) -> None:
    """Show 4: a changed, dropped, swapped, doubled or truncated line is found wherever it is."""
    assert unseen(thousand, range(0, 1000, 111)) == []
    assert unseen(thousand, range(997, 1000)) == []


@pytest.mark.long
@pytest.mark.usefixtures("memorised")
def test_damage_to_any_of_a_thousand_lines_is_found(thousand: list[bytes]) -> None:
    """Show 4, at every place."""
    assert unseen(thousand, range(1000)) == []


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_byte_can_be_changed(thousand: list[bytes], data: st.DataObject) -> None:
    """Any other byte at any place of a chain is found, even where nobody remembers a head."""
    content = bytearray(b"".join(thousand[:3]))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    assert problems(bytes(content), key=PUBLIC, known_head=None)


def test_a_line_that_nobody_can_read_is_named(thousand: list[bytes]) -> None:
    """Whatever stands where a line should be, its place is said, and the next line misses it."""
    content = b"".join([*thousand[:2], b"not a receipt\n", *thousand[3:9]])
    found = problems(content, key=PUBLIC, known_head=None)
    assert [problem.line for problem in found] == [3, 4]


def test_a_line_that_follows_an_unreadable_one_is_no_problem(book: Receipts) -> None:
    """What can't be read has its place and its hash in the chain all the same."""
    book.append(sent(1), now=NOW)
    text = b"not a receipt"
    with book._locked() as descriptor:
        os.write(descriptor, text + b"\n")
        book._write(descriptor, sent(2), after=Head(2, sha256_hex(text)), now=NOW)
    assert [problem.line for problem in book.problems()] == [2]


@pytest.mark.parametrize("damage", [changed, dropped, swapped, exchanged, doubled])
def test_damage_is_found_where_it_is(thousand: list[bytes], damage: Damage) -> None:
    """The first problem names the damaged line or the next, and the rest of the chain is fine."""
    found = problems(b"".join(damage(thousand[:90], 40)), key=PUBLIC, known_head=None)
    assert 41 <= found[0].line <= 42
    assert len(found) <= 5


def test_missing_lines_are_found_by_a_known_head(book: Receipts) -> None:
    """Cut lines are seen only by who remembers; a remembered head of the past is fine."""
    heads = [book.append(sent(number), now=NOW) for number in range(1, 6)]
    for head in (EMPTY, *heads):
        assert book.problems(head) == []
        assert book.knows(head)
    lines = book.path.read_bytes().splitlines(keepends=True)
    book.path.write_bytes(b"".join(lines[:3]))
    assert book.problems() == []
    assert str(book.problems(heads[4])[0]).startswith("3 lines are there, but the known head names")
    assert book.problems(heads[4])[0].line == 0
    assert [book.knows(head) for head in heads] == [True, True, True, False, False]
    book.path.unlink()
    assert book.problems(heads[0])
    assert not book.knows(heads[0])
    assert book.knows(EMPTY)


def test_a_restore_gives_up_the_heads_that_it_is_told_and_no_others(book: Receipts) -> None:
    """What was lost with a disk is accepted, by a signed line that names it; a forged one isn't."""
    first = book.append(sent(1), now=NOW)
    backup = book.path.read_bytes()
    second, lost = book.append(sent(2), now=NOW), book.append(sent(3), now=NOW)
    book.path.write_bytes(backup)
    assert not book.knows(lost)
    assert book.problems(lost)
    ledger = Head(7, "7" * 64)
    head = book.restore([lost, first], ledger=ledger, now=NOW)
    assert entries(book)[1:] == [Restored(lost=(str(lost),), ledger=str(ledger))]
    assert (head.count, book.ledger_head) == (2, ledger)
    later = book.append(sent(4), now=NOW)
    for known in (EMPTY, first, lost, head, later):
        assert book.knows(known)
        assert book.problems(known) == []
    assert not book.knows(second)
    assert book.problems(second)
    content = book.path.read_bytes()
    book.path.write_bytes(content.replace(str(lost).encode(), str(second).encode()))
    assert book.problems(second)


def test_a_restore_that_was_torn_gives_up_nothing(book: Receipts) -> None:
    """A line without its end doesn't count, whatever it says."""
    book.append(sent(1), now=NOW)
    lost = Head(9, "9" * 64)
    book.restore([lost], ledger=EMPTY, now=NOW)
    book.path.write_bytes(book.path.read_bytes()[:-1])
    assert not book.knows(lost)
    assert book.problems(lost)


def test_a_chain_that_was_written_anew_is_found_by_a_known_head(book: Receipts) -> None:
    """Even with the site's own key nobody can put other lines before a remembered head."""
    heads = [book.append(sent(number), now=NOW) for number in (1, 2)]
    book.path.unlink()
    for number in (3, 4, 5):
        book.append(sent(number), now=NOW)
    assert book.problems() == []
    assert [book.problems(head)[0].line for head in heads] == [1, 2]
    assert book.problems(Head(3, "3" * 64))[0].line == 3
    assert "written anew" in book.problems(heads[0])[0].sentence
    assert not any(book.knows(head) for head in heads)


def test_another_key_is_not_the_site(book: Receipts, tmp_path: Path) -> None:
    """A whole chain by somebody else's key is found, and never continued."""
    stranger = chain(tmp_path, OTHER)
    stranger.append(sent(1), now=NOW)
    assert stranger.problems() == []
    assert [problem.sentence for problem in book.problems()] == [
        "is not signed by the site's own key."
    ]
    assert problems(book.path.read_bytes(), key=None, known_head=None) == []
    with pytest.raises(ReceiptsDamaged, match="another key"):
        book.append(sent(2), now=NOW)


def test_lines_of_two_keys_don_t_mix(book: Receipts, tmp_path: Path) -> None:
    """A line of a stranger that is linked in properly is found."""
    heads = [book.append(sent(1), now=NOW)]
    stranger = chain(tmp_path / "stranger", OTHER)
    stranger.path.parent.mkdir()
    stranger.append(sent(7), now=NOW)
    with stranger._locked() as descriptor:
        stranger._write(descriptor, sent(2), after=heads[0], now=NOW)
    forged = stranger.path.read_bytes().splitlines(keepends=True)[1]
    book.path.write_bytes(book.path.read_bytes() + forged)
    assert [str(problem) for problem in book.problems()] == [
        "line 2: is signed by another key than the lines above.",
        "line 2: is not signed by the site's own key.",
    ]


@pytest.mark.parametrize("damage", [changed, torn])
def test_nothing_is_added_to_a_damaged_chain(book: Receipts, damage: Damage) -> None:
    """Where the last line was changed, nothing may leave until somebody has looked."""
    for number in (1, 2):
        book.append(sent(number), now=NOW)
    lines = book.path.read_bytes().splitlines(keepends=True)
    broken = b"".join(damage(lines, 1)).rstrip(b"\n") + b"\n"
    book.path.write_bytes(broken)
    for entry in (sent(3), refused()):
        with pytest.raises(ReceiptsDamaged, match="--verify"):
            book.append(entry, now=NOW)
    with pytest.raises(ReceiptsDamaged):
        book.hand_over(OTHER, now=NOW)
    assert book.path.read_bytes() == broken


def test_a_statement_s_signature_is_no_receipt_s(book: Receipts) -> None:
    """The same key signs both, but a signature of one never passes for the other."""
    book.append(sent(1), now=NOW)
    line = Line.from_canonical(book.path.read_bytes()[:-1])
    text = line.signed_bytes().removeprefix(b"fedward receipt 1\n")
    signature = KEY.sign(b"fedward statement 1\n" + text).hex()
    forged = line.model_copy(update={"signature": signature}).canonical() + b"\n"
    assert problems(forged, key=PUBLIC, known_head=None)


def test_a_thousand_lines_are_verified_in_a_second(thousand: list[bytes]) -> None:
    """Measured in this process's own time, without what others do to the machine."""
    content = b"".join(thousand)
    seconds = []
    for _ in range(3):
        before = os.times().user
        assert problems(content, key=PUBLIC, known_head=None) == []
        seconds.append(os.times().user - before)
        if seconds[-1] < 1:
            break
    assert min(seconds) < 1


# Kills, full disks, other processes.


def test_every_torn_last_line_is_moved_aside(
    book: Receipts, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever a kill cut the last line, the next message heals the chain and it is said."""
    book.append(sent(1), now=NOW)
    before = book.path.read_bytes()
    book.append(sent(2), now=NOW)
    whole = book.path.read_bytes()
    torn_bytes = 0
    for end in range(len(before) + 1, len(whole), 97):
        book.path.write_bytes(whole[:end])
        (problem,) = book.problems()
        assert (problem.line, "torn" in problem.sentence) == (2, True)
        assert book.head.count == 1
        book.append(sent(2), now=NOW)
        assert book.path.read_bytes() == whole
        torn_bytes += end - len(before) + 1
        aside = book.path.with_name("receipts.torn").read_bytes()
        assert aside.endswith(whole[len(before) : end] + b"\n")
        assert len(aside) == torn_bytes  # what was moved there earlier stays
        assert book.path.with_name("receipts.torn").stat().st_mode & 0o777 == 0o600
    assert "receipts.torn" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


def test_the_end_is_checked_without_writing_a_line(book: Receipts) -> None:
    """What a kill left is moved aside; where the last line was changed, that is said."""
    book.check_end()
    book.append(sent(1), now=NOW)
    whole = book.path.read_bytes()
    book.path.write_bytes(whole + b"{")
    book.check_end()
    assert book.path.read_bytes() == whole
    book.path.write_bytes(whole.replace(b'"bytes":4096', b'"bytes":4097'))
    with pytest.raises(ReceiptsDamaged, match="--verify"):
        book.check_end()


def test_a_torn_first_line_is_moved_aside(book: Receipts) -> None:
    """A kill at the very first message leaves no line at all."""
    book.append(sent(1), now=NOW)
    whole = book.path.read_bytes()
    book.path.write_bytes(whole[:100])
    assert book.head == EMPTY
    book.append(sent(1), now=NOW)
    assert book.path.read_bytes() == whole


SYSTEM_CALLS = ("write", "fsync", "ftruncate", "open", "replace", "unlink", "rename")


def killed_at(step: int, when: str, work: Callable[[], object]) -> int:
    """Do `work` in a process that dies at its `step`-th call that changes files; its status.

    `when`: before the call, after it, or (of a write) halfway.
    """
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    steps = itertools.count()

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def once(*arguments: Any, **named: Any) -> Any:
            if next(steps) != step:
                return call(*arguments, **named)
            if when == "halfway":
                arguments = (arguments[0], arguments[1][: len(arguments[1]) // 2])
            if when != "before":
                call(*arguments, **named)
            os.kill(os.getpid(), signal.SIGKILL)

        return once

    try:
        for name in SYSTEM_CALLS if when != "halfway" else ("write",):
            setattr(os, name, deadly(getattr(os, name)))
        work()
    except BaseException:
        os._exit(99)
    os._exit(0)


@pytest.mark.parametrize("when", ["before", "after", "halfway"])
@pytest.mark.parametrize("situation", ["first", "later", "torn", "refusal", "after refusals"])
def test_a_kill_anywhere_leaves_a_chain_that_goes_on(
    tmp_path: Path, situation: str, when: str
) -> None:
    """Killed at any step of `append`, the same call again gives a whole chain with one line."""
    entry = refused() if situation == "refusal" else sent(2)
    for step in range(50):
        book = chain(tmp_path / str(step))
        book.path.parent.mkdir()
        if situation != "first":
            book.append(sent(1), now=NOW)
        if situation == "after refusals":
            book.append(refused(), now=NOW)
        if situation == "torn":
            with book.path.open("ab") as file:
                file.write(b'{"entry":{"ask')
        known = book.head
        status = killed_at(step, when, functools.partial(book.append, entry, now=NOW))
        head = book.append(entry, now=NOW)
        assert book.problems(head) == []
        assert book.problems(known) == []
        assert book.head == head
        if situation == "refusal":  # a refusal that was written and not answered is another one
            assert 1 <= sum(isinstance(one, Refused) for one in entries(book)) <= 2
        else:
            assert entries(book).count(entry) == 1
        if status == 0:
            break
        assert status == signal.SIGKILL
    assert status == 0
    assert step >= (1 if when == "halfway" else 3)


def test_a_line_is_synced_before_anything_leaves(
    book: Receipts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When `append` returns, all of the file has been synced, and its name at the first time."""
    synced: list[tuple[bool, int]] = []

    def note(descriptor: int) -> None:
        found = os.fstat(descriptor)
        synced.append((stat.S_ISDIR(found.st_mode), found.st_size))

    monkeypatch.setattr(os, "fsync", note)
    for number in (1, 2):
        book.append(sent(number), now=NOW)
        assert (False, book.path.stat().st_size) in synced
        assert any(is_folder for is_folder, _ in synced) == (number == 1)
        synced.clear()


def test_a_line_found_again_is_synced_before_anything_leaves(
    book: Receipts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wrote the line may have been killed before it was on the disk."""
    book.append(sent(1), now=NOW)
    synced: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda one: synced.append(stat.S_ISDIR(os.fstat(one).st_mode)))
    book.append(sent(1), now=NOW)
    assert synced == [False, True]


def test_a_full_disk_leaves_the_chain_as_it_was(
    book: Receipts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that doesn't fit isn't there, and the next one that fits is."""
    before = book.append(sent(1), now=NOW)
    content = book.path.read_bytes()
    write = os.write

    def full(descriptor: int, line: bytes) -> int:
        if len(line) < 300:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, line[: len(line) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            book.append(sent(2), now=NOW)
    assert book.path.read_bytes() == content
    assert book.head == before
    assert book.append(sent(2), now=NOW).count == 2
    assert book.problems() == []


def test_processes_take_turns(book: Receipts) -> None:
    """Four processes with their own and common messages leave one whole chain, none twice."""

    def work(process: int) -> None:
        for number in range(20):
            book.append(sent(number), now=NOW)
            book.append(sent(100 * process + number), now=NOW)

    children = []
    for process in range(1, 5):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work(process)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert book.problems() == []
    rounds = [entry.asked.round for entry in entries(book) if isinstance(entry, Sent)]
    assert len(rounds) == len(set(rounds)) == 100


# The journal.


def test_each_head_goes_to_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's journal hears number and hash, and nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(receipts, "_JOURNAL", Path("log"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind("log")
        journal.settimeout(1)
        book = Receipts(tmp_path / "receipts.jsonl", KEY)
        for entry in (sent(1), refused()):
            head = book.append(entry, now=NOW)
            assert journal.recv(1000) == f"<14>fedward: receipts {head}".encode()


@pytest.mark.parametrize("state", ["absent", "deaf", "full"])
def test_a_journal_that_fails_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """Whether nobody listens, or somebody who doesn't read, receipts are written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(receipts, "_JOURNAL", Path("log"))
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
    ):
        if state != "absent":
            journal.bind("log")
        if state == "deaf":
            journal.close()
        if state == "full":
            other.connect("log")
            other.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while other.send(b"noise"):
                    pass
        book = Receipts(tmp_path / "receipts.jsonl", KEY)
        assert book.append(sent(1), now=NOW).count == 1


# Another key.


def test_a_new_key_goes_on_with_the_chain(tmp_path: Path) -> None:
    """The old key names the new one; the chain verifies across, and only the new one adds."""
    old = open_keys(tmp_path).receipts
    first = chain(tmp_path, old).append(sent(1), now=NOW)
    head = rotate_receipt_key(tmp_path, now=NOW, announce=lambda _: None)
    assert head.count == 2
    new = open_keys(tmp_path).receipts
    assert entries(chain(tmp_path))[1] == NewKey(key=public_hex(new))
    with pytest.raises(ReceiptsDamaged, match="another key"):
        chain(tmp_path, old).append(sent(2), now=NOW)
    book = chain(tmp_path, new)
    assert book.append(sent(1), now=NOW) == first
    assert book.append(sent(2), now=NOW).count == 3
    assert book.problems(first) == book.problems(head) == []
    assert chain(tmp_path, old).problems()
    assert rotate_receipt_key(tmp_path, now=NOW, announce=lambda _: None).count == 4
    assert chain(tmp_path, open_keys(tmp_path).receipts).problems(head) == []


def test_a_rotation_tells_its_head_and_an_interrupted_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal hears of the new key's line, and whoever asks again gets the same head."""
    told: list[Head] = []
    chain(tmp_path, open_keys(tmp_path).receipts).append(sent(1), now=NOW)

    def killed(_state: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(receipts, "adopt_receipt_key", killed)
        with pytest.raises(KeyboardInterrupt):
            rotate_receipt_key(tmp_path, now=NOW, announce=told.append)
    again = rotate_receipt_key(tmp_path, now=NOW, announce=told.append)
    assert told == [again] == [chain(tmp_path).head]
    assert again.count == 2


def test_a_key_that_names_itself_is_found(book: Receipts) -> None:
    """Nobody but the old key can hand over to a new one."""
    book.append(sent(1), now=NOW)
    lines = book.path.read_bytes()
    stranger = chain(book.path.parent / "stranger", OTHER)
    stranger.path.parent.mkdir()
    stranger.path.write_bytes(lines)
    with stranger._locked() as descriptor:
        stranger._write(descriptor, NewKey(key=PUBLIC), after=book.head, now=NOW)
    book.path.write_bytes(stranger.path.read_bytes())
    assert [problem.line for problem in book.problems()] == [2]


def test_a_kill_anywhere_in_a_rotation_is_mended_by_another(tmp_path: Path) -> None:
    """Killed at any step, the rotation that is asked for again ends with one new key's line."""
    for step in range(60):
        state = tmp_path / str(step)
        old = open_keys(state).receipts
        chain(state, old).append(sent(1), now=NOW)

        def work(state: Path = state) -> object:
            return rotate_receipt_key(state, now=NOW, announce=lambda _: None)

        status = killed_at(step, "before", work)
        if status:
            assert status == signal.SIGKILL
            if public_hex(open_keys(state).receipts) == public_hex(old):
                work()
        book = chain(state, open_keys(state).receipts)
        assert public_hex(book.key) != public_hex(old)
        assert book.problems() == []
        assert [type(entry) for entry in entries(book)] == [Sent, NewKey]
        assert book.append(sent(2), now=NOW).count == 3
        if status == 0:
            break
    assert status == 0
    assert step >= 8
