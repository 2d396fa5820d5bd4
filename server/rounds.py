"""The rounds of a study: instruct, check, spool, average, checkpoint; on any Flower Grid."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from common.config import Study
from common.errors import RefusalCode, RunFailed, SiteRefusal
from common.messages import (
    EVALUATE,
    TRAIN,
    Instruction,
    decode_refusal,
    decode_reply,
    encode_instruction,
    payload_bytes,
)
from common.models import Layout, weights_sha256
from server.aggregation import Spool, problem
from server.checkpoint import (
    Checkpoint,
    append_history,
    last_checkpoint,
    truncate_history,
    write_checkpoint,
)

logger = logging.getLogger("fedward.server")
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Federation:
    """One leg of a study: its fold, its sites by Flower's node id, and where it is written."""

    study: Study
    fold: int  # 0: the study has one split
    sites: Mapping[int, str]
    layout: Layout
    out: Path


@dataclass(slots=True)
class _Round:
    """What one round's replies brought."""

    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0


def run_rounds(grid: Grid, federation: Federation, initial: NDArray[np.float32]) -> Checkpoint:
    """All rounds that are still to do, and the closing evaluation; returns the last checkpoint.

    Starts after the last checkpoint in `federation.out`, so calling it again resumes.

    Raises:
        RunFailed: a round had fewer accepted replies than the study's minimum.
    """
    study, out = federation.study, federation.out
    folder, history = out / "checkpoints", out / "history.jsonl"
    state = last_checkpoint(folder, study_sha256=study.sha256) or Checkpoint(0, initial)
    truncate_history(history, after_round=state.round_number)
    for round_number in range(state.round_number + 1, study.training.rounds + 1):
        started = time.monotonic()
        spool = Spool(out / "spool")
        outcome = _collect(grid, federation, state.weights, round_number, spool)
        if len(spool.sites) < study.federation.min_sites:
            raise RunFailed(_too_few(federation, outcome, round_number, len(spool.sites)))
        joined = spool.sites
        state = Checkpoint(round_number, spool.average(study.federation.weights))
        line = _line(federation, state, outcome)
        line |= {"joined": list(joined), "seconds": round(time.monotonic() - started, 3)}
        append_history(history, line)
        write_checkpoint(folder, state, study_sha256=study.sha256)
        _report(federation, outcome, round_number, len(joined))
    closing = _collect(grid, federation, state.weights, study.training.rounds + 1, None)
    append_history(history, _line(federation, state, closing) | {"closing": True})
    return state


def _collect(
    grid: Grid,
    federation: Federation,
    weights: NDArray[np.float32],
    round_number: int,
    spool: Spool | None,
) -> _Round:
    """Send one message a site, take each reply as it comes; without a spool, only evaluate."""
    outcome = _Round()
    kind = EVALUATE if spool is None else TRAIN
    study = federation.study
    content = encode_instruction(Instruction(study, federation.fold, round_number, weights))
    messages = [
        Message(content, node, kind, group_id=str(round_number)) for node in federation.sites
    ]
    outcome.bytes_down = payload_bytes(content) * len(messages)
    waiting = set(federation.sites.values())
    for reply, node in _replies(grid, messages, study.federation.round_timeout_s):
        site = federation.sites[node]
        waiting.discard(site)
        reason = _take(reply, site, federation.layout, spool, outcome)
        if reason:
            outcome.left_out[site] = reason
    outcome.left_out |= dict.fromkeys(waiting, "no reply before the round's deadline")
    return outcome


def _replies(
    grid: Grid, messages: list[Message], timeout_s: float
) -> Iterator[tuple[Message, int]]:
    """Replies with the nodes that were asked, as they arrive, until all are in or time is over."""
    pushed = set(grid.push_messages(messages))  # which also gives each message its id
    asked = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
    waiting = pushed & asked.keys()
    deadline = time.monotonic() + timeout_s
    while waiting:
        arrived = list(grid.pull_messages(waiting))
        if not arrived and time.monotonic() > deadline:
            return  # what is in is taken, so an engine that works in turn never runs late
        for reply in arrived:
            # Not by its sender: Flower itself answers, as the server, for a site that is gone.
            message_id = reply.metadata.reply_to_message_id
            waiting.discard(message_id)
            yield reply, asked[message_id]
        if not arrived:
            time.sleep(_POLL_S)


def _take(
    reply: Message, site: str, layout: Layout, spool: Spool | None, outcome: _Round
) -> str | None:
    """Check one reply and keep what is good; returns why it was left out, or None."""
    if reply.has_error():
        code = decode_refusal(reply.error)
        return f"{code.value}: {SiteRefusal(code)}" if code else "the site's process failed"
    outcome.bytes_up += payload_bytes(reply.content)
    try:
        answer = decode_reply(reply.content)
    except ValueError as error:
        return f"bad reply: {error}"
    if spool is not None:
        reason = problem(answer.weights, layout.size)
        if reason or answer.weights is None:
            return f"bad reply: {reason}"
        spool.accept(site, answer.weights)
    outcome.metrics[site] = dict(answer.metrics)
    return None


def _line(federation: Federation, state: Checkpoint, outcome: _Round) -> dict[str, Any]:
    """One line of the history; `metrics` are those of the weights that the round started from."""
    return {
        "round": state.round_number,
        "fold": federation.fold,
        "weights_sha256": weights_sha256(state.weights, federation.layout),
        "metrics": outcome.metrics,
        "left_out": outcome.left_out,
        "bytes_up": outcome.bytes_up,
        "bytes_down": outcome.bytes_down,
    }


def _report(federation: Federation, outcome: _Round, round_number: int, joined: int) -> None:
    rounds = federation.study.training.rounds
    losses = [metrics["loss"] for metrics in outcome.metrics.values() if "loss" in metrics]
    loss = f", loss before it {np.mean(losses):.3f}" if losses else ""
    left_out = "".join(f"; without {site} ({why})" for site, why in outcome.left_out.items())
    logger.info(
        "%sround %d of %d: %d of %d sites%s%s",
        f"fold {federation.fold}, " if federation.fold else "",
        round_number,
        rounds,
        joined,
        len(federation.sites),
        loss,
        left_out,
        extra={"round_number": round_number, "rounds": rounds, "fold": federation.fold},
    )


def _too_few(federation: Federation, outcome: _Round, round_number: int, accepted: int) -> str:
    wanted = federation.study.federation.min_sites
    why = "; ".join(f"{site}: {reason}" for site, reason in sorted(outcome.left_out.items()))
    diverged = any(r.startswith(RefusalCode.DIVERGED.value) for r in outcome.left_out.values())
    remedy = (  # a resumed run would come to the same weights again
        "Lower the learning rate and start a new run."
        if diverged
        else "Mend the sites and go on with --resume."
    )
    return (
        f"round {round_number} has {accepted} accepted replies, and the study needs {wanted} "
        f"(federation.min_sites): {why.rstrip('.')}. {remedy}"
    )
