"""The check of a site's data: what it counts, what it finds, what it keeps to itself."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from click.testing import Result
from PIL import Image as Pillow
from PIL import ImageDraw
from typer.testing import CliRunner

import fedward
from client.check import Checked, check
from common.config import load_study
from common.data.ild import IldReader
from common.errors import BadInput
from simulations.phantoms.ild import IldPhantom, write_ild_phantom
from simulations.phantoms.mrnet import MrnetPhantom, write_mrnet_phantom

WriteCt = Callable[..., Path]


@pytest.fixture
def cohort(tmp_path: Path, write_ct: WriteCt) -> Path:
    """A folder with three slices each of two patients, clean."""
    for patient in (1, 2):
        for number in (1, 2, 3):
            write_ct(tmp_path / "cohort" / f"{patient}" / f"{number}.dcm", patient, number=number)
    return tmp_path / "cohort"


@pytest.fixture(scope="session")
def ild(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ILD phantom of two hospitals; only to be read."""
    folder = tmp_path_factory.mktemp("ild") / "phantom"
    write_ild_phantom(folder, IldPhantom(patients=4, hospitals=2))
    return folder


@pytest.fixture(scope="session")
def mrnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MRNet phantom of two hospitals; only to be read."""
    folder = tmp_path_factory.mktemp("mrnet") / "phantom"
    write_mrnet_phantom(folder, MrnetPhantom(exams=6, hospitals=2))
    return folder


def says(*arguments: str | Path) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(fedward.app, ["data", "check", *map(str, arguments)])


def levels(checked: Checked) -> dict[str, str]:
    """Keyword and level of each finding about identity."""
    return {one.finding.keyword: one.finding.level for one in checked.identity}


def written(folder: Path, lines: list[str]) -> Path:
    """A manifest of these lines."""
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All files with their times and content."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def picture(path: Path, seed: int) -> Path:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (16, 16), dtype=np.uint8)
    Pillow.fromarray(noise).save(path)
    return path


# A folder.


def test_a_clean_folder_has_nothing_to_mend(cohort: Path) -> None:
    """Counts, notes on UIDs only, exit code 0, and not one file is touched."""
    before = everything(cohort)
    checked = check(cohort)
    assert not checked.mend
    assert (checked.files, checked.dicom_files, checked.patients) == (6, 6, 2)
    assert (checked.studies, checked.series) == (2, 2)
    assert set(levels(checked).values()) == {"note"}
    said = says(cohort)
    assert said.exit_code == 0
    assert "6 files, 6 of them DICOM, 2 studies, 2 series, 2 patients" in said.stdout
    assert "Nothing has to be mended" in said.stdout
    assert everything(cohort) == before


def test_what_identifies_is_told_by_keyword_alone(cohort: Path, write_ct: WriteCt) -> None:
    """Attribute and number of files, at most three of them named; no value, no UID."""
    for number in range(1, 6):
        write_ct(
            cohort / "3" / f"{number}.dcm", 3, number=number,
            PatientName="Doe^Jane", PatientBirthDate="19610412", InstitutionName="St. Elsewhere",
        )  # fmt: skip
    checked = check(cohort)
    assert checked.mend
    (name,) = [one for one in checked.identity if one.finding.keyword == "PatientName"]
    assert (name.finding.level, name.files, len(name.examples)) == ("mend", 5, 3)
    assert {"PatientBirthDate", "InstitutionName"} <= set(levels(checked))
    for said in (says(cohort), says(cohort, "--json")):
        assert said.exit_code == 1
        assert "stays at the site" in said.stdout
        for value in ("Doe", "1961", "Elsewhere", "2.25", "case-3"):
            assert value not in said.stdout


def test_what_cannot_be_read_is_named(cohort: Path) -> None:
    """Cut DICOM files, cut pictures and others under their names: the file and why."""
    whole = (cohort / "1" / "1.dcm").read_bytes()
    (cohort / "1" / "1.dcm").write_bytes(whole[:-100])
    (cohort / "1" / "2.dcm").write_text("not DICOM")
    png = picture(cohort / "a.png", 1).read_bytes()
    (cohort / "a.png").write_bytes(png[:60])
    np.save(cohort / "flat.npy", np.zeros(3))
    checked = check(cohort)
    assert checked.mend
    assert {fault.file for fault in checked.unreadable} == {
        "1/1.dcm", "1/2.dcm", "a.png", "flat.npy",
    }  # fmt: skip
    assert all(fault.why.endswith(".") for fault in checked.unreadable)
    said = says(cohort)
    assert said.exit_code == 1
    assert "Can't be read (4):" in said.stdout
    assert "1/2.dcm: expected a DICOM file" in said.stdout


def test_the_same_pixels_under_another_name_are_noted(cohort: Path, write_ct: WriteCt) -> None:
    """Whatever the bytes of the file: another UID, another format; nothing has to be mended."""
    write_ct(cohort / "1" / "4.dcm", 1, number=4, pixels=7)
    write_ct(cohort / "1" / "5.dcm", 1, number=5, pixels=7)
    noise = np.random.default_rng(1).integers(0, 255, (16, 16), dtype=np.uint8)
    Pillow.fromarray(noise).save(cohort / "a.png")
    np.save(cohort / "b.npy", noise.astype(np.int32))
    checked = check(cohort)
    assert [group.files for group in checked.duplicates] == [
        ("1/4.dcm", "1/5.dcm"),
        ("a.png", "b.npy"),
    ]
    assert not checked.mend
    assert not checked.contradictory


def test_the_same_pixels_of_two_patients_contradict(cohort: Path, write_ct: WriteCt) -> None:
    """Whose they are is what the headers say."""
    write_ct(cohort / "1" / "4.dcm", 1, number=4, pixels=7)
    write_ct(cohort / "2" / "4.dcm", 2, number=4, pixels=7)
    checked = check(cohort)
    assert checked.mend
    (group,) = checked.contradictory
    assert group.what == "the same pixels, different patients"
    assert group.files == ("1/4.dcm", "2/4.dcm")
    assert checked.duplicates == ()


def test_one_study_of_two_patients_contradicts(cohort: Path, write_ct: WriteCt) -> None:
    """A DICOM study is of one patient; a file of each is named."""
    write_ct(cohort / "1" / "4.dcm", 1, number=4, PatientID="case-9")
    (group,) = check(cohort).contradictory
    assert group.what == "one DICOM study (StudyInstanceUID), different patients"
    assert set(group.files) == {"1/3.dcm", "1/4.dcm"}


def test_what_is_no_image_is_noted(cohort: Path, write_ct: WriteCt) -> None:
    """Strays, DICOM without pixels and blank pictures are named; dot-files are passed over."""
    (cohort / "DIRFILE").write_text("stray")
    (cohort / "1" / "._1.dcm").write_bytes(b"of a Mac")
    write_ct(cohort / "report", 1, number=9, PixelData=None, Rows=None, Columns=None)
    for name in ("blank-1.png", "blank-2.png"):
        Pillow.fromarray(np.zeros((16, 16), np.uint8)).save(cohort / name)
    checked = check(cohort)
    assert not checked.mend
    assert checked.stray == ("DIRFILE",)
    assert checked.without_pixels == ("report",)
    assert checked.blank == ("blank-1.png", "blank-2.png")
    assert checked.duplicates == ()
    assert checked.files == 9


def test_text_in_a_picture_has_to_be_mended(cohort: Path) -> None:
    """Of images without a header the pixels alone are looked at."""
    drawn = Pillow.fromarray(np.random.default_rng(0).integers(0, 60, (256, 256), dtype=np.uint8))
    ImageDraw.Draw(drawn).text((8, 8), "DOE JANE 1961", fill=255, font_size=18)
    drawn.save(cohort / "a.png")
    checked = check(cohort)
    assert checked.mend
    assert levels(checked)["the picture's pixels"] == "mend"


def test_names_that_no_terminal_shows_break_nothing(cohort: Path) -> None:
    """Line breaks and broken characters in a file's name are written out."""
    (cohort / "a\nb").write_text("stray")
    (cohort / b"caf\xe9".decode(errors="surrogateescape")).write_text("stray")
    said = says(cohort)
    assert said.exit_code == 0
    assert r"a\nb" in said.stdout


def test_progress_is_told(cohort: Path) -> None:
    """Steps count up to their number."""
    told: list[tuple[int, int]] = []
    check(cohort, on_file=lambda done, total: told.append((done, total)))
    assert told == [(done, 6) for done in range(7)]


# A manifest.


def test_a_manifest_is_counted_by_class(tiny: Path) -> None:
    """Images and patients of each class; images that it doesn't name are noted."""
    picture(tiny / "images" / "more.png", 1)
    checked = check(tiny / "manifest.csv")
    assert checked.images_by_class == {"bright": 24, "dark": 24}
    assert checked.patients_by_class == {"bright": 12, "dark": 12}
    assert checked.patients == 24
    assert checked.unlisted == ("images/more.png",)
    assert not checked.mend
    assert check(tiny) == checked


def test_pixels_beyond_the_window_are_seen(tmp_path: Path) -> None:
    """A 16-bit picture would be white all over, so the range of the values is told."""
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Pillow.fromarray(deep).save(tmp_path / "a.png")
    checked = check(written(tmp_path, ["path,patient,site,label", "a.png,ann,north,bright"]))
    assert checked.values == (0.0, 63_000.0)
    assert "Pixel values from 0 to 63000. A study's data.intensity says" in checked.text()


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        ("ann,north,dark", "ann,north,bright", "the same pixels, different labels"),
        ("ann,north,dark", "bob,north,dark", "the same pixels, different patients"),
        ("ann,north,dark", "bob,south,dark", "the same pixels, different sites"),
        ("ann,north,dark", "ann,north,dark", None),
    ],
)
def test_contradictions_of_a_manifest(tmp_path: Path, first: str, second: str, what: str) -> None:
    """The same pixels twice are a note, unless the table says different things about them."""
    for name in ("a.png", "b.bmp.png"):
        picture(tmp_path / name, 1)
    picture(tmp_path / "c.png", 2)
    lines = [f"a.png,{first}", f"b.bmp.png,{second}", "c.png,cid,north,bright"]
    checked = check(written(tmp_path, ["path,patient,site,label", *lines]))
    assert checked.mend == (what is not None)
    assert [group.what for group in checked.contradictory] == ([what] if what else [])
    assert [group.what for group in checked.duplicates] == ([] if what else ["the same pixels"])


def test_a_patient_at_two_sites_contradicts(tiny: Path) -> None:
    """What the manifest's reader refuses is told by lines, and the images are looked at still."""
    with (tiny / "manifest.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    lines[2][2] = "west"
    with (tiny / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    (tiny / "images" / "north-0-0.png").write_bytes(b"no image")
    checked = check(tiny)
    assert checked.mend
    assert any("line 3: its patient is listed at another site" in line for line in checked.refused)
    assert [fault.file for fault in checked.unreadable] == ["images/north-0-0.png"]
    assert "east-0 " not in says(tiny).stdout


def test_labels_still_to_fill_in_hide_nothing(cohort: Path) -> None:
    """A draft without labels is refused by its lines; series in folders are checked as volumes."""
    written(cohort, ["path,patient,label", "1,ann,", "2,bob,"])
    shutil.copy(cohort / "1" / "1.dcm", cohort / "1" / "again.dcm")
    checked = check(cohort)
    assert [line[:21] for line in checked.refused] == [
        "manifest.csv: line 2:",
        "manifest.csv: line 3:",
    ]
    (fault,) = checked.unreadable
    assert "at one place" in fault.why
    assert [group.files for group in checked.duplicates] == [("1/1.dcm", "1/again.dcm")]
    assert checked.files == 7


def test_several_labels_are_counted_each(tmp_path: Path) -> None:
    """Without a column `label`, the columns of 0 and 1 are the classes."""
    for number in range(3):
        picture(tmp_path / f"{number}.png", number)
    lines = ["path,patient,acl,meniscus,age", "0.png,a,1,1,30", "1.png,b,0,1,40", "2.png,c,0,0,50"]
    checked = check(written(tmp_path, lines))
    assert checked.images_by_class == {"acl": 1, "meniscus": 2}
    assert not checked.mend


def test_a_site_is_checked_on_what_it_uses(tiny: Path) -> None:
    """Of several sites' manifest its own lines, by its own names, without who objects."""
    text = (tiny / "manifest.csv").read_text().replace("dark", "dunkel")
    (tiny / "manifest.csv").write_text(text.replace("label", "Befund"))
    (tiny / "images" / "west-0-0.png").write_bytes(b"no image of this site's")
    (tiny / "images" / "east-0-0.png").write_bytes(b"no image of one who takes part")
    site = tiny / "site.yaml"
    site.write_text(
        "name: east\ndata: manifest.csv\nexclude: [east-0]\n"
        "columns: {label: Befund}\nlabels: {dunkel: dark}\n"
    )
    checked = check(site)
    assert not checked.mend
    assert checked.patients == 7
    assert checked.images_by_class == {"bright": 8, "dark": 6}


def test_a_study_says_what_its_data_are(tiny: Path) -> None:
    """Classes and kind are the study's: another label is refused."""
    assert check(tiny / "study.yaml").images_by_class == {"bright": 24, "dark": 24}
    text = (tiny / "study.yaml").read_text()
    (tiny / "study.yaml").write_text(text.replace("[dark, bright]", "[dark, grey]"))
    checked = check(tiny / "study.yaml")
    assert checked.mend
    assert "none of the study's classes" in checked.refused[0]


def test_a_line_without_its_file_hides_nothing(tiny: Path) -> None:
    """A path that is missing or refused costs its own line: the pictures are read as pictures."""
    with (tiny / "manifest.csv").open("a") as file:
        file.write(",nobody-1,north,dark\n../,nobody-2,north,dark\n")
    checked = check(tiny)
    assert checked.unreadable == ()
    assert checked.images_by_class == {"bright": 24, "dark": 24}
    assert len(checked.refused) == 2


def test_volumes_and_pictures_are_each_read_as_what_they_are(cohort: Path) -> None:
    """A draft may list both before one kind is removed."""
    picture(cohort / "a.png", 1)
    checked = check(written(cohort, ["path,patient,label", "1,ann,dark", "a.png,bob,dark"]))
    assert checked.unreadable == ()
    assert checked.images_by_class == {"dark": 2}


def test_headers_of_two_patients_in_one_contradict(cohort: Path, write_ct: WriteCt) -> None:
    """The table calls two PatientIDs one patient; a file of each is named."""
    write_ct(cohort / "1" / "4.dcm", 1, number=4, PatientID="case-9", StudyInstanceUID="2.25.77")
    checked = check(written(cohort, ["path,patient,label", "1,ann,dark", "2,bob,dark"]))
    assert [(group.what, group.files) for group in checked.contradictory] == [
        ("one patient, different headers (PatientID)", ("1/1.dcm", "1/4.dcm"))
    ]


def test_a_column_of_ours_is_passed_over_where_another_stands_for_it(tiny: Path) -> None:
    """As the reader does: the site's `columns` say which one counts."""
    lines = (tiny / "manifest.csv").read_text().splitlines()
    header = lines[0].replace("label", "Befund")
    more = [f"{header},label", *(f"{line},old" for line in lines[1:])]
    (tiny / "manifest.csv").write_text("\n".join(more) + "\n")
    site = tiny / "site.yaml"
    site.write_text("name: east\ndata: manifest.csv\ncolumns: {label: Befund}\n")
    assert check(site).images_by_class == {"bright": 8, "dark": 8}


def test_what_lies_beside_a_manifest_stops_nothing(
    tiny: Path, write_ct: WriteCt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that can't be listed is named; of files without a suffix only DICOM are images."""
    (tiny / "README").write_text("how this was made")
    write_ct(tiny / "IM0001")
    (tiny / "closed").mkdir()
    scandir = os.scandir

    def refusing(path: Path) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    checked = check(tiny)
    assert checked.unlisted == ("IM0001",)
    assert checked.closed == ("closed",)
    assert not checked.mend


def test_a_name_that_is_no_text_is_written_out(tiny: Path) -> None:
    """Also within the sentences of what can't be read or is refused."""
    name = b"caf\xe9.csv".decode(errors="surrogateescape")
    (tiny / "manifest.csv").rename(tiny / name)
    (tiny / "images" / "north-0-0.png").unlink()
    assert r"caf\udce9.csv: line " in check(tiny / name).text()
    said = says(tiny / f"{name}.gone")
    assert (said.exit_code, said.exception.__class__) == (2, SystemExit)
    assert r"caf\udce9.csv.gone" in said.stderr


# The trees.


def test_the_ild_trees_are_counted_as_they_are_read(ild: Path, tmp_path: Path) -> None:
    """Patches of each kind of annotation; slices that lie in several trees are no duplicates."""
    checked = check(ild)
    assert checked.patients == 4
    assert checked.duplicates == checked.contradictory == ()
    assert checked.unreadable == ()
    assert "BurnedInAnnotation" not in levels(checked), "a mask is no capture of a screen"
    reader = IldReader()
    classes = ("healthy", "emphysema", "ground_glass", "fibrosis", "micronodules")
    images = [
        classes[image.label]
        for site in ("hospital-1", "hospital-2")
        for source in reader.find(ild / site, classes)
        for image in reader.decode(source)
        if isinstance(image.label, int)
    ]
    found = {f"text: {name}": images.count(name) for name in sorted(set(images))}
    assert {k: v for k, v in checked.images_by_class.items() if k.startswith("text")} == found
    study = tmp_path / "study.yaml"
    study.write_text(
        f"name: s\nclasses: [healthy, fibrosis]\ndata: {{kind: ild}}\nsimulation: {{data: {ild}}}\n"
    )
    assert load_study(study)
    of_study = check(study)
    assert of_study.images_by_class["healthy"] == images.count("healthy")
    assert of_study.files < checked.files


def test_a_slice_of_two_patients_contradicts(ild: Path, tmp_path: Path) -> None:
    """A slice copied to another patient's folder is seen, and so is a mask that is broken."""
    shutil.copytree(ild / "hospital-1", tmp_path / "ild")
    texts = tmp_path / "ild" / "ILD_DB_txtROIs"
    first, second = sorted(path for path in texts.iterdir() if path.is_dir())[:2]
    copied = next(iter(sorted(first.rglob("CT-*.dcm"))))
    shutil.copy(copied, second / "CT-0000-0001.dcm")
    mask = next(iter(sorted((tmp_path / "ild" / "ILD_DB_volumeROIs").rglob("roi_mask*.dcm"))))
    mask.write_bytes(mask.read_bytes()[:-10])
    checked = check(tmp_path / "ild")
    assert {group.what for group in checked.contradictory} == {
        "the same pixels, different patients",
        "one DICOM study (StudyInstanceUID), different patients",
        "one patient, different headers (PatientID)",
    }
    assert [fault.file.rpartition("/")[2] for fault in checked.unreadable] == [mask.name]


def test_labels_of_no_class_are_noted(ild: Path, tmp_path: Path) -> None:
    """A text's label that neither the format nor the site knows leaves its regions out."""
    shutil.copytree(ild / "hospital-1" / "ILD_DB_txtROIs", tmp_path / "ILD_DB_txtROIs")
    text = next(iter(sorted(tmp_path.rglob("*.txt"))))
    first = text.read_text().replace("label: ", "label: odd_", 1)
    text.write_text(first)
    odd = re.findall("label: (odd_.*)", first)[0]
    checked = check(tmp_path)
    assert [group.what for group in checked.strange_labels] == [f"label: {odd}"]
    assert f"label: {odd}: ILD_DB_txtROIs/" in checked.text()
    site = tmp_path / "site.yaml"
    site.write_text(f"name: a\ndata: .\nlabels: {{{odd}: fibrosis}}\n")
    assert check(site).strange_labels == ()


def test_a_tree_is_known_from_inside(
    ild: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.` means the tree by its name, as its path does."""
    monkeypatch.chdir(ild / "hospital-1" / "ILD_DB_txtROIs")
    assert check(Path()).kind == "ild"


def test_mrnet_is_counted_by_label(mrnet: Path, tmp_path: Path) -> None:
    """Exams of each label; a volume under two exams contradicts, a cut one can't be read."""
    shutil.copytree(mrnet / "hospital-1", tmp_path / "h")
    tree = tmp_path / "h" / "MRNet-v1.0"
    checked = check(tmp_path / "h")
    lines = [
        line.split(",")
        for path in tree.glob("*-abnormal.csv")
        for line in path.read_text().splitlines()
    ]
    assert checked.patients == len(lines)
    assert checked.images_by_class["abnormal"] == sum(label == "1" for _, label in lines)
    assert f"{len(lines)} exams." in checked.text()
    assert "patients" not in checked.text().splitlines()[2]
    assert not checked.mend
    first, second, *_ = sorted(tree.glob("*/axial/*.npy"))
    third = next(iter(sorted(tree.glob("*/coronal/*.npy"))))
    shutil.copy(first, second)
    third.write_bytes(third.read_bytes()[:500])
    checked = check(tree)
    assert checked.contradictory[0].files == tuple(
        path.relative_to(tree).as_posix() for path in (first, second)
    )
    assert [fault.file for fault in checked.unreadable] == [third.relative_to(tree).as_posix()]


# What is no data set.


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("nowhere", None, "does not exist"),
        ("notes.txt", "text", "expected a folder"),
        ("site.yaml", "name: a", "set `data` in it"),
        ("site.yaml", "name: a\ndata: nowhere.csv", "does not exist"),
        ("study.yaml", "classes: [a, b]\ndata: {kind: ild}", "set `simulation.data`"),
        ("study.yaml", "classes: [a, b]\ndata: {kind: idl}", "idl"),
        ("folder", "", "no DICOM file and no image"),
    ],
)
def test_a_bad_path_is_bad_input(tmp_path: Path, name: str, content: str, expected: str) -> None:
    """Exit code 2 and a sentence; 1 is kept for data that have to be mended."""
    if content:
        (tmp_path / name).write_text(content)
    elif content == "":
        (tmp_path / name).mkdir()
        (tmp_path / name / "stray.txt").touch()
    with pytest.raises(BadInput, match=expected):
        check(tmp_path / name)
    said = says(tmp_path / name)
    assert said.exit_code == 2
    assert said.stdout == ""
    assert "Traceback" not in said.stderr


# Real files.


def test_the_names_in_real_files_are_found(shared_data: Path) -> None:
    """MR of three vendors: names, birth dates and institutions, by keyword, never by value."""
    folder = shared_data / "dicom"
    keywords = {"PatientName", "InstitutionName", "StudyDate"}
    for vendor in ("mr_ge", "mr_philips", "mr_siemens"):
        said = says(folder / vendor, "--json")
        assert said.exit_code == 1
        found = {one["keyword"]: one for one in json.loads(said.stdout)["identity"]}
        assert keywords <= set(found)
        assert ("PatientBirthDate" in found) == (vendor != "mr_ge")
        assert all(found[keyword]["level"] == "mend" for keyword in keywords)
        header = pydicom.dcmread(next(iter(sorted((folder / vendor).iterdir()))))
        values = [str(header[keyword].value) for keyword in keywords]
        values += [str(header.StudyInstanceUID), str(header.PatientID)]
        assert not [value for value in values if value and value in said.stdout]


def test_the_stray_in_a_real_folder_is_noted(shared_data: Path) -> None:
    """A file without pixels is left out of what has to be readable."""
    checked = check(shared_data / "dicom" / "ct_philips")
    assert checked.without_pixels == ("DIRFILE",)
    assert (checked.files, checked.series, checked.unreadable) == (29, 1, ())
