"""Predicts cats and dogs for unlabelled shards or plain picture files, and writes the submission CSV.

python cats_vs_dogs/inference.py --input_data_pattern='shards/test-*' --output_file=predictions.csv
python cats_vs_dogs/inference.py --input_data_pattern='photos/*.jpg' --output_file=predictions.csv
"""

import os
import sys

if __package__ in (None, ""):  # Run as a file: import the package beside this file, from whatever folder.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    import cats_vs_dogs  # noqa: F401 - Sets what TensorFlow reads when it is imported.

import contextlib
import csv
import dataclasses
import io
import time
from collections.abc import Callable, Sequence
from typing import TextIO

import numpy as np
import tensorflow as tf
from absl import flags, logging

from cats_vs_dogs import (
    bad_examples,
    checkpoints,
    distribution,
    eval_util,
    files,
    readers,
    sample_data,
    terminal,
    tfrecords,
    utils,
)
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.distribution import Cluster

FLAGS = flags.FLAGS

_NUM_SHOWN = 50  # predictions of pictures, on a terminal


def define_flags() -> None:
    flags.DEFINE_string("train_dir", utils.default_train_dir(), "The directory to load the model from.")
    flags.DEFINE_string(
        "output_file", "", "The CSV file to save the predictions to. Empty: predictions.csv in train_dir."
    )
    flags.DEFINE_string(
        "input_data_pattern",
        "",
        "File glob for shards, or for picture files (JPEG, PNG, GIF, BMP). Empty: the kit's own sample set, "
        "drawn once.",
    )
    flags.DEFINE_enum(
        "output_column",
        "category",
        ["category", "probability"],
        "What the second column holds: category, 1 for a dog and 0 for a cat; probability, that of a dog.",
    )
    flags.DEFINE_integer("batch_size", 1024, "How many examples to process per batch.", 1, 2**31 - 1)
    flags.DEFINE_integer(
        "num_readers", 1, "Kept from 2017, without effect: shards are read in order, decoding uses all cores."
    )
    flags.DEFINE_enum(
        "bad_examples",
        "fail",
        ["fail", "skip"],
        "What to do with a record or picture that cannot be read, or whose id is missing or came before: fail names it "
        "and stops; skip reads everything once before, leaves the bad ones out and lists them in "
        "<output_file>.bad_examples.csv.",
    )
    flags.DEFINE_bool(
        "flip_average", False, "Predict the mean of what the model gives for a picture and for its mirror image."
    )


@dataclasses.dataclass
class Summary:
    """What was predicted.

    Attributes:
        num_cats: how many examples are called cats.
        num_dogs: how many are called dogs.
        first: id and probability of a dog of the first examples.
    """

    num_cats: int = 0
    num_dogs: int = 0
    first: list[tuple[str, float]] = dataclasses.field(default_factory=list)

    @property
    def num_examples(self) -> int:
        """How many there are."""
        return self.num_cats + self.num_dogs

    def add(self, ids: Sequence[str], probabilities: np.ndarray) -> None:
        """Adds a batch: its ids, and the probabilities of a dog, [batch, 1]."""
        num_dogs = int(np.sum(probabilities > 0.5))
        self.num_dogs += num_dogs
        self.num_cats += len(ids) - num_dogs
        num_more = _NUM_SHOWN - len(self.first)
        self.first += zip(ids[:num_more], probabilities[:num_more, 0].tolist(), strict=True)

    def lines(self, csv_path: str) -> list[str]:
        """Returns a table of the first examples, with the probability of what they are called, and how many there are.

        Args:
            csv_path: where all are.
        """
        rows = [["file", "", "probability"]]
        for example_id, dog in self.first:
            rows.append([example_id, *(("dog", f"{dog:.4f}") if dog > 0.5 else ("cat", f"{1 - dog:.4f}"))])
        num_more = self.num_examples - len(self.first)
        more = [f"... and {num_more:,} more in {csv_path}"] if num_more else []
        return [*terminal.table(rows, left=2), *more, f"{self.num_cats:,} cats, {self.num_dogs:,} dogs"]


def format_lines(image_ids: Sequence[str], probabilities: np.ndarray, output_column: str) -> str:
    """Returns the CSV lines of a batch.

    Args:
        image_ids: one for each row.
        probabilities: float32 [batch, 1], probability of a dog.
        output_column: "category" or "probability".
    """
    if output_column == "category":
        column = [f"{dog:d}" for dog in probabilities[:, 0] > 0.5]
    else:
        column = [f"{probability:.6f}" for probability in probabilities[:, 0]]
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(zip(image_ids, column, strict=True))
    return lines.getvalue()


def predict(
    classifier: Classifier,
    cluster: Cluster,
    batches: tf.data.Dataset,
    output: TextIO,
    output_column: str,
    check_ids: Callable[[Sequence[str]], None] = lambda ids: None,
    num_examples: int | None = None,
) -> Summary:
    """Writes a line for each example, in the order of the batches.

    Args:
        classifier: the trained model, built in the scope of the cluster's strategy.
        cluster: the devices to predict on.
        batches: of ids and images.
        output: an open text file.
        output_column: "category" or "probability".
        check_ids: called with the ids of each batch; may raise.
        num_examples: how many there are, for the progress bar. None: not known.

    Returns:
        What was predicted.
    """
    probability = cluster.on_all_devices(tf.function(classifier.probability, input_signature=batches.element_spec[1:2]))
    summary, start = Summary(), time.monotonic()
    output.write("Id,Category\n" if output_column == "category" else "Id,Probability\n")
    with terminal.progress_bar(num_examples, " pictures", "predicting") as progress:
        for image_ids, images in batches:
            probabilities = np.concatenate([part.numpy() for part in probability(images)])
            eval_util.check_probabilities(probabilities, classifier.spec.label_loss)
            ids = [bad_examples.id_text(image_id) for image_id in image_ids.numpy()]
            check_ids(ids)
            output.write(format_lines(ids, probabilities, output_column))
            summary.add(ids, probabilities)
            progress.update(len(ids))
            if progress.disable:
                seconds = time.monotonic() - start
                logging.info("num examples processed: %d elapsed seconds: %.2f", summary.num_examples, seconds)
    return summary


def main() -> None:
    spec = checkpoints.load_spec(FLAGS.train_dir)
    checkpoints.latest_checkpoint(FLAGS.train_dir)  # Its absence is said before the data is read.

    pattern = FLAGS.input_data_pattern or sample_data.pattern("test")
    if not FLAGS.input_data_pattern:
        logging.info("No --input_data_pattern given: using the kit's own sample set, %s", pattern)
    output_file = FLAGS.output_file or os.path.join(FLAGS.train_dir, "predictions.csv")
    reader = readers.get_reader(False, spec.image_size, spec.resize_method)
    inputs = files.list_files(pattern, "input_data_pattern")
    logging.info("number of input files: %d", len(inputs))
    with files.atomic_write(output_file, "output_file") as output:
        has_pictures = are_pictures(inputs)
        if has_pictures:
            shards = bad_examples.open_pictures(inputs, reader, FLAGS.bad_examples)
            batches = readers.make_picture_dataset(reader, shards, FLAGS.batch_size)
            errors = bad_examples.named_picture_errors(reader, shards)
        else:
            shards = bad_examples.open_shards(
                pattern, "input_data_pattern", reader, FLAGS.bad_examples, unique_ids=True
            )
            batches = readers.make_dataset(reader, shards, FLAGS.batch_size)
            errors = bad_examples.named_errors(reader, shards)
        cluster = distribution.local_devices()
        with cluster.strategy.scope():
            classifier = Classifier(spec, flip_average=FLAGS.flip_average)
        logging.info("restoring variables from %s", checkpoints.restore_newest(classifier, FLAGS.train_dir))
        bad_path = f"{output_file}.bad_examples.csv"
        bad_examples.write_list(shards, bad_path)
        with errors:
            check_ids = bad_examples.make_id_check(shards)
            summary = predict(classifier, cluster, batches, output, FLAGS.output_column, check_ids, shards.num_examples)
    if has_pictures and sys.stdout.isatty():
        print(*summary.lines(output_file), sep="\n", flush=True)
    missing = f"; records missing from it: {len(shards.bad_list)}, listed in {bad_path}" if shards.bad_list else ""
    logging.info(
        "Done with inference. The output file was written to %s: %d rows%s", output_file, summary.num_examples, missing
    )


def are_pictures(files: Sequence[str]) -> bool:
    """Whether files are pictures and not shards, by the first one that begins like either: damaged ones may not."""
    for path in files:
        with contextlib.suppress(tf.errors.OpError):  # Why it cannot be read is said later.
            if tfrecords.is_shard(path):
                return False
            if readers.is_picture(path):
                return True
    return False


if __name__ == "__main__":
    utils.run_script(main, define_flags)
