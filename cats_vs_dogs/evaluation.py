"""Evaluates a model on labelled examples, and shows the result as log lines, summaries and tables."""

import contextlib
import csv
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging

from cats_vs_dogs import eval_util, files, metrics_log, submission, summaries, terminal
from cats_vs_dogs.config import AVERAGES
from cats_vs_dogs.event_files import EventFile
from cats_vs_dogs.figures import Photos
from cats_vs_dogs.labels import CLASS_NAMES, NUM_CLASSES
from cats_vs_dogs.prediction import Predictor

_TOP_K = 2
_NUM_WORST = 10  # Mistakes that the table shows.
_NUM_IN_HISTOGRAM = 64  # Pictures whose pixels the histogram counts, so that it costs less than a batch.
# Metrics in the tables: the name that is shown, and the key in the metrics.
_NAMES = {
    "accuracy": "avg_hit_at_one",
    "log loss": "log_loss",
    "ROC AUC": "roc_auc",
    "expected calibration error": "ece",
}

# A mistake: its id, its label (1 = dog), its probability of a dog.
Mistake = tuple[bytes, int, float]


class Evaluation:
    """The result of one pass over the examples.

    Attributes:
        metrics: "step", "flip_average", "crop_average", and what `EvaluationMetrics.get` returns. For an ensemble also
            "members": a dict for each model, see `Evaluator.evaluate`, with its "avg_hit_at_one", "log_loss", "roc_auc"
            and "ece".
        mistakes: all of them, the most confident first.
        ids: bytes [n], of all examples in the order in which they were read.
        probabilities: [n, 1], probability of a dog, of all examples.
        labels: [n, 1], 1 = dog, of all examples.
    """

    def __init__(
        self,
        step: int,
        averages: dict[str, bool],
        accumulated: eval_util.EvaluationMetrics,
        photos: Photos,
        first_images: np.ndarray,
        members: Sequence[dict[str, Any]] = (),
    ):
        self.metrics = {"step": step, **accumulated.get(), **averages}
        if members:
            self.metrics["members"] = list(members)
        self.mistakes: list[Mistake] = accumulated.mistakes()
        self.ids = accumulated.ids()
        self.probabilities, self.labels = accumulated.examples()
        self._photos = photos
        self._first_images = first_images

    def write_scalars(self, events: EventFile, has_table: bool) -> None:
        """Logs the metrics and writes everything but the pictures, which are larger than all the rest.

        Args:
            events: where to write.
            has_table: whether `table` will be shown.
        """
        metrics_log.record_evaluation(events, self.metrics, has_table)
        summaries.write_curves(events, self.metrics["step"], self.probabilities, self.labels)
        summaries.write_histograms(events, self.metrics["step"], self._first_images, self.probabilities)
        for name, size in eval_util.class_sizes(self.metrics["confusion"]).items():
            if not size:
                logging.warning("there is no %s among the examples, so the metrics say little", name)

    def write_pictures(self, events: EventFile) -> None:
        """Writes figures, and the photos that are worth a look."""
        step = self.metrics["step"]
        summaries.write_drawings(events, step, self.probabilities, self.labels, self.metrics)
        summaries.write_photos(events, step, self._photos)

    def table(self) -> list[str]:
        """Returns the metrics as lines of tables, with the worst mistakes."""
        return table(self.metrics, self.mistakes)


class Evaluator:
    """Evaluates a model on labelled examples, again and again while its weights change.

    Args:
        predictor: predicts the labelled examples.
        averages: whether it averages over several views of a picture: a bool for each of config.AVERAGES, see
            `Classifier`. None: it does not.
        shows_batches: whether each batch is logged, or shown by a progress bar on a terminal, and a table will follow.
        explain_errors: a context for reading the examples, such as `bad_examples.explain_read_errors`.
    """

    def __init__(
        self,
        predictor: Predictor,
        averages: dict[str, bool] | None = None,
        shows_batches: bool = False,
        explain_errors: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ):
        self._explain_errors = explain_errors
        self._predictor = predictor
        self._averages = averages or dict.fromkeys(AVERAGES, False)
        self._shows_batches = shows_batches

    def evaluate(
        self,
        step: int,
        events: EventFile,
        should_stop: Callable[[], bool] = lambda: False,
        members: Sequence[dict[str, Any]] = (),
    ) -> Evaluation | None:
        """Evaluates the present weights.

        Args:
            step: the step of the weights.
            events: where the summaries go.
            should_stop: asked after each batch; once it returns True, the evaluation is given up.
            members: for an ensemble, a dict for each model, such as its "train_dir" and "step", which the metrics
                repeat; () for one model.

        Returns:
            The result; None if it was given up.

        Raises:
            UserError: if the loss's probability() returns values that are not probabilities.
        """
        accumulated, photos = eval_util.EvaluationMetrics(NUM_CLASSES, _TOP_K), Photos()
        first_images, by_model = None, []
        clock = time.monotonic()
        total = self._predictor.num_examples
        shown = terminal.progress_bar(total, " pictures", "evaluating", self._shows_batches)
        with self._explain_errors(), shown as progress:
            for batch in self._predictor.run(progress):
                if should_stop():
                    return None
                if first_images is None:
                    first_images = batch.images[:_NUM_IN_HISTOGRAM].numpy()
                row = accumulated.accumulate(batch.probabilities, batch.labels, batch.loss, batch.ids)
                if members:
                    by_model.append(batch.by_model)
                photos.add(batch.ids, batch.images, batch.labels, batch.probabilities)
                clock, seconds = time.monotonic(), time.monotonic() - clock
                if self._shows_batches:
                    row["examples_per_second"] = len(batch.labels) / max(seconds, 1e-9)
                    metrics_log.write_scalars(events, step, row, metrics_log.BATCH_CHARTS)
                    if progress.disable:
                        metrics_log.log_batch({"step": step, "num_examples": accumulated.num_examples, **row})
        if self._shows_batches:
            terminal.log_for_scripts("Done with batched inference. Now calculating global performance metrics.")
        if members:
            scores = [_scores(one, accumulated.examples()[1]) for one in np.concatenate(by_model, axis=1)]
            members = [{**member, **its_scores} for member, its_scores in zip(members, scores, strict=True)]
        evaluation = Evaluation(step, self._averages, accumulated, photos, first_images, members)
        evaluation.write_scalars(events, has_table=self._shows_batches)
        return evaluation


def _scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns the metrics in _NAMES of probabilities of a dog, [n, 1]."""
    return {
        "avg_hit_at_one": eval_util.calculate_hit_at_one(probabilities, labels),
        "log_loss": eval_util.calculate_log_loss(probabilities, labels),
        "roc_auc": eval_util.calculate_roc_auc(probabilities, labels),
        "ece": eval_util.calculate_ece(probabilities, labels),
    }


def table(metrics: dict[str, Any], mistakes: Sequence[Mistake]) -> list[str]:
    """Returns metrics as lines of tables, with the worst mistakes.

    Args:
        metrics: see `Evaluation.metrics`.
        mistakes: all of them, the most confident first.
    """
    classes = [["", "precision", "recall", "F1", "examples", *(f"called {name}" for name in CLASS_NAMES)]]
    for animal in CLASS_NAMES:
        counts = [metrics["confusion"][f"{animal}s_as_{called}s"] for called in CLASS_NAMES]
        scores = [f"{metrics[name][animal]:.4f}" for name in ("precision", "recall", "f1")]
        classes.append([animal, *scores, *map(str, (sum(counts), *counts))])
    low, high = eval_util.accuracy_interval(metrics)
    lines = terminal.table([[name, f"{metrics[key]:.4f}"] for name, key in _NAMES.items()])
    lines.append(f"95 % interval of the accuracy: {low:.4f} to {high:.4f}")
    if "members" in metrics:
        rows = [(member["train_dir"], member) for member in metrics["members"]] + [("mean of all", metrics)]
        scores = [[name, *(f"{figures[key]:.4f}" for key in _NAMES.values())] for name, figures in rows]
        lines += ["", *terminal.table([["model", *_NAMES], *scores])]
    lines += ["", *terminal.table(classes)]
    if mistakes:
        worst = [["id", "label", "probability of dog"]]
        for example_id, label, probability in mistakes[:_NUM_WORST]:
            worst.append([submission.id_text(example_id), CLASS_NAMES[label], f"{probability:.4f}"])
        lines += ["", f"The worst of {len(mistakes)} mistakes:", *terminal.table(worst, left=2)]
    return lines


def write_mistakes(path: str, mistakes: Sequence[Mistake]) -> None:
    """Writes a CSV file with the columns Id, Label (1 = dog) and Probability (of a dog).

    Raises:
        UserError: if it cannot be written.
    """
    probabilities = submission.probability_texts(np.array([probability for *_, probability in mistakes]))
    rows = [
        (submission.id_text(one), label, text) for (one, label, _), text in zip(mistakes, probabilities, strict=True)
    ]
    with files.atomic_write(path, "mistakes_file") as file:
        csv.writer(file, lineterminator="\n").writerows([("Id", "Label", "Probability"), *rows])
