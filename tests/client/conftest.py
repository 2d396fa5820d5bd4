"""Shared by the tests of the site's tools: small DICOM files that name nobody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
