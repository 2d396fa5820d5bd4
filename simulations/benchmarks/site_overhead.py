"""What a site adds to each message beside its training: policy, gate, receipts, outbox; the ledger.

A site as in a deployment (signed instructions, privacy, secret randomness) answers rounds of a 1 MB
and a 340 MB model; only the training itself is left out: its weights are there at once. In turn
with it, the same bytes are written and synced: what the disk asks of anybody who keeps them.
"""

from __future__ import annotations

import csv
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import RecordDict
from numpy.typing import NDArray

import client.site
from client.ledger import Ledger
from client.site import Site, open_site
from common.compute import settle
from common.config import Link, Policy, SiteSettings, Study, parse
from common.messages import TRAIN, Instruction, Reply, encode_instruction, signed
from common.models import pack, study_model, trained_layout, weights_sha256

MODELS = {"cnn-li2014": 40, "vit-base": 8}  # with so many messages
PATIENTS, SIZE_PX = 20, 32
# What keeps account of privacy: it is told apart from what every message needs.
ACCOUNTS = ((Site, "_reserve"), (Ledger, "settle"), (Site, "_epsilon"))


@dataclass(frozen=True, slots=True)
class _Took:
    """By the clock and of CPU, in seconds."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> _Took:
        return cls(time.perf_counter(), time.process_time())

    def since(self, begin: _Took) -> _Took:
        return _Took(self.wall - begin.wall, self.cpu - begin.cpu)


def measure() -> dict[str, object]:
    """Medians and largest ones over the messages of each model."""
    settle()
    with tempfile.TemporaryDirectory() as folder:
        return {name: _of_model(name, n, Path(folder)) for name, n in MODELS.items()}


def _of_model(name: str, messages: int, folder: Path) -> dict[str, object]:
    folder = folder / name
    folder.mkdir()
    key = Ed25519PrivateKey.generate()
    site = _open(folder, key)
    study = _study(name, rounds=messages + 1)
    model = study_model(study)
    weights = pack(model)
    sha256 = weights_sha256(weights, trained_layout(model))
    trained = weights + np.float32(1e-3)
    found, accounts, bare = [], [], []
    spent: list[_Took] = []
    with ExitStack() as stack:
        stack.enter_context(patch.object(Site, "_work", lambda *_: Reply(trained, {})))
        # Once a process, and longer than all messages.
        stack.enter_context(patch.object(client.site, "_check_engine", lambda *_: None))
        for owner, function in ACCOUNTS:
            timed = _timed_into(spent, getattr(owner, function))
            stack.enter_context(patch.object(owner, function, timed))
        for number in range(1, messages + 2):
            asked = _asked(Instruction(study, 0, number, weights, sha256), key)
            spent.clear()
            whole = _took(lambda asked=asked: site.answer(asked, TRAIN))  # type: ignore[misc]
            account = _Took(sum(one.wall for one in spent), sum(one.cpu for one in spent))
            found.append(whole.since(account))
            accounts.append(account)
            bare.append(_took(lambda: _write(folder / "bare", trained)))
    return {  # the first message opens the data and plans the noise
        "bytes": weights.nbytes,
        "messages": messages,
        "policy_gate_receipt_outbox": _figures(found[1:]),
        "ledger_and_epsilon": _figures(accounts[1:]),
        "bare_write": _figures(bare[1:]),
    }


def _figures(times: Sequence[_Took]) -> dict[str, float]:
    return {
        "median_s": round(statistics.median(one.wall for one in times), 4),
        "largest_s": round(max(one.wall for one in times), 4),
        "median_cpu_s": round(statistics.median(one.cpu for one in times), 4),
    }


def _took(function: Callable[[], object]) -> _Took:
    begin = _Took.now()
    function()
    return _Took.now().since(begin)


def _timed_into(spent: list[_Took], function: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*arguments: Any, **named: Any) -> Any:
        begin = _Took.now()
        try:
            return function(*arguments, **named)
        finally:
            spent.append(_Took.now().since(begin))

    return timed


def _asked(instruction: Instruction, key: Ed25519PrivateKey) -> RecordDict:
    return signed(encode_instruction(instruction), key.sign, kind=TRAIN, site="site")


def _write(path: Path, values: NDArray[np.float32]) -> None:
    with path.open("wb") as file:
        file.write(values.data.cast("B"))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def _open(folder: Path, key: Ed25519PrivateKey) -> Site:
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "coordinator.pem").write_bytes(public)
    return open_site(
        SiteSettings(
            name="site",
            data=_manifest(folder),
            state=folder / "state",
            declared_patients=PATIENTS,
            link=Link(coordinator=folder / "coordinator.pem"),
            policy=Policy(approval="automatic"),
        )
    )


def _study(model: str, *, rounds: int) -> Study:
    content = {
        "classes": ["a", "b"],
        "data": {"kind": "manifest", "image_size_px": SIZE_PX},
        "model": {"name": model},
        "training": {"rounds": rounds},
        "privacy": {"enabled": True, "target_epsilon": 3.0},
    }
    return parse(Study, content, where="benchmark")


def _manifest(folder: Path) -> Path:
    """Random images: only the messages count."""
    generator = np.random.default_rng(0)
    with (folder / "manifest.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "patient", "site", "label"])
        for patient in range(PATIENTS):
            name = f"{patient}.npy"
            np.save(folder / name, generator.normal(size=(SIZE_PX, SIZE_PX)).astype("f4"))
            table.writerow([name, f"p{patient}", "site", "ab"[patient % 2]])
    return folder / "manifest.csv"
