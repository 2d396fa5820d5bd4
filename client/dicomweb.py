"""A PACS by DICOMweb: search (QIDO-RS, DICOM PS3.18 section 10.6), retrieval (WADO-RS, 10.4).

`dicomweb-client` asks the questions. Files are retrieved beside it, with the same session, since it
hands out parsed data sets only: what is kept is, byte for byte, what was sent. Errors name the
service, an HTTP status and what to do; never an address with a UID in it, a patient or a password.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from dicomweb_client import URI, DICOMwebClient

from common.errors import BadInput, FedwardError, RunFailed

USER, PASSWORD = "FEDWARD_DICOMWEB_USER", "FEDWARD_DICOMWEB_PASSWORD"
TOKEN = "FEDWARD_DICOMWEB_TOKEN"
CA = "FEDWARD_DICOMWEB_CA"
TIMEOUT_S = (10.0, 120.0)  # to connect, and between two bytes: archives fetch from tape
WAITS_S = (1.0, 2.0, 4.0, 8.0)  # before each further try
_PASSING = {408, 429, 500, 502, 503, 504}  # HTTP statuses that another try can mend
_ONE_ITEM = {"HTTP 500"}  # of those, what may be the fault of the one thing asked for
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_DICOM = 'multipart/related; type="application/dicom"; transfer-syntax=*'  # as it is stored

T = TypeVar("T")

for _name in ("dicomweb_client", "urllib3"):  # their lines hold addresses, which hold UIDs
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class NotServed(FedwardError):
    """The service answers, but not with the one thing asked for; says what came instead."""


@dataclass(frozen=True, slots=True)
class Service:
    """A DICOMweb service and how patiently it is asked."""

    url: str
    session: requests.Session = field(repr=False)
    client: DICOMwebClient = field(repr=False)
    waits_s: Sequence[float] = WAITS_S


@dataclass(frozen=True, slots=True)
class FoundStudy:
    """What a search tells of a study; all of it may identify, so it stays in memory."""

    uid: str = field(repr=False)
    values: Mapping[str, str] = field(repr=False)  # by keyword: the list's keys and descriptions
    date: str = field(repr=False)  # (0008,0020) StudyDate, YYYYMMDD


@dataclass(frozen=True, slots=True)
class FoundSeries:
    """What a search tells of a series; UIDs stay in memory."""

    study_uid: str = field(repr=False)
    uid: str = field(repr=False)
    modality: str  # (0008,0060)
    description: str = field(repr=False)  # (0008,103E); people write names into it
    instances: int | None  # (0020,1209), where the service counts them


def open_service(
    url: str, environment: Mapping[str, str], *, waits_s: Sequence[float] = WAITS_S
) -> Service:
    """The service at `url`, with the credentials that the environment holds; asks nothing yet.

    Args:
        url: the service's root, such as https://pacs.example.org/dicom-web.
        environment: FEDWARD_DICOMWEB_USER and _PASSWORD, or _TOKEN (a bearer token), or neither;
            FEDWARD_DICOMWEB_CA, a PEM file of the authorities to trust instead of the public ones.
            Proxies, netrc and other variables are not looked at.
        waits_s: seconds before each further try of a request that met no answer or a server error.

    Raises BadInput, before anything is sent, where these can't be used as they are.
    """
    root = url.rstrip("/")
    if not _is_root(root):
        raise BadInput(
            "URL must be the root of a DICOMweb service, such as "
            "https://pacs.example.org/dicom-web, without ? or #."
        )
    parts = urlsplit(root)
    if parts.username is not None or parts.password is not None:
        raise BadInput(
            f"URL must hold no user or password, since others can read a command line; "
            f"set {USER} and {PASSWORD} instead."
        )
    session = requests.Session()
    session.trust_env = False  # no password from ~/.netrc, no proxy that would see patients' data
    session.max_redirects = 0  # a search's address holds patients' numbers: to this service alone
    session.auth = _credentials(environment)
    if session.auth and parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        raise BadInput(
            "URL begins with http://, which would send the password readable by all on the way; "
            "use https://, or a tunnel to 127.0.0.1."
        )
    authorities = environment.get(CA)
    if authorities:
        if not Path(authorities).is_file():
            raise BadInput(f"{CA}: there is no file {authorities}; name a PEM file.")
        session.verify = authorities
    client = DICOMwebClient(root, session=session, timeout=TIMEOUT_S)
    client.host = parts.netloc  # its Host header would leave out the port
    client.set_http_retry_params(retry=False)  # `_ask` tries again, reading the answer included
    return Service(root, session, client, waits_s)


def search_studies(
    service: Service, filters: Mapping[str, str], *, keywords: Sequence[str]
) -> tuple[FoundStudy, ...]:
    """The studies that match all filters (by DICOM keyword), with the named attributes' values."""
    tags = {keyword: DICOMwebClient.lookup_tag(keyword) for keyword in keywords}
    try:
        records = _search(
            service,
            lambda offset: service.client.search_for_studies(
                search_filters=dict(filters), fields=list(tags.values()), offset=offset
            ),
            key="0020000D",
        )
    except NotServed as error:
        if str(error) in _ONE_ITEM:
            raise _given_up(service, str(error)) from None
        raise BadInput(
            f"{service.url} answers a search with {error}; the URL must be the root of a "
            "DICOMweb service with QIDO-RS. Ask the PACS' administrator for it."
        ) from None
    return tuple(
        FoundStudy(
            uid=uid,
            values={keyword: _value(record, tag) for keyword, tag in tags.items()},
            date=_value(record, "00080020"),
        )
        for uid, record in records.items()
    )


def search_series(service: Service, study_uid: str) -> tuple[FoundSeries, ...]:
    """All series of a study; raises NotServed where the service doesn't list them."""
    records = _search(
        service,
        lambda offset: service.client.search_for_series(
            study_uid, fields=["0008103E", "00201209"], offset=offset
        ),
        key="0020000E",
    )
    return tuple(
        FoundSeries(
            study_uid=study_uid,
            uid=uid,
            modality=_value(record, "00080060"),
            description=_value(record, "0008103E"),
            instances=int(count) if (count := _value(record, "00201209")).isdecimal() else None,
        )
        for uid, record in records.items()
    )


def search_instances(service: Service, series: FoundSeries) -> tuple[str, ...]:
    """The UIDs of a series' instances; raises NotServed where the service doesn't list them."""
    records = _search(
        service,
        lambda offset: service.client.search_for_instances(
            series.study_uid, series.uid, offset=offset
        ),
        key="00080018",
    )
    return tuple(records)


def retrieve(service: Service, series: FoundSeries, instance_uid: str) -> bytes:
    """One instance as a DICOM file, byte for byte as the service sent it.

    Raises NotServed where the service has it not to give, RunFailed where it doesn't answer.
    """
    address = str(URI(service.url, series.study_uid, series.uid, instance_uid))

    def request() -> bytes:
        answer = service.session.get(address, headers={"Accept": _DICOM}, timeout=TIMEOUT_S)
        answer.raise_for_status()
        return only_part(answer.headers.get("Content-Type", ""), answer.content)

    return _ask(service, request)


def only_part(content_type: str, body: bytes) -> bytes:
    r"""The one file in a multipart/related answer (RFC 2046, section 5.1).

    Raises requests.ConnectionError where the answer ends before its closing boundary, NotServed
    where it isn't one DICOM file.

    >>> only_part('multipart/related; boundary="b"', b"--b\r\nA: c\r\n\r\nDICM\r\n--b--\r\n")
    b'DICM'
    """
    header = Message()
    header["Content-Type"] = content_type
    if header.get_content_type() == "application/dicom":  # unwrapped: some services do
        return body
    boundary = header.get_boundary()
    if header.get_content_type() != "multipart/related" or not boundary:
        raise NotServed("an answer that is no DICOM file")
    marker = b"\r\n--" + boundary.encode()
    content, _, _ = body.rpartition(marker + b"--")  # empty where the end is missing
    _, opening, part = (b"\r\n" + content).partition(marker + b"\r\n")
    _, blank, file = (b"\r\n" + part).partition(b"\r\n\r\n")
    if not (opening and blank):
        raise requests.ConnectionError
    if marker in file:
        raise NotServed("several files for one")
    return file


def _search(
    service: Service, page: Callable[[int], list[dict[str, Any]]], *, key: str
) -> dict[str, Mapping[str, Any]]:
    """All pages of a search, by the UID in the attribute `key`."""
    found: dict[str, Mapping[str, Any]] = {}
    seen = 0
    while True:
        records = _ask(service, partial(page, seen))
        if not isinstance(records, list):  # what came is JSON, whatever the types say
            raise NotServed("something else than DICOM JSON")
        before = len(found)
        for record in records:
            uid = _value(record, key)
            if not _UID.fullmatch(uid):
                raise RunFailed(f"{service.url} answers a search with a UID that is none.")
            found[uid] = record
        if len(found) == before:  # the last page was the one before, or pages are all the same
            return found
        seen += len(records)


def _value(record: object, tag: str) -> str:
    """The attribute's values, joined as DICOM does, empty where absent (PS3.18, annex F)."""
    match record:
        case {**attributes}:
            match attributes.get(tag):
                case {"Value": [*values]}:
                    return "\\".join(
                        "" if value is None else str(value).strip() for value in values
                    )
    return ""


def _ask(service: Service, request: Callable[[], T]) -> T:
    """The request's result, tried again after each wait while that can help."""
    fault = ""
    for wait_s in (0.0, *service.waits_s):
        time.sleep(wait_s)
        try:
            return request()
        except requests.HTTPError as error:
            status = 0 if error.response is None else error.response.status_code
            fault = f"HTTP {status}"
            if status in (401, 403):
                raise BadInput(
                    f"{service.url} refuses these credentials ({fault}); set {USER} and "
                    f"{PASSWORD}, or {TOKEN}, to those of an account that may search and retrieve."
                ) from None
            if status not in _PASSING:
                raise NotServed(fault) from None
        except requests.exceptions.SSLError:
            raise BadInput(
                f"{service.url}: its certificate is not trusted here; set {CA} to a PEM file of "
                "your hospital's authority. (There is no way to do without.)"
            ) from None
        except requests.TooManyRedirects:
            raise BadInput(
                f"{service.url} sends on to another address; give the address it leads to."
            ) from None
        except requests.exceptions.JSONDecodeError:
            raise NotServed("something else than DICOM JSON") from None
        except requests.RequestException:  # no connection, no answer, or one cut short
            fault = "no answer"
    raise NotServed(fault) if fault in _ONE_ITEM else _given_up(service, fault)


def _given_up(service: Service, fault: str) -> RunFailed:
    return RunFailed(
        f"{service.url} could not be asked ({fault}, {1 + len(service.waits_s)} times in "
        f"{sum(service.waits_s):.0f} s). Run the same command again: it goes on where it stopped."
    )


def _credentials(environment: Mapping[str, str]) -> requests.auth.AuthBase | None:
    user, password = environment.get(USER), environment.get(PASSWORD)
    token = environment.get(TOKEN)
    if token and (user or password):
        raise BadInput(f"{TOKEN} and {USER} are both set; unset one.")
    if bool(user) != bool(password):
        raise BadInput(f"{USER} and {PASSWORD} go together; set both or neither.")
    if token:
        if not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", token):  # RFC 6750: nothing that ends a header
            raise BadInput(f"{TOKEN} must be a bearer token on one line.")
        return _Bearer(token)
    if user and password:
        return requests.auth.HTTPBasicAuth(user.encode(), password.encode())
    return None


@dataclass(frozen=True, slots=True)
class _Bearer(requests.auth.AuthBase):
    """RFC 6750; as `auth`, so that requests takes it off wherever it takes off a password."""

    token: str = field(repr=False)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.token}"
        return request


def _is_root(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and not any(character.isspace() for character in url)
        and not (parts.query or parts.fragment)
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
