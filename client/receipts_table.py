"""Receipts for people: `fedward site receipts`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from client.keys import RECEIPTS_CHAIN, read_receipt_key
from client.receipts import (
    EMPTY,
    Line,
    NewKey,
    Problem,
    Refused,
    Restored,
    Sent,
    SentArray,
    problems,
    read,
)
from client.state import state_folder
from common.chain import Head
from common.config import SiteSettings
from common.errors import REFUSAL_SENTENCES, BadInput
from common.privacy.epsilon import rounded_up
from common.signed import public_hex, sha256_hex

_HEADER = ("number", "when (UTC)", "study", "fold", "round", "what", "what left", "epsilon so far")


@dataclass(frozen=True, slots=True)
class Listed:
    """The receipts of a site."""

    lines: tuple[Line | None, ...]  # None: can't be read
    head: Head

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "receipts": [
                None if line is None else line.model_dump(mode="json") for line in self.lines
            ],
            "head": str(self.head),
            "messages": len(self._sent),
            "bytes": sum(sent.bytes for sent in self._sent),
            "refusals": len(self._refused),
        }

    def text(self) -> str:
        """A table, what its epsilons mean, and totals."""
        from common.report import format_table  # takes scikit-learn along

        if not self.lines:
            return "Nothing has left this site yet."
        rows = [_row(place, line) for place, line in enumerate(self.lines, 1)]
        return "\n".join(
            [
                format_table(_HEADER, rows),
                "",
                *_meanings(self._sent),
                self._totals(),
                f"Head: {self.head}",
                "Keep the head elsewhere, and compare some day: --verify --head HEAD.",
            ]
        )

    @property
    def _sent(self) -> list[Sent]:
        return [line.entry for line in self.lines if line and isinstance(line.entry, Sent)]

    @property
    def _refused(self) -> list[Refused]:
        return [line.entry for line in self.lines if line and isinstance(line.entry, Refused)]

    def _totals(self) -> str:
        sent = self._sent
        kinds = Counter(one.asked.kind for one in sent)
        said = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        return (
            f"{len(sent)} messages left{f' ({said})' if said else ''}, "
            f"{sum(one.bytes for one in sent):,} bytes; {len(self._refused)} refusals listed."
        )


@dataclass(frozen=True, slots=True)
class Verified:
    """Whether the receipts of a site are whole."""

    head: Head
    problems: tuple[Problem, ...]
    compared: bool  # with a head that somebody remembers

    def as_json(self) -> dict[str, Any]:
        """What `--verify --json` prints."""
        found = [{"line": one.line, "sentence": one.sentence} for one in self.problems]
        return {"whole": not found, "head": str(self.head), "problems": found}

    def text(self) -> str:
        """One line, or one a problem."""
        if self.problems:
            return "\n".join(str(one) for one in self.problems)
        whole = f"Whole: {self.head.count} lines. Head: {self.head}"
        if self.compared:
            return whole
        return f"{whole}\nLines missing at the end are seen only with --head COUNT:HASH."


def list_receipts(site: SiteSettings) -> Listed:
    """All that a site has noted; raises BadInput where site.yaml doesn't say where."""
    texts = _texts(_content(site))
    return Listed(tuple(_line(text) for text in texts), _head(texts))


def verify_receipts(site: SiteSettings, head: str | None) -> Verified:
    """Whether a site's receipts are whole.

    Args:
        site: says where they are.
        head: COUNT:HASH that the server, the ledger or the journal remembers.

    Raises:
        BadInput: site.yaml doesn't say where they are, or `head` is none.
    """
    try:
        known_head = None if head is None else Head.parse(head)
    except ValueError as error:
        raise BadInput(f"--head: {error}; copy it whole.") from None
    content = _content(site)
    found: list[Problem] = []
    key = None
    if content:
        try:
            key = public_hex(read_receipt_key(state_folder(site)))
        except BadInput as error:  # lines can be compared with one another all the same
            found.append(Problem(0, str(error)))
    found += problems(content, key=key, known_head=known_head)
    return Verified(_head(_texts(content)), tuple(found), known_head is not None)


def _content(site: SiteSettings) -> bytes:
    return read((site.state or state_folder(site)) / RECEIPTS_CHAIN)


def _texts(content: bytes) -> list[bytes]:
    """Every line that has its end."""
    return content.split(b"\n")[:-1]


def _line(text: bytes) -> Line | None:
    try:
        return Line.from_canonical(text)
    except ValueError:
        return None


def _head(texts: Sequence[bytes]) -> Head:
    return Head(len(texts), sha256_hex(texts[-1])) if texts else EMPTY


def _row(place: int, line: Line | None) -> tuple[str, ...]:
    if line is None:
        return (str(place), "", "", "", "", "", "can't be read; see --verify", "")
    entry = line.entry
    asked = None if isinstance(entry, NewKey | Restored) else entry.asked
    study = "" if asked is None else asked.study[:8]
    fold = "" if asked is None or not asked.fold else str(asked.fold)
    number = "" if asked is None or asked.round is None else str(asked.round)
    kind = "" if asked is None else asked.kind
    when = line.time.replace("T", " ").removesuffix("Z")
    begin = (str(line.number), when, study, fold, number)
    match entry:
        case Sent():
            bound = "" if entry.epsilon is None else rounded_up(entry.epsilon.epsilon)
            return (*begin, kind, _left(entry), bound)
        case Refused():
            said = f"{entry.code}: {REFUSAL_SENTENCES[entry.code]}"
            more = f" ({entry.times} times)" if entry.times > 1 else ""
            return (*begin, f"{kind} refused".strip(), said + more, "")
        case NewKey():
            return (*begin, "new key", f"signs from here on: {entry.key[:16]}...", "")
        case Restored():
            heads = ", ".join(f"{head[:16]}..." for head in entry.lost)
            given_up = f"given up: {heads}" if heads else "nothing given up"
            return (*begin, "restored", f"messages may be missing above; {given_up}", "")


def _left(sent: Sent) -> str:
    parts = [
        *map(_array, sent.arrays),
        *(f"{name} {value:.4g}" for name, value in sent.metrics.items()),
    ]
    return f"{', '.join(parts)}; {sent.bytes:,} bytes" if parts else f"{sent.bytes:,} bytes"


def _array(array: SentArray) -> str:
    shape = " x ".join(f"{size:,}" for size in array.shape)
    return f"{array.name} ({shape} {array.dtype})"


def _meanings(sent: Sequence[Sent]) -> list[str]:
    """What the epsilons of each study are, of which the table shows only the values."""
    found = {
        f"Study {one.asked.study[:8]}: epsilon per {one.epsilon.unit} (delta "
        f"{one.epsilon.delta:g}, {one.epsilon.adjacency}, {one.epsilon.trust_model}; guarantee: "
        f"{one.epsilon.guarantee})": None
        for one in sent
        if one.epsilon is not None
    }
    return list(found)
