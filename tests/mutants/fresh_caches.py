"""A pytest plugin that forgets what functions have kept: a mutant must not answer from before.

mutmut forks each mutant from the process in which the tests have already run unchanged.
"""

from __future__ import annotations

import functools
import gc


def pytest_sessionstart() -> None:
    """Clear every cache of this repository's own functions."""
    for one in gc.get_objects():
        if isinstance(one, functools._lru_cache_wrapper) and one.__module__.startswith(
            ("client.", "common.", "server.")
        ):
            one.cache_clear()
