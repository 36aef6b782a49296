"""Reads plain picture files, as if the converter had written them to shards before.

Each file becomes a record in memory, the same one that the converter writes, and the reader reads it. So a picture has
the same pixels as a file and in a shard, for any reader.
"""

import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from cats_vs_dogs import tfrecords
from cats_vs_dogs.photo_sources import read_file
from cats_vs_dogs.pictures import BadImage, usable_jpeg
from cats_vs_dogs.readers import BaseReader, Shards, map_batches, prepare_graph


class PictureBatches:
    """Plain picture files as batches, as `readers.make_dataset` returns those of shards.

    Args:
        reader: how to read a record.
        pictures: the files; each counts as a file with one record.
        batch_size: pictures per batch; the last batch may have fewer.
        read: returns the bytes of a file, given its path, or raises BadImage.

    Attributes:
        element_spec: shapes and dtypes of a batch, as a `tf.data.Dataset` has them.
    """

    def __init__(self, reader: BaseReader, pictures: Shards, batch_size: int, read: Callable[[str], bytes] = read_file):
        self._ids = picture_ids(pictures.files)
        self._paths = [path for path in pictures.files if path not in pictures.bad]
        self._batch_size = batch_size
        self._read = read
        # Pillow warns of harmless oddities, and of large pictures, which `usable_jpeg` checks.
        warnings.filterwarnings("ignore", module="PIL")
        self._prepare = prepare_graph(reader)
        starts = tf.data.Dataset.range(0, len(self._paths), batch_size)
        self._batches = map_batches(starts, self._prepare_unchecked)
        self.element_spec = self._batches.element_spec

    def __iter__(self) -> Iterator[tuple[tf.Tensor, ...]]:
        """Yields the batches in the order of the files, with images still uint8 (see `readers.scale_images`).

        Raises:
            BadImage, tf.errors.OpError or UnicodeDecodeError: if a picture cannot be read.
        """
        for outcome in self.outcomes():
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome

    def outcomes(self) -> Iterator[tuple[tf.Tensor, ...] | Exception]:
        """Yields each batch, or the error that reading it raises."""
        batches = iter(self._batches)
        for start in range(0, len(self._paths), self._batch_size):
            try:
                outcome = next(batches)
            except (tf.errors.OpError, UnicodeDecodeError):
                outcome = self._prepare_checked(start)
            yield outcome

    def _prepare_unchecked(self, start: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Reads a batch without a check that TensorFlow can decode each JPEG. This saves time."""
        make_records = functools.partial(self._records, check_decoding=False)
        records = tf.numpy_function(make_records, [start], tf.string, stateful=False)
        return self._prepare(tf.ensure_shape(records, [None]))

    def _prepare_checked(self, start: int) -> tuple[tf.Tensor, ...] | Exception:
        """Reads a batch. A picture that only Pillow can decode becomes a new JPEG, as in the converter."""
        try:
            return self._prepare(tf.constant(self._records(start, check_decoding=True)))
        except (BadImage, tf.errors.OpError, UnicodeDecodeError) as error:
            return error

    def _records(self, start: int, check_decoding: bool) -> np.ndarray:
        records = []
        for path in self._paths[start : start + self._batch_size]:
            encoded, _ = usable_jpeg(self._read(path), check_decoding)
            records.append(tfrecords.make_example(encoded, self._ids[path], None))
        return np.array(records, object)


def picture_ids(files: Sequence[str]) -> dict[str, str]:
    """Returns the id of each picture file: its path, relative to the innermost folder that has all files.

    Args:
        files: their paths, at least one. If some are absolute and some are not, the ids are the paths themselves.
    """
    folder = os.path.dirname(files[0])
    while not all(path.startswith(os.path.join(folder, "")) for path in files):
        folder = os.path.dirname(folder) if os.path.dirname(folder) != folder else ""
    return {path: path[len(os.path.join(folder, "")) :] for path in files}
