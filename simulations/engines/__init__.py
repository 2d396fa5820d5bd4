"""Ways to run the same two apps on one machine; a new one is one file and one line here."""

from simulations.engines.inline import run_inline

ENGINES = {"inline": run_inline}

__all__ = ["ENGINES"]
