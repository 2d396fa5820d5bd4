"""`python -m simulations.benchmarks NAME [--json]`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from common.errors import BadInput
from simulations.benchmarks import engine_overhead

BENCHMARKS = {"engine-overhead": engine_overhead.measure}


def main(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(BENCHMARKS)}.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure one thing on this machine and print the figures."""
    if name not in BENCHMARKS:
        raise BadInput(f"NAME must be one of {', '.join(BENCHMARKS)}; got {name}.")
    found = BENCHMARKS[name]()
    typer.echo(json.dumps(found, indent=2) if as_json else _text(found))


def _text(found: dict[str, object]) -> str:
    return "\n".join(f"{key}: {value}" for key, value in found.items())


if __name__ == "__main__":
    typer.run(main)
