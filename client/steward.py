"""A study in words, for the hospital's data steward: `fedward site status`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from client.approval import SeenStudy, Status
from client.budget import Lasting, lasting
from client.keys import read_keys
from client.ledger import FILE, Ledger
from client.policy import Objection, objections
from client.state import trust_model
from common.catalogue import CATALOGUE
from common.config import SiteSettings, Study
from common.errors import BadInput, RefusalCode, RunFailed
from common.privacy.epsilon import Epsilon, Randomness, Unit

if TYPE_CHECKING:
    from client.gate import PassedArray

_MOST_CLASSES = 12  # named in the text; a study may have thousands


@dataclass(frozen=True, slots=True)
class Shown:
    """One study that a server asked for, and what it would mean for the site."""

    seen: SeenStudy
    study: Study
    planned: Epsilon | None  # None: without privacy
    patient: str | None  # unit image: what that leaves a patient with many images, in words
    lasting: Lasting | None  # of the budget; None: nothing is charged, or nobody can tell
    weights: int | None  # trained parameters; None: unknown model
    leaving: PassedArray | None  # each round, as the gate lets it out; None: unknown model
    release: Sequence[str]  # metrics
    counts: bool
    against: tuple[Objection, ...]
    refuses: bool  # its first round, since the budget doesn't last until the study ends

    def as_json(self) -> dict[str, Any]:
        """What `fedward site status --json` lists."""
        study, seen = self.study, self.seen
        return {
            "sha256": seen.sha256,
            "name": study.name,
            "status": seen.status.value,
            "first_seen": _when(seen.first_seen_s),
            "decided": None if seen.decided_s is None else _when(seen.decided_s),
            "data": study.data.kind,
            "classes": list(study.classes),
            "model": study.model.name,
            "rounds": study.training.rounds,
            "folds": study.data.folds,
            "privacy": None if self.planned is None else self.planned.as_json(),
            "budget": None if self.lasting is None else self.lasting.as_json(),
            "leaves": {
                "weights": self.weights,
                "bytes_each_round": None if self.leaving is None else self.leaving.n_bytes,
                "metrics": list(self.release),
                "counts": self.counts,
            },
            "against": [
                {"code": objection.code.value, "sentence": objection.sentence}
                for objection in self.against
            ],
        }

    def text(self) -> str:
        """The same for people."""
        study, seen = self.study, self.seen
        since = seen.first_seen_s if seen.decided_s is None else seen.decided_s
        lines = [
            f"Study {study.name}: {seen.status} since {_when(since)}",
            f"  hash      {seen.sha256}",
            f"  data      {_data(study)}",
            f"  model     {study.model.name}{self._size()}",
            f"  runs      {_runs(study)}",
            f"  privacy   {self._privacy()}",
        ]
        if self.lasting is not None:
            lines.append(f"  budget    {self.lasting}{self._at_the_start()}")
        lines.append(f"  leaves    {self._leaves()}")
        lines += [f"  forbidden {objection.sentence}" for objection in self.against]
        if seen.status is Status.WAITING and not self.against:
            lines.append(f"  to agree  fedward site approve SITE.yaml {seen.sha256[:16]}")
        return "\n".join(_printable(line) for line in lines)

    def _size(self) -> str:
        return "" if self.weights is None else f", {self.weights:,} trained parameters"

    def _privacy(self) -> str:
        if self.planned is None:
            return "NONE: trained without differential privacy"
        folds = self.study.data.folds
        said = f"at most {self.planned}" + ("" if folds is None else ", over all models")
        return said if self.patient is None else f"{said}; a patient: {self.patient}"

    def _at_the_start(self) -> str:
        if self.refuses:
            return ": it is refused at its start (policy.whole_studies is required)"
        return "" if self.lasting is None or self.lasting.whole else ": later ones are refused"

    def _leaves(self) -> str:
        arrays = "the trained weights"
        if self.leaving is not None:
            wire, size = self.study.federation.wire, math.prod(self.leaving.shape)
            what = "float32 weights" if wire == "float32" else f"{self.leaving.dtype} values"
            arrays = f"one array of {size:,} {what} ({self.leaving.n_bytes / 1e6:,.2f} MB)"
            if wire != "float32":
                arrays += f", the weights' differences from the incoming ones as {wire},"
        metrics = "no metric"
        if self.release:
            metrics = f"exact {', '.join(self.release)} on the site's test patients"
        counts = "with" if self.counts else "without"
        return (
            f"each round {arrays} and {metrics}; at the end a signed statement {counts} the "
            "numbers of patients and images"
        )


def show(seen: SeenStudy, site: SiteSettings) -> Shown:
    """What a study would mean for a site; raises BadInput where this version can't read it.

    Args:
        seen: from `client.approval.seen_studies`.
        site: its declared numbers, policy and release.
    """
    study = seen.study()
    against = objections(study, site)
    planned, weights, array, lasts = _target(study, site), None, None, None
    if study.model.name in CATALOGUE:
        try:
            weights, array = _leaving(study)
            planned = _over_folds(study, planned)
            lasts = None if against or planned is None else _lasting(study, site)
        except BadInput as error:  # what no site could run
            against = (*against, Objection(RefusalCode.BAD_INSTRUCTION, str(error)))
    return Shown(
        seen=seen,
        study=study,
        planned=planned,
        patient=_of_patient(study, planned) if study.privacy.unit == "image" else None,
        lasting=lasts,
        weights=weights,
        leaving=array,
        release=site.release.metrics,
        counts=site.release.counts,
        against=against,
        refuses=lasts is not None and lasts.refused(site),
    )


def text(shown: Sequence[Shown]) -> str:
    """Every study, for people."""
    if not shown:
        return "No server has asked for a study yet."
    return "\n\n".join(one.text() for one in shown)


def _target(study: Study, site: SiteSettings) -> Epsilon | None:
    """What one model may cost a patient: the target, which no site's plan exceeds."""
    asked = study.privacy
    if not asked.enabled:
        return None
    secret = site.randomness == "secret"
    return Epsilon(
        value=asked.target_epsilon,
        delta=asked.target_delta,
        unit=Unit(asked.unit),
        randomness=Randomness.SECRET if secret else Randomness.SEEDED,
        trust_model=trust_model(site.state),
    )


def _over_folds(study: Study, one: Epsilon | None) -> Epsilon | None:
    """What all models together may cost: with folds, each patient trains in all of them but one."""
    folds = study.data.folds
    if folds is None or one is None:
        return one
    from client.training import privacy_plan  # torch, and opacus when it is called: seconds

    plan = privacy_plan(study, declared=1)  # epsilon doesn't depend on the number
    rounds = (folds - 1) * study.training.rounds
    return plan.epsilon_after(rounds, randomness=one.randomness, trust_model=one.trust_model)


def _lasting(study: Study, site: SiteSettings) -> Lasting | None:
    """How long the budget lasts for whoever has lost most; None where the ledger can't be read.

    `fedward site check` says what is wrong with it then.
    """
    ledger = None
    if site.state is not None and (site.state / FILE).is_file():
        try:
            ledger = Ledger(site.state / FILE, read_keys(site.state).ledger)
        except BadInput:
            return None
    try:
        return lasting(study, site, ledger=ledger, patients=None)
    except RunFailed:
        return None


def _of_patient(study: Study, one: Epsilon | None) -> str | None:
    """What hiding single images leaves a patient who has as many as the study takes of one."""
    if one is None:
        return None
    from client.training import privacy_plan

    plan = privacy_plan(study, declared=1)
    rounds = study.training.rounds * max(1, (study.data.folds or 1) - 1)
    found = plan.patient_epsilon_after(
        rounds, randomness=one.randomness, trust_model=one.trust_model
    )
    return "more than any bound says" if found is None else str(found)


def _leaving(study: Study) -> tuple[int, PassedArray]:
    """How many parameters a study trains, and the array in which they leave."""
    from client.gate import leaving_array  # torch and Flower: seconds
    from common.models import study_model, trained_layout

    layout = trained_layout(study_model(study))
    return layout.size, leaving_array(layout, study.federation.wire)


def _data(study: Study) -> str:
    named = list(study.classes[:_MOST_CLASSES])
    left = len(study.classes) - len(named)
    classes = ", ".join(named) + (f" and {left} more" if left else "")
    size = f"{study.data.image_size_px} px"
    return f"{study.data.kind}, {size}; {study.task}: {classes}"


def _runs(study: Study) -> str:
    rounds = f"{study.training.rounds} rounds"
    folds = study.data.folds
    return rounds if folds is None else f"{rounds} for each of {folds} models (cross-validation)"


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _printable(line: str) -> str:
    """Without what could move a terminal's cursor: names come from a server."""
    return "".join(char if char.isprintable() else "?" for char in line)
