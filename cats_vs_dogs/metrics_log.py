"""The records of metrics: one row in; a log line, TensorBoard's scalars and a line of metrics.jsonl out."""

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any

from absl import logging

from cats_vs_dogs import files
from cats_vs_dogs.event_files import EventFile

# The name of a figure in metrics.jsonl, and its tags in TensorBoard: those of 2017, and "Compare/..." under which
# training and evaluation share a chart.
TRAINING_TAGS = {
    "label_loss": ("label_loss", "Compare/loss"),
    "regularization_loss": ("reg_loss",),
    "gradient_norm": ("gradient_norm",),
    "accuracy": ("model/Training_Hit@1", "Compare/accuracy"),
    "perr": ("model/Training_Perr",),
    "gap": ("model/Training_GAP",),
    "learning_rate": ("learning_rate",),
    "examples_per_second": ("global_step/Examples/Second",),
    "waiting_for_data": ("global_step/Waiting_For_Data",),
}
BATCH_TAGS = {
    "hit_at_one": ("GlobalStep/Eval_Hit@1",),
    "perr": ("GlobalStep/Eval_Perr",),
    "loss": ("GlobalStep/Eval_Loss",),
    "examples_per_second": ("GlobalStep/Eval_Example_Second",),
}
EVALUATION_TAGS = {
    "avg_hit_at_one": ("Epoch/Eval_Avg_Hit@1", "Compare/accuracy"),
    "avg_perr": ("Epoch/Eval_Avg_Perr",),
    "avg_loss": ("Epoch/Eval_Avg_Loss", "Compare/loss"),
    "map": ("Epoch/Eval_MAP",),
    "gap": ("Epoch/Eval_GAP",),
    "log_loss": ("Epoch/Eval_Log_Loss",),
    "roc_auc": ("Epoch/Eval_ROC_AUC",),
}
BEST_TAGS = {"avg_hit_at_one": ("Compare/best_accuracy",), "avg_loss": ("Compare/best_loss",)}

_TRAINING_LINE = (
    "training step {step} | Loss: {label_loss:.2f} Examples/sec: {examples_per_second:.2f} | Hit@1: {accuracy:.2f} "
    "PERR: {perr:.2f} GAP: {gap:.2f} | Epoch: {epoch}/{last_epoch} ({percent}%) LR: {learning_rate:.3g} | {time_left} "
    "left | Waiting for data: {waiting_for_data:.0%}"
)
_BATCH_LINE = (
    "examples_processed: {num_examples} | global_step {step} | Batch Hit@1: {hit_at_one:.3f} | Batch PERR: {perr:.3f} "
    "| Batch Loss: {loss:.3f} | Examples_per_sec: {examples_per_second:.3f}"
)
_EVALUATION_LINES = (
    "epoch/eval number {step} | Avg_Hit@1: {avg_hit_at_one:.3f} | Avg_PERR: {avg_perr:.3f} | MAP: {map:.3f} | GAP: "
    "{gap:.3f} | Avg_Loss: {avg_loss:3f}",
    "log loss: {log_loss:.4f} | ROC AUC: {roc_auc:.4f} | cats: {cats_as_cats} right, {cats_as_dogs} called dogs | "
    "dogs: {dogs_as_dogs} right, {dogs_as_cats} called cats",
)


def write_scalars(events: EventFile, step: int, row: Mapping[str, Any], tags: Mapping[str, tuple[str, ...]]) -> None:
    """Writes the figures of a row that have tags.

    Args:
        events: where to write.
        step: the training step.
        row: figures by name; an ensemble's has no loss.
        tags: the tags of each figure, such as TRAINING_TAGS.
    """
    for name, its_tags in tags.items():
        for tag in its_tags if name in row else ():
            events.scalar(tag, row[name], step)


def log_training_step(row: Mapping[str, Any], last_epoch: int, total_steps: int, time_left: Any) -> None:
    """Logs the line of a training step.

    Args:
        row: its figures, with "step" and "epoch".
        last_epoch: the epoch in which training ends.
        total_steps: the step at which training ends.
        time_left: the estimated time until then, a timedelta.
    """
    percent = 100 * row["step"] // total_steps
    logging.info("%s", _TRAINING_LINE.format(**row, last_epoch=last_epoch, percent=percent, time_left=time_left))


def log_batch(row: Mapping[str, Any]) -> None:
    """Logs the line of an evaluated batch: its figures, "step", and "num_examples", the number of examples so far."""
    logging.info("%s", _fill(_BATCH_LINE, row))


def record_evaluation(events: EventFile, metrics: Mapping[str, Any]) -> None:
    """Logs the lines of an evaluation and writes its scalars.

    Args:
        events: where to write.
        metrics: see `evaluation.Evaluator.evaluate`.
    """
    step, confusion = metrics["step"], metrics["confusion"]
    for line in _EVALUATION_LINES:
        logging.info("%s", _fill(line, {**metrics, **confusion}))
    write_scalars(events, step, metrics, EVALUATION_TAGS)
    for name, count in confusion.items():
        events.scalar(f"Confusion/{name}", count, step)


def _fill(line: str, row: Mapping[str, Any]) -> str:
    """Fills in a log line; without its part about the loss if the row has no loss, as that of an ensemble."""
    if not {"loss", "avg_loss"} & row.keys():
        line = " | ".join(part for part in line.split(" | ") if "Loss: {" not in part)
    return line.format(**row)


class MetricsFile:
    """Appends rows to `folder`/metrics.jsonl, a JSON object a line.

    Object stores cannot append: there the rows stay in memory until `flush` writes the complete file.

    Args:
        folder: where the file is, or will be with the first row.
    """

    def __init__(self, folder: str):
        self._path = os.path.join(folder, "metrics.jsonl")
        self._text: str | None = None  # The complete file, on object stores.
        self._is_flushed = True

    def rewind(self, **last_steps: int) -> None:
        """Removes the rows of steps that will be done again, and an incomplete row of a killed process.

        Args:
            **last_steps: the last step to keep, by kind of row; rows of other kinds are all kept.

        Raises:
            UserError: if the file cannot be written.
        """
        if not files.exists(self._path):
            return
        text = files.read_bytes(self._path).decode("utf-8", "replace")
        *lines, _ = text.split("\n")  # After the last line break comes nothing, or an incomplete row.
        kept = "".join(f"{line}\n" for line in lines if not _is_later(line, last_steps))
        if kept != text:
            with files.atomic_write(self._path) as file:
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
        if files.is_remote(self._path):
            if self._text is None:
                self._text = files.read_bytes(self._path).decode("utf-8") if files.exists(self._path) else ""
            self._text += line
            self._is_flushed = False
            return
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line)

    def flush(self) -> None:
        """Brings all rows to the file.

        Raises:
            UserError: if the file cannot be written.
        """
        if not self._is_flushed:
            with files.atomic_write(self._path) as file:
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
