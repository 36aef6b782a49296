"""Weights files of Keras: a file is read as data, and its arrays are matched to the layers of a network.

Nothing in a file is executed, and the model's config in it is not read: a Lambda layer or a pickle cannot run code.
There are two formats:

* Legacy `.h5`: a group for each layer of the model, in the order of the attribute "layer_names". A network that is
  nested as one layer has one group with the weights of all its layers. The order of these layers is not known, since
  trainable weights come first.
* `.weights.h5`, alone or within a `.keras` file: `layers/conv2d_3/vars/0` is the first weight of the fourth Conv2D.
  The name of the layer is an attribute; Keras 3.3 and earlier wrote none.
"""

import collections
import dataclasses
import io
import itertools
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import h5py
import keras
import numpy as np

from cats_vs_dogs import archives
from cats_vs_dogs.utils import UserError

_READ = "a .h5, .weights.h5 or .keras file"

_Shapes = tuple[tuple[int, ...], ...]


@dataclasses.dataclass
class _Stored:
    """A layer with weights in a file.

    Attributes:
        names: its name, then shorter ones without the names of networks around it; empty if the file has none.
        kind: its class after those of the networks around it, such as "sequential/conv2d"; "" in the legacy format.
        position: its place among the layers of its kind. Layers of equal positions have no known order.
        arrays: its weights by name (legacy) or number.
    """

    names: list[str]
    kind: str
    position: tuple[int, ...]
    arrays: dict[str, h5py.Dataset]

    @property
    def shapes(self) -> _Shapes:
        return tuple(array.shape for array in self.arrays.values())


@dataclasses.dataclass
class _Wanted:
    """A layer with weights of the network that is loaded into.

    Attributes:
        layer: the layer.
        outer_name: name of the network's own layer that it is in, mostly its own name.
        kind: see `_Stored`.
        number: the number in its name if Keras chose that, see `number_of`.
        shapes: those of its weights.
    """

    layer: keras.Layer
    outer_name: str
    kind: str
    number: int | None
    shapes: _Shapes

    def __str__(self) -> str:
        return f"{self.layer.name} {' '.join(map(str, self.shapes))}"


_Pairs = list[tuple[keras.Variable, h5py.Dataset]]


class _MismatchError(Exception):
    """Says why the layers of a network in a file are not those that are wanted."""


def number_of(class_name: str, names: Sequence[str]) -> int | None:
    """Returns the number that Keras gave to a layer: 7 for conv2d_7, 0 for conv2d; None if Keras chose no name.

    Args:
        class_name: the layer's class, such as "Conv2D".
        names: its name, perhaps with others.
    """
    numbers = (number for base, number in map(_split_number, names) if base == class_name.lower())
    return next(numbers, None)


def load(name: str, network: keras.Model, path: str, where: str) -> None:
    """Loads the weights of a file into a network, except those of Normalization layers.

    The file may hold that network alone, with its top, or as a part of another model. Each weight must be there once
    and with the same shape. Layers are found by name. Layers that Keras numbered, such as conv2d_7, are found by the
    order of their numbers. Layers of other names than the network's are found by order and shape, if these leave no
    choice.

    Args:
        name: what the network is called in messages.
        network: a functional model.
        path: the path of a file on this machine.
        where: the flag and its value, with which a message begins.

    Raises:
        UserError: if the file is damaged, no weights file, or holds other weights.
    """
    wanted, leading = list(_list_wanted(network.layers)), _find_leading(network)
    try:
        with h5py.File(_find_hdf5(path, where), "r") as file:
            is_legacy = "model_weights" in file or any(key.startswith("layer_names") for key in file.attrs)
            networks = _read_legacy(file) if is_legacy else _read_new(file)
            if not networks:
                raise UserError(f"{where}: is an HDF5 file, but holds no layers of Keras; give {_READ}")
            pairs = _choose(name, wanted, leading, networks, where)
            values = [array[()] for _, array in pairs]
    except UserError:
        raise
    except Exception as error:  # zipfile and h5py raise many kinds.
        reason = " ".join(str(error).split())
        raise UserError(f"{where}: is damaged or not complete ({reason}); download or copy it again") from error
    if not all(np.all(np.isfinite(value)) for value in values):
        raise UserError(
            f"{where}: holds weights that are infinite or no numbers; its training failed; give another file"
        )
    for (variable, _), value in zip(pairs, values, strict=True):
        variable.assign(value)


def _choose(
    name: str, wanted: list[_Wanted], leading: dict[str, set[str]], networks: list[list[_Stored]], where: str
) -> _Pairs:
    """Returns the wanted variables with the arrays of the one network in the file that fits, or raises a UserError."""
    shapes = collections.Counter(layer.shapes for layer in wanted)
    found, misfits = {}, []
    for stored in networks:
        try:
            pairs = _match(wanted, leading, stored)
            found[tuple(array.name for _, array in pairs)] = pairs
        except _MismatchError as error:
            num_common = (shapes & collections.Counter(layer.shapes for layer in stored)).total()
            misfits.append((num_common, -len(stored), f"it holds {_describe(stored)}; {error}"))
    if len(found) == 1:
        (pairs,) = found.values()
        return pairs
    looked_for = f"does not fit {name} ({_count(wanted)})"
    if found:
        raise UserError(f"{where}: {looked_for}: it holds {len(found)} networks that do; save the right one alone")
    _, _, reason = max(misfits)
    raise UserError(f"{where}: {looked_for}: {reason}; give a file of {name}, or another backbone")


def _describe(stored: list[_Stored]) -> str:
    names = [layer.names[0] for layer in stored if layer.names]
    listed = f", {', '.join(names[:3])} ..." if names else ""
    return f"a network ({_count(stored)}{listed})"


def _count(layers: Sequence[Any]) -> str:
    return f"{len(layers)} layer{'s' if len(layers) != 1 else ''} with weights"


# ---- Other files.


def _find_hdf5(path: str, where: str) -> str | io.BytesIO:
    """Returns the HDF5 file that a path names, or the one within a .keras file; a UserError says what others are."""
    try:
        if not os.path.isfile(path):  # Opening a named pipe would wait for ever.
            raise UserError(f"{where}: is no regular file; give {_READ}")
        with open(path, "rb") as file:
            start = file.read(1024)
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror or error}") from error
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return path
    if not start.startswith(b"PK"):
        raise UserError(f"{where}: {_describe_other(start, path)}; give {_READ}")
    with zipfile.ZipFile(path) as archive:
        if "model.weights.h5" not in archive.namelist():
            raise UserError(f"{where}: {_describe_zip(archive.namelist())}; give {_READ}")
        return io.BytesIO(archive.read("model.weights.h5"))


def _describe_zip(names: list[str]) -> str:
    """Returns what a .zip file is that is no .keras file."""
    if any(os.path.basename(name) == "data.pkl" for name in names):
        return "is a file of PyTorch, which cannot be read here"
    inner = next((name for name in names if name.lower().endswith((".h5", ".keras"))), None)
    if inner:
        return f"is a .zip with the file {inner}; unpack it"
    return f"is a .zip, but no .keras file: it holds {', '.join(names[:3]) or 'nothing'}"


def _describe_other(start: bytes, path: str) -> str:
    """Returns what a file is that is neither HDF5 nor .zip, by its first 1024 bytes and its name."""
    if not start:
        return "is empty; download it again"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself; run git lfs pull"
    if re.match(rb"(?i)(\xef\xbb\xbf)?\s*(<!doctype|<html|<head|<\?xml)", start):
        return "is a web page: the site wants a login, or answered with an error; download it in a browser"
    if re.match(rb"\x80[\x02-\x05]", start):
        return "is a pickle of Python, as PyTorch writes, and could run any code"
    if re.search(r"\.ckpt|\.index$|\.data-\d+-of-\d+$", path):
        return "is a checkpoint of TensorFlow; load it there, into its model, and save the weights"
    if archives.kind_of(start):
        return f"is an archive of the kind {archives.kind_of(start)}; unpack it"
    return f"is no weights file of Keras (it begins with {start[:12]!r})"


def describe_folder(names: list[str]) -> str:
    """Returns what a folder is that was given in place of a weights file, and what to do.

    Args:
        names: the names in it.
    """
    if "model_flags.json" in names:
        return f"is a train_dir; train that model further with --train_dir, or give {_READ}"
    if "saved_model.pb" in names:
        return f"is a SavedModel folder; load it in TensorFlow and save its weights; give {_READ}"
    files = sorted(name for name in names if name.lower().endswith((".h5", ".keras")))
    if files:
        return f"is a folder; give a file in it, such as {files[0]}"
    return f"is a folder; give {_READ}"


# ---- Reading.


def _read_legacy(file: h5py.File) -> list[list[_Stored]]:
    """Returns each network that is nested in the model of a legacy .h5 file, and the whole model."""
    root = file.get("model_weights", file)
    datasets = _find_datasets(root)
    networks, all_layers = [], []
    for number, name in enumerate(_strings(root, "layer_names")):
        by_scope = collections.defaultdict(dict)
        for weight in _strings(root[name], "weight_names"):
            scope, _, own_name = weight.rpartition("/")
            by_scope[scope][own_name] = datasets[f"{name}/{weight}"]
        is_nested = len(by_scope) > 1
        layers = [
            _Stored(_shorter(scope) if is_nested else [name, *_shorter(scope)], "", (number,), arrays)
            for scope, arrays in by_scope.items()
        ]
        networks += [layers] if is_nested else []
        all_layers += layers
    return [*networks, all_layers] if all_layers else []


def _strings(group: h5py.Group, name: str) -> list[str]:
    """Returns an attribute that is a list. A long one is stored in parts, such as layer_names0 and layer_names1."""
    parts = [key for key in group.attrs if re.fullmatch(rf"{name}\d*", key)]
    values = [value for part in sorted(parts, key=lambda part: (len(part), part)) for value in group.attrs[part]]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _shorter(scope: str) -> list[str]:
    """Returns a/b/c, b/c and c for a/b/c."""
    parts = scope.split("/") if scope else []
    return ["/".join(parts[first:]) for first in range(len(parts))]


def _find_datasets(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """Returns the arrays of a group by path. Links are not followed: they may lead to other files."""
    found = {}

    def visit(path: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not item.is_virtual and not item.external:
            found[path] = item

    group.visititems(visit)
    return found


def _read_new(file: h5py.File) -> list[list[_Stored]]:
    """Returns each network in a .weights.h5 file: the whole model, and those nested in it."""
    owners = collections.defaultdict(dict)
    for path, array in _find_datasets(file).items():
        owner, _, number = path.rpartition("/vars/")
        if owner and number.isdecimal():
            owners[owner][int(number)] = array
    networks = collections.defaultdict(list)
    for owner, arrays in owners.items():
        if not any(array.dtype.kind in "fV" for array in arrays.values()):
            continue  # The state of a random layer. V is bfloat16.
        name = file[f"{owner}/vars"].attrs.get("name")
        arrays = {str(number): arrays[number] for number in sorted(arrays)}
        parts = owner.split("/")
        for i in (i for i, part in enumerate(parts) if part == "layers"):
            classes, position = zip(*(_split_number(part) for part in parts[i + 1 :] if part != "layers"), strict=True)
            layer = _Stored([str(name)] if name else [], "/".join(classes), position, arrays)
            networks["/".join(parts[:i])].append(layer)
    return list(networks.values())


def _split_number(name: str) -> tuple[str, int]:
    """Returns batchnormalization and 7 for batch_normalization_7; and 0 without a number."""
    match = re.fullmatch(r"(.*?)(?:_(\d+))?", name, re.DOTALL)
    return match[1].replace("_", "").lower(), int(match[2] or 0)


# ---- Matching.


def _list_wanted(layers: Sequence[keras.Layer], outer_kind: str = "", outer_name: str = "") -> Iterator[_Wanted]:
    """Yields the layers that have weights, also those within Sequential layers, in order."""
    for layer in layers:
        class_name = type(layer).__name__
        kind, name = outer_kind + class_name.lower(), outer_name or layer.name
        if hasattr(layer, "layers"):
            yield from _list_wanted(layer.layers, f"{kind}/", name)
        elif layer.weights and not isinstance(layer, keras.layers.Normalization):
            shapes = tuple(tuple(weight.shape) for weight in layer.weights)
            yield _Wanted(layer, name, kind, number_of(class_name, [layer.name]), shapes)


def _match(wanted: list[_Wanted], leading: dict[str, set[str]], stored: list[_Stored]) -> _Pairs:
    """Returns the variables of all wanted layers with their arrays, or raises a _MismatchError."""
    found = _by_name(wanted, stored)
    groups = collections.defaultdict(list)
    for place, layer in enumerate(wanted):
        if place not in found:
            groups[layer.kind, layer.shapes].append(place)
    for (kind, shapes), places in groups.items():
        group = [wanted[place] for place in places]
        free = _without(stored, found.values())
        those = [layer for layer in free if layer.shapes == shapes and layer.kind in (kind, "")]
        found |= zip(places, _by_number(group, those) or _by_order(group, those, leading), strict=True)
    _check_others(list(found.values()), _without(stored, found.values()))
    return [pair for place, layer in enumerate(wanted) for pair in _pair(layer, found[place])]


def _without(stored: list[_Stored], used: Iterable[_Stored]) -> list[_Stored]:
    ids = {id(layer) for layer in used}
    return [layer for layer in stored if id(layer) not in ids]


def _plain(name: str) -> str:
    """Returns a name in one spelling: Keras 2 had expanded_conv/depthwise/BatchNorm for expanded_conv_depthwise_bn."""
    return name.lower().replace("/", "_").replace("batchnorm", "bn")


def _by_name(wanted: list[_Wanted], stored: list[_Stored]) -> dict[int, _Stored]:
    """Returns the layers whose names Keras did not choose, by their places in `wanted`; all of them or none."""
    # Whole names come before shorter ones: MobileNetV3 has the layers Conv and expanded_conv/squeeze_excite/Conv.
    levels = [collections.defaultdict(list) for _ in range(max(len(layer.names) for layer in stored))]
    for layer in stored:
        for level, name in zip(levels, layer.names, strict=False):
            level[_plain(name)].append(layer)
    found, missing = {}, []
    for place, layer in enumerate(wanted):
        if layer.number is not None:
            continue
        name = _plain(layer.layer.name)
        hits = next((level[name] for level in levels if name in level), [])
        if len(hits) > 1:
            raise _MismatchError(f"{len(hits)} layers are named {layer.layer.name}")
        if hits:
            found[place] = hits[0]
        else:
            missing.append(layer)
    if found and missing:
        raise _MismatchError(f"there is no layer {missing[0]}")
    return found


def _by_number(wanted: list[_Wanted], stored: list[_Stored]) -> list[_Stored] | None:
    """Returns the stored layers for wanted ones of one class and shapes, by names such as conv2d_7; None without such.

    The same function of Keras made both networks, and numbered the layers as it made them. So the order is the same,
    but not the first number.
    """
    class_name = type(wanted[0].layer).__name__
    numbered = [(number_of(class_name, layer.names), layer) for layer in stored]
    numbered = [(number, layer) for number, layer in numbered if number is not None]
    by_number, wanted_numbers = dict(numbered), {layer.number for layer in wanted} - {None}
    if not len(wanted) == len(wanted_numbers) == len(numbered) == len(by_number):
        return None
    stored_number = dict(zip(sorted(wanted_numbers), sorted(by_number), strict=True))
    found = [by_number[stored_number[layer.number]] for layer in wanted]
    positions = [layer.position for layer in found]
    if positions != sorted(positions):
        raise _MismatchError(f"the numbers of the layers {class_name.lower()} and their order contradict each other")
    return found


def _by_order(wanted: list[_Wanted], stored: list[_Stored], leading: dict[str, set[str]]) -> list[_Stored]:
    """Returns the stored layers for wanted ones of one class and shapes, by their order.

    The order tells them apart only if each leads to the next. Every list of layers has these in one order. Parallel
    ones, such as the first and last convolution of a block of ResNet50, may have been swapped. A file without names is
    an exception: it has nothing else than the order.
    """
    if len(stored) < len(wanted):
        raise _MismatchError(f"there is no layer {wanted[0]}, or one of another name in its place")
    names = [layer.names[0] for layer in stored if layer.names]
    outer = [layer.outer_name for layer in wanted]
    is_chain = all(a == b or a in leading[b] for a, b in itertools.pairwise(outer))
    has_order = len({layer.position for layer in stored}) == len(stored)
    if len(stored) > len(wanted) or (len(stored) > 1 and not (has_order and (is_chain or not names))):
        which = f"{', '.join(names[:3])} ..." if names else f"{len(stored)} layers"
        raise _MismatchError(f"neither names nor order tell which of {which} is {wanted[0]}")
    return sorted(stored, key=lambda layer: layer.position)


def _find_leading(network: keras.Model) -> dict[str, set[str]]:
    """Returns for each layer of a network the names of the layers that lead to it."""
    leading, makers = {}, {}
    for operation in network.operations:  # Each comes after those that lead to it.
        sources = {makers[id(tensor)] for tensor in keras.tree.flatten(operation.input)}
        leading[operation.name] = sources.union(*(leading[name] for name in sources))
        makers |= {id(tensor): operation.name for tensor in keras.tree.flatten(operation.output)}
    return leading


def _check_others(used: list[_Stored], others: list[_Stored]) -> None:
    """Raises a _MismatchError if other convolutions are between the used layers, as in ResNet101 for ResNet50.

    Dense layers do not count: they are the tops of networks.
    """
    for other in others:
        positions = [layer.position for layer in used if layer.kind == other.kind]
        is_convolution = any(len(shape) > 2 for shape in other.shapes)
        if is_convolution and positions and min(positions) <= other.position <= max(positions):
            raise _MismatchError(f"the layer {other.names[0] if other.names else other.kind} does not belong to it")


def _pair(wanted: _Wanted, stored: _Stored) -> _Pairs:
    """Returns the variables of a layer with their arrays."""
    arrays = {_weight_name(name): array for name, array in stored.arrays.items()}
    weights = wanted.layer.weights
    if {weight.name for weight in weights} == set(arrays):
        ordered = [arrays[weight.name] for weight in weights]
    else:  # Numbers tell the order. Other names, such as depthwise_kernel, do if the shapes differ.
        ordered = list(stored.arrays.values())
        if not stored.kind and len(set(stored.shapes)) < len(ordered):
            raise _MismatchError(f"the weights of {wanted} have the names {', '.join(stored.arrays)}")
    if wanted.shapes != tuple(array.shape for array in ordered):
        raise _MismatchError(f"{wanted} has the shapes {' '.join(map(str, stored.shapes))}")
    if any(array.dtype.kind != "f" for array in ordered):
        raise _MismatchError(f"{wanted} holds {', '.join(str(array.dtype) for array in ordered)}, not floats")
    return list(zip(weights, ordered, strict=True))


def _weight_name(name: str) -> str:
    """Returns gamma for gamma:0, and for bn_conv1_gamma_1:0 of the first Keras."""
    name = re.sub(r"(_\d+)?(:\d+)?$", "", name)
    known = re.search(r"(gamma|beta|mean|variance|std)$", name)
    if not known:
        return name
    return {"mean": "moving_mean", "variance": "moving_variance", "std": "moving_variance"}.get(known[1], known[1])
