"""Fast batch norm calculates what Keras' batch norm does."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cats_vs_dogs.batch_norm import FastBatchNormalization


def trained(layer_class, images):
    """Returns the outputs, the gradients and the moving averages of a layer after two batches, then its prediction."""
    layer = layer_class(momentum=0.7)
    layer.build(images.shape)
    layer.gamma.assign(np.linspace(0.5, 2.0, images.shape[-1]))
    layer.beta.assign(np.linspace(-1.0, 1.0, images.shape[-1]))
    layer(images - 1.0, training=True)
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = layer(images, training=True)
        loss = tf.reduce_sum(outputs**3)
    gradients = tape.gradient(loss, [images, layer.gamma.value, layer.beta.value])
    averages = [layer.moving_mean.numpy(), layer.moving_variance.numpy()]
    return [outputs, *gradients, *averages, layer(images, training=False)]


@pytest.mark.parametrize("shape", [(4, 5, 3, 6), (3, 1, 1, 2)], ids=["pictures", "single_pixels"])
def test_outputs_gradients_and_averages_are_those_of_keras(shape):
    images = tf.random.stateless_normal(shape, [1, 2], mean=3.0, stddev=2.0)
    expected = trained(keras.layers.BatchNormalization, images)
    for one, other in zip(trained(FastBatchNormalization, images), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3 * np.abs(other).max())


def test_a_frozen_layer_keeps_its_averages_and_uses_them():
    layer = FastBatchNormalization()
    layer.trainable = False
    images = tf.random.stateless_normal([4, 3, 3, 2], [1, 2], mean=3.0)
    np.testing.assert_allclose(layer(images, training=True), images, rtol=1e-3)
    np.testing.assert_array_equal(layer.moving_mean, [0.0, 0.0])


def test_reduced_precision_is_that_of_the_outputs_only():
    layer = FastBatchNormalization(dtype="mixed_bfloat16")
    images = tf.cast(tf.random.stateless_normal([4, 3, 3, 2], [1, 2], mean=3.0), tf.bfloat16)
    assert layer(images, training=True).dtype == tf.bfloat16
    assert layer.moving_mean.dtype == "float32"
