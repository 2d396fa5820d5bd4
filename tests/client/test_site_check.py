"""`fedward site check`: what it finds, what it previews, and that it changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flwr.app import RecordDict
from typer.testing import CliRunner

import fedward
from client import ledger_commands, training
from client.approval import admit, approve, withdraw
from client.keys import RECEIPTS_CHAIN, open_keys
from client.ledger import FILE, open_ledger
from client.site import open_site
from client.site_check import Level, SiteChecked, check_site
from client.state import lock_state
from common.config import Study, load_site, load_study
from common.errors import REFUSAL_SENTENCES, RunFailed, SiteRefusal
from common.messages import (
    EVALUATE,
    QUERY,
    TRAIN,
    Instruction,
    Question,
    encode_instruction,
    encode_question,
    payload_bytes,
)
from common.models import pack, study_model, trained_layout, weights_sha256

SITE = """\
name: north
data: manifest.csv
state: state
declared_patients: 10
policy: {min_patients: 5}
budget: {epsilon: 8.0}
"""
Break = Callable[[Path], object]


@pytest.fixture
def home(tiny: Path) -> Path:
    """The folder of a hospital that could join: site.yaml, study.yaml, data, keys."""
    (tiny / "site.yaml").write_text(SITE)
    study = (tiny / "study.yaml").read_text()
    private = "privacy: {enabled: true, target_epsilon: 3.0, "
    (tiny / "study.yaml").write_text(study.replace("privacy: {", private))
    open_keys(tiny / "state")
    return tiny


def checked(home: Path, study: Study | None = None, **clocks: Any) -> SiteChecked:
    """What a check finds."""
    return check_site(home / "site.yaml", study, **clocks)


def study_of(home: Path, *changes: str) -> Study:
    """The study as a server would send it: how it is simulated stays at home."""
    loaded = load_study(home / "study.yaml", changes)
    return Study.model_validate_json(loaded.canonical())


def found(result: SiteChecked, level: Level) -> list[tuple[str, str]]:
    """What is of this level: about what, and the sentence."""
    return [(one.about, one.sentence) for one in result.findings if one.level is level]


def tree(folder: Path) -> dict[str, object]:
    """All that is in a folder: modes, contents, times."""
    return {
        path.relative_to(folder).as_posix(): (
            path.stat().st_mode,
            path.read_bytes() if path.is_file() else None,
            path.stat().st_mtime_ns if path.is_file() else None,
        )
        for path in folder.rglob("*")
    }


def says(*arguments: str | Path) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(fedward.app, ["site", "check", *map(str, arguments)])


def train(home: Path, study: Study) -> None:
    """One round of the study at this site, so that there are a ledger and receipts."""
    site = load_site(home / "site.yaml")
    settings = site.model_copy(
        update={"policy": site.policy.model_copy(update={"approval": "automatic"})}
    )
    open_site(settings).answer(instruct(study, 0, 1), TRAIN)


def instruct(study: Study, fold: int, round_number: int) -> RecordDict:
    """An instruction with the study's initial weights."""
    model = study_model(study)
    weights = pack(model)
    sha256 = weights_sha256(weights, trained_layout(model))
    return encode_instruction(Instruction(study, fold, round_number, weights, sha256))


def site_line(old: str, new: str) -> Break:
    """Another text in site.yaml."""

    def change(home: Path) -> None:
        text = (home / "site.yaml").read_text()
        assert old in text
        (home / "site.yaml").write_text(text.replace(old, new))

    return change


def more(line: str) -> Break:
    """One more line in site.yaml."""
    return site_line(SITE, SITE + line + "\n")


def test_a_ready_site_has_nothing_to_mend(home: Path) -> None:
    """Exit code 0; each thing that was looked at has a line."""
    result = says(home / "site.yaml", "--study", home / "study.yaml")
    assert result.exit_code == 0, result.stdout
    assert "Nothing must be mended" in result.stdout
    ready = checked(home, study_of(home))
    assert found(ready, Level.MEND) == []
    assert [about for about, _ in found(ready, Level.ATTENTION)] == ["link"]
    assert {one.about for one in ready.findings} == {
        "settings", "policy", "data", "state", "keys", "ledger", "receipts", "link", "clock",
        "device", "engine", "study",
    }  # fmt: skip


def test_nothing_is_made_or_changed(home: Path) -> None:
    """Before the first run there is no state folder afterwards; later each byte is what it was."""
    train(home, study_of(home))
    before = tree(home)
    checked(home, study_of(home))
    assert tree(home) == before
    shutil.rmtree(home / "state")
    before = tree(home)
    fresh = checked(home, study_of(home))
    assert tree(home) == before
    assert not fresh.mend
    assert "they are made when the site first runs" in dict(found(fresh, Level.ATTENTION))["keys"]


def test_json_says_the_same(home: Path) -> None:
    """Levels, sentences and preview as values; the exit code stays."""
    site_line("min_patients: 5", "min_patients: 50")(home)
    result = says(home / "site.yaml", "--study", home / "study.yaml", "--json")
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert (said["site"], said["to_mend"]) == ("north", True)
    mend = [one for one in said["findings"] if one["level"] == "must be mended"]
    assert {one["about"] for one in mend} == {"data"}
    assert "`policy.min_patients` (50)" in mend[0]["sentence"]
    assert said["preview"]["messages"][0]["arrays"][0]["name"] == "weights"
    assert said["preview"]["refusals"] == {
        code.value: sentence for code, sentence in REFUSAL_SENTENCES.items()
    }


def test_what_is_no_file_of_ours_is_bad_input(home: Path) -> None:
    """A site.yaml or study.yaml that can't be read is exit code 2 and one sentence."""
    site_line("budget: {epsilon: 8.0}", "budget: {epsilon: -1}")(home)
    assert says(home / "site.yaml").exit_code == 2
    assert says(home / "none.yaml").exit_code == 2
    (home / "site.yaml").write_text(SITE)
    assert says(home / "site.yaml", "--study", home / "none.yaml").exit_code == 2


def _cut_receipts(home: Path) -> None:
    train(home, study_of(home))
    chain = home / "state" / RECEIPTS_CHAIN
    backup = chain.read_bytes()
    study = study_of(home, "name=other")
    train(home, study)
    train(home, study_of(home, "name=third"))
    chain.write_bytes(backup)


def _lost_receipts(home: Path) -> None:
    train(home, study_of(home))
    (home / "state" / RECEIPTS_CHAIN).unlink()


def _changed_receipts(home: Path) -> None:
    train(home, study_of(home))
    chain = home / "state" / RECEIPTS_CHAIN
    chain.write_bytes(chain.read_bytes().replace(b'"fold":0', b'"fold":1'))


def _lost_ledger(home: Path) -> None:
    train(home, study_of(home))
    (home / "state" / FILE).unlink()


def _torn_ledger(home: Path) -> None:
    train(home, study_of(home))
    (home / "state" / FILE).write_bytes(b"torn" * 1000)


def _lost_keys(home: Path) -> None:
    train(home, study_of(home))
    shutil.rmtree(home / "state" / "keys")


def _unreadable_image(home: Path) -> None:
    (home / "images" / "north-0-0.png").write_bytes(b"no picture")


def _state_in_a_file(home: Path) -> None:
    site_line("state: state", "state: manifest.csv/state")(home)


@pytest.mark.parametrize(
    ("broken", "about", "words"),
    [
        (site_line("declared_patients: 10", ""), "settings", "`declared_patients` is missing"),
        (site_line("data: manifest.csv", ""), "data", "names no data"),
        (site_line("data: manifest.csv", "data: none.csv"), "data", "does not exist"),
        (site_line("data: manifest.csv", "data: images"), "data", "fedward data manifest DIR"),
        (_unreadable_image, "data", "1 thing that can't be read"),
        (site_line("min_patients: 5", "min_patients: 9"), "data", "the data have 8 patients"),
        (site_line("declared_patients: 10", "declared_patients: 20"), "data", "(20)"),
        (site_line("state: state", ""), "state", "`state` is missing"),
        (_state_in_a_file, "state", "can't be made"),
        (lambda home: (home / "state").chmod(0o770), "state", "chmod 700"),
        (lambda home: (home / "state/keys/ledger.key").chmod(0o644), "keys", "chmod 600"),
        (lambda home: (home / "state/keys/node.pem").unlink(), "keys", "the key is missing"),
        (_lost_keys, "keys", "though they have been used"),
        (_lost_keys, "ledger", "mend the keys first"),
        (_lost_ledger, "ledger", "there is no ledger"),
        (_torn_ledger, "ledger", "can't be read"),
        (_changed_receipts, "receipts", "line 1: was changed"),
        (_lost_receipts, "receipts", "they are gone"),
        (_cut_receipts, "receipts", "1 problem, the first: "),
        (more("device: cuda:77"), "device", "got cuda:77"),
        (more("link: {coordinator: none.pem}"), "link", "can't be read"),
    ],
)
def test_what_must_be_mended_is_found(home: Path, broken: Break, about: str, words: str) -> None:
    """Each fault has a line that names it; the other parts are looked at all the same."""
    broken(home)
    result = checked(home)
    assert result.mend
    assert any(one == about and words in said for one, said in found(result, Level.MEND))
    assert {"policy", "clock", "device"} <= {one.about for one in result.findings}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("randomness: seeded-for-testing", "nothing that is trained so is private"),
        ("policy: {privacy: optional}", "also trains without privacy"),
        ("policy: {approval: automatic}", "without anybody's approval"),
        ("policy: {unit: image}", "privacy of single images"),
        ("release: {metrics: [loss], counts: true}", "loss, numbers of patients and images"),
    ],
)
def test_a_policy_that_gives_more_is_said_in_words(home: Path, line: str, words: str) -> None:
    """What isn't the careful default is for the engineer's attention, not a fault."""
    text = SITE.replace("policy: {min_patients: 5}\n", "") if line.startswith("policy") else SITE
    (home / "site.yaml").write_text(text + line + "\n")
    said = [sentence for _, sentence in found(checked(home), Level.ATTENTION)]
    assert any(words in sentence for sentence in said)


def test_the_defaults_are_said_in_words(home: Path) -> None:
    """What the site agrees to can be read without site.yaml."""
    said = " ".join(one.sentence for one in checked(home).findings if one.about == "policy")
    for words in (
        "only under differential privacy, of the unit patient",
        "`fedward site approve` has named its hash",
        "no metric, no count",
        "at least 5 patients; any model; messages up to 1024 MB; at most 10 new studies a day",
    ):
        assert words in said


def test_a_site_at_work_is_said(home: Path) -> None:
    """Whoever mends something must stop the running site first."""
    with lock_state(home / "state"):
        assert "the site is at work" in dict(found(checked(home), Level.ATTENTION))["state"]
    assert "state" not in dict(found(checked(home), Level.ATTENTION))


@pytest.mark.parametrize(
    ("free", "level"),
    [(10**10, Level.OK), (5 * 10**8, Level.ATTENTION), (10**6, Level.MEND)],
)
def test_little_room_is_said(
    home: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: Level
) -> None:
    """Replies, ledger and receipts need room."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(free, 0, free))
    assert level in {one.level for one in checked(home).findings if one.about == "state"}


def test_the_study_must_find_room_for_its_replies(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that holds a few rounds but not all of them would stop the site in between."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(2 * 10**9, 0, 2 * 10**9))
    site_line("min_patients: 5", "min_patients: 5, privacy: optional")(home)
    few = study_of(home, "privacy.enabled=false")
    many = study_of(home, "privacy.enabled=false", "training.rounds=10000")
    assert not checked(home, few).mend
    assert (
        "kept until it ends, up to 4.0 GB" in dict(found(checked(home, many), Level.MEND))["state"]
    )


def test_a_clock_that_contradicts_itself_is_said(home: Path) -> None:
    """A file from the future, and a clock that is set meanwhile; two seconds are no matter."""
    now = time.time()

    def clock(**clocks: Any) -> str:
        return next(one for one in checked(home, **clocks).findings if one.about == "clock").level

    assert clock() is Level.OK
    os.utime(home / "state/keys/node.pem", (now + 1, now + 1))
    assert clock(clock_s=lambda: now) is Level.OK
    os.utime(home / "state/keys/node.pem", (now + 60, now + 60))
    assert clock(clock_s=lambda: now) is Level.ATTENTION
    os.utime(home / "state/keys/node.pem", (now, now))
    times = iter([now, now + 3600])
    assert clock(clock_s=lambda: next(times), steady_s=lambda: 0.0) is Level.ATTENTION
    assert clock(clock_s=lambda: 1e9) is Level.ATTENTION


def test_an_unsound_engine_must_be_mended(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-check's own sentence is shown; a study without privacy has no need of it."""

    def unsound(*_args: object, **_named: object) -> None:
        raise RunFailed("privacy.engine: fast gives wrong clipped gradients.")

    monkeypatch.setattr(training, "check_engine", unsound)
    assert ("engine", "privacy.engine: fast gives wrong clipped gradients.") in found(
        checked(home), Level.MEND
    )
    public = study_of(home, "privacy.enabled=false")
    assert "engine" not in {one.about for one in checked(home, public).findings}


def test_what_is_spent_and_left_is_said_with_every_condition(home: Path) -> None:
    """The worst-off patient's loss so far, from the ledger, and what remains."""
    train(home, study_of(home))
    result = checked(home)
    said = next(one.sentence for one in result.findings if one.about == "ledger")
    assert said.count("add/remove one patient, local:") == 2
    assert "spent: epsilon" in said
    assert "left: epsilon" in said
    shown = ledger_commands.show(load_site(home / "site.yaml"))
    assert shown.left is not None
    assert float(said.split("left: epsilon ")[1].split()[0]) <= shown.left.value
    assert [one.level for one in result.findings if one.about in ("ledger", "receipts")] == [
        Level.OK
    ] * 2


def test_a_used_up_budget_is_said(home: Path) -> None:
    """Nothing left is the ledger doing its work, and no fault."""
    train(home, study_of(home))
    site_line("epsilon: 8.0", "epsilon: 0.1")(home)
    assert "Nothing is left" in dict(found(checked(home), Level.ATTENTION))["ledger"]
    assert not checked(home).mend


def test_a_budget_that_would_end_too_early_is_said(home: Path) -> None:
    """What is spent counts, by the ledger's own filter."""
    site_line("epsilon: 8.0", "epsilon: 4.0")(home)
    study = study_of(home)
    assert "study" not in dict(found(checked(home, study), Level.ATTENTION))
    train(home, study_of(home, "name=earlier", "training.rounds=1"))
    early = dict(found(checked(home, study), Level.MEND))["study"]
    assert "the budget would end before the study does: it lasts for 0 of 2 rounds" in early
    assert "refused at its start" in early
    assert early.count("add/remove one patient") == 2
    site_line("min_patients: 5", "min_patients: 5, whole_studies: optional")(home)
    early = dict(found(checked(home, study), Level.ATTENTION))["study"]
    assert "the later ones are refused" in early
    assert not checked(home, study).mend


def test_images_that_a_policy_lets_in_must_be_declared(home: Path) -> None:
    """Without their number no study of unit image can be planned."""
    site_line("min_patients: 5", "min_patients: 5, unit: image")(home)
    assert "declared_images" in dict(found(checked(home), Level.MEND))["settings"]
    (home / "site.yaml").write_text((home / "site.yaml").read_text() + "declared_images: 20\n")
    assert "settings" not in dict(found(checked(home), Level.MEND))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ("privacy.enabled=false", "policy.privacy is required and the study has none"),
        ("privacy.target_epsilon=9", "budget.epsilon is 8"),
        ("classes=[dark, light]", "its reader refuses the site's data"),
    ],
)
def test_what_stands_against_a_study_is_said(home: Path, changes: str, words: str) -> None:
    """The policy's objections in words, and a reader that doesn't find its classes."""
    result = checked(home, study_of(home, changes))
    assert any(words in sentence for _, sentence in found(result, Level.MEND))
    assert result.preview is not None


def test_weights_that_are_too_large_are_said(home: Path) -> None:
    """Nothing would leave, so there is nothing to preview."""
    site_line("min_patients: 5", "min_patients: 5, max_message_mb: 0.3")(home)
    result = checked(home, study_of(home))
    assert "its weights are 0.4 MB" in dict(found(result, Level.MEND))["study"]
    assert result.preview is None


def test_whoever_objects_is_not_counted(home: Path) -> None:
    """The study's reader counts the site's own patients without those who object."""
    more("exclude: [north-1, west-1]")(home)
    result = checked(home, study_of(home))
    said = [one.sentence for one in result.findings if one.about == "study"]
    assert "its reader finds 7 patients of this site." in said
    (unknown,) = (said for about, said in found(result, Level.ATTENTION) if "`exclude`" in said)
    assert "1 patient in `exclude` can't be found" in unknown
    assert "west-1" not in unknown
    (home / "site.yaml").write_text(SITE + "exclude: [north-1]\n")
    assert "can't be found" not in checked(home, study_of(home)).text()


def test_what_was_decided_on_the_study_is_said(home: Path) -> None:
    """Not seen, waiting, approved, withdrawn."""
    study, site = study_of(home), load_site(home / "site.yaml")

    def said() -> str:
        return " ".join(
            one.sentence for one in checked(home, study).findings if one.about == "study"
        )

    assert "no server has asked for tiny" in said()
    with pytest.raises(SiteRefusal):
        admit(study, site, now_s=1.0)
    assert f"to agree: `fedward site approve SITE.yaml {study.sha256[:16]}`" in said()
    approve(site, study.sha256, now_s=2.0)
    assert "is approved" in said()
    withdraw(site, study.sha256, now_s=3.0)
    assert "is withdrawn" in said()


@pytest.mark.parametrize("folds", [None, 3])
@pytest.mark.parametrize("release", ["{}", "{metrics: [loss, accuracy], counts: true}"])
def test_the_preview_is_what_leaves(home: Path, folds: int | None, release: str) -> None:
    """Arrays, metric names and bytes are those of real messages of the same study."""
    more(f"release: {release}")(home)
    # Another key could put all of so few patients on one side, and then no metric is left.
    (home / "state" / "keys" / "pseudonyms.key").write_bytes(bytes([1] * 32))
    study = study_of(home, "training.rounds=1", f"data.folds={json.dumps(folds)}")
    preview = checked(home, study).preview
    assert preview is not None
    site = load_site(home / "site.yaml")
    automatic = site.policy.model_copy(update={"approval": "automatic"})
    opened = open_site(site.model_copy(update={"policy": automatic}))
    fold = 1 if folds else 0
    asked = {
        TRAIN: instruct(study, fold, 1),
        EVALUATE: instruct(study, fold, 2),
        QUERY: encode_question(Question(study.sha256, fold)),
    }
    left: list[RecordDict] = [opened.answer(content, kind) for kind, content in asked.items()]
    for said, real in zip(preview.messages, left, strict=True):
        metrics = real.get("metrics", {})
        arrays = real.get("weights", {})
        assert list(said.metrics) == list(metrics)
        assert [one.shape for one in said.arrays] == [one.shape for one in arrays.values()]
        assert said.n_bytes == pytest.approx(payload_bytes(real), abs=60)  # digits of numbers
        assert said.times == (folds or 1)
    assert preview.messages[0].n_bytes == payload_bytes(left[0])
    assert ("patients, images" in preview.text()) == ("counts" in release)
    assert open_ledger(home / "state", key=open_keys(home / "state").ledger).verify(None).count == 2
