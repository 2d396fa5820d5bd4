"""What the rows of a site's ledger say, one after another: pure, without file or key."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from common.chain import Head
from common.privacy.epsilon import Randomness, Unit
from common.privacy.mechanism import Mechanism, merge

PATIENT_BYTES = 16  # of a patient's keyed hash
EMPTY = Head(0, "0" * 64)  # of a ledger without rows
Place = tuple[int, int]  # fold and number of a round


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Charge(_Value):
    """What a study takes from each patient of a cohort."""

    study: str  # hash
    unit: Unit
    randomness: Randomness
    mechanism: Mechanism
    cohort: str  # digest of its patients


class Round(_Value):
    """Which round of a study, on what."""

    fold: int
    round_number: int
    weights_sha256: str
    data_fingerprint: str

    @property
    def place(self) -> Place:
        """Where it is in its study, whatever was trained on."""
        return self.fold, self.round_number


class Reserved(_Value):
    """A round was paid for."""

    kind: Literal["reserved"] = "reserved"
    round: Round
    charge: Charge
    commitment: str  # keyed hash of the secret, which itself must be erasable
    receipts: str  # head of the site's receipts at that time


class Settled(_Value):
    """A round's reply is on disk, its secret erased."""

    kind: Literal["settled"] = "settled"
    number: int  # of the row that reserved it


class Whole(_Value):
    """After a loss: all that a study may have taken."""

    kind: Literal["whole"] = "whole"
    charge: Charge


class Restored(_Value):
    """After a loss: all approved studies are charged, and what others remember is given up."""

    kind: Literal["restored"] = "restored"
    lost: tuple[str, ...]  # heads that this ledger has never been at


Row = Reserved | Settled | Whole | Restored
ROW: TypeAdapter[Row] = TypeAdapter(Annotated[Row, Field(discriminator="kind")])

History = tuple[Mechanism, ...]


@dataclass(slots=True)
class Book:
    """A ledger's content inside one transaction; rows are added in their order."""

    heads: list[Head] = field(default_factory=list)  # after each row
    charges: list[Reserved | Whole] = field(default_factory=list)
    reserved: dict[tuple[Round, Charge], int] = field(default_factory=dict)  # to row numbers
    commitments: dict[int, str] = field(default_factory=dict)  # by row number
    settled: set[int] = field(default_factory=set)  # row numbers
    restores: list[Restored] = field(default_factory=list)
    receipts: Head | None = None  # where the receipts were at the last reservation
    cohorts: dict[str, bytes] = field(default_factory=dict)  # by digest: patients, end to end
    secrets: dict[int, bytes] = field(default_factory=dict)  # by row number

    def add(self, row: Row, mac: bytes) -> None:
        """Take one more row into account; raises ValueError where it can't stand."""
        number = len(self.heads) + 1
        match row:
            case Reserved():
                self.charges.append(row)
                self.reserved[row.round, row.charge] = number
                self.commitments[number] = row.commitment
                self.receipts = Head.parse(row.receipts)
            case Settled():
                if row.number in self.settled or row.number not in self.commitments:
                    raise ValueError("a round is settled once")
                self.settled.add(row.number)
            case Whole():
                self.charges.append(row)
            case Restored():
                self.restores.append(row)
        self.heads.append(Head(number, mac.hex()))

    @property
    def head(self) -> Head:
        """How far the ledger has come."""
        return self.heads[-1] if self.heads else EMPTY

    @property
    def unsettled(self) -> set[int]:
        """Row numbers of rounds that have no reply yet."""
        return self.commitments.keys() - self.settled

    @property
    def everybody(self) -> frozenset[bytes]:
        """Every patient of any cohort."""
        return frozenset[bytes]().union(*map(_patients, self.cohorts.values()))

    def has_begun(self, study: str) -> bool:
        """Whether anything is charged to a study."""
        return any(row.charge.study == study for row in self.charges)

    def holds(self, head: Head) -> bool:
        """Whether the ledger has been at `head`."""
        return head == EMPTY or (
            0 < head.count <= len(self.heads) and self.heads[head.count - 1] == head
        )

    def accepts(self, head: Head) -> bool:
        """Whether the ledger has been at `head`, or a restore gave it up and paid for it."""
        return self.holds(head) or any(str(head) in row.lost for row in self.restores)

    def histories(self, patients: frozenset[bytes]) -> list[History]:
        """Every different history among these patients; of nobody: the empty one."""
        return list({history for history, _ in self.standings(patients)})

    def standings(
        self, patients: frozenset[bytes], *, study: str | None = None
    ) -> list[tuple[History, int]]:
        """Every different history with the number of rounds of `study` in it; of nobody: none.

        A round that was charged twice, since the data had changed, is one round.
        """
        taken: defaultdict[str, list[Mechanism]] = defaultdict(list)
        rounds: defaultdict[str, set[Place]] = defaultdict(set)
        for row in self.charges:
            taken[row.charge.cohort].append(row.charge.mechanism)
            if row.charge.study == study and isinstance(row, Reserved):
                rounds[row.charge.cohort].add(row.round.place)
        groups: list[tuple[frozenset[bytes], History, frozenset[Place]]]
        groups = [(patients, (), frozenset())]
        for cohort, mechanisms in taken.items():
            touched, added = _patients(self.cohorts[cohort]), merge(mechanisms)
            split = []
            for group, history, places in groups:
                inside = group & touched
                if inside:
                    split.append((inside, (*history, *added), places | rounds[cohort]))
                if len(inside) < len(group):
                    split.append((group - inside, history, places))
            groups = split
        return list({(merge(history), len(places)) for _, history, places in groups}) or [((), 0)]

    def rounds(self, study: str) -> int:
        """How many rounds of a study were charged to anybody."""
        rows = (row for row in self.charges if isinstance(row, Reserved))
        return len({row.round.place for row in rows if row.charge.study == study})


def _patients(joined: bytes) -> frozenset[bytes]:
    starts = range(0, len(joined), PATIENT_BYTES)
    return frozenset(joined[start : start + PATIENT_BYTES] for start in starts)
