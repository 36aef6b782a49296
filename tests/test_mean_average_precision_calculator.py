"""The average precision of each class."""

import numpy as np
import pytest

from cats_vs_dogs.eval_util import top_k_by_class
from cats_vs_dogs.mean_average_precision_calculator import MeanAveragePrecisionCalculator


@pytest.mark.parametrize(("k", "key"), [(5, "metric_map_per_class"), (2, "metric_map_per_class_top2")])
def test_golden_values_of_2017(golden, k, key):
    calculator = MeanAveragePrecisionCalculator(5)
    assert calculator.is_empty()
    calculator.accumulate(*top_k_by_class(golden["metric_predictions"], golden["metric_labels"], k))
    assert not calculator.is_empty()
    np.testing.assert_allclose(calculator.peek_map_at_n(), golden[key], atol=1e-9, rtol=0)
    calculator.clear()
    assert calculator.is_empty()


def test_by_hand_without_counts():
    calculator = MeanAveragePrecisionCalculator(2)
    calculator.accumulate([[0.9, 0.1], [0.1, 0.9]], [[1, 0], [1, 0]])
    assert calculator.peek_map_at_n() == [1.0, 0.5]


def test_wrong_numbers_of_classes():
    with pytest.raises(ValueError, match="of at least 2"):
        MeanAveragePrecisionCalculator(1)
    with pytest.raises(ValueError):
        MeanAveragePrecisionCalculator(3).accumulate([[0.1], [0.2]], [[1], [0]])
