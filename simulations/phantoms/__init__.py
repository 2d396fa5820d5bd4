"""Generated data sets in the formats of real ones; results on them are phantom results."""

from __future__ import annotations

from pathlib import Path

from common.config import IldPhantomConfig, MrnetPhantomConfig
from simulations.phantoms.ild import IldPhantom, write_ild_phantom
from simulations.phantoms.mrnet import MrnetPhantom, write_mrnet_phantom

Phantom = IldPhantom | MrnetPhantom


def phantom_of(config: IldPhantomConfig | MrnetPhantomConfig) -> Phantom:
    """The phantom that a study asks for; raises BadInput with parameters out of range."""
    parameters = config.model_dump(exclude={"kind"})
    return IldPhantom(**parameters) if config.kind == "ild" else MrnetPhantom(**parameters)


def write_phantom(directory: Path, phantom: Phantom) -> None:
    """Write a phantom to a folder: all of it, or nothing."""
    if isinstance(phantom, IldPhantom):
        write_ild_phantom(directory, phantom)
    else:
        write_mrnet_phantom(directory, phantom)


def described(phantom: Phantom) -> str:
    """A phantom in a sentence, with the ceiling that wrong labels set to any model."""
    if isinstance(phantom, IldPhantom):
        counted = f"{phantom.patients} patients"
    else:
        counted = f"{phantom.exams} exams"
    text = f"{phantom.label}, {counted}, {phantom.hospitals} hospitals"
    if not phantom.label_noise:
        return text
    ceilings = ", ".join(f"{name} {value:.3f}" for name, value in phantom.ceiling.items())
    return (
        f"{text}; {phantom.label_noise:.0%} of the labels are wrong, so no model can expect an "
        f"AUROC above: {ceilings}"
    )
