"""Predicts cats and dogs for many shards with Apache Beam: on this machine's cores, or on a cluster.

    python cats_vs_dogs/batch_predict.py --model_dir=/tmp/cvd_model/export/step_45 \\
        --input_data_pattern='shards/test-*' --output_path=results

Every flag that is not listed below goes to Beam: --direct_num_workers=2 --direct_running_mode=multi_processing;
--runner=DataflowRunner --project=... and so on.

output_path gets a file for each shard, in the same order, with a line for each record, in the order of the shard:
    prediction.results-00000-of-00005
    {"prediction": {"image_id": "1.jpg", "class_indexes": [0, 1], "predictions": [0.2, 0.8]}}
as Vertex AI writes them, but without the "instance", which repeats the whole record. The records that cannot be
predicted are not there, nor what lies behind damage of a shard; one file counts and lists them by shard and reason:
    prediction.errors_stats-00000-of-00001
    {"file": "test-00000-of-00005", "error": "...", "count": 1, "records": [{"record": 7, "image_id": "8.jpg"}]}
All files appear when the job is done, in place of those of an earlier job. convert_prediction_from_json_to_csv.py makes
the CSV of inference.py of them.
"""

import os
import sys

if __package__ in (None, ""):  # Run as a file: import the package beside this file, from whatever folder.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    import cats_vs_dogs  # noqa: F401 - Sets what TensorFlow reads when it is imported.

import collections
import contextlib
import dataclasses
import difflib
import functools
import importlib
import io
import itertools
import json
import logging as python_logging
import math
import re
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags, logging

from cats_vs_dogs import files, utils

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

FLAGS = flags.FLAGS

SIGNATURE = "serving_default"
INPUT = "example_bytes"
OUTPUTS = ("class_indexes", "image_id", "predictions")

ERRORS_FILE = "prediction.errors_stats-00000-of-00001"

# Into how many parts the shards are divided together, so that few shards, too, keep many workers busy to the end.
# So many shards are not divided: to find where a part begins, a shard is read once more.
_PARTS = 64


def define_flags() -> None:
    flags.DEFINE_string(
        "model_dir", "", "The SavedModel to predict with, such as /tmp/cvd_model/export/step_45, local or gs://."
    )
    flags.DEFINE_string("input_data_pattern", "", "File glob for shards, local or gs://.")
    flags.DEFINE_string("output_path", "", "The folder to write the results to, local or gs://. Made if need be.")
    flags.DEFINE_integer("batch_size", 128, "How many records to give to the model at once.", 1, 2**31 - 1)


@dataclasses.dataclass(frozen=True)
class Part:
    """Consecutive records of a shard.

    Attributes:
        shard: number of the shard.
        path: its path.
        first: number of the first record in the shard, from 0.
        position: where it begins in the file, bytes.
        count: how many records; None: up to the end of the file.
    """

    shard: int
    path: str
    first: int = 0
    position: int = 0
    count: int | None = None


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What became of a batch of records.

    Attributes:
        first: number of the batch's first record in the shard.
        lines: a JSON line for each record that was predicted.
        errors: (number of the record in the shard, id or "", reason) of each that was not.
        is_damaged: whether the shard cannot be read any further; the last error says why.
    """

    first: int
    lines: str
    errors: list[tuple[int, str, str]]
    is_damaged: bool = False


def divide(shard: tuple[int, str], num_parts: int, batch_size: int) -> Iterator[Part]:
    """Divides a shard into at most `num_parts` parts of about as many bytes, and of at least a batch.

    Damage is left for `predict` to find: it lies in the last part.

    Args:
        shard: its number and path.
        num_parts: 1 does not open the file.
        batch_size: records a batch.
    """
    import tensorflow as tf

    from cats_vs_dogs import tfrecords

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


def predict(part: Part, model_dir: str, batch_size: int) -> Iterator[tuple[int, Predictions]]:
    """Predicts a part, batch by batch.

    Args:
        part: which records.
        model_dir: the SavedModel; loaded once a process.
        batch_size: records a batch.

    Yields:
        The number of the shard, and what became of a batch.

    Raises:
        UserError: if the shard cannot be opened.
    """
    from cats_vs_dogs import tfrecords

    first, records, damage = part.first, [], None
    try:
        walk = tfrecords.walk(part.path, part.position, first, with_bytes=True)
        for _, record in itertools.islice(walk, part.count):
            if len(records) == batch_size:
                yield part.shard, _predict_batch(first, records, model_dir)
                first, records = first + batch_size, []
            records.append(record)
    except tfrecords.DamageError as error:
        damage = (first + len(records), "", str(error))
    batch = _predict_batch(first, records, model_dir)
    if damage:
        batch = dataclasses.replace(batch, errors=[*batch.errors, damage], is_damaged=True)
    yield part.shard, batch


def _predict_batch(first: int, records: Sequence[bytes], model_dir: str) -> Predictions:
    import tensorflow as tf

    from cats_vs_dogs import bad_examples

    if not records:
        return Predictions(first, "", [])
    try:
        return _to_lines(first, _load(model_dir)(records))
    except (tf.errors.InvalidArgumentError, UnicodeDecodeError) as error:
        if len(records) == 1:
            return Predictions(first, "", [(first, bad_examples.id_of(records[0]), bad_examples.reason_of(error))])
    one_by_one = [_predict_batch(first + i, [record], model_dir) for i, record in enumerate(records)]
    return Predictions(first, "".join(one.lines for one in one_by_one), sum((one.errors for one in one_by_one), []))


def _to_lines(first: int, outputs: dict[str, Any]) -> Predictions:
    from cats_vs_dogs import bad_examples

    lines, errors = [], []
    ids = map(bad_examples.id_text, outputs["image_id"])
    columns = zip(ids, outputs["class_indexes"].tolist(), outputs["predictions"].tolist(), strict=True)
    for number, (image_id, indexes, values) in enumerate(columns, first):
        reason = bad_examples.id_problem(image_id, ("", number), {})
        if not reason and not all(0 <= value <= 1 for value in values):
            reason = "the model's prediction is no probability"
        if reason:
            errors.append((number, image_id, reason))
        else:
            prediction = {"image_id": image_id, "class_indexes": indexes, "predictions": values}
            lines.append(json.dumps({"prediction": prediction}, ensure_ascii=False) + "\n")
    return Predictions(first, "".join(lines), errors)


_loading = threading.Lock()  # Runners call `predict` in several threads.


def _load(model_dir: str) -> Any:
    """Returns a function from a list of records to a dict of arrays."""
    with _loading:
        return _load_once(model_dir)


@functools.lru_cache(maxsize=1)
def _load_once(model_dir: str) -> Any:
    import tensorflow as tf

    model = tf.saved_model.load(model_dir)
    signature = model.signatures[SIGNATURE]

    def call(records: Sequence[bytes]) -> dict[str, Any]:
        outputs = signature(**{INPUT: tf.constant(records)})
        return {name: outputs[name].numpy() for name in OUTPUTS}

    call.model = model  # A signature alone does not keep its variables.
    return call


def write_shard(
    shard: tuple[int, Iterable[Predictions]], paths: Sequence[str], aside: str
) -> tuple[None, tuple[int, str, list[str]]]:
    """Writes the results of a shard.

    Args:
        shard: its number and what became of its batches, in any order.
        paths: of all shards.
        aside: the folder for files that are not yet whole.

    Returns:
        None; the number of the shard, the file that was written, lines for the file of errors.
    """
    import tensorflow as tf

    number, batches = shard
    path = os.path.join(aside, f"{number}-{uuid.uuid4().hex}")  # Runners may try again while a first try still goes on.
    by_reason = collections.defaultdict(list)
    with tf.io.gfile.GFile(path, "w") as file:
        file.write("")
        for batch in sorted(batches, key=lambda batch: batch.first):
            file.write(batch.lines)
            for record, image_id, reason in batch.errors:
                by_reason[reason].append({"record": record, "image_id": image_id})
            if batch.is_damaged:  # A part behind it may have been readable; inference.py leaves it out, too.
                break
    errors = [
        json.dumps({"file": paths[number], "error": reason, "count": len(records), "records": records})
        for reason, records in by_reason.items()
    ]
    return None, (number, path, errors)


def publish(shards: tuple[None, Iterable[tuple[int, str, list[str]]]], output_path: str, aside: str) -> None:
    """Moves the results to where they belong, and removes those of an earlier job.

    Runners may call it again after a first try that failed half-way.

    Args:
        shards: None, and what else `write_shard` returned for each.
        output_path: the folder for results.
        aside: the folder for files that are not yet whole.
    """
    import tensorflow as tf

    gfile = tf.io.gfile
    shards = sorted(shards[1])
    gfile.makedirs(aside)
    errors_path = os.path.join(aside, f"errors-{uuid.uuid4().hex}")
    with gfile.GFile(errors_path, "w") as file:
        file.write("".join(f"{line}\n" for _, _, errors in shards for line in errors))
    moves = {
        os.path.join(output_path, f"prediction.results-{number:05d}-of-{len(shards):05d}"): path
        for number, path, _ in shards
    }
    for final, path in (*moves.items(), (os.path.join(output_path, ERRORS_FILE), errors_path)):
        if gfile.exists(path):
            gfile.rename(path, final, overwrite=True)
    for name in gfile.listdir(output_path):
        if name.startswith("prediction.results-") and os.path.join(output_path, name) not in moves:
            gfile.remove(os.path.join(output_path, name))
    gfile.rmtree(aside)


def read_errors(path: str) -> dict[str, int]:
    """Returns how many errors of each kind a file of errors lists."""
    import tensorflow as tf

    counts = collections.Counter()
    with tf.io.gfile.GFile(path, "r") as file:
        for line in file:
            row = json.loads(line)
            counts[row["error"]] += row["count"]
    return dict(counts.most_common())


def _import_beam() -> None:
    python_logging.disable(python_logging.WARNING)  # It warns of what only BigQuery needs.
    try:
        import apache_beam  # noqa: F401
    except ImportError as error:
        raise utils.UserError(f"Apache Beam cannot be imported ({error}); pip install -e '.[beam]'") from error
    finally:
        python_logging.disable(python_logging.NOTSET)


def check_model(model_dir: str) -> None:
    """Looks whether a folder holds an export of this kit, without loading it.

    Raises:
        UserError: if it does not.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    advice = "name an export of the kit, such as /tmp/cvd_model/export/step_45, or make one with export_model.py"
    path = os.path.join(model_dir, "saved_model.pb")
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            model = saved_model_pb2.SavedModel.FromString(file.read())
    except (tf.errors.OpError, DecodeError) as error:
        raise utils.UserError(f"--model_dir={model_dir}: holds no SavedModel ({error}); {advice}") from error
    signatures = model.meta_graphs[0].signature_def if model.meta_graphs else {}
    if SIGNATURE not in signatures:
        has = ", ".join(sorted(signatures)) or "none"
        raise utils.UserError(f"--model_dir={model_dir}: has no signature {SIGNATURE} (it has: {has}); {advice}")
    takes, gives = (sorted(names) for names in (signatures[SIGNATURE].inputs, signatures[SIGNATURE].outputs))
    if takes != [INPUT] or gives != sorted(OUTPUTS):
        raise utils.UserError(
            f"--model_dir={model_dir}: its signature {SIGNATURE} takes {', '.join(takes)} and gives "
            f"{', '.join(gives)}, not {INPUT} and {', '.join(OUTPUTS)}; {advice}"
        )


def parse_beam_flags(beam_flags: Sequence[str], other_flags: Sequence[str]) -> "PipelineOptions":
    """Returns the options of Beam.

    Args:
        beam_flags: the command line without this script's flags.
        other_flags: names of this script's flags, to guess what was meant.

    Raises:
        UserError: if a value is not allowed; or, for runners on this machine, a flag is not known.
    """
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions, TypeOptions, WorkerOptions

    parsers, complaint = [], io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            names = PipelineOptions([]).get_all_options(add_extra_args_fn=parsers.append)
            unknown = parsers[0].parse_known_args(beam_flags)[1]
            options = PipelineOptions(list(beam_flags))
    except SystemExit as error:
        reason = complaint.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise utils.UserError(f"{' '.join(beam_flags)}: not understood by Beam: {reason}") from error
    if (options.view_as(StandardOptions).runner or "DirectRunner").lower() not in ("direct", "directrunner"):
        return options  # A cluster may have flags that are not known here.
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0]
        nearest = difflib.get_close_matches(name, [*other_flags, *names], n=1)
        hint = f"; did you mean --{nearest[0]}?" if nearest else "; write --name=value, and put quotes around patterns"
        raise utils.UserError(f"{unknown[0]}: no flag of this script or of Beam{hint} (--help lists this script's)")
    # Without effect on a job like this, but that DirectRunner does not hand it on to a program that it downloads and
    # that knows no --direct_num_workers.
    options.view_as(TypeOptions).allow_unsafe_triggers = True
    if not options.view_as(WorkerOptions).default_sdk_harness_log_level:
        options.view_as(WorkerOptions).default_sdk_harness_log_level = "ERROR"
    return options


def run(model_dir: str, files: Sequence[str], output_path: str, batch_size: int, options: "PipelineOptions") -> None:
    """Predicts shards, and waits until it is done.

    Args:
        model_dir: an export.
        files: the shards.
        output_path: the folder for results; must be there.
        batch_size: records a batch.
        options: Beam's.

    Raises:
        UserError: if the runner cannot be had, or a file cannot be read or written.
    """
    import apache_beam as beam
    import tensorflow as tf

    try:
        pipeline = beam.Pipeline(options=options)
    except (ImportError, RuntimeError, ValueError) as error:
        raise utils.UserError(f"Beam cannot run this: {error}") from error
    aside = os.path.join(output_path, f"unfinished-{uuid.uuid4().hex}")
    tf.io.gfile.makedirs(aside)
    try:
        _ = (
            pipeline
            | "Shards" >> beam.Create(list(enumerate(files)))
            | "ShardsToWorkers" >> beam.Reshuffle()
            | "Divide" >> beam.FlatMap(divide, math.ceil(_PARTS / len(files)), batch_size)
            | "PartsToWorkers" >> beam.Reshuffle()
            | "Predict" >> beam.FlatMap(predict, model_dir, batch_size)
            | "GroupByShard" >> beam.GroupByKey()
            | "Write" >> beam.Map(write_shard, list(files), aside)
            | "WaitForAll" >> beam.GroupByKey()
            | "Publish" >> beam.Map(publish, output_path, aside)
        )
        pipeline.run().wait_until_finish()
    except Exception as error:
        # Runners wrap what a worker raised in errors of theirs, as a text: of this kit or about a file.
        reasons = re.findall(rf"(?:{utils.UserError.__name__}|errors_impl\.\w+): (.*)", str(error))
        if not reasons:
            raise
        raise utils.UserError(f"the job ended without results: {reasons[-1]}") from error
    finally:
        with contextlib.suppress(tf.errors.NotFoundError):  # As it is when all went well.
            tf.io.gfile.rmtree(aside)


def main(beam_flags: Sequence[str]) -> None:
    """Predicts what the flags name.

    Args:
        beam_flags: the flags that are not this script's.
    """
    examples = {
        "model_dir": "/tmp/cvd_model/export/step_45",
        "input_data_pattern": "'shards/test-*'",
        "output_path": "results",
    }
    for name, example in examples.items():
        if not getattr(FLAGS, name):
            raise utils.UserError(f"--{name} is empty; give it, such as --{name}={example}")
    _import_beam()
    options = parse_beam_flags(beam_flags, dir(FLAGS))
    shards = files.list_files(FLAGS.input_data_pattern, "input_data_pattern")
    check_model(FLAGS.model_dir)
    files.make_output_folder(FLAGS.output_path, "output_path")
    logging.info("number of input files: %d", len(shards))
    # Processes that Beam starts here import the package from where this script did.
    folders = [os.path.dirname(os.path.dirname(os.path.abspath(__file__))), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    run(FLAGS.model_dir, shards, FLAGS.output_path, FLAGS.batch_size, options)
    logging.info(
        "The predictions are in %s", os.path.join(FLAGS.output_path, f"prediction.results-*-of-{len(shards):05d}")
    )
    errors_path = os.path.join(FLAGS.output_path, ERRORS_FILE)
    counts = read_errors(errors_path)
    if counts:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in counts.items())
        logging.warning(
            "%d records or shards could not be read (%s); %s lists them", sum(counts.values()), reasons, errors_path
        )


if __name__ == "__main__":
    # Its main by name and not as __main__, so that workers find what they are to run.
    main = importlib.import_module("cats_vs_dogs.batch_predict").main
    utils.run_script(main, define_flags, pass_on_flags=True)
