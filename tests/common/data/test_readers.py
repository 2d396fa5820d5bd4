"""How a patient is called, whoever writes the name down."""

from __future__ import annotations

import pytest

from common.config import IldData, ManifestData, MrnetData
from common.data.readers import patient_name


@pytest.mark.parametrize("written", ["7", "07", "0007"])
def test_an_exam_is_found_by_its_number(written: str) -> None:
    """Who objects as exam 7 is exam 0007 of the MRNet tree."""
    assert patient_name(MrnetData(), written) == "0007"


def test_other_patients_are_called_as_the_data_do() -> None:
    """Elsewhere 7 and 0007 may be two persons."""
    assert patient_name(ManifestData(), "7") == "7"
    assert patient_name(IldData(), "8") == "8"
