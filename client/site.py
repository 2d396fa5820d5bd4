"""One message's way through a site.

    decoded -> admitted -> answered before? -> paid for -> worked on -> gated -> kept -> receipted
    -> settled -> sent

Every step is on disk before the next begins and changes nothing when it is repeated, so a process
that is killed anywhere between them answers the same instruction, asked again, with the same bytes,
charged once. What leaves is decided in `gate.py`, what is let in in `policy.py`; nothing here adds
to either.
"""

from __future__ import annotations

import functools
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import torch
from flwr.app import Error, RecordDict
from numpy.typing import NDArray
from torch import nn

from client.approval import Status, admit, seen_studies
from client.cohort import Cohort, open_cohort
from client.gate import Passed, pass_refusal, pass_reply, pass_statement, seal
from client.keys import RECEIPTS_CHAIN, SiteKeys, open_keys
from client.ledger import Ledger, Request, Reservation, lowered, open_ledger
from client.ledger_book import Round
from client.outbox import Outbox, open_outbox
from client.policy import (
    Key,
    check_cohort,
    check_round,
    check_size,
    check_weights,
    most_bytes,
    rounds_to_begin_with,
)
from client.predict import predict_cohort, score
from client.receipts import Asked, Receipts, Refused, Sent, SentArray, to_journal
from client.state import make_private, state_folder, trust_model, write_private
from client.statement import make_statement, sign
from client.training import check_study_engine, privacy_plan, train_round
from common.chain import Head
from common.compute import find_device
from common.config import SiteSettings, Study
from common.errors import BadInput, RefusalCode, RunFailed, SiteRefusal
from common.messages import (
    EVALUATE,
    QUERY,
    TRAIN,
    Instruction,
    Question,
    Reply,
    decode_instruction,
    decode_question,
    decode_statement,
)
from common.models import (
    Layout,
    pack,
    study_model,
    trained_layout,
    trained_part,
    unpack,
    weights_sha256,
)
from common.privacy.accounting import epsilon_spent
from common.privacy.epsilon import Epsilon, Randomness, Unit
from common.privacy.plan import PrivacyPlan
from common.privacy.randomness import RoundSecret
from common.signing import Verify, read_verify_key
from common.statement import StatedEpsilon, read_statement
from common.wire import short

logger = logging.getLogger("fedward.client")


@dataclass(frozen=True, slots=True)
class Site:
    """A hospital's records, opened; `open_site` makes it."""

    settings: SiteSettings
    keys: SiteKeys
    ledger: Ledger
    outbox: Outbox
    receipts: Receipts
    verify: Verify | None  # whose instructions these are; None in a simulation

    def answer(self, content: RecordDict, kind: str) -> RecordDict:
        """What leaves for a message of this kind; whatever it raises, the edge makes a code of."""
        if kind == QUERY:
            return self._state(content)
        if kind not in (TRAIN, EVALUATE):
            raise SiteRefusal(RefusalCode.BAD_INSTRUCTION)
        instruction = self._decoded(content, kind)
        study = instruction.study
        admit(study, self.settings, now_s=time.time())
        self._check_records(instruction.known_head)
        try:
            model = _model(study.canonical())
        except BadInput:  # such as patches for a model that has none
            raise SiteRefusal(RefusalCode.BAD_INSTRUCTION) from None
        layout = trained_layout(model)
        check_size(layout, self.settings)
        check_weights(instruction.weights, layout)
        sha256 = weights_sha256(instruction.weights, layout)
        if sha256 != instruction.weights_sha256:
            raise SiteRefusal(RefusalCode.BAD_SIGNATURE)  # other weights than were signed
        cohort = open_cohort(self.settings, study, find_device(self.settings.device))
        check_cohort(cohort.count, self.settings)
        key = Key(
            study.sha256,
            kind,
            instruction.fold,
            instruction.round_number,
            sha256,
            cohort.dataset.fingerprint,
        )
        recalled = self.outbox.recall(key, patients=cohort.names)
        if recalled is None:
            check_round(key, study, earlier=self.outbox.earlier(study.sha256, instruction.fold))
            reservation = self._reserve(key, study, cohort)
            reply = self._work(key, instruction, cohort, model, reservation)
        else:
            key, reply = recalled
            reservation = self._reserved(key, study) or self._reserve(key, study, cohort)
        passed = pass_reply(
            reply,
            layout=layout if kind == TRAIN else None,
            released=self.settings.release.metrics,
            max_bytes=most_bytes(self.settings),
            wire=study.federation.wire,
        )
        if recalled is None:
            self.outbox.list_patients(key, cohort.names)
            self.outbox.store(key, passed)
        head = self.receipts.append(
            self._sent(key, passed, study, reservation), now=datetime.now(UTC)
        )
        if reservation is not None:
            self.ledger.settle(reservation)
        if self.settings.link is None:
            # A simulation's server shares the disk and keeps its last two checkpoints: it can't
            # come back and ask for an earlier round, as one from yesterday's backup can.
            self.outbox.forget(study.sha256, key.fold, before_round=key.round_number - 1)
        return seal(passed, head)

    def refuse(self, content: RecordDict, kind: str, code: RefusalCode) -> Error:
        """What leaves where a message isn't answered, once it has a receipt."""
        entry = Refused(asked=self._asked(content, kind), code=code)
        try:
            self.receipts.append(entry, now=datetime.now(UTC))
        except (OSError, RunFailed) as error:  # a code of the closed list leaves all the same
            logger.error("receipts: a refusal has none: %s", error)
        return pass_refusal(code)

    def _decoded(self, content: RecordDict, kind: str) -> Instruction:
        return decode_instruction(content, kind=kind, site=self.settings.name, verify=self.verify)

    def _asked(self, content: RecordDict, kind: str) -> Asked | None:
        """What a refused message asked for, as far as it can be read."""
        try:
            if kind == QUERY:
                return _question(decode_question(content))
            if kind not in (TRAIN, EVALUATE):
                return None
            instruction = decode_instruction(content, kind=kind)
            flat = instruction.weights
            return Asked(
                kind="train" if kind == TRAIN else "evaluate",
                study=instruction.study.sha256,
                fold=instruction.fold,
                round=instruction.round_number,
                # They may be no model's weights: as one array without a name.
                weights=weights_sha256(flat, Layout(("",), (flat.shape,))),
            )
        except (SiteRefusal, ValueError):
            return None

    def _check_records(self, known: Head | None) -> None:
        """Refuse to go on from an old copy: what the server remembers must be in the receipts."""
        if known is not None and not self.receipts.knows(known):
            logger.error(
                "receipts: the server says it has seen one (%s) that isn't there. Either the state "
                "folder is an old copy, or the server is wrong: compare with the journal's last "
                "head. If it is old, put the newest back, or run `fedward privacy ledger restore "
                "SITE.yaml --head %s`, which charges every approved study whole.",
                known,
                known,
            )
            raise SiteRefusal(RefusalCode.RECORDS_DAMAGED)

    def _reserve(self, key: Key, study: Study, cohort: Cohort) -> Reservation | None:
        """The round, paid for; None where nothing is trained, or without privacy."""
        if key.kind != TRAIN or not study.privacy.enabled:
            return None
        plan = self._plan(study)
        _check_engine(study.canonical(), cohort.inputs.shape, self.settings.device)
        secret = _seeded(key, study) if self._is_seeded else RoundSecret.from_os()
        request = Request(
            study=key.study_sha256,
            fold=key.fold,
            round_number=key.round_number,
            weights_sha256=key.weights_sha256,
            data_fingerprint=key.data_fingerprint,
            unit=plan.unit,
            randomness=secret.randomness,
            mechanism=plan.patient_history(1)[0],
            patients=cohort.train_names(key.fold),
        )
        return self.ledger.reserve(
            request,
            cap=lowered(self.settings.budget, study.privacy.lifetime_epsilon),
            secret=secret.reveal,
            receipts=self.receipts,
            begin_with=rounds_to_begin_with(study, self.settings),
            # With folds, who is tested in this one is trained on in the others.
            begin_for=() if study.data.folds is None else cohort.names.values(),
        )

    def _reserved(self, key: Key, study: Study) -> Reservation | None:
        """What paid for a reply that is stored, whatever data and settings have become since."""
        if key.kind != TRAIN or not study.privacy.enabled:
            return None
        round_ = Round(
            fold=key.fold,
            round_number=key.round_number,
            weights_sha256=key.weights_sha256,
            data_fingerprint=key.data_fingerprint,
        )
        return self.ledger.find(study.sha256, round_, receipts=self.receipts)

    def _work(
        self,
        key: Key,
        instruction: Instruction,
        cohort: Cohort,
        model: nn.Module,
        reservation: Reservation | None,
    ) -> Reply:
        """Score the incoming weights on the site's test patients, then train on the others."""
        study, device = instruction.study, find_device(self.settings.device)
        unpack(instruction.weights, model)
        module = trained_part(model)
        metrics = self._released_metrics(module, cohort, study, key.fold, device)
        if key.kind == EVALUATE:
            return Reply(None, metrics)
        secret = self._secret(key, study, reservation)
        try:
            train_round(
                module,
                cohort.examples(key.fold),
                study,
                declared=self.settings.declared(study.privacy.unit),
                secret=secret,
                device=device,
            )
            leaving = _rounded(pack(model), instruction, secret)
        finally:
            secret.erase()
        return Reply(leaving, metrics)

    def _released_metrics(
        self, module: nn.Module, cohort: Cohort, study: Study, fold: int, device: torch.device
    ) -> dict[str, float]:
        """The metrics that the site's policy lets out; without any, no test image is looked at.

        They are exact, so the training's differential privacy does not cover them.
        """
        rows = cohort.test_rows(fold)
        wanted = self.settings.release.metrics
        if not wanted or not len(rows):
            return {}
        try:
            predictions = predict_cohort(module, cohort, rows, study=study, device=device)
        except BadInput:  # finite weights whose outputs overflow: there is no metric to give
            return {}
        return score(predictions, wanted=wanted)

    def _secret(self, key: Key, study: Study, reservation: Reservation | None) -> RoundSecret:
        """The round's 32 bytes: the ledger's, or the seed's where nothing is promised."""
        if reservation is None or self._is_seeded:
            return _seeded(key, study)
        if reservation.secret is None:  # settled, yet its reply is gone: never draw noise anew
            logger.error("outbox: the reply of a settled round is gone and can't be made again")
            raise SiteRefusal(RefusalCode.RECORDS_DAMAGED)
        return RoundSecret(reservation.secret, randomness=Randomness.SECRET)

    def _sent(
        self, key: Key, passed: Passed, study: Study, reservation: Reservation | None
    ) -> Sent:
        """The receipt of a reply."""
        epsilon = None if reservation is None else self._epsilon(study)
        return Sent(
            asked=Asked(
                kind="train" if key.kind == TRAIN else "evaluate",
                study=key.study_sha256,
                fold=key.fold,
                round=key.round_number,
                weights=key.weights_sha256,
            ),
            sha256=passed.sha256,
            bytes=passed.n_bytes,
            arrays=tuple(
                SentArray(
                    name=array.name,
                    shape=array.shape,
                    dtype=array.dtype,
                    bytes=array.n_bytes,
                )
                for array in passed.arrays
            ),
            metrics=dict(passed.metrics),
            epsilon=None if epsilon is None else StatedEpsilon.of(epsilon),
            ledger=None if reservation is None else str(reservation.head),
        )

    def _epsilon(self, study: Study) -> Epsilon:
        """What all rounds of `study` so far, of all folds, have cost the worst-off patient."""
        plan, taken = self._plan(study), self.ledger.taken(study.sha256)
        return Epsilon(
            value=epsilon_spent(taken.history, delta=plan.delta),
            delta=plan.delta,
            unit=Unit.PATIENT if plan.unit is Unit.IMAGE else plan.unit,
            randomness=taken.randomness,
            trust_model=trust_model(self.settings.state),
        )

    def _state(self, content: RecordDict) -> RecordDict:
        """The signed statement on a study that the site took part in; its stored replies go."""
        question = decode_question(content, site=self.settings.name, verify=self.verify)
        self._check_records(question.known_head)
        self.ledger.verify(self.receipts.ledger_head)
        seen = {one.sha256: one for one in seen_studies(self.settings)}.get(question.study_sha256)
        if seen is None or seen.status is Status.WAITING:
            raise SiteRefusal(RefusalCode.NOT_APPROVED)
        study = seen.study()
        if not (question.fold == 0 or 1 <= question.fold <= (study.data.folds or 0)):
            raise SiteRefusal(RefusalCode.BAD_INSTRUCTION)
        passed = pass_statement(self._statement(study, question.fold), site=self.settings)
        statement = read_statement(decode_statement(passed.content))
        sent = Sent(
            asked=_question(question),
            sha256=passed.sha256,
            bytes=passed.n_bytes,
            arrays=(),
            metrics={},
            epsilon=statement.privacy,
            ledger=None,
        )
        self.receipts.append(sent, now=datetime.now(UTC))
        self.outbox.forget(question.study_sha256, question.fold)
        return passed.content

    def _statement(self, study: Study, fold: int) -> bytes:
        """A new one, or the last where it would say the same: asking again changes nothing."""
        cohort = open_cohort(self.settings, study, find_device(self.settings.device))
        earlier = self.outbox.earlier(study.sha256, fold)
        statement = make_statement(
            self.settings,
            study,
            fold=fold,
            rounds_joined=len({key.round_number for key in earlier if key.kind == TRAIN}),
            epsilon=self._epsilon(study) if study.privacy.enabled else None,
            receipts=self.receipts.head,
            patients=cohort.count,
            images=len(cohort.inputs),
            version=version("fedward"),
            key=self.keys.receipts,
        )
        path = make_private(state_folder(self.settings) / "statements") / f"{study.sha256}-{fold}"
        if path.is_file():
            kept = path.read_bytes()
            if (
                read_statement(kept).model_copy(update={"receipts": statement.receipts})
                == statement
            ):
                return kept
        signed = sign(statement, self.keys.receipts)
        write_private(path, [signed])
        return signed

    def _plan(self, study: Study) -> PrivacyPlan:
        """The plan of a study that was let in; none where no noise keeps what it asks for."""
        try:
            return privacy_plan(study, declared=self.settings.declared(study.privacy.unit))
        except BadInput as error:
            logger.warning("the study can't be planned: %s", error)
            raise SiteRefusal(RefusalCode.BAD_INSTRUCTION) from None

    @property
    def _is_seeded(self) -> bool:
        return self.settings.randomness == "seeded-for-testing"


def _rounded(
    weights: NDArray[np.float32], instruction: Instruction, secret: RoundSecret
) -> NDArray[np.float32]:
    """The new weights or, on a short wire, what is left of their difference; noised before."""
    wire = instruction.study.federation.wire
    with np.errstate(over="ignore"):
        leaving = weights if wire == "float32" else weights - instruction.weights
    if not np.isfinite(leaving).all():
        raise SiteRefusal(RefusalCode.DIVERGED)
    return short(leaving, wire, secret.stream("wire"))


def open_site(settings: SiteSettings) -> Site:
    """A site's records, made where they aren't there yet.

    Args:
        settings: site.yaml.

    Raises:
        BadInput: site.yaml names no state folder, or a key in it is not as it should be.
        LedgerDamaged, LedgerUnwritable: the ledger is none.
    """
    state = state_folder(settings)
    keys = open_keys(state)
    link, path = settings.link, state / RECEIPTS_CHAIN
    return Site(
        settings=settings,
        keys=keys,
        ledger=open_ledger(state, key=keys.ledger),
        outbox=open_outbox(state),
        # A simulated hospital has no business in the machine's journal.
        receipts=Receipts(path, keys.receipts, to_journal if link else lambda _head: None),
        verify=None if link is None else read_verify_key(link.coordinator),
    )


def _question(question: Question) -> Asked:
    return Asked(
        kind="statement",
        study=question.study_sha256,
        fold=question.fold,
        round=None,
        weights=None,
    )


def _seeded(key: Key, study: Study) -> RoundSecret:
    """Bytes that follow from the study's seed and all that the instruction says."""
    return RoundSecret.seeded(
        study.seed,
        study_hash=key.study_sha256,
        fold=key.fold,
        round_number=key.round_number,
        weights_sha256=key.weights_sha256,
        data_fingerprint=key.data_fingerprint,
    )


@functools.lru_cache(maxsize=8)
def _model(study_text: str) -> nn.Module:
    """One network a study, whose weights are set anew for each message."""
    return study_model(Study.model_validate_json(study_text))


@functools.lru_cache(maxsize=64)
def _check_engine(study_text: str, input_shape: tuple[int, ...], device: str) -> None:
    """The engine's self-check, once a process and study."""
    study = Study.model_validate_json(study_text)
    try:
        check_study_engine(study, input_shape=input_shape, device=find_device(device))
    except RunFailed as failure:
        logger.error("%s", failure)
        raise SiteRefusal(RefusalCode.ENGINE_UNSOUND) from None
