"""The site's privacy ledger: what each patient has lost, written down before noise is drawn.

`<state>/ledger.sqlite` is a chain of rows that each carry a keyed hash of all before them; patients
are in it as keyed hashes. It stays at the site, whose disk and operator are trusted (DESIGN): the
chain finds accidents, edits with other tools and old copies.

A round is reserved, run and settled. What is reserved stays spent whatever happens next. Until it
is settled, the same request gets the same 32 bytes back, so that a killed round is resumed and no
noise is ever drawn anew; settling erases them.

Formal guarantees:
    Each patient's loss over all studies, data sets, runs and restarts is at most the site's budget
    (`lifetime_epsilon` is the filter), as long as every mechanism that touches a patient is
    reserved first, under the same name each time. Equal names are taken for one patient, which can
    only count too much.

Edge cases:
    A refusal is exact: neither noised nor charged. A study picks its rounds, noise and
    `lifetime_epsilon`, so the refusal of its first round tells whether its worst-off patient has
    lost more than any threshold. Whoever knows what another study cost learns from it whether any
    of its patients was in that one. Only the steward who reads a study before approving it, the
    number of new studies a day and a list of refusals in the receipts stand against that.
    A whole ledger that was replaced by an older copy, or taken away, can't be known from itself:
    the receipts find it, and the ledger finds an old copy of the receipts. Both at once are found
    by the head that a server remembers. Two copies of a machine each count alone.
    SQLite's journal, removed when a call returns, has held the secret that was erased; what a file
    system keeps of a removed file is beyond this. Encrypt the disk.

One connection and one exclusive transaction a call, synced with its folder before the call returns
(`synchronous = EXTRA`, https://www.sqlite.org/pragma.html). No time is kept: no clock can be wrong.
"""

from __future__ import annotations

import hmac
import math
import os
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from client.ledger_book import (
    PATIENT_BYTES,
    ROW,
    Book,
    Charge,
    History,
    Reserved,
    Restored,
    Round,
    Row,
    Settled,
    Whole,
)
from client.state import make_private, sync_folder, trust_model
from common.chain import Head
from common.config import Budget
from common.errors import BadInput, FedwardError, RunFailed
from common.privacy.epsilon import Epsilon, Randomness, TrustModel, Unit
from common.privacy.lifetime import lifetime_epsilon, times_left
from common.privacy.mechanism import Mechanism, merge

SECRET_BYTES = 32
FILE = "ledger.sqlite"  # in the state folder
_BUSY_S = 60.0  # a call takes a fraction of a second: whoever holds it longer hangs
_SCHEMA = (
    "CREATE TABLE rows (number INTEGER PRIMARY KEY, body BLOB NOT NULL, mac BLOB NOT NULL)",
    "CREATE TABLE last (rows INTEGER PRIMARY KEY, mac BLOB NOT NULL)",
    "CREATE TABLE cohorts (digest TEXT PRIMARY KEY, patients BLOB NOT NULL)",
    "CREATE TABLE secrets (number INTEGER PRIMARY KEY, secret BLOB NOT NULL)",
)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_MACHINE = (  # the disk's or the system's fault, not the file's
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
)


class OverBudget(FedwardError):
    """A round would take somebody beyond the cap; the sentence is for the site's own log."""


class LedgerDamaged(RunFailed):
    """The ledger is not what was written; nothing may be trained until it is put right."""


class LedgerUnwritable(RunFailed):
    """The ledger can't be read or written just now; ask again, and nothing is charged twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One round that the site is asked to run; equal requests are one round.

    Args:
        study: hash of the study.
        fold: 0 where the study has one split.
        round_number: from 1.
        weights_sha256, data_fingerprint: what is trained, on what.
        unit: what the study hides.
        randomness: where the secret comes from.
        mechanism: the round's noisy steps, as they touch one patient.
        patients: everybody who can be sampled, by the names in the data.
    """

    study: str
    fold: int
    round_number: int
    weights_sha256: str
    data_fingerprint: str
    unit: Unit
    randomness: Randomness
    mechanism: Mechanism
    patients: Collection[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeStudy:
    """All that an approved study may ask of a patient; fields as in `Request`."""

    study: str
    unit: Unit
    randomness: Randomness
    mechanism: Mechanism  # of all rounds and folds
    patients: Collection[str]


class Witness(Protocol):
    """The other chain of the site, its receipts: each of the two remembers the other's head."""

    @property
    def head(self) -> Head:
        """How far it has come."""

    @property
    def ledger_head(self) -> Head | None:
        """Where the ledger was when it last looked, if it has."""

    def knows(self, head: Head) -> bool:
        """Whether it has been at `head`, or has given it up since."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """A round that is paid for; `secret` is None once settled, its reply being in the outbox."""

    head: Head  # when it was reserved
    secret: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySpent:
    """What one study has taken by one kind of step; `rounds` is 0 where a restore charged it."""

    study: str
    unit: Unit
    randomness: Randomness
    rounds: int
    mechanism: Mechanism  # all its steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What the ledger says, for the people at the site."""

    head: Head
    studies: tuple[StudySpent, ...]  # in the order of their first charge
    patients: int  # in any cohort
    unsettled: int  # rounds without a reply
    restores: int
    worst: History  # of the patient who has lost most
    epsilon: Epsilon | None  # of that patient; None: beyond any bound
    trust_model: TrustModel


@dataclass(frozen=True, slots=True)
class Outlook:
    """What patients have lost already when a study asks them for more."""

    begun: bool  # something is charged to the study
    rounds: int  # of the study that were charged to anybody
    standings: tuple[tuple[History, int], ...]  # each history, with the study's rounds in it


@dataclass(frozen=True, slots=True)
class Taken:
    """What one study has taken; one seeded round takes the guarantee from all of them."""

    history: History
    randomness: Randomness


def lowered(budget: Budget, asked_epsilon: float | None) -> Budget:
    """The site's budget, or the lower cap that a server or a study asks for; never a higher one.

    >>> [lowered(Budget(epsilon=8), asked).epsilon for asked in (None, 3.0, 100.0)]
    [8.0, 3.0, 8.0]
    """
    if asked_epsilon is None:
        return budget
    if not (math.isfinite(asked_epsilon) and asked_epsilon > 0):
        raise BadInput(f"A cap must be a finite epsilon above 0; got {asked_epsilon}. Mend it.")
    return budget.model_copy(update={"epsilon": min(budget.epsilon, asked_epsilon)})


@dataclass(frozen=True, slots=True)
class Ledger:
    """One site's ledger; a call opens the file, checks all of it, and is done with it."""

    path: Path
    key: bytes = field(repr=False)  # 32 bytes

    def reserve(
        self,
        request: Request,
        *,
        cap: Budget,
        secret: Callable[[], bytes],
        receipts: Witness,
        begin_with: int = 1,
        begin_for: Collection[str] = (),
    ) -> Reservation:
        """Charge a round to everybody it can touch, or find that it is charged already.

        Args:
            request: the round.
            cap: what the worst-off of its patients may have lost with it; see `lowered`.
            begin_with: of a study that nothing is charged to yet, so many such rounds must be
                allowed by the cap, though one is charged: those that it will ask of a patient.
            begin_for: whom the study will touch in other rounds than this one, such as who is
                tested in this fold: allowed as much, and charged nothing; by their names.
            secret: gives the round's 32 bytes; called only for a new round that the cap allows.
            receipts: the site's; their head goes into the row.

        Returns:
            The reservation; it is on disk.

        Raises:
            OverBudget, LedgerDamaged, LedgerUnwritable: the round must not be run; damaged also
                where the receipts are an older copy than the ledger remembers.
            ValueError: a mechanism out of range, or a `secret` that is none.

        Edge cases:
            Other weights, data, patients or noise make another round, even under the same number:
            charged anew, with a secret of its own.
            What is charged already is given back even where the cap has come down since.
        """
        patients = self._patients(request.patients)
        charge = self._charge(request, patients)
        asked = Round(
            fold=request.fold,
            round_number=request.round_number,
            weights_sha256=request.weights_sha256,
            data_fingerprint=request.data_fingerprint,
        )
        with self._transaction() as (db, book):
            self._check(book, receipts.ledger_head)
            _check_receipts(book, receipts)
            number = book.reserved.get((asked, charge))
            if number is not None:
                return Reservation(book.heads[number - 1], book.secrets.get(number))
            limit = _limit(charge, cap, trust_model(self.path.parent))
            if begin_with > 1 and not book.has_begun(charge.study):
                touched = book.histories(patients | self._patients(begin_for))
                _check_whole(touched, charge, limit, rounds=begin_with)
            _check_budget(book.histories(patients), charge, limit)
            drawn = secret()
            if len(drawn) != SECRET_BYTES:
                raise ValueError(f"a round's secret has {SECRET_BYTES} bytes; got {len(drawn)}.")
            commitment = self._mac("secret", drawn).hex()
            if request.randomness is Randomness.SECRET and commitment in book.commitments.values():
                raise ValueError("the source of randomness gave the same 32 bytes twice.")
            self._keep_cohort(db, charge.cohort, patients)
            row = Reserved(
                round=asked, charge=charge, commitment=commitment, receipts=str(receipts.head)
            )
            self._append(db, book, row)
            db.execute("INSERT INTO secrets VALUES (?, ?)", (book.head.count, drawn))
            return Reservation(book.head, drawn)

    def find(self, study: str, asked: Round, *, receipts: Witness) -> Reservation | None:
        """What paid for a round of a study last; None where nothing did.

        Raises:
            LedgerDamaged, LedgerUnwritable: as `reserve` does.
        """
        with self._transaction() as (_, book):
            self._check(book, receipts.ledger_head)
            _check_receipts(book, receipts)
            numbers = [
                number
                for (paid, charge), number in book.reserved.items()
                if paid == asked and charge.study == study
            ]
            if not numbers:
                return None
            last = max(numbers)
            return Reservation(book.heads[last - 1], book.secrets.get(last))

    def settle(self, reservation: Reservation) -> Head:
        """Erase a round's secret, now that its reply is on disk; a second time changes nothing.

        Returns:
            The ledger's head, for the receipt.

        Raises:
            LedgerDamaged, LedgerUnwritable: the reply must not be sent.
        """
        number = reservation.head.count
        with self._transaction() as (db, book):
            if not book.holds(reservation.head):
                raise self._damaged("does not know a round that was reserved in it")
            if number in book.unsettled:
                # Overwritten where it lies, before its place is given up.
                db.execute(
                    "UPDATE secrets SET secret = zeroblob(length(secret)) WHERE number = ?",
                    (number,),
                )
                db.execute("DELETE FROM secrets WHERE number = ?", (number,))
                self._append(db, book, Settled(number=number))
            return book.head

    def verify(self, known_head: Head | None) -> Head:
        """Check the whole file, and that it has been at `known_head`; returns its own head.

        Raises:
            LedgerDamaged: edited, torn, cut off, or older than `known_head`.
            LedgerUnwritable: it can't be read.
        """
        with self._transaction() as (db, book):
            if db.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                raise self._damaged("is torn")
            self._check(book, known_head)
            return book.head

    def restore(self, studies: Sequence[WholeStudy], *, lost: Collection[Head]) -> Head:
        """Go on from a copy that was put back, charging each study's whole plan to everybody.

        What was spent since the copy was made is unknown, and at most this, each round being run
        once. It is charged whatever the caps.

        Args:
            studies: every study that may have run since.
            lost: heads that others remember and this copy has never been at: accepted from now on.

        Returns:
            The new head.

        Raises:
            LedgerDamaged, LedgerUnwritable: nothing is restored.
        """
        with self._transaction() as (db, book):
            everybody = book.everybody.union(*(self._patients(one.patients) for one in studies))
            for one in studies:
                charge = self._charge(one, everybody)
                self._keep_cohort(db, charge.cohort, everybody)
                self._append(db, book, Whole(charge=charge))
            unknown = sorted(str(head) for head in lost if not book.accepts(head))
            self._append(db, book, Restored(lost=tuple(unknown)))
            return book.head

    @property
    def receipts_head(self) -> Head | None:
        """Where the receipts were at the last reservation; raises as `verify` does."""
        with self._transaction() as (_, book):
            return book.receipts

    def spent(self, patients: Collection[str] | None, *, delta: float) -> Spent:
        """What all studies have taken so far, above all from the worst-off patient.

        Args:
            patients: among whom the worst-off is looked for; None: everybody.
            delta: of that patient's epsilon, in (0, 1).

        Raises:
            LedgerDamaged, LedgerUnwritable.
        """
        with self._transaction() as (_, book):
            everybody = book.everybody
            asked = everybody if patients is None else self._patients(patients)
            histories = book.histories(asked)
            worst = max(histories, key=lambda history: lifetime_epsilon(history, delta=delta))
            trust = trust_model(self.path.parent)
            return Spent(
                head=book.head,
                studies=_by_study(book),
                patients=len(everybody),
                unsettled=len(book.unsettled),
                restores=len(book.restores),
                worst=worst,
                epsilon=_epsilon(worst, book, delta, trust),
                trust_model=trust,
            )

    def outlook(self, study: str, patients: Collection[str] | None) -> Outlook:
        """What decides how long the budget lasts for the study of this hash.

        Args:
            study: hash.
            patients: whom it may touch, by their names; None: everybody in the ledger.

        Raises:
            LedgerDamaged, LedgerUnwritable.
        """
        with self._transaction() as (_, book):
            asked = book.everybody if patients is None else self._patients(patients)
            return Outlook(
                begun=book.has_begun(study),
                rounds=book.rounds(study),
                standings=tuple(book.standings(asked, study=study)),
            )

    def _patients(self, names: Collection[str]) -> frozenset[bytes]:
        return frozenset(self._hidden(name) for name in names)

    def taken(self, study: str) -> Taken:
        """What the study of this hash has taken so far from a patient who was in all its rounds.

        Raises:
            LedgerDamaged, LedgerUnwritable.
        """
        with self._transaction() as (_, book):
            charges = [row.charge for row in book.charges if row.charge.study == study]
        seeded = any(charge.randomness is Randomness.SEEDED for charge in charges)
        return Taken(
            merge(charge.mechanism for charge in charges),
            Randomness.SEEDED if seeded else Randomness.SECRET,
        )

    def _hidden(self, name: str) -> bytes:
        return self._mac("patient", name.encode("utf-8", "surrogatepass"))[:PATIENT_BYTES]

    def _charge(self, asked: Request | WholeStudy, patients: frozenset[bytes]) -> Charge:
        merge([asked.mechanism])  # raises ValueError where a number is out of range
        return Charge(
            study=asked.study,
            unit=asked.unit,
            randomness=asked.randomness,
            mechanism=asked.mechanism,
            cohort=self._mac("cohort", b"".join(sorted(patients))).hex(),
        )

    @staticmethod
    def _keep_cohort(db: sqlite3.Connection, digest: str, patients: frozenset[bytes]) -> None:
        content = digest, b"".join(sorted(patients))
        db.execute("INSERT INTO cohorts VALUES (?, ?) ON CONFLICT DO NOTHING", content)

    def _mac(self, purpose: str, *parts: bytes) -> bytes:
        """A keyed hash (HMAC-SHA256) of parts whose lengths count."""
        said = b"".join(len(part).to_bytes(8, "big") + part for part in (purpose.encode(), *parts))
        return hmac.digest(self.key, said, "sha256")

    def _begin(self) -> None:
        """Make an empty ledger of an empty file."""
        with self._exclusive() as db:
            if db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                for table in _SCHEMA:
                    db.execute(table)
                self._end(db, 0, b"")

    @contextmanager
    def _transaction(self) -> Iterator[tuple[sqlite3.Connection, Book]]:
        """The checked content, and where to add to it."""
        with self._exclusive() as db:
            yield db, self._read(db)

    @contextmanager
    def _exclusive(self) -> Iterator[sqlite3.Connection]:
        """A transaction with nobody else writing: what is changed is kept whole or not at all."""
        try:
            with closing(_connect(self.path)) as db:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            if code in _BUSY:
                raise LedgerUnwritable(
                    f"{self.path} has been held by another program for {_BUSY_S:.0f} s; nothing is "
                    "trained. End that program, then go on."
                ) from error
            if code in _MACHINE:
                raise LedgerUnwritable(
                    f"{self.path} can't be written ({error}); nothing is trained. Make room on its "
                    "disk and let this user write there, then go on: nothing is lost."
                ) from error
            raise self._damaged(f"can't be read ({error})") from error
        except UnicodeDecodeError:  # sqlite3's own words about a torn file
            raise self._damaged("can't be read") from None

    def _read(self, db: sqlite3.Connection) -> Book:
        """All that the file holds, each part of it checked."""
        book, mac = Book(), b""
        for number, body, said in db.execute("SELECT number, body, mac FROM rows ORDER BY number"):
            place = len(book.heads) + 1
            try:
                mac = self._mac("row", mac, body)
                if number != place or not hmac.compare_digest(mac, said):
                    raise ValueError("not the row that was written here")
                book.add(ROW.validate_json(body), mac)
            except (TypeError, ValueError):  # TypeError: a torn file can hold other types
                raise self._damaged(f"was changed at row {place}") from None
        end = [(len(book.heads), self._mac("last", mac))]
        if db.execute("SELECT rows, mac FROM last").fetchall() != end:
            raise self._damaged("has lost its last rows")
        cohorts = dict(db.execute("SELECT digest, patients FROM cohorts"))
        book.secrets = dict(db.execute("SELECT number, secret FROM secrets"))
        try:
            book.cohorts = {
                one: cohorts[one] for one in {row.charge.cohort for row in book.charges}
            }
            found = {one: self._mac("cohort", each).hex() for one, each in book.cohorts.items()}
            kept = {one: self._mac("secret", each).hex() for one, each in book.secrets.items()}
        except (KeyError, TypeError):
            raise self._damaged("has lost a part") from None
        if any(digest != one for one, digest in found.items()):
            raise self._damaged("names other patients than were written")
        if kept != {number: book.commitments[number] for number in book.unsettled}:
            raise self._damaged("has lost a round's secret, or kept one")
        return book

    def _append(self, db: sqlite3.Connection, book: Book, row: Row) -> None:
        body = row.model_dump_json().encode()
        mac = self._mac("row", bytes.fromhex(book.head.sha256) if book.heads else b"", body)
        book.add(row, mac)
        db.execute("INSERT INTO rows VALUES (?, ?, ?)", (book.head.count, body, mac))
        self._end(db, book.head.count, mac)

    def _end(self, db: sqlite3.Connection, count: int, mac: bytes) -> None:
        """Mark the last row as the last, so that cutting rows off is seen."""
        db.execute("DELETE FROM last")
        db.execute("INSERT INTO last VALUES (?, ?)", (count, self._mac("last", mac)))

    def _check(self, book: Book, head: Head | None) -> None:
        if head is not None and not book.accepts(head):
            raise self._damaged(
                f"is an old copy: others remember its head {head}, but it has come to {book.head}"
            )

    def _damaged(self, what: str) -> LedgerDamaged:
        return LedgerDamaged(
            f"{self.path} {what}; nothing is trained. Put its newest whole copy back (and remove "
            f"{self.path.name}-journal, unless it was saved with it), or move both away if there "
            "is none; then run `fedward privacy ledger restore SITE.yaml --study STUDY.yaml` with "
            "every approved study."
        )


def open_ledger(state: Path, *, key: bytes) -> Ledger:
    """The ledger in a site's state folder, made where there is none.

    A ledger that was taken away looks like one that never was: only a known head tells.

    Args:
        state: the site's state folder.
        key: of the site's ledger (`client/keys.py`).

    Raises:
        BadInput: the folder can't be made.
        LedgerDamaged, LedgerUnwritable: the file is none, or can't be made.
    """
    ledger = Ledger(make_private(state) / FILE, key)
    try:
        os.close(os.open(ledger.path, os.O_CREAT | os.O_RDWR, 0o600))
        ledger.path.chmod(0o600)  # a backup may have come back with another mode
        sync_folder(state)
    except OSError as error:
        raise LedgerUnwritable(
            f"{ledger.path} can't be made or opened ({error.strerror}); nothing is trained. Let "
            "this user write there, on a disk with room."
        ) from error
    ledger._begin()
    return ledger


def _connect(path: Path) -> sqlite3.Connection:
    """A connection that makes no file, syncs all it commits, and zeroes what it deletes."""
    address = f"{path.absolute().as_uri()}?mode=rw"
    db = sqlite3.connect(address, uri=True, timeout=_BUSY_S, isolation_level=None)
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute("PRAGMA synchronous = EXTRA")
    db.execute("PRAGMA secure_delete = ON")
    return db


def _check_receipts(book: Book, receipts: Witness) -> None:
    if book.receipts is not None and not receipts.knows(book.receipts):
        raise LedgerDamaged(
            f"The receipts are an old copy, or their last lines were cut off: the ledger remembers "
            f"their head {book.receipts}; nothing is trained. Put their newest whole copy back; "
            "without one, run `fedward privacy ledger restore SITE.yaml --study STUDY.yaml` with "
            "every approved study."
        )


def _check_budget(histories: Sequence[History], charge: Charge, limit: Epsilon) -> None:
    """Raise OverBudget if a patient with one of these histories would be beyond the cap."""
    if _rounds_left(histories, charge, limit, most=1):
        return
    raise OverBudget(
        f"The round is not run: with it the worst-off {limit.unit} would be beyond the cap, "
        f"{limit}. What is spent stays spent; `fedward privacy ledger show SITE.yaml` says on what."
    )


def _check_whole(
    histories: Sequence[History], charge: Charge, limit: Epsilon, *, rounds: int
) -> None:
    """Raise OverBudget if the cap doesn't allow so many rounds of a study that is to begin."""
    left = _rounds_left(histories, charge, limit, most=rounds)
    if left < rounds:
        raise OverBudget(
            f"The study is not begun: the budget lasts for {left} of {rounds} rounds, then the "
            f"worst-off patient would be beyond the cap, {limit}. Raise "
            "`budget.epsilon`, agree with the coordinator on fewer rounds or a lower target, or "
            "let studies begin all the same with `policy.whole_studies: optional`."
        )


def _rounds_left(histories: Sequence[History], charge: Charge, limit: Epsilon, *, most: int) -> int:
    """How many such rounds the limit allows each patient with one of these histories."""

    def left(history: History) -> int:
        return times_left(history, charge.mechanism, delta=limit.delta, cap=limit.value, most=most)

    return most if left(_upper(histories)) == most else min(map(left, histories))


def _limit(charge: Charge, cap: Budget, trust: TrustModel) -> Epsilon:
    """The cap in the words of a charge."""
    unit = Unit.EXAM if charge.unit is Unit.EXAM else Unit.PATIENT
    return Epsilon(
        value=cap.epsilon,
        delta=cap.delta,
        unit=unit,
        randomness=charge.randomness,
        trust_model=trust,
    )


def _upper(histories: Sequence[History]) -> History:
    """A history as bad as all of these at once: mostly it is allowed, and one look is enough."""
    most: dict[Mechanism, int] = {}
    for mechanism in (one for history in histories for one in history):
        kind = mechanism._replace(steps=0)
        most[kind] = max(mechanism.steps, most.get(kind, 0))
    return tuple(kind._replace(steps=steps) for kind, steps in most.items())


def _by_study(book: Book) -> tuple[StudySpent, ...]:
    found: defaultdict[tuple[str, Unit, Randomness, Mechanism, int], list[int]] = defaultdict(list)
    for row in book.charges:
        charge, rounds = row.charge, int(isinstance(row, Reserved))
        kind = charge.mechanism._replace(steps=0)
        key = charge.study, charge.unit, charge.randomness, kind, rounds
        found[key].append(charge.mechanism.steps)
    return tuple(
        StudySpent(
            study=study,
            unit=unit,
            randomness=randomness,
            rounds=rounds * len(steps),
            mechanism=kind._replace(steps=sum(steps)),
        )
        for (study, unit, randomness, kind, rounds), steps in found.items()
    )


def _epsilon(worst: History, book: Book, delta: float, trust: TrustModel) -> Epsilon | None:
    """With what is weakest in the whole ledger: exams, if a study hides no more; seeds, if used."""
    value = lifetime_epsilon(worst, delta=delta)
    if not math.isfinite(value):
        return None
    charges = [row.charge for row in book.charges]
    exams = any(charge.unit is Unit.EXAM for charge in charges)
    seeded = any(charge.randomness is Randomness.SEEDED for charge in charges)
    return Epsilon(
        value=value,
        delta=delta,
        unit=Unit.EXAM if exams else Unit.PATIENT,
        randomness=Randomness.SEEDED if seeded else Randomness.SECRET,
        trust_model=trust,
    )
