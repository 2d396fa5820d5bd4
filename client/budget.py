"""How long a site's budget lasts for a study: what its people are told before it begins.

What decides is the ledger, round by round; this counts as it does.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from client.ledger import Ledger, Outlook, lowered
from common.config import SiteSettings, Study
from common.privacy.lifetime import lifetime_epsilon, times_left

_NOTHING = Outlook(begun=False, rounds=0, standings=(((), 0),))  # of a ledger that isn't there


@dataclass(frozen=True, slots=True)
class Lasting:
    """The rounds of a study that are still to come, and those that the budget allows."""

    rounds_left: int  # allowed, of those that are to come
    rounds_ahead: int  # that the study may still ask of one patient
    begun: bool  # something is charged to the study already
    after: float  # epsilon of the worst-off patient with all of them, in the ledger's terms

    @property
    def whole(self) -> bool:
        """Whether the budget lasts until the study ends."""
        return self.rounds_left == self.rounds_ahead

    def refused(self, site: SiteSettings) -> bool:
        """Whether the site refuses the study's first round for what the later ones would cost."""
        return not (self.whole or self.begun) and site.policy.whole_studies == "required"

    def as_json(self) -> dict[str, int | bool]:
        """Plain values."""
        return {
            "rounds_left": self.rounds_left,
            "rounds_ahead": self.rounds_ahead,
            "begun": self.begun,
        }

    def __str__(self) -> str:
        more = "more " if self.begun else ""
        if self.whole:
            return f"lasts for all {self.rounds_ahead} {more}rounds"
        return f"lasts for {self.rounds_left} of {self.rounds_ahead} {more}rounds"


def lasting(
    study: Study,
    site: SiteSettings,
    *,
    ledger: Ledger | None,
    patients: Collection[str] | None,
) -> Lasting:
    """How long the budget lasts for a private study, by the filter that the ledger has.

    Args:
        study: with privacy.
        site: its budget and declared numbers.
        ledger: None: there is none yet.
        patients: whom the study can sample, by their names in the data; None: everybody in the
            ledger.

    Raises:
        BadInput: the study can't be planned for this site.
        LedgerDamaged, LedgerUnwritable.
    """
    from client.training import privacy_plan  # torch, and opacus when it is called: seconds

    plan = privacy_plan(study, declared=site.declared(study.privacy.unit))
    budget = lowered(site.budget, study.privacy.lifetime_epsilon)
    outlook = _NOTHING if ledger is None else ledger.outlook(study.sha256, patients)
    folds, rounds = study.data.folds or 1, study.training.rounds
    to_come = folds * rounds - outlook.rounds
    each = max(1, folds - 1) * rounds  # with folds, each patient trains in all models but one
    (a_round,) = plan.patient_history(1)
    found = []
    for history, charged in outlook.standings:
        ahead = max(0, min(each - charged, to_come))
        left = times_left(history, a_round, delta=budget.delta, cap=budget.epsilon, most=ahead)
        after = lifetime_epsilon((*history, *plan.patient_history(ahead)), delta=budget.delta)
        found.append((left, ahead, after))
    short = [(left, ahead) for left, ahead, _ in found if left < ahead]
    # Who is cut off first or, where nobody is, whom the study asks for most.
    left, ahead = min(short) if short else max((left, ahead) for left, ahead, _ in found)
    return Lasting(
        rounds_left=left,
        rounds_ahead=ahead,
        begun=outlook.begun,
        after=max(after for _, _, after in found),
    )
