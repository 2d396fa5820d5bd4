"""One machine: simulated federations, phantoms, studies, benchmarks.

From Python: `simulations.run(study, engine="inline") -> RunResult`, which the command line calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import common  # noqa: F401 # switches Flower's telemetry off before Flower is imported

if TYPE_CHECKING:
    from simulations.result import RunResult
    from simulations.runner import run

__all__ = ["RunResult", "run"]


def __getattr__(name: str) -> Any:
    """Import torch and Flower (seconds) only for whoever runs something."""
    if name == "run":
        from simulations.runner import run

        return run
    if name == "RunResult":
        from simulations.result import RunResult

        return RunResult
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
