"""What `flwr build` bundles: server, client and common, whole, and nothing else."""

from __future__ import annotations

import tomllib
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_files
from flwr.common.config import validate_config

ROOT = Path(__file__).parents[1]
FOLDERS = ("client", "common", "server")
FLOWERS_OWN = {"pyproject.toml", "LICENSE", ".info/CONTENT"}


@pytest.fixture(scope="module")
def files() -> dict[str, Path | bytes]:
    """The repository's files, without the hidden folders (.venv, .git) that Flower drops."""
    entries = [entry for entry in ROOT.iterdir() if entry.is_file() or entry.name[0] != "."]
    paths = [path for entry in entries for path in (entry, *entry.rglob("*")) if path.is_file()]
    return {path.relative_to(ROOT).as_posix(): path for path in paths}


def bundled(files: dict[str, Path | bytes]) -> set[str]:
    """Names inside the bundle that Flower makes of these files."""
    fab, _ = build_fab_from_files(files)
    return set(zipfile.ZipFile(BytesIO(fab)).namelist())


def test_bundle_holds_three_packages_and_nothing_else(files: dict[str, Path | bytes]) -> None:
    """Every module of server, client and common is bundled, and no other file."""
    modules = {
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {"client/app.py", "server/app.py"} <= modules
    assert bundled(files) == modules | FLOWERS_OWN


def test_what_lies_beside_stays_out(files: dict[str, Path | bytes]) -> None:
    """Site files, data, tests and look-alike folders never enter the bundle."""
    beside = [
        "site.yaml",
        "client/site.yaml",
        "common/patients.json",
        "deploy/client/app.py",
        "runs/quick/result.json",
        "simulations/client/app.py",
        "tests/common/helpers.py",
    ]
    assert bundled(files | dict.fromkeys(beside, b"")) == bundled(files)


def test_components_exist() -> None:
    """Flower finds the two apps that pyproject.toml names, and nothing to rewrite."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    valid, errors, _ = validate_config(config, project_dir=ROOT)
    assert valid, errors
    assert "federations" not in config["tool"]["flwr"]
