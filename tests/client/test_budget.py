"""A study begins only where the budget lasts for all of it; how long it lasts is said before."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch

from client.approval import SeenStudy, Status
from client.budget import lasting
from client.cohort import Cohort, open_cohort
from client.ledger import Ledger, OverBudget, Request, open_ledger
from client.ledger_book import EMPTY
from client.steward import show
from client.training import privacy_plan
from common.chain import Head
from common.config import Budget, Policy, Study
from common.errors import RefusalCode
from common.messages import decode_refusal
from common.privacy.epsilon import Randomness, Unit
from common.privacy.lifetime import lifetime_epsilon, times_left
from common.privacy.mechanism import Mechanism

STEP = Mechanism(2.0, 0.1, 4)
OTHER = Mechanism(1.5, 0.2, 10)


class Untold:
    """Receipts in which nothing is yet."""

    head = EMPTY
    ledger_head = None

    def knows(self, head: Head) -> bool:
        """Only their beginning."""
        return head == EMPTY


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A ledger without rows."""
    return open_ledger(tmp_path / "state", key=bytes(range(32)))


def reserve(
    ledger: Ledger,
    number: int,
    cap: float,
    *,
    study: str = "5",
    mechanism: Mechanism = STEP,
    fold: int = 0,
    data: str = "d",
    patients: Collection[str] = ("Ann", "Bob"),
    begin_with: int = 1,
    begin_for: Collection[str] = (),
) -> None:
    """Charge a round to two patients, or to others; of a study by its whole hash or one letter."""
    request = Request(
        study=study if len(study) == 64 else study * 64,
        fold=fold,
        round_number=number,
        weights_sha256="a" * 64,
        data_fingerprint=data * 64,
        unit=Unit.PATIENT,
        randomness=Randomness.SECRET,
        mechanism=mechanism,
        patients=patients,
    )
    ledger.reserve(
        request,
        cap=Budget(epsilon=cap),
        secret=lambda: secrets.token_bytes(32),
        receipts=Untold(),
        begin_with=begin_with,
        begin_for=begin_for,
    )


def cost(*steps: int) -> float:
    """Epsilon of so many steps of the first kind, and of the second."""
    kinds = zip((STEP, OTHER), steps, strict=False)
    return lifetime_epsilon([kind._replace(steps=taken) for kind, taken in kinds], delta=1e-5)


def test_a_study_is_begun_where_the_cap_allows_all_of_it(ledger: Ledger) -> None:
    """Exactly enough is enough; with less nothing is charged, though one round would fit."""
    with pytest.raises(OverBudget, match="lasts for 9 of 10 rounds"):
        reserve(ledger, 1, cost(40) - 1e-6, begin_with=10)
    assert ledger.spent(None, delta=1e-5).head == EMPTY
    reserve(ledger, 1, cost(40), begin_with=10)
    assert ledger.spent(None, delta=1e-5).worst == (STEP,)


def test_what_was_begun_goes_on_until_the_cap(ledger: Ledger) -> None:
    """Another study may spend meanwhile; then the first one ends early, at the very round."""
    cap = cost(20, 10)
    reserve(ledger, 1, cap, begin_with=10)
    reserve(ledger, 1, cap, study="6", mechanism=OTHER)
    allowed = times_left([OTHER], STEP, delta=1e-5, cap=cap, most=10)
    assert allowed == 5
    for number in range(2, allowed + 1):
        reserve(ledger, number, cap, begin_with=10)
    with pytest.raises(OverBudget, match="The round is not run"):
        reserve(ledger, allowed + 1, cap, begin_with=10)


def test_what_others_have_spent_counts_at_the_start(ledger: Ledger) -> None:
    """The worst-off patient's remaining budget decides, not the whole one."""
    reserve(ledger, 1, 10.0, study="6", mechanism=OTHER)
    with pytest.raises(OverBudget, match="is not begun"):
        reserve(ledger, 1, cost(40), begin_with=10)


def test_whom_later_rounds_touch_counts_at_the_start(ledger: Ledger) -> None:
    """Who is tested in the first fold must be able to afford the others, and pays nothing now."""
    reserve(ledger, 1, 10.0, study="6", mechanism=OTHER, patients=["Eve"])
    with pytest.raises(OverBudget, match="is not begun"):
        reserve(ledger, 1, cost(40), fold=1, begin_with=10, begin_for=["Ann", "Eve"])
    reserve(ledger, 1, cost(40), fold=1, begin_with=10, begin_for=["Ann", "Zoe"])
    assert ledger.spent(["Eve", "Zoe"], delta=1e-5).worst == (OTHER,)
    assert ledger.spent(["Zoe"], delta=1e-5).worst == ()


def private(hospital: Callable[..., Any], name: str, epsilon: float, **policy: Any) -> Any:
    """A hospital with this cap, which approves what its policy allows."""
    said = Policy(approval="automatic", **policy)
    return hospital(name, policy=said, budget=Budget(epsilon=epsilon))


def asked(site: Any) -> Study:
    """Six rounds at epsilon 3, which cost 3.6 by the ledger's filter."""
    study: Study = site.study("training.rounds=6", "privacy.target_epsilon=3")
    return study


def code(answer: Any) -> RefusalCode | None:
    """Of a refusal; None for a reply."""
    return decode_refusal(answer.error) if answer.has_error() else None


def test_a_hospital_refuses_what_it_could_not_finish(hospital: Callable[..., Any]) -> None:
    """The target is below the cap, the ledger's count isn't: only the code leaves, nothing else."""
    site = private(hospital, "short", 3.2)
    study = asked(site)
    assert code(site.ask(site.instruct(study))) is RefusalCode.OVER_BUDGET
    assert code(site.ask(site.instruct(study, round_number=5))) is RefusalCode.OVER_BUDGET
    assert site.ledger.spent(None, delta=1e-5).head == EMPTY
    enough = private(hospital, "enough", 4.0)
    assert code(enough.ask(enough.instruct(study))) is None


def test_a_steward_may_give_the_first_rounds(hospital: Callable[..., Any]) -> None:
    """As many rounds are answered as were foretold, a target above the cap or not."""
    site = private(hospital, "generous", 2.4, whole_studies="optional")
    study = asked(site)
    patients = None
    foretold = lasting(study, site.settings, ledger=site.ledger, patients=patients)
    assert 0 < foretold.rounds_left < foretold.rounds_ahead == 6
    assert not foretold.whole
    assert not foretold.refused(site.settings)
    codes = [code(site.ask(site.instruct(study, round_number=n))) for n in range(1, 7)]
    left = foretold.rounds_left
    assert codes == [None] * left + [RefusalCode.OVER_BUDGET] * (6 - left)
    after = lasting(study, site.settings, ledger=site.ledger, patients=patients)
    assert (after.rounds_left, after.rounds_ahead, after.begun) == (0, 6 - left, True)


@pytest.mark.parametrize(
    ("epsilon", "policy", "said"),
    [
        (10.0, "required", "budget    lasts for all 6 rounds\n"),
        (3.2, "required", "of 6 rounds: it is refused at its start (policy.whole_studies"),
        (3.2, "optional", "of 6 rounds: later ones are refused"),
    ],
)
def test_the_steward_reads_how_long_the_budget_lasts(
    hospital: Callable[..., Any], epsilon: float, policy: str, said: str
) -> None:
    """Before the study is approved, and as numbers for a program."""
    site = private(hospital, "read", epsilon, whole_studies=policy)
    text = asked(site).canonical()
    seen = SeenStudy(status=Status.WAITING, first_seen_s=0, decided_s=None, text=text)
    shown = show(seen, site.settings)
    assert said in shown.text()
    budget = shown.as_json()["budget"]
    assert budget["rounds_ahead"] == 6
    assert (budget["rounds_left"] == 6) == (epsilon == 10.0)


def test_with_folds_all_models_must_be_affordable(hospital: Callable[..., Any]) -> None:
    """A patient trains in all models but one, so the budget must last for all of those."""
    site = private(hospital, "folded", 4.0)
    study = site.study("training.rounds=6", "privacy.target_epsilon=3", "data.folds=3")
    found = lasting(study, site.settings, ledger=None, patients=None)
    assert found.rounds_ahead == 12
    assert found.refused(site.settings)
    assert code(site.ask(site.instruct(study, fold=1))) is RefusalCode.OVER_BUDGET


def patients_of(site: Any, study: Study) -> tuple[Cohort, list[str]]:
    """The site's patients as the study sees them, and those who are tested first."""
    cohort = open_cohort(site.settings, study, torch.device("cpu"))
    tested = {cohort.names[key] for key in cohort.dataset.patients[cohort.test_rows(1)]}
    return cohort, sorted(tested)


@pytest.mark.parametrize("folds", [True, False])
def test_who_is_tested_first_must_afford_the_other_models(
    hospital: Callable[..., Any], folds: bool
) -> None:
    """With folds their budget counts from the first round; without, nothing is asked of them."""
    site = private(hospital, "worn", 20.0)
    study = site.study("training.rounds=2", *["data.folds=3"] * folds)
    _, tested = patients_of(site, study)
    assert tested
    lost = STEP._replace(steps=10_000)
    reserve(site.ledger, 1, 1000.0, study="6", mechanism=lost, patients=tested)
    answer = site.ask(site.instruct(study, fold=int(folds)))
    assert code(answer) is (RefusalCode.OVER_BUDGET if folds else None)


def test_a_study_with_folds_is_foretold_to_its_end(hospital: Callable[..., Any]) -> None:
    """A cap that is just enough stays so after each fold, whoever was tested in it."""
    site = private(hospital, "just", 20.0)
    study = site.study("training.rounds=4", "data.folds=3")
    plan = privacy_plan(study, declared=12)
    enough = lifetime_epsilon(plan.patient_history(8), delta=1e-5) + 1e-6
    settings = site.settings.model_copy(update={"budget": Budget(epsilon=enough)})
    less = site.settings.model_copy(update={"budget": Budget(epsilon=enough - 0.01)})
    cohort, _ = patients_of(site, study)
    everybody = list(cohort.names.values())
    (a_round,) = plan.patient_history(1)
    said = []
    for fold in (1, 2, 3):
        for patients in (None, everybody):
            assert lasting(study, settings, ledger=site.ledger, patients=patients).whole
        assert not lasting(study, less, ledger=site.ledger, patients=everybody).whole
        for number in (1, 2, 3, 4):
            reserve(
                site.ledger,
                number,
                enough,
                study=study.sha256,
                mechanism=a_round,
                fold=fold,
                patients=cohort.train_names(fold),
            )
        found = lasting(study, settings, ledger=site.ledger, patients=everybody)
        said.append((found.rounds_left, found.rounds_ahead))
    # After the first fold, those tested in it still train in both others.
    assert said == [(8, 8), (4, 4), (0, 0)]


def test_a_round_that_was_charged_twice_is_one_round(hospital: Callable[..., Any]) -> None:
    """Data that changed before its reply was kept cost twice, but bring the end no nearer."""
    site = private(hospital, "twice", 20.0)
    study = asked(site)
    (a_round,) = privacy_plan(study, declared=12).patient_history(1)
    for data in "de":
        reserve(site.ledger, 1, 20.0, study=study.sha256, mechanism=a_round, data=data)
    found = lasting(study, site.settings, ledger=site.ledger, patients=["Ann", "tested"])
    assert (found.rounds_left, found.rounds_ahead) == (5, 5)


@pytest.mark.parametrize("change", ["sampling_rate=1e-9", "target_epsilon=1e-9"])
def test_what_no_noise_could_keep_is_nobodys_instruction(
    hospital: Callable[..., Any], change: str
) -> None:
    """The study is at fault, not the site; the steward reads why."""
    site = private(hospital, "odd", 10.0)
    study = site.study(f"privacy.{change}")
    assert code(site.ask(site.instruct(study))) is RefusalCode.BAD_INSTRUCTION
    text = study.canonical()
    seen = SeenStudy(status=Status.WAITING, first_seen_s=0, decided_s=None, text=text)
    assert show(seen, site.settings).against
