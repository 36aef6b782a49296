"""The record format: what one TFRecord holds, how shards are named, how many records a shard has."""

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import google_crc32c
import tensorflow as tf

from cats_vs_dogs.files import explain_error
from cats_vs_dogs.utils import UserError

IMAGE = "image/encoded"  # bytes: the JPEG file
FILENAME = "image/filename"  # bytes: the id of the example, such as "dog.12.jpg"
LABEL = "image/class/label"  # int64: 1 = dog, 0 = cat; absent in test shards

# A record on disk: its length (uint64), a CRC of the length (uint32), its bytes, a CRC of those (uint32).
# https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")

_BAD_CHECKSUM = "is damaged from record {} on (checksum); make or download the shard again"


class Damage(Exception):
    """Says why a TFRecord file cannot be read from some record on."""


def make_example(encoded: bytes, filename: str, label: int | None) -> bytes:
    """Returns one serialized `tf.train.Example`.

    Args:
        encoded: the bytes of a JPEG file.
        filename: the id that the prediction CSV will show.
        label: 1 for a dog, 0 for a cat, None for an unlabelled picture.
    """

    def bytes_feature(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    features = {IMAGE: bytes_feature(encoded), FILENAME: bytes_feature(filename.encode("utf-8"))}
    if label is not None:
        features[LABEL] = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
    # Deterministic: by default the order of the features changes from process to process.
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def shard_path(folder: str, split: str, index: int, num_shards: int) -> str:
    """Returns a path such as "folder/train-00003-of-00014"."""
    return os.path.join(folder, f"{split}-{index:05d}-of-{num_shards:05d}")


def write_shard(path: str, examples: Iterable[bytes]) -> None:
    """Writes serialized examples as a TFRecord file, aside first and renamed when whole."""
    aside = f"{path}.{os.getpid()}.tmp"
    with tf.io.TFRecordWriter(aside) as writer:
        for example in examples:
            writer.write(example)
    tf.io.gfile.rename(aside, path, overwrite=True)


def _what_else(start: bytes) -> str:
    """Says what to do with a file of some other kind, by its first bytes."""
    if start.startswith((b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM", b"PK", b"RIFF", b"II", b"MM")):
        return "; make shards of pictures with convert_images_to_tfrecords.py"
    if start.startswith(b"\x1f\x8b"):
        return " but compressed by gzip; unpack it first"
    return "; leave it out of the pattern, or make or download the shard again"


class Scan(NamedTuple):
    """What the length fields of a TFRecord file say.

    Attributes:
        count: number of records before the damage.
        damage: what the damage is and what to do about it, "" if there is none.
        size: bytes of the file.
    """

    count: int
    damage: str
    size: int


def scan(path: str) -> Scan:
    """Counts the records of a TFRecord file up to its end or to where it is damaged. Looks at the length fields only.

    Raises:
        UserError: if the file cannot be read at all.
    """
    with _reading(path):
        size, count = tf.io.gfile.stat(path).length, 0
    try:
        for _ in walk(path, size=size):
            count += 1
    except Damage as damage:
        return Scan(count, str(damage), size)
    return Scan(count, "", size)


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except tf.errors.OpError as error:
        raise UserError(f"{path}: cannot be read: {explain_error(error)}; leave it out of the pattern") from error


def walk(
    path: str, position: int = 0, number: int = 0, with_bytes: bool = False, size: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """Goes from record to record of a TFRecord file.

    Args:
        path: the file.
        position: where in the file to begin, bytes: 0 or what an earlier walk gave.
        number: of the record there, from 0, for messages.
        with_bytes: whether to read the records and not only their length fields.
        size: bytes of the file, where they are known.

    Yields:
        Where each record begins, and its bytes, or none of them.

    Raises:
        Damage: where the file is damaged: what the damage is and what to do about it.
        UserError: if the file cannot be read at all.
    """
    with _reading(path):
        if size is None:
            size = tf.io.gfile.stat(path).length
        if size == 0:
            raise Damage("the file is empty; make it again, or leave it out of the pattern")
        with tf.io.gfile.GFile(path, "rb") as file:
            while position < size:
                file.seek(position)
                header = file.read(_HEADER.size)
                if not _is_header(header) and position == 0:
                    raise Damage(f"is not a TFRecord file{_what_else(header)}")
                if len(header) == _HEADER.size and not _is_header(header):
                    raise Damage(_BAD_CHECKSUM.format(number))
                length = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else 0
                end = position + _HEADER.size + length + _FOOTER.size
                if end > size:
                    raise Damage(f"breaks off within record {number}; make or download the shard again")
                record = file.read(length) if with_bytes else b""
                if with_bytes and _FOOTER.pack(_masked_crc(record)) != file.read(_FOOTER.size):
                    raise Damage(_BAD_CHECKSUM.format(number))
                yield position, record
                position, number = end, number + 1


def is_shard(path: str) -> bool:
    """Whether a file begins like a TFRecord file."""
    with tf.io.gfile.GFile(path, "rb") as file:
        return _is_header(file.read(_HEADER.size))


def _is_header(header: bytes) -> bool:
    """Whether these are a length and its checksum."""
    return len(header) == _HEADER.size and _masked_crc(header[:8]) == _HEADER.unpack(header)[1]


def _masked_crc(data: bytes) -> int:
    """Returns the checksum of TFRecord files: a CRC-32C, turned by 15 bits and moved by a constant."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
