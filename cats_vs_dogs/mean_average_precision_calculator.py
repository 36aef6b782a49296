"""Average precision of each class, accumulated in pieces."""

from collections.abc import Sequence

from cats_vs_dogs.average_precision_calculator import AveragePrecisionCalculator


class MeanAveragePrecisionCalculator:
    """One `AveragePrecisionCalculator` a class.

    Args:
        num_class: number of classes, at least 2.

    Raises:
        ValueError: if `num_class` is not such a number.
    """

    def __init__(self, num_class: int):
        if not isinstance(num_class, int) or num_class <= 1:
            raise ValueError(f"num_class must be an integer above 1, got {num_class!r}.")
        self._ap_calculators = [AveragePrecisionCalculator() for _ in range(num_class)]

    def accumulate(
        self,
        predictions: Sequence[Sequence[float]],
        actuals: Sequence[Sequence[float]],
        num_positives: Sequence[float] | None = None,
    ) -> None:
        """Adds predictions and labels of every class.

        Args:
            predictions: for each class its scores.
            actuals: for each class the labels of those scores; above 0 is positive.
            num_positives: for each class the number of positives; None: count them in `actuals`.

        Raises:
            ValueError: if the number of classes or the lengths differ.
        """
        num_positives = [None] * len(predictions) if num_positives is None else num_positives
        pieces = zip(self._ap_calculators, predictions, actuals, num_positives, strict=True)
        for calculator, class_predictions, class_actuals, positives in pieces:
            calculator.accumulate(class_predictions, class_actuals, positives)

    def clear(self) -> None:
        """Forgets everything accumulated."""
        for calculator in self._ap_calculators:
            calculator.clear()

    def is_empty(self) -> bool:
        """Whether nothing was accumulated."""
        return all(calculator.heap_size == 0 for calculator in self._ap_calculators)

    def peek_map_at_n(self) -> list[float]:
        """Returns the average precision of each class, 0 for a class of which nothing was accumulated."""
        return [calculator.peek_ap_at_n() for calculator in self._ap_calculators]
