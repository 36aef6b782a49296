"""Features: the output of a model's frozen part for each picture. They never change, so they are calculated once.

Training on features gives the same model as training on pictures, but runs only the part that learns. The features are
also kept in the user's cache folder, so the next run, with another head or other rates, reads them.
"""

import hashlib
import os
import shutil
import zlib
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from cats_vs_dogs import files, kept_folders, pixel_files, readers, untracked
from cats_vs_dogs.models import BuiltModel, all_layers
from cats_vs_dogs.utils import UserError

_BATCH_SIZE = 64  # The same in all runs, since another one may change the last bits.
_MAX_KEPT_BYTES = 4 * 2**30  # Limit for all kept features together.
_COLUMNS = ("ids", "features", "labels")


def num_bytes(model: BuiltModel, num_examples: int, with_mirrored: bool) -> int:
    """Returns how many bytes the features of `num_examples` pictures take; see `calculate`."""
    return 4 * (1 + with_mirrored) * num_examples * int(np.prod(model.frozen.output_shape[1:]))


def calculate(
    model: BuiltModel, reader: readers.BaseReader, shards: readers.Shards, with_mirrored: bool
) -> tuple[tf.Tensor, ...]:
    """Calculates the features of all examples, or reads those that an earlier run kept.

    Args:
        model: has a frozen part and its weights.
        reader: how to read a labelled record.
        shards: what to read.
        with_mirrored: whether to calculate features of the mirror images, too.

    Returns:
        Ids, string [n]; features, float32 [n, views, ...], where the views are the picture and perhaps its mirror
        image; labels, int32 [n, 1]. All are in the order of the shards and in the CPU's memory.

    Raises:
        UserError: if the frozen part differs between training and evaluation.
    """
    read = readers.prepare_graph(reader)
    id_spec, image_spec, label_spec = (tf.TensorSpec(one.shape, one.dtype) for one in read.structured_outputs)

    @tf.function(autograph=False, input_signature=[image_spec])
    def features_of(images: tf.Tensor) -> tf.Tensor:
        return model.frozen(readers.scale_images(images), training=False)

    graph = features_of.get_concrete_function().graph
    key = _key(graph, read.graph, model.frozen, reader, shards, with_mirrored)
    folder = key and os.path.join(files.cache_folder(), "features", key)
    what = f"{shards.num_examples:,} pictures{' and their mirror images' if with_mirrored else ''}"
    if folder and (columns := _read(folder)):
        if not all(type(layer).__module__.startswith("keras.") for layer in all_layers(model.frozen)):
            _check(model, read(readers.first_record(shards))[1])  # The number stands for evaluation alone.
        logging.info("Features of %s: read from %s.", what, folder)
        return columns

    def rows() -> Iterator[tuple[tf.Tensor, ...]]:
        for i, (ids, images, labels) in enumerate(readers.make_dataset(reader, shards, _BATCH_SIZE)):
            if i == 0:
                _check(model, images)
            views = [images, tf.reverse(images, [2])] if with_mirrored else [images]
            yield ids, tf.stack([features_of(view) for view in views], axis=1), labels

    specs = (id_spec, tf.TensorSpec([None, 1 + with_mirrored, *graph.outputs[0].shape[1:]], tf.float32), label_spec)
    columns = readers.collect(rows(), specs, shards.num_examples, "features")
    kept = _keep(folder, columns) if folder else ""
    logging.info("Features of %s: calculated once%s.", what, f", and kept in {kept}" if kept else "")
    return columns


def _check(model: BuiltModel, images: tf.Tensor) -> None:
    """Checks with a few pictures that the frozen part computes the same in training and in evaluation.

    Raises:
        UserError: if it does not.
    """
    frozen, some = model.frozen, readers.scale_images(images[:4])
    values = [variable.value for variable in frozen.non_trainable_variables]
    in_training, _ = frozen.stateless_call([], values, some, training=True)
    if not np.allclose(in_training, frozen(some, training=False), rtol=1e-4, atol=1e-5):
        raise UserError(
            f'{model.name}.create_model: the part before "features" differs between training and evaluation, as random '
            "layers and batch norm do; put random layers after it, freeze batch norm with trainable = False, or leave "
            '"features" out'
        )


def _key(
    graph: tf.Graph,
    reading: tf.Graph,
    frozen: keras.Model,
    reader: readers.BaseReader,
    shards: readers.Shards,
    with_mirrored: bool,
) -> str | None:
    """Returns a hash of everything that the features depend on; None if that is not known."""
    data_key = pixel_files.data_key(reading, reader, shards)
    if data_key is None:
        return None
    digest = hashlib.blake2b(digest_size=16)
    devices = sorted({device.device_type for device in tf.config.list_logical_devices()})
    graph_number = untracked.graph_number(graph, frozen.weights)
    digest.update(repr((data_key, graph_number, with_mirrored, tf.__version__, keras.__version__, devices)).encode())
    for values in [weight.numpy() for weight in frozen.weights]:
        digest.update(repr((values.shape, values.dtype)).encode())
        digest.update(np.ascontiguousarray(values))
    return digest.hexdigest()


# ---- Files of features: a folder for each set, with an array in a file for each column.


def _read(folder: str) -> tuple[tf.Tensor, ...] | None:
    """Returns the columns in a folder; None if the folder is missing or damaged."""
    try:
        arrays = [np.load(os.path.join(folder, f"{name}.npy"), mmap_mode="r") for name in _COLUMNS]
        if np.load(os.path.join(folder, "checksums.npy")).tolist() != [zlib.crc32(array) for array in arrays]:
            return None
        specs = [tf.TensorSpec([None, *array.shape[1:]], tf.as_dtype(array.dtype)) for array in arrays[1:]]
        os.utime(folder)  # The oldest ones are deleted first.
    except (OSError, ValueError, EOFError):
        return None
    specs = [tf.TensorSpec([None], tf.string), *specs]
    rows = zip(*(map(tf.constant, np.array_split(array, -(-len(array) // 4096))) for array in arrays), strict=True)
    return readers.collect(rows, specs, len(arrays[0]), "reading")


def _keep(folder: str, columns: tuple[tf.Tensor, ...]) -> str:
    """Writes columns into a folder, in place of old ones, and returns the folder; "" if that is not possible."""
    parent, size = os.path.dirname(folder), sum(column.dtype.size * tf.size(column).numpy() for column in columns[1:])

    def write(new: str) -> None:
        ids, *others = (column.numpy() for column in columns)
        arrays = [ids.astype("S"), *others]
        checksums = np.array([zlib.crc32(array) for array in arrays])  # Cleaning programs may damage old files.
        for name, array in zip((*_COLUMNS, "checksums"), (*arrays, checksums), strict=True):
            np.save(os.path.join(new, f"{name}.npy"), array)

    try:
        os.makedirs(parent, exist_ok=True)
        if size > min(_MAX_KEPT_BYTES, shutil.disk_usage(parent).free // 4):
            return ""
        kept_folders.make_room(parent, size, _MAX_KEPT_BYTES)
        kept_folders.make(folder, write, is_complete=lambda path: _read(path) is not None)
    except OSError as error:
        logging.warning("The features cannot be kept in %s: %s", parent, error)
        return ""
    return folder
