"""Evaluates the checkpoints of a model, or several models as an ensemble, on labelled shards.

python cats_vs_dogs/eval.py --eval_data_pattern='shards/validation-*' --train_dir=/tmp/cvd_model --run_once
python cats_vs_dogs/eval.py --eval_data_pattern='shards/validation-*' --train_dir=/tmp/a,/tmp/b --run_once
"""

import os
import sys

if __package__ in (None, ""):  # Run as a file: import the package next to this file, from any folder.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    import cats_vs_dogs  # Sets what TensorFlow reads when it is imported.

    cats_vs_dogs.forget_edited()

import functools
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags, logging

from cats_vs_dogs import config, files, photo_sources, terminal, user_files, utils
from cats_vs_dogs.path_flags import define_path
from cats_vs_dogs.utils import find_class_by_name  # noqa: F401 - It was here in 2017.

if TYPE_CHECKING:
    from cats_vs_dogs import readers
    from cats_vs_dogs.classifier import Classifier

FLAGS = flags.FLAGS

_SECONDS_BETWEEN_LOOKS = 10  # For a new checkpoint, without --run_once.


def define_flags() -> None:
    """Defines the flags of this script."""
    define_path(
        "train_dir",
        utils.default_train_dir(),
        "The folder of the model. Summaries and metrics go to its folder eval. Several folders, with commas between "
        "them or as a pattern: an ensemble, the mean of the models' probabilities. Its summaries and metrics go to "
        "eval/ensemble-<number> in the first folder.",
        module_name="model",
    )
    flags.DEFINE_string(
        "model",
        None,
        "Not needed: train_dir knows its model. One that contradicts it is an error.",
        module_name="model",
    )
    flags.DEFINE_string(
        "label_loss",
        None,
        "Not needed: train_dir knows its loss. One that contradicts it is an error.",
        module_name="model",
    )
    define_path(
        "eval_data_pattern",
        "",
        "File pattern of the labelled shards; or photos, as in train.py: a folder, a .zip file or a pattern. Of photos "
        "that the model was trained on, those for validation. Empty: what train.py evaluated on, else validation-* "
        "beside the training shards; for a model of the sample set, its validation shards.",
        module_name="data",
    )
    config.define_bad_examples_flag("them in train_dir/eval/bad_examples.csv.")
    flags.DEFINE_integer(
        "num_readers",
        8,
        "Kept from 2017, without effect: shards are read in order, and decoding uses all cores.",
        module_name="data",
    )
    flags.DEFINE_integer("batch_size", 1024, "Number of examples per batch.", 1, 2**31 - 1, module_name="evaluation")
    flags.DEFINE_bool(
        "run_once",
        False,
        "Evaluate the newest checkpoint and stop, instead of waiting for further checkpoints.",
        module_name="evaluation",
    )
    config.define_average_flags("evaluation")
    define_path(
        "mistakes_file",
        "",
        "The CSV file that lists all mistakes, the most confident first: id, label (1 = dog), probability of a dog. "
        "Each evaluation replaces it. Empty: none.",
        module_name="output",
    )
    config.define_report_flag("After each evaluation, write")


def new_checkpoints(classifier: "Classifier", train_dir: str) -> Iterator[int]:
    """Restores each new checkpoint and yields its step, without end; waits where there is no new one.

    Args:
        classifier: gets the weights.
        train_dir: where a model is being trained.
    """
    from cats_vs_dogs import checkpoints

    seen = evaluated = None
    if checkpoints.newest_checkpoint(train_dir) is None:
        logging.info("No checkpoint file found. Waiting for one in %s.", train_dir)
    while True:
        newest = checkpoints.newest_checkpoint(train_dir)
        if newest == seen:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            continue
        seen = newest
        logging.info("Loading checkpoint for eval: %s", newest)
        restored = checkpoints.restore_newest(classifier, train_dir)
        if restored == evaluated:  # The newest one cannot be read.
            step = checkpoints.step_of(restored)
            logging.info("skip this checkpoint global_step_val=%s (same as the previous one).", step)
            continue
        evaluated = restored
        yield checkpoints.step_of(restored)


def open_data(
    train_dirs: Sequence[str], pattern: str, reader: "readers.BaseReader", bad_examples_flag: str
) -> tuple["readers.Shards", dict[str, Any]]:
    """Opens what to evaluate on.

    Args:
        train_dirs: the models, which know the data to use by default.
        pattern: file pattern of shards, or photos; "": the default.
        reader: how to read a record.
        bad_examples_flag: "fail" or "skip".

    Returns:
        The shards, and what the metrics say about them.
    """
    from cats_vs_dogs import bad_examples, trained_data

    flag = "eval_data_pattern"
    patterns, name = trained_data.find_eval_data(train_dirs, pattern, flag)
    shards = bad_examples.open_shards(patterns, flag, reader, bad_examples_flag, with_index=True)
    trained_on = trained_data.count_known(train_dirs, shards, flag)
    return shards, {flag: name, "trained_on": trained_on}


def check_ensemble_flags(train_dirs: Sequence[str], run_once: bool, model: str | None, label_loss: str | None) -> None:
    """Checks the flags that an ensemble restricts.

    Raises:
        UserError: if --model or --label_loss is given, or --run_once is missing.
    """
    if len(train_dirs) == 1:
        return
    what = f"--train_dir names {len(train_dirs)} models"
    for flag, value in (("model", model), ("label_loss", label_loss)):
        if value is not None:
            raise utils.UserError(f"--{flag}={value}: {what}, and each knows its own; leave the flag out")
    if not run_once:
        raise utils.UserError(
            f"{what}, which are evaluated once, without waiting for further checkpoints; add --run_once"
        )


def main() -> None:
    """Evaluates what the flags name."""
    run_once, batch_size = FLAGS.run_once, FLAGS.batch_size
    mistakes_file, bad_examples_flag = FLAGS.mistakes_file, FLAGS.bad_examples
    averages = {name: getattr(FLAGS, name) for name in config.AVERAGES}
    eval_data_pattern, expected, has_report = FLAGS.eval_data_pattern, (FLAGS.model, FLAGS.label_loss), FLAGS.report
    train_dirs = config.find_models(FLAGS.train_dir)
    check_ensemble_flags(train_dirs, run_once, *expected)
    if mistakes_file:
        files.check_output_file(mistakes_file, "mistakes_file")
    photo_sources.check_there(eval_data_pattern, "eval_data_pattern")
    utils.import_tensorflow()
    user_files.import_all()
    import tensorflow as tf

    from cats_vs_dogs import (
        advice,
        bad_examples,
        checkpoints,
        distribution,
        ensemble,
        metrics_log,
        readers,
        report,
        train_dir,
    )
    from cats_vs_dogs.evaluation import Evaluator, write_mistakes
    from cats_vs_dogs.event_files import EventFile
    from cats_vs_dogs.prediction import Predictor

    logging.info("tensorflow version: %s", tf.__version__)
    specs = ensemble.load_specs(train_dirs)
    train_dir.check_expected(train_dirs[0], specs[0], *expected)
    if run_once:
        for one in train_dirs:
            checkpoints.require_checkpoint(one)  # Before the data is read.

    is_ensemble = len(train_dirs) > 1
    eval_dir = train_dir.ensemble_dir(train_dirs) if is_ensemble else train_dir.eval_dir(train_dirs[0])
    files.make_output_folder(eval_dir, "train_dir")
    reader = ensemble.open_reader_for(specs, is_labelled=True)
    shards, about_data = open_data(train_dirs, eval_data_pattern, reader, bad_examples_flag)
    files.check_not_input(mistakes_file, "mistakes_file", shards.files)
    bad_examples.write_bad_examples(shards, os.path.join(eval_dir, "bad_examples.csv"))
    batches = readers.make_dataset(reader, shards, batch_size)
    logging.info("Using batch size of %d for evaluation.", batch_size)
    logging.info("number of evaluation files: %d", len(shards.files))

    cluster = distribution.local_devices()
    classifiers = ensemble.build(specs, cluster, averages)
    rows, events = metrics_log.MetricsFile(eval_dir), EventFile(eval_dir)
    rows.rewind()
    explain_errors = functools.partial(bad_examples.explain_read_errors, reader, shards)
    predictor = Predictor(classifiers, cluster, batches, shards.num_examples)
    evaluator = Evaluator(predictor, averages, shows_batches=True, explain_errors=explain_errors)
    terminal.log_for_scripts("built evaluation graph")
    if is_ensemble:
        logging.info("an ensemble of %d models; its summaries and metrics go to %s", len(train_dirs), eval_dir)
    members = ensemble.restore(classifiers, train_dirs) if is_ensemble else []
    # The step of an ensemble is the largest of its models.
    steps = [max(one["step"] for one in members)] if members else new_checkpoints(classifiers[0], train_dirs[0])
    has_graph = is_ensemble  # TensorBoard shows the graph of one model.
    for step in steps:
        terminal.log_for_scripts("enter eval_once loop global_step_val = %s. ", step)
        if not events.exists():  # A train.py --start_new_model deleted it.
            events, has_graph = EventFile(eval_dir), is_ensemble
        with files.explain_write_errors(eval_dir, "train_dir"):
            if not has_graph:
                events.graph(predictor.graph, step)
                has_graph = True
            evaluation = evaluator.evaluate(step, events, members=members)
            evaluation.write_pictures(events)
            events.flush()
            metrics = evaluation.metrics | about_data
            rows.add("evaluation", metrics)
            rows.flush()
        written = [train_dir.write_metrics(eval_dir, step, metrics), rows.path, events.path]
        if mistakes_file:
            write_mistakes(mistakes_file, evaluation.mistakes)
            written.append(mistakes_file)
        print(*evaluation.table(), sep="\n", flush=True)
        logging.info("Wrote %s.", ", ".join(written))
        if has_report:
            report.Report(eval_dir, train_dirs, classifiers, reader, shards).write(evaluation, metrics)
        if about_data["trained_on"]:
            logging.warning("these metrics include %(trained_on)d examples that were trained on", about_data)
        if run_once:
            advice.log_recipes(metrics, train_dirs[0])
            return


if __name__ == "__main__":
    utils.run_script(main, define_flags)
