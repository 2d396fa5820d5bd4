"""The outbox: every reply, kept from before its first byte leaves until the study ends.

The same instruction is answered with the same bytes and never computed again with fresh noise. A
reply is one file, `<state>/outbox/<study>/<fold>-<round>-<kind>-<weights>-<data>.reply`, which is
there whole, synced with its folder, or not at all: a line of JSON, then the weights as
little-endian float32. So the names say what was answered, and no index can disagree with them. A
file outlives its content: once that is forgotten it is empty, and still says that this round was
answered. Beside them, `<data>.patients` lists the keys of the patients in those data.

One process at a time (`client.state.lock_state`).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from client.gate import Passed, reply_sha256
from client.policy import Key
from client.state import make_private, write_private
from common.config import parse_json
from common.errors import BadInput, RefusalCode, SiteRefusal
from common.messages import Reply

logger = logging.getLogger("fedward.client")
MOST_BYTES: Final = 64 * 2**30  # of all studies together
_LONGEST_LINE = 4096
_NAME = re.compile(
    r"(\d{1,6})-(\d{1,6})-(train|evaluate)-([0-9a-f]{64})-([0-9a-f]{64})\.reply", re.ASCII
)
_STUDY = re.compile(r"[0-9a-f]{64}", re.ASCII)


class _Line(BaseModel):
    """The first line of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: str  # of the file: one that was renamed is none
    metrics: dict[str, str]  # exact, as float.hex
    weights: bool  # false: an evaluation
    sha256: str


@dataclass(frozen=True, slots=True)
class Outbox:
    """The replies of one site; `open_outbox` makes it."""

    folder: Path
    most_bytes: int = MOST_BYTES

    def find(self, key: Key) -> Reply | None:
        """The reply that was stored, to go through the gate again; None where there is none.

        A file whose content isn't what was stored is as good as none; the site's log says so.
        """
        path = self._path(key)
        try:
            with path.open("rb") as file:
                begin = file.readline(_LONGEST_LINE)
                n_bytes = os.fstat(file.fileno()).st_size - len(begin)
                values = np.fromfile(file, "<f4")  # without the copies that `read` makes
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.error("outbox: a stored reply can't be read: %s", error.strerror)
            return None
        if not begin:
            return None  # forgotten
        reply = _restored(path.name, begin, values) if values.nbytes == n_bytes else None
        if reply is None:
            logger.error("outbox: the stored reply of round %d is damaged", key.round_number)
        return reply

    def recall(self, key: Key, *, patients: Collection[str]) -> tuple[Key, Reply] | None:
        """The reply to this very instruction, and the key under which it was given.

        Where the site's data have changed since, it is still the reply: it has been paid for, and
        most likely it has left. That it has, nobody here can know (a kill can come after its
        receipt, too), so it isn't given again once a patient of those data is no longer in them:
        whoever objects is in nothing that leaves from then on.

        Args:
            key: of the instruction and today's data.
            patients: the keys of all patients in today's data.
        """
        earlier = self.earlier(key.study_sha256, key.fold)
        fingerprint = key.data_fingerprint
        same = [one for one in earlier if replace(one, data_fingerprint=fingerprint) == key]
        for one in sorted(same, key=lambda one: one != key):  # of these data, if there is one
            reply = self.find(one) if one == key or self._all_among(patients, one) else None
            if reply is not None:
                return one, reply
        return None

    def list_patients(self, key: Key, patients: Collection[str]) -> None:
        """Keep whose data a reply comes from, before it is stored: `recall` asks for it.

        Args:
            key: under which the reply is going to be stored.
            patients: the keys of all patients in the data, those on the test side included.

        Raises:
            SiteRefusal: as `store` does.
        """
        path = self._patients(key)
        if path.is_file():
            return
        try:
            make_private(path.parent)
            write_private(path, ["\n".join(sorted(patients)).encode()])
        except (BadInput, OSError) as error:
            logger.error("outbox: a reply's patients can't be stored: %s", error)
            raise SiteRefusal(RefusalCode.RECORDS_DAMAGED) from None

    def store(self, key: Key, passed: Passed) -> None:
        """Keep what passed the gate; once this returns, it outlives a kill and a power failure.

        Raises:
            SiteRefusal: the disk is full or broken; nothing half-written stays behind. The
                reservation's secret is still there, so the same reply can be made again.
        """
        data = b"" if passed.values is None else passed.values.data.cast("B")
        line = _Line(
            name=self._path(key).name,
            metrics={name: value.hex() for name, value in passed.metrics.items()},
            weights=passed.values is not None,
            sha256=passed.sha256,
        )
        begin = line.model_dump_json().encode() + b"\n"
        try:
            self._make_room(key, len(begin) + len(data))
            make_private(self._path(key).parent)
            write_private(self._path(key), (begin, data))
        except (BadInput, OSError) as error:
            logger.error("outbox: a reply can't be stored: %s", error)
            raise SiteRefusal(RefusalCode.RECORDS_DAMAGED) from None

    def earlier(self, study_sha256: str, fold: int) -> tuple[Key, ...]:
        """The instructions of a study and fold that were answered, for `check_round`."""
        keys = (key for key, _ in self._files(study_sha256))
        return tuple(key for key in keys if key.fold == fold)

    def forget(self, study_sha256: str, fold: int, *, before_round: int | None = None) -> None:
        """Empty the replies of a fold that has ended; that they were given is remembered.

        Args:
            study_sha256, fold: whose.
            before_round: only those of the rounds before this one.
        """
        needed = set()
        for key, file in self._files(study_sha256):
            ended = before_round is None or key.round_number < before_round
            if not file.stat().st_size:
                continue
            if key.fold == fold and ended:
                os.truncate(file, 0)
            else:
                needed.add(self._patients(key))
        for path in (self.folder / study_sha256).glob("*.patients"):
            if path not in needed:
                path.unlink()

    def _all_among(self, patients: Collection[str], key: Key) -> bool:
        """Whether everybody in the data of an earlier reply is among these."""
        try:
            listed = self._patients(key).read_text().split("\n")
        except OSError:  # an earlier version kept no list: nobody can tell
            return False
        return set(listed) <= set(patients)

    def _patients(self, key: Key) -> Path:
        return self._path(key).with_name(f"{key.data_fingerprint}.patients")

    def _path(self, key: Key) -> Path:
        parts = (key.fold, key.round_number, key.kind, key.weights_sha256, key.data_fingerprint)
        name = "-".join(map(str, parts)) + ".reply"
        if not (_NAME.fullmatch(name) and _STUDY.fullmatch(key.study_sha256)):
            raise ValueError("a key becomes a file's name, so its parts must be hashes and numbers")
        return self.folder / key.study_sha256 / name

    def _files(self, study_sha256: str) -> Iterator[tuple[Key, os.DirEntry[str]]]:
        folder = self.folder / study_sha256
        if not folder.is_dir():
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if found := _NAME.fullmatch(entry.name):
                    fold, number, kind, weights, data = found.groups()
                    yield Key(study_sha256, kind, int(fold), int(number), weights, data), entry

    def _make_room(self, key: Key, n_bytes: int) -> None:
        """Empty the oldest replies where all of them together would be too large.

        Those of the last round of a study and fold stay: the server may ask for them again.
        """
        files = [
            (file.stat(), known, file.path)
            for study in os.listdir(self.folder)
            for known, file in self._files(study)
        ]
        over = sum(stat.st_size for stat, _, _ in files) + n_bytes - self.most_bytes
        if over <= 0:
            return
        last: dict[tuple[str, int], int] = {(key.study_sha256, key.fold): key.round_number}
        for _, known, _ in files:
            of = known.study_sha256, known.fold
            last[of] = max(last.get(of, 0), known.round_number)
        for stat, known, path in sorted(files, key=lambda file: file[0].st_mtime_ns):
            if over > 0 and known.round_number < last[known.study_sha256, known.fold]:
                os.truncate(path, 0)
                over -= stat.st_size
        if over > 0:
            raise BadInput(f"the replies of running studies need more than {self.most_bytes} bytes")


def open_outbox(state: Path) -> Outbox:
    """The outbox in a site's state folder; what a kill left half-written is removed."""
    folder = make_private(state / "outbox")
    for partial in folder.glob("*/.*.partial"):
        partial.unlink()
    return Outbox(folder)


def _restored(name: str, begin: bytes, stored: NDArray[np.float32]) -> Reply | None:
    """The reply of a file's line and its values, or None where they are not what was stored."""
    try:
        line = parse_json(_Line, begin.decode(), where="outbox")
        metrics = {metric: float.fromhex(text) for metric, text in line.metrics.items()}
    except (BadInput, ValueError, OverflowError):
        return None
    values = stored if line.weights else None
    if line.name != name or reply_sha256(values, metrics) != line.sha256:
        return None
    return Reply(values, metrics) if line.weights or not stored.size else None
