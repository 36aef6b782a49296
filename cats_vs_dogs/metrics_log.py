"""The records of metrics: one row in; a log line, TensorBoard's scalars and a line of metrics.jsonl out."""

import contextlib
import datetime
import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import logging

from cats_vs_dogs import files, terminal
from cats_vs_dogs.event_files import EventFile


class Chart(NamedTuple):
    """Where TensorBoard shows a figure."""

    tags: tuple[str, ...]  # That of 2017, if there was one, and "Compare/...", which training and evaluation share.
    about: str  # The description of its charts.


_ACCURACY = "The share of right answers. Training: on the examples since the last log line, as they are augmented."
_PERR = "The same as the accuracy, since there are two classes and each example has one label."
_LOG_LOSS = "The mean of -log(probability of the true class). It can be compared between runs with any losses."
_LOSS = "The label loss, which training minimizes. Compare it only between runs with the same label loss."
_GAP = "Global average precision: of the predictions for both classes in one list."

# The charts of figures, by their names in metrics.jsonl.
TRAINING_CHARTS = {
    "accuracy": Chart(("model/Training_Hit@1", "Compare/accuracy"), _ACCURACY),
    "log_loss": Chart(("Compare/log_loss",), _LOG_LOSS),
    "label_loss": Chart(("label_loss", "Compare/loss"), _LOSS),
    "regularization_loss": Chart(("reg_loss",), "What regularizers add to the loss, before --regularization_penalty."),
    "perr": Chart(("model/Training_Perr",), _PERR),
    "gap": Chart(("model/Training_GAP",), f"{_GAP} Of the last batch."),
    "gradient_norm": Chart(("gradient_norm",), "The norm of all gradients together in the last step, before clipping."),
    "learning_rate": Chart(("learning_rate",), "The learning rate of the last step."),
    "examples_per_second": Chart(
        ("global_step/Examples/Second",), "Training examples per second, without evaluations, checkpoints and exports."
    ),
    "waiting_for_data": Chart(
        ("global_step/Waiting_For_Data",), "The share of time in which the model had no batch to work on."
    ),
}
BATCH_CHARTS = {
    "hit_at_one": Chart(("GlobalStep/Eval_Hit@1",), "The accuracy on each batch of an evaluation."),
    "perr": Chart(("GlobalStep/Eval_Perr",), _PERR),
    "loss": Chart(("GlobalStep/Eval_Loss",), "The label loss of each batch of an evaluation."),
    "examples_per_second": Chart(("GlobalStep/Eval_Example_Second",), "Evaluated examples per second."),
}
EVALUATION_CHARTS = {
    "avg_hit_at_one": Chart(("Epoch/Eval_Avg_Hit@1", "Compare/accuracy"), _ACCURACY),
    "log_loss": Chart(("Compare/log_loss",), _LOG_LOSS),
    "avg_loss": Chart(("Epoch/Eval_Avg_Loss", "Compare/loss"), _LOSS),
    "avg_perr": Chart(("Epoch/Eval_Avg_Perr",), _PERR),
    "map": Chart(("Epoch/Eval_MAP",), "Mean over both classes of the average precision."),
    "gap": Chart(("Epoch/Eval_GAP",), _GAP),
    "roc_auc": Chart(("Epoch/Eval_ROC_AUC",), "The share of pairs of a dog and a cat that are ranked right."),
}
BEST_CHARTS = {
    "avg_hit_at_one": Chart(("Compare/best_accuracy",), "The accuracy of the best model so far."),
    "log_loss": Chart(("Compare/best_log_loss",), "The log loss of the best model so far: that with the lowest loss."),
}

_TRAINING_LINE = (
    "training step {step} | Loss: {label_loss:.2f} Examples/sec: {examples_per_second:.2f} | Hit@1: {accuracy:.2f} "
    "PERR: {perr:.2f} GAP: {gap:.2f} | Epoch: {epoch}/{last_epoch} ({percent}%) LR: {learning_rate:.3g} | {time_left} "
    "left | Waiting for data: {waiting_for_data:.0%}"
)
# On a terminal, in parts, the most important first.
_SHORT_TRAINING_LINE = (
    "epoch {epoch}/{last_epoch} {percent}%",
    "loss {label_loss:.3f}",
    "acc {accuracy:.3f}",
    "lr {learning_rate:.2g}",
    "{examples_per_second:.0f} photos/s",
    "{time_left} left",
)
_BATCH_LINE = (
    "examples_processed: {num_examples} | global_step {step} | Batch Hit@1: {hit_at_one:.3f} | Batch PERR: {perr:.3f} "
    "| Batch Loss: {loss:.3f} | Examples_per_sec: {examples_per_second:.3f}"
)
_EVALUATION_LINE = (
    "epoch/eval number {step} | Avg_Hit@1: {avg_hit_at_one:.3f} | Avg_PERR: {avg_perr:.3f} | MAP: {map:.3f} | GAP: "
    "{gap:.3f} | Avg_Loss: {avg_loss:3f}"
)
# Of an evaluation while training, on a terminal.
_SHORT_EVALUATION_LINE = (
    "evaluation at step {step}: loss {avg_loss:.4f}, accuracy {avg_hit_at_one:.4f}, ROC AUC {roc_auc:.4f}"
)
_MORE_OF_EVALUATION = (
    "log loss: {log_loss:.4f} | ROC AUC: {roc_auc:.4f} | cats: {cats_as_cats} right, {cats_as_dogs} called dogs | "
    "dogs: {dogs_as_dogs} right, {dogs_as_cats} called cats"
)


def write_scalars(events: EventFile, step: int, row: Mapping[str, Any], charts: Mapping[str, Chart]) -> None:
    """Writes the figures of a row that have charts.

    Args:
        events: where to write.
        step: the training step.
        row: figures by name; an ensemble's has no loss.
        charts: the charts of each figure, such as TRAINING_CHARTS.
    """
    for name, chart in charts.items():
        for tag in chart.tags if name in row else ():
            events.scalar(tag, row[name], step, chart.about)


def log_training_step(row: Mapping[str, Any], last_epoch: int, percent: int, time_left: datetime.timedelta) -> None:
    """Logs the line of a training step.

    Args:
        row: its figures, with "step" and "epoch".
        last_epoch: the epoch in which training ends.
        percent: the percentage of the steps that are done.
        time_left: the estimated time until training ends.
    """
    logging.info("%s", _TRAINING_LINE.format(**row, last_epoch=last_epoch, percent=percent, time_left=time_left))


def short_training_line(
    row: Mapping[str, Any], last_epoch: int, percent: int, time_left: datetime.timedelta
) -> list[str]:
    """Returns the parts of a training step's line for a terminal; see `log_training_step`."""
    minutes, seconds = divmod(round(time_left.total_seconds()), 60)
    short = f"{minutes}:{seconds:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02} h"
    return [
        part.format(**row, last_epoch=last_epoch, percent=percent, time_left=short) for part in _SHORT_TRAINING_LINE
    ]


def log_batch(row: Mapping[str, Any]) -> None:
    """Logs the line of an evaluated batch: its figures, "step", and "num_examples", the number of examples so far."""
    logging.info("%s", _fill(_BATCH_LINE, row))


def record_evaluation(events: EventFile, metrics: Mapping[str, Any], has_table: bool = False) -> None:
    """Logs the lines of an evaluation and writes its scalars.

    Args:
        events: where to write.
        metrics: see `evaluation.Evaluator.evaluate`.
        has_table: whether a table of the metrics goes to stdout, so that no other line should say the same.
    """
    if not has_table and terminal.shows_short_lines():
        logging.info("%s", _SHORT_EVALUATION_LINE.format(**metrics))
    else:
        # On a terminal the line and the table are read together.
        in_table = ("Avg_Hit@1", "Avg_PERR") if has_table and terminal.shows_stdout_and_stderr() else ()
        logging.info("%s", _fill(_EVALUATION_LINE, metrics, in_table))
        if not has_table:
            logging.info("%s", _MORE_OF_EVALUATION.format(**metrics, **metrics["confusion"]))
    write_scalars(events, metrics["step"], metrics, EVALUATION_CHARTS)


def _fill(line: str, row: Mapping[str, Any], without: tuple[str, ...] = ()) -> str:
    """Fills in a log line, without the parts with some names.

    The part about the loss is left out too if the row has no loss, as that of an ensemble.
    """
    if not {"loss", "avg_loss"} & row.keys():
        without += ("Avg_Loss", "Batch Loss")
    return " | ".join(part for part in line.split(" | ") if not part.startswith(without)).format(**row)


class MetricsFile:
    """Appends rows to `folder`/metrics.jsonl, a JSON object a line.

    Object stores cannot append: there the rows stay in memory until `flush` writes the complete file.

    Args:
        folder: where the file is, or will be with the first row.

    Attributes:
        path: of the file.
    """

    def __init__(self, folder: str):
        self.path = os.path.join(folder, "metrics.jsonl")
        self._text: str | None = None  # The complete file, on object stores.
        self._is_flushed = True

    def rewind(self, **last_steps: int) -> None:
        """Removes the rows of steps that will be done again, and an incomplete row of a killed process.

        Args:
            **last_steps: the last step to keep, by kind of row; rows of other kinds are all kept.

        Raises:
            UserError: if the file cannot be written.
        """
        if not files.exists(self.path):
            return
        text = files.read_bytes(self.path).decode("utf-8", "replace")
        *lines, _ = text.split("\n")  # After the last line break comes nothing, or an incomplete row.
        kept = "".join(f"{line}\n" for line in lines if not _is_later(line, last_steps))
        if kept != text:
            with files.atomic_write(self.path) as file:
                file.write(kept)

    def add(self, kind: str, row: Mapping[str, Any]) -> None:
        """Adds a row, with its kind first and the time, in seconds since 1970, last.

        Args:
            kind: "training" or "evaluation".
            row: "step" and whatever else; numbers that are not finite become null.
        """
        row = {"kind": kind, **row, "time": round(time.time(), 3)}
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        line = json.dumps(row, ensure_ascii=False) + "\n"
        if files.is_remote(self.path):
            if self._text is None:
                self._text = files.read_bytes(self.path).decode("utf-8") if files.exists(self.path) else ""
            self._text += line
            self._is_flushed = False
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line)

    def flush(self) -> None:
        """Brings all rows to the file.

        Raises:
            UserError: if the file cannot be written.
        """
        if not self._is_flushed:
            with files.atomic_write(self.path) as file:
                file.write(self._text or "")
            self._is_flushed = True


def read_rows(folder: str) -> list[dict[str, Any]]:
    """Returns the rows of `folder`/metrics.jsonl, without incomplete ones; [] if there is no such file."""
    path = os.path.join(folder, "metrics.jsonl")
    if not files.exists(path):
        return []
    rows = []
    for line in files.read_bytes(path).decode("utf-8", "replace").split("\n"):
        with contextlib.suppress(ValueError):  # Of a killed process, or of one that is writing.
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def _is_later(line: str, last_steps: Mapping[str, int]) -> bool:
    """Whether a line is the row of a step after the last one to keep."""
    try:
        row = json.loads(line)
        return row["step"] > last_steps.get(row["kind"], math.inf)
    except (ValueError, KeyError, TypeError):  # Not a row of the kit: it stays.
        return False
