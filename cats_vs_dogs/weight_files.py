"""Weights files of Keras: a file is read as data, and its arrays are matched to the layers of a network.

Nothing in a file is executed: no layer is made from its config, so that a Lambda layer or a pickle cannot run code.
There are two formats:

* Legacy `.h5`: a group for each layer of the model, in the order of the attribute "layer_names". A network that is
  nested as one layer has one group, with the weights of all its layers: first the trainable ones, then the others.
* `.weights.h5`, alone or within a `.keras` file: `layers/conv2d_3/vars/0` is the first weight of the fourth Conv2D.
  The layers' names are in an attribute, in the `config.json` of a `.keras` file, or nowhere.
"""

import collections
import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import h5py
import keras
import numpy as np

from cats_vs_dogs import archives, pictures
from cats_vs_dogs.utils import UserError

_READ = "a .h5, .weights.h5 or .keras file"


@dataclasses.dataclass
class _Stored:
    """A layer with weights in a file.

    Attributes:
        names: its name, then shorter ones without the names of networks around it; empty if the file does not say.
        kind: its class and those of the networks around it, such as "sequential/conv2d"; "" in the legacy format.
        position: where it is in the file's list of layers of its kind. Equal ones: the file does not say.
        arrays: its weights by name (legacy) or number.
    """

    names: list[str]
    kind: str
    position: tuple[int, ...]
    arrays: dict[str, h5py.Dataset]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(array.shape for array in self.arrays.values())


@dataclasses.dataclass
class _Network:
    """A network in a file: the whole model, or one that is nested in it as a layer."""

    name: str
    layers: list[_Stored]


@dataclasses.dataclass
class _Wanted:
    """A layer with weights of the network that is loaded into.

    Attributes:
        names: its name, and that of the layer of the network that it is in.
        class_name: such as "Conv2D".
        kind: as of a stored layer.
        weights: its variables.
    """

    name: str
    outer_name: str
    class_name: str
    kind: str
    weights: list[keras.Variable]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(weight.shape) for weight in self.weights)

    @property
    def is_numbered(self) -> bool:
        """Whether Keras chose the name, such as conv2d_7."""
        return _without_number(self.name) == self.class_name.lower()


class _MismatchError(Exception):
    """Why the layers of a network in a file are not those that are wanted."""


def load(name: str, network: keras.Model, path: str, where: str) -> None:
    """Loads the weights of a file into a network, except those of Normalization layers.

    The file may hold that network alone, with its top, or as a part of another model. Each weight must be there once
    and with the same shape. Layers are found by name. Layers that Keras numbered, such as conv2d_7, are found by the
    order of their numbers; layers with other names than the network's by order and shape, if these leave no choice.

    Args:
        name: what the network is called in messages.
        network: a functional model.
        path: the path of a file on this machine.
        where: the flag and its value, with which a message begins.

    Raises:
        UserError: if the file is damaged, no weights file, or holds other weights.
    """
    wanted = list(_list_wanted(network.layers))
    with _open(path, where) as (file, config):
        try:
            networks = _read_legacy(file, config) if _is_legacy(file) else _read_new(file, config)
        except Exception as error:  # A file can be wrong in many ways.
            raise _damaged(where, error) from error
        if not networks:
            raise UserError(f"{where}: is an HDF5 file, but holds no layers of Keras; give {_READ}")
        pairs = _choose(name, network, wanted, networks, where)
        try:
            values = [array[()] for _, array in pairs]
        except Exception as error:  # h5py raises many kinds.
            raise _damaged(where, error) from error
    if not all(np.all(np.isfinite(value)) for value in values):
        raise UserError(
            f"{where}: holds weights that are infinite or no numbers; its training failed; give another file"
        )
    for (variable, _), value in zip(pairs, values, strict=True):
        variable.assign(value)


def _choose(
    name: str, network: keras.Model, wanted: list[_Wanted], networks: list[_Network], where: str
) -> list[tuple[keras.Variable, h5py.Dataset]]:
    """Returns the network's variables with the arrays of the one network in the file that fits, or raises UserError."""
    found, reasons = {}, []
    for candidate in networks:
        try:
            pairs = _match(network, wanted, candidate.layers)
            found[tuple(array.name for _, array in pairs)] = pairs
        except _MismatchError as error:
            reasons.append((candidate, error))
    if len(found) == 1:
        (pairs,) = found.values()
        return pairs
    looked_for = f"does not fit {name} ({_count(wanted)})"
    if found:
        raise UserError(f"{where}: {looked_for}: it holds {len(found)} networks that do; save the right one alone")
    shapes = collections.Counter(layer.shapes for layer in wanted)

    def nearness(candidate: _Network) -> tuple[int, int]:
        common = (shapes & collections.Counter(layer.shapes for layer in candidate.layers)).total()
        return common, -len(candidate.layers) if common else len(candidate.layers)

    candidate, error = max(reasons, key=lambda reason: nearness(reason[0]))
    raise UserError(
        f"{where}: {looked_for}: it holds {_describe(candidate)}; {error}; give a file of {name}, or another backbone"
    )


# ---- Opening.


@contextlib.contextmanager
def _open(path: str, where: str) -> Iterator[tuple[h5py.File, dict[str, Any]]]:
    """Opens a weights file, and gives it with the model's config, {} if it has none."""
    config = {}
    with contextlib.ExitStack() as stack:
        try:
            if not os.path.isfile(path):  # Opening a named pipe would wait for ever.
                raise UserError(f"{where}: is no regular file; give {_READ}")
            with open(path, "rb") as file:
                start = file.read(1024)
        except OSError as error:
            raise UserError(f"{where}: cannot be read: {error.strerror or error}") from error
        try:
            source = path
            if start.startswith(b"PK"):
                with zipfile.ZipFile(path) as archive:
                    names = archive.namelist()
                    if "model.weights.h5" not in names:
                        raise UserError(f"{where}: {_describe_zip(names)}; give {_READ}")
                    source = io.BytesIO(archive.read("model.weights.h5"))
                    if "config.json" in names:
                        config = json.loads(archive.read("config.json"))
            elif not start.startswith(b"\x89HDF\r\n\x1a\n"):
                raise UserError(f"{where}: {_describe_other(start, path)}; give {_READ}")
            file = stack.enter_context(h5py.File(source, "r"))
            if "model_config" in file.attrs:
                config = json.loads(file.attrs["model_config"])
        except UserError:
            raise
        except Exception as error:  # zipfile, json and h5py raise many kinds.
            raise _damaged(where, error) from error
        yield file, config


def _damaged(where: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"{where}: is damaged or not complete ({reason}); download or copy it again")


def _describe_zip(names: list[str]) -> str:
    """Returns what a .zip file is that is no .keras file."""
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        return "is a file of PyTorch, which cannot be read here"
    if any(name.endswith("saved_model.pb") for name in names):
        return "is a zipped SavedModel of TensorFlow; load it there and save its weights"
    inner = next((name for name in names if name.lower().endswith((".h5", ".keras"))), None)
    if inner:
        return f"is a .zip with the file {inner}; unpack it"
    if names and all(name.endswith(".npy") for name in names):
        return "is an .npz file of NumPy, not a .keras file"
    return f"is a .zip, but no .keras file: it holds {', '.join(names[:3]) or 'nothing'}"


_OTHERS = (  # How other files begin.
    (rb"version https://git-lfs", "is a pointer of Git LFS, not the file itself; run git lfs pull"),
    (
        rb"(?i)(\xef\xbb\xbf)?\s*(<!doctype|<html|<head|<\?xml)",
        "is a web page: the site wants a login, or answered with an error; download it in a browser",
    ),
    (rb"\x80[\x02-\x05]", "is a pickle of Python, as PyTorch writes, and could run any code"),
    (rb".{6}\0\0\{", "is a .safetensors file, which cannot be read here"),
    (rb"GGUF", "is a .gguf file, which cannot be read here"),
    (rb".{4}TFL3", "is a .tflite file, which cannot be read here"),
    (rb"\s*[{\[]", "is a JSON text, not weights"),
)


def _describe_other(start: bytes, path: str) -> str:
    """Returns what a file is that is neither HDF5 nor .zip, by its first 1024 bytes and its name."""
    if not start:
        return "is empty; download it again"
    described = next((text for pattern, text in _OTHERS if re.match(pattern, start, re.DOTALL)), None)
    if described:
        return described
    if path.endswith(".onnx"):
        return "is an .onnx file, which cannot be read here"
    if path.endswith(".pb"):
        return "is a graph of TensorFlow, as in a SavedModel; load it there and save its weights"
    if re.search(r"\.ckpt|\.index$|\.data-\d+-of-\d+$", path):
        return _CHECKPOINT
    if archives.kind_of(start):
        return f"is an archive of the kind {archives.kind_of(start)}; unpack it"
    if pictures.format_of(start) or start[4:8] == b"ftyp":
        return "is a picture or film"
    return f"is no weights file of Keras (it begins with {start[:12]!r})"


_CHECKPOINT = (
    "is a checkpoint of TensorFlow, which cannot be read without its model; load it there and save its weights"
)


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
    if any(name.endswith(".index") for name in names):
        return f"is a folder of checkpoints of TensorFlow, which cannot be read without their model; give {_READ}"
    if any(name.endswith((".safetensors", ".bin", ".pt", ".pth")) for name in names):
        return f"is a folder of a model of PyTorch, which cannot be read here; give {_READ}"
    return f"is a folder; give {_READ}"


def describe_missing(path: str, neighbors: list[str]) -> str:
    """Returns what a path is that is no file, and what to do: perhaps a checkpoint, whose files begin with that path.

    Args:
        path: the path.
        neighbors: the names in its folder.
    """
    if f"{os.path.basename(path)}.index" in neighbors:
        return f"{_CHECKPOINT}; give {_READ}"
    return 'no such file; give the path of a .h5 file, "imagenet", or null for none'


# ---- Reading.


def _is_legacy(file: h5py.File) -> bool:
    return "model_weights" in file or any(key.startswith("layer_names") for key in file.attrs)


def _read_legacy(file: h5py.File, config: dict[str, Any]) -> list[_Network]:
    """Returns each network that is nested in the model of a legacy .h5 file, and the whole model."""
    nested = {layer.get("config", {}).get("name"): layer for layer in _config_layers(config)}
    root = file.get("model_weights", file)
    datasets = _datasets(root)
    networks, all_layers = [], []
    for number, name in enumerate(_strings(root, "layer_names")):
        groups = collections.defaultdict(dict)
        for weight in _strings(root[name], "weight_names"):
            scope, _, own_name = weight.rpartition("/")
            groups[scope][own_name] = datasets[f"{name}/{weight}"]
        if len(groups) == 1:
            ((scope, arrays),) = groups.items()
            all_layers.append(_Stored([name, *_shorter(scope)], "", (number,), arrays))
            continue
        order = _flat_names(nested.get(name, {}))
        layers = []
        for scope, arrays in groups.items():
            names = _shorter(scope)
            place = next(((order.index(short),) for short in names if short in order), ())
            layers.append(_Stored(names, "", (number, *place), arrays))
        if layers:
            networks.append(_Network(name, layers))
            all_layers += layers
    return [*networks, _Network(config.get("config", {}).get("name", ""), all_layers)] if all_layers else []


def _strings(group: h5py.Group, name: str) -> list[str]:
    """Returns an attribute that is a list. A long one is stored in parts, such as layer_names0 and layer_names1."""
    parts = (
        [name]
        if name in group.attrs
        else itertools.takewhile(lambda part: part in group.attrs, (f"{name}{number}" for number in itertools.count()))
    )
    values = [value for part in parts for value in group.attrs[part]]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _shorter(scope: str) -> list[str]:
    """Returns a/b/c, b/c and c for a/b/c."""
    parts = scope.split("/") if scope else []
    return ["/".join(parts[first:]) for first in range(len(parts))]


def _config_layers(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the configs of a network's layers, [] if it is no network."""
    inner = config.get("config", {})
    return inner.get("layers", []) if isinstance(inner, dict) else inner


def _flat_names(config: dict[str, Any]) -> list[str]:
    names = []
    for layer in _config_layers(config):
        names += _flat_names(layer) or [layer["config"]["name"]]
    return names


def _datasets(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """Returns the arrays of a group by path. Links are not followed: they may lead to other files."""
    found = {}

    def visit(path: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not item.is_virtual and not item.external:
            found[path] = item

    group.visititems(visit)
    return found


def _read_new(file: h5py.File, config: dict[str, Any]) -> list[_Network]:
    """Returns each network in a .weights.h5 file: the whole model, and those nested in it."""
    names = _names_by_path(_config_layers(config))
    owners = collections.defaultdict(dict)
    for path, array in _datasets(file).items():
        owner, _, number = path.rpartition("/vars/")
        if owner and number.isdecimal():
            owners[owner][int(number)] = array
    networks = collections.defaultdict(list)
    for owner, arrays in owners.items():
        if not any(array.dtype.kind in "fV" for array in arrays.values()):
            continue  # The state of a random layer. V is bfloat16.
        name = file[f"{owner}/vars"].attrs.get("name", names.get(owner))
        arrays = {str(number): arrays[number] for number in sorted(arrays)}
        parts = owner.split("/")
        for place in (place for place, part in enumerate(parts) if part == "layers"):
            classes = [_class_and_number(part) for part in parts[place + 1 :] if part != "layers"]
            kind, position = "/".join(class_name for class_name, _ in classes), tuple(number for _, number in classes)
            networks["/".join(parts[:place])].append(_Stored([str(name)] if name else [], kind, position, arrays))
    names[""] = config.get("config", {}).get("name")

    def name_of(path: str) -> str:
        group = file.get(f"{path}/vars" if path else "vars")
        return str((group.attrs.get("name") if group else None) or names.get(path) or "")

    return [_Network(name_of(path), layers) for path, layers in networks.items()]


def _names_by_path(layers: list[dict[str, Any]], path: str = "layers") -> dict[str, str]:
    """Returns the names of a model's layers by their paths in the file, such as layers/conv2d_3."""
    names = {}
    counts = collections.Counter()
    for layer in layers:
        key = _snake_case(layer["class_name"])
        place = f"{path}/{key}_{counts[key]}" if counts[key] else f"{path}/{key}"
        counts[key] += 1
        names[place] = layer["config"].get("name", "") if isinstance(layer["config"], dict) else ""
        names.update(_names_by_path(_config_layers(layer), f"{place}/layers"))
    return names


def _snake_case(class_name: str) -> str:
    """Returns the name that Keras gives to layers of a class, such as separable_conv2d."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W", "", class_name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _class_and_number(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*?)(?:_(\d+))?", name, re.DOTALL)
    return match[1], int(match[2] or 0)


# ---- Matching.


def _list_wanted(layers: Sequence[keras.Layer], kind: str = "", outer: str = "") -> Iterator[_Wanted]:
    """Yields the layers that have weights, also those within Sequential layers, in order."""
    for layer in layers:
        own_kind = kind + _snake_case(type(layer).__name__)
        if hasattr(layer, "layers"):
            yield from _list_wanted(layer.layers, f"{own_kind}/", outer or layer.name)
        elif layer.weights and not isinstance(layer, keras.layers.Normalization):
            yield _Wanted(layer.name, outer or layer.name, type(layer).__name__, own_kind, layer.weights)


def _match(
    network: keras.Model, wanted: list[_Wanted], stored: list[_Stored]
) -> list[tuple[keras.Variable, h5py.Dataset]]:
    """Returns the variables of all wanted layers with their arrays, or raises a _MismatchError."""
    if all(layer.names for layer in stored):
        found = _by_name(wanted, stored)
        found.update(_by_number(wanted, stored, found))
        found.update(_by_order(network, wanted, stored, found))
    else:
        found = _by_class(wanted, stored)
    _check_others(stored, list(found.values()))
    return [pair for place, layer in enumerate(wanted) for pair in _pair(layer, found[place])]


def _plain(name: str) -> str:
    """Returns a name in one spelling: Keras 2 had expanded_conv/depthwise/BatchNorm for expanded_conv_depthwise_bn."""
    return name.lower().replace("/", "_").replace("batchnorm", "bn")


def _without_number(name: str) -> str:
    return re.sub(r"_\d+$", "", name).replace("_", "").lower()


def _by_name(wanted: list[_Wanted], stored: list[_Stored]) -> dict[int, _Stored]:
    """Returns the layers whose names Keras did not choose, by their places in `wanted`, or none of them."""
    depth = max(len(layer.names) for layer in stored)
    levels = [collections.defaultdict(list) for _ in range(depth)]
    for layer in stored:
        for level, name in zip(levels, layer.names, strict=False):
            level[_plain(name)].append(layer)
    found = {}
    missing = []
    for place, layer in enumerate(wanted):
        if layer.is_numbered:
            continue
        hits = next((level[_plain(layer.name)] for level in levels if _plain(layer.name) in level), [])
        if len(hits) > 1:
            raise _MismatchError(f"{len(hits)} layers are named {layer.name}")
        if hits:
            (found[place],) = hits
        else:
            missing.append(layer)
    if found and missing:
        raise _MismatchError(f"there is no layer {_say(missing[0])}")
    return found


def _by_number(wanted: list[_Wanted], stored: list[_Stored], found: dict[int, _Stored]) -> dict[int, _Stored]:
    """Returns the layers with names such as conv2d_7, by their places in `wanted`, as far as they are found.

    The same function of Keras made both networks, and numbered the layers as it made them. So the order is the same,
    but not the first number.
    """
    used = {id(layer) for layer in found.values()}
    groups, candidates = collections.defaultdict(list), collections.defaultdict(list)
    for place, layer in enumerate(wanted):
        if layer.is_numbered:
            groups[layer.class_name.lower(), layer.shapes].append((_class_and_number(layer.name)[1], place))
    classes = {class_name for class_name, _ in groups}
    for layer in stored:
        name = next((name for name in layer.names if _without_number(name) in classes), None)
        if name and id(layer) not in used:
            candidates[_without_number(name), layer.shapes].append((_class_and_number(name)[1], layer))
    numbered = {}
    for key, group in groups.items():
        those = dict(candidates[key])
        if not len(group) == len(those) == len(candidates[key]):
            continue  # Perhaps their order tells.
        places = [place for _, place in sorted(group)]
        pairs = dict(
            sorted(zip(places, (those[number] for number in sorted(those)), strict=True), key=lambda pair: pair[0])
        )
        positions = [layer.position for layer in pairs.values()]
        if positions != sorted(positions):
            raise _MismatchError(f"the numbers of the layers {key[0]} and their order contradict each other")
        numbered.update(pairs)
    return numbered


def _by_order(
    network: keras.Model, wanted: list[_Wanted], stored: list[_Stored], found: dict[int, _Stored]
) -> dict[int, _Stored]:
    """Returns the layers that neither a name nor a number told, by their places in `wanted`.

    Layers of equal shapes are told apart by their order only if each leads to the next. Every list of layers has these
    in one order. Parallel ones, such as the first and last convolution of a block of ResNet50, may have been swapped.
    """
    used = {id(layer) for layer in found.values()}
    rest = [place for place in range(len(wanted)) if place not in found]
    free = [layer for layer in stored if id(layer) not in used]
    if not rest:
        return {}
    ancestors = _ancestors(network)
    ordered = {}
    by_kind = any(layer.kind for layer in stored)
    for (kind, shapes), places in _group(
        rest, lambda place: (wanted[place].kind if by_kind else "", wanted[place].shapes)
    ).items():
        those = [layer for layer in free if (layer.kind, layer.shapes) == (kind, shapes)]
        first = wanted[places[0]]
        if len(those) < len(places):
            raise _MismatchError(f"there is no layer {_say(first)}, or one of another name in its place")
        outer = [wanted[place].outer_name for place in places]
        is_chain = all(a == b or a in ancestors[b] for a, b in itertools.pairwise(outer))
        is_told = is_chain and len({layer.position for layer in those}) == len(those)
        if len(those) > len(places) or (len(those) > 1 and not is_told):
            names = ", ".join(layer.names[0] for layer in those[:3])
            raise _MismatchError(f"neither names nor order tell which of {names} ... is {_say(first)}")
        those.sort(key=lambda layer: layer.position)
        ordered.update(zip(places, those, strict=True))
    return ordered


def _ancestors(network: keras.Model) -> dict[str, set[str]]:
    """Returns for each layer of a network the names of the layers that lead to it."""
    ancestors = {}
    for layer in network.get_config()["layers"]:  # Each comes after those that lead to it.
        sources = set(_sources(layer["inbound_nodes"]))
        ancestors[layer["name"]] = sources.union(*(ancestors[name] for name in sources))
    return ancestors


def _sources(item: Any) -> Iterator[str]:
    """Yields the names of the layers whose outputs a part of a layer's config names."""
    if isinstance(item, dict):
        if "keras_history" in item:
            yield item["keras_history"][0]
        for value in item.values():
            yield from _sources(value)
    elif isinstance(item, (list, tuple)):
        for value in item:
            yield from _sources(value)


def _by_class(wanted: list[_Wanted], stored: list[_Stored]) -> dict[int, _Stored]:
    """Returns the layers of a file without names, by their places in `wanted`: Keras numbers them in each class."""
    found = {}
    for (kind, shapes), places in _group(enumerate(wanted), lambda item: (item[1].kind, item[1].shapes)).items():
        those = [layer for layer in stored if (layer.kind, layer.shapes) == (kind, shapes)]
        if len(those) != len(places):
            _, layer = places[0]
            raise _MismatchError(f"it has {len(those)} instead of {len(places)} layers such as {_say(layer)}")
        those.sort(key=lambda layer: layer.position)
        found.update((place, layer) for (place, _), layer in zip(places, those, strict=True))
    return found


def _check_others(stored: list[_Stored], used: list[_Stored]) -> None:
    """Raises a _MismatchError if there are other layers between the used ones, as in ResNet101 for ResNet50."""
    ids = {id(layer) for layer in used}
    for kind, layers in _group(stored, lambda layer: layer.kind).items():
        positions = [layer.position for layer in layers if id(layer) in ids]
        for layer in layers:
            has_kernel = any(len(shape) > 1 for shape in layer.shapes)
            if has_kernel and id(layer) not in ids and positions and min(positions) <= layer.position <= max(positions):
                raise _MismatchError(f"the layer {layer.names[0] if layer.names else kind} does not belong to it")


def _pair(wanted: _Wanted, stored: _Stored) -> list[tuple[keras.Variable, h5py.Dataset]]:
    """Returns the variables of a layer with their arrays."""
    arrays = {_weight_name(name): array for name, array in stored.arrays.items()}
    names = [weight.name for weight in wanted.weights]
    if set(names) == set(arrays):
        ordered = [arrays[name] for name in names]
    else:  # Numbers tell the order. Other names, such as depthwise_kernel, do if the shapes differ.
        ordered = list(stored.arrays.values())
        if not stored.kind and len(set(stored.shapes)) < len(ordered):
            raise _MismatchError(f"the weights of {_say(wanted)} have the names {', '.join(stored.arrays)}")
    if wanted.shapes != tuple(array.shape for array in ordered):
        raise _MismatchError(f"{_say(wanted)} has the shapes {' '.join(map(str, stored.shapes))}")
    if any(array.dtype.kind != "f" for array in ordered):
        raise _MismatchError(f"{_say(wanted)} holds {', '.join(str(array.dtype) for array in ordered)}, not floats")
    return list(zip(wanted.weights, ordered, strict=True))


def _weight_name(name: str) -> str:
    """Returns gamma for gamma:0, and for bn_conv1_gamma_1:0 of the first Keras."""
    name = re.sub(r"(_\d+)?(:\d+)?$", "", name)
    known = re.search(r"(gamma|beta|mean|variance|std)$", name)
    return (
        {"mean": "moving_mean", "variance": "moving_variance", "std": "moving_variance"}.get(known[1], known[1])
        if known
        else name
    )


def _group(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    groups = collections.defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _say(layer: _Wanted) -> str:
    return f"{layer.name} {' '.join(map(str, layer.shapes))}"


def _describe(network: _Network) -> str:
    names = [layer.names[0] for layer in network.layers if layer.names]
    listed = f", {', '.join(names[:3])} ..." if names else ""
    return f"{network.name or 'a network'} ({_count(network.layers)}{listed})"


def _count(layers: Sequence[Any]) -> str:
    return f"{len(layers)} layer{'s' if len(layers) != 1 else ''} with weights"
