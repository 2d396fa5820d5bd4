"""A study from its data to its result: repeatable, comparable, and refused before it costs."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

import client.site
import simulations
from client.budget import Lasting
from client.cohort import Cohort, Examples, open_cohort
from common.config import load_study
from common.errors import BadInput, RunFailed
from common.metrics import Predictions
from server import rounds
from server.presence import is_at_work
from simulations import arms, runner
from simulations.result import RunResult
from simulations.sites import simulated_sites

pytestmark = pytest.mark.usefixtures("no_report")

PRIVATE = "privacy.enabled=true"


def run(folder: Path, name: str, *changes: str, **how: Any) -> RunResult:
    """A run of the tiny study in its own folder."""
    return simulations.run(load_study(folder / "study.yaml", changes), out=folder / name, **how)


def test_study_and_seed_decide_the_weights(tiny: Path) -> None:
    """The same study and seed twice give equal hashes and numbers; another seed other weights."""
    first = run(tiny, "a", baselines=False)
    again = run(tiny, "b", baselines=False)
    other = run(tiny, "c", "seed=2", baselines=False)
    assert again.weights_sha256 == first.weights_sha256 != other.weights_sha256
    assert again.as_json()["evaluation"] == first.as_json()["evaluation"]


def test_privately_too(tiny: Path) -> None:
    """Seeded privacy is repeatable, says that it guarantees nothing, and keeps to its target."""
    first, again = (run(tiny, name, PRIVATE, baselines=False) for name in "ab")
    assert again.weights_sha256 == first.weights_sha256
    result = first.as_json()
    assert result["privacy"]["guarantee"] == "none (seeded)"
    for site in result["sites"].values():
        assert 7 < site["epsilon"] <= 8
        assert site["statement"]["guarantee"] == "none (seeded)"
        assert site["delta"] == 1e-5


def test_every_patient_is_tested_once_over_folds(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With folds, each image is scored once, by a model that did not train on its patient."""
    trained, tested = [], []
    train, predict = client.site.train_round, runner.predict_cohort

    def watched_training(module: Any, examples: Examples, *rest: Any, **named: Any) -> None:
        trained.append(set(examples.patients[examples.rows].tolist()))
        train(module, examples, *rest, **named)

    def watched_test(module: Any, cohort: Cohort, rows: Any, **named: Any) -> Predictions:
        tested.append(set(cohort.dataset.patients[rows].tolist()))
        return predict(module, cohort, rows, **named)

    monkeypatch.setattr(client.site, "train_round", watched_training)
    monkeypatch.setattr(runner, "predict_cohort", watched_test)
    result = run(tiny, "a", "data.folds=3", "training.rounds=1", baselines=False)
    predictions = result.predictions["federated"]
    images = Counter(zip(predictions.sites.tolist(), predictions.patients.tolist(), strict=True))
    assert len(images) == 24
    assert set(images.values()) == {2}
    assert len(trained) == len(tested) == 9  # fold after fold, site after site
    everybody = {patient for _, patient in images}
    for fold in range(3):
        seen = set.union(*trained[3 * fold : 3 * fold + 3])
        scored = set.union(*tested[3 * fold : 3 * fold + 3])
        assert seen | scored == everybody
        assert not seen & scored
    assert len(list((tiny / "a" / "folds").glob("*/model.safetensors"))) == 3
    assert all(site["rounds_joined"] == [1, 1, 1] for site in result.sites.values())


def test_each_model_sees_its_own_sites_only(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`local:NAME` trains on one hospital, `central` on all, and none on a test patient."""
    seen: list[tuple[int, set[str]]] = []
    train = arms.train_plain

    def watched(
        module: Any, examples: Examples, settings: Any, *, batch_size: int, **rest: Any
    ) -> None:
        seen.append((batch_size, set(examples.patients[examples.rows].tolist())))
        train(module, examples, settings, batch_size=batch_size, **rest)

    monkeypatch.setattr(arms, "train_plain", watched)
    run(tiny, "a", "training.rounds=1")
    study = load_study(tiny / "study.yaml")
    cohorts = [
        open_cohort(site, study, torch.device("cpu")) for site in simulated_sites(study).values()
    ]
    own = [set(c.dataset.patients[c.train_rows(0)].tolist()) for c in cohorts]
    # A central step takes as many images as the three sites' steps together.
    assert seen == [(24, set.union(*own)), (8, own[0]), (8, own[1]), (8, own[2])]


def test_all_models_start_from_the_same_weights(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A baseline that doesn't train is the federated model that doesn't train."""
    monkeypatch.setattr("client.training.train_plain", lambda *_, **__: None)
    monkeypatch.setattr(arms, "train_plain", lambda *_, **__: None)
    result = run(tiny, "a")
    scored = {name: found.probabilities.tobytes() for name, found in result.predictions.items()}
    assert len(scored) == 5
    assert len(set(scored.values())) == 1


def test_results_name_every_model_and_every_data(tiny: Path) -> None:
    """A private study has five kinds of rows, each on all, each site, and their mean."""
    result = run(tiny, "a", PRIVATE).as_json()
    locals_ = {"local:east", "local:north", "local:west"}
    assert set(result["evaluation"]) == {"federated", "central", "central-private"} | locals_
    for by_data in result["evaluation"].values():
        assert {"all", "mean-of-sites", "site:east", "site:north", "site:west"} == set(by_data)
    assert {c["minus"] for c in result["comparisons"]} == set(result["evaluation"]) - {"federated"}


def test_a_round_without_a_site_still_counts_for_its_privacy(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply that was left out may have been seen: epsilon counts every round asked for."""
    take = rounds._take

    def left_out(reply: Message, site: str, *rest: Any) -> str | None:
        return "late" if site == "west" else take(reply, site, *rest)

    monkeypatch.setattr(rounds, "_take", left_out)
    sites = run(tiny, "a", PRIVATE, baselines=False).sites
    assert sites["west"]["rounds_joined"] == 0
    assert sites["west"]["epsilon"] == sites["east"]["epsilon"] > 7


def test_baselines_can_be_added_later(tiny: Path) -> None:
    """Going on with a finished run trains what is missing and leaves what is there."""
    first = run(tiny, "a", baselines=False)
    model = (tiny / "a" / "model.safetensors").read_bytes()
    more = run(tiny, "a", baselines=True, resume=True)
    assert set(first.evaluation) == {"federated"}
    assert "central" in more.evaluation
    assert (tiny / "a" / "model.safetensors").read_bytes() == model


@pytest.mark.parametrize(
    ("changes", "how", "expected"),
    [
        ([], {"engine": "magic"}, "--engine must be one of inline"),
        (["model.name=cnn-smal"], {}, "Did you mean cnn-small"),
        (["federation.min_sites=4"], {}, "federation.min_sites must be at most 3"),
        (["data.test_share=0.99"], {}, "has no training patients"),
        (
            [
                "data.folds=2",
                "simulation.sites.east.exclude=["
                + ",".join(f"east-{n}" for n in range(1, 8))
                + "]",
            ],
            {},
            "east has no training patients in fold",
        ),
        ([PRIVATE, "simulation.sites.east.declared_patients=20000"], {}, "delta"),
        ([PRIVATE, "simulation.site_defaults.budget={epsilon: 1}"], {}, "ends before round"),
        # Each site alone could have this delta; their data together can't.
        ([PRIVATE, "simulation.site_defaults.declared_patients=4000"], {}, "12000 declared"),
    ],
)
def test_what_can_not_work_is_refused_before_anything_is_written(
    tiny: Path, changes: list[str], how: dict[str, Any], expected: str
) -> None:
    """The sentence names the key, and no run directory appears."""
    with pytest.raises(BadInput) as refused:
        run(tiny, "a", *changes, **how)
    assert expected in str(refused.value)
    assert not (tiny / "a").exists()


@pytest.mark.parametrize("absent", [(), (2, 9)])
def test_a_site_pays_for_no_round_that_it_is_absent_from(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, absent: tuple[int, ...]
) -> None:
    """A budget for all rounds but those is enough."""
    changes = [
        PRIVATE,
        "training.rounds=3",
        f"simulation.site_defaults.absent_rounds={list(absent)}",
    ]
    study = load_study(tiny / "study.yaml", changes)
    monkeypatch.setattr(runner, "lasting", lambda *_, **__: Lasting(2, 3, begun=False, after=9.0))
    with nullcontext() if absent else pytest.raises(BadInput, match="ends before round 3"):
        runner._check_budgets(study, simulated_sites(study))


def test_a_run_is_alone_in_its_folder_and_seen_to_be_at_work(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another start in the same folder is refused; once a run was interrupted, nobody works."""
    study, out = load_study(tiny / "study.yaml"), tiny / "run"

    def interrupted(*_given: object, **_more: object) -> None:
        assert is_at_work(out)
        with pytest.raises(BadInput, match="another process is at work"):
            simulations.run(study, out=out, baselines=False, resume=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_train_leg", interrupted)
    with pytest.raises(KeyboardInterrupt):
        simulations.run(study, out=out, baselines=False)
    assert not is_at_work(out)


def test_no_baselines_no_delta_of_all_together(tiny: Path) -> None:
    """Without the central model only each site's own number of patients limits delta.

    (That these sites have nowhere near the patients they declare is then their own objection.)
    """
    changes = [PRIVATE, "simulation.site_defaults.declared_patients=4000", "training.rounds=1"]
    with pytest.raises(RunFailed, match="too-few-patients"):
        run(tiny, "a", *changes, baselines=False)


def test_real_chest_x_rays_run_through(shared_data: Path, tmp_path: Path) -> None:
    """The study that fedward brings reads the four natural sites of real data, and calls it so."""
    changes = [
        f"simulation.data={shared_data / 'chest-xray-4-sites' / 'manifest.csv'}",
        *("data.folds=null", "data.image_size_px=32", "model.name=cnn-small", "training.rounds=1"),
    ]
    bundled = Path(simulations.__path__[0]) / "studies" / "chest-xray.yaml"
    result = simulations.run(load_study(bundled, changes), out=tmp_path / "run", baselines=False)
    assert sorted(site["patients"] for site in result.sites.values()) == [16, 33, 46, 57]
    assert result.data_label == "real"
    pooled = result.evaluation["federated"]["all"]["macro_auroc"]
    assert pooled.low is not None


@pytest.mark.parametrize("privacy", ["privacy.enabled=false", PRIVATE])
def test_short_wires_bring_the_same_study_in_fewer_bytes(tiny: Path, privacy: str) -> None:
    """Up goes a half or a quarter of the bytes, and the same study has the same bits again."""
    long = run(tiny, "long", privacy, baselines=False).bytes_up
    for wire, share in (("bfloat16", 0.52), ("int8", 0.28)):
        change = f"federation.wire={wire}"
        first, again = (run(tiny, wire + n, privacy, change, baselines=False) for n in "ab")
        assert first.weights_sha256 == again.weights_sha256
        assert first.bytes_up < share * long
