"""Maps of where a network looked, for networks whose right map is known."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cats_vs_dogs import models, saliency


def bright_places(nested=False, last_weight=1.0, activation="sigmoid"):
    """Returns a network that says dog (or, with a negative weight, cat) the more, the more of a picture is bright."""
    images = keras.Input((8, 8, 3))
    backbone = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(1, 2, strides=2), keras.layers.ReLU()])
    net = backbone(images) if nested else backbone.layers[1](backbone.layers[0](images))
    net = keras.layers.GlobalAveragePooling2D()(net)
    network = keras.Model(images, keras.layers.Dense(1, activation)(net))
    backbone.layers[0].set_weights([np.ones((2, 2, 3, 1), np.float32), np.zeros(1, np.float32)])
    network.layers[-1].set_weights([np.full((1, 1), last_weight, np.float32), np.zeros(1, np.float32)])
    return network


def pictures(count=1):
    """Returns pictures that are bright in the second row and third column of four times four places."""
    images = np.full((count, 8, 8, 3), -1, np.float32)
    images[:, 2:4, 4:6] = 1
    return tf.constant(images)


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_the_map_shows_what_the_network_looks_at(nested):
    network, expected = bright_places(nested), np.zeros((4, 4))
    expected[1, 2] = 1
    maps = saliency.find_maps(network, pictures(), np.array([True]))
    np.testing.assert_allclose(maps, expected[np.newaxis])


def test_the_map_is_of_what_spoke_for_the_answer():
    are_dogs = np.array([True, False] * 10)  # More than one batch.
    for weight in (1.0, -1.0):
        maps = saliency.find_maps(bright_places(last_weight=weight), pictures(20), are_dogs)
        assert maps.shape == (20, 4, 4)
        np.testing.assert_array_equal(maps.max(axis=(1, 2)), are_dogs if weight > 0 else ~are_dogs)


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_a_network_that_is_very_sure_has_a_map(activation):
    network = bright_places(last_weight=1e6, activation=activation)
    if activation:
        assert network(pictures()).numpy() == 1
    assert saliency.find_maps(network, pictures(), np.array([True])).max() == 1


def test_the_network_is_as_before():
    network = bright_places(nested=True)
    activation, before = network.layers[-1].activation, network(pictures()).numpy()
    saliency.find_maps(network, pictures(), np.array([True]))
    assert network.layers[-1].activation is activation
    np.testing.assert_array_equal(network(pictures()).numpy(), before)
    assert not any("call" in vars(layer) for layer in models.all_layers(network))


def test_two_columns():
    images = keras.Input((8, 8, 3))
    net = keras.layers.Flatten()(keras.layers.Conv2D(4, 3)(images))
    network = keras.Model(images, keras.layers.Dense(2, "softmax")(net))
    noise = tf.constant(np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 3)), tf.float32)
    maps = {dog: saliency.find_maps(network, noise, np.full(3, dog)) for dog in (True, False)}
    assert maps[True].shape == (3, 6, 6) and maps[True].min() == 0
    assert not np.logical_and(maps[True] > 0, maps[False] > 0).any()  # A place speaks for one class or the other.


def test_no_convolution_no_map():
    images = keras.Input((8, 8, 3))
    network = keras.Model(images, keras.layers.Dense(1)(keras.layers.Flatten()(images)))
    assert saliency.find_maps(network, pictures(), np.array([True])) is None
