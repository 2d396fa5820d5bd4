"""The contract of a run directory: files, keys, and a page that fetches nothing."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from common.config import load_study
from common.models import read_card
from common.report import render_report
from server.checkpoint import read_history
from simulations.report import report_input, text


@pytest.fixture
def result(finished: Path) -> dict[str, Any]:
    """A finished run's result.json."""
    content: dict[str, Any] = json.loads((finished / "run" / "result.json").read_text())
    return content


def test_a_run_directory_holds_its_files(finished: Path) -> None:
    """Study, model, checkpoints, history, sites, result and report; nothing half-written."""
    out = finished / "run"
    names = {path.name for path in out.iterdir()}
    expected = {"study.yaml", "model.safetensors", "checkpoints", "history.jsonl", "sites"}
    assert names == expected | {"result.json", "report.html", "baselines"}
    assert {path.name for path in (out / "sites").iterdir()} == {"east", "north", "west"}
    assert len(read_history(out / "history.jsonl")) == 3  # two rounds and the closing
    assert not list(out.rglob("*.partial"))


def test_result_has_every_key_of_the_contract(result: dict[str, Any]) -> None:
    """The keys that programs may rely on are there, with values of their kind."""
    kinds = {
        "study": str,
        "engine": str,
        "rounds": int,
        "seed": int,
        "weights_sha256": str,
        "seconds": float,
        "bytes_up": int,
        "bytes_down": int,
        "versions": dict,
        "device": str,
        "privacy": dict,
        "sites": dict,
        "evaluation": dict,
    }
    assert {key: type(result[key]) for key in kinds} == kinds
    privacy = {"enabled", "unit", "adjacency", "trust_model", "guarantee", "not_covered"}
    assert privacy <= set(result["privacy"])
    site = {"epsilon", "delta", "rounds_joined", "patients", "images"}
    assert set(result["sites"]) == {"east", "north", "west"}
    for found in result["sites"].values():
        assert site <= set(found)
        assert (found["patients"], found["images"], found["rounds_joined"]) == (8, 16, 2)
    models = {"federated", "central", "local:east", "local:north", "local:west"}
    data = {"all", "mean-of-sites", "site:east", "site:north", "site:west"}
    assert set(result["evaluation"]) == models
    for by_data in result["evaluation"].values():
        assert set(by_data) == data
        for metrics in by_data.values():
            assert {"accuracy", "balanced_accuracy", "macro_auroc"} <= set(metrics)
            for estimate in metrics.values():
                assert {"value", "low", "high"} <= set(estimate)


def test_the_model_is_the_one_that_the_result_names(finished: Path, result: dict[str, Any]) -> None:
    """Hash, study and privacy statement of the model file are those of the run."""
    card = read_card(finished / "run" / "model.safetensors")
    assert card.weights_sha256 == result["weights_sha256"]
    assert card.study.sha256 == result["study_sha256"]
    assert "without differential privacy" in card.privacy["sentence"]
    last = read_history(finished / "run" / "history.jsonl")[-1]
    assert last["closing"]
    assert last["weights_sha256"] == result["weights_sha256"]


def test_the_study_is_kept_as_it_was_resolved(finished: Path) -> None:
    """study.yaml in the run directory is the study with every key and change written out."""
    kept = load_study(finished / "run" / "study.yaml")
    assert kept == load_study(finished / "study.yaml", ["seed=3"])


def test_bytes_are_those_of_the_models_that_travelled(
    finished: Path, result: dict[str, Any]
) -> None:
    """Three sites: down in two rounds and the closing, up in two rounds."""
    size = 4 * sum(
        value.size for value in _tensors(finished / "run" / "model.safetensors").values()
    )
    assert 9 * size < result["bytes_down"] < 9 * (size + 4000)
    assert 6 * size < result["bytes_up"] < 6 * (size + 1000)


def test_the_page_fetches_nothing(finished: Path) -> None:
    """report.html is one file: no address on the network is fetched."""
    page = (finished / "run" / "report.html").read_text()
    assert "<svg" in page
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:)?//""", page)
    assert not re.findall(r"url\(\s*[\"']?\s*(?:https?:)?//|@import", page)
    assert "<script" not in page


def test_the_page_names_what_the_run_was(finished: Path, result: dict[str, Any]) -> None:
    """Study, weights hash, every model and every site are on the page."""
    page = (finished / "run" / "report.html").read_text()
    for expected in ("tiny", result["weights_sha256"], "central", "local:north", "real"):
        assert expected in page


def test_the_printed_table_says_that_there_is_no_privacy(tiny: Path, no_report: None) -> None:
    """Whoever reads the terminal alone learns whether there was privacy, and on which data."""
    import simulations

    study = load_study(tiny / "study.yaml", ["training.rounds=1"])
    printed = text(simulations.run(study, out=tiny / "run", baselines=False))
    assert "Privacy: none" in printed
    assert "(real data)" in printed
    study = load_study(tiny / "study.yaml", ["training.rounds=1", "privacy.enabled=true"])
    printed = text(simulations.run(study, out=tiny / "private", baselines=False))
    for expected in ("Epsilon per patient", "delta 1e-05", "add/remove", "none (seeded)", "local"):
        assert expected in printed


def test_a_cross_validation_says_what_all_its_models_cost(tiny: Path, no_report: None) -> None:
    """Beside each site's epsilon, which is of one fold's model, on the page as on the terminal."""
    import simulations

    changes = ["training.rounds=1", "data.folds=3", "privacy.enabled=true"]
    changes += ["privacy.target_epsilon=4"]
    result = simulations.run(
        load_study(tiny / "study.yaml", changes), out=tiny / "run", baselines=False
    )
    said = report_input(result).privacy.together
    assert "as a whole would have spent epsilon" in said
    assert said in text(result)
    assert said in unescape(render_report(report_input(result)))


def _tensors(path: Path) -> Any:
    from safetensors.numpy import load_file

    return load_file(path)
