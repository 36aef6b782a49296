"""What TensorBoard shows besides plain scalars: curves, pictures, the flags of a run, and the table that compares runs.

The functions `write_...` write to the default writer; see `event_files.make_writer`.
"""

import io
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

_CLASSES = ("cat", "dog")
_WIDTH = 350  # Of all pictures, pixels: as TensorBoard shows them. Other sizes it brings there by leaving pixels out.
_COLUMNS = 4
_TILE = 83  # Width and height of a photo of a grid, pixels.
_LINE = 14  # Height of a line under a photo, pixels.
_WHITE, _BLACK, _GREY, _BLUE, _RED = (255, 255, 255), (32, 33, 36), (200, 200, 200), (25, 103, 210), (197, 34, 31)

# The flags by which runs are compared, as far as the script has them.
_HYPERPARAMETERS = (
    "model",
    "model_params",
    "label_loss",
    "loss_params",
    "image_size",
    "first_image_size",
    "augment",
    "batch_size",
    "num_epochs",
    "max_steps",
    "optimizer",
    "optimizer_params",
    "base_learning_rate",
    "learning_rate_schedule",
    "learning_rate_decay",
    "warmup_examples",
    "clip_gradient_norm",
    "regularization_penalty",
    "precision",
    "seed",
)
# Those of them that the table shows before they are asked for.
_SHOWN_FIRST = ("model", "model_params", "augment", "base_learning_rate", "batch_size")
# (tag, folder in train_dir, what it is). Of a tag the table shows the last value; best_... is written at a new best.
_COMPARED = (
    ("Compare/best_accuracy", "eval", "best evaluation: accuracy"),
    ("Compare/best_loss", "eval", "best evaluation: loss"),
    ("Compare/accuracy", "eval", "last evaluation: accuracy"),
    ("Compare/loss", "eval", "last evaluation: loss"),
    ("Compare/accuracy", "", "last training step: accuracy"),
    ("Compare/loss", "", "last training step: loss"),
)


def pr_curve(probabilities: np.ndarray, labels: np.ndarray, num_thresholds: int = 101) -> np.ndarray:
    """Counts what is right and wrong for thresholds that are evenly spaced from 0 to 1; the dog is the positive class.

    Args:
        probabilities: [n, 1], probability of a dog; one of at least the threshold means dog.
        labels: [n, 1], 1 = dog.
        num_thresholds: how many.

    Returns:
        float32 [6, num_thresholds]: true positives, false positives, true negatives, false negatives, precision, and
        recall, as the PR curve plugin of TensorBoard takes them.
    """
    thresholds = np.arange(num_thresholds) / (num_thresholds - 1)
    highest = np.searchsorted(thresholds, probabilities.ravel().astype(np.float64), side="right") - 1
    is_dog = labels.ravel() > 0
    dogs, cats = (np.bincount(highest[of_class], minlength=num_thresholds) for of_class in (is_dog, ~is_dog))
    true_positives, false_positives = (np.cumsum(counts[::-1])[::-1] for counts in (dogs, cats))
    true_negatives, false_negatives = cats.sum() - false_positives, dogs.sum() - true_positives
    precision = true_positives / np.maximum(true_positives + false_positives, 1)
    recall = true_positives / np.maximum(true_positives + false_negatives, 1)
    rows = [true_positives, false_positives, true_negatives, false_negatives, precision, recall]
    return np.stack(rows).astype(np.float32)


def roc_curve(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the corners of the ROC curve.

    Args:
        probabilities: [n, 1], probability of a dog.
        labels: [n, 1], 1 = dog.

    Returns:
        [points, 2], growing: the share of the cats, and that of the dogs, whose probability is at least a threshold,
        for every probability that there is. (0, 0) comes first, (1, 1) last.
    """
    order = np.argsort(-probabilities.ravel(), kind="stable")
    is_dog = labels.ravel()[order] > 0
    is_last_of_ties = np.append(np.diff(probabilities.ravel()[order]) != 0, True)
    counts = np.stack([np.cumsum(~is_dog), np.cumsum(is_dog)], axis=1)
    shares = counts[is_last_of_ties] / np.maximum(counts[-1], 1)
    return np.concatenate([[[0.0, 0.0]], shares])


class TopExamples:
    """Keeps the examples with the highest scores while batches go by.

    Args:
        limit: how many to keep.

    Attributes:
        scores: of those kept, the highest first; of equal ones the first seen.
        columns: what was added with them: one array for each, [at most limit, ...].
    """

    def __init__(self, limit: int):
        self.scores = np.zeros(0)
        self.columns: list[np.ndarray] = []
        self._limit = limit

    def add(self, scores: np.ndarray, *columns: tf.Tensor | np.ndarray) -> None:
        """Looks at a batch.

        Args:
            scores: [batch]; minus infinity: never to be kept.
            *columns: what to keep of an example, each [batch, ...]. Only the rows that are kept are copied.
        """
        num_old = len(self.scores)
        together = np.concatenate([self.scores, scores])
        kept = np.argsort(-together, kind="stable")[: self._limit]
        kept = kept[np.isfinite(together[kept])]
        is_new = kept >= num_old
        if not is_new.any():
            return
        with tf.device("CPU"):  # Where batches come from: not all of one to a GPU for a few rows.
            new = [tf.gather(column, kept[is_new] - num_old).numpy() for column in columns]
        rows = np.where(is_new, num_old + np.cumsum(is_new) - 1, kept)
        old = self.columns or [column[:0] for column in new]
        self.columns = [np.concatenate(both)[rows] for both in zip(old, new, strict=True)]
        self.scores = together[kept]


class Photos:
    """Chooses the photos of an evaluation that are worth a look, while batches go by.

    Args:
        limit: how many of each kind.

    Attributes:
        mistakes: those called the wrong thing with the most confidence.
        least_sure: those with a probability next to one half.
    """

    def __init__(self, limit: int = 16):
        self.mistakes, self.least_sure = TopExamples(limit), TopExamples(limit)

    def add(self, ids: tf.Tensor, images: tf.Tensor, labels: np.ndarray, probabilities: np.ndarray) -> None:
        """Looks at a batch.

        Args:
            ids: string [batch].
            images: uint8, or float32 in [-1, 1], [batch, size, size, 3].
            labels: [batch, 1], 1 = dog.
            probabilities: [batch, 1], probability of a dog; above one half means dog.
        """
        confidence = np.abs(probabilities - 0.5).ravel()
        is_wrong = ((probabilities > 0.5) != (labels > 0)).ravel()
        columns = ids, images, labels, probabilities
        self.mistakes.add(np.where(is_wrong, confidence, -np.inf), *columns)
        self.least_sure.add(-confidence, *columns)


def write_photos(photos: Photos) -> None:
    """Writes the photos of an evaluation that are worth a look, as two grids."""
    for tag, examples in (
        ("photos/confident_mistakes", photos.mistakes),
        ("photos/least_sure", photos.least_sure),
    ):
        ids, images, labels, probabilities = examples.columns or ([], [], [], [])
        _write_picture(tag, draw_grid(images, captions(labels, probabilities, ids)), "JPEG")


def write_gradient_norms(norms: Sequence[float]) -> None:
    """Writes a histogram of the norms of the gradients of all variables, as powers of ten.

    Args:
        norms: [variables], at least 0; below 1e-12 they count as that. Those that are not finite, as with a scaled
            loss may be, are left out.
    """
    from tensorboard.plugins.histogram import metadata

    # Not tf.summary.histogram: its ops take many times as long, and this is done at each step that is logged.
    finite = np.asarray(norms)[np.isfinite(norms)]
    counts, edges = np.histogram(np.log10(np.maximum(finite, 1e-12)), bins=20)
    buckets = np.stack([edges[:-1], edges[1:], counts], axis=1)
    summary_metadata = metadata.create_summary_metadata(display_name=None, description=None)
    tf.summary.write("gradient_norms_log10", tf.constant(buckets, tf.float64), metadata=summary_metadata)


def write_training_photos(images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Writes a grid of what the model is given, resized and perhaps augmented.

    Args:
        images: uint8, or float32 in [-1, 1], [n, size, size, 3].
        labels: [n, 1], 1 = dog.
        probabilities: [n, 1], probability of a dog.
    """
    _write_picture("photos/training", draw_grid(images, captions(labels, probabilities)), "JPEG")


def write_curves(probabilities: np.ndarray, labels: np.ndarray) -> None:
    """Writes the precision-recall curve, for the tab PR Curves.

    Args:
        probabilities: [n, 1], probability of a dog.
        labels: [n, 1], 1 = dog.
    """
    from tensorboard.plugins.pr_curve import metadata

    curve = pr_curve(probabilities, labels)
    about = "The dog is the positive class."
    summary_metadata = metadata.create_summary_metadata("precision and recall", about, curve.shape[1])
    tf.summary.write("pr_curve", curve, metadata=summary_metadata)


def write_drawings(probabilities: np.ndarray, labels: np.ndarray, metrics: dict[str, Any]) -> None:
    """Writes the ROC curve and the confusion matrix, as pictures.

    Args:
        probabilities: [n, 1], probability of a dog.
        labels: [n, 1], 1 = dog.
        metrics: of them: "roc_auc" and "confusion", see `eval_util.EvaluationMetrics.get`.
    """
    _write_picture("figures/roc_curve", draw_roc(roc_curve(probabilities, labels), metrics["roc_auc"]), "PNG")
    _write_picture("figures/confusion_matrix", draw_confusion(metrics["confusion"]), "PNG")


def write_run(record: dict[str, Any], train_dir: str) -> None:
    """Writes, as of step 0, the flags of a run for the tab Text, and those that matter for the tab HParams.

    Args:
        record: what `run_record.make` gives.
        train_dir: the name of the run in the table.
    """
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2

    tf.summary.text("flags", flags_table(record), step=0)
    values = hyperparameters(record["flags"])
    kinds = {bool: api_pb2.DATA_TYPE_BOOL, float: api_pb2.DATA_TYPE_FLOAT64, str: api_pb2.DATA_TYPE_STRING}
    experiment = api_pb2.Experiment(
        hparam_infos=[
            # `differs` is what TensorBoard sorts by.
            api_pb2.HParamInfo(name=name, type=kinds[type(value)], differs=name in _SHOWN_FIRST)
            for name, value in values.items()
        ],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(group=folder, tag=tag), display_name=name)
            for tag, folder, name in _COMPARED
        ],
    )
    folder, name = os.path.split(train_dir.rstrip("/"))  # The table has room for little more than the name.
    session = summary_v2.hparams_pb(values, trial_id=f"{name} in {folder}" if folder else name)
    for tag, summary_metadata in (
        (
            metadata.EXPERIMENT_TAG,
            metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(experiment=experiment)),
        ),
        (metadata.SESSION_START_INFO_TAG, session.value[0].metadata),
    ):
        tf.summary.write(tag, tf.zeros([0]), step=0, metadata=summary_metadata)


def flags_table(record: dict[str, Any]) -> str:
    """Returns a Markdown table of the flags that a run began with.

    Args:
        record: what `run_record.make` gives.
    """

    def cell(value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value)
        return f"`{text}`".replace("|", "\\|") if text else ""

    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    rows = [f"| {name} | {cell(value)} |" for name, value in sorted(record["flags"].items())]
    about = f"{record['parameters']:,} parameters, {len(record['shards']):,} shards, {record['replicas']} device(s)"
    return "\n".join([f"{about}, {versions}", "", "| flag | value |", "| --- | --- |", *rows])


def hyperparameters(flags: dict[str, Any]) -> dict[str, bool | float | str]:
    """Returns the flags by which runs are compared; those that are not given are left out.

    Args:
        flags: the values of all flags, by name.
    """
    chosen = {name: flags[name] for name in _HYPERPARAMETERS if flags.get(name) is not None}
    is_number = {name: type(value) in (int, float) for name, value in chosen.items()}
    return {
        name: float(value) if is_number[name] else value if isinstance(value, bool) else str(value)
        for name, value in chosen.items()
    }


def captions(labels: np.ndarray, probabilities: np.ndarray, ids: Sequence[bytes] = ()) -> list[str]:
    """Returns what is said under photos, two lines each: "cat.7.jpg\\ncat, p=0.931"; without ids only the second.

    Args:
        labels: [n, 1], 1 = dog.
        probabilities: [n, 1], probability of a dog.
        ids: [n], or none.
    """
    lines = [
        f"{_CLASSES[int(label > 0)]}, p={float(p):.3f}"
        for label, p in zip(np.ravel(labels), np.ravel(probabilities), strict=True)
    ]
    names = [str(name, "utf-8", "replace") + "\n" for name in ids] or [""] * len(lines)
    return [name + line for name, line in zip(names, lines, strict=True)]


def draw_grid(images: np.ndarray | Sequence, lines_below: Sequence[str]) -> Image.Image:
    """Returns photos in rows of four, each enlarged or made smaller to one size, with lines of text below.

    Args:
        images: uint8, or float32 in [-1, 1], [n, size, size, 3]. n = 0 gives a picture that says that there is none.
        lines_below: [n], as many lines each.
    """
    font = ImageFont.load_default(12)
    if not len(images):
        picture = Image.new("RGB", (_WIDTH, 2 * _LINE), _WHITE)
        ImageDraw.Draw(picture).text((6, 6), "There is none.", _BLACK, font)
        return picture
    if images.dtype != np.uint8:
        images = np.round((np.asarray(images) + 1) * 127.5).clip(0, 255).astype(np.uint8)
    num_lines = max(text.count("\n") + 1 for text in lines_below)
    width, height = _WIDTH // _COLUMNS, _TILE + num_lines * _LINE + 8
    picture = Image.new("RGB", (_WIDTH, -(-len(images) // _COLUMNS) * height), _WHITE)
    draw = ImageDraw.Draw(picture)
    for i, (image, text) in enumerate(zip(images, lines_below, strict=True)):
        left, top = i % _COLUMNS * width, i // _COLUMNS * height
        picture.paste(Image.fromarray(image).resize((_TILE, _TILE), Image.Resampling.BICUBIC), (left + 3, top + 3))
        for number, line in enumerate(text.split("\n")):
            while font.getlength(line) > _TILE:  # The end of a path tells more than its beginning.
                line = ".." + line.removeprefix("..")[1:]
            draw.text((left + 3, top + _TILE + 4 + number * _LINE), line, _BLACK, font)
    return picture


def draw_roc(points: np.ndarray, area: float) -> Image.Image:
    """Returns a drawing of a ROC curve.

    Args:
        points: [points, 2], shares of cats and dogs, see `roc_curve`.
        area: under it.
    """
    scale, size, margin = 2, _WIDTH - 100, 50  # Drawn twice as large, so that lines are smooth when it is made smaller.
    picture = Image.new("RGB", ((size + 2 * margin) * scale,) * 2, _WHITE)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14 * scale)

    def place(x: float, y: float) -> tuple[float, float]:
        return (margin + x * size) * scale, (margin + (1 - y) * size) * scale

    for tick in np.linspace(0, 1, 6):
        draw.line([place(tick, 0), place(tick, 1)], _GREY, scale)
        draw.line([place(0, tick), place(1, tick)], _GREY, scale)
        draw.text(place(tick, -0.02), f"{tick:.1f}", _BLACK, font, anchor="ma")
        draw.text(place(-0.02, tick), f"{tick:.1f}", _BLACK, font, anchor="rm")
    draw.line([place(0, 0), place(1, 1)], _GREY, 2 * scale)
    few = points[np.linspace(0, len(points) - 1, min(len(points), 1000)).astype(int)]
    draw.line([place(*point) for point in few], _BLUE, 2 * scale)
    draw.text(place(0.5, 1.04), f"ROC curve, area under it: {area:.4f}", _BLACK, font, anchor="mb")
    draw.text(place(0.5, -0.1), "share of the cats that are called dogs", _BLACK, font, anchor="ma")
    side = Image.new("RGB", (size * scale, 18 * scale), _WHITE)
    about = "share of the dogs that are called dogs"
    ImageDraw.Draw(side).text((size * scale / 2, 9 * scale), about, _BLACK, font, anchor="mm")
    picture.paste(side.rotate(90, expand=True), (0, margin * scale))
    return picture.resize((picture.width // scale, picture.height // scale), Image.Resampling.BOX).quantize(32)


def draw_confusion(confusion: dict[str, int]) -> Image.Image:
    """Returns a drawing of a confusion matrix: how many, and which share of the true class.

    Args:
        confusion: as `eval_util.calculate_confusion` gives it.
    """
    width, height, left, top = 144, 110, _WIDTH - 2 * 144 - 8, 36
    picture = Image.new("RGB", (_WIDTH, top + 2 * height + 8), _WHITE)
    draw, font, large = ImageDraw.Draw(picture), ImageFont.load_default(16), ImageFont.load_default(26)
    for row, animal in enumerate(_CLASSES):
        draw.text((left + (row + 0.5) * width, top - 12), f"called {animal}s", _BLACK, font, anchor="ms")
        draw.text((left - 10, top + (row + 0.5) * height), f"{animal}s", _BLACK, font, anchor="rm")
        counts = [confusion[f"{animal}s_as_{called}s"] for called in _CLASSES]
        for column, count in enumerate(counts):
            share = count / max(sum(counts), 1)
            full = _BLUE if row == column else _RED
            colour = tuple(round(255 + share * (part - 255)) for part in full)
            x, y = left + column * width, top + row * height
            draw.rectangle([x, y, x + width, y + height], colour, _GREY)
            ink = _WHITE if share > 0.5 else _BLACK
            draw.text((x + width / 2, y + height / 2 - 14), f"{count:,}", ink, large, anchor="mm")
            draw.text((x + width / 2, y + height / 2 + 16), f"{100 * share:.1f} %", ink, font, anchor="mm")
    return picture.quantize(32)


def _write_picture(tag: str, picture: Image.Image, kind: str) -> None:
    """Writes a picture as it is: for photos a JPEG takes a tenth of the PNG that tf.summary.image makes."""
    from tensorboard.plugins.image import metadata

    buffer = io.BytesIO()
    how = {"quality": 85} if kind == "JPEG" else {}
    picture.save(buffer, kind, **how)
    size = [str(side).encode() for side in picture.size]
    summary_metadata = metadata.create_summary_metadata(display_name=None, description=None)
    tf.summary.write(tag, tf.constant([*size, buffer.getvalue()]), metadata=summary_metadata)
