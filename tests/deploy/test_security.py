"""SECURITY.md is true: fields, ports, files and keys are those of the code and of a real run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import pytest
from google.protobuf.descriptor import FieldDescriptor
from pydantic import BaseModel

from client.keys import LEDGER, NODE, PSEUDONYMS, RECEIPTS, open_keys
from common.config import FederationFile, Link, Metric, Release, SiteSettings, Study
from common.errors import REFUSAL_SENTENCES, RefusalCode
from common.messages import decode_refusal, decode_reply, decode_statement, encode_refusal
from common.objects import inflate_message
from common.privacy.not_covered import NotCovered
from common.statement import SignedStatement, read_statement
from server import door, link
from server.provision import (
    AUTHORITY_DAYS,
    AUTHORITY_KEY,
    CERTIFICATE_DAYS,
    COORDINATOR_KEY,
    SERVER_KEY,
)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "deploy" / "SECURITY.md").read_text()
TEXT = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)


def table(first: str) -> list[list[str]]:
    """The rows of the table whose first header is this, a cell each."""
    lines = PAGE.split(f"| {first} |", 1)[1].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def ticked(text: str) -> set[str]:
    """What stands in backticks."""
    return set(re.findall(r"`([^`]+)`", text))


STATEMENT = set().union(*(ticked(row[0]) for row in table("in the statement")))
CALLS = {name.strip("`"): ticked(fields) for name, fields in table("call")}


def messages(captured: Any) -> Iterator[Any]:
    """Each message that the site pushed, put together as the server does."""
    objects = {r.object_id: r.object_content for n, r in captured.calls if n == "PushObject"}
    for name, request in captured.calls:
        if name == "PushMessages":
            (tree,) = request.message_object_trees
            yield inflate_message(tree.object_id, objects.__getitem__, most_bytes=10**8)


def paths(message: Any, before: str = "") -> Iterator[str]:
    """Dotted names of the fields that a protobuf message carries; a tree of objects only once."""
    for descriptor, value in message.ListFields():
        name = before + descriptor.name
        if descriptor.type != FieldDescriptor.TYPE_MESSAGE:
            yield name
            continue
        parts = value if hasattr(value, "__len__") else [value]  # repeated or not
        if descriptor.name == "children":
            yield name
            continue
        for part in parts:
            yield from paths(part, f"{name}.")


def leaves(model: type[BaseModel], before: str = "") -> Iterator[str]:
    """Dotted names of a schema's values."""
    for name, field in model.model_fields.items():
        inner = [t for t in (field.annotation, *get_args(field.annotation)) if _is_model(t)]
        if inner:
            yield from leaves(inner[0], f"{before}{name}.")
        else:
            yield before + name


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def test_every_field_of_the_protocol_is_listed(captured: Any) -> None:
    """No call carries a field, nor a header, that the page doesn't name; no call is missing."""
    seen: dict[str, set[str]] = {}
    for name, request in captured.calls:
        seen.setdefault(name, set()).update(paths(request))
    refusal = {"messages_list.error.code", "messages_list.error.reason"}  # none was asked for
    for name, fields in seen.items():
        assert fields == CALLS[name] - refusal, name
    assert [name for name, _ in captured.headers if f"`{name}`" not in PAGE] == []
    made = set(re.findall(r'self\._call\("(\w+)"', (ROOT / "client" / "link.py").read_text()))
    made |= set(re.findall(r'self\._call\(\s*"(\w+)"', (ROOT / "client" / "link.py").read_text()))
    assert made == set(CALLS)


def test_how_long_a_site_works_is_not_sent_by_itself(captured: Any) -> None:
    """The protocol's own field for it is always 0, as the page says."""
    pushed = [request for name, request in captured.calls if name == "PushMessages"]
    assert {tuple(request.clientapp_runtime_list) for request in pushed} == {(0.0,)}


def test_every_record_of_a_message_is_listed(captured: Any) -> None:
    """What the site sent in a private study is the page's fields, and each kind was sent."""
    listed = {what: ticked(fields) for what, fields, _ in table("what")}
    names = {"reply": set(), "statement": set()}
    for message in messages(captured):
        kind = "statement" if message.metadata.message_type == "query" else "reply"
        for record, values in message.content.items():
            names[kind] |= {f"{record}.{value}" for value in values}
    assert names["statement"] == {"statement.signed"}
    assert names["statement"] <= listed["statement"]
    released = {f"metrics.{metric}" for metric in get_args(Metric)}
    assert {"weights.packed", "receipts.head"} < names["reply"] <= listed["reply"]
    assert listed["reply"] - {"release.metrics"} == (released | {"weights.packed", "receipts.head"})
    error = encode_refusal(RefusalCode.OVER_BUDGET)
    assert set(vars(error)) <= {"_code", "_reason"}
    assert decode_refusal(error)
    assert listed["refusal"] == {"code", "reason"}


def test_every_field_of_a_statement_is_listed() -> None:
    """The page names each value of the signed statement, and none that it hasn't."""
    schema = {name.removeprefix("statement.") for name in leaves(SignedStatement)}
    assert STATEMENT - {"release.counts"} == schema


def test_the_printed_messages_are_real(captured: Any) -> None:
    """They have the very fields of captured ones; the statement's signature holds."""
    reply, statement = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.S))
    canonical = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
    assert read_statement(canonical).site == "alpha"
    sent = list(messages(captured))
    first = decode_reply(sent[0].content)
    assert first.weights is not None
    assert first.head is not None
    assert reply["weights"]["packed"]["shape"] == list(first.weights.shape)
    assert reply["metrics"].keys() == first.metrics.keys()
    assert reply.keys() == sent[0].content.keys()
    (signed,) = [decode_statement(m.content) for m in sent if m.metadata.message_type == "query"]
    assert keys_of(json.loads(signed)) == keys_of(statement)


def keys_of(value: Any) -> Any:
    """The keys of nested dicts, without their values."""
    return {key: keys_of(one) for key, one in value.items()} if isinstance(value, dict) else None


def test_every_file_at_the_site_is_listed(captured: Any) -> None:
    """Whatever a study leaves in the site's folder is in the table of files."""
    rows = set().union(*(ticked(row[0]) for row in table("file")))
    folders = tuple(name for name in rows if name.endswith("/"))
    files = [p.relative_to(captured.site).as_posix() for p in captured.site.rglob("*")
             if p.is_file()]  # fmt: skip
    unknown = [name for name in files if name not in rows and not name.startswith(folders)]
    assert files
    assert unknown == []


def test_every_listed_file_is_there(captured: Any) -> None:
    """A study leaves each file and folder of the table, but for those that it has no part in."""
    rows = set().union(*(ticked(row[0]) for row in table("file")))
    elsewhere = {"FEDWARD_CACHE", "/var/cache/fedward"}
    site_init = {"ca.pem", "coordinator.pem", "enrolment.pem"}  # tests/client/test_enrolment.py
    accident = {"state/receipts.torn", "state/refusals.json"}  # tests/client/test_receipts.py
    there = {p.relative_to(captured.site).as_posix() for p in captured.site.rglob("*")}
    assert {name for name in rows if name.rstrip("/") not in there} == (
        elsewhere | site_init | accident
    )


def test_files_are_for_their_owner_alone(captured: Any) -> None:
    """Whatever a site writes by itself in its state, keys first, nobody else may read."""
    state = captured.site / "state"
    modes = {path.relative_to(state).as_posix(): path.stat().st_mode for path in state.rglob("*")}
    assert {f"keys/{name}" for name in (NODE, RECEIPTS, LEDGER, PSEUDONYMS)} < modes.keys()
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}


def test_what_is_emptied_is_empty(captured: Any) -> None:
    """After a study the outbox holds no reply, and locks never hold anything."""
    state = captured.site / "state"
    assert [p.name for p in (state / "outbox").rglob("*") if p.is_file() and p.stat().st_size] == []
    assert {(state / name).stat().st_size for name in ("lock", "keys.lock")} == {0}


def names_of(captured: Any) -> list[str]:
    """What names a patient, an image or their folder."""
    images = {path.stem for path in (captured.site.parents[1] / "tiny" / "images").iterdir()}
    assert len(images) == 24
    return sorted({name.rpartition("-")[0] for name in images} | images | {"manifest.csv"})


def test_nothing_of_a_patient_is_in_what_left(captured: Any) -> None:
    """No name of a patient, an image or a folder is anywhere in the bytes of any call."""
    said = b"".join(request.SerializeToString() for _, request in captured.calls)
    assert [name for name in names_of(captured) if name.encode() in said] == []


def test_nothing_of_a_patient_is_in_the_state(captured: Any) -> None:
    """Ledger and outbox have patients as keyed hashes; no file of the state names one."""
    files = [path for path in (captured.site / "state").rglob("*") if path.is_file()]
    assert {"ledger.sqlite", "receipts.jsonl"} <= {path.name for path in files}
    kept = b"".join(path.read_bytes() for path in files)
    assert [name for name in names_of(captured) if name.encode() in kept] == []


def test_no_private_key_travels(captured: Any) -> None:
    """Not one of the four is in any call, neither bare, in hexadecimal nor as its file has it."""
    said = b"".join(request.SerializeToString() for _, request in captured.calls)
    said += b"".join(str(value).encode() for _, value in captured.headers)
    state = captured.site / "state"
    keys = open_keys(state)
    node = keys.node.private_numbers().private_value.to_bytes(48)
    secrets = [node, keys.receipts.private_bytes_raw(), keys.ledger, keys.pseudonyms]
    secrets += [secret.hex().encode() for secret in secrets]
    for name in (NODE, RECEIPTS, LEDGER, PSEUDONYMS):
        lines = (state / "keys" / name).read_bytes().splitlines()
        secrets += [line for line in lines if len(line) >= 32 and not line.startswith(b"-----")]
    assert len(secrets) >= 12
    assert [secret for secret in secrets if secret in said] == []


def test_keys_and_their_lives_are_listed() -> None:
    """Each private key is in the table, with the days for which certificates are made."""
    rows = set().union(*(ticked(row[0]) for row in table("key")))
    site = {f"state/keys/{name}" for name in (NODE, RECEIPTS, LEDGER, PSEUDONYMS)}
    assert rows == site | {AUTHORITY_KEY, SERVER_KEY, COORDINATOR_KEY}
    assert f"last {CERTIFICATE_DAYS} days" in PAGE
    assert AUTHORITY_DAYS == 3650
    assert "the authority ten years" in PAGE


def test_ports_are_those_of_the_settings() -> None:
    """The default port is the one that the page names, and nobody listens unless told to."""
    assert Link().server.endswith(":9092")
    assert FederationFile().listen.endswith(":9092")
    assert "TCP 9092 (`link.server`)" in PAGE
    assert "TCP 9092 (`listen`)" in PAGE
    assert Link().health_port is None
    assert FederationFile().health_port is None


def test_what_the_page_says_of_defaults_holds() -> None:
    """Metrics and counts are off by default, privacy and approval on."""
    assert Release() == Release(metrics=(), counts=False)
    policy = SiteSettings().policy
    assert (policy.privacy, policy.approval) == ("required", "manual")


def test_numbers_in_the_threat_model_are_the_codes() -> None:
    """Places for large replies, the longest deadline, and what a receipt or refusal may say."""
    assert (door.LARGE_AT_ONCE, link._MOST_CALL_S) == (4, 120)
    assert (
        "hold the four places for large replies, each until its\ncalls' deadlines (two minutes"
        in PAGE
    )
    assert {*RefusalCode} == REFUSAL_SENTENCES.keys()
    (statement,) = [json.loads(b) for b in re.findall(r"```json\n(.*?)```", PAGE, re.S)][1:]
    assert set(statement["statement"]["not_covered"]) <= {*NotCovered}


def test_named_settings_exist() -> None:
    """A setting that the page names is one of site.yaml, study.yaml or federation.yaml."""
    known = {*leaves(SiteSettings), *leaves(Study), *leaves(FederationFile)}
    bare = {"listen", "health_port", "lifetime_epsilon"}
    dotted = set(re.findall(r"`((?:policy|release|link|budget)\.\w+)(?:`|: )", TEXT))
    assert {"policy.privacy", "policy.studies_per_day", "release.metrics"} <= dotted
    assert dotted <= known
    assert bare <= {name.rpartition(".")[2] for name in known}
    assert bare <= ticked(TEXT)


def test_of_flower_only_the_named_parts_run() -> None:
    """Neither end imports its SuperLink's state, SuperNode, Control API, installer or executor."""
    told = "import sys, client.app, client.link, server.serve; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", told], cwd=ROOT, check=True, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    loaded = [name for name in done.stdout.split() if name.startswith("flwr.")]
    assert "flwr.app" in loaded
    others = (
        "flwr.cli.",
        "flwr.server.superlink.fleet.grpc_rere.",
        "flwr.server.superlink.linkstate.",
        "flwr.simulation.",
        "flwr.supercore.superexec.",
        "flwr.superlink.",
        "flwr.supernode.",
    )
    assert [name for name in loaded if f"{name}.".startswith(others)] == []


def test_the_pinned_flower_is_named() -> None:
    """The page's version is the lock's and the installed one's."""
    (named,) = set(re.findall(r"flwr (\d+\.\d+)", PAGE))
    (locked,) = re.findall(r"^flwr==(\S+)", (ROOT / "requirements.lock").read_text(), re.M)
    assert locked.startswith(f"{named}.")
    assert version("flwr") == locked


def test_the_page_is_short() -> None:
    """Three printed pages at most, of some 550 words each."""
    assert len(PAGE.split()) <= 1650


@pytest.mark.parametrize("name", re.findall(r"`((?:client|tests|common)/[\w/]+\.py)`", PAGE))
def test_named_files_exist(name: str) -> None:
    """A file of the code that the page names is there."""
    assert (ROOT / name).is_file()
