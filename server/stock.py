"""A whole study under Flower's own processes: what `flwr run -c run.toml` says, run to its result.

`flower-superlink` starts this in a process of its own, with the bundle that was submitted. Its
configuration, each value a text, each path absolute:

| key | what it is |
|---|---|
| `study` | study.yaml |
| `out` | the run directory; a run of the same study in it goes on |
| `federation` | federation.yaml: a site is whoever holds its node key |
| `site_files` | in Flower's simulation instead: a JSON list, the site.yaml of each node |

Flower's simulation gives its nodes ids that nobody knows before; which site each one plays is
written to `nodes.json` of the run directory, where `client/stock.py` reads it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flwr.app import UserConfig
from flwr.serverapp import Grid

from common.config import Study, load_federation, load_site, load_study
from common.errors import BadInput, RunFailed
from common.files import write_atomically
from common.models import study_model
from server.door import public_pem
from server.legs import (
    MODEL,
    check_folder,
    check_sites,
    ended,
    keep_study,
    legs_of,
    receipts_keys,
    train_leg,
    write_model,
    write_result,
)
from server.presence import Waiting, at_work, tell

logger = logging.getLogger("fedward.server")
_LOOK_S = 1.0
_NOT_ONLINE = "not online"


@dataclass(frozen=True, slots=True)
class _Sites:
    """Who takes part."""

    names: Mapping[int, str]  # by Flower's node id
    keys: Mapping[str, str]  # registered receipts keys, by name
    files: Mapping[int, str]  # the site.yaml of each node of a simulation
    engine: str
    approval_timeout_s: float = 0.0


def run_stock(grid: Grid, config: UserConfig) -> None:
    """Run a study with the nodes of Flower's own Grid; the same call again goes on where it was.

    Args:
        grid: the SuperLink's.
        config: see the table above.

    Raises:
        BadInput: anything a person can mend, before anything is written.
        RunFailed: too few sites, or the study could not go on.
    """
    started = time.monotonic()
    if not logging.getLogger("fedward").handlers:  # `flwr run --stream` shows what is said here
        logging.getLogger("fedward").addHandler(logging.StreamHandler())
        logging.getLogger("fedward").setLevel(logging.INFO)
    study, out = load_study(_path(config, "study")), _path(config, "out")
    study_model(study)  # an unknown model is refused before anybody waits
    check_folder(out, study)
    if ended(out):
        return
    with at_work(out):
        sites = (_simulated if config.get("site_files") else _registered)(grid, study, config)
        _run(grid, study, sites, out, started)


def _run(grid: Grid, study: Study, sites: _Sites, out: Path, started: float) -> None:
    """The legs that aren't done, and the result."""
    keep_study(out, study)
    if sites.files:
        write_atomically(out / "nodes.json", json.dumps(sites.files).encode())
    for fold, folder in legs_of(study, out).items():
        if not (folder / MODEL).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            train_leg(
                grid,
                study,
                fold=fold,
                out=folder,
                sites=sites.names,
                keys=sites.keys,
                approval_timeout_s=sites.approval_timeout_s,
            )
            write_model(folder, study, fold=fold, engine=sites.engine, keys=sites.keys)
    write_result(
        out,
        study,
        engine=sites.engine,
        keys=sites.keys,
        refused={},
        late={},
        seconds=time.monotonic() - started,
    )
    logger.info("the model and its report are in %s", out)


def _registered(grid: Grid, study: Study, config: UserConfig) -> _Sites:
    """Wait for all enrolled sites or, when the time is up, for as many as the study needs."""
    file, out = _path(config, "federation"), _path(config, "out")
    found = load_federation(file)
    check_sites(study, found.enrolled, where=file.name)
    keep_study(out, study)  # before the wait: it can be watched
    wanted = {public_pem(key): name for name, key in found.enrolled.items()}
    end, said = time.monotonic() + found.wait_for_sites_s, ""
    until = time.time() + found.wait_for_sites_s
    while True:
        here = {
            node.node_id: wanted[node.public_key]
            for node in grid.get_nodes()
            if node.public_key in wanted
        }
        away = sorted(set(wanted.values()) - set(here.values()))
        missing = ", ".join(away)
        if not missing or time.monotonic() > end:
            break
        if missing != said:
            logger.info("waiting for %s, at most %g s", missing, found.wait_for_sites_s)
            tell(out, Waiting(len(away), dict.fromkeys(away, _NOT_ONLINE), until))
            said = missing
        time.sleep(_LOOK_S)
    tell(out, None)
    if len(here) < study.federation.min_sites:
        raise RunFailed(
            f"{len(here)} of the {study.federation.min_sites} sites that the study needs are "
            f"online after {found.wait_for_sites_s:g} s; missing: {missing}. Ask them to start "
            "flower-supernode, then start the same run again."
        )
    return _Sites(here, receipts_keys(found), {}, "flower-superlink", found.wait_for_sites_s)


def _simulated(grid: Grid, study: Study, config: UserConfig) -> _Sites:
    """A site for each node of Flower's simulation."""
    files, nodes = _listed(config, "site_files"), sorted(grid.get_node_ids())
    names = [load_site(Path(file)).name for file in files]
    if len(nodes) != len(files) or len(set(names)) != len(files):
        raise BadInput(
            f"run configuration: site_files must name {len(nodes)} sites, one for each of "
            f"Flower's supernodes; got {', '.join(names)}. Mend it in run.toml, or run with "
            f"--federation-config num-supernodes={len(set(names))}."
        )
    check_sites(study, names, where="site_files")
    return _Sites(
        dict(zip(nodes, names, strict=True)),
        {},
        dict(zip(nodes, files, strict=True)),
        "flower-simulation",
    )


def _path(config: UserConfig, key: str) -> Path:
    path = Path(str(config.get(key, "")))
    if not path.is_absolute():
        raise BadInput(
            f"run configuration: {key} must be an absolute path, since Flower starts this in a "
            f"folder of its own; got {str(path)!r}. Mend it in run.toml."
        )
    return path


def _listed(config: UserConfig, key: str) -> list[str]:
    try:
        found = json.loads(str(config.get(key)))
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise BadInput(
            f"run configuration: {key} must be a JSON list of paths, in a text; got "
            f"{config.get(key)!r}. Mend it in run.toml."
        )
    return found
