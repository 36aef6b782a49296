"""The TFRecord format: what a record holds, how shards are named, and reading a shard without decoding it."""

import contextlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import google_crc32c
import tensorflow as tf

from cats_vs_dogs import archives, file_patterns, files, pictures
from cats_vs_dogs.utils import UserError

IMAGE = "image/encoded"  # bytes: the JPEG file
FILENAME = "image/filename"  # bytes: the example's id, such as "dog.12.jpg"
LABEL = "image/class/label"  # int64: 1 = dog, 0 = cat; absent in test shards

# In a file, a record is its length (uint64), the length's checksum (uint32), its bytes, the bytes' checksum (uint32).
# https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")

_BAD_CHECKSUM = "is damaged from record {} on (checksum); make or download the shard again"


class DamageError(Exception):
    """A TFRecord file is damaged, and the rest of it cannot be read. The message says why and what to do."""


def make_example(encoded: bytes, filename: str, label: int | None) -> bytes:
    """Returns a serialized `tf.train.Example`.

    Args:
        encoded: the content of a JPEG file.
        filename: the example's id, which the CSV of predictions shows.
        label: 1 for a dog, 0 for a cat, None for an unlabelled image.
    """

    example = tf.train.Example()
    features = example.features.feature  # Filled in place: a constructor would copy the picture at each level.
    features[IMAGE].bytes_list.value.append(encoded)
    features[FILENAME].bytes_list.value.append(filename.encode("utf-8"))
    if label is not None:
        features[LABEL].int64_list.value.append(label)
    # Without `deterministic`, the order of the features differs between processes.
    return example.SerializeToString(deterministic=True)


def shard_path(folder: str, split: str, index: int, num_shards: int) -> str:
    """Returns a path such as "folder/train-00003-of-00014"."""
    return os.path.join(folder, f"{split}-{index:05d}-of-{num_shards:05d}")


def write_shard(path: str, examples: Iterable[bytes]) -> None:
    """Writes serialized examples to a TFRecord file. They are written to a temporary path, which is renamed at the end.

    Args:
        path: the file to write. An older file there is replaced.
        examples: the serialized examples.

    Raises:
        tf.errors.OpError: if a local or remote file cannot be written.
        OSError: if a local file cannot be renamed.
    """
    temporary = files.temporary_path(path)
    with tf.io.TFRecordWriter(temporary) as writer:
        for example in examples:
            writer.write(example)
    if files.is_remote(path):
        tf.io.gfile.rename(temporary, path, overwrite=True)
    else:
        files.replace(temporary, path)


def _advice(start: bytes, path: str) -> str:
    """Returns what to do about a file that is not a TFRecord file, judging by its first bytes."""
    if pictures.format_of(start) or start.startswith(b"PK"):
        source = path if start.startswith(b"PK") else os.path.dirname(path) or "."
        return f"; make shards of pictures first: {file_patterns.convert_command(source)}"
    compression = archives.kind_of(start)
    if compression:
        return f" but compressed by {compression}; unpack it first"
    return "; leave it out of the pattern, or make or download the shard again"


class Scan(NamedTuple):
    """The result of `scan`.

    Attributes:
        count: number of records; of a damaged file, those before the damage.
        damage: what the damage is and what to do about it; "" for an intact file.
        size: size of the file, bytes.
    """

    count: int
    damage: str
    size: int


def scan(path: str, visit: Callable[[bytes], None] | None = None) -> Scan:
    """Counts the records of a TFRecord file. Only length fields are checked, so other damage is not found.

    Args:
        path: the file.
        visit: called with each record, up to any damage. None: only length fields are read.

    Raises:
        UserError: if the file cannot be opened or read.
    """
    with _reading(path):
        size, count = tf.io.gfile.stat(path).length, 0
    try:
        for _, record in walk(path, with_bytes=visit is not None, size=size):
            count += 1
            if visit:
                visit(record)
    except DamageError as damage:
        return scan(path) if visit else Scan(count, str(damage), size)
    return Scan(count, "", size)


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turns an error about reading a file inside the block into a UserError."""
    try:
        yield
    except tf.errors.OpError as error:
        raise UserError(f"{path}: cannot be read: {files.explain_error(error)}; leave it out of the pattern") from error


def walk(
    path: str, position: int = 0, number: int = 0, with_bytes: bool = False, size: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """Iterates over the records of a TFRecord file.

    Args:
        path: the file.
        position: position of the first record to visit, bytes: 0, or a position that an earlier walk yielded.
        number: number of that record in the file, counted from 0, for messages.
        with_bytes: True reads complete records and checks their checksums; False reads only their length fields.
        size: size of the file in bytes; None asks the file system.

    Yields:
        (position, bytes) of each record. Without `with_bytes` the bytes are b"".

    Raises:
        DamageError: when the walk comes to damage. All records before it have been yielded.
        UserError: if the file cannot be opened or read.
    """
    with _reading(path):
        if size is None:
            size = tf.io.gfile.stat(path).length
        if size == 0:
            raise DamageError("the file is empty; make it again, or leave it out of the pattern")
        with tf.io.gfile.GFile(path, "rb") as file:
            while position < size:
                file.seek(position)
                header = file.read(_HEADER.size)
                if not _is_header(header) and position == 0:
                    raise DamageError(f"is not a TFRecord file{_advice(header, path)}")
                if len(header) == _HEADER.size and not _is_header(header):
                    raise DamageError(_BAD_CHECKSUM.format(number))
                length = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else 0
                end = position + _HEADER.size + length + _FOOTER.size
                if end > size:
                    raise DamageError(f"breaks off within record {number}; make or download the shard again")
                record = file.read(length) if with_bytes else b""
                if with_bytes and _FOOTER.pack(_masked_crc(record)) != file.read(_FOOTER.size):
                    raise DamageError(_BAD_CHECKSUM.format(number))
                yield position, record
                position, number = end, number + 1


def is_shard(path: str) -> bool:
    """Returns whether a file begins like a TFRecord file."""
    with tf.io.gfile.GFile(path, "rb") as file:
        return _is_header(file.read(_HEADER.size))


def _is_header(header: bytes) -> bool:
    """Returns whether these bytes are a record's length and the matching checksum."""
    return len(header) == _HEADER.size and _masked_crc(header[:8]) == _HEADER.unpack(header)[1]


def _masked_crc(data: bytes) -> int:
    """Returns the checksum that TFRecord files use: a CRC-32C, rotated right by 15 bits, plus a constant."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
