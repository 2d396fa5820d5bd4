"""`make wheelhouse`: what is in it, and that it installs without a network, and only whole."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).parents[2]
MOST_S = 240.0
README = "tests/common/privacy/test_not_covered.py::test_the_readme_has_the_whole_table"
QUICK = ("tests/common", "tests/server", f"--deselect={README}")  # which need no file beside them
NAME = "leafless"  # of a package that only this test has


def load() -> ModuleType:
    """deploy/wheelhouse.py, which is no package."""
    spec = importlib.util.spec_from_file_location("wheelhouse", ROOT / "deploy" / "wheelhouse.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["wheelhouse"] = module
    spec.loader.exec_module(module)
    return module


tool = load()


def write_wheel(folder: Path, *, says: str = "") -> str:
    """A wheel of one empty module; returns its entry of a lock."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{NAME}-1.2-py3-none-any.whl"
    info = f"{NAME}-1.2.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{NAME}.py", says)
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.4\nName: {NAME}\nVersion: 1.2\n"
                      "License-Expression: MIT\n")  # fmt: skip
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(
            f"{info}/RECORD", f"{NAME}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{NAME}==1.2 \\\n    --hash=sha256:{digest}\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheelhouse of fedward and one small package, made without a network."""
    folder = tmp_path_factory.mktemp("wheelhouse")
    lock = write_wheel(folder / "index")
    with pytest.MonkeyPatch.context() as patch:
        offline(patch, folder / "index")
        tool.make_wheelhouse(folder / "wheelhouse", lock=lock)
    return folder / "wheelhouse"


def offline(patch: pytest.MonkeyPatch, index: Path) -> None:
    """pip knows this folder alone, whatever this machine has configured."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        patch.delenv(name)
    for name, value in {
        "CONFIG_FILE": os.devnull,
        "NO_INDEX": "1",
        "FIND_LINKS": str(index),
    }.items():
        patch.setenv(f"PIP_{name}", value)


def test_it_has_all_that_is_installed(made: Path) -> None:
    """Each wheel is there once, in the list with its hash, and in the bill of materials."""
    wheels = sorted(made.glob("*.whl"))
    assert [path.name.split("-")[0] for path in wheels] == ["fedward", NAME]
    install, bill = (
        (made / "install.txt").read_text(),
        json.loads((made / "sbom.cdx.json").read_text()),
    )
    hashes = {hashlib.sha256(path.read_bytes()).hexdigest() for path in wheels}
    assert all(f"--hash=sha256:{digest}" in install for digest in hashes)
    listed = [bill["metadata"]["component"], *bill["components"]]
    assert {one["hashes"][0]["content"] for one in listed} == hashes
    (small,) = bill["components"]
    assert small["purl"] == f"pkg:pypi/{NAME}@1.2"
    assert small["licenses"] == [{"expression": "MIT"}]
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    refs = {one["ref"] for one in bill["dependencies"]}
    assert refs == {one["bom-ref"] for one in listed}


def test_the_own_wheel_is_whole(made: Path) -> None:
    """It has each module of the four packages, the studies and the command; no test, no data."""
    (wheel,) = made.glob("fedward-*.whl")
    inside = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    modules = {
        path.relative_to(ROOT).as_posix()
        for name in ("client", "common", "server", "simulations")
        for path in (ROOT / name).rglob("*.py")
    }
    studies = {
        p.relative_to(ROOT).as_posix() for p in (ROOT / "simulations/studies").glob("*.yaml")
    }
    assert inside - {"common/py.typed"} == modules | studies | {"fedward.py"}


def test_it_is_the_same_again(made: Path, tmp_path: Path) -> None:
    """The bill of materials follows from the wheels alone."""
    wheels = [tool.read_wheel(path) for path in sorted(made.glob("*.whl"))]
    bill = json.loads((made / "sbom.cdx.json").read_text())
    assert tool.sbom(wheels[0], wheels) == bill


def test_a_wheel_that_the_lock_does_not_know_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file under the same name and version: nothing is made of it."""
    lock = write_wheel(tmp_path / "index")
    write_wheel(tmp_path / "index", says="import os")
    offline(monkeypatch, tmp_path / "index")
    with pytest.raises(subprocess.CalledProcessError):
        tool.make_wheelhouse(tmp_path / "wheelhouse", lock=lock)
    assert not (tmp_path / "wheelhouse" / "sbom.cdx.json").exists()


def test_parts_of_a_lock_keep_their_hashes() -> None:
    """Each entry of the real lock is found by its name, none is lost, with all its hashes."""
    lock = (ROOT / "requirements.lock").read_text()
    entries = tool.entries(lock)
    assert sorted("".join(entries.values()).splitlines()) == sorted(lock.splitlines())
    assert {"torch", "flwr", "pyyaml"} <= entries.keys()


def install(home: Path) -> list[str]:
    """The runbook's command, for another place than /opt/fedward."""
    page = (ROOT / "deploy" / "RUNBOOK.md").read_text()
    (line,) = [li for li in page.splitlines() if li.startswith("/opt/fedward/bin/pip install")]
    return line.replace("/opt/fedward", str(home)).split()


def test_it_installs_without_a_network(made: Path, tmp_path: Path) -> None:
    """The runbook's command in a fresh venv and an empty network; a changed wheel is refused."""
    shutil.copytree(made, tmp_path / "wheelhouse")
    home = tmp_path / "fedward"
    run([sys.executable, "-m", "venv", str(home)], at=tmp_path)
    command = install(home)
    run(command, at=tmp_path)
    # What fedward needs to start is borrowed from here: the wheelhouse has only two packages.
    borrowed = ["env", f"PYTHONPATH={sysconfig.get_path('purelib')}"]
    said = run([*borrowed, str(home / "bin" / "fedward"), "--help"], at=tmp_path)
    assert "hospitals train together" in said
    write_wheel(tmp_path / "other", says="import os")
    shutil.copy(tmp_path / "other" / f"{NAME}-1.2-py3-none-any.whl", tmp_path / "wheelhouse")
    said = run([*command, "--force-reinstall"], at=tmp_path, ends=1)
    assert "DO NOT MATCH THE HASHES" in said


@pytest.mark.long
@pytest.mark.timeout(5400)
def test_all_of_it_passes_tests_without_a_network(tmp_path: Path) -> None:
    """The whole lock, installed by the runbook's command; tests of what is installed pass there."""
    if not alone():
        pytest.skip("this user may make no network namespace here")
    tool.make_wheelhouse(tmp_path / "wheelhouse", lock=(ROOT / "requirements.lock").read_text())
    bill = json.loads((tmp_path / "wheelhouse" / "sbom.cdx.json").read_text())
    listed = [bill["metadata"]["component"], *bill["components"]]
    wheels = {
        (canonicalize_name(one["name"]), Version(one["version"]), one["hashes"][0]["content"])
        for one in listed
    }
    assert len(listed) > 100
    assert wheels == {
        (*parse_wheel_filename(path.name)[:2], hashlib.sha256(path.read_bytes()).hexdigest())
        for path in (tmp_path / "wheelhouse").glob("*.whl")
    }
    home, apart = tmp_path / "fedward", tmp_path / "apart"
    run([sys.executable, "-m", "venv", str(home)], at=tmp_path)
    run(install(home), at=tmp_path, within_s=1800)
    run([str(home / "bin" / "pip"), "check"], at=tmp_path)
    # Without the sources beside them, the tests import what is installed.
    apart.mkdir()
    for name in tool.FILES:
        shutil.copy(ROOT / name, apart)
    shutil.copytree(ROOT / "tests", apart / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    quick = [str(home / "bin" / "python"), "-m", "pytest", "-q", *QUICK]
    run(["sh", "-c", 'ip link set lo up && exec "$@"', "sh", *quick], at=apart, within_s=3600)


def alone() -> list[str]:
    """In a network of its own, without even loopback, where root may make one."""
    tried = ["unshare", "--net", "true"]
    may = os.geteuid() == 0 and shutil.which("unshare")
    if may and subprocess.run(tried, check=False, capture_output=True).returncode == 0:
        return ["unshare", "--net"]
    return []


def environment() -> dict[str, str]:
    """Without this machine's settings of pip and Python."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))}
    return clean | {"PIP_CONFIG_FILE": os.devnull}


def run(command: list[str], *, at: Path, ends: int = 0, within_s: float = MOST_S) -> str:
    """What it says; it must end so."""
    done = subprocess.run(
        [*alone(), *command],
        check=False, cwd=at, env=environment(), capture_output=True, text=True, timeout=within_s,
    )  # fmt: skip
    assert done.returncode == ends, done.stdout + done.stderr
    return done.stdout + done.stderr
