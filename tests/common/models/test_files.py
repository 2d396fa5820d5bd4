"""Model files: they give back the model, and refuse everything that isn't one."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save as to_safetensors
from torch import nn

from common.config import Study, parse
from common.errors import BadInput
from common.models import (
    load,
    pack,
    read_card,
    save,
    study_model,
    trained_layout,
    unpack,
    weights_sha256,
)

PRIVACY = {"sentence": "epsilon 3.1 per patient", "epsilon": 3.1}


def study(model: str = "cnn-small") -> Study:
    """A small study."""
    content = {
        "classes": ["healthy", "fibrosis"],
        "data": {"kind": "manifest"},
        "model": {"name": model},
        "simulation": {"data": "/home/somebody"},
    }
    return parse(Study, content, where="test")


def trained(of: Study) -> nn.Module:
    """A model whose weights are not the initial ones."""
    model = study_model(of)
    flat = np.random.default_rng(1).normal(size=trained_layout(model).size)
    unpack(flat.astype(np.float32) / 10, model)
    return model.eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A good model file."""
    path = tmp_path / "model.safetensors"
    save(path, pack(trained(study())), study=study(), fold=2, privacy=PRIVACY)
    return path


def parts(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """A file's arrays and metadata."""
    with safe_open(path, framework="np") as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}, tensors.metadata()  # noqa: SIM118 # no mapping


@pytest.mark.parametrize("name", ["cnn-small", "frozen-efficientnet-lite0"])
def test_a_saved_model_gives_the_same_logits(tmp_path: Path, name: str) -> None:
    """It comes back as a plain module in eval mode, equal to the bit."""
    model = trained(study(name))
    path = tmp_path / "model.safetensors"
    save(path, pack(model), study=study(name), fold=0, privacy=PRIVACY)
    images = torch.rand(3, 1, 32, 32) * 2 - 1
    read = load(str(path))
    assert isinstance(read, nn.Module)
    assert not read.training
    assert torch.equal(read(images), model(images))


def test_only_trained_weights_are_in_the_file(tmp_path: Path) -> None:
    """A frozen encoder is installed code: its twenty megabytes stay at home."""
    path = tmp_path / "model.safetensors"
    of = study("frozen-efficientnet-lite0")
    save(path, pack(trained(of)), study=of, fold=0, privacy=PRIVACY)
    assert set(parts(path)[0]) == {"head.weight", "head.bias"}
    assert path.stat().st_size < 20_000


def test_the_card_says_what_the_model_is(saved: Path) -> None:
    """Study, fold, hash and privacy come back; strangers find the essentials in plain text."""
    card = read_card(saved)
    model = trained(study())
    assert card.study.sha256 == study().sha256
    assert card.fold == 2
    assert card.privacy == PRIVACY
    assert card.weights_sha256 == weights_sha256(pack(model), trained_layout(model))
    metadata = parts(saved)[1]
    assert json.loads(metadata["classes"]) == ["healthy", "fibrosis"]
    assert json.loads(metadata["input"]) == {
        "channels": 1,
        "size_px": 32,
        "planes": 0,
        "slices": None,
    }
    assert json.loads(metadata["intensity"]) == {"minus_one": 0.0, "plus_one": 255.0}
    assert "/home/somebody" not in str(metadata)


def test_a_file_is_replaced_whole(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure while writing leaves the old file and nothing beside it."""
    before = saved.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(saved, pack(study_model(study())), study=study(), fold=0, privacy=PRIVACY)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def first(arrays: dict[str, np.ndarray]) -> str:
    """The name of one array."""
    return sorted(arrays)[0]


TAMPERED: dict[str, Callable[[dict[str, np.ndarray], dict[str, str]], object]] = {
    "a value": lambda a, _: a[first(a)].__iadd__(1e-3),
    "not finite": lambda a, _: a[first(a)].fill(np.nan),
    "an array less": lambda a, _: a.pop(first(a)),
    "an array more": lambda a, _: a.update(more=np.zeros(3, np.float32)),
    "another shape": lambda a, _: a.update({first(a): a[first(a)].reshape(-1, 1)}),
    "another type": lambda a, _: a.update({k: v.astype(np.float64) for k, v in a.items()}),
    "integers": lambda a, _: a.update({k: v.astype(np.int32) for k, v in a.items()}),
    "no metadata": lambda _, m: m.clear(),
    "another format": lambda _, m: m.update(format="fedward-model-99"),
    "no study": lambda _, m: m.pop("study"),
    "another study": lambda _, m: m.update(study=m["study"].replace("fibrosis", "emphysema")),
    "a broken study": lambda _, m: m.update(study="[" * 100_000),
    "another model": lambda _, m: m.update(study=m["study"].replace("cnn-small", "os.system")),
    "another hash": lambda _, m: m.update(weights_sha256="0" * 64),
    "no fold": lambda _, m: m.update(fold="one"),
    "no privacy": lambda _, m: m.pop("privacy"),
    "another privacy": lambda _, m: m.update(privacy="5"),
}


@pytest.mark.parametrize("what", list(TAMPERED))
def test_a_tampered_file_is_refused(saved: Path, what: str) -> None:
    """Whatever was changed, one sentence with the file's path says so."""
    arrays, metadata = parts(saved)
    TAMPERED[what](arrays, metadata)
    saved.write_bytes(to_safetensors(arrays, metadata))
    with pytest.raises(BadInput) as caught:
        load(saved)
    assert str(saved) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_no_model_file_is_refused(saved: Path, tmp_path: Path) -> None:
    """A missing, cut, empty or foreign file, a folder and a pickle."""
    whole = saved.read_bytes()
    for kept in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:kept])
        with pytest.raises(BadInput, match="expected a model file"):
            load(saved)
    torch.save({"a": torch.zeros(3)}, saved)
    for path in (saved, tmp_path, tmp_path / "missing.safetensors"):
        for read in (load, read_card):
            with pytest.raises(BadInput, match="expected a model file"):
                read(path)


def test_flipped_bytes_never_crash(saved: Path) -> None:
    """Any damage is refused, or the whole model comes back."""
    whole, dice = saved.read_bytes(), random.Random(1)
    header = int.from_bytes(whole[:8], "little") + 8
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[dice.randrange(dice.choice((header, len(whole))))] ^= 1 << dice.randrange(8)
        saved.write_bytes(bytes(damaged))
        refused = False
        try:
            load(saved)
        except BadInput:
            refused = True
        card_only = damaged[header:] == whole[header:]
        assert refused or card_only
