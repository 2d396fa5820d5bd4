"""What befalls simulated hospitals on the way: a steward who withdraws, a line that is down."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress

from flwr.app import Context, Error, Message

from client.approval import admit, withdraw
from common.config import SimulatedSite, SiteSettings
from common.errors import SiteRefusal
from common.messages import QUERY, UNREACHABLE, decode_instruction
from simulations.engines.inline import Answer

_FIRST_FOLD = 1


def befalling(answer: Answer, said: Mapping[str, SimulatedSite]) -> Answer:
    """An app that answers for its sites, to which happens what the study says of them.

    Args:
        answer: the ClientApp.
        said: of each site.
    """

    def answer_on_the_way(message: Message, context: Context) -> Message:
        site = SiteSettings.model_validate_json(str(context.node_config["site"]))
        return _befallen(message, site, said[site.name]) or answer(message=message, context=context)

    happens = any(one.withdraws_before_round or one.absent_rounds for one in said.values())
    return answer_on_the_way if happens else answer


def _befallen(message: Message, site: SiteSettings, said: SimulatedSite) -> Message | None:
    """Let the site's steward act; what comes back from a site that can't be reached."""
    kind = message.metadata.message_type
    if kind == QUERY:
        return None
    asked = decode_instruction(message.content, kind=kind)
    first, now_s = said.withdraws_before_round, time.time()
    if first and (asked.fold > _FIRST_FOLD or asked.round_number >= first):
        with suppress(SiteRefusal):  # a study must have been asked for
            admit(asked.study, site, now_s=now_s)
        withdraw(site, asked.study.sha256, now_s=now_s)
    if asked.round_number not in said.absent_rounds:
        return None
    return Message(Error(UNREACHABLE, "not reachable"), reply_to=message)
