"""The README's tables: PA or AP view on real chest X-rays of four sites, with and without privacy.

Needs the images (FEDWARD_SHARED_DATA, or ../shared/data beside the repository); resumable: what is
in runs/benchmark-chest-xray is not run again.
"""

from __future__ import annotations

import os
from pathlib import Path

import simulations
from common.config import Study, load_study
from common.errors import BadInput
from common.report import data_names, models_table
from common.report.text import format_cell

ROOT = Path(__file__).parents[2]
OUT = Path("runs") / "benchmark-chest-xray"
SMALL = ("model.name=cnn-small", "data.image_size_px=64", "training.learning_rate=0.01")
PRIVATE = ("privacy.enabled=true",)
RUNS = {
    "frozen": (),
    "cnn-small": SMALL,
    "frozen-private": PRIVATE,
    "cnn-small-private": (*SMALL, *PRIVATE, "privacy.learning_rate=0.1"),
}


def measure() -> dict[str, object]:
    """Each run's table in Markdown, its weights hash, seconds and site epsilons."""
    return {name: _run(name, _study(changes)) for name, changes in RUNS.items()}


def _study(changes: tuple[str, ...]) -> Study:
    shared = Path(os.environ.get("FEDWARD_SHARED_DATA") or ROOT.parent / "shared" / "data")
    manifest = shared / "chest-xray-4-sites" / "manifest.csv"
    if not manifest.is_file():
        raise BadInput(f"{manifest}: is not there; set FEDWARD_SHARED_DATA to the folder above it.")
    data = (f"simulation.data={manifest.absolute()}",)
    return load_study(ROOT / "simulations" / "studies" / "chest-xray.yaml", [*data, *changes])


def _run(name: str, study: Study) -> dict[str, object]:
    out = OUT / name
    result = simulations.run(study, out=out, resume=(out / "study.yaml").is_file())
    content = result.as_json()
    table = models_table(result.evaluation, data_names(result.evaluation))
    lines = ["| " + " | ".join(table.header) + " |", "|---" * len(table.header) + "|"]
    lines += [
        "| " + " | ".join([model, *(format_cell(cell) for cell in cells)]) + " |"
        for model, cells in table.rows
    ]
    lines += [f"[{number}] {note}" for number, note in enumerate(table.notes, 1)]
    return {
        "table": "\n".join(lines),
        "comparisons": content["comparisons"],
        "seconds": content["seconds"],
        "weights_sha256": content["weights_sha256"],
        "privacy": {site: found["statement"] for site, found in content["sites"].items()},
    }
