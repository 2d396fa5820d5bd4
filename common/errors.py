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


# What leaves the site for each code: fixed here, so no local text can ever ride along.
REFUSAL_SENTENCES: dict[RefusalCode, str] = {
    RefusalCode.BAD_INSTRUCTION: "The site could not accept the instruction as it was written.",
    RefusalCode.BAD_WEIGHTS: "The weights that came are not those of the study's model.",
    RefusalCode.NO_TRAINING_PATIENTS: "The site has no patient on the training side.",
    RefusalCode.DATA_UNREADABLE: "The site could not read its own data.",
    RefusalCode.DIVERGED: "Local training gave weights that are not finite.",
    RefusalCode.INTERNAL: "The site met an internal fault; its own log says where.",
}


class SiteRefusal(FedwardError):
    """A site declines an instruction for a reason from the closed list."""

    def __init__(self, code: RefusalCode) -> None:
        super().__init__(REFUSAL_SENTENCES[code])
        self.code = code
