"""Metrics of predictions, calculated on whole arrays."""

import numpy as np

from cats_vs_dogs.average_precision_calculator import AveragePrecisionCalculator
from cats_vs_dogs.mean_average_precision_calculator import MeanAveragePrecisionCalculator
from cats_vs_dogs.utils import UserError


def calculate_hit_at_one(predictions: np.ndarray, actuals: np.ndarray) -> float:
    """Returns the share of examples on the right side of one half.

    Args:
        predictions: [batch, 1], probability of a dog.
        actuals: [batch, 1], 1 = dog.
    """
    return float(np.sum((predictions > 0.5) == (actuals > 0)) / len(predictions))


def calculate_precision_at_equal_recall_rate(predictions: np.ndarray, actuals: np.ndarray) -> float:
    """Returns the mean over examples of the precision of their top k classes, k being the number of true classes.

    Classes with a prediction of 0 count as not predicted.

    Args:
        predictions: [batch, num_classes].
        actuals: [batch, num_classes], above 0 is true; at least one a row.
    """
    true = actuals > 0
    num_true = true.sum(axis=1)
    order = np.argsort(-predictions, axis=1, kind="stable")
    in_top = np.arange(predictions.shape[1]) < num_true[:, np.newaxis]
    hits = np.take_along_axis(true & (predictions > 0), order, axis=1) & in_top
    return float(np.mean(hits.sum(axis=1) / num_true))


def calculate_gap(predictions: np.ndarray, actuals: np.ndarray, top_k: int = 20) -> float:
    """Returns the global average precision: that of the top k predictions of all examples in one list.

    Args:
        predictions: [batch, num_classes].
        actuals: [batch, num_classes].
        top_k: how many predictions of an example count.
    """
    calculator = AveragePrecisionCalculator()
    class_predictions, class_actuals, num_positives = top_k_by_class(predictions, actuals, top_k)
    calculator.accumulate(np.concatenate(class_predictions), np.concatenate(class_actuals), sum(num_positives))
    return calculator.peek_ap_at_n()


def top_k_by_class(
    predictions: np.ndarray, labels: np.ndarray, k: int = 20
) -> tuple[list[np.ndarray], list[np.ndarray], list[float]]:
    """Sorts the top k predictions of each example by class.

    Args:
        predictions: [batch, num_classes].
        labels: [batch, num_classes].
        k: how many predictions of an example count.

    Returns:
        For each class: its predictions that are among the top k of their example, their labels, and the number of
        positive labels of the class, whether among the top k or not.

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
    """Returns [batch, 2]: the column p of a dog, a probability or a label, as (1 - p, p).

    2017 fed the one column to the ranking metrics, so that PERR was the share of dogs, and MAP was halved.
    """
    return np.concatenate([1 - column, column], axis=1)


def check_probabilities(probabilities: np.ndarray, loss_name: str) -> None:
    """Makes sure that what a loss calls probabilities are such.

    Raises:
        UserError: if a value is not a number in [0, 1].
    """
    # NaN fails every comparison, so the test is for what is right.
    if not np.all((probabilities >= 0) & (probabilities <= 1)):
        low, high = np.min(probabilities), np.max(probabilities)
        raise UserError(
            f"--label_loss={loss_name}: its probability() gives values from {low:.4g} to {high:.4g}, not in [0, 1]; "
            "override probability() in losses.py for what the model predicts, or lower --base_learning_rate if they "
            "are not numbers"
        )


def calculate_log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean of -log of the probability of the true class, which is clipped at 1e-7.

    Args:
        probabilities: [n, 1], probability of a dog.
        labels: [n, 1], 1 = dog.
    """
    of_truth = np.where(labels > 0, probabilities, 1 - probabilities).astype(np.float64)
    return float(-np.mean(np.log(np.maximum(of_truth, 1e-7))))


def calculate_roc_auc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the area under the ROC curve: how often a dog gets more than a cat, where ties count half.

    By the ranks of the dogs (Mann-Whitney U). 0.5 if there is only one class.

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
    """Returns how many cats and dogs were called cats and dogs.

    Args:
        probabilities: [n, 1], probability of a dog; above one half means dog.
        labels: [n, 1], 1 = dog.
    """
    called_dog, is_dog = probabilities > 0.5, labels > 0
    return {
        "cats_as_cats": int(np.sum(~called_dog & ~is_dog)),
        "cats_as_dogs": int(np.sum(called_dog & ~is_dog)),
        "dogs_as_cats": int(np.sum(~called_dog & is_dog)),
        "dogs_as_dogs": int(np.sum(called_dog & is_dog)),
    }


def calculate_precision_recall_f1(confusion: dict[str, int]) -> dict[str, dict[str, float]]:
    """Returns how good the answers "cat" and "dog" are.

    Precision: of those called a cat, the share of cats. Recall: of the cats, the share called a cat. F1: their harmonic
    mean (C. J. van Rijsbergen, Information Retrieval, 1979, chapter 7). 0 where there is nothing to divide by.

    Args:
        confusion: what `calculate_confusion` gives.

    Returns:
        "precision", "recall" and "f1", each with "cat" and "dog".
    """
    result: dict[str, dict[str, float]] = {"precision": {}, "recall": {}, "f1": {}}
    for animal, other in (("cat", "dog"), ("dog", "cat")):
        right = confusion[f"{animal}s_as_{animal}s"]
        called, there = right + confusion[f"{other}s_as_{animal}s"], right + confusion[f"{animal}s_as_{other}s"]
        result["precision"][animal] = right / max(1, called)
        result["recall"][animal] = right / max(1, there)
        result["f1"][animal] = 2 * right / max(1, called + there)
    return result


def calculate_ece(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 15) -> float:
    """Returns the expected calibration error: by how much confidence and accuracy differ, in [0, 1].

    The mean over bins of the confidence, by the number of examples in them, of |accuracy - mean confidence|; the
    confidence is the probability of the class that is predicted. C. Guo et al., On Calibration of Modern Neural
    Networks, 2017, equation 3: https://arxiv.org/abs/1706.04599

    Args:
        probabilities: [n, 1], probability of a dog.
        labels: [n, 1], 1 = dog.
        num_bins: bins of equal width, ((m - 1) / num_bins, m / num_bins].
    """
    probabilities = probabilities.ravel().astype(np.float64)
    called_dog = probabilities > 0.5
    confidence = np.where(called_dog, probabilities, 1 - probabilities)
    is_right = called_dog == (labels.ravel() > 0)
    bins = np.searchsorted(np.arange(1, num_bins) / num_bins, confidence, side="left")
    return float(np.abs(np.bincount(bins, is_right - confidence)).sum() / len(confidence))


def worst_mistakes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the indices of the examples that are called what they are not, the surest mistake first.

    Args:
        probabilities: [n, 1], probability of a dog; above one half means dog.
        labels: [n, 1], 1 = dog.
    """
    probabilities, is_dog = probabilities.ravel(), labels.ravel() > 0
    wrong = np.flatnonzero((probabilities > 0.5) != is_dog)
    return wrong[np.argsort(-np.abs(probabilities - is_dog)[wrong], kind="stable")]


class EvaluationMetrics:
    """Accumulates batches and calculates the metrics over all of them.

    Args:
        num_class: 2.
        top_k: how many predictions of an example count for GAP and MAP.
    """

    def __init__(self, num_class: int, top_k: int):
        self._map_calculator = MeanAveragePrecisionCalculator(num_class)
        self._gap_calculator = AveragePrecisionCalculator()
        self._top_k = top_k
        self.clear()

    def accumulate(
        self, predictions: np.ndarray, labels: np.ndarray, loss: float, ids: np.ndarray | None = None
    ) -> dict[str, float]:
        """Adds a batch.

        Args:
            predictions: [batch, 1], probability of a dog.
            labels: [batch, 1], 1 = dog.
            loss: the mean loss of the batch.
            ids: [batch], bytes; `mistakes` needs them, of every batch.

        Returns:
            "hit_at_one", "perr" and "loss" of the batch.
        """
        batch_size = labels.shape[0]
        both_predictions, both_labels = as_two_columns(predictions), as_two_columns(labels)
        batch = {
            "hit_at_one": calculate_hit_at_one(predictions, labels),
            "perr": calculate_precision_at_equal_recall_rate(both_predictions, both_labels),
            "loss": float(np.mean(loss)),
        }
        top_predictions, top_labels, num_positives = top_k_by_class(both_predictions, both_labels, self._top_k)
        self._map_calculator.accumulate(top_predictions, top_labels, num_positives)
        self._gap_calculator.accumulate(np.concatenate(top_predictions), np.concatenate(top_labels), sum(num_positives))
        self._probabilities.append(predictions)
        self._labels.append(labels)
        if ids is not None:
            self._ids.append(ids)
        self.num_examples += batch_size
        for key, value in batch.items():
            self._sums[key] += value * batch_size
        return batch

    def get(self) -> dict:
        """Returns the metrics over everything accumulated.

        Returns:
            "num_examples", "avg_hit_at_one", "avg_perr", "avg_loss", "aps" (the average precision of cats and of
            dogs), "map" (their mean), "gap", "log_loss", "roc_auc", "ece", "confusion", and "precision", "recall" and
            "f1", each of "cat" and "dog".

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
        """Returns the probabilities and the labels of everything accumulated, [n, 1] each."""
        return np.concatenate(self._probabilities), np.concatenate(self._labels)

    def mistakes(self) -> list[tuple[bytes, int, float]]:
        """Returns id, label and probability of a dog of every example called what it is not, worst first."""
        probabilities, labels = self.examples()
        wrong = worst_mistakes(probabilities, labels)
        columns = (np.concatenate(self._ids), labels.ravel(), probabilities.ravel())
        return list(zip(*(column[wrong].tolist() for column in columns), strict=True))

    def clear(self) -> None:
        """Forgets everything accumulated."""
        self._map_calculator.clear()
        self._gap_calculator.clear()
        self._probabilities: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._ids: list[np.ndarray] = []
        self._sums = {"hit_at_one": 0.0, "perr": 0.0, "loss": 0.0}
        self.num_examples = 0
