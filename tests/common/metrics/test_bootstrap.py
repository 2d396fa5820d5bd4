"""The patient bootstrap against a plain loop, its refusals to estimate, and its coverage."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from common.errors import BadInput
from common.metrics import (
    Estimate,
    Evaluation,
    Predictions,
    compare,
    evaluate,
    evaluate_by_group,
    evaluate_by_site,
    point_metrics,
)
from common.metrics.bootstrap import _patient_resamples


def cohort(
    seed: int,
    *,
    patients: dict[str, tuple[int, ...]],
    images: int = 3,
    signal: float = 1.0,
    stray: float = 0.1,
) -> Predictions:
    """A federation: site -> patients per class, `images` each, a share `stray` labelled otherwise.

    Images of a patient share half of their variance; columns come shuffled, as files do.
    """
    random = np.random.default_rng(seed)
    rows = []
    for site, per_class in patients.items():
        number = 0
        for label, count in enumerate(per_class):
            for _ in range(count):
                number += 1
                own = random.normal(size=len(per_class))
                for _ in range(images):
                    other = int(random.integers(len(per_class)))
                    shown = other if random.random() < stray else label
                    scores = own + random.normal(size=len(per_class))
                    scores[shown] += signal
                    rows.append((site, number, shown, scores))
    rows = [rows[i] for i in random.permutation(len(rows))]
    odds = np.exp(np.array([row[3] for row in rows]))
    return Predictions(
        labels=np.array([row[2] for row in rows]),
        probabilities=odds / odds.sum(axis=1, keepdims=True),
        patients=np.array([row[1] for row in rows]),
        sites=np.array([row[0] for row in rows]),
        classes=tuple("abcde"[: len(next(iter(patients.values())))]),
        groups={"sex": np.array(["F" if row[1] % 2 else "M" for row in rows])},
    )


def exams(
    seed: int, *, sites: dict[str, int], labels: int = 3, share: float = 0.5, signal: float = 1.5
) -> Predictions:
    """Exams of one image each: site -> how many; the later labels occur only with the first."""
    random = np.random.default_rng(seed)
    number = sum(sites.values())
    truth = (random.random((number, labels)) < share).astype(int)
    truth[:, 1:] *= truth[:, :1]
    scores = signal * truth + random.normal(size=truth.shape) - signal / 2
    return Predictions(
        labels=truth,
        probabilities=1 / (1 + np.exp(-scores)),
        patients=np.arange(number),
        sites=np.repeat(list(sites), list(sites.values())),
        classes=("abnormal", "acl", "meniscus", *(f"other-{k}" for k in range(3, labels)))[:labels],
        unit="exam",
    )


def other_model(of: Predictions, seed: int, *, noise: float) -> Predictions:
    """A second model on the same images: the first one's scores with noise."""
    random = np.random.default_rng(seed)
    odds = of.probabilities * np.exp(noise * random.normal(size=of.probabilities.shape))
    return replace(of, probabilities=odds / odds.sum(axis=1, keepdims=True))


def plain_metrics(of: Predictions, weights: np.ndarray) -> dict[str, float]:
    """The metrics of weighted images, as scikit-learn computes them."""
    labels, probabilities = of.labels, of.probabilities
    if of.multi_label:
        said = (probabilities >= 0.5).astype(int)
        acl = (labels[:, 1], said[:, 1])
        return {
            "accuracy": accuracy_score(
                labels.ravel(), said.ravel(), sample_weight=weights.repeat(labels.shape[1])
            ),
            "macro_auroc": roc_auc_score(labels, probabilities, sample_weight=weights),
            "precision:acl": precision_score(*acl, sample_weight=weights),
            "recall:acl": recall_score(*acl, sample_weight=weights),
            "specificity:acl": recall_score(*acl, pos_label=0, sample_weight=weights),
            "auroc:acl": roc_auc_score(acl[0], probabilities[:, 1], sample_weight=weights),
        }
    predicted = probabilities.argmax(axis=1)
    aurocs = [
        roc_auc_score(labels == k, probabilities[:, k], sample_weight=weights)
        for k in range(len(of.classes))
    ]
    hits = (labels == 1, predicted == 1)
    return {
        "accuracy": accuracy_score(labels, predicted, sample_weight=weights),
        "balanced_accuracy": balanced_accuracy_score(labels, predicted, sample_weight=weights),
        "macro_auroc": float(np.mean(aurocs)),
        "precision:b": precision_score(*hits, sample_weight=weights),
        "recall:b": recall_score(*hits, sample_weight=weights),
        "auroc:b": aurocs[1],
    }


def plain_resample(of: Predictions, random: np.random.Generator) -> np.ndarray:
    """Weights of one resample by a plain loop over strata (site, majority class) and patients."""
    images: dict[tuple[str, int], list[int]] = {}
    for row, key in enumerate(zip(of.sites.tolist(), of.patients.tolist(), strict=True)):
        images.setdefault(key, []).append(row)
    strata: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for key, rows in images.items():
        labels = Counter(int(of.labels[row]) for row in rows)
        majority = min(labels, key=lambda label: (-labels[label], label))
        strata.setdefault((key[0], majority), []).append(key)
    weights = np.zeros(len(of))
    for members in strata.values():
        for _ in range(len(members) - 1):
            weights[images[members[random.integers(len(members))]]] += 1 / (len(members) - 1)
        weights[[row for key in members for row in images[key]]] *= len(members)
    return weights


def assert_same(one: Evaluation, other: Evaluation) -> None:
    """Equal but for the rounding of sums in another order."""
    assert one.keys() == other.keys()
    for name, estimate in one.items():
        assert estimate.as_json() == pytest.approx(other[name].as_json(), abs=1e-12), name


TWO_SITES = {"north": (14, 12, 11), "south": (11, 13, 15)}


@pytest.mark.parametrize(
    "of", [cohort(1, patients=TWO_SITES), exams(1, sites={"north": 50, "south": 60})]
)
def test_interval_is_that_of_scikit_learn_on_each_resample(of: Predictions) -> None:
    """Value and both ends are what a loop over the resamples gives that calls scikit-learn."""
    estimates = evaluate(of, seed=5, resamples=100)
    exact = plain_metrics(of, np.ones(len(of)))
    loop = [plain_metrics(of, row) for row in np.concatenate(list(_patient_resamples(of, 5, 100)))]
    for name, value in exact.items():
        low, high = np.quantile([each[name] for each in loop], (0.025, 0.975))
        assert estimates[name].value == pytest.approx(value, abs=1e-12), name
        assert estimates[name].low == pytest.approx(low, abs=1e-12), name
        assert estimates[name].high == pytest.approx(high, abs=1e-12), name


def test_interval_is_that_of_a_plain_bootstrap() -> None:
    """A loop with its own draws of patients finds the same interval of the accuracy."""
    of = cohort(1, patients={"north": (14, 12, 3), "south": (4, 13, 15)})
    hits = of.labels == of.probabilities.argmax(axis=1)
    random = np.random.default_rng(9)
    loop = [np.average(hits, weights=plain_resample(of, random)) for _ in range(2000)]
    low, high = np.quantile(loop, (0.025, 0.975))
    estimate = evaluate(of, seed=5, resamples=4000)["accuracy"]
    slack = 0.1 * (high - low)  # two bootstraps with other draws; one of images differs by 0.3
    assert estimate.low == pytest.approx(low, abs=slack)
    assert estimate.high == pytest.approx(high, abs=slack)


def test_weights_draw_whole_patients_within_site_and_class() -> None:
    """All images of a patient get one weight, and each stratum keeps its total."""
    of = cohort(2, patients=TWO_SITES)
    weights = np.concatenate(list(_patient_resamples(of, 3, 120)))
    assert weights.shape == (120, len(of))
    strata: dict[tuple[str, int], list[int]] = {}
    for patient in np.unique(of.patient_index):
        images = np.flatnonzero(of.patient_index == patient)
        assert (weights[:, images] == weights[:, images[:1]]).all()
        label = int(np.bincount(of.labels[images]).argmax())
        strata.setdefault((str(of.sites[images[0]]), label), []).append(int(images[0]))
    for firsts in strata.values():
        assert weights[:, firsts].sum(axis=1) == pytest.approx(len(firsts))
    assert (weights.std(axis=0) > 0).all()


def test_small_strata_do_not_narrow_the_interval() -> None:
    """The weights vary as much as a mean of n patients does: s^2 / n with s^2 over n - 1."""
    of = cohort(2, patients={"north": (3, 3), "south": (3, 3)}, images=1, stray=0)
    weights = np.concatenate(list(_patient_resamples(of, 3, 20_000)))
    scores = of.probabilities[:, 1]
    expected = sum(
        3 * scores[(of.sites == site) & (of.labels == label)].var(ddof=1)
        for site in ("north", "south")
        for label in (0, 1)
    )
    assert (weights @ scores).var() == pytest.approx(expected, rel=0.05)


def test_lone_patients_of_a_class_vary_together() -> None:
    """A site's only patient of a class is drawn among those of other sites, not fixed."""
    of = cohort(2, patients={"north": (9, 1), "south": (9, 1)}, images=1, stray=0)
    weights = np.concatenate(list(_patient_resamples(of, 3, 200)))
    assert (weights[:, of.labels == 1].std(axis=0) > 0).all()
    assert weights[:, of.labels == 1].sum(axis=1) == pytest.approx(2)


def test_lone_combinations_vary_together() -> None:
    """With many labels nearly every exam has its own combination; still every one is drawn."""
    of = exams(2, sites={"north": 20, "south": 20}, labels=12)
    alone = np.unique(of.labels, axis=0, return_counts=True)[1] == 1
    assert alone.sum() > 10
    weights = np.concatenate(list(_patient_resamples(of, 3, 200)))
    assert (weights.std(axis=0) > 0).all()
    assert weights.sum(axis=1) == pytest.approx(len(of))


def test_exams_are_drawn_within_site_and_combination_of_labels() -> None:
    """Every site keeps its numbers of each combination, so of each label."""
    of = exams(3, sites={"north": 60, "south": 80})
    weights = np.concatenate(list(_patient_resamples(of, 3, 120)))
    for site in of.site_names:
        here = of.sites == site
        assert np.unique(of.labels[here], axis=0, return_counts=True)[1].min() > 1
        for row in np.unique(of.labels[here], axis=0):
            same = here & (of.labels == row).all(axis=1)
            assert weights[:, same].sum(axis=1) == pytest.approx(same.sum())
    assert (weights.std(axis=0) > 0).all()


def test_a_patients_stratum_is_their_most_frequent_combination() -> None:
    """Images of one patient with other labels come along; the combination that most have counts."""
    once = exams(4, sites={"north": 60}, labels=2)
    rows = np.repeat(np.arange(len(once)), 3)
    labels = once.labels[rows]
    labels[::3] = 1 - labels[::3]  # one image of three
    often = replace(
        once,
        labels=labels,
        probabilities=once.probabilities[rows],
        patients=once.patients[rows],
        sites=once.sites[rows],
    )
    drawn = [np.concatenate(list(_patient_resamples(of, 3, 100))) for of in (often, once)]
    assert np.array_equal(drawn[0], drawn[1][:, rows])


def test_ten_exams_with_and_without_a_label_are_needed() -> None:
    """The reason names the label, whether it is short of exams with it or without, and exams."""
    of = exams(5, sites={"north": 60}, labels=2)
    labels = of.labels.copy()
    labels[:, 1] = np.arange(60) < 9
    few = evaluate(replace(of, labels=labels), seed=1)
    for name in ("accuracy", "balanced_accuracy", "macro_auroc", "recall:acl", "auroc:acl"):
        assert few[name].value is not None
        assert few[name].low is None
        assert few[name].reason == "fewer than 10 exams with the label acl", name
    assert few["specificity:acl"].low is not None
    assert few["auroc:abnormal"].low is not None
    labels[:, 1] = np.arange(60) >= 9
    most = evaluate(replace(of, labels=labels), seed=1)
    for name in ("accuracy", "macro_auroc", "specificity:acl", "auroc:acl"):
        assert most[name].reason == "fewer than 10 exams without the label acl", name
    assert most["recall:acl"].low is not None
    labels[:, 1] = np.arange(60) < 10
    assert evaluate(replace(of, labels=labels), seed=1)["macro_auroc"].low is not None


def test_a_label_that_is_rarely_said_has_no_interval_of_precision() -> None:
    """Precision rests on the exams of which the label is said; that nobody is has its reason."""
    of = exams(6, sites={"north": 60}, labels=1)
    low = np.full((60, 1), 0.1)
    assert evaluate(replace(of, probabilities=low), seed=1)["precision:abnormal"] == Estimate(
        None, reason="no exam predicted to have the label abnormal"
    )
    low[np.flatnonzero(of.labels)[:9]] = 0.9
    assert evaluate(replace(of, probabilities=low), seed=1)["precision:abnormal"] == Estimate(
        1.0, reason="fewer than 10 exams predicted to have the label abnormal"
    )


def test_a_label_that_all_or_none_have_is_not_estimable() -> None:
    """Where a label does not vary, its AUROC and the means have no value and say why."""
    of = exams(7, sites={"north": 60}, labels=2)
    for value, what in ((0, "with"), (1, "without")):
        labels = of.labels.copy()
        labels[:, 1] = value
        found = evaluate(replace(of, labels=labels), seed=1)
        absent = Estimate(None, reason=f"no exam {what} the label acl")
        assert found["auroc:acl"] == found["macro_auroc"] == found["balanced_accuracy"] == absent
        assert found["accuracy"].low is not None


def test_a_site_without_test_exams_is_no_obstacle() -> None:
    """No exams give no values; a site where a label is missing is left out of the mean."""
    of = exams(8, sites={"north": 60, "south": 60, "west": 30}, labels=2)
    nobody = evaluate(of.at_site("nowhere"), seed=1)
    assert {estimate.value for estimate in nobody.values()} == {None}
    assert nobody["accuracy"].reason == "no exam at all"
    labels = of.labels.copy()
    labels[of.sites == "west", 1] = 0
    found = evaluate_by_site(replace(of, labels=labels), seed=1)
    assert found["mean-of-sites"]["macro_auroc"].reason == "without a value at west"
    assert found["site:west"]["macro_auroc"].reason == "no exam with the label acl"


def test_repeating_every_image_changes_no_interval() -> None:
    """Copies of a patient's images bring no certainty: a bootstrap of images would narrow."""
    once = cohort(3, patients={"north": (15, 15)}, images=1, stray=0)
    rows = np.repeat(np.arange(len(once)), 20)
    often = Predictions(
        labels=once.labels[rows],
        probabilities=once.probabilities[rows],
        patients=once.patients[rows],
        sites=once.sites[rows],
        classes=once.classes,
    )
    assert_same(evaluate(often, seed=1), evaluate(once, seed=1))


def test_same_seed_same_interval() -> None:
    """The seed alone decides the resamples."""
    of = cohort(4, patients=TWO_SITES)
    first = evaluate(of, seed=1)["macro_auroc"]
    assert evaluate(of, seed=1)["macro_auroc"] == first
    assert evaluate(of, seed=2)["macro_auroc"] != first


def test_order_of_files_changes_nothing() -> None:
    """Images listed in another order give the same estimates."""
    of = cohort(5, patients=TWO_SITES)
    order = np.random.default_rng(0).permutation(len(of))
    shuffled = Predictions(
        labels=of.labels[order],
        probabilities=of.probabilities[order],
        patients=of.patients[order],
        sites=of.sites[order],
        classes=of.classes,
    )
    assert_same(evaluate(shuffled, seed=1), evaluate(of, seed=1))


def test_ten_patients_of_a_class_are_needed_for_an_interval() -> None:
    """With nine the value stands alone with its reason; with ten it has an interval."""
    nine = evaluate(cohort(6, patients={"n": (9, 30)}, stray=0), seed=1)["macro_auroc"]
    assert nine.value is not None
    assert (nine.low, nine.high) == (None, None)
    assert nine.reason == "fewer than 10 patients of class a"
    ten = evaluate(cohort(6, patients={"n": (10, 30)}, stray=0), seed=1)["macro_auroc"]
    assert ten.low is not None
    assert ten.reason == ""


def test_only_the_classes_involved_are_counted() -> None:
    """A rare class takes the interval from its own metrics and from the means, not from others."""
    estimates = evaluate(cohort(7, patients={"n": (30, 30, 4)}, stray=0), seed=1)
    without = {name for name, estimate in estimates.items() if estimate.low is None}
    assert without == {
        "accuracy",
        "balanced_accuracy",
        "macro_auroc",
        "precision:c",
        "recall:c",
        "auroc:c",
    }


def test_auroc_needs_patients_of_other_classes() -> None:
    """A class is ranked against the rest, so the rest needs ten patients too."""
    few = evaluate(cohort(8, patients={"n": (30, 9)}, stray=0), seed=1)["auroc:a"]
    assert few.reason == "fewer than 10 patients of a class other than a"
    none = evaluate(cohort(8, patients={"n": (5, 0)}, stray=0), seed=1)["auroc:a"]
    assert none == Estimate(None, reason="no patient of a class other than a")


def test_absent_class_has_no_value_and_says_so() -> None:
    """A class without patients is not estimable, with its name as the reason."""
    estimates = evaluate(cohort(8, patients={"n": (12, 12, 0)}, stray=0), seed=1)
    assert estimates["recall:c"] == Estimate(None, reason="no patient of class c")
    assert estimates["macro_auroc"] == Estimate(None, reason="no patient of class c")
    assert estimates["accuracy"].low is not None


def test_a_class_that_is_rarely_predicted_has_no_interval_of_precision() -> None:
    """Precision rests on the patients predicted as the class, so these are counted too."""
    of = cohort(9, patients={"n": (20, 20)}, stray=0)
    probabilities = np.tile([0.9, 0.1], (len(of), 1))
    probabilities[np.flatnonzero(of.labels == 1)[:2]] = [0.1, 0.9]
    precision = evaluate(replace(of, probabilities=probabilities), seed=1)["precision:b"]
    assert precision == Estimate(1.0, reason="fewer than 10 patients predicted as b")


def test_perfection_has_no_interval() -> None:
    """At an AUROC of 1 every resample says 1, which bounds nothing: no interval of zero width."""
    perfect = cohort(10, patients={"n": (20, 20)}, signal=100.0, stray=0)
    assert evaluate(perfect, seed=1)["macro_auroc"] == Estimate(
        1.0, reason="every resample gives the same value"
    )


def test_no_images_are_not_estimable() -> None:
    """A data set without test images gives estimates without values, not an exception."""
    nobody = cohort(1, patients=TWO_SITES).at_site("nowhere")
    estimates = evaluate(nobody, seed=1)
    assert {estimate.value for estimate in estimates.values()} == {None}
    assert estimates["accuracy"].reason == "no patient at all"


def test_too_few_resamples_are_refused() -> None:
    """A 95 % interval from a handful of resamples is refused."""
    with pytest.raises(BadInput, match="At least 100 resamples"):
        evaluate(cohort(1, patients=TWO_SITES), seed=1, resamples=20)


def test_by_site_gives_pooled_mean_and_each_site() -> None:
    """The pooled values, each site's own values and their unweighted mean stand side by side."""
    of = cohort(11, patients={"north": (40, 30), "south": (12, 15)})
    found = evaluate_by_site(of, seed=1)
    assert list(found) == ["all", "mean-of-sites", "site:north", "site:south"]
    values = []
    for name in ("north", "south"):
        exact = point_metrics(of.at_site(name))
        assert {m: e.value for m, e in found[f"site:{name}"].items()} == exact
        values.append(exact["macro_auroc"])
    mean = found["mean-of-sites"]["macro_auroc"]
    assert mean.value == pytest.approx(np.mean(values))
    assert mean.low is not None
    assert mean.value is not None
    assert mean.high is not None
    assert mean.low < mean.value < mean.high
    assert found["all"]["macro_auroc"] == evaluate(of, seed=1)["macro_auroc"]


def test_mean_of_sites_has_the_interval_of_independent_sites() -> None:
    """Its width is that of a mean of independent site values: root of summed squares over n."""
    of = cohort(12, patients={"north": (40, 30), "south": (12, 15)})
    found = evaluate_by_site(of, seed=1, resamples=4000)

    def width(data: str) -> float:
        estimate = found[data]["macro_auroc"]
        assert estimate.low is not None
        assert estimate.high is not None
        return estimate.high - estimate.low

    expected = np.hypot(width("site:north"), width("site:south")) / 2
    assert width("mean-of-sites") == pytest.approx(expected, rel=0.08)


def test_mean_of_sites_leaves_out_who_has_no_value_and_says_so() -> None:
    """A site with one class has no AUROC; the mean is over the others and names it."""
    of = cohort(13, patients={"north": (20, 20), "south": (20, 20), "west": (12, 0)}, stray=0)
    mean = evaluate_by_site(of, seed=1)["mean-of-sites"]["macro_auroc"]
    of_two = of.where(of.sites != "west")
    assert mean.value == evaluate_by_site(of_two, seed=1)["mean-of-sites"]["macro_auroc"].value
    assert mean.low is not None
    assert mean.reason == "without a value at west"


def test_mean_of_sites_has_no_interval_where_a_site_has_none() -> None:
    """A small site enters the mean with its value and takes the interval away."""
    of = cohort(14, patients={"north": (20, 20), "south": (5, 5)}, stray=0)
    mean = evaluate_by_site(of, seed=1)["mean-of-sites"]["macro_auroc"]
    assert mean.value is not None
    assert mean.low is None
    assert mean.reason == "no interval at south"


def test_by_group_evaluates_each_value_of_the_column() -> None:
    """Each subgroup is evaluated on its own images."""
    of = cohort(15, patients=TWO_SITES)
    found = evaluate_by_group(of, "sex", seed=1)
    assert list(found) == ["sex:F", "sex:M"]
    assert found["sex:F"] == evaluate(of.in_group("sex", "F"), seed=1)


def test_difference_is_paired() -> None:
    """Two nearly equal models differ by far less than the width of either interval."""
    a = cohort(16, patients=TWO_SITES)
    b = other_model(a, 1, noise=0.2)
    difference = compare(a, b, seed=1)
    alone = evaluate(a, seed=1)["macro_auroc"]
    assert None not in (difference.low, difference.high, alone.low, alone.high)
    exact = [point_metrics(model)["macro_auroc"] for model in (a, b)]
    assert difference.value == pytest.approx(exact[0] - exact[1])
    assert difference.high - difference.low < 0.4 * (alone.high - alone.low)


def test_difference_changes_sign_with_the_order() -> None:
    """a against b is the mirror image of b against a."""
    a = cohort(17, patients=TWO_SITES)
    b = other_model(a, 1, noise=2.0)
    forth, back = compare(a, b, seed=1), compare(b, a, seed=1)
    assert forth.value == pytest.approx(-back.value)
    assert forth.low == pytest.approx(-back.high)
    assert forth.value > 0


def test_difference_needs_the_same_images() -> None:
    """Other patients, another order or an unknown metric are refused."""
    a = cohort(18, patients=TWO_SITES)
    with pytest.raises(BadInput, match="same images in the same order"):
        compare(a, cohort(19, patients=TWO_SITES), seed=1)
    with pytest.raises(BadInput, match="same images in the same order"):
        compare(a, replace(a, patients=a.patients + 1), seed=1)
    with pytest.raises(BadInput, match="got 'auc'"):
        compare(a, a, metric="auc", seed=1)


def test_difference_with_few_patients_has_no_interval() -> None:
    """The rule of ten patients holds for differences too."""
    a = cohort(20, patients={"n": (9, 30)}, stray=0)
    difference = compare(a, other_model(a, 1, noise=1.0), seed=1)
    assert difference.value is not None
    assert difference.low is None
    assert difference.reason == "fewer than 10 patients of class a"


def test_difference_of_two_models_on_labels_is_paired() -> None:
    """Multi-label models are compared on the same resamples of exams; other labels are refused."""
    a = exams(21, sites={"north": 60, "south": 60})
    b = replace(a, probabilities=a.probabilities**1.5)  # the same ranking
    assert compare(a, b, seed=1).value == pytest.approx(0)
    recall = compare(a, b, metric="recall:acl", seed=1)
    exact = [point_metrics(model)["recall:acl"] for model in (a, b)]
    assert recall.value == pytest.approx(exact[0] - exact[1])
    assert recall.low is not None
    with pytest.raises(BadInput, match="same images in the same order"):
        compare(a, replace(b, labels=1 - b.labels), seed=1)


@pytest.mark.parametrize(("labels", "number"), [(3, 100), (10, 120)])
def test_intervals_of_labels_cover_the_truth_as_often_as_they_should(
    labels: int, number: int
) -> None:
    """With three labels and with so many that combinations are rare: about 93 times in 100."""
    # Each label's scores are normal, 1.1902 apart: AUROC .80. Without the last joining of what is
    # alone, the ten labels' mean was covered 68 times in 100.
    repeats, inside = 120, 0
    for repeat in range(repeats):
        of = exams(
            1000 + repeat, sites={"n": number // 2, "s": number // 2}, labels=labels, signal=1.1902
        )
        estimate = evaluate(of, seed=repeat, resamples=200)["macro_auroc"]
        assert estimate.low is not None
        assert estimate.high is not None
        inside += estimate.low <= 0.80 <= estimate.high
    assert 0.86 <= inside / repeats <= 0.985


def test_interval_covers_the_truth_as_often_as_it_should() -> None:
    """At 60 patients of 4 images the interval holds the true AUROC about 93 times in 100."""
    # Scores are normal with unit variance and means 0 and 1.19: AUROC = Phi(1.19 / sqrt 2) = .80.
    repeats, inside = 200, 0
    for repeat in range(repeats):
        random = np.random.default_rng([20, repeat])
        labels = np.repeat(np.arange(60) % 2, 4)
        own = np.repeat(random.normal(size=60), 4)
        score = 1.1902 * labels + (own + random.normal(size=240)) / np.sqrt(2)
        chance = 1 / (1 + np.exp(-score))
        of = Predictions(
            labels=labels,
            probabilities=np.stack([1 - chance, chance], axis=1),
            patients=np.repeat(np.arange(60), 4),
            sites=np.full(240, "n"),
            classes=("a", "b"),
        )
        estimate = evaluate(of, seed=repeat, resamples=400)["macro_auroc"]
        assert estimate.low is not None
        assert estimate.high is not None
        inside += estimate.low <= 0.80 <= estimate.high
    # Binomial noise of 200 repeats is 2 points; a bootstrap of images covers about 70 %.
    assert 0.88 <= inside / repeats <= 0.985
