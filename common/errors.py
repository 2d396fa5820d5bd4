"""What can go wrong, by meaning; the command line turns each into one sentence and an exit code.

FedwardError
 ├─ BadInput          what a person wrote or pointed at is wrong: exit code 2
 │   └─ BadData       a data set that is not what its description says
 ├─ RunFailed         the study could not go on: exit code 1
 └─ SiteRefusal       a site will not do as asked; the server gets its code, never local text
"""

from __future__ import annotations

from enum import StrEnum


class FedwardError(Exception):
    """Base of every error that fedward raises on purpose."""


class BadInput(FedwardError):
    """Input that a person can mend; says what was expected, what came and what to do.

    The sentence may name files, keys and columns; never a pixel, a patient or a UID.
    """


class BadData(BadInput):
    """A data set that is not what its description says."""


class RunFailed(FedwardError):
    """The study could not go on; the sentence says why and how to resume."""


class RefusalCode(StrEnum):
    """Why a site did not answer with weights: a closed list, since it is all the server learns."""

    BAD_INSTRUCTION = "bad-instruction"
    BAD_WEIGHTS = "bad-weights"
    NO_TRAINING_PATIENTS = "no-training-patients"
    DATA_UNREADABLE = "data-unreadable"
    DIVERGED = "diverged"
    INTERNAL = "internal"
    NOT_APPROVED = "not-approved"
    WITHDRAWN = "withdrawn"
    PRIVACY_REQUIRED = "privacy-required"
    WEAK_UNIT = "weak-unit"
    MODEL_NOT_ALLOWED = "model-not-allowed"
    OVER_BUDGET = "over-budget"
    TOO_FEW_PATIENTS = "too-few-patients"
    TOO_MANY_STUDIES = "too-many-studies"
    TOO_LARGE = "too-large"
    ROUND_OUT_OF_ORDER = "round-out-of-order"
    ROUND_ASKED_AGAIN = "round-asked-again"
    BAD_SIGNATURE = "bad-signature"
    RECORDS_DAMAGED = "records-damaged"
    ENGINE_UNSOUND = "engine-unsound"
    NOT_DECLARED = "not-declared"


# What leaves the site for each code: fixed here, so no local text can ever ride along.
REFUSAL_SENTENCES: dict[RefusalCode, str] = {
    RefusalCode.BAD_INSTRUCTION: "The site could not accept the instruction as it was written.",
    RefusalCode.BAD_WEIGHTS: "The weights that came are not those of the study's model.",
    RefusalCode.NO_TRAINING_PATIENTS: "The site has no patient on the training side.",
    RefusalCode.DATA_UNREADABLE: "The site could not read its own data.",
    RefusalCode.DIVERGED: "Local training gave weights that are not finite.",
    RefusalCode.INTERNAL: "The site met an internal fault; its own log says where.",
    RefusalCode.NOT_APPROVED: "Nobody at the site has approved this study.",
    RefusalCode.WITHDRAWN: "The site has withdrawn from this study.",
    RefusalCode.PRIVACY_REQUIRED: "The site trains under differential privacy only.",
    RefusalCode.WEAK_UNIT: "The site asks for a stronger unit of privacy.",
    RefusalCode.MODEL_NOT_ALLOWED: "The site's policy doesn't allow this model.",
    RefusalCode.OVER_BUDGET: "The site's privacy budget doesn't allow this round.",
    RefusalCode.TOO_FEW_PATIENTS: "The site has too few patients for this study.",
    RefusalCode.TOO_MANY_STUDIES: "The site has met too many new studies today.",
    RefusalCode.TOO_LARGE: "The message is larger than the site allows.",
    RefusalCode.ROUND_OUT_OF_ORDER: "The site expects another round of this study.",
    RefusalCode.ROUND_ASKED_AGAIN: "The site has been asked this round with other weights.",
    RefusalCode.BAD_SIGNATURE: "The instruction isn't signed by the study's coordinator.",
    RefusalCode.RECORDS_DAMAGED: "The site's records need its engineer before it goes on.",
    RefusalCode.ENGINE_UNSOUND: "The site's self-check of the privacy engine failed.",
    RefusalCode.NOT_DECLARED: "The site has not declared how many patients or images it has.",
}


class SiteRefusal(FedwardError):
    """A site declines an instruction for a reason from the closed list."""

    def __init__(self, code: RefusalCode) -> None:
        super().__init__(REFUSAL_SENTENCES[code])
        self.code = code
