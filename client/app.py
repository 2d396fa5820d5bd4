"""The ClientApp: hand a message to the site, encode what it says; nothing else."""

from __future__ import annotations

import functools
import json
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.gate import pass_refusal
from client.ledger import OverBudget
from client.site import Site, open_site
from client.stock import open_stock_site
from common.compute import keep_freed_memory, settle
from common.config import SiteSettings, parse
from common.errors import BadData, BadInput, FedwardError, RefusalCode, RunFailed, SiteRefusal
from common.messages import EVALUATE, QUERY, TRAIN

logger = logging.getLogger("fedward.client")


class _SiteApp(ClientApp):
    """Flower's ClientApp raises where nothing is registered for a message's type; this refuses."""

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type in (TRAIN, EVALUATE, QUERY):
            return super().__call__(message, context)
        return _answer(message, context, message.metadata.message_type)


app = _SiteApp()

# What leaves for each kind of fault, the first that fits; the closed list says no more.
_CODES: tuple[tuple[type[Exception], RefusalCode], ...] = (
    (OverBudget, RefusalCode.OVER_BUDGET),
    (BadData, RefusalCode.DATA_UNREADABLE),
    (BadInput, RefusalCode.INTERNAL),  # the site's own settings: the study was let in before
    (RunFailed, RefusalCode.RECORDS_DAMAGED),  # of ledger and receipts
    (OSError, RefusalCode.RECORDS_DAMAGED),  # a full disk
)


@app.train()
def on_train(message: Message, context: Context) -> Message:
    """Score the incoming weights on the site's test patients, then train on the others."""
    return _answer(message, context, TRAIN)


@app.evaluate()
def on_evaluate(message: Message, context: Context) -> Message:
    """Score the incoming weights on the site's test patients."""
    return _answer(message, context, EVALUATE)


@app.query()
def on_query(message: Message, context: Context) -> Message:
    """Sign a statement on the site's part in a study."""
    return _answer(message, context, QUERY)


def _answer(message: Message, context: Context, kind: str) -> Message:
    settle()
    keep_freed_memory()
    try:
        with _opened(context) as site:
            return _answer_as(site, message, context, kind)
    except (FedwardError, OSError) as error:  # without records there is no receipt either
        logger.error("the site can't begin: %s", error)
        return Message(pass_refusal(RefusalCode.RECORDS_DAMAGED), reply_to=message)


def _answer_as(site: Site, message: Message, context: Context, kind: str) -> Message:
    content = RecordDict()
    try:
        content = message.content  # raises where the message is an error
        _heed(context)
        return Message(site.answer(content, kind), reply_to=message)
    except Exception as error:  # the process's edge: no local text may reach the server
        code = _code(error)
        _log(code, error)
    return Message(site.refuse(content, kind, code), reply_to=message)


@contextmanager
def _opened(context: Context) -> Iterator[Site]:
    """The site's records: open already, as JSON settings; or, in Flower's own process, just now."""
    said = str(context.node_config.get("site", ""))
    if said.startswith("{"):
        yield _site(said)
        return
    with open_stock_site(context) as site:
        yield site


def _heed(context: Context) -> None:
    """Refuse what the link has refused already, such as a message too large to be fetched."""
    if "refuse" in context.node_config:
        raise SiteRefusal(RefusalCode(str(context.node_config["refuse"])))


def _code(error: Exception) -> RefusalCode:
    if isinstance(error, SiteRefusal):
        return error.code
    fitting = (code for kind, code in _CODES if isinstance(error, kind))
    return next(fitting, RefusalCode.INTERNAL)


@functools.lru_cache(maxsize=256)
def _site(text: str) -> Site:
    """A site's records stay open for its messages."""
    return open_site(parse(SiteSettings, json.loads(text), where="site.yaml"))


def forget_sites() -> None:
    """Open each site's records anew at its next message."""
    _site.cache_clear()


def _log(code: RefusalCode, error: Exception) -> None:
    """Where it happened; what the error says only where no patient's name can be in it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{type(error).__name__} in {frame.name}, line {frame.lineno}"
    speaks = isinstance(error, OverBudget | RunFailed | SiteRefusal | BadInput)
    said = f": {error}" if speaks and not isinstance(error, BadData) else ""
    logger.warning("refused: %s (%s)%s", code.value, place, said)
