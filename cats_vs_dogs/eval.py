"""Evaluates the checkpoints of a model on labelled shards.

python cats_vs_dogs/eval.py --eval_data_pattern='shards/validation-*' --train_dir=/tmp/cvd_model --run_once
"""

import os
import sys

if __package__ in (None, ""):  # Run as a file: import the package beside this file, from whatever folder.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    import cats_vs_dogs  # noqa: F401 - Sets what TensorFlow reads when it is imported.

import time

import tensorflow as tf
from absl import flags, logging

from cats_vs_dogs import bad_examples, checkpoints, eval_util, readers, sample_data, utils
from cats_vs_dogs.classifier import NUM_CLASSES, Classifier

FLAGS = flags.FLAGS

_SECONDS_BETWEEN_LOOKS = 10  # for a new checkpoint, without --run_once
_TOP_K = 2


def define_flags() -> None:
    flags.DEFINE_string(
        "train_dir",
        "/tmp/cvd_model/",
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


def evaluate(
    classifier: Classifier, batches: tf.data.Dataset, step: int, writer: tf.summary.SummaryWriter
) -> dict[str, float]:
    """Evaluates a model on all batches, logs and writes summaries.

    Args:
        classifier: the model, with the weights of `step`.
        batches: of ids, images, labels.
        step: for the log lines and summaries.
        writer: of the summaries.

    Returns:
        The metrics, as `EvaluationMetrics.get` gives them.
    """
    metrics = eval_util.EvaluationMetrics(NUM_CLASSES, _TOP_K)
    evaluate_batch = tf.function(classifier.evaluate_batch, input_signature=batches.element_spec[1:])
    evaluate_batch.get_concrete_function()  # Builds the graph, so that the first batch is not slower for it.
    clock = time.monotonic()
    for _, images, labels in batches:
        probabilities, loss = evaluate_batch(images, labels)
        probabilities, labels = probabilities.numpy(), labels.numpy()
        eval_util.check_probabilities(probabilities, classifier.spec.label_loss)
        batch = metrics.accumulate(probabilities, labels, float(loss))
        clock, seconds = time.monotonic(), time.monotonic() - clock
        examples_per_second = len(labels) / max(seconds, 1e-9)
        logging.info(
            "examples_processed: %d | global_step %d | Batch Hit@1: %.3f | Batch PERR: %.3f | Batch Loss: %.3f | "
            "Examples_per_sec: %.3f",
            *(metrics.num_examples, step, batch["hit_at_one"], batch["perr"], batch["loss"], examples_per_second),
        )
        with writer.as_default(step=step):
            tf.summary.scalar("GlobalStep/Eval_Hit@1", batch["hit_at_one"])
            tf.summary.scalar("GlobalStep/Eval_Perr", batch["perr"])
            tf.summary.scalar("GlobalStep/Eval_Loss", batch["loss"])
            tf.summary.scalar("GlobalStep/Eval_Example_Second", examples_per_second)
    logging.info("Done with batched inference. Now calculating global performance metrics.")
    whole = metrics.get()
    mean_ap = sum(whole["aps"]) / len(whole["aps"])
    logging.info(
        "epoch/eval number %d | Avg_Hit@1: %.3f | Avg_PERR: %.3f | MAP: %.3f | GAP: %.3f | Avg_Loss: %3f",
        *(step, whole["avg_hit_at_one"], whole["avg_perr"], mean_ap, whole["gap"], whole["avg_loss"]),
    )
    confusion = whole["confusion"]
    logging.info(
        "log loss: %.4f | ROC AUC: %.4f | cats: %d right, %d called dogs | dogs: %d right, %d called cats",
        *(whole["log_loss"], whole["roc_auc"], confusion["cats_as_cats"], confusion["cats_as_dogs"]),
        *(confusion["dogs_as_dogs"], confusion["dogs_as_cats"]),
    )
    with writer.as_default(step=step):
        tf.summary.scalar("Epoch/Eval_Avg_Hit@1", whole["avg_hit_at_one"])
        tf.summary.scalar("Epoch/Eval_Avg_Perr", whole["avg_perr"])
        tf.summary.scalar("Epoch/Eval_Avg_Loss", whole["avg_loss"])
        tf.summary.scalar("Epoch/Eval_MAP", mean_ap)
        tf.summary.scalar("Epoch/Eval_GAP", whole["gap"])
        tf.summary.scalar("Epoch/Eval_Log_Loss", whole["log_loss"])
        tf.summary.scalar("Epoch/Eval_ROC_AUC", whole["roc_auc"])
        for name, count in confusion.items():
            tf.summary.scalar(f"Confusion/{name}", count)
    writer.flush()
    for animal, right, wrong in (("cat", "cats_as_cats", "cats_as_dogs"), ("dog", "dogs_as_dogs", "dogs_as_cats")):
        if confusion[right] + confusion[wrong] == 0:
            logging.warning("there is no %s among the examples; the figures say little", animal)
    return {"step": step, "num_examples": metrics.num_examples, "map": mean_ap, **whole}


def main() -> None:
    logging.info("tensorflow version: %s", tf.__version__)
    spec = checkpoints.load_spec(FLAGS.train_dir, model=FLAGS.model, label_loss=FLAGS.label_loss)
    if FLAGS.run_once:
        checkpoints.latest_checkpoint(FLAGS.train_dir)  # Its absence is said before the data is read.

    pattern = FLAGS.eval_data_pattern or sample_data.pattern("validation")
    if not FLAGS.eval_data_pattern:
        logging.info("No --eval_data_pattern given: using the kit's own sample set, %s", pattern)
    eval_dir = os.path.join(FLAGS.train_dir, "eval")
    utils.make_folder(eval_dir, "train_dir")
    reader = readers.get_reader(True, spec.image_size, spec.resize_method)
    bad_path = os.path.join(eval_dir, "bad_examples.csv")
    shards = bad_examples.open_shards(pattern, "eval_data_pattern", reader, FLAGS.bad_examples, bad_path)
    batches = readers.make_dataset(reader, shards, FLAGS.batch_size)
    logging.info("Using batch size of %d for evaluation.", FLAGS.batch_size)
    logging.info("number of evaluation files: %d", len(shards.files))

    classifier = Classifier(spec)
    writer = tf.summary.create_file_writer(eval_dir)
    evaluated = None
    while True:
        checkpoint_path = checkpoints.newest_checkpoint(FLAGS.train_dir)
        if checkpoint_path == evaluated:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            continue
        evaluated = checkpoint_path
        logging.info("Loading checkpoint for eval: %s", checkpoint_path)
        checkpoints.restore_classifier(classifier, checkpoint_path)
        step = checkpoints.step_of(checkpoint_path)
        with bad_examples.named_errors(reader, shards):
            metrics = evaluate(classifier, batches, step, writer)
        metrics["eval_data_pattern"] = pattern
        utils.write_json(os.path.join(eval_dir, f"metrics-{step}.json"), metrics)
        if FLAGS.run_once:
            break


if __name__ == "__main__":
    utils.run_script(main, define_flags)
