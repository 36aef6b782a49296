"""The figures of report.html: numbers in, SVG out.

Text stays text, in a font of the reader's. Colours are dark enough to be read as text on white.
"""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cats_vs_dogs import eval_util
from cats_vs_dogs.labels import CLASS_NAMES, is_dog

if TYPE_CHECKING:  # matplotlib takes half a second to import.
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

TEXT, BLUE, ORANGE, GREY = "#1f2328", "#1c5d99", "#b04a00", "#6a6f76"
_WIDTH, _HEIGHT = 4.4, 3.1  # inches of 100 pixels
_MOST_POINTS = 200  # of a line; more cannot be seen
_SMOOTH_POINTS = 40  # of the line that shows where a noisy one goes

_STYLE = {
    "svg.fonttype": "none",  # Text, not outlines.
    "svg.hashsalt": "report",  # The same numbers give the same file.
    "font.family": ["sans-serif"],
    "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 10,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": GREY,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e6e8",
    "legend.frameon": False,
}

# (steps, values) of a line.
Line = tuple[Sequence[float], Sequence[float]]


def draw_learning_curve(training: Line, evaluation: Line, name: str, is_share: bool) -> bytes:
    """Draws how a figure changed with the steps.

    Args:
        training: of training batches; many points become the means of neighbours.
        evaluation: of evaluations.
        name: what the y axis shows.
        is_share: whether values are in [0, 1] and shown as percentages.

    Returns:
        An SVG file.
    """

    def draw(axes: "Axes") -> None:
        if len(training[0]):
            axes.plot(*_thinned(training, _MOST_POINTS), color=BLUE, linewidth=1, alpha=0.3)
            axes.plot(*_thinned(training, _SMOOTH_POINTS), color=BLUE, linewidth=1.8, label="training batches")
        if len(evaluation[0]):
            few, marker = _thinned(evaluation, _MOST_POINTS), "o" if len(evaluation[0]) <= 30 else ""
            axes.plot(*few, color=ORANGE, linewidth=1.8, marker=marker, markersize=4, label="evaluation")
        axes.set(xlabel="step", ylabel=name)
        axes.legend()
        if is_share:
            _show_percent(axes.yaxis)

    return _draw(draw)


def draw_roc(points: np.ndarray) -> bytes:
    """Draws a ROC curve; see `figures.roc_curve` for the points."""

    def draw(axes: "Axes") -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="guessing")
        axes.plot(*_few(points).T, color=BLUE, linewidth=2, label="this model")
        axes.set(xlabel="cats called dogs (false positive rate)", ylabel="dogs called dogs\n(true positive rate)")
        axes.legend(loc="lower right")
        _show_percent(axes.xaxis, axes.yaxis)

    return _draw(draw)


def draw_precision_recall(points: np.ndarray, num_cats: int, num_dogs: int) -> bytes:
    """Draws precision against recall, with the dog as the positive class.

    Args:
        points: false and true positive rates, see `figures.roc_curve`.
        num_cats: number of cats.
        num_dogs: number of dogs.

    Returns:
        An SVG file.
    """
    false_positives, true_positives = points[1:, 0] * num_cats, points[1:, 1] * num_dogs  # The first calls none a dog.
    precision = true_positives / np.maximum(true_positives + false_positives, 1)
    few = _few(np.stack([points[1:, 1], precision], axis=1))

    def draw(axes: "Axes") -> None:
        axes.plot(*few.T, color=BLUE, linewidth=2)
        axes.set(
            xlabel="recall: share of the dogs that are found", ylabel="precision: share of dogs\namong those found"
        )
        axes.set_ylim(min(0.5, float(few[:, 1].min())) - 0.02, 1.02)
        _show_percent(axes.xaxis, axes.yaxis)

    return _draw(draw)


def draw_reliability(probabilities: np.ndarray, labels: np.ndarray) -> bytes:
    """Draws how often answers are right against how sure the model was of them.

    Args:
        probabilities: [n, 1], probability of a dog.
        labels: [n, 1], 1 = dog.

    Returns:
        An SVG file.
    """
    sure, is_right = sureness(probabilities), (is_dog(probabilities) == (labels > 0)).ravel()
    bins = np.minimum(((sure - 0.5) * 20).astype(int), 9)
    counts = np.bincount(bins, minlength=10)
    kept = counts > 0
    mean_sure = np.bincount(bins, sure, 10)[kept] / counts[kept]
    right = np.bincount(bins, is_right, 10)[kept]
    share = right / counts[kept]
    low, high = np.array([eval_util.interval(*pair) for pair in zip(right, counts[kept], strict=True)]).T

    def draw(axes: "Axes") -> None:
        axes.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=1, linestyle="--", label="as right as it was sure")
        errors = np.maximum([share - low, high - share], 0)
        axes.errorbar(mean_sure, share, errors, color=BLUE, marker="o", markersize=5, linewidth=1.5, label="this model")
        axes.set(xlabel="how sure the model was", ylabel="share that was right", xlim=(0.48, 1.02))
        axes.legend()
        _show_percent(axes.xaxis, axes.yaxis)

    return _draw(draw)


def draw_histogram(probabilities: np.ndarray, labels: np.ndarray) -> bytes:
    """Draws how many cats and dogs got which probability of a dog.

    Args:
        probabilities: [n, 1], probability of a dog.
        labels: [n, 1], 1 = dog.

    Returns:
        An SVG file.
    """

    def draw(axes: "Axes") -> None:
        for label, colour in enumerate((BLUE, ORANGE)):
            values = probabilities.ravel()[labels.ravel() == label]
            axes.hist(values, np.linspace(0, 1, 26), color=colour, alpha=0.25)
            axes.hist(values, np.linspace(0, 1, 26), color=colour, histtype="step", label=f"{CLASS_NAMES[label]}s")
        axes.set(xlabel="probability of a dog", ylabel="photos (logarithmic)", yscale="symlog", xlim=(0, 1))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.legend(loc="upper center")
        _show_percent(axes.xaxis)

    return _draw(draw)


def sureness(probabilities: np.ndarray) -> np.ndarray:
    """Returns the probability of the class that was said, [n] in [0.5, 1]; probabilities are of a dog, [n, 1]."""
    flat = probabilities.ravel().astype(np.float64)
    return np.maximum(flat, 1 - flat)


def _thinned(line: Line, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a line of at most so many points, which are means of neighbours."""
    steps, values = (np.array_split(np.asarray(one, np.float64), min(len(one), most)) for one in line)
    return np.array([part.mean() for part in steps]), np.array([part.mean() for part in values])


def _few(points: np.ndarray) -> np.ndarray:
    return points[np.linspace(0, len(points) - 1, min(len(points), _MOST_POINTS)).astype(int)]


def _show_percent(*axis_objects: "Axis") -> None:
    from matplotlib.ticker import PercentFormatter

    for axis in axis_objects:
        axis.set_major_formatter(PercentFormatter(1.0, decimals=None, symbol=" %"))


def _draw(draw: Callable[["Axes"], None]) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        draw(figure.add_subplot())
        buffer = io.BytesIO()
        # `savefig` would do the layout once more.
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
