"""One model, whichever way it is rebuilt: training's evaluation, eval.py, inference.py and the export agree."""

import contextlib
import itertools
import json
import math
import random
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import DATA, make_config, write_shards

from cats_vs_dogs import (
    bad_examples,
    checkpoints,
    cvd_models,
    distribution,
    job,
    models,
    optimizers,
    readers,
    train,
    train_dir,
)
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.evaluation import Evaluator
from cats_vs_dogs.event_files import EventFile
from cats_vs_dogs.prediction import Predictor
from cats_vs_dogs.utils import UserError


class DrawnModel(models.BaseModel):
    """Draws constants in all ways."""

    def __init__(self):
        self.factors = np.random.normal(size=8)

    def create_model(self, model_input, is_new):
        net = keras.layers.Conv2D(8, 3, strides=2)(model_input)
        net = keras.layers.Dropout(0.3)(keras.layers.GlobalAveragePooling2D()(net))
        drawn = [
            self.factors,
            [random.gauss(0, 1) for _ in range(8)],
            np.random.permutation(8) / 8,
            keras.random.normal([8]),
            keras.random.shuffle(np.arange(8.0)),
            tf.random.normal([8]),
            tf.random.uniform([8], seed=3),
            tf.random.stateless_normal([8], [1, 2]),
            keras.initializers.RandomNormal(1.0)([8]),
        ]
        drawn = np.array([np.array(values, np.float32) for values in drawn])
        net = keras.layers.Lambda(lambda x: x @ tf.cast(drawn.T, x.dtype))(net)
        return {"predictions": keras.layers.Dense(1, "sigmoid", dtype="float32")(net)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cvd_models, "DrawnModel", DrawnModel, raising=False)
        yield write_shards(folder), write_shards(folder, "validation", num_examples=10, num_shards=1)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, shards):
    """The train_dir of a DrawnModel with seed 3; a test that changes it takes a copy."""
    folder = tmp_path_factory.mktemp("drawn") / "model"
    trained(folder, shards, seed=3)
    return folder


def settings_of(folder, shards, **settings):
    common = {"image_size": 16, "batch_size": 8, "num_epochs": 2, "model": "DrawnModel", "base_learning_rate": 1e-3}
    data = {"train_data_pattern": shards[0], "eval_data_pattern": shards[1], "train_dir": str(folder)}
    return make_config(**data, **{**common, **settings})


def trained(folder, shards, **settings):
    """Trains a model, and returns the last row that training's evaluation wrote."""
    train.train(settings_of(folder, shards, **settings), distribution.local_devices())
    return last_row(folder)


def prepared(folder, shards, **settings):
    """Does what comes before the first step of training."""
    train.prepare(job.look(settings_of(folder, shards, **settings), distribution.local_devices()))


def last_row(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][-1]


def rebuilt(folder, flip_average=False):
    """What another process does: builds the model of a train_dir, and restores it."""
    random.seed(99)  # Whatever was drawn before.
    keras.utils.set_random_seed(98)
    tf.random.normal([3])
    classifier = Classifier(train_dir.load_spec(str(folder)), flip_average=flip_average)
    checkpoints.restore_newest(classifier, str(folder))
    return classifier


def log_loss_and_probabilities(classifier, folder, pattern):
    reader = readers.get_reader(True, classifier.spec.image_size, classifier.spec.resize_method)
    shards = bad_examples.open_shards(pattern, "eval_data_pattern", reader, "fail")
    batches = readers.make_dataset(reader, shards, 4)
    predictor = Predictor(classifier, distribution.local_devices(), batches)
    metrics = Evaluator(predictor).evaluate(1, EventFile(str(folder / "events"))).metrics
    images = tf.concat([images for _, images, _ in batches], axis=0)
    return metrics["avg_loss"], classifier.probability(images).numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{}, {"seed": 2**32 - 1, "first_image_size": 12, "precision": "mixed_float16"}],
    ids=["float32", "growing in float16"],
)
def test_the_same_model_in_training_evaluation_prediction_and_export(tmp_path, shards, drawn, caplog, settings):
    model = drawn
    if settings:
        model = tmp_path / "model"
        trained(model, shards, **settings)
    row = last_row(model)
    folders = [model] + ([model / "best"] if row["step"] == best_step(model) else [])
    serialized = list(tf.data.TFRecordDataset(tf.io.gfile.glob(shards[1])).as_numpy_iterator())
    exported = tf.saved_model.load(str(model / "export" / f"step_{row['step']}"))
    exported = exported.signatures["serving_default"](example_bytes=tf.constant(serialized))["predictions"][:, 1:]
    for folder in folders:
        loss, probabilities = log_loss_and_probabilities(rebuilt(folder), tmp_path, shards[1])
        assert loss == pytest.approx(row["avg_loss"], abs=1e-6)
        np.testing.assert_allclose(exported, probabilities, atol=1e-6, rtol=0)
    assert 0.01 < probabilities.min() < probabilities.max() - 0.01 < 0.98  # The pictures matter.
    assert "other operations or constants" not in caplog.text


def best_step(folder):
    return checkpoints.step_of(checkpoints.require_checkpoint(str(folder / "best")))


def test_large_pictures_are_predicted_in_parts(tmp_path, shards, drawn, monkeypatch):
    """A batch of 1,024 pictures of 288 pixels took 20 GB in a small network."""
    classifier, sizes = rebuilt(drawn), []
    whole = log_loss_and_probabilities(classifier, tmp_path, shards[1])
    predict = distribution.Cluster.on_all_devices

    def on_all_devices(self, function):
        run = predict(self, function)
        return lambda *columns: sizes.append(len(columns[0])) or run(*columns)

    monkeypatch.setattr(distribution.Cluster, "on_all_devices", on_all_devices)
    monkeypatch.setattr("cats_vs_dogs.prediction._PIXELS_AT_ONCE", 3 * 16 * 16)
    parts = log_loss_and_probabilities(classifier, tmp_path, shards[1])
    assert sizes == [3, 1, 3, 1, 2]  # Of batches of 4, 4 and 2.
    assert parts[0] == pytest.approx(whole[0], abs=1e-6)
    np.testing.assert_allclose(parts[1], whole[1], atol=1e-6)


def test_the_mirror_image_meets_the_same_model(drawn, caplog):
    caplog.clear()
    plain, flipping = (rebuilt(drawn, flip_average) for flip_average in (False, True))
    images = tf.random.stateless_uniform([5, 16, 16, 3], [1, 2])
    mean = (plain.probability(images) + plain.probability(images[:, :, ::-1])) / 2
    np.testing.assert_allclose(flipping.probability(images), mean, atol=1e-6, rtol=0)
    assert not caplog.text


def test_a_model_resumed_with_another_seed_stays_the_same_model(tmp_path, shards, drawn, caplog):
    folder = tmp_path / "model"
    shutil.copytree(drawn, folder)
    before = rebuilt(folder)
    row = trained(folder, shards, seed=4, num_epochs=3)
    assert "was trained with seed=3 (now 4)" in caplog.text
    assert train_dir.load_spec(str(folder)).seed == train_dir.load_spec(str(folder / "best")).seed == 3
    assert json.loads((folder / "run.json").read_text())["flags"]["seed"] == 4
    after = rebuilt(folder)
    loss, _ = log_loss_and_probabilities(after, tmp_path, shards[1])
    assert loss == pytest.approx(row["avg_loss"], abs=1e-6)
    before.copy_weights(after)  # Then they differ in what was drawn, if at all.
    images = tf.random.stateless_uniform([5, 16, 16, 3], [1, 2])
    np.testing.assert_array_equal(before.probability(images), after.probability(images))
    prepared(folder, shards, seed=6, start_new_model=True)
    assert train_dir.load_spec(str(folder)).seed == 6


def test_the_seed_of_a_train_dir_of_an_older_version(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(DATA / "train_dir_of_2_0", folder)
    assert train_dir.load_spec(str(folder)).seed == 0
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, "seed": 12}))
    assert train_dir.load_spec(str(folder)).seed == train_dir.load_spec(f"{folder}/best/").seed == 12
    shutil.move(folder / "best", tmp_path / "best")
    assert train_dir.load_spec(str(tmp_path / "best")).seed == 0


@pytest.mark.parametrize("is_new", [True, False])
def test_the_same_is_drawn_in_a_strategy_and_after_other_operations(shards, is_new):
    spec = make_config(model="DrawnModel", image_size=16, seed=3).model
    images = tf.random.stateless_uniform([5, 16, 16, 3], [1, 2])
    expected = Classifier(spec)
    tf.random.normal([2])
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        tf.random.normal([2])
        other = Classifier(spec, is_new=is_new)
    other.copy_weights(expected)
    np.testing.assert_array_equal(other.probability(images), expected.probability(images))


class OutsideModel(models.BaseModel):
    """Depends on what is not in its train_dir."""

    factor, activations = 0.5, ["relu", "tanh"]

    def create_model(self, model_input):
        net = keras.layers.GlobalAveragePooling2D()(model_input) * self.factor
        branches = [keras.layers.Dense(2, activation)(net) for activation in self.activations]
        return {"predictions": keras.layers.Dense(1, "sigmoid")(keras.layers.Concatenate()(branches))}


@pytest.mark.slow
def test_a_model_that_is_built_otherwise_than_in_training(tmp_path, shards, monkeypatch, caplog):
    monkeypatch.setattr(cvd_models, "OutsideModel", OutsideModel, raising=False)
    trained(tmp_path / "model", shards, model="OutsideModel")
    rebuilt(tmp_path / "model")
    assert "other operations or constants" not in caplog.text
    for name, value in (("factor", 0.6), ("activations", ["tanh", "relu"])):
        with monkeypatch.context() as patch:
            patch.setattr(OutsideModel, name, value)
            caplog.clear()
            rebuilt(tmp_path / "model" / "best")
            said = "model/best is built with other operations or constants than in training, so its answers"
            assert said in caplog.text, name
    monkeypatch.setattr(OutsideModel, "factor", 0.6)
    caplog.clear()
    prepared(tmp_path / "model", shards, model="OutsideModel", num_epochs=3)
    assert "model is built with other operations or constants than in training" in caplog.text


COUNTER = itertools.count(1)


class UnseededModel(models.BaseModel):
    """Draws what no seed reaches."""

    def create_model(self, model_input, is_new, how):
        drawn = {
            "a generator without a seed": lambda: np.random.default_rng().normal(size=3),
            "a scalar": lambda: math.pi * next(COUNTER),  # A random one may look typed, such as 0.12345.
            "a tensor": lambda: tf.random.Generator.from_non_deterministic_state().normal([3]),
            "an order": lambda: np.random.default_rng().permutation(64).reshape(1, 64)[:, :3] * np.ones((4, 1), int),
            "is_new": lambda: np.random.normal(size=4 if is_new else 3)[-3:],
            "seeded": lambda: np.random.normal(size=3),
            "a seed of its own": lambda: np.random.default_rng(3).normal(size=3),
        }[how]()
        net = keras.layers.GlobalAveragePooling2D()(model_input)
        if how == "an order":
            net = keras.layers.Lambda(lambda x: x * tf.reduce_mean(tf.cast(drawn, x.dtype), axis=0))(net)
        else:
            net = net * drawn
        return {"predictions": keras.layers.Dense(1, "sigmoid")(net)}


@pytest.mark.parametrize(
    ("how", "is_refused"),
    [
        ("a generator without a seed", True),
        ("a scalar", True),
        ("a tensor", True),
        ("an order", True),
        ("is_new", True),
        ("seeded", False),
        ("a seed of its own", False),
    ],
)
def test_constants_that_are_others_in_eval_are_refused_before_training(monkeypatch, how, is_refused):
    monkeypatch.setattr(cvd_models, "UnseededModel", UnseededModel, raising=False)
    settings = make_config(model="UnseededModel", model_params={"how": how}, image_size=4)
    context = pytest.raises(UserError, match="UnseededModel: its constants are others each time it is built")
    with context if is_refused else contextlib.nullcontext():
        job.build(settings, optimizers.LearningRate(0.1, 4), is_new=True, any_size=False)


@pytest.mark.parametrize("model", ["LogisticModel", "MoeModel", "ConvNetModel"])
def test_the_models_of_the_kit_need_not_be_built_twice(monkeypatch, model):
    built = []
    original = models.build_model
    monkeypatch.setattr(models, "build_model", lambda *args: built.append(args) or original(*args))
    job.build(make_config(model=model), optimizers.LearningRate(0.1, 4), is_new=True, any_size=False)
    assert len(built) == 1
