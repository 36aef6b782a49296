"""What build_model accepts, and its error messages."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from cats_vs_dogs.models import BaseModel, build_model
from cats_vs_dogs.utils import UserError

IMAGES = tf.reshape(tf.linspace(-1.0, 1.0, 2 * 4 * 4 * 3), [2, 4, 4, 3])
LABELS = tf.constant([[1], [0]])


def build(create_model, **params):
    model_class = type("MyModel", (BaseModel,), {"create_model": create_model})
    return build_model(model_class(), 4, 2, "probability", params)


def flat(model_input):
    return keras.layers.Flatten()(model_input)


def test_a_plain_model():
    built = build(lambda self, model_input: {"predictions": keras.layers.Dense(1)(flat(model_input))})
    assert set(built(IMAGES, LABELS, training=True)) == {"predictions"}
    assert len(built.trainable_variables) == len(built.weights) == 2
    assert built.seed_states == []


def test_labels_own_loss_and_regularization_loss():
    def create_model(self, model_input, num_classes, labels, output_layer, is_new, scale=1.0, **params):
        assert (num_classes, output_layer, is_new, params) == (2, "probability", False, {"other": 3})
        net = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(flat(model_input)))
        predictions = keras.layers.Dense(1, "sigmoid", kernel_regularizer="l2")(net)
        error = predictions - ops.cast(labels, "float32")
        own = {"loss": scale * ops.mean(ops.square(error)), "regularization_loss": ops.mean(ops.abs(net))}
        return {"predictions": predictions, **own}

    built = build(create_model, scale=2.0, other=3)
    outputs = built(IMAGES, LABELS, training=False)
    predictions = outputs["predictions"].numpy()
    np.testing.assert_allclose(outputs["loss"], 2 * np.mean((predictions - [[1], [0]]) ** 2), rtol=1e-5)
    np.testing.assert_allclose(predictions, built.network(IMAGES, training=False), atol=2e-6, rtol=0)
    assert outputs["regularization_loss"].shape == ()
    assert len(built.regularizer_losses) == 1
    assert len(built.seed_states) == 1
    assert len(built.weights) == 6  # gamma, beta, moving mean, moving variance, kernel, bias


@pytest.mark.parametrize(
    ("create_model", "said"),
    [
        (lambda self, x: keras.layers.Dense(1)(flat(x)), "must return a dict .* it returned a KerasTensor"),
        (lambda self, x: None, "must return a dict .* it returned a NoneType"),
        (lambda self, x: {"output": flat(x)}, 'the key "predictions"; its keys are: output'),
        (lambda self, x: {"predictions": flat(x)}, r'"predictions" must be .* of shape \[None, 48\]'),
        (lambda self, x: {"predictions": ops.mean(flat(x), axis=1)}, r"of shape \[None\]"),
        (lambda self, x: {"predictions": ops.mean(flat(x)[:, :1], 0, keepdims=True)}, r"of shape \[1, 1\]"),
        (lambda self, x: {"predictions": tf.zeros([2, 1])}, '"predictions" must be a Keras tensor'),
        (lambda self, x: {"predictions": 1}, "it is a int"),
        (
            lambda self, x: {"predictions": keras.layers.Dense(1)(flat(x)), "loss": ops.abs(flat(x))},
            '"loss" must be a scalar Keras tensor',
        ),
        (
            lambda self, x: {"predictions": keras.layers.Dense(1)(flat(x)), "regularization_loss": 0.1},
            "give the layer a kernel_regularizer",
        ),
        (
            lambda self, x: {"predictions": keras.layers.Dense(1)(keras.Input((3,)))},
            '"predictions" must be computed from model_input',
        ),
    ],
)
def test_what_create_model_returns_is_checked(create_model, said):
    with pytest.raises(UserError, match=f"MyModel.create_model.*{said}"):
        build(create_model)


@pytest.mark.parametrize(
    "raw_op",
    [
        lambda x: tf.reshape(x, [-1, 48]),
        lambda x: tf.image.random_flip_left_right(x),
        lambda x: tf.image.per_image_standardization(x),
        lambda x: tf.concat([x, x], 0),
        lambda x: np.asarray(x),
        lambda x: x if x > 0 else -x,
    ],
)
def test_a_raw_op_is_refused_with_the_keras_way(raw_op):
    def create_model(self, model_input):
        net = raw_op(model_input)
        return {"predictions": keras.layers.Dense(1)(flat(net))}

    with pytest.raises(UserError) as error:
        build(create_model)
    said = str(error.value)
    assert said.startswith("MyModel.create_model applies something that is not Keras")
    assert "test_models.py line" in said
    assert "keras.ops" in said and "Lambda" in said and "Porting a 2017 model" in said


def test_vocab_size_is_num_classes():
    def as_in_2017(self, model_input, vocab_size, **unused_params):
        assert vocab_size == 2 and sorted(unused_params) == ["is_new", "labels", "num_classes", "output_layer"]
        return {"predictions": keras.layers.Dense(vocab_size - 1)(flat(model_input))}

    def with_both(self, model_input, num_classes, vocab_size=5):
        assert num_classes == vocab_size == 2
        return {"predictions": keras.layers.Dense(1)(flat(model_input))}

    def with_none(self, model_input, **unused_params):
        assert "vocab_size" not in unused_params
        return {"predictions": keras.layers.Dense(1)(flat(model_input))}

    def by_keyword(self, model_input, *, vocab_size):
        assert vocab_size == 2
        return {"predictions": keras.layers.Dense(1)(flat(model_input))}

    for create_model in (as_in_2017, with_both, with_none, by_keyword):
        build(create_model)
    with pytest.raises(UserError, match='no parameter "vocab_size"'):
        build(as_in_2017, vocab_size=3)


@pytest.mark.parametrize(
    "create_model", [lambda self, x, is_training: 1, lambda self, x, vocab_size, is_training=True, **params: 1]
)
def test_is_training_is_not_a_parameter_any_more(create_model):
    with pytest.raises(UserError, match="MyModel.create_model: remove the parameter is_training; layers know"):
        build(create_model)


def test_an_error_in_the_users_own_code_is_said_in_one_line_with_its_place():
    def create_model(self, model_input):
        raise ValueError("mine")

    with pytest.raises(
        UserError, match=r"MyModel.create_model failed: ValueError: mine \(test_models.py line \d+: raise"
    ):
        build(create_model)


def test_a_line_for_the_user_stays_as_it_is():
    def create_model(self, model_input):
        raise UserError("--model_params: filters=0: must be at least 1")

    with pytest.raises(UserError, match="^--model_params: filters=0: must be at least 1$"):
        build(create_model)


def test_an_unknown_parameter_is_named():
    def create_model(self, model_input, num_classes=2, num_layers=1):
        return {"predictions": keras.layers.Dense(1)(flat(model_input))}

    with pytest.raises(
        UserError, match='--model_params: MyModel.create_model has no parameter "layers"; .* num_layers'
    ):
        build(create_model, layers=3)
    with pytest.raises(UserError, match='no parameter "num_classes"'):
        build(create_model, num_classes=3)


def test_a_model_without_create_model_or_weights():
    with pytest.raises(UserError, match="BaseModel has no create_model of its own"):
        build_model(BaseModel(), 4, 2, "probability", {})
    with pytest.raises(UserError, match="the model has no weights to train"):
        build(lambda self, x: {"predictions": ops.mean(flat(x), axis=1, keepdims=True)})
