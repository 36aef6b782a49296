"""The numbers of curves, which photos are chosen, and what is drawn."""

import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from cats_vs_dogs import figures

PROBABILITIES = np.array([[0.1], [0.5], [0.5], [0.75], [1.0]], np.float32)
LABELS = np.array([[0], [0], [1], [1], [1]], np.int32)


def decode(encoded, kind):
    picture = Image.open(io.BytesIO(encoded))
    assert picture.format == kind
    return picture.convert("RGB")


def test_pr_curve_by_hand():
    expected = [  # for thresholds 0, 0.25, 0.5, 0.75, 1
        [3, 3, 3, 2, 1],  # true positives
        [2, 1, 1, 0, 0],  # false positives
        [0, 1, 1, 2, 2],  # true negatives
        [0, 0, 0, 1, 2],  # false negatives
        [3 / 5, 3 / 4, 3 / 4, 1, 1],  # precision
        [1, 1, 1, 2 / 3, 1 / 3],  # recall
    ]
    np.testing.assert_allclose(figures.pr_curve(PROBABILITIES, LABELS, 5), expected, rtol=1e-6)


def test_roc_curve_by_hand():
    # From the right: 1.0 and 0.75 are dogs, 0.5 is one of each, 0.1 is a cat.
    expected = [[0, 0], [0, 1 / 3], [0, 2 / 3], [1 / 2, 1], [1, 1]]
    np.testing.assert_allclose(figures.roc_curve(PROBABILITIES, LABELS), expected)


@pytest.mark.parametrize("label", [0, 1])
def test_curves_of_one_class_have_no_division_by_zero(label):
    labels = np.full((5, 1), label)
    assert np.isfinite(figures.pr_curve(PROBABILITIES, labels)).all()
    points = figures.roc_curve(PROBABILITIES, labels)
    assert np.isfinite(points).all()
    figures.draw_roc(points, float("nan"))


@pytest.mark.parametrize("batch_size", [1, 3, 40])
@pytest.mark.parametrize("preselects", [False, True])
def test_top_examples_are_those_of_a_sort(batch_size, preselects):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 9, 40).astype(float)  # With ties: the first of them are kept.
    scores[::5] = -np.inf
    names = np.array([f"{i}".encode() for i in range(40)])
    top = figures.TopExamples(6)
    for start in range(0, 40, batch_size):
        rows = np.arange(40)[start : start + batch_size]
        if preselects:
            rows = rows[top.best_rows(scores[rows])]
        top.add(scores[rows], names[rows], rows)
    order = np.argsort(-scores, kind="stable")[:6]
    assert top.scores.tolist() == scores[order].tolist()
    assert [column.tolist() for column in top.columns] == [names[order].tolist(), order.tolist()]


@pytest.mark.parametrize("as_floats", [False, True])
def test_photos_worth_a_look(as_floats):
    probabilities = np.array([[0.9], [0.2], [0.45], [0.99], [0.6]], np.float32)
    labels = np.array([[0], [0], [1], [1], [0]], np.int32)
    images = np.reshape(np.arange(5), [5, 1, 1, 1]) * np.ones([5, 2, 2, 3])
    images = tf.constant(images / 127.5 - 1, tf.float32) if as_floats else tf.constant(images, tf.uint8)
    photos = figures.Photos(limit=2)
    for part in (slice(0, 2), slice(2, 5)):
        ids = tf.constant(["a", "b", "c", "d", "e"])[part]
        photos.add(ids, images[part], labels[part], probabilities[part])
    ids, chosen, *_ = photos.mistakes.columns  # a, c and e are wrong, c the least so.
    assert ids.tolist() == [b"a", b"e"]
    assert chosen.dtype == np.uint8 and chosen[:, 0, 0, 0].tolist() == [0, 4]
    assert photos.least_sure.columns[0].tolist() == [b"c", b"e"]


def test_every_pixel_survives_its_scaling():
    pixels = np.arange(256).astype(np.uint8)
    assert figures.to_uint8(pixels) is pixels
    scaled = (tf.image.convert_image_dtype(pixels, tf.float32) - 0.5) * 2.0  # as readers.scale_images
    assert (figures.to_uint8(scaled.numpy()) == pixels).all()
    assert figures.to_uint8(np.array([-1.5, 1.5], np.float32)).tolist() == [0, 255]


def test_captions():
    expected = ["x/cat.7.jpg: cat, called dog, 95 %", "\ufffd: dog, called cat, 100 %"]
    assert figures.captions(np.array([[0], [1]]), np.array([[0.9512], [0.0]]), [b"x/cat.7.jpg", b"\xff"]) == expected
    assert figures.captions(np.array([[1]]), np.array([[0.5]])) == ["dog, called cat, 50 %"]


@pytest.mark.parametrize(("num", "rows"), [(1, 1), (4, 1), (5, 2), (16, 4)])
def test_a_grid_has_rows_of_four(num, rows):
    names = [f"a/very/long/path/of/a/photo/cat.{i}.jpg: cat, called dog, 100 %" for i in range(num)]
    white = decode(figures.draw_grid(np.full((num, 8, 8, 3), 255, np.uint8), names), "JPEG")
    black = np.asarray(decode(figures.draw_grid(np.zeros((num, 8, 8, 3), np.uint8), names), "JPEG"))
    height = white.height // rows
    assert white.size == (350, rows * height)
    row, column = divmod(num - 1, 4)
    assert black[row * height + 40, column * 87 + 40].tolist() == [0, 0, 0]
    assert white.getpixel((column * 87 + 40, row * height + 40)) == (255, 255, 255)
    assert (black[:, 347:] > 230).all()  # A long name does not run over its photo; a JPEG blurs edges a little.


def test_a_grid_without_photos_says_so():
    picture = decode(figures.draw_grid([], []), "JPEG")
    assert picture.width == 350 and np.asarray(picture).min() < 100


def test_the_roc_curve_is_where_its_points_are():
    def blue_in(points):
        pixels = np.asarray(decode(figures.draw_roc(np.array(points), 0.75), "PNG")).astype(int)
        assert pixels.shape == (350, 350, 3)
        return np.argwhere(pixels[..., 2] - pixels[..., 0] > 100).mean(axis=0)

    above, below = blue_in([[0, 0], [0, 1], [1, 1]]), blue_in([[0, 0], [1, 0], [1, 1]])
    assert above[0] < below[0] and above[1] < below[1]  # Up and left, down and right.
    many = np.repeat(np.linspace(0, 1, 200_000)[:, None], 2, axis=1)
    assert len(figures.draw_roc(many, 0.5)) < 20_000


def test_the_confusion_matrix_is_darker_where_most_are():
    confusion = {"cats_as_cats": 9, "cats_as_dogs": 1, "dogs_as_cats": 0, "dogs_as_dogs": 0}
    encoded = figures.draw_confusion(confusion)
    pixels = np.asarray(decode(encoded, "PNG")).mean(axis=2)
    assert pixels.shape == (300, 350) and len(encoded) < 20_000
    right, wrong = pixels[40:60, 60:180].mean(), pixels[40:60, 220:330].mean()  # Above the numbers.
    assert right < 100 < 200 < wrong


def test_text_can_be_read_on_every_shade():
    def luminance(colour):
        return [0.2126, 0.7152, 0.0722] @ np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)

    for colour in np.random.default_rng(0).random([500, 3]):
        text = {"white": 1.0, "black": 0.0}[figures.readable_on(colour)]
        low, high = sorted([text, luminance(colour)])
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_drawing_leaves_no_global_state():
    code = (
        "import sys, numpy as np\n"
        "from cats_vs_dogs import figures\n"
        "assert 'matplotlib' not in sys.modules and 'tensorflow' not in sys.modules\n"
        "figures.draw_roc(np.eye(2), 0.5)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
