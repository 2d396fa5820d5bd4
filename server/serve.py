"""One study over the link: wait for its sites, run its legs, write its models and its result.

result.json is written last: where it is, the study has ended and stays as it is.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from flwr.app import Context, RecordDict, UserConfig

from common.config import FederationFile, Study, load_federation, load_study, to_yaml
from common.errors import BadInput
from common.files import write_atomically
from common.health import listening
from common.models import save, study_model
from server.app import app
from server.checkpoint import last_checkpoint
from server.link import RUN_ID, LinkGrid, open_link
from server.result import result_of
from server.rounds import NotYetApproved

logger = logging.getLogger("fedward.server")
_ASK_AGAIN_S = 10.0  # each time the site signs a receipt for its refusal
REPLIES = "replies"  # below the run directory: what is on its way
Handler = Callable[[int, FrameType | None], object] | signal.Handlers


@contextmanager
def _signals(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """These handlers while the block runs."""
    if threading.current_thread() is not threading.main_thread():  # Python allows no other
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# A pause that comes too early or too late does nothing; by default it would end the process.
@_signals({signal.SIGUSR1: signal.SIG_IGN, signal.SIGUSR2: signal.SIG_IGN})
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
    found = load_federation(federation_file)
    _check(study, set(found.enrolled), federation_file)
    study_model(study)  # an unknown model is refused before anybody waits
    _check_folder(out, study)
    ended = out / "result.json"
    if ended.is_file():
        logger.info("this study has ended; its result stays as it is")
        return dict(json.loads(ended.read_bytes()))
    legs = _legs(study, out)
    with (
        open_link(federation_file, folder=out / REPLIES) as grid,
        listening(found.health_port, grid.health),
        _signals(
            {
                signal.SIGUSR1: lambda *_: grid.pause(),
                signal.SIGUSR2: lambda *_: grid.go_on(),
            }
        ),
    ):
        if not (out / "study.yaml").is_file():
            write_atomically(out / "study.yaml", to_yaml(study).encode())
        for fold, folder in legs.items():
            if not (folder / "model.safetensors").is_file():
                _train(grid, study, fold, folder, federation_file)
        refused, late = grid.refused(), grid.late()
    result = result_of(
        study,
        legs,
        receipts_keys=_receipts_keys(found),
        refused=refused,
        late=late,
        seconds=time.monotonic() - started,
    )
    content = result.as_json()
    write_atomically(out / "report.html", result.page().encode())
    write_atomically(ended, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
    return content


def _train(grid: LinkGrid, study: Study, fold: int, folder: Path, federation_file: Path) -> None:
    """The rounds of one leg that are still to do, and its model."""
    found = load_federation(federation_file)
    folder.mkdir(parents=True, exist_ok=True)
    last = last_checkpoint(folder / "checkpoints", study_sha256=study.sha256)
    if last is None or last.round_number < study.training.rounds:
        grid.wait_for_sites(study.federation.min_sites, timeout_s=found.wait_for_sites_s)
    del last  # a whole model
    keys = _receipts_keys(found)
    config: UserConfig = {
        "study": study.canonical(),
        "fold": fold,
        "sites": json.dumps(grid.sites),
        "out": str(folder),
        "receipts_keys": json.dumps(keys),
    }
    _until_approved(
        lambda: app(grid, Context(RUN_ID, 1, {}, RecordDict(), config)), found.wait_for_sites_s
    )
    ended = last_checkpoint(folder / "checkpoints", study_sha256=study.sha256)
    assert ended is not None  # a leg that ends well has at least one round
    result = result_of(study, {fold: folder}, receipts_keys=keys, refused={}, late={}, seconds=0.0)
    stated = result.privacy()
    save(folder / "model.safetensors", ended.weights, study=study, fold=fold, privacy=stated)


def _until_approved(run: Callable[[], None], timeout_s: float) -> None:
    """Run again and again while only sites' approval is missing.

    A site that has approved answers the same round with the same bytes, and isn't charged twice.
    """
    waited_s = 0.0
    while True:
        try:
            return run()
        except NotYetApproved as error:
            if waited_s >= timeout_s:
                raise
            logger.info("waiting for sites to approve the study: %s", error)
        time.sleep(_ASK_AGAIN_S)
        waited_s += _ASK_AGAIN_S


def _receipts_keys(found: FederationFile) -> dict[str, str]:
    """The registered ones, by site."""
    return {name: one.receipts_key for name, one in found.sites.items() if one.receipts_key}


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


def _check_folder(out: Path, study: Study) -> None:
    """Refuse a run directory that is of another study, or of something else."""
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
        if any(path.name != REPLIES for path in out.iterdir()):  # a kill may have left that
            raise BadInput(f"--out {out}: is no empty folder; name another --out.")
    except OSError as error:
        raise BadInput(
            f"--out {out}: can't be used ({error.strerror}); name a folder that can be written."
        ) from None
