"""Backbones of keras.applications: building one by name, its preprocessing, freezing, and pretrained weights."""

import inspect
import os
import re
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import keras
import tensorflow as tf

from cats_vs_dogs import weight_files
from cats_vs_dogs.files import explain_error, is_remote
from cats_vs_dogs.path_flags import expand_path
from cats_vs_dogs.utils import UserError, suggest


def build(name: str, image_size: int) -> keras.Model:
    """Returns a backbone with random weights and without its top, the layers that predict ImageNet classes.

    Args:
        name: a function of keras.applications, such as "EfficientNetV2B0".
        image_size: height and width of the input, pixels.

    Raises:
        UserError: if there is no such backbone, or it needs larger images.
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
    """Applies the backbone's own preprocess_input, so that the backbone sees the pixel values it was pretrained on.

    EfficientNetB0 to B7 are an exception. They normalize inside the network, with a mean and variance stored among
    their weights. Keras uses these only when it reads them from its own weights file, not from a checkpoint, and with
    weights="imagenet" it even builds a different network, to work around a mistake in the file
    (https://github.com/tensorflow/tensorflow/issues/49930). Here their Normalization layer stays at its initial value,
    the identity, and this function normalizes instead.

    Args:
        name: the backbone's name.
        images: float32 [batch, height, width, 3] in [-1, 1].

    Returns:
        float32 [batch, height, width, 3], in the range that the backbone expects.
    """
    pixels = (images + 1.0) * 127.5
    if name.startswith("EfficientNetB"):
        return 255.0 * keras.applications.imagenet_utils.preprocess_input(pixels, mode="torch")
    return sys.modules[_function(name).__module__].preprocess_input(pixels)


def split(backbone: keras.Model, trainable_from: str | None) -> tuple[keras.Model | None, keras.Model | None]:
    """Splits a backbone into a first part that is frozen and the rest, which share its layers.

    The first part ends at the last layer before `trainable_from` that everything after it depends on alone: not inside
    of a block with a shortcut.

    Args:
        backbone: the backbone.
        trainable_from: name of the first trainable layer, as `freeze` takes it.

    Returns:
        The two parts; None for a part without layers.
    """
    if trainable_from is None:
        return backbone, None
    operations = backbone.operations  # Inputs before outputs.
    place = {id(tensor): i for i, operation in enumerate(operations) for tensor in _flat(operation.output)}
    first_trainable = 0
    if trainable_from != "all":
        first_trainable = next(i for i, operation in enumerate(operations) if operation.name == trainable_from)
    # For each place, that of the earliest output that an operation after it takes.
    earliest = [len(operations)] * (len(operations) + 1)
    for i in reversed(range(1, len(operations))):
        earliest[i] = min(earliest[i + 1], *(place[id(tensor)] for tensor in _flat(operations[i].input)))
    cuts = [i for i in range(1, first_trainable) if earliest[i + 1] == i]
    if not cuts:
        return None, backbone
    cut = operations[cuts[-1]].output
    return keras.Model(backbone.input, cut), keras.Model(cut, backbone.output)


def _flat(tensors: Any) -> list[keras.KerasTensor]:
    return list(keras.tree.flatten(tensors))


def freeze(backbone: keras.Model, trainable_from: str | None) -> None:
    """Freezes the first layers of a backbone, and its batch norm everywhere.

    Batch norm stays frozen even after `trainable_from`: its averages come from 1.2 million images, and the averages of
    small batches would undo what was learned (https://keras.io/guides/transfer_learning/).

    Args:
        backbone: the backbone to change.
        trainable_from: name of the first trainable layer; "all" trains every layer, None trains no layer.

    Raises:
        UserError: if the backbone has no such layer.
    """
    layers = backbone.layers
    # Names that Keras numbered are of no use: conv2d_7 of one network is conv2d_8 of the next.
    is_named = [weight_files.number_of(type(layer).__name__, [layer.name]) is None for layer in layers]
    names = [layer.name if named else "" for layer, named in zip(layers, is_named, strict=True)]
    if trainable_from is None:
        first = len(layers)
    elif trainable_from == "all":
        first = 0
    elif trainable_from and trainable_from in names:
        first = names.index(trainable_from)
    else:
        # Only the nearest names: a backbone has hundreds of layers.
        nearest = get_close_matches(str(trainable_from), filter(None, names), n=5, cutoff=0.0)
        raise UserError(
            f'--model_params: trainable_from="{trainable_from}": {backbone.name} has no such layer; the nearest names '
            f'are {", ".join(nearest)}; "all" trains every layer, null none'
        )
    for layer in layers[:first]:
        layer.trainable = False
        if isinstance(layer, keras.layers.Dropout):  # Frozen layers get training=True, too.
            layer.rate = 0.0
    for layer in layers[first:]:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


def load_weights(name: str, backbone: keras.Model, weights: str) -> None:
    """Loads pretrained weights into a backbone.

    Args:
        name: the backbone's name.
        backbone: the backbone, as `build` returns it.
        weights: "imagenet" for the weights of keras.applications, which are downloaded once to ~/.keras/models; or the
            path of a .h5, .weights.h5 or .keras file that holds the backbone alone, with its top of 1,000 classes, or
            as a part of another model, see `weight_files.load`. Its pictures may have had another size.

    Raises:
        UserError: if the file does not exist or does not fit, or the download fails.
    """
    if weights == "imagenet":
        source = _download(name, backbone.input_shape[1:])
        for target, value in zip(_loadable(backbone), _loadable(source), strict=True):
            target.assign(value)
        return
    try:
        path = expand_path(str(weights))
    except ValueError as error:
        raise UserError(f"--model_params: weights={weights}: {error}") from error
    _read_file(name, backbone, path)


def _loadable(network: keras.Model) -> list[keras.Variable]:
    """Returns all weights except those of Normalization layers, whose work `preprocess` does."""
    layers = [layer for layer in network.layers if not isinstance(layer, keras.layers.Normalization)]
    return [weight for layer in layers for weight in layer.weights]


def _download(name: str, shape: tuple[int, ...]) -> keras.Model:
    """Returns the backbone with its ImageNet weights, for images of a shape (height, width, 3)."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # Seconds without an answer. Keras itself would wait forever.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns that the weights were trained at 224x224.
            return _function(name)(include_top=False, weights="imagenet", input_shape=shape)
    except Exception as error:
        raise UserError(
            f'--model_params: weights="imagenet": the weights of {name} cannot be downloaded: {error}; download that '
            """file on another machine and give its path: --model_params='{"weights": "/path/to/file.h5"}'; or """
            "take a recipe that needs no weights, such as --recipe=good"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _read_file(name: str, backbone: keras.Model, path: str) -> None:
    """Loads the weights of a file, here or on an object store, into a backbone."""
    where = f"--model_params: weights={path}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            if tf.io.gfile.isdir(path):
                # Folders of object stores end with a slash.
                names = [name.rstrip("/") for name in tf.io.gfile.listdir(path)]
                raise UserError(f"{where}: {weight_files.describe_folder(names)}")
            if not tf.io.gfile.exists(path):
                raise UserError(f'{where}: no such file; give the path of a .h5 file, "imagenet", or null for none')
            local_path = path
            if is_remote(path):
                local_path = os.path.join(folder, os.path.basename(path))
                tf.io.gfile.copy(path, local_path)
        except tf.errors.OpError as error:
            raise UserError(f"{where}: cannot be read: {explain_error(error)}") from error
        weight_files.load(name, backbone, local_path, where)
