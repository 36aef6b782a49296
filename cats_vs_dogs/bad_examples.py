"""Records and pictures that cannot be read: naming the first, or listing all and leaving them out."""

import contextlib
import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf
from absl import logging

from cats_vs_dogs import readers, terminal, tfrecords
from cats_vs_dogs.files import atomic_write, list_files
from cats_vs_dogs.readers import BaseReader, CatsVsDogsTestFeatureReader, Shards
from cats_vs_dogs.submission import id_problem, id_text
from cats_vs_dogs.utils import UserError

# Why something cannot be read: its file, the number of the record in it from 0, its id or "", the reason.
BadExample = tuple[str, int, str, str]

# What reading a file raises, and decoding a picture does not.
_READ_ERRORS = (
    tf.errors.DataLossError,
    tf.errors.FailedPreconditionError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.UnavailableError,
    tf.errors.UnknownError,
)


def open_shards(pattern: str, flag: str, reader: BaseReader, bad_examples: str, unique_ids: bool = False) -> Shards:
    """Finds shards, counts their records, and looks for bad ones. Writes nothing.

    Args:
        pattern: file glob.
        flag: the flag that gave it, for messages.
        reader: how to read a record.
        bad_examples: "fail": only the very first record is looked at, to notice shards of the wrong kind at once;
            "skip": all are, and the bad ones are left out, with what lies behind damage of a file.
        unique_ids: with "skip", whether a record without an id, or with one that came before, is bad too.

    Returns:
        The shards.

    Raises:
        UserError: if nothing matches, a file cannot be opened, or more than half of the records are bad; with "fail",
            if a file is damaged as far as its length fields tell, or the first record is bad.
    """
    scanned = {path: tfrecords.scan(path) for path in list_files(pattern, flag)}
    num_bytes = sum(scan.size for scan in scanned.values() if scan.count)
    if bad_examples == "fail":
        for path, scan in scanned.items():
            if scan.damage:
                raise UserError(f"{path}: {scan.damage}")
        shards = Shards({path: scan.count for path, scan in scanned.items()}, num_bytes=num_bytes)
        with named_errors(reader, shards):
            next(iter(readers.make_dataset(reader, shards, batch_size=1)))
        return shards
    readable = {path: scan.count for path, scan in scanned.items() if scan.count}
    bad_list = [(path, scan.count, "", scan.damage) for path, scan in scanned.items() if scan.damage]
    bad_list = sorted([*bad_list, *find_bad_examples(reader, readable, unique_ids)])
    records = {path: count + bool(scanned[path].damage) for path, count in readable.items()}
    return _unless_most_are_bad(Shards(records, bad_list, num_bytes))


def open_pictures(files: Sequence[str], reader: CatsVsDogsTestFeatureReader, bad_examples: str) -> Shards:
    """Does the same as `open_shards` for plain picture files: each counts as a file with one record.

    Args:
        files: their paths.
        reader: how to decode a picture.
        bad_examples: "fail": none is looked at; "skip": all are, and the bad ones are left out.

    Returns:
        The picture files.

    Raises:
        UserError: if more than half of them are bad.
    """
    bad_list = list(find_bad_pictures(reader, files)) if bad_examples == "skip" else []
    return _unless_most_are_bad(Shards(dict.fromkeys(files, 1), bad_list))


def _unless_most_are_bad(shards: Shards) -> Shards:
    num_bad, num_all = len(shards.bad_list), shards.num_examples + len(shards.bad_list)
    if num_bad > num_all / 2:
        path, number, _, reason = shards.bad_list[0]
        raise UserError(
            f"{num_bad} of {num_all} records cannot be read, more than half; the first: {path}: record {number}: "
            f"{reason}"
        )
    return shards


def write_list(shards: Shards, csv_path: str) -> None:
    """Lists what is left out in a CSV file and warns of it; if nothing is, deletes the list of an earlier run.

    Args:
        shards: what `open_shards` or `open_pictures` gave.
        csv_path: where the list goes.

    Raises:
        UserError: if the file cannot be written.
    """
    if not shards.bad_list:
        if tf.io.gfile.exists(csv_path):
            tf.io.gfile.remove(csv_path)
        return
    with atomic_write(csv_path, "") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["File", "Record", "Id", "Reason"])
        writer.writerows(shards.bad_list)
    num_bad, num_all = len(shards.bad_list), shards.num_examples + len(shards.bad_list)
    logging.warning("%d of %d records cannot be read and are skipped; %s lists them", num_bad, num_all, csv_path)


def find_bad_examples(reader: BaseReader, records: dict[str, int], unique_ids: bool = False) -> Iterator[BadExample]:
    """Reads all records and yields those that the reader cannot read, file by file.

    Args:
        reader: how to read a record.
        records: how many records of each file to read, by path.
        unique_ids: whether a record without an id, or with one that came before, is bad too.
    """
    # Built once, and not for every file.
    prepare = tf.function(readers.prepare_function(reader), input_signature=[tf.TensorSpec([1], tf.string)])
    first_places: dict[str, tuple[str, int]] = {}
    with terminal.progress_bar(sum(records.values()), " records", "checking") as progress:
        for path, count in records.items():
            items = tf.data.TFRecordDataset(path, buffer_size=2**18)
            reasons: dict[int, str] = {}
            behind = []
            for number, outcome in enumerate(_outcomes(items, count, lambda record: prepare(record[tf.newaxis]))):
                progress.update()
                if isinstance(outcome, _READ_ERRORS):
                    behind = [(path, unread, "", reason_of(outcome)) for unread in range(number, count)]
                    break
                if isinstance(outcome, Exception):
                    reasons[number] = reason_of(outcome)
                elif unique_ids:
                    reason = id_problem(id_text(outcome[0]), (path, number), first_places)
                    if reason:
                        reasons[number] = reason
            if reasons:
                for number, record in enumerate(items.take(max(reasons) + 1).as_numpy_iterator()):
                    if number in reasons:
                        yield path, number, id_of(record), reasons[number]
            yield from behind


def _outcomes(items: tf.data.Dataset, count: int, function: Callable) -> Iterator[Any]:
    """Yields, for each of `count` items, the first value that `function` returns, or the error that it raises."""
    # In two steps: in one, TensorFlow may leave out what the first value does not need, such as decoding.
    outcomes = items.map(function, tf.data.AUTOTUNE).map(lambda first, *unused_others: first)
    iterator = outcomes.as_numpy_iterator()
    for _ in range(count):  # Not until its end, which a file that has vanished does not come to.
        try:
            yield next(iterator)
        except StopIteration:
            return
        except (tf.errors.OpError, UnicodeDecodeError) as error:
            yield error


def id_of(record: bytes) -> str:
    """Returns the id in a serialized record, "" if there is none."""
    with contextlib.suppress(Exception):  # Whatever is wrong with the record is said elsewhere.
        feature = tf.train.Example.FromString(record).features.feature[tfrecords.FILENAME]
        return id_text(feature.bytes_list.value[0])
    return ""


def make_id_check(shards: Shards) -> Callable[[Iterable[str]], None]:
    """Returns a function that takes the ids of batch after batch, in order, and lets none pass that a CSV cannot have.

    Args:
        shards: what the batches are read from.

    Raises:
        UserError: the function does, for a missing id or one that came before, naming shard, record number and id.
    """
    bad_places = {bad[:2] for bad in shards.bad_list}
    all_places = ((path, number) for path, count in shards.records.items() for number in range(count))
    places = (place for place in all_places if place not in bad_places)
    first_places: dict[str, tuple[str, int]] = {}

    def check(example_ids: Iterable[str]) -> None:
        for example_id, (path, number) in zip(example_ids, places, strict=False):  # Takes no place without an id.
            reason = id_problem(example_id, (path, number), first_places)
            if reason:
                raise _named((path, number, example_id, reason))

    return check


def reason_of(error: Exception) -> str:
    """Says in a few words what a TensorFlow error about a record, or Python's when it shows one, means."""
    if isinstance(error, UnicodeDecodeError):  # TensorFlow quotes what cannot be parsed, and fails to show the quote.
        return "it is not a tf.train.Example"
    text = str(error.message)
    if isinstance(error, tf.errors.DataLossError):
        return "the shard is damaged from here on (checksum)"
    if isinstance(error, _READ_ERRORS):
        return f"the file cannot be read: {text}"
    missing = re.search(r"Feature: (\S+) \(data type.*could not be found", text)
    misshapen = re.search(r"Key: ([\w/]+)", text)
    if missing and missing[1] == tfrecords.LABEL:
        return f"it has no {tfrecords.LABEL}; test shards cannot be used here, give labelled ones"
    if missing:
        return f"it has no {missing[1]}"
    if misshapen:
        return f"{misshapen[1]} is not one {'integer' if misshapen[1] == tfrecords.LABEL else 'string'}"
    if "must be 0 (cat)" in text:
        return f"{tfrecords.LABEL} is neither 0 (cat) nor 1 (dog)"
    for known in (readers.TOO_LARGE, readers.NOT_READ):
        if known in text:
            return known
    if "parse" in text.lower() and "example" in text.lower():
        return "it is not a tf.train.Example"
    return "its picture cannot be decoded"


def _named(bad: BadExample) -> UserError:
    path, number, example_id, reason = bad
    name = f" ({example_id})" if example_id else ""
    advice = "" if "test shards" in reason else "; mend or remove it, or pass --bad_examples=skip"
    return UserError(f"{path}: record {number}{name}: {reason}{advice}")


@contextlib.contextmanager
def named_errors(reader: BaseReader, shards: Shards) -> Iterator[None]:
    """Turns an error of the input pipeline inside the block into one that names the record.

    Costs nothing until something fails; then the shards are read once more to find the record.

    Raises:
        UserError: naming shard, number of the record and id.
    """
    try:
        yield
    except (tf.errors.InvalidArgumentError, UnicodeDecodeError, *_READ_ERRORS) as error:
        left_out = {bad[:2] for bad in shards.bad_list}
        bad = next((bad for bad in find_bad_examples(reader, shards.records) if bad[:2] not in left_out), None)
        if bad is None:
            raise
        raise _named(bad) from error


@contextlib.contextmanager
def named_picture_errors(reader: CatsVsDogsTestFeatureReader, pictures: Shards) -> Iterator[None]:
    """The same as `named_errors` for plain picture files.

    Raises:
        UserError: naming the file.
    """
    try:
        yield
    except (tf.errors.InvalidArgumentError, *_READ_ERRORS):
        left_out = {bad[0] for bad in pictures.bad_list}
        bad = next((bad for bad in find_bad_pictures(reader, pictures.files) if bad[0] not in left_out), None)
        if bad is None:
            raise
        path, _, _, reason = bad
        raise UserError(
            f"{path}: {reason}; mend or remove it, or pass --bad_examples=skip; give pictures and shards by patterns "
            "of their own"
        ) from None


def find_bad_pictures(reader: CatsVsDogsTestFeatureReader, files: Sequence[str]) -> Iterator[BadExample]:
    """Yields the picture files that cannot be decoded."""
    ids = readers.picture_ids(files)
    paths = tf.data.Dataset.from_tensor_slices(list(files))

    def decode(path: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return path, reader.decode_images(tf.io.read_file(path)[tf.newaxis])

    with terminal.progress_bar(len(files), " pictures", "checking") as progress:
        for path, outcome in zip(files, _outcomes(paths, len(files), decode), strict=True):
            progress.update()
            if isinstance(outcome, Exception):
                yield path, 0, ids[path], reason_of(outcome)
