"""Where and how torch computes: one thread, deterministic algorithms, a device by configuration."""

from __future__ import annotations

import ctypes
import sys

import torch
from threadpoolctl import threadpool_limits

from common.errors import BadInput


def settle() -> None:
    """Make torch and numpy give the same bits every time.

    Five steps of a small network differ between one thread and two (facts), so a site always
    trains on one; parallelism is across sites.
    """
    torch.set_num_threads(1)
    threadpool_limits(1, user_api="blas")  # numpy's, which the privacy engine multiplies with
    torch.use_deterministic_algorithms(True)
    # Else torch writes NaN into all memory that it is about to write to, in every operation.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch ships it untyped


def keep_freed_memory() -> None:
    """Let glibc keep up to a GiB that torch frees, for processes that train.

    The next step asks for it again; else it may go back to the system after each step, and each
    fresh page costs time. Blocks below 32 MiB come from what is kept; larger ones can't
    (mallopt(3)).
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # musl has none
        mallopt(trim_threshold, 2**30)
        mallopt(mmap_threshold, 2**25)


def find_device(setting: str) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `cuda:N`; BadInput when it isn't there."""
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(setting)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadInput(
            f"device must be one that torch sees ({torch.cuda.device_count()} CUDA devices here); "
            f"got {setting}. Set `device: auto` or `device: cpu`."
        )
    return device
