"""What the engine `inline` costs beside the bare training it does: 8 sites, 10 rounds, FedAvg.

Both sides start from decoded data and run the same 10 rounds of one local epoch on 8 sites of 256
images 32x32 with `cnn-small`, batch 32, and must end with the same weights hash. The engine's side
is everything a run does besides: messages, checks, spool, average, checkpoints, history.
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from client.app import app as client_app
from client.cohort import Cohort
from common.compute import settle
from common.config import Study, parse
from common.models import pack, study_model, trained_layout, unpack, weights_sha256
from common.privacy.randomness import RoundSecret
from server.app import app as server_app
from server.checkpoint import last_checkpoint
from simulations.benchmarks.pairs import ratio
from simulations.engines.inline import run_inline
from simulations.runner import open_cohorts
from simulations.sites import simulated_sites

SITES, IMAGES, SIZE_PX, ROUNDS, BATCH = 8, 256, 32, 10, 32


def measure() -> dict[str, object]:
    """CPU-time ratio engine / bare loop, median of 9 interleaved pairs with its interval."""
    settle()
    with tempfile.TemporaryDirectory() as folder:
        study = _study(Path(folder))
        sites = simulated_sites(study)
        cohorts = open_cohorts(study, sites)
        hashes: dict[str, str] = {}

        def engine() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as out:
                config: dict[str, str | int] = {"study": study.canonical(), "fold": 0, "out": out}
                texts = {
                    name: site.model_copy(update={"state": Path(out) / name}).model_dump_json()
                    for name, site in sites.items()
                }
                run_inline(server_app, client_app, run_config=config, sites=texts)
                last = last_checkpoint(Path(out) / "checkpoints", study_sha256=study.sha256)
                assert last is not None
                hashes["engine"] = weights_sha256(last.weights, trained_layout(study_model(study)))

        def bare() -> None:
            hashes["bare"] = _bare(study, cohorts)

        found = ratio(engine, bare)
    if hashes["engine"] != hashes["bare"]:
        raise AssertionError("the bare loop reached other weights: it is no fair comparison")
    return {
        **found.as_json(),
        "sites": SITES,
        "images_per_site": IMAGES,
        "rounds": ROUNDS,
        "weights_sha256": hashes["bare"],
    }


def _bare(study: Study, cohorts: dict[str, Cohort]) -> str:
    """The same federation as one writes it by hand; returns the hash of the final weights."""
    model = study_model(study)
    layout = trained_layout(model)
    data = {
        name: (c.inputs.rows(np.arange(len(c.inputs))), torch.from_numpy(c.dataset.labels))
        for name, c in cohorts.items()
    }
    weights = pack(model)
    for round_number in range(1, ROUNDS + 1):
        total = np.zeros(layout.size)
        for name, (images, labels) in data.items():
            unpack(weights, model)
            secret = RoundSecret.seeded(
                study.seed,
                study_hash=study.sha256,
                fold=0,
                round_number=round_number,
                weights_sha256=weights_sha256(weights, layout),
                data_fingerprint=cohorts[name].dataset.fingerprint,
            )
            order = torch.from_numpy(secret.stream("shuffled epoch", 0).permutation(IMAGES))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
            for rows in torch.split(order, BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call] # torch ships it untyped
                optimizer.step()
            total += pack(model)
        weights = (total / SITES).astype(np.float32)
    return weights_sha256(weights, layout)


def _study(folder: Path) -> Study:
    """Random images of two classes: only the time counts."""
    generator = np.random.default_rng(0)
    with (folder / "manifest.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "patient", "site", "label", "split"])
        for site in range(SITES):
            for image in range(IMAGES):
                name = f"{site}-{image}.npy"
                np.save(folder / name, generator.normal(size=(SIZE_PX, SIZE_PX)).astype("f4"))
                table.writerow([name, name, f"site-{site}", f"c{image % 2}", "train"])
    content = {
        "classes": ["c0", "c1"],
        "data": {"kind": "manifest", "intensity": {"low": -3, "high": 3}},
        "training": {"rounds": ROUNDS, "batch_size": BATCH},
        "simulation": {
            "data": str(folder / "manifest.csv"),
            "site_defaults": {"release": {"metrics": []}},
        },
    }
    return parse(Study, content, where="benchmark")
