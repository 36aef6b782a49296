"""Where a network looked: for each picture, a map of the places that spoke for its answer.

The method is HiResCAM (Draelos and Carin 2020, https://arxiv.org/abs/2011.08891), a variant of Grad-CAM (Selvaraju et
al. 2017, https://arxiv.org/abs/1610.02391). The last feature map is multiplied by the gradient of the answer with
respect to it, summed over channels, and cut off at 0. Where a network ends with average pooling and a dense layer, as
the kit's do, both methods give the same map.
"""

import contextlib
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from cats_vs_dogs import models

_BATCH_SIZE = 16
_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)


def find_maps(network: keras.Model, images: tf.Tensor, are_dogs: np.ndarray) -> np.ndarray | None:
    """Returns where a network looked.

    Args:
        network: from pictures to predictions, such as `BuiltModel.network`. It may have models inside it.
        images: float32 [n, size, size, 3] in [-1, 1].
        are_dogs: bool [n], what the network said. The map shows what spoke for it.

    Returns:
        float32 [n, height, width] in [0, 1], as large as the network's last feature map. The largest value of a map is
        1, unless nothing spoke for the answer: then all are 0. None if the network has no convolution.
    """

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, *images.shape[1:]]), tf.TensorSpec([None])])
    def maps_of(images: tf.Tensor, signs: tf.Tensor) -> tf.Tensor | None:
        with _recorded_calls(network) as calls, _without_last_activation(network):
            predictions = network(images, training=False)
        features = _last_feature_map(calls)
        if features is None:
            return None
        answers = predictions[:, -1] - predictions[:, 0] if predictions.shape[1] > 1 else predictions[:, 0]
        (gradients,) = tf.gradients(signs * answers, features, unconnected_gradients="zero")
        maps = tf.nn.relu(tf.reduce_sum(gradients * features, axis=-1))
        return tf.math.divide_no_nan(maps, tf.reduce_max(maps, axis=(1, 2), keepdims=True))

    signs = np.where(are_dogs, 1.0, -1.0).astype(np.float32)
    starts = range(0, len(images), _BATCH_SIZE)
    maps = [maps_of(images[start : start + _BATCH_SIZE], signs[start : start + _BATCH_SIZE]) for start in starts]
    return None if maps[0] is None else np.concatenate(maps)


def _last_feature_map(calls: list[tuple[keras.Layer, tf.Tensor]]) -> tf.Tensor | None:
    """Returns the output of the last layer that keeps places apart; None if there is no convolution before it."""
    features = None
    for layer, output in calls:
        shape = getattr(output, "shape", tf.TensorShape(None))  # Some layers return several tensors.
        has_places = shape.rank == 4 and shape[1:3] != (1, 1)
        if has_places and (features is not None or isinstance(layer, _CONVOLUTIONS)):
            features = output
    return features


@contextlib.contextmanager
def _recorded_calls(network: keras.Model) -> Iterator[list[tuple[keras.Layer, tf.Tensor]]]:
    """Yields a list that gets each layer with its output when it is called inside the block.

    A Keras model that ends at a layer's output cannot be built if the layer is part of a model inside the network, such
    as a backbone.
    """
    calls: list[tuple[keras.Layer, tf.Tensor]] = []

    def recording(layer: keras.Layer, call: Callable) -> Callable:
        def call_and_record(*args, **kwargs):
            output = call(*args, **kwargs)
            calls.append((layer, output))
            return output

        return call_and_record

    layers = {id(layer): layer for layer in models.all_layers(network) if not hasattr(layer, "layers")}
    for layer in layers.values():
        layer.call = recording(layer, layer.call)
    try:
        yield calls
    finally:
        for layer in layers.values():
            del layer.call  # That of its class is back.


@contextlib.contextmanager
def _without_last_activation(network: keras.Model) -> Iterator[None]:
    """Removes a sigmoid or softmax at the end of a network inside the block: where it is sure, its gradient is 0."""
    last = network.output._keras_history.operation
    activation = getattr(last, "activation", None)
    if activation not in (keras.activations.sigmoid, keras.activations.softmax):
        yield
        return
    last.activation = keras.activations.linear
    try:
        yield
    finally:
        last.activation = activation
