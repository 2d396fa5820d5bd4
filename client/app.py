"""The ClientApp: decode an instruction, score and train, encode the reply; nothing else."""

from __future__ import annotations

import functools
import json
import logging
import traceback

import numpy as np
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import nn

from client.cohort import Cohort, open_cohort
from client.predict import predict_cohort, score
from client.training import train_round
from common.compute import find_device, settle
from common.config import SiteSettings, Study, parse
from common.errors import BadData, BadInput, RefusalCode, SiteRefusal
from common.messages import (
    EVALUATE,
    TRAIN,
    Instruction,
    Reply,
    decode_instruction,
    encode_refusal,
    encode_reply,
)
from common.models import (
    pack,
    study_model,
    trained_layout,
    trained_part,
    unpack,
    weights_sha256,
)
from common.privacy.randomness import RoundSecret

logger = logging.getLogger("fedward.client")
app = ClientApp()


@app.train()
def on_train(message: Message, context: Context) -> Message:
    """Score the incoming weights on the site's test patients, then train on the others."""
    return _answer(message, context, TRAIN)


@app.evaluate()
def on_evaluate(message: Message, context: Context) -> Message:
    """Score the incoming weights on the site's test patients."""
    return _answer(message, context, EVALUATE)


def _answer(message: Message, context: Context, kind: str) -> Message:
    try:
        settle()
        site = _settings(str(context.node_config["site"]))
        instruction = decode_instruction(message.content)
        reply = _work(instruction, site, kind)
        return Message(encode_reply(reply), reply_to=message)
    except SiteRefusal as refusal:
        code = refusal.code
        _log(code, refusal)
    except BadData as error:
        code = RefusalCode.DATA_UNREADABLE
        _log(code, error)
    except BadInput as error:  # such as an unknown model, or a delta too large for this site
        code = RefusalCode.BAD_INSTRUCTION
        _log(code, error)
    except Exception as error:  # the process's edge: no local text may reach the server
        code = RefusalCode.INTERNAL
        _log(code, error)
    return Message(encode_refusal(code), reply_to=message)


def _work(instruction: Instruction, site: SiteSettings, kind: str) -> Reply:
    study, fold = instruction.study, instruction.fold
    if kind == TRAIN and instruction.round_number > study.training.rounds:
        raise SiteRefusal(RefusalCode.BAD_INSTRUCTION)  # beyond what the privacy was planned for
    device = find_device(site.device)
    cohort = open_cohort(site, study, device)
    model = _model(study.canonical())
    try:
        unpack(instruction.weights, model)
    except ValueError:
        raise SiteRefusal(RefusalCode.BAD_WEIGHTS) from None
    module = trained_part(model)
    metrics = _released_metrics(module, cohort, study, fold, device)
    if kind == EVALUATE:
        return Reply(None, metrics)
    secret = _round_secret(instruction, cohort, model)
    try:
        train_round(
            module,
            cohort.examples(fold),
            study,
            declared_patients=site.declared_patients,
            secret=secret,
            device=device,
        )
    finally:
        secret.erase()
    weights = pack(model)
    if not np.isfinite(weights).all():
        raise SiteRefusal(RefusalCode.DIVERGED)
    return Reply(weights, metrics)


def _released_metrics(
    module: nn.Module, cohort: Cohort, study: Study, fold: int, device: torch.device
) -> dict[str, float]:
    """The metrics that the site's policy lets out; without any, no test image is looked at.

    They are exact, so the training's differential privacy does not cover them.
    """
    rows = cohort.test_rows(fold)
    wanted = cohort.site.release.metrics
    if not wanted or not len(rows):
        return {}
    try:
        predictions = predict_cohort(module, cohort, rows, study=study, device=device)
    except BadInput:  # finite weights whose outputs overflow: there is no metric to give
        return {}
    return score(predictions, wanted=wanted)


def _round_secret(instruction: Instruction, cohort: Cohort, model: nn.Module) -> RoundSecret:
    """The round's 32 bytes: the operating system's, or the seed's where site.yaml says so."""
    if cohort.site.randomness == "secret":
        return RoundSecret.from_os()
    return RoundSecret.seeded(
        instruction.study.seed,
        study_hash=instruction.study.sha256,
        fold=instruction.fold,
        round_number=instruction.round_number,
        weights_sha256=weights_sha256(instruction.weights, trained_layout(model)),
        data_fingerprint=cohort.dataset.fingerprint,
    )


@functools.lru_cache(maxsize=256)
def _settings(text: str) -> SiteSettings:
    return parse(SiteSettings, json.loads(text), where="site.yaml")


@functools.lru_cache(maxsize=8)
def _model(study_text: str) -> nn.Module:
    """One network a study, whose weights are set anew for each message."""
    return study_model(Study.model_validate_json(study_text))


def _log(code: RefusalCode, error: Exception) -> None:
    """Where it happened, never what the error says: its text may hold a patient's name."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{type(error).__name__} in {frame.name}, line {frame.lineno}"
    logger.warning("refused: %s (%s)", code.value, place)
