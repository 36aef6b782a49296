"""Average precision: by hand, and against the results of the 2017 calculator."""

import numpy as np
import pytest

from cats_vs_dogs.average_precision_calculator import AveragePrecisionCalculator


def test_by_hand():
    # Ranked: hit, miss, hit. Precisions at the hits: 1/1 and 2/3; their mean over two positives is 5/6.
    assert AveragePrecisionCalculator.ap([0.9, 0.1, 0.5], [1, 1, 0]) == pytest.approx((1 + 2 / 3) / 2)
    assert AveragePrecisionCalculator.ap([0.1, 0.9], [0, 1]) == 1.0
    assert AveragePrecisionCalculator.ap([0.1, 0.9], [0, 0]) == 0.0
    # Only the first two ranks are evaluated, and both are hits.
    assert AveragePrecisionCalculator.ap_at_n([4, 3, 2, 1], [1, 1, 1, 1], n=2) == 1.0
    # There are five positives; two are in the list.
    assert AveragePrecisionCalculator.ap_at_n([0.9, 0.8], [1, 1], None, total_num_positives=5) == pytest.approx(2 / 5)


def test_golden_values_of_2017(golden):
    predictions, labels = golden["metric_predictions"], golden["metric_labels"]
    ap = AveragePrecisionCalculator.ap(predictions[:, 0], labels[:, 0])
    ap_at_20 = AveragePrecisionCalculator.ap_at_n(predictions[:, 0], labels[:, 0], n=20)
    ties = AveragePrecisionCalculator.ap(golden["metric_tie_predictions"], golden["metric_tie_labels"])
    assert ap == pytest.approx(golden["metric_ap_column0"], abs=1e-9)
    assert ap_at_20 == pytest.approx(golden["metric_ap_at_20_column0"], abs=1e-9)
    assert ties == pytest.approx(golden["metric_ap_ties"], abs=1e-9)


def test_golden_value_accumulated_in_pieces(golden):
    calculator = AveragePrecisionCalculator(top_n=30)
    for i in range(0, 200, 50):
        predictions, labels = golden["metric_predictions"][i : i + 50, 1], golden["metric_labels"][i : i + 50, 1]
        calculator.accumulate(predictions, labels)
    assert calculator.peek_ap_at_n() == pytest.approx(golden["metric_ap_streamed_top30_column1"], abs=1e-9)
    assert calculator.heap_size == calculator.heap_size == 30
    assert calculator.num_accumulated_positives == np.count_nonzero(golden["metric_labels"][:, 1] > 0)
    calculator.clear()
    assert (calculator.heap_size, calculator.num_accumulated_positives, calculator.peek_ap_at_n()) == (0, 0, 0.0)


def test_top_n_is_kept_through_many_small_pieces():
    rng = np.random.default_rng(0)
    predictions, labels = rng.random(1000), rng.integers(0, 2, 1000)
    calculator = AveragePrecisionCalculator(top_n=7)
    for i in range(0, 1000, 10):
        calculator.accumulate(predictions[i : i + 10], labels[i : i + 10])
        assert calculator.heap_size == 7
    expected = AveragePrecisionCalculator.ap_at_n(predictions, labels, n=7)
    assert calculator.peek_ap_at_n() == pytest.approx(expected, abs=1e-12)


def test_all_equal_predictions_do_not_profit_from_the_order_of_labels():
    labels = np.repeat([1, 0], 60_000)  # Above the size up to which ties are broken as in 2017.
    assert AveragePrecisionCalculator.ap(np.full(120_000, 0.5), labels) == pytest.approx(0.5, abs=0.01)
    assert AveragePrecisionCalculator.ap(np.full(2_000, 0.5), labels[59_000:61_000]) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("top_n", [0, -1, 1.5])
def test_top_n_must_be_positive(top_n):
    with pytest.raises(ValueError, match="positive integer"):
        AveragePrecisionCalculator(top_n)


def test_unequal_lengths_and_negative_counts_are_refused():
    with pytest.raises(ValueError, match="2 predictions and 1 actuals"):
        AveragePrecisionCalculator().accumulate([0.1, 0.2], [1])
    with pytest.raises(ValueError, match="must be at least 0"):
        AveragePrecisionCalculator().accumulate([0.1], [1], num_positives=-1)
    with pytest.raises(ValueError, match="2 predictions and 1 actuals"):
        AveragePrecisionCalculator.ap([0.1, 0.2], [1])
