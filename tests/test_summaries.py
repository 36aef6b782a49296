"""What TensorBoard shows of a run: pictures, histograms, curves, flags, and the table of runs."""

import io
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams_metadata

from cats_vs_dogs import figures, summaries
from cats_vs_dogs.event_files import EventFile

PROBABILITIES = np.array([[0.1], [0.5], [0.5], [0.75], [1.0]], np.float32)
LABELS = np.array([[0], [0], [1], [1], [1]], np.int32)


def read(folder):
    return EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()


def test_hyperparameters_are_of_the_kinds_that_tensorboard_knows():
    flags = {
        "model": "A",
        "batch_size": 8,
        "cosine": False,
        "base_learning_rate": 0.5,
        "max_steps": None,
        "list": ["a"],
    }
    values = summaries.hyperparameters({**flags, "train_dir": "/a"}, without_effect=["train_dir", "log_steps"])
    assert values == {"model": "A", "batch_size": 8.0, "cosine": False, "base_learning_rate": 0.5, "list": "['a']"}
    assert {type(value) for value in values.values()} == {str, float, bool}


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
    written = EventFile(str(tmp_path))
    summaries.write_run(written, RECORD, without_effect={"train_data_pattern"})
    summaries.write_curves(written, 7, PROBABILITIES, LABELS)
    summaries.write_drawings(written, 7, PROBABILITIES, LABELS, {"roc_auc": 0.9, "confusion": confusion})
    summaries.write_photos(written, 7, figures.Photos())
    summaries.write_training_photos(written, 7, np.zeros([5, 4, 4, 3], np.float32), LABELS, PROBABILITIES)
    summaries.write_gradient_norms(written, 7, [0.0, 0.1, 10.0, float("inf")])
    summaries.write_weights(written, 7, {"dense/kernel": np.ones([3, 1]), "dense/bias": np.zeros([1])})
    events = read(tmp_path)
    steps = {tag: [event.step for event in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
    of_start = {"flags", "_hparams_/experiment", "_hparams_/session_start_info"}
    assert steps == {tag: [0] if tag in of_start else [7] for tag in steps}
    assert all(events.SummaryMetadata(tag).summary_description for tag in steps if steps[tag] == [7])
    plugins = {tag: events.SummaryMetadata(tag).plugin_data.plugin_name for tag in steps}
    assert plugins["pr_curve"] == "pr_curves" and plugins["flags"] == "text"
    assert plugins["dense/kernel"] == plugins["dense/bias"] == "histograms"
    pictures = {tag for tag, plugin in plugins.items() if plugin == "images"}
    assert pictures == {f"figures/{name}" for name in ("roc_curve", "confusion_matrix")} | {
        f"photos/{name}" for name in ("confident_mistakes", "least_sure", "training")
    }
    for tag in pictures:
        width, height, data = tf.make_ndarray(events.Tensors(tag)[0].tensor_proto)
        assert Image.open(io.BytesIO(data)).size == (int(width), int(height)) == (350, int(height))
    curve = tf.make_ndarray(events.Tensors("pr_curve")[0].tensor_proto)
    np.testing.assert_array_equal(curve, figures.pr_curve(PROBABILITIES, LABELS))
    buckets = tf.make_ndarray(events.Tensors("gradient_norms_log10")[0].tensor_proto)  # -12, -1 and 1
    assert buckets.shape == (20, 3) and buckets[0].tolist() == [-12, pytest.approx(-11.35), 1]
    assert buckets[:, 2].sum() == 3 and plugins["gradient_norms_log10"] == "histograms"
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    session = hparams_metadata.parse_session_start_info_plugin_data(content)
    assert session.group_name == ""  # So the row has the run's name.
    assert session.hparams["seed"].number_value == 3
    assert set(session.hparams) == {"model", "seed", "loss_params"}


def test_at_most_20_weights_are_shown_at_once(tmp_path):
    written = EventFile(str(tmp_path))
    for step in (1, 2):
        summaries.write_weights(written, step, {f"layer_{i}/kernel": np.ones(2) for i in range(20)})
    assert not any("\u2026" in tag for tag in read(tmp_path).Tags()["tensors"])
    summaries.write_weights(written, 3, {f"block_{i}/kernel": np.ones(2) for i in range(21)})
    tags = {tag for tag in read(tmp_path).Tags()["tensors"] if "block" in tag}
    assert tags == {f"block_{i}/kernel" for i in range(21) if i != 10} | {"\u2026/block_10/kernel"}
    assert "\u2026" > "z"  # TensorBoard opens the first groups.


def test_a_description_is_written_once(tmp_path):
    written = EventFile(str(tmp_path))
    for step in range(100):
        written.scalar("a", step, step, "x" * 1000)
    assert read(tmp_path).SummaryMetadata("a").summary_description == "x" * 1000
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 15_000


@pytest.mark.parametrize("as_tensors", [False, True])
def test_the_histogram_of_pixels_is_that_of_what_models_take(tmp_path, as_tensors):
    replicas = list(np.random.default_rng(0).integers(3, 250, [2, 9, 5, 5, 3]).astype(np.uint8))
    scaled = [(image / 255 - 0.5) * 2 for image in replicas]
    convert = tf.constant if as_tensors else np.asarray
    written = EventFile(str(tmp_path))
    summaries.write_input(written, 1, [convert(images) for images in replicas])
    summaries.write_input(written, 2, [convert(images.astype(np.float32)) for images in scaled])
    counts, edges = np.histogram(np.stack(scaled), 30)
    for event in read(tmp_path).Tensors("model/input_raw"):
        buckets = tf.make_ndarray(event.tensor_proto)
        np.testing.assert_allclose(buckets[:, :2], np.stack([edges[:-1], edges[1:]], axis=1), rtol=0, atol=1e-7)
        assert buckets[:, 2].sum() == counts.sum() == 2 * 9 * 5 * 5 * 3
        # A pixel at the edge of two buckets may be in either, by the rounding of its scaling.
        assert np.abs(np.cumsum(buckets[:, 2]) - np.cumsum(counts)).max() <= 20


def test_the_histogram_of_pixels_takes_little_memory(tmp_path):
    written = EventFile(str(tmp_path))
    images = [np.full([32, 1024, 1024, 1], 7, np.uint8) for _ in range(2)]  # 64 MB
    tracemalloc.start()
    summaries.write_input(written, 1, images)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24
