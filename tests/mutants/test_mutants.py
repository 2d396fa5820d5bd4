"""Bugs that would break the promise of privacy without anybody noticing, each caught by a test.

Every mutant is a change of one place in the code, such as people make; the named tests must fail on
it. (That they pass without it is the rest of the run.)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

CAUGHT = 1  # pytest's exit code when tests failed


@dataclass(frozen=True, slots=True)
class Mutant:
    """`before`, which stands once in `module`, becomes `after`; one of `tests` must fail."""

    module: str
    before: str
    after: str
    tests: tuple[str, ...]


PATIENT_SGD = "tests/common/privacy/test_patient_sgd.py"
SAMPLING = "tests/common/privacy/test_sampling.py"
TRAINING = "tests/client/test_training.py"
ADJACENCY = "tests/client/test_adjacency.py"

ENGINES = "tests/common/privacy/test_engines.py"
FACTORS = "    factors = clip_factors(squares, max_grad_norm).float()"

MUTANTS = {
    "no clip": Mutant(
        "common.privacy.bookkeeping",
        "(max_grad_norm / norms / (1 + SLACK)).clamp(max=1)",
        "torch.ones_like(norms)",
        (PATIENT_SGD, ENGINES),
    ),
    "clip after the sum": Mutant(
        "common.privacy.bookkeeping",
        FACTORS,
        "    factors = clip_factors(squares.sum().expand_as(squares), max_grad_norm).float()",
        (PATIENT_SGD, ENGINES),
    ),
    "clip per batch": Mutant(
        "common.privacy.bookkeeping",
        FACTORS,
        "    factors = clip_factors(squares.mean().expand_as(squares), max_grad_norm).float()",
        (PATIENT_SGD, ENGINES),
    ),
    "half the noise": Mutant(
        "common.privacy._opacus",
        "self.noise(p.summed_grad, std=self.noise_multiplier * self.max_grad_norm)",
        "self.noise(p.summed_grad, std=self.noise_multiplier * self.max_grad_norm / 2)",
        (PATIENT_SGD, TRAINING),
    ),
    "division by the realised batch": Mutant(
        "common.privacy.patient_sgd",
        "        private.step()",
        "        private.expected_batch_size = max(1, len(batch))\n        private.step()",
        (PATIENT_SGD, TRAINING),
    ),
    "unit split over micro-batches": Mutant(
        "common.privacy.patient_sgd",
        "        group.append(rows)",
        "        group.extend(_pieces(rows, max(1, limit // 2)))",
        (PATIENT_SGD, ENGINES),
    ),
    "patients' images summed, not averaged": Mutant(
        "common.privacy.bookkeeping",
        "values.new_full((size,), 1 / size)",
        "values.new_full((size,), 1.0)",
        (PATIENT_SGD, ENGINES),
    ),
    "float32 Gram matrices trusted where rows cancel": Mutant(
        "common.privacy.bookkeeping",
        "_CANCELS = 6.0",
        "_CANCELS = 6e12",
        (f"{ENGINES}::test_the_guard_is_needed",),
    ),
    "Gram matrices in float32": Mutant(
        "common.privacy.bookkeeping",
        ".numpy().astype(np.float64)",
        ".numpy()",
        (f"{ENGINES}::test_equal_numbers_are_not_taken_for_shorter",),
    ),
    "noise in float32 without a grid": Mutant(
        "common.privacy.noise",
        ".div_(step).round_().mul_(step)",
        "",
        ("tests/common/privacy/test_noise.py",),
    ),
    "a site's randomness seeded by the study": Mutant(
        "client.site",
        "_seeded(key, study) if self._is_seeded else RoundSecret.from_os()",
        "_seeded(key, study)",
        ("tests/client/test_app.py",),
    ),
    "a lost reply made again with fresh noise": Mutant(
        "client.site",
        "        if reservation.secret is None:",
        "        if reservation.secret is None:\n"
        "            return RoundSecret.from_os()\n"
        "        if reservation.secret is None:",
        ("tests/client/test_app.py",),
    ),
    "training that isn't charged": Mutant(
        "client.site",
        "            return None\n        plan = self._plan(study)",
        "            return None\n        if key.round_number > 1:\n            return None\n"
        "        plan = self._plan(study)",
        ("tests/client/test_app.py",),
    ),
    "shuffling sold as Poisson": Mutant(
        "common.privacy.sampling",
        'joins = {key: secret.stream("joins", key).random(steps) < sampling_rate for key in keys}',
        'joins = dict(zip(keys, secret.stream("joins").permuted(np.tile(np.arange(len(keys)) < '
        "round(sampling_rate * len(keys)), (steps, 1)), axis=1).T, strict=True))",
        (SAMPLING,),
    ),
    "skipped empty batch": Mutant(
        "client.training",
        "            step(batch)",
        "            if batch:\n                step(batch)",
        (TRAINING,),
    ),
    "image sold as patient": Mutant(
        "client.training",
        "    if plan.unit is Unit.IMAGE:",
        "    if True:",
        (TRAINING, ADJACENCY),
    ),
    "one more step than accounted": Mutant(
        "client.training",
        "        steps=plan.steps_per_round,",
        "        steps=plan.steps_per_round + 1,",
        (TRAINING,),
    ),
    "stratified split under privacy": Mutant(
        "client.cohort",
        "    if study.privacy.enabled:",
        "    if False:",
        (ADJACENCY, "tests/client/test_cohort.py"),
    ),
    "mixup on": Mutant(
        "common.config",
        "        if self.training.augmentation.mixup:",
        "        if False:",
        ("tests/common/test_config.py",),
    ),
    "class weights from private data": Mutant(
        "client.training",
        "        loss=loss_of(multi_label=examples.multi_label),\n        max_grad_norm",
        "        loss=nn.CrossEntropyLoss(\n"
        "            torch.from_numpy(1 / np.bincount(examples.labels, minlength=2)).float(),\n"
        '            reduction="none",\n        ),\n        max_grad_norm',
        (ADJACENCY, TRAINING),
    ),
    "statistics from private data": Mutant(
        "client.cohort",
        "return self.inputs.rows(rows).to(device), ",
        "mean = float(self.inputs.rows(self.rows).mean())\n"
        "        return self.inputs.rows(rows).sub(mean).to(device), ",
        (ADJACENCY,),
    ),
    "BatchNorm left in": Mutant(
        "common.models.cnn_small",
        "nn.GroupNorm(8, width)",
        "nn.BatchNorm2d(width)",
        ("tests/common/models/test_every_model.py",),
    ),
    "secret reused across rounds": Mutant(
        "common.privacy.randomness",
        "parts = (study_hash, fold, round_number, weights_sha256, data_fingerprint)",
        "parts = (study_hash, fold, data_fingerprint)",
        ("tests/common/privacy/test_randomness.py",),
    ),
    "noise shared across sites": Mutant(
        "common.privacy.randomness",
        "parts = (study_hash, fold, round_number, weights_sha256, data_fingerprint)",
        "parts = (study_hash, fold, round_number, weights_sha256)",
        ("tests/common/privacy/test_randomness.py",),
    ),
    "one stream for sampling and noise": Mutant(
        "common.privacy.randomness",
        "_encode(purpose, *parts)",
        "_encode(*parts)",
        ("tests/common/privacy/test_randomness.py",),
    ),
    "fresh accountant each round": Mutant(
        "common.privacy.plan",
        "rounds * self.steps_per_round)])",
        "self.steps_per_round)])",
        ("tests/common/privacy/test_plan.py",),
    ),
}


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[[Mutant], dict[str, Any]]]:
    """Runs a mutant's tests in a child of one warm process."""
    driver = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("driver.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert driver.stdin is not None
    assert driver.stdout is not None
    assert driver.stdout.readline() == "ready\n"

    def ask(mutant: Mutant) -> dict[str, Any]:
        assert driver.stdin is not None
        assert driver.stdout is not None
        driver.stdin.write(json.dumps(asdict(mutant)) + "\n")
        driver.stdin.flush()
        return dict(json.loads(driver.stdout.readline()))

    yield ask
    driver.stdin.close()
    driver.wait()


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str, run: Callable[[Mutant], dict[str, Any]]) -> None:
    """One of the named tests fails on the changed code."""
    found = run(MUTANTS[name])
    assert found["status"] == CAUGHT, found["output"]
