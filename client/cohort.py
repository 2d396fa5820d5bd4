"""A site's own patients, opened for one study: decoded, on their sides, ready for the model."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.keys import open_keys
from common.config import Augmentation, SiteSettings, Study
from common.data.dataset import Dataset, derived, open_dataset, pseudonym
from common.data.preprocessing import Preprocessing
from common.data.readers import build_reader, patient_name
from common.data.source import Source
from common.data.splits import hashed, strata, stratified
from common.errors import BadData, BadInput
from common.files import cache_folder
from common.models import feature_shape, frozen_encoder, study_model

logger = logging.getLogger("fedward.client")
# With other records, or another policy, a site's data are the same.
_NOT_ABOUT_DATA = {"state", "budget", "policy", "link"}


@dataclass(frozen=True, slots=True)
class Stored:
    """What the trained part takes, image after image, in arrays that stay on disk."""

    parts: tuple[NDArray[np.floating], ...]  # each (n, ...)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image or of its features."""
        return self.parts[0].shape[1:]

    def rows(self, rows: NDArray[np.int64]) -> Tensor:
        """Images (B, ...) float32 by their places in all parts one after another."""
        ends = np.cumsum([len(part) for part in self.parts])
        of_part = np.searchsorted(ends, rows, side="right")
        found = np.empty((len(rows), *self.shape), dtype=np.float32)
        for number, part in enumerate(self.parts):
            here = of_part == number
            found[here] = part[rows[here] - (ends[number] - len(part))]
        return torch.from_numpy(found)


@dataclass(frozen=True, slots=True)
class Examples:
    """The images that one training run may use: `rows` of all that are there."""

    inputs: Stored  # N of them
    labels: NDArray[np.int64]  # (N,) class indices, or (N, K) of 0 and 1
    patients: NDArray[np.str_]  # (N,) pseudonymous keys
    rows: NDArray[np.int64]  # (n,)

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs (B, ...) and labels (B,) of some of the rows, on `device`."""
        return self.inputs.rows(rows).to(device), torch.from_numpy(self.labels[rows]).to(device)

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return self.labels.ndim == 2

    def places(self) -> NDArray[np.int64]:
        """(N,) each image's place among the images of its patient, whoever else is there."""
        order = np.argsort(self.patients, kind="stable")
        _, first, of_patient = np.unique(
            self.patients[order], return_index=True, return_inverse=True
        )
        places = np.empty(len(order), dtype=np.int64)
        places[order] = np.arange(len(order)) - first[of_patient]
        return places

    def by_patient(self) -> dict[str, NDArray[np.int64]]:
        """Each patient's rows, in their order."""
        if not len(self.rows):
            return {}
        keys, place = np.unique(self.patients[self.rows], return_inverse=True)
        by_key = self.rows[np.argsort(place, kind="stable")]
        parts = np.split(by_key, np.cumsum(np.bincount(place, minlength=len(keys)))[:-1])
        return {str(key): part for key, part in zip(keys, parts, strict=True)}

    def by_image(self, *, per_patient: int) -> dict[str, NDArray[np.int64]]:
        """Each image's row, of every patient's first `per_patient` images, the same every time."""
        places = self.places()
        rows = self.rows[places[self.rows] < per_patient]
        return {f"{self.patients[row]} {places[row]}": row.reshape(1) for row in rows}


@dataclass(frozen=True, slots=True)
class Cohort:
    """The patients of one site as one study sees them."""

    site: SiteSettings
    dataset: Dataset
    inputs: Stored  # images, or their features where an encoder is frozen
    tested_in: NDArray[np.int64]  # (N,) the part of the split in which the image's patient is
    names: Mapping[str, str]  # each patient's name in the data, by key; in memory only

    @property
    def count(self) -> int:
        """Number of patients, on both sides."""
        return len(self.names)

    def test_rows(self, fold: int) -> NDArray[np.int64]:
        """Images of the patients that are tested in `fold` (0: the study has one split)."""
        return np.flatnonzero(self.tested_in == max(fold, 1) - 1)

    def train_rows(self, fold: int) -> NDArray[np.int64]:
        """Images of all other patients."""
        return np.flatnonzero(self.tested_in != max(fold, 1) - 1)

    def train_names(self, fold: int) -> list[str]:
        """The training patients' names in the data: for the ledger, never for a file or message."""
        keys = np.unique(self.dataset.patients[self.train_rows(fold)])
        return [self.names[str(key)] for key in keys]

    def examples(self, fold: int) -> Examples:
        """The training side of `fold`."""
        data = self.dataset
        return Examples(self.inputs, data.labels, data.patients, self.train_rows(fold))


def open_cohort(settings: SiteSettings, study: Study, device: torch.device) -> Cohort:
    """Read a site's data as `study` needs them; they stay open across rounds and runs.

    Raises:
        BadData: with every problem of the data set.
        BadInput: the site's keys are not as they should be.
    """
    text = settings.model_dump_json(exclude=_NOT_ABOUT_DATA)
    return _open(text, study.canonical(), str(device), _pseudonym_key(settings))


def _pseudonym_key(settings: SiteSettings) -> bytes:
    """What patients' keys are made with: the site's own, so that nobody can try names on them.

    A simulation has none to keep: there the site's name gives the same keys on every machine.
    """
    if settings.randomness == "secret" and settings.state is not None:
        return open_keys(settings.state).pseudonyms
    return f"fedward site {settings.name}".encode()


@functools.lru_cache(maxsize=256)
def _open(settings_text: str, study_text: str, device: str, pseudonym_key: bytes) -> Cohort:
    settings = SiteSettings.model_validate_json(settings_text)
    study = Study.model_validate_json(study_text)
    _refuse_useless_augmentation(study)
    if settings.data is None:
        raise BadData(f"site {settings.name}: `data` is missing; say where the images are.")
    reader = build_reader(study, settings)
    found = reader.find(settings.data, study.classes)
    own = _own(found, settings)
    objecting = {patient_name(study.data, name) for name in settings.exclude}
    sources = [source for source in own if source.patient not in objecting]
    unmatched = len(objecting - {source.patient for source in own})
    if unmatched:
        logger.warning(
            "site %s: %d of the patients in `exclude` are not in its data; check their spelling",
            settings.name,
            unmatched,
        )
    if not sources:
        raise BadData(
            f"site {settings.name}: expected at least one image in {settings.data.name}; got none. "
            "Check `data`, the site column and `exclude`."
        )
    dataset = open_dataset(
        sources,
        reader,
        preprocessing=_preprocessing(study),
        pseudonym_key=pseudonym_key,
        cache=cache_folder(),
    )
    inputs = _inputs(dataset, study, torch.device(device))
    parts = _parts(dataset, study, settings.name)
    names = {pseudonym(source.patient, pseudonym_key): source.patient for source in sources}
    there = set(dataset.patients.tolist())  # a patient's file may hold no image of the study's
    named = {key: name for key, name in names.items() if key in there}
    return Cohort(settings, dataset, inputs, parts, named)


def _own(found: Sequence[Source], settings: SiteSettings) -> list[Source]:
    """The site's part: by the list that divides the data among sites, or as the data say."""
    if settings.include is None:
        return [source for source in found if source.site in (None, settings.name)]
    included = set(settings.include)
    return [source for source in found if source.patient in included]


def _preprocessing(study: Study) -> Preprocessing:
    data = study.data
    return Preprocessing(
        image_size_px=data.image_size_px,
        intensity=data.intensity,
        steps=data.preprocessing,
        slices=data.slices,
        fit=data.fit,
    )


def _refuse_useless_augmentation(study: Study) -> None:
    if study.training.augmentation != Augmentation() and frozen_encoder(study_model(study)):
        raise BadInput(
            f"training.augmentation must be left out with model {study.model.name}: its encoder is "
            "frozen, so each image's features are computed once. Choose a model trained whole."
        )


def _inputs(dataset: Dataset, study: Study, device: torch.device) -> Stored:
    """The images, or their features where the model's encoder is frozen: computed once."""
    model = study_model(study)
    frozen = frozen_encoder(model)
    if frozen is None:
        return Stored((dataset.images,))
    encoder = frozen[0].to(device)

    def compute(images: NDArray[np.float32]) -> NDArray[np.float32]:
        features: NDArray[np.float32] = encoder(torch.from_numpy(images).to(device)).cpu().numpy()
        return features

    # Another torch or device may give other bits, so features are kept apart.
    name = f"{study.model.name}-torch-{torch.__version__}-{device.type}"
    batch = 1 if study.data.planes else 32  # a volume is a batch of slices already
    return Stored((derived(dataset, name, compute, shape=feature_shape(model), batch=batch),))


def _parts(dataset: Dataset, study: Study, site: str) -> NDArray[np.int64]:
    keys = sorted(set(dataset.patients.tolist()))
    said = {
        key: side for key, side in zip(dataset.patients, dataset.sides, strict=True) if side != ""
    }
    if said and study.data.folds is not None:
        raise BadInput(
            f"site {site}: the data have a `split` column, which fixes one split, but data.folds "
            f"is {study.data.folds}. Remove the column or set data.folds to empty."
        )
    shares = study.data.split_shares
    if study.privacy.enabled:
        parts = hashed(keys, shares=shares, seed=study.seed)
    else:
        strata_of = strata(dataset.patients, dataset.labels)
        parts = stratified(strata_of, shares=shares, seed=study.seed)
    parts |= {key: 0 if side == "test" else 1 for key, side in said.items()}
    return np.asarray([parts[str(key)] for key in dataset.patients], dtype=np.int64)
