"""What reading costs: all patches of a phantom beside bare pydicom, and opening what is cached.

60 series of 25 slices of 512 x 512 pixels, one of which in each series has no region. Files are in
the page cache, so that it is processor time that counts and not a disk.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pydicom

from common.compute import settle
from common.config import Intensity
from common.data.dataset import open_dataset
from common.data.ild import TREE, IldReader
from common.data.preprocessing import Preprocessing
from common.data.source import Source
from simulations.benchmarks.pairs import ratio
from simulations.phantoms.ild import PATTERNS, IldPhantom, write_ild_phantom

SERIES, SLICES, SIZE_PX = 60, 25, 512
FEW = 7  # series of the smaller data set that is opened
OPENED_PX = 64  # patches are enlarged, so that the larger array is well above 300 MB


def measure() -> dict[str, object]:
    """CPU-time ratio (find and decode) / bare pydicom; seconds and memory of opening two sizes."""
    settle()
    with tempfile.TemporaryDirectory() as folder:
        phantom = IldPhantom(
            patients=SERIES, hospitals=1, slices_per_patient=SLICES, slice_size_px=SIZE_PX
        )
        write_ild_phantom(Path(folder, "phantom"), phantom)
        tree = Path(folder, "phantom", "hospital-1")
        part = _part(tree / TREE, Path(folder, "part", TREE))
        annotated = [source.path for source in _sources(tree)]
        patches = sum(len(IldReader().decode(source)) for source in _sources(tree))

        def extract() -> None:
            for source in _sources(tree):
                IldReader().decode(source)

        def bare() -> None:
            for path in annotated:
                header = pydicom.dcmread(path)
                slope, intercept = float(header.RescaleSlope), float(header.RescaleIntercept)
                header.pixel_array.astype(np.float32) * np.float32(slope) + np.float32(intercept)

        found = ratio(extract, bare)
        sizes = {
            f"opening {FEW} series": _opening(part),
            f"opening {SERIES} series": _opening(tree),
        }
    return {
        **found.as_json(),
        "series": SERIES,
        "annotated_slices": len(annotated),
        "slice_size_px": SIZE_PX,
        "patches": patches,
        **sizes,
    }


def _sources(tree: Path) -> tuple[Source, ...]:
    return IldReader().find(tree, tuple(PATTERNS))


def _part(tree: Path, part: Path) -> Path:
    """The first patients of a tree, as a tree of its own; each has one series."""
    for patient in sorted(path.name for path in tree.iterdir())[:FEW]:
        shutil.copytree(tree / patient, part / patient, copy_function=os.link)
    return part


def _opening(tree: Path) -> dict[str, object]:
    """What a new process says about opening the data set, after another one has cached it."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", __name__, str(tree), cache]
        runs = [subprocess.run(command, check=True, capture_output=True) for _ in range(2)]
    found: dict[str, object] = json.loads(runs[1].stdout)
    return found


def _open(tree: Path, cache: Path) -> dict[str, object]:
    """Find and open the data set in this process."""
    before_mb, started = _resident_mb(), time.perf_counter()
    sources = _sources(tree)
    found, cpu = time.perf_counter(), time.process_time()
    dataset = open_dataset(
        sources,
        IldReader(),
        preprocessing=Preprocessing(OPENED_PX, Intensity(low=-1400, high=200)),
        pseudonym_key=b"benchmark",
        cache=cache,
    )
    opened = time.perf_counter()
    return {
        "images": len(dataset.labels),
        "array_mb": round(dataset.images.nbytes / 1e6),
        "find_s": round(found - started, 2),
        "open_s": round(opened - found, 2),
        "open_cpu_s": round(time.process_time() - cpu, 2),
        "resident_growth_mb": round(_resident_mb() - before_mb),
    }


def _resident_mb() -> float:
    """Resident memory of this process (Linux)."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    print(json.dumps(_open(Path(sys.argv[1]), Path(sys.argv[2]))))
