"""The ServerApp: read the run's configuration, run the rounds; nothing else."""

from __future__ import annotations

import json
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.compute import settle
from common.config import Study, parse
from server.legs import train_leg
from server.stock import run_stock

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one leg of a study on `grid`; under `flwr run`, a whole study (`server/stock.py`).

    The run's configuration holds `study` (canonical JSON), `fold`, `sites` (JSON: node id to
    name), `out` (the leg's folder) and, where sites are registered, their `receipts_keys` (JSON:
    name to key) and `approval_timeout_s`.
    """
    settle()
    config = context.run_config
    study = str(config["study"])
    if not study.startswith("{"):  # no JSON: the path of a study.yaml, or nothing
        run_stock(grid, config)
        return
    train_leg(
        grid,
        parse(Study, json.loads(study), where="study"),
        fold=int(str(config["fold"])),
        out=Path(str(config["out"])),
        sites={int(node): name for node, name in json.loads(str(config["sites"])).items()},
        keys=json.loads(str(config.get("receipts_keys", "{}"))),
        approval_timeout_s=float(str(config.get("approval_timeout_s", 0.0))),
    )
