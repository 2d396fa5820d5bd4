"""A cohort from a PACS: a small one on loopback that holds what it is given and fails on demand."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pydicom
import pytest
import requests
from click.testing import Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import assume, given
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian
from typer.testing import CliRunner

import fedward
from client.dicomweb import NotServed, only_part, open_service, search_studies
from client.pull import Listed, Pulled, Query, pull, read_list
from common.data.manifest import ManifestReader
from common.errors import BadInput, RunFailed

ROOT = Path(__file__).parents[2]
ALL_CT = Query(("CT",), since=date(2020, 1, 1))
PASSWORD = {"FEDWARD_DICOMWEB_USER": "reader", "FEDWARD_DICOMWEB_PASSWORD": "geheim"}
BOUNDARY = "0f1e2d3c-boundary"
TAGS = {
    "AccessionNumber": ("00080050", "SH"),
    "ModalitiesInStudy": ("00080061", "CS"),
    "Modality": ("00080060", "CS"),
    "PatientID": ("00100020", "LO"),
    "SOPInstanceUID": ("00080018", "UI"),
    "SeriesDescription": ("0008103E", "LO"),
    "SeriesInstanceUID": ("0020000E", "UI"),
    "StudyDate": ("00080020", "DA"),
    "StudyDescription": ("00081030", "LO"),
    "StudyInstanceUID": ("0020000D", "UI"),
}

Answer = Callable[[BaseHTTPRequestHandler], None]


@cache
def ct_file(uid: str, *, patient: str = "case-1", series: str = "2.1.1", **more: Any) -> bytes:
    """A small CT slice that names nobody, as a DICOM file; `more` sets attributes by keyword
    or, with None, removes them.

    Its study is the series' UID less its last part.
    """
    header = Dataset()
    header.SOPClassUID = CTImageStorage
    header.SOPInstanceUID = UID(uid)
    header.StudyInstanceUID, header.SeriesInstanceUID = series.rpartition(".")[0], series
    header.PatientID, header.PatientName, header.Modality = patient, "", "CT"
    header.PatientIdentityRemoved, header.DeidentificationMethod = "YES", "made for a test"
    header.Manufacturer, header.InstanceNumber = "ACME", int(uid.rpartition(".")[2])
    header.Rows = header.Columns = 16
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation = 15, 0
    header.RescaleSlope, header.RescaleIntercept, header.PixelSpacing = 1, -1024, [1.0, 1.0]
    pixels = np.random.default_rng(len(uid)).integers(0, 2000, (16, 16), dtype=np.uint16)
    header.PixelData = pixels.tobytes()
    for keyword, value in more.items():
        if value is None:
            delattr(header, keyword)
        else:
            setattr(header, keyword, value)
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = CTImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = UID(uid)
    file = io.BytesIO()
    header.save_as(file, enforce_file_format=True)
    return file.getvalue()


@cache
def told_by(file: bytes) -> dict[str, str]:
    """What an index knows of a file."""
    header = pydicom.dcmread(io.BytesIO(file))
    return {keyword: str(header.get(keyword, "")) for keyword in TAGS}


@dataclass
class Pacs:
    """Files by their UID, what was asked for so far, and what the next answers shall be instead."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    about: dict[str, dict[str, str]] = field(default_factory=dict)  # a file's attributes
    retrieved: list[str] = field(default_factory=list)
    searches: list[str] = field(default_factory=list)
    authorization: set[str | None] = field(default_factory=set)
    instead: deque[Answer | None] = field(default_factory=deque)  # for the next retrievals
    at_search: Answer | None = None
    on_retrieve: Callable[[str], None] = lambda _uid: None
    filters: bool = True  # whether searches filter
    page: int = 1000  # results in one answer
    offsets: bool = True  # whether there is a second page

    def add(self, uid: str, *, about: dict[str, str] | None = None, **attributes: Any) -> None:
        """Store a slice; `about` is what searches say of it beyond what it holds."""
        date_known = {"StudyDate": attributes.pop("StudyDate", "")}  # to the index alone
        self.files[uid] = ct_file(uid, **attributes)
        held = told_by(self.files[uid])
        self.about[uid] = (
            held | {"ModalitiesInStudy": held["Modality"]} | date_known | (about or {})
        )

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """One request: a search, or a retrieval where it ends in an instance's UID."""
        parts = urlsplit(request.path)
        words = parts.path.split("/")[2:]  # the root is /dicom-web
        self.authorization.add(request.headers["Authorization"])
        if len(words) == 6:
            self._retrieve(request, words[5])
        elif self.at_search:
            self.at_search(request)
        else:
            self.searches.append(request.path)
            self._search(request, words, {k: v[0] for k, v in parse_qs(parts.query).items()})

    def _retrieve(self, request: BaseHTTPRequestHandler, uid: str) -> None:
        self.retrieved.append(uid)
        self.on_retrieve(uid)
        instead = self.instead.popleft() if self.instead else None
        if instead:
            instead(request)
        elif uid not in self.files:
            status(404)(request)
        else:
            send(request, *multipart(self.files[uid]))

    def _search(
        self, request: BaseHTTPRequestHandler, words: list[str], asked: dict[str, str]
    ) -> None:
        key = {1: "StudyInstanceUID", 3: "SeriesInstanceUID", 5: "SOPInstanceUID"}[len(words)]
        below = dict(zip(("StudyInstanceUID", "SeriesInstanceUID"), words[1::2], strict=False))
        found: dict[str, dict[str, str]] = {}
        for about in self.about.values():
            if all(about[name] == value for name, value in below.items()) and all(
                not self.filters or name not in TAGS or matches(about[name], value)
                for name, value in asked.items()
            ):
                found[about[key]] = about
        first = int(asked.get("offset", 0)) if self.offsets else 0
        records = [
            {tag: {"vr": vr, "Value": [about[name]]} for name, (tag, vr) in TAGS.items()}
            | {"00201209": {"vr": "IS", "Value": [self._size(about["SeriesInstanceUID"])]}}
            for about in list(found.values())[first : first + self.page]
        ]
        send(request, "application/dicom+json", json.dumps(records).encode())

    def _size(self, series: str) -> int:
        return sum(about["SeriesInstanceUID"] == series for about in self.about.values())


def matches(value: str, asked: str) -> bool:
    """Whether a value is the one asked for, or within the range of dates."""
    dates = re.fullmatch(r"(\d*)-(\d*)", asked)
    return dates[1] <= value <= (dates[2] or "9") if dates else value == asked


def multipart(file: bytes) -> tuple[str, bytes]:
    """Content type and body of an answer that holds one file."""
    start = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    kind = f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"'
    return kind, start + file + f"\r\n--{BOUNDARY}--\r\n".encode()


def send(request: BaseHTTPRequestHandler, kind: str, body: bytes) -> None:
    """A whole answer."""
    request.send_response(200)
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def status(code: int, **headers: str) -> Answer:
    """An answer that is a status alone; its body says what a careless service may say."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name, value)
        body = b"Doe^Jane was born in 1970"
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


def page_of_html(request: BaseHTTPRequestHandler) -> None:
    """What a login page says to whoever asks for data."""
    send(request, "text/html", b"<html>Log in, Doe^Jane</html>")


def other_json(request: BaseHTTPRequestHandler) -> None:
    """What another kind of service says."""
    send(request, "application/json", b"42")


def garbage(request: BaseHTTPRequestHandler) -> None:
    """A part that is no DICOM file."""
    send(request, *multipart(b"garbage" * 100))


def cut(request: BaseHTTPRequestHandler) -> None:
    """An answer of which only the first half comes."""
    kind, body = multipart(ct_file("6.1.1.1", PatientName="Doe^Jane"))
    request.send_response(200)
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body[: len(body) // 2])
    request.close_connection = True


def short(request: BaseHTTPRequestHandler) -> None:
    """An answer that claims to be whole and lacks its end."""
    kind, body = multipart(ct_file("6.1.1.1", PatientName="Doe^Jane"))
    send(request, kind, body[: len(body) // 2])


def hang_up(request: BaseHTTPRequestHandler) -> None:
    """No answer: the connection ends."""
    request.close_connection = True


def full_disk(_file: int) -> None:
    """What the system says where no space is left."""
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody pulls the plug in these tests, and syncing takes most of their time."""
    monkeypatch.setattr(os, "fsync", lambda _file: None)


@contextmanager
def serving(holding: Pacs, tls: ssl.SSLContext | None = None) -> Iterator[None]:
    """Answers for this PACS while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet an answer: else each waits for an acknowledgement

        def do_GET(self) -> None:
            holding.answer(self)

        def log_message(self, *_arguments: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        holding.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}/dicom-web"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield
        server.shutdown()
        thread.join()


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    """A PACS that holds nothing yet."""
    holding = Pacs()
    with serving(holding):
        yield holding


@pytest.fixture
def cohort(pacs: Pacs) -> Pacs:
    """Two patients' studies, with two series and one, of two files each."""
    first: Any = {"patient": "case-1", "StudyDate": "20200105"}
    for number in ("1", "2"):
        pacs.add(f"1.1.1.{number}", series="1.1.1", **first)
        pacs.add(
            f"1.1.2.{number}", series="1.1.2", about={"SeriesDescription": "1.0 lung"}, **first
        )
        pacs.add(
            f"2.1.1.{number}",
            series="2.1.1",
            patient="case-2",
            StudyDate="20200106",
            about={"StudyDescription": "CHEST 2", "AccessionNumber": "A-2"},
        )
    return pacs


def command(pacs: Pacs, out: Path, *more: str) -> Result:
    """The command line in this process, for all CT since 2020; what comes last counts."""
    arguments = [pacs.url, "--out", str(out), "--site=north", "--from=2020-01-01"]
    if not any(word.startswith("--modality") for word in more):
        arguments.append("--modality=CT")
    return CliRunner().invoke(fedward.app, ["data", "pull", *arguments, *more])


def run(pacs: Pacs, out: Path, **options: Any) -> Pulled:
    """All CT since 2020, without waiting between tries."""
    environment: dict[str, str] = options.pop("environment", {})
    query: Query = options.pop("query", ALL_CT)
    service = open_service(pacs.url, environment, waits_s=(0.0, 0.0))
    return pull(service, query, out, **({"site": "north"} | options))


def lines(out: Path) -> list[dict[str, str]]:
    """The manifest's lines."""
    with (out / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def everything(out: Path) -> bytes:
    """All that lies below the folder: names and contents."""
    return b"\n".join(
        str(path.relative_to(out)).encode() + (path.read_bytes() if path.is_file() else b"")
        for path in sorted(out.rglob("*"))
    )


def arrived(out: Path) -> list[bytes]:
    """The files below images/, in the order of their bytes."""
    return sorted(path.read_bytes() for path in (out / "images").rglob("*.dcm"))


# The cohort.


def test_a_cohort_arrives_byte_for_byte(cohort: Pacs, tmp_path: Path) -> None:
    """Each file is kept as it was sent, a folder a series, with a line a series in the manifest."""
    result = run(cohort, tmp_path / "out", label="fibrosis")
    assert arrived(tmp_path / "out") == sorted(cohort.files.values())
    assert (result.series, result.whole, result.fetched) == (3, 3, 6)
    assert result.failure() == ""
    listed = lines(tmp_path / "out")
    assert [line["slices"] for line in listed] == ["2", "2", "2"]
    assert {line["site"] for line in listed} == {"north"}
    assert {line["label"] for line in listed} == {"fibrosis"}
    assert {line["manufacturer"] for line in listed} == {"ACME"}
    assert len({line["patient"] for line in listed}) == 2
    for line in listed:
        assert len(list((tmp_path / "out" / line["path"]).glob("*.dcm"))) == 2


@pytest.mark.parametrize("site", ["north", ""])
def test_the_manifest_is_one_that_training_reads(cohort: Pacs, tmp_path: Path, site: str) -> None:
    """What was pulled with a label is read as volumes, with nothing left to be done."""
    run(cohort, tmp_path / "out", label="fibrosis", site=site)
    reader = ManifestReader(volumes=True)
    sources = reader.find(tmp_path / "out", ["healthy", "fibrosis"])
    assert [(source.site or "", source.detail) for source in sources] == [(site, 1)] * 3
    for source in sources:
        (image,) = reader.decode(source)
        assert [plane.shape for plane in image.planes] == [(2, 16, 16)]


def test_names_of_files_and_the_manifest_tell_no_one(cohort: Pacs, tmp_path: Path) -> None:
    """Neither a UID nor a patient's number is in a folder's or a file's name or the manifest."""
    run(cohort, tmp_path / "out")
    told = (tmp_path / "out" / "manifest.csv").read_text() + " ".join(
        str(path.relative_to(tmp_path)) for path in (tmp_path / "out").rglob("*")
    )
    for about in cohort.about.values():
        for keyword in ("PatientID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            assert about[keyword] not in told
    assert (tmp_path / "out").stat().st_mode & 0o077 == 0


def test_the_same_command_again_fetches_nothing(cohort: Pacs, tmp_path: Path) -> None:
    """What is whole is not asked for again, and what a person wrote into the manifest stays."""
    out = tmp_path / "out"
    run(cohort, out)
    edited = b"\xef\xbb\xbf" + (out / "manifest.csv").read_bytes().replace(b"\n", b"\r\n")
    edited = edited.replace(b",,CT", b",fibrosis,CT").replace(b"slices\r", b"slices,note\r")
    (out / "manifest.csv").write_bytes(edited)
    assert run(cohort, out).fetched == 0
    assert len(cohort.retrieved) == 6
    assert (out / "manifest.csv").read_bytes() == edited


def test_new_series_are_added_below_what_a_person_wrote(cohort: Pacs, tmp_path: Path) -> None:
    """A later pull adds its lines, in the columns and line ends that the table has now."""
    out = tmp_path / "out"
    run(cohort, out, label="healthy")
    table = b"note,label,site,patient,path\r\n\r\n" + b"".join(
        b"seen,emphysema,south,p,%s,\r\n" % line["path"].encode() for line in lines(out)
    )
    (out / "manifest.csv").write_bytes(table.removesuffix(b"\r\n"))
    cohort.add("9.1.1.1", patient="case-9", series="9.1.1", StudyDate="20210101")
    run(cohort, out, label="fibrosis")
    now = (out / "manifest.csv").read_bytes()
    assert now.startswith(table)
    assert re.fullmatch(
        rb",fibrosis,north,[0-9a-f]+,images/[0-9a-f]+/[0-9a-f]+\r\n", now.removeprefix(table)
    )


def test_a_line_that_was_taken_out_stays_out(cohort: Pacs, tmp_path: Path) -> None:
    """A patient whom a person removed from the manifest doesn't come back."""
    out = tmp_path / "out"
    run(cohort, out)
    rest = (out / "manifest.csv").read_bytes().splitlines(keepends=True)[:-1]
    (out / "manifest.csv").write_bytes(b"".join(rest))
    result = run(cohort, out)
    assert (out / "manifest.csv").read_bytes() == b"".join(rest)
    assert "1 series in images/ have no line" in result.text()


def test_a_series_that_grew_is_told(cohort: Pacs, tmp_path: Path) -> None:
    """A series that has more files in the PACS than here is named in numbers."""
    run(cohort, tmp_path / "out")
    cohort.add("1.1.1.3", patient="case-1", series="1.1.1", StudyDate="20200105")
    assert run(cohort, tmp_path / "out").grown == 1


def test_a_file_in_the_way_is_bad_input(cohort: Pacs, tmp_path: Path) -> None:
    """--out names a folder: exit code 2, and the file stays."""
    (tmp_path / "out").write_text("mine")
    said = command(cohort, tmp_path / "out")
    assert said.exit_code == 2
    assert "a file is in the way" in said.stderr
    assert (tmp_path / "out").read_text() == "mine"


def test_a_table_that_is_no_manifest_is_refused_first(cohort: Pacs, tmp_path: Path) -> None:
    """A manifest.csv without its columns is refused before anything is fetched."""
    (tmp_path / "manifest.csv").write_text("path;patient;site;label\n")
    with pytest.raises(BadInput, match="the column path, patient is missing"):
        run(cohort, tmp_path)
    assert cohort.retrieved == []


def test_two_pulls_into_one_folder_are_refused(cohort: Pacs, tmp_path: Path) -> None:
    """While one process fills a folder, another is told so."""

    def second(_uid: str) -> None:
        cohort.on_retrieve = lambda _uid: None
        with pytest.raises(BadInput, match="another pull is writing there"):
            run(cohort, tmp_path / "out")
        refusals.append(1)

    refusals: list[int] = []
    cohort.on_retrieve = second
    run(cohort, tmp_path / "out")
    assert refusals == [1]


def test_a_patient_has_one_name_a_folder(cohort: Pacs, tmp_path: Path) -> None:
    """Runs into one folder name a patient alike, though nobody can guess a number from the name."""
    for out in (tmp_path / "one", tmp_path / "other"):
        run(cohort, out, query=Query(("CT",), since=date(2020, 1, 1), series_description="*lung"))
        run(cohort, out)
        names = [line["patient"] for line in lines(out)]
        assert (len(names), len(set(names))) == (3, 2)
    assert not {line["patient"] for line in lines(tmp_path / "one")} & set(names)


def test_a_lost_secret_is_noticed(cohort: Pacs, tmp_path: Path) -> None:
    """Without its secret a folder's patients would be counted twice: refused."""
    run(cohort, tmp_path / "out")
    (tmp_path / "out" / ".pull" / "secret").unlink()
    with pytest.raises(BadInput, match="patients would get new names"):
        run(cohort, tmp_path / "out")


# What is asked for.


@pytest.mark.parametrize(
    ("query", "series"),
    [
        (Query(("CT",), since=date(2020, 1, 5)), {"1.1.1", "1.1.2", "2.1.1"}),
        (Query(("CT",), since=date(2020, 1, 6)), {"2.1.1"}),
        (Query(("CT",), since=date(2020, 1, 1), until=date(2020, 1, 5)), {"1.1.1", "1.1.2"}),
        (Query(("MR",), since=date(2020, 1, 1)), {"3.1.1"}),
        (Query(("CT", "MR"), since=date(2020, 1, 6)), {"2.1.1", "3.1.1"}),
        (Query(("CT",), Listed("PatientID", {"case-1": 2})), {"1.1.1", "1.1.2"}),
        (Query(("CT",), Listed("AccessionNumber", {"A-2": 2})), {"2.1.1"}),
        (Query(("CT",), Listed("StudyInstanceUID", {"2.1": 2, "3.1": 3})), {"2.1.1"}),
        (Query(("CT",), since=date(2020, 1, 1), series_description="*LUNG*"), {"1.1.2"}),
        (Query(("CT",), since=date(2020, 1, 1), study_description="chest?2"), {"2.1.1"}),
    ],
)
@pytest.mark.parametrize("filters", [True, False], ids=["filtering", "not filtering"])
def test_only_what_matches_is_fetched(
    cohort: Pacs, tmp_path: Path, query: Query, series: set[str], filters: bool
) -> None:
    """Every filter holds, also with a PACS that leaves filters out."""
    cohort.add("3.1.1.1", series="3.1.1", patient="case-3", StudyDate="20200107", Modality="MR")
    cohort.filters = filters
    run(cohort, tmp_path / "out", query=query)
    assert {uid.rpartition(".")[0] for uid in cohort.retrieved} == series


def test_a_limit_means_the_same_studies_each_time(cohort: Pacs, tmp_path: Path) -> None:
    """With a limit, the run after fetches no other study."""
    assert run(cohort, tmp_path / "out", limit=1).studies == 1
    before = list(cohort.retrieved)
    assert run(cohort, tmp_path / "out", limit=1).fetched == 0
    assert cohort.retrieved == before


@pytest.mark.parametrize("page", [1, 2, 5])
@pytest.mark.parametrize("offsets", [True, False])
def test_searches_are_read_to_their_last_page(
    cohort: Pacs, tmp_path: Path, page: int, offsets: bool
) -> None:
    """Results that come in pages are all read; a PACS that repeats its one page is not a trap."""
    cohort.page, cohort.offsets = page, offsets
    result = run(cohort, tmp_path / "out")
    assert result.whole == 3 or not offsets
    assert result.whole == result.series


def test_entries_without_a_study_are_told_by_their_line(cohort: Pacs, tmp_path: Path) -> None:
    """What a list holds in vain is named by line number, not by what the line says."""
    listed = Listed("PatientID", {"case-1": 2, "nobody-77": 5, "nobody-78": 6})
    result = run(cohort, tmp_path / "out", query=Query(("CT",), listed))
    assert "2 entries of the list match no study: line 5, 6." in result.text()
    assert "nobody" not in result.text()


def test_nothing_found_is_said(cohort: Pacs, tmp_path: Path) -> None:
    """A query that matches no series is bad input."""
    with pytest.raises(BadInput, match="has no series that matches"):
        run(cohort, tmp_path / "out", query=Query(("US",), since=date(2020, 1, 1)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"modalities": ()}, "--modality must name at least one"),
        ({"modalities": ("ct",)}, "got 'ct'"),
        ({"modalities": ("CT",), "since": None}, "--list or --from must be given"),
        ({"modalities": ("CT",), "until": date(2019, 1, 1)}, "--to must not be before --from"),
    ],
)
def test_a_query_that_means_nothing_or_all_is_refused(arguments: Any, said: str) -> None:
    """A query says which images, and not all that the PACS holds."""
    with pytest.raises(BadInput, match=re.escape(said)):
        Query(**({"since": date(2020, 1, 1)} | arguments))


def test_a_list_is_read_with_its_line_numbers(tmp_path: Path) -> None:
    """Blanks, blank lines and a mark of byte order do no harm; the first of twins counts."""
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfPatientID\r\n\r\n a 1 \r\nb\r\na 1\r\n")
    assert read_list(tmp_path / "list.txt") == Listed("PatientID", {"b": 4, "a 1": 3})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1 must say"),
        ("1234\n5678\n", "line 1 must say"),
        ("PatientID\n\n", "at least one PatientID"),
        ("PatientID\n12*\n*\nok\n1?\n", "mend line 2, 3, 5"),
        ("PatientID\na\\b\n", "mend line 2"),
        ("StudyInstanceUID\n1.2,1.3\n", "mend line 2"),
        ("AccessionNumber\n12345678901234567\n", "mend line 2"),
    ],
)
def test_a_list_that_could_fetch_strangers_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """Wildcards and several values on a line are refused by number, unquoted."""
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(BadInput, match=re.escape(said)) as caught:
        read_list(tmp_path / "list.txt")
    assert "1234" not in str(caught.value)


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """A spreadsheet or a missing file is named."""
    (tmp_path / "list.xlsx").write_bytes(b"PK\x03\x04\xff\xfe")
    for name in ("list.xlsx", "absent.txt"):
        with pytest.raises(BadInput, match=name):
            read_list(tmp_path / name)


# Who the patient is.


def test_what_tells_who_the_patient_is_is_not_kept(cohort: Pacs, tmp_path: Path) -> None:
    """A series with a name in it leaves no trace but a count by keyword; the others arrive."""
    cohort.add(
        "4.1.1.1", series="4.1.1", patient="case-4", StudyDate="20200107", PatientName="Doe^Jane"
    )
    result = run(cohort, tmp_path / "out")
    assert (result.series, result.whole, result.refused_series) == (4, 3, 1)
    assert result.refused["PatientName"] == 1
    assert "PatientName (1)" in result.failure()
    assert "de-identify" in result.failure()
    assert b"Doe" not in everything(tmp_path / "out")
    assert len(lines(tmp_path / "out")) == 3


def test_a_refused_series_comes_once_it_is_mended(cohort: Pacs, tmp_path: Path) -> None:
    """After the PACS was mended the same command fetches the refused series, and that alone."""
    cohort.add("1.1.1.2", series="1.1.1", StudyDate="20200105", PatientName="Doe^Jane")
    assert run(cohort, tmp_path / "out").refused_series == 1
    assert not list((tmp_path / "out" / ".pull").rglob("*.dcm")), "what one tells, others may"
    cohort.add("1.1.1.2", series="1.1.1", StudyDate="20200105")
    cohort.retrieved.clear()
    assert run(cohort, tmp_path / "out").whole == 3
    assert sorted(cohort.retrieved) == ["1.1.1.1", "1.1.1.2"]


def test_a_series_of_two_patients_is_not_kept(cohort: Pacs, tmp_path: Path) -> None:
    """A series whose files name different patients could count for the wrong one."""
    cohort.add("2.1.1.3", series="2.1.1", patient="case-7", StudyDate="20200106")
    result = run(cohort, tmp_path / "out")
    assert "files of several patients in one series (1)" in result.failure()
    assert len(lines(tmp_path / "out")) == 2


def test_a_file_without_pixels_is_not_kept(cohort: Pacs, tmp_path: Path) -> None:
    """A report among the images costs its series, with a word."""
    cohort.add(
        "2.1.1.3", series="2.1.1", patient="case-2", StudyDate="20200106", Rows=None, PixelData=None
    )
    assert "a file without pixels (1)" in run(cohort, tmp_path / "out").failure()


def test_pixels_that_nobody_could_look_at_are_not_kept(cohort: Pacs, tmp_path: Path) -> None:
    """They may show a name: a series with pixels that can't be decoded is refused."""
    cohort.add("4.1.1.1", series="4.1.1", patient="case-4", PixelData=b"", StudyDate="20200107")
    result = run(cohort, tmp_path / "out")
    assert (result.whole, result.refused_series) == (3, 1)
    assert "pixels that can't be decoded (1)" in result.failure()


def test_a_series_without_a_patient_is_left_to_a_person(cohort: Pacs, tmp_path: Path) -> None:
    """Where PatientID was emptied, nobody guesses which series belong together."""
    cohort.add("5.1.1.1", series="5.1.1", patient="", StudyDate="20200107")
    result = run(cohort, tmp_path / "out")
    assert [line["patient"] for line in lines(tmp_path / "out")].count("") == 1
    assert "1 lines of manifest.csv name no patient" in result.text()


# What goes wrong on the way.


@pytest.mark.parametrize("fault", [status(503), status(429), cut, hang_up, status(500)])
def test_a_fault_that_passes_is_not_noticed(cohort: Pacs, tmp_path: Path, fault: Answer) -> None:
    """A server error, a cut and a lost connection are tried again."""
    cohort.instead.extend([None, fault, fault, None])
    assert run(cohort, tmp_path / "out").whole == 3
    assert arrived(tmp_path / "out") == sorted(cohort.files.values())
    assert len(cohort.retrieved) == 6 + 2


@pytest.mark.parametrize("fault", [status(503), cut, hang_up, short])
def test_a_lasting_fault_stops_the_pull_until_the_next(
    cohort: Pacs, tmp_path: Path, fault: Answer
) -> None:
    """A PACS that is gone ends the run with one sentence; the next run fetches only the rest."""
    cohort.instead.extend([None, None, None, *[fault] * 3])
    with pytest.raises(RunFailed, match=r"3 times .* the same command again") as caught:
        run(cohort, tmp_path / "out")
    assert "Doe" not in str(caught.value)
    assert b"Doe" not in everything(tmp_path / "out")
    assert len(lines(tmp_path / "out")) == 1
    assert run(cohort, tmp_path / "out").fetched == 3
    assert arrived(tmp_path / "out") == sorted(cohort.files.values())


def test_waits_lie_between_the_tries(cohort: Pacs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each further try waits longer, five tries in all."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    cohort.at_search = status(503)
    with pytest.raises(RunFailed):
        search_studies(open_service(cohort.url, {}), {}, keywords=())
    assert waited == [0.0, 1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (status(404), "HTTP 404 (1)"),
        (status(500), "HTTP 500 (1)"),
        (status(406), "HTTP 406 (1)"),
        (page_of_html, "an answer that is no DICOM file (1)"),
        (garbage, "a file that can't be read (1)"),
    ],
)
def test_what_can_not_be_had_holds_up_nothing_else(
    cohort: Pacs, tmp_path: Path, fault: Answer, said: str
) -> None:
    """One file that the PACS has lost costs its series; the others arrive, and the end says so."""
    cohort.instead.extend([fault] * (3 if "500" in said else 1))
    result = run(cohort, tmp_path / "out")
    assert said in result.failure()
    assert result.whole == 2
    assert b"garbage" not in everything(tmp_path / "out")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (status(401), "refuses these credentials (HTTP 401); set FEDWARD_DICOMWEB_USER"),
        (status(403), "refuses these credentials (HTTP 403)"),
        (status(404), "answers a search with HTTP 404; the URL must be the root"),
        (status(302, Location="http://127.0.0.1:9/"), "sends on to another address"),
        (page_of_html, "answers a search with something else than DICOM JSON"),
        (other_json, "answers a search with something else than DICOM JSON"),
    ],
)
def test_what_a_person_must_mend_is_said_at_once(
    cohort: Pacs, tmp_path: Path, fault: Answer, said: str
) -> None:
    """Credentials, addresses and services that are none are bad input, without another try."""
    cohort.at_search = fault
    with pytest.raises(BadInput, match=re.escape(said)) as caught:
        run(cohort, tmp_path / "out", environment=PASSWORD)
    assert "geheim" not in str(caught.value)
    assert "Doe" not in str(caught.value)


@pytest.mark.parametrize("after", [1, 2, 4, 6])
def test_a_kill_loses_no_file_and_leaves_none_in_part(
    cohort: Pacs, tmp_path: Path, after: int
) -> None:
    """Killed at a retrieval, the same command goes on; no file is asked for twice but that one."""
    out = tmp_path / "out"

    def kill(_uid: str) -> None:
        if len(cohort.retrieved) == after:
            process.kill()
            process.wait()

    cohort.on_retrieve = kill
    arguments = [cohort.url, f"--out={out}", "--site=north", "--modality=CT"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "fedward.py"), "data", "pull", *arguments, "--from=2020-01-01"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.wait(timeout=60) == -signal.SIGKILL
    for file in arrived(out):
        assert file in cohort.files.values()
    assert run(cohort, out).whole == 3
    assert len(cohort.retrieved) == 6 + 1
    assert arrived(out) == sorted(cohort.files.values())
    assert not list((out / ".pull").glob("*.dcm"))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_end_at_any_renaming_loses_nothing(
    cohort: Pacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Stopped before or after each renaming in turn, the same command gets to the same end."""

    class Stopped(BaseException):
        """The process ends here."""

    def stopping(rename: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def renamed(path: Path, target: Path) -> Path:
            left[0] -= 1
            if left[0] < 0 and not after:
                raise Stopped
            rename(path, target)
            if left[0] < 0:
                raise Stopped
            return target

        return renamed

    left = [0]
    stops = 0
    for name in ("rename", "replace"):
        monkeypatch.setattr(Path, name, stopping(getattr(Path, name)))
    for _ in range(100):
        left[0] = 0 if after else 1  # one more step each time
        try:
            result = run(cohort, tmp_path / "out")
            break
        except Stopped:
            stops += 1
        for place in (tmp_path / "out" / "images").glob("*/*"):
            listed = [line["path"] for line in lines(tmp_path / "out")]
            assert place.relative_to(tmp_path / "out").as_posix() in listed
            assert len(list(place.iterdir())) == 2
    assert stops >= 6 + 3 + 3  # files, lines, folders
    assert (result.whole, result.unlisted) == (3, 0)
    assert len({line["path"] for line in lines(tmp_path / "out")}) == 3
    assert len(lines(tmp_path / "out")) == 3
    assert arrived(tmp_path / "out") == sorted(cohort.files.values())


def test_what_a_kill_left_unchecked_is_removed(cohort: Pacs, tmp_path: Path) -> None:
    """A file that was being written when the process was killed doesn't stay."""
    run(cohort, tmp_path / "out")
    (tmp_path / "out" / ".pull" / "partial.dcm").write_bytes(b"Doe^Jane")
    run(cohort, tmp_path / "out")
    assert b"Doe" not in everything(tmp_path / "out")


def test_a_file_that_left_the_pacs_meanwhile_is_not_part_of_its_series(
    cohort: Pacs, tmp_path: Path
) -> None:
    """What was fetched of a series that then lost a file isn't mixed into it."""
    cohort.instead.extend([None, *[status(503)] * 3])
    with pytest.raises(RunFailed):
        run(cohort, tmp_path / "out")
    del cohort.about[cohort.retrieved[0]]
    assert run(cohort, tmp_path / "out").whole == 3
    assert len(arrived(tmp_path / "out")) == 5


def test_a_full_disk_leaves_nothing_half_written(cohort: Pacs, tmp_path: Path) -> None:
    """An error while writing leaves only whole files, and the next run goes on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space"):
            run(cohort, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.dcm"))
    assert run(cohort, tmp_path / "out").whole == 3


# Credentials.


def test_a_password_goes_to_the_service_alone(cohort: Pacs, tmp_path: Path) -> None:
    """Each request carries the credentials of the environment, and no file does."""
    run(cohort, tmp_path / "out", environment=PASSWORD)
    assert cohort.authorization == {"Basic " + b64encode(b"reader:geheim").decode()}
    assert b"geheim" not in everything(tmp_path / "out")


def test_a_token_goes_as_a_bearer_token(cohort: Pacs, tmp_path: Path) -> None:
    """FEDWARD_DICOMWEB_TOKEN is sent as RFC 6750 says."""
    run(cohort, tmp_path / "out", environment={"FEDWARD_DICOMWEB_TOKEN": "abc.def"})
    assert cohort.authorization == {"Bearer abc.def"}


def test_a_certificate_is_checked(cohort: Pacs, tmp_path: Path) -> None:
    """A PACS whose authority nobody knows here is asked nothing, until its file is named."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hospital")])
    today = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, encoding = tmp_path / "hospital.pem", serialization.Encoding.PEM
    secret = key.private_bytes(
        encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(certificate.public_bytes(encoding) + secret)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(pem)
    with serving(cohort, tls):
        with pytest.raises(BadInput, match="its certificate is not trusted here"):
            run(cohort, tmp_path / "out", environment=PASSWORD)
        assert cohort.authorization == set()
        known = PASSWORD | {"FEDWARD_DICOMWEB_CA": str(pem)}
        assert run(cohort, tmp_path / "out", environment=known).whole == 3


def test_netrc_and_proxies_are_not_looked_at(
    cohort: Pacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A password for another purpose is not sent, and no proxy sees a patient's number."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login other password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert run(cohort, tmp_path / "out").whole == 3
    assert cohort.authorization == {None}


@pytest.mark.parametrize(
    ("url", "environment", "said"),
    [
        ("pacs.example.org", {}, "URL must be the root"),
        ("ftp://pacs.example.org", {}, "URL must be the root"),
        ("https://", {}, "URL must be the root"),
        ("https://pacs.example.org:x", {}, "URL must be the root"),
        ("https://pacs.example.org/?all", {}, "URL must be the root"),
        ("https://me:geheim@pacs.example.org", {}, "URL must hold no user or password"),
        ("http://pacs.example.org", PASSWORD, "would send the password readable"),
        ("https://pacs.example.org", {"FEDWARD_DICOMWEB_USER": "geheim"}, "set both or neither"),
        (
            "https://pacs.example.org",
            PASSWORD | {"FEDWARD_DICOMWEB_TOKEN": "geheim"},
            "are both set",
        ),
        ("https://pacs.example.org", {"FEDWARD_DICOMWEB_TOKEN": "geheim\nX: y"}, "on one line"),
        ("https://pacs.example.org", {"FEDWARD_DICOMWEB_CA": "absent.pem"}, "no file absent.pem"),
    ],
)
def test_a_service_that_can_not_be_asked_safely_is_refused(
    url: str, environment: dict[str, str], said: str
) -> None:
    """What is wrong with the address or the credentials is said before anything is sent."""
    with pytest.raises(BadInput, match=re.escape(said)) as caught:
        open_service(url, environment)
    assert "geheim" not in str(caught.value)


def test_credentials_are_in_no_representation() -> None:
    """A service in a log or a traceback shows no password."""
    for environment in (PASSWORD, {"FEDWARD_DICOMWEB_TOKEN": "geheim"}):
        service = open_service("https://pacs.example.org/", environment)
        assert "geheim" not in repr(service) + repr(service.session.auth)
        assert service.url == "https://pacs.example.org"


# The answer that holds a file.


@given(
    file=st.binary(max_size=200),
    boundary=st.from_regex(r"[A-Za-z0-9'()+_,./:=?-]{1,70}", fullmatch=True),
    headers=st.sampled_from([b"", b"Content-Type: application/dicom\r\n", b"A: b\r\nC: d\r\n"]),
    preamble=st.sampled_from([b"", b"ignored\r\n"]),
)
def test_the_file_in_an_answer_is_found_and_a_cut_one_is_not(
    file: bytes, boundary: str, headers: bytes, preamble: bytes
) -> None:
    """Any bytes come out as they went in; an answer cut anywhere before its end gives none."""
    marker = b"--" + boundary.encode()
    assume(b"\r\n" + marker not in b"\r\n" + file)
    body = preamble + marker + b"\r\n" + headers + b"\r\n" + file + b"\r\n" + marker + b"--"
    kind = f'multipart/related; type="application/dicom"; boundary="{boundary}"'
    assert only_part(kind, body + b"\r\n") == file
    for end in range(len(body)):
        with pytest.raises(requests.ConnectionError):
            only_part(kind, body[:end])


def test_two_files_in_one_answer_are_refused() -> None:
    """An answer with a second file isn't one file with something behind it."""
    kind = "multipart/related; boundary=b"
    with pytest.raises(NotServed, match="several files"):
        only_part(kind, b"--b\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--")


# The command.


def test_the_command_says_what_is_there(cohort: Pacs, tmp_path: Path) -> None:
    """Exit code 0, what arrived, and what is left to do."""
    said = command(cohort, tmp_path / "out")
    assert said.exit_code == 0, said.output
    assert "3 of 3 series (2 studies) are there; 6 files fetched now." in said.output
    assert "label" in said.output


def test_the_command_fails_where_a_series_was_refused(cohort: Pacs, tmp_path: Path) -> None:
    """Exit code 1 and the keywords where something was refused."""
    cohort.add("4.1.1.1", series="4.1.1", StudyDate="20200107", PatientName="Doe^Jane")
    said = command(cohort, tmp_path / "out")
    assert said.exit_code == 1
    assert "PatientName (1)" in said.stderr
    assert "3 of 4 series" in said.stdout
    assert "Doe" not in said.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from=20200101"], "'20200101'"),
        (["--to=2019-01-01"], "--to must not be before --from"),
        (["--modality=ct"], "got 'ct'"),
        (["--list=absent.txt"], "absent.txt: can't be read"),
        (["--limit=0"], "--limit"),
        (["--site=a/b"], "--site must be"),
    ],
)
def test_bad_values_are_refused(
    cohort: Pacs, tmp_path: Path, arguments: list[str], said: str
) -> None:
    """Exit code 2 and the option at fault; nothing is made or asked."""
    result = command(cohort, tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert cohort.searches == []
    assert not (tmp_path / "out").exists()
