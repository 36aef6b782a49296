"""The average precision of each class, accumulated in pieces."""

from collections.abc import Sequence

from cats_vs_dogs.average_precision_calculator import AveragePrecisionCalculator


class MeanAveragePrecisionCalculator:
    """Calculates the average precision of each class.

    Args:
        num_class: number of classes, at least 2.

    Raises:
        ValueError: if `num_class` is not an integer of at least 2.
    """

    def __init__(self, num_class: int):
        if not isinstance(num_class, int) or num_class <= 1:
            raise ValueError(f"num_class must be an integer of at least 2, got {num_class!r}.")
        self._ap_calculators = [AveragePrecisionCalculator() for _ in range(num_class)]

    def accumulate(
        self,
        predictions: Sequence[Sequence[float]],
        actuals: Sequence[Sequence[float]],
        num_positives: Sequence[float] | None = None,
    ) -> None:
        """Adds predictions and their labels for every class.

        Args:
            predictions: scores, one sequence per class.
            actuals: labels, one sequence per class, as long as that of the scores; above 0 is positive.
            num_positives: number of positives of each class; None counts them in `actuals`.

        Raises:
            ValueError: if the number of classes or the lengths differ.
        """
        num_positives = [None] * len(predictions) if num_positives is None else num_positives
        pieces = zip(self._ap_calculators, predictions, actuals, num_positives, strict=True)
        for calculator, class_predictions, class_actuals, positives in pieces:
            calculator.accumulate(class_predictions, class_actuals, positives)

    def clear(self) -> None:
        """Removes everything that was accumulated."""
        for calculator in self._ap_calculators:
            calculator.clear()

    def is_empty(self) -> bool:
        """Returns whether nothing was accumulated."""
        return all(calculator.heap_size == 0 for calculator in self._ap_calculators)

    def peek_map_at_n(self) -> list[float]:
        """Returns the average precision of each class; 0 for a class without predictions."""
        return [calculator.peek_ap_at_n() for calculator in self._ap_calculators]
