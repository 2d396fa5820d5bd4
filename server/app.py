"""The ServerApp: read the run's configuration, run the rounds; nothing else."""

from __future__ import annotations

import json
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.compute import settle
from common.config import Study, parse
from common.models import pack, study_model, trained_layout
from server.exchange import Federation
from server.rounds import run_rounds

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one leg of a study on `grid`.

    The run's configuration holds `study` (canonical JSON), `fold`, `sites` (JSON: node id to
    name), `out` (the leg's folder) and, where sites are registered, their `receipts_keys` (JSON:
    name to key).
    """
    settle()
    config = context.run_config
    study = parse(Study, json.loads(str(config["study"])), where="study")
    model = study_model(study)
    federation = Federation(
        study=study,
        fold=int(str(config["fold"])),
        sites={int(node): name for node, name in json.loads(str(config["sites"])).items()},
        layout=trained_layout(model),
        out=Path(str(config["out"])),
        receipts_keys=json.loads(str(config.get("receipts_keys", "{}"))),
    )
    run_rounds(grid, federation, pack(model))
