"""Rows of metrics.jsonl, of which those of steps that will be done again are removed; lines of an evaluation."""

import json
import types

import numpy as np
import pytest

from cats_vs_dogs import eval_util, metrics_log, terminal
from cats_vs_dogs.metrics_log import MetricsFile


def rows_in(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().split("\n")[:-1]]


def test_rows_of_later_steps_and_an_incomplete_row_are_removed(tmp_path):
    rows = MetricsFile(str(tmp_path))
    rows.rewind(training=0)  # There is no file yet.
    for step in (10, 20, 30):
        rows.add("training", {"step": step, "label_loss": 0.5})
        rows.add("evaluation", {"step": step, "eval_data_pattern": "사진\u2028/*"})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9] + "사".encode()[:-1])  # Within a character, even.
    MetricsFile(str(tmp_path)).rewind(training=30, evaluation=20)
    expected = [(kind, step) for step in (10, 20) for kind in ("training", "evaluation")] + [("training", 30)]
    assert [(row["kind"], row["step"]) for row in rows_in(tmp_path)] == expected

    before = path.stat().st_mtime_ns, path.stat().st_ino
    rows.rewind(training=30, evaluation=20)
    rows.flush()
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before  # Nothing to cut: not written again.

    rows.rewind(training=10)
    rows.add("training", {"step": 20})
    expected = [("training", 10), ("evaluation", 10), ("evaluation", 20), ("training", 20)]
    assert [(row["kind"], row["step"]) for row in rows_in(tmp_path)] == expected
    rows.rewind(training=0, evaluation=0)
    assert rows_in(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_lines_of_others_stay(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('mine\n[1]\n{"step": 5}\n{"kind": "training", "step": 5}\n')
    MetricsFile(str(tmp_path)).rewind(training=4)
    assert path.read_text() == 'mine\n[1]\n{"step": 5}\n'


def test_what_is_not_finite_is_null(tmp_path):
    MetricsFile(str(tmp_path)).add("training", {"step": 1, "gradient_norm": float("inf"), "label_loss": 0.25})
    (row,) = rows_in(tmp_path)
    assert row.pop("time") > 1.5e9
    assert row == {"kind": "training", "step": 1, "gradient_norm": None, "label_loss": 0.25}


def test_rows_are_read_without_incomplete_ones(tmp_path):
    assert metrics_log.read_rows(str(tmp_path)) == []
    rows = MetricsFile(str(tmp_path))
    rows.add("training", {"step": 1, "loss": float("nan"), "name": "\u2028"})
    rows.add("evaluation", {"step": 2})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('7\n{"kind": "trai')
    read = metrics_log.read_rows(str(tmp_path))
    assert [{key: row[key] for key in row if key != "time"} for row in read] == [
        {"kind": "training", "step": 1, "loss": None, "name": "\u2028"},
        {"kind": "evaluation", "step": 2},
    ]


@pytest.mark.parametrize("is_terminal", [False, True])
def test_an_evaluation_while_training_has_one_line_on_a_terminal(monkeypatch, caplog, is_terminal):
    caplog.set_level("INFO", logger="absl")
    monkeypatch.setattr(terminal, "shows_short_lines", lambda: is_terminal)
    metrics = eval_util.EvaluationMetrics(2, 2)
    metrics.accumulate(np.array([[0.75], [0.5]], np.float32), np.array([[1], [0]]), 0.5)
    events = types.SimpleNamespace(scalar=lambda *unused: None)
    metrics_log.record_evaluation(events, {"step": 1, **metrics.get()})
    short = ["evaluation at step 1: loss 0.5000, accuracy 1.0000, ROC AUC 1.0000"]
    assert caplog.messages == short if is_terminal else caplog.messages[0].startswith("epoch/eval number 1 | Avg_Hit@1")
