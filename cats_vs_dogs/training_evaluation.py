"""Evaluation while training: it keeps the best model, and may end training early."""

import math
from collections.abc import Callable
from typing import Any

from absl import logging

from cats_vs_dogs import advice, checkpoints, terminal, train_dir
from cats_vs_dogs.checkpoints import Progress
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.evaluation import Evaluation, Evaluator
from cats_vs_dogs.event_files import EventFile
from cats_vs_dogs.report import Report
from cats_vs_dogs.training_log import TrainingLog


class TrainingEvaluation:
    """Evaluates the model while it trains.

    Args:
        folder: the train_dir. Metrics and summaries go to its folder eval, the best model to its folder best.
        make_evaluator: called at the first evaluation, when the training pictures are in memory and no longer count as
            free, and the predictor has its weights.
        predictor: what the evaluator evaluates; gets the weights before each evaluation.
        classifier: what is trained; perhaps the predictor itself.
        progress: notes the evaluations.
        log: gets a row of each evaluation, and the figures of each new best model.
        early_stop_evals: number of evaluations without a loss lower than the best that end training; 0: never.
        about_data: further metrics: what is evaluated on, and how many of its examples were trained on.
        report: the page about the last evaluation; None: none is written.
    """

    def __init__(
        self,
        folder: str,
        make_evaluator: Callable[[], Evaluator],
        predictor: Classifier,
        classifier: Classifier,
        progress: Progress,
        log: TrainingLog,
        early_stop_evals: int,
        about_data: dict[str, Any],
        report: Report | None = None,
    ):
        self._eval_dir, self._best_dir = train_dir.eval_dir(folder), train_dir.best_dir(folder)
        self._events = EventFile(self._eval_dir, train_dir.EVALUATION_SUFFIX)
        self._make_evaluator = make_evaluator
        self._evaluator: Evaluator | None = None
        self._predictor = predictor
        self._classifier = classifier
        self._progress = progress
        self._log = log
        self._early_stop_evals = early_stop_evals
        self._about_data = about_data
        self._best_metrics: dict[str, Any] | None = None  # Those of this process.
        self._report = report
        self._last: Evaluation | None = None

    @property
    def has_stopped_improving(self) -> bool:
        """Whether it is time to stop early."""
        return 0 < self._early_stop_evals <= int(self._progress.worse_in_a_row)

    @property
    def _has_best(self) -> bool:
        """Whether any evaluation had a finite loss."""
        return math.isfinite(float(self._progress.best_loss))

    def is_missing(self, step: int) -> bool:
        """Whether this step was not evaluated."""
        return int(self._progress.evaluated) < step

    def run(self, step: int, is_last: bool, should_stop: Callable[[], bool]) -> None:
        """Evaluates the present weights, and keeps them if they are the best.

        Pictures are large, so they are written only for each new best model and the last one.

        Args:
            step: the number of steps done.
            is_last: whether training ends with this step.
            should_stop: asked meanwhile; once it returns True, the evaluation is given up.
        """
        self._predictor.copy_weights(self._classifier)
        self._evaluator = self._evaluator or self._make_evaluator()
        evaluation = self._evaluator.evaluate(step, self._events, should_stop)
        if evaluation is None:
            return
        self._last = evaluation
        metrics, progress = evaluation.metrics | self._about_data, self._progress
        train_dir.write_metrics(self._eval_dir, step, metrics)
        self._log.rows.add("evaluation", metrics)
        progress.evaluated.assign(step)
        is_best = metrics["avg_loss"] < float(progress.best_loss)
        if is_best:
            progress.best_loss.assign(metrics["avg_loss"])
            progress.best_step.assign(step)
            progress.worse_in_a_row.assign(0)
            self._best_metrics = metrics
            self._log.log_best(step, metrics)
            checkpoints.save_best(self._predictor, self._best_dir, step, metrics)
        else:
            progress.worse_in_a_row.assign_add(1)
        if is_best or is_last or self.has_stopped_improving:
            evaluation.write_pictures(self._events)
        self._events.flush()
        name = "loss" if terminal.shows_short_lines() else "Avg_Loss:"  # As in the line of the evaluation.
        if self._has_best:
            logging.info(
                "best so far: step %d, %s %.4f, in %s",
                *(int(progress.best_step), name, float(progress.best_loss), self._best_dir),
            )
        else:
            logging.warning("no model is kept as the best: %s %s, which is not finite", name, metrics["avg_loss"])
        if self.has_stopped_improving:
            logging.info("%d evaluations without a lower loss: training stops early.", self._early_stop_evals)

    def log_best(self) -> None:
        """Logs where the best model is, if there is one, and what to try if it is poor."""
        if self._has_best:
            logging.info("The best model, that of step %d, is in %s.", int(self._progress.best_step), self._best_dir)
        if self._best_metrics:
            advice.log_recipes(self._best_metrics, self._best_dir)

    def write_report(self) -> None:
        """Writes the report of the last evaluation, if this process evaluated; the predictor has its weights."""
        if self._report and self._last:
            self._report.write(self._last, self._last.metrics | self._about_data)


class NoEvaluation:
    """Takes the place of a TrainingEvaluation without data to evaluate on, and on all workers but the chief."""

    has_stopped_improving = False

    def is_missing(self, unused_step: int) -> bool:
        """Returns False."""
        return False

    def run(self, step: int, is_last: bool, should_stop: Callable[[], bool]) -> None:
        """Does nothing."""

    def log_best(self) -> None:
        """Does nothing."""

    def write_report(self) -> None:
        """Does nothing."""
