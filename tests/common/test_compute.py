"""Where and how torch computes."""

from __future__ import annotations

import pytest
import torch

from common.compute import find_device, settle
from common.errors import BadInput


def test_settled_torch_is_repeatable() -> None:
    """One thread, deterministic algorithms."""
    torch.set_num_threads(2)
    settle()
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()


def test_a_device_is_found_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto takes what is there; a CUDA device that isn't there is named, with the remedy."""
    assert find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert find_device("auto") == torch.device("cpu")
    with pytest.raises(BadInput, match=r"0 CUDA devices here\); got cuda\."):
        find_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cuda:1") == torch.device("cuda:1")
    for missing in ("cuda:2", "cuda:99"):
        with pytest.raises(BadInput, match=f"got {missing}"):
            find_device(missing)
