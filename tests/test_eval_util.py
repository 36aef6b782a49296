"""Metrics: by hand, and against the results of the 2017 code."""

import numpy as np
import pytest

from cats_vs_dogs import eval_util
from cats_vs_dogs.utils import UserError


def column(*values):
    return np.array(values, dtype=np.float64)[:, np.newaxis]


def test_golden_values_of_2017(golden):
    predictions, labels = golden["metric_predictions"], golden["metric_labels"]
    perr = eval_util.calculate_precision_at_equal_recall_rate(predictions, labels)
    assert perr == pytest.approx(golden["metric_perr"], abs=1e-9)
    assert eval_util.calculate_gap(predictions, labels, 20) == pytest.approx(golden["metric_gap_top20"], abs=1e-9)
    assert eval_util.calculate_gap(predictions, labels, 2) == pytest.approx(golden["metric_gap_top2"], abs=1e-9)
    hit = eval_util.calculate_hit_at_one(golden["binary_predictions"], golden["binary_labels"])
    assert hit == pytest.approx(golden["binary_hit_at_one"], abs=1e-9)


def test_a_probability_of_one_half_is_a_cat():
    assert eval_util.calculate_hit_at_one(column(0.5, 0.5), column(0, 1)) == 0.5


def test_perr_of_two_columns_is_the_accuracy():
    probabilities, labels = column(0.9, 0.2, 0.6, 0.3), column(1, 0, 0, 0)
    both = eval_util.as_two_columns(probabilities), eval_util.as_two_columns(labels)
    np.testing.assert_allclose(both[0][1], [0.8, 0.2])
    assert eval_util.calculate_precision_at_equal_recall_rate(*both) == 0.75


def test_top_k_by_class():
    predictions = np.array([[0.1, 0.7, 0.2], [0.5, 0.1, 0.4]])
    labels = np.array([[1, 0, 0], [1, 0, 0]])
    top, top_labels, positives = eval_util.top_k_by_class(predictions, labels, 2)
    assert [list(row) for row in top] == [[0.5], [0.7], [0.2, 0.4]]
    assert [list(row) for row in top_labels] == [[1], [0], [0, 0]]
    assert positives == [2, 0, 0]  # The first cat is not among the top two, but counts as a positive.
    with pytest.raises(ValueError, match="positive"):
        eval_util.top_k_by_class(predictions, labels, 0)


def test_log_loss_auc_and_confusion_by_hand():
    probabilities, labels = column(0.9, 0.4, 0.4, 0.2), column(1, 1, 0, 0)
    expected = -np.mean(np.log([0.9, 0.4, 0.6, 0.8]))
    assert eval_util.calculate_log_loss(probabilities, labels) == pytest.approx(expected)
    assert eval_util.calculate_log_loss(column(0.0), column(1)) == pytest.approx(-np.log(1e-7))
    # Pairs of a dog and a cat: 0.9 wins twice, 0.4 wins once and ties once.
    assert eval_util.calculate_roc_auc(probabilities, labels) == pytest.approx(3.5 / 4)
    assert eval_util.calculate_roc_auc(column(0.1, 0.2), column(1, 1)) == 0.5  # Only one class.
    assert eval_util.calculate_confusion(probabilities, labels) == {
        "cats_as_cats": 2,
        "cats_as_dogs": 0,
        "dogs_as_cats": 1,
        "dogs_as_dogs": 1,
    }


def test_auc_does_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (500, 1))
    probabilities = np.round(np.clip(0.3 * labels + rng.random((500, 1)) * 0.7, 0, 1), 2)  # with ties
    pairs = probabilities[labels == 1][:, None] - probabilities[labels == 0]
    expected = np.mean((pairs > 0) + 0.5 * (pairs == 0))
    assert eval_util.calculate_roc_auc(probabilities, labels) == pytest.approx(expected)


def test_accumulated_batches_equal_one_batch():
    rng = np.random.default_rng(1)
    probabilities, labels = rng.random((300, 1)), rng.integers(0, 2, (300, 1))
    whole, pieces = eval_util.EvaluationMetrics(2, 2), eval_util.EvaluationMetrics(2, 2)
    whole.accumulate(probabilities, labels, 0.5)
    for start, stop in ((0, 7), (7, 200), (200, 300)):
        batch = pieces.accumulate(probabilities[start:stop], labels[start:stop], 0.5)
    assert batch["hit_at_one"] == eval_util.calculate_hit_at_one(probabilities[200:], labels[200:])
    expected, found = whole.get(), pieces.get()
    for key in ("confusion", "precision", "recall", "f1"):
        assert found.pop(key) == expected.pop(key)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-12)
    pieces.clear()
    with pytest.raises(ValueError, match="Nothing"):
        pieces.get()


def test_precision_recall_and_f1_by_hand():
    # Of 10 cats 8 are called cats; of 20 dogs 15 are called dogs.
    confusion = {"cats_as_cats": 8, "cats_as_dogs": 2, "dogs_as_cats": 5, "dogs_as_dogs": 15}
    found = eval_util.calculate_precision_recall_f1(confusion)
    assert found["precision"] == pytest.approx({"cat": 8 / 13, "dog": 15 / 17})
    assert found["recall"] == pytest.approx({"cat": 0.8, "dog": 0.75})
    for animal, f1 in found["f1"].items():
        precision, recall = found["precision"][animal], found["recall"][animal]
        assert f1 == pytest.approx(2 * precision * recall / (precision + recall))
    only_dogs = {"cats_as_cats": 0, "cats_as_dogs": 0, "dogs_as_cats": 0, "dogs_as_dogs": 3}
    nothing, everything = {"cat": 0.0, "dog": 1.0}, eval_util.calculate_precision_recall_f1(only_dogs)
    assert everything == {"precision": nothing, "recall": nothing, "f1": nothing}


def test_ece_by_hand():
    # Five bins. (0.6, 0.8]: two answers of confidence 0.7 and 0.8 (a cat: 1 - 0.2), one right; (0.8, 1]: 0.9, right.
    probabilities, labels = column(0.7, 0.2, 0.9), column(1, 1, 1)
    expected = 2 / 3 * abs(1 / 2 - 0.75) + 1 / 3 * abs(1 - 0.9)
    assert eval_util.calculate_ece(probabilities, labels, num_bins=5) == pytest.approx(expected)
    assert eval_util.calculate_ece(column(0.0, 1.0), column(0, 1)) == 0.0
    assert eval_util.calculate_ece(column(0.0, 1.0), column(1, 0)) == 1.0
    assert eval_util.calculate_ece(column(0.5), column(0)) == 0.5  # A probability of 0.5 means "cat".


def test_ece_by_a_loop_over_bins():
    rng = np.random.default_rng(2)
    probabilities, labels = rng.random((400, 1)).astype(np.float32), rng.integers(0, 2, (400, 1))
    dog = probabilities[:, 0].astype(np.float64)
    confidence, right = np.maximum(dog, 1 - dog), (dog > 0.5) == (labels[:, 0] == 1)
    expected = 0.0
    for m in range(1, 16):
        members = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if members.any():
            expected += members.mean() * abs(right[members].mean() - confidence[members].mean())
    assert eval_util.calculate_ece(probabilities, labels) == pytest.approx(expected)


def test_the_surest_mistakes_first():
    probabilities, labels = column(0.9, 0.9, 0.6, 0.1, 0.5, 0.2, 0.9), column(0, 1, 0, 1, 1, 0, 0)
    assert eval_util.worst_mistakes(probabilities, labels).tolist() == [0, 3, 6, 2, 4]  # Ties keep their order.
    metrics = eval_util.EvaluationMetrics(2, 2)
    for part in (slice(0, 4), slice(4, 7)):
        ids = np.array([b"0", b"1", b"2", b"3", b"4", b"5", b"6"], object)[part]
        metrics.accumulate(probabilities[part], labels[part], 0.5, ids)
    expected = [(b"0", 0, 0.9), (b"3", 1, 0.1), (b"6", 0, 0.9), (b"2", 0, 0.6), (b"4", 1, 0.5)]
    assert metrics.mistakes() == expected


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan, np.inf])
def test_what_is_no_probability_is_refused(value):
    eval_util.check_probabilities(column(0.0, 1.0), "AnyLoss")
    with pytest.raises(UserError, match="--label_loss=AnyLoss: its probability()"):
        eval_util.check_probabilities(column(0.5, value), "AnyLoss")


def test_the_interval_of_a_share():
    # By hand for 8 of 10: (0.8 + 0.19207 ± 1.95996 * sqrt(0.016 + 0.0096036)) / 1.38415.
    np.testing.assert_allclose(eval_util.interval(8, 10), (0.4902, 0.9433), atol=1e-4)
    np.testing.assert_allclose(eval_util.interval(10, 10), (0.7225, 1), atol=1e-4)
    np.testing.assert_allclose(eval_util.interval(0, 10), (0, 0.2775), atol=1e-4)
