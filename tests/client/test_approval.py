"""A study trains once the site's steward, or its policy, has said yes to just that study."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import client.approval
import client.state
import fedward
from client.approval import SeenStudy, Status, admit, approve, seen_studies, withdraw
from client.steward import show, text
from common.config import Policy, SiteSettings, Study, parse
from common.errors import BadInput, RefusalCode, SiteRefusal

NOW_S = 1_800_000_000.0
C = RefusalCode


def study(seed: int = 1, **said: Any) -> Study:
    """A private study; another seed is another study."""
    content = {"classes": ["dark", "bright"], "data": {"kind": "manifest"}, "seed": seed}
    return parse(Study, content | {"privacy": {"enabled": True}} | said, where="study")


def site(folder: Path, **policy: Any) -> SiteSettings:
    """A site whose state is below `folder`."""
    return SiteSettings(declared_patients=100, state=folder / "state", policy=Policy(**policy))


def answer(asked: Study, of: SiteSettings, *, now_s: float = NOW_S) -> RefusalCode | None:
    """The code with which a site keeps a study out, or None."""
    try:
        admit(asked, of, now_s=now_s)
    except SiteRefusal as refusal:
        return refusal.code
    return None


def test_a_study_waits_until_it_is_approved_and_ends_when_it_is_withdrawn(tmp_path: Path) -> None:
    """Each decision holds from the next message on, by whatever process it was made."""
    north = site(tmp_path)
    assert answer(study(), north) is C.NOT_APPROVED
    approved = approve(north, study().sha256[:8], now_s=NOW_S + 1)
    assert approved.status is Status.APPROVED
    assert answer(study(), north) is None
    assert answer(study(2), north) is C.NOT_APPROVED  # a changed study is another one
    withdraw(north, study().sha256, now_s=NOW_S + 2)
    assert answer(study(), north) is C.WITHDRAWN
    approve(north, study().sha256, now_s=NOW_S + 3)
    assert answer(study(), north) is None
    (first, second) = seen_studies(north)
    assert (first.first_seen_s, first.decided_s, first.text) == (
        NOW_S,
        NOW_S + 3,
        study().canonical(),
    )
    assert (second.status, second.decided_s) == (Status.WAITING, None)


def test_an_automatic_site_approves_what_its_policy_allows(tmp_path: Path) -> None:
    """Nothing waits, but the policy and a withdrawal still hold."""
    north = site(tmp_path, approval="automatic")
    assert answer(study(), north) is None
    assert seen_studies(north)[0].status is Status.APPROVED
    assert answer(study(privacy={"enabled": False}), north) is C.PRIVACY_REQUIRED
    assert {seen.status for seen in seen_studies(north)} == {Status.APPROVED, Status.WAITING}
    withdraw(north, study().sha256[:12], now_s=NOW_S)
    assert answer(study(), north) is C.WITHDRAWN


def test_a_stricter_policy_holds_for_approved_studies_too(tmp_path: Path) -> None:
    """What was approved under another policy is asked again of the present one."""
    asked = study(privacy={"enabled": False})
    lax, strict = site(tmp_path, privacy="optional"), site(tmp_path)
    answer(asked, lax)
    approve(lax, asked.sha256, now_s=NOW_S)
    assert answer(asked, lax) is None
    assert answer(asked, strict) is C.PRIVACY_REQUIRED


def test_what_the_policy_forbids_cant_be_approved(tmp_path: Path) -> None:
    """The steward reads which line of site.yaml forbids it, and nothing changes."""
    asked = study(privacy={"enabled": False})
    north = site(tmp_path)
    answer(asked, north)
    with pytest.raises(BadInput, match=r"policy\.privacy is required"):
        approve(north, asked.sha256, now_s=NOW_S)
    assert answer(asked, north) is C.PRIVACY_REQUIRED
    assert seen_studies(north)[0].status is Status.WAITING


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("0" * 8, "No server has asked"),
        ("abc", "first 8"),
        ("", "first 8"),
        ("../../../etc/passwd", "first 8"),
        ("????????", "first 8"),
        ("0" * 65, "first 8"),
    ],
)
def test_only_a_hash_that_was_seen_is_decided_on(tmp_path: Path, prefix: str, said: str) -> None:
    """Unknown, short and malformed hashes are refused, for both decisions."""
    north = site(tmp_path)
    answer(study(), north)
    for decide in (approve, withdraw):
        with pytest.raises(BadInput, match=said):
            decide(north, prefix, now_s=NOW_S)


def test_a_prefix_of_two_studies_names_neither(tmp_path: Path) -> None:
    """Where eight digits are not enough, more are asked for."""
    north = site(tmp_path)
    answer(study(), north)
    (path,) = (tmp_path / "state/studies").glob("*.json")
    path.with_name(path.stem[:20] + "0" * 44 + ".json").write_bytes(path.read_bytes())
    with pytest.raises(BadInput, match="must name one study"):
        approve(north, study().sha256[:8], now_s=NOW_S)
    approve(north, study().sha256[:21], now_s=NOW_S)


def test_new_studies_are_bounded_and_known_ones_are_not(tmp_path: Path) -> None:
    """A server that floods a site fills neither its disk nor its approved studies' way."""
    north = site(tmp_path, approval="automatic", studies_per_day=3)
    codes = [answer(study(seed), north) for seed in range(10)]
    assert codes == [None] * 3 + [C.TOO_MANY_STUDIES] * 7
    assert answer(study(0), north) is None
    assert answer(study(5), north, now_s=NOW_S - 1e6) is C.TOO_MANY_STUDIES
    assert answer(study(5), north, now_s=NOW_S + 86_400) is None
    assert len(list((tmp_path / "state/studies").glob("*.json"))) == 4


def test_a_study_too_long_is_not_kept(tmp_path: Path) -> None:
    """A text beyond the bound is refused and leaves no file."""
    long = study(classes=[f"class {number:05}" for number in range(7000)])
    assert answer(long, site(tmp_path, approval="automatic")) is C.TOO_LARGE
    assert list((tmp_path / "state/studies").glob("*.json")) == []


def test_only_the_owner_reads_the_records(tmp_path: Path) -> None:
    """Folders are 0700 and files 0600, whatever the umask."""
    before = os.umask(0)
    try:
        answer(study(), site(tmp_path))
    finally:
        os.umask(before)
    state = tmp_path / "state"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state.rglob("*")}
    assert stat.S_IMODE(state.stat().st_mode) == modes["studies"] == 0o700
    assert {mode for name, mode in modes.items() if name != "studies"} == {0o600}


@pytest.mark.parametrize("edit", ["status", "text", "torn", "binary", "renamed"])
def test_a_damaged_record_keeps_the_study_out(tmp_path: Path, edit: str) -> None:
    """A record that is not what was written approves nothing; the engineer is asked to look."""
    north = site(tmp_path, approval="automatic")
    assert answer(study(), north) is None
    (path,) = (tmp_path / "state/studies").glob("*.json")
    said = path.read_text()
    asked = study()
    match edit:
        case "status":
            path.write_text(said.replace("approved", "agreed"))
        case "text":
            path.write_text(said.replace('\\"seed\\":1', '\\"seed\\":7'))
        case "torn":
            path.write_text(said[:-20])
        case "binary":
            path.write_bytes(b"\xff\xfe" + said.encode())
        case "renamed":
            asked = study(2)
            path.rename(path.with_name(f"{asked.sha256}.json"))
    assert path.exists() != (edit == "renamed")
    assert answer(asked, north) is C.RECORDS_DAMAGED
    with pytest.raises(BadInput, match="not what fedward wrote"):
        seen_studies(north)


def test_a_full_disk_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't be remembered isn't let in."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    north = site(tmp_path, approval="automatic")
    monkeypatch.setattr(client.state.os, "fsync", full)
    assert answer(study(), north) is C.RECORDS_DAMAGED
    monkeypatch.undo()
    assert answer(study(), north) is None


def test_decisions_are_written_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write holds the lock that was taken before reading, so no withdrawal is overwritten."""
    write, written = client.approval._write, []

    def watched(folder: Path, seen: SeenStudy) -> None:
        with (
            pytest.raises(BadInput, match="held"),
            client.state.locked(folder / ".lock", busy="held"),
        ):
            pass
        written.append(seen.status)
        write(folder, seen)

    monkeypatch.setattr(client.approval, "_write", watched)
    north = site(tmp_path, approval="automatic")
    answer(study(), north)
    withdraw(north, study().sha256, now_s=NOW_S)
    approve(north, study().sha256, now_s=NOW_S)
    assert written == [Status.WAITING, Status.APPROVED, Status.WITHDRAWN, Status.APPROVED]


def test_a_site_without_a_state_folder_is_told_so() -> None:
    """Without `state` there is nowhere to write a decision down."""
    nowhere = SiteSettings(declared_patients=100)
    with pytest.raises(BadInput, match="`state` is missing"):
        seen_studies(nowhere)
    assert answer(study(), nowhere) is C.RECORDS_DAMAGED


def shown(asked: Study, of: SiteSettings) -> str:
    """What `status` says of a study that waits."""
    seen = SeenStudy(
        status=Status.WAITING, first_seen_s=NOW_S, decided_s=None, text=asked.canonical()
    )
    return show(seen, of).text()


def test_the_steward_reads_what_a_study_means(tmp_path: Path) -> None:
    """Name, hash, data, model, rounds, epsilon with all it means, and what would leave."""
    said = shown(study(name="lungs", training={"rounds": 7}), site(tmp_path))
    for part in (
        "Study lungs: waiting since 2027-01-15 08:00 UTC",
        study(name="lungs", training={"rounds": 7}).sha256,
        "manifest, 32 px; multi-class: dark, bright",
        "cnn-small, 97,890 trained parameters",
        "7 rounds",
        "at most epsilon 8.0 per patient (delta 1e-05, add/remove one patient, local",
        "one array of 97,890 float32 weights (0.39 MB) and no metric",
        "without the numbers of patients",
        "fedward site approve SITE.yaml",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("wire", "said", "n_bytes"),
    [
        (
            "bfloat16",
            "one array of 97,890 uint16 values (0.20 MB), the weights' differences",
            195_780,
        ),
        ("int8", "one array of 98,273 uint8 values (0.10 MB), the weights' differences", 98_273),
    ],
)
def test_the_steward_reads_in_which_form_weights_leave(
    tmp_path: Path, wire: str, said: str, n_bytes: int
) -> None:
    """A short form is named with its own number of values and bytes, as the gate lets it out."""
    short = study(federation={"wire": wire})
    seen = SeenStudy(
        status=Status.WAITING, first_seen_s=NOW_S, decided_s=None, text=short.canonical()
    )
    found = show(seen, site(tmp_path))
    assert f"{said} from the incoming ones as {wire}, and no metric" in found.text()
    assert "cnn-small, 97,890 trained parameters" in found.text()
    assert found.as_json()["leaves"]["bytes_each_round"] == n_bytes


def test_the_steward_reads_what_is_unusual(tmp_path: Path) -> None:
    """No privacy, released metrics and counts, seeds and what the policy forbids stand out."""
    of = SiteSettings.model_validate(
        site(tmp_path).model_dump()
        | {
            "release": {"metrics": ("loss",), "counts": True},
            "randomness": "seeded-for-testing",
        }
    )
    assert "guarantee: none (seeded)" in shown(study(), of)
    said = shown(study(privacy={"enabled": False}), of)
    assert "NONE: trained without differential privacy" in said
    assert "exact loss on the site's test patients" in said
    assert "with the numbers of patients" in said
    assert "forbidden policy.privacy is required" in said
    assert "approve" not in said.replace("approved", "")


def test_with_folds_the_steward_reads_what_all_models_cost(tmp_path: Path) -> None:
    """Cross-validation trains each patient in all models but one; the sum is what is shown."""
    asked = study(
        data={"kind": "manifest", "folds": 3},
        privacy={"enabled": True, "target_epsilon": 2.0, "steps_per_round": 1},
    )
    seen = SeenStudy(status=Status.WAITING, first_seen_s=0, decided_s=None, text=asked.canonical())
    planned = show(seen, site(tmp_path)).planned
    assert planned is not None
    assert 2.0 < planned.value < 4.0
    assert ", over all models" in shown(asked, site(tmp_path))
    assert "for each of 3 models" in shown(asked, site(tmp_path))


def test_a_servers_names_move_no_cursor(tmp_path: Path) -> None:
    """Control characters in a class or a model's name are not printed."""
    evil = study(classes=["a\x1b[2Jb", "c\u202ed"], model={"name": "x\ry"})
    said = shown(evil, site(tmp_path))
    assert not set("\x1b\r\u202e") & set(said)
    assert "forbidden the study's model.name is none of those" in said


def test_what_no_site_could_run_is_shown_as_forbidden(tmp_path: Path) -> None:
    """A model that can't be built for the study's images doesn't hide the other studies."""
    odd = study(model={"name": "vit-tiny", "patch_px": 64}, data={"kind": "manifest"})
    assert "forbidden" in shown(odd, site(tmp_path))


def test_the_command_line_shows_approves_and_withdraws(tmp_path: Path) -> None:
    """The steward's three commands, by text and JSON, on the files that the site's app reads."""

    def fedward_says(*arguments: str) -> str:
        result = CliRunner().invoke(fedward.app, ["site", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    path = tmp_path / "site.yaml"
    path.write_text("{name: north, declared_patients: 100, state: state}\n")
    north = site(tmp_path)
    assert "No server has asked" in fedward_says("status", str(path))
    assert answer(study(), north) is C.NOT_APPROVED
    assert study().sha256 in fedward_says("status", str(path))
    assert "Approved" in fedward_says("approve", str(path), study().sha256[:8])
    assert answer(study(), north) is None
    assert "Withdrawn" in fedward_says("withdraw", str(path), study().sha256)
    assert answer(study(), north) is C.WITHDRAWN
    (listed,) = json.loads(fedward_says("status", str(path), "--json"))
    assert listed["status"] == "withdrawn"
    assert listed["privacy"]["unit"] == "patient"
    assert listed["leaves"] == {
        "weights": 97_890,
        "bytes_each_round": 4 * 97_890,
        "metrics": [],
        "counts": False,
    }
    refused = CliRunner().invoke(fedward.app, ["site", "approve", str(path), "f" * 64])
    assert refused.exit_code == 2
    assert "No server has asked" in refused.output


def test_no_study_is_said_so() -> None:
    """An empty list is a sentence."""
    assert text(()) == "No server has asked for a study yet."
