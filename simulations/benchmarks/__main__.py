"""`python -m simulations.benchmarks NAME [--json]`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from simulations.benchmarks import (
    chest_xray,
    data,
    dp_step,
    engine_overhead,
    ild_phantom,
    large_models,
    leak,
    link,
    models,
    mrnet_phantom,
    site_overhead,
    wire,
)

BENCHMARKS = {
    "chest-xray": chest_xray.measure,
    "data": data.measure,
    "dp-step": dp_step.measure,
    "engine-overhead": engine_overhead.measure,
    "ild-phantom": ild_phantom.measure,
    "large-models": large_models.measure,
    "leak": leak.measure,
    "link": link.measure,
    "models": models.measure,
    "mrnet-phantom": mrnet_phantom.measure,
    "site-overhead": site_overhead.measure,
    "wire": wire.measure,
}


def main(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(BENCHMARKS)}.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure one thing on this machine and print the figures."""
    if name not in BENCHMARKS:
        known = ", ".join(BENCHMARKS)
        typer.echo(f"Error: NAME must be one of {known}; got {name}.", err=True)
        raise typer.Exit(2)
    found = BENCHMARKS[name]()
    typer.echo(json.dumps(found, indent=2) if as_json else _text(found))


def _text(found: object, indent: str = "") -> str:
    if not isinstance(found, dict):
        return f"{indent}{found}".replace("\n", f"\n{indent}")
    return "\n".join(
        f"{indent}{key}:\n{_text(value, indent + '  ')}"
        if isinstance(value, dict) or "\n" in str(value)
        else f"{indent}{key}: {value}"
        for key, value in found.items()
    )


if __name__ == "__main__":
    typer.run(main)
