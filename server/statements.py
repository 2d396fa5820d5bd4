"""The sites' signed statements at a study's end, kept as they were signed."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from common.chain import Head
from common.files import write_atomically
from common.messages import QUERY, Question, decode_statement, encode_question
from common.statement import read_statement
from server.exchange import Federation, refusal_of, replies

logger = logging.getLogger("fedward.server")


def collect_statements(
    grid: Grid, federation: Federation, heads: Mapping[str, Head | None]
) -> dict[str, str]:
    """Ask each site for its signed statement and keep it; returns who gave none, and why.

    Args:
        heads: of each site's receipts, as last seen: from an old copy nothing is to be stated.
    """
    study, fold = federation.study.sha256, federation.fold
    messages = [
        Message(
            encode_question(Question(study, fold, heads[site])), node, QUERY, group_id="statements"
        )
        for node, site in federation.sites.items()
    ]
    missing = dict.fromkeys(federation.sites.values(), "no reply before the deadline")
    for reply, node in replies(grid, messages, federation.study.federation.round_timeout_s):
        site = federation.sites[node]
        reason = _keep(reply, site, federation)
        if reason is None:
            del missing[site]
        else:
            missing[site] = reason
            logger.warning("no statement from %s: %s", site, reason)
    return missing


def _keep(reply: Message, site: str, federation: Federation) -> str | None:
    """Check one statement and write it as it was signed; returns why it was left out, or None."""
    if reply.has_error():
        return refusal_of(reply)
    try:
        signed = decode_statement(reply.content)
        statement = read_statement(signed)
    except ValueError as error:
        return f"bad reply: {error}"
    asked = (site, federation.study.sha256, federation.fold)
    if (statement.site, statement.study, statement.fold) != asked:
        return "bad reply: a statement on something else"
    if statement.key != federation.receipts_keys.get(site, statement.key):
        return "bad reply: signed by another key than the site's registered one"
    folder = federation.out / "sites" / site
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "statement.json", signed)
    return None
