"""Shared by the tests of the site: small DICOM files that name nobody, and a hospital."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

WriteCt = Callable[..., Path]


@pytest.fixture(scope="session")
def write_ct() -> WriteCt:
    """Writes a CT slice of its own pixels, without anything that identifies; returns its path.

    Its UIDs follow from the numbers of patient, series and slice; `more` sets attributes by
    keyword or, with None, removes them.
    """

    def write(
        path: Path,
        patient: int = 1,
        series: int = 1,
        number: int = 1,
        *,
        pixels: int = 0,
        **more: Any,
    ) -> Path:
        study = f"2.25.{patient}"
        header = Dataset()
        header.SOPClassUID = CTImageStorage
        header.StudyInstanceUID = UID(study)
        header.SeriesInstanceUID = UID(f"{study}.{series}")
        header.SOPInstanceUID = UID(f"{study}.{series}.{number}")
        header.PatientID, header.PatientName = f"case-{patient}", ""
        header.PatientIdentityRemoved, header.DeidentificationMethod = "YES", "made for a test"
        header.Modality, header.Manufacturer, header.InstanceNumber = "CT", "ACME", number
        header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        header.ImagePositionPatient, header.PixelSpacing = [0, 0, number], [1, 1]
        header.Rows = header.Columns = 16
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit = 16, 12, 11
        header.PixelRepresentation, header.RescaleSlope, header.RescaleIntercept = 0, 1, -1024
        rng = np.random.default_rng(pixels or [patient, series, number])
        header.PixelData = rng.integers(0, 2000, (16, 16), dtype=np.uint16).tobytes()
        for keyword, value in more.items():
            if value is None:
                delattr(header, keyword)
            else:
                setattr(header, keyword, value)
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path.parent.mkdir(parents=True, exist_ok=True)
        header.save_as(path, enforce_file_format=True)
        return path

    return write


PATIENT = "Mustermann-Erika"  # each patient's name begins so
HIDDEN = "ward-seven"  # each folder of the hospital's


@dataclass(frozen=True)
class Hospital:
    """The site `north` with the default policy, and the coordinator's key in the wrong hands."""

    settings: Any  # SiteSettings; fedward is imported where it is used
    coordinator: Ed25519PrivateKey = field(repr=False)

    def study(self, *changes: str) -> Any:
        """The private study of the hospital's data, as it travels."""
        from common.config import Study, load_study

        changed = load_study(self.settings.data.parent / "study.yaml", list(changes))
        return Study.model_validate_json(changed.canonical())

    def approve(self, *studies: Any) -> None:
        """Meet studies and let the steward approve them."""
        from client.approval import approve
        from common.messages import TRAIN

        for study in studies:
            self.ask(self.instruct(study), TRAIN)
            approve(self.settings, study.sha256, now_s=0.0)

    def instruct(
        self,
        study: Any,
        *,
        round_number: int = 1,
        fold: int = 0,
        weights: NDArray[np.float32] | None = None,
        known_head: Any = None,
    ) -> Any:
        """An instruction, not yet signed, with the initial weights or others."""
        from common.messages import Instruction, encode_instruction
        from common.models import pack, study_model

        given = pack(study_model(study)) if weights is None else weights
        sha256 = self.sha256(study, given)
        return encode_instruction(Instruction(study, fold, round_number, given, sha256, known_head))

    def sha256(self, study: Any, weights: NDArray[np.float32]) -> str:
        """The hash that a coordinator signs; of no weights of this model, any."""
        from common.models import study_model, trained_layout, weights_sha256

        layout = trained_layout(study_model(study))
        return weights_sha256(weights, layout) if weights.shape == (layout.size,) else "0" * 64

    def ask(self, content: Any, kind: str = "train", *, sign: bool = True) -> Any:
        """The app's answer to a message, signed as a coordinator would."""
        from flwr.app import Context, Message, RecordDict

        from client.app import app
        from common.messages import signed

        if sign:
            content = signed(content, self.coordinator.sign, kind=kind, site="north")
        config = {"site": self.settings.model_dump_json()}
        return app(Message(content, 7, kind), Context(1, 7, config, RecordDict(), {}))

    @property
    def receipts(self) -> Any:
        """What has left, and what was refused."""
        from client.keys import RECEIPTS_CHAIN, open_keys
        from client.receipts import Receipts

        state = self.settings.state
        return Receipts(state / RECEIPTS_CHAIN, open_keys(state).receipts, lambda _: None)

    @property
    def ledger(self) -> Any:
        """What patients have lost."""
        from client.keys import open_keys
        from client.ledger import open_ledger

        return open_ledger(self.settings.state, key=open_keys(self.settings.state).ledger)


@pytest.fixture(scope="session")
def ward(tmp_path_factory: pytest.TempPathFactory, write_tiny: Callable[..., Path]) -> Path:
    """A folder with data of twelve patients with names, and a private study of them."""
    folder = write_tiny(tmp_path_factory.mktemp("hospital") / HIDDEN, {"north": 12}, images=1)
    with (folder / "manifest.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        patient = line["patient"].replace("north", PATIENT)
        path = line["path"].replace("north", PATIENT)
        (folder / line["path"]).rename(folder / path)
        line |= {"patient": patient, "path": path}
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    study = (folder / "study.yaml").read_text()
    (folder / "study.yaml").write_text(study.replace("privacy: {", "privacy: {enabled: true, "))
    return folder


@pytest.fixture
def hospital(
    ward: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Callable[..., Any]:
    """Opens the hospital's site; arguments change its settings. Each state folder is another."""
    from flwr.supercore.task_identity import TaskIdentity

    from client import cohort, receipts
    from common.config import Link, SiteSettings

    def pseudonym_key(settings: SiteSettings) -> bytes:
        return f"{request.node.nodeid} {settings.state and settings.state.name}".encode()

    # By a random key of the site's, of twelve patients now and then nobody would be tested.
    monkeypatch.setattr(cohort, "_pseudonym_key", pseudonym_key)
    for name in ("_run_id", "_task_id", "_node_id"):  # messages can only be made by somebody
        monkeypatch.setattr(TaskIdentity, name, 1)
    monkeypatch.setattr(receipts, "_JOURNAL", tmp_path / "journal")
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "coordinator.pem").write_bytes(public)

    def hospital(state: str = HIDDEN, **settings: Any) -> Hospital:
        said = {
            "name": "north",
            "data": ward / "manifest.csv",
            "state": tmp_path / state,
            "declared_patients": 12,
            "link": Link(coordinator=tmp_path / "coordinator.pem"),
        }
        return Hospital(SiteSettings(**said | settings), key)

    return hospital
