"""What each model is for and what it costs, readable without torch, whose import takes seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Description:
    """One line of the catalogue; `common.models.MODELS` says how the model is built."""

    parameters: int  # trained ones, for grey pictures of 32 x 32 px and two classes
    smallest_image_px: int
    purpose: str

    @property
    def noise_norm(self) -> float:
        """Expected norm of a private step at sigma 1, where a patient's part is at most 1."""
        return math.sqrt(self.parameters)

    def as_json(self) -> dict[str, str | int | float]:
        """The line, with the noise rounded to one decimal."""
        return {
            "parameters": self.parameters,
            "smallest_image_px": self.smallest_image_px,
            "noise_norm": round(self.noise_norm, 1),
            "purpose": self.purpose,
        }


CATALOGUE: Mapping[str, Description] = {
    "cnn-small": Description(97_890, 8, "Small pictures; the first CNN to try under privacy."),
    "elnet-like": Description(195_802, 32, "Knee MRI: a tear shows in few pixels of few slices."),
    "frozen-efficientnet-lite0": Description(
        2_562, 32, "Few patients, strong privacy: only a head on public features is trained."
    ),
    "cnn-li2014": Description(276_452, 8, "Lung patches of 32 px: the network of Li et al. 2014."),
    "resnet18": Description(11_168_706, 8, "Large cohorts, weak noise or none; the yardstick."),
    "resnet50": Description(23_503_298, 8, "As resnet18, but deeper and slower."),
    "vit-tiny": Description(5_355_074, 16, "The smallest transformer; each needs many pictures."),
    "vit-small": Description(21_326_978, 16, "A transformer for large cohorts."),
    "vit-base": Description(85_121_282, 16, "A transformer for very large cohorts and a GPU."),
}


def text() -> str:
    """The catalogue as a table for people."""
    width = max(map(len, CATALOGUE))
    lines = [f"{'model':{width}}  trained parameters  noise norm  smallest image  what it is for"]
    for name, model in CATALOGUE.items():
        lines.append(
            f"{name:{width}}  {model.parameters:18,}  {model.noise_norm:10,.0f}  "
            f"{model.smallest_image_px:11} px  {model.purpose}"
        )
    lines += [
        "",
        "Parameters: for grey pictures of 32 x 32 px and two classes. Noise norm: of a private",
        "step at noise multiplier 1, where no patient's part has a norm above 1.",
        "Seconds and memory on this machine: fedward models --probe",
    ]
    return "\n".join(lines)
