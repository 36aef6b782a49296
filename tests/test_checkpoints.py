"""What a train_dir holds, written and read again."""

import dataclasses
import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from cats_vs_dogs import checkpoints, cvd_models, models
from cats_vs_dogs import train_dir as train_dir_module
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.config import ModelSpec
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
    classifier = Classifier(dataclasses.replace(spec, seed=seed))
    optimizer = optimizer_class()
    optimizer.build(classifier.model.trainable_variables)
    checkpoint = checkpoints.TrainState(str(folder), classifier, optimizer, keep)
    return classifier, optimizer, checkpoint


def everything(classifier, optimizer):
    return [v.numpy() for v in classifier.model.weights + classifier.model.seed_states + optimizer.variables]


def test_everything_that_training_needs_comes_back(tmp_path, dropout_spec):
    classifier, optimizer, checkpoint = training_checkpoint(tmp_path, dropout_spec)
    assert checkpoint.restore() is None
    images = tf.random.stateless_uniform([8, 4, 4, 3], [1, 2])
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(classifier.model.network(images, training=True))
        variables = classifier.model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, [v.value for v in variables]), variables, strict=True))
    checkpoint.progress.step.assign(3)
    assert checkpoint.save() == str(tmp_path / "model.ckpt-3")

    restored_classifier, restored_optimizer, restored = training_checkpoint(tmp_path, dropout_spec, seed=9)
    assert restored.restore() == str(tmp_path / "model.ckpt-3")
    assert int(restored.progress.step) == 3
    assert len(classifier.model.seed_states) == 1
    for a, b in zip(
        everything(classifier, optimizer), everything(restored_classifier, restored_optimizer), strict=True
    ):
        np.testing.assert_array_equal(a, b)

    for_prediction = Classifier(dataclasses.replace(dropout_spec, seed=5))
    checkpoints.restore_classifier(for_prediction, checkpoints.require_checkpoint(str(tmp_path)))
    np.testing.assert_array_equal(for_prediction.probability(images), classifier.probability(images))
    # The masks of dropout go on too.
    masks = [one.model.network(images, training=True) for one in (classifier, restored_classifier)]
    np.testing.assert_array_equal(*masks)


def test_only_the_newest_are_kept(tmp_path):
    _, _, checkpoint = training_checkpoint(tmp_path, SPEC, keep=2)
    for step in (1, 2, 3):
        checkpoint.progress.step.assign(step)
        checkpoint.save()
    assert sorted(path.stem for path in tmp_path.glob("*.index")) == ["model.ckpt-2", "model.ckpt-3"]
    assert checkpoints.step_of(checkpoints.require_checkpoint(str(tmp_path))) == 3


def test_a_checkpoint_of_another_model_or_optimizer_is_refused(tmp_path, dropout_spec):
    _, _, checkpoint = training_checkpoint(tmp_path, SPEC)
    path = checkpoint.save()
    for other in (dropout_spec, ModelSpec("LogisticModel", {}, "CrossEntropyLoss", {}, 5, "area")):
        with pytest.raises(UserError, match="its weights do not fit"):
            checkpoints.restore_classifier(Classifier(other), path)
        with pytest.raises(UserError, match="its weights do not fit"):
            training_checkpoint(tmp_path, other)[2].restore()
    with pytest.raises(UserError, match="--optimizer: .* was made with Adam, not with Ftrl"):
        training_checkpoint(tmp_path, SPEC, keras.optimizers.Ftrl)[2].restore()


def test_no_model_no_checkpoint_damaged_flags(tmp_path):
    train_dir = str(tmp_path)
    with pytest.raises(UserError, match="holds no model .* train.py first"):
        train_dir_module.load_spec(train_dir)
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoints.require_checkpoint(train_dir)
    train_dir_module.save_spec(train_dir, SPEC)
    assert train_dir_module.load_spec(train_dir) == SPEC
    train_dir_module.check_expected(train_dir, SPEC, model="LogisticModel", label_loss=None)
    with pytest.raises(UserError, match="--model=MoeModel: the model in .* was trained with model=LogisticModel"):
        train_dir_module.check_expected(train_dir, SPEC, "MoeModel", None)
    path = tmp_path / "model_flags.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match="model_flags.json: damaged, not JSON"):
        train_dir_module.load_spec(train_dir)
    whole = dataclasses.asdict(SPEC)
    for content, said in (
        ({"model": "LogisticModel"}, "must have exactly the keys"),
        ({**whole, "image_size": "4"}, r"must have exactly the keys .* image_size \(int\)"),
        ({**whole, "model": "GoneModel"}, "model_flags.json: --model=GoneModel: no such class .* put the class back"),
        (3, "not a JSON object"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=said):
            train_dir_module.load_spec(train_dir)


def test_the_newest_checkpoint_is_found_without_the_text_file(tmp_path):
    _, _, checkpoint = training_checkpoint(tmp_path, SPEC)
    for step in (9, 10):
        checkpoint.progress.step.assign(step)
        checkpoint.save()
    for damage in ("garbage", None):
        (tmp_path / "checkpoint").write_text(damage) if damage else (tmp_path / "checkpoint").unlink()
        assert checkpoints.require_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-10")
        assert training_checkpoint(tmp_path, SPEC)[2].restore() == str(tmp_path / "model.ckpt-10")


def damage_file(path, how):
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "short":
        path.write_bytes(data[: len(data) // 2])
    else:
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])


@pytest.mark.parametrize("suffix", ["data-00000-of-00001", "index"])
@pytest.mark.parametrize("how", ["gone", "empty", "short", "flipped"])
def test_the_one_before_a_damaged_checkpoint_is_used(tmp_path, caplog, suffix, how):
    classifier, optimizer, checkpoint = training_checkpoint(tmp_path, SPEC)
    kernel = classifier.model.weights[0]
    for step in (1, 2):
        checkpoint.progress.step.assign(step)
        kernel.assign(tf.fill(kernel.shape, float(step)))
        checkpoint.save()
    damage_file(tmp_path / f"model.ckpt-2.{suffix}", how)
    before = sorted(tmp_path.iterdir())

    restored_classifier, _, restored = training_checkpoint(tmp_path, SPEC, seed=1)
    assert restored.restore() == str(tmp_path / "model.ckpt-1")
    assert int(restored.progress.step) == 1
    for_prediction = Classifier(dataclasses.replace(SPEC, seed=2))
    assert checkpoints.restore_newest(for_prediction, str(tmp_path)) == str(tmp_path / "model.ckpt-1")
    for one in (restored_classifier, for_prediction):
        np.testing.assert_array_equal(one.model.weights[0], np.ones(kernel.shape))
    if (suffix, how) != ("index", "gone"):  # Without its index file a checkpoint is not there.
        assert f"{tmp_path}/model.ckpt-2: the checkpoint is damaged or incomplete" in caplog.text
    assert sorted(tmp_path.iterdir()) == before

    # Done again, it takes the place of the damaged one.
    restored.progress.step.assign(2)
    restored.save()
    assert training_checkpoint(tmp_path, SPEC)[2].restore() == str(tmp_path / "model.ckpt-2")


def test_when_no_checkpoint_can_be_read_nothing_is_deleted(tmp_path):
    classifier, _, checkpoint = training_checkpoint(tmp_path, SPEC)
    for step in (1, 2):
        checkpoint.progress.step.assign(step)
        checkpoint.save()
        damage_file(tmp_path / f"model.ckpt-{step}.data-00000-of-00001", "short")
    before = sorted(tmp_path.iterdir())
    for restore in (checkpoint.restore, lambda: checkpoints.restore_newest(classifier, str(tmp_path))):
        with pytest.raises(UserError, match=r"none of its checkpoints can be read \(model.ckpt-2, model.ckpt-1\)"):
            restore()
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_not_finite_is_not_saved(tmp_path):
    classifier, _, checkpoint = training_checkpoint(tmp_path, SPEC)
    checkpoint.save()
    classifier.model.weights[0].assign(tf.fill(classifier.model.weights[0].shape, np.nan))
    checkpoint.progress.step.assign(1)
    with pytest.raises(UserError, match="not finite any more at step 1; they were not saved"):
        checkpoint.save()
    assert [path.name for path in tmp_path.glob("*.index")] == ["model.ckpt-0.index"]


def test_a_checkpoint_with_other_random_layers_is_refused(tmp_path, monkeypatch, dropout_spec):
    _, _, checkpoint = training_checkpoint(tmp_path, dropout_spec)
    checkpoint.save()

    class WithoutDropout(models.BaseModel):
        def create_model(self, model_input):
            net = keras.layers.BatchNormalization()(keras.layers.Flatten()(model_input))
            return {"predictions": keras.layers.Dense(1, "sigmoid")(net)}

    monkeypatch.setattr(cvd_models, "DropoutModel", WithoutDropout)
    with pytest.raises(UserError, match="was made with 1 random layers, .* DropoutModel now has 0"):
        training_checkpoint(tmp_path, dropout_spec)[2].restore()


def test_the_best_model_takes_the_place_of_the_one_before(tmp_path):
    classifier = Classifier(SPEC)
    best = tmp_path / "best"
    for step in (3, 8):
        checkpoints.save_best(classifier, str(best), step, {"avg_loss": 1 / step})
    assert sorted(path.name for path in best.iterdir()) == [
        "metrics-8.json",
        "model.ckpt-8.data-00000-of-00001",
        "model.ckpt-8.index",
        "model_flags.json",
    ]
    other = Classifier(dataclasses.replace(train_dir_module.load_spec(str(best)), seed=1))
    checkpoints.restore_newest(other, str(best))
    np.testing.assert_array_equal(other.model.weights[0], classifier.model.weights[0])


def test_two_cannot_train_in_one_folder(tmp_path):
    lock = train_dir_module.lock(str(tmp_path))
    with pytest.raises(UserError, match="another train.py is training there"):
        train_dir_module.lock(str(tmp_path))
    os.close(lock)
    os.close(train_dir_module.lock(str(tmp_path)))


def test_what_a_killed_run_left_half_written_is_deleted(tmp_path):
    whole = ["model.ckpt-20.index", "model.ckpt-20.data-00000-of-00001", "run.json", "thesis.tmp"]
    half = ["model.ckpt-20.77.tmp.index", "run.json.77.tmp", "cut.77.tmp", "best/model.ckpt-3.77.tmp.index"]
    for name in [*whole, *half, "model.ckpt-20.77.tmp_temp/part-0", "export/step_20.77.tmp/saved_model.pb"]:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    train_dir_module.delete_leftovers(str(tmp_path))
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(whole)
    assert not list(tmp_path.glob("export/*"))


@pytest.mark.parametrize("what", ["link", "home", "root"])
def test_start_new_model_refuses_what_is_no_folder_for_a_model(tmp_path, monkeypatch, what):
    model = tmp_path / "model"
    model.mkdir()
    (model / "run.json").touch()
    if what == "link":
        (tmp_path / "link").symlink_to(model)
    monkeypatch.setenv("HOME", str(model))
    train_dir = {"link": f"{tmp_path}/link/", "home": f"{model}/", "root": "/"}[what]
    with pytest.raises(UserError, match=f"--start_new_model: --train_dir={train_dir} is .*; nothing was deleted"):
        train_dir_module.delete_model(train_dir)
    assert (model / "run.json").exists()


def test_start_new_model_does_not_follow_links_in_the_folder(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "saved_model.pb").touch()
    (tmp_path / "model" / "export").mkdir(parents=True)
    (tmp_path / "model" / "export" / "step_3").symlink_to(elsewhere)
    with pytest.raises(UserError, match="holds files that the kit did not write, such as export/step_3"):
        train_dir_module.delete_model(str(tmp_path / "model"))
    assert (elsewhere / "saved_model.pb").exists()


def test_only_what_the_kit_wrote_is_deleted(tmp_path):
    _, _, checkpoint = training_checkpoint(tmp_path, SPEC)
    checkpoint.save()
    train_dir_module.save_spec(str(tmp_path), SPEC)
    (tmp_path / "export" / "step_3" / "variables").mkdir(parents=True)
    thesis = tmp_path / "thesis.doc"
    thesis.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="such as thesis.doc; nothing was deleted"):
        train_dir_module.delete_model(str(tmp_path))
    thesis.rename(tmp_path / "export" / "thesis.doc")
    with pytest.raises(UserError, match="such as export/thesis.doc"):
        train_dir_module.delete_model(str(tmp_path))
    (tmp_path / "export" / "thesis.doc").rename(thesis)
    assert sorted(tmp_path.rglob("*")) == before
    thesis.unlink()
    train_dir_module.delete_model(str(tmp_path))
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "export"]
