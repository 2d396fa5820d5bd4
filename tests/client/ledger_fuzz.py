"""Schedules of a ledger's life that are killed anywhere; run by test_ledger_fuzz.py.

    python tests/client/ledger_fuzz.py FOLDER SCHEDULES FIRST_SEED

Each schedule is a few lives of processes that are forked from this one, which imports once. They
reserve, ask again and settle rounds of cohorts that share and gain patients, and are killed (by a
timer, at a statement, in the middle of a write), find the disk full, or share the ledger with
another process. Between lives an old copy may be put back. The oracle is a plain list of what was
acknowledged through a pipe; it reads the file with bare SQL. Prints what happened, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import resource
import secrets
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client import ledger as module
from client.ledger import (
    LedgerDamaged,
    LedgerUnwritable,
    OverBudget,
    Request,
    WholeStudy,
    open_ledger,
)
from client.ledger_book import EMPTY
from common.chain import Head
from common.config import Budget
from common.privacy.epsilon import Randomness, Unit
from common.privacy.lifetime import lifetime_epsilon
from common.privacy.mechanism import Mechanism

KEY = bytes(range(32))
DELTA = 1e-5
NAMES = [f"patient {number}" for number in range(12)]
COHORTS = [NAMES[:6], NAMES[:9], NAMES[4:], NAMES[9:], []]
KINDS = [NAMES[0], NAMES[4], NAMES[6], NAMES[9]]  # one of those who are always together
STUDIES = {"a" * 64: Mechanism(2.0, 0.1, 4), "b" * 64: Mechanism(1.5, 0.2, 2)}
CAPS = [1.5, 2.5, 4.0]
ROUNDS = 4
Ask = tuple[str, int, int, int, int]  # study, fold, round, weights, cohort
ASKS = [
    (study, fold, number, weights, cohort)
    for study in STUDIES
    for fold in (1, 2)
    for number in range(1, ROUNDS + 1)
    for weights in (0, 1)
    for cohort in range(len(COHORTS))
]
WHOLE = [
    WholeStudy(
        study=study,
        unit=Unit.PATIENT,
        randomness=Randomness.SECRET,
        mechanism=mechanism._replace(steps=mechanism.steps * len(ASKS) // len(STUDIES)),
        patients=NAMES,
    )
    for study, mechanism in STUDIES.items()
]
happened: Counter[str] = Counter()


@dataclass(frozen=True)
class Told:
    """Receipts without a line that remember this head of the ledger."""

    ledger_head: Head | None
    head: Head = EMPTY

    def knows(self, head: Head) -> bool:
        """Whether it is the empty one."""
        return head == self.head


def draw() -> bytes:
    """A round's secret."""
    return secrets.token_bytes(32)


def request(ask: Ask) -> Request:
    """The round that an ask stands for."""
    study, fold, number, weights, cohort = ask
    return Request(
        study=study,
        fold=fold,
        round_number=number,
        weights_sha256=str(weights) * 64,
        data_fingerprint=str(cohort) * 64,
        unit=Unit.PATIENT,
        randomness=Randomness.SECRET,
        mechanism=STUDIES[study],
        patients=COHORTS[cohort],
    )


class Schedule:
    """One ledger's life, and what the world outside knows of it."""

    def __init__(self, state: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.ledger = open_ledger(state, key=KEY)
        self.cap = Budget(epsilon=self.rng.choice(CAPS), delta=DELTA)
        self.secrets: dict[Ask, str] = {}  # acknowledged: who asks again must get this
        self.settled: set[Ask] = set()
        self.settling: set[Ask] = set()  # begun; nobody knows whether it ended
        self.asked: set[Ask] = set()  # begun; charged or not
        self.exposed: list[Ask] = []  # each time a new secret came out: what patients really lost
        self.whole = 0  # restores
        self.head: Head | None = None
        self.backup: tuple[bytes, dict[str, Any]] | None = None

    def run(self) -> None:
        """All lives, each checked, then everything asked once more."""
        for _ in range(self.rng.randint(3, 6)):
            self.live()
            self.check()
            chance = self.rng.random()
            if self.backup is None and chance < 0.3:
                self.save()
            elif self.backup is not None and chance < 0.4:
                self.put_back()
                self.check()
        self.resume()
        self.check()

    def live(self) -> None:
        """One process, or two at once, until they end or are killed."""
        readers = []
        for _ in range(self.rng.choice([1, 1, 2])):
            seed = self.rng.random()
            reader, writer = os.pipe()
            if not os.fork():
                os.close(reader)
                try:
                    Life(self, random.Random(seed), writer).run()
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(1)
            os.close(writer)
            readers.append(reader)
        told: list[dict[str, Any]] = []
        for reader in readers:
            with open(reader, encoding="ascii") as lines:
                told += map(json.loads, lines)
            happened["lives"] += 1
        for _ in readers:
            _, status = os.wait()
            happened["killed"] += os.WIFSIGNALED(status)
            assert os.WIFSIGNALED(status) or status == 0, "a life broke down; see above"
        # First what two processes began, since either may have seen what the other did.
        told.sort(key=lambda line: line["said"] not in ("asking", "settling"))
        granted = {tuple(line["ask"]) for line in told if self.take(line)}
        for name in KINDS:
            if any(name in COHORTS[ask[4]] for ask in granted):
                assert self.epsilon(name, self.exposed) <= self.cap.epsilon, "overspent"
        for line in told:
            if line["said"] == "over":
                self.check_refusal(tuple(line["ask"]))

    def take(self, line: dict[str, Any]) -> bool:
        """Believe what a process acknowledged, if it can be true; whether it got a new secret."""
        ask: Ask = tuple(line["ask"])
        happened[line["said"]] += 1
        if "head" in line:
            heads = [Head.parse(line["head"]), *([self.head] if self.head else [])]
            self.head = max(heads, key=lambda head: head.count)
        match line["said"]:
            case "asking":
                self.asked.add(ask)
            case "settling":
                self.settling.add(ask)
            case "settled":
                self.settled.add(ask)
            case "reserved" if ask in self.secrets:
                ended = not line["secret"] and ask in self.settling
                assert ended or line["secret"] == self.secrets[ask], "another secret"
            case "reserved" if line["secret"]:
                self.secrets[ask] = line["secret"]
                self.exposed.append(ask)
                return True
        return False

    def epsilon(self, name: str, asks: list[Ask]) -> float:
        """What these rounds, and the restores, cost one patient: the plainest way."""
        charges = [STUDIES[ask[0]] for ask in asks if name in COHORTS[ask[4]]]
        charges += self.whole * [study.mechanism for study in WHOLE]
        return lifetime_epsilon(charges, delta=DELTA)

    def check_refusal(self, ask: Ask) -> None:
        """A round was refused only if somebody could have been beyond the cap."""
        most = [*self.exposed, *(self.asked - set(self.exposed) - {ask}), ask]
        alone = lifetime_epsilon([STUDIES[ask[0]]], delta=DELTA)  # even with nobody in the cohort
        worst = max(
            [alone, *(self.epsilon(name, most) for name in KINDS if name in COHORTS[ask[4]])]
        )
        assert worst > self.cap.epsilon, "refused without need"

    def check(self) -> None:
        """The file holds what was acknowledged, each once, and nothing that nobody asked for."""
        assert self.ledger.verify(self.head).count >= (self.head.count if self.head else 0)
        charged = Counter(self.charged())
        assert set(charged.values()) <= {1}, "charged twice"
        assert self.secrets.keys() <= charged.keys() <= self.asked, "undercounted or made up"
        for name in KINDS:
            spent = self.ledger.spent([name], delta=DELTA).epsilon
            assert spent is not None
            assert spent.value == self.epsilon(name, list(charged)), "added up wrongly"
            if not self.whole:  # else what was lost is paid for by the whole plans
                assert spent.value <= self.cap.epsilon, "overspent"
            real = [STUDIES[ask[0]] for ask in self.exposed if name in COHORTS[ask[4]]]
            assert lifetime_epsilon(real, delta=DELTA) <= spent.value, "undercounted"

    def charged(self) -> Iterator[Ask]:
        """The rounds in the file, by bare SQL."""
        db = sqlite3.connect(self.ledger.path)
        for (body,) in db.execute("SELECT body FROM rows"):
            row = json.loads(body)
            if row["kind"] == "reserved":
                asked = row["round"]
                yield (
                    row["charge"]["study"],
                    asked["fold"],
                    asked["round_number"],
                    int(asked["weights_sha256"][0]),
                    int(asked["data_fingerprint"][0]),
                )
        db.close()

    def save(self) -> None:
        """A backup, as long as nobody runs."""
        self.ledger.verify(None)  # what a killed process left is put right first
        known = set(self.charged())
        outside = {
            "secrets": {ask: secret for ask, secret in self.secrets.items() if ask in known},
            "settled": self.settled & known,
            "settling": self.settling & known,
            "asked": known,
        }
        self.backup = self.ledger.path.read_bytes(), outside

    def put_back(self) -> None:
        """The backup takes the ledger's place: found, and paid for."""
        assert self.backup is not None
        content, outside = self.backup
        newest, self.backup = self.ledger.verify(None), None
        self.ledger.path.write_bytes(content)
        if self.ledger.verify(None) == newest:
            return  # nothing had happened since
        happened["put back"] += 1
        for call in (
            lambda: self.ledger.verify(newest),
            lambda: self.ledger.reserve(
                request(ASKS[0]),
                cap=self.cap,
                secret=draw,
                receipts=Told(newest),
            ),
        ):
            try:
                call()
            except LedgerDamaged:
                continue
            raise AssertionError("an old copy was not found")
        lost = [head for head in (newest, self.head) if head is not None]
        self.head = self.ledger.restore(WHOLE, lost=lost)
        assert all(self.ledger.verify(head) == self.head for head in lost)
        self.whole += 1
        self.secrets, self.settled = outside["secrets"], outside["settled"]
        self.settling, self.asked = outside["settling"], outside["asked"]

    def resume(self) -> None:
        """Every round that was acknowledged is given back as it was; the others can be asked."""
        for ask in sorted(self.asked):
            try:
                found = self.ledger.reserve(
                    request(ask),
                    cap=self.cap,
                    secret=draw,
                    receipts=Told(self.head),
                )
            except OverBudget:
                assert ask not in self.secrets, "a round that was paid for is refused"
                continue
            secret = (found.secret or b"").hex()
            if ask in self.settled:
                assert secret == ""
            elif ask in self.secrets:
                assert secret == self.secrets[ask] or (secret == "" and ask in self.settling)
            elif secret:
                self.secrets[ask] = secret
                self.exposed.append(ask)
            self.head = self.ledger.settle(found)
            assert self.ledger.settle(found) == self.head
            self.settled.add(ask)
            happened["resumed"] += 1


class Life:
    """What one process does until it is killed; it tells before and after each call."""

    def __init__(self, world: Schedule, rng: random.Random, pipe: int) -> None:
        self.world, self.rng, self.pipe = world, rng, pipe
        self.ticks = -1  # until it kills itself

    def run(self) -> None:
        """A few calls under one kind of trouble."""
        rng, ledger = self.rng, self.world.ledger
        jump = rng.uniform(-1e9, 1e10)
        time.time = lambda: jump
        trouble = rng.choice(["none", "timer", "timer", "statement", "statement", "write", "full"])
        size = ledger.path.stat().st_size
        if trouble == "timer":
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 0.04))
        elif trouble == "statement":
            self.ticks = rng.randrange(60)
            connect = module._connect

            def traced(path: Path) -> sqlite3.Connection:
                db = connect(path)
                db.set_trace_callback(lambda _: self.tick())
                return db

            module._connect = traced
        elif trouble in ("write", "full"):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if trouble == "write":
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            room = rng.choice([rng.randrange(1, 6000), size + rng.randrange(0, 9000)])
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        for _ in range(rng.randint(2, 9)):
            known = sorted(self.world.secrets)
            ask = rng.choice(known) if known and rng.random() < 0.4 else rng.choice(ASKS)
            try:
                self.step(ask, ends=rng.random() < 0.4)
            except OverBudget:
                self.tell("over", ask)
            except LedgerUnwritable:
                assert trouble == "full", "unwritable without need"
                self.tell("full", ask)

    def step(self, ask: Ask, *, ends: bool) -> None:
        """Reserve, and perhaps settle."""
        ledger, world = self.world.ledger, self.world
        self.tell("asking", ask)
        found = ledger.reserve(
            request(ask),
            cap=world.cap,
            secret=draw,
            receipts=Told(world.head),
        )
        secret = (found.secret or b"").hex()
        self.tell("reserved", ask, secret=secret, head=str(found.head))
        if ends:
            self.tell("settling", ask)
            self.tell("settled", ask, head=str(ledger.settle(found)))

    def tell(self, said: str, ask: Ask, **more: str) -> None:
        """One line to the oracle; a pipe takes it whole."""
        self.tick()
        os.write(self.pipe, (json.dumps({"said": said, "ask": ask, **more}) + "\n").encode())

    def tick(self) -> None:
        """One step nearer to the kill."""
        if self.ticks == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.ticks -= 1


def main(folder: Path, schedules: int, first_seed: int) -> None:
    """Run them all; a failure names its seed."""
    lifetime_epsilon(STUDIES.values(), delta=DELTA)  # its imports, before any fork
    for seed in range(first_seed, first_seed + schedules):
        state = folder / str(seed)
        try:
            Schedule(state, seed).run()
        except BaseException:
            print(f"schedule {seed} failed", file=sys.stderr)
            raise
        shutil.rmtree(state)
    print(json.dumps(happened))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
