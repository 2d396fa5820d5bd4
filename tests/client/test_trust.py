"""Once code that was sent here has worked on a site's records, no number of theirs hides it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from client import ledger_commands, steward
from client.approval import seen_studies
from client.state import note_sent_code, trust_model
from common.config import Budget, Policy
from common.errors import RefusalCode
from common.messages import (
    QUERY,
    Question,
    decode_refusal,
    decode_statement,
    encode_question,
)
from common.privacy.epsilon import TrustModel


@pytest.mark.parametrize("sent", [False, True])
def test_every_epsilon_of_a_site_says_whose_code_gave_it(
    hospital: Callable[..., Any], caplog: pytest.LogCaptureFixture, sent: bool
) -> None:
    """In plan, ledger, refusal and statement, whatever code is at work later."""
    site = hospital(policy=Policy(approval="automatic"), budget=Budget(epsilon=4.0))
    study = site.study("training.rounds=6", "privacy.target_epsilon=3")
    assert not site.ask(site.instruct(study)).has_error()
    assert trust_model(site.settings.state) is TrustModel.LOCAL
    if sent:
        note_sent_code(site.settings.state)
        note_sent_code(site.settings.state)
    (seen,) = seen_studies(site.settings)
    caplog.clear()
    other = site.study("training.rounds=6", "privacy.target_epsilon=3.5")
    refused = site.ask(site.instruct(other)).error
    assert decode_refusal(refused) is RefusalCode.OVER_BUDGET
    shown = ledger_commands.show(site.settings)
    answer = site.ask(encode_question(Question(study.sha256, 0)), QUERY)
    said = {
        "plan": json.dumps(steward.show(seen, site.settings).as_json()),
        "status": steward.text([steward.show(seen, site.settings)]),
        "ledger": shown.text(),
        "ledger --json": json.dumps(shown.as_json()),
        "refusal": caplog.text,
        "statement": decode_statement(answer.content).decode(),
    }
    expected = TrustModel.SENT if sent else TrustModel.LOCAL
    for where, text in said.items():
        named = {model for model in TrustModel if model.value in text}
        assert named == {expected}, where
