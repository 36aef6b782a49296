"""The work of batch_predict.py: it divides shards into parts, lets workers predict them, and joins their results.

Worker processes import this module.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import math
import os
import shlex
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.utils.shared import Shared
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from cats_vs_dogs import bad_examples, beam_runners, files, submission, tfrecords, utils
from cats_vs_dogs.plain_paths import plain_path

# What an export offers, see export_model.ModelExporter.
SIGNATURE = "serving_default"
INPUT = "example_bytes"
OUTPUTS = ("class_indexes", "image_id", "predictions")

ERRORS_FILE = "prediction.errors_stats-00000-of-00001"

# Fewer shards than this are divided into about so many parts, so that all workers are busy to the end. More shards are
# not divided: to find the parts, each shard must be read once more.
_PARTS = 64


@dataclasses.dataclass(frozen=True)
class Part:
    """Consecutive records of a shard.

    Attributes:
        shard: number of the shard.
        path: path of the shard.
        first: number of the part's first record in the shard, from 0.
        position: where that record begins in the file, bytes.
        count: number of records; None: all up to the end of the file.
    """

    shard: int
    path: str
    first: int = 0
    position: int = 0
    count: int | None = None

    @property
    def name(self) -> str:
        """The name of the file with the part's results."""
        return f"{self.shard}-{self.first}"


@dataclasses.dataclass(frozen=True)
class Record:
    """A record of a shard.

    Attributes:
        number: number of the record in the shard, from 0.
        data: a serialized `tf.train.Example`.
    """

    number: int
    data: bytes


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A record's prediction, or the reason why it has none.

    Attributes:
        number: number of the record in its shard.
        line: a JSON line; "" if there is an error.
        error: the reason; "" if there is a prediction.
        image_id: id of a record with an error, "" if it is not known.
        is_damage: whether the shard cannot be read from this record on.
    """

    number: int
    line: str = ""
    error: str = ""
    image_id: str = ""
    is_damage: bool = False


def run(model_dir: str, paths: Sequence[str], output_path: str, batch_size: int, options: PipelineOptions) -> None:
    """Predicts shards, and returns when all results are written.

    Workers may be on other machines and may be lost. The results of a part are a file that is complete or absent,
    however often the part is begun. When all these files are there, this process joins them into one for each shard.

    Args:
        model_dir: an export.
        paths: the shards.
        output_path: an existing folder for the results.
        batch_size: number of records that the model predicts at once.
        options: Beam's options.

    Raises:
        UserError: if the runner is not available or fails, or a file cannot be read or written.
    """
    # Workers may run in another folder than this process.
    model_dir, output_path = files.absolute_path(model_dir), files.absolute_path(output_path)
    num_parts = math.ceil(_PARTS / len(paths))
    unfinished = os.path.join(output_path, f"unfinished-{uuid.uuid4().hex}")
    tf.io.gfile.makedirs(unfinished)
    try:
        with beam_runners.failures_in_one_line(options):
            pipeline = beam_runners.open_pipeline(options, [model_dir, files.absolute_path(paths[0]), unfinished])
            # Workers cannot divide shards: DaskRunner would leave all parts of a shard to the worker that divided it.
            parts = [
                part
                for number, path in enumerate(paths)
                for part in divide(number, files.absolute_path(path), num_parts, batch_size)
            ]
            beam_runners.set_partitions(pipeline.options, len(parts))  # The pipeline has a copy of `options`.
            _ = (
                pipeline
                | "Parts" >> beam.Create(parts)
                | "PartsToWorkers" >> beam.Reshuffle()
                | "Predict" >> beam.Map(PartPredictor(model_dir, batch_size, unfinished))
            )
            beam_runners.wait(pipeline.run())
        with files.explain_write_errors(output_path, "output_path"):
            publish(parts, paths, output_path, unfinished)
    finally:
        with contextlib.suppress(tf.errors.NotFoundError):
            tf.io.gfile.rmtree(unfinished)


def check_model(model_dir: str) -> None:
    """Checks that a folder holds an export of this kit, without loading it.

    Raises:
        UserError: if it does not.
    """
    advice = "name an export of the kit, such as /tmp/cvd_model/export/step_45, or make one with export_model.py"
    path = os.path.join(model_dir, "saved_model.pb")
    if "," in model_dir:
        advice = "name one export of the kit, not several; only eval.py and inference.py take several models"
    exports = []
    with contextlib.suppress(*files.file_errors()):  # What cannot be listed is reported when it is read.
        exports = files.list_matching(os.path.join(model_dir, "export"), r"step_\d+")
    if exports:  # It is a train_dir.
        newest = max(exports, key=lambda export: int(export.rpartition("_")[2]))
        advice = f"write --model_dir={shlex.quote(newest)}"
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            model = saved_model_pb2.SavedModel.FromString(file.read())
    except (tf.errors.OpError, DecodeError) as error:
        raise utils.UserError(f"--model_dir={model_dir}: holds no SavedModel ({error}); {advice}") from error
    signatures = model.meta_graphs[0].signature_def if model.meta_graphs else {}
    if SIGNATURE not in signatures:
        names = ", ".join(sorted(signatures)) or "none"
        raise utils.UserError(f"--model_dir={model_dir}: has no signature {SIGNATURE} (it has: {names}); {advice}")
    inputs, outputs = (sorted(names) for names in (signatures[SIGNATURE].inputs, signatures[SIGNATURE].outputs))
    if inputs != [INPUT] or outputs != sorted(OUTPUTS):
        raise utils.UserError(
            f"--model_dir={model_dir}: its signature {SIGNATURE} takes {', '.join(inputs)} and returns "
            f"{', '.join(outputs)}, not {INPUT} and {', '.join(OUTPUTS)}; {advice}"
        )


def divide(number: int, path: str, num_parts: int, batch_size: int) -> Iterator[Part]:
    """Divides a shard into parts of similar size in bytes. Each has at least a batch, but for the last one.

    Damage is left for `read` to find: the last part includes it.

    Args:
        number: number of the shard.
        path: path of the shard.
        num_parts: the largest number of parts. If it is 1, the file is not opened.
        batch_size: number of records in a batch.

    Raises:
        UserError or tf.errors.OpError: if the shard cannot be read.
    """
    first, start = 0, 0
    if num_parts > 1:
        part_bytes = tf.io.gfile.stat(path).length / num_parts
        with contextlib.suppress(tfrecords.DamageError):
            for record, (position, _) in enumerate(tfrecords.walk(path)):
                if position - start >= part_bytes and record - first >= batch_size:
                    yield Part(number, path, first, start, record - first)
                    first, start = record, position
    yield Part(number, path, first, start)


def read(part: Part) -> Iterator[Record | Outcome]:
    """Reads the records of a part.

    Yields:
        Each `Record`; where the shard is damaged, an `Outcome` that says so.

    Raises:
        UserError: if the shard cannot be opened.
    """
    number = part.first
    try:
        walk = tfrecords.walk(part.path, part.position, part.first, with_bytes=True)
        for _, data in itertools.islice(walk, part.count):
            yield Record(number, data)
            number += 1
    except tfrecords.DamageError as damage:
        yield Outcome(number, error=str(damage), is_damage=True)


def load_model(model_dir: str) -> Any:
    """Returns a loaded SavedModel."""
    with plain_path(model_dir) as path:
        return tf.saved_model.load(path)


class PartPredictor:
    """Predicts parts and writes their results. It is sent to worker processes.

    Args:
        model_dir: the SavedModel.
        batch_size: number of records that the model predicts at once.
        folder: where to write the files of the parts.
    """

    def __init__(self, model_dir: str, batch_size: int, folder: str):
        self._model_dir = model_dir
        self._batch_size = batch_size
        self._folder = folder
        # A worker process loads the model once for all threads and parts, but again for the next job: the export may
        # have changed since.
        self._model = Shared()

    def __call__(self, part: Part) -> None:
        """Predicts a part, and writes a file of JSON lines and one of errors.

        A runner may call this again after a worker was lost, or while another one is still at the same part. So each
        call writes to names of its own, and the files then get their final names.
        """
        model = self._model.acquire(lambda: load_model(self._model_dir))
        temporary, final = (os.path.join(self._folder, name) for name in (uuid.uuid4().hex, part.name))
        errors = []
        with tf.io.gfile.GFile(temporary, "w") as file:
            file.write("")  # Otherwise the file of a part without predictions would not exist.
            for outcome in predict(model, read(part), self._batch_size):
                file.write(outcome.line)
                if outcome.error:
                    errors.append(dataclasses.asdict(outcome))
        with tf.io.gfile.GFile(f"{temporary}.errors", "w") as file:
            file.write(json.dumps(errors))
        for ending in (".errors", ""):
            tf.io.gfile.rename(temporary + ending, final + ending, overwrite=True)


def predict(model: Any, records: Iterator[Record | Outcome], batch_size: int) -> Iterator[Outcome]:
    """Yields the outcomes of records, in their order.

    Args:
        model: the loaded SavedModel.
        records: what `read` yields.
        batch_size: number of records that the model predicts at once.
    """
    while batch := list(itertools.islice(records, batch_size)):
        damage = [batch.pop()] if isinstance(batch[-1], Outcome) else []
        if batch:
            yield from predict_batch(model, batch)
        yield from damage


def predict_batch(model: Any, batch: Sequence[Record]) -> list[Outcome]:
    """Returns the outcome of each record of a batch.

    TensorFlow predicts all records of a batch or none of them. If one is bad, each is predicted alone.
    """
    try:
        outputs = model.signatures[SIGNATURE](**{INPUT: tf.constant([record.data for record in batch])})
    except (tf.errors.InvalidArgumentError, UnicodeDecodeError) as error:
        if len(batch) > 1:
            return [predict_batch(model, [record])[0] for record in batch]
        image_id, reason = bad_examples.id_of(batch[0].data), bad_examples.describe_error(error)
        return [Outcome(batch[0].number, error=reason, image_id=image_id)]
    return to_outcomes(batch, {name: outputs[name].numpy() for name in OUTPUTS})


def to_outcomes(batch: Sequence[Record], outputs: dict[str, Any]) -> list[Outcome]:
    """Returns the outcome of each record of a batch.

    Args:
        batch: the records.
        outputs: the model's outputs for them, NumPy arrays: image_id, bytes [batch]; class_indexes, int32 [batch, 2];
            predictions, float32 [batch, 2].
    """
    outcomes = []
    columns = (outputs[name].tolist() for name in ("image_id", "class_indexes", "predictions"))
    for record, encoded_id, indexes, values in zip(batch, *columns, strict=True):
        image_id = submission.id_text(encoded_id)
        # The same id in another record is found by the converter to CSV, which sees all rows.
        error = submission.id_problem(image_id, ("", record.number), first_places={})
        if not error and not all(0 <= value <= 1 for value in values):
            error = "the model's prediction is not a probability"
        if error:
            outcomes.append(Outcome(record.number, error=error, image_id=image_id))
        else:
            prediction = {"image_id": image_id, "class_indexes": indexes, "predictions": values}
            line = json.dumps({"prediction": prediction}, ensure_ascii=False) + "\n"
            outcomes.append(Outcome(record.number, line))
    return outcomes


def publish(parts: Sequence[Part], paths: Sequence[str], output_path: str, unfinished: str) -> None:
    """Joins the results of parts into files of shards, moves these to the output folder, and removes an earlier job's.

    Args:
        parts: all parts, in the order of the shards and their records.
        paths: paths of all shards, as the file of errors shows them.
        output_path: the folder for results.
        unfinished: the folder with the files of the parts.

    Raises:
        UserError: if the results of a part are missing.
        OSError or tf.errors.OpError: if a file cannot be written, see `files.explain_write_errors`.
    """
    moves, lines = {}, []
    for number, parts_of_shard in itertools.groupby(parts, key=lambda part: part.shard):
        path, errors = join(list(parts_of_shard), unfinished)
        moves[os.path.join(output_path, f"prediction.results-{number:05d}-of-{len(paths):05d}")] = path
        for reason, records in errors.items():
            row = {"file": paths[number], "error": reason, "count": len(records), "records": records}
            lines.append(json.dumps(row) + "\n")
    errors_path = os.path.join(unfinished, "errors")
    with tf.io.gfile.GFile(errors_path, "w") as file:
        file.write("".join(lines))
    for final, path in (*moves.items(), (os.path.join(output_path, ERRORS_FILE), errors_path)):
        if files.is_remote(final):
            tf.io.gfile.rename(path, final, overwrite=True)
        else:
            files.replace(path, final)
    for path in files.list_matching(output_path, r"prediction\.results-\d{5,}-of-\d{5,}"):
        if path not in moves and not files.is_dir(path):
            files.remove(path)


def join(parts: Sequence[Part], unfinished: str) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """Joins the results of a shard's parts up to damage in the shard.

    Later parts may have been readable. inference.py does not read them either.

    Returns:
        The path of the file with all lines; for each reason the records with that error, as the file of errors lists
        them.
    """
    names, by_reason = [], collections.defaultdict(list)
    for part in parts:
        path = os.path.join(unfinished, part.name)
        if not files.exists(path):
            raise utils.UserError(
                f"the job ended without results: those of {part.path} from record {part.first} on are missing; all "
                "workers must write to the same folder: name one on a disk that they share, or gs://"
            )
        names.append(path)
        errors = json.loads(files.read_bytes(f"{path}.errors"))
        for error in errors:
            by_reason[error["error"]].append({"record": error["number"], "image_id": error["image_id"]})
        if any(error["is_damage"] for error in errors):
            break
    if len(names) == 1:
        return names[0], by_reason
    joined = os.path.join(unfinished, f"{parts[0].shard}-joined")
    with tf.io.gfile.GFile(joined, "wb") as file:
        for name in names:
            file.write(files.read_bytes(name))
    return joined, by_reason


def read_errors(path: str) -> dict[str, int]:
    """Returns the number of errors of each kind in a file of errors, most frequent first."""
    counts = collections.Counter()
    with tf.io.gfile.GFile(path, "r") as file:
        for line in file:
            row = json.loads(line)
            counts[row["error"]] += row["count"]
    return dict(counts.most_common())
