"""The one training loop against SGD by hand, and at the edges: nobody, one patient, one class."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from client.cohort import Examples, Stored
from client.training import privacy_plan, train_plain, train_private, train_round
from common.compute import settle
from common.config import Study, Training, parse
from common.errors import BadInput, RefusalCode, SiteRefusal
from common.models import frozen_encoder, pack, study_model, trained_part
from common.privacy.epsilon import Randomness, Unit
from common.privacy.randomness import RoundSecret

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _settled() -> None:
    """As every process that trains does first."""
    settle()


def secret(first: int = 1) -> RoundSecret:
    """The same 32 bytes each time."""
    return RoundSecret(bytes([first, *range(31)]), randomness=Randomness.SEEDED)


def examples(patients: int, *, images: int = 3, classes: int = 2, size: int = 16) -> Examples:
    """Random images of patients of alternating classes; every other row is not of this side."""
    total = 2 * patients * images
    rng = np.random.default_rng(0)
    owner = np.arange(total) // 2 % max(patients, 1)
    return Examples(
        inputs=Stored((rng.normal(size=(total, 1, size, size)).astype(np.float32),)),
        labels=owner % classes,
        patients=np.array([f"key-{number}" for number in owner], dtype=np.str_),
        rows=np.arange(0, total, 2),
    )


def study(*, private: bool = False, model: str = "cnn-small", size: int = 16) -> Study:
    """A study of one round over two classes."""
    content = {
        "classes": ["dark", "bright"],
        "data": {"kind": "manifest", "image_size_px": size},
        "model": {"name": model},
        "training": {"rounds": 1, "batch_size": 4},
        "privacy": {"enabled": private, "sampling_rate": 0.5, "steps_per_round": 3},
    }
    return parse(Study, content, where="test")


def with_training(settings: Training) -> Study:
    """The study, trained without privacy by these settings."""
    return study().model_copy(update={"training": settings})


def trained(wanted: Study, data: Examples, *, by: RoundSecret | None = None) -> np.ndarray:
    """The weights after one round from the study's initial ones."""
    model = study_model(wanted)
    train_round(trained_part(model), data, wanted, declared=10, secret=by or secret(), device=CPU)
    return pack(model)


def by_hand(module: nn.Module, data: Examples, settings: Training, batch_size: int) -> None:
    """SGD with momentum and weight decay, written out."""
    parameters = list(module.parameters())
    velocity = [torch.zeros_like(parameter) for parameter in parameters]
    for epoch in range(settings.epochs):
        order = secret().stream("shuffled epoch", epoch).permutation(len(data.rows))
        for start in range(0, len(order), batch_size):
            rows = data.rows[order[start : start + batch_size]]
            logits = module(data.inputs.rows(rows))
            picked = logits.log_softmax(dim=1)[torch.arange(len(rows)), data.labels[rows]]
            gradients = torch.autograd.grad(-picked.mean(), parameters)
            with torch.no_grad():
                for parameter, moved, gradient in zip(parameters, velocity, gradients, strict=True):
                    moved *= settings.momentum
                    moved += gradient + settings.weight_decay * parameter
                    parameter -= settings.learning_rate * moved


@pytest.mark.parametrize(
    ("settings", "batch_size"),
    [
        (Training(epochs=1, momentum=0.0), 4),
        (Training(epochs=2, momentum=0.9, learning_rate=0.1), 5),  # the last batch is smaller
        (Training(epochs=2, momentum=0.5, weight_decay=0.01), 100),  # one batch an epoch
    ],
)
def test_plain_training_is_sgd(settings: Training, batch_size: int) -> None:
    """Epochs of shuffled batches give the weights of SGD written out by hand."""
    data = examples(4)
    loop, hand = study_model(study()), study_model(study())
    train_plain(
        loop, data, with_training(settings), batch_size=batch_size, secret=secret(), device=CPU
    )
    by_hand(hand, data, settings, batch_size)
    assert not np.array_equal(pack(loop), pack(study_model(study())))
    np.testing.assert_allclose(pack(loop), pack(hand), rtol=1e-5, atol=1e-7)


def test_plain_training_is_torchs_sgd_to_the_bit() -> None:
    """The bits are those of torch's own SGD over the same batches."""
    data, settings = examples(4), Training(epochs=2, weight_decay=0.01)
    loop, bare = study_model(study()), study_model(study())
    train_plain(loop, data, with_training(settings), batch_size=5, secret=secret(), device=CPU)
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    for epoch in range(2):
        order = secret().stream("shuffled epoch", epoch).permutation(12)
        for batch in (order[:5], order[5:10], order[10:]):
            rows = data.rows[batch]
            optimizer.zero_grad()
            logits = bare(data.inputs.rows(rows))
            nn.functional.cross_entropy(logits, torch.from_numpy(data.labels[rows])).backward()
            optimizer.step()
    assert pack(loop).tobytes() == pack(bare).tobytes()


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize(
    "data",
    [examples(1, images=1), examples(1), examples(3, classes=1)],
    ids=["one image", "one patient", "one class"],
)
def test_the_smallest_sites_train(private: bool, data: Examples) -> None:
    """One image, one patient, one class: finite weights that have moved."""
    wanted = study(private=private)
    found = trained(wanted, data)
    assert np.isfinite(found).all()
    assert not np.array_equal(found, pack(study_model(wanted)))


@pytest.mark.parametrize("private", [False, True])
def test_only_this_sides_rows_are_trained_on(private: bool) -> None:
    """Rows of the other side may hold anything."""
    data = examples(3)
    other = data.inputs.parts[0].copy()
    other[1::2] = np.nan
    spoiled = Examples(Stored((other,)), data.labels, data.patients, data.rows)
    wanted = study(private=private)
    assert trained(wanted, spoiled).tobytes() == trained(wanted, data).tobytes()


@pytest.mark.parametrize("private", [False, True])
def test_the_secret_decides(private: bool) -> None:
    """The same secret gives the same bits, another one other bits."""
    wanted, data = study(private=private), examples(4)
    first = trained(wanted, data)
    assert trained(wanted, data).tobytes() == first.tobytes()
    assert trained(wanted, data, by=secret(2)).tobytes() != first.tobytes()


def test_nobody_to_train_on_is_refused_without_privacy() -> None:
    """An empty training side is a refusal with its own code."""
    with pytest.raises(SiteRefusal) as refusal:
        trained(study(), examples(0))
    assert refusal.value.code is RefusalCode.NO_TRAINING_PATIENTS


def test_nobody_to_train_on_takes_the_noisy_steps_with_privacy() -> None:
    """Whether a site has patients must not show: an empty side gives noise alone."""
    wanted = study(private=True)
    found = trained(wanted, examples(0))
    moved = found - pack(study_model(wanted))
    plan = privacy_plan(wanted, declared=10)
    step = wanted.privacy.learning_rate * plan.noise_multiplier / plan.expected_patients
    assert np.isfinite(found).all()
    assert moved.std() == pytest.approx(step * plan.steps_per_round**0.5, rel=0.05)


def test_steps_in_which_nobody_is_sampled_are_taken() -> None:
    """A rate so small that nobody joins gives what an empty site gives: noise alone."""
    wanted = study(private=True)
    rare = wanted.model_copy(
        update={"privacy": wanted.privacy.model_copy(update={"sampling_rate": 0.01})}
    )
    assert trained(rare, examples(3)).tobytes() == trained(rare, examples(0)).tobytes()


def test_whoever_is_not_sampled_changes_nothing() -> None:
    """Labels of patients who are in no step, such as their class mix, don't reach the weights."""
    wanted, data = study(private=True), examples(8)
    steps, rate = wanted.privacy.steps_per_round, wanted.privacy.sampling_rate
    joins = {
        key: (secret().stream("joins", key).random(steps) < rate).any() for key in data.by_patient()
    }
    assert 0 < sum(joins.values()) < len(joins)
    absent = np.array([not joins[str(key)] for key in data.patients])
    other = replace(data, labels=np.where(absent, 1 - data.labels, data.labels))
    assert trained(wanted, other).tobytes() == trained(wanted, data).tobytes()


def test_privacy_needs_a_declared_number() -> None:
    """Without the public number of patients there is no denominator, so no training."""
    wanted = study(private=True)
    with pytest.raises(BadInput, match="declared_patients"):
        train_round(
            study_model(wanted),
            examples(2),
            wanted,
            declared=None,
            secret=secret(),
            device=CPU,
        )


def test_delta_is_checked_against_the_sites_own_number() -> None:
    """A site of 20,000 patients refuses the delta that a site of 100 accepts."""
    wanted = study(private=True)
    assert privacy_plan(wanted, declared=100).delta == 1e-5
    with pytest.raises(BadInput, match="delta"):
        privacy_plan(wanted, declared=20_000)


def test_with_unit_image_a_patient_can_count_several_times() -> None:
    """By image each of a patient's images is clipped by itself, by patient all of them together."""
    by_patient = study(private=True)
    changed = {"unit": "image", "sampling_rate": 1.0, "max_grad_norm": 1e-3}
    privacy = by_patient.privacy.model_copy(update={**changed, "target_epsilon": 1000.0})
    by_image = by_patient.model_copy(update={"privacy": privacy})
    plan = replace(privacy_plan(by_image, declared=10), noise_multiplier=0.0, steps_per_round=1)

    def moved(unit: Unit) -> float:
        module = study_model(by_image)
        before = pack(module)
        wanted = replace(plan, unit=unit)
        data = examples(1)
        train_private(module, data, by_image, plan=wanted, secret=secret(), device=CPU)
        return float(np.linalg.norm(pack(module) - before))

    step = by_image.privacy.learning_rate * 1e-3 / plan.expected_patients
    assert moved(Unit.PATIENT) == pytest.approx(step, rel=1e-3)
    assert moved(Unit.IMAGE) > 1.5 * step


@pytest.mark.parametrize("private", [False, True])
def test_only_the_head_of_a_frozen_model_is_trained(private: bool) -> None:
    """The head learns from features; the encoder, its BatchNorm buffers included, stays."""
    wanted = study(private=private, model="frozen-efficientnet-lite0", size=32)
    model = study_model(wanted)
    frozen = frozen_encoder(model)
    assert frozen is not None
    before = {name: value.clone() for name, value in frozen[0].state_dict().items()}
    data = examples(4)
    images = torch.from_numpy(data.inputs.parts[0]).repeat(1, 1, 2, 2)
    on_features = Examples(
        Stored((frozen[0](images).numpy(),)), data.labels, data.patients, data.rows
    )
    head = trained_part(model)
    train_round(head, on_features, wanted, declared=10, secret=secret(), device=CPU)
    model.train()(images)
    after = frozen[0].state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert pack(model).any()  # it begins at zero
    assert pack(model).shape == (1280 * 2 + 2,)
