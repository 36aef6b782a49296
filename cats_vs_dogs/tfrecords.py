"""The record format: what one TFRecord holds, how shards are named, how many records a shard has."""

import os
import struct
from collections.abc import Iterable

import tensorflow as tf

from cats_vs_dogs.utils import UserError

IMAGE = "image/encoded"  # bytes: the JPEG file
FILENAME = "image/filename"  # bytes: the id of the example, such as "dog.12.jpg"
LABEL = "image/class/label"  # int64: 1 = dog, 0 = cat; absent in test shards

# A record on disk: its length (uint64), a CRC of the length (uint32), its bytes, a CRC of those (uint32).
# https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
_LENGTH = struct.Struct("<Q")
_HEADER_BYTES = 12
_FOOTER_BYTES = 4


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


def count_records(path: str) -> int:
    """Counts the records of a TFRecord file by its length fields, without reading the records.

    Raises:
        UserError: if the file is empty, is no TFRecord file, or breaks off within a record.
    """
    size = tf.io.gfile.stat(path).length
    if size == 0:
        raise UserError(f"{path}: the file is empty; make it again, or leave it out of the pattern")
    count, position = 0, 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while position < size:
            file.seek(position)
            header = file.read(_HEADER_BYTES)
            if len(header) == _HEADER_BYTES:
                position += _HEADER_BYTES + _LENGTH.unpack_from(header)[0] + _FOOTER_BYTES
            if len(header) < _HEADER_BYTES or position > size:
                if count == 0:
                    raise UserError(f"{path}: is not a TFRecord file{_what_else(header)}")
                raise UserError(f"{path}: breaks off within record {count}; make or download the shard again")
            count += 1
    return count
