"""`make wheelhouse`: all that fedward is installed from, in one folder, with hashes and an SBOM.

The folder has each wheel of requirements.lock for this machine (pip takes none whose hash isn't in
the lock), fedward's own, `install.txt` (the lock with fedward's own hash) and `sbom.cdx.json`
(CycloneDX 1.6). On a machine without network, of the same kind and Python:

    pip install --no-deps --no-index --find-links FOLDER --require-hashes -r FOLDER/install.txt
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("client", "common", "server", "simulations")
FILES = ("LICENSE", "README.md", "fedward.py", "pyproject.toml")


@dataclass(frozen=True)
class Wheel:
    """A wheel, by what it says of itself."""

    file: str
    sha256: str
    metadata: Message

    @property
    def name(self) -> str:
        """The package's name, as PyPI compares it."""
        return canonicalize_name(self.metadata["Name"])

    @property
    def purl(self) -> str:
        """The package as advisories name it."""
        return f"pkg:pypi/{self.name}@{self.metadata['Version']}"

    def needs(self, there: frozenset[str]) -> list[str]:
        """Names, out of those, that it needs on this machine."""
        asked = [Requirement(line) for line in self.metadata.get_all("Requires-Dist", [])]
        names = {
            canonicalize_name(one.name)
            for one in asked
            if one.marker is None or one.marker.evaluate({"extra": ""})
        }
        return sorted(names & there)


def make_wheelhouse(folder: Path, *, lock: str) -> None:
    """Fill a new folder.

    Args:
        folder: must not be there yet.
        lock: text of requirements.lock, or some of its entries.

    Raises:
        FileExistsError: the folder is there.
        subprocess.CalledProcessError: pip can't fetch a wheel, or its hash isn't in the lock.
    """
    folder.mkdir(parents=True)
    install = folder / "install.txt"
    install.write_text(lock)
    own = _build(folder)
    _pip("download", "--no-deps", "--only-binary", ":all:", "--require-hashes",
         "--requirement", str(install), "--dest", str(folder))  # fmt: skip
    wheels = [read_wheel(path) for path in sorted(folder.glob("*.whl"))]
    mine = next(wheel for wheel in wheels if wheel.file == own)
    pin = f"{mine.name}=={mine.metadata['Version']}"
    install.write_text(f"{lock.rstrip()}\n{pin} \\\n    --hash=sha256:{mine.sha256}\n")
    text = json.dumps(sbom(mine, wheels), indent=1, sort_keys=True)
    (folder / "sbom.cdx.json").write_text(text + "\n")


def entries(lock: str) -> dict[str, str]:
    """A lock's entries with their hashes, by name; several of one name (markers) stay together.

    >>> entries("a==1 \\\\\\n    --hash=sha256:00\\nb==2 \\\\\\n    --hash=sha256:11\\n")["b"]
    'b==2 \\\\\\n    --hash=sha256:11\\n'
    """
    found: dict[str, str] = {}
    for entry in re.findall(r"^\S.*\n(?:[ \t].*\n)*", lock, re.MULTILINE):
        name = canonicalize_name(re.split("[=;@ ]", entry, maxsplit=1)[0])
        found[name] = found.get(name, "") + entry
    return found


def read_wheel(path: Path) -> Wheel:
    """A wheel with its metadata (core metadata of PyPA)."""
    with zipfile.ZipFile(path) as content:
        (name,) = (n for n in content.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        metadata = Parser().parsestr(content.read(name).decode())
    with path.open("rb") as file:
        return Wheel(path.name, hashlib.file_digest(file, "sha256").hexdigest(), metadata)


def sbom(product: Wheel, wheels: list[Wheel]) -> dict[str, Any]:
    """The bill of materials (CycloneDX 1.6, ECMA-424): the same wheels give the same text."""
    there = frozenset(wheel.name for wheel in wheels)
    by_name = {wheel.name: wheel.purl for wheel in wheels}
    told = "\n".join(f"{wheel.file} {wheel.sha256}" for wheel in wheels)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, told)}",
        "version": 1,
        "metadata": {"component": {**_component(product), "type": "application"}},
        "components": [_component(wheel) for wheel in wheels if wheel is not product],
        "dependencies": [
            {"ref": wheel.purl, "dependsOn": [by_name[name] for name in wheel.needs(there)]}
            for wheel in wheels
        ],
    }


def _component(wheel: Wheel) -> dict[str, Any]:
    said = wheel.metadata
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": wheel.purl,
        "name": said["Name"],
        "version": said["Version"],
        "purl": wheel.purl,
        "hashes": [{"alg": "SHA-256", "content": wheel.sha256}],
    }
    classified = [
        line.rpartition(" :: ")[2]
        for line in said.get_all("Classifier", [])
        if line.startswith("License ::") and not line.endswith(":: OSI Approved")
    ]
    if "License-Expression" in said:
        component["licenses"] = [{"expression": said["License-Expression"]}]
    elif classified:
        component["licenses"] = [{"license": {"name": name}} for name in classified]
    elif said.get("License"):
        component["licenses"] = [{"license": {"name": said["License"].splitlines()[0]}}]
    return component


def _build(folder: Path) -> str:
    """fedward's own wheel, of a copy, since setuptools leaves its traces beside the source."""
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "source"
        source.mkdir()
        for name in FILES:
            shutil.copy(ROOT / name, source / name)
        for name in PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("fedward-*.whl")
    return wheel.name


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make a folder that fedward is installed from.")
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--lock", type=Path, default=ROOT / "requirements.lock")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these of the lock (for a try)")
    given = parser.parse_args()
    lock = given.lock.read_text()
    if given.only:
        known = entries(lock)
        lock = "".join(known[canonicalize_name(name)] for name in given.only)
    make_wheelhouse(given.folder, lock=lock)


if __name__ == "__main__":
    main()
