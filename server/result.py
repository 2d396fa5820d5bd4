"""What a coordinator knows at a study's end: result.json and a page, from histories and statements.

It has no images, so nothing is evaluated here: metrics are those that sites release, and each
site's epsilon is what the site itself has signed.
"""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.config import Study
from common.privacy.epsilon import Epsilon, Randomness
from common.privacy.not_covered import NOT_COVERED
from common.report.html import bullets, definitions, document, paragraphs, section, table
from common.report.text import Cell, Table
from common.statement import Statement, read_statement
from server.checkpoint import read_history

_PACKAGES = ("fedward", "flwr", "grpcio", "numpy", "torch")
_NOT_RUN = (
    "an evaluation: the coordinator has no images; `fedward evaluate` does it wherever there are",
    "a comparison with other models",
)
_UNKNOWN_KEY = "signed by a key that is not registered"


@dataclass(frozen=True, slots=True)
class SiteResult:
    """One site's part."""

    rounds_joined: tuple[int, ...]  # of each fold
    statement: Statement | None  # the last one, if it counts all that the site has joined
    verified: bool  # signed by the key that is registered for the site
    metrics: Mapping[str, float]  # the last that it released
    left_out: Mapping[str, int]  # rounds without it, by reason

    @property
    def epsilon(self) -> Epsilon | None:
        """What it has stated."""
        privacy = self.statement.privacy if self.statement else None
        return privacy.bound() if privacy else None

    @property
    def promise(self) -> str:
        """What it has stated, with all that it means."""
        if self.statement is None:
            return "no statement: nobody knows what its part has cost its patients"
        epsilon = self.epsilon
        said = "trained without differential privacy" if epsilon is None else str(epsilon)
        return said if self.verified else f"{said}; {_UNKNOWN_KEY}"

    def as_json(self) -> dict[str, Any]:
        """Its part of `result.json`."""
        epsilon, said = self.epsilon, self.statement
        joined = self.rounds_joined
        return {
            "epsilon": epsilon.value if epsilon else None,
            "delta": epsilon.delta if epsilon else None,
            "statement": epsilon.as_json() if epsilon else None,
            "stated": said is not None,
            "verified": self.verified,
            "rounds_joined": joined[0] if len(joined) == 1 else list(joined),
            "left_out": dict(self.left_out),
            "patients": said.patients if said else None,
            "images": said.images if said else None,
            "metrics": dict(self.metrics),
        }


@dataclass(frozen=True, slots=True)
class Result:
    """A study that ended."""

    study: Study
    engine: str  # what carried its messages
    histories: tuple[Sequence[Mapping[str, Any]], ...]  # one a fold
    sites: Mapping[str, SiteResult]
    refused: Mapping[tuple[str, str], int]  # calls, by site and reason, since the server began
    late: Mapping[str, int]  # calls about what was withdrawn, by site
    seconds: float

    @property
    def joined(self) -> dict[str, SiteResult]:
        """The sites that have any part in the model."""
        return {name: site for name, site in self.sites.items() if any(site.rounds_joined)}

    @property
    def combined(self) -> Epsilon | None:
        """What holds at every site; None where one has stated none, or something of another kind.

        It is no better than the weakest in any respect: the largest epsilon and delta, and seeded
        where a single site is.
        """
        found = [site.epsilon for site in self.joined.values()]
        stated = [epsilon for epsilon in found if epsilon is not None]
        kinds = {(epsilon.unit, epsilon.trust_model) for epsilon in stated}
        if len(stated) < len(found) or len(kinds) != 1:
            return None
        ((unit, trust_model),) = kinds
        seeded = any(epsilon.randomness is Randomness.SEEDED for epsilon in stated)
        return Epsilon(
            value=max(epsilon.value for epsilon in stated),
            delta=max(epsilon.delta for epsilon in stated),
            unit=unit,
            randomness=Randomness.SEEDED if seeded else Randomness.SECRET,
            trust_model=trust_model,
        )

    @property
    def weights_sha256(self) -> str:
        """The one model's hash, or one over the folds' in order, as a simulation gives it."""
        hashes = [history[-1]["weights_sha256"] for history in self.histories]
        if len(hashes) == 1:
            return str(hashes[0])
        return hashlib.sha256(" ".join(hashes).encode()).hexdigest()

    def privacy(self) -> dict[str, Any]:
        """What the sites promise; the coordinator itself promises nothing."""
        if not self.study.privacy.enabled:
            return {"enabled": False, "sentence": "none: trained without differential privacy"}
        combined, joined = self.combined, self.joined
        stated = {name: one for name, one in joined.items() if one.statement is not None}
        unverified = [name for name, one in stated.items() if not one.verified]
        facts = {
            "enabled": True,
            "without_statement": sorted(joined.keys() - stated.keys()),
            "without_privacy": [name for name, one in stated.items() if one.epsilon is None],
            "unverified": unverified,
            "not_covered": sorted({name for one in joined.values() for name in _not_covered(one)}),
        }
        whose = "as the sites' own signed statements say; the coordinator promises nothing"
        if combined is None:
            each = "; ".join(f"{name}: {one.promise}" for name, one in joined.items())
            return {**facts, "sentence": f"no bound that holds at every site ({each}), {whose}"}
        keys = f"; {_UNKNOWN_KEY}: {', '.join(unverified)}" if unverified else ""
        return {**facts, **combined.as_json(), "sentence": f"at most {combined}, {whose}{keys}"}

    def as_json(self) -> dict[str, Any]:
        """The content of `result.json`."""
        study = self.study
        lines = [line for history in self.histories for line in history]
        return {
            "format": 1,
            "study": study.name,
            "study_sha256": study.sha256,
            "model": study.model.name,
            "engine": self.engine,
            "rounds": study.training.rounds,
            "folds": study.data.folds,
            "seed": study.seed,
            "weights_sha256": self.weights_sha256,
            "seconds": round(self.seconds, 3),
            "bytes_up": sum(line["bytes_up"] for line in lines),
            "bytes_down": sum(line["bytes_down"] for line in lines),
            "versions": _versions(),
            "device": "the sites' own",
            "privacy": self.privacy(),
            "sites": {name: site.as_json() for name, site in self.sites.items()},
            "refused_calls": [
                {"site": site, "reason": reason, "calls": count}
                for (site, reason), count in sorted(self.refused.items())
            ],
            "late_calls": dict(sorted(self.late.items())),
            "evaluation": {},
            "not_run": list(_NOT_RUN),
        }

    def page(self) -> str:
        """The same as one page of HTML."""
        study, facts = self.study, self.as_json()
        header = (
            '<header>\n<p class="kind">fedward federation report</p>\n'
            f"<h1>{escape(study.name)}: {escape(study.model.name)}</h1>\n"
            f"<p>{study.training.rounds} rounds with {len(self.sites)} sites.</p>\n</header>\n"
        )
        shown = ("study_sha256", "weights_sha256", "engine", "seed", "seconds", "bytes_up")
        made = {name: str(facts[name]) for name in (*shown, "bytes_down")} | facts["versions"]
        sections = (
            section("Sites", self._sites()),
            section("Rounds without a site", self._left_out()),
            section("Calls that were refused, or came too late", self._refused()),
            section("Privacy", self._privacy()),
            section("What was not run", bullets(_NOT_RUN)),
            section("How this was made", definitions(made.items())),
        )
        return document(f"{study.name}: federation report", header, sections)

    def _sites(self) -> str:
        names = sorted({name for site in self.sites.values() for name in site.metrics})
        rows = tuple(
            (
                name,
                (
                    Cell(", ".join(map(str, site.rounds_joined))),
                    *map(Cell, _counts(site)),
                    *(Cell(f"{site.metrics[m]:.3f}" if m in site.metrics else "") for m in names),
                ),
            )
            for name, site in self.sites.items()
        )
        header = ("", "rounds joined", "patients", "images", *names)
        caption = "What each site brought; metrics are those that it released last"
        return table(Table(header, rows, ()), caption)

    def _left_out(self) -> str:
        rows = tuple(
            (name, (Cell(reason), Cell(str(count))))
            for name, site in self.sites.items()
            for reason, count in sorted(site.left_out.items())
        )
        if not rows:
            return paragraphs(["None: every site took part in every round."])
        return table(Table(("", "why", "rounds"), rows, ()), "Rounds without a site, and why")

    def _refused(self) -> str:
        rows = tuple(
            (site, (Cell(reason), Cell(str(count))))
            for (site, reason), count in sorted(self.refused.items())
        )
        rows += tuple(
            (site, (Cell("too late, or broken off: dropped, and nobody's fault"), Cell(str(count))))
            for site, count in sorted(self.late.items())
        )
        if not rows:
            return ""
        return table(Table(("", "why", "calls"), rows, ()), "Since the server was last started")

    def _privacy(self) -> str:
        said = self.privacy()
        missing = said.get("not_covered", [])
        beyond = "<h3>Not covered</h3>\n" + bullets(missing) if missing else ""
        each = definitions((name, site.promise) for name, site in self.sites.items())
        return paragraphs([said["sentence"]]) + each + beyond


def result_of(
    study: Study,
    legs: Mapping[int, Path],
    *,
    engine: str,
    receipts_keys: Mapping[str, str],
    refused: Mapping[tuple[str, str], int],
    late: Mapping[str, int],
    seconds: float,
) -> Result:
    """Read what a study has left in its folders.

    Args:
        study: the study.
        legs: the folder of each fold, in order.
        engine: what carried its messages.
        receipts_keys: those that are registered, by site (hexadecimal).
        refused: calls that the link refused, by site and reason.
        late: calls that came too late, by site.
        seconds: how long the server ran.
    """
    histories = tuple(read_history(folder / "history.jsonl") for folder in legs.values())
    lines = [line for history in histories for line in history]
    released = [line["metrics"] for line in reversed(lines)]
    names = {name for line in lines for name in (*line.get("joined", ()), *line["left_out"])}
    sites = {}
    for name in sorted(names):
        joined = tuple(
            sum(name in line.get("joined", ()) for line in history) for history in histories
        )
        statement = _last_statement(tuple(legs.values()), joined, name)
        sites[name] = SiteResult(
            rounds_joined=joined,
            statement=statement,
            verified=statement is not None and statement.key == receipts_keys.get(name),
            metrics=next((found[name] for found in released if name in found), {}),
            left_out=Counter(line["left_out"][name] for line in lines if name in line["left_out"]),
        )
    return Result(study, engine, histories, sites, dict(refused), dict(late), seconds)


def _last_statement(legs: Sequence[Path], joined: Sequence[int], site: str) -> Statement | None:
    """The one that counts every fold which the site has joined; an older one would say too little.

    Args:
        legs: the folder of each fold.
        joined: the rounds of each that the site has joined.
        site: its name.
    """
    for folder, rounds in reversed(list(zip(legs, joined, strict=True))):
        path = folder / "sites" / site / "statement.json"
        if path.is_file():
            return read_statement(path.read_bytes())  # checked before it was kept
        if rounds:
            return None
    return None


def _counts(site: SiteResult) -> tuple[str, str]:
    """Its patients and images, as far as it releases them."""
    if site.statement is None:
        return "no statement", "no statement"
    patients, images = (
        "not released" if count is None else str(count)
        for count in (site.statement.patients, site.statement.images)
    )
    return patients, images


def _not_covered(site: SiteResult) -> tuple[str, ...]:
    return (
        ()
        if site.statement is None
        else tuple(NOT_COVERED[name] for name in site.statement.not_covered)
    )


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}
