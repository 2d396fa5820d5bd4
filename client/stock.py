"""A site in Flower's own process (`flower-supernode`, or Flower's simulation): which one it is.

`--node-config 'site="/absolute/path/site.yaml"'` names the site's own settings. Everything that
reads them is then code that came with the study: the site's policy, ledger and receipts work as
they do in `fedward site run`, but nothing installed at the site makes sure of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context

from client.site import Site, open_site
from client.state import lock_state, note_sent_code, state_folder
from common.config import load_site
from common.errors import BadInput

_SIMULATED = "partition-id"  # Flower's simulation says this of each node


@contextmanager
def open_stock_site(context: Context) -> Iterator[Site]:
    """The records of the site that this process stands for, open for one message.

    Flower starts a process for each message, or lets any of a pool answer it, so that nothing may
    be remembered between two of them.

    Raises:
        BadInput: no site.yaml is named, it asks for signed instructions, or another process is at
            work on the site's records.
    """
    path = Path(_file(context))
    if not path.is_absolute():
        raise BadInput(
            "flower-supernode needs --node-config 'site=\"/absolute/path/site.yaml\"'; got "
            f"{str(path)!r}. Start it again with the path of this site's settings."
        )
    settings = load_site(path)
    if settings.link is not None:
        raise BadInput(
            f"{path.name}: link must not be set where Flower's own flower-supernode connects: it "
            "asks for instructions that the coordinator has signed, and here nobody signs them. "
            "Remove link to agree to that, or join by fedward site run."
        )
    state = state_folder(settings)
    with lock_state(state):
        note_sent_code(state)
        yield open_site(settings)


def _file(context: Context) -> str:
    """The site.yaml: the node's own word or, in a simulation on one machine, the run's."""
    said = str(context.node_config.get("site", ""))
    if said or _SIMULATED not in context.node_config:
        return said
    nodes = Path(str(context.run_config.get("out", ""))) / "nodes.json"
    try:
        return str(json.loads(nodes.read_bytes())[str(context.node_id)])
    except (ValueError, KeyError):
        raise BadInput(f"{nodes}: is damaged; start the simulation again.") from None
