"""Backbones of keras.applications: one by its name, the pixels that it takes, and its ImageNet weights."""

import inspect
import os
import re
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable
from difflib import get_close_matches

import keras
import tensorflow as tf

from cats_vs_dogs.files import explain_error, is_remote
from cats_vs_dogs.utils import UserError, suggest


def build(name: str, image_size: int) -> keras.Model:
    """Returns a backbone without its top, with random weights.

    Args:
        name: a function of keras.applications, such as "EfficientNetV2B0".
        image_size: height and width of the input, pixels.

    Raises:
        UserError: if there is no such backbone, or the image is too small for it.
    """
    function = _function(name)
    try:
        return function(include_top=False, weights=None, input_shape=(image_size, image_size, 3))
    except ValueError as error:
        smallest = re.search(r"at least\s+(\d+)\s*x", str(error))
        if not smallest:
            raise
        raise UserError(
            f"--image_size={image_size}: {name} takes pictures of at least {smallest[1]}x{smallest[1]} pixels; give "
            f"--image_size={smallest[1]} or more, or another backbone"
        ) from error


def _function(name: str) -> Callable[..., keras.Model]:
    functions = dict(inspect.getmembers(keras.applications, inspect.isfunction))
    if name not in functions:
        raise UserError(
            f'--model_params: backbone="{name}": no such function in keras.applications'
            f"{suggest(str(name), sorted(functions))}"
        )
    return functions[name]


def preprocess(name: str, images: keras.KerasTensor) -> keras.KerasTensor:
    """Brings images to what a backbone takes, as the preprocess_input of its family does, if it has no layers for that.

    EfficientNetB0 to B7 keep the mean and variance of pixels among their weights. Keras calculates with those only if
    it read them from its own kind of file, not from a checkpoint, and builds another network for weights="imagenet"
    than for others, to mend a mistake in the file (https://github.com/tensorflow/tensorflow/issues/49930). So here
    their Normalization stays what it is at first, the identity, and its work is done before.

    Args:
        name: of the backbone.
        images: float32 [batch, height, width, 3] in [-1, 1].

    Returns:
        float32 [batch, height, width, 3].
    """
    pixels = (images + 1.0) * 127.5
    if name.startswith("EfficientNetB"):
        return 255.0 * keras.applications.imagenet_utils.preprocess_input(pixels, mode="torch")
    return sys.modules[_function(name).__module__].preprocess_input(pixels)


def freeze(backbone: keras.Model, trainable_from: str | None) -> None:
    """Makes layers of a backbone trainable or not.

    Batch norm stays as it is even behind `trainable_from`: its averages are of 1.2 million pictures, and those of small
    batches would undo what was learned (https://keras.io/guides/transfer_learning/).

    Args:
        backbone: will be changed.
        trainable_from: name of the first layer that is trained; "all": all are; None: none is.

    Raises:
        UserError: if there is no such layer.
    """
    layers = backbone.layers
    names = ["" if _is_numbered(layer) else layer.name for layer in layers]
    if trainable_from is None:
        first = len(layers)
    elif trainable_from == "all":
        first = 0
    elif trainable_from and trainable_from in names:
        first = names.index(trainable_from)
    else:
        nearest = get_close_matches(str(trainable_from), filter(None, names), n=5, cutoff=0.0)
        raise UserError(
            f'--model_params: trainable_from="{trainable_from}": {backbone.name} has no such layer; the nearest names '
            f'are {", ".join(nearest)}; "all" trains all of it, null nothing'
        )
    for layer in layers[:first]:
        layer.trainable = False
        if isinstance(layer, keras.layers.Dropout):  # It would make noise: a frozen layer, too, is told `training`.
            layer.rate = 0.0
    for layer in layers[first:]:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


def _is_numbered(layer: keras.Layer) -> bool:
    """Whether Keras made up a layer's name, such as conv2d_7; it is another one in the next network of a process."""
    return re.sub(r"_\d+$", "", layer.name).replace("_", "") == type(layer).__name__.lower()


def load_weights(name: str, backbone: keras.Model, weights: str) -> None:
    """Loads weights into a backbone.

    Args:
        name: of the backbone.
        backbone: built by that name.
        weights: "imagenet": those of keras.applications, downloaded once to ~/.keras/models; or the path of a file such
            as those, or of what `save_weights` writes, with the top of 1,000 classes or without it.

    Raises:
        UserError: if there is no such file, it does not fit, or it cannot be downloaded.
    """
    source = _pretrained(name, backbone.input_shape[1:]) if weights == "imagenet" else _read(name, backbone, weights)
    for target, value in zip(_loadable(backbone), _loadable(source), strict=False):  # The top comes last.
        target.assign(value)


def _loadable(network: keras.Model) -> list[keras.Variable]:
    """All weights but those that `preprocess` stands in for."""
    layers = [layer for layer in network.layers if not isinstance(layer, keras.layers.Normalization)]
    return [weight for layer in layers for weight in layer.weights]


def _pretrained(name: str, shape: tuple[int, ...]) -> keras.Model:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # Seconds without an answer; Keras itself would wait for ever.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # That the weights were made at 224x224.
            return _function(name)(include_top=False, weights="imagenet", input_shape=shape)
    except Exception as error:
        raise UserError(
            f'--model_params: weights="imagenet": the weights of {name} cannot be had: {error}; fetch that file with '
            'another machine and give its path, "weights": "/path/to/file.h5"'
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _read(name: str, backbone: keras.Model, path: str) -> keras.Model:
    where = f"--model_params: weights={path}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
                raise UserError(f'{where}: no such file; give the path of a .h5 file, "imagenet", or null for none')
            if is_remote(path):
                path = os.path.join(folder, os.path.basename(path))
                tf.io.gfile.copy(where.partition("=")[2], path)
        except tf.errors.OpError as error:
            raise UserError(f"{where}: cannot be read: {explain_error(error)}") from error
        reasons = []
        for top in ({"include_top": False, "input_shape": backbone.input_shape[1:]}, {"include_top": True}):
            network = _function(name)(weights=None, **top)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # One for each layer that is not in the file; then it raises.
                    network.load_weights(path)
                return network
            except Exception as error:  # Of many kinds.
                reasons.append(str(error).strip().partition("\n")[0])
    raise UserError(f"{where}: cannot be loaded into {name}, nor with its top: {reasons[0]}")
