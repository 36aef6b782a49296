"""Variables that Keras does not track are refused before the first step: they are neither trained nor saved."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from cats_vs_dogs import cvd_models, losses, models, untracked
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.config import ModelSpec
from cats_vs_dogs.utils import UserError


class WithVariable(layers.Layer):
    def __init__(self):
        super().__init__()
        self.scale = tf.Variable(tf.ones([3]), name="scale")

    def call(self, x):
        return x * self.scale


class WithLazyVariable(layers.Layer):
    scale = None

    def call(self, x):
        if self.scale is None:
            self.scale = tf.Variable(tf.ones([3]), name="scale")
        return x * self.scale

    def compute_output_shape(self, shape):
        return shape


class Holder:
    """An object that Keras does not look into."""

    def __init__(self, part):
        self.part = part


class InTrainingOnly(layers.Layer):
    def __init__(self, part):
        super().__init__()
        self.held = Holder(part)

    def call(self, x, training=False):
        return self.held.part(x) if training else x


class WithCounter(layers.Layer):
    def __init__(self):
        super().__init__()
        self.count = tf.Variable(0.0, trainable=False, name="count")

    def call(self, x, training=False):
        if training:
            self.count.assign_add(1.0)
        return x


class WithList(layers.Layer):
    def __init__(self):
        super().__init__()
        self.parts = [layers.Dense(3), {"more": layers.Dense(2)}]
        self.bias = keras.Variable([0.5, 0.5])

    def call(self, x):
        return self.parts[1]["more"](self.parts[0](x)) + self.bias


class WithNoise(layers.Layer):
    def call(self, x, training=False):
        return x + keras.random.normal(keras.ops.shape(x), dtype=x.dtype) if training else x


class WithSeeds(layers.Layer):
    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x, training=False):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds, dtype=x.dtype) if training else x


class Penalty(keras.regularizers.Regularizer):
    def __init__(self):
        self.weight = tf.Variable(1.0, name="weight")

    def __call__(self, x):
        return self.weight * keras.ops.sum(x**2)


class Module(tf.Module):
    def __init__(self):
        self.scale = tf.Variable(tf.ones([3]), name="scale")

    @tf.function
    def __call__(self, x):
        return x * self.scale


OUTSIDE = layers.Dense(3)


def hidden(part):
    """A layer that calls a part, as tutorials write it."""
    return layers.Lambda(lambda x: part(x))


def scaled(variable):
    return layers.Lambda(lambda x: x * variable)


def in_a_branch():
    scale = tf.Variable(tf.ones([3]), name="scale")
    return layers.Lambda(lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: x * scale, lambda: x), lambda shape: shape)


def classifier_with(monkeypatch, layer, label_loss="CrossEntropyLoss", precision="float32"):
    """A checked classifier of a model with the layer that `layer` returns, on the three means of the colours."""

    class OwnModel(models.BaseModel):
        def create_model(self, model_input):
            net = layer()(layers.GlobalAveragePooling2D()(model_input))
            return {"predictions": layers.Dense(1, "sigmoid", dtype="float32")(net)}

    monkeypatch.setattr(cvd_models, "OwnModel", OwnModel, raising=False)
    classifier = Classifier(ModelSpec("OwnModel", {}, label_loss, {}, 4, "area"), precision)
    classifier.check_training()
    return classifier


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (lambda: hidden(layers.Dense(3)), r"kernel of shape \[3, 3\].* line \d+: return layers.Lambda\(lambda x: part"),
        (lambda: hidden(OUTSIDE), r"kernel of shape \[3, 3\]"),
        (lambda: hidden(keras.Sequential([layers.Dense(2)])), r"kernel of shape \[3, 2\]"),
        (lambda: hidden(layers.BatchNormalization(center=False, scale=False)), "moving_mean"),
        (lambda: scaled(tf.Variable([2.0, 2.0, 2.0], name="scale")), r"scale of shape \[3\]"),
        (lambda: scaled(tf.Variable([2.0, 2.0, 2.0], trainable=False)), r"Variable of shape \[3\]"),
        (lambda: scaled(keras.Variable([2.0, 2.0, 2.0], name="scale")), "scale of shape"),
        (in_a_branch, "scale of shape"),
        (WithVariable, r"scale of shape .*test_untracked.py line \d+: return x \* self.scale"),
        (WithLazyVariable, "scale of shape"),
        (WithCounter, r"count of shape \[\].*: self.count.assign_add"),
        (lambda: InTrainingOnly(layers.Dense(3)), "kernel of shape"),
        (lambda: layers.Dense(2, kernel_regularizer=Penalty()), r"weight of shape \[\].*: return self.weight"),
        (lambda: hidden(Module()), "scale of shape"),
        (lambda: hidden(lambda x: keras.random.dropout(x, 0.5)), "seed_generator_state"),  # Random predictions.
    ],
)
def test_a_variable_that_keras_does_not_track(monkeypatch, layer, said):
    with pytest.raises(UserError, match=f"OwnModel with CrossEntropyLoss uses the variable .*{said}"):
        classifier_with(monkeypatch, layer)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Lambda(lambda x: layers.Dense(3)(x)),
        lambda: layers.Lambda(lambda x: x * tf.Variable(tf.ones([3]))),
        lambda: type("Lazy", (WithLazyVariable,), {"compute_output_shape": layers.Layer.compute_output_shape})(),
    ],
)
def test_a_variable_that_is_created_when_a_layer_is_called(monkeypatch, layer):
    with pytest.raises(UserError, match=r"OwnModel.* creates a variable or a layer when it is called \(test_untracked"):
        classifier_with(monkeypatch, layer)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(
    "layer",
    [
        WithList,
        WithSeeds,
        lambda: keras.Sequential([layers.Dense(3), layers.Dropout(0.5), layers.BatchNormalization()]),
        lambda: layers.SpectralNormalization(layers.Dense(3)),
        lambda: hidden(lambda x: x * keras.random.normal([3], seed=1, dtype=x.dtype)),
        lambda: layers.Lambda(lambda x: tf.where(x > 1e38, tf.constant([-np.inf, 0, np.nan], x.dtype), x)),
        lambda: layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 1.0, 1.0]),
    ],
)
def test_what_keras_tracks_is_not_refused(monkeypatch, caplog, layer, precision):
    classifier_with(monkeypatch, layer, precision=precision)
    assert not caplog.text


class AlwaysRandom(layers.Layer):
    def __init__(self):
        super().__init__()
        self.dropout = layers.Dropout(0.5)

    def call(self, x):
        return self.dropout(x, training=True)


class WithTable(layers.Layer):
    def __init__(self):
        super().__init__()
        values = tf.lookup.KeyValueTensorInitializer(tf.constant([0, 1], tf.int64), tf.constant([0.5, 1.5]))
        self.table = tf.lookup.StaticHashTable(values, 1.0)

    def call(self, x):
        return x * self.table.lookup(tf.cast(x > 0, tf.int64))


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (lambda: hidden(lambda x: x + tf.random.normal([3])), r"random predictions \(.* line \d+: .*tf.random.normal"),
        (lambda: hidden(lambda x: tf.map_fn(lambda y: y * tf.random.uniform([]), x)), "random predictions"),
        (AlwaysRandom, r"random predictions \(.* line \d+: return self.dropout\(x, training=True\)\); draw"),
        (WithTable, r"uses a lookup table \(.* line \d+: return x \* self.table"),
        (lambda: hidden(lambda x: tf.ensure_shape(tf.numpy_function(abs, [x], x.dtype), [None, 3])), "uses Python"),
    ],
)
def test_predictions_that_an_export_would_not_repeat(monkeypatch, layer, said):
    with pytest.raises(UserError, match=f"OwnModel with CrossEntropyLoss (makes )?{said}"):
        classifier_with(monkeypatch, layer)


def test_random_numbers_that_evaluation_draws_and_does_not_use_are_no_error(monkeypatch):
    classifier_with(monkeypatch, lambda: hidden(lambda x: (tf.random.normal([3]), x)[1]))


def test_random_numbers_of_training_without_a_saved_state_are_a_warning(monkeypatch, caplog):
    classifier_with(monkeypatch, WithNoise)
    assert "OwnModel with CrossEntropyLoss: random numbers have a state that is not saved (test_untr" in caplog.text


class VariableLoss(losses.BaseLoss):
    def __init__(self):
        self.weight = tf.Variable(1.0, name="weight")

    def calculate_loss(self, predictions, labels):
        return self.weight * tf.reduce_mean(predictions)


class LayerLoss(losses.BaseLoss):
    def __init__(self):
        self.layer = layers.Dense(1)

    def calculate_loss(self, predictions, labels):
        return tf.reduce_mean(self.layer(predictions))


@pytest.mark.parametrize(("loss", "said"), [(VariableLoss, "weight"), (LayerLoss, ".*kernel")])
def test_a_variable_in_a_loss(monkeypatch, loss, said):
    monkeypatch.setattr(losses, loss.__name__, loss, raising=False)
    with pytest.raises(UserError, match=f"OwnModel with {loss.__name__} uses the variable {said} .*test_untracked"):
        classifier_with(monkeypatch, WithList, loss.__name__)


def strided(strides):
    return lambda net: keras.layers.Conv2D(4, 3, strides=strides)(net)


def pooled(size):
    return lambda net: keras.layers.MaxPooling2D(size)(net)


def less_sine(swapped):
    return lambda net: keras.ops.sin(net) - net if swapped else net - keras.ops.sin(net)


def looped(factor):
    def multiply(value):
        return value * factor

    return lambda net: keras.layers.Lambda(lambda images: tf.map_fn(multiply, images))(net)


@pytest.mark.parametrize(
    ("make", "one", "other"),
    [(strided, 1, 2), (pooled, 2, 3), (less_sine, False, True), (looped, 2.0, 3.0)],
    ids=["strides", "window", "order", "inside a loop"],
)
def test_graphs_share_a_number_only_if_they_calculate_the_same(make, one, other):
    def number(value):
        images = keras.Input((12, 12, 3))
        model = keras.Model(images, keras.layers.GlobalAveragePooling2D()(make(value)(images)))
        function = tf.function(model, input_signature=[tf.TensorSpec([None, 12, 12, 3])])
        return untracked.graph_number(function.get_concrete_function().graph, model.variables)

    assert number(one) == number(one) != number(other)
