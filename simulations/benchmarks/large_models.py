"""Whether large models fit: one private round of two simulated sites, and the memory it took.

Each model in a process of its own, on a small ILD phantom whose patches are enlarged to 64 px; what
counts is the peak of resident memory, data and server included. One patient at a time, since a
patient's images are more than the engine works on at once.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import simulations
from common.config import load_study
from common.models import study_model, trained_layout

MODELS = ("resnet50", "vit-base")
STUDY = Path(__file__).parents[1] / "studies" / "ild.yaml"
CHANGES = (
    "data.image_size_px=64",
    "data.stride_px=32",
    "training.rounds=1",
    "privacy.enabled=true",
    "privacy.steps_per_round=1",
    "privacy.images_per_patient=4",
    "privacy.learning_rate=0.01",
    "simulation.phantom.patients=12",
    "simulation.phantom.hospitals=2",
)


def measure() -> dict[str, object]:
    """Seconds, trained parameters and peak GiB of each model's round."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, object] = {}
    for model in MODELS:
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_round, args=(model, sending))
        process.start()
        sending.close()
        found[model] = receiving.recv()  # EOFError where the process died
        process.join()
    return found


def _round(model: str, sending: Connection) -> None:
    study = load_study(STUDY, [*CHANGES, f"model.name={model}"])
    with tempfile.TemporaryDirectory() as folder:
        result = simulations.run(study, out=Path(folder) / "run", baselines=False)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB
    sending.send(
        {
            "parameters": trained_layout(study_model(study)).size,
            "peak_gib": round(peak_kib / 2**20, 2),
            "seconds": round(result.seconds, 1),
        }
    )
