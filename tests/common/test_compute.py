"""Where and how torch computes."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from common.compute import find_device, keep_freed_memory, settle
from common.errors import BadInput


def test_settled_torch_is_repeatable() -> None:
    """One thread, deterministic algorithms."""
    torch.set_num_threads(2)
    threadpool_limits(2)
    settle()
    assert torch.get_num_threads() == 1
    assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}
    assert torch.are_deterministic_algorithms_enabled()


def test_settled_torch_fills_no_memory_in_vain() -> None:
    """Torch's deterministic mode would write NaN into everything it is about to fill."""
    settle()
    assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # torch ships it untyped


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is glibc's")
def test_freed_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """glibc is asked to; a system whose libc can't is left as it is."""
    asked = []
    glibc = SimpleNamespace(mallopt=lambda *setting: asked.append(setting))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: glibc)
    keep_freed_memory()
    assert asked == [(-1, 2**30), (-3, 2**25)]
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    keep_freed_memory()


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
