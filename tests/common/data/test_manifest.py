"""The manifest: which tables are read, and in which words the others are refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image as Pillow
from pydicom.data import get_testdata_file

from common.data.dicom import read_grey, read_volume
from common.data.manifest import MAX_PROBLEMS, ManifestReader
from common.data.source import Source
from common.errors import BadData

CLASSES = ("PA", "AP")
HEADER = "path,patient,site,label"
PICTURES = ManifestReader()
VOLUMES = ManifestReader(volumes=True)
SECRET = "Ann-4711"  # a patient, who must be in no message


def table(folder: Path, *lines: str, header: str = HEADER, images: bool = True) -> Path:
    """A manifest of these lines; the images they name are there, unless asked otherwise."""
    path = folder / "manifest.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    for line in lines if images else ():
        image = folder / line.split(",")[0]
        if image.suffix == ".png" and image.parent == folder:
            Pillow.fromarray(np.zeros((4, 4), np.uint8)).save(image)
    return path


def refused(path: Path, reader: ManifestReader = PICTURES) -> list[str]:
    """The problems with which a manifest is refused."""
    with pytest.raises(BadData) as caught:
        reader.find(path, CLASSES)
    assert SECRET not in str(caught.value)
    return str(caught.value).splitlines()


def decoded(path: Path, reader: ManifestReader = PICTURES) -> np.ndarray:
    """The one plane (S, H, W) that a manifest's reader finds in a file."""
    (image,) = reader.decode(Source(path, SECRET, "north", 1))
    (plane,) = image.planes
    assert image.label == 1
    assert plane.dtype == np.float32
    return plane


def undecodable(source: Source, reader: ManifestReader) -> str:
    """The sentence with which a line's files are refused; it begins with a file's name."""
    with pytest.raises(BadData) as caught:
        reader.decode(source)
    assert SECRET not in str(caught.value)
    assert str(caught.value).startswith(tuple(f"{path.name}: " for path in source.paths))
    return str(caught.value)


def real(name: str) -> Path:
    """A DICOM file that pydicom brings."""
    path = get_testdata_file(name)
    assert path is not None
    return Path(str(path))


def series(folder: Path, *, slices: int = 3) -> Path:
    """A folder with the slices of one series, the last one first by name."""
    folder.mkdir(parents=True)
    slice_ = pydicom.dcmread(real("CT_small.dcm"))
    for number in range(slices):
        slice_.SOPInstanceUID = pydicom.uid.UID(f"1.2.3.{number + 1}")
        slice_.InstanceNumber = number + 1
        slice_.ImagePositionPatient = [0, 0, 5 * number]
        slice_.SliceLocation = 5 * number
        slice_.save_as(folder / f"{slices - number}.dcm")
    return folder


def test_each_line_is_one_source(tmp_path: Path) -> None:
    """Path, patient, site and label come from their columns; every other is a subgroup."""
    path = table(
        tmp_path,
        "a.png, p 1 ,north,AP,train,F,",
        "b.png,p2,south,PA,,M",
        header=f" {HEADER} ,split,sex,age",
    )
    first, second = ManifestReader().find(path, CLASSES)
    assert first == Source(
        tmp_path / "a.png", "p 1", "north", 1, {"sex": "F", "age": ""}, side="train"
    )
    assert second == Source(tmp_path / "b.png", "p2", "south", 0, {"sex": "M", "age": ""})


def test_a_folder_stands_for_its_manifest(tmp_path: Path) -> None:
    """A byte order mark, quotes, line ends of any kind and empty lines change nothing."""
    table(tmp_path, "a.png,p1,north,PA")
    text = f'\ufeff{HEADER},note\r\n\r\n"a.png",p1,north,PA,"a ""b"", c\nd"\r\n,,,,\r\n'
    (tmp_path / "manifest.csv").write_bytes(text.encode())
    (source,) = ManifestReader().find(tmp_path, CLASSES)
    assert source.path == tmp_path / "a.png"
    assert source.groups == {"note": 'a "b", c\nd'}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (",p1,north,PA", "line 2: path is empty"),
        ("a.png,p1", "line 2: label, site is empty; fill it in or remove the line"),
        ("a.png,p1,north,pa", "line 2: the label 'pa' is none of the study's classes (PA, AP)"),
        ("a.png,p1,St. Mary,PA", "line 2: site must be 1 to 64 letters, digits, _, . or -"),
        ("a.png,p1,../x,PA", "line 2: site must be 1 to 64 letters"),
        ("a.png,p1,north,PA,both", "line 2: split must be train, test or empty; got 'both'"),
        ("a.png,p1,north,PA,test,more", "line 2: has a cell that no column names; put quotes"),
        ("b/a.png,p1,north,PA", "line 2: the file 'b/a.png' does not exist; mend the path"),
        ("folder.png,p1,north,PA", "line 2: 'folder.png' is a folder, but the study reads"),
        ("a\x00.png,p1,north,PA", r"line 2: the file 'a\x00.png' does not exist"),
        (f"{'x' * 5000}.dcm,p1,north,PA", "line 2: the file 'xxxxx"),
        ("../a.png,p1,north,PA", "line 2: path must stay inside the manifest's folder"),
        ("b/../../a.png,p1,north,PA", "line 2: path must stay inside the manifest's folder"),
        ("/etc/hostname,p1,north,PA", "line 2: path must stay inside the manifest's folder"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    """A line that can't be is refused by its number, with the column and what to do."""
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "a.png").touch()
    path = table(tmp_path, line.replace("p1", SECRET), header=f"{HEADER},split", images=False)
    (said,) = refused(path)
    assert said.startswith(f"manifest.csv: {words}")
    assert len(said) < 400


def test_contradictions_between_lines_are_named(tmp_path: Path) -> None:
    """One path twice, one patient at two sites or on two sides: each names the other line."""
    path = table(
        tmp_path,
        f"a.png,{SECRET},north,PA,train",
        "./a.png,p2,north,PA,",
        f"b.png,{SECRET},south,PA,train",
        f"c.png,{SECRET},north,PA,",
        header=f"{HEADER},split",
    )
    Pillow.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "b.png")
    said = refused(path)
    assert len(said) == 3
    assert said[0].startswith("manifest.csv: line 3: reads the same file as line 2")
    assert said[1].startswith("manifest.csv: line 4: its patient is listed at another site in line")
    assert said[2].startswith("manifest.csv: line 5: its patient is on another side of `split` in")


def test_all_problems_come_together_up_to_a_number(tmp_path: Path) -> None:
    """The first ten problems are shown and the others counted."""
    said = refused(table(tmp_path, *(f"{i}.png,{SECRET},north,XX" for i in range(25))))
    assert len(said) == MAX_PROBLEMS + 1
    assert [line.split(":")[1] for line in said[:-1]] == [f" line {i}" for i in range(2, 12)]
    assert said[-1] == "manifest.csv: 15 more problems like these."


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the column path, patient, label is missing"),
        (b"path;patient;site;label\n", "is missing; the first line must name path, patient, label"),
        (b"path,patient,site\n", "the column label is missing"),
        (b"path,patient,site,label,label\n", "the column label is there twice"),
        (b"path,patient,site,label\n\n", "expected at least one image below the header"),
        (b'path,patient,site,label\n"a"b,c\n', "is no CSV in UTF-8"),
        (b'path,patient,site,label\n"a,b,c\n', "is no CSV in UTF-8"),
        (b"path,patient,site,label\n\xff\xfe", "is no CSV in UTF-8; export it again as one"),
        (b"path,patient,site,label\n" + b"x" * 200_000, "is no CSV in UTF-8"),
        (bytes(range(256)) * 9, "is no CSV in UTF-8"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    """An empty, foreign or broken file is refused in one sentence with its name."""
    path = tmp_path / "manifest.csv"
    path.write_bytes(content)
    (said,) = refused(path)
    assert said.startswith("manifest.csv: ")
    assert words in said


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The whole path is told, of a file or of a folder without a manifest."""
    for path in (tmp_path, tmp_path / "other.csv"):
        (said,) = refused(path)
        assert said.startswith(str(tmp_path))
        assert said.endswith("name a manifest.csv that exists.")


def test_a_link_placed_inside_the_folder_is_followed(tmp_path: Path) -> None:
    """Data sets kept by git-annex or DVC are links to elsewhere: the site itself made them."""
    outside = tmp_path / "store" / "x.png"
    outside.parent.mkdir()
    Pillow.fromarray(np.full((4, 4), 7, np.uint8)).save(outside)
    inside = tmp_path / "data"
    inside.mkdir()
    (inside / "a.png").symlink_to(outside)
    path = table(inside, "a.png,p1,north,PA", images=False)
    (source,) = ManifestReader().find(path, CLASSES)
    assert decoded(source.path).mean() == 7
    assert source.path == inside / "a.png"


def test_without_a_column_the_site_is_open(tmp_path: Path) -> None:
    """A hospital's own table needs no site; where the column is there, each line has one."""
    path = table(tmp_path, "a.png,p1,PA", "b.png,p2,AP,", header="path,patient,label,sex")
    assert [source.site for source in ManifestReader().find(path, CLASSES)] == [None, None]
    path = table(
        tmp_path, "a.png,p1,PA,north", f"b.png,{SECRET},AP,", header="path,patient,label,site"
    )
    assert refused(path) == ["manifest.csv: line 3: site is empty; fill it in or remove the line."]


def test_a_site_keeps_its_own_names(tmp_path: Path) -> None:
    """Columns and labels are renamed before anything is checked; what is unnamed stays."""
    path = table(
        tmp_path,
        "a.png,C1,front,F,x",
        "b.png,C2,AP,M,y",
        header="file,CaseID,finding,sex,label",
    )
    reader = ManifestReader(
        columns=(("label", "finding"), ("path", "file"), ("patient", "CaseID")),
        labels=(("back", "PA"), ("front", "PA"), ("cough", "flu")),
    )
    first, second = reader.find(path, CLASSES)
    assert first == Source(tmp_path / "a.png", "C1", None, 0, {"sex": "F"})
    assert (second.patient, second.detail) == ("C2", 1)


def test_two_names_can_be_swapped_and_one_column_used_twice(tmp_path: Path) -> None:
    """Renaming is one step, not one after the other."""
    path = table(tmp_path, "a.png,PA,p1", header="path,patient,label")
    reader = ManifestReader(columns=(("patient", "label"), ("label", "patient"), ("scan", "path")))
    (source,) = ManifestReader(columns=(*reader.columns, ("path", "path"))).find(path, CLASSES)
    assert (source.patient, source.detail) == ("p1", 0)
    assert source.groups == {"scan": "a.png"}


@pytest.mark.parametrize(
    ("reader", "words"),
    [
        (
            ManifestReader(columns=(("patient", "CaseID"), ("sex", "Sex"))),
            "there is no column 'CaseID' (for patient), 'Sex' (for sex); mend the site's `columns`",
        ),
        (ManifestReader(columns=(("sex", "label"),)), "the column label is missing"),
        (
            ManifestReader(labels=(("PA", "Pa"),)),
            "line 2: the label 'PA', 'Pa' by the site's `labels`, is none of the study's classes",
        ),
        (
            ManifestReader(task="multi-label", labels=(("pa", "PA"),)),
            "there is no column 'pa' (for PA); mend",
        ),
        (
            ManifestReader(
                task="multi-label", columns=(("PA", "site"),), labels=(("label", "PA"),)
            ),
            "name two columns for one of ours; keep one of them",
        ),
        (ManifestReader(task="multi-label"), "the column PA, AP is missing"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(
    tmp_path: Path, reader: ManifestReader, words: str
) -> None:
    """Of a column or of a label, with the place where the name is written."""
    (said,) = refused(table(tmp_path, f"a.png,{SECRET},north,PA"), reader)
    assert said.startswith("manifest.csv: ")
    assert words in said


def test_an_image_may_have_several_labels(tmp_path: Path) -> None:
    """A column of 0 and 1 for each class gives a tuple in the study's order; `label` is a group."""
    path = table(tmp_path, "a.png,p1,1,0,x", "b.png,p1,0,0,y", header="path,patient,AP,pa,label")
    reader = ManifestReader(task="multi-label", labels=(("pa", "PA"), ("none", "other")))
    first, second = reader.find(path, CLASSES)
    assert (first.detail, second.detail) == ((0, 1), (0, 0))
    assert first.groups == {"label": "x"}
    assert reader.decode(first)[0].label == (0, 1)


@pytest.mark.parametrize(("cell", "words"), [("yes", "got 'yes'"), ("1.0", "got '1.0'"), ("", "")])
def test_other_cells_than_0_and_1_are_refused(tmp_path: Path, cell: str, words: str) -> None:
    """With the line and the class, empty ones too."""
    path = table(tmp_path, "a.png,p1,1,1", f"b.png,{SECRET},1,{cell}", header="path,patient,PA,AP")
    (said,) = refused(path, ManifestReader(task="multi-label"))
    if cell:
        assert "line 3: AP must be 0 or 1" in said
        assert words in said
    else:
        assert said == "manifest.csv: line 3: AP is empty; fill it in or remove the line."


@pytest.mark.parametrize("name", ["a.png", "b.npy", "c.TIFF"])
def test_a_picture_is_one_slice(tmp_path: Path, name: str) -> None:
    """Files that are not DICOM are told by their suffix."""
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    if name.endswith("npy"):
        np.save(tmp_path / name, grey)
    else:
        Pillow.fromarray(grey).save(tmp_path / name)
    assert np.array_equal(decoded(tmp_path / name), grey[None])


def test_a_dicom_file_is_read_by_its_door(tmp_path: Path) -> None:
    """Any other suffix is DICOM, as read_grey reads it."""
    for name in ("a.dcm", "a", "IM.0001"):
        shutil.copy(real("CT_small.dcm"), tmp_path / name)
        assert np.array_equal(decoded(tmp_path / name), read_grey(tmp_path / name)[None])
    (tmp_path / "notes.txt").write_text(SECRET)
    notes = Source(tmp_path / "notes.txt", SECRET, None, 0)
    assert "DICOM" in undecodable(notes, ManifestReader())


def test_a_folder_of_slices_is_a_volume(tmp_path: Path) -> None:
    """Every file of the series is part of the source; hidden files are left out."""
    folder = series(tmp_path / "p1" / "ct")
    (folder / "._1.dcm").write_text("left by a Mac")
    (source,) = VOLUMES.find(table(tmp_path, "p1/ct/,p1,north,AP"), CLASSES)
    assert source.paths == (folder / "1.dcm", folder / "2.dcm", folder / "3.dcm")
    (image,) = VOLUMES.decode(source)
    assert image.label == 1
    (plane,) = image.planes
    assert plane.shape == (3, 128, 128)
    assert np.array_equal(plane, read_volume(source.paths))


def test_one_file_can_hold_a_volume(tmp_path: Path) -> None:
    """A multi-frame DICOM file, an array of three axes, a TIFF of several pages."""
    frames = pydicom.dcmread(real("CT_small.dcm"))
    frames.NumberOfFrames = 2
    frames.PixelData *= 2
    frames.save_as(tmp_path / "two")
    assert np.array_equal(decoded(tmp_path / "two", VOLUMES), read_volume([tmp_path / "two"]))
    assert decoded(tmp_path / "two", VOLUMES).shape == (2, 128, 128)
    stack = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.save(tmp_path / "a.npy", stack)
    first, second = map(Pillow.fromarray, stack)
    first.save(tmp_path / "a.TIF", save_all=True, append_images=[second])
    for name in ("a.npy", "a.TIF"):
        assert np.array_equal(decoded(tmp_path / name, VOLUMES), stack)


def test_a_picture_is_no_volume(tmp_path: Path) -> None:
    """The remedy is told."""
    (source,) = VOLUMES.find(table(tmp_path, "a.png,p1,north,AP"), CLASSES)
    assert "data.slices" in undecodable(source, VOLUMES)


def test_a_stray_file_in_a_folder_is_named(tmp_path: Path) -> None:
    """It is refused, not skipped: a slice that can't be read must not vanish from a volume."""
    folder = series(tmp_path / "ct")
    (folder / "DIRFILE").write_text(f"index of {SECRET}")
    (source,) = VOLUMES.find(table(tmp_path, "ct,p1,north,AP"), CLASSES)
    said = undecodable(source, VOLUMES)
    assert said.startswith("DIRFILE: ")
    assert "The folder ct must hold the slices of one volume and nothing else." in said


def test_a_folder_without_slices_is_refused(tmp_path: Path) -> None:
    """An empty folder, one with only hidden files, one that holds folders: named with its line."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".a.dcm").touch()
    series(tmp_path / "outer" / "ct")
    path = table(tmp_path, *(f"{name},{SECRET},north,AP" for name in ("empty", "hidden", "outer")))
    said = refused(path, VOLUMES)
    for number, name in enumerate(("empty", "hidden", "outer"), start=2):
        assert said[number - 2].startswith(
            f"manifest.csv: line {number}: the folder '{name}' must hold the slices of one volume"
        )


def test_an_unreadable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its line and the reason (root reads everything, so the system's answer is faked)."""
    series(tmp_path / "ct")

    def locked(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", locked)
    (said,) = refused(table(tmp_path, f"ct,{SECRET},north,AP"), VOLUMES)
    assert said.startswith(
        "manifest.csv: line 2: the folder 'ct' can't be read (Permission denied)"
    )


def test_a_slice_belongs_to_one_line(tmp_path: Path) -> None:
    """A file that is also listed through its folder would be learnt twice."""
    series(tmp_path / "ct")
    path = table(tmp_path, f"ct/2.dcm,{SECRET},north,AP", f"ct,{SECRET},north,AP")
    (said,) = refused(path, VOLUMES)
    assert said == "manifest.csv: line 3: reads the same file as line 2; keep one."


@pytest.mark.parametrize(("name", "slices"), [("mr_siemens", 20), ("ct_ge", 28)])
def test_real_series_are_volumes(shared_data: Path, tmp_path: Path, name: str, slices: int) -> None:
    """The slices of one series in one folder are one volume."""
    (tmp_path / name).symlink_to(shared_data / "dicom" / name)
    (source,) = VOLUMES.find(table(tmp_path, f"{name},p1,north,AP"), CLASSES)
    assert len(VOLUMES.decode(source)[0].planes[0]) == slices


@pytest.mark.parametrize("name", ["mr_ge", "mr_philips"])
def test_real_series_of_several_images_a_place_are_refused(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    """Several echoes of one slice are no volume."""
    (tmp_path / name).symlink_to(shared_data / "dicom" / name)
    (source,) = VOLUMES.find(table(tmp_path, f"{name},p1,north,AP"), CLASSES)
    with pytest.raises(BadData, match=f"The folder {name} must hold the slices of one volume"):
        VOLUMES.decode(source)


def test_the_stray_file_of_a_real_series_is_named(shared_data: Path, tmp_path: Path) -> None:
    """Philips' DIRFILE, a directory of the disc, among 28 slices; without it, a volume."""
    folder = tmp_path / "ct"
    folder.mkdir()
    for path in (shared_data / "dicom" / "ct_philips").iterdir():
        (folder / path.name).symlink_to(path)
    manifest = table(tmp_path, "ct,p1,north,AP")
    (source,) = VOLUMES.find(manifest, CLASSES)
    assert undecodable(source, VOLUMES).startswith("DIRFILE: ")
    (folder / "DIRFILE").unlink()
    (source,) = VOLUMES.find(manifest, CLASSES)
    assert VOLUMES.decode(source)[0].planes[0].shape == (28, 512, 512)


def test_the_real_manifest_is_read(shared_data: Path) -> None:
    """The four-site chest X-rays: 275 images of 152 patients."""
    path = shared_data / "chest-xray-4-sites" / "manifest.csv"
    sources = ManifestReader().find(path, CLASSES)
    assert len(sources) == 275
    assert {source.site for source in sources} == {"hannover", "radiopaedia", "eurorad", "other"}
    assert len({source.patient for source in sources}) == 152
    (image,) = ManifestReader().decode(sources[0])
    (plane,) = image.planes
    assert plane.shape == (1, 224, 224)
    assert 0 <= plane.min() < plane.max() <= 255
