"""Predicts cats and dogs for plain pictures or unlabelled shards, prints the answers and writes the submission CSV.

Words that are not flags are inputs, as --input_data_pattern is: pictures, folders and .zip files of them, or patterns.

python cats_vs_dogs/inference.py photo.jpg more_photos/ test1.zip
python cats_vs_dogs/inference.py --input_data_pattern='shards/test-*' --output_file=predictions.csv
python cats_vs_dogs/inference.py --input_data_pattern=photos.zip --output_file=predictions.csv
python cats_vs_dogs/inference.py photos.zip --train_dir=/tmp/a,/tmp/b --output_file=both.csv
"""

import os
import sys

if __package__ in (None, ""):  # Run as a file: import the package next to this file, from any folder.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    import cats_vs_dogs  # Sets what TensorFlow reads when it is imported.

    cats_vs_dogs.forget_edited()

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags, logging

from cats_vs_dogs import config, files, photo_sources, submission, terminal, user_files, utils
from cats_vs_dogs.labels import CLASS_NAMES, counted, is_dog
from cats_vs_dogs.path_flags import define_path

if TYPE_CHECKING:
    from cats_vs_dogs.prediction import Predictor
    from cats_vs_dogs.readers import BaseReader, Shards

FLAGS = flags.FLAGS

_FLAG = "input_data_pattern"
# The answers for up to so many pictures are printed. Of more pictures, only the first answers and the counts are.
_NUM_SHOWN, _NUM_FIRST_SHOWN = 20, 5


def define_flags() -> None:
    """Defines the flags of this script."""
    define_path(
        "train_dir",
        utils.default_train_dir(),
        "The folder of the model. Several folders, with commas between them or as a pattern: an ensemble, the mean of "
        "the models' probabilities.",
        module_name="model",
    )
    config.define_average_flags("model")
    define_path(
        "input_data_pattern",
        "",
        "File pattern of shards or of pictures, or a folder or .zip file of pictures: JPEG, PNG, GIF, BMP, WebP, TIFF "
        "and whatever else the installed Pillow opens; or several of them with commas between. Words that are not "
        "flags are further inputs. Without any: test-* beside the training shards, or the photos without a label among "
        "those of training; for a model of the sample set, its test shards.",
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
        "The CSV file for the predictions. Empty: predictions.csv in train_dir. Several models need it.",
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
        Id and probability of a dog of the first examples, which `answers` shows.

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


def answers(first: Sequence[tuple[str, float]], writer: submission.Writer, csv_path: str) -> list[str]:
    """Returns the lines that answer a user: cat or dog, and how sure, for a few pictures; the counts for several.

    Args:
        first: id and probability of a dog of the first pictures; of records in shards none.
        writer: knows how many cats and dogs there are.
        csv_path: where all rows are.
    """
    shown = first if writer.num_rows <= _NUM_SHOWN else first[:_NUM_FIRST_SHOWN]
    rows = [(one, CLASS_NAMES[int(is_dog(dog))], f"{100 * max(dog, 1 - dog):.1f} %") for one, dog in shown]
    lines = terminal.table(rows, left=2) if rows else []
    if rows and len(rows) < writer.num_rows:
        lines.append(f"... and {writer.num_rows - len(rows):,} more in {csv_path}")
    if writer.num_rows > 1 or not rows:
        counts = f"{counted(writer.num_cats, 'cat')}, {counted(writer.num_dogs, 'dog')}"
        lines.append(f"{counted(writer.num_rows, 'photo')}: {counts}")
    return lines


@dataclasses.dataclass(frozen=True)
class Input:
    """What to predict.

    Attributes:
        shards: the shards, or the picture files.
        batches: their examples.
        errors: a context manager that explains errors of reading them.
        has_pictures: whether they are picture files.
    """

    shards: "Shards"
    batches: Iterable
    errors: contextlib.AbstractContextManager
    has_pictures: bool


@contextlib.contextmanager
def open_input(
    patterns: Sequence[str], reader: "BaseReader", bad_examples_flag: str, submission_format: str, batch_size: int
) -> Iterator[Input]:
    """Finds what to predict: shards, or pictures, of which folders and .zip files may hold some.

    Args:
        patterns: paths and patterns of pictures, folders and .zip files; or patterns of shards.
        reader: how to read a record.
        bad_examples_flag: "fail" or "skip", see `bad_examples.open_shards`.
        submission_format: one of submission.FORMATS, whose CSV must be able to hold the ids.
        batch_size: examples per batch.

    Raises:
        UserError: if there is nothing to predict, or too much of it cannot be read.
    """
    from cats_vs_dogs import bad_examples, picture_files, readers

    places = photo_sources.find_places(patterns, _FLAG)
    if places is None:
        shards = bad_examples.open_shards(patterns, _FLAG, reader, bad_examples_flag, submission_format)
        logging.info("number of input files: %d", len(shards.files))
        errors = bad_examples.explain_read_errors(reader, shards)
        yield Input(shards, readers.make_dataset(reader, shards, batch_size), errors, has_pictures=False)
        return
    with photo_sources.open_pictures(places, _FLAG) as (paths, read):
        logging.info("number of input files: %d", len(paths))
        pictures = bad_examples.open_pictures(paths, reader, bad_examples_flag, submission_format, read)
        errors = bad_examples.explain_picture_errors(reader, pictures, read)
        batches = picture_files.PictureBatches(reader, pictures, batch_size, read)
        yield Input(pictures, batches, errors, has_pictures=True)


@contextlib.contextmanager
def words_as_typed(words: Sequence[str]) -> Iterator[None]:
    """Lets errors about words name them as they were typed, without the flag that they stand for."""
    try:
        yield
    except utils.UserError as error:
        flag, message = f"--{_FLAG}=", str(error)
        if not message.startswith(tuple(f"{flag}{word}:" for word in words)):
            raise
        raise utils.UserError(message.removeprefix(flag)) from error


def main(words: Sequence[str] = ()) -> None:
    """Predicts what the flags name, and what the words beside them do."""
    with words_as_typed(words):
        predict_all(words)


def predict_all(words: Sequence[str]) -> None:
    """Predicts what the flags name, and some words."""
    patterns, output_file = [*filter(None, [FLAGS.input_data_pattern]), *words], FLAGS.output_file
    submission_format, output_column, batch_size = FLAGS.submission, FLAGS.output_column, FLAGS.batch_size
    bad_examples_flag = FLAGS.bad_examples
    averages = {name: getattr(FLAGS, name) for name in config.AVERAGES}
    train_dirs = config.find_models(FLAGS.train_dir)
    if len(train_dirs) > 1 and not output_file:
        raise utils.UserError(
            f"--output_file: not given, and --train_dir names {len(train_dirs)} models; name the CSV file, such as "
            "--output_file=predictions.csv"
        )
    for pattern in patterns:
        photo_sources.check_there(pattern, _FLAG)
    utils.import_tensorflow()
    user_files.import_all()
    from cats_vs_dogs import bad_examples, checkpoints, distribution, ensemble, trained_data
    from cats_vs_dogs.prediction import Predictor

    specs = ensemble.load_specs(train_dirs)
    for one in train_dirs:
        checkpoints.require_checkpoint(one)  # Before the data is read.
    patterns = patterns or trained_data.default_patterns(train_dirs, "test", _FLAG)
    output_file = output_file or os.path.join(train_dirs[0], "predictions.csv")
    reader = ensemble.open_reader_for(specs, is_labelled=False)
    with (
        files.atomic_write(output_file, "output_file") as output,
        open_input(patterns, reader, bad_examples_flag, submission_format, batch_size) as data,
    ):
        files.check_not_input(output_file, "output_file", [*patterns, *data.shards.files])
        cluster = distribution.local_devices()
        classifiers = ensemble.build(specs, cluster, averages)
        ensemble.restore(classifiers, train_dirs)
        bad_path = f"{output_file}.bad_examples.csv"
        bad_examples.write_bad_examples(data.shards, bad_path)
        with data.errors:
            predictor = Predictor(classifiers, cluster, data.batches, data.shards.num_examples)
            writer = submission.Writer(output, output_column, submission_format)
            first = predict(predictor, writer, bad_examples.make_id_check(data.shards, submission_format))
    print(*answers(first if data.has_pictures else [], writer, output_file), sep="\n", flush=True)
    num_bad = len(data.shards.bad_list)
    missing = f"; records missing from it: {num_bad}, listed in {bad_path}" if num_bad else ""
    logging.info(
        "Done with inference. The output file was written to %s: %d rows%s", output_file, writer.num_rows, missing
    )


if __name__ == "__main__":
    utils.run_script(main, define_flags, takes_paths=True)
