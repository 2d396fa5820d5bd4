"""study.yaml and site.yaml: what is read, what is refused, and in which words."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from common.config import (
    IldData,
    Intensity,
    Link,
    Release,
    SimulatedSite,
    SiteSettings,
    Study,
    load_site,
    load_study,
    parse,
    parse_json,
    schema_yaml,
    to_yaml,
)
from common.errors import BadInput
from common.plain_yaml import load_yaml

MINIMAL: dict[str, Any] = {"classes": ["a", "b"], "data": {"kind": "manifest"}}


def problems(content: object, schema: type[BaseModel] = Study) -> list[str]:
    """The sentences with which `content` is refused."""
    with pytest.raises(BadInput) as caught:
        parse(schema, content, where="study.yaml")  # type: ignore[arg-type]
    return str(caught.value).splitlines()


def with_key(dotted: str, value: object) -> dict[str, Any]:
    """The smallest study with one key changed."""
    content: dict[str, Any] = json.loads(json.dumps(MINIMAL))
    *parents, last = dotted.split(".")
    place = content
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return content


def leaves(value: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Every key that holds no group of keys, dotted, with its value."""
    found: dict[str, Any] = {}
    for name in type(value).model_fields:
        inner = getattr(value, name)
        if isinstance(inner, BaseModel):
            found |= leaves(inner, f"{prefix}{name}.")
        else:
            found[prefix + name] = inner
    return found


def test_every_problem_is_told_at_once() -> None:
    """All problems come together, one a line, each with file and key."""
    content = with_key("training.rounds", 0) | {"seed": -1, "colour": "red", "classes": ["a"]}
    said = problems(content)
    assert len(said) == 4
    assert all(line.startswith("study.yaml: ") for line in said)
    for key in ("training.rounds", "seed", "colour", "classes"):
        assert any(f"`{key}`" in line for line in said), key


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("training.rounds", 0, "`training.rounds` must be greater than or equal to 1; got 0."),
        ("data.folds", 0, "`data.folds` must be greater than or equal to 2; got 0."),
        ("federation.min_sites", 0, "`federation.min_sites` must be greater than or equal to 1"),
        ("privacy.target_epsilon", -1, "`privacy.target_epsilon` must be greater than 0; got -1."),
        ("privacy.target_epsilon", float("nan"), "must be a finite number; got NaN."),
        ("privacy.target_epsilon", float("inf"), "must be a finite number; got Infinity."),
        ("privacy", {"enabled": True, "target_delta": 0.001}, "`privacy.target_delta` must be at"),
        ("privacy", {"enabled": True, "target_delta": 1e-15}, "must be at least 1e-12, below"),
        ("privacy", None, "`privacy` must be a group of keys; got nothing."),
        ("training", [], "`training` must be a group of keys; got a list of 0."),
        ("seed", "5", '`seed` must be a whole number; got "5".'),
        ("seed", True, "`seed` must be a whole number; got true."),
        ("seed", 1.5, "`seed` must be a whole number; got 1.5."),
        ("seed", 2**63, "`seed` must be less than 9223372036854775808"),
        ("training.learning_rate", "0.1", '`training.learning_rate` must be a number; got "0.1".'),
        ("privacy.enabled", 1, "`privacy.enabled` must be true or false; got 1."),
        ("name", "../x", "`name` must be 1 to 64 letters, digits, _, . or -"),
        ("classes", "ab", '`classes` must be a list such as [a, b]; got "ab".'),
        (
            "classes",
            ["a"],
            "`classes` must be a list of at least 2 (or set `task: multi-label`); got a list of 1.",
        ),
        ("classes", ["a", "a"], "`classes` must be names that differ from one another."),
        ("classes", ["a", " b"], "`classes.1` must be text on one line without blanks around it"),
        ("classes", [0, "b"], "`classes.0` must be text (put quotes around it); got 0."),
        ("data", 5, "`data` must be a group of keys; got 5."),
        ("data", {}, "`data.kind` must be manifest or ild or mrnet; got nothing."),
        ("data", {"kind": "mnist"}, '`data.kind` must be manifest or ild or mrnet; got "mnist".'),
        ("data.intensity", {"low": 3, "high": 3}, "`data.intensity` must be a range whose high"),
        ("strategy.name", "fedprox", "`strategy.name` must be 'fedavg'; got \"fedprox\"."),
        ("federation.weights", {"north": 0}, "`federation.weights.north` must be greater than 0"),
        ("simulation.sites", {"a/b": {}}, "`simulation.sites.a/b` must be 1 to 64 letters"),
        ("simulation.sites", {"a": None}, "`simulation.sites.a` must be a group of keys"),
        ("simulation.sites", {"a": {"device": "tpu"}}, "`simulation.sites.a.device` must be auto"),
        (
            "simulation.site_defaults",
            {"release": {"metrics": ["loss", "names"]}},
            "`simulation.site_defaults.release.metrics.1` must be 'loss', ",
        ),
    ],
)
def test_a_bad_value_is_named(key: str, value: object, words: str) -> None:
    """A value that can't be is refused in one sentence: file, key, what was expected, what came."""
    said = problems(with_key(key, value))
    assert len(said) == 1
    assert said[0].startswith("study.yaml: `")
    assert words in said[0]
    assert said[0].endswith("Change it there.")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("trainng", "unknown key `trainng`; did you mean `training`?"),
        ("training.round", "unknown key `training.round`; did you mean `rounds`?"),
        ("data.fold", "unknown key `data.fold`; did you mean `folds`?"),
        ("simulation.sites.a.relase", "unknown key `simulation.sites.a.relase`; did you mean"),
        ("strategy.zzz", "unknown key `strategy.zzz`; known: name."),
    ],
)
def test_an_unknown_key_is_named_with_its_nearest(key: str, words: str) -> None:
    """A key that nobody knows is refused, with the nearest one that is known beside it."""
    assert words in problems(with_key(key, 1))[0]


def test_an_unknown_key_of_the_other_data_kind_is_told_by_its_own_kind() -> None:
    """Below a union, the nearest key is one of the kind that the file chose."""
    content = MINIMAL | {"data": {"kind": "ild", "strid_px": 1}}
    assert problems(content) == [
        "study.yaml: unknown key `data.strid_px`; did you mean `stride_px`?"
    ]


def test_an_unknown_key_of_a_phantom_is_told_by_its_kind() -> None:
    """The MRNet phantom has exams and no patients."""
    assert problems(with_key("simulation.phantom", {"kind": "mrnet", "exam": 5})) == [
        "study.yaml: unknown key `simulation.phantom.exam`; did you mean `exams`?"
    ]


MRNET = {
    "task": "multi-label",
    "classes": ["acl"],
    "data": {"kind": "mrnet"},
    "privacy": {"unit": "exam"},
}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (MINIMAL | {"task": "multi-label", "data": {"kind": "ild"}}, "`task` must be multi-class"),
        (MRNET | {"task": "multi-class", "classes": ["acl", "meniscus"]}, "`task` must be multi-"),
        (MRNET | {"classes": ["acl", "pcl"]}, "`classes` must be out of abnormal, acl, meniscus"),
        (MRNET | {"privacy": {"enabled": True}}, "`privacy.unit` must be exam, since"),
        (
            MINIMAL | {"privacy": {"enabled": True, "unit": "exam"}},
            "`privacy.unit` must be patient, since data.kind is manifest",
        ),
        (
            MINIMAL | {"privacy": {"enabled": True}, "training": {"augmentation": {"mixup": 0.2}}},
            "`training.augmentation.mixup` must be 0 under privacy, since",
        ),
    ],
)
def test_keys_that_contradict_one_another_are_named(content: dict[str, Any], words: str) -> None:
    """Each is right by itself; the sentence says why they can't be together."""
    (said,) = problems(content)
    assert said.startswith(f"study.yaml: {words}")
    assert said.endswith("Change it there.")


def test_a_study_of_one_label_is_fine() -> None:
    """A multi-label task may have a single label; mixup is allowed without privacy."""
    mixed = MRNET | {"training": {"augmentation": {"mixup": 0.2}}}
    assert parse(Study, mixed, where="x").classes == ("acl",)


@pytest.mark.parametrize(
    ("partition", "words"),
    [
        ({"by": "column"}, "`simulation.partition` must be a group with `column` if, and only if"),
        ({"by": "labels", "column": "sex"}, "`simulation.partition` must be a group with `column`"),
        ({"by": "weather"}, "`simulation.partition.by` must be 'column', 'labels', 'quantity'"),
    ],
)
def test_a_partition_says_what_it_goes_by(partition: dict[str, str], words: str) -> None:
    """A column is named exactly where one is used."""
    assert words in problems(with_key("simulation.partition", partition))[0]


def test_a_missing_key_is_named() -> None:
    """What has no default must be given."""
    assert problems({"classes": ["a", "b"]}) == [
        "study.yaml: `data` is missing; add it (see `fedward schema`)."
    ]


def test_who_objects_is_in_no_message() -> None:
    """A mistyped list of patients is refused without the patients."""
    for value in ([4711], "4711", {"4711": 1}):
        said = problems(with_key("simulation.site_defaults.exclude", value))
        assert "4711" not in "".join(said)
    assert "4711" not in "".join(problems({"exclude": [4711]}, SiteSettings))


def test_a_model_that_nobody_knows_is_refused() -> None:
    """A slip in policy.models would keep every study away without a word."""
    (said,) = problems({"policy": {"models": ["cnn-small", "resnet-18"]}}, SiteSettings)
    assert "`policy.models` must be names of models that are known here (cnn-small, " in said
    assert "; got resnet-18." in said
    assert parse(SiteSettings, {"policy": {"models": []}}, where="x").policy.models == ()


def test_a_long_value_is_cut() -> None:
    """No value can drown its own sentence."""
    assert len(problems(with_key("strategy.name", "x" * 10_000))[0]) < 250


def test_a_large_delta_is_only_refused_where_it_is_used() -> None:
    """Without privacy delta means nothing."""
    study = parse(Study, with_key("privacy.target_delta", 0.001), where="x")
    assert study.privacy.target_delta == 0.001


def write(folder: Path, text: str) -> Path:
    """A study file."""
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


GOOD = "classes: [a, b]\ndata: {kind: manifest}\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "[a]",
        "a: [",
        "a: \x00",
        "a: !!python/object:os.system {}",
        "a: !!bool x",
        "a: 2020-13-01",
        "? [a]\n: 1",
        "a: &x [*x]",
        "a: &x [1]\nb: *x",
        GOOD + "seed: 1\nseed: 2\n",
        GOOD + "training: {rounds: 1, rounds: 2}\n",
        "a: " + "[" * 1200 + "]" * 1200,
        "a: " + "{b: " * 300 + "}" * 300,
    ],
)
def test_what_is_no_plain_yaml_is_refused(tmp_path: Path, text: str) -> None:
    """Broken, recursive, ambiguous or endless YAML is bad input naming the file, never a crash."""
    with pytest.raises(BadInput, match=r"^study\.yaml: "):
        load_study(write(tmp_path, text))


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    """The path is named, whatever keeps the file from being read."""
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.yaml", tmp_path, binary):
        with pytest.raises(BadInput, match=re.escape(str(path))):
            load_study(path)


def test_yaml_says_what_people_mean(tmp_path: Path) -> None:
    """1e-6 is a number, on is true, and a key is text even where it looks like a number."""
    text = GOOD + "privacy: {enabled: on, target_delta: 1e-6}\nfederation: {weights: {007: 2}}\n"
    study = load_study(write(tmp_path, "\ufeff" + text))
    assert study.privacy.enabled is True
    assert study.privacy.target_delta == 1e-6
    assert study.federation.weights == {"007": 2.0}


def test_set_changes_keys(tmp_path: Path) -> None:
    """--set reaches any depth, makes the groups it needs, and its value is YAML."""
    path = write(tmp_path, GOOD + "training:\n")
    study = load_study(
        path,
        [
            "training.rounds=7",
            "privacy.target_delta=1e-7",
            "simulation.sites.north.exclude=['1=2']",
            "data.kind=ild",
            "data.folds=",
        ],
    )
    assert study.training.rounds == 7
    assert study.privacy.target_delta == 1e-7
    assert study.simulation.site("north").exclude == ("1=2",)
    assert isinstance(study.data, IldData)
    assert study.data.folds is None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rounds", "--set needs KEY=VALUE"),
        ("=3", "--set needs KEY=VALUE"),
        ("training.=3", "--set needs KEY=VALUE"),
        ("seed=[", "--set seed: is no valid YAML"),
        ("classes.x=3", "--set classes.x: classes is no group of keys"),
        ("traning.rounds=3", "study.yaml and the command line: unknown key `traning`"),
        ("training.rounds=0", "study.yaml and the command line: `training.rounds` must be"),
    ],
)
def test_a_bad_set_is_refused(tmp_path: Path, override: str, words: str) -> None:
    """A --set that can't be is refused, and says that it came from the command line."""
    with pytest.raises(BadInput) as caught:
        load_study(write(tmp_path, GOOD), [override])
    assert words in str(caught.value)


def test_paths_are_beside_the_file_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative data path starts at its file and stays right from any folder."""
    write(tmp_path, GOOD + "simulation: {data: images/manifest.csv}\n")
    (tmp_path / "site.yaml").write_text("data: images\n")
    monkeypatch.chdir(tmp_path)
    study, site = load_study(Path("study.yaml")), load_site(Path("site.yaml"))
    assert study.simulation.data == tmp_path / "images/manifest.csv"
    assert site.data == tmp_path / "images"
    assert load_site(write(tmp_path, "name: north\n")).data is None


def test_a_site_overrides_the_defaults_key_by_key() -> None:
    """What a simulated site does not say comes from site_defaults, then from the schema."""
    simulation = {
        "site_defaults": {"device": "cpu", "release": {"metrics": []}},
        "sites": {"north": {"declared_patients": 20}, "south": {"device": "auto"}},
    }
    study = parse(Study, MINIMAL | {"simulation": simulation}, where="x")
    none = Release(metrics=())
    assert study.simulation.site("north") == SimulatedSite(
        declared_patients=20, device="cpu", release=none
    )
    assert study.simulation.site("south") == SimulatedSite(device="auto", release=none)
    assert study.simulation.site("east") == SimulatedSite(device="cpu", release=none)
    again = parse(Study, study.model_dump(mode="json"), where="x")
    assert again.simulation.site("north") == study.simulation.site("north")


CHANGED = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v * 0.5 + 0.01}
OTHER = {
    "name": "other",
    "data.slices": 16,
    "data.preprocessing": ("clahe",),
    "data.regions": "masks",
    "data.label_rule": "largest",
    "data.pixel_spacing_mm": 0.7,
    "data.read_planes": ("axial",),
    "data.fit": "pad",
    "model.pooling": "attention",
    "model.patch_px": 4,
    "privacy.engine": "opacus",
    "privacy.lifetime_epsilon": 4.0,
    "training.augmentation.flips": ("vertical",),
    "data.folds": 3,
    "model.name": "other",
    "privacy.target_delta": 1e-6,
    "federation.weights": {"north": 2.0},
    "federation.wire": "int8",
}
# Nothing to change to, or not alone.
ONE_VALUE = {"format", "task", "data.kind", "privacy.unit", "strategy.name"}


@pytest.mark.parametrize("content", [MINIMAL, MINIMAL | {"data": {"kind": "ild"}}, MRNET])
def test_the_hash_covers_every_key_but_simulation(content: dict[str, Any]) -> None:
    """Any other value of any key gives another hash, unless it only says how to simulate."""
    study = parse(Study, content, where="x")
    simulated = 0
    for key, value in leaves(study).items():
        if key in ONE_VALUE:
            continue
        if key.startswith("simulation."):
            simulated += 1
            continue
        if key == "classes":
            other: Any = tuple(reversed(value)) if len(value) > 1 else ("meniscus",)
        else:
            other = OTHER.get(key) or CHANGED[type(value)](value)
        content = study.model_dump(mode="json")
        *parents, last = key.split(".")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = other
        assert parse(Study, content, where="x").sha256 != study.sha256, key
    assert simulated > 3
    content = study.model_dump(mode="json")
    content["simulation"] = {
        "data": "/x",
        "phantom": {"kind": "ild", "seed": 5},
        "sites": {"a": {}},
    }
    assert parse(Study, content, where="x").sha256 == study.sha256


@settings(max_examples=50, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_hash_does_not_depend_on_the_order_of_keys(random: Any) -> None:
    """Keys in any order, at any depth, give the same hash; numbers may be written either way."""
    content = with_key("federation.weights", {"n": 1, "s": 2.0, "e": 3}) | {"seed": 4}
    content["training"] = {"rounds": 2, "learning_rate": 1, "epochs": 3}

    def shuffled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: shuffled(value[k]) for k in random.sample(sorted(value), len(value))}

    hashes = {parse(Study, given_, where="x").sha256 for given_ in (content, shuffled(content))}
    assert len(hashes) == 1


def test_canonical_json_comes_back_as_the_same_study() -> None:
    """The text that travels is the study itself, without simulation, on any side."""
    study = parse(
        Study, with_key("privacy.target_delta", 3e-7) | {"simulation": {"data": "/x"}}, where="x"
    )
    again = parse_json(Study, study.canonical(), where="x")
    assert again.canonical() == study.canonical()
    assert again.sha256 == study.sha256
    assert again.simulation.data is None


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=200))
def test_any_json_text_is_a_study_or_refused(text: str) -> None:
    """Whatever arrives as text, nothing but BadInput is raised."""
    with pytest.raises(BadInput):
        parse_json(Study, text, where="study")


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["kind", "sites", "exclude", "low", "x", "release", "metrics"]),
                inner,
                max_size=3,
            )
        ),
        max_leaves=8,
    ),
    st.sampled_from([*Study.model_fields, "data.intensity", "simulation.sites", "privacy.unit"]),
)
def test_any_value_anywhere_is_taken_or_refused(value: object, key: str) -> None:
    """Whatever stands at a key, it is a study or a sentence a problem that begins with the file."""
    said = ""
    try:
        parse(Study, with_key(key, value), where="study.yaml")
    except BadInput as error:
        said = str(error)
    assert all(line.startswith("study.yaml: ") for line in said.splitlines())


def test_the_schema_is_a_file_ready_to_edit(tmp_path: Path) -> None:
    """The commented file reads back as the defaults, and names every key of every kind."""
    text = schema_yaml(Study)
    given_ = text.replace("[first-class, second-class]", "[a, b]")
    defaults = parse(Study, MINIMAL, where="x")
    assert load_study(write(tmp_path, given_)).model_dump() == defaults.model_dump()
    assert load_site(write(tmp_path, schema_yaml(SiteSettings))) == SiteSettings()
    for key in (*leaves(defaults), "stride_px", "hospitals"):
        assert f"{key.rpartition('.')[2]}:" in text
    assert 'metrics: ["loss", "accuracy"]' in text


@pytest.mark.parametrize("schema", [Study, SiteSettings])
def test_every_key_is_described(schema: type[BaseModel]) -> None:
    """Each key of each group says what it is for."""
    definitions = schema.model_json_schema()
    for group in (definitions, *definitions["$defs"].values()):
        for name, field in group["properties"].items():
            group_of_keys = field.get("$ref", "").rpartition("/")[2]
            assert definitions["$defs"].get(group_of_keys, field).get("description"), name


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        # PyYAML folds these three line ends of Unicode, whatever one asks of it.
        st.text(
            st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029"),
            max_size=8,
        ),
        max_size=4,
    ),
    st.floats(1e-9, 1e-5),
)
def test_a_written_study_reads_back(patients: list[str], delta: float) -> None:
    """to_yaml writes what load_yaml reads as the same values, whatever the texts look like."""
    content = with_key("privacy.target_delta", delta)
    looks = [*patients, "1e-3", "on", "007", "null", "2020-01-01", "*x", "a: b"]
    content["simulation"] = {"sites": {"1e5": {"exclude": looks}}}
    study = parse(Study, content, where="x")
    assert parse(Study, load_yaml(to_yaml(study), where="x"), where="x") == study


def test_values_are_frozen() -> None:
    """A study does not change after it was read."""
    study = parse(Study, MINIMAL, where="x")
    with pytest.raises(ValidationError):
        study.seed = 2
    with pytest.raises(ValidationError):
        study.privacy.target_epsilon = 100.0
    with pytest.raises(ValidationError):
        Intensity(low=0, high=float("inf"))


def test_shares_of_the_split() -> None:
    """Folds give equal parts, a test share two; the training share is what is left."""
    folds = parse(Study, with_key("data.folds", 5), where="x").data
    assert folds.split_shares == (0.2,) * 5
    assert folds.train_share == pytest.approx(0.8)
    single = parse(Study, with_key("data.test_share", 0.3), where="x").data
    assert single.split_shares == pytest.approx((0.3, 0.7))


@pytest.mark.parametrize("port", [1, 9092, 65_535, 65_536])
def test_a_port_is_one_that_exists(port: int) -> None:
    """Of a larger number only the lower bits would count: another port."""
    with nullcontext() if port < 2**16 else pytest.raises(BadInput, match="host:port"):
        parse(Link, {"server": f"fl.example.org:{port}"}, where="link")
