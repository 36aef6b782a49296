"""report.html: one page about an evaluation that needs no other file and no network, so it can be mailed.

The page is the template templates/report.html; this module collects what it shows. All texts are escaped when they are
filled in: an id may hold anything.
"""

import contextlib
import dataclasses
import datetime
import math
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from cats_vs_dogs import (
    eval_util,
    figures,
    files,
    metrics_log,
    readers,
    report_figures,
    report_photos,
    train_dir,
    utils,
)
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.config import AVERAGES
from cats_vs_dogs.evaluation import Evaluation
from cats_vs_dogs.labels import CLASS_NAMES

TEMPLATES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates")

_MOST_REMOTE = 20  # folders beside a train_dir on an object store; to look into one takes two requests
_MOST_MODELS = 20  # in the table
_SPACE = "\N{NO-BREAK SPACE}"
_COMPARED = ("avg_hit_at_one", "log_loss", "roc_auc", "ece")


@dataclasses.dataclass(frozen=True)
class Report:
    """Writes the report of a model, or of an ensemble, after each evaluation.

    Attributes:
        folder: where report.html is written; its metrics are there, too.
        train_dirs: the folder of the model, or those of an ensemble.
        classifiers: the models, with the weights that were evaluated.
        reader: how they read a record.
        shards: what they were evaluated on.
    """

    folder: str
    train_dirs: Sequence[str]
    classifiers: Sequence[Classifier]
    reader: readers.BaseReader
    shards: readers.Shards

    def write(self, evaluation: Evaluation, metrics: dict[str, Any]) -> None:
        """Replaces report.html, and logs where it is, or a warning if it cannot be written: all else is kept.

        Args:
            evaluation: its result.
            metrics: its metrics, with "eval_data_pattern" and "trained_on".
        """
        path = os.path.join(self.folder, "report.html")
        try:
            text = render(self._contents(evaluation, metrics))
            with files.atomic_write(path) as file:
                file.write(text)
        except ImportError as error:  # The kit was updated, what it needs was not.
            logging.warning("no report: %s; install the kit again, or pass --noreport", error)
        except Exception as error:  # What was trained and measured is saved; it does not end in a traceback.
            reason = str(error) if isinstance(error, utils.UserError) else f"{type(error).__name__}: {error}"
            logging.warning("no report: %s; all else is saved; --noreport writes none", reason)
        else:
            logging.info("The report is in %s.", path)

    def _contents(self, evaluation: Evaluation, metrics: dict[str, Any]) -> dict[str, Any]:
        """Returns the variables of the template."""
        probabilities, labels = evaluation.probabilities, evaluation.labels
        folder, run = _find_run(self.train_dirs[0])
        is_ensemble = len(self.train_dirs) > 1
        chosen = report_photos.choose(probabilities, labels)
        numbers = [number for some in chosen.values() for number in some]
        shown, why_no_maps = report_photos.show(
            numbers, evaluation.ids, probabilities, labels, self.classifiers, self.reader, self.shards
        )
        photo_of = dict(zip(numbers, shown, strict=True))
        return {
            "name": _name_of(self.train_dirs),
            "metrics": metrics,
            "num_right": round(metrics["avg_hit_at_one"] * metrics["num_examples"]),
            "interval": eval_util.accuracy_interval(metrics),
            "class_sizes": eval_util.class_sizes(metrics["confusion"]),
            "class_names": CLASS_NAMES,
            "is_ensemble": is_ensemble,
            "compared": list(_compared(folder, self.train_dirs, metrics)),
            "curves": [] if is_ensemble else _learning_curves(folder, self.folder, metrics),
            "figures": _figures(probabilities, labels, metrics),
            "photos": {kind: [photo_of[number] for number in some] for kind, some in chosen.items()},
            "why_no_maps": why_no_maps,
            "num_mistakes": len(evaluation.mistakes),
            "sure_enough": report_photos.SURE_ENOUGH,
            "right_enough": report_photos.RIGHT_ENOUGH,
            "about_run": {} if is_ensemble else _about_run(run),
            "about_models": list(map(_about_model, self.train_dirs, self.classifiers)),
            "flags": {} if is_ensemble else _flags(run),
            "command": _command(),
            "versions": train_dir.versions(),
            "written": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        }


def render(contents: dict[str, Any]) -> str:
    """Returns the page.

    Args:
        contents: the variables of the template, see `Report`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "shown": report_photos.shortened}
    return environment.get_template("report.html").render(contents)


def percent(share: float) -> str:
    """Returns a share as people read it: 0.9342 as "93.4 %"."""
    return f"{100 * share:.1f}{_SPACE}%"


def number(value: float, digits: int = 3) -> str:
    """Returns a number with so many digits after the point; an integer with separators of thousands."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


# ---- What was run.


def _find_run(model_dir: str) -> tuple[str, dict[str, Any]]:
    """Returns the train_dir of a model and what run.json holds; {} if it is missing or damaged."""
    with contextlib.suppress(utils.UserError):
        return train_dir.find_run(model_dir)
    return model_dir, {}


def _command() -> str:
    script, *arguments = sys.argv
    return f"{utils.python_command()} {shlex.join([script, *arguments])}"


def _name_of(train_dirs: Sequence[str]) -> str:
    if len(train_dirs) > 1:
        return f"ensemble of {len(train_dirs)} models"
    folder = files.absolute_path(train_dirs[0]).rstrip("/")
    parent, name = os.path.split(folder)
    return f"{os.path.basename(parent)}/{name}" if name == "best" else name or folder


def _about_model(folder: str, classifier: Classifier) -> dict[str, str]:
    """Returns what a model is, as rows of a table."""
    spec = classifier.spec
    params = "".join(f", {name}={value}" for name, value in spec.model_params.items())
    return {
        "folder": files.absolute_path(folder),
        "model": f"{spec.model}{params}",
        "weights": f"{classifier.num_parameters:,}",
        "loss": spec.label_loss,
        "picture": f"{spec.image_size} × {spec.image_size} pixels",
    }


def _about_run(run: dict[str, Any]) -> dict[str, str]:
    """Returns how a model was trained, as rows of a table; {} if that is not known."""
    settings, shards, versions = (run.get(name) or {} for name in ("flags", "shards", "versions"))
    if not settings:
        return {}
    recipe = {"recipe": settings["recipe"]} if settings.get("recipe") else {}
    examples = f"{sum(shards.values()):,} photos in {len(shards)} shards: " if shards else ""
    return {
        **recipe,
        "trained on": examples + (settings.get("train_data_pattern") or "the kit's own sample set"),
        "trained with": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _flags(run: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in sorted((run.get("flags") or {}).items())}


# ---- Other models.


def _compared(folder: str, train_dirs: Sequence[str], metrics: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields rows of the table of models: this one and those in the folders beside its train_dir, by log loss.

    Those that were evaluated in another way come last.

    Args:
        folder: the train_dir of this model, or of the first one of an ensemble.
        train_dirs: of this model, or those of an ensemble.
        metrics: of this model.
    """
    rows = [_row(_name_of(train_dirs), metrics, metrics, is_this=True)]
    own = None if len(train_dirs) > 1 else files.real_path(train_dirs[0])
    with contextlib.suppress(*files.file_errors()):
        for name, its_folder, its_metrics in _metrics_beside(folder):
            if files.real_path(its_folder) != own:
                rows.append(_row(name, its_metrics, metrics))
    rows.sort(key=lambda row: (not row["is_comparable"], row["metrics"]["log_loss"]))
    others = [row for row in rows if not row["is_this"]][:_MOST_MODELS]
    yield from (row for row in rows if row["is_this"] or row in others)


def _row(name: str, its_metrics: dict[str, Any], metrics: dict[str, Any], is_this: bool = False) -> dict[str, Any]:
    pattern, notes = its_metrics.get("eval_data_pattern"), []
    if pattern != metrics["eval_data_pattern"]:
        notes.append(f"on other data: {pattern}" if pattern else "on data that are not known")
    if trained_on := its_metrics.get("trained_on"):
        notes.append(f"was trained on {trained_on:,} of these photos")
    has_same_averages = all(bool(its_metrics.get(name)) == bool(metrics[name]) for name in AVERAGES)
    is_comparable = is_this or (has_same_averages and not notes)
    averages = [f"with {name}" for name in AVERAGES if its_metrics.get(name)]
    notes += averages or ([] if has_same_averages else ["without averages"])
    return {"name": name, "metrics": its_metrics, "notes": notes, "is_this": is_this, "is_comparable": is_comparable}


def _metrics_beside(folder: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields name, folder and newest metrics of last and best models in a train_dir and the folders beside it."""
    parent = os.path.dirname(files.absolute_path(folder).rstrip("/"))
    for name in files.list_dir(parent)[: _MOST_REMOTE if files.is_remote(parent) else None]:
        last, best = (_newest_metrics(os.path.join(parent, name, place)) for place in ("eval", "best"))
        if last:
            yield name, os.path.join(parent, name), last
        if best and not (last and last["step"] == best["step"]):
            yield f"{name}/best", os.path.join(parent, name, "best"), best


def _newest_metrics(folder: str) -> dict[str, Any] | None:
    """Returns the metrics of the largest step in a folder; None without any that can be read."""
    with contextlib.suppress(utils.UserError, *files.file_errors()):
        paths = files.list_matching(folder, r"metrics-\d+\.json")
        if paths:
            metrics = files.read_json(max(paths, key=lambda path: int(path.rpartition("-")[2].partition(".")[0])))
            values = [metrics.get(name) for name in _COMPARED]
            are_known = all(isinstance(value, float) and math.isfinite(value) for value in values)
            if are_known and isinstance(metrics.get("step"), int):
                return metrics
    return None


# ---- Figures.


def _figures(probabilities: np.ndarray, labels: np.ndarray, metrics: dict[str, Any]) -> dict[str, str]:
    """Returns the figures of one evaluation as data URLs, by name."""
    points, sizes = figures.roc_curve(probabilities, labels), eval_util.class_sizes(metrics["confusion"])
    drawn = {
        "roc": report_figures.draw_roc(points),
        "precision_recall": report_figures.draw_precision_recall(points, sizes["cat"], sizes["dog"]),
        "reliability": report_figures.draw_reliability(probabilities, labels),
        "histogram": report_figures.draw_histogram(probabilities, labels),
    }
    return {name: _svg(figure) for name, figure in drawn.items()}


def _learning_curves(folder: str, eval_dir: str, metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the learning curves of a train_dir that has some: pictures as data URLs, texts, what they leave out.

    Args:
        folder: the train_dir.
        eval_dir: where eval.py may have written metrics, too.
        metrics: the newest ones. Only evaluations on the same data are shown: those with the same averages, or
            those with none, as training has them, whichever are more.
    """
    rows, evaluations, plain = [], {metrics["step"]: metrics}, {}
    with contextlib.suppress(*files.file_errors()):
        rows = metrics_log.read_rows(folder)
        others = metrics_log.read_rows(eval_dir)
        for row in [*rows, *others]:
            if row.get("kind") != "evaluation" or row.get("eval_data_pattern") != metrics["eval_data_pattern"]:
                continue
            averages = [bool(row.get(name)) for name in AVERAGES]
            if averages == [metrics[name] for name in AVERAGES] and row.get("step") != metrics["step"]:
                evaluations[row.get("step")] = row
            if not any(averages):
                plain[row.get("step")] = row
    is_plain = len(plain) > len(evaluations)
    evaluations = plain if is_plain else evaluations
    training = [row for row in rows if row.get("kind") == "training"]
    if len(training) + len(evaluations) < 2:
        return []
    curves = []
    for title, name, its_name, is_share in (
        ("Loss", "label_loss", "avg_loss", False),
        ("Accuracy", "accuracy", "avg_hit_at_one", True),
    ):
        lines = _line(training, name), _line(evaluations.values(), its_name)
        words = [
            f"of {what} goes from {_value(values[0], is_share)} to {_value(values[-1], is_share)}"
            for what, (_, values) in zip(("training batches", "evaluations"), lines, strict=True)
            if values
        ]
        picture = _svg(report_figures.draw_learning_curve(*lines, title.lower(), is_share))
        text = f"{title} by step: that {', that '.join(words)}."
        curves.append({"title": title, "picture": picture, "text": text, "is_plain": is_plain})
    return curves


def _line(rows: Any, name: str) -> tuple[list[int], list[float]]:
    """Returns the steps and values of a figure in rows; null stands for a number that is not finite."""
    pairs = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float) and "step" in row]
    pairs = sorted(pair for pair in pairs if math.isfinite(pair[1]))
    return [step for step, _ in pairs], [value for _, value in pairs]


def _value(value: float, is_share: bool) -> str:
    return percent(value) if is_share else number(float(value))


def _svg(figure: bytes) -> str:
    return report_photos.data_url(figure, "image/svg+xml")
