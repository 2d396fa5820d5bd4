"""What a private step costs beside a plain SGD step of the same model on the same batch.

CPU time on one thread, in interleaved pairs. A private step is whole: forward, clipped sum, noise,
divisor, update. `plain+noise` is the control: a plain step and the same noise. Opacus' own modes
know images only; `hooks` stands for them per patient as well, by our engine `opacus`.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from common.compute import keep_freed_memory, settle
from common.models import Shape, build_model
from common.privacy.noise import Noise, secret_noise, seeded_noise
from common.privacy.patient_sgd import Engine, private_steps
from simulations.benchmarks.pairs import ratio

Step: TypeAlias = Callable[[], None]

KEY = bytes(range(32))  # public: only the time counts
SIGMA, C, RATE = 1.0, 1.0, 1e-6  # a rate that leaves the model what it is


@dataclass(frozen=True, slots=True)
class Case:
    """A model, its images, and how many of them are one unit."""

    model: str
    image_size_px: int
    batch: int
    unit: int

    def __str__(self) -> str:
        unit = "image" if self.unit == 1 else f"patient of {self.unit} images"
        return f"{self.model}, {self.image_size_px} px, batch {self.batch}, per {unit}"


CASES = tuple(
    Case(model, image_size_px, batch, unit)
    for model, image_size_px, batch in (
        ("cnn-small", 32, 64),
        ("resnet18", 64, 16),
        ("resnet18", 64, 64),
        ("vit-tiny", 32, 64),
    )
    for unit in (1, 4)
)


def measure(cases: tuple[Case, ...] = CASES) -> dict[str, object]:
    """Ratios of medians of 9 pairs; peak memory of a step above what it starts from."""
    settle()
    keep_freed_memory()
    return {"cases": [_measure(case) for case in cases]}


def _measure(case: Case) -> dict[str, object]:
    builders: dict[str, Callable[[Case, ExitStack], Step]] = {
        "plain+noise": lambda case, _: _plain(case, seeded_noise(KEY)),
        "fast": lambda case, stack: _ours(case, "fast", seeded_noise(KEY), stack),
        "hooks": lambda case, stack: _ours(case, "opacus", seeded_noise(KEY), stack),
    }
    if case.unit == 1:
        builders |= {mode: _opacus(mode) for mode in ("ghost", "functorch", "ew")}
    deployed: dict[str, Callable[[Case, ExitStack], Step]] = {
        "plain+noise": lambda case, _: _plain(case, secret_noise(KEY)),
        "fast": lambda case, stack: _ours(case, "fast", secret_noise(KEY), stack),
    }
    return {
        "case": str(case),
        "ratios": {name: _ratio(case, build) for name, build in builders.items()},
        "ratios_deployment_noise": {name: _ratio(case, build) for name, build in deployed.items()},
        "peak_mb": {
            name: _peak_mb(case, build)
            for name, build in {"plain": lambda case, _: _plain(case), **builders}.items()
        },
    }


def _ratio(case: Case, build: Callable[[Case, ExitStack], Step]) -> dict[str, float | int] | str:
    """Beside a plain step; or why there is none."""
    try:
        with warnings.catch_warnings(), ExitStack() as stack:
            warnings.simplefilter("ignore")
            return ratio(build(case, stack), _plain(case)).as_json()
    except Exception as error:  # a mode of Opacus' that can't do this model is a result, too
        return f"fails: {type(error).__name__}: {str(error)[:100]}"


def _batch(case: Case) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """The model and generated images of two classes."""
    model = build_model(case.model, Shape(2, 1, case.image_size_px), seed=0).train()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(case.batch, 1, *[case.image_size_px] * 2, generator=generator)
    return model, images, torch.arange(case.batch) % 2


def _plain(case: Case, noise: Noise | None = None) -> Step:
    model, images, targets = _batch(case)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model(images), targets).backward()  # type: ignore[no-untyped-call] # torch ships it untyped
        if noise is not None:
            for parameter in model.parameters():
                assert parameter.grad is not None
                noise(parameter.grad, std=SIGMA * C)
        optimizer.step()

    return step


def _ours(case: Case, engine: Engine, noise: Noise, stack: ExitStack) -> Step:
    model, images, targets = _batch(case)
    units = tuple(np.split(np.arange(case.batch), case.batch // case.unit))
    step = stack.enter_context(
        private_steps(
            model,
            torch.optim.SGD(model.parameters(), lr=RATE),
            examples=lambda rows: (images[rows], targets[rows]),
            loss=nn.CrossEntropyLoss(reduction="none"),
            max_grad_norm=C,
            noise_multiplier=SIGMA,
            expected_patients=len(units),
            noise=noise,
            max_images_at_once=case.batch,
            engine=engine,
        )
    )
    return lambda: step(units)


def _opacus(mode: str) -> Callable[[Case, ExitStack], Step]:
    """Bare Opacus, by image, with its own noise."""

    def build(case: Case, _: ExitStack) -> Step:
        from opacus import PrivacyEngine

        model, images, targets = _batch(case)
        data = torch.utils.data.TensorDataset(images, targets)
        made: tuple[Any, ...] = PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=RATE),
            criterion=nn.CrossEntropyLoss(),
            data_loader=torch.utils.data.DataLoader(data, batch_size=case.batch),
            noise_multiplier=SIGMA,
            max_grad_norm=C,
            poisson_sampling=False,
            grad_sample_mode=mode,
        )
        private, optimizer = made[:2]
        criterion = made[2] if mode == "ghost" else nn.CrossEntropyLoss()

        def step() -> None:
            optimizer.zero_grad()
            criterion(private(images), targets).backward()
            optimizer.step()

        return step

    return build


def _peak_mb(case: Case, build: Callable[[Case, ExitStack], Step]) -> float | str:
    """Of two steps in a child process, above what is there before; or why there is none."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            answer: float | str = _peak_here(case, build)
        except Exception as error:
            answer = f"fails: {type(error).__name__}"
        os.write(writing, pickle.dumps(answer))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    os.waitpid(child, 0)
    found: float | str = pickle.loads(content)  # from our own child
    return found


def _peak_here(case: Case, build: Callable[[Case, ExitStack], Step]) -> float:
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")
        step = build(case, stack)
        ctypes.CDLL(None).malloc_trim(0)  # what earlier steps left to this process is no part of it
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # forget the peak so far
        before = _status_mb("VmRSS")
        step()
        step()
        return round(_status_mb("VmHWM") - before, 1)


def _status_mb(key: str) -> float:
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith(key))
    return int(line.split()[1]) / 1024
