"""Metrics of predictions, computed with numpy."""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cats_vs_dogs.average_precision_calculator import AveragePrecisionCalculator
from cats_vs_dogs.labels import CAT, CLASS_NAMES, DOG, SMALLEST_PROBABILITY, is_dog
from cats_vs_dogs.mean_average_precision_calculator import MeanAveragePrecisionCalculator
from cats_vs_dogs.utils import UserError


def flatten(l: Iterable[Iterable[Any]]) -> list[Any]:  # noqa: E741 - The name of 2017.
    """Returns the items of lists in one list."""
    return list(itertools.chain.from_iterable(l))


def calculate_hit_at_one(predictions: np.ndarray, actuals: np.ndarray) -> float:
    """Returns the accuracy: the fraction of examples whose class is predicted correctly.

    Args:
        predictions: [batch, 1], probability of a dog.
        actuals: [batch, 1], 1 = dog.
    """
    return float(np.sum(is_dog(predictions) == (actuals > 0)) / len(predictions))


def calculate_precision_at_equal_recall_rate(predictions: np.ndarray, actuals: np.ndarray) -> float:
    """Returns the precision at equal recall rate (PERR).

    For each example this is the precision of its top k classes, where k is the number of its true classes. The result
    is the mean over examples. A class with a prediction of 0 counts as not predicted.

    Args:
        predictions: [batch, num_classes], scores of at least 0.
        actuals: [batch, num_classes], above 0 is true; at least one per row.
    """
    true = actuals > 0
    num_true = true.sum(axis=1)
    order = np.argsort(-predictions, axis=1, kind="stable")
    in_top = np.arange(predictions.shape[1]) < num_true[:, np.newaxis]
    hits = np.take_along_axis(true & (predictions > 0), order, axis=1) & in_top
    return float(np.mean(hits.sum(axis=1) / num_true))


def calculate_gap(predictions: np.ndarray, actuals: np.ndarray, top_k: int = 20) -> float:
    """Returns the global average precision (GAP): the average precision of all examples' top k predictions in one list.

    Args:
        predictions: [batch, num_classes], scores.
        actuals: [batch, num_classes], above 0 is true.
        top_k: how many predictions of each example count.
    """
    calculator = AveragePrecisionCalculator()
    class_predictions, class_actuals, num_positives = top_k_by_class(predictions, actuals, top_k)
    calculator.accumulate(np.concatenate(class_predictions), np.concatenate(class_actuals), sum(num_positives))
    return calculator.peek_ap_at_n()


def top_k_by_class(
    predictions: np.ndarray, labels: np.ndarray, k: int = 20
) -> tuple[list[np.ndarray], list[np.ndarray], list[float]]:
    """Selects the top k predictions of each example and groups them by class.

    Args:
        predictions: [batch, num_classes], scores.
        labels: [batch, num_classes], above 0 is true.
        k: how many predictions of each example to select.

    Returns:
        Three lists with an entry per class: the selected predictions, their labels, and the sum of the class's labels,
        selected or not.

    Raises:
        ValueError: if k is not positive.
    """
    if k <= 0:
        raise ValueError(f"k must be a positive integer, got {k}.")
    num_classes = predictions.shape[1]
    kept = np.ones(predictions.shape, dtype=bool)
    if k < num_classes:
        kept[:] = False
        np.put_along_axis(kept, np.argpartition(predictions, -k, axis=1)[:, -k:], True, axis=1)
    classes = range(num_classes)
    return (
        [predictions[kept[:, i], i] for i in classes],
        [labels[kept[:, i], i] for i in classes],
        [labels[:, i].sum() for i in classes],
    )


def as_two_columns(column: np.ndarray) -> np.ndarray:
    """Returns the columns (1 - p, p), [batch, 2], for the ranking metrics.

    In 2017 these metrics got the column p alone. So PERR was the fraction of dogs, and MAP was half of its true value.

    Args:
        column: [batch, 1], p: probabilities of a dog, or labels.
    """
    return np.concatenate([1 - column, column], axis=1)


def check_probabilities(probabilities: np.ndarray, loss_name: str) -> None:
    """Checks the result of a loss's `probability` method.

    Args:
        probabilities: the result, of any shape.
        loss_name: the loss's class name, for the message.

    Raises:
        UserError: if a value is not a number in [0, 1].
    """
    # Written with `not`, since NaN fails every comparison.
    if not np.all((probabilities >= 0) & (probabilities <= 1)):
        low, high = np.min(probabilities), np.max(probabilities)
        raise UserError(
            f"--label_loss={loss_name}: its probability() returns values from {low:.4g} to {high:.4g}, not in [0, 1]; "
            "override probability() in losses.py to suit the model's predictions, or lower --base_learning_rate if the "
            "values are nan"
        )


def calculate_log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean negative log of the true class's probability. Probabilities below 1e-7 count as 1e-7.

    Args:
        probabilities: [n, 1], probability of a dog.
        labels: [n, 1], 1 = dog.
    """
    true_class = np.where(labels > 0, probabilities, 1 - probabilities).astype(np.float64)
    return float(-np.mean(np.log(np.maximum(true_class, SMALLEST_PROBABILITY))))


def calculate_roc_auc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the area under the ROC curve, or 0.5 if there is only one class.

    It is the fraction of all pairs of a dog and a cat in which the dog has the higher probability; a tie counts half.
    It is computed from the ranks of the dogs (Mann-Whitney U).

    Args:
        probabilities: [n, 1], probability of a dog.
        labels: [n, 1], 1 = dog.
    """
    dogs = labels.ravel() > 0
    num_dogs, num_cats = np.count_nonzero(dogs), np.count_nonzero(~dogs)
    if num_dogs == 0 or num_cats == 0:
        return 0.5
    _, inverse, counts = np.unique(probabilities.ravel(), return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2
    u = mean_ranks[inverse][dogs].sum() - num_dogs * (num_dogs + 1) / 2
    return float(u / (num_dogs * num_cats))


def calculate_confusion(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, int]:
    """Returns the confusion matrix.

    Args:
        probabilities: [n, 1], probability of a dog.
        labels: [n, 1], 1 = dog.

    Returns:
        "cats_as_cats", "cats_as_dogs", "dogs_as_cats" and "dogs_as_dogs": the number of examples by true and predicted
        class.
    """
    predicted = np.where(is_dog(probabilities), DOG, CAT)
    true = np.where(labels > 0, DOG, CAT)
    return {
        f"{name}s_as_{other}s": int(np.sum((true == i) & (predicted == j)))
        for i, name in enumerate(CLASS_NAMES)
        for j, other in enumerate(CLASS_NAMES)
    }


def class_sizes(confusion: dict[str, int]) -> dict[str, int]:
    """Returns the number of examples of each class, from a confusion matrix; see `calculate_confusion`."""
    return {name: sum(confusion[f"{name}s_as_{called}s"] for called in CLASS_NAMES) for name in CLASS_NAMES}


def calculate_precision_recall_f1(confusion: dict[str, int]) -> dict[str, dict[str, float]]:
    """Returns precision, recall and F1 of each class.

    The precision of "cat" is the fraction of cats among the examples predicted to be cats. Its recall is the fraction
    of cats that are predicted to be cats. F1 is the harmonic mean of the two (C. J. van Rijsbergen, Information
    Retrieval, 1979, chapter 7). A value whose denominator is 0 is 0.

    Args:
        confusion: the confusion matrix, as `calculate_confusion` returns it.

    Returns:
        "precision", "recall" and "f1", each a dict with "cat" and "dog".
    """
    result: dict[str, dict[str, float]] = {"precision": {}, "recall": {}, "f1": {}}
    for name in CLASS_NAMES:
        correct = confusion[f"{name}s_as_{name}s"]
        num_predicted = sum(confusion[f"{other}s_as_{name}s"] for other in CLASS_NAMES)
        num_true = sum(confusion[f"{name}s_as_{other}s"] for other in CLASS_NAMES)
        result["precision"][name] = correct / max(1, num_predicted)
        result["recall"][name] = correct / max(1, num_true)
        result["f1"][name] = 2 * correct / max(1, num_predicted + num_true)
    return result


def calculate_ece(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 15) -> float:
    """Returns the expected calibration error (ECE): how far confidence and accuracy are apart, in [0, 1].

    The confidence of an example is the probability of its predicted class. Examples are put in bins by confidence. The
    result is the mean over bins of |accuracy - mean confidence|, weighted by the number of examples in each bin. See
    C. Guo et al., On Calibration of Modern Neural Networks, 2017, equation 3: https://arxiv.org/abs/1706.04599

    Args:
        probabilities: [n, 1], probability of a dog.
        labels: [n, 1], 1 = dog.
        num_bins: number of bins of equal width; bin m is ((m - 1) / num_bins, m / num_bins].
    """
    probabilities = probabilities.ravel().astype(np.float64)
    predicted_dog = is_dog(probabilities)
    confidence = np.where(predicted_dog, probabilities, 1 - probabilities)
    is_correct = predicted_dog == (labels.ravel() > 0)
    bins = np.searchsorted(np.arange(1, num_bins) / num_bins, confidence, side="left")
    return float(np.abs(np.bincount(bins, is_correct - confidence)).sum() / len(confidence))


def interval(num_right: float, num_all: float) -> tuple[float, float]:
    """Returns between which shares the true one lies, with 95 % confidence, if so many of a sample are right.

    This is the interval of E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
    For shares near 0 and 1 it is better than the mean plus and minus two standard errors.

    Args:
        num_right: how many are right.
        num_all: how many there are, at least 1.
    """
    z = 1.959964
    share, weight = num_right / num_all, z**2 / num_all
    middle = share + weight / 2
    half = z * math.sqrt(share * (1 - share) / num_all + weight / (4 * num_all))
    return max(0.0, (middle - half) / (1 + weight)), min(1.0, (middle + half) / (1 + weight))


def accuracy_interval(metrics: Mapping[str, Any]) -> tuple[float, float]:
    """Returns the `interval` of the accuracy in metrics, see `EvaluationMetrics.get`."""
    return interval(metrics["avg_hit_at_one"] * metrics["num_examples"], metrics["num_examples"])


def worst_mistakes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the indices of all misclassified examples, those with the highest confidence first.

    Args:
        probabilities: [n, 1], probability of a dog.
        labels: [n, 1], 1 = dog.
    """
    probabilities, true_dog = probabilities.ravel(), labels.ravel() > 0
    wrong = np.flatnonzero(is_dog(probabilities) != true_dog)
    return wrong[np.argsort(-np.abs(probabilities - true_dog)[wrong], kind="stable")]


class EvaluationMetrics:
    """Accumulates batches and computes metrics over all of them.

    Args:
        num_class: 2.
        top_k: how many predictions of each example count for GAP and MAP.
    """

    def __init__(self, num_class: int, top_k: int):
        self._map_calculator = MeanAveragePrecisionCalculator(num_class)
        self._gap_calculator = AveragePrecisionCalculator()
        self._top_k = top_k
        self.clear()

    def accumulate(
        self, predictions: np.ndarray, labels: np.ndarray, loss: float | None, ids: np.ndarray | None = None
    ) -> dict[str, float]:
        """Adds a batch.

        Args:
            predictions: [batch, 1], probability of a dog.
            labels: [batch, 1], 1 = dog.
            loss: the mean loss of the batch; None for all batches: no loss is known.
            ids: [batch], bytes; only `mistakes` needs them.

        Returns:
            "hit_at_one", "perr" and, if it is known, "loss" of this batch.
        """
        batch_size = labels.shape[0]
        both_predictions, both_labels = as_two_columns(predictions), as_two_columns(labels)
        batch = {
            "hit_at_one": calculate_hit_at_one(predictions, labels),
            "perr": calculate_precision_at_equal_recall_rate(both_predictions, both_labels),
        }
        if loss is not None:
            batch["loss"] = float(np.mean(loss))
        top_predictions, top_labels, num_positives = top_k_by_class(both_predictions, both_labels, self._top_k)
        self._map_calculator.accumulate(top_predictions, top_labels, num_positives)
        self._gap_calculator.accumulate(np.concatenate(top_predictions), np.concatenate(top_labels), sum(num_positives))
        self._probabilities.append(predictions)
        self._labels.append(labels)
        if ids is not None:
            self._ids.append(ids)
        self.num_examples += batch_size
        for key, value in batch.items():
            self._sums[key] = self._sums.get(key, 0.0) + value * batch_size
        return batch

    def get(self) -> dict:
        """Returns the metrics of everything accumulated.

        Returns:
            "num_examples"; "avg_hit_at_one", "avg_perr" and, if it is known, "avg_loss", means over examples; "aps",
            the average precision of cats and of dogs, and "map", the mean of the two; "gap", "log_loss", "roc_auc" and
            "ece"; "confusion", see `calculate_confusion`; "precision", "recall" and "f1", each a dict with "cat" and
            "dog".

        Raises:
            ValueError: if nothing was accumulated.
        """
        if self.num_examples == 0:
            raise ValueError("Nothing was accumulated.")
        probabilities, labels = self.examples()
        aps = self._map_calculator.peek_map_at_n()
        confusion = calculate_confusion(probabilities, labels)
        return {
            "num_examples": self.num_examples,
            **{f"avg_{key}": value / self.num_examples for key, value in self._sums.items()},
            "aps": aps,
            "map": sum(aps) / len(aps),
            "gap": self._gap_calculator.peek_ap_at_n(),
            "log_loss": calculate_log_loss(probabilities, labels),
            "roc_auc": calculate_roc_auc(probabilities, labels),
            "ece": calculate_ece(probabilities, labels),
            "confusion": confusion,
            **calculate_precision_recall_f1(confusion),
        }

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns all accumulated probabilities and labels, [n, 1] each."""
        return np.concatenate(self._probabilities), np.concatenate(self._labels)

    def ids(self) -> np.ndarray:
        """Returns the ids of all accumulated examples, bytes [n]. Every batch must have been accumulated with ids."""
        return np.concatenate(self._ids)

    def mistakes(self) -> list[tuple[bytes, int, float]]:
        """Returns (id, label, probability of a dog) of each misclassified example, highest confidence first.

        Every batch must have been accumulated with ids.
        """
        probabilities, labels = self.examples()
        wrong = worst_mistakes(probabilities, labels)
        columns = (self.ids(), labels.ravel(), probabilities.ravel())
        return list(zip(*(column[wrong].tolist() for column in columns), strict=True))

    def clear(self) -> None:
        """Removes everything that was accumulated."""
        self._map_calculator.clear()
        self._gap_calculator.clear()
        self._probabilities: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._ids: list[np.ndarray] = []
        self._sums: dict[str, float] = {}
        self.num_examples = 0
