"""The hospitals that one machine plays: a site.yaml for each, from the study and its data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from common.config import SITE_NAME, SITE_NAME_RULE, IldData, ManifestData, SiteSettings, Study
from common.data.ild import TREE
from common.data.readers import build_reader
from common.data.source import Source
from common.errors import BadData, BadInput
from common.files import cache_folder
from common.report.content import DataLabel
from simulations.phantoms.ild import IldPhantom, write_ild_phantom

ROUNDED_TO = 5  # patients: what a simulated hospital declares when the study doesn't say


def simulated_sites(study: Study) -> dict[str, SiteSettings]:
    """Each site's settings by its name; a phantom is written first where the study asks for one.

    Raises:
        BadInput: no data, contradictory data, or settings for a site that isn't there.
    """
    patients = _patients_by_site(study)
    unknown = sorted(set(study.simulation.sites) - set(patients))
    unknown += sorted(set(study.federation.weights) - set(patients))
    if unknown:
        raise BadInput(
            f"simulation.sites and federation.weights may name {', '.join(sorted(patients))}; "
            f"got {', '.join(unknown)}. Mend the name or remove it."
        )
    if len(patients) < study.federation.min_sites:
        raise BadInput(
            f"federation.min_sites must be at most {len(patients)}, the number of sites in the "
            f"data; got {study.federation.min_sites}. Lower it in the study."
        )
    return {name: _settings(study, name, *found) for name, found in sorted(patients.items())}


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


def _settings(study: Study, name: str, data: Path, patients: set[str]) -> SiteSettings:
    said = study.simulation.site(name)
    counted = len(patients - set(said.exclude))
    rounded = max(ROUNDED_TO, ROUNDED_TO * round(counted / ROUNDED_TO))
    return SiteSettings(
        name=name,
        data=data,
        declared_patients=said.declared_patients or rounded,
        exclude=said.exclude,
        device=said.device,
        release=said.release,
        randomness="seeded-for-testing",  # a simulation is repeatable and guarantees nothing
    )


def _patients_by_site(study: Study) -> dict[str, tuple[Path, set[str]]]:
    """Each site's data and patients, as the data name them."""
    root = _root(study)
    reader = build_reader(study.data)
    match study.data:
        case ManifestData():
            return {
                site: (root, {source.patient for source in sources})
                for site, sources in _by_site(reader.find(root, study.classes)).items()
            }
        case IldData():
            return {
                tree.name: (tree, {source.patient for source in reader.find(tree, study.classes)})
                for tree in _ild_trees(root)
            }


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
    if not isinstance(study.data, IldData):
        raise BadInput("simulation.phantom writes ILD trees; set `data.kind: ild` to read them.")
    parameters = IldPhantom(
        patients=phantom.patients,
        hospitals=phantom.hospitals,
        seed=phantom.seed,
        shift=phantom.shift,
        equal_sizes=phantom.equal_sizes,
    )
    folder = cache_folder() / f"phantom-{parameters.sha256}"
    if not folder.is_dir():
        write_ild_phantom(folder, parameters)
    return folder


def _by_site(sources: tuple[Source, ...]) -> dict[str, list[Source]]:
    sites: dict[str, list[Source]] = {}
    for source in sources:
        sites.setdefault(str(source.site), []).append(source)
    return sites


def _ild_trees(root: Path) -> list[Path]:
    """One tree a hospital below `root`, or `root` itself as the only one."""
    trees = [root] if (root / TREE).is_dir() else sorted(p.parent for p in root.glob(f"*/{TREE}"))
    if not trees:
        raise BadData(
            f"{root}: expected a folder {TREE} in it, or one folder a hospital that holds "
            f"{TREE}; got neither. Name the folder above them."
        )
    odd = [tree.name for tree in trees if not re.fullmatch(SITE_NAME, tree.name)]
    if odd:
        raise BadData(
            f"{root}: a hospital's folder is its site's name, {SITE_NAME_RULE}; "
            f"got {', '.join(map(repr, odd))}. Rename the folder."
        )
    return trees
