"""Log lines of 2017 whose event still exists, and what TensorBoard shows of an evaluation."""

import itertools
import types

import numpy as np
import pytest
import tensorflow as tf
from conftest import make_config, write_shards

from cats_vs_dogs import checkpoints, distribution, eval, event_files, summaries, train

LOOP = ["Entering training loop.", "Done training -- epoch limit reached.", "Exited training loop."]


@pytest.fixture
def lines(log):
    """Returns a function that returns the lines logged since its last call."""

    def take():
        messages = log.messages[:]
        log.clear()
        return messages

    return take


@pytest.mark.slow
def test_lines_of_training_and_evaluation(tmp_path, monkeypatch, lines):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pattern, folder = write_shards(tmp_path / "data", num_examples=8, num_shards=1), str(tmp_path / "model")

    def run(**settings):
        settings = {"num_epochs": 2, **settings, "train_data_pattern": pattern, "train_dir": folder}
        train.train(make_config(**settings, image_size=8, batch_size=4), distribution.local_devices())
        return lines()

    said = run()
    assert [line for line in said if line in LOOP] == LOOP
    assert not any("Removing" in line for line in said)
    said = run()  # Nothing is left to train.
    assert not any(line in LOOP for line in said)
    said = run(start_new_model=True, max_steps=3)
    assert [line for line in said if line in LOOP] == [LOOP[0], LOOP[2]]
    assert "Removing existing train directory." in said

    names = {"model": None, "label_loss": None, "eval_data_pattern": pattern, "run_once": True, "mistakes_file": ""}
    names |= {
        "train_dir": folder,
        "batch_size": 8,
        "bad_examples": "fail",
        "flip_average": False,
        "crop_average": False,
        "report": False,
    }
    monkeypatch.setattr(eval, "FLAGS", types.SimpleNamespace(**names))
    eval.main()
    expected = [
        "Using batch size of 8 for evaluation.",
        "number of evaluation files: 1",
        "built evaluation graph",
        f"Loading checkpoint for eval: {folder}/model.ckpt-3",
        "enter eval_once loop global_step_val = 3. ",
        "Done with batched inference. Now calculating global performance metrics.",
    ]
    assert [line for line in lines() if line in expected] == expected

    shown = EventAccumulator(f"{folder}/eval").Reload()
    assert {"model_input_raw", "model_activations"} <= set(shown.Tags()["tensors"])
    (activations,) = shown.Tensors("model_activations")
    buckets = tf.make_ndarray(activations.tensor_proto)
    assert buckets[:, 2].sum() == 8 and buckets.min() >= 0 and buckets[:, :2].max() <= 1
    assert len(shown.Graph().node) > 3
    event_files.rewind(f"{folder}/eval", 2)  # As of a run that resumes before this evaluation.
    tags = EventAccumulator(f"{folder}/eval").Reload().Tags()
    assert not tags["tensors"] and not tags["graph"]


def test_a_checkpoint_is_skipped_once(monkeypatch, lines):
    newest = iter([None, None, None, "m-5", "m-5", "m-6", "m-6", "m-7"])
    restored = iter(["m-5", "m-5", "m-7"])
    monkeypatch.setattr(eval.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(checkpoints, "newest_checkpoint", lambda folder: next(newest))
    monkeypatch.setattr(checkpoints, "restore_newest", lambda classifier, folder: next(restored))
    steps = eval.new_checkpoints(None, "/x")
    assert list(itertools.islice(steps, 2)) == [5, 7]
    assert lines() == [
        "No checkpoint file found. Waiting for one in /x.",
        "Loading checkpoint for eval: m-5",
        "Loading checkpoint for eval: m-6",
        "skip this checkpoint global_step_val=5 (same as the previous one).",
        "Loading checkpoint for eval: m-7",
    ]


def test_the_histograms_of_an_evaluation(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = event_files.EventFile(str(tmp_path))
    images = np.full([2, 4, 4, 3], 255, np.uint8)
    summaries.write_histograms(events, 3, images, np.array([[0.25], [0.75]], np.float32))
    shown = EventAccumulator(str(tmp_path)).Reload()
    (pixels,) = shown.Tensors("model_input_raw")
    buckets = tf.make_ndarray(pixels.tensor_proto)
    assert pixels.step == 3 and buckets[-1].tolist() == [1, 1, 96]
