"""`fedward privacy ledger`: what it shows, what it finds, and the way back from a loss."""

from __future__ import annotations

import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import fedward
from client.keys import RECEIPTS_CHAIN, open_keys
from client.ledger import Ledger, Request, WholeStudy, open_ledger
from client.ledger_commands import whole_study
from client.receipts import Asked, Receipts, Sent
from client.state import lock_state
from common.chain import Head
from common.config import Budget, load_site, load_study
from common.errors import BadInput
from common.privacy.epsilon import Randomness, Unit, rounded_up
from common.privacy.lifetime import lifetime_epsilon
from common.privacy.mechanism import Mechanism

STEP = Mechanism(2.0, 0.1, 4)


@pytest.fixture
def site(tiny: Path) -> Path:
    """A site.yaml with a state folder, a budget and data."""
    path = tiny / "site.yaml"
    path.write_text(
        "name: north\ndata: manifest.csv\nstate: state\ndeclared_patients: 10\n"
        "budget: {epsilon: 4.0}\n"
    )
    return path


@pytest.fixture
def ledger(site: Path) -> Ledger:
    """The site's ledger with two rounds of one study and one of another."""
    state = site.parent / "state"
    made = open_ledger(state, key=open_keys(state).ledger)
    for study, number in (("a", 1), ("a", 2), ("b", 1)):
        reserve(made, study, number)
    return made


def reserve(ledger: Ledger, study: str, number: int) -> None:
    """One round of four steps for three patients."""
    state = ledger.path.parent
    ledger.reserve(
        Request(
            study=study * 64,
            fold=0,
            round_number=number,
            weights_sha256="0" * 64,
            data_fingerprint="0" * 64,
            unit=Unit.PATIENT,
            randomness=Randomness.SECRET,
            mechanism=STEP,
            patients=["north-0", "north-1", "gone"],
        ),
        cap=Budget(),
        secret=lambda: bytes([number]) * 31 + study.encode(),
        receipts=Receipts(state / RECEIPTS_CHAIN, open_keys(state).receipts, lambda _: None),
    )


def receipt(site: Path, head: Head) -> None:
    """Let a message have left that this row of the ledger paid for."""
    state = site.parent / "state"
    entry = Sent(
        asked=Asked(kind="train", study="a" * 64, fold=0, round=1, weights="0" * 64),
        sha256="0" * 64,
        bytes=0,
        arrays=(),
        metrics={},
        epsilon=None,
        ledger=str(head),
    )
    receipts = Receipts(state / RECEIPTS_CHAIN, open_keys(state).receipts, lambda _: None)
    receipts.append(entry, now=datetime.now(UTC))


def says(*arguments: str | Path) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(fedward.app, ["privacy", "ledger", *map(str, arguments)])


def cost(steps: int) -> float:
    """Epsilon of so many steps."""
    return lifetime_epsilon([STEP._replace(steps=steps)], delta=1e-5)


def test_it_shows_each_study_and_the_worst_off_patient(site: Path, ledger: Ledger) -> None:
    """By study rounds, steps, noise and rate; then what is spent, the cap, what is left."""
    found = json.loads(says("show", site, "--json").stdout)
    assert [(one["study_sha256"][0], one["rounds"], one["steps"]) for one in found["studies"]] == [
        ("a", 2, 8),
        ("b", 1, 4),
    ]
    assert found["studies"][0]["noise_multiplier"] == 2.0
    assert found["studies"][0]["alone"]["epsilon"] == cost(8)
    assert found["spent"]["epsilon"] == cost(12)
    assert found["cap"]["epsilon"] == 4.0
    assert found["left"]["epsilon"] == 4.0 - cost(12)
    assert all(found[name]["unit"] == "patient" for name in ("spent", "cap", "left"))
    assert (found["patients"], found["rounds_without_reply"]) == (3, 3)
    assert found["head"] == str(ledger.verify(None))


def test_json_has_all_numbers_under_their_names(site: Path, ledger: Ledger) -> None:
    """Programs read them, so no name changes; the kind of epsilon is that of what is spent."""
    images = WholeStudy(
        study="c" * 64,
        unit=Unit.EXAM,
        randomness=Randomness.SEEDED,
        mechanism=STEP._replace(images=3),
        patients=["north-0"],
    )
    ledger.restore([images], lost=())
    found = json.loads(says("show", site, "--json").stdout)
    kinds = {name: found.pop(name) for name in ("spent", "cap", "left")}
    *_, restored = found.pop("studies")
    assert found == {
        "site": "north",
        "head": str(ledger.verify(None)),
        "patients": 3,
        "rounds_without_reply": 3,
        "restores": 1,
    }
    alone = restored.pop("alone")
    assert alone["epsilon"] == lifetime_epsilon([images.mechanism], delta=1e-5)
    assert restored == {
        "study_sha256": "c" * 64,
        "rounds": 0,
        "whole": True,
        "steps": 4,
        "noise_multiplier": 2.0,
        "sampling_rate": 0.1,
        "images": 3,
        "unit": "exam",
    }
    for kind in (*kinds.values(), alone):
        assert (kind["unit"], kind["delta"]) == ("exam", 1e-5)
        assert "seeded" in kind["guarantee"]


def test_the_table_has_every_condition_and_no_patient(site: Path, ledger: Ledger) -> None:
    """No epsilon without delta, adjacency, trust and randomness beside it; nobody's name."""
    shown = says("show", site)
    assert shown.exit_code == 0
    for words in (
        "aaaaaaaaaaaa",
        rounded_up(cost(12)),
        "delta 1e-05",
        "add/remove one patient",
        "local:",
    ):
        assert words in shown.stdout
    assert "guarantee: differential privacy per patient" in shown.stdout
    assert "north-" not in shown.stdout


def test_the_table_is_laid_out_for_people(site: Path, ledger: Ledger) -> None:
    """Who could be sampled; a row a study, one that a restore charged too; spent, cap, left."""
    study, everybody = "c" * 64, ["north-0"]
    ledger.restore(
        [
            WholeStudy(
                study=study,
                unit=Unit.EXAM,
                randomness=Randomness.SECRET,
                mechanism=STEP,
                patients=everybody,
            )
        ],
        lost=(),
    )
    spent, left = cost(16), 4.0 - cost(16)
    lines = says("show", site).stdout.splitlines()
    assert lines[0] == (
        "Site north: 3 patients could be sampled so far; 3 rounds without a reply; 1 restore."
    )
    assert lines[1] == ""
    assert [re.split(r" {2,}", line) for line in lines[2:7] if not line.startswith("-")] == [
        ["study", "unit", "rounds", "steps", "sigma / C", "q", "alone"],
        ["a" * 12, "patient", "2", "8", "2", "0.1", rounded_up(cost(8))],
        ["b" * 12, "patient", "1", "4", "2", "0.1", rounded_up(cost(4))],
        ["c" * 12, "exam", "all (restored)", "4", "2", "0.1", rounded_up(cost(4))],
    ]
    assert lines[7] == ""
    assert lines[8].split() == ["spent", "cap", "left"]
    shown_spent, cap, shown_left = map(float, lines[10].split())
    assert (cap, lines[11]) == (4.0, "")
    assert spent <= shown_spent < spent + 0.01
    assert left - 0.01 < shown_left <= left
    assert lines[-1] == f"Head: {ledger.verify(None)}"


@pytest.mark.parametrize("command", ["show", "verify"])
def test_without_a_ledger_it_says_when_there_will_be_one(site: Path, command: str) -> None:
    """Looking makes nothing: no folder, no key, no ledger."""
    shown = says(command, site)
    assert shown.exit_code == 2
    assert "there is no ledger" in shown.stderr
    assert not (site.parent / "state" / "keys").exists()


def test_an_older_copy_is_found_by_the_receipts(site: Path, ledger: Ledger) -> None:
    """Verify asks the receipts and whoever remembers a head; what is newer than both is fine."""
    backup = site.parent / "backup"
    shutil.copy(ledger.path, backup)
    reserve(ledger, "b", 2)
    head = ledger.verify(None)
    assert str(head) in says("verify", site, "--head", head).stdout
    shutil.copy(backup, ledger.path)
    assert says("verify", site).exit_code == 0
    assert says("verify", site, "--head", head).exit_code == 1
    receipt(site, head)
    found = says("verify", site)
    assert found.exit_code == 1
    assert "restore SITE.yaml --study STUDY.yaml" in found.stderr


def test_a_restore_charges_everybody_in_the_data_or_ever_seen(site: Path, ledger: Ledger) -> None:
    """All of the study for each of them; then what the receipts remember is accepted."""
    receipt(site, Head(9, "9" * 64))
    study = site.parent / "study.yaml"
    study.write_text(study.read_text().replace("privacy: {", "privacy: {enabled: true, "))
    restored = says("restore", site, "--study", study)
    assert restored.exit_code == 0, restored.stderr
    assert says("verify", site).exit_code == 0
    shown = json.loads(says("show", site, "--json").stdout)
    assert shown["restores"] == 1
    assert (shown["studies"][-1]["whole"], shown["studies"][-1]["steps"]) == (True, 2 * 2)
    assert shown["patients"] == 24 + 1  # in the data, and the one who has left them
    whole = Mechanism(shown["studies"][-1]["noise_multiplier"], 0.5, 4)
    for patient, history in (
        ("north-1", [STEP._replace(steps=12), whole]),
        ("gone", [STEP._replace(steps=12), whole]),
        ("east-3", [whole]),
    ):
        epsilon = ledger.spent([patient], delta=1e-5).epsilon
        assert epsilon is not None
        assert epsilon.value == lifetime_epsilon(history, delta=1e-5)


def test_after_a_restore_ledger_and_receipts_accept_what_each_other_remember(
    site: Path, ledger: Ledger
) -> None:
    """Heads that a server names and those that the ledger remembers; no receipts are needed."""
    state = site.parent / "state"
    receipts = Receipts(state / RECEIPTS_CHAIN, open_keys(state).receipts, lambda _: None)
    receipt(site, ledger.verify(None))
    remembered = receipts.head
    reserve(ledger, "b", 3)
    receipts.path.unlink()
    told = Head(8, "8" * 64)
    assert says("verify", site).exit_code == 0
    assert says("restore", site, "--head", told).exit_code == 0
    assert receipts.knows(told)
    assert receipts.knows(remembered)
    assert receipts.ledger_head == ledger.verify(None)
    assert not receipts.knows(Head(7, "7" * 64))


def test_a_whole_study_is_charged_as_the_site_would_train_it(site: Path) -> None:
    """To everybody in its data, if it has any, by the randomness that it uses."""
    study = load_study(site.parent / "study.yaml", ["privacy.enabled=true"])
    settings = load_site(site)
    found = whole_study(study, settings)
    assert (found.study, found.unit) == (study.sha256, Unit.PATIENT)
    assert found.randomness is Randomness.SECRET
    assert len(found.patients) == 24
    bare = settings.model_copy(update={"data": None, "randomness": "seeded-for-testing"})
    assert whole_study(study, bare).patients == set()
    assert whole_study(study, bare).randomness is Randomness.SEEDED


def test_a_whole_study_is_every_round_of_every_fold(site: Path) -> None:
    """What a restore charges is all that the study may ask of a patient, images by the patient."""
    changes = ["privacy.enabled=true", "data.folds=3", "training.rounds=5"]
    study = load_study(site.parent / "study.yaml", changes)
    assert whole_study(study, load_site(site)).mechanism[1:] == (0.5, 2 * 5 * 3, 1)
    by_image = load_study(site.parent / "study.yaml", [*changes, "privacy.unit=image"])
    with pytest.raises(BadInput, match="declared_images"):
        whole_study(by_image, load_site(site))
    site.write_text(site.read_text() + "declared_images: 20\n")
    assert whole_study(by_image, load_site(site)).mechanism[1:] == (0.5, 2 * 5 * 3, 4)


def test_a_study_without_privacy_has_no_place_in_a_ledger(site: Path) -> None:
    """It is refused by name instead of being charged as nothing."""
    refused = says("restore", site, "--study", site.parent / "study.yaml")
    assert refused.exit_code == 2
    assert "tiny trains without privacy" in refused.stderr


@pytest.mark.parametrize("head", ["", "3", "3:abc", "x:" + "0" * 64])
def test_what_is_no_head_is_refused(site: Path, ledger: Ledger, head: str) -> None:
    """A head that was not copied whole is said to be none."""
    refused = says("verify", site, "--head", head)
    assert refused.exit_code == 2
    assert "COUNT:HASH" in refused.stderr


def test_noise_without_a_bound_is_shown_as_such(site: Path, ledger: Ledger) -> None:
    """Where no epsilon bounds a loss, the words say so and nothing is left."""
    naked = WholeStudy(
        study="c" * 64,
        unit=Unit.PATIENT,
        randomness=Randomness.SEEDED,
        mechanism=Mechanism(0.0, 0.1, 1),
        patients=["north-0"],
    )
    ledger.restore([naked], lost=())
    assert "no bound" in says("show", site).stdout
    found = json.loads(says("show", site, "--json").stdout)
    assert (found["spent"], found["left"]) == (None, None)


def test_nothing_is_restored_while_the_site_runs(site: Path, ledger: Ledger) -> None:
    """What it charges can't be taken back, so the site must have been stopped."""
    before = ledger.verify(None)
    with lock_state(ledger.path.parent):
        refused = says("restore", site)
    assert refused.exit_code == 2
    assert "stop it first" in refused.stderr
    assert ledger.verify(None) == before
