"""Records and pictures that cannot be read: names the first one, or lists all of them and leaves them out."""

import contextlib
import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf
from absl import logging

from cats_vs_dogs import decoding, example_index, files, picture_files, readers, submission, terminal, tfrecords
from cats_vs_dogs.photo_sources import read_file
from cats_vs_dogs.pictures import BadImage
from cats_vs_dogs.readers import BaseReader, CatsVsDogsFeatureReader, Shards
from cats_vs_dogs.utils import UserError

# A record that cannot be read: its file, its number in the file from 0, its id or "", the reason.
BadExample = tuple[str, int, str, str]

# Errors of reading a file; decoding a picture raises none of them.
_READ_ERRORS = (
    tf.errors.DataLossError,
    tf.errors.FailedPreconditionError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.UnavailableError,
    tf.errors.UnknownError,
)


def open_shards(
    pattern: str | Sequence[str],
    flag: str,
    reader: BaseReader,
    bad_examples: str,
    submission_format: str = "",
    with_index: bool = False,
) -> Shards:
    """Finds shards, counts their records and looks for bad records. Writes nothing.

    Args:
        pattern: one file glob, or several.
        flag: the flag that named it, for messages.
        reader: how to read a record.
        bad_examples: "fail": checks only the very first record, to notice shards of the wrong kind at once. "skip":
            checks all records and leaves out the bad ones, and all records after damage in a file.
        submission_format: with "skip", a record is also bad if a CSV of this format, one of submission.FORMATS, cannot
            have its id. "": the id does not matter.
        with_index: whether to check the labels, and to return labels and pictures as `Shards.index`.

    Returns:
        The shards.

    Raises:
        UserError: if nothing matches, a file cannot be opened, labels are of other classes than cat and dog, or more
            than half of the records are bad; with "fail", if the length fields of a file show damage, or the first
            record is bad.
    """
    patterns = [pattern] if isinstance(pattern, str) else pattern
    paths = [path for one in patterns for path in files.list_files(one, flag)]
    scanned, index = _scan(paths, reader, with_index, reads_all=bad_examples == "skip")
    num_bytes = sum(scan.size for scan in scanned.values() if scan.count)
    if bad_examples == "fail":
        for path, scan in scanned.items():
            if scan.damage:
                raise UserError(f"{path}: {scan.damage}")
    if index:
        example_index.check_labels(index, f"--{flag}={','.join(patterns)}")
    if bad_examples == "fail":
        shards = Shards({path: scan.count for path, scan in scanned.items()}, num_bytes=num_bytes, index=index)
        with explain_read_errors(reader, shards):
            readers.prepare_graph(reader)(readers.first_record(shards))
        return shards
    readable = {path: scan.count for path, scan in scanned.items() if scan.count}
    bad_list = [(path, scan.count, "", scan.damage) for path, scan in scanned.items() if scan.damage]
    bad_list = sorted([*bad_list, *find_bad_examples(reader, readable, submission_format)])
    records = {path: count + bool(scanned[path].damage) for path, count in readable.items()}
    shards = _unless_most_are_bad(Shards(records, bad_list, num_bytes))
    return dataclasses.replace(shards, index=index.without(shards.bad) if index else None)


def _scan(
    paths: Sequence[str], reader: BaseReader, with_index: bool, reads_all: bool
) -> tuple[dict[str, tfrecords.Scan], example_index.ExampleIndex | None]:
    """Scans files; if there is to be an index, reads all their examples, or of large data the first ones."""
    has_labels = _reads_labels(reader)
    if not with_index:
        return {path: tfrecords.scan(path) for path in paths}, None
    if not reads_all and not example_index.is_small(paths):
        return {path: tfrecords.scan(path) for path in paths}, example_index.read_first(paths, has_labels)
    scanned: dict[str, tfrecords.Scan] = {}
    examples: dict[str, list[example_index.Example]] = {path: [] for path in paths}
    num_bytes, limit = 0, math.inf if reads_all else example_index.MAX_BYTES
    for path in paths:
        scanned[path] = tfrecords.scan(path, example_index.adder(examples[path]) if num_bytes <= limit else None)
        num_bytes += scanned[path].size
    return scanned, example_index.ExampleIndex(examples, num_bytes <= limit, has_labels)


def _reads_labels(reader: BaseReader) -> bool:
    """Whether a reader's labels are those that records have under `tfrecords.LABEL`, as those of the kit's reader."""
    if isinstance(reader, readers.ReaderForModels):
        return all(map(_reads_labels, reader.readers))
    methods = ("prepare_serialized_examples", "decode_serialized_examples")
    kit = CatsVsDogsFeatureReader
    return all(getattr(type(reader), name, None) is getattr(kit, name) for name in methods)


def open_pictures(
    paths: Sequence[str],
    reader: BaseReader,
    bad_examples: str,
    submission_format: str = "2017",
    read: Callable[[str], bytes] = read_file,
) -> Shards:
    """Does the same as `open_shards` for plain picture files: each counts as a file with one record.

    Args:
        paths: paths of the files.
        reader: how to read the record that is made of a picture.
        bad_examples: "fail": checks only the ids. "skip": checks all and leaves out the bad ones.
        submission_format: one of submission.FORMATS, whose CSV must be able to hold the ids.
        read: returns the bytes of a file, given its path, or raises BadImage.

    Returns:
        The picture files.

    Raises:
        UserError: if more than half of them are bad; with "fail", if an id is bad.
    """
    bad_list = list(find_bad_pictures(reader, paths, submission_format, read)) if bad_examples == "skip" else []
    pictures = _unless_most_are_bad(Shards(dict.fromkeys(paths, 1), bad_list))
    if bad_examples == "fail":  # The ids are known before the first picture is predicted.
        make_id_check(pictures, submission_format)(picture_files.picture_ids(paths).values())
    return pictures


def _unless_most_are_bad(shards: Shards) -> Shards:
    num_bad, num_all = len(shards.bad_list), shards.num_examples + len(shards.bad_list)
    if num_bad > num_all / 2:
        path, number, _, reason = shards.bad_list[0]
        raise UserError(
            f"{num_bad} of {num_all} records cannot be read, more than half; the first: {path}: record {number}: "
            f"{reason}"
        )
    return shards


def write_bad_examples(shards: Shards, csv_path: str) -> None:
    """Writes the list of records that are left out, as CSV, and logs a warning that names it.

    If none is left out, deletes the list of an earlier run.

    Args:
        shards: the result of `open_shards` or `open_pictures`.
        csv_path: path of the list.

    Raises:
        UserError: if the file cannot be written.
    """
    if not shards.bad_list:
        if files.exists(csv_path):
            files.remove(csv_path)
        return
    import pandas as pd  # Late: it takes half a second, and most runs write no list.

    rows = pd.DataFrame(shards.bad_list, columns=["File", "Record", "Id", "Reason"])
    with files.atomic_write(csv_path) as file:
        rows.to_csv(file, index=False, lineterminator="\n")
    num_bad, num_all = len(shards.bad_list), shards.num_examples + len(shards.bad_list)
    logging.warning("%d of %d records cannot be read and are skipped; %s lists them", num_bad, num_all, csv_path)


def find_bad_examples(reader: BaseReader, records: dict[str, int], submission_format: str = "") -> Iterator[BadExample]:
    """Reads all records and yields those that the reader cannot read, file by file.

    Args:
        reader: how to read a record.
        records: the number of records to read in each file, by path.
        submission_format: see `open_shards`.
    """
    first_places: dict[str | int, tuple[str, submission.Place]] = {}
    with terminal.progress_bar(sum(records.values()), " records", "checking") as progress:
        for path, outcomes in itertools.groupby(_outcomes(reader, records), key=lambda outcome: outcome[0]):
            reasons: dict[int, str] = {}
            after_damage: list[BadExample] = []
            for _, number, outcome in outcomes:
                progress.update()
                if isinstance(outcome, _READ_ERRORS):
                    unread = range(number, records[path])
                    after_damage = [(path, its_number, "", describe_error(outcome)) for its_number in unread]
                elif isinstance(outcome, Exception):
                    reasons[number] = describe_error(outcome)
                elif submission_format:
                    example_id = submission.id_text(outcome[0])
                    reason = submission.id_problem(example_id, (path, number), first_places, submission_format)
                    if reason:
                        reasons[number] = reason
            yield from _with_ids(path, reasons)
            yield from after_damage


def _with_ids(path: str, reasons: dict[int, str]) -> Iterator[BadExample]:
    """Reads a file once more, for the ids of its bad records. `reasons` says why each is bad, by record number."""
    if not reasons:
        return
    records = itertools.chain(readers.records_in(path).as_numpy_iterator(), itertools.repeat(b""))  # See `_outcomes`.
    for number in range(max(reasons) + 1):
        record = next(records)
        if number in reasons:
            yield path, number, id_of(record), reasons[number]


def _outcomes(reader: BaseReader, records: dict[str, int]) -> Iterator[tuple[str, int, Any]]:
    """Yields, for each record, its file, its number, and the reader's first value for it or the error of reading it.

    After an error of reading the file itself, the next file follows.
    """
    prepare = readers.prepare_graph(reader)

    @tf.autograph.experimental.do_not_convert
    def records_of(path: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
        # If the file has lost records since they were counted, empty ones stand for them.
        empty = tf.data.Dataset.from_tensors(b"").repeat()
        return readers.records_in(path).concatenate(empty).take(count)

    left = list(records.items())
    while left:
        # One pipeline for all files: to start one takes longer than to read dozens of records.
        paths, counts = zip(*left, strict=True)
        items = tf.data.Dataset.from_tensor_slices((list(paths), tf.constant(counts, tf.int64))).flat_map(records_of)
        # Two `map`s: with one, TensorFlow may skip what the first value does not need, such as decoding.
        outcomes = readers.map_batches(items, tf.autograph.experimental.do_not_convert(lambda one: prepare(one[None])))
        iterator = outcomes.map(lambda first, *unused_others: first).as_numpy_iterator()
        for file, number in ((file, number) for file, count in enumerate(counts) for number in range(count)):
            try:
                outcome = next(iterator)
            except (tf.errors.OpError, UnicodeDecodeError) as error:
                outcome = error
            yield paths[file], number, outcome
            if isinstance(outcome, _READ_ERRORS):
                left = left[file + 1 :]
                break
        else:
            return


def id_of(record: bytes) -> str:
    """Returns the id in a serialized record, or "" if it has no id."""
    with contextlib.suppress(Exception):  # Another message says what is wrong with the record.
        feature = tf.train.Example.FromString(record).features.feature[tfrecords.FILENAME]
        return submission.id_text(feature.bytes_list.value[0])
    return ""


def make_id_check(shards: Shards, submission_format: str = "2017") -> Callable[[Iterable[str]], None]:
    """Returns a function that checks the ids of one batch after another, in order.

    Args:
        shards: the files that the batches are read from.
        submission_format: one of submission.FORMATS.

    Raises:
        UserError: the function does, if the CSV cannot have an id. It names the shard, the record number and the id.
    """
    bad_places = {bad[:2] for bad in shards.bad_list}
    all_places = ((path, number) for path, count in shards.records.items() for number in range(count))
    id_check = submission.IdCheck((place for place in all_places if place not in bad_places), submission_format)

    def check(example_ids: Iterable[str]) -> None:
        for (path, number), example_id, reason in id_check.problems(example_ids):
            raise _record_error((path, number, example_id, reason))

    return check


def describe_error(error: Exception) -> str:
    """Returns, in a few words, why a record cannot be read.

    Args:
        error: TensorFlow's error, or the UnicodeDecodeError that Python raises when it shows TensorFlow's message.
    """
    if isinstance(error, UnicodeDecodeError):  # TensorFlow quotes bytes that are not UTF-8.
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
    for known in (decoding.TOO_LARGE, decoding.NOT_READ):
        if known in text:
            return known
    if "parse" in text.lower() and "example" in text.lower():
        return "it is not a tf.train.Example"
    return "its picture cannot be decoded"


def _record_error(bad: BadExample) -> UserError:
    path, number, example_id, reason = bad
    name = f" ({example_id})" if example_id else ""
    advice = "" if "test shards" in reason else "; fix or remove it, or pass --bad_examples=skip"
    return UserError(f"{path}: record {number}{name}: {reason}{advice}")


@contextlib.contextmanager
def explain_read_errors(reader: BaseReader, shards: Shards) -> Iterator[None]:
    """Turns an error of the input pipeline inside the block into one that names the bad record.

    Costs no time unless the block fails. Then the shards are read once more to find the record.

    Raises:
        UserError: with the shard, the record number and the id.
    """
    try:
        yield
    except (tf.errors.InvalidArgumentError, UnicodeDecodeError, *_READ_ERRORS) as error:
        left_out = {bad[:2] for bad in shards.bad_list}
        bad = next((bad for bad in find_bad_examples(reader, shards.records) if bad[:2] not in left_out), None)
        if bad is None:
            raise
        raise _record_error(bad) from error


@contextlib.contextmanager
def explain_picture_errors(
    reader: BaseReader, pictures: Shards, read: Callable[[str], bytes] = read_file
) -> Iterator[None]:
    """Does the same as `explain_read_errors` for plain picture files.

    Raises:
        UserError: with the path of the file.
    """
    try:
        yield
    except (BadImage, tf.errors.InvalidArgumentError, UnicodeDecodeError, *_READ_ERRORS):
        left_out = {bad[0] for bad in pictures.bad_list}
        paths = [path for path in pictures.files if path not in left_out]
        path, _, _, reason = next(find_bad_pictures(reader, paths, read=read), ("", 0, "", ""))
        if not path:
            raise
        advice = "or pass --bad_examples=skip"
        if "save it as" not in reason:
            advice = f"fix or remove it, {advice}"
        with contextlib.suppress(*files.file_errors()):  # A file in a .zip has no path.
            if tfrecords.is_shard(path):
                advice += "; give pictures and shards by patterns of their own"
        raise UserError(f"{path}: {reason}; {advice}") from None


def find_bad_pictures(
    reader: BaseReader,
    paths: Sequence[str],
    submission_format: str = "",
    read: Callable[[str], bytes] = read_file,
) -> Iterator[BadExample]:
    """Yields the picture files that cannot be read, or have an id that a CSV of the format cannot have.

    The reasons of the former are those that the converter lists.
    """
    ids = picture_files.picture_ids(paths)
    first_places: dict[str | int, tuple[str, submission.Place]] = {}
    batches = picture_files.PictureBatches(reader, Shards(dict.fromkeys(paths, 1)), 1, read)
    with terminal.progress_bar(len(paths), " pictures", "checking") as progress:
        for path, outcome in zip(paths, batches.outcomes(), strict=True):
            progress.update()
            reason = ""
            if isinstance(outcome, BadImage):
                reason = str(outcome)
            elif isinstance(outcome, Exception):
                reason = describe_error(outcome)
            elif submission_format:
                reason = submission.id_problem(ids[path], (path, 0), first_places, submission_format)
            if reason:
                yield path, 0, ids[path], reason
