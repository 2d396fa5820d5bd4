"""What each model costs on this machine: one training step, plain and private by every engine.

The steps are a site's own (`client/training.py`), on generated pictures. Each runs in a process of
its own, so that a model that doesn't fit the memory takes only its own figures with it.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from client.cohort import Examples, Stored
from client.training import train_plain, train_private
from common.catalogue import CATALOGUE
from common.compute import settle
from common.config import CHANNELS, Privacy, Study, parse
from common.errors import BadInput
from common.models import (
    MODELS,
    Classifier,
    Shape,
    build_model,
    feature_shape,
    frozen_encoder,
    study_model,
    trained_part,
)
from common.privacy.epsilon import Unit
from common.privacy.patient_sgd import refuse_unsupported
from common.privacy.plan import PrivacyPlan
from common.privacy.randomness import RoundSecret
from common.report.text import format_table

IMAGE_SIZE_PX = 32
PATIENTS, IMAGES = 4, 2  # in the step, and of each patient
PLAIN = "sgd"
ENGINES: tuple[str, ...] = get_args(Privacy.model_fields["engine"].annotation)
KINDS = (PLAIN, *ENGINES)


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what it took, or why there was none."""

    seconds: float = 0.0  # of CPU
    peak_mib: float = 0.0  # on top of what Python and its packages take
    problem: str = ""

    def as_json(self) -> dict[str, float | str]:
        """The figures, or the problem."""
        if self.problem:
            return {"problem": self.problem}
        return {"seconds": round(self.seconds, 4), "peak_mib": round(self.peak_mib)}


@dataclass(frozen=True, slots=True)
class Probe:
    """One model's steps by their kind: without privacy, and by each engine."""

    name: str
    steps: Mapping[str, Step]

    def as_json(self) -> dict[str, Any]:
        """The catalogue's line, the steps, and whether any engine trains the model."""
        return {
            **CATALOGUE[self.name].as_json(),
            "steps": {kind: step.as_json() for kind, step in self.steps.items()},
            "private": not all(self.steps[engine].problem for engine in ENGINES),
        }


def probe_models(
    names: Iterable[str] = tuple(MODELS), *, on_step: Callable[[int, int], None]
) -> tuple[Probe, ...]:
    """Measure models in turn.

    Args:
        names: keys of `MODELS`.
        on_step: told how many steps are done, and of how many.
    """
    # Opacus and torchvision take seconds to import: once here instead of in every process.
    refuse_unsupported(nn.Linear(1, 1))
    build_model("resnet18", Shape(1, 1, 8), seed=0)
    names = tuple(names)
    total, done = len(names) * len(KINDS), 0
    found = []
    for name in names:
        steps = {}
        for kind in KINDS:
            steps[kind] = _apart(name, kind)
            done += 1
            on_step(done, total)
        found.append(Probe(name, steps))
    return tuple(found)


def text(probes: Iterable[Probe]) -> str:
    """A table for people, and below it what went wrong."""
    rows, problems = [], []
    for probe in probes:
        model = CATALOGUE[probe.name]
        rows.append([probe.name, f"{model.parameters:,}", f"{model.noise_norm:,.0f}"])
        for kind, step in probe.steps.items():
            rows[-1].append(
                "failed" if step.problem else f"{step.seconds:.3g} s, {step.peak_mib:,.0f} MiB"
            )
            if step.problem:
                problems.append(f"{probe.name}, {kind}: {step.problem}")
    kinds = ("without privacy", *(f"private, {engine}" for engine in ENGINES))
    note = f"""
One step of {PATIENTS} patients with {IMAGES} grey pictures of {IMAGE_SIZE_PX} px a side:
seconds of CPU, and memory on top of what Python and its packages take. Of a frozen encoder, whose
features are computed once, the head alone. Noise norm: of a private step at noise multiplier 1,
where no patient's part has a norm above 1."""
    table = format_table(("model", "trained parameters", "noise norm", *kinds), rows)
    return "\n".join([table, note, *problems])


def _apart(name: str, kind: str) -> Step:
    """One step in a fork of this process, which ends with it."""
    context = multiprocessing.get_context("fork")  # all that is imported stays imported
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send_step, args=(name, kind, sending))
    process.start()
    sending.close()
    try:
        step: Step = receiving.recv()
    except EOFError:
        process.join()
        if process.exitcode == 1:  # an exception, which has been printed
            raise RuntimeError(f"the probe of {name} ({kind}) is broken.") from None
        step = Step(problem="its process was killed, most likely for lack of memory.")
    process.join()
    return step


def _send_step(name: str, kind: str, sending: Connection) -> None:
    try:
        step = _step(name, kind)
    except BadInput as error:
        step = Step(problem=str(error))
    except (MemoryError, RuntimeError) as error:
        if "memory" not in str(error).lower():
            raise
        step = Step(problem="there is not enough memory for it.")
    sending.send(step)


def _step(name: str, kind: str) -> Step:
    settle()
    before = _peak_mib()
    content: dict[str, Any] = {
        "classes": ["a", "b"],
        "data": {"kind": "manifest", "image_size_px": IMAGE_SIZE_PX},
        "model": {"name": name},
        "training": {"epochs": 1},
    }
    if kind != PLAIN:
        content["privacy"] = {"engine": kind}
    study = parse(Study, content, where="models --probe")
    model, device = study_model(study), torch.device("cpu")
    module, examples = trained_part(model), _examples(model)

    def run() -> None:
        secret = RoundSecret.from_os()
        if kind == PLAIN:
            batch = len(examples.rows)
            train_plain(module, examples, study, batch_size=batch, secret=secret, device=device)
        else:
            train_private(module, examples, study, plan=_PLAN, secret=secret, device=device)

    run()  # torch and Opacus set themselves up in the first one
    started = time.process_time()
    run()
    return Step(seconds=time.process_time() - started, peak_mib=_peak_mib() - before)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB


_PLAN = PrivacyPlan(
    unit=Unit.PATIENT,
    noise_multiplier=1.0,
    sampling_rate=1.0,  # everybody, so that every probe has the same batch
    steps_per_round=1,
    rounds=1,
    max_grad_norm=1.0,
    images_per_patient=IMAGES,
    expected_patients=float(PATIENTS),
    delta=1e-5,
)


def _examples(model: Classifier) -> Examples:
    """Random pictures, or features where the encoder is frozen."""
    shape: tuple[int, ...] = (CHANNELS, IMAGE_SIZE_PX, IMAGE_SIZE_PX)
    if frozen_encoder(model) is not None:
        shape = feature_shape(model)
    count = PATIENTS * IMAGES
    inputs = np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)
    owners = np.arange(count) // IMAGES
    return Examples(
        inputs=Stored((inputs,)),
        labels=owners % 2,
        patients=owners.astype(np.str_),
        rows=np.arange(count),
    )
