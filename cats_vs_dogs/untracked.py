"""Finds what a checkpoint of a model would not hold: variables that Keras does not track, and constants."""

import hashlib
import linecache
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from cats_vs_dogs.utils import LIBRARIES, UserError, place_of

# States of random numbers: that of keras.random without a seed generator, and that of tf.random.Generator.
_RANDOM_STATE = re.compile(r"(.*/)?(seed_generator_state|StateVar)(_\d+)?")
# What TensorFlow and Keras say about a variable that is created when a layer is called.
_CREATED_LATE = re.compile(r"not be lifted|Unable to lift|singleton tf\.Variables|cannot add new elements of state")
# Operations of tf.random, whose results are others at each call; those of tf.random.Generator have a variable.
_RANDOM = re.compile(
    r"Random(Uniform|UniformInt|StandardNormal|Gamma|Poisson|PoissonV2|Shuffle)|(Parameterized)?TruncatedNormal|Multinomial"
)
# Operations that call Python code.
_PYTHON = ("PyFunc", "PyFuncStateless", "EagerPyFunc")
# Operations that pass on what they get; on several devices there are other ones.
_READING = ("ReadVariableOp", "Identity")
# Attributes that say how this process runs a function.
_SETTINGS = ("config", "config_proto", "executor_type")
_KIT = tuple(os.path.join(os.path.dirname(os.path.abspath(__file__)), name) for name in ("classifier.py", "models.py"))


def check(graph: tf.Graph, tracked: Sequence[keras.Variable], what: str, is_training: bool) -> None:
    """Checks that Keras tracks all variables of a graph.

    In training, the state of random numbers is only worth a warning: it matters to a resumed run, not to predictions.

    Args:
        graph: the graph of a `tf.function` that calls a model and its loss.
        tracked: the variables that Keras tracks.
        what: the model and its loss, for messages.
        is_training: whether the graph is that of training.

    Raises:
        UserError: if there is another one.
    """
    known = {id(handle) for variable in tracked for handle in _handles(variable.value)}
    names = {id(handle): variable.name for variable in graph.variables for handle in _handles(variable)}
    random_places = []
    for handle, placeholder in graph.captures:
        if id(handle) in known or not _is_variable(handle):
            continue
        name = re.sub(r"/replica_\d+|:0", "", names.get(id(handle), placeholder.name))
        place = _place(placeholder.consumers())
        if not is_training or not _RANDOM_STATE.fullmatch(name):
            raise UserError(
                f"{what} uses the variable {name} of shape {_shape(handle)}, which Keras "
                f"does not track{place}, so it would be neither trained nor saved; call layers on Keras tensors, not "
                "inside Lambda or a loss; in a layer of your own, create variables with self.add_weight(...) and set "
                "layers as attributes"
            )
        random_places.append(place)
    if random_places:
        logging.warning(
            "%s: random numbers have a state that is not saved%s, so a resumed run draws others than an uninterrupted "
            "one; call layers such as Dropout on Keras tensors; in a layer of your own, set self.seeds = "
            "keras.random.SeedGenerator(1) in __init__, and pass seed=self.seeds to the functions of keras.random",
            *(what, random_places[0]),
        )


def check_predictions(graph: tf.Graph, seeds: Sequence[keras.Variable], what: str) -> None:
    """Checks that predictions are the same each time, and that an export can hold all that calculates them.

    Args:
        graph: the graph of a `tf.function` whose first result are predictions.
        seeds: the states of random numbers that Keras tracks.
        what: the model and its loss, for messages.

    Raises:
        UserError: if they are random, or use a lookup table or Python code.
    """
    random = f"{what} makes random predictions%s; draw random numbers in a layer's call, if training is True"
    exported = f"{what} uses %s%s, which an export cannot hold; use tensors and operations of keras.ops or tf instead"
    known_seeds = {id(handle) for variable in seeds for handle in _handles(variable.value)}
    library = {function.signature.name: function for function in graph.as_graph_def().library.function}
    ops = _ops_of(graph.outputs[0])
    for handle, placeholder in graph.captures:
        place = _place(placeholder.consumers())
        if placeholder.op in ops and id(handle) in known_seeds:
            raise UserError(random % place)
        if placeholder.op in ops and handle.dtype == tf.resource and not _is_variable(handle):
            raise UserError(exported % ("a lookup table", place))
    for op in ops:
        for kind in (op.type, *_types_called(op.node_def, library)):
            if _RANDOM.fullmatch(kind):
                raise UserError(random % _place([op]))
            if kind in _PYTHON:
                raise UserError(exported % ("Python code", _place([op])))


def _ops_of(tensor: tf.Tensor) -> set[tf.Operation]:
    """Returns the operations that calculate a tensor of a graph."""
    ops, waiting = set(), [tensor.op]
    while waiting:
        op = waiting.pop()
        if op not in ops:
            ops.add(op)
            waiting += [one.op for one in op.inputs]
    return ops


def _types_called(node: Any, library: dict[str, Any]) -> Iterator[str]:
    """Yields the types of the operations in the functions that a node calls, such as the body of a loop."""
    for value in node.attr.values():
        for function in (value.func, *value.list.func):
            for inner in library[function.name].node_def if function.name in library else ():
                yield inner.op
                yield from _types_called(inner, library)


def creation_error(what: str, error: Exception) -> UserError | None:
    """Returns the error to raise if a variable is created when a layer or loss is called; None if it is another error.

    Args:
        what: the function that was called, such as "MyModel.create_model".
        error: what it raised.
    """
    cause: BaseException | None = error
    while cause and not _CREATED_LATE.search(str(cause)):
        cause = cause.__context__
    place = place_of(error) if cause else ""
    where = "" if place.startswith("classifier.py ") else f" ({place})"
    return cause and UserError(
        f"{what} creates a variable or a layer when it is called{where}; create it before, as a layer that is called "
        "on a Keras tensor; in a layer of your own, in __init__ or build"
    )


def drawn_constants(graph: tf.Graph) -> int:
    """Returns a number that stands for the constants of a graph that may be drawn at random; 0 without any.

    Args:
        graph: the graph of a `tf.function`.
    """
    number = 0
    for value in sorted(value.tobytes() for value in _constants(graph) if _may_be_drawn(value)):
        number = zlib.crc32(value, number) or 1
    return number


def graph_number(graph: tf.Graph, variables: Sequence[keras.Variable] = ()) -> int:
    """Returns a number that graphs share if they calculate the same, such as those of a model that is built twice.

    It stands for all operations that the outputs need, with their attributes, such as strides, their constants and
    their order. The values of variables do not count, but which variable is used where.

    Args:
        graph: the graph of a `tf.function`.
        variables: those of the model, in an order that is the same each time.
    """
    places = {id(handle): place for place, variable in enumerate(variables) for handle in _handles(variable.value)}
    leaves = {tensor.op.name: _digest("input", place) for place, tensor in enumerate(graph.inputs)}
    for captured, placeholder in graph.captures:
        is_constant = captured.dtype not in (tf.resource, tf.variant)
        value = _bytes_of(captured.numpy()) if is_constant else places.get(id(captured), "unknown")
        leaves[placeholder.op.name] = _digest("captured", captured.dtype.name, captured.shape, value)
    definition = graph.as_graph_def()
    library = {function.signature.name: function for function in definition.library.function}
    numbers = _number_nodes(definition.node, leaves, library)
    outputs = [(numbers[tensor.op.name], tensor.value_index) for tensor in graph.outputs]
    return int.from_bytes(_digest(outputs)[:8], "big") >> 1  # JSON has signed numbers.


def depends_on_more(graph: tf.Graph) -> bool:
    """Whether a graph uses what its `graph_number` does not stand for: Python code, a file, a table or a variable."""
    definition = graph.as_graph_def()
    functions = [node for function in definition.library.function for node in function.node_def]
    kinds = {node.op for node in (*definition.node, *functions)}
    return bool(kinds & {*_PYTHON, "ReadFile"}) or any(tensor.dtype == tf.resource for tensor, _ in graph.captures)


def _number_nodes(nodes: Iterable[Any], leaves: dict[str, bytes], library: dict[str, Any]) -> dict[str, bytes]:
    """Returns a number for each node of a graph or function, by its name: of what it does, and with which inputs.

    Names do not count, nor do devices and what begins with "_": they differ between two graphs of the same model.
    """
    numbers = dict(leaves)
    for node in nodes:  # Inputs come before what they are used by.
        if node.name in leaves:
            continue
        inputs = []
        for text in node.input:
            name, _, output = text.partition(":")
            if not name.startswith("^"):  # Else it is about the order in time.
                inputs.append((numbers.get(name), output))
        if node.op in _READING and len(inputs) == 1:
            numbers[node.name] = numbers[node.input[0].partition(":")[0]]
            continue
        attributes = [
            (name, _number_attribute(node.attr[name], library))
            for name in sorted(node.attr)
            if not name.startswith("_") and name not in _SETTINGS
        ]
        numbers[node.name] = _digest(node.op, attributes, inputs)
    return numbers


def _number_attribute(value: Any, library: dict[str, Any]) -> bytes | list[bytes]:
    functions = [library[function.name] for function in (value.func, *value.list.func) if function.name in library]
    if not functions:
        return value.SerializeToString(deterministic=True)
    found = []
    for function in functions:
        inputs = {argument.name: _digest("input", i) for i, argument in enumerate(function.signature.input_arg)}
        numbers = _number_nodes(function.node_def, inputs, library)
        results = [function.ret[argument.name].partition(":") for argument in function.signature.output_arg]
        found.append(_digest([(numbers.get(name), output) for name, _, output in results]))
    return found


def _digest(*values: Any) -> bytes:
    return hashlib.blake2b(repr(values).encode(), digest_size=16).digest()


def _bytes_of(value: np.ndarray) -> bytes:
    return value.tobytes() if value.dtype != object else str(value.tolist()).encode()


def _constants(graph: tf.Graph) -> list[np.ndarray]:
    definition = graph.as_graph_def()
    functions = [function.node_def for function in definition.library.function]  # In no order.
    constants = [node for nodes in (definition.node, *functions) for node in nodes if node.op == "Const"]
    values = [tf.make_ndarray(node.attr["value"].tensor) for node in constants]
    return values + [tensor.numpy() for tensor, _ in graph.captures if tensor.dtype not in (tf.resource, tf.variant)]


def _may_be_drawn(value: np.ndarray) -> bool:
    """Whether numbers have more digits than typed ones, such as 0.001 or 1 / 255; or are many integers, not a shape."""
    if not tf.as_dtype(value.dtype).is_floating:
        return value.size > 8 and value.dtype != object
    some = value.ravel()[:100].astype(np.float64)
    some = some[np.isfinite(some) & (some != 0)]
    typed = np.array([[float(f"{number:.5g}"), 1 / float(f"{1 / number:.5g}")] for number in some]).reshape(-1, 2)
    return not np.isclose(typed, some[:, np.newaxis], rtol=1e-7, atol=0).any(axis=1).all()


def _handles(variable: Any) -> list[tf.Tensor]:
    """Returns the handles of a variable, one for each device that has a copy."""
    return [copy.handle for copy in getattr(variable, "values", [variable])]


def _is_variable(tensor: tf.Tensor) -> bool:
    """Whether a tensor is the handle of a variable. Other resources, such as lookup tables, have no shape."""
    return tensor.dtype == tf.resource and bool(tensor._handle_data and tensor._handle_data.shape_and_type)


def _shape(handle: tf.Tensor) -> list[int]:
    return [dimension.size for dimension in handle._handle_data.shape_and_type[0].shape.dim]


def _place(ops: Iterable[tf.Operation]) -> str:
    """Returns where the user's code creates an operation, such as " (cvd_models.py line 9: net = ...)"; else ""."""
    for op in ops:
        for frame in reversed(list(op.traceback)):
            if frame.filename in _KIT:
                break
            if not LIBRARIES.search(frame.filename):
                line = linecache.getline(frame.filename, frame.lineno).strip()
                return f" ({os.path.basename(frame.filename)} line {frame.lineno}: {line})"
    return ""
