"""The engine `inline`: Flower's apps on a Grid in this very process; no server, no Ray.

Messages are handed over as they are: what a site reads from one (arrays are bytes) is a copy. One
message is answered at a time, when its reply is asked for, so that only one reply is in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Protocol

from flwr.app import Context, Message, RecordDict, UserConfig
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_RUN_ID = 1
_SERVER_NODE = 1
_FIRST_SITE_NODE = 1000


class Answer(Protocol):
    """A ClientApp, or what stands in for one."""

    def __call__(self, message: Message, context: Context) -> Message:
        """A site's answer to a message."""


class InlineGrid(Grid):
    """A Grid whose nodes are the sites of this process."""

    def __init__(self, client_app: Answer, node_configs: Mapping[int, dict[str, str]]) -> None:
        self._client_app = client_app
        self._contexts = {
            node: Context(_RUN_ID, node, dict(config), RecordDict(), {})
            for node, config in node_configs.items()
        }
        self._run = Run.create_empty(_RUN_ID)
        self._pending: dict[str, Message] = {}
        self._sent = 0

    def set_run(self, run: Run) -> None:
        """Set the run, as Flower's processes do."""
        self._run = run

    @property
    def run(self) -> Run:
        """The one run of this process."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to a site."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The sites' nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages for later; returns their ids."""
        ids = []
        for message in messages:
            self._sent += 1
            message_id = str(self._sent)
            message.metadata.__dict__["_message_id"] = message_id
            self._pending[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let one site answer one of these messages, the oldest first."""
        for message_id in sorted(set(message_ids) & self._pending.keys(), key=int):
            message = self._pending.pop(message_id)
            context = self._contexts[message.metadata.dst_node_id]
            return [self._client_app(message=message, context=context)]
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """All replies; a timeout means nothing where nobody is far away."""
        ids = self.push_messages(messages)
        return [reply for message_id in ids for reply in self.pull_messages([message_id])]


def run_inline(
    server_app: ServerApp,
    client_app: Answer,
    *,
    run_config: Mapping[str, str | int],
    sites: Mapping[str, str],
) -> None:
    """Run the apps of a federation in this process.

    Args:
        run_config: what the ServerApp reads, besides `sites`, which is filled in here.
        sites: site.yaml as JSON, by the site's name.
    """
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = _RUN_ID, 1, _SERVER_NODE
    nodes = {_FIRST_SITE_NODE + i: name for i, name in enumerate(sorted(sites))}
    grid = InlineGrid(client_app, {node: {"site": sites[name]} for node, name in nodes.items()})
    config: UserConfig = {**run_config, "sites": json.dumps(nodes)}
    server_app(grid, Context(_RUN_ID, _SERVER_NODE, {}, RecordDict(), config))
