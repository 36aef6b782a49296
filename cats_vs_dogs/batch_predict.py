"""Predicts cats and dogs for many shards with Apache Beam, on this machine's cores or on a cluster.

    python cats_vs_dogs/batch_predict.py --model_dir=/tmp/cvd_model/export/step_45 \\
        --input_data_pattern='shards/test-*' --output_path=results

All flags that are not listed below are passed to Beam: --direct_num_workers=2 --direct_running_mode=multi_processing;
--runner=DaskRunner --dask_client_address=tcp://...:8786; --runner=DataflowRunner --project=... and so on.

The output folder gets one file for each shard, in the same order, with one line for each record, in the shard's order:
    prediction.results-00000-of-00005
    {"prediction": {"image_id": "1.jpg", "class_indexes": [0, 1], "predictions": [0.2, 0.8]}}
This is the format of Vertex AI without "instance", which would repeat the record. Records that cannot be predicted, and
those after damage in a shard, have no line. One file counts and lists them by shard and reason:
    prediction.errors_stats-00000-of-00001
    {"file": "test-00000-of-00005", "error": "...", "count": 1, "records": [{"record": 7, "image_id": "8.jpg"}]}
All files appear at the end of the job and replace those of an earlier job. convert_prediction_from_json_to_csv.py
converts them to a CSV with the same rows as that of inference.py; probabilities are equal up to rounding, because
batches of other sizes may be computed in another order.
"""

import os
import sys

if __package__ in (None, ""):  # Run as a file: import the package beside this file, from whatever folder.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    import cats_vs_dogs  # noqa: F401 - Says in one line that the kit is not installed.

import contextlib
import io
import logging as python_logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags, logging

from cats_vs_dogs import beam_runners, files, flag_names, utils
from cats_vs_dogs.path_flags import define_path

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this script."""
    define_path(
        "model_dir",
        "",
        "The SavedModel to predict with, such as /tmp/cvd_model/export/step_45, local or gs://.",
        module_name="model",
    )
    define_path("input_data_pattern", "", "File glob for shards, local or gs://.", module_name="data")
    define_path(
        "output_path",
        "",
        "The folder for the results, local or gs://. It is made if it is missing.",
        module_name="output",
    )
    flags.DEFINE_integer(
        "batch_size", 128, "Number of records that the model predicts at once.", 1, 2**31 - 1, module_name="machine"
    )
    examples = {
        "model_dir": "/tmp/cvd_model/export/step_45",
        "input_data_pattern": "'shards/test-*'",
        "output_path": "results",
    }
    for name, example in examples.items():
        flags.register_validator(name, bool, f"is empty; set it, such as --{name}={example}")


def main(beam_flags: Sequence[str]) -> None:
    """Predicts the shards that the flags name.

    Args:
        beam_flags: the flags that are not this script's.
    """
    _import_beam()
    options = parse_beam_flags(beam_flags, dir(FLAGS))
    utils.import_tensorflow()
    from cats_vs_dogs import batch_pipeline, tfrecords

    shards = files.list_files(FLAGS.input_data_pattern, "input_data_pattern")
    with contextlib.suppress(*files.file_errors()):  # The job reports what cannot be read.
        if not any(map(tfrecords.is_shard, shards)):  # The job would end well without a prediction.
            raise utils.UserError(f"{shards[0]}: {tfrecords.scan(shards[0]).damage}")
    batch_pipeline.check_model(FLAGS.model_dir)
    files.make_output_folder(FLAGS.output_path, "output_path")
    logging.info("number of input files: %d", len(shards))
    # Worker processes that Beam starts on this machine import the package from the same folder.
    folders = [os.path.dirname(os.path.dirname(os.path.abspath(__file__))), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    batch_pipeline.run(FLAGS.model_dir, shards, FLAGS.output_path, FLAGS.batch_size, options)
    logging.info(
        "The predictions are in %s", os.path.join(FLAGS.output_path, f"prediction.results-*-of-{len(shards):05d}")
    )
    errors_path = os.path.join(FLAGS.output_path, batch_pipeline.ERRORS_FILE)
    counts = batch_pipeline.read_errors(errors_path)
    if counts:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in counts.items())
        logging.warning(
            "%d records or shards could not be read (%s); %s lists them", sum(counts.values()), reasons, errors_path
        )


def _import_beam() -> None:
    python_logging.disable(python_logging.WARNING)  # Beam warns about packages that only BigQuery needs.
    try:
        import apache_beam  # noqa: F401
    except ImportError as error:
        raise utils.UserError(f"Apache Beam cannot be imported ({error}); pip install -e '.[beam]'") from error
    finally:
        python_logging.disable(python_logging.NOTSET)


def parse_beam_flags(beam_flags: Sequence[str], other_flags: Sequence[str]) -> "PipelineOptions":
    """Returns Beam's options.

    Args:
        beam_flags: the command line without this script's flags.
        other_flags: names of this script's flags, to suggest one for a misspelt flag.

    Raises:
        UserError: if a value is not allowed, or, for the runners of this machine and of Dask, a flag is not known.
    """
    from apache_beam.options.pipeline_options import PipelineOptions, TypeOptions, WorkerOptions

    beam_runners.import_dask(beam_flags)
    parsers, complaint = [], io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            PipelineOptions([]).get_all_options(add_extra_args_fn=parsers.append)
            unknown = parsers[0].parse_known_args(beam_flags)[1]
            options = PipelineOptions(list(beam_flags))
    except SystemExit as error:
        reason = complaint.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise utils.UserError(f"{' '.join(beam_flags)}: Beam cannot read these flags: {reason}") from error
    runner = beam_runners.name_of(options)
    of_dask = [flag for flag in beam_flags if flag.startswith("--dask_")]
    if of_dask and runner != "dask":
        raise utils.UserError(f"{of_dask[0]}: only Dask's runner has this flag; add --runner=DaskRunner")
    if runner not in ("direct", "dask"):
        return options  # A cluster's runner may have flags that are not known here.
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0]
        of_beam = [word.removeprefix("--") for word in parsers[0]._option_string_actions]
        available = [*other_flags, *of_beam]  # `utils.suggest` would list all of Beam's flags, about 300.
        is_word = not unknown[0].startswith("-")
        hint = flag_names.explain_words(unknown, other_flags) if is_word else ""
        hint = hint or flag_names.explain_unknown_flag(name, available) or "write --name=value"
        raise utils.UserError(f"{unknown[0]}: no flag of this script or of Beam; {hint} (--help lists this script's)")
    # This job has no triggers. The option keeps DirectRunner from passing the job to PrismRunner, a program that it
    # would download and that ignores --direct_num_workers.
    options.view_as(TypeOptions).allow_unsafe_triggers = True
    if not options.view_as(WorkerOptions).default_sdk_harness_log_level:
        options.view_as(WorkerOptions).default_sdk_harness_log_level = "ERROR"
    return options


if __name__ == "__main__":
    utils.run_script(main, define_flags, pass_on_flags=True)
