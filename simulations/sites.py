"""The hospitals that one machine plays: a site.yaml for each, from the study and its data."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.config import SITE_NAME, SITE_NAME_RULE, ManifestData, SiteSettings, Study
from common.data.cache import mark_used
from common.data.readers import build_reader, patient_name, tree_name
from common.errors import BadData, BadInput
from common.files import cache_folder
from common.report.content import DataLabel
from simulations.partition import Partition, gather, partition
from simulations.phantoms import phantom_of, write_phantom

ROUNDED_TO = 5  # patients: what a simulated hospital declares when the study doesn't say


@dataclass(frozen=True, slots=True)
class _Found:
    """One site's data, before anybody asked for settings."""

    data: Path
    patients: frozenset[str]  # as the data name them
    include: tuple[str, ...] | None = None  # where a partition chose them


def simulated_sites(study: Study) -> dict[str, SiteSettings]:
    """Each site's settings by its name; a phantom is written first where the study asks for one.

    Raises:
        BadInput: no data, contradictory data, or settings for a site that isn't there.
    """
    found = _found_sites(study)
    unknown = sorted(set(study.simulation.sites) - set(found))
    unknown += sorted(set(study.federation.weights) - set(found))
    if unknown:
        raise BadInput(
            f"simulation.sites and federation.weights may name {', '.join(sorted(found))}; "
            f"got {', '.join(unknown)}. Mend the name or remove it."
        )
    if len(found) < study.federation.min_sites:
        raise BadInput(
            f"federation.min_sites must be at most {len(found)}, the number of sites in the "
            f"data; got {study.federation.min_sites}. Lower it in the study."
        )
    return {name: _settings(study, name, one) for name, one in sorted(found.items())}


def divided(study: Study) -> Partition | None:
    """How `simulation.partition` divides the data among sites; None where it isn't asked for.

    Raises:
        BadInput: there are several data sets, or they can't be divided as asked.
    """
    return None if study.simulation.partition is None else _divided(study.model_dump_json())


@functools.lru_cache(maxsize=4)  # a run asks for the sites and for the table
def _divided(study_text: str) -> Partition:
    study = Study.model_validate_json(study_text)
    config = study.simulation.partition
    assert config is not None
    root = _root(study)
    trees = [root] if isinstance(study.data, ManifestData) else _trees(root, study)
    if len(trees) > 1:
        raise BadInput(
            f"simulation.partition divides one data set among sites; {root} holds {len(trees)}. "
            "Name one of them, or remove simulation.partition."
        )
    defaults = study.simulation.site_defaults
    reader = build_reader(study, defaults)
    objecting = {patient_name(study.data, name) for name in defaults.exclude}
    found = [
        source for source in reader.find(trees[0], study.classes) if source.patient not in objecting
    ]
    return partition(gather(found, reader, classes=study.classes, config=config), config)


def data_label(sites: Mapping[str, SiteSettings]) -> DataLabel:
    """What the data are, to be said beside every number; phantoms say so in their folder."""
    notes = [
        (folder / "phantom.json").read_text()
        for data in {site.data for site in sites.values() if site.data is not None}
        for folder in (data, *data.parents)[:3]
        if (folder / "phantom.json").is_file()
    ]
    if any("scaled phantom" in note for note in notes):
        return "scaled phantom"
    return "phantom" if notes else "real"


def _settings(study: Study, name: str, found: _Found) -> SiteSettings:
    said = study.simulation.site(name)
    objecting = {patient_name(study.data, patient) for patient in said.exclude}
    counted = len(found.patients - objecting)
    rounded = max(ROUNDED_TO, ROUNDED_TO * round(counted / ROUNDED_TO))
    return SiteSettings(
        name=name,
        data=found.data,
        columns=said.columns,
        labels=said.labels,
        declared_patients=said.declared_patients or rounded,
        declared_images=said.declared_images,
        budget=said.budget,
        policy=said.policy,
        exclude=said.exclude,
        include=found.include,
        device=said.device,
        release=said.release,
        randomness="seeded-for-testing",  # a simulation is repeatable and guarantees nothing
    )


def _found_sites(study: Study) -> dict[str, _Found]:
    """Each site's data and patients: as divided, else as the data say."""
    parts = divided(study)
    root = _root(study)
    if parts is not None:
        data = root if isinstance(study.data, ManifestData) else _trees(root, study)[0]
        return {
            name: _Found(data, frozenset(patients), patients)
            for name, patients in parts.sites.items()
        }
    if isinstance(study.data, ManifestData):
        reader = build_reader(study, study.simulation.site_defaults)
        by_site: dict[str, set[str]] = {}
        for source in reader.find(root, study.classes):
            if source.site is None:
                raise BadData(
                    f"{root.name}: the column site is missing, so the data don't say which sites "
                    "there are; add it or divide them with simulation.partition."
                )
            by_site.setdefault(source.site, set()).add(source.patient)
        return {site: _Found(root, frozenset(patients)) for site, patients in by_site.items()}
    return {tree.name: _Found(tree, _patients(study, tree)) for tree in _trees(root, study)}


def _patients(study: Study, tree: Path) -> frozenset[str]:
    reader = build_reader(study, study.simulation.site(tree.name))
    return frozenset(source.patient for source in reader.find(tree, study.classes))


def _root(study: Study) -> Path:
    data, phantom = study.simulation.data, study.simulation.phantom
    if data is not None and phantom is not None:
        raise BadInput(
            "simulation.data and simulation.phantom are both set; keep one of them "
            "(--set simulation.phantom=null reads the data)."
        )
    if data is not None:
        if not data.exists():
            raise BadData(f"{data}: does not exist; name the data with --data or simulation.data.")
        return data
    if phantom is None:
        raise BadInput(
            "simulation.data is missing: say where the images are with --data PATH "
            "(or set simulation.phantom to generate some)."
        )
    if phantom.kind != study.data.kind:
        raise BadInput(
            f"simulation.phantom.kind must be {study.data.kind}, as data.kind is; got "
            f"{phantom.kind}. Change one of them."
        )
    generated = phantom_of(phantom)
    folder = cache_folder() / f"phantom-{generated.sha256}"
    if not folder.is_dir():
        write_phantom(folder, generated)
    mark_used(folder)
    return folder


def _trees(root: Path, study: Study) -> list[Path]:
    """The folders that hold one tree each: one a hospital below `root`, or `root` itself."""
    assert not isinstance(study.data, ManifestData)  # a manifest is no tree
    name = tree_name(study.data)
    if root.name == name or (root / name).is_dir():
        return [root]
    trees = sorted(path.parent for path in root.glob(f"*/{name}"))
    if not trees:
        raise BadData(
            f"{root}: expected a folder {name} in it, or one folder a hospital that holds "
            f"{name}; got neither. Name the folder above them."
        )
    odd = [tree.name for tree in trees if not re.fullmatch(SITE_NAME, tree.name)]
    if odd:
        raise BadData(
            f"{root}: a hospital's folder is its site's name, {SITE_NAME_RULE}; "
            f"got {', '.join(map(repr, odd))}. Rename the folder."
        )
    return trees
