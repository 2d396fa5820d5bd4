"""The rounds of a study: instruct, check, spool, average, checkpoint; on any Flower Grid.

With each reply a site shows the head of its receipts; the next instruction repeats it, so that a
site whose records were put back to an old copy finds out. At the end each site signs a statement.
"""

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

from common.chain import Head
from common.errors import RefusalCode, RunFailed
from common.messages import (
    EVALUATE,
    TRAIN,
    Instruction,
    decode_reply,
    encode_instruction,
    payload_bytes,
    with_known_head,
)
from common.models import weights_sha256
from server.aggregation import Spool, problem
from server.checkpoint import (
    Checkpoint,
    append_history,
    closing_line,
    end_history,
    last_checkpoint,
    read_history,
    truncate_history,
    write_checkpoint,
)
from server.exchange import NOT_REACHABLE, Federation, refusal_of, replies
from server.presence import Waiting, tell
from server.statements import collect_statements

logger = logging.getLogger("fedward.server")
NO_REPLY = "no reply before the round's deadline"
_UNDECIDED = "has not approved the study"
_ASK_AGAIN_S = 10.0, 300.0  # at least and at most


@dataclass(slots=True)
class _Round:
    """What one round's replies brought."""

    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)  # of the sites' receipts
    left_out: dict[str, str] = field(default_factory=dict)
    waited_s: float = 0.0  # for stewards, between askings
    bytes_up: int = 0
    bytes_down: int = 0


def run_rounds(grid: Grid, federation: Federation, initial: NDArray[np.float32]) -> Checkpoint:
    """All rounds that are still to do, and the closing evaluation; returns the last checkpoint.

    Starts after the last checkpoint in `federation.out`, so calling it again resumes.

    Where too few accept because stewards haven't decided, it asks the others again for
    `federation.approval_timeout_s`; what is accepted already is kept meanwhile.

    Raises:
        RunFailed: a round had fewer accepted replies than the study's minimum.
    """
    study, out = federation.study, federation.out
    folder, history = out / "checkpoints", out / "history.jsonl"
    state = last_checkpoint(folder, study_sha256=study.sha256) or Checkpoint(0, initial)
    del initial  # a whole model, which the rounds don't need
    truncate_history(history, after_round=state.round_number)
    heads = _known_heads(history)
    for round_number in range(state.round_number + 1, study.training.rounds + 1):
        started = _working_s(grid)
        spool = Spool(out / "spool")
        outcome = _Round()
        for sites in _askings(federation, outcome, spool):
            _collect(grid, federation, sites, state.weights, round_number, spool, heads, outcome)
            heads |= outcome.heads
        if len(spool.sites) < study.federation.min_sites:
            raise RunFailed(_too_few(federation, outcome, round_number, len(spool.sites)))
        joined = spool.sites
        state = Checkpoint(round_number, spool.average(study.federation.weights))
        line = _line(federation, state, outcome)
        seconds = _working_s(grid) - started - outcome.waited_s
        line |= {"joined": list(joined), "seconds": round(seconds, 3)}
        append_history(history, line)
        write_checkpoint(folder, state, study_sha256=study.sha256)
        _report(federation, outcome, round_number, len(joined))
    _close(grid, federation, state, heads)
    return state


def _close(grid: Grid, federation: Federation, state: Checkpoint, heads: Mapping[str, str]) -> None:
    """The last weights' evaluation, then the statements; what an earlier run had stays.

    A site that has stated forgets its replies: it could not be asked again for its evaluation.
    """
    history = federation.out / "history.jsonl"
    line = closing_line(history)
    if line is None:
        last = federation.study.training.rounds + 1
        outcome = _Round()
        _collect(grid, federation, federation.sites, state.weights, last, None, heads, outcome)
        line = _line(federation, state, outcome) | {"closing": True}
        append_history(history, line)
    if "without_statement" not in line:
        known = {site: _head(heads | line["heads"], site) for site in federation.sites.values()}
        missing = collect_statements(grid, federation, known)
        end_history(history, line | {"without_statement": missing})


def _askings(federation: Federation, outcome: _Round, spool: Spool) -> Iterator[Mapping[int, str]]:
    """Whom to ask in a round: all sites, then those that may still join, while too few have.

    A site whose steward hasn't decided may and, while stewards are waited for, one that is away.
    They are asked after 10 s, later after a third of all the waiting, which others' training is
    no part of. Who watches is told meanwhile.
    """
    said = ""
    tell(federation.run_dir, None)  # whatever came before has ended
    yield federation.sites
    while True:
        undecided = [
            site
            for site, reason in sorted(outcome.left_out.items())
            if reason.startswith(RefusalCode.NOT_APPROVED.value)
        ]
        away = [s for s, reason in outcome.left_out.items() if reason in (NOT_REACHABLE, NO_REPLY)]
        may_join = {n: s for n, s in federation.sites.items() if s in (*undecided, *away)}
        missing = federation.study.federation.min_sites - len(spool.sites)
        left = federation.approval_timeout_s - outcome.waited_s
        is_waiting = undecided or outcome.waited_s
        if not (0 < missing <= len(may_join) and is_waiting and left > 0):
            tell(federation.run_dir, None)
            return
        if undecided and said != (said := ", ".join(undecided)):
            logger.info("waiting for %s to approve the study", said)
        why = outcome.left_out | dict.fromkeys(undecided, _UNDECIDED)
        whom = {site: why[site] for site in sorted(may_join.values())}
        tell(federation.run_dir, Waiting(missing, whom, until=time.time() + left))
        pause_s = min(float(np.clip(outcome.waited_s / 3, *_ASK_AGAIN_S)), left)
        time.sleep(pause_s)
        outcome.waited_s += pause_s
        yield may_join


def _collect(
    grid: Grid,
    federation: Federation,
    sites: Mapping[int, str],
    weights: NDArray[np.float32],
    round_number: int,
    spool: Spool | None,
    heads: Mapping[str, str],
    outcome: _Round,
) -> None:
    """Send one message a site, take each reply as it comes; without a spool, only evaluate."""
    kind = EVALUATE if spool is None else TRAIN
    study = federation.study
    sha256 = weights_sha256(weights, federation.layout)
    content = encode_instruction(Instruction(study, federation.fold, round_number, weights, sha256))
    messages = [
        Message(
            with_known_head(content, _head(heads, site)), node, kind, group_id=str(round_number)
        )
        for node, site in sites.items()
    ]
    outcome.bytes_down += payload_bytes(content) * len(messages)
    waiting = set(sites.values())
    for site in waiting:
        outcome.left_out.pop(site, None)  # what it said before
    for reply, node in replies(grid, messages, study.federation.round_timeout_s):
        site = sites[node]
        waiting.discard(site)
        reason = _take(reply, site, federation, spool, weights, outcome)
        if reason:
            outcome.left_out[site] = reason
        del reply  # it may be as large as a model, and the next comes before it is replaced
    outcome.left_out |= dict.fromkeys(waiting, NO_REPLY)


def _take(
    reply: Message,
    site: str,
    federation: Federation,
    spool: Spool | None,
    incoming: NDArray[np.float32],
    outcome: _Round,
) -> str | None:
    """Check one reply and keep what is good; returns why it was left out, or None."""
    wire = federation.study.federation.wire
    if reply.has_error():
        return refusal_of(reply)
    outcome.bytes_up += payload_bytes(reply.content)
    try:
        answer = decode_reply(reply.content, wire=wire)
    except ValueError as error:
        return f"bad reply: {error}"
    if spool is not None:
        values = answer.weights
        reason = problem(values, federation.layout.size)
        if reason is None and values is not None and wire != "float32":
            values = incoming + values  # what is short is the difference
            reason = problem(values, federation.layout.size)
        if reason or values is None:
            return f"bad reply: {reason}"
        spool.accept(site, values)
    outcome.metrics[site] = dict(answer.metrics)
    if answer.head is not None:
        outcome.heads[site] = str(answer.head)
    return None


def _working_s(grid: Grid) -> float:
    """A clock that stands still in a pause, of which only the link's grid knows."""
    return time.monotonic() - float(getattr(grid, "paused_s", 0.0))


def _known_heads(history: Path) -> dict[str, str]:
    """The last head that each site has shown, from the rounds that are kept."""
    heads: dict[str, str] = {}
    for line in read_history(history):
        heads |= line["heads"]
    return heads


def _head(heads: Mapping[str, str], site: str) -> Head | None:
    return Head.parse(heads[site]) if site in heads else None


def _line(federation: Federation, state: Checkpoint, outcome: _Round) -> dict[str, Any]:
    """One line of the history; `metrics` are those of the weights that the round started from."""
    return {
        "round": state.round_number,
        "fold": federation.fold,
        "weights_sha256": weights_sha256(state.weights, federation.layout),
        "metrics": outcome.metrics,
        "heads": outcome.heads,
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
        else "Mend the sites, then start the same command again (a simulation: with --resume)."
    )
    return (
        f"round {round_number} has {accepted} accepted replies, and the study needs {wanted} "
        f"(federation.min_sites): {why.rstrip('.')}. {remedy}"
    )
