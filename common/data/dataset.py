"""A site's images as the model sees them: decoded and resized once, then memory-mapped.

The cache holds pixels, labels and pseudonymous patient keys, under a name that is a hash of every
file's content and every parameter; identifying fields end at this door. Pictures are kept in 32
bits, volumes in 16: a full set of exams is a thousand times larger, and its scanners gave 12 bits.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from common.data.cache import mark_used
from common.data.fingerprints import content_hashes
from common.data.preprocessing import Preprocessing
from common.data.source import Image, Reader, Source
from common.errors import BadData, BadInput
from common.files import write_atomically

_FORMAT = 3  # raise it when the cache's content changes
_SHOWN_PROBLEMS = 10
_LARGEST = 60_000.0  # fits into 16 bits; only an unclipped z-score can lie beyond


@dataclass(frozen=True, slots=True)
class Dataset:
    """N images of one site, with whose they are.

    `fingerprint` is the hash of all files and parameters; `folder` is the cache entry.
    """

    # Memory-mapped: pictures (N, 1, px, px) float32, volumes (N, planes, slices, px, px) float16.
    images: NDArray[np.floating]
    labels: NDArray[np.int64]  # (N,) class indices, or (N, K) of 0 and 1 in a multi-label task
    patients: NDArray[np.str_]  # (N,) pseudonymous keys
    sides: NDArray[np.str_]  # (N,) "train", "test" or "": what the data themselves say
    groups: Mapping[str, NDArray[np.str_]]  # subgroup columns, each (N,)
    fingerprint: str
    folder: Path


def open_dataset(
    sources: Sequence[Source],
    reader: Reader,
    *,
    preprocessing: Preprocessing,
    pseudonym_key: bytes,
    cache: Path,
) -> Dataset:
    """Decode `sources`, or take them from the cache if nothing has changed.

    Args:
        sources: what the reader found, already without the patients who object.
        pseudonym_key: the site's key for patient keys.
        cache: folder for entries; made private to this user.

    Raises:
        BadData: a file can't be decoded; BadInput: the cache can't be written.
    """
    ordered = sorted(sources, key=lambda source: (source.patient, str(source.path)))
    key = _key(ordered, reader, preprocessing, pseudonym_key, cache)
    entry = cache / f"images-{key}"
    mark_used(entry)  # before it is opened, so that pruning leaves it alone
    found = _whole(entry)
    if found is None:
        _build(entry, ordered, reader, preprocessing, pseudonym_key)
        found = _read(entry)
    return found


def derived(
    dataset: Dataset,
    name: str,
    compute: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    *,
    shape: tuple[int, ...],
    batch: int = 32,
) -> NDArray[np.float32]:
    """An array (N, *shape) computed once per image, kept beside the images, memory-mapped.

    Always computed in batches of one size, since in another size an image gets other last bits (of
    1e-5 in a frozen encoder): under privacy nobody's features may tell how many others there are.
    """
    path = dataset.folder / f"{name}-by-{batch}.f32"
    size = 4 * len(dataset.labels) * math.prod(shape)
    if not (path.is_file() and path.stat().st_size == size):
        folder = dataset.folder
        with _writing(folder), _replacing(path) as partial, partial.open("wb") as file:
            for start in range(0, len(dataset.images), batch):
                images = np.array(dataset.images[start : start + batch], dtype=np.float32)
                blank = np.zeros((batch - len(images), *images.shape[1:]), dtype=images.dtype)
                rows = compute(np.concatenate([images, blank]))[: len(images)]
                file.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
            file.flush()
            os.fsync(file.fileno())  # a file that is there must survive a power cut whole
    return np.memmap(path, dtype="<f4", mode="r", shape=(len(dataset.labels), *shape))


def pseudonym(patient: str, key: bytes) -> str:
    """A patient's key: a keyed hash, as hard to undo as `key` is to guess."""
    return hmac.digest(key, patient.encode(), hashlib.sha256)[:16].hex()


def _key(
    sources: Sequence[Source],
    reader: Reader,
    preprocessing: Preprocessing,
    pseudonym_key: bytes,
    cache: Path,
) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {reader!r} {preprocessing!r}".encode())
    digest.update(hashlib.sha256(pseudonym_key).digest())
    paths = [path for source in sources for path in source.paths]
    contents = iter(content_hashes(paths, memory=cache, key=pseudonym_key))
    for source in sources:
        own = " ".join(next(contents) for _ in source.paths)
        fields = (source.patient, source.side, repr(source.detail), sorted(source.groups.items()))
        digest.update(f"{own} {fields!r}".encode())
    return digest.hexdigest()


def _build(
    entry: Path,
    sources: Sequence[Source],
    reader: Reader,
    preprocessing: Preprocessing,
    pseudonym_key: bytes,
) -> None:
    """Write a cache entry beside its place and move it there whole."""
    with _writing(entry.parent):
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=entry.parent))  # mode 0700
    try:
        with _writing(entry.parent), (partial / "images.bin").open("wb") as file:
            table = _decode(file, sources, reader, preprocessing, pseudonym_key)
            os.fsync(file.fileno())  # an entry that is there must survive a power cut whole
        with _writing(entry.parent):
            write_atomically(partial / "table.json", json.dumps(table).encode())
            for path in partial.iterdir():
                path.chmod(0o600)
            try:
                partial.rename(entry)
            except OSError:  # there is one: another process was faster, or it is damaged
                if _whole(entry) is None:
                    shutil.rmtree(entry, ignore_errors=True)
                    partial.rename(entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _decode(
    file: BinaryIO,
    sources: Sequence[Source],
    reader: Reader,
    preprocessing: Preprocessing,
    pseudonym_key: bytes,
) -> dict[str, Any]:
    """Append every image to `file`; returns the table of whose they are."""
    dtype = "<f4" if preprocessing.slices is None else "<f2"
    table: dict[str, Any] = {"dtype": dtype, "shape": []}
    table |= {"labels": [], "patients": [], "sides": [], "groups": []}
    problems: list[str] = []
    for source in sources:
        try:
            images = [
                (_applied(preprocessing, image, source), image.label)
                for image in reader.decode(source)
            ]
        except BadData as problem:
            problems.append(str(problem))
            if len(problems) == _SHOWN_PROBLEMS:
                break
            continue
        key = pseudonym(source.patient, pseudonym_key)
        for pixels, label in images:
            file.write(np.ascontiguousarray(pixels, dtype=table["dtype"]).tobytes())
            table["shape"] = list(pixels.shape)
            table["labels"].append(label)
            table["patients"].append(key)
            table["sides"].append(source.side)
            table["groups"].append(dict(source.groups))
    if problems:
        raise BadData("\n".join(problems))
    if not table["labels"]:
        raise BadData("expected at least one image; the data set gives none of these classes.")
    return table


def _applied(preprocessing: Preprocessing, image: Image, source: Source) -> NDArray[np.float32]:
    try:
        pixels = preprocessing.apply(image.planes)
        return np.clip(pixels, -_LARGEST, _LARGEST)
    except BadData as problem:
        raise BadData(f"{source.path.name}: {problem}") from None


def _whole(entry: Path) -> Dataset | None:
    """The cache entry, or None where there is none that can be read."""
    try:
        return _read(entry)
    except (OSError, ValueError, LookupError):
        return None


def _read(entry: Path) -> Dataset:
    table = json.loads((entry / "table.json").read_text())
    count = len(table["labels"])
    names = sorted({name for groups in table["groups"] for name in groups})
    return Dataset(
        images=np.memmap(
            entry / "images.bin", dtype=table["dtype"], mode="r", shape=(count, *table["shape"])
        ),
        labels=np.asarray(table["labels"], dtype=np.int64),
        patients=np.asarray(table["patients"], dtype=np.str_),
        sides=np.asarray(table["sides"], dtype=np.str_),
        groups={
            name: np.asarray([g.get(name, "") for g in table["groups"]], dtype=np.str_)
            for name in names
        },
        fingerprint=entry.name.removeprefix("images-"),
        folder=entry,
    )


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say in a sentence why the cache can't be written."""
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"the cache {folder} can't be written ({error.strerror}); "
            "set FEDWARD_CACHE to a folder with room that is yours."
        ) from None


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path to write that takes the place of `path` when the block ends well."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
