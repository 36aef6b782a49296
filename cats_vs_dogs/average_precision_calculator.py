"""Average precision of a ranked list, given at once or accumulated in pieces.

This is non-interpolated average precision: http://trec.nist.gov/pubs/trec15/appendices/CE.MEASURES06.pdf
"""

import random
from collections.abc import Sequence

import numpy as np

# Equal predictions are put in a random order, so that the order of their labels does not matter. Lists up to this size
# are shuffled as in 2017, with random.seed(0) and random.sample. For longer lists numpy is fifty times as fast.
_MAX_SIZE_SHUFFLED_AS_IN_2017 = 100_000


class AveragePrecisionCalculator:
    """Calculates the average precision of one class from its top n predictions.

    Args:
        top_n: how many predictions to keep; None keeps all.

    Raises:
        ValueError: if `top_n` is neither None nor a positive integer.
    """

    def __init__(self, top_n: int | None = None):
        _check_n(top_n)
        self._top_n = top_n
        self.clear()

    @property
    def heap_size(self) -> int:
        """The number of predictions that count: those accumulated, at most `top_n`."""
        return self._size if self._top_n is None else min(self._size, self._top_n)

    @property
    def num_accumulated_positives(self) -> int:
        """The number of accumulated positive labels, including those outside of the top n."""
        return self._total_positives

    def accumulate(
        self, predictions: Sequence[float], actuals: Sequence[float], num_positives: float | None = None
    ) -> None:
        """Adds predictions and their labels.

        Args:
            predictions: [n], scores.
            actuals: [n], labels; above 0 is positive.
            num_positives: number of positives, if some belong to predictions that are not passed; None counts them in
                `actuals`.

        Raises:
            ValueError: if the lengths differ or `num_positives` is negative.
        """
        predictions, actuals = np.asarray(predictions).ravel(), np.asarray(actuals).ravel()
        if predictions.size != actuals.size:
            raise ValueError(f"{predictions.size} predictions and {actuals.size} actuals: give as many of each.")
        if num_positives is not None and num_positives < 0:
            raise ValueError(f"num_positives must be at least 0, got {num_positives}.")
        self._total_positives += np.count_nonzero(actuals > 0) if num_positives is None else num_positives
        self._predictions.append(predictions)
        self._actuals.append(actuals)
        self._size += predictions.size
        if self._top_n is not None and self._size > 16 * self._top_n:
            self._keep_top()

    def clear(self) -> None:
        """Removes everything that was accumulated."""
        self._predictions: list[np.ndarray] = []
        self._actuals: list[np.ndarray] = []
        self._size = 0
        self._total_positives = 0

    def peek_ap_at_n(self) -> float:
        """Returns the average precision of everything accumulated; 0 if there is nothing."""
        if self.heap_size == 0:
            return 0.0
        self._keep_top()
        return self.ap_at_n(self._predictions[0], self._actuals[0], self._top_n, self._total_positives)

    def _keep_top(self) -> None:
        """Joins the pieces into one array and keeps only the top n. Needs at least one piece."""
        predictions, actuals = np.concatenate(self._predictions), np.concatenate(self._actuals)
        if self._top_n is not None and predictions.size > self._top_n:
            kept = np.sort(np.argsort(-predictions, kind="stable")[: self._top_n])
            predictions, actuals = predictions[kept], actuals[kept]
        self._predictions, self._actuals, self._size = [predictions], [actuals], predictions.size

    @staticmethod
    def ap(predictions: Sequence[float], actuals: Sequence[float]) -> float:
        """Returns the average precision of a complete list, see `ap_at_n`."""
        return AveragePrecisionCalculator.ap_at_n(predictions, actuals, n=None)

    @staticmethod
    def ap_at_n(
        predictions: Sequence[float],
        actuals: Sequence[float],
        n: int | None = 20,
        total_num_positives: float | None = None,
    ) -> float:
        """Returns the average precision of the n highest predictions.

        It is the sum of the precisions at the rank of each positive, divided by min(n, number of positives), so a
        perfect list gets 1. The precision at a rank is the number of positives up to that rank, divided by the rank.

        Args:
            predictions: [length], scores.
            actuals: [length], labels; above 0 is positive.
            n: how many predictions to evaluate; None evaluates all.
            total_num_positives: number of positives, if some belong to predictions that are not in the list; None
                counts them in `actuals`.

        Raises:
            ValueError: if the lengths differ, or `n` is neither None nor a positive integer.
        """
        _check_n(n)
        predictions, positive = np.asarray(predictions).ravel(), np.asarray(actuals).ravel() > 0
        if predictions.size != positive.size:
            raise ValueError(f"{predictions.size} predictions and {positive.size} actuals: give as many of each.")
        num_positives = np.count_nonzero(positive) if total_num_positives is None else total_num_positives
        if num_positives == 0:
            return 0.0
        shuffled = _tie_breaking_order(predictions.size)
        ranked = shuffled[np.argsort(-predictions[shuffled], kind="stable")]
        hits = positive[ranked[:n]]
        ranks_of_hits = np.flatnonzero(hits) + 1
        precisions = np.arange(1, ranks_of_hits.size + 1) / ranks_of_hits
        return float(precisions.sum() / (num_positives if n is None else min(n, num_positives)))


def _tie_breaking_order(size: int) -> np.ndarray:
    """Returns a random permutation of 0 to size - 1, always the same for a size, int64 [size]."""
    if size <= _MAX_SIZE_SHUFFLED_AS_IN_2017:
        return np.array(random.Random(0).sample(range(size), size), dtype=np.int64)
    return np.random.default_rng(0).permutation(size)


def _check_n(n: int | None) -> None:
    if n is not None and (not isinstance(n, int) or n <= 0):
        raise ValueError(f"n must be None or a positive integer, got {n!r}.")
