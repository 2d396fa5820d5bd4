"""A site killed at every step between an instruction and its reply; run by test_site_kills.py.

    python tests/client/site_kills.py FOLDER

FOLDER has study.yaml and manifest.csv. This process imports once and answers round 1; then, for
each moment, a fork with a copy of that site's state is asked round 2 and kills itself there, and
another fork, which knows nothing of it, is asked the same twice. Prints what each saw, as JSON.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import client.site
from client.app import app
from client.keys import RECEIPTS_CHAIN, open_keys
from client.ledger import FILE, Ledger, open_ledger
from client.receipts import Line, Receipts, Sent
from common.config import Policy, SiteSettings, Study, load_study
from common.messages import TRAIN, Instruction, Reply, encode_instruction
from common.models import pack, study_model, trained_layout, weights_sha256

STEPS = (
    "client.site.admit",
    "client.ledger.Ledger.reserve",
    "client.site.train_round",
    "client.site.pass_reply",
    "client.outbox.Outbox.store",
    "client.receipts.Receipts.append",
    "client.ledger.Ledger.settle",
    "client.site.seal",
)
NOISY_STEP = "client.training.redraw_dropout"  # called once in each
SYNC = "os.fsync"
Tell = Callable[[str, str], None]


def settings(folder: Path, state: str) -> SiteSettings:
    """The site `north`, whose randomness is its own."""
    return SiteSettings(
        name="north",
        data=folder / "manifest.csv",
        state=folder / state,
        declared_patients=8,
        policy=Policy(approval="automatic", min_patients=1),
    )


def instruction(study: Study, round_number: int) -> RecordDict:
    """Round by round other weights."""
    weights = pack(study_model(study)) + np.float32(round_number / 100)
    sha256 = weights_sha256(weights, trained_layout(study_model(study)))
    return encode_instruction(Instruction(study, 0, round_number, weights, sha256))


def ask(content: RecordDict, site: SiteSettings) -> str:
    """A hash over all that the site answers, or its refusal."""
    config = {"site": site.model_dump_json()}
    answer = app(Message(content, 7, TRAIN), Context(1, 7, config, RecordDict(), {}))
    return str(answer.error) if answer.has_error() else content_sha256(answer.content)


def content_sha256(content: RecordDict) -> str:
    """A hash over all records."""
    digest = hashlib.sha256()
    for name, record in sorted(content.items()):
        if isinstance(record, ArrayRecord):
            said: list[Any] = [(key, array.data) for key, array in record.items()]
        else:
            said = sorted(record.items())
        digest.update(repr((name, said)).encode())
    return digest.hexdigest()


def wrap(name: str, wrapped: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put something around a function or a method."""
    owner, _, function = name.rpartition(".")
    module, _, kind = owner.rpartition(".")
    found = (
        getattr(importlib.import_module(module), kind)
        if kind[:1].isupper()
        else importlib.import_module(owner)
    )
    setattr(found, function, wrapped(getattr(found, function)))


def die() -> None:
    """As `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(name: str, when: str, count: int) -> None:
    """Before or after the function is called for the given time."""
    calls: list[str] = []

    def deadly(original: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            calls.append(name)
            if when == "before" and len(calls) == count:
                die()
            found = original(*arguments, **named)
            if when == "after" and len(calls) == count:
                die()
            return found

        return called

    wrap(name, deadly)


def watch(tell: Tell) -> None:
    """Tell the round's secret, the trained weights and what is sent, as soon as they are there."""

    def reserve(original: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            found = original(*arguments, **named)
            if found is not None and found.secret is not None:
                tell("secret", found.secret.hex())
            return found

        return called

    def pass_reply(original: Callable[..., Any]) -> Callable[..., Any]:
        def called(reply: Reply, **named: Any) -> Any:
            assert reply.weights is not None
            tell("weights", hashlib.sha256(reply.weights.tobytes()).hexdigest())
            return original(reply, **named)

        return called

    def seal(original: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            content = original(*arguments)
            tell("sent", content_sha256(content))
            return content

        return called

    wrap("client.ledger.Ledger.reserve", reserve)
    wrap("client.ledger.Ledger.find", reserve)  # a round whose reply is stored
    wrap("client.site.pass_reply", pass_reply)
    wrap("client.site.seal", seal)


def in_a_fork(run: Callable[[Tell], None]) -> tuple[str, dict[str, str]]:
    """How a process that runs this ended, and what it told last of each kind."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        run(lambda kind, said: void(os.write(writing, f"{kind} {said}\n".encode())))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as lines:
        told = dict(line.rstrip("\n").split(" ", 1) for line in lines)
    _, status = os.waitpid(child, 0)
    return ("killed" if os.WIFSIGNALED(status) else "ended"), told


def void(_: object) -> None:
    """Nothing."""


def records(site: SiteSettings, secrets: set[str]) -> dict[str, Any]:
    """What the site's files say afterwards."""
    state = site.state
    assert state is not None
    keys = open_keys(state)
    ledger: Ledger = open_ledger(state, key=keys.ledger)
    receipts = Receipts(state / RECEIPTS_CHAIN, keys.receipts)
    ledger.verify(receipts.ledger_head)
    spent = ledger.spent(None, delta=1e-5)
    content = b"".join(path.read_bytes() for path in state.glob(f"{FILE}*"))
    lines = [Line.from_canonical(text).entry for text in receipts.path.read_bytes().splitlines()]
    db = sqlite3.connect(state / FILE)
    kept = db.execute("SELECT count(*) FROM secrets").fetchone()[0]
    db.close()
    return {
        "rounds": sum(study.rounds for study in spent.studies),
        "steps": sum(study.mechanism.steps for study in spent.studies),
        "unsettled": spent.unsettled,
        "problems": [str(problem) for problem in receipts.problems(receipts.head)],
        "receipts": [one.asked.round if isinstance(one, Sent) else one.type for one in lines],
        "secrets": kept,
        "secret_found": any(bytes.fromhex(secret) in content for secret in secrets),
        "left_over": sorted(str(path.name) for path in state.rglob("*.partial")),
    }


def main(folder: Path) -> None:
    """Every moment's story."""
    for name in ("_run_id", "_task_id", "_node_id"):
        setattr(TaskIdentity, name, 1)
    study = load_study(folder / "study.yaml", ["privacy.enabled=true"])
    study = Study.model_validate_json(study.canonical())
    ask(instruction(study, 1), settings(folder, "begun"))
    second = instruction(study, 2)

    def count(tell: Tell) -> None:
        calls: list[int] = []
        wrap(SYNC, lambda original: lambda opened: (calls.append(opened), original(opened))[1])
        shutil.copytree(folder / "begun", folder / "counted")
        ask(second, settings(folder, "counted"))
        tell("syncs", str(len(calls)))

    syncs = int(in_a_fork(count)[1]["syncs"])
    moments = [(step, when, 1) for step in STEPS for when in ("before", "after")]
    moments.append((NOISY_STEP, "before", 2))
    moments += [(SYNC, "before", number) for number in range(1, syncs + 1)]
    stories = {}
    for place, (name, when, number) in enumerate(moments):
        site = settings(folder, f"state-{place}")
        shutil.copytree(folder / "begun", folder / f"state-{place}")

        def killed(tell: Tell) -> None:
            watch(tell)  # first, so that it tells what a step gave before the kill after it
            die_at(name, when, number)  # noqa: B023 # called at once
            ask(second, site)  # noqa: B023

        def resumed(tell: Tell) -> None:
            watch(tell)
            tell("first", ask(second, site))  # noqa: B023
            tell("again", ask(second, site))  # noqa: B023

        ended, before = in_a_fork(killed)
        _, after = in_a_fork(resumed)
        secrets = {told["secret"] for told in (before, after) if "secret" in told}
        stories[f"{when} {name} {number}"] = {
            "ended": ended,
            "before": before,
            "after": after,
            **records(site, secrets),
        }
    json.dump(stories, sys.stdout)


if __name__ == "__main__":
    assert client.site is not None
    main(Path(sys.argv[1]))
