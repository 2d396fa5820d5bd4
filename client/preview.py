"""What would leave a site for one study: messages of no content, taken through the gate itself."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.gate import Passed, PassedArray, pass_reply, pass_statement, seal
from client.policy import most_bytes
from client.statement import make_statement, sign
from common.chain import Head
from common.config import SiteSettings, Study
from common.errors import REFUSAL_SENTENCES
from common.messages import Reply, payload_bytes
from common.models import Layout
from common.privacy.epsilon import Epsilon

_HEAD = Head(1, "0" * 64)


@dataclass(frozen=True, slots=True)
class Leaving:
    """One kind of message that would leave."""

    when: str
    times: int  # in the whole study
    arrays: tuple[PassedArray, ...]
    metrics: tuple[str, ...]  # exact ones
    also: tuple[str, ...]
    n_bytes: int  # each time, without what the transport adds; a statement's vary a little

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        arrays = [
            {"name": array.name, "shape": list(array.shape), "dtype": array.dtype}
            for array in self.arrays
        ]
        return {
            "when": self.when,
            "times": self.times,
            "arrays": arrays,
            "metrics": list(self.metrics),
            "also": list(self.also),
            "bytes": self.n_bytes,
        }

    def text(self) -> str:
        """One paragraph."""
        arrays = [f"{one.name} ({math.prod(one.shape):,} {one.dtype})" for one in self.arrays]
        what = ", ".join([*arrays, *(f"exact {name}" for name in self.metrics), *self.also])
        often = "once" if self.times == 1 else f"{self.times} times"
        return f"{self.when}, {often}: {what}; {self.n_bytes:,} bytes"


@dataclass(frozen=True, slots=True)
class Preview:
    """All that would leave for a study."""

    study: str  # its name
    study_sha256: str
    messages: tuple[Leaving, ...]

    @property
    def n_bytes(self) -> int:
        """Of all messages together."""
        return sum(message.times * message.n_bytes for message in self.messages)

    def as_json(self) -> dict[str, Any]:
        """Plain values, with every refusal that may leave in a message's place."""
        return {
            "study": self.study,
            "study_sha256": self.study_sha256,
            "messages": [message.as_json() for message in self.messages],
            "bytes": self.n_bytes,
            "refusals": {code.value: said for code, said in REFUSAL_SENTENCES.items()},
        }

    def text(self) -> str:
        """A paragraph for each kind of message."""
        lines = [f"What would leave for study {self.study}, and nothing else:"]
        lines += [_paragraph(message.text()) for message in self.messages]
        lines.append(f"  in place of any: one of {len(REFUSAL_SENTENCES)} fixed refusals")
        return "\n".join([*lines, f"  in all: {self.n_bytes:,} bytes"])


def preview(
    study: Study,
    site: SiteSettings,
    layout: Layout,
    *,
    epsilon: Epsilon | None,
    key: Ed25519PrivateKey,
) -> Preview:
    """What would leave for a study that ends as planned.

    Args:
        study: that the site may be asked to join.
        site: its release decides.
        layout: of the weights that the study trains.
        epsilon: what the study is to cost; None without privacy.
        key: signs the statement; any key gives one of the same size.

    Raises:
        GateFailure: a reply is larger than the site allows.
    """
    metrics: Mapping[str, float] = dict.fromkeys(site.release.metrics, 0.0)

    def passed(reply: Reply, of: Layout | None) -> Passed:
        released, most = site.release.metrics, most_bytes(site)
        wire = study.federation.wire
        return pass_reply(reply, layout=of, released=released, max_bytes=most, wire=wire)

    def leaving(when: str, times: int, reply: Passed) -> Leaving:
        sealed = payload_bytes(seal(reply, _HEAD))
        also = ("the head of its receipts (their number and a hash)",)
        return Leaving(when, times, reply.arrays, tuple(reply.metrics), also, sealed)

    statement = make_statement(
        site,
        study,
        fold=0,
        rounds_joined=study.training.rounds,
        epsilon=epsilon,
        receipts=_HEAD,
        patients=site.declared_patients or 0,  # only how many digits they have matters
        images=site.declared_images or 0,
        version=version("fedward"),
        key=key,
    )
    signed = pass_statement(sign(statement, key), site=site)
    says = ", ".join(statement.model_dump(exclude_none=True))
    ending = (f"a signed statement ({says})",)
    trained = passed(Reply(np.zeros(layout.size, dtype=np.float32), metrics), layout)
    models = study.data.folds or 1
    messages = (
        leaving("each round", models * study.training.rounds, trained),
        leaving("after the last round", models, passed(Reply(None, metrics), None)),
        Leaving("at the end", models, (), (), ending, signed.n_bytes),
    )
    return Preview(study.name, study.sha256, messages)


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 100, initial_indent=" " * 2, subsequent_indent=" " * 6)
