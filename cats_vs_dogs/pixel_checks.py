"""Finds layers that expect pixels of another range than they get, such as 0 to 255, and so ruin the pictures.

They raise no error: a layer that clips to 0 to 255 makes half of the values in [-1, 1] black, and only in training.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf
from absl import logging

_NUM_PICTURES = 8
_FLAT = 0.05  # Pictures whose values differ by less are flat for a network: [-1, 1] divided by 255 is 0.008 wide.
_MIXERS = ("CutMix", "MixUp")  # Layers that mix the pictures of a batch.


@dataclasses.dataclass(frozen=True)
class _Call:
    """What a layer or an operation was given and returned when pictures with values in [-1, 1] passed through.

    Attributes:
        layer: a layer, or an operation such as a division.
        inputs: float32 [batch, height, width, 3].
        outputs: float32 array of any shape.
    """

    layer: keras.Operation
    inputs: np.ndarray
    outputs: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.layer.name} ({type(self.layer).__name__})"


def warn(network: keras.Model, image_size: int, what: str) -> None:
    """Logs a warning for each layer that ruins pictures because it expects another range of values.

    It runs the network on a few pictures, in training mode, and compares what each layer gets with what it expects. The
    network stays as it is.

    Args:
        network: from images, float32 [batch, size, size, 3] in [-1, 1], to predictions.
        image_size: height and width of the pictures, pixels.
        what: the function that made the network, such as "MyModel.create_model".
    """
    try:
        calls = _run(network, image_size)
    except Exception as error:  # Training may still work, since it is compiled.
        logging.warning("%s: the ranges that layers expect cannot be checked: %s", what, " ".join(str(error).split()))
        return
    shrinks = False
    for call in calls:
        problem = _wrong_value_range(call) if _has_value_range(call.layer) else _lost_negatives(call)
        if not problem and not shrinks:  # One layer makes pictures flat; they stay so for those after it.
            problem = _flat(call)
            shrinks = bool(problem)
        if problem:
            logging.warning("%s: the layer %s %s", what, call.name, problem)


def crop_error(network: keras.Model, error: Exception) -> str:
    """Returns what to write if an error comes from RandomCrop, which crops in training only; else "".

    Args:
        network: the model.
        error: what it raised when it was evaluated.
    """
    crops = [part for part in _parts(network) if isinstance(part, keras.layers.RandomCrop)]
    if not crops or "incompatible with" not in str(error):
        return ""
    size = f"{crops[0].height}, {crops[0].width}"
    return (
        f"the layer {crops[0].name} crops in training only, and later layers need the same size in evaluation; write "
        f"keras.layers.CenterCrop({size})(keras.layers.RandomCrop({size})(net))"
    )


def _wrong_value_range(call: _Call) -> str:
    """Returns what is wrong with a layer that takes a value_range, and what to write; "" if nothing is."""
    layer = call.layer
    if type(layer).__name__ in _MIXERS:
        return "mixes pictures but not their labels; remove it"
    between = (
        "call it with value_range=(0, 1), between keras.layers.Rescaling(0.5, 0.5) and keras.layers.Rescaling(2, -1)"
    )
    # An inversion computes high - x, and a saturation is a ratio: both are right only if the lowest value is 0.
    parts = [layer, *getattr(layer, "_layers", ())]
    starts_at_0 = any(type(part).__name__ in ("RandomInvert", "RandomSaturation") for part in parts)
    low, high = map(float, layer.value_range)
    inputs, least, greatest = call.inputs, call.inputs.min(), call.inputs.max()
    margin = 0.02 * (high - low)
    outside = np.mean((inputs < low - margin) | (inputs > high + margin))
    if outside < 0.01 and greatest - least > 0.25 * (high - low):
        return f"computes right colours only if its values begin at 0; {between}" if starts_at_0 and low < 0 else ""
    expects = f"expects values from {low:g} to {high:g} and gets {least:.3g} to {greatest:.3g}"
    for right in ((0, 1), (-1, 1), (0, 255)):
        if right[0] - 0.03 <= least and greatest <= 1.02 * right[1] and greatest - least > 0.25 * np.ptp(right):
            return f"{expects}; {between if starts_at_0 and right[0] < 0 else f'write value_range={right}'}"
    return f"{expects}; call it on model_input, before pixels are standardized, with value_range=(-1, 1)"


def _lost_negatives(call: _Call) -> str:
    """Returns what to write if all values below 0 become one value, as with a clip to [0, 1]; else ""."""
    negative = call.inputs < -0.05
    if _is_activation(call.layer) or negative.mean() < 0.2 or call.outputs.shape != call.inputs.shape:
        return ""
    is_lost = np.ptp(call.outputs[negative]) < 1e-3 < np.ptp(call.outputs[~negative])
    return "makes all pixels below 0 the same; put keras.layers.Rescaling(0.5, 0.5) before it" if is_lost else ""


def _flat(call: _Call) -> str:
    """Returns what to write if pictures become flat since they are scaled as if they were 0 to 255; else ""."""
    outputs = call.outputs
    if outputs.ndim != 4 or outputs.shape[3] != 3 or np.ptp(call.inputs) < 2 * _FLAT:
        return ""
    if np.ptp(outputs, axis=(0, 1, 2)).max() > _FLAT:  # By channel, since each may get a mean of its own.
        return ""
    return (
        f"shrinks pixels to {outputs.min():.3g} to {outputs.max():.3g}; it expects 0 to 255, and they are in [-1, 1] "
        "already; remove it, or put keras.layers.Rescaling(127.5, 127.5) before it or before the model it belongs to"
    )


def _is_activation(layer: keras.Operation) -> bool:
    """Whether a layer or an operation may set values below 0 to 0 on purpose."""
    module = type(layer).__module__
    return ".activations." in module or module.endswith(".ops.nn")


def _has_value_range(layer: keras.Operation) -> bool:
    return hasattr(layer, "value_range") or type(layer).__name__ in _MIXERS


class _Seen(Exception):  # noqa: N818 - It is no error.
    """Stops the run of a network early, once all calls that matter have been seen."""


def _run(network: keras.Model, image_size: int) -> list[_Call]:
    """Runs a network in training mode on pictures, and returns the calls whose input is pixels, in their order.

    Its variables, such as the averages of batch norm, keep their values.
    """
    calls: list[_Call] = []
    has_learned = False  # Whether a layer with weights has been called; what comes after it is no picture any more.
    parts = list(_parts(network))
    has_ranges = any(map(_has_value_range, parts))

    def record(layer: keras.Operation, inputs: object, outputs: object) -> None:
        nonlocal has_learned
        normalizes = isinstance(layer, keras.layers.BatchNormalization | keras.layers.Normalization)
        learns = bool(getattr(layer, "weights", ())) and not normalizes
        has_learned = has_learned or learns
        if has_learned and not has_ranges:
            raise _Seen
        if not isinstance(inputs, tf.Tensor) or inputs.shape.rank != 4 or inputs.shape[3] != 3 or learns:
            return
        if isinstance(outputs, tf.Tensor) and (_has_value_range(layer) or not has_learned):
            calls.append(_Call(layer, np.float32(inputs), np.float32(outputs)))

    trained = [variable.value for variable in network.trainable_variables]
    others = [variable.value for variable in network.non_trainable_variables]
    with _watched(parts, record), contextlib.suppress(_Seen):
        network.stateless_call(trained, others, _pictures(image_size), training=True)
    return calls


def _pictures(image_size: int) -> tf.Tensor:
    """Returns pictures with all values in [-1, 1]: smooth, in other colours each, with noise."""
    position = np.linspace(0.0, 1.0, image_size, dtype=np.float32)
    y, x = np.meshgrid(position, position, indexing="ij")
    phase = np.arange(3 * _NUM_PICTURES).reshape(-1, 1, 1, 3)
    waves = np.sin(6.3 * (x + 0.5 * y))[..., np.newaxis]
    pictures = 0.9 * np.sin(3.1 * waves + phase) + np.random.default_rng(0).uniform(-0.1, 0.1, waves.shape)
    return tf.constant(np.clip(pictures, -1.0, 1.0), tf.float32)


def _parts(network: keras.Operation) -> Iterator[keras.Operation]:
    """Yields the layers and operations of a network that have no parts of their own, and those with a value_range."""
    parts = getattr(network, "operations", None) or getattr(network, "_layers", ())
    for part in parts:
        if _has_value_range(part) or not (getattr(part, "operations", None) or getattr(part, "_layers", ())):
            yield part
        else:
            yield from _parts(part)


@contextlib.contextmanager
def _watched(
    parts: Iterable[keras.Operation], record: Callable[[keras.Operation, object, object], None]
) -> Iterator[None]:
    """Calls `record` with each part, its first argument and its result when the part is called inside the block."""

    def watched(part: keras.Operation) -> Callable:
        call = part.call

        def watched_call(inputs, *args, **kwargs):
            outputs = call(inputs, *args, **kwargs)
            record(part, inputs, outputs)
            return outputs

        return watched_call

    parts = list({id(part): part for part in parts}.values())
    for part in parts:
        part.__dict__["call"] = watched(part)
    try:
        yield
    finally:
        for part in parts:
            del part.__dict__["call"]
