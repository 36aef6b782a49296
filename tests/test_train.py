"""The training step against the 2017 graph, its loop, and what train_dir may hold."""

import json
import math
import os
import random
import signal
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_config, values_of, write_shards

from cats_vs_dogs import (
    checkpoints,
    distribution,
    eval_util,
    job,
    optimizers,
    readers,
    train,
    train_dir,
    training_evaluation,
    training_tools,
)
from cats_vs_dogs import trainer as trainer_module
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.config import ModelSpec
from cats_vs_dogs.interruption import StopRequest
from cats_vs_dogs.plan import Plan
from cats_vs_dogs.trainer import SUMS, StepOutputs, Trainer
from cats_vs_dogs.training_log import TrainingLog, gather_batch
from cats_vs_dogs.utils import UserError


def spec(**changes):
    values = {
        "model": "LogisticModel",
        "model_params": {},
        "label_loss": "CrossEntropyLoss",
        "loss_params": {},
        "image_size": 8,
        "resize_method": "area",
    }
    return ModelSpec(**{**values, **changes})


def trainer_for(classifier, learning_rate, clip_gradient_norm=1.0, jit_compile=False, mix=None):
    optimizer = optimizers.make_optimizer("AdamOptimizer", learning_rate, classifier.model.trainable_variables)
    config = make_config(clip_gradient_norm=clip_gradient_norm).optimizer
    return Trainer(classifier, optimizer, tf.distribute.get_strategy(), config, jit_compile, mix=mix)


def run_steps(trainer, batches, num_steps):
    """The outputs of the last of several steps; the first call takes only one."""
    while num_steps:
        outputs = trainer.run_steps(batches, num_steps)
        num_steps -= outputs.num_steps
    return outputs


@pytest.mark.parametrize("steps_at_once", [1, 8])
def test_forty_steps_of_2017(golden, steps_at_once):
    images = golden["train_images_uint8"].astype(np.float32) / 127.5 - 1
    labels = golden["train_labels"].astype(np.int32)
    classifier = Classifier(spec())
    kernel, bias = classifier.model.weights
    kernel.assign(golden["train_initial_weights"])
    bias.assign(golden["train_initial_bias"])
    rate = optimizers.LearningRate(0.01, 32, "exponential", decay=0.5, decay_examples=320)
    trainer = trainer_for(classifier, rate)
    batches = iter(tf.data.Dataset.from_tensor_slices((images, labels, np.ones(40, np.float32))))
    losses = [run_steps(trainer, batches, steps_at_once).label_loss for _ in range(40 // steps_at_once)]
    expected = golden["train_losses"][steps_at_once - 1 :: steps_at_once]
    np.testing.assert_allclose(losses, expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(kernel.numpy(), golden["train_final_weights"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(bias.numpy(), golden["train_final_bias"], atol=1e-5, rtol=0)


def random_batches(num_batches, batch_size=16, size=8):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_batches * batch_size, size, size, 3)).astype(np.uint8)
    labels = rng.integers(0, 2, (num_batches * batch_size, 1)).astype(np.int32)
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(batch_size)
    return iter(batches.map(lambda images, labels: (images, labels, 1.0)))


def test_gradients_are_clipped_variable_by_variable():
    changes = {}
    for norm in (0.0, 1e-3):
        classifier = Classifier(spec())
        before = [weight.numpy() for weight in classifier.model.weights]
        optimizer = optimizers.make_optimizer(
            "SGD", optimizers.LearningRate(1.0, 16, "constant"), classifier.model.trainable_variables
        )
        config = make_config(clip_gradient_norm=norm, regularization_penalty=0.0).optimizer
        trainer = Trainer(classifier, optimizer, tf.distribute.get_strategy(), config)
        trainer.run_steps(random_batches(1), 1)
        changes[norm] = [w.numpy() - b for w, b in zip(classifier.model.weights, before, strict=True)]
    for free, clipped in zip(changes[0.0], changes[1e-3], strict=True):
        assert np.linalg.norm(clipped) == pytest.approx(1e-3, rel=1e-3)
        np.testing.assert_allclose(clipped, free * 1e-3 / np.linalg.norm(free), rtol=1e-3, atol=1e-7)


def test_what_several_steps_add_up():
    """Batches of different sizes: every example counts the same, however the steps are divided into calls."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (23, 8, 8, 3)).astype(np.uint8)
    labels = rng.integers(0, 2, (23, 1)).astype(np.int32)
    expected, found = np.zeros(5), []
    for calls in ([1] * 6, [1, 5], [1, 2, 3]):
        classifier = Classifier(spec())
        trainer = trainer_for(classifier, optimizers.LearningRate(0.01, 4))
        batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
        batches, sums = iter(batches.map(lambda images, labels: (images, labels, 1.0))), np.zeros(len(SUMS))
        for num_steps in calls:
            outputs = trainer.run_steps(batches, num_steps, sums)
            sums = outputs.sums
            if len(calls) == 6:
                p, y = outputs.probabilities[0].numpy(), outputs.labels[0].numpy()
                of_batch = [outputs.label_loss, outputs.regularization_loss]
                of_batch += [eval_util.calculate_log_loss(p, y), eval_util.calculate_hit_at_one(p, y)]
                expected += len(y) * np.array([1, *of_batch])
        found.append(sums)
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    assert found[0][0] == 23 and found[0][4] == round(found[0][4])
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_norm_of_each_gradient(jit_compile):
    classifier = Classifier(spec())
    (images, labels, _), *_ = random_batches(1)
    with tf.GradientTape() as tape:
        outputs = classifier.model(readers.scale_images(images), labels, training=True)
        loss = classifier.label_loss(outputs, labels)
    kernel, bias = (np.linalg.norm(g) for g in tape.gradient(loss, [w.value for w in classifier.model.weights]))
    trainer = trainer_for(classifier, optimizers.LearningRate(0.01, 16), jit_compile=jit_compile)
    outputs = trainer.run_steps(random_batches(1), 1)
    assert list(outputs.gradient_norms) == [weight.path for weight in classifier.model.weights]
    assert list(outputs.gradient_norms.values()) == pytest.approx([kernel, bias], rel=1e-4)
    assert outputs.gradient_norm == pytest.approx(np.hypot(kernel, bias), rel=1e-4)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("label_loss", ["CrossEntropyLoss", "HingeLoss"])
def test_the_loss_of_mixed_images_is_that_of_both_labels(label_loss, jit_compile):
    classifier = Classifier(spec(label_loss=label_loss))
    (images, labels, _), *_ = random_batches(1)

    def mix(images, labels, step):
        assert images.dtype == tf.float32 and step.dtype == tf.int64
        return images[:, ::-1], [(tf.constant(0.75), labels), (tf.constant(0.25), 1 - labels)]

    outputs = classifier.model(readers.scale_images(images)[:, ::-1], labels, training=True)
    one, other = (float(classifier.label_loss(outputs, some)) for some in (labels, 1 - labels))
    trainer = trainer_for(classifier, optimizers.LearningRate(0.01, 16), jit_compile=jit_compile, mix=mix)
    found = trainer.run_steps(random_batches(1), 1)
    assert one != other and found.label_loss == pytest.approx(0.75 * one + 0.25 * other, abs=1e-5)
    np.testing.assert_array_equal(found.images[0], readers.scale_images(images)[:, ::-1])  # What is shown.
    np.testing.assert_array_equal(found.labels[0], labels)


def test_a_gradient_that_is_not_finite_is_named():
    norms = {"first/kernel": float("inf"), "last/kernel": 1.0}
    outputs = trainer_module.StepOutputs(1, False, 1.0, float("inf"), norms, 0.5, 0.0, [], [], [], [], None)
    with pytest.raises(UserError, match=r"\(not finite for first/kernel\), the learning rate"):
        train.check_finite(8, outputs, 0.25)
    with pytest.raises(UserError, match="; try --precision=float32 in place of mixed_bfloat16, a lower --base"):
        train.check_finite(8, outputs, 0.25, "mixed_bfloat16")


def test_xla_gives_the_same():
    weights = []
    for jit_compile in (False, True):
        classifier = Classifier(spec(model="MoeModel"))
        trainer = trainer_for(classifier, optimizers.LearningRate(0.01, 16), jit_compile=jit_compile)
        run_steps(trainer, random_batches(4), 4)
        weights.append([weight.numpy() for weight in classifier.model.weights])
    for plain, compiled in zip(*weights, strict=True):
        np.testing.assert_allclose(plain, compiled, atol=1e-5)


def test_same_seed_same_weights():
    first, same, other = (Classifier(spec(seed=seed)).model.weights[0].numpy() for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_the_line_and_the_row_of_a_step(tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    plan = Plan(1000, 100, make_config(num_epochs=90).periods)
    log = TrainingLog(str(tmp_path), Classifier(spec()), lambda step: tf.constant(0.02 / (1 + step)), plan, None)
    # The second device has a copy of the first one's second example.
    columns = [tf.constant([[0.75], [0.375]]), tf.constant([[0.375]])], [tf.constant([[1], [1]]), tf.constant([[1]])]
    sums = 1000 * np.array([1, 0.84, 0.01, 0.7, 0.5])  # As many examples as ten steps have.
    weights = [tf.constant(1.0), tf.constant(0.0)]
    outputs = StepOutputs(10, True, 2.0, 1.5, {"kernel": 1.5}, 9.9, 9.9, [], *columns, weights, sums)
    batch = gather_batch(distribution.local_devices(), outputs)
    log.log_step(20, outputs, types.SimpleNamespace(timed_steps=19, seconds=19.0, waiting_seconds=4.75), *batch)
    # The clock did not tick; in the mean time of a step, the older one counts four times as much.
    log.log_step(21, outputs, types.SimpleNamespace(timed_steps=20, seconds=19.0, waiting_seconds=4.75), *batch)
    first, second = caplog.messages
    assert first == (
        "training step 20 | Loss: 0.84 Examples/sec: 100.00 | Hit@1: 0.50 PERR: 0.50 GAP: 0.83 | "
        "Epoch: 2/90 (2%) LR: 0.001 | 0:14:40 left | Waiting for data: 25%"
    )
    assert "| Epoch: 3/90 (2%) LR: 0.000952 | 0:11:43 left | Waiting for data: 0%" in second
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert {**row, "time": 0, "learning_rate": round(row["learning_rate"], 9), "gap": round(row["gap"], 2)} == {
        "kind": "training",
        "step": 20,
        "epoch": 2,
        "label_loss": 0.84,
        "log_loss": 0.7,
        "regularization_loss": 0.01,
        "gradient_norm": 1.5,
        "accuracy": 0.5,
        "perr": 0.5,
        "gap": 0.83,
        "learning_rate": 0.001,
        "examples_per_second": 100.0,
        "waiting_for_data": 0.25,
        "time": 0,
    }


def stops(plan):
    step, stops = 0, []
    while step < plan.total_steps:
        step += plan.steps_until_due(step)
        stops.append(step)
    return stops


def test_no_step_is_missed_after_which_something_is_due():
    periods = make_config(log_steps=10, export_model_steps=25, num_epochs=1).periods
    assert stops(Plan(63, 1, periods)) == [10, 20, 25, 30, 40, 50, 60, 63]
    periods = make_config(log_steps=10, export_model_steps=0, num_epochs=3).periods
    assert stops(Plan(3, 1, periods, evaluates=True)) == [3, 6, 9]


def test_the_steps_of_a_profile_are_not_missed():
    periods = make_config(log_steps=10, export_model_steps=0, num_epochs=1, profile_steps=(3, 12)).periods
    assert stops(Plan(20, 1, periods)) == [3, 10, 12, 20]


@pytest.mark.parametrize(
    ("steps", "called"),
    [
        ([0, 3, 12, 20], ["start", "stop"]),
        ([5, 10, 12], ["start", "stop"]),  # Resumed between the two.
        ([0, 3, 7], ["start", "stop"]),  # Ends between the two.
        ([12, 20], []),
    ],
)
def test_a_profile_is_written_wherever_a_run_begins_and_ends(monkeypatch, steps, called):
    calls = []
    monkeypatch.setattr(tf.profiler.experimental, "start", lambda folder: calls.append("start"))
    monkeypatch.setattr(tf.profiler.experimental, "stop", lambda: calls.append("stop"))
    profiler = trainer_module.Profiler("/a", (3, 12))
    for step in steps:
        profiler.update(step)
    profiler.close()
    assert calls == called


def test_the_clock_leaves_the_first_step_out():
    classifier = Classifier(spec())
    trainer = trainer_for(classifier, optimizers.LearningRate(0.01, 16))
    batches = random_batches(6)
    assert trainer.run_steps(batches, 4).num_steps == 1
    assert trainer.timed_steps == 0
    assert trainer.run_steps(batches, 3).num_steps == 3
    assert trainer.timed_steps == 3
    trainer.run_steps(batches, 2)
    assert trainer.timed_steps == 5
    assert 0 <= trainer.waiting_seconds < trainer.seconds


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_keeps_weights_predictions_and_loss_in_float32(precision):
    trained = {}
    for name in ("float32", precision):
        classifier = Classifier(spec(model="MoeModel"), precision=name)
        optimizer = optimizers.make_optimizer(
            "AdamOptimizer",
            optimizers.LearningRate(0.01, 16),
            classifier.model.trainable_variables,
            scale_loss=name == "mixed_float16",
        )
        trainer = Trainer(classifier, optimizer, tf.distribute.get_strategy(), make_config().optimizer)
        outputs = run_steps(trainer, random_batches(8), 8)
        assert outputs.probabilities[0].dtype == tf.float32
        assert {weight.dtype for weight in classifier.model.weights} == {"float32"}
        trained[name] = outputs.label_loss
    assert trained[precision] == pytest.approx(trained["float32"], rel=0.02)
    assert trained[precision] != trained["float32"]


@pytest.mark.parametrize(
    ("cache", "epochs_left", "free", "has_room", "expected"),
    [
        ("auto", 5, 4 * 400, True, "memory"),
        ("auto", 5, 4 * 400 - 1, True, "disk"),
        ("auto", 5, 4 * 400 - 1, False, None),
        ("auto", 1, 10**9, True, None),
        ("memory", 1, 0, True, "memory"),
        ("disk", 1, 10**9, False, "disk"),
        ("none", 5, 10**9, True, None),
    ],
)
def test_pictures_stay_where_they_take_a_quarter_of_what_is_free(
    monkeypatch, cache, epochs_left, free, has_room, expected
):
    class OnDisk:
        parent = "folder"

        def __init__(self, reader, shards):
            self.has_room, self.columns = lambda: has_room, lambda: "disk"

    monkeypatch.setattr(training_tools.readers, "decoded_bytes", lambda reader, shards: 400)
    monkeypatch.setattr(training_tools.readers, "decode_all", lambda reader, shards: "memory")
    monkeypatch.setattr(training_tools.utils, "free_memory", lambda: free)
    monkeypatch.setattr(training_tools.pixel_files, "PixelFiles", OnDisk)
    assert training_tools.keep_pictures(cache, None, None, epochs_left) == expected


def test_training_stops_at_the_very_step_that_is_not_finite():
    images = np.zeros((12, 4, 8, 8, 3), np.float32)
    images[7] = np.inf  # the eighth batch
    labels = np.tile(np.array([[0], [1], [0], [1]], np.int32), (12, 1, 1))
    trainer = trainer_for(Classifier(spec()), optimizers.LearningRate(0.25, 4, "constant"))
    batches = iter(tf.data.Dataset.from_tensor_slices((images, labels, np.ones(12, np.float32))))
    first, rest = trainer.run_steps(batches, 12), trainer.run_steps(batches, 11)
    assert (first.num_steps, first.is_finite) == (1, True)
    assert (rest.num_steps, rest.is_finite) == (7, False)
    assert 0 < rest.largest_gradient_norm < 10
    train.check_finite(1, first, 0.25)
    with pytest.raises(UserError, match=r"between step 7 and step 8: the loss is .*nan.*the learning rate 0.25; .*"):
        train.check_finite(8, rest, 0.25)


def test_a_request_to_stop_ends_the_graph_between_two_steps():
    stop = StopRequest()
    classifier = Classifier(spec())
    variables = classifier.model.trainable_variables
    optimizer = optimizers.make_optimizer("SGD", optimizers.LearningRate(0.1, 16), variables)
    config = make_config().optimizer
    trainer = Trainer(classifier, optimizer, tf.distribute.get_strategy(), config, interrupts=[stop.requested])
    batches = random_batches(30)
    assert run_steps(trainer, batches, 9).num_steps == 8
    stop.request(signal.SIGTERM)
    assert trainer.run_steps(batches, 20).num_steps == 1
    assert int(optimizer.iterations) == 10


def check_train_dir(folder, **settings):
    settings = {"image_size": 8, "train_dir": str(folder), **settings}
    return train_dir.check(str(folder), make_config(**settings))


def test_a_model_of_another_kind_is_refused(tmp_path):
    assert not check_train_dir(tmp_path)
    train_dir.save_spec(str(tmp_path), spec())
    assert check_train_dir(tmp_path)
    with pytest.raises(UserError, match="--model=MoeModel: the model in .* has model=LogisticModel"):
        check_train_dir(tmp_path, model="MoeModel")
    with pytest.raises(UserError, match="--image_size=16: .* has image_size=8"):
        check_train_dir(tmp_path, image_size=16)
    assert not check_train_dir(tmp_path, model="MoeModel", start_new_model=True)


def test_what_workers_compare_of_shards_and_model():
    def in_common(records, **settings):
        shards = readers.Shards(records)
        return job.in_common(make_config(image_size=8, **settings), shards, any_size=False)

    common = in_common({"/a/train-0": 5, "/a/train-1": 4})
    assert common["training shard 2"] == "train-1, 4 records" and common["the number of training shards"] == 2
    assert [value for name, value in common.items() if name.startswith("the weight")] == [
        "[192, 1], trained",
        "[1], trained",
    ]
    assert in_common({"/b/train-0": 5, "/b/train-1": 4}) == common
    for other in (in_common({"/a/train-1": 4, "/a/train-0": 5}), in_common({"/a/train-0": 5, "/a/train-1": 3})):
        assert other != common
    assert in_common({"/a/train-0": 5, "/a/train-1": 4}, label_loss="HingeLoss") != common  # The same weights.


def test_checkpoints_of_something_else_are_refused(tmp_path):
    tf.train.Checkpoint(v=tf.Variable(1.0)).save(str(tmp_path / "model.ckpt"))
    with pytest.raises(UserError, match="holds checkpoints of another program"):
        check_train_dir(tmp_path)


def test_steps_and_examples():
    plan = Plan(21, 8, make_config(num_epochs=3).periods)
    assert (plan.steps_per_epoch, plan.total_steps) == (3, 9)
    assert [plan.epoch_of(step) for step in range(1, 8)] == [1, 1, 1, 2, 2, 2, 3]
    assert [plan.examples_at(step) for step in range(7)] == [0, 8, 16, 21, 29, 37, 42]
    assert str(plan) == "21 examples, 9 steps = 3 epochs of 3 steps."
    plan = Plan(21, 8, make_config(num_epochs=3, max_steps=4).periods)
    assert (plan.total_steps, plan.last_step_flag) == (4, "--max_steps")
    assert Plan(5, 8, make_config().periods).steps_per_epoch == 1


def test_building_a_classifier_changes_nothing_for_the_process():
    keras.utils.set_random_seed(7)
    expected = random.random(), np.random.random(), float(tf.random.uniform([]))
    keras.utils.set_random_seed(7)
    for precision in ("mixed_bfloat16", "float32"):
        Classifier(spec(model="MoeModel", seed=3), precision=precision)
    assert keras.config.dtype_policy().name == "float32"
    assert (random.random(), np.random.random(), float(tf.random.uniform([]))) == expected


def test_two_trainings_in_one_process(tmp_path):
    pattern = write_shards(tmp_path / "shards")
    cluster = distribution.local_devices()
    weights = []
    for name in ("first", "second"):
        folder = tmp_path / name
        settings = make_config(train_data_pattern=pattern, train_dir=str(folder), image_size=8, batch_size=8, seed=4)
        assert train.train(settings, cluster) is None
        os.close(train_dir.lock(str(folder)))  # The lock is gone.
        weights.append(values_of(folder / "model.ckpt-15"))
    for name in weights[0]:
        np.testing.assert_array_equal(weights[0][name], weights[1][name], err_msg=name)


@pytest.mark.slow
def test_a_line_after_resuming_has_the_means_since_the_line_before(tmp_path):
    """Steps 5 to 8 are logged together, but 5 and 6 are taken by another run than 7 and 8."""
    common = {"train_data_pattern": write_shards(tmp_path / "shards", num_examples=22), "image_size": 8}
    common |= {"log_steps": 4, "num_epochs": 3, "batch_size": 8, "export_model_steps": 0}
    rows = {}
    for name, stops in {"whole": [9], "resumed": [6, 9]}.items():
        for stop in stops:
            settings = make_config(**common, train_dir=str(tmp_path / name), max_steps=stop)
            if stop == 6:  # It ends as if it had been stopped: the last step of a run is logged.
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(Plan, "log_is_due", lambda plan, step: step == 4)
                    train.train(settings, distribution.local_devices())
            else:
                train.train(settings, distribution.local_devices())
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows[name] = [{k: v for k, v in json.loads(line).items() if k in ("step", *SUMS, "gap")} for line in lines]
    assert [row["step"] for row in rows["whole"]] == [4, 8, 9]
    assert rows["resumed"] == rows["whole"]
    # Step 9 is the last and small one of an epoch, and the only one of its line.
    assert rows["whole"][2]["accuracy"] in [number / 6 for number in range(7)]


def test_a_checkpoint_is_saved_in_time_though_nothing_else_is_due(tmp_path):
    pattern = write_shards(tmp_path / "shards", num_examples=8, num_shards=1)
    settings = make_config(
        train_data_pattern=pattern,
        train_dir=str(tmp_path / "model"),
        image_size=8,
        log_steps=1_000_000,
        num_epochs=1_000_000,
        save_checkpoint_secs=0.5,
    )
    saved = []

    class Enough(Exception):
        pass

    original = checkpoints.TrainState.save

    def save(state):
        saved.append(state.step)
        if len(saved) == 3:
            raise Enough
        return original(state)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Enough):
        patch.setattr(checkpoints.TrainState, "save", save)
        train.train(settings, distribution.local_devices())
    assert 0 < saved[0] < saved[1] < saved[2] < 1_000_000


def test_without_a_finite_loss_no_model_is_called_the_best(tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    classifier, rows = types.SimpleNamespace(copy_weights=lambda other: None), types.SimpleNamespace(add=print)
    metrics = {"step": 5, "avg_loss": math.nan, "avg_hit_at_one": 0.5}
    evaluator = types.SimpleNamespace(
        evaluate=lambda *unused: types.SimpleNamespace(metrics=metrics, write_pictures=print)
    )
    (tmp_path / "eval").mkdir()
    log, progress = types.SimpleNamespace(rows=rows), checkpoints.Progress()
    evaluation = training_evaluation.TrainingEvaluation(
        str(tmp_path), lambda: evaluator, classifier, classifier, progress, log, 0, {}
    )
    evaluation.run(5, True, bool)
    evaluation.log_best()
    assert caplog.messages == ["no model is kept as the best: Avg_Loss: nan, which is not finite"]
    assert not evaluation.is_missing(5) and not (tmp_path / "best").exists()
