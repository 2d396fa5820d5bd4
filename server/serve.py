"""One study over the link: wait for its sites, run its legs, write its models and its result."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict, UserConfig

from common.config import Study, load_federation, load_study, to_yaml
from common.errors import BadInput
from common.files import write_atomically
from common.models import save, study_model
from server.app import app
from server.checkpoint import last_checkpoint, read_history
from server.link import RUN_ID, LinkGrid, open_link

logger = logging.getLogger("fedward.server")


def serve(study: Study, federation_file: Path, *, out: Path) -> dict[str, Any]:
    """Run a study with the federation's sites; the same call again goes on where it was.

    Args:
        study: see `common.config.load_study`.
        federation_file: federation.yaml.
        out: the run directory; a run of the same study in it goes on.

    Returns:
        The result, as it is written to `result.json`.

    Raises:
        BadInput: anything a person can mend, before anything is written.
        RunFailed: too few sites, or the study could not go on.
    """
    started = time.monotonic()
    _check(study, set(load_federation(federation_file).enrolled), federation_file)
    study_model(study)  # an unknown model is refused before anybody waits
    _open_folder(out, study)
    legs = _legs(study, out)
    with open_link(federation_file, folder=out / "replies") as grid:
        for fold, folder in legs.items():
            if not (folder / "model.safetensors").is_file():
                grid.wait_for_sites(
                    study.federation.min_sites,
                    timeout_s=load_federation(federation_file).wait_for_sites_s,
                )
                _train(grid, study, fold, folder)
    result = _result(study, legs, seconds=time.monotonic() - started)
    _write_json(out / "result.json", result)
    return result


def _train(grid: LinkGrid, study: Study, fold: int, folder: Path) -> None:
    """The rounds of one leg, and its model."""
    folder.mkdir(parents=True, exist_ok=True)
    config: UserConfig = {
        "study": study.canonical(),
        "fold": fold,
        "sites": json.dumps(grid.sites),
        "out": str(folder),
    }
    app(grid, Context(RUN_ID, 1, {}, RecordDict(), config))
    last = last_checkpoint(folder / "checkpoints", study_sha256=study.sha256)
    assert last is not None  # a leg that ends well has at least one round
    save(
        folder / "model.safetensors",
        last.weights,
        study=study,
        fold=fold,
        privacy=_statement(study),
    )


def _statement(study: Study) -> dict[str, Any]:
    """What the coordinator itself knows about privacy; the sites' signed statements say it."""
    if not study.privacy.enabled:
        return {"sentence": "none: trained without differential privacy"}
    return {"sentence": "as the sites' own signed statements say; the coordinator promises nothing"}


def _legs(study: Study, out: Path) -> dict[int, Path]:
    """Each fold's folder; a study without folds has one leg, the run directory itself."""
    if study.data.folds is None:
        return {0: out}
    return {fold: out / "folds" / str(fold) for fold in range(1, study.data.folds + 1)}


def _check(study: Study, sites: set[str], federation_file: Path) -> None:
    unknown = sorted(set(study.federation.weights) - sites)
    if unknown:
        raise BadInput(
            f"federation.weights may name {', '.join(sorted(sites))}, the sites of "
            f"{federation_file.name}; got {', '.join(unknown)}. Mend the name or remove it."
        )
    if len(sites) < study.federation.min_sites:
        raise BadInput(
            f"federation.min_sites must be at most {len(sites)}, the number of sites in "
            f"{federation_file.name}; got {study.federation.min_sites}. Enrol more, or lower it."
        )


def _open_folder(out: Path, study: Study) -> None:
    """Make the run directory, or check that the run in it is of this very study."""
    there = out / "study.yaml"
    try:
        if there.is_file():
            if load_study(there).sha256 != study.sha256:
                raise BadInput(
                    f"--out {out}: holds a run of another study (its study.yaml differs); "
                    "name another --out."
                )
            return
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise BadInput(f"--out {out}: is no empty folder; name another --out.")
        write_atomically(there, to_yaml(study).encode())
    except OSError as error:
        raise BadInput(
            f"--out {out}: can't be used ({error.strerror}); name a folder that can be written."
        ) from None


def _result(study: Study, legs: dict[int, Path], *, seconds: float) -> dict[str, Any]:
    """What the coordinator knows at the end; metrics are those that sites release."""
    histories = [read_history(folder / "history.jsonl") for folder in legs.values()]
    lines = [line for history in histories for line in history]
    joined = [site for line in lines for site in line.get("joined", [])]
    return {
        "study": study.name,
        "study_sha256": study.sha256,
        "engine": "grpc",
        "rounds": study.training.rounds,
        "seed": study.seed,
        "weights_sha256": _joint_hash([history[-1]["weights_sha256"] for history in histories]),
        "seconds": round(seconds, 3),
        "bytes_up": sum(line["bytes_up"] for line in lines),
        "bytes_down": sum(line["bytes_down"] for line in lines),
        "versions": {name: version(name) for name in ("flwr", "grpcio", "torch")},
        "privacy": {"enabled": study.privacy.enabled, **_statement(study)},
        "sites": {site: {"rounds_joined": joined.count(site)} for site in sorted(set(joined))},
        "closing": [history[-1]["metrics"] for history in histories],
    }


def _joint_hash(hashes: list[str]) -> str:
    """The one model's hash, or a hash over the folds' in order, as a simulation gives it."""
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
