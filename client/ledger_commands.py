"""`fedward privacy ledger`: what a site's patients have lost; the way back from a loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_FLOOR, Context
from typing import Any

from client.approval import Status, seen_studies
from client.check.found import counted
from client.keys import RECEIPTS_CHAIN, open_keys, read_keys
from client.ledger import FILE, Ledger, Spent, StudySpent, WholeStudy, open_ledger
from client.receipts import Receipts
from client.state import lock_state, state_folder
from common.chain import Head
from common.config import Budget, SiteSettings, Study
from common.data.readers import build_reader
from common.errors import BadInput
from common.privacy.epsilon import Epsilon, Randomness, Unit, rounded_up
from common.privacy.lifetime import lifetime_epsilon
from common.privacy.mechanism import Mechanism
from common.report.text import format_table

_UNBOUNDED = "no bound"


@dataclass(frozen=True, slots=True)
class LedgerShown:
    """A site's ledger beside its budget; stays at the site."""

    site: str
    budget: Budget
    spent: Spent

    @property
    def cap(self) -> Epsilon:
        """The budget as an epsilon of the same kind as what is spent."""
        return self._like_spent(self.budget.epsilon)

    @property
    def left(self) -> Epsilon | None:
        """Between the two; 0 where a restore went beyond the cap."""
        spent = self.spent.epsilon
        if spent is None:
            return None
        return self._like_spent(max(0.0, self.budget.epsilon - spent.value))

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "site": self.site,
            "head": str(self.spent.head),
            "patients": self.spent.patients,
            "rounds_without_reply": self.spent.unsettled,
            "restores": self.spent.restores,
            "spent": _json(self.spent.epsilon),
            "cap": self.cap.as_json(),
            "left": _json(self.left),
            "studies": [
                {
                    "study_sha256": study.study,
                    "rounds": study.rounds,
                    "whole": study.rounds == 0,
                    "steps": study.mechanism.steps,
                    "noise_multiplier": study.mechanism.noise_multiplier,
                    "sampling_rate": study.mechanism.sampling_rate,
                    "images": study.mechanism.images,
                    "unit": study.unit.value,
                    "alone": _json(self._alone(study)),
                }
                for study in self.spent.studies
            ],
        }

    def text(self) -> str:
        """The same for people."""
        spent = self.spent
        said = [
            f"Site {self.site}: {counted(spent.patients, 'patient')} could be sampled so far; "
            f"{counted(spent.unsettled, 'round')} without a reply; "
            f"{counted(spent.restores, 'restore')}."
        ]
        if spent.studies:
            header = ("study", "unit", "rounds", "steps", "sigma / C", "q", "alone")
            said += ["", format_table(header, [self._line(study) for study in spent.studies])]
        numbers = [_shown(spent.epsilon), rounded_up(self.budget.epsilon), rounded_down(self.left)]
        said += ["", format_table(("spent", "cap", "left"), [numbers]), ""]
        said.append(
            "spent: epsilon of the worst-off patient over all studies (less than their sum); "
            "alone: what a study by itself would cost."
        )
        if spent.epsilon is not None:
            kind = spent.epsilon
            said.append(
                f"Per {kind.unit} (delta {kind.delta:g}, {kind.adjacency}, {kind.trust_model}; "
                f"guarantee: {kind.guarantee})."
            )
        return "\n".join([*said, f"Head: {spent.head}"])

    def _line(self, study: StudySpent) -> tuple[str, ...]:
        sigma, q, steps, _ = study.mechanism
        return (
            study.study[:12],
            study.unit.value,
            str(study.rounds) if study.rounds else "all (restored)",
            str(steps),
            f"{sigma:.4g}",
            f"{q:g}",
            _shown(self._alone(study)),
        )

    def _alone(self, study: StudySpent) -> Epsilon | None:
        value = lifetime_epsilon([study.mechanism], delta=self.budget.delta)
        unit = Unit.EXAM if study.unit is Unit.EXAM else Unit.PATIENT
        if not math.isfinite(value):
            return None
        return Epsilon(
            value=value,
            delta=self.budget.delta,
            unit=unit,
            randomness=study.randomness,
            trust_model=self.spent.trust_model,
        )

    def _like_spent(self, value: float) -> Epsilon:
        kind = self.spent.epsilon
        return Epsilon(
            value=value,
            delta=self.budget.delta,
            unit=kind.unit if kind else Unit.PATIENT,
            randomness=kind.randomness if kind else Randomness.SECRET,
            trust_model=self.spent.trust_model,
        )


def show(site: SiteSettings) -> LedgerShown:
    """What the site's patients have lost so far.

    Raises:
        BadInput: there is no ledger yet; LedgerDamaged, LedgerUnwritable.
    """
    ledger, _ = _open(site)
    return LedgerShown(site.name, site.budget, ledger.spent(None, delta=site.budget.delta))


def verify(site: SiteSettings, known_head: str | None) -> Head:
    """The ledger's head, if it is whole and as new as `known_head` and the receipts remember.

    Raises:
        BadInput: there is no ledger yet, or `known_head` is no head; LedgerDamaged,
            LedgerUnwritable.
    """
    ledger, remembered = _open(site)
    ledger.verify(remembered)
    return ledger.verify(None if known_head is None else _head(known_head))


def to_charge(site: SiteSettings, named: Sequence[Study]) -> tuple[Study, ...]:
    """The studies that a restore has to charge: those named, and all that the site has approved.

    What was approved and then withdrawn may have run as well.
    """
    decided = [seen.study() for seen in seen_studies(site) if seen.status is not Status.WAITING]
    private = [study for study in decided if study.privacy.enabled]
    return tuple({study.sha256: study for study in (*named, *private)}.values())


def restore(
    site: SiteSettings, studies: Sequence[Study], *, receipts_heads: Sequence[str], now: datetime
) -> Head:
    """Charge all that these studies may ever take, and go on from the records that are there.

    What ledger and receipts remember of one another is accepted from now on; a line of the
    receipts says so.

    Args:
        studies: every one that may have run; see `to_charge`.
        receipts_heads: COUNT:HASH that servers remember and the receipts don't.
        now: with its time zone.

    Returns:
        The ledger's new head.

    Raises:
        BadInput: a study trains without privacy, what it says of the site isn't so, a head is
            none, or the site is running; LedgerDamaged, LedgerUnwritable; ReceiptsDamaged.
    """
    lost = {_head(text) for text in receipts_heads}
    whole = [whole_study(study, site) for study in studies]
    state = state_folder(site)
    keys = open_keys(state)
    with lock_state(state):
        receipts = Receipts(state / RECEIPTS_CHAIN, keys.receipts)
        ledger = open_ledger(state, key=keys.ledger)
        lost |= set(_known(ledger.receipts_head))
        receipts.check_end()  # before anything is charged: it could not be written down
        # The charge first: whoever is stopped between the two is refused, and charged once more.
        head = ledger.restore(whole, lost=_known(receipts.ledger_head))
        receipts.restore(lost, ledger=head, now=now)
        return head


def whole_study(study: Study, site: SiteSettings) -> WholeStudy:
    """All that a study may take from the site's patients: every round of every fold, from each."""
    from client.training import privacy_plan  # imports torch

    if not study.privacy.enabled:
        raise BadInput(
            f"--study: {study.name} trains without privacy, so the ledger has no place for it; "
            "leave it out."
        )
    plan = privacy_plan(study, declared=site.declared(study.privacy.unit))
    by_image = plan.unit is Unit.IMAGE
    rounds = plan.rounds * (study.data.folds or 1)
    found = build_reader(study, site).find(site.data, study.classes) if site.data else []
    return WholeStudy(
        study=study.sha256,
        unit=plan.unit,
        randomness=Randomness.SECRET if site.randomness == "secret" else Randomness.SEEDED,
        mechanism=Mechanism(
            plan.noise_multiplier,
            plan.sampling_rate,
            plan.steps_per_round * rounds,
            plan.images_per_patient if by_image else 1,
        ),
        patients={source.patient for source in found},  # whoever joined since the backup, too
    )


def _open(site: SiteSettings) -> tuple[Ledger, Head | None]:
    """The ledger, and the head that the receipts remember."""
    state = state_folder(site)
    if not (state / FILE).is_file():
        raise BadInput(
            f"{state / FILE}: there is no ledger; it is made by the first round under privacy. If "
            "there was one, put it back from the backup, or see `ledger restore --help`."
        )
    keys = read_keys(state)
    remembered = Receipts(state / RECEIPTS_CHAIN, keys.receipts).ledger_head
    return open_ledger(state, key=keys.ledger), remembered


def _known(head: Head | None) -> list[Head]:
    return [] if head is None else [head]


def _head(text: str) -> Head:
    try:
        return Head.parse(text)
    except ValueError as error:
        raise BadInput(f"--head: {error}.") from None


def _json(epsilon: Epsilon | None) -> dict[str, str | float] | None:
    return None if epsilon is None else epsilon.as_json()


def _shown(epsilon: Epsilon | None) -> str:
    return _UNBOUNDED if epsilon is None else rounded_up(epsilon.value)


def rounded_down(epsilon: Epsilon | None) -> str:
    """What is left, never more than it is."""
    if epsilon is None:
        return "0"
    return f"{Context(prec=3, rounding=ROUND_FLOOR).create_decimal(str(epsilon.value)):f}"
