"""Evaluates the checkpoints of a model on labelled shards.

python cats_vs_dogs/eval.py --eval_data_pattern='shards/validation-*' --train_dir=/tmp/cvd_model --run_once
"""

import os
import sys

if __package__ in (None, ""):  # Run as a file: import the package beside this file, from whatever folder.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    import cats_vs_dogs  # noqa: F401 - Sets what TensorFlow reads when it is imported.

import csv
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from absl import flags, logging

from cats_vs_dogs import (
    bad_examples,
    checkpoints,
    distribution,
    eval_util,
    event_files,
    files,
    metrics_file,
    readers,
    sample_data,
    summaries,
    terminal,
    utils,
)
from cats_vs_dogs.classifier import NUM_CLASSES, Classifier
from cats_vs_dogs.distribution import Cluster

FLAGS = flags.FLAGS

_SECONDS_BETWEEN_LOOKS = 10  # for a new checkpoint, without --run_once
_TOP_K = 2
_NUM_WORST = 10  # mistakes that the table shows
_ANIMALS = ("cat", "dog")


def define_flags() -> None:
    flags.DEFINE_string(
        "train_dir",
        utils.default_train_dir(),
        "The directory to load the model from. Summaries and metrics are written to its folder eval.",
    )
    flags.DEFINE_string(
        "eval_data_pattern", "", "File glob for the labelled shards. Empty: the kit's own sample set, drawn once."
    )
    flags.DEFINE_string("model", None, "Not needed: train_dir knows its model. One that contradicts it is an error.")
    flags.DEFINE_string("label_loss", None, "Not needed: train_dir knows it. One that contradicts it is an error.")
    flags.DEFINE_integer("batch_size", 1024, "How many examples to process per batch.", 1, 2**31 - 1)
    flags.DEFINE_integer(
        "num_readers", 8, "Kept from 2017, without effect: shards are read in order, decoding uses all cores."
    )
    flags.DEFINE_bool(
        "run_once", False, "Evaluate the newest checkpoint and stop, instead of waiting for more checkpoints."
    )
    flags.DEFINE_enum(
        "bad_examples",
        "fail",
        ["fail", "skip"],
        "What to do with a record that cannot be read: fail names it and stops; skip reads everything once before, "
        "leaves the bad ones out and lists them in train_dir/eval/bad_examples.csv.",
    )
    flags.DEFINE_string(
        "mistakes_file",
        "",
        "The CSV file to list all wrong answers in, the surest first: id, label (1 is a dog), probability of a dog. "
        "Each evaluation replaces it. Empty: none.",
    )
    flags.DEFINE_bool(
        "flip_average", False, "Go by the mean of what the model gives for a picture and for its mirror image."
    )


class Evaluator:
    """Evaluates a model on labelled examples, again and again while its weights change.

    Args:
        classifier: the model, built in the scope of the cluster's strategy.
        cluster: the devices to evaluate on.
        batches: of ids, images, labels.
        writer: of the summaries.
        shows_batches: whether each batch is logged, or shown by a progress bar on a terminal, and summarized, too.
        num_examples: how many there are, for the progress bar. None: not known.
    """

    def __init__(
        self,
        classifier: Classifier,
        cluster: Cluster,
        batches: tf.data.Dataset,
        writer: tf.summary.SummaryWriter,
        shows_batches: bool,
        num_examples: int | None = None,
    ):
        self._num_examples = num_examples
        self._classifier = classifier
        self._batches = batches
        self._writer = writer
        self._shows_batches = shows_batches
        evaluate_batch = tf.function(classifier.evaluate_batch, input_signature=batches.element_spec[1:])
        evaluate_batch.get_concrete_function()  # Builds the graph, so that the first batch is not slower for it.
        self._evaluate_batch = cluster.on_all_devices(evaluate_batch)

    def evaluate(self, step: int, should_stop: Callable[[], bool] = lambda: False) -> dict[str, Any] | None:
        """Evaluates the present weights, logs and writes summaries, all but the pictures.

        Args:
            step: at which the weights are, for the log lines and summaries.
            should_stop: asked between batches; once it says so, the evaluation is given up.

        Returns:
            The metrics, as `EvaluationMetrics.get` gives them; None if it was given up.

        Raises:
            UserError: if the loss's probability() gives something else than probabilities.
        """
        metrics, photos = eval_util.EvaluationMetrics(NUM_CLASSES, _TOP_K), summaries.Photos()
        clock = time.monotonic()
        with terminal.progress_bar(self._num_examples, " pictures", "evaluating", self._shows_batches) as progress:
            for ids, images, labels in self._batches:
                if should_stop():
                    return None
                parts = self._evaluate_batch(images, labels)
                probabilities, labels = np.concatenate([part.numpy() for part, _ in parts]), labels.numpy()
                loss = sum(len(part) * float(loss) for part, loss in parts) / len(labels)
                eval_util.check_probabilities(probabilities, self._classifier.spec.label_loss)
                batch = metrics.accumulate(probabilities, labels, loss, ids.numpy())
                photos.add(ids, images, labels, probabilities)
                clock, seconds = time.monotonic(), time.monotonic() - clock
                progress.update(len(labels))
                if self._shows_batches:
                    speed = len(labels) / max(seconds, 1e-9)
                    _show_batch(step, metrics.num_examples, batch, speed, self._writer, is_logged=progress.disable)
        whole = {"step": step, **metrics.get(), "flip_average": self._classifier.flip_average}
        _show_whole(step, whole, self._writer)
        self._last = metrics, whole, photos
        summaries.write_curves(*metrics.examples())
        return whole

    def mistakes(self) -> list[tuple[bytes, int, float]]:
        """Returns those of the last evaluation, as `EvaluationMetrics.mistakes` gives them."""
        return self._last[0].mistakes()

    def show_pictures(self, step: int) -> None:
        """Writes drawings and photos of what was just evaluated, as the summaries of its step."""
        self._writer.set_as_default(step)
        metrics, whole, photos = self._last
        summaries.write_drawings(*metrics.examples(), whole)
        summaries.write_photos(photos)

    def flush(self) -> None:
        """Makes sure that what was written is in the event file."""
        self._writer.flush()


def _show_batch(
    step: int,
    num_examples: int,
    batch: dict[str, float],
    examples_per_second: float,
    writer: tf.summary.SummaryWriter,
    is_logged: bool,
) -> None:
    if is_logged:
        logging.info(
            "examples_processed: %d | global_step %d | Batch Hit@1: %.3f | Batch PERR: %.3f | Batch Loss: %.3f | "
            "Examples_per_sec: %.3f",
            *(num_examples, step, batch["hit_at_one"], batch["perr"], batch["loss"], examples_per_second),
        )
    writer.set_as_default(step)
    tf.summary.scalar("GlobalStep/Eval_Hit@1", batch["hit_at_one"])
    tf.summary.scalar("GlobalStep/Eval_Perr", batch["perr"])
    tf.summary.scalar("GlobalStep/Eval_Loss", batch["loss"])
    tf.summary.scalar("GlobalStep/Eval_Example_Second", examples_per_second)


def _show_whole(step: int, whole: dict[str, Any], writer: tf.summary.SummaryWriter) -> None:
    logging.info(
        "epoch/eval number %d | Avg_Hit@1: %.3f | Avg_PERR: %.3f | MAP: %.3f | GAP: %.3f | Avg_Loss: %3f",
        *(step, whole["avg_hit_at_one"], whole["avg_perr"], whole["map"], whole["gap"], whole["avg_loss"]),
    )
    confusion = whole["confusion"]
    logging.info(
        "log loss: %.4f | ROC AUC: %.4f | cats: %d right, %d called dogs | dogs: %d right, %d called cats",
        *(whole["log_loss"], whole["roc_auc"], confusion["cats_as_cats"], confusion["cats_as_dogs"]),
        *(confusion["dogs_as_dogs"], confusion["dogs_as_cats"]),
    )
    writer.set_as_default(step)
    tf.summary.scalar("Epoch/Eval_Avg_Hit@1", whole["avg_hit_at_one"])
    tf.summary.scalar("Epoch/Eval_Avg_Perr", whole["avg_perr"])
    tf.summary.scalar("Epoch/Eval_Avg_Loss", whole["avg_loss"])
    tf.summary.scalar("Epoch/Eval_MAP", whole["map"])
    tf.summary.scalar("Epoch/Eval_GAP", whole["gap"])
    tf.summary.scalar("Epoch/Eval_Log_Loss", whole["log_loss"])
    tf.summary.scalar("Epoch/Eval_ROC_AUC", whole["roc_auc"])
    for name, count in confusion.items():
        tf.summary.scalar(f"Confusion/{name}", count)
    # Under the same tags as those of training, so that one chart shows both.
    tf.summary.scalar("Compare/accuracy", whole["avg_hit_at_one"])
    tf.summary.scalar("Compare/loss", whole["avg_loss"])
    for animal, right, wrong in (("cat", "cats_as_cats", "cats_as_dogs"), ("dog", "dogs_as_dogs", "dogs_as_cats")):
        if confusion[right] + confusion[wrong] == 0:
            logging.warning("there is no %s among the examples; the figures say little", animal)


def report_lines(metrics: dict[str, Any], mistakes: list[tuple[bytes, int, float]]) -> list[str]:
    """Returns the figures of an evaluation as a reader wants them, and the worst mistakes.

    Args:
        metrics: what `Evaluator.evaluate` gave.
        mistakes: all of them, the worst first.
    """
    figures = (
        ("accuracy", "avg_hit_at_one"),
        ("log loss", "log_loss"),
        ("ROC AUC", "roc_auc"),
        ("expected calibration error", "ece"),
    )
    classes = [["", "precision", "recall", "F1", "examples", "called cat", "called dog"]]
    for animal in _ANIMALS:
        counts = [metrics["confusion"][f"{animal}s_as_{called}s"] for called in _ANIMALS]
        shares = [f"{metrics[name][animal]:.4f}" for name in ("precision", "recall", "f1")]
        classes.append([animal, *shares, *map(str, (sum(counts), *counts))])
    lines = terminal.table([[name, f"{metrics[key]:.4f}"] for name, key in figures])
    lines += ["", *terminal.table(classes)]
    if mistakes:
        worst = [["id", "label", "probability of dog"]]
        for example_id, label, probability in mistakes[:_NUM_WORST]:
            worst.append([bad_examples.id_text(example_id), _ANIMALS[label], f"{probability:.4f}"])
        lines += ["", f"The worst of {len(mistakes)} mistakes:", *terminal.table(worst, left=2)]
    return lines


def write_mistakes(path: str, mistakes: list[tuple[bytes, int, float]]) -> None:
    """Writes a CSV file with the columns Id, Label (1 = dog) and Probability (of a dog).

    Raises:
        UserError: if it cannot be written.
    """
    with files.atomic_write(path, "mistakes_file") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["Id", "Label", "Probability"])
        rows.writerows((bad_examples.id_text(one), label, f"{probability:.6f}") for one, label, probability in mistakes)


def main() -> None:
    logging.info("tensorflow version: %s", tf.__version__)
    spec = checkpoints.load_spec(FLAGS.train_dir, model=FLAGS.model, label_loss=FLAGS.label_loss)
    if FLAGS.run_once:
        checkpoints.latest_checkpoint(FLAGS.train_dir)  # Its absence is said before the data is read.
    if FLAGS.mistakes_file:
        files.check_output_file(FLAGS.mistakes_file, "mistakes_file")

    pattern = FLAGS.eval_data_pattern or sample_data.pattern("validation")
    if not FLAGS.eval_data_pattern:
        logging.info("No --eval_data_pattern given: using the kit's own sample set, %s", pattern)
    eval_dir = os.path.join(FLAGS.train_dir, "eval")
    files.make_output_folder(eval_dir, "train_dir")
    reader = readers.get_reader(True, spec.image_size, spec.resize_method)
    shards = bad_examples.open_shards(pattern, "eval_data_pattern", reader, FLAGS.bad_examples)
    bad_examples.write_list(shards, os.path.join(eval_dir, "bad_examples.csv"))
    batches = readers.make_dataset(reader, shards, FLAGS.batch_size)
    logging.info("Using batch size of %d for evaluation.", FLAGS.batch_size)
    logging.info("number of evaluation files: %d", len(shards.files))

    cluster = distribution.local_devices()
    with cluster.strategy.scope():
        classifier = Classifier(spec, flip_average=FLAGS.flip_average)
    rows = metrics_file.MetricsFile(eval_dir)
    with files.explain_write_errors(eval_dir, "train_dir"):
        writer = event_files.make_writer(eval_dir)
        rows.cut()
    evaluator = Evaluator(classifier, cluster, batches, writer, True, shards.num_examples)
    seen, evaluated = None, None
    while True:
        newest = checkpoints.newest_checkpoint(FLAGS.train_dir)
        if newest == seen:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            continue
        seen = newest
        logging.info("Loading checkpoint for eval: %s", newest)
        restored = checkpoints.restore_newest(classifier, FLAGS.train_dir)
        if restored == evaluated:  # The newest one cannot be read.
            continue
        evaluated = restored
        step = checkpoints.step_of(restored)
        with bad_examples.named_errors(reader, shards), files.explain_write_errors(eval_dir, "train_dir"):
            metrics = {**evaluator.evaluate(step), "eval_data_pattern": pattern}
            evaluator.show_pictures(step)
            evaluator.flush()
            rows.add("evaluation", **metrics)
            rows.flush()
        files.write_json(os.path.join(eval_dir, f"metrics-{step}.json"), metrics)
        if FLAGS.mistakes_file:
            write_mistakes(FLAGS.mistakes_file, evaluator.mistakes())
        for line in report_lines(metrics, evaluator.mistakes()):
            logging.info("%s", line)
        if FLAGS.run_once:
            break


if __name__ == "__main__":
    utils.run_script(main, define_flags)
