"""What TensorBoard shows besides plain scalars: curves, pictures, histograms, a run's flags, and the table of runs.

Every function writes to the event file that it is given.
"""

import io
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from cats_vs_dogs import figures
from cats_vs_dogs.event_files import EventFile, in_slices

# The flags that the table of runs shows first, sorted, as TensorBoard does. After five, a click shows the others.
_SHOWN_FIRST = ("image_size", "label_loss", "model", "model_params")
# (tag, folder in train_dir, name in the table). The table shows a tag's last value; best_... is written at a new best.
# TensorBoard finds the folder eval of a run only if it was started in a folder above the run's.
_COMPARED = (
    ("Compare/best_accuracy", "", "accuracy, best"),
    ("Compare/accuracy", "eval", "accuracy, last"),
    ("Compare/accuracy", "", "accuracy, training"),
    ("Compare/best_log_loss", "", "log loss, best"),
    ("Compare/log_loss", "eval", "log loss, last"),
    ("Compare/log_loss", "", "log loss, training"),
)
_NUM_WEIGHTS = 20  # As many are shown at once. The others are in a group of their own, which a click opens.
# TensorBoard sorts groups by name, and opens the first ones: this character, unlike three dots, comes after letters.
_MORE = "\N{HORIZONTAL ELLIPSIS}"


# ---- Training.


def write_gradient_norms(events: EventFile, step: int, norms: Sequence[float]) -> None:
    """Writes a histogram of the gradient norms of all variables, as powers of ten.

    Args:
        events: where to write.
        step: the training step.
        norms: [variables], at least 0. A norm below 1e-12 counts as 1e-12. Norms that are not finite, which a scaled
            loss may cause, are left out.
    """
    exponents = np.log10(np.maximum(np.asarray(norms, np.float64), 1e-12))
    about = "The norm of each variable's gradient before clipping, as a power of ten."
    events.histogram("gradient_norms_log10", exponents, step, num_buckets=20, about=about)


def write_weights(events: EventFile, step: int, weights: Mapping[str, np.ndarray]) -> None:
    """Writes a histogram of each weight.

    Args:
        events: where to write.
        step: the training step.
        weights: arrays by the path of the weight, which is the tag. If there are more than 20, all but the first ten
            and the last ten are in a group "\N{HORIZONTAL ELLIPSIS}".
    """
    middle = range(_NUM_WEIGHTS // 2, len(weights) - _NUM_WEIGHTS // 2) if len(weights) > _NUM_WEIGHTS else ()
    for number, (path, values) in enumerate(weights.items()):
        tag = f"{_MORE}/{path}" if number in middle else path
        events.histogram(tag, np.asarray(values), step, about="The values of a variable of the model.")


def write_input(events: EventFile, step: int, images: Sequence[np.ndarray], tag: str = "model/input_raw") -> None:
    """Writes a histogram of the pixels of a batch, in the range [-1, 1] that models take.

    Args:
        events: where to write.
        step: the training step.
        images: the pictures of each replica, [batch, size, size, 3] as the reader made them: uint8, or float32 in
            [-1, 1]. They are read in slices, so no copy of the batch is made.
        tag: the name that TensorBoard shows.
    """
    about = "The pixels of a batch, as the model takes them."
    if images[0].dtype != np.uint8:
        events.histogram(tag, images, step, about=about)
        return
    counts = sum(np.bincount(part, minlength=256) for part in in_slices(images))
    (pixels,) = np.nonzero(counts)
    events.histogram(tag, pixels / 127.5 - 1, step, counts[pixels], about=about)


def write_training_photos(
    events: EventFile, step: int, images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray
) -> None:
    """Writes a grid of photos that the model was trained on, after resizing and augmentation.

    Args:
        events: where to write.
        step: the training step.
        images: [n, size, size, 3], as the reader made them; see `figures.to_uint8`.
        labels: [n, 1], 1 = dog.
        probabilities: [n, 1], probability of a dog.
    """
    photos, texts = figures.to_uint8(np.asarray(images)), figures.captions(labels, probabilities)
    about = "Training images as the model sees them, resized and augmented: true class, answer, and how sure it was."
    _write_picture(events, "photos/training", figures.draw_grid(photos, texts), step, about)


# ---- Evaluation.


def write_photos(events: EventFile, step: int, photos: figures.Photos) -> None:
    """Writes the photos of an evaluation that are worth a look, as two grids."""
    for tag, examples, about in (
        ("photos/confident_mistakes", photos.mistakes, "The mistakes of which the model was surest."),
        ("photos/least_sure", photos.least_sure, "The photos of which the model was least sure."),
    ):
        ids, images, labels, probabilities = examples.columns or ([], [], [], [])
        grid = figures.draw_grid(images, figures.captions(labels, probabilities, ids))
        _write_picture(events, tag, grid, step, about)


def write_curves(events: EventFile, step: int, probabilities: np.ndarray, labels: np.ndarray) -> None:
    """Writes the precision-recall curve, for the tab PR Curves.

    Args:
        events: where to write.
        step: the training step.
        probabilities: [n, 1], probability of a dog.
        labels: [n, 1], 1 = dog.
    """
    from tensorboard.plugins.pr_curve import metadata

    curve = figures.pr_curve(probabilities, labels)
    about = "The dog is the positive class."
    events.write(
        "pr_curve", curve, step, metadata.create_summary_metadata("precision and recall", about, curve.shape[1])
    )


def write_histograms(events: EventFile, step: int, images: np.ndarray, probabilities: np.ndarray) -> None:
    """Writes the histograms that evaluations had in 2017.

    Args:
        events: where to write.
        step: the training step.
        images: [n, size, size, 3], the first ones, as the reader made them; see `write_input`.
        probabilities: [n, 1], probability of a dog, of all examples.
    """
    write_input(events, step, [images], "model_input_raw")
    about = "The probabilities of a dog, of all examples of an evaluation."
    events.histogram("model_activations", probabilities, step, about=about)


def write_drawings(
    events: EventFile, step: int, probabilities: np.ndarray, labels: np.ndarray, metrics: Mapping[str, Any]
) -> None:
    """Writes the ROC curve and the confusion matrix, as pictures.

    Args:
        events: where to write.
        step: the training step.
        probabilities: [n, 1], probability of a dog.
        labels: [n, 1], 1 = dog.
        metrics: "roc_auc" and "confusion" are read; see `eval_util.EvaluationMetrics.get`.
    """
    roc = figures.draw_roc(figures.roc_curve(probabilities, labels), metrics["roc_auc"])
    _write_picture(
        events, "figures/roc_curve", roc, step, "Which shares of cats and dogs are called dogs, by threshold."
    )
    confusion = figures.draw_confusion(metrics["confusion"])
    _write_picture(
        events, "figures/confusion_matrix", confusion, step, "Counts, and their percentages of the true class."
    )


def _write_picture(events: EventFile, tag: str, encoded: bytes, step: int, about: str) -> None:
    width, height = Image.open(io.BytesIO(encoded)).size  # Reads only the header.
    events.image(tag, encoded, width, height, step, about)


# ---- The run.


def write_run(events: EventFile, record: Mapping[str, Any], without_effect: Collection[str]) -> None:
    """Writes a run's flags as of step 0: all of them for the tab Text, the hyperparameters for the tab HParams.

    Args:
        events: where to write.
        record: as `run_record.make` returns it.
        without_effect: names of flags that are no hyperparameters; see `hyperparameters`.
    """
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2

    events.text("flags", flags_table(record), 0)
    values = hyperparameters(record["flags"], without_effect)
    types = {bool: api_pb2.DATA_TYPE_BOOL, float: api_pb2.DATA_TYPE_FLOAT64, str: api_pb2.DATA_TYPE_STRING}
    experiment = api_pb2.Experiment(
        hparam_infos=[
            # TensorBoard shows the columns first that differ between runs.
            api_pb2.HParamInfo(name=name, type=types[type(value)], differs=name in _SHOWN_FIRST)
            for name, value in values.items()
        ],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(group=folder, tag=tag), display_name=name)
            for tag, folder, name in _COMPARED
        ],
    )
    experiment_data = plugin_data_pb2.HParamsPluginData(experiment=experiment)
    started = summary_v2.hparams_pb(values).value[0].metadata.plugin_data.content
    session = metadata.parse_session_start_info_plugin_data(started)
    session.group_name = ""  # The table then has TensorBoard's short name of the run, which no other run has.
    session_data = plugin_data_pb2.HParamsPluginData(session_start_info=session)
    nothing = np.zeros(0, np.float32)  # The metadata holds the data.
    events.write(metadata.EXPERIMENT_TAG, nothing, 0, metadata.create_summary_metadata(experiment_data))
    events.write(metadata.SESSION_START_INFO_TAG, nothing, 0, metadata.create_summary_metadata(session_data))


def flags_table(record: Mapping[str, Any]) -> str:
    """Returns a Markdown table of the flags that a run began with.

    Args:
        record: as `run_record.make` returns it.
    """

    def cell(value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value)
        return f"`{text}`".replace("|", "\\|") if text else ""

    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    rows = [f"| {name} | {cell(value)} |" for name, value in sorted(record["flags"].items())]
    about = f"{record['parameters']:,} parameters, {len(record['shards']):,} shards, {record['replicas']} device(s)"
    return "\n".join([f"{about}, {versions}", "", "| flag | value |", "| --- | --- |", *rows])


def hyperparameters(flags: Mapping[str, Any], without_effect: Collection[str]) -> dict[str, bool | float | str]:
    """Returns the flags by which runs are compared, with values of the types that TensorBoard knows.

    Args:
        flags: the values of all flags, by name. Flags whose value is None are left out.
        without_effect: names of flags that do not change the results of a run, such as folders and periods.
    """

    def convert(value: Any) -> bool | float | str:
        if isinstance(value, bool):
            return value
        return float(value) if isinstance(value, (int, float)) else str(value)

    return {name: convert(value) for name, value in flags.items() if value is not None and name not in without_effect}
