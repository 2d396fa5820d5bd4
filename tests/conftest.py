"""Shared by all tests: a cache of their own, a tiny data set on disk, and where real data are."""

from __future__ import annotations

import csv
import datetime
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

# Examples take as long as the machine lets them; a test that hangs has a timeout of its own.
hypothesis.settings.register_profile("fedward", deadline=None)
hypothesis.settings.load_profile("fedward")

ROOT = Path(__file__).parents[1]
SITES = {"east": 8, "north": 8, "west": 8}  # patients
STUDY = """\
name: tiny
classes: [dark, bright]
data: {kind: manifest, image_size_px: 16}
training: {rounds: 2, batch_size: 8, learning_rate: 0.05}
privacy: {sampling_rate: 0.5, steps_per_round: 2, images_per_patient: 4}
simulation: {data: manifest.csv}
"""

WriteTiny = Callable[..., Path]
Enrol = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from or written to the user's cache, in subprocesses neither."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDWARD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _log_reaches_caplog() -> Iterator[None]:
    """A run that was interrupted must not leave its log handlers to the next test."""
    logger = logging.getLogger("fedward")
    before = logger.level, logger.propagate, list(logger.handlers)
    yield
    logger.setLevel(before[0])
    logger.propagate = before[1]
    logger.handlers[:] = before[2]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data (FEDWARD_SHARED_DATA, or ../shared/data beside the repository)."""
    folder = Path(os.environ.get("FEDWARD_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set FEDWARD_SHARED_DATA to where they are")
    return folder


@pytest.fixture(scope="session")
def write_tiny() -> WriteTiny:
    """Writes a tiny study with its data into a new folder; returns the folder.

    Each site (by name, with its number of patients) has patients of alternating classes, with two
    images each; a bright image is brighter than any dark one.
    """

    def write(folder: Path, sites: Mapping[str, int] = SITES, *, images: int = 2) -> Path:
        (folder / "images").mkdir(parents=True)
        lines = []
        for place, (site, patients) in enumerate(sites.items()):
            for number in range(patients):
                bright = number % 2
                for index in range(images):
                    path = f"images/{site}-{number}-{index}.png"
                    Pillow.fromarray(_picture([place, number, index], bright)).save(folder / path)
                    label, sex = ("dark", "bright")[bright], "FM"[number // 2 % 2]
                    lines.append([path, f"{site}-{number}", site, label, sex])
        with (folder / "manifest.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["path", "patient", "site", "label", "sex"], *lines])
        (folder / "study.yaml").write_text(STUDY)
        return folder

    return write


@pytest.fixture
def tiny(tmp_path: Path, write_tiny: WriteTiny) -> Path:
    """A folder with study.yaml, manifest.csv and images of three sites."""
    return write_tiny(tmp_path / "tiny")


def _picture(key: list[int], bright: int) -> NDArray[np.uint8]:
    """(32, 32) noise around the class's grey."""
    noise = np.random.default_rng(key).integers(-40, 40, size=(32, 32))
    return (80 + 100 * bright + noise).astype(np.uint8)


@pytest.fixture(scope="session")
def enrol() -> Enrol:
    """Makes a federation in a new folder: authority, server, and enrolled sites.

    Returns its federation.yaml. Each site has a folder of its name there, with site.yaml; the
    server's port on this machine was free a moment ago.
    """
    from client.enrolment import certificate_request
    from client.keys import open_keys
    from server import provision

    def enrol(folder: Path, sites: Mapping[str, str], **more: object) -> Path:
        folder.mkdir(parents=True)
        now = datetime.datetime.now(datetime.UTC)
        provision.make_authority(folder, name="test", now=now)
        provision.make_server_certificate(folder, host="127.0.0.1", now=now)
        provision.make_coordinator_key(folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        lines = [f"server: {address}", f"listen: {address}"]
        lines += [f"{key}: {value}" for key, value in more.items()] + ["sites:"]
        for name, settings in sites.items():
            home = folder / name
            request = certificate_request(open_keys(home / "state").node, site=name)
            certificate = provision.sign_request(folder, request, site=name, now=now)
            (home / "site.pem").write_bytes(certificate)
            (home / "site.yaml").write_text(
                f"name: {name}\nstate: state\n{settings}\n"
                f"link: {{server: '{address}', authority: ../ca.pem, "
                "coordinator: ../coordinator.pem}\n"
            )
            lines.append(f"  {name}: {{node_key: {provision.node_key(request)}}}")
        (folder / "federation.yaml").write_text("\n".join(lines) + "\n")
        return folder / "federation.yaml"

    return enrol


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, write_tiny: WriteTiny) -> Path:
    """A folder with a tiny data set and its finished run, in `run`; only to be read."""
    import simulations
    from common.config import load_study

    folder = write_tiny(tmp_path_factory.mktemp("finished") / "tiny")
    # Another seed than the default one, which a forgotten argument would give.
    simulations.run(load_study(folder / "study.yaml", ["seed=3"]), out=folder / "run")
    return folder


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without the page, which takes longer to draw than a tiny study to train."""
    from simulations import runner

    monkeypatch.setattr(runner, "write_report", lambda path, _content: path.touch())
