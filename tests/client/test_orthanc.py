"""A cohort from a real PACS: Orthanc (Debian: orthanc, orthanc-dicomweb) in a network of its own.

Orthanc 1.10.1 listens on all interfaces whatever its setting says, so it gets a network namespace
with nothing but loopback, and every command of these tests runs inside it.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from simulations.phantoms.ild import IldPhantom, write_ild_phantom

ROOT = Path(__file__).parents[2]
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
URL = "http://127.0.0.1:8042"
PATIENTS, SLICES, NAMED = 3, 10, 2  # in the PACS; of the last, so many slices have a name
USER = {"FEDWARD_DICOMWEB_USER": "reader", "FEDWARD_DICOMWEB_PASSWORD": "geheim"}
# For a network namespace one must be root, or be it in a user namespace.
NAMESPACE, ENTER = (["-n"], ["-n"]) if os.geteuid() == 0 else (["-rn"], ["-Un"])

# Run inside the namespace: waits for Orthanc, then stores the files that are named.
STORE = """
import sys, time, urllib.error, urllib.request
def ask(address, data=None):
    headers = {"Authorization": sys.argv[2]}
    return urllib.request.urlopen(urllib.request.Request(address, data, headers), timeout=20)
for _ in range(200):
    try:
        ask(sys.argv[1] + "/system")
        break
    except urllib.error.URLError:
        time.sleep(0.1)
for path in sys.argv[3:]:
    ask(sys.argv[1] + "/instances", open(path, "rb").read())
"""


@dataclass
class Orthanc:
    """The server's folder and process, and the process that holds the namespace open."""

    folder: Path
    holder: subprocess.Popen[bytes]
    server: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        logged = ["--verbose", f"--logfile={self.log}"]
        self.server = self.inside(found("Orthanc"), *logged, self.folder / "orthanc.json")
        self.store()

    def stop(self) -> None:
        """End it as a crash would."""
        if self.server is not None:
            self.server.kill()
            self.server.communicate()

    @property
    def log(self) -> Path:
        """Each request is a line of it."""
        return self.folder / "orthanc.log"

    def inside(self, *command: str | Path, **environment: str) -> subprocess.Popen[str]:
        """A command inside the namespace."""
        return subprocess.Popen(
            [found("nsenter"), "-t", str(self.holder.pid), *ENTER, *map(str, command)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def store(self, *files: Path) -> None:
        """Put files into it; without any, wait until it answers."""
        login = "Basic " + b64encode(b"reader:geheim").decode()
        storing = self.inside(sys.executable, "-c", STORE, URL, login, *files)
        _, said = storing.communicate(timeout=120)
        assert storing.returncode == 0, said

    def pull(self, out: Path, **environment: str) -> subprocess.Popen[str]:
        """`fedward data pull` for all CT of the phantom's days."""
        arguments = [f"{URL}/dicom-web", f"--out={out}", "--site=north", "--modality=CT"]
        return self.inside(
            sys.executable, ROOT / "fedward.py", "data", "pull", *arguments, "--from=2000-01-01",
            **(USER | environment),
        )  # fmt: skip

    def retrievals(self) -> int:
        """How many files were asked for since it was first started."""
        asked = re.compile(
            r"\(http\) GET /dicom-web/studies/[\d.]+/series/[\d.]+/instances/[\d.]+$"
        )
        with self.log.open(errors="replace") as log:
            return sum(asked.search(line.rstrip()) is not None for line in log)


def found(program: str) -> str:
    """The program's path; the test is skipped where there is none."""
    path = shutil.which(program, path=PATH)
    if path is None:
        pytest.skip(f"{program} is missing: apt-get install orthanc orthanc-dicomweb iproute2")
    return path


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Slices that name nobody, by UID; the last patient's series has a name in its last ones."""
    folder = tmp_path_factory.mktemp("phantom")
    write_ild_phantom(folder / "ild", IldPhantom(patients=PATIENTS, hospitals=1))
    slices: dict[str, bytes] = {}
    for patient in sorted((folder / "ild").glob("*/ILD_DB_txtROIs/*")):
        first = pydicom.dcmread(min(patient.rglob("CT*.dcm")))
        for number in range(1, SLICES + 1):
            named = len(slices) >= PATIENTS * SLICES - NAMED
            slices |= [as_sent(first, number, named=named)]
    return slices


def as_sent(header: pydicom.FileDataset, number: int, *, named: bool) -> tuple[str, bytes]:
    """One more slice of a series with the attributes that a de-identifying export leaves."""
    uid = generate_uid(entropy_srcs=[header.SeriesInstanceUID, str(number)])
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = uid
    header.InstanceNumber = number
    header.PixelData = header.PixelData[2:] + header.PixelData[:2]  # one's pixels aren't the next's
    header.PatientName = "Phantom^Number" if named else ""
    header.PatientSex = header.StudyID = header.StudyTime = ""
    header.PatientIdentityRemoved = "YES"
    shifted = (
        Dataset()
    )  # "Retain Longitudinal Temporal Information Modified Dates", PS3.16 CID 7050
    shifted.CodeValue, shifted.CodingSchemeDesignator = "113107", "DCM"
    shifted.CodeMeaning = "Retain Longitudinal Temporal Information Modified Dates Option"
    header.DeidentificationMethodCodeSequence = [shifted]
    file = io.BytesIO()
    header.save_as(file)
    return uid, file.getvalue()


@pytest.fixture(scope="module")
def orthanc(
    tmp_path_factory: pytest.TempPathFactory, phantom: dict[str, bytes]
) -> Iterator[Orthanc]:
    """A running Orthanc that holds the phantom's slices."""
    if not PLUGIN.exists():
        pytest.skip(f"no {PLUGIN}: apt-get install orthanc-dicomweb")
    made = "ip link set lo up && echo made && exec sleep 3600"
    holder = subprocess.Popen(
        [found("unshare"), *NAMESPACE, "sh", "-c", made],
        env=os.environ | {"PATH": PATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert holder.stdout is not None
    if holder.stdout.readline() != b"made\n":
        holder.wait()
        pytest.skip("this user may make no network namespace here, or ip (iproute2) is missing")
    server = Orthanc(tmp_path_factory.mktemp("orthanc"), holder)
    settings = {
        "StorageDirectory": str(server.folder / "storage"),
        "IndexDirectory": str(server.folder / "storage"),
        "Plugins": [str(PLUGIN)],
        "DicomServerEnabled": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"reader": "geheim"},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (server.folder / "orthanc.json").write_text(json.dumps(settings))
    paths = []
    for number, content in enumerate(phantom.values()):
        paths.append(server.folder / f"{number}.dcm")
        paths[-1].write_bytes(content)
    try:
        server.start()
        server.store(*paths)
        yield server
    finally:
        server.stop()
        holder.kill()
        holder.wait()


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and all that was said."""
    out, error = process.communicate(timeout=120)
    return process.returncode, out + error


def pixels(out: Path) -> list[bytes]:
    """The images that arrived."""
    return sorted(pydicom.dcmread(path).PixelData for path in (out / "images").rglob("*.dcm"))


def when_retrieved(orthanc: Orthanc, out: Path, at_least: int) -> None:
    """Wait until so many files lie in `out`."""
    for _ in range(20_000):
        if sum(1 for _ in out.rglob("[0-9a-f]*.dcm")) >= at_least:
            return
        time.sleep(0.001)
    raise AssertionError("nothing arrived")


def test_a_cohort_arrives_from_orthanc(
    orthanc: Orthanc, phantom: dict[str, bytes], tmp_path: Path
) -> None:
    """De-identified series arrive equal in every pixel; one with a name in it is refused."""
    code, said = finished(orthanc.pull(tmp_path / "out"))
    assert code == 1
    assert "2 of 3 series (3 studies) are there" in said
    assert "1 of 3 series were refused" in said
    assert "PatientName (1)" in said
    clean = list(phantom.values())[: (PATIENTS - 1) * SLICES]
    assert pixels(tmp_path / "out") == sorted(
        pydicom.dcmread(io.BytesIO(content)).PixelData for content in clean
    )
    lines = (tmp_path / "out" / "manifest.csv").read_text().splitlines()
    assert len(lines) == 1 + PATIENTS - 1
    assert all(line.endswith(f",{SLICES}") for line in lines[1:])
    for path in (tmp_path / "out").rglob("*.dcm"):
        assert b"Phantom^Number" not in path.read_bytes()


def test_a_killed_pull_goes_on(orthanc: Orthanc, tmp_path: Path) -> None:
    """After kill -9 the same command fetches the rest, and no whole file again."""
    before = orthanc.retrievals()
    killed = orthanc.pull(tmp_path / "out")
    when_retrieved(orthanc, tmp_path / "out", SLICES // 2)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    in_between = orthanc.retrievals() - before
    assert 0 < in_between < (PATIENTS - 1) * SLICES
    assert finished(orthanc.pull(tmp_path / "out"))[0] == 1
    assert len(pixels(tmp_path / "out")) == (PATIENTS - 1) * SLICES
    # Once more: the file in flight at the kill. The series with the name: up to it in each run.
    assert orthanc.retrievals() - before <= PATIENTS * SLICES + 1 + 1


def test_a_server_that_is_started_again_is_waited_for(orthanc: Orthanc, tmp_path: Path) -> None:
    """When Orthanc dies midway and comes back, the pull goes on by itself and misses nothing."""
    pulling = orthanc.pull(tmp_path / "out")
    when_retrieved(orthanc, tmp_path / "out", SLICES // 2)
    orthanc.stop()
    assert pulling.poll() is None
    orthanc.start()
    code, said = finished(pulling)
    assert code == 1, said
    assert len(pixels(tmp_path / "out")) == (PATIENTS - 1) * SLICES


def test_a_wrong_password_is_said(orthanc: Orthanc, tmp_path: Path) -> None:
    """Orthanc's refusal is one sentence and exit code 2."""
    code, said = finished(orthanc.pull(tmp_path / "out", FEDWARD_DICOMWEB_PASSWORD="falsch"))
    assert code == 2
    assert "refuses these credentials (HTTP 401)" in said
    assert "falsch" not in said
