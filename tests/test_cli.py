"""The command line: what it promises by name, and what it says to bad input and to Ctrl-C."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

import fedward
from common.catalogue import CATALOGUE

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, str(ROOT / "fedward.py")]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

# The part of the contract (DESIGN) that is kept so far: each command with its options.
CONTRACT = {
    "simulate": {
        "--engine", "--rounds", "--seed", "--data", "--baselines", "--no-baselines", "--set",
        "--out", "--resume", "--json",
    },
    "evaluate": {"--data", "--by", "--out", "--json"},
    "models": {"--probe", "--json"},
    "privacy plan": {"--data", "--set", "--json"},
    "privacy ledger show": {"--json"},
    "privacy ledger verify": {"--head"},
    "privacy ledger restore": {"--study"},
    "data phantom": {"--patients", "--hospitals", "--seed", "--shift", "--label-noise"},
    "data pull": {
        "--out", "--modality", "--list", "--from", "--to", "--study-description",
        "--series-description", "--site", "--label", "--limit",
    },
    "data check": {"--json"},
    "data manifest": {"--out", "--site", "--folders", "--pictures"},
    "data prune": {"--older-than"},
    "server": {"--federation", "--set", "--out", "--resume"},
    "federation provision": {"--trial"},
    "federation sign": set(),
    "federation revoke": set(),
    "watch": set(),
    "site init": {"--out"},
    "site check": {"--study", "--json"},
    "site status": {"--json"},
    "site approve": set(),
    "site withdraw": set(),
    "site run": set(),
    "site receipts": {"--verify", "--head", "--json"},
    "schema": {"--yaml", "--json"},
}  # fmt: skip


def fedward_says(*arguments: str | Path) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(fedward.app, [str(argument) for argument in arguments])


def process(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        check=False,
        cwd=folder,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def commands() -> dict[str, click.Command]:
    """Every command by its words."""
    found = {"": typer.main.get_command(fedward.app)}
    while groups := {name: each for name, each in found.items() if isinstance(each, click.Group)}:
        for name, group in groups.items():
            del found[name]
            found |= {f"{name} {inner}".strip(): each for inner, each in group.commands.items()}
    return found


@pytest.mark.parametrize("name", CONTRACT)
def test_every_command_and_option_of_the_contract_exists(name: str) -> None:
    """Names and options stay, since people's scripts hold them."""
    options = {
        option
        for parameter in commands()[name].params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    assert options >= CONTRACT[name]


def test_every_command_is_in_the_contract() -> None:
    """What the command line can do is written down, each with a sentence for people."""
    assert set(commands()) == set(CONTRACT)
    for command in commands().values():
        assert command.help
        for parameter in command.params:
            assert isinstance(parameter, click.Argument) or parameter.help


@pytest.mark.parametrize("name", ["", "privacy", "privacy ledger", "data", "site", *CONTRACT])
def test_help_comes_at_once(name: str, tmp_path: Path) -> None:
    """--help takes less than half a second of CPU: nothing heavy is imported for it."""
    seconds = []
    for _ in range(3):
        before = _children_seconds()
        shown = process(*name.split(), "--help", folder=tmp_path)
        seconds.append(_children_seconds() - before)
        assert shown.returncode == 0
        assert "Usage" in shown.stdout
        if seconds[-1] < 0.5:
            break
    assert min(seconds) < 0.5


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# Bad input: what is done to the tiny data set, the arguments, and what the sentence must hold.

Break = Callable[[Path], None]


def fine(_folder: Path) -> None:
    """Nothing is broken."""


def study_line(old: str, new: str) -> Break:
    """Another text in study.yaml."""

    def change(folder: Path) -> None:
        text = (folder / "study.yaml").read_text()
        assert old in text
        (folder / "study.yaml").write_text(text.replace(old, new))

    return change


def manifest(change: Callable[[list[list[str]]], Any]) -> Break:
    """Other lines in manifest.csv; `change` edits them in place."""

    def rewrite(folder: Path) -> None:
        with (folder / "manifest.csv").open(newline="") as file:
            lines = list(csv.reader(file))
        change(lines)
        with (folder / "manifest.csv").open("w", newline="") as file:
            csv.writer(file).writerows(lines)

    return rewrite


def _no_label_column(lines: list[list[str]]) -> None:
    lines[0][3] = "diagnosis"


def _unknown_label(lines: list[list[str]]) -> None:
    lines[5][3] = "sunny"


def _patient_at_two_sites(lines: list[list[str]]) -> None:
    lines[1][2] = "west"


def _nobody(lines: list[list[str]]) -> None:
    del lines[1:]


def _one_patient_at_east(lines: list[list[str]]) -> None:
    lines[1:] = [line for line in lines[1:] if line[2] != "east" or line[1] == "east-0"]


def _no_image(folder: Path) -> None:
    (folder / "images" / "north-1-0.png").write_bytes(b"This is no image.")


def _other_run(folder: Path) -> None:
    (folder / "other").mkdir()
    text = (folder / "study.yaml").read_text().replace("rounds: 2", "rounds: 7")
    (folder / "other" / "study.yaml").write_text(text)


def _file(folder: Path) -> None:
    (folder / "file").touch()


RUN = ("simulate", "study.yaml", "--out", "out")
PRIVATE = ("--set", "privacy.enabled=true")
BAD_INPUT: dict[str, tuple[Break, tuple[str, ...], tuple[str, ...]]] = {
    "unknown key": (
        study_line("training: {rounds", "training: {ruonds"),
        RUN,
        ("study.yaml", "training.ruonds", "did you mean `rounds`"),
    ),
    "unknown key on the command line": (
        fine,
        (*RUN, "--set", "trainig.rounds=3"),
        ("trainig", "did you mean `training`"),
    ),
    "override without a value": (fine, (*RUN, "--set", "seed"), ("--set", "KEY=VALUE")),
    "broken yaml": (study_line("name: tiny", "name: ["), RUN, ("study.yaml", "line", "mend")),
    "missing column": (manifest(_no_label_column), RUN, ("manifest.csv", "label", "must name")),
    "no image": (_no_image, RUN, ("north-1-0.png", "Replace the file")),
    "unknown label": (
        manifest(_unknown_label),
        RUN,
        ("manifest.csv", "line 6", "'sunny'", "dark, bright", "mend"),
    ),
    "a patient at two sites": (
        manifest(_patient_at_two_sites),
        RUN,
        ("manifest.csv", "another site", "one site"),
    ),
    "missing image": (
        lambda folder: (folder / "images" / "west-0-0.png").unlink(),
        RUN,
        ("manifest.csv", "west-0-0.png", "mend the path"),
    ),
    "empty manifest": (manifest(_nobody), RUN, ("manifest.csv", "at least one image")),
    "no training patients": (
        manifest(_one_patient_at_east),
        (*RUN, "--set", "data.folds=2"),
        ("east", "no training patients", "data.folds"),
    ),
    "negative epsilon": (
        fine,
        (*RUN, *PRIVATE, "--set", "privacy.target_epsilon=-1"),
        ("privacy.target_epsilon", "greater than 0", "-1"),
    ),
    "delta too large": (
        fine,
        (*RUN, *PRIVATE, "--set", "privacy.target_delta=0.01"),
        ("privacy.target_delta", "at most 1e-05", "0.01"),
    ),
    "delta too large for a site": (
        fine,
        (*RUN, *PRIVATE, "--set", "simulation.sites.east.declared_patients=30000"),
        ("delta", "30000", "Set delta"),
    ),
    "zero rounds": (fine, (*RUN, "--rounds", "0"), ("training.rounds", "equal to 1", "0")),
    "zero hospitals": (
        fine,
        ("simulate", "quick", "--out", "out", "--set", "simulation.phantom.hospitals=0"),
        ("simulation.phantom.hospitals", "equal to 1"),
    ),
    "more hospitals than patients": (
        fine,
        ("simulate", "quick", "--out", "out", "--set", "simulation.phantom.patients=1"),
        ("patients", "got 1"),
    ),
    "zero hospitals of a phantom": (
        fine,
        ("data", "phantom", "ild", "out", "--hospitals", "0"),
        ("--hospitals", "x>=1"),
    ),
    "phantom of one exam": (
        fine,
        ("data", "phantom", "mrnet", "out", "--patients", "1"),
        ("data phantom", "exams", "equal to 2", "1"),
    ),
    "unknown phantom": (fine, ("data", "phantom", "mri", "out"), ("ild", "mri")),
    "phantom over other files": (fine, ("data", "phantom", "ild", "images"), ("images", "empty")),
    "data to check that are not there": (
        fine,
        ("data", "check", "nowhere"),
        ("nowhere", "does not exist", "name a folder"),
    ),
    "a manifest that is there already": (
        fine,
        ("data", "manifest", "."),
        ("manifest.csv", "is there already", "--out"),
    ),
    "pruning what is in use": (fine, ("data", "prune", "--older-than", "0"), ("x>=1",)),
    "unwritable output": (
        _file,
        ("simulate", "study.yaml", "--out", "file/below"),
        ("--out file/below", "can't be written", "name a folder"),
    ),
    "output that is a file": (
        _file,
        ("simulate", "study.yaml", "--out", "file"),
        ("--out file", "name another"),
    ),
    "output on a system's folder": (
        fine,
        ("simulate", "study.yaml", "--out", "/proc/fedward"),
        ("--out /proc/fedward", "name a folder"),
    ),
    "output with a name too long": (
        fine,
        ("simulate", "study.yaml", "--out", "x" * 300),
        ("--out xxx", "name a folder"),
    ),
    "output of another study": (
        _other_run,
        ("simulate", "study.yaml", "--out", "other"),
        ("--out other", "another study", "name another"),
    ),
    "output with other files": (
        fine,
        ("simulate", "study.yaml", "--out", "images"),
        ("--out images", "no empty folder"),
    ),
    "nothing to resume": (fine, (*RUN, "--resume"), ("--resume", "out", "leave --resume out")),
    "missing study file": (fine, ("simulate", "none.yaml"), ("none.yaml", "can't be read")),
    "unknown study": (fine, ("simulate", "quik"), ("quik", "quick", "chest-xray")),
    "unknown model": (
        fine,
        (*RUN, "--set", "model.name=cnn-smal"),
        ("model.name", "cnn-smal", "Did you mean cnn-small"),
    ),
    "unknown engine": (fine, (*RUN, "--engine", "rays"), ("--engine", "rays", "inline")),
    "study without data": (fine, ("simulate", "chest-xray", "--out", "out"), ("--data PATH",)),
    "data that are not there": (
        fine,
        (*RUN, "--data", "nowhere.csv"),
        ("nowhere.csv", "does not exist", "--data"),
    ),
    "unknown site": (
        fine,
        (*RUN, "--set", "simulation.sites.nroth.exclude=[a]"),
        ("simulation.sites", "nroth", "east, north, west"),
    ),
    "images too small for the model": (
        fine,
        (*RUN, "--set", "model.name=frozen-efficientnet-lite0"),
        ("data.image_size_px", "32", "Raise it"),
    ),
    "nothing to plan": (
        fine,
        ("privacy", "plan", "study.yaml"),
        ("privacy.enabled", "--set privacy.enabled=true"),
    ),
    "plan with a delta too large": (
        fine,
        ("privacy", "plan", "study.yaml", *PRIVATE, "--set", "privacy.target_delta=1e-4"),
        ("privacy.target_delta", "at most 1e-05"),
    ),
    "unknown schema": (fine, ("schema", "studi"), ("study, site or federation", "studi")),
    "no model": (
        fine,
        ("evaluate", "nothing", "--data", "manifest.csv"),
        ("nothing", "run directory or a model file"),
    ),
    "a picture as a model": (
        fine,
        ("evaluate", "images/east-0-0.png", "--data", "manifest.csv"),
        ("east-0-0.png", ".safetensors"),
    ),
    "unknown option": (fine, ("simulate", "--roundz", "3"), ("--roundz",)),
}


def everything(folder: Path) -> dict[str, bytes]:
    """All files below a folder with their content, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("FEDWARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def check_refusal(stderr: str, stdout: str, code: int, expected: tuple[str, ...]) -> None:
    """Exit code 2, nothing on standard output, one short message that holds what it must."""
    assert code == 2, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    assert "Error" in stderr
    message = [line for line in stderr.splitlines() if not line.startswith("site ")]
    assert sum(line.startswith("Error") for line in message) == 1
    assert len(" ".join(message)) < 500
    for text in expected:
        assert text in stderr


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Exit code 2; the sentence names file or key and remedy; no file is left behind."""
    breaks, arguments, expected = BAD_INPUT[name]
    breaks(tiny)
    monkeypatch.chdir(tiny)
    before = everything(tiny)
    said = fedward_says(*arguments)
    assert said.exception is None or isinstance(said.exception, SystemExit)
    check_refusal(said.stderr, said.stdout, said.exit_code, expected)
    assert everything(tiny) == before
    whole = ("images-", "phantom-")  # what was read well stays read
    assert all(path.name.startswith(whole) for path in cache.iterdir())
    assert not list(cache.rglob(".*"))


@pytest.mark.parametrize("name", ["unknown key", "no image", "unwritable output"])
def test_bad_input_in_a_process_of_its_own(tiny: Path, name: str) -> None:
    """The same through the real command: code, sentence, and nothing left behind."""
    breaks, arguments, expected = BAD_INPUT[name]
    breaks(tiny)
    before = everything(tiny)
    said = process(*arguments, folder=tiny)
    check_refusal(said.stderr, said.stdout, said.returncode, expected)
    assert everything(tiny) == before


def test_no_message_names_a_patient(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A contradiction about a patient names lines of the table, never the patient."""
    manifest(_patient_at_two_sites)(tiny)
    monkeypatch.chdir(tiny)
    said = fedward_says(*RUN)
    assert said.exit_code == 2
    assert "line 3" in said.stderr
    assert "east-0" not in said.stderr


# What works.


@pytest.mark.usefixtures("no_report")
def test_a_simulation_prints_its_table_and_where_its_files_are(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options reach the study; runs are numbered; --resume without --out takes the last."""
    monkeypatch.chdir(tiny)
    options = ("simulate", "study.yaml", "--rounds", "1", "--seed", "9", "--no-baselines")
    said = fedward_says(*options)
    assert said.exit_code == 0, said.stderr
    assert "federated" in said.stdout
    assert "runs/tiny/report.html" in said.stdout
    assert "round 1 of 1: 3 of 3 sites" in said.stderr
    again = fedward_says(*options, "--json")
    assert again.exit_code == 0, again.stderr
    result = json.loads(again.stdout)
    assert (result["rounds"], result["seed"]) == (1, 9)
    assert set(result["evaluation"]) == {"federated"}
    assert result == json.loads((tiny / "runs" / "tiny-2" / "result.json").read_text())
    first = json.loads((tiny / "runs" / "tiny" / "result.json").read_text())
    assert result["weights_sha256"] == first["weights_sha256"]
    resumed = fedward_says(*options, "--resume", "--json")
    assert json.loads(resumed.stdout)["weights_sha256"] == first["weights_sha256"]
    assert sorted(path.name for path in (tiny / "runs").iterdir()) == ["tiny", "tiny-2"]


@pytest.mark.usefixtures("no_report")
def test_data_are_named_from_where_one_stands(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--data is relative to the working folder, with any characters that a path may have."""
    (tiny / "place").mkdir()
    there = tiny.rename(tiny.parent / "Röntgen 😀 = 1")
    monkeypatch.chdir(there / "place")
    said = fedward_says(
        "simulate", "../study.yaml", "--data", "../manifest.csv", "--no-baselines", "--json",
        "--out", "out",
    )  # fmt: skip
    assert said.exit_code == 0, said.stderr


def test_an_evaluation_can_be_kept(finished: Path, tmp_path: Path) -> None:
    """evaluate prints a table or JSON, and --out keeps both numbers and page."""
    arguments = ("evaluate", finished / "run", "--data", finished / "manifest.csv")
    printed = fedward_says(*arguments, "--by", "sex", "--out", tmp_path / "kept")
    assert printed.exit_code == 0, printed.stderr
    for expected in (
        "6 patients, 12 images",
        "sex: F",
        "true class",
        "without differential privacy",
    ):
        assert expected in printed.stdout
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {
        "evaluation.json",
        "report.html",
    }
    numbers = json.loads(fedward_says(*arguments, "--json").stdout)
    result = json.loads((finished / "run" / "result.json").read_text())
    assert numbers[0]["evaluation"] == result["evaluation"]["federated"]


def test_a_plan_prints_every_site(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """privacy plan prints sigma and epsilon for every site, as a table or JSON."""
    monkeypatch.chdir(tiny)
    printed = fedward_says("privacy", "plan", "study.yaml", *PRIVATE)
    assert printed.exit_code == 0, printed.stderr
    assert all(name in printed.stdout for name in ("east", "north", "west", "sigma"))
    numbers = json.loads(fedward_says("privacy", "plan", "study.yaml", *PRIVATE, "--json").stdout)
    assert set(numbers["sites"]) == {"east", "north", "west"}


def test_the_models_are_listed_at_once(tmp_path: Path) -> None:
    """models takes less than a second: it reads a table, and neither torch nor opacus."""
    before = _children_seconds()
    printed = process("models", folder=tmp_path)
    assert _children_seconds() - before < 1
    numbers = json.loads(fedward_says("models", "--json").stdout)
    assert set(numbers) == set(CATALOGUE)
    for name, line in numbers.items():
        assert set(line) == {"parameters", "smallest_image_px", "noise_norm", "purpose"}
        (row,) = (row for row in printed.stdout.splitlines() if row.startswith(f"{name} "))
        assert f"{line['parameters']:,}" in row
        assert line["purpose"] in row


def test_a_probe_takes_a_step_of_each_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """models --probe prints the same lines with what a step takes, as a table or JSON."""
    from simulations import probe

    measured = (
        probe.Probe("cnn-small", {kind: probe.Step(0.5, 20.0) for kind in probe.KINDS}),
        probe.Probe("vit-tiny", {kind: probe.Step(problem="too big.") for kind in probe.KINDS}),
    )
    monkeypatch.setattr(probe, "probe_models", lambda on_step: measured)
    printed = fedward_says("models", "--probe")
    assert printed.exit_code == 0, printed.stderr
    assert "0.5 s, 20 MiB" in printed.stdout
    assert "vit-tiny, fast: too big." in printed.stdout
    numbers = json.loads(fedward_says("models", "--probe", "--json").stdout)
    assert numbers["cnn-small"]["steps"]["fast"] == {"seconds": 0.5, "peak_mib": 20}
    assert (numbers["cnn-small"]["private"], numbers["vit-tiny"]["private"]) == (True, False)


@pytest.mark.parametrize("which", ["study", "site"])
def test_a_schema_can_be_edited_and_read_back(which: str, tmp_path: Path) -> None:
    """schema prints a commented file that fedward itself reads, or a JSON schema."""
    from common.config import load_site, load_study

    printed = fedward_says("schema", which)
    (tmp_path / "file.yaml").write_text(printed.stdout)
    assert {"study": load_study, "site": load_site}[which](tmp_path / "file.yaml")
    assert "properties" in json.loads(fedward_says("schema", which, "--json").stdout)


def test_a_phantom_is_written_once(tmp_path: Path) -> None:
    """data phantom writes one tree a hospital, and again does nothing."""
    arguments = ("data", "phantom", "ild", tmp_path / "p", "--patients", "2", "--hospitals", "2")
    said = fedward_says(*arguments)
    assert said.exit_code == 0, said.stderr
    before = everything(tmp_path)
    assert "p/hospital-2/ILD_DB_txtROIs" in before
    assert fedward_says(*arguments).exit_code == 0
    assert everything(tmp_path) == before


def test_a_failed_run_has_its_own_exit_code(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study that could not go on ends with 1 and says why and how to resume."""
    from server import rounds

    monkeypatch.chdir(tiny)
    monkeypatch.setattr(rounds, "problem", lambda *_: "made up for this test")
    said = fedward_says(*RUN)
    assert said.exit_code == 1
    assert "Traceback" not in said.stderr
    for expected in ("Failed: round 1", "east: bad reply: made up", "--resume"):
        assert expected in said.stderr


@pytest.mark.usefixtures("no_report")
def test_ctrl_c_ends_cleanly_and_the_run_goes_on(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted: exit code 1, a sentence that says how to go on, and going on works."""
    study_line("rounds: 2", "rounds: 20")(tiny)
    # A shell that runs these tests in the background has them, and all they start, ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    running = subprocess.Popen(
        [*COMMAND, *RUN, "--no-baselines"],
        cwd=tiny,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    try:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("round 2 "):
                break
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 1
    assert "Traceback" not in stderr
    assert "Stopped. Go on with the same command and --out out --resume." in stderr
    assert stdout == ""
    rounds = len((tiny / "out" / "history.jsonl").read_text().splitlines())
    assert 2 <= rounds < 20
    monkeypatch.chdir(tiny)
    told = fedward_says(*RUN, "--no-baselines", "--resume", "--json")
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout)["sites"]["east"]["rounds_joined"] == 20


def test_a_site_joins_by_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Provision, init, sign: both sides are shown the same fingerprints; revoking undoes it."""
    monkeypatch.chdir(tmp_path)
    Path("federation.yaml").write_text("server: lungs.example:9092\nsites:\n  alpha:\n")
    provisioned = fedward_says("federation", "provision", "federation.yaml")
    joined = fedward_says("site", "init", "kits/alpha")
    signed = fedward_says("federation", "sign", "federation.yaml", "alpha/enrolment.pem")
    assert [one.exit_code for one in (provisioned, joined, signed)] == [0, 0, 0]
    spoken = re.compile(r"(?:[0-9a-f]{4} ){7}[0-9a-f]{4}")
    authority, coordinator = spoken.findall(provisioned.output)
    assert spoken.findall(joined.output) == [authority, coordinator, *spoken.findall(signed.output)]
    assert fedward_says("federation", "revoke", "federation.yaml", "alpha").exit_code == 0
    refused = fedward_says("federation", "sign", "federation.yaml", "alpha/enrolment.pem")
    assert refused.exit_code == 2
    assert "was revoked" in refused.stderr
