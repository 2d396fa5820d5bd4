"""The names that packages hand out."""

from __future__ import annotations

import importlib

import pytest


@pytest.mark.parametrize(
    "package", ["common.metrics", "common.models", "common.report", "simulations"]
)
def test_exported_names_exist(package: str) -> None:
    """Each name that a package lists can be imported from it."""
    module = importlib.import_module(package)
    assert module.__all__
    for name in module.__all__:
        assert getattr(module, name) is not None
