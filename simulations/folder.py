"""The run directory: what is in it, and whether a run may start or go on there."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.cohort import Cohort
from common.config import Study, load_study, to_yaml
from common.errors import BadInput
from common.files import write_atomically


@dataclass(frozen=True, slots=True)
class Leg:
    """One training of a study: its fold (0: the study has one split) and its folder."""

    fold: int
    out: Path

    @property
    def model(self) -> Path:
        """The federated model, there when the leg is done."""
        return self.out / "model.safetensors"

    def state(self, site: str) -> Path:
        """The state folder of a simulated site: its ledger, receipts and replies."""
        return self.out / "sites" / site / "state"


def legs(study: Study, out: Path) -> tuple[Leg, ...]:
    """A study without folds has one leg, the run directory itself; else one folder a fold."""
    if study.data.folds is None:
        return (Leg(0, out),)
    return tuple(Leg(fold, out / "folds" / str(fold)) for fold in range(1, study.data.folds + 1))


def check_folder(out: Path, study: Study, *, resume: bool) -> None:
    """Raise BadInput unless a run of `study` may start in `out`, or go on there with `resume`."""
    there = out / "study.yaml"
    try:
        begun = load_study(there) if there.is_file() else None
        free = not out.exists() or (out.is_dir() and all(map(_is_partial, out.iterdir())))
    except OSError as error:
        raise BadInput(
            f"--out {out}: can't be read ({error.strerror}); name a folder of yours."
        ) from None
    if begun is not None:
        if _compared(begun) != _compared(study):
            raise BadInput(
                f"--out {out}: holds a run of another study (its study.yaml differs); "
                "name another --out."
            )
        if not resume:
            raise BadInput(
                f"--out {out}: holds a run of this study; go on with --resume or name another "
                "--out."
            )
    elif not free:
        raise BadInput(f"--out {out}: is no empty folder; name another --out.")
    elif resume:
        raise BadInput(f"--resume: {out} holds no run to go on with; leave --resume out.")


def open_folder(out: Path, study: Study, cohorts: dict[str, Cohort]) -> None:
    """Make the run directory, or check that a begun run finds its data as they were."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / "study.yaml").is_file():
            write_atomically(out / "study.yaml", to_yaml(study).encode())
        if not (out / "sites").is_dir():
            _write_sites(out / "sites", cohorts)
    except OSError as error:
        raise BadInput(
            f"--out {out}: can't be written ({error.strerror}); name a folder that can be."
        ) from None
    begun = {path.parent.name: path for path in out.glob("sites/*/data.json")}
    for name in sorted(begun.keys() | cohorts.keys()):
        if not (name in begun and name in cohorts and _same_data(begun[name], cohorts[name])):
            raise BadInput(
                f"--resume: the data of site {name} have changed since the run in {out} began; "
                "start a new run in another --out."
            )


def read_split(out: Path, site: str) -> dict[str, int]:
    """In which part of the split each patient of a site was; empty for a site not in the run."""
    path = out / "sites" / site / "split.json"
    if not path.is_file():
        return {}
    found: dict[str, int] = json.loads(path.read_text())
    return found


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A JSON file people can read, written whole."""
    write_atomically(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def _write_sites(folder: Path, cohorts: dict[str, Cohort]) -> None:
    """Who takes part with which data; there as a whole, before anything is trained."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name, cohort in cohorts.items():
        _write_site(partial / name, cohort)
    partial.rename(folder)


def _write_site(folder: Path, cohort: Cohort) -> None:
    folder.mkdir(parents=True)
    data = cohort.dataset
    parts = zip(data.patients.tolist(), cohort.tested_in.tolist(), strict=True)
    write_json(folder / "split.json", dict(parts))
    write_json(
        folder / "data.json",
        {
            "fingerprint": data.fingerprint,
            "patients": len(set(data.patients.tolist())),
            "images": len(data.labels),
        },
    )


def _same_data(begun: Path, cohort: Cohort) -> bool:
    fingerprint: str = json.loads(begun.read_text())["fingerprint"]
    return fingerprint == cohort.dataset.fingerprint


def _is_partial(path: Path) -> bool:
    """Whether a kill left this in the middle of its being written."""
    return path.name.startswith(".") and path.name.endswith(".partial")


def _compared(study: Study) -> dict[str, Any]:
    """What must not change between start and resume; the data are compared by their content."""
    return study.model_dump(mode="json", exclude={"simulation": {"data"}})
