"""What a train_dir holds, written and read again."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from cats_vs_dogs import checkpoints, cvd_models, models
from cats_vs_dogs.classifier import Classifier, ModelSpec
from cats_vs_dogs.utils import UserError

SPEC = ModelSpec("LogisticModel", {}, "CrossEntropyLoss", {}, 4, "area")


class DropoutModel(models.BaseModel):
    def create_model(self, model_input):
        net = keras.layers.BatchNormalization()(keras.layers.Dropout(0.5)(keras.layers.Flatten()(model_input)))
        return {"predictions": keras.layers.Dense(1, "sigmoid")(net)}


@pytest.fixture
def dropout_spec(monkeypatch):
    monkeypatch.setattr(cvd_models, "DropoutModel", DropoutModel, raising=False)
    return ModelSpec("DropoutModel", {}, "CrossEntropyLoss", {}, 4, "area")


def training_checkpoint(folder, spec, optimizer_class=keras.optimizers.Adam, keep=5, seed=0):
    classifier = Classifier(spec, seed)
    optimizer = optimizer_class()
    optimizer.build(classifier.model.trainable_variables)
    checkpoint = checkpoints.TrainingCheckpoint(str(folder), classifier, optimizer, keep)
    return classifier, optimizer, checkpoint


def everything(classifier, optimizer):
    return [v.numpy() for v in classifier.model.weights + classifier.model.seed_states + optimizer.variables]


def test_everything_that_training_needs_comes_back(tmp_path, dropout_spec):
    classifier, optimizer, checkpoint = training_checkpoint(tmp_path, dropout_spec)
    assert checkpoint.restore_latest() is None
    images = tf.random.stateless_uniform([8, 4, 4, 3], [1, 2])
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(classifier.model.network(images, training=True))
        variables = classifier.model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, [v.value for v in variables]), variables, strict=True))
    checkpoint.step.assign(3)
    assert checkpoint.save() == str(tmp_path / "model.ckpt-3")

    restored_classifier, restored_optimizer, restored = training_checkpoint(tmp_path, dropout_spec, seed=9)
    assert restored.restore_latest() == str(tmp_path / "model.ckpt-3")
    assert int(restored.step) == 3
    assert len(classifier.model.seed_states) == 1
    for a, b in zip(
        everything(classifier, optimizer), everything(restored_classifier, restored_optimizer), strict=True
    ):
        np.testing.assert_array_equal(a, b)

    for_prediction = Classifier(dropout_spec, seed=5)
    checkpoints.restore_classifier(for_prediction, checkpoints.latest_checkpoint(str(tmp_path)))
    np.testing.assert_array_equal(for_prediction.probability(images), classifier.probability(images))
    # The masks of dropout go on too.
    masks = [one.model.network(images, training=True) for one in (classifier, restored_classifier)]
    np.testing.assert_array_equal(*masks)


def test_only_the_newest_are_kept(tmp_path):
    _, _, checkpoint = training_checkpoint(tmp_path, SPEC, keep=2)
    for step in (1, 2, 3):
        checkpoint.step.assign(step)
        checkpoint.save()
    assert sorted(path.stem for path in tmp_path.glob("*.index")) == ["model.ckpt-2", "model.ckpt-3"]
    assert checkpoints.step_of(checkpoints.latest_checkpoint(str(tmp_path))) == 3


def test_a_checkpoint_of_another_model_or_optimizer_is_refused(tmp_path, dropout_spec):
    _, _, checkpoint = training_checkpoint(tmp_path, SPEC)
    path = checkpoint.save()
    for other in (dropout_spec, ModelSpec("LogisticModel", {}, "CrossEntropyLoss", {}, 5, "area")):
        with pytest.raises(UserError, match="its weights do not fit"):
            checkpoints.restore_classifier(Classifier(other), path)
        with pytest.raises(UserError, match="its weights do not fit"):
            training_checkpoint(tmp_path, other)[2].restore_latest()
    with pytest.raises(UserError, match="--optimizer: .* was made with Adam, not with Ftrl"):
        training_checkpoint(tmp_path, SPEC, keras.optimizers.Ftrl)[2].restore_latest()


def test_no_model_no_checkpoint_damaged_flags(tmp_path):
    train_dir = str(tmp_path)
    with pytest.raises(UserError, match="holds no model .* train.py first"):
        checkpoints.load_spec(train_dir)
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoints.latest_checkpoint(train_dir)
    checkpoints.save_spec(train_dir, SPEC)
    assert checkpoints.load_spec(train_dir, model="LogisticModel", label_loss=None) == SPEC
    with pytest.raises(UserError, match="--model=MoeModel: the model in .* was trained with model=LogisticModel"):
        checkpoints.load_spec(train_dir, model="MoeModel")
    path = tmp_path / "model_flags.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match="model_flags.json: damaged, not JSON"):
        checkpoints.load_spec(train_dir)
    whole = dataclasses.asdict(SPEC)
    for content, said in (
        ({"model": "LogisticModel"}, "must have exactly the keys"),
        ({**whole, "image_size": "4"}, r"must have exactly the keys .* image_size \(int\)"),
        ({**whole, "model": "GoneModel"}, "model_flags.json: --model=GoneModel: no such class .* put the class back"),
        (3, "not a JSON object"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=said):
            checkpoints.load_spec(train_dir)


def test_the_newest_checkpoint_is_found_without_the_text_file(tmp_path):
    _, _, checkpoint = training_checkpoint(tmp_path, SPEC)
    for step in (9, 10):
        checkpoint.step.assign(step)
        checkpoint.save()
    for damage in ("garbage", None):
        (tmp_path / "checkpoint").write_text(damage) if damage else (tmp_path / "checkpoint").unlink()
        assert checkpoints.latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-10")
        assert training_checkpoint(tmp_path, SPEC)[2].restore_latest() == str(tmp_path / "model.ckpt-10")


@pytest.mark.parametrize("damage", ["no data", "short data", "short index"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    classifier, _, checkpoint = training_checkpoint(tmp_path, SPEC)
    path = checkpoint.save()
    data, index = tmp_path / "model.ckpt-0.data-00000-of-00001", tmp_path / "model.ckpt-0.index"
    if damage == "no data":
        data.unlink()
    elif damage == "short data":
        data.write_bytes(data.read_bytes()[:50])
    else:
        index.write_bytes(index.read_bytes()[:50])
    for restore in (
        lambda: checkpoints.restore_classifier(classifier, path),
        training_checkpoint(tmp_path, SPEC)[2].restore_latest,
    ):
        with pytest.raises(
            UserError, match=r"model.ckpt-0: the checkpoint is damaged .* delete the files model.ckpt-0"
        ):
            restore()


def test_only_what_the_kit_wrote_is_deleted(tmp_path):
    _, _, checkpoint = training_checkpoint(tmp_path, SPEC)
    checkpoint.save()
    checkpoints.save_spec(str(tmp_path), SPEC)
    (tmp_path / "export" / "step_3" / "variables").mkdir(parents=True)
    thesis = tmp_path / "thesis.doc"
    thesis.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="such as thesis.doc; nothing was deleted"):
        checkpoints.delete_training(str(tmp_path))
    thesis.rename(tmp_path / "export" / "thesis.doc")
    with pytest.raises(UserError, match="such as export/thesis.doc"):
        checkpoints.delete_training(str(tmp_path))
    (tmp_path / "export" / "thesis.doc").rename(thesis)
    assert sorted(tmp_path.rglob("*")) == before
    thesis.unlink()
    checkpoints.delete_training(str(tmp_path))
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "export"]
