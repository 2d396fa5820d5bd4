"""Asking the sites of a federation and taking their answers, on any Flower Grid."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from common.config import Study
from common.errors import SiteRefusal
from common.messages import REVOKED, UNREACHABLE, decode_refusal
from common.models import Layout

_POLL_S = 0.02, 1.0  # at least and at most; between them, a hundredth of what it has waited
NOT_REACHABLE = "not reachable"
_ABSENT = {UNREACHABLE: NOT_REACHABLE, REVOKED: "revoked by the coordinator"}


@dataclass(frozen=True, slots=True)
class Federation:
    """One leg of a study: its fold, its sites by Flower's node id, and where it is written."""

    study: Study
    fold: int  # 0: the study has one split
    sites: Mapping[int, str]
    layout: Layout
    out: Path
    receipts_keys: Mapping[str, str] = field(default_factory=dict)  # registered ones, hexadecimal
    approval_timeout_s: float = 0.0  # how long a round waits for stewards who haven't decided

    @property
    def run_dir(self) -> Path:
        """Where the leg's folder lies."""
        return self.out.parents[1] if self.fold else self.out


def replies(grid: Grid, messages: list[Message], timeout_s: float) -> Iterator[tuple[Message, int]]:
    """Replies with the nodes that were asked, as they arrive, until all are in or time is over."""
    pushed = set(grid.push_messages(messages))  # which also gives each message its id
    asked = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
    waiting = pushed & asked.keys()
    begun = time.monotonic()
    while waiting:
        arrived = list(grid.pull_messages(waiting))
        if not arrived:
            waited = time.monotonic() - begun
            if waited > timeout_s:
                return  # what is in is taken, so an engine that works in turn never runs late
            time.sleep(float(np.clip(waited / 100, *_POLL_S)))
        while arrived:  # each is let go before the next comes: it may be as large as a model
            # Not by its sender: Flower itself answers, as the server, for a site that is gone.
            message_id = arrived[0].metadata.reply_to_message_id
            waiting.discard(message_id)
            yield arrived.pop(0), asked[message_id]


def refusal_of(reply: Message) -> str:
    """Why a site, or the link for it, gave an error instead of an answer."""
    if reply.error.code in _ABSENT:
        return _ABSENT[reply.error.code]
    code = decode_refusal(reply.error)
    return f"{code.value}: {SiteRefusal(code)}" if code else "the site's process failed"
