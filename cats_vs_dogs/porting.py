"""What to write instead of a name of 2017. The rows are those of docs/porting.en.md; error messages quote them.

Imports nothing heavy, so that errors can be explained before TensorFlow is imported.
"""

import contextlib
import re

from cats_vs_dogs.utils import UserError, place_of, user_code_error

PAGE = "docs/porting.en.md"

_SCALE = "a layer of your own that calls self.add_weight, such as Scale below"
_PARAMETER = "a parameter of create_model, which --model_params sets"
_BATCH_NORM = "keras.layers.BatchNormalization(momentum=0.999, scale=False)(net)"
_FLIP = 'keras.layers.RandomFlip("horizontal")(net)'
_BACKBONE = "keras.applications.VGG16(include_top=False, weights=None, input_shape=net.shape[1:])(net)"

# Names of 2017, and what to write in a model. A name may be followed by another part, as in tf.layers.separable_conv2d;
# the longest name wins.
MODELS = {
    "slim.conv2d": 'keras.layers.Conv2D(64, 3, padding="same", activation="relu")(net)',
    "slim.max_pool2d": "keras.layers.MaxPooling2D(2)(net)",
    "slim.avg_pool2d": "keras.layers.AveragePooling2D(2)(net)",
    "slim.batch_norm": _BATCH_NORM,
    "slim.dropout": "keras.layers.Dropout(0.2)(net)",
    "slim.fully_connected": 'keras.layers.Dense(128, activation="relu")(net)',
    "slim.flatten": "keras.layers.Flatten()(net)",
    "slim.repeat": 'for _ in range(2): net = keras.layers.Conv2D(64, 3, padding="same", activation="relu")(net)',
    "slim.arg_scope": 'conv = functools.partial(keras.layers.Conv2D, padding="same", activation="relu")',
    "slim.l2_regularizer": "keras.regularizers.L2(0.0005 / 2)",
    "slim.nets": _BACKBONE,
    "slim": "import keras, then the layers of this table",
    "tf.contrib": "import keras, then the layers of this table",
    "tf.layers.conv2d": 'keras.layers.Conv2D(64, 3, activation="relu")(net)',
    "tf.layers.max_pooling2d": "keras.layers.MaxPooling2D(2)(net)",
    "tf.layers.dense": 'keras.layers.Dense(128, activation="relu")(net)',
    "tf.layers.batch_normalization": "keras.layers.BatchNormalization()(net)",
    "tf.layers.dropout": "keras.layers.Dropout(0.2)(net)",
    "tf.layers.flatten": "keras.layers.Flatten()(net)",
    "tf.layers": "the class of that name in keras.layers, such as keras.layers.SeparableConv2D(64, 3)(net)",
    "tf.nn.conv2d": 'keras.layers.Conv2D(64, 3, padding="same")(net)',
    "tf.nn.bias_add": 'keras.layers.Conv2D(64, 3, padding="same")(net)',
    "tf.nn.max_pool": 'keras.layers.MaxPooling2D(2, padding="same")(net)',
    "tf.nn.avg_pool": 'keras.layers.AveragePooling2D(2, padding="same")(net)',
    "tf.nn.dropout": "keras.layers.Dropout(0.2)(net)",
    "keep_prob": "keras.layers.Dropout(0.2)(net)",
    "tf.matmul": "keras.layers.Dense(128)(net)",
    "tf.nn.xw_plus_b": "keras.layers.Dense(128)(net)",
    "tf.nn.local_response_normalization": "keras.layers.Lambda(tf.nn.local_response_normalization)(net)",
    "tf.nn.lrn": "keras.layers.Lambda(tf.nn.local_response_normalization)(net)",
    "tf.nn.l2_loss": "keras.layers.Dense(128, kernel_regularizer=keras.regularizers.L2(0.0005 / 2))(net)",
    "tf.nn.relu": "keras.ops.relu(net)",
    "tf.nn.sigmoid": "keras.ops.sigmoid(net)",
    "tf.nn.softmax": "keras.ops.softmax(net)",
    "tf.log": "keras.ops.log(net)",
    "tf.reshape": "keras.ops.reshape(net, (-1, 8, 8, 3))",
    "tf.concat": "keras.ops.concatenate([a, b], axis=3)",
    "tf.pack": "keras.ops.stack([a, b])",
    "tf.reduce_mean": "keras.ops.mean(net, axis=(1, 2), keepdims=True)",
    "tf.reduce_sum": "keras.ops.sum(net, axis=(1, 2))",
    "tf.reduce_max": "keras.ops.max(net, axis=(1, 2))",
    "keep_dims": "keras.ops.mean(net, axis=(1, 2), keepdims=True)",
    "reduction_indices": "keras.ops.sum(net, axis=(1, 2))",
    "tf.to_float": 'keras.ops.cast(net, "float32")',
    "tf.cast": 'keras.ops.cast(net, "float32")',
    "tf.to_int32": 'keras.ops.cast(net, "int32")',
    "tf.to_int64": 'keras.ops.cast(net, "int64")',
    "tf.argmax": "keras.ops.argmax(net, axis=-1)",
    "dimension": "keras.ops.argmax(net, axis=-1)",
    "tf.div": "a / b",
    "tf.mul": "a * b",
    "tf.sub": "a - b",
    "tf.map_fn": "keras.layers.Lambda(lambda images: tf.map_fn(f, images))(net)",
    "tf.random_normal": "keras.layers.GaussianNoise(0.1)(net)",
    "tf.random_crop": "keras.layers.CenterCrop(28, 28)(keras.layers.RandomCrop(28, 28)(net))",
    "tf.image.random_flip_left_right": _FLIP,
    "tf.image.random_brightness": "keras.layers.RandomBrightness(0.1, value_range=(-1, 1))(net)",
    "tf.image.random_contrast": "keras.layers.RandomContrast(0.2, value_range=(-1, 1))(net)",
    "tf.image.random_saturation": (
        "keras.layers.Rescaling(2, -1)(keras.layers.RandomSaturation((0.444, 0.545), value_range=(0, 1))"
        "(keras.layers.Rescaling(0.5, 0.5)(net)))"
    ),
    "tf.image.per_image_standardization": "keras.layers.Lambda(tf.image.per_image_standardization)(net)",
    "tf.image.per_image_whitening": "keras.layers.Lambda(tf.image.per_image_standardization)(net)",
    "tf.image.rgb_to_grayscale": "keras.ops.image.rgb_to_grayscale(net)",
    "tf.image.resize_image_with_crop_or_pad": (
        "keras.layers.Lambda(lambda images: tf.image.resize_with_crop_or_pad(images, 28, 28))(net)"
    ),
    "tf.image.resize_bilinear": "keras.layers.Resizing(64, 64)(net)",
    "tf.image.resize_images": "keras.layers.Resizing(64, 64)(net)",
    "tf.losses": "keras.ops.mean(keras.losses.binary_crossentropy(labels, predictions))",
    "tf.Variable": _SCALE,
    "tf.get_variable": _SCALE,
    "tf.variable_scope": 'nothing; a layer can have a name: keras.layers.Dense(128, name="fc1")(net)',
    "tf.truncated_normal_initializer": (
        "keras.layers.Conv2D(64, 3, kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.01))(net)"
    ),
    "weights_initializer": (
        "keras.layers.Conv2D(64, 3, kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.01))(net)"
    ),
    "get_shape": "net.shape",
    "set_shape": "nothing; net.shape is known",
    "tf.placeholder": "nothing; the kit calls create_model with model_input",
    "tf.Session": "nothing; the kit runs the model",
    "tf.get_collection": "nothing; layers update their averages and add their regularizers by themselves",
    "tf.add_to_collection": "nothing; layers update their averages and add their regularizers by themselves",
    "tf.GraphKeys": "nothing; layers update their averages and add their regularizers by themselves",
    "tf.app.flags": _PARAMETER,
    "tf.flags": _PARAMETER,
    "FLAGS": _PARAMETER,
    "tf.gfile": "tf.io.gfile.exists(path)",
    "tf.summary": "nothing; TensorBoard shows the weights and the pictures",
    "tf.logging": "print(net.shape)",
    "xrange": "range(3)",
    "print": 'print("text")',
}

_LABELS = "tf.cast(labels, tf.float32)"
_SIGMOID = f"tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels={_LABELS}, logits=predictions))"
_SOFTMAX = "tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels=tf.one_hot(labels[:, 0], 2), logits=logits))"

# The same for a loss. What is missing here is as in MODELS.
LOSSES = {
    "tf.log": "tf.math.log(predictions)",
    "tf.to_float": _LABELS,
    "labels * predictions": _LABELS,
    "tf.to_int32": "tf.cast(labels, tf.int32)",
    "tf.to_int64": "tf.cast(labels, tf.int64)",
    "tf.argmax": "tf.argmax(predictions, axis=-1)",
    "dimension": "tf.argmax(predictions, axis=-1)",
    "tf.div": "a / b",
    "tf.reduce_mean": "tf.reduce_mean(net, axis=1, keepdims=True)",
    "tf.reduce_sum": "tf.reduce_sum(net, axis=1)",
    "keep_dims": "tf.reduce_mean(net, axis=1, keepdims=True)",
    "reduction_indices": "tf.reduce_sum(net, axis=1)",
    "tf.concat": "tf.concat([predictions, 1 - predictions], axis=1)",
    "tf.losses.log_loss": "tf.reduce_mean(keras.losses.binary_crossentropy(labels, predictions))",
    "tf.losses.sigmoid_cross_entropy": _SIGMOID,
    "tf.losses.softmax_cross_entropy": _SOFTMAX,
    "tf.losses.sparse_softmax_cross_entropy": (
        "tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels[:, 0], logits=logits))"
    ),
    "tf.losses.mean_squared_error": f"tf.reduce_mean(tf.square(predictions - {_LABELS}))",
    "tf.losses.absolute_difference": f"tf.reduce_mean(tf.abs(predictions - {_LABELS}))",
    "tf.losses.hinge_loss": f"tf.reduce_mean(tf.maximum(0.0, 1 - (2 * {_LABELS} - 1) * predictions))",
    "tf.losses.huber_loss": "tf.reduce_mean(keras.losses.huber(labels, predictions))",
    "tf.nn.softmax_cross_entropy_with_logits_v2": (
        "tf.nn.softmax_cross_entropy_with_logits(labels=tf.one_hot(labels[:, 0], 2), logits=logits)"
    ),
    "tf.losses": "tf.reduce_mean of the function in keras.losses or tf.nn",
    "tf.contrib.losses": "tf.reduce_mean of the function in keras.losses or tf.nn",
    "slim.losses": "tf.reduce_mean of the function in keras.losses or tf.nn",
    "tf.sparse_to_dense": "tf.one_hot(labels[:, 0], 2)",
    "tf.nn.dropout": "tf.nn.dropout(net, rate=0.2)",
    "keep_prob": "tf.nn.dropout(net, rate=0.2)",
    "FLAGS": "a parameter of calculate_loss, which --loss_params sets",
    "tf.flags": "a parameter of calculate_loss, which --loss_params sets",
    "tf.app.flags": "a parameter of calculate_loss, which --loss_params sets",
}

_NO_ATTRIBUTE = re.compile(
    r"module '(?:tensorflow|keras\._tf_keras)[\w.]*' has no attribute '(\w+)'|"
    r"cannot import name '(\w+)' from 'tensorflow"
)
_NO_NAME = re.compile(r"name '(\w+)' is not defined|object has no attribute '([gs]et_shape)'")
_NO_ARGUMENT = re.compile(r"unexpected keyword argument '?(\w+)")
_IMPORTS = {"tf": "import tensorflow as tf", "np": "import numpy as np"} | {
    name: f"import {name}" for name in ("functools", "keras", "math", "os")
}
_DOTTED = re.compile(r"\b(?:tf|slim|tensorflow)\.[\w.]*\w")


def explain(what: str, error: Exception, is_loss: bool = False) -> UserError:
    """Says in one line where the user's own code failed, why, and what to write instead of a name of 2017.

    Args:
        what: the function that was called, such as "MyModel.create_model".
        error: what it raised.
        is_loss: see `advice`.

    Returns:
        The error to raise instead.
    """
    instead = advice(error, is_loss)
    advised = f"; {instead}; see {PAGE}" if instead else ""
    return UserError(f"{user_code_error(what, error)}{advised}")


def advice(error: Exception, is_loss: bool = False) -> str:
    """Returns what to write instead of the name of 2017 that an error comes from.

    Args:
        error: what a model, a loss or the import of their file raised, perhaps while TensorFlow traced it.
        is_loss: whether it comes from a loss, which gets tensors with values, not Keras tensors.

    Returns:
        Text such as "tf.log: write keras.ops.log(net)"; "" if the error comes from something else.
    """
    if isinstance(error, UserError):
        return ""
    not_imported = re.search(r"name '(\w+)' is not defined", str(error))
    if not_imported and not_imported[1] in _IMPORTS:
        return f"write {_IMPORTS[not_imported[1]]} at the top of the file"
    rows = MODELS | LOSSES if is_loss else MODELS
    is_missing = "has no attribute" in str(error)
    for name in _suspects(error):
        row = _row(name, rows)
        instead = rows[row].replace(" below", " there") if row else _renamed(name, is_loss, is_missing)
        if instead.startswith("nothing; "):
            return f"{row}: remove it; {instead.removeprefix('nothing; ')}"
        if instead:
            return f"{row or name}: write {instead}"
    return ""


def _suspects(error: Exception) -> list[str]:
    """Returns the names that an error may come from, the likeliest first."""
    message = str(error)
    line = error.text or "" if isinstance(error, SyntaxError) else place_of(error)
    dotted = [re.sub(r"^tensorflow\.", "tf.", name) for name in _DOTTED.findall(line)]
    if isinstance(error, SyntaxError):
        return ["print"] if "print" in message else []
    if isinstance(error, ModuleNotFoundError):
        return [re.sub(r"^tensorflow\.", "tf.", error.name or "")]
    if found := _NO_ATTRIBUTE.search(message):
        missing = found[1] or found[2]
        return [name for name in dotted if missing in name.split(".")] or [f"tf.{missing}"]
    if found := _NO_NAME.search(message):
        missing = found[1] or found[2]
        return [name for name in dotted if name.startswith(f"{missing}.")] + [missing]
    if found := _NO_ARGUMENT.search(message):
        return [found[1], *dotted]
    if "does not match type int32" in message and "label" in line:
        return ["labels * predictions"]
    return dotted if "KerasTensor" in message else []


def _row(name: str, rows: dict[str, str]) -> str:
    """Returns the name of the row that is about a name: the name itself, or the longest of its beginnings; else ""."""
    while name and name not in rows:
        name = name.rpartition(".")[0]
    return name


def _renamed(name: str, is_loss: bool, is_missing: bool) -> str:
    """Returns what to write instead of a function that has no row: its name in Keras, or its new one in TensorFlow.

    Args:
        name: a name such as "tf.exp".
        is_loss: see `advice`.
        is_missing: whether TensorFlow 2 lacks the name; False if it only refuses a Keras tensor.

    Returns:
        Code; "" if the name is not of TensorFlow.
    """
    if not name.startswith("tf."):
        return ""
    import keras

    function = name.rpartition(".")[2]
    if not is_loss and hasattr(keras.ops, function):
        return f"keras.ops.{function}"
    new_name = name
    with contextlib.suppress(ImportError):
        from tensorflow.tools.compatibility.renames_v2 import renames

        new_name = renames.get(name, name)
    if is_missing and new_name == name:
        return ""
    if is_loss or new_name.startswith("tf.random."):  # Random numbers are not made from a Keras tensor.
        return new_name
    return f"keras.layers.Lambda(lambda x: {new_name}(x, ...))(net)"
