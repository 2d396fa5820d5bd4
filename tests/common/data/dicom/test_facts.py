"""Facts of a file: enough to sort and count by, nothing that names anybody."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from common.data.dicom import is_dicom, read_facts, series_key
from common.errors import BadData


def header_file(path: Path, **attributes: object) -> Path:
    """A DICOM file with these attributes and no pixels."""
    header = Dataset()
    for keyword, value in attributes.items():
        setattr(header, keyword, value)
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.4")
    header.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    header.save_as(path, enforce_file_format=True)
    return path


NAMES = {"PatientID": "HOSP-4711", "StudyInstanceUID": "1.2.33.1", "SeriesInstanceUID": "1.2.33.2",
         "SOPInstanceUID": "1.2.33.3", "PatientName": "Tell^Wilhelm"}  # fmt: skip


def test_facts_say_what_a_file_is(tmp_path: Path) -> None:
    """Modality, manufacturer, size and frames are told as they are."""
    size = {"Rows": 64, "Columns": 32, "NumberOfFrames": 3}
    made = {"Modality": "MR", "Manufacturer": "ACME (Geneva)"}
    facts = read_facts(header_file(tmp_path / "a.dcm", **NAMES, **made, **size))
    assert (facts.modality, facts.manufacturer) == ("MR", "ACME (Geneva)")
    assert (facts.rows, facts.columns, facts.frames) == (64, 32, 3)
    assert facts.series_key == series_key("1.2.33.2")


def test_keys_tell_equal_from_different_and_nothing_more(tmp_path: Path) -> None:
    """Equal identifiers give equal keys, others other ones; no identifier can be read in them."""
    facts = read_facts(header_file(tmp_path / "a.dcm", **NAMES))
    again = read_facts(header_file(tmp_path / "b.dcm", **NAMES))
    other = read_facts(header_file(tmp_path / "c.dcm", **(NAMES | {"PatientID": "HOSP-4712"})))
    assert facts == again
    assert facts.patient_key != other.patient_key
    assert facts.study_key == other.study_key
    keys = {facts.patient_key, facts.study_key, facts.series_key, facts.sop_key}
    assert len(keys) == 4
    for value in NAMES.values():
        assert value not in repr(asdict(facts))


def test_the_same_number_of_another_issuer_is_another_patient(tmp_path: Path) -> None:
    """Two hospitals' patients number 1 are two patients."""
    one = header_file(tmp_path / "a.dcm", PatientID="1", IssuerOfPatientID="east")
    other = header_file(tmp_path / "b.dcm", PatientID="1", IssuerOfPatientID="west")
    assert read_facts(one).patient_key != read_facts(other).patient_key


def test_what_is_absent_is_empty(tmp_path: Path) -> None:
    """A header that says nothing gives empty keys, no patient for all, and no image."""
    facts = read_facts(header_file(tmp_path / "a.dcm", PatientID=" "))
    assert set(asdict(facts).values()) == {"", 0}


@pytest.mark.parametrize(
    ("written", "told"),
    [("  GE\tMEDICAL\nSYSTEMS ", "GE MEDICAL SYSTEMS"), ("<b>Acme</b>", "b Acme /b"),
     ("x" * 200, "x" * 64), ("ACME\x1b[31m", "ACME 31m"), (["A", "B"], "A , B")],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:The value length")
def test_manufacturers_are_tidied(tmp_path: Path, written: object, told: str) -> None:
    """Whatever stands in Manufacturer comes out short and plain."""
    assert read_facts(header_file(tmp_path / "a.dcm", Manufacturer=written)).manufacturer == told


def test_pixels_are_not_needed() -> None:
    """The facts of a truncated image are those of its header."""
    facts = read_facts(Path(str(get_testdata_file("MR_truncated.dcm", download=False))))
    assert (facts.rows, facts.columns, facts.frames) == (64, 64, 1)


def test_whether_a_file_is_dicom(tmp_path: Path) -> None:
    """The mark after 128 bytes decides, not the name."""
    assert is_dicom(header_file(tmp_path / "no-suffix"))
    (tmp_path / "text.dcm").write_text("a" * 500)
    assert not is_dicom(tmp_path / "text.dcm")
    (tmp_path / "empty.dcm").touch()
    assert not is_dicom(tmp_path / "empty.dcm")
    for read in (is_dicom, read_facts):
        with pytest.raises(BadData, match=r"^gone\.dcm: "):
            read(tmp_path / "gone.dcm")
    with pytest.raises(BadData, match=r"^text\.dcm: expected a DICOM file"):
        read_facts(tmp_path / "text.dcm")


@pytest.mark.parametrize(
    ("vendor", "modality", "company"),
    [("ct_ge", "CT", "GE"), ("ct_philips", "CT", "Philips"), ("mr_ge", "MR", "GE"),
     ("mr_philips", "MR", "Philips"), ("mr_siemens", "MR", "SIEMENS")],
)  # fmt: skip
def test_real_folders(shared_data: Path, vendor: str, modality: str, company: str) -> None:
    """Five real folders: one modality, one company and one series of one patient each."""
    files = [file for file in (shared_data / "dicom" / vendor).iterdir() if file.name != "DIRFILE"]
    facts = [read_facts(file) for file in files]
    assert {fact.modality for fact in facts} == {modality}
    assert all(company in fact.manufacturer for fact in facts)
    assert len({fact.patient_key for fact in facts}) == 1
    assert len({fact.series_key for fact in facts}) == 1
    assert len({fact.sop_key for fact in facts}) == len(files)
