"""Show 2: instructions that are right but for one field: no crash, no hang, no memory, a code."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from client.approval import withdraw
from common.chain import Head
from common.config import Policy
from common.errors import REFUSAL_SENTENCES, RefusalCode
from common.messages import (
    EVALUATE,
    QUERY,
    TRAIN,
    Question,
    decode_refusal,
    encode_question,
    signed,
)
from common.models import pack, study_model

AFTER = 100  # instructions: then other sites, with nothing in their records
MOST_BYTES = 500_000_000  # beyond what it was at the beginning
LONGEST_S = 120.0  # of CPU, the slowest answer: odd targets take long to plan noise for
POLICIES = {
    "manual": Policy(studies_per_day=6),
    "automatic": Policy(
        approval="automatic",
        models=("cnn-small", "cnn-li2014"),
        max_message_mb=1.0,
        studies_per_day=40,
    ),
    "open": Policy(approval="automatic", privacy="optional", unit="image", studies_per_day=40),
}
# What no server can bring about: too few patients are the site's own, the rest are its faults.
NOT_BY_A_SERVER = {
    RefusalCode.TOO_FEW_PATIENTS,
    RefusalCode.INTERNAL,
    RefusalCode.ENGINE_UNSOUND,
}
INTEGERS = (-1, 0, 1, 2, 3, 7, 2**31, 2**63 - 1)
NUMBERS = (-1.0, 0.0, 1e-300, 1e-9, 0.25, 1.0, 3.0, 1e9, 1e308, float("inf"), float("nan"))
TEXTS = ("", "x", "../../etc", "os.system", "a" * 5000, "\x00\x1b[2J", "é" * 9, "0" * 64, "null")
NESTED = ([], {}, [1, "a"], {"a": {"b": [None]}}, [[[[[[]]]]]])
ANYTHING = (*INTEGERS, *NUMBERS, *TEXTS, None, True, False, *NESTED)
CHANGES = (  # each gives a study that keeps to its schema; some site's policy forbids it
    "privacy.enabled=false",
    "privacy.unit=image",
    "privacy.target_epsilon=900",
    "privacy.target_delta=1e-9",
    "privacy.lifetime_epsilon=1e-6",
    "model.name=resnet18",
    "model.name=cnn-li2014",
    "model.name=vit-huge",
    "data.test_share=0.01",
    "data.folds=3",
    "data={kind: ild, image_size_px: 16}",
    "classes=[ill, healthy]",
    f"classes={[f'c{number}' for number in range(9000)]}",
)
FLAT = (*INTEGERS[:-2], *NUMBERS, *TEXTS, b"", b"\xff" * 9, True, [1, 2], ["a"], [0.5], [b"x"])
Case = Callable[["Server"], tuple[RecordDict, str]]


class Hang(BaseException):
    """An answer that takes too long; not an Exception, so that nothing catches it."""


@contextmanager
def in_time() -> Iterator[None]:
    """Raise Hang where an answer takes too long."""

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, stop)  # pytest-timeout has the clock's
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


class Server:
    """What makes instructions: right ones, and each case's change of one field."""

    def __init__(self, site: Any, study: Any, rng: random.Random, changes: Iterator[str]) -> None:
        self.site, self.study, self.rng, self.changes = site, study, rng, changes

    def right(self, study: Any = None) -> RecordDict:
        """An instruction of round 1 or 2 without a fault."""
        content: RecordDict = self.site.instruct(
            study or self.study, round_number=self.rng.choice((1, 1, 2))
        )
        return content

    def signed(self, content: RecordDict, kind: str = TRAIN) -> tuple[RecordDict, str]:
        """The coordinator's signature on whatever it is."""
        sign = self.site.coordinator.sign
        return signed(content, sign, kind=kind, site="north"), kind

    def with_fields(self, content: RecordDict, **fields: Any) -> RecordDict:
        """Other fields in the instruction."""
        asked: Any = content["instruction"]
        return RecordDict({**content, "instruction": ConfigRecord({**asked, **fields})})

    def with_text(self, text: str) -> RecordDict:
        """This as the study, and its hash."""
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return self.with_fields(self.right(), study=text, study_sha256=digest)

    def with_array(self, array: Array) -> RecordDict:
        """This as the weights."""
        record = ArrayRecord({"packed": array})
        values = array.data[128:]  # behind numpy's header
        flat = np.frombuffer(values[: len(values) // 4 * 4], np.float32)
        sha256 = self.site.sha256(self.study, flat)
        content = self.with_fields(self.right(), weights_sha256=sha256)
        return RecordDict({**content, "weights": record})

    def weights(self) -> np.ndarray:
        """The right ones."""
        return pack(study_model(self.study))


def nothing(server: Server) -> tuple[RecordDict, str]:
    """No fault: training or evaluation."""
    return server.signed(server.right(), server.rng.choice((TRAIN, TRAIN, EVALUATE)))


def study_value(server: Server) -> tuple[RecordDict, str]:
    """Any value at any place of the study."""
    rng = server.rng
    text = json.loads(server.study.canonical())
    places = [(text, key) for key in text]
    places += [(part, key) for part in text.values() if isinstance(part, dict) for key in part]
    part, key = rng.choice(places)
    part[key] = rng.choice(ANYTHING)
    return server.signed(server.with_text(json.dumps(text, sort_keys=True, separators=(",", ":"))))


def study_number(server: Server) -> tuple[RecordDict, str]:
    """Another number where the study has one."""
    rng = server.rng
    text = json.loads(server.study.canonical())
    places = [
        (part, key)
        for part in (text, *text.values())
        if isinstance(part, dict)
        for key, value in part.items()
        if type(value) in (int, float)
    ]
    part, key = rng.choice(places)
    part[key] = rng.choice(INTEGERS if type(part[key]) is int else NUMBERS)
    return server.signed(server.with_text(json.dumps(text, sort_keys=True, separators=(",", ":"))))


def study_key(server: Server) -> tuple[RecordDict, str]:
    """A key too many or too few."""
    rng = server.rng
    text = json.loads(server.study.canonical())
    part = rng.choice([text, *(part for part in text.values() if isinstance(part, dict))])
    if part and rng.random() < 0.5:
        del part[rng.choice(list(part))]
    else:
        part[rng.choice(TEXTS)] = rng.choice(ANYTHING)
    return server.signed(server.with_text(json.dumps(text, sort_keys=True, separators=(",", ":"))))


def study_text(server: Server) -> tuple[RecordDict, str]:
    """Text that is no study: cut, changed in one place, nested, or none at all."""
    rng, text = server.rng, server.study.canonical()
    place = rng.randrange(len(text))
    texts = (
        text[:place],
        text[:place] + chr(rng.randrange(1, 0xD800)) + text[place + 1 :],
        "[" * 100_000,
        '{"a":' * 50_000 + "0" + "}" * 50_000,
        text + " " * rng.randrange(1, 1_000_000),
        "9" * 10_000,
        *TEXTS,
    )
    return server.signed(server.with_text(rng.choice(texts)))


def other_study(server: Server) -> tuple[RecordDict, str]:
    """A study that keeps to its schema and that some site's policy forbids."""
    change = next(server.changes)
    other = server.site.study(change)
    content = server.with_text(other.canonical())
    return server.signed(server.with_fields(content, fold=1) if "folds" in change else content)


def one_more(server: Server) -> tuple[RecordDict, str]:
    """A study that nobody has seen before."""
    return server.signed(server.right(server.site.study(f"seed={server.rng.randrange(10**9)}")))


def undeclared(server: Server) -> tuple[RecordDict, str]:
    """A unit of privacy whose number the site hasn't declared."""
    return server.signed(server.right(server.site.study("privacy.unit=image")))


def nobody_left(server: Server) -> tuple[RecordDict, str]:
    """Every patient on the test side."""
    other = server.site.study("data.test_share=0.999", "privacy.enabled=false")
    return server.signed(server.with_text(other.canonical()))


def explodes(server: Server) -> tuple[RecordDict, str]:
    """A step so large that nothing stays finite."""
    step = "training={rounds: 2, epochs: 30, learning_rate: 100, weight_decay: 1}"
    other = server.site.study(step, "privacy.enabled=false")
    return server.signed(server.with_text(other.canonical()))


def withdrawn(server: Server) -> tuple[RecordDict, str]:
    """A study that the steward has ended."""
    return server.signed(server.right(server.site.study("name=ended")))


def field(server: Server) -> tuple[RecordDict, str]:
    """Any value in a field of the instruction."""
    content = server.right()
    name = server.rng.choice(list(content["instruction"]))  # type: ignore[arg-type]
    return server.signed(server.with_fields(content, **{name: server.rng.choice(FLAT)}))


def number(server: Server) -> tuple[RecordDict, str]:
    """Another round or fold."""
    name, value = server.rng.choice(("round", "fold")), server.rng.choice((*INTEGERS, 4, 5))
    return server.signed(server.with_fields(server.right(), **{name: value}))


def head(server: Server) -> tuple[RecordDict, str]:
    """A head that somebody made up."""
    made_up = Head(server.rng.choice((0, 1, 9, 10**11)), "7" * 64)
    text = server.rng.choice((str(made_up), f"1:{'g' * 64}", "1:", f"-1:{'0' * 64}"))
    return server.signed(server.with_fields(server.right(), known_head=text))


def weights_value(server: Server) -> tuple[RecordDict, str]:
    """One weight of another size, or none at all."""
    weights = server.weights()
    value = server.rng.choice((np.nan, np.inf, -np.inf, 1e30, 1e4, -9999.0, 0.0, 1e-40))
    weights[server.rng.randrange(weights.size)] = value
    return server.signed(server.with_array(Array(weights)))


def weights_shape(server: Server) -> tuple[RecordDict, str]:
    """Another number, kind or order of values."""
    weights, rng = server.weights(), server.rng
    arrays = (
        weights[:-1],
        np.append(weights, np.float32(0)),
        weights.reshape(2, -1),
        weights.astype(np.float64),
        weights.astype(">f4"),
        np.zeros(0, np.float32),
        np.zeros(10_000_000, np.float32),
    )
    return server.signed(server.with_array(Array(rng.choice(arrays))))


def weights_bytes(server: Server) -> tuple[RecordDict, str]:
    """Bytes that are cut, too many, or say something else than they are."""
    whole, rng = Array(server.weights()), server.rng
    data = bytearray(whole.data)
    data[rng.randrange(128)] = rng.randrange(256)
    arrays = (
        Array("float32", whole.shape, "numpy.ndarray", whole.data[: rng.randrange(200)]),
        Array("float32", whole.shape, "numpy.ndarray", whole.data + b"\0" * rng.randrange(1, 9)),
        Array("float32", whole.shape, "numpy.ndarray", bytes(data)),
        Array("float32", whole.shape, rng.choice(TEXTS), whole.data),
        Array(rng.choice(TEXTS), whole.shape, "numpy.ndarray", whole.data),
        Array("float32", (2**40,), "numpy.ndarray", whole.data),
    )
    return server.signed(server.with_array(rng.choice(arrays)))


def record(server: Server) -> tuple[RecordDict, str]:
    """A record too many, too few, under another name or of another kind."""
    content, rng = dict(server.right()), server.rng
    name = rng.choice(list(content))
    kinds: tuple[Any, ...] = (ConfigRecord({"a": 1}), MetricRecord({"a": 1.0}), ArrayRecord())
    what = rng.randrange(4)
    if what == 0:
        del content[name]
    elif what == 1:
        content[name] = rng.choice(kinds)
    elif what == 2:
        content[rng.choice(TEXTS)] = rng.choice(kinds)
    else:
        content[rng.choice(TEXTS)] = content.pop(name)
    return server.signed(RecordDict(content))


def signature(server: Server) -> tuple[RecordDict, str]:
    """Another signature, or none."""
    content, kind = server.signed(server.right())
    record: Any = content["signature"]
    said, rng = bytearray(record["ed25519"]), server.rng
    said[rng.randrange(64)] ^= 1 << rng.randrange(8)
    others: tuple[Any, ...] = (
        ConfigRecord({"ed25519": bytes(said)}),
        ConfigRecord({"ed25519": rng.choice(FLAT)}),
        ConfigRecord({rng.choice(TEXTS): record["ed25519"]}),
        MetricRecord({"ed25519": 1.0}),
        ConfigRecord(),
    )
    return RecordDict({**content, "signature": rng.choice(others)}), kind


def question(server: Server) -> tuple[RecordDict, str]:
    """A question for the statement with any value in one of its fields."""
    content, rng = encode_question(Question(server.study.sha256, 0)), server.rng
    if rng.random() < 0.3:
        return server.signed(content, QUERY)
    asked: Any = content["question"]
    values = {**asked, rng.choice((*asked, "more")): rng.choice(FLAT)}
    return server.signed(RecordDict({"question": ConfigRecord(values)}), QUERY)


def garbage(server: Server) -> tuple[RecordDict, str]:
    """Nothing that anybody would send."""
    rng = server.rng
    kinds: tuple[Any, ...] = (
        ConfigRecord({rng.choice(TEXTS): rng.choice(FLAT) for _ in range(5)}),
        MetricRecord({rng.choice(TEXTS): rng.choice(INTEGERS[:6]) for _ in range(5)}),
        ArrayRecord({rng.choice(TEXTS): Array(np.zeros(3)) for _ in range(2)}),
    )
    names = ("instruction", "weights", "signature", "question", *TEXTS)
    content = RecordDict({rng.choice(names): rng.choice(kinds) for _ in range(rng.randrange(4))})
    kind = rng.choice((TRAIN, EVALUATE, QUERY))
    return server.signed(content, kind) if rng.random() < 0.5 else (content, kind)


ONE_FIELD: dict[Case, int] = {  # right but for one field; how often
    study_value: 8,
    study_number: 8,
    study_key: 6,
    study_text: 6,
    other_study: 12,
    withdrawn: 2,
    field: 10,
    number: 8,
    head: 4,
    weights_value: 8,
    weights_shape: 6,
    weights_bytes: 6,
    record: 6,
    signature: 6,
    question: 4,
    one_more: 6,
    nobody_left: 1,
    undeclared: 1,
}
WHERE: dict[Case, str] = {  # such a site refuses it for the reason that is meant
    other_study: "automatic",
    one_more: "manual",
    nobody_left: "open",
    undeclared: "open",
    explodes: "open",
}
OTHERS: dict[Case, int] = {nothing: 8, garbage: 6, explodes: 1}


@pytest.mark.parametrize(
    "instructions",
    [300, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(7200)])],
    ids=["short", "long"],
)
def test_no_instruction_is_too_strange(hospital: Callable[..., Any], instructions: int) -> None:
    """A reply or a refusal in fixed words for each; every code that a server can bring about."""
    rng = random.Random(instructions)
    cases, changes = ONE_FIELD | OTHERS, itertools.cycle(CHANGES)
    drawn = rng.choices(list(cases), weights=list(cases.values()), k=instructions)
    # Each case at least once, however few there are.
    drawn[: len(cases)] = cases
    counts: Counter[str] = Counter()
    slowest, most, begin = 0.0, 0, 0
    servers: list[Server] = []
    for place, case in enumerate(drawn):
        if place % AFTER == 0:
            servers = [Server(*begun(hospital, name, place), rng, changes) for name in POLICIES]
            begin = begin or resident_bytes()
        server = servers[place % len(servers)] if place < len(cases) else rng.choice(servers)
        if case in WHERE:
            server = servers[list(POLICIES).index(WHERE[case])]
        content, kind = case(server)
        started = time.process_time()
        with in_time():
            answer = server.site.ask(content, kind, sign=False)
        slowest, most = max(slowest, time.process_time() - started), max(most, resident_bytes())
        counts[outcome(answer)] += 1
    one_field = sum(case in ONE_FIELD for case in drawn) / len(drawn)
    print(
        f"\n{instructions} instructions, {one_field:.0%} of them right but for one field; slowest "
        f"{slowest:.1f} s of CPU; {(most - begin) / 1e6:.0f} MB more\n"
        + "\n".join(f"{count:6} {name}" for name, count in counts.most_common())
    )
    for server in servers:
        assert server.site.receipts.problems(server.site.receipts.head) == []
        server.site.ledger.verify(server.site.receipts.ledger_head)
    assert one_field >= 0.7
    assert most - begin < MOST_BYTES
    assert counts["answered"]
    unseen = {code for code in RefusalCode if not counts[code]} - NOT_BY_A_SERVER
    assert unseen == set()
    assert not counts[RefusalCode.INTERNAL], "a fault that nobody thought of; see the log"


def begun(hospital: Callable[..., Any], policy: str, place: int) -> tuple[Any, Any]:
    """A site that has met one study, and its steward has ended another."""
    images = None if policy == "open" else 12
    settings = {"policy": POLICIES[policy], "budget": {"epsilon": 500.0}}
    site = hospital(f"{policy}-{place}", **settings, declared_images=images)
    study, ended = site.study(), site.study("name=ended")
    site.approve(study, ended)
    withdraw(site.settings, ended.sha256, now_s=0.0)
    return site, study


def outcome(answer: Any) -> str:
    """The code of a refusal, whose words are the fixed ones."""
    if not answer.has_error():
        return "answered"
    code = decode_refusal(answer.error)
    assert code is not None
    assert answer.error.reason == REFUSAL_SENTENCES[code]
    return code


def resident_bytes() -> int:
    """Of this process, now."""
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])
