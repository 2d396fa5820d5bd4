"""Which studies the site has met and what its steward decided: `<state>/studies/<hash>.json`.

A study trains once it is approved by its hash: by `fedward site approve`, or at first sight where
`policy.approval` is automatic. A study that changes has another hash, so it is another study. The
files are read anew for every message: a withdrawal takes effect before the next one.

What a server sends ends up here on the disk, so there is a bound: `studies_per_day` texts a day of
at most 64 KiB.
"""

from __future__ import annotations

import hashlib
import logging
import re
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from client.policy import check_new_study, check_study, objections
from client.state import locked, make_private, state_folder, write_private
from common.config import SiteSettings, Study, parse_json
from common.errors import BadInput, RefusalCode, SiteRefusal

logger = logging.getLogger("fedward.client")
_SHORTEST_PREFIX = 8


class Status(StrEnum):
    """What was decided on a study."""

    WAITING = "waiting"
    APPROVED = "approved"
    WITHDRAWN = "withdrawn"


class SeenStudy(BaseModel):
    """A study that a server asked for, as the site keeps it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    status: Status
    first_seen_s: float  # since the epoch, by the site's clock
    decided_s: float | None  # the last time that its status changed
    text: str  # canonical JSON, as it was hashed

    @property
    def sha256(self) -> str:
        """The hash by which it is approved."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def study(self) -> Study:
        """The study itself; raises BadInput where this version can't read it."""
        return parse_json(Study, self.text, where=f"study {self.sha256[:_SHORTEST_PREFIX]}")


def admit(study: Study, site: SiteSettings, *, now_s: float) -> None:
    """Let a study's message in, or say why not; a study is remembered at first sight.

    Args:
        study: as it came.
        site: its policy decides; where `approval` is automatic, all that it allows is approved.
        now_s: the time in seconds since the epoch.

    Raises:
        SiteRefusal: withdrawn, forbidden, not approved, too long, one too many today, or the
            site's records are damaged or can't be written.
    """
    try:
        folder = _folder(site)
        with locked(folder / ".lock"):
            _admit(study, site, folder, now_s)
    except (BadInput, OSError) as error:  # the site's own disk: its engineer has to look
        logger.error("studies: %s", error)
        raise SiteRefusal(RefusalCode.RECORDS_DAMAGED) from None


def _admit(study: Study, site: SiteSettings, folder: Path, now_s: float) -> None:
    path = folder / f"{study.sha256}.json"
    if path.exists():
        seen = _read(path)
    else:
        known_s = [other.first_seen_s for other in _read_all(folder)]
        check_new_study(study, site, first_seen_s=known_s, now_s=now_s)
        seen = SeenStudy(
            status=Status.WAITING, first_seen_s=now_s, decided_s=None, text=study.canonical()
        )
        _write(folder, seen)
    if seen.status is Status.WITHDRAWN:
        raise SiteRefusal(RefusalCode.WITHDRAWN)
    check_study(study, site)  # approved or not: the policy may be stricter now
    if seen.status is Status.APPROVED:
        return
    if site.policy.approval == "manual":
        raise SiteRefusal(RefusalCode.NOT_APPROVED)
    _write(folder, _decided(seen, Status.APPROVED, now_s))


def seen_studies(site: SiteSettings) -> tuple[SeenStudy, ...]:
    """Every study that the site has met, the oldest first; raises BadInput."""
    return tuple(sorted(_read_all(_folder(site)), key=lambda seen: (seen.first_seen_s, seen.text)))


def approve(site: SiteSettings, prefix: str, *, now_s: float) -> SeenStudy:
    """Let the site take part in the one study whose hash begins so.

    Args:
        site: a study that its policy forbids can't be approved.
        prefix: at least 8 hexadecimal digits.
        now_s: the time in seconds since the epoch.

    Raises:
        BadInput: no such study, several, or one that the policy forbids, with every reason.
    """
    folder = _folder(site)
    with locked(folder / ".lock"):
        seen = _find(folder, prefix)
        against = objections(seen.study(), site)
        if against:
            reasons = "\n".join(f"  {objection.sentence}" for objection in against)
            raise BadInput(
                f"Study {seen.sha256} can't be approved: site.yaml forbids it. Change site.yaml, "
                f"or ask the study's coordinator.\n{reasons}"
            )
        return _decide(folder, seen, Status.APPROVED, now_s)


def withdraw(site: SiteSettings, prefix: str, *, now_s: float) -> SeenStudy:
    """End the site's part in the one study whose hash begins so, before its next message.

    Arguments and errors as in `approve`, but any policy lets a site withdraw.
    """
    folder = _folder(site)
    with locked(folder / ".lock"):
        return _decide(folder, _find(folder, prefix), Status.WITHDRAWN, now_s)


def _folder(site: SiteSettings) -> Path:
    return make_private(state_folder(site) / "studies")


def _decide(folder: Path, seen: SeenStudy, status: Status, now_s: float) -> SeenStudy:
    if seen.status is status:
        return seen
    decided = _decided(seen, status, now_s)
    _write(folder, decided)
    return decided


def _decided(seen: SeenStudy, status: Status, now_s: float) -> SeenStudy:
    return seen.model_copy(update={"status": status, "decided_s": now_s})


def _find(folder: Path, prefix: str) -> SeenStudy:
    if not re.fullmatch(rf"[0-9a-f]{{{_SHORTEST_PREFIX},64}}", prefix):
        raise BadInput(
            f"HASH must be the study's hash or its first {_SHORTEST_PREFIX} or more digits (0-9, "
            "a-f); got something else. Copy it from `fedward site status`."
        )
    found = sorted(folder.glob(f"{prefix}*.json"))
    if len(found) == 1:
        return _read(found[0])
    if found:
        meant = ", ".join(path.stem for path in found)
        raise BadInput(f"HASH must name one study; {prefix} begins {meant}. Write more digits.")
    raise BadInput(
        f"No server has asked for a study whose hash begins with {prefix}; see `fedward site "
        "status`."
    )


def _read_all(folder: Path) -> list[SeenStudy]:
    return [_read(path) for path in folder.glob("*.json")]


def _read(path: Path) -> SeenStudy:
    try:
        seen = parse_json(SeenStudy, path.read_text(encoding="utf-8"), where=path.name)
    except (BadInput, UnicodeDecodeError):
        seen = None
    if seen is None or path.stem != seen.sha256:
        raise BadInput(
            f"{path}: the file is not what fedward wrote there. Put it back from a backup; or "
            "remove it: the study then has to be approved again."
        )
    return seen


def _write(folder: Path, seen: SeenStudy) -> None:
    text = seen.model_dump_json(indent=2) + "\n"
    write_private(folder / f"{seen.sha256}.json", [text.encode()])
