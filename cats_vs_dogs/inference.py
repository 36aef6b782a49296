"""Predicts cats and dogs for unlabelled shards or plain picture files, and writes the submission CSV.

python cats_vs_dogs/inference.py --input_data_pattern='shards/test-*' --output_file=predictions.csv
python cats_vs_dogs/inference.py --input_data_pattern='photos/*.jpg' --output_file=predictions.csv
"""

import os
import sys

if __package__ in (None, ""):  # Run as a file: import the package next to this file, from any folder.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    import cats_vs_dogs  # Sets what TensorFlow reads when it is imported.

    cats_vs_dogs.forget_edited()

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from absl import flags, logging

from cats_vs_dogs import config, files, submission, terminal, utils
from cats_vs_dogs.labels import CLASS_NAMES, is_dog
from cats_vs_dogs.path_flags import define_path

if TYPE_CHECKING:
    from cats_vs_dogs.prediction import Predictor

FLAGS = flags.FLAGS

_NUM_SHOWN = 50  # Predictions of pictures shown on a terminal.


def define_flags() -> None:
    """Defines the flags of this script."""
    define_path("train_dir", utils.default_train_dir(), "The folder of the model.", module_name="model")
    flags.DEFINE_bool(
        "flip_average",
        False,
        "Average the model's outputs over a picture and its mirror image.",
        module_name="model",
    )
    define_path(
        "input_data_pattern",
        "",
        "File pattern of shards, or of picture files (JPEG, PNG, GIF, BMP). Empty: test-* beside the "
        "training shards; for a model of the sample set, its test shards.",
        module_name="data",
    )
    config.define_bad_examples_flag(
        "them in <output_file>.bad_examples.csv. An id that the CSV cannot have, such as one that came before, counts "
        "as bad."
    )
    flags.DEFINE_integer(
        "num_readers",
        1,
        "Kept from 2017, without effect: shards are read in order, and decoding uses all cores.",
        module_name="data",
    )
    define_path(
        "output_file",
        "",
        "The CSV file for the predictions. Empty: predictions.csv in train_dir.",
        module_name="output",
    )
    submission.define_flags()
    flags.DEFINE_integer("batch_size", 1024, "Number of examples per batch.", 1, 2**31 - 1, module_name="machine")


def predict(
    predictor: "Predictor", writer: submission.Writer, check_ids: Callable[[Sequence[str]], None] = lambda ids: None
) -> list[tuple[str, float]]:
    """Writes a row for each example, in order.

    Args:
        predictor: predicts the examples.
        writer: writes the rows.
        check_ids: called with the ids of each batch; raises an error if the CSV cannot have one.

    Returns:
        Id and probability of a dog of the first examples, for the terminal.

    Raises:
        UserError: if there are more or fewer examples than the predictor expects.
    """
    first, start = [], time.monotonic()
    with terminal.progress_bar(predictor.num_examples, " pictures", "predicting") as progress:
        for batch in predictor.run(progress):
            ids = [submission.id_text(one) for one in batch.ids]
            check_ids(ids)
            writer.write(ids, batch.probabilities)
            num_more = _NUM_SHOWN - len(first)
            first += zip(ids[:num_more], batch.probabilities[:num_more, 0].tolist(), strict=True)
            if progress.disable:
                seconds = time.monotonic() - start
                logging.info("num examples processed: %d elapsed seconds: %.2f", writer.num_rows, seconds)
    if predictor.num_examples not in (None, writer.num_rows):
        raise utils.UserError(
            f"{writer.num_rows} examples predicted, but {predictor.num_examples} counted at the start: the input files "
            "have changed since then; run inference.py again"
        )
    writer.finish()
    return first


def table(first: Sequence[tuple[str, float]], writer: submission.Writer, csv_path: str) -> list[str]:
    """Returns the lines of a table: the first examples with the probability of their class, and the counts.

    Args:
        first: id and probability of a dog of the first examples.
        writer: knows how many cats and dogs there are.
        csv_path: where all rows are.
    """
    rows = [["file", "", "probability"]]
    for example_id, dog in first:
        rows.append([example_id, CLASS_NAMES[int(is_dog(dog))], f"{dog if is_dog(dog) else 1 - dog:.4f}"])
    num_more = writer.num_rows - len(first)
    more = [f"... and {num_more:,} more in {csv_path}"] if num_more else []
    return [*terminal.table(rows, left=2), *more, f"{writer.num_cats:,} cats, {writer.num_dogs:,} dogs"]


def are_pictures(paths: Sequence[str]) -> bool:
    """Whether files are pictures and not shards, by the first one that begins like either: damaged ones may not."""
    from cats_vs_dogs import readers, tfrecords

    for path in paths:
        with contextlib.suppress(*files.file_errors()):  # A later step reports why it cannot be read.
            if tfrecords.is_shard(path):
                return False
            if readers.is_picture(path):
                return True
    return False


def main() -> None:
    """Predicts what the flags name."""
    train_dir, pattern, output_file = FLAGS.train_dir, FLAGS.input_data_pattern, FLAGS.output_file
    submission_format, output_column, batch_size = FLAGS.submission, FLAGS.output_column, FLAGS.batch_size
    bad_examples_flag, flip_average = FLAGS.bad_examples, FLAGS.flip_average
    config.require_model(train_dir)
    utils.import_tensorflow()
    from cats_vs_dogs import bad_examples, checkpoints, distribution, readers, trained_data
    from cats_vs_dogs import train_dir as train_dirs
    from cats_vs_dogs.classifier import Classifier
    from cats_vs_dogs.prediction import Predictor

    spec = train_dirs.load_spec(train_dir)
    checkpoints.require_checkpoint(train_dir)  # Before the data is read.
    flag = "input_data_pattern"
    patterns = [pattern] if pattern else trained_data.default_patterns(train_dir, "test", flag)
    output_file = output_file or os.path.join(train_dir, "predictions.csv")
    reader = readers.get_reader(False, spec.image_size, spec.resize_method)
    paths = [path for one in patterns for path in files.list_files(one, flag)]
    files.check_not_input(output_file, "output_file", paths)
    logging.info("number of input files: %d", len(paths))
    with files.atomic_write(output_file, "output_file") as output:
        has_pictures = are_pictures(paths)
        if has_pictures:
            shards = bad_examples.open_pictures(paths, reader, bad_examples_flag, submission_format)
            batches = readers.make_picture_dataset(reader, shards, batch_size)
            errors = bad_examples.explain_picture_errors(reader, shards)
        else:
            shards = bad_examples.open_shards(patterns, flag, reader, bad_examples_flag, submission_format)
            batches = readers.make_dataset(reader, shards, batch_size)
            errors = bad_examples.explain_read_errors(reader, shards)
        cluster = distribution.local_devices()
        with cluster.strategy.scope():
            classifier = Classifier(spec, flip_average=flip_average)
        logging.info("restoring variables from %s", checkpoints.restore_newest(classifier, train_dir))
        bad_path = f"{output_file}.bad_examples.csv"
        bad_examples.write_bad_examples(shards, bad_path)
        with errors:
            predictor = Predictor(classifier, cluster, batches, shards.num_examples)
            writer = submission.Writer(output, output_column, submission_format)
            first = predict(predictor, writer, bad_examples.make_id_check(shards, submission_format))
    if has_pictures and sys.stdout.isatty():
        print(*table(first, writer, output_file), sep="\n", flush=True)
    missing = f"; records missing from it: {len(shards.bad_list)}, listed in {bad_path}" if shards.bad_list else ""
    logging.info(
        "Done with inference. The output file was written to %s: %d rows%s", output_file, writer.num_rows, missing
    )


if __name__ == "__main__":
    utils.run_script(main, define_flags)
