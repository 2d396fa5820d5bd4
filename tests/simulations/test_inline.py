"""The engine in one process: who is asked, when, and with what of their own."""

from __future__ import annotations

import json

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from simulations.engines.inline import InlineGrid, run_inline

NODES = {1000: "east", 1001: "north"}


@pytest.fixture(autouse=True)
def _in_a_flower_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages can only be made by somebody."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Sites:
    """A client app that notes who was asked and counts in its context."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, *, message: Message, context: Context) -> Message:
        name = str(context.node_config["site"])
        self.asked.append(name)
        count = context.state.config_records.setdefault("count", ConfigRecord({"calls": 0}))
        count["calls"] = int(str(count["calls"])) + 1
        said = ConfigRecord({"site": name, "calls": count["calls"]})
        return Message(RecordDict({"said": said}), reply_to=message)


def grid(sites: Sites) -> InlineGrid:
    """A grid of two sites."""
    return InlineGrid(sites, {node: {"site": name} for node, name in NODES.items()})  # type: ignore[arg-type]


def messages(*nodes: int) -> list[Message]:
    """One instruction a node."""
    return [Message(RecordDict(), node, "train") for node in nodes]


def said(reply: Message) -> tuple[object, object]:
    """Who answered, and how often they have been asked."""
    record = reply.content.config_records["said"]
    return record["site"], record["calls"]


def test_one_site_works_at_a_time_and_only_when_its_reply_is_asked_for() -> None:
    """Pushing calls nobody; each pull brings one reply, the oldest message's first."""
    sites = Sites()
    inline = grid(sites)
    ids = list(inline.push_messages(messages(1001, 1000)))
    assert sites.asked == []
    (first,) = inline.pull_messages(set(ids))
    assert sites.asked == ["north"]
    assert first.metadata.reply_to_message_id == ids[0]
    assert first.metadata.src_node_id == 1001
    (second,) = inline.pull_messages(ids[1:])
    assert said(second) == ("east", 1)
    assert list(inline.pull_messages(ids)) == []
    assert sites.asked == ["north", "east"]


def test_each_message_has_its_own_reply() -> None:
    """As many replies as messages, also where a site is asked twice; what is unknown has none."""
    inline = grid(Sites())
    replies = list(inline.send_and_receive(messages(1000, 1000, 1001)))
    assert [said(reply) for reply in replies] == [("east", 1), ("east", 2), ("north", 1)]
    assert len({reply.metadata.reply_to_message_id for reply in replies}) == 3
    assert list(inline.pull_messages(["77"])) == []


def test_a_site_keeps_its_own_context() -> None:
    """What a site notes is there at its next message, and no other site sees it."""
    inline = grid(Sites())
    for expected in (1, 2, 3):
        (reply,) = inline.send_and_receive(messages(1000))
        assert said(reply) == ("east", expected)
    (other,) = inline.send_and_receive(messages(1001))
    assert said(other) == ("north", 1)


def test_a_run_names_its_sites_in_order_of_name() -> None:
    """The server gets a node for each site, sorted, and each site its own settings only."""
    seen: dict[str, object] = {}
    sites = Sites()

    def server_app(inline: InlineGrid, context: Context) -> None:
        seen.update(context.run_config)
        list(inline.send_and_receive(messages(*inline.get_node_ids())))

    run_inline(
        server_app,  # type: ignore[arg-type]
        sites,  # type: ignore[arg-type]
        run_config={"out": "somewhere"},
        sites={"west": "W", "east": "E", "north": "N"},
    )
    assert list(json.loads(str(seen["sites"])).values()) == ["east", "north", "west"]
    assert seen["out"] == "somewhere"
    assert sites.asked == ["E", "N", "W"]
