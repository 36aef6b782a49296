"""Records that cannot be read: naming the first, or listing all and leaving them out."""

import contextlib
import csv
from collections.abc import Iterator, Sequence

import tensorflow as tf
from absl import logging

from cats_vs_dogs import readers, tfrecords
from cats_vs_dogs.readers import BaseReader, CatsVsDogsTestFeatureReader, Shards
from cats_vs_dogs.utils import UserError, list_files


def open_shards(pattern: str, flag: str, reader: BaseReader, bad_examples: str, csv_path: str) -> Shards:
    """Finds shards, counts their records, and looks for bad ones.

    Args:
        pattern: file glob.
        flag: the flag that gave it, for messages.
        reader: how to read a record.
        bad_examples: "fail": only the very first record is looked at, to notice shards of the wrong kind at once;
            "skip": all are, and the bad ones are left out.
        csv_path: where the list of the bad ones goes; nothing is written if all can be read.

    Returns:
        The shards.

    Raises:
        UserError: if nothing matches, a file is no shard, the first record is bad, or more than half of them are.
    """
    records = {path: tfrecords.count_records(path) for path in list_files(pattern, flag)}
    if bad_examples == "skip":
        return Shards(records, list_bad_examples(reader, records, csv_path))
    shards = Shards(records)
    with named_errors(reader, shards):
        next(iter(readers.make_dataset(reader, shards, batch_size=1)))
    return shards


def find_bad_examples(
    reader: BaseReader, records: dict[str, int], first_only: bool = False
) -> list[tuple[str, int, str, str]]:
    """Reads all records and returns those that the reader cannot read.

    Args:
        reader: how to read a record.
        records: number of records of each file, by path.
        first_only: stop at the first one.

    Returns:
        (file, number of the record in it from 0, id or "", reason) for each.
    """
    prepare = tf.function(readers.prepare_function(reader), input_signature=[tf.TensorSpec([1], tf.string)])
    bad = []
    for path, count in records.items():
        numbered = tf.data.TFRecordDataset(path, buffer_size=2**18).enumerate()
        # Only the numbers of the good records come back, decoded by all cores; the few others are then looked at.
        good = numbered.map(lambda number, record: (number, prepare(record[tf.newaxis])), tf.data.AUTOTUNE)
        good = good.map(lambda number, unused_outputs: number).ignore_errors()
        good_numbers = set(good.as_numpy_iterator())
        try:
            for number, record in numbered.as_numpy_iterator():
                if number in good_numbers:
                    continue
                try:
                    prepare(tf.constant([record]))
                except tf.errors.OpError as error:
                    bad.append((path, int(number), _id_of(record), _reason(error)))
                    if first_only:
                        return bad
        except tf.errors.DataLossError as error:
            readable = len(good_numbers) + sum(1 for one in bad if one[0] == path)
            bad.extend((path, number, "", _reason(error)) for number in range(readable, count))
            if first_only:
                return bad[:1]
    return bad


def _id_of(record: bytes) -> str:
    with contextlib.suppress(Exception):  # Whatever is wrong with the record is said elsewhere.
        feature = tf.train.Example.FromString(record).features.feature[tfrecords.FILENAME]
        return feature.bytes_list.value[0].decode("utf-8", "replace")
    return ""


def _reason(error: tf.errors.OpError) -> str:
    """Says in a few words what a TensorFlow error about a record means."""
    text = str(error.message)
    if isinstance(error, tf.errors.DataLossError):
        return "the shard is damaged from here on (checksum)"
    if f"Key: {tfrecords.LABEL}" in text or f"{tfrecords.LABEL} (data type" in text:
        return f"it has no {tfrecords.LABEL}; test shards cannot be used here, give labelled ones"
    if tfrecords.IMAGE in text:
        return f"it has no {tfrecords.IMAGE}"
    if "must be 0 (cat)" in text:
        return f"{tfrecords.LABEL} is neither 0 (cat) nor 1 (dog)"
    if "parse" in text.lower() and "example" in text.lower():
        return "it is not a tf.train.Example"
    return "its picture cannot be decoded"


def list_bad_examples(reader: BaseReader, records: dict[str, int], csv_path: str) -> dict[str, list[int]]:
    """Reads all records and lists those that cannot be read in a CSV file.

    Args:
        reader: how to read a record.
        records: number of records of each file.
        csv_path: where the list goes; nothing is written if all can be read.

    Returns:
        The numbers of the bad records of each file that has any, by path.

    Raises:
        UserError: if more than half of the records are bad.
    """
    bad = find_bad_examples(reader, records)
    if not bad:
        return {}
    num_records = sum(records.values())
    path, number, _, reason = bad[0]
    logging.warning("%d of %d records cannot be read and are skipped; %s lists them", len(bad), num_records, csv_path)
    if len(bad) > num_records / 2:
        raise UserError(
            f"{len(bad)} of {num_records} records cannot be read, more than half; the first: {path}: record {number}: "
            f"{reason}"
        )
    with tf.io.gfile.GFile(csv_path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["File", "Record", "Id", "Reason"])
        writer.writerows(bad)
    numbers: dict[str, list[int]] = {}
    for path, number, _, _ in bad:
        numbers.setdefault(path, []).append(number)
    return numbers


@contextlib.contextmanager
def named_errors(reader: BaseReader, shards: Shards) -> Iterator[None]:
    """Turns an error of the input pipeline inside the block into one that names the record.

    Costs nothing until something fails; then the shards are read once more to find the record.

    Raises:
        UserError: naming shard, number of the record and id.
    """
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
        bad = find_bad_examples(reader, shards.records, first_only=True)
        if not bad:
            raise
        path, number, example_id, reason = bad[0]
        name = f" ({example_id})" if example_id else ""
        advice = "" if tfrecords.LABEL in reason else "; mend or remove it, or pass --bad_examples=skip"
        raise UserError(f"{path}: record {number}{name}: {reason}{advice}") from error


@contextlib.contextmanager
def named_picture_errors(reader: CatsVsDogsTestFeatureReader, files: Sequence[str]) -> Iterator[None]:
    """The same as `named_errors` for plain picture files.

    Raises:
        UserError: naming the file.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError:
        bad = next(iter(find_bad_pictures(reader, files)), None)
        if bad is None:
            raise
        raise UserError(
            f"{bad}: not a JPEG, PNG, GIF or BMP that can be decoded; mend or remove it, and give pictures and shards "
            "by patterns of their own"
        ) from None


def find_bad_pictures(reader: CatsVsDogsTestFeatureReader, files: Sequence[str]) -> Iterator[str]:
    """Yields the picture files that cannot be decoded."""
    decode = tf.function(reader.decode_images, input_signature=[tf.TensorSpec([1], tf.string)])
    for path in files:
        try:
            decode(tf.io.read_file(path)[tf.newaxis])
        except tf.errors.OpError:
            yield path
