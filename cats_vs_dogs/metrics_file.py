"""metrics.jsonl: the figures of training and evaluation for programs, a JSON object a line."""

import json
import math
import os
import time
from typing import Any

import tensorflow as tf

from cats_vs_dogs import files


class MetricsFile:
    """Writes rows at the end of `folder`/metrics.jsonl.

    On object stores, where nothing can be appended, they are in memory until `flush` writes the whole file.

    Args:
        folder: where the file is, or will be with the first row.
    """

    def __init__(self, folder: str):
        self._path = os.path.join(folder, "metrics.jsonl")
        self._text = ""  # Of the whole file, on object stores.
        self._is_flushed = True

    def cut(self, **last_steps: int) -> None:
        """Removes the rows of steps that will be done again, and what a killed process wrote only half of.

        Args:
            **last_steps: the last step that is kept, by kind of row; those of other kinds are all kept.

        Raises:
            UserError: if the file cannot be written.
        """
        if not tf.io.gfile.exists(self._path):
            return
        with tf.io.gfile.GFile(self._path, "rb") as file:
            text = file.read().decode("utf-8", "replace")
        *lines, _ = text.split("\n")  # Behind the last line break is nothing, or what breaks off.
        kept = "".join(f"{line}\n" for line in lines if not _is_later(line, last_steps))
        if kept != text:
            with files.atomic_write(self._path, "") as file:
                file.write(kept)
        self._text = kept

    def add(self, kind: str, **row: Any) -> None:
        """Adds a row, with its kind first and the time, in seconds since 1970, last.

        Args:
            kind: "training" or "evaluation".
            **row: "step" and whatever else; numbers that are not finite become null.
        """
        row = {"kind": kind, **row, "time": round(time.time(), 3)}
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        line = json.dumps(row, ensure_ascii=False) + "\n"
        if files.is_remote(self._path):
            self._text += line
            self._is_flushed = False
            return
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line)

    def flush(self) -> None:
        """Makes sure that all rows are in the file.

        Raises:
            UserError: if the file cannot be written.
        """
        if not self._is_flushed:
            with files.atomic_write(self._path, "") as file:
                file.write(self._text)
            self._is_flushed = True


def _is_later(line: str, last_steps: dict[str, int]) -> bool:
    """Whether a line is a row of a step after the last that is kept."""
    try:
        row = json.loads(line)
        return row["step"] > last_steps.get(row["kind"], math.inf)
    except (ValueError, KeyError, TypeError):  # It is not ours: left as it is.
        return False
