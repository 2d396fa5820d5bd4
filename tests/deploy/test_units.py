"""The systemd units: systemd finds nothing wrong with them, and they are as tight as is said."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "deploy" / "systemd"
MOST_EXPOSED = 15  # tenths of systemd's own figure, of which 100 is worst
MOST_S = 60.0

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze isn't installed here"
)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units under the names that the runbook gives them, with a program to call."""
    folder = tmp_path / "units"
    shutil.copytree(UNITS, folder)
    (folder / "gpu.conf").rename(folder / "fedward-site@.service.d" / "20-gpu.conf")
    for unit in folder.glob("*.service"):
        unit.write_text(unit.read_text().replace("/opt/fedward/bin/fedward", "/bin/true"))
    return folder


@needs_analyze
@pytest.mark.parametrize("unit", ["fedward-site@alpha.service", "fedward-server@lungs.service"])
def test_units_are_sound(installed: Path, unit: str) -> None:
    """systemd finds nothing to say about a unit and its drop-ins."""
    said = analyze("verify", f"./{unit}", units=installed)
    assert (said.returncode, said.stdout + said.stderr) == (0, "")


@needs_analyze
@pytest.mark.parametrize("unit", ["fedward-site@.service", "fedward-server@.service"])
def test_units_are_tight(unit: str) -> None:
    """systemd's own figure of how much a service is exposed stays as low as SECURITY.md says."""
    said = analyze(
        "security", "--offline=true", f"--threshold={MOST_EXPOSED}", f"./{unit}", units=UNITS
    )
    assert said.returncode == 0, said.stdout
    (level,) = re.findall(r"Overall exposure level .*: (\d\.\d) OK", said.stdout)
    assert level in (ROOT / "deploy" / "SECURITY.md").read_text()


def analyze(*arguments: str, units: Path) -> subprocess.CompletedProcess[str]:
    """systemd-analyze, which sees these units beside the system's."""
    environment = os.environ | {"SYSTEMD_UNIT_PATH": f"{units}:"}
    command = ["systemd-analyze", "--no-pager", *arguments]
    return subprocess.run(
        command,
        cwd=units,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=MOST_S,
    )
