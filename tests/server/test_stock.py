"""A study as `flwr run` starts it, on a Grid in this process: what it reads, refuses and writes."""

from __future__ import annotations

import datetime
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity

import server.rounds
import simulations
from client.app import app as client_app
from client.state import lock_state, trust_model
from client.stock import open_stock_site
from common.config import load_federation, load_study, to_yaml
from common.errors import REFUSAL_SENTENCES, BadInput, RefusalCode, RunFailed
from common.privacy.epsilon import TrustModel
from server.app import app
from server.checkpoint import read_history
from server.door import public_pem
from server.federation import revoke
from server.presence import Waiting, at_work
from server.watch import read_view
from simulations.engines.inline import InlineGrid
from simulations.trial import make_trial

NODES = {7: "east", 5: "north", 9: "west"}
SETTINGS = (
    "data: {data}\ndeclared_patients: 10\nrandomness: seeded-for-testing\n"
    "policy: {{approval: automatic, privacy: optional, min_patients: 1}}\n"
    "release: {{metrics: [loss, accuracy]}}\n"
)


@pytest.fixture(autouse=True)
def _in_a_flower_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages can only be made by somebody."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def sites(tiny: Path) -> dict[str, Path]:
    """Three enrolled sites with settings that name no link; federation.yaml is beside them."""
    file = tiny / "federation.yaml"
    file.write_text("wait_for_sites_s: 0.5\nsites:\n  east:\n  north:\n  west:\n")
    paths = {
        path.parent.name: path for path in make_trial(file, now=datetime.datetime.now(datetime.UTC))
    }
    for name, path in paths.items():
        settings = SETTINGS.format(data=tiny / "manifest.csv")
        path.write_text(f"name: {name}\nstate: state\n{settings}")
    return paths


@pytest.fixture
def config(tiny: Path, sites: dict[str, Path]) -> dict[str, str]:
    """What run.toml says."""
    assert len(sites) == len(NODES)
    return {
        "study": str(tiny / "study.yaml"),
        "out": str(tiny / "run"),
        "federation": str(tiny / "federation.yaml"),
        "site_files": "",
    }


class StockGrid(InlineGrid):
    """Flower's own processes, as the apps see them: nodes with their keys and configurations."""

    def __init__(self, node_configs: dict[int, dict[str, str]], run: dict[str, str]) -> None:
        super().__init__(client_app, node_configs)
        self.keys: dict[int, bytes] = {}
        for context in self._contexts.values():
            context.run_config = dict(run)

    def get_nodes(self) -> list[NodeInfo]:
        """Those that are online, as a SuperLink knows them."""
        return [
            NodeInfo(node_id=node, public_key=self.keys.get(node, b"")) for node in self._contexts
        ]


def flwr_run(config: dict[str, str], node_configs: dict[int, dict[str, str]]) -> None:
    """What `flwr run` comes to."""
    grid = StockGrid(node_configs, config)
    if config["federation"]:
        found = load_federation(Path(config["federation"])).sites
        grid.keys = {node: public_pem(found[name].node_key or "") for node, name in NODES.items()}
    app(grid, Context(1, 1, {}, RecordDict(), dict(config)))


def supernodes(sites: dict[str, Path]) -> dict[int, dict[str, str]]:
    """Each node's --node-config."""
    return {node: {"site": str(sites[name])} for node, name in NODES.items()}


@pytest.mark.usefixtures("no_report")
def test_a_run_is_the_simulation(
    tiny: Path, sites: dict[str, Path], config: dict[str, str]
) -> None:
    """A model a fold, statements and result are there, and the weights are a simulation's."""
    changes = ["data.folds=2", "simulation.site_defaults.declared_patients=10"]
    study = load_study(tiny / "study.yaml", changes)
    (tiny / "study.yaml").write_text(to_yaml(study))
    flwr_run(config, supernodes(sites))
    result = json.loads((tiny / "run" / "result.json").read_text())
    expected = simulations.run(study, out=tiny / "inline", baselines=False)
    assert result["weights_sha256"] == expected.weights_sha256
    assert result["engine"] == "flower-superlink"
    assert all(site["stated"] for site in result["sites"].values())
    models = sorted((tiny / "run").rglob("model.safetensors"))
    assert len(models) == 2
    assert "flower-superlink" in (tiny / "run" / "report.html").read_text()


def test_the_same_run_again_goes_on(
    tiny: Path, sites: dict[str, Path], config: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ended too early goes on at its round, and one that is done isn't done again."""
    rounds: list[int] = []
    average = server.rounds.write_checkpoint

    def once(folder: Path, state: Any, *, study_sha256: str) -> None:
        average(folder, state, study_sha256=study_sha256)
        rounds.append(state.round_number)
        if rounds == [1]:
            raise RunFailed("killed")

    monkeypatch.setattr(server.rounds, "write_checkpoint", once)
    with pytest.raises(RunFailed, match="killed"):
        flwr_run(config, supernodes(sites))
    assert not (tiny / "run" / "model.safetensors").exists()
    for _ in range(2):
        flwr_run(config, supernodes(sites))
    assert rounds == [1, 2]


def test_flowers_simulation_gives_each_node_a_site(
    tiny: Path, sites: dict[str, Path], config: dict[str, str]
) -> None:
    """Nodes with ids that nobody knew before each play one of the run's sites."""
    config |= {
        "federation": "",
        "site_files": json.dumps(list(map(str, sites.values()))),
    }
    nodes = {node: {"partition-id": str(i), "num-partitions": "3"} for i, node in enumerate(NODES)}
    flwr_run(config, nodes)
    result = json.loads((tiny / "run" / "result.json").read_text())
    assert {name: site["rounds_joined"] for name, site in result["sites"].items()} == dict.fromkeys(
        sites, 2
    )
    config["out"] = str(tiny / "another")
    with pytest.raises(BadInput, match="must name 2 sites"):
        flwr_run(config, dict(list(nodes.items())[:2]))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("study", "", "study must be an absolute path"),
        ("out", "run", "out must be an absolute path"),
        ("federation", "", "federation must be an absolute path"),
        ("site_files", "{}", "must be a JSON list"),
        ("site_files", "[1]", "must be a JSON list"),
        ("site_files", "north", "must be a JSON list"),
    ],
)
def test_what_run_toml_says_wrong_is_refused_first(
    tiny: Path, sites: dict[str, Path], config: dict[str, str], key: str, value: str, said: str
) -> None:
    """A path that isn't absolute, sites that are none: nothing is begun."""
    app_config = config | {key: value}
    with pytest.raises(BadInput, match=said):
        app(StockGrid({}, app_config), Context(1, 1, {}, RecordDict(), dict(app_config)))
    assert not list((tiny / "run").glob("*"))


def test_who_is_enrolled_takes_part_and_nobody_else(
    tiny: Path, sites: dict[str, Path], config: dict[str, str]
) -> None:
    """A node whose key is revoked in federation.yaml, or was never in it, is asked nothing."""
    revoke(tiny / "federation.yaml", "east")
    flwr_run(config, supernodes(sites) | {11: {"site": str(sites["east"])}})
    result = json.loads((tiny / "run" / "result.json").read_text())
    assert set(result["sites"]) == {"north", "west"}


@pytest.mark.parametrize("wanted", [2, 3])
def test_a_site_that_is_not_online_is_waited_for(
    sites: dict[str, Path],
    config: dict[str, str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    wanted: int,
) -> None:
    """After the time given the run goes on with enough of the sites, or ends in words.

    Meanwhile whoever watches is told.
    """
    Path(config["study"]).write_text(
        Path(config["study"]).read_text() + f"federation: {{min_sites: {wanted}}}"
    )
    caplog.set_level("INFO", logger="fedward.server")
    said: list[Waiting | None] = []

    def tell(run_dir: Path, waiting: Waiting | None) -> None:
        assert read_view(run_dir).at_work
        said.append(waiting)

    monkeypatch.setattr(server.stock, "tell", tell)
    nodes = {node: said for node, said in supernodes(sites).items() if node != 9}
    expectation = pytest.raises(RunFailed, match=r"2 of the 3 sites.*missing: west")
    with expectation if wanted == 3 else nullcontext():
        flwr_run(config, nodes)
    assert "waiting for west" in caplog.text
    waiting, over = said
    assert waiting is not None
    assert (waiting.missing, waiting.sites, over) == (1, {"west": "not online"}, None)
    assert (Path(config["out"]) / "result.json").is_file() == (wanted == 2)


@pytest.mark.parametrize("fault", ["none", "relative", "link", "busy"])
def test_a_site_that_can_not_begin_says_why_at_home(
    sites: dict[str, Path], config: dict[str, str], caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """No settings, settings that ask for signatures, records in use: the server gets a code."""
    nodes, east = supernodes(sites), sites["east"]
    said = {
        "none": "needs --node-config",
        "relative": "needs --node-config",
        "link": "link must not be set",
        "busy": "another process",
    }[fault]
    if fault in ("none", "relative"):
        nodes[7] = {} if fault == "none" else {"site": "site.yaml"}
    if fault == "link":
        east.write_text(east.read_text() + "link: {server: 'localhost:9092'}\n")
    with lock_state(east.parent / "state") if fault == "busy" else nullcontext():
        flwr_run(config, nodes)
    history = read_history(Path(config["out"]) / "history.jsonl")
    assert all(
        REFUSAL_SENTENCES[RefusalCode.RECORDS_DAMAGED] in one["left_out"]["east"] for one in history
    )
    assert said in caplog.text
    assert all("north" not in one["left_out"] for one in history)


def test_a_promise_says_whose_code_gives_it(sites: dict[str, Path]) -> None:
    """What a site states here holds only where the sender of its code is trusted."""
    context = Context(1, 7, {"site": str(sites["east"])}, RecordDict(), {})
    with open_stock_site(context) as site:
        assert trust_model(site.settings.state) is TrustModel.SENT
    assert trust_model(site.settings.state) is TrustModel.SENT, "once sent code was here"


def test_two_runs_never_share_a_run_directory(
    sites: dict[str, Path], config: dict[str, str]
) -> None:
    """The second is told so at once; it writes nothing, and the first isn't disturbed."""
    Path(config["out"]).mkdir()
    with (
        at_work(Path(config["out"])),
        pytest.raises(BadInput, match="another process is at work"),
    ):
        flwr_run(config, supernodes(sites))
    assert not list(Path(config["out"]).glob("*.json*"))
