"""What a site agrees to: a table of decisions, and rules that no order of messages gets around."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.policy import (
    DAY_S,
    Key,
    check_cohort,
    check_new_study,
    check_round,
    check_size,
    check_study,
    check_weights,
    most_bytes,
    objections,
    rounds_to_begin_with,
)
from common.catalogue import CATALOGUE
from common.config import LARGEST_WEIGHT, Budget, Policy, SiteSettings, Study, parse
from common.errors import RefusalCode, SiteRefusal
from common.messages import EVALUATE, TRAIN
from common.models import Layout

PRIVATE = {"enabled": True, "target_epsilon": 3.0, "target_delta": 1e-6}


def study(*, privacy: dict[str, Any] | None = None, **said: Any) -> Study:
    """A small study, private if nothing else is said."""
    content = {"classes": ["dark", "bright"], "data": {"kind": "manifest"}}
    return parse(Study, content | {"privacy": PRIVATE | (privacy or {})} | said, where="study")


def knees(**privacy: Any) -> Study:
    """A study of knees, whose exams have no patients."""
    return study(
        privacy={"unit": "exam"} | privacy,
        task="multi-label",
        classes=["acl"],
        data={"kind": "mrnet"},
    )


def site(*, declared: int | None = 100, images: int | None = 500, **policy: Any) -> SiteSettings:
    """A site with the default policy but for what is said."""
    return SiteSettings(
        declared_patients=declared,
        declared_images=images,
        budget=Budget(epsilon=4.0, delta=1e-5),
        policy=Policy(**policy),
    )


def code(check: Any, *args: Any, **named: Any) -> RefusalCode | None:
    """The code with which a check refuses, or None."""
    try:
        check(*args, **named)
    except SiteRefusal as refusal:
        return refusal.code
    return None


OPEN = study(privacy={"enabled": False})
C = RefusalCode


@pytest.mark.parametrize(
    ("asked", "of", "expected"),
    [
        (study(), site(), None),
        (OPEN, site(), C.PRIVACY_REQUIRED),
        (OPEN, site(privacy="optional"), None),
        (OPEN, site(privacy="optional", declared=None), None),
        (OPEN, site(allow_without_privacy=(OPEN.sha256,)), None),
        (OPEN, site(allow_without_privacy=(study().sha256,)), C.PRIVACY_REQUIRED),
        (study(privacy={"unit": "image"}), site(), C.WEAK_UNIT),
        (study(privacy={"unit": "image"}), site(unit="exam"), C.WEAK_UNIT),
        (study(privacy={"unit": "image"}), site(unit="image"), None),
        (study(privacy={"unit": "image"}), site(unit="image", privacy="optional"), None),
        (study(privacy={"unit": "image"}), site(privacy="optional"), C.WEAK_UNIT),
        (study(), site(unit="image"), None),
        (study(), site(unit="exam"), None),
        (knees(), site(), None),
        (knees(), site(unit="exam"), None),
        (study(privacy={"target_epsilon": 4.0}), site(), None),
        (study(privacy={"target_epsilon": 4.001}), site(), C.OVER_BUDGET),
        (study(privacy={"lifetime_epsilon": 2.9}), site(), C.OVER_BUDGET),
        (study(privacy={"lifetime_epsilon": 3.0}), site(), None),
        (study(privacy={"lifetime_epsilon": 900.0}), site(), None),
        (study(privacy={"target_epsilon": 5.0, "lifetime_epsilon": 9.0}), site(), C.OVER_BUDGET),
        (study(privacy={"target_delta": 1e-5}), site(), None),
        (study(), site(declared=100_000), None),
        (study(), site(declared=100_001), C.BAD_INSTRUCTION),
        (study(), site(declared=None), C.NOT_DECLARED),
        (study(privacy={"unit": "image"}), site(unit="image", images=None), C.NOT_DECLARED),
        (study(privacy={"unit": "image"}), site(unit="image", images=200_000), C.BAD_INSTRUCTION),
        (study(model={"name": "resnet-9000"}), site(), C.BAD_INSTRUCTION),
        (study(model={"name": "resnet18"}), site(), None),
        (study(model={"name": "resnet18"}), site(models=("cnn-small",)), C.MODEL_NOT_ALLOWED),
        (study(model={"name": "cnn-small"}), site(models=("cnn-small",)), None),
        (study(), site(models=()), C.MODEL_NOT_ALLOWED),
        (study(data={"kind": "manifest", "image_size_px": 16}), site(), None),
        (
            study(model={"name": "elnet-like"}, data={"kind": "manifest", "image_size_px": 31}),
            site(),
            C.BAD_INSTRUCTION,
        ),
        (
            study(model={"name": "elnet-like"}, data={"kind": "manifest", "image_size_px": 32}),
            site(),
            None,
        ),
    ],
)
def test_the_policy_decides(asked: Study, of: SiteSettings, expected: RefusalCode | None) -> None:
    """Each line of site.yaml refuses what is just beyond it, with its own code."""
    assert code(check_study, asked, of) == expected
    found = objections(asked, of)
    assert (found[0].code if found else None) == expected
    assert all(re.fullmatch(r"[a-z].*\.", one.sentence) for one in found)


def test_a_smaller_delta_than_the_studys_is_a_cap() -> None:
    """A site's own delta is the largest that it accepts."""
    strict = site().model_copy(update={"budget": Budget(epsilon=4.0, delta=9e-7)})
    assert code(check_study, study(), strict) is C.OVER_BUDGET
    (found,) = objections(study(), strict)
    assert found.sentence.startswith("budget.delta is 9e-07 ")


def test_the_steward_reads_every_objection() -> None:
    """All that stands against a study is said at once, by the names of the keys to change."""
    asked = study(privacy={"unit": "image", "target_epsilon": 9.0}, model={"name": "vit-tiny"})
    found = objections(asked, site(models=("cnn-small",)))
    keys = ("policy.unit", "budget.epsilon", "policy.models")
    assert len(found) == 3
    assert all(key in objection.sentence for key, objection in zip(keys, found, strict=True))


@pytest.mark.parametrize(
    ("unit", "key"), [("image", "declared_images"), ("patient", "declared_patients")]
)
def test_the_steward_reads_which_number_is_missing(unit: str, key: str) -> None:
    """The number that a study's unit needs is named as site.yaml spells it."""
    asked = study(privacy={"unit": unit})
    (found,) = objections(asked, site(unit="image", declared=None, images=None))
    assert found.sentence.startswith(f"{key} ")


@pytest.mark.parametrize(
    ("allowed", "named"), [(("cnn-small", "vit-tiny"), "cnn-small, vit-tiny"), ((), "empty")]
)
def test_the_steward_reads_which_models_are_allowed(allowed: tuple[str, ...], named: str) -> None:
    """What policy.models says is quoted beside the model that the study asks for."""
    (found,) = objections(study(model={"name": "resnet18"}), site(models=allowed))
    assert f"policy.models is {named} " in found.sentence
    assert found.sentence.endswith(" resnet18.")


def test_the_steward_reads_which_models_are_installed() -> None:
    """A model that nobody has here is answered by those that are here."""
    (found,) = objections(study(model={"name": "resnet-9000"}), site())
    assert found.sentence.endswith(f": {', '.join(CATALOGUE)}.")


@pytest.mark.parametrize(
    ("patients", "declared", "minimum", "enough"),
    [
        (10, None, 10, True),
        (9, None, 10, False),
        (80, 100, 10, True),
        (79, 100, 10, False),
        (7999, 10_000, 10, False),
        (8000, 10_000, 10, True),
        (12, 10, 13, False),
        (4, 5, 1, True),
        (3, 4, 1, False),
        (0, None, 1, False),
    ],
)
def test_too_few_patients_train_nothing(
    patients: int, declared: int | None, minimum: int, enough: bool
) -> None:
    """The minimum holds, and so does four fifths of what the site declares."""
    of = site(declared=declared, min_patients=minimum)
    assert code(check_cohort, patients, of) == (None if enough else C.TOO_FEW_PATIENTS)


LAYOUT = Layout(("head.bias", "head.weight"), ((2,), (2, 4)))


@pytest.mark.parametrize(
    ("place", "value", "accepted"),
    [
        (0, LARGEST_WEIGHT, True),
        (9, -LARGEST_WEIGHT, True),
        (9, np.nextafter(np.float32(LARGEST_WEIGHT), np.float32(np.inf)), False),
        (0, -3e38, False),
        (4, np.nan, False),
        (4, np.inf, False),
        (4, -np.inf, False),
        (4, 1e-45, True),
        (4, -0.0, True),
    ],
)
def test_absurd_weights_are_refused(place: int, value: float, accepted: bool) -> None:
    """A single value that is no number or beyond the bound is enough; a denormal one isn't."""
    flat = np.ones(10, dtype=np.float32)
    flat[place] = value
    assert code(check_weights, flat, LAYOUT) == (None if accepted else C.BAD_WEIGHTS)


@pytest.mark.parametrize(
    "flat",
    [
        np.ones(9, dtype=np.float32),
        np.ones(11, dtype=np.float32),
        np.ones(0, dtype=np.float32),
        np.ones((10, 1), dtype=np.float32),
        np.ones(10, dtype=np.float64),
        np.ones(10, dtype=np.int32),
    ],
)
def test_weights_of_another_model_are_refused(flat: np.ndarray[Any, Any]) -> None:
    """Another length, shape or dtype is not the model's."""
    assert code(check_weights, flat, LAYOUT) is C.BAD_WEIGHTS


def test_a_model_beyond_the_largest_message_is_refused() -> None:
    """What could not leave through the gate is not trained, so no budget is spent on it."""
    layout = Layout(("w",), ((250_000,),))
    assert code(check_size, layout, site(max_message_mb=1.0)) is C.TOO_LARGE
    assert code(check_size, layout, site(max_message_mb=1.1)) is None
    assert most_bytes(site(max_message_mb=1.5)) == 1_500_000
    fits, beyond = Layout(("w",), ((249_744,),)), Layout(("w",), ((249_745,),))
    assert code(check_size, fits, site(max_message_mb=1.0)) is None
    assert code(check_size, beyond, site(max_message_mb=1.0)) is C.TOO_LARGE


def test_only_so_many_new_studies_a_day() -> None:
    """Those of the last 24 hours count, and those that a clock put back makes lie ahead."""
    of, now_s = site(studies_per_day=2), 1e9
    day_old, recent, ahead = now_s - DAY_S, now_s - DAY_S + 1, now_s + 1e6

    def answer(*seen: float) -> RefusalCode | None:
        return code(check_new_study, study(), of, first_seen_s=seen, now_s=now_s)

    assert answer() is None
    assert answer(recent, day_old, day_old) is None
    assert answer(recent, now_s) is C.TOO_MANY_STUDIES
    assert answer(recent, ahead) is C.TOO_MANY_STUDIES
    assert answer(ahead, ahead) is C.TOO_MANY_STUDIES


def test_a_study_that_would_fill_the_disk_is_refused() -> None:
    """A text of 64 KiB is kept, one byte more is not."""

    def answer(asked: Study) -> RefusalCode | None:
        return code(check_new_study, asked, site(), first_seen_s=(), now_s=0.0)

    short = study(classes=["dark", "bright"])
    room = 2**16 - len(short.canonical().encode())
    assert answer(study(classes=["dark", "bright" + "t" * room])) is None
    assert answer(study(classes=["dark", "bright" + "t" * (room + 1)])) is C.TOO_LARGE


@pytest.mark.parametrize(
    ("folds", "whole_studies", "rounds"),
    [(None, "required", 3), (5, "required", 12), (2, "required", 3), (5, "optional", 1)],
)
def test_a_whole_study_is_paid_for_before_it_begins(
    folds: int | None, whole_studies: str, rounds: int
) -> None:
    """With folds, each patient trains in all models but one; a site may also take what it gets."""
    asked = study(training={"rounds": 3}, data={"kind": "manifest", "folds": folds})
    assert rounds_to_begin_with(asked, site(whole_studies=whole_studies)) == rounds


STUDY = study(training={"rounds": 5})


def key(round_number: int, *, kind: str = TRAIN, weights: str = "a", data: str = "d") -> Key:
    """An instruction of the study."""
    return Key(STUDY.sha256, kind, 0, round_number, weights * 64, data * 64)


@pytest.mark.parametrize(
    ("asked", "earlier", "expected"),
    [
        (key(1), (), None),
        (key(5), (), None),  # joined late
        (key(6), (), C.BAD_INSTRUCTION),
        (key(6, kind=EVALUATE), (key(5),), None),
        (key(7, kind=EVALUATE), (), C.BAD_INSTRUCTION),
        (key(0), (), C.BAD_INSTRUCTION),
        (key(4), (key(1), key(2)), None),  # missed one
        (key(1), (key(2),), C.ROUND_OUT_OF_ORDER),
        (key(1, kind=EVALUATE), (key(2),), C.ROUND_OUT_OF_ORDER),
        (key(2), (key(3), key(2)), C.ROUND_OUT_OF_ORDER),
        (key(2, weights="b"), (key(2),), C.ROUND_ASKED_AGAIN),
        (key(2, weights="b", kind=EVALUATE), (key(2),), C.ROUND_ASKED_AGAIN),
        (key(2, kind=EVALUATE), (key(2),), None),
        (key(2), (key(2, kind=EVALUATE),), None),
        (key(2, data="e"), (key(2),), C.ROUND_ASKED_AGAIN),
        (key(2), (key(2),), None),  # its stored reply was damaged
        (key(3, weights="b"), (key(2),), None),
    ],
)
def test_rounds_go_forward_with_one_set_of_weights_each(
    asked: Key, earlier: tuple[Key, ...], expected: RefusalCode | None
) -> None:
    """A round that was answered is not answered for other weights or data, nor one before it."""
    assert code(check_round, asked, STUDY, earlier=earlier) == expected


@given(
    st.lists(
        st.builds(
            key,
            st.integers(-1, 7),
            kind=st.sampled_from([TRAIN, EVALUATE]),
            weights=st.sampled_from("ab"),
            data=st.sampled_from("de"),
        ),
        max_size=20,
    )
)
def test_no_order_of_messages_gets_two_answers_for_a_round(asked: list[Key]) -> None:
    """However a server asks: rounds never go back, one set of weights each, one reply a kind."""
    answered: list[Key] = []
    for one in asked:
        if one not in answered and code(check_round, one, STUDY, earlier=answered) is None:
            answered.append(one)
    numbers = [one.round_number for one in answered]
    assert numbers == sorted(numbers)
    assert all(1 <= one.round_number <= 5 + (one.kind == EVALUATE) for one in answered)
    assert len({(one.round_number, one.kind) for one in answered}) == len(answered)
    of_round = {one.round_number: one.weights_sha256 for one in answered}
    assert all(of_round[one.round_number] == one.weights_sha256 for one in answered)
