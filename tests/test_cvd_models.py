"""The kit's models: numbers of parameters, formulas, kinds of output."""

import inspect

import numpy as np
import pytest
import tensorflow as tf

from cats_vs_dogs import cvd_models, models
from cats_vs_dogs.classifier import seeded

# The number of parameters of every model in cvd_models.py, for images of 32x32 pixels.
NUM_PARAMETERS = {
    "LogisticModel": 32 * 32 * 3 + 1,
    "MoeModel": 32 * 32 * 3 * (3 + 2) + 2,  # three gates without bias, two experts with
    # Convolutions (stem; a block; three blocks with shortcuts that double the channels), batch norm, the last layer.
    "ConvNetModel": 27 * 32
    + 9 * 2 * 32**2
    + (2 + 9 * (2 + 4)) * (32**2 + 64**2 + 128**2)
    + 4 * (3 * 32 + 3 * (64 + 128 + 256))
    + 257,
    "PretrainedModel": 3228864 + 1024 + 1,  # MobileNet's, from Keras' documentation, and the last layer's
}
PARAMS = {"PretrainedModel": {"backbone": "MobileNet", "weights": None}}


def build(name, image_size=32, output_layer="probability", **params):
    params = PARAMS.get(name, {}) | params
    with seeded(1):
        return models.build_model(getattr(cvd_models, name)(), image_size, 2, output_layer, params)


def test_no_model_is_forgotten_here():
    classes = [value for value in vars(cvd_models).values() if inspect.isclass(value)]
    assert {one.__name__ for one in classes if issubclass(one, models.BaseModel)} == set(NUM_PARAMETERS)


@pytest.mark.parametrize("name", NUM_PARAMETERS)
def test_number_of_parameters(name):
    assert sum(np.prod(weight.shape) for weight in build(name).weights) == NUM_PARAMETERS[name]


def test_logistic_model_and_its_regularizer():
    built = build("LogisticModel", image_size=2, l2_penalty=0.5)
    kernel, bias = np.linspace(-1, 1, 12)[:, None], np.array([0.25])
    for variable, value in zip(built.weights, (kernel, bias), strict=True):
        variable.assign(value)
    images = np.random.default_rng(0).uniform(-1, 1, (3, 2, 2, 3)).astype(np.float32)
    expected = 1 / (1 + np.exp(-(images.reshape(3, 12) @ kernel + 0.25)))
    np.testing.assert_allclose(built.network(images), expected, rtol=1e-5)
    np.testing.assert_allclose(built.regularizer_losses, [0.5 * np.sum(kernel**2) / 2], rtol=1e-6)  # as slim's


def test_moe_model_is_a_mixture_with_a_dummy_expert():
    built = build("MoeModel", image_size=2, num_mixtures=3)
    weights = {weight.path: weight.numpy() for weight in built.weights}
    images = np.random.default_rng(0).uniform(-1, 1, (5, 2, 2, 3)).astype(np.float32)
    pixels = images.reshape(5, 12)
    gates = np.exp(pixels @ weights["gates/kernel"])
    gates /= gates.sum(axis=1, keepdims=True)
    experts = 1 / (1 + np.exp(-(pixels @ weights["experts/kernel"] + weights["experts/bias"])))
    assert gates.shape == (5, 4) and experts.shape == (5, 3)
    expected = np.sum(gates[:, :3] * experts, axis=1, keepdims=True)
    np.testing.assert_allclose(built.network(images), expected, rtol=1e-5)
    assert len(built.regularizer_losses) == 2


@pytest.mark.parametrize("name", NUM_PARAMETERS)
@pytest.mark.parametrize(("output_layer", "columns"), [("probability", 1), ("score", 1), ("logits", 2)])
def test_kinds_of_output(name, output_layer, columns):
    predictions = build(name, output_layer=output_layer).network(tf.zeros([3, 32, 32, 3]))
    assert predictions.shape == (3, columns)


@pytest.mark.parametrize("image_size", [32, 33, 64])
def test_conv_net_takes_any_size_and_can_be_wider_and_deeper(image_size):
    images = tf.random.stateless_uniform([2, image_size, image_size, 3], [1, 2], -1, 1)
    predictions = build("ConvNetModel", image_size, filters=4, num_blocks=2).network(images)
    assert predictions.shape == (2, 1) and np.all((predictions > 0) & (predictions < 1))
    shapes = [
        layer.output.shape
        for layer in build("ConvNetModel", 64, filters=4).network.layers
        if layer.name.startswith("add")
    ]
    assert shapes == [(None, 16, 16, 4), (None, 8, 8, 8), (None, 4, 4, 16), (None, 2, 2, 32)]


def test_kinds_of_output_of_the_mixture_agree():
    images = tf.random.stateless_uniform([4, 2, 2, 3], [1, 2], -1, 1)
    probability, score, logits = (build("MoeModel", 2, kind) for kind in ("probability", "score", "logits"))
    for other in (score, logits):
        for target, source in zip(other.weights, probability.weights, strict=True):
            target.assign(source)
    p = probability.network(images).numpy()
    np.testing.assert_allclose(score.network(images), 2 * p - 1, atol=4e-6, rtol=0)
    np.testing.assert_allclose(tf.nn.softmax(logits.network(images))[:, 1:], p, atol=2e-6, rtol=0)
