"""Curves and pictures of predictions: numpy arrays in, encoded pictures out.

A picture to draw is uint8 [size, size, 3]; `to_uint8` is the one place that converts what a reader made. matplotlib is
used without pyplot, so no figure and no setting is shared between callers.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cats_vs_dogs.labels import CLASS_NAMES, is_dog

if TYPE_CHECKING:  # matplotlib takes half a second to import.
    from matplotlib.figure import Figure

_WIDTH = 350  # Width of all pictures, pixels. TensorBoard scales pictures of other widths without smoothing.
_DPI = 100
_COLUMNS = 4  # of a grid of photos
_TILE = 83  # Width and height of a photo in a grid, pixels.
_LINE = 14  # Height of a line below a photo, pixels.
_WHITE, _BLACK = (255, 255, 255), (32, 33, 36)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Converts pictures as a reader made them to pictures that can be drawn.

    Args:
        images: see `readers.scale_images`; uint8 images are returned unchanged.

    Returns:
        uint8 of the same shape.
    """
    if images.dtype == np.uint8:
        return images
    return np.round((images + 1) * 127.5).clip(0, 255).astype(np.uint8)


# ---- Choosing photos.


class TopExamples:
    """Keeps the examples with the highest scores while batches go by.

    Args:
        limit: how many examples to keep.

    Attributes:
        scores: scores of the kept examples, [at most limit], the highest first. Of equal scores the earlier comes
            first.
        columns: what was added with the scores: a list of arrays, each [at most limit, ...]. Empty before an example
            is kept.
    """

    def __init__(self, limit: int):
        self.scores = np.zeros(0)
        self.columns: list[np.ndarray] = []
        self._limit = limit

    def best_rows(self, scores: np.ndarray) -> np.ndarray:
        """Returns the rows of a batch that may be kept: at most `limit` with a finite score, the best first.

        Args:
            scores: [batch]; minus infinity marks an example that is never kept.
        """
        rows = np.argsort(-scores, kind="stable")[: self._limit]
        return rows[np.isfinite(scores[rows])]

    def add(self, scores: np.ndarray, *columns: np.ndarray) -> None:
        """Adds a batch. All its rows are copied, so pass only those of `best_rows` if a row is large.

        Args:
            scores: [batch]; minus infinity marks an example that is never kept.
            *columns: what to keep of each example, each [batch, ...].
        """
        together = np.concatenate([self.scores, scores])
        kept = self.best_rows(together)
        if not (kept >= len(self.scores)).any():
            return
        old = self.columns or [column[:0] for column in columns]
        self.columns = [np.concatenate(both)[kept] for both in zip(old, columns, strict=True)]
        self.scores = together[kept]


class Photos:
    """Chooses photos of an evaluation that are worth a look, while batches go by.

    Args:
        limit: how many photos of each kind to keep.

    Attributes:
        mistakes: TopExamples of wrong predictions, the most confident first.
        least_sure: TopExamples of predictions, the closest to one half first.

    The columns of both are ids (bytes), photos (uint8 [n, size, size, 3]), labels and probabilities ([n, 1]).
    """

    def __init__(self, limit: int = 16):
        self.mistakes = TopExamples(limit)
        self.least_sure = TopExamples(limit)

    def add(self, ids: np.ndarray, images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray) -> None:
        """Adds a batch. Tensors are accepted as well.

        Args:
            ids: bytes [batch].
            images: [batch, size, size, 3], as the reader made them; see `to_uint8`.
            labels: [batch, 1], 1 = dog.
            probabilities: [batch, 1], probability of a dog.
        """
        ids, images, labels, probabilities = map(np.asarray, (ids, images, labels, probabilities))
        confidence = np.abs(probabilities - 0.5).ravel()
        is_wrong = (is_dog(probabilities) != (labels > 0)).ravel()
        for examples, scores in (
            (self.mistakes, np.where(is_wrong, confidence, -np.inf)),
            (self.least_sure, -confidence),
        ):
            rows = examples.best_rows(scores)
            examples.add(scores[rows], ids[rows], to_uint8(images[rows]), labels[rows], probabilities[rows])


# ---- Photos.


def captions(labels: np.ndarray, probabilities: np.ndarray, ids: Sequence[bytes] = ()) -> list[str]:
    """Returns captions such as "cat.7.jpg: cat, called dog, 95 %": id, true class, answer, and how sure the model was.

    Args:
        labels: [n, 1], 1 = dog.
        probabilities: [n, 1], probability of a dog.
        ids: [n]; if empty, the captions begin with the true class.
    """
    names = [str(name, "utf-8", "replace") + ": " for name in ids] or [""] * len(labels)
    texts = []
    for name, label, p in zip(names, np.ravel(labels), np.ravel(probabilities), strict=True):
        confidence = p if is_dog(p) else 1 - p
        true, called = CLASS_NAMES[int(label > 0)], CLASS_NAMES[int(is_dog(p))]
        texts.append(f"{name}{true}, called {called}, {100 * float(confidence):.0f} %")
    return texts


def draw_grid(images: np.ndarray | Sequence[np.ndarray], texts: Sequence[str]) -> bytes:
    """Draws photos in rows of four, resized to one size, with their captions below.

    Args:
        images: uint8 [n, size, size, 3]. For n = 0 the picture says that there are no photos.
        texts: captions, [n]; see `captions`.

    Returns:
        A JPEG, 350 pixels wide.
    """
    font = ImageFont.load_default(11)
    if not len(images):
        picture = Image.new("RGB", (_WIDTH, 2 * _LINE), _WHITE)
        ImageDraw.Draw(picture).text((6, 6), "No photos of this kind.", _BLACK, font)
        return _encode(picture, "JPEG")
    captions_in_lines = [_wrap(text, font) for text in texts]
    width, height = _WIDTH // _COLUMNS, _TILE + max(map(len, captions_in_lines)) * _LINE + 8
    picture = Image.new("RGB", (_WIDTH, -(-len(images) // _COLUMNS) * height), _WHITE)
    draw = ImageDraw.Draw(picture)
    for i, (image, lines) in enumerate(zip(images, captions_in_lines, strict=True)):
        left, top = i % _COLUMNS * width, i // _COLUMNS * height
        picture.paste(Image.fromarray(image).resize((_TILE, _TILE), Image.Resampling.BICUBIC), (left + 3, top + 3))
        for number, line in enumerate(lines):
            draw.text((left + 3, top + _TILE + 4 + number * _LINE), line, _BLACK, font)
    return _encode(picture, "JPEG")


def _wrap(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """Returns a caption in lines that are no wider than a photo: an id that is too long loses its beginning."""
    name, colon, rest = text.rpartition(": ")
    lines = []
    for word in ([name + ":"] if colon else []) + rest.split(" "):
        if len(lines) > bool(colon) and font.getlength(f"{lines[-1]} {word}") <= _TILE:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    while font.getlength(lines[0]) > _TILE:  # The end of a path says more than its beginning.
        lines[0] = ".." + lines[0].removeprefix("..")[1:]
    return lines


# ---- Curves and the confusion matrix.


def pr_curve(probabilities: np.ndarray, labels: np.ndarray, num_thresholds: int = 101) -> np.ndarray:
    """Counts right and wrong predictions at thresholds evenly spaced from 0 to 1. The dog is the positive class.

    Args:
        probabilities: [n, 1], probability of a dog. A probability of at least the threshold means dog.
        labels: [n, 1], 1 = dog.
        num_thresholds: the number of thresholds.

    Returns:
        float32 [6, num_thresholds], as TensorBoard's PR curve plugin expects it: true positives, false positives,
        true negatives, false negatives, precision, recall.
    """
    thresholds = np.arange(num_thresholds) / (num_thresholds - 1)
    highest = np.searchsorted(thresholds, probabilities.ravel().astype(np.float64), side="right") - 1
    are_dogs = labels.ravel() > 0
    dogs, cats = (np.bincount(highest[of_class], minlength=num_thresholds) for of_class in (are_dogs, ~are_dogs))
    true_positives, false_positives = (np.cumsum(counts[::-1])[::-1] for counts in (dogs, cats))
    true_negatives, false_negatives = cats.sum() - false_positives, dogs.sum() - true_positives
    precision = true_positives / np.maximum(true_positives + false_positives, 1)
    recall = true_positives / np.maximum(true_positives + false_negatives, 1)
    rows = [true_positives, false_positives, true_negatives, false_negatives, precision, recall]
    return np.stack(rows).astype(np.float32)


def roc_curve(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the corners of the ROC curve. The dog is the positive class.

    Args:
        probabilities: [n, 1], probability of a dog.
        labels: [n, 1], 1 = dog.

    Returns:
        [points, 2], ascending from (0, 0) to (1, 1). Every distinct probability is a threshold, and its point is the
        false positive rate and the true positive rate: which fractions of the cats and of the dogs have at least this
        probability.
    """
    order = np.argsort(-probabilities.ravel(), kind="stable")
    are_dogs = labels.ravel()[order] > 0
    is_last_of_ties = np.append(np.diff(probabilities.ravel()[order]) != 0, True)
    counts = np.stack([np.cumsum(~are_dogs), np.cumsum(are_dogs)], axis=1)
    rates = counts[is_last_of_ties] / np.maximum(counts[-1], 1)
    return np.concatenate([[[0.0, 0.0]], rates])


def draw_roc(points: np.ndarray, area: float) -> bytes:
    """Draws a ROC curve.

    Args:
        points: [points, 2], false and true positive rates; see `roc_curve`.
        area: the area under the curve.

    Returns:
        A PNG, 350 x 350 pixels.
    """
    figure = _new_figure(height=_WIDTH)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="lightgray", linewidth=1)  # What guessing would reach.
    few = points[np.linspace(0, len(points) - 1, min(len(points), 1000)).astype(int)]
    axes.plot(*few.T, color="tab:blue", linewidth=1.5)
    axes.set(
        title=f"ROC curve, AUC {area:.4f}",
        xlabel="cats called dogs (false positive rate)",
        ylabel="dogs called dogs (true positive rate)",
        aspect="equal",
    )
    axes.grid(color="whitesmoke")
    return _encode_figure(figure)


def draw_confusion(confusion: dict[str, int]) -> bytes:
    """Draws a confusion matrix: counts, and their percentages of the true class.

    Args:
        confusion: as `eval_util.calculate_confusion` returns it.

    Returns:
        A PNG, 350 pixels wide.
    """
    counts = np.array([[confusion[f"{true}s_as_{called}s"] for called in CLASS_NAMES] for true in CLASS_NAMES])
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = _new_figure(height=300)
    axes = figure.add_subplot()
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        fraction = fractions[row, column]
        colour = readable_on(image.cmap(fraction)[:3])
        text = f"{count:,}\n{100 * fraction:.1f} %"
        axes.text(column, row, text, color=colour, ha="center", va="center", fontsize=13)
    ticks, names = range(len(CLASS_NAMES)), [f"{name}s" for name in CLASS_NAMES]
    axes.set_xticks(ticks, [f"called {name}" for name in names])
    axes.set_yticks(ticks, names)
    axes.set_title("Confusion matrix")
    axes.tick_params(length=0)
    return _encode_figure(figure)


def readable_on(background: Sequence[float]) -> str:
    """Returns "white" or "black", whichever has more contrast on a colour; it is always above 4.5.

    https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio

    Args:
        background: red, green and blue, sRGB in [0, 1].
    """
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in background]
    luminance = float(np.dot([0.2126, 0.7152, 0.0722], linear))
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


def _new_figure(height: int) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH / _DPI, height / _DPI), dpi=_DPI, layout="constrained")


def _encode_figure(figure: "Figure") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # With 64 colours the file is a third as large, and looks the same.
    return _encode(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(64), "PNG")


def _encode(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 85} if kind == "JPEG" else {"optimize": True}))
    return buffer.getvalue()
