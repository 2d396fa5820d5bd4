"""The hospitals that one machine plays: what each declares, and what contradicts itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.config import IldData, SiteSettings, Study, load_study
from common.errors import BadData, BadInput
from simulations.sites import data_label, divided, simulated_sites


def sites(tiny: Path, *changes: str) -> dict[str, SiteSettings]:
    """The simulated sites of the tiny study."""
    return simulated_sites(load_study(tiny / "study.yaml", changes))


def test_every_site_of_the_data_has_settings(tiny: Path) -> None:
    """Sites come from the data, in order of name, repeatable, and say so."""
    found = sites(tiny)
    assert list(found) == ["east", "north", "west"]
    for name, site in found.items():
        assert site.name == name
        assert site.randomness == "seeded-for-testing"
        assert site.data == tiny / "manifest.csv"


@pytest.mark.parametrize(
    ("patients", "declared"), [(1, 5), (7, 5), (8, 10), (12, 10), (13, 15), (22, 20)]
)
def test_the_declared_number_is_rounded(
    tmp_path: Path, write_tiny: object, patients: int, declared: int
) -> None:
    """A simulated hospital declares its patients rounded to five, and never none."""
    tiny = write_tiny(tmp_path / "tiny", {"north": patients}, images=1)  # type: ignore[operator]
    assert sites(tiny)["north"].declared_patients == declared


def test_who_objects_is_not_declared(tiny: Path) -> None:
    """Excluded patients don't count."""
    exclude = ",".join(f"north-{number}" for number in range(4))
    found = sites(tiny, f"simulation.sites.north.exclude=[{exclude}]")
    assert found["north"].declared_patients == 5
    assert found["east"].declared_patients == 10


def test_a_sites_own_settings_override_the_defaults(tiny: Path) -> None:
    """What a site says wins; what it doesn't say comes from site_defaults."""
    found = sites(
        tiny,
        "simulation.site_defaults.release.metrics=[loss]",
        "simulation.site_defaults.declared_patients=50",
        "simulation.sites.north.declared_patients=20",
    )
    assert (found["north"].declared_patients, found["west"].declared_patients) == (20, 50)
    assert found["north"].release.metrics == found["west"].release.metrics == ("loss",)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["simulation.sites.nroth.exclude=[a]"], r"may name east, north, west; got nroth"),
        (["federation.weights.nroth=2"], r"got nroth"),
        (["federation.min_sites=4"], r"min_sites must be at most 3"),
        (["simulation.data=null"], r"simulation.data is missing.*--data"),
        (["simulation.phantom={kind: ild}"], r"both set"),
        (
            ["simulation.phantom={kind: ild}", "simulation.data=null"],
            r"phantom.kind must be manifest",
        ),
    ],
)
def test_contradictions_are_refused(tiny: Path, changes: list[str], expected: str) -> None:
    """Unknown sites, too few sites, no data, two kinds of data: the sentence names the keys."""
    with pytest.raises(BadInput, match=expected):
        sites(tiny, *changes)


def test_data_that_are_not_there_are_refused(tiny: Path) -> None:
    """The sentence names the path and how to name another."""
    with pytest.raises(BadData, match=r"nowhere\.csv: does not exist.*--data"):
        sites(tiny, f"simulation.data={tiny / 'nowhere.csv'}")


def test_a_folder_without_trees_is_refused(tiny: Path) -> None:
    """ILD data need a tree, or one folder a hospital."""
    study = load_study(tiny / "study.yaml")
    ild = study.model_copy(update={"data": IldData()})
    folder = ild.simulation.model_copy(update={"data": tiny})
    with pytest.raises(BadData, match="ILD_DB_txtROIs"):
        simulated_sites(ild.model_copy(update={"simulation": folder}))


def _phantom_study(**simulation: object) -> Study:
    content = {
        "classes": ["healthy", "emphysema", "ground_glass", "fibrosis", "micronodules"],
        "data": {"kind": "ild"},
        "simulation": simulation,
    }
    return Study.model_validate_json(json.dumps(content))


def test_a_phantom_stays_a_phantom_wherever_it_is_read_from() -> None:
    """Generated in passing or named by its path: what comes of it is called phantom."""
    generated = simulated_sites(
        _phantom_study(phantom={"kind": "ild", "patients": 2, "hospitals": 2})
    )
    assert list(generated) == ["hospital-1", "hospital-2"]
    assert data_label(generated) == "phantom"
    tree = generated["hospital-1"].data
    assert tree is not None
    for path in (tree.parent, tree):
        named = simulated_sites(_phantom_study(data=str(path)))
        assert data_label(named) == "phantom"


def _mrnet_study(**simulation: object) -> Study:
    content = {
        "task": "multi-label",
        "classes": ["acl", "meniscus"],
        "data": {"kind": "mrnet", "read_planes": ["axial"]},
        "simulation": simulation,
    }
    return Study.model_validate_json(json.dumps(content))


def test_one_tree_without_sites_is_divided_into_some(tmp_path: Path) -> None:
    """MRNet is one tree: it is one site, or as many as a partition makes of whole exams."""
    phantom = {"kind": "mrnet", "exams": 24, "hospitals": 1}
    (alone,) = simulated_sites(_mrnet_study(phantom=phantom)).values()
    assert alone.include is None
    partition = {"by": "quantity", "sites": 3, "min_patients": 4}
    study = _mrnet_study(phantom=phantom, partition=partition)
    found = simulated_sites(study)
    assert list(found) == ["site-1", "site-2", "site-3"]
    included = [exam for site in found.values() for exam in site.include or ()]
    assert len(included) == len(set(included)) == 24
    assert {site.data for site in found.values()} == {alone.data}
    assert all(site.declared_patients >= 5 for site in found.values() if site.declared_patients)
    parts = divided(study)
    assert parts is not None
    assert [len(exams) for exams in parts.sites.values()] == [
        len(site.include or ()) for site in found.values()
    ]


def test_several_trees_are_not_divided_again(tmp_path: Path) -> None:
    """A hospital's patients are not handed to others behind its back."""
    study = _mrnet_study(
        phantom={"kind": "mrnet", "exams": 8, "hospitals": 2}, partition={"by": "quantity"}
    )
    with pytest.raises(BadInput, match=r"divides one data set among sites; .* holds 2"):
        simulated_sites(study)


def test_a_manifest_is_divided_anew(tiny: Path) -> None:
    """A column other than `site` names the sites, and a patient keeps all images."""
    found = sites(tiny, "simulation.partition.by=column", "simulation.partition.column=sex")
    assert list(found) == ["F", "M"]
    assert {name.partition("-")[0] for name in found["F"].include or ()} == {
        "east",
        "north",
        "west",
    }
    assert len(found["F"].include or ()) == len(found["M"].include or ()) == 12


def test_a_manifest_without_sites_asks_for_some(tiny: Path) -> None:
    """Without a site column, only a partition says which sites there are."""
    table = tiny / "manifest.csv"
    lines = [line.split(",") for line in table.read_text().splitlines()]
    table.write_text("\n".join(",".join([*line[:2], *line[3:]]) for line in lines) + "\n")
    with pytest.raises(BadData, match=r"the column site is missing.*simulation\.partition"):
        sites(tiny)
    assert len(sites(tiny, "simulation.partition.by=labels", "simulation.partition.sites=2")) == 2


def test_real_data_are_called_real(tiny: Path) -> None:
    """A manifest that nothing marks as generated is taken for what it says it is."""
    assert data_label(sites(tiny)) == "real"


def test_more_patients_than_the_real_set_are_called_scaled(tmp_path: Path) -> None:
    """A phantom's own note decides."""
    (tmp_path / "phantom.json").write_text('{"label": "scaled phantom"}')
    assert data_label({"a": SiteSettings(data=tmp_path / "a")}) == "scaled phantom"
