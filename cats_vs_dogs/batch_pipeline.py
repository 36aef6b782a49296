"""The Beam pipeline of batch_predict.py: shards to parts, parts to records, records to predictions, those to files.

Worker processes import this module.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import logging
import math
import os
import re
import shlex
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import tensorflow as tf
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from cats_vs_dogs import bad_examples, files, submission, tfrecords, utils
from cats_vs_dogs.plain_paths import plain_path

# What an export offers, see export_model.ModelExporter.
SIGNATURE = "serving_default"
INPUT = "example_bytes"
OUTPUTS = ("class_indexes", "image_id", "predictions")

ERRORS_FILE = "prediction.errors_stats-00000-of-00001"

# The number of parts that all shards together are divided into, so that few shards keep many workers busy to the end.
# From this number of shards on they are not divided, which saves reading each shard a second time to find its parts.
_PARTS = 64

_DAMAGE = "damage"  # The tag of `read`'s second output.


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


@dataclasses.dataclass(frozen=True)
class Record:
    """A record of a shard.

    Attributes:
        shard: number of the shard.
        number: number of the record in the shard, from 0.
        data: a serialized `tf.train.Example`.
    """

    shard: int
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

    Args:
        model_dir: an export.
        paths: the shards.
        output_path: an existing folder for the results.
        batch_size: number of records that the model predicts at once.
        options: Beam's options.

    Raises:
        UserError: if the runner is not available, or a file cannot be read or written.
    """
    try:
        pipeline = beam.Pipeline(options=options)
    except (ImportError, RuntimeError, ValueError) as error:
        raise utils.UserError(f"Beam cannot run this: {error}") from error
    temporary_folder = os.path.join(output_path, f"unfinished-{uuid.uuid4().hex}")
    tf.io.gfile.makedirs(temporary_folder)
    logging.getLogger().addFilter(_is_useful)
    try:
        records = (
            pipeline
            | "Shards" >> beam.Create(list(enumerate(paths)))
            | "ShardsToWorkers" >> beam.Reshuffle()
            | "Divide" >> beam.FlatMap(divide, math.ceil(_PARTS / len(paths)), batch_size)
            | "PartsToWorkers" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(read).with_outputs(_DAMAGE, main="records")
        )
        outcomes = records["records"] | "Predict" >> RunInference(SavedModelHandler(model_dir, batch_size))
        _ = (
            (outcomes, records[_DAMAGE])
            | "Outcomes" >> beam.Flatten()
            | "GroupByShard" >> beam.GroupByKey()
            | "Write" >> beam.Map(write_shard, list(paths), temporary_folder)
            | "WaitForAll" >> beam.GroupByKey()
            | "Publish" >> beam.Map(publish, output_path, temporary_folder)
        )
        pipeline.run().wait_until_finish()
    except Exception as error:
        # Runners raise errors of their own, with the text of the worker's error: this kit's, or TensorFlow's about a
        # file.
        reasons = re.findall(rf"(?:{utils.UserError.__name__}|errors_impl\.\w+): (.*)", str(error))
        if not reasons:
            raise
        raise utils.UserError(f"the job ended without results: {reasons[-1]}") from error
    finally:
        logging.getLogger().removeFilter(_is_useful)
        with contextlib.suppress(tf.errors.NotFoundError):  # `publish` has removed it if all went well.
            tf.io.gfile.rmtree(temporary_folder)


def _is_useful(record: logging.LogRecord) -> bool:
    """Returns False for a warning that Beam 2.77 logs at each model load if its packages for GPUs are not installed."""
    return "memory usage cannot be fetched" not in record.getMessage()


def check_model(model_dir: str) -> None:
    """Checks that a folder holds an export of this kit, without loading it.

    Raises:
        UserError: if it does not.
    """
    advice = "name an export of the kit, such as /tmp/cvd_model/export/step_45, or make one with export_model.py"
    path = os.path.join(model_dir, "saved_model.pb")
    if "," in model_dir:
        advice = "name one export of the kit, not several; only eval.py and inference.py take several models"
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


def divide(shard: tuple[int, str], num_parts: int, batch_size: int) -> Iterator[Part]:
    """Divides a shard into at most `num_parts` parts of similar size in bytes, of at least a batch each.

    Damage is left for `read` to find: the last part includes it.

    Args:
        shard: number and path of the shard.
        num_parts: 1: the file is not opened.
        batch_size: number of records in a batch.
    """
    number, path = shard
    first, start = 0, 0
    if num_parts > 1:
        part_bytes = tf.io.gfile.stat(path).length / num_parts
        with contextlib.suppress(tfrecords.DamageError):
            for record, (position, _) in enumerate(tfrecords.walk(path)):
                if position - start >= part_bytes and record - first >= batch_size:
                    yield Part(number, path, first, start, record - first)
                    first, start = record, position
    yield Part(number, path, first, start)


def read(part: Part) -> Iterator[Any]:
    """Reads the records of a part.

    Yields:
        Each `Record`; where the shard is damaged, a tagged output of its number and an `Outcome`.

    Raises:
        UserError: if the shard cannot be opened.
    """
    number = part.first
    try:
        walk = tfrecords.walk(part.path, part.position, part.first, with_bytes=True)
        for _, data in itertools.islice(walk, part.count):
            yield Record(part.shard, number, data)
            number += 1
    except tfrecords.DamageError as damage:
        outcome = Outcome(number, error=str(damage), is_damage=True)
        yield beam.pvalue.TaggedOutput(_DAMAGE, (part.shard, outcome))


class SavedModelHandler(ModelHandler[Record, tuple[int, Outcome], Any]):
    """Predicts records with an export. `RunInference` loads it once in each worker process, for all threads.

    Args:
        model_dir: the SavedModel.
        batch_size: number of records that the model predicts at once.
    """

    def __init__(self, model_dir: str, batch_size: int):
        super().__init__(min_batch_size=batch_size, max_batch_size=batch_size)
        self._model_dir = model_dir

    def load_model(self) -> Any:
        """Returns the loaded SavedModel."""
        with plain_path(self._model_dir) as path:
            return tf.saved_model.load(path)

    def run_inference(
        self, batch: Sequence[Record], model: Any, inference_args: dict[str, Any] | None = None
    ) -> list[tuple[int, Outcome]]:
        """Returns shard number and outcome of each record.

        TensorFlow predicts all records of a batch or none of them. If one is bad, each is predicted alone.
        """
        try:
            outputs = model.signatures[SIGNATURE](**{INPUT: tf.constant([record.data for record in batch])})
        except (tf.errors.InvalidArgumentError, UnicodeDecodeError) as error:
            if len(batch) > 1:
                return [self.run_inference([record], model)[0] for record in batch]
            image_id, reason = bad_examples.id_of(batch[0].data), bad_examples.describe_error(error)
            return [(batch[0].shard, Outcome(batch[0].number, error=reason, image_id=image_id))]
        return to_outcomes(batch, {name: outputs[name].numpy() for name in OUTPUTS})

    def get_num_bytes(self, batch: Sequence[Record]) -> int:
        """Returns the size of a batch for Beam's metrics. The inherited method pickles the batch to measure it."""
        return sum(len(record.data) for record in batch)


def to_outcomes(batch: Sequence[Record], outputs: dict[str, Any]) -> list[tuple[int, Outcome]]:
    """Returns shard number and outcome of each record.

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
            outcome = Outcome(record.number, error=error, image_id=image_id)
        else:
            prediction = {"image_id": image_id, "class_indexes": indexes, "predictions": values}
            line = json.dumps({"prediction": prediction}, ensure_ascii=False) + "\n"
            outcome = Outcome(record.number, line)
        outcomes.append((record.shard, outcome))
    return outcomes


def write_shard(
    shard: tuple[int, Iterable[Outcome]], paths: Sequence[str], temporary_folder: str
) -> tuple[None, tuple[int, str, list[str]]]:
    """Writes the results of a shard.

    Args:
        shard: number of the shard, and the outcomes of its records in any order.
        paths: paths of all shards.
        temporary_folder: where to write the file until all are complete.

    Returns:
        None, the key that brings all shards together in `publish`; number of the shard, path of the file, lines for the
        file of errors.
    """
    number, outcomes = shard
    # A new name, because runners may call this again while an earlier call for the same shard is still running.
    path = os.path.join(temporary_folder, f"{number}-{uuid.uuid4().hex}")
    by_reason = collections.defaultdict(list)
    with tf.io.gfile.GFile(path, "w") as file:
        file.write("")  # Otherwise the file of a shard without predictions would not exist.
        for outcome in sorted(outcomes, key=lambda outcome: outcome.number):
            file.write(outcome.line)
            if outcome.error:
                by_reason[outcome.error].append({"record": outcome.number, "image_id": outcome.image_id})
            if outcome.is_damage:  # A later part may have been readable. inference.py does not read it either.
                break
    errors = [
        json.dumps({"file": paths[number], "error": reason, "count": len(records), "records": records})
        for reason, records in by_reason.items()
    ]
    return None, (number, path, errors)


def publish(shards: tuple[None, Iterable[tuple[int, str, list[str]]]], output_path: str, temporary_folder: str) -> None:
    """Moves the complete results to the output folder, and removes those of an earlier job.

    Runners may call it again after a call that failed half-way.

    Args:
        shards: None, and what else `write_shard` returned for each shard.
        output_path: the folder for results.
        temporary_folder: the folder that `write_shard` wrote to.
    """
    gfile = tf.io.gfile
    shards = sorted(shards[1])
    gfile.makedirs(temporary_folder)
    errors_path = os.path.join(temporary_folder, f"errors-{uuid.uuid4().hex}")
    with gfile.GFile(errors_path, "w") as file:
        file.write("".join(f"{line}\n" for _, _, errors in shards for line in errors))
    moves = {
        os.path.join(output_path, f"prediction.results-{number:05d}-of-{len(shards):05d}"): path
        for number, path, _ in shards
    }
    for final, path in (*moves.items(), (os.path.join(output_path, ERRORS_FILE), errors_path)):
        if not gfile.exists(path):  # An earlier call has moved it.
            continue
        if files.is_remote(final):
            gfile.rename(path, final, overwrite=True)
        else:
            files.replace(path, final)
    for path in files.list_matching(output_path, r"prediction\.results-.*"):
        if path not in moves:
            gfile.remove(path)
    gfile.rmtree(temporary_folder)


def read_errors(path: str) -> dict[str, int]:
    """Returns the number of errors of each kind in a file of errors, most frequent first."""
    counts = collections.Counter()
    with tf.io.gfile.GFile(path, "r") as file:
        for line in file:
            row = json.loads(line)
            counts[row["error"]] += row["count"]
    return dict(counts.most_common())
