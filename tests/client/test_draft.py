"""The draft of a manifest: what becomes a line, what is filled in, and that a reader takes it."""

from __future__ import annotations

import csv
import hashlib
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from typer.testing import CliRunner

import fedward
from client.draft import SECRET, Drafted, draft
from common.data.dicom import read_facts
from common.data.manifest import ManifestReader
from common.errors import BadInput

WriteCt = Callable[..., Path]


@pytest.fixture
def exported(tmp_path: Path, write_ct: WriteCt) -> Path:
    """Two patients, a series each in a folder of its own."""
    for patient in (1, 2):
        for number in (1, 2, 3):
            path = tmp_path / "exported" / f"{patient}" / f"{number}.dcm"
            write_ct(path, patient, number=number)
    return tmp_path / "exported"


def drafted(folder: Path, **options: str | bool) -> Drafted:
    """A draft in the folder itself."""
    return draft(folder, folder / "manifest.csv", **options)  # type: ignore[arg-type]


def lines_of(table: Path) -> list[dict[str, str]]:
    """The lines of a manifest."""
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def filled_in(table: Path, *, volumes: bool) -> list[tuple[int, ...]]:
    """What a reader decodes once people have filled in labels and patients: the shapes."""
    lines = lines_of(table)
    for number, line in enumerate(lines):
        line["label"] = line["label"] or "dark"
        line["patient"] = line["patient"] or f"by-hand-{number}"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    reader = ManifestReader(volumes=volumes)
    found = reader.find(table, sorted({line["label"] for line in lines}))
    return [reader.decode(source)[0].planes[0].shape for source in found]


def picture(path: Path, value: int = 0) -> None:
    """A small picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.full((8, 8), value, np.uint8)).save(path)


def test_a_series_in_a_folder_of_its_own_is_a_volume(exported: Path) -> None:
    """One line a folder, with site and scanner; a reader takes the table once labels are there."""
    result = drafted(exported, site="north")
    assert (result.lines, result.volumes, result.patients) == (2, 2, 2)
    lines = lines_of(result.table)
    assert [line["path"] for line in lines] == ["1", "2"]
    assert list(lines[0]) == [
        "path", "patient", "site", "label", "modality", "manufacturer", "series",
    ]  # fmt: skip
    assert {line["site"] for line in lines} == {"north"}
    assert {(line["modality"], line["manufacturer"]) for line in lines} == {("CT", "ACME")}
    assert lines[0]["series"] != lines[1]["series"]
    assert filled_in(result.table, volumes=True) == [(3, 16, 16)] * 2


def test_without_a_site_there_is_no_such_column(exported: Path) -> None:
    """All images are then those of the one site that reads them."""
    assert "site" not in lines_of(drafted(exported).table)[0]


def test_pictures_are_one_line_a_file(exported: Path) -> None:
    """On request every slice is a picture of its own."""
    result = drafted(exported, pictures=True)
    assert (result.lines, result.volumes) == (6, 0)
    assert filled_in(result.table, volumes=False) == [(1, 16, 16)] * 6


def _another_series(folder: Path, write_ct: WriteCt) -> None:
    write_ct(folder / "4.dcm", 1, 2, 4)


def _another_size(folder: Path, write_ct: WriteCt) -> None:
    write_ct(folder / "4.dcm", 1, number=4, Rows=8, Columns=32)


def _another_patient(folder: Path, write_ct: WriteCt) -> None:
    write_ct(folder / "4.dcm", 1, number=4, PatientID="case-9")


def _twice_at_one_place(folder: Path, write_ct: WriteCt) -> None:
    write_ct(folder / "4.dcm", 1, number=3)


def _a_stray(folder: Path, _write_ct: WriteCt) -> None:
    (folder / "DIRFILE").touch()


def _a_picture(folder: Path, _write_ct: WriteCt) -> None:
    picture(folder / "key.png")


def _a_folder(folder: Path, write_ct: WriteCt) -> None:
    write_ct(folder / "inner" / "1.dcm", 1, 2, 1)


@pytest.mark.parametrize(
    "breaks",
    [
        *(_another_series, _another_size, _another_patient, _twice_at_one_place),
        *(_a_stray, _a_picture, _a_folder),
    ],
)
def test_what_is_no_volume_is_listed_by_files(
    exported: Path, write_ct: WriteCt, breaks: Callable[[Path, WriteCt], None]
) -> None:
    """A reader takes all that is in a folder, so it must be one series and nothing else."""
    breaks(exported / "1", write_ct)
    result = drafted(exported)
    assert result.volumes == 1
    paths = [line["path"] for line in lines_of(result.table)]
    assert "2" in paths
    assert {"1/1.dcm", "1/2.dcm", "1/3.dcm"} <= set(paths)
    assert "1" not in paths
    assert "remove the lines of one kind" in result.text()


def test_the_manifest_s_own_folder_is_no_volume(exported: Path) -> None:
    """Slices directly in DIR are files beside the table, and a volume for a table above it."""
    result = drafted(exported / "1")
    assert [line["path"] for line in lines_of(result.table)] == ["1.dcm", "2.dcm", "3.dcm"]
    assert "name --out in the folder above" in result.text()
    assert filled_in(result.table, volumes=False) == [(1, 16, 16)] * 3
    result.table.unlink()
    above = draft(exported / "1", exported / "manifest.csv")
    assert filled_in(above.table, volumes=True) == [(3, 16, 16)]


def test_a_folder_of_x_rays_is_no_volume(tmp_path: Path, write_ct: WriteCt) -> None:
    """Views lie in one series without being slices."""
    for number in (1, 2):
        write_ct(tmp_path / "x" / f"{number}.dcm", 1, number=number, Modality="DX")
    assert [line["path"] for line in lines_of(drafted(tmp_path).table)] == ["x/1.dcm", "x/2.dcm"]


def test_a_patient_is_a_key_that_nobody_can_guess(exported: Path, tmp_path: Path) -> None:
    """The same in each draft in a folder, another elsewhere; its secret is the user's alone."""
    first = lines_of(drafted(exported).table)
    again = lines_of(draft(exported, exported / "again.csv", pictures=True).table)
    above = lines_of(draft(exported, tmp_path / "manifest.csv").table)
    assert len({line["patient"] for line in first}) == 2
    assert {line["patient"] for line in first} == {line["patient"] for line in again}
    assert {line["patient"] for line in first}.isdisjoint({line["patient"] for line in above})
    assert [line["path"] for line in above] == ["exported/1", "exported/2"]
    facts = read_facts(exported / "1" / "1.dcm")
    text = (exported / "manifest.csv").read_text()
    guesses = ("case-1", hashlib.sha256(b"case-1").hexdigest()[:16], facts.patient_key)
    assert not [guess for guess in (*guesses, facts.series_key) if guess in text]
    assert stat.S_IMODE((exported / SECRET).stat().st_mode) == 0o600


def test_a_patient_without_a_number_is_left_to_fill_in(exported: Path, write_ct: WriteCt) -> None:
    """Nobody is made up."""
    for number in (1, 2):
        write_ct(exported / "3" / f"{number}.dcm", 3, number=number, PatientID="")
    result = drafted(exported)
    assert result.without_patient == 1
    assert "1 line without a patient" in result.text()


@pytest.mark.parametrize(
    ("folders", "patients", "labels"),
    [("", 0, {""}), ("patient", 2, {""}), ("label", 0, {"dark", "bright"})],
)
def test_folders_mean_what_is_said(
    tmp_path: Path, folders: str, patients: int, labels: set[str]
) -> None:
    """Images without a header: the folders directly inside are patients or labels only if told."""
    for name in ("dark/a.png", "dark/deep/b.png", "bright/a.png"):
        picture(tmp_path / name)
    result = drafted(tmp_path, folders=folders)
    lines = lines_of(result.table)
    assert result.patients == patients
    assert {line["label"] for line in lines} == labels
    assert "dark" not in {line["patient"] for line in lines}
    assert filled_in(result.table, volumes=False) == [(1, 8, 8)] * 3


def test_a_header_knows_better_than_a_folder(exported: Path) -> None:
    """Folders name patients only where no header does."""
    by_header = [line["patient"] for line in lines_of(drafted(exported).table)]
    by_both = draft(exported, exported / "b.csv", folders="patient")
    assert [line["patient"] for line in lines_of(by_both.table)] == by_header


def test_what_is_left_out_is_named(exported: Path, write_ct: WriteCt) -> None:
    """Strays, DICOM without pixels, broken DICOM, and names that no table can hold."""
    (exported / "notes.txt").touch()
    write_ct(exported / "sr.dcm", 1, number=9, PixelData=None, Rows=None, Columns=None)
    broken = write_ct(exported / "broken.dcm", 1, number=9)
    broken.write_bytes(broken.read_bytes()[:140])
    picture(exported / "a\nb.png")
    picture(exported / " c.png")
    (exported / ".hidden.png").touch()
    result = drafted(exported)
    assert {name for name, _ in result.left_out} == {
        "notes.txt", "sr.dcm", "broken.dcm", "'a\\nb.png'", " c.png",
    }  # fmt: skip
    assert result.lines == 2
    assert "Left out (5):" in result.text()


def test_names_that_are_no_text_can_be_told(exported: Path, tmp_path: Path) -> None:
    """A folder whose name no terminal shows is written out."""
    folder = tmp_path / b"caf\xe9".decode(errors="surrogateescape")
    exported.rename(folder)
    assert r"caf\udce9/manifest.csv: 2 lines" in drafted(folder).text()


def test_a_manifest_is_never_overwritten(exported: Path) -> None:
    """Exit code 2, and the table that people filled in stays as it is."""
    (exported / "manifest.csv").write_text("mine")
    said = CliRunner().invoke(fedward.app, ["data", "manifest", str(exported)])
    assert said.exit_code == 2
    assert "is there already" in said.stderr
    assert (exported / "manifest.csv").read_text() == "mine"
    assert not (exported / SECRET).exists()


def test_the_command_writes_a_draft(exported: Path) -> None:
    """It says how many lines there are and what is to be filled in."""
    arguments = ["data", "manifest", str(exported), "--site", "north", "--pictures"]
    said = CliRunner().invoke(fedward.app, [*arguments, "--out", str(exported / "draft.csv")])
    assert said.exit_code == 0, said.stderr
    assert "6 lines of 2 patients" in said.stdout
    assert "6 lines without a label" in said.stdout
    assert "Paths keep the names of folders" in said.stdout
    assert len(lines_of(exported / "draft.csv")) == 6


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"folder": "nowhere"}, "is no folder"),
        ({"folder": "empty"}, "no DICOM file and no image"),
        ({"table": "exported/1/manifest.csv"}, "--out must be in"),
        ({"site": "a b"}, "--site must be"),
        ({"folders": "sex"}, "--folders must be patient or label"),
        ({"table": "nowhere/manifest.csv"}, "--out must be in"),
    ],
)
def test_bad_input_is_refused(exported: Path, options: dict[str, str], expected: str) -> None:
    """With a sentence that says what to do, before anything is written."""
    top = exported.parent
    (top / "empty").mkdir()
    folder, table = options.pop("folder", "exported"), options.pop("table", "manifest.csv")
    with pytest.raises(BadInput, match=expected):
        draft(top / folder, top / table, **options)  # type: ignore[arg-type]
    assert not list(top.rglob("*.csv"))
    assert not list(top.rglob(SECRET))
