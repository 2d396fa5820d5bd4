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
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from flwr.app import Context, RecordDict, UserConfig

from common.config import Study, load_federation
from common.health import listening
from common.models import study_model
from server.app import app
from server.legs import (
    MODEL,
    REPLIES,
    check_folder,
    check_sites,
    ended,
    has_rounds_left,
    keep_study,
    legs_of,
    receipts_keys,
    write_model,
    write_result,
)
from server.link import RUN_ID, LinkGrid, open_link
from server.presence import at_work, tell

logger = logging.getLogger("fedward.server")
_ENGINE = "grpc"
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
    check_sites(study, found.enrolled, where=federation_file.name)
    study_model(study)  # an unknown model is refused before anybody waits
    check_folder(out, study)
    with at_work(out):
        if result := ended(out):
            return result
        legs = legs_of(study, out)
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
            keep_study(out, study)
            for fold, folder in legs.items():
                if not (folder / MODEL).is_file():
                    _train(grid, study, fold, out, federation_file)
            refused, late = grid.refused(), grid.late()
        return write_result(
            out,
            study,
            engine=_ENGINE,
            keys=receipts_keys(found),
            refused=refused,
            late=late,
            seconds=time.monotonic() - started,
        )


def _train(grid: LinkGrid, study: Study, fold: int, out: Path, federation_file: Path) -> None:
    """The rounds of one leg that are still to do, and its model."""
    found, folder = load_federation(federation_file), legs_of(study, out)[fold]
    folder.mkdir(parents=True, exist_ok=True)
    if has_rounds_left(folder, study):
        grid.wait_for_sites(
            study.federation.min_sites, timeout_s=found.wait_for_sites_s, tell=partial(tell, out)
        )
    keys = receipts_keys(found)
    config: UserConfig = {
        "study": study.canonical(),
        "fold": fold,
        "sites": json.dumps(grid.sites),
        "out": str(folder),
        "receipts_keys": json.dumps(keys),
        "approval_timeout_s": found.wait_for_sites_s,
    }
    app(grid, Context(RUN_ID, 1, {}, RecordDict(), config))
    write_model(folder, study, fold=fold, engine=_ENGINE, keys=keys)
