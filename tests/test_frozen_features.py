"""Features of frozen layers: training on them gives the model that training on pictures gives, and they are kept."""

import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import logging
from conftest import REPOSITORY, forked_python, make_config, values_of, write_shards

from cats_vs_dogs import (
    backbones,
    bad_examples,
    checkpoints,
    cvd_models,
    distribution,
    frozen_features,
    job,
    models,
    readers,
    train,
    training_tools,
)
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.utils import UserError


class Brightened(keras.layers.Layer):
    def call(self, inputs, training=False):
        return inputs + 1.0 if training else inputs


class FrozenModel(models.BaseModel):
    """A frozen convolution whose part ends in "features", and a head with a loss of its own."""

    def create_model(self, model_input, labels, units=4, noise="none", ends="pooled", trainable=False):
        net = keras.layers.Conv2D(6, 3, strides=2, activation="relu", name="frozen")(model_input)
        net = keras.layers.BatchNormalization(center=False, scale=False, trainable=noise == "batch norm")(net)
        if noise == "dropout":
            net = keras.layers.Dropout(0.5)(net)
        net = Brightened()(net) if noise == "own" else net
        pooled = keras.layers.GlobalAveragePooling2D(name="pooled")(net)
        head = keras.layers.Dense(units, activation="relu", kernel_regularizer="l2")(pooled)
        head = keras.layers.Dropout(0.2)(keras.layers.BatchNormalization()(head))
        predictions = keras.layers.Dense(1, "sigmoid")(head)
        loss = keras.ops.mean((predictions - keras.ops.cast(labels, "float32")) ** 2)
        for layer in keras.Model(model_input, pooled).layers:
            layer.trainable = trainable or isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        features = {"pooled": pooled, "convolution": net, "image": model_input, "text": "pooled", "head": head}.get(
            ends
        )
        return {"predictions": predictions, "loss": loss, "features": features}


@pytest.fixture
def shards(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cvd_models, "FrozenModel", FrozenModel, raising=False)
    return write_shards(tmp_path), write_shards(tmp_path, "validation", num_examples=10, num_shards=1, first=200)


def settings_of(folder, shards, **settings):
    data = {"train_data_pattern": shards[0], "eval_data_pattern": shards[1], "train_dir": str(folder)}
    common = {"model": "FrozenModel", "image_size": 12, "batch_size": 10, "num_epochs": 2, "augment": "flip"}
    return make_config(**{**data, **common, **settings})


def trained(folder, shards, cluster=None, **settings):
    """Trains a model, and returns the values in its last checkpoint."""
    logging.set_verbosity(logging.INFO)  # The export of a model before may have changed it.
    train.train(settings_of(folder, shards, **settings), cluster or distribution.local_devices())
    return values_of(checkpoints.require_checkpoint(str(folder)))


def calculated(pattern, with_mirrored=True, resize_method="area", **settings):
    """Returns the features of a new model, by column; those of an earlier call are read."""
    spec = make_config(**{"model": "FrozenModel", "image_size": 12, **settings}).model
    reader = readers.get_reader(True, spec.image_size, resize_method)
    shards = bad_examples.open_shards(pattern, "train_data_pattern", reader, "fail", with_index=True)
    columns = frozen_features.calculate(Classifier(spec).model, reader, shards, with_mirrored)
    return dict(zip(("ids", "features", "labels"), (column.numpy() for column in columns), strict=True))


def assert_equal(one, other, tolerance=0.0):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=0, atol=tolerance, err_msg=name)


def kept(tmp_path):
    folder = tmp_path / "cache" / "cats_vs_dogs" / "features"
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.mark.slow
def test_training_on_features_is_training_on_pictures(tmp_path, shards, caplog):
    """A run calculates features, and the one that resumes it reads them: a tensor with four axes in bfloat16."""
    settings = {"optimizer": "AdamW", "model_params": {"ends": "convolution"}, "precision": "mixed_bfloat16"}
    on_pictures = trained(tmp_path / "pictures", shards, cache="none", **settings)
    assert "FrozenModel runs in each epoch: --cache=none." in caplog.text and not kept(tmp_path)
    trained(tmp_path / "features", shards, max_steps=4, **settings)
    assert "FrozenModel runs once for each picture" in caplog.text
    mirrored = "Features of 24 pictures and their mirror images"
    assert f"{mirrored}: calculated once, and kept in {tmp_path}/cache" in caplog.text
    assert len(kept(tmp_path)) == 2  # Those for training, and those for its evaluation.
    caplog.clear()
    on_features = trained(tmp_path / "features", shards, **settings)
    assert caplog.text.count(": read from ") == 2 and "calculated" not in caplog.text
    assert_equal(on_features, on_pictures, 1e-6)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1] for name in ("pictures", "features")]
    on_pictures, on_features = map(json.loads, lines)
    assert on_features["step"] == on_pictures["step"]
    assert on_features["log_loss"] == pytest.approx(on_pictures["log_loss"], abs=1e-6)


@pytest.mark.slow
def test_two_devices_train_on_features_as_one_does(run_script, tmp_path, shards):
    driver = REPOSITORY / "tests" / "killed_train.py"
    results = []
    for num_devices in (1, 2):
        plan = json.dumps({"kill": None, "count": 1, "num_devices": num_devices})
        data = [f"--train_data_pattern={shards[0]}", f"--train_dir={tmp_path / str(num_devices)}", "--image_size=12"]
        flags = [
            "--model=FrozenModel",
            "--augment=flip",
            f"--batch_size={8 // num_devices}",
            '--model_params={"rate": 0}',
        ]
        process = run_script("train", *data, *flags, command=[*forked_python(), str(driver), plan])
        assert "Features of 24 pictures and their mirror images" in process.stderr
        results.append(values_of(checkpoints.require_checkpoint(str(tmp_path / str(num_devices)))))
    one, two = ({name: value for name, value in each.items() if name.startswith("weights/")} for each in results)
    assert_equal(two, one, 1e-6)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"augment": "flip_crop"}, "--augment=flip_crop makes other pictures each time."),
        ({"first_image_size": 11, "image_size": 12}, "training pictures grow."),
        ({"num_epochs": 1}, "only one epoch."),
        ({"free": 1}, "its results take 0 MiB, more than a quarter of the free memory."),
    ],
    ids=["flip_crop", "growing", "one epoch", "little memory"],
)
def test_when_features_are_not_used_the_log_says_why(tmp_path, shards, caplog, monkeypatch, settings, reason):
    if settings.pop("free", None):
        monkeypatch.setattr("cats_vs_dogs.utils.free_memory", lambda: 1)
    settings = settings_of(tmp_path / "model", shards, **settings)
    logging.set_verbosity(logging.INFO)
    assert not training_tools.use_features(job.look(settings, distribution.local_devices()))
    assert f"The frozen part of FrozenModel runs in each epoch: {reason}" in caplog.text


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"trainable": True}, '"features" must come from frozen layers, but frozen/kernel is trained; set trainable'),
        ({"ends": "image"}, '"features" is model_input itself; leave it out, nothing is frozen'),
        ({"ends": "text"}, '"features" must be a Keras tensor .batch, ....; it is a str'),
        ({"ends": "head"}, r'"features" must come from frozen layers, but dense\w*/kernel is trained'),
        (
            {"noise": "dropout"},
            r"do the same in training and in evaluation, unlike dropout\w*; put random layers after",
        ),
        ({"noise": "batch norm"}, r"do the same in training and in evaluation, unlike batch_normalization\w*; put"),
        ({"noise": "own"}, 'the part before "features" differs between training and evaluation, as random layers'),
    ],
    ids=["trainable", "image", "text", "head", "dropout", "batch norm", "a layer of one's own"],
)
def test_features_that_are_none(tmp_path, shards, params, message):
    with pytest.raises(UserError, match=message):
        trained(tmp_path / "model", shards, model_params=params)


def test_what_features_depend_on(tmp_path, shards):
    """Each change makes features of their own; another head uses those that are there."""
    changes = [
        {"seed": 1},  # Other weights.
        {"image_size": 13},
        {"with_mirrored": False},
        {"resize_method": "legacy_bilinear"},
        {"model_params": {"ends": "convolution"}},
        {"pattern": write_shards(tmp_path / "others", first=100)},
        {"pattern": write_shards(tmp_path / "fewer", num_examples=22)},
    ]
    calculated(shards[0])
    calculated(shards[0], model_params={"units": 5})
    assert len(kept(tmp_path)) == 1
    for i, change in enumerate(changes):
        calculated(**{"pattern": shards[0], **change})
        assert len(kept(tmp_path)) == 2 + i, change


def damage(folder):
    (folder / "features.npy").write_bytes((folder / "features.npy").read_bytes()[:200])


def empty(folder):
    (folder / "labels.npy").write_bytes(b"")


def remove(folder):
    (folder / "ids.npy").unlink()


@pytest.mark.parametrize("harm", [damage, empty, remove])
def test_damaged_features_are_calculated_again(tmp_path, shards, harm):
    whole = calculated(shards[0])
    harm(kept(tmp_path)[0])
    for name, column in calculated(shards[0]).items():
        np.testing.assert_array_equal(column, whole[name], err_msg=name)
    assert {path.name for path in kept(tmp_path)[0].iterdir()} == {
        "checksums.npy",
        "features.npy",
        "ids.npy",
        "labels.npy",
    }


def test_a_folder_that_cannot_be_written_to_is_a_warning(tmp_path, shards, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    logging.set_verbosity(logging.INFO)
    calculated(shards[0])
    assert "The features cannot be kept in" in caplog.text
    assert "mirror images: calculated once.\n" in caplog.text


def test_the_oldest_features_make_room(tmp_path, shards, monkeypatch):
    calculated(shards[0], seed=0)
    size = sum(path.stat().st_size for path in kept(tmp_path)[0].iterdir())
    monkeypatch.setattr(frozen_features, "_MAX_KEPT_BYTES", int(2.5 * size))
    oldest = kept(tmp_path)[0]
    os.utime(oldest, (1, 1))
    for seed in (1, 2):
        calculated(shards[0], seed=seed)
    assert len(kept(tmp_path)) == 2 and oldest not in kept(tmp_path)
    monkeypatch.setattr(frozen_features, "_MAX_KEPT_BYTES", 10)
    calculated(shards[0], seed=3)
    assert len(kept(tmp_path)) == 2


@pytest.mark.parametrize(
    ("trainable_from", "end"),
    [
        ("block_16_expand", "block_15_add"),
        ("block_16_project", "block_16_depthwise_relu"),
        ("block_15_depthwise", "block_14_add"),  # Not within a block with a shortcut.
        ("Conv1", None),
    ],
)
def test_where_a_backbone_is_split(trainable_from, end):
    backbone = backbones.build("MobileNetV2", 32)
    backbones.freeze(backbone, trainable_from)
    frozen, rest = backbones.split(backbone, trainable_from)
    assert (frozen.layers[-1].name if frozen else None) == end
    assert not frozen or not frozen.trainable_variables
    images = tf.random.stateless_uniform([2, 32, 32, 3], [0, 0], -1, 1)
    expected = backbone(images, training=False)
    np.testing.assert_array_equal(rest(frozen(images) if frozen else images, training=False), expected)
    weights = [weight.path for part in (frozen, rest) if part for weight in part.weights]
    assert weights == [weight.path for weight in backbone.weights]  # So that old checkpoints fit.


def test_collected_rows():
    rows = [(tf.constant(["a", "b"]), tf.constant([[1.0], [2.0]])), (tf.constant(["c"]), tf.constant([[3.0]]))]
    specs = (tf.TensorSpec([None], tf.string), tf.TensorSpec([None, 1]))
    ids, values = readers.collect(rows, specs, 3, "reading")
    assert ids.numpy().tolist() == [b"a", b"b", b"c"] and values.numpy().tolist() == [[1.0], [2.0], [3.0]]
