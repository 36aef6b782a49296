"""Functions of the 2017 utils.py, for the files of contestants that call them. The kit itself does not.

`utils` has them under the same names. TensorFlow is imported when one is called.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorboard.compat.proto.summary_pb2 import Summary


def Dequantize(feat_vector: Any, max_quantized_value: float = 2, min_quantized_value: float = -2) -> Any:
    """Returns numbers that were stored as bytes, such as features of a video.

    Args:
        feat_vector: a number, an array or a tensor, in [0, 255].
        max_quantized_value: what 255 stands for, less half a step.
        min_quantized_value: what 0 stands for, less half a step.

    Returns:
        The same kind of value, of the same shape.
    """
    value_range = max_quantized_value - min_quantized_value
    return feat_vector * (value_range / 255) + (value_range / 512 + min_quantized_value)


def MakeSummary(name: str, value: float) -> "Summary":
    """Returns the protocol buffer of a TensorBoard scalar."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=str(name), simple_value=float(value))])


def clip_gradient_norms(
    gradients_to_variables: Sequence[tuple[Any, Any]], max_norm: float
) -> list[tuple["tf.Tensor | tf.IndexedSlices | None", Any]]:
    """Clips each gradient by its own norm.

    Args:
        gradients_to_variables: (gradient, variable) pairs; a gradient can be tf.IndexedSlices or None.
        max_norm: the largest norm that a gradient may have.

    Returns:
        The same pairs, with clipped gradients.
    """
    import tensorflow as tf

    def clip(gradient: Any) -> Any:
        if isinstance(gradient, tf.IndexedSlices):
            values = tf.clip_by_norm(gradient.values, max_norm)
            return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
        return None if gradient is None else tf.clip_by_norm(gradient, max_norm)

    return [(clip(gradient), variable) for gradient, variable in gradients_to_variables]


def combine_gradients(tower_grads: Sequence[Sequence[tuple[Any, Any]]]) -> list[tuple["tf.Tensor", Any]]:
    """Returns the sum of the gradients of several towers (devices). The kit's own training averages them.

    Args:
        tower_grads: for each tower, a (gradient, variable) pair for each variable. Towers whose gradient of a variable
            is None do not count.

    Returns:
        A pair for each variable that has a gradient, with the variable of the first tower.
    """
    import tensorflow as tf

    combined = []
    for pairs in zip(*tower_grads, strict=True):
        gradients = [tf.convert_to_tensor(gradient) for gradient, _ in pairs if gradient is not None]
        if gradients:
            combined.append((tf.add_n(gradients), pairs[0][1]))
    return combined


def find_class_by_name(name: str, modules: Sequence[ModuleType]) -> type:
    """Returns the class of that name in the first module that has one; see also `utils.find_class`.

    Raises:
        ValueError: if no module has one.
    """
    for module in modules:
        if isinstance(found := getattr(module, name, None), type):
            return found
    raise ValueError(f"no class {name} in {', '.join(module.__name__ for module in modules)}")
