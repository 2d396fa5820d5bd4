"""A run directory at the coordinator: its legs, the rounds and the model of one, the result."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from common.config import FederationFile, Study, load_study, to_yaml
from common.errors import BadInput
from common.files import write_atomically
from common.models import pack, save, study_model, trained_layout
from server.checkpoint import last_checkpoint
from server.exchange import Federation
from server.result import result_of
from server.rounds import run_rounds

logger = logging.getLogger("fedward.server")
REPLIES = "replies"  # below the run directory: what is on its way over the link
MODEL = "model.safetensors"  # in a leg's folder, once it is done
_STUDY, _RESULT = "study.yaml", "result.json"


def legs_of(study: Study, out: Path) -> dict[int, Path]:
    """Each fold's folder; a study without folds has one leg, the run directory itself."""
    if study.data.folds is None:
        return {0: out}
    return {fold: out / "folds" / str(fold) for fold in range(1, study.data.folds + 1)}


def receipts_keys(found: FederationFile) -> dict[str, str]:
    """The registered ones (Ed25519, hexadecimal), by site."""
    return {name: one.receipts_key for name, one in found.sites.items() if one.receipts_key}


def check_sites(study: Study, sites: Collection[str], *, where: str) -> None:
    """Raise BadInput where the study names others, or needs more, than the sites of `where`."""
    unknown = sorted(set(study.federation.weights) - set(sites))
    if unknown:
        raise BadInput(
            f"federation.weights may name {', '.join(sorted(sites))}, the sites of "
            f"{where}; got {', '.join(unknown)}. Mend the name or remove it."
        )
    if len(sites) < study.federation.min_sites:
        raise BadInput(
            f"federation.min_sites must be at most {len(sites)}, the number of sites in "
            f"{where}; got {study.federation.min_sites}. Enrol more, or lower it."
        )


def check_folder(out: Path, study: Study) -> None:
    """Raise BadInput where a run directory is of another study, or of something else."""
    there = out / _STUDY
    try:
        if there.is_file():
            if load_study(there).sha256 != study.sha256:
                raise BadInput(
                    f"--out {out}: holds a run of another study (its study.yaml differs); "
                    "name another --out."
                )
            return
        out.mkdir(parents=True, exist_ok=True)
        if any(path.name != REPLIES for path in out.iterdir()):  # a kill may have left that
            raise BadInput(f"--out {out}: is no empty folder; name another --out.")
    except OSError as error:
        raise BadInput(
            f"--out {out}: can't be used ({error.strerror}); name a folder that can be written."
        ) from None


def ended(out: Path) -> dict[str, Any] | None:
    """The result of a study that has ended, which stays as it is."""
    if not (out / _RESULT).is_file():
        return None
    logger.info("this study has ended; its result stays as it is")
    return dict(json.loads((out / _RESULT).read_bytes()))


def keep_study(out: Path, study: Study) -> None:
    """Write the study as resolved, unless an earlier start has."""
    if not (out / _STUDY).is_file():
        write_atomically(out / _STUDY, to_yaml(study).encode())


def has_rounds_left(folder: Path, study: Study) -> bool:
    """Whether a leg still has anything to train."""
    last = last_checkpoint(folder / "checkpoints", study_sha256=study.sha256)
    return last is None or last.round_number < study.training.rounds


def train_leg(
    grid: Grid,
    study: Study,
    *,
    fold: int,
    out: Path,
    sites: Mapping[int, str],
    keys: Mapping[str, str],
    approval_timeout_s: float,
) -> None:
    """The rounds of one leg that are still to do, with the sites of `grid`.

    Args:
        grid: how to reach them.
        study: the study.
        fold: 0 where the study has one split.
        out: the leg's folder.
        sites: their names by Flower's node id.
        keys: their registered receipts keys, by name.
        approval_timeout_s: how long a round waits for stewards who haven't decided.

    Raises:
        RunFailed: a round had too few accepted replies.
    """
    model = study_model(study)
    federation = Federation(
        study, fold, sites, trained_layout(model), out, keys, approval_timeout_s
    )
    run_rounds(grid, federation, pack(model))


def write_model(
    folder: Path, study: Study, *, fold: int, engine: str, keys: Mapping[str, str]
) -> None:
    """The model of a leg whose rounds are done, with what its sites have stated on privacy."""
    last = last_checkpoint(folder / "checkpoints", study_sha256=study.sha256)
    assert last is not None  # a leg that ends well has at least one round
    result = result_of(
        study, {fold: folder}, engine=engine, receipts_keys=keys, refused={}, late={}, seconds=0.0
    )
    save(folder / MODEL, last.weights, study=study, fold=fold, privacy=result.privacy())


def write_result(
    out: Path,
    study: Study,
    *,
    engine: str,
    keys: Mapping[str, str],
    refused: Mapping[tuple[str, str], int],
    late: Mapping[str, int],
    seconds: float,
) -> dict[str, Any]:
    """Write report.html and, last, result.json of a study whose legs are done; returns that."""
    result = result_of(
        study,
        legs_of(study, out),
        engine=engine,
        receipts_keys=keys,
        refused=refused,
        late=late,
        seconds=seconds,
    )
    content = result.as_json()
    write_atomically(out / "report.html", result.page().encode())
    write_atomically(out / _RESULT, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
    return content
