"""What training shows of its steps: log lines, TensorBoard summaries and rows of metrics.jsonl."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from cats_vs_dogs import eval_util, metrics_log, summaries, terminal
from cats_vs_dogs.augmentation import SizeSchedule
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.config import WITHOUT_EFFECT
from cats_vs_dogs.distribution import Cluster
from cats_vs_dogs.event_files import EventFile
from cats_vs_dogs.plan import Plan
from cats_vs_dogs.trainer import SUMS, StepOutputs, Trainer

_NUM_PHOTOS = 16
_WEIGHT_OF_LAST_LINE = 0.2  # In the mean time of a step, which the time left is estimated from.


class TrainingLog:
    """Logs training steps.

    Args:
        folder: the train_dir.
        classifier: its weights are shown as histograms.
        learning_rate: function from the number of steps done to the learning rate of the next step.
        plan: how many examples the steps take.
        sizes: the sizes of training pictures by step; None: one size.

    Attributes:
        rows: the rows of metrics.jsonl.
    """

    def __init__(
        self,
        folder: str,
        classifier: Classifier,
        learning_rate: Callable[[int], tf.Tensor],
        plan: Plan,
        sizes: SizeSchedule | None,
    ):
        self.rows = metrics_log.MetricsFile(folder)
        self._events = EventFile(folder)
        self._learning_rate = learning_rate
        self._classifier = classifier
        self._plan = plan
        self._sizes = sizes
        self._last_clock = (0, 0.0, 0.0)
        self._seconds_of_work: float | None = None  # Mean time of a step, of one at the last size if they grow.
        self._line = terminal.RedrawnLine()

    def start(self, record: dict) -> None:
        """Writes the settings of a new run."""
        summaries.write_run(self._events, record, WITHOUT_EFFECT)

    def wait(self) -> None:
        """Says on a terminal that the first step takes longer; its line takes the place of this one."""
        if self._line.is_shown:
            self._line.show(["TensorFlow builds the graph of a step; the first one takes longer ..."])

    def log_step(
        self, step: int, outputs: StepOutputs, trainer: Trainer, probabilities: np.ndarray, labels: np.ndarray
    ) -> None:
        """Logs a step, and at the first logged step also some of its pictures.

        Losses and accuracy are means over all examples since the step logged before, on all devices. GAP ranks those of
        the last batch, on all devices.

        Args:
            step: the number of steps done.
            outputs: those of the last of them.
            trainer: knows how long its steps took.
            probabilities: the first result of `gather_batch`.
            labels: the second result of `gather_batch`.

        Raises:
            UserError: if the loss's probability() returns values that are not probabilities.
        """
        eval_util.check_probabilities(probabilities, self._classifier.spec.label_loss)
        clock = (trainer.timed_steps, trainer.seconds, trainer.waiting_seconds)
        timed_steps, seconds, waiting = (now - then for now, then in zip(clock, self._last_clock, strict=True))
        num_examples = self._plan.examples_at(step) - self._plan.examples_at(step - timed_steps)
        seconds = max(seconds, 1e-9)  # The clocks of some systems tick slowly.
        self._last_clock = clock
        means = dict(zip(SUMS[1:], (outputs.sums[1:] / outputs.sums[0]).tolist(), strict=True))
        row = {
            "step": step,
            "epoch": self._plan.epoch_of(step),
            "label_loss": means["label_loss"],
            "log_loss": means["log_loss"],
            "regularization_loss": means["regularization_loss"],
            "gradient_norm": outputs.gradient_norm,
            "accuracy": means["accuracy"],
            "perr": means["accuracy"],  # The same for two classes, of which each example has one.
            "gap": eval_util.calculate_gap(eval_util.as_two_columns(probabilities), eval_util.as_two_columns(labels)),
            "learning_rate": float(self._learning_rate(step - 1)),
            "examples_per_second": num_examples / seconds,
            "waiting_for_data": waiting / seconds,
        }
        time_left = self._estimate_time_left(step, timed_steps, seconds)
        total_steps = self._plan.total_steps
        about_run = {"last_epoch": self._plan.epoch_of(total_steps), "percent": 100 * step // total_steps}
        if self._line.is_shown:
            self._line.show(metrics_log.short_training_line(row, **about_run, time_left=time_left))
        else:
            metrics_log.log_training_step(row, **about_run, time_left=time_left)
        self.rows.add("training", row)
        metrics_log.write_scalars(self._events, step, row, metrics_log.TRAINING_CHARTS)
        summaries.write_gradient_norms(self._events, step, list(outputs.gradient_norms.values()))
        if self._plan.is_first_logged(step) and outputs.images:
            # The chief's are the first of the batch. If it has none, its first device has a copy of the first.
            own = _own_parts(outputs.images, outputs) or outputs.images[:1]
            images = np.concatenate([part[:_NUM_PHOTOS].numpy() for part in own])[:_NUM_PHOTOS]
            count = len(images)
            summaries.write_training_photos(self._events, step, images, labels[:count], probabilities[:count])

    def _estimate_time_left(self, step: int, timed_steps: int, seconds: float) -> datetime.timedelta:
        """Returns the time until training ends, from the mean time of its steps, in which the latest count most."""
        work_left, work_before = (
            self._sizes.work_left(one) if self._sizes else self._plan.total_steps - one
            for one in (step, step - timed_steps)
        )
        if timed_steps:
            latest = seconds / (work_before - work_left)
            mean = latest if self._seconds_of_work is None else self._seconds_of_work
            self._seconds_of_work = mean + _WEIGHT_OF_LAST_LINE * (latest - mean)
        return datetime.timedelta(seconds=round(work_left * (self._seconds_of_work or 0.0)))

    def log_best(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes the scalars of a new best model.

        Args:
            step: its step.
            metrics: see `evaluation.Evaluation.metrics`.
        """
        metrics_log.write_scalars(self._events, step, metrics, metrics_log.BEST_CHARTS)

    def log_weights(self, step: int, outputs: StepOutputs) -> None:
        """Writes histograms of the weights and of the input, if that is pictures."""
        if outputs.images:
            summaries.write_input(self._events, step, [np.asarray(part) for part in outputs.images])
        weights = {weight.path: weight.numpy() for weight in self._classifier.model.weights}
        summaries.write_weights(self._events, step, weights)

    def flush(self) -> None:
        """Brings everything written to the files."""
        self._events.flush()
        self.rows.flush()

    def close(self) -> None:
        """Ends the line on the terminal, so that other lines can follow. Call it whatever happens."""
        self._line.close()


def gather_batch(cluster: Cluster, outputs: StepOutputs) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probabilities and the labels of a step's whole batch. All workers must call this at the same point.

    Args:
        cluster: the devices that have its parts.
        outputs: those of the step, on this worker.

    Returns:
        float32 and int32 arrays of shape [batch, 1], without copies of examples.
    """
    pairs = zip(outputs.probabilities, outputs.labels, strict=True)
    parts = [tf.concat([probabilities, tf.cast(labels, tf.float32)], 1) for probabilities, labels in pairs]
    gathered = cluster.gather(b"".join(part.numpy().tobytes() for part in _own_parts(parts, outputs)))
    rows = np.frombuffer(b"".join(gathered), np.float32).reshape(-1, 2)
    return rows[:, :1], rows[:, 1:].astype(np.int32)


def _own_parts(parts: Sequence[tf.Tensor], outputs: StepOutputs) -> list[tf.Tensor]:
    """Returns the parts of a batch without those that are copies of examples that another device has."""
    return [part for part, weight in zip(parts, outputs.weights, strict=True) if weight > 0]
