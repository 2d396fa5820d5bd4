"""`fedward site check`: is a site ready to join? It looks, says what to do, and sends no data.

Nothing is made or changed, but for a file in the state folder that is removed at once. What is
found stays at the site.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
import stat
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client import ledger_commands
from client.approval import SeenStudy, Status, seen_studies
from client.budget import lasting
from client.check import Checked, check
from client.check.found import counted, keeps, printable
from client.keys import FOLDER, RECEIPTS_CHAIN, SiteKeys, open_keys
from client.ledger import FILE, Ledger, lowered
from client.outbox import MOST_BYTES
from client.policy import check_cohort, check_size
from client.receipts import Receipts
from client.receipts_table import verify_receipts
from client.state import lock_state, trust_model, write_private
from client.steward import show
from common.config import SiteSettings, Study, load_site, parse
from common.data.readers import build_reader, patient_name
from common.errors import BadInput, RunFailed, SiteRefusal
from common.privacy.epsilon import Epsilon, Randomness, Unit
from common.signing import read_verify_key

if TYPE_CHECKING:
    from client.preview import Preview

_LITTLE_BYTES, _LEAST_BYTES = 10**9, 10**8  # free on the state folder's disk
_CLOCK_S = 2.0  # by which clocks and file systems may differ
_ANY_STUDY = {"classes": ["a", "b"], "data": {"kind": "manifest"}}  # for the engine alone


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    ATTENTION = "attention"
    MEND = "must be mended"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    about: str  # settings, policy, data, state, keys, link, clock, device, engine ...
    sentence: str  # what there is and, unless it is ok, what to do


@dataclass(frozen=True, slots=True)
class SiteChecked:
    """What a check found; stays at the site."""

    site: str
    findings: tuple[Finding, ...]
    preview: Preview | None  # None: no study was named, or it can't be run here

    @property
    def mend(self) -> bool:
        """Whether something must be mended."""
        return any(one.level is Level.MEND for one in self.findings)

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "site": self.site,
            "to_mend": self.mend,
            "findings": [asdict(one) for one in self.findings],
            "preview": None if self.preview is None else self.preview.as_json(),
        }

    def text(self) -> str:
        """A paragraph for each finding, the preview, and the verdict."""
        lines = [_paragraph(one) for one in self.findings]
        if self.preview is not None:
            lines += ["", self.preview.text()]
        levels = [one.level for one in self.findings]
        mend, look = levels.count(Level.MEND), levels.count(Level.ATTENTION)
        verdict = f"{counted(mend, 'thing')} must be mended" if mend else "Nothing must be mended"
        lines += ["", f"{verdict}; {look} for your attention. Nothing was changed, no data sent."]
        return printable("\n".join(lines))


def check_site(
    path: Path,
    study: Study | None,
    *,
    on_file: Callable[[int, int], None] = lambda _done, _all: None,
    clock_s: Callable[[], float] = time.time,
    steady_s: Callable[[], float] = time.monotonic,
) -> SiteChecked:
    """Look at all that a site needs to take part, and at what would leave.

    Args:
        path: of its site.yaml.
        study: that it may be asked to join, if one is known.
        on_file: told how many of the data's files are done, and of how many.
        clock_s: the time since the epoch, in seconds.
        steady_s: seconds of a clock that nobody sets.

    Raises:
        BadInput: site.yaml can't be read. Whatever else is wrong becomes a finding.
    """
    site = load_site(path)
    begun = clock_s(), steady_s()
    findings = [*_settings(site), *_policy(site), *_data(path, site, on_file)]
    findings += _state(site)
    state = site.state if site.state is not None and site.state.is_dir() else None
    keys = None
    if state is None or os.access(state, os.R_OK | os.W_OK | os.X_OK):
        keys, found = _keys(state)
        findings += [found, *_ledger(site, state, keys), *_receipts(site, state, keys)]
    findings += _link(site, keys)
    findings += _clock(state, begun, clock_s, steady_s)
    findings += _device(site)
    findings += _engine(site, study)
    preview = None
    if study is not None:
        preview, more = _study(study, site, state, keys)
        findings += more
    return SiteChecked(site.name, tuple(findings), preview)


def _settings(site: SiteSettings) -> Iterator[Finding]:
    if site.declared_patients is None:
        yield _mend(
            "settings",
            "`declared_patients` is missing in site.yaml, and privacy needs it: add the number of "
            "patients, rounded, since it is public.",
        )
    else:
        yield _ok(
            "settings",
            f"site {site.name} declares {counted(site.declared_patients, 'patient')}, in public, "
            f"and leaves out {counted(len(site.exclude), 'patient')} in `exclude`.",
        )
    if site.policy.unit == "image" and site.declared_images is None:
        yield _mend(
            "settings",
            "`declared_images` is missing in site.yaml, and `policy.unit` lets studies hide single "
            "images, which needs it: add the number of images, rounded, since it is public.",
        )
    if site.randomness != "secret":
        yield _attention(
            "settings",
            f"`randomness` is {site.randomness}: nothing that is trained so is private. Remove the "
            "key from site.yaml before real patients' images are used.",
        )


def _policy(site: SiteSettings) -> Iterator[Finding]:
    """What the site agrees to, in words."""
    policy, release = site.policy, site.release
    if policy.privacy == "required":
        yield _ok(
            "policy",
            f"trains only under differential privacy, of the unit {policy.unit} or better"
            + (
                f"; {counted(len(policy.allow_without_privacy), 'study', 'studies')} may do without"
                if policy.allow_without_privacy
                else ""
            )
            + ".",
        )
    else:
        yield _attention(
            "policy",
            "also trains without privacy: `policy.privacy` is optional. Unless that is meant, "
            "remove it.",
        )
    if policy.unit == "image":
        yield _attention(
            "policy",
            "accepts privacy of single images, which hides a patient with several far less. Unless "
            "that is meant, remove `policy.unit`.",
        )
    if policy.approval == "manual":
        yield _ok("policy", "a study trains once `fedward site approve` has named its hash.")
    else:
        yield _attention(
            "policy",
            "every study that keeps to the policy trains without anybody's approval: "
            "`policy.approval` is automatic. Unless that is meant, remove it.",
        )
    if release.metrics or release.counts:
        exact = [*release.metrics, *["numbers of patients and images"] * release.counts]
        yield _attention(
            "policy",
            f"besides weights these leave, exact, so no noise covers them: {', '.join(exact)}. "
            "Unless that is meant, remove `release`.",
        )
    else:
        yield _ok("policy", "besides weights nothing about patients leaves: no metric, no count.")
    models = "any model" if policy.models is None else ", ".join(policy.models)
    yield _ok(
        "policy",
        f"at least {counted(policy.min_patients, 'patient')}; {models or 'no model'}; messages up "
        f"to {policy.max_message_mb:g} MB; at most {policy.studies_per_day} new studies a day.",
    )


def _data(path: Path, site: SiteSettings, on_file: Callable[[int, int], None]) -> Iterator[Finding]:
    try:
        checked = check(path, on_file=on_file)
    except BadInput as error:
        yield _mend("data", str(error))
        return
    wrong = _wrong(checked)
    if checked.kind == "folder":
        yield _mend(
            "data",
            "`data` is a folder of files that nothing describes: draft a table with `fedward data "
            "manifest DIR`, fill in its labels, and name it in site.yaml.",
        )
    elif wrong:
        yield _mend("data", f"{wrong}; `fedward data check SITE.yaml` names them.")
    else:
        classes = [f"{name} ({images})" for name, images in checked.images_by_class.items()]
        whose = "exam" if checked.kind == "mrnet" else "patient"
        yield _ok(
            "data",
            f"{counted(checked.files, 'file')}, {counted(checked.patients or 0, whose)}, images by "
            f"class: {', '.join(classes)}. `fedward data check SITE.yaml` says more.",
        )
    if checked.kind != "folder":
        yield from _enough(checked.patients or 0, site)


def _wrong(checked: Checked) -> str:
    """What `data check` would have mended, counted."""
    identifying = sum(one.finding.level == "mend" for one in checked.identity)
    counts = {
        "that can't be read": len(checked.unreadable),
        "that the format's reader refuses": len(checked.refused),
        "that contradict one another": len(checked.contradictory),
        "of a kind that tells, or may tell, who a patient is": identifying,
    }
    return ", ".join(f"{counted(n, 'thing')} {what}" for what, n in counts.items() if n)


def _enough(patients: int, site: SiteSettings) -> Iterator[Finding]:
    try:
        check_cohort(patients, site)
    except SiteRefusal:
        yield _mend(
            "data",
            f"the data have {counted(patients, 'patient')}, fewer than `policy.min_patients` "
            f"({site.policy.min_patients}) or far fewer than `declared_patients` "
            f"({site.declared_patients}): nothing would be trained. Mend the numbers or the data.",
        )


def _state(site: SiteSettings) -> Iterator[Finding]:
    state = site.state
    if state is None:
        yield _mend(
            "state",
            "`state` is missing in site.yaml: name a folder on a disk that is backed up.",
        )
        return
    if not state.is_dir():
        above = next((folder for folder in state.parents if folder.exists()), state)
        if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
            yield _mend("state", f"{state} can't be made: let this user write in {above}.")
        else:
            yield _ok("state", f"{state} is made, for this user alone, when it is first needed.")
        return
    about = state.stat()
    mode = stat.S_IMODE(about.st_mode)
    if about.st_uid != os.geteuid():
        yield _mend(
            "state", f"{state} belongs to another user: run this as the one whom the site runs as."
        )
    elif mode & 0o022:
        yield _mend("state", f"others may write in {state}: run chmod 700 on it.")
    elif mode & 0o055:
        yield _attention("state", f"others may look into {state}: run chmod 700 on it.")
    probe = state / ".site-check"
    try:
        write_private(probe, [b"fedward"])
        probe.unlink()
    except OSError as error:
        yield _mend(
            "state",
            f"{state} can't be written ({error.strerror}): make room on its disk, or let this user "
            "write there.",
        )
        return
    yield _space(state)
    if (state / "lock").is_file():
        try:
            with lock_state(state):
                pass
        except BadInput:
            yield _attention(
                "state", "the site is at work there just now: stop it before you mend anything."
            )


def _space(state: Path) -> Finding:
    free = shutil.disk_usage(state).free
    said = f"{state} can be written; {_size(free)} are free on its disk"
    if free < _LEAST_BYTES:
        return _mend("state", f"{said}: make room, or every message is refused.")
    if free < _LITTLE_BYTES:
        return _attention("state", f"{said}, which is little: each reply is kept there.")
    return _ok("state", f"{said}.")


def _keys(state: Path | None) -> tuple[SiteKeys | None, Finding]:
    """The keys where they have been made: this makes none."""
    folder = None if state is None else state / FOLDER
    is_new = folder is None or not (folder.is_dir() and any(folder.iterdir()))
    if state is None or (is_new and not (state / RECEIPTS_CHAIN).exists()):
        return None, _attention(
            "keys",
            "there are none yet: they are made when the site first runs. Back up the state folder "
            "then, encrypted.",
        )
    try:
        keys = open_keys(state)
    except BadInput as error:
        return None, _mend("keys", str(error))
    return keys, _ok("keys", "all four are there, for this user alone; a backup must have them.")


def _link(site: SiteSettings, keys: SiteKeys | None) -> Iterator[Finding]:
    if site.link is None:
        yield _attention(
            "link",
            "`link` is missing in site.yaml: `fedward site run` needs the server's address and the "
            "files that the coordinator sends.",
        )
        return
    try:
        read_verify_key(site.link.coordinator)
    except BadInput as error:
        yield _mend("link", str(error))
        return
    yield _ok(
        "link",
        f"messages come from {site.link.server} alone, each signed by the coordinator's key.",
    )
    if keys is not None and site.state is not None:
        from client.link_check import look  # gRPC and Flower: slow to import

        for looked in look(site.link, keys.node, state=site.state):
            level = Level.MEND if looked.mend else Level.ATTENTION if looked.attention else Level.OK
            yield Finding(level, "link", looked.sentence)


def _clock(
    state: Path | None,
    begun: tuple[float, float],
    clock_s: Callable[[], float],
    steady_s: Callable[[], float],
) -> Iterator[Finding]:
    """What the machine itself knows of its clock; the network isn't asked."""
    now_s = clock_s()
    newest_s = max([Path(__file__).stat().st_mtime, *_times(state)])
    jumped_s = (now_s - begun[0]) - (steady_s() - begun[1])
    set_it = "let NTP set it: certificates and signed calls depend on it"
    if newest_s > now_s + _CLOCK_S:
        yield _attention(
            "clock",
            f"it says {_when(now_s)}, but a file here is of {_when(newest_s)}: the clock, or the "
            f"file server's, is or was wrong; {set_it}.",
        )
    elif abs(jumped_s) > _CLOCK_S:
        yield _attention("clock", f"it was set by {jumped_s:+.0f} s during this check; {set_it}.")
    else:
        yield _ok("clock", f"it says {_when(now_s)}, and no file here is newer.")


def _times(state: Path | None) -> Iterator[float]:
    """When the site's files were written, in seconds since the epoch."""
    for path in [] if state is None else state.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # of a site at work
            yield path.stat().st_mtime


def _device(site: SiteSettings) -> Iterator[Finding]:
    from common.compute import find_device  # torch: seconds

    try:
        device = find_device(site.device)
    except BadInput as error:
        yield _mend("device", str(error))
        return
    yield _ok("device", f"trains on {device}, with one thread of the processor.")


def _engine(site: SiteSettings, study: Study | None) -> Iterator[Finding]:
    """The private engine beside a plain loop, on generated data."""
    if study is not None and not study.privacy.enabled:
        return
    tried = parse(Study, _ANY_STUDY, where="site check") if study is None else study
    try:
        _try_engine(tried, site.device)
    except (BadInput, RunFailed) as error:
        yield _mend("engine", str(error))
        return
    yield _ok(
        "engine",
        f"{tried.privacy.engine} clips {tried.model.name} as a plain loop does, on generated data.",
    )


def _try_engine(study: Study, device: str) -> None:
    from client.training import check_study_engine
    from common.compute import find_device, settle
    from common.data.preprocessing import Preprocessing
    from common.models import feature_shape, frozen_encoder, study_model

    settle()
    data, model = study.data, study_model(study)
    seen = Preprocessing(data.image_size_px, data.intensity, slices=data.slices)
    shape = seen.shape(data.planes) if frozen_encoder(model) is None else feature_shape(model)
    check_study_engine(study, input_shape=shape, device=find_device(device))


def _ledger(site: SiteSettings, state: Path | None, keys: SiteKeys | None) -> Iterator[Finding]:
    unspent = _ok("ledger", f"nothing is spent yet of the budget: {_cap(site)}.")
    is_there = state is not None and (state / FILE).exists()
    if state is None or (keys is None and not is_there):
        yield unspent
        return
    if keys is None:
        yield _mend("ledger", "it can't be read without its key: mend the keys first.")
        return
    try:
        remembered = Receipts(state / RECEIPTS_CHAIN, keys.receipts).ledger_head
        if remembered is None and not is_there:
            yield unspent
            return
        ledger_commands.verify(site, None)
        shown = ledger_commands.show(site)
    except (BadInput, RunFailed, OSError) as error:
        yield _mend("ledger", str(error))
        return
    spent, left = shown.spent.epsilon, shown.left
    if spent is None or left is None or not left.value:
        said = "more than can be counted" if spent is None else str(spent)
        yield _attention(
            "ledger",
            f"it is whole; spent: {said}. Nothing is left of the budget, {_cap(site)}, so every "
            "private round is refused: raise `budget.epsilon`, or take no further part.",
        )
        return
    less = float(ledger_commands.rounded_down(left))  # an epsilon is shown rounded up
    left = dataclasses.replace(left, value=less)
    yield _ok("ledger", f"it is whole; spent: {spent}; left: {left}.")
    if shown.spent.unsettled:
        yield _attention(
            "ledger",
            f"{counted(shown.spent.unsettled, 'round')} paid for without a reply: an interrupted "
            "one is run again, at no further cost, when the server asks for it.",
        )


def _ledger_file(state: Path | None, keys: SiteKeys | None) -> Ledger | None:
    """The ledger where there is one: this makes none."""
    if state is None or keys is None or not (state / FILE).exists():
        return None
    return Ledger(state / FILE, keys.ledger)


def _receipts(site: SiteSettings, state: Path | None, keys: SiteKeys | None) -> Iterator[Finding]:
    ledger, remembered, answered = _ledger_file(state, keys), None, False
    with contextlib.suppress(RunFailed):  # said of the ledger
        if ledger is not None:
            spent, remembered = ledger.spent(None, delta=site.budget.delta), ledger.receipts_head
            answered = spent.head.count > spent.unsettled
    if state is None or not (state / RECEIPTS_CHAIN).exists():
        if answered:
            yield _mend(
                "receipts",
                "they are gone, though the ledger knows of messages that have left: put them back "
                "from the backup; without one, see Receipts in client/README.md.",
            )
        else:
            yield _ok("receipts", "nothing has left this site yet.")
        return
    try:
        verified = verify_receipts(site, None if remembered is None else str(remembered))
    except OSError as error:
        yield _mend("receipts", f"they can't be read ({error.strerror}): run as their owner.")
        return
    if verified.problems:
        yield _mend(
            "receipts",
            f"{counted(len(verified.problems), 'problem')}, the first: {verified.problems[0]} See "
            "`fedward site receipts SITE.yaml --verify`, and Receipts in client/README.md.",
        )
    else:
        yield _ok(
            "receipts",
            f"{counted(verified.head.count, 'line')}, each as it was signed; compare the head with "
            f"one kept elsewhere: {verified.head}",
        )


def _study(
    study: Study, site: SiteSettings, state: Path | None, keys: SiteKeys | None
) -> tuple[Preview | None, list[Finding]]:
    """What the site says to a study, and what would leave."""
    seen = SeenStudy(
        status=Status.WAITING, first_seen_s=0.0, decided_s=None, text=study.canonical()
    )
    shown = show(seen, site)
    patients, findings = _cohort(study, site)
    findings += [_mend("study", f"it is refused: {one.sentence}") for one in shown.against]
    findings += _decision(study, site, state)
    if shown.planned is None:
        findings.append(_attention("study", "it trains without privacy."))
    elif not shown.against:
        findings += _affordable(study, site, patients, _ledger_file(state, keys), shown.planned)
    if shown.weights is None:
        return None, findings
    from client.preview import preview  # torch
    from common.models import study_model, trained_layout

    layout = trained_layout(study_model(study))
    try:
        check_size(layout, site)
    except SiteRefusal:
        too_large = (
            f"it is refused: its weights are {_size(4 * layout.size)}, and "
            f"`policy.max_message_mb` is {site.policy.max_message_mb:g}."
        )
        return None, [*findings, _mend("study", too_large)]
    key = Ed25519PrivateKey.generate() if keys is None else keys.receipts
    leaves = preview(study, site, layout, epsilon=shown.planned, key=key)
    return leaves, [*findings, *_room(leaves.n_bytes, state)]


def _cohort(study: Study, site: SiteSettings) -> tuple[set[str], list[Finding]]:
    """The site's patients as the study's reader names them, before an image is opened."""
    if site.data is None:  # said already
        return set(), []
    try:
        found = build_reader(study, site).find(site.data, study.classes)
    except BadInput as error:
        first, *others = str(error).splitlines()
        more = f" ... and {len(others)} more" if others else ""
        return set(), [_mend("study", f"its reader refuses the site's data: {first}{more}")]
    objecting = tuple(patient_name(study.data, name) for name in site.exclude)
    everybody = site.model_copy(update={"exclude": ()})
    own = {one.patient for one in found if keeps(everybody, one.patient, one.site or "")}
    patients = own.difference(objecting)
    said = f"its reader finds {counted(len(patients), study.unit)} of this site."
    return patients, [
        _ok("study", said),
        *_objections(set(objecting) - own),
        *_enough(len(patients), site),
    ]


def _objections(unknown: set[str]) -> Iterator[Finding]:
    """Whoever objects must be found to be left out; nobody is named."""
    if unknown:
        yield _attention(
            "study",
            f"{counted(len(unknown), 'patient')} in `exclude` can't be found in the data: one who "
            "is spelt otherwise there is trained on. Write each as the data do.",
        )


def _decision(study: Study, site: SiteSettings, state: Path | None) -> Iterator[Finding]:
    try:
        known = seen_studies(site) if state and (state / "studies").is_dir() else ()
    except (BadInput, OSError) as error:
        yield _mend("study", str(error))
        return
    status = {one.sha256: one.status for one in known}.get(study.sha256)
    approve = f"`fedward site approve SITE.yaml {study.sha256[:16]}`"
    if status is Status.APPROVED:
        yield _ok("study", f"{study.name} ({study.sha256}) is approved.")
    elif status is Status.WITHDRAWN:
        yield _attention("study", f"{study.name} is withdrawn; to take part again: {approve}.")
    elif status is Status.WAITING:
        yield _attention("study", f"{study.name} waits for approval; to agree: {approve}.")
    else:
        said = f"no server has asked for {study.name} ({study.sha256}) yet"
        manual = site.policy.approval == "manual"
        yield _ok("study", f"{said}; to agree once one has: {approve}." if manual else f"{said}.")


def _affordable(
    study: Study,
    site: SiteSettings,
    patients: set[str],
    ledger: Ledger | None,
    planned: Epsilon,
) -> Iterator[Finding]:
    """Whether the budget lasts for all rounds, by the filter that the ledger has."""
    budget = lowered(site.budget, study.privacy.lifetime_epsilon)
    try:
        lasts = lasting(study, site, ledger=ledger, patients=patients)
    except BadInput as error:
        yield _mend("study", f"it can't be planned: {error}")
        return
    except RunFailed:  # said of the ledger
        return
    after = "more than can be counted"
    if math.isfinite(lasts.after):
        unit = _owner(Unit(study.privacy.unit))
        after = str(dataclasses.replace(_cap(site), value=lasts.after, unit=unit))
    if lasts.whole:
        yield _ok(
            "study",
            f"it costs at most {planned}, and the budget {lasts}. The ledger, which counts all "
            f"studies of a lifetime and so a little more, would then be at {after}; the cap, in "
            f"the same terms, is {budget.epsilon:g}.",
        )
        return
    refused = lasts.refused(site)
    then = "so it is refused at its start" if refused else "so the later ones are refused"
    allow = ", or set `policy.whole_studies: optional` to give the first rounds" * refused
    yield (_mend if refused else _attention)(
        "study",
        f"the budget would end before the study does: it {lasts}, {then}. The study costs at most "
        f"{planned}, but the ledger, which counts all studies of a lifetime, would come to "
        f"{after}; the cap, in the same terms, is {budget.epsilon:g}. Raise `budget.epsilon`, "
        f"agree with the coordinator on fewer rounds or a lower target{allow}.",
    )


def _room(n_bytes: int, state: Path | None) -> Iterator[Finding]:
    """Whether the disk holds the replies, which are kept until the study ends."""
    if state is None:
        return
    need, free = min(n_bytes, MOST_BYTES) + _LEAST_BYTES, shutil.disk_usage(state).free
    if free < need:
        yield _mend(
            "state",
            f"the study's replies are kept until it ends, up to {_size(need)}, and {_size(free)} "
            f"are free on the disk of {state}: make room.",
        )


def _cap(site: SiteSettings) -> Epsilon:
    """The site's budget for a patient, as an epsilon."""
    secret = site.randomness == "secret"
    return Epsilon(
        value=site.budget.epsilon,
        delta=site.budget.delta,
        unit=Unit.PATIENT,
        randomness=Randomness.SECRET if secret else Randomness.SEEDED,
        trust_model=trust_model(site.state),
    )


def _owner(unit: Unit) -> Unit:
    """Whom the ledger counts where this is a study's unit."""
    return Unit.PATIENT if unit is Unit.IMAGE else unit


def _ok(about: str, sentence: str) -> Finding:
    return Finding(Level.OK, about, sentence)


def _attention(about: str, sentence: str) -> Finding:
    return Finding(Level.ATTENTION, about, sentence)


def _mend(about: str, sentence: str) -> Finding:
    return Finding(Level.MEND, about, sentence)


def _paragraph(finding: Finding) -> str:
    return textwrap.fill(
        finding.sentence,
        100,
        initial_indent=f"{finding.level:14}  {finding.about:8}  ",
        subsequent_indent=" " * 26,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
