"""How far a hash chain has come: what one party tells another, so that it can't be cut unseen."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

_FORM = re.compile(r"(\d{1,12}):([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain of `count` entries; `sha256` is the last one's hash, hexadecimal.

    >>> str(Head.parse("3:" + "0a" * 32))[:9]
    '3:0a0a0a0'
    """

    count: int
    sha256: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """COUNT:HASH as a head; raises ValueError for anything else."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise ValueError("a head is COUNT:HASH, with 64 hexadecimal digits")
        return cls(int(found[1]), found[2])

    def __str__(self) -> str:
        return f"{self.count}:{self.sha256}"
