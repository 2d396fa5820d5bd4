"""Which data set lies at a path that a person names."""

from __future__ import annotations

from pathlib import Path

from client.check.found import Found, Kind, Owner, SettingsOf, walk
from client.check.manifest import find_manifest
from client.check.trees import find_ild, find_mrnet, is_ild, is_mrnet
from common.config import SimulatedSite, Study, is_study, load_site, load_study
from common.errors import BadInput


def find(path: Path) -> Found:
    """The data set at a folder, manifest.csv, site.yaml or study.yaml; BadInput for anything else.

    With a site.yaml, only what is the site's and isn't excluded; with a study.yaml, what all of its
    simulated sites use.
    """
    if not path.exists():
        raise BadInput(f"{path}: does not exist; name a folder, a manifest.csv or a .yaml file.")
    if path.is_dir() or path.suffix.lower() == ".csv":
        return _found(path, None, lambda _site: SimulatedSite())
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise BadInput(
            f"{path}: expected a folder, a manifest.csv, a site.yaml or a study.yaml; got another "
            "file. Name the folder that holds it."
        )
    if is_study(path):
        study = load_study(path)
        data = _there(study.simulation.data, path, "simulation.data")
        return _found(data, study, study.simulation.site)
    site = load_site(path)
    return _found(_there(site.data, path, "data"), None, lambda _site: site)


def _there(data: Path | None, file: Path, key: str) -> Path:
    if data is None:
        raise BadInput(f"{file}: names no data; set `{key}` in it, or name the data themselves.")
    if not data.exists():
        raise BadInput(f"{file}: `{key}` is {data}, which does not exist; mend it.")
    return data


def _found(data: Path, study: Study | None, settings_of: SettingsOf) -> Found:
    data = data.absolute()  # a tree is known by its name, and "." has none
    kind = _kind(data) if study is None else study.data.kind
    if kind == "folder":
        return Found(kind, data, {path: Owner() for path in walk(data)})
    finders = {"manifest": find_manifest, "ild": find_ild, "mrnet": find_mrnet}
    return finders[kind](data, study, settings_of)


def _kind(data: Path) -> Kind:
    if data.is_file() or (data / "manifest.csv").is_file():
        return "manifest"
    return "ild" if is_ild(data) else "mrnet" if is_mrnet(data) else "folder"
