"""Decoded pictures in files of the user's cache, for epochs that read instead of decode when memory is too small.

The files are mapped into memory. The kernel reads what is used and drops it when memory is short, so a machine needs
little memory for any number of pictures. The next run on the same pictures uses the files, too.
"""

import hashlib
import os
import shutil
import uuid
from typing import IO

import google_crc32c
import numpy as np
import tensorflow as tf
from absl import logging

from cats_vs_dogs import files, kept_folders, readers, terminal, untracked

_BATCH_SIZE = 64
_MAX_KEPT_BYTES = 16 * 2**30  # Limit for all files together. Those in use are kept, even above it.
_COLUMNS = ("ids", "images", "labels")
_CHECKSUMS = "checksums.npy"
_READ_BYTES = 16 * 2**20


class PixelFiles:
    """The decoded pictures of shards, in a folder with an array in a file for each column.

    Args:
        reader: how to read a labelled record.
        shards: what to read.

    Attributes:
        num_bytes: how many bytes they take.
        parent: the folder of all such folders.
    """

    def __init__(self, reader: readers.BaseReader, shards: readers.Shards):
        self.num_bytes = readers.decoded_bytes(reader, shards)
        self.parent = os.path.join(files.cache_folder(), "pixels")
        self._reader = reader
        self._shards = shards
        read = readers.prepare_graph(reader)
        key = data_key(read.graph, reader, shards)
        self._is_reusable = key is not None and self.num_bytes <= _MAX_KEPT_BYTES
        # What no later run can find, or is too large to keep, is deleted as soon as it is mapped.
        self._folder = os.path.join(self.parent, key if self._is_reusable else uuid.uuid4().hex)

    def has_room(self) -> bool:
        """Whether they are there, or take at most a quarter of the free disk and at most the limit."""
        if os.path.isdir(self._folder):
            return True
        try:
            os.makedirs(self.parent, exist_ok=True)
            return self.num_bytes <= min(_MAX_KEPT_BYTES, shutil.disk_usage(self.parent).free // 4)
        except OSError:
            return False

    def columns(self) -> tuple[tf.Tensor, ...]:
        """Returns the same as `readers.decode_all`, mapped from the files, which are made if they are not there.

        Raises:
            OSError: if they cannot be written.
            UserError: if the shards have changed since they were counted.
        """
        is_new = False
        while not (_is_intact(self._folder) and kept_folders.hold(self._folder)):
            is_new = True
            kept_folders.check_room(self.parent, self.num_bytes, _MAX_KEPT_BYTES)
            kept_folders.make(self._folder, self._write, _is_intact)
        columns = _map(self._folder)
        if not self._is_reusable:  # The mapped bytes stay until the process ends.
            shutil.rmtree(self._folder, ignore_errors=True)
        made = "" if is_new else ", made by an earlier run,"
        logging.info("Decoded pictures of %d examples%s are in %s", self._shards.num_examples, made, self._folder)
        return columns

    def _write(self, folder: str) -> None:
        """Decodes all pictures, and writes them into an empty folder, with little memory."""
        paths = [os.path.join(folder, f"{name}.npy") for name in _COLUMNS]
        ids: list[bytes] = []
        num_examples = self._shards.num_examples
        with (
            open(paths[1], "wb") as image_file,
            open(paths[2], "wb") as label_file,
            terminal.progress_bar(num_examples, " pictures", "decoding") as progress,
        ):
            for batch in readers.make_dataset(self._reader, self._shards, _BATCH_SIZE):
                for file, column in zip((image_file, label_file), batch[1:], strict=True):
                    _append(file, column.numpy(), num_examples)
                ids += batch[0].numpy().tolist()
                progress.update(len(batch[0]))
        readers.check_count(len(ids), num_examples)
        np.save(paths[0], np.array(ids, "S"))
        np.save(os.path.join(folder, _CHECKSUMS), _checksums(folder))


def data_key(reading: tf.Graph, reader: readers.BaseReader, shards: readers.Shards) -> str | None:
    """Returns a hash of all that a reader's results depend on; None if that is not known.

    Args:
        reading: the graph of the reader's function.
        reader: how to read a labelled record.
        shards: what to read.
    """
    keys = shards.index and shards.index.keys()
    if keys is None or type(reader) is not readers.CatsVsDogsFeatureReader:  # One of the user's own may read anything.
        return None
    if untracked.depends_on_more(reading):
        return None
    labels = np.array([example.label for example in shards.index], np.int64)
    digest = hashlib.blake2b(repr((untracked.graph_number(reading), tf.__version__)).encode(), digest_size=16)
    for values in (keys, labels):
        digest.update(repr((values.shape, values.dtype)).encode())
        digest.update(np.ascontiguousarray(values))
    return digest.hexdigest()


def _append(file: IO[bytes], rows: np.ndarray, num_rows: int) -> None:
    """Appends rows to a .npy file that will have `num_rows` rows.

    A full disk raises an OSError here. A mapped file would end the process.
    """
    if not file.tell():
        header = np.lib.format.header_data_from_array_1_0(rows)
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (num_rows, *rows.shape[1:])})
    file.write(np.ascontiguousarray(rows))


def _checksums(folder: str) -> np.ndarray:
    """Returns a checksum of the file of each column."""
    return np.array([_checksum(os.path.join(folder, f"{name}.npy")) for name in _COLUMNS], np.int64)


def _checksum(path: str) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while data := file.read(_READ_BYTES):
            checksum = google_crc32c.extend(checksum, data)
    return checksum


def _is_intact(folder: str) -> bool:
    """Whether a folder holds all columns as they were written: cleaning programs may damage old files."""
    try:
        return np.array_equal(np.load(os.path.join(folder, _CHECKSUMS)), _checksums(folder))
    except (OSError, ValueError, EOFError):
        return False


def _map(folder: str) -> tuple[tf.Tensor, ...]:
    """Returns the columns in a folder. All but the ids are mapped, not read."""
    paths = [os.path.join(folder, f"{name}.npy") for name in _COLUMNS]
    with tf.device("CPU"):
        # "r+" shares the pages with other processes, and nothing writes to them. TensorFlow takes no read-only arrays.
        mapped = [np.load(path, mmap_mode="r+") for path in paths[1:]]
        return tf.constant(np.load(paths[0])), *(tf.experimental.dlpack.from_dlpack(one.__dlpack__()) for one in mapped)
