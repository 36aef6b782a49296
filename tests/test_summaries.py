"""What TensorBoard shows: the numbers behind its curves, which photos are chosen, and the tables."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams_metadata

from cats_vs_dogs import event_files, summaries

PROBABILITIES = np.array([[0.1], [0.5], [0.5], [0.75], [1.0]], np.float32)
LABELS = np.array([[0], [0], [1], [1], [1]], np.int32)


def test_pr_curve_by_hand():
    expected = [  # for thresholds 0, 0.25, 0.5, 0.75, 1
        [3, 3, 3, 2, 1],  # true positives
        [2, 1, 1, 0, 0],  # false positives
        [0, 1, 1, 2, 2],  # true negatives
        [0, 0, 0, 1, 2],  # false negatives
        [3 / 5, 3 / 4, 3 / 4, 1, 1],  # precision
        [1, 1, 1, 2 / 3, 1 / 3],  # recall
    ]
    np.testing.assert_allclose(summaries.pr_curve(PROBABILITIES, LABELS, 5), expected, rtol=1e-6)


def test_roc_curve_by_hand():
    # From the right: 1.0 and 0.75 are dogs, 0.5 is one of each, 0.1 is a cat.
    expected = [[0, 0], [0, 1 / 3], [0, 2 / 3], [1 / 2, 1], [1, 1]]
    np.testing.assert_allclose(summaries.roc_curve(PROBABILITIES, LABELS), expected)


@pytest.mark.parametrize("label", [0, 1])
def test_curves_of_one_class_have_no_division_by_zero(label):
    labels = np.full((5, 1), label)
    assert np.isfinite(summaries.pr_curve(PROBABILITIES, labels)).all()
    assert np.isfinite(summaries.roc_curve(PROBABILITIES, labels)).all()


@pytest.mark.parametrize("batch_size", [1, 3, 40])
def test_top_examples_are_those_of_a_sort(batch_size):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 9, 40).astype(float)  # With ties: the first of them are kept.
    scores[::5] = -np.inf
    names = np.array([f"{i}".encode() for i in range(40)])
    top = summaries.TopExamples(6)
    for start in range(0, 40, batch_size):
        part = slice(start, start + batch_size)
        top.add(scores[part], tf.constant(names[part]), np.arange(40)[part])
    order = np.argsort(-scores, kind="stable")[:6]
    assert top.scores.tolist() == scores[order].tolist()
    assert [column.tolist() for column in top.columns] == [names[order].tolist(), order.tolist()]


def test_photos_worth_a_look():
    probabilities = np.array([[0.9], [0.2], [0.45], [0.99], [0.6]], np.float32)
    labels = np.array([[0], [0], [1], [1], [0]], np.int32)
    images = tf.cast(tf.reshape(tf.range(5), [5, 1, 1, 1]) * tf.ones([5, 2, 2, 3], tf.int32), tf.uint8)
    photos = summaries.Photos(limit=2)
    photos.add(tf.constant(["a", "b", "c", "d", "e"]), images, labels, probabilities)
    ids, chosen, *_ = photos.mistakes.columns  # a, c and e are wrong, c the least so.
    assert ids.tolist() == [b"a", b"e"]
    assert chosen[:, 0, 0, 0].tolist() == [0, 4]
    assert photos.least_sure.columns[0].tolist() == [b"c", b"e"]


def test_captions():
    expected = ["x/cat.7.jpg\ncat, p=0.931", "\ufffd\ndog, p=0.000"]
    assert summaries.captions(np.array([[0], [1]]), np.array([[0.9312], [0.0]]), [b"x/cat.7.jpg", b"\xff"]) == expected
    assert summaries.captions(np.array([[1]]), np.array([[0.5]])) == ["dog, p=0.500"]


@pytest.mark.parametrize(("num", "rows"), [(1, 1), (4, 1), (5, 2), (16, 4)])
def test_a_grid_has_rows_of_four(num, rows):
    names = [f"a/very/long/path/of/a/photo/cat.{i}.jpg\ncat, p=1.000" for i in range(num)]
    white = summaries.draw_grid(np.ones((num, 8, 8, 3), np.float32), names)
    black = np.asarray(summaries.draw_grid(np.zeros((num, 8, 8, 3), np.uint8), names))
    height = white.height // rows
    assert white.size == (350, rows * height)
    row, column = divmod(num - 1, 4)
    assert black[row * height + 40, column * 87 + 40].tolist() == [0, 0, 0]
    assert white.getpixel((column * 87 + 40, row * height + 40)) == (255, 255, 255)
    assert (black[:, 347:] == 255).all()  # A long name does not run over its photo.


def test_hyperparameters_are_of_the_kinds_that_tensorboard_knows():
    flags = {"model": "A", "batch_size": 8, "base_learning_rate": 0.5, "max_steps": None, "train_dir": "/a"}
    values = summaries.hyperparameters(flags)
    assert values == {"model": "A", "batch_size": 8.0, "base_learning_rate": 0.5}
    assert {type(value) for value in values.values()} == {str, float}


RECORD = {
    "flags": {"model": "A", "train_data_pattern": "a|b", "max_steps": None, "seed": 3, "loss_params": ""},
    "versions": {"tensorflow": "2.21.0"},
    "shards": {"a": 3, "b": 4},
    "parameters": 3073,
    "replicas": 1,
}


def test_flags_as_a_table():
    assert summaries.flags_table(RECORD).splitlines() == [
        "3,073 parameters, 2 shards, 1 device(s), tensorflow 2.21.0",
        "",
        "| flag | value |",
        "| --- | --- |",
        "| loss_params |  |",
        "| max_steps | `null` |",
        "| model | `A` |",
        "| seed | `3` |",
        "| train_data_pattern | `a\\|b` |",
    ]


def test_what_is_written_is_what_the_plugins_read(tmp_path):
    confusion = {"cats_as_cats": 1, "cats_as_dogs": 1, "dogs_as_cats": 1, "dogs_as_dogs": 2}
    writer = event_files.make_writer(str(tmp_path))
    writer.set_as_default(7)
    summaries.write_run(RECORD, "/runs/mine/")
    summaries.write_curves(PROBABILITIES, LABELS)
    summaries.write_drawings(PROBABILITIES, LABELS, {"roc_auc": 0.9, "confusion": confusion})
    summaries.write_photos(summaries.Photos())
    summaries.write_gradient_norms([0.0, 0.1, 10.0, float("inf")])
    writer.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    steps = {tag: [event.step for event in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
    of_start = {"flags", "_hparams_/experiment", "_hparams_/session_start_info"}
    assert steps == {tag: [0] if tag in of_start else [7] for tag in steps}
    plugins = {tag: events.SummaryMetadata(tag).plugin_data.plugin_name for tag in steps}
    assert plugins["pr_curve"] == "pr_curves" and plugins["flags"] == "text"
    pictures = {tag for tag, plugin in plugins.items() if plugin == "images"}
    assert pictures == {f"figures/{name}" for name in ("roc_curve", "confusion_matrix")} | {
        f"photos/{name}" for name in ("confident_mistakes", "least_sure")
    }
    for tag in pictures:
        width, height, data = tf.make_ndarray(events.Tensors(tag)[0].tensor_proto)
        assert Image.open(io.BytesIO(data)).size == (int(width), int(height)) == (350, int(height))
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    buckets = tf.make_ndarray(events.Tensors("gradient_norms_log10")[0].tensor_proto)  # -12, -1 and 1
    assert buckets.shape == (20, 3) and buckets[0].tolist() == [-12, pytest.approx(-11.35), 1]
    assert buckets[:, 2].sum() == 3 and plugins["gradient_norms_log10"] == "histograms"
    session = hparams_metadata.parse_session_start_info_plugin_data(content)
    assert session.group_name == "mine in /runs"
    assert session.hparams["seed"].number_value == 3
