"""Receipts: one signed line for every message that left the site, and for every refusal.

`<state>/receipts.jsonl` is append-only. A line is canonical JSON; it names the SHA-256 of the line
above and is signed with Ed25519 (`client/keys.py`) together with its number, so that no line can be
changed, moved, put in or taken out unseen. What no chain can show by itself is that its last lines
are missing: so the head (how many lines, hash of the last) goes to the server with each reply, into
the ledger and to the system's journal, and `problems` compares with one that somebody remembers.

A line is on the disk before `append` returns, so it is there before the message leaves. A process
that is killed meanwhile leaves a line without its end: nothing left with it, and the next append
moves it to `receipts.torn`. A line is torn if, and only if, it has no newline.

A flood of refusals can't fill the disk: of the refusals with the same code since the last message
that left, the first 16 and then the 32nd, 64th, 128th ... get a line, which says the how many-th it
is; the others are counted in `refusals.json`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import mmap
import os
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from client.keys import RECEIPTS_CHAIN, adopt_receipt_key, next_receipt_key, read_receipt_key
from client.state import sync_folder, write_private
from common.chain import Head
from common.errors import RefusalCode, RunFailed
from common.signed import Hex32, Signable, Signature, is_signed, public_hex, sha256_hex
from common.statement import Count, StatedEpsilon

logger = logging.getLogger("fedward.client")

EMPTY = Head(0, "0" * 64)
_DOMAIN = b"fedward receipt 1\n"  # the same key also signs statements
_LISTED = 16  # refusals with the same code, before only powers of two get a line
_JOURNAL = Path("/dev/log")
_RESTORED = b'"type":"restored"}'  # no string holds it, since quotes in strings are escaped
_INFO = 14  # RFC 3164: facility user, severity informational


HeadText = Annotated[str, Field(pattern=r"^\d{1,12}:[0-9a-f]{64}$")]  # str(Head)


class ReceiptsDamaged(RunFailed):
    """The receipts are not what this site wrote; nothing may leave until somebody has looked."""


class Asked(Signable):
    """What the server asked for; of a statement: which study, and no round or weights."""

    kind: Literal["train", "evaluate", "statement"]
    study: Hex32
    fold: Count  # 0: the study has one split
    round: Count | None  # from 1
    weights: Hex32 | None  # hash of the incoming ones


class SentArray(Signable):
    """One array that left."""

    name: str
    shape: tuple[Count, ...]
    dtype: str
    bytes: Count


class Sent(Signable):
    """A message that left."""

    type: Literal["sent"] = "sent"
    asked: Asked
    sha256: Hex32  # of all that left
    bytes: Annotated[int, Field(ge=0)]
    arrays: tuple[SentArray, ...]
    metrics: dict[str, float]
    epsilon: StatedEpsilon | None  # of the study so far, this message included; null: not private
    ledger: HeadText | None = None  # of the row that paid for it; null: it cost nothing


class Refused(Signable):
    """A refusal that left."""

    type: Literal["refused"] = "refused"
    asked: Asked | None  # null: nobody could read it
    code: RefusalCode
    times: Annotated[int, Field(ge=1)] = 1  # with this code, since the last message that left


class NewKey(Signable):
    """The key that signs from the next line on."""

    type: Literal["new-key"] = "new-key"
    key: Hex32


class Restored(Signable):
    """Receipts or ledger were put back from a backup; messages may be missing above."""

    type: Literal["restored"] = "restored"
    lost: tuple[HeadText, ...]  # heads that others remember and these receipts have never been at
    ledger: HeadText  # of the ledger, which has charged whatever may be missing


class Line(Signable):
    """One line of the chain."""

    number: Count  # from 1
    time: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]  # no more than a hint
    entry: Annotated[Sent | Refused | NewKey | Restored, Field(discriminator="type")]
    previous: Hex32  # of the line above, its newline left out
    key: Hex32  # public
    signature: Signature  # of the line as if this were 128 zeros

    def signed_bytes(self) -> bytes:
        """What is signed."""
        return _DOMAIN + self.model_copy(update={"signature": "0" * 128}).canonical()

    @property
    def next_key(self) -> str:
        """Whose signature the next line must have."""
        return self.entry.key if isinstance(self.entry, NewKey) else self.key


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a chain, at which of its lines (from 1; 0: with none in particular)."""

    line: int
    sentence: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.sentence}" if self.line else self.sentence


def to_journal(head: Head) -> None:
    """Tell the system's journal how far the receipts have come; if it doesn't listen, so be it."""
    # SysLogHandler would wait for a journal that hangs, and print what fails.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.settimeout(0.1)
        journal.connect(str(_JOURNAL))
        journal.send(f"<{_INFO}>fedward: receipts {head}".encode())


@dataclass(frozen=True, slots=True, eq=False)
class Receipts:
    """The receipts of one site; each call opens the file, locks it, and is done with it.

    Args:
        path: the file; made (0600) at the first append.
        key: signs new lines.
        announce: is told each new head.
    """

    path: Path
    key: Ed25519PrivateKey = field(repr=False)
    announce: Callable[[Head], None] = to_journal

    def append(self, entry: Sent | Refused, *, now: datetime) -> Head:
        """Write one line, unless the same message has one: then nothing happens.

        Args:
            entry: what is about to leave. It is the same message if asked and sent were the same
                before; of refusals `times` is counted here.
            now: with its time zone; only to be read, nothing depends on it.

        Returns:
            The head that the message's line made, on disk before this returns; for a refusal that
            got no line, the last one.

        Raises:
            ReceiptsDamaged: the last line is not one that this key wrote.
            OSError: the disk is full or can't be written; no line was added.
        """
        with self._locked() as descriptor:
            last = self._end(descriptor)
            if isinstance(entry, Sent):
                earlier = _earlier(descriptor, entry)
                if earlier is not None:
                    os.fsync(descriptor)  # whoever wrote it may have been killed before that
                    sync_folder(self.path.parent)
                    return earlier
            else:
                entry = entry.model_copy(update={"times": self._refusals().get(entry.code, 0) + 1})
            if isinstance(entry, Sent) or _listed(entry.times):
                last = self._write(descriptor, entry, after=last, now=now)
                self.announce(last)
            self._count(entry)
            return last

    def hand_over(self, to: Ed25519PrivateKey, *, now: datetime) -> Head:
        """Name, signed by this key, the key of all later lines; see `rotate_receipt_key`."""
        return self._note(NewKey(key=public_hex(to)), now=now)

    def restore(self, lost: Collection[Head], *, ledger: Head, now: datetime) -> Head:
        """Go on from a backup: heads that others remember are accepted from now on.

        Args:
            lost: of receipts that were put out after the backup was made; those that are known
                all the same are left out.
            ledger: where the ledger is after its own `restore`, which comes first.
            now: with its time zone.

        Raises:
            ReceiptsDamaged, OSError: as `append` does.
        """
        unknown = sorted(str(head) for head in lost if not self.knows(head))
        return self._note(Restored(lost=tuple(unknown), ledger=str(ledger)), now=now)

    def check_end(self) -> None:
        """Raise ReceiptsDamaged where the chain can't go on; what a kill left is moved aside."""
        with self._locked() as descriptor:
            self._end(descriptor)

    @property
    def head(self) -> Head:
        """How far the chain has come; `EMPTY` before the first line."""
        with _content(self.path) as content:
            return _head(_last_line(content))

    def knows(self, head: Head) -> bool:
        """Whether the chain once ended with `head`, or a restore gave that up.

        If not, it was cut or is an old copy. A quick look at what a server remembers; `problems`
        looks at everything.
        """
        follows = f'"number":{head.count + 1},"previous":"{head.sha256}"'.encode()
        with _content(self.path) as content:
            return (
                head == _head(_last_line(content))
                or content.find(follows) >= 0
                or any(head in _given_up(_read(text)) for text in _with(content, _RESTORED))
            )

    @property
    def ledger_head(self) -> Head | None:
        """Where the privacy ledger was at the last message that it paid for; None: at none."""
        said = b'"ledger":"'  # no string holds it, since quotes in strings are escaped
        with _content(self.path) as content:
            place = content.rfind(said)
            if place < 0:
                return None
            begin = place + len(said)
            text = content[begin : content.find(b'"', begin)]
        try:
            return Head.parse(text.decode())
        except ValueError:
            raise _damaged("a line was changed") from None

    def problems(self, known_head: Head | None = None) -> list[Problem]:
        """Whatever isn't as this site wrote it; none if all is whole. See the function."""
        return problems(read(self.path), key=public_hex(self.key), known_head=known_head)

    def _note(self, entry: NewKey | Restored, *, now: datetime) -> Head:
        with self._locked() as descriptor:
            head = self._write(descriptor, entry, after=self._end(descriptor), now=now)
        self.announce(head)
        return head

    @contextmanager
    def _locked(self) -> Iterator[int]:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _end(self, descriptor: int) -> Head:
        """The head to go on from, after what a kill left is moved aside."""
        with _mapped(descriptor) as content:
            whole, last = content.rfind(b"\n") + 1, _last_line(content)
            torn = content[whole:]
        if torn:
            _append(self.path.with_name("receipts.torn"), torn + b"\n")
            os.ftruncate(descriptor, whole)
            os.fsync(descriptor)
            logger.warning("receipts: a line that was cut off by a kill is in receipts.torn now")
        if last:
            self._check(last)
        return _head(last)

    def _check(self, last: bytes) -> None:
        line = _read(last)
        if not is_signed(line.signed_bytes(), line.signature, key=line.key):
            raise _damaged("the last line was changed")
        if line.next_key != public_hex(self.key):
            raise _damaged("it goes on with another key than this site's")

    def _write(
        self,
        descriptor: int,
        entry: Sent | Refused | NewKey | Restored,
        *,
        after: Head,
        now: datetime,
    ) -> Head:
        unsigned = Line(
            number=after.count + 1,
            time=now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            entry=entry,
            previous=after.sha256,
            key=public_hex(self.key),
            signature="0" * 128,
        )
        signature = self.key.sign(unsigned.signed_bytes()).hex()
        line = unsigned.model_copy(update={"signature": signature}).canonical()
        size = os.fstat(descriptor).st_size
        try:
            _write_all(descriptor, line + b"\n")
        except OSError:  # a full disk: what is half there goes
            os.ftruncate(descriptor, size)
            raise
        if not size:
            sync_folder(self.path.parent)
        return _head(line)

    @property
    def _counts(self) -> Path:
        return self.path.with_name("refusals.json")

    def _refusals(self) -> dict[str, int]:
        """Refusals by code since the last message that left."""
        try:
            content = json.loads(self._counts.read_bytes())
        except (OSError, ValueError):  # a count that is lost begins again
            return {}
        if not isinstance(content, dict):
            return {}
        return {code: times for code, times in content.items() if isinstance(times, int)}

    def _count(self, entry: Sent | Refused) -> None:
        if isinstance(entry, Sent):
            self._counts.unlink(missing_ok=True)
        else:
            counts = self._refusals() | {entry.code.value: entry.times}
            write_private(self._counts, [json.dumps(counts).encode()])


def read(path: Path) -> bytes:
    """All of a chain, while nobody writes; empty before the first line."""
    with _content(path) as content:
        return content[:]


def problems(content: bytes, *, key: str | None, known_head: Head | None) -> list[Problem]:
    """Whatever isn't as the site wrote it; none if all is whole.

    Args:
        content: of the file.
        key: public, hexadecimal: whose signature the next line would have; None if it is lost, so
            that a whole chain in somebody else's hand can't be told from the site's.
        known_head: one that the server, the ledger or the journal remembers; without it, lines
            missing at the end can't be seen.
    """
    found: list[Problem] = []
    *lines, torn = content.split(b"\n")
    before, signer = EMPTY, None
    heads = {EMPTY}
    for place, text in enumerate(lines, 1):
        try:
            line = Line.from_canonical(text)
        except ValueError:
            found.append(Problem(place, "was changed: a site writes no such line."))
            before, signer = Head(before.count + 1, sha256_hex(text)), None
            continue
        if (line.number, line.previous) != (before.count + 1, before.sha256):
            found.append(
                Problem(
                    place,
                    f"has number {line.number} and doesn't follow the line above: one of them was "
                    "changed or moved, or a line was put in or taken out.",
                )
            )
        if signer not in (None, line.key):
            found.append(Problem(place, "is signed by another key than the lines above."))
        if not is_signed(line.signed_bytes(), line.signature, key=line.key):
            found.append(Problem(place, "was changed after it was signed."))
        before, signer = Head(line.number, sha256_hex(text)), line.next_key
        heads |= {before, *_given_up(line)}
    if torn:
        found.append(
            Problem(
                len(lines) + 1,
                "is torn, as a kill leaves it; nothing left with it, and the next message moves it "
                "aside. If nothing was killed, somebody has cut it.",
            )
        )
    if key is not None and signer not in (None, key):
        found.append(Problem(len(lines), "is not signed by the site's own key."))
    if known_head is not None and known_head not in heads:
        found.append(_missing(known_head, len(lines)))
    return found


def rotate_receipt_key(
    state: Path, *, now: datetime, announce: Callable[[Head], None] = to_journal
) -> Head:
    """Replace the key of the receipts; the last line of the old one names the new one.

    Stop the site before, start it afterwards, and tell the coordinator the new public key. If it
    is interrupted, call it again: it goes on with the same new key.

    Args:
        state: the site's state folder.
        now: with its time zone.
        announce: is told the new head.

    Raises:
        BadInput: the keys are not as they should be.
        ReceiptsDamaged: the last line is not one that the old key wrote.
    """
    new = next_receipt_key(state)
    path = state / RECEIPTS_CHAIN
    with _content(path) as content:
        last = _last_line(content)
    if last and _read(last).next_key == public_hex(new):  # interrupted after its line
        head = _head(last)
    else:
        head = Receipts(path, read_receipt_key(state), announce).hand_over(new, now=now)
    adopt_receipt_key(state)
    return head


def _missing(known: Head, lines: int) -> Problem:
    if known.count > lines:
        return Problem(
            0,
            f"{lines} lines are there, but the known head names {known.count}: the last ones are "
            "missing, or this is an old copy.",
        )
    return Problem(
        known.count, "is not the one that the known head names: the chain was written anew."
    )


def _earlier(descriptor: int, entry: Sent) -> Head | None:
    """The head that the same message made when it left first."""
    asked = b'"asked":' + entry.asked.canonical() + b","
    with _mapped(descriptor) as content:
        for text in _with(content, asked):
            sent = _read(text).entry
            if isinstance(sent, Sent) and (sent.asked, sent.sha256) == (entry.asked, entry.sha256):
                return _head(text)
    return None


def _given_up(line: Line) -> set[Head]:
    """The heads that a line accepts though the chain has never been there."""
    return set(map(Head.parse, line.entry.lost)) if isinstance(line.entry, Restored) else set()


def _with(content: Content, said: bytes) -> Iterator[bytes]:
    """Every whole line that says this, without its newline."""
    place = content.find(said)
    while place >= 0:
        begin, end = content.rfind(b"\n", 0, place) + 1, content.find(b"\n", place)
        if end < 0:
            return
        yield content[begin:end]
        place = content.find(said, end)


def _read(text: bytes) -> Line:
    try:
        return Line.from_canonical(text)
    except ValueError:
        raise _damaged("a line was changed") from None


def _damaged(what: str) -> ReceiptsDamaged:
    return ReceiptsDamaged(
        f"{RECEIPTS_CHAIN}: {what}. Look with `fedward site receipts SITE.yaml --verify`; then put "
        "it back from the backup, or begin a new one (Receipts in client/README.md)."
    )


def _listed(times: int) -> bool:
    return times <= _LISTED or times & (times - 1) == 0


def _head(last: bytes) -> Head:
    return Head(_read(last).number, sha256_hex(last)) if last else EMPTY


Content = mmap.mmap | bytes


def _last_line(content: Content) -> bytes:
    """The last line that has its newline, without it; empty if there is none."""
    end = content.rfind(b"\n")
    return content[content.rfind(b"\n", 0, end) + 1 : end] if end >= 0 else b""


@contextmanager
def _mapped(descriptor: int) -> Iterator[Content]:
    """The file's bytes, of which only those are read that are looked at."""
    if not os.fstat(descriptor).st_size:
        yield b""
        return
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as content:
        yield content


@contextmanager
def _content(path: Path) -> Iterator[Content]:
    """The file while nobody writes; empty if it isn't there."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        yield b""
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with _mapped(file.fileno()) as content:
            yield content


def _append(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        _write_all(descriptor, content)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    """Write and sync; raises OSError."""
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
    os.fsync(descriptor)
