"""What a site agrees to: every question that site.yaml decides, as a pure function.

Each `check_...` returns nothing or raises SiteRefusal with a code of the closed list. A refusal
tells the server no more than that: `objections` says it in words, for the site's own steward.

Two kinds of codes: `bad-instruction` is what nobody could run as it is written; what another site
might agree to has a code of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from common.catalogue import CATALOGUE
from common.config import LARGEST_WEIGHT, SiteSettings, Study
from common.errors import BadInput, RefusalCode, SiteRefusal
from common.messages import EVALUATE
from common.privacy.accounting import check_delta

if TYPE_CHECKING:
    from common.models import Layout

DAY_S: Final = 86_400.0
LARGEST_STUDY_BYTES: Final = 65_536  # of its canonical text, which the site keeps
_BESIDE_BYTES: Final = 1024  # of a reply, beside its weights: the array's header, a few metrics
_SMALLEST_SHARE_PERCENT: Final = 80  # of the declared patients
_HIDES: Final = {"image": 0, "exam": 1, "patient": 2}  # how much a unit of privacy hides


@dataclass(frozen=True, slots=True)
class Key:
    """One instruction, by all that decides its reply: the same key, the same reply."""

    study_sha256: str
    kind: str  # TRAIN or EVALUATE
    fold: int  # 0: the study has one split
    round_number: int  # from 1
    weights_sha256: str  # of the incoming weights
    data_fingerprint: str  # of the site's data, hexadecimal


@dataclass(frozen=True, slots=True)
class Objection:
    """One reason why a site may not take part in a study."""

    code: RefusalCode
    sentence: str  # for the site's own people: it may quote site.yaml, so it never leaves


def check_study(study: Study, site: SiteSettings) -> None:
    """Refuse a study that the site's policy forbids; see `objections`."""
    for objection in objections(study, site):
        raise SiteRefusal(objection.code)


def objections(study: Study, site: SiteSettings) -> tuple[Objection, ...]:
    """All that stands against a study before any image is looked at, the gravest first."""
    private = study.privacy.enabled
    return (
        *(_on_privacy(study, site) if private else _on_no_privacy(study, site)),
        *_on_model(study, site),
    )


def _on_no_privacy(study: Study, site: SiteSettings) -> Iterator[Objection]:
    policy = site.policy
    if policy.privacy == "required" and study.sha256 not in policy.allow_without_privacy:
        yield Objection(
            RefusalCode.PRIVACY_REQUIRED,
            "policy.privacy is required and the study has none. To let this one study do without, "
            f"add {study.sha256} to policy.allow_without_privacy.",
        )


def _on_privacy(study: Study, site: SiteSettings) -> Iterator[Objection]:
    asked, policy, budget = study.privacy, site.policy, site.budget
    # Exams are all that MRNet's files tell apart, so nothing there could hide more.
    hides = "patient" if study.data.kind == "mrnet" and asked.unit == "exam" else asked.unit
    if _HIDES[hides] < _HIDES[policy.unit]:
        yield Objection(
            RefusalCode.WEAK_UNIT,
            f"policy.unit is {policy.unit} and the study's privacy.unit is {asked.unit}, which "
            "hides less.",
        )
    whole = policy.whole_studies == "required"  # else the ledger ends it where the budget does
    if whole and asked.target_epsilon > budget.epsilon:
        yield Objection(
            RefusalCode.OVER_BUDGET,
            f"budget.epsilon is {budget.epsilon:g} and the study's privacy.target_epsilon is "
            f"{asked.target_epsilon:g}.",
        )
    lifetime = asked.lifetime_epsilon
    if whole and lifetime is not None and asked.target_epsilon > lifetime:
        yield Objection(
            RefusalCode.OVER_BUDGET,
            f"the study's privacy.target_epsilon is {asked.target_epsilon:g}, beyond its own "
            f"privacy.lifetime_epsilon, {lifetime:g}.",
        )
    if asked.target_delta > budget.delta:
        yield Objection(
            RefusalCode.OVER_BUDGET,
            f"budget.delta is {budget.delta:g} and the study's privacy.target_delta is "
            f"{asked.target_delta:g}.",
        )
    declared = site.declared(asked.unit)
    if declared is None:
        key = "declared_images" if asked.unit == "image" else "declared_patients"
        yield Objection(
            RefusalCode.NOT_DECLARED,
            f"{key} is missing, and the study's privacy.unit, {asked.unit}, needs it: add the "
            "number, rounded, since it is public.",
        )
        return
    try:
        check_delta(asked.target_delta, declared)
    except BadInput as error:
        yield Objection(RefusalCode.BAD_INSTRUCTION, str(error))


def _on_model(study: Study, site: SiteSettings) -> Iterator[Objection]:
    name, allowed = study.model.name, site.policy.models
    if name not in CATALOGUE:
        yield Objection(
            RefusalCode.BAD_INSTRUCTION,
            "the study's model.name is none of those installed here: " + ", ".join(CATALOGUE) + ".",
        )
        return
    smallest = CATALOGUE[name].smallest_image_px
    if study.data.image_size_px < smallest:
        yield Objection(
            RefusalCode.BAD_INSTRUCTION,
            f"the study's data.image_size_px is {study.data.image_size_px}; model {name} needs "
            f"{smallest}.",
        )
    if allowed is not None and name not in allowed:
        yield Objection(
            RefusalCode.MODEL_NOT_ALLOWED,
            f"policy.models is {', '.join(allowed) or 'empty'} and the study's model.name is "
            f"{name}.",
        )


def check_new_study(
    study: Study, site: SiteSettings, *, first_seen_s: Iterable[float], now_s: float
) -> None:
    """Refuse a study that was never seen before where it is too long, or one too many today.

    Args:
        first_seen_s: when the site met each study that it knows, in seconds since the epoch.
        now_s: the time by the same clock.

    Formal guarantees:
        A clock that is put back opens no door: what was seen "later" than now still counts.
    """
    if len(study.canonical().encode()) > LARGEST_STUDY_BYTES:
        raise SiteRefusal(RefusalCode.TOO_LARGE)
    if sum(now_s - seen_s < DAY_S for seen_s in first_seen_s) >= site.policy.studies_per_day:
        raise SiteRefusal(RefusalCode.TOO_MANY_STUDIES)


def check_size(layout: Layout, site: SiteSettings) -> None:
    """Refuse a model whose weights make a larger message than the site allows."""
    if 4 * layout.size + _BESIDE_BYTES > most_bytes(site):
        raise SiteRefusal(RefusalCode.TOO_LARGE)


def most_bytes(site: SiteSettings) -> int:
    """The largest message that the site allows, in bytes."""
    return int(site.policy.max_message_mb * 1e6)


def check_cohort(patients: int, site: SiteSettings) -> None:
    """Refuse to train on too few patients, or on far fewer than the site declares.

    Args:
        patients: in the site's data, those on the test side included.
        site: its `min_patients`, and the declared number by which the private mean is divided.
    """
    declared = site.declared_patients or 0
    if patients < site.policy.min_patients or 100 * patients < _SMALLEST_SHARE_PERCENT * declared:
        raise SiteRefusal(RefusalCode.TOO_FEW_PATIENTS)


def check_weights(flat: NDArray[np.float32], layout: Layout) -> None:
    """Refuse incoming weights that aren't the model's, aren't finite or are absurdly large."""
    if flat.dtype != np.float32 or flat.shape != (layout.size,):
        raise SiteRefusal(RefusalCode.BAD_WEIGHTS)
    # What is not a number compares as false.
    if not (flat.min() >= -LARGEST_WEIGHT and flat.max() <= LARGEST_WEIGHT):
        raise SiteRefusal(RefusalCode.BAD_WEIGHTS)


def rounds_to_begin_with(study: Study, site: SiteSettings) -> int:
    """How many rounds the budget must last for before the site takes part in its first one.

    All of them, though it may be asked late: else what is refused at first would be done after all
    once fewer are left. With folds, each patient trains in all models but one.
    """
    if site.policy.whole_studies == "optional":
        return 1
    return study.training.rounds * ((study.data.folds or 2) - 1)


def check_round(asked: Key, study: Study, *, earlier: Iterable[Key]) -> None:
    """Refuse a round out of order, or one that was answered for other weights or data.

    A site may join late and miss rounds, so a round may follow any earlier one. After the last
    round of training there is one more, which only evaluates. Each round has one set of weights,
    whatever is asked of them: exact metrics of many would be many answers.

    Args:
        asked: an instruction that has no stored reply.
        study: the one that it belongs to.
        earlier: the instructions of this study and fold that were answered.
    """
    last = study.training.rounds + (1 if asked.kind == EVALUATE else 0)
    if not 1 <= asked.round_number <= last:
        raise SiteRefusal(RefusalCode.BAD_INSTRUCTION)
    for answered in earlier:
        if answered.round_number > asked.round_number:
            raise SiteRefusal(RefusalCode.ROUND_OUT_OF_ORDER)
        if answered.round_number < asked.round_number or answered == asked:
            continue  # the same again: its reply was damaged
        if answered.weights_sha256 != asked.weights_sha256 or answered.kind == asked.kind:
            raise SiteRefusal(RefusalCode.ROUND_ASKED_AGAIN)
