"""Where and how torch computes: one thread, deterministic algorithms, a device by configuration."""

from __future__ import annotations

import torch

from common.errors import BadInput


def settle() -> None:
    """Make torch give the same bits every time.

    Five steps of a small network differ between one thread and two (facts), so a site always
    trains on one; parallelism is across sites.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


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
