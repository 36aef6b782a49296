"""Predicts cats and dogs for unlabelled shards or plain pictures, and writes the submission CSV.

python cats_vs_dogs/inference.py --input_data_pattern='shards/test-*' --output_file=predictions.csv
python cats_vs_dogs/inference.py --input_data_pattern='photos/*.jpg' --output_file=predictions.csv
python cats_vs_dogs/inference.py --input_data_pattern=photos.zip --output_file=predictions.csv
python cats_vs_dogs/inference.py --input_data_pattern=photos.zip --train_dir=/tmp/a,/tmp/b --output_file=both.csv
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

from cats_vs_dogs import archives, config, files, submission, terminal, user_files, utils
from cats_vs_dogs.labels import CLASS_NAMES, is_dog
from cats_vs_dogs.path_flags import define_path

if TYPE_CHECKING:
    from cats_vs_dogs.prediction import Predictor
    from cats_vs_dogs.readers import BaseReader, Shards

FLAGS = flags.FLAGS

_FLAG = "input_data_pattern"
_NUM_SHOWN = 50  # Predictions of pictures shown on a terminal.


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
        "and whatever else the installed Pillow opens. Empty: test-* beside the training shards; for a model of the "
        "sample set, its test shards.",
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
    """Finds what to predict: shards, or pictures that a pattern matches or that a folder or .zip file holds.

    Args:
        patterns: the pattern, folder or .zip file; or several patterns of shards.
        reader: how to read a record.
        bad_examples_flag: "fail" or "skip", see `bad_examples.open_shards`.
        submission_format: one of submission.FORMATS, whose CSV must be able to hold the ids.
        batch_size: examples per batch.

    Raises:
        UserError: if there is nothing to predict, or too much of it cannot be read.
    """
    from cats_vs_dogs import bad_examples, picture_files, readers

    with find_pictures(patterns) as found:
        if found is None:
            shards = bad_examples.open_shards(patterns, _FLAG, reader, bad_examples_flag, submission_format)
            errors = bad_examples.explain_read_errors(reader, shards)
            yield Input(shards, readers.make_dataset(reader, shards, batch_size), errors, has_pictures=False)
            return
        paths, read = found
        pictures = bad_examples.open_pictures(paths, reader, bad_examples_flag, submission_format, read)
        errors = bad_examples.explain_picture_errors(reader, pictures, read)
        batches = picture_files.PictureBatches(reader, pictures, batch_size, read)
        yield Input(pictures, batches, errors, has_pictures=True)


@contextlib.contextmanager
def find_pictures(patterns: Sequence[str]) -> Iterator[tuple[list[str], Callable[[str], bytes]] | None]:
    """Yields the paths of pictures, and a function that reads one, given its path; None if the patterns name shards."""
    from cats_vs_dogs import photo_sources

    is_folder = False
    with contextlib.suppress(*files.file_errors()):  # `list_files` reports them.
        is_folder = len(patterns) == 1 and files.is_dir(patterns[0])
    paths = patterns if is_folder else [path for one in patterns for path in files.list_files(one, _FLAG)]
    if not is_folder and not (len(paths) == 1 and paths[0].lower().endswith(".zip")):
        logging.info("number of input files: %d", len(paths))
        yield (paths, photo_sources.read_file) if are_pictures(paths) else None
        return
    with photo_sources.open_pictures(paths[0], _FLAG) as (pictures, read):
        logging.info("number of input files: %d", len(pictures))
        if not pictures and is_folder and has_shards(paths[0]):
            files.list_files(paths[0], _FLAG)  # Says which pattern to write instead.
        if not pictures:
            archives.check_no_archives(paths[0], files.list_dir(paths[0]), _FLAG)
            raise utils.UserError(f"--{_FLAG}={paths[0]}: has no picture in it; name pictures or shards")
        yield pictures, read


def has_shards(folder: str) -> bool:
    """Whether a folder has a TFRecord file in it."""
    from cats_vs_dogs import tfrecords

    paths = [path for path in files.list_matching(folder, ".*") if not files.is_dir(path)]
    return any(map(tfrecords.is_shard, paths))


def are_pictures(paths: Sequence[str]) -> bool:
    """Whether files are pictures and not shards, by the first one that begins like either: damaged ones may not.

    If none of them does, by their names, so that a damaged picture is not called a damaged shard.
    """
    from cats_vs_dogs import photo_sources, pictures, tfrecords

    for path in paths:
        with contextlib.suppress(pictures.BadImage, *files.file_errors()):  # A later step reports it.
            if tfrecords.is_shard(path):
                return False
            if pictures.format_of(photo_sources.read_file(path, pictures.NUM_FIRST_BYTES)):
                return True
    return any(map(pictures.is_named_as_picture, paths))


def main() -> None:
    """Predicts what the flags name."""
    pattern, output_file = FLAGS.input_data_pattern, FLAGS.output_file
    submission_format, output_column, batch_size = FLAGS.submission, FLAGS.output_column, FLAGS.batch_size
    bad_examples_flag = FLAGS.bad_examples
    averages = {"flip_average": FLAGS.flip_average, "crop_average": FLAGS.crop_average}
    train_dirs = config.find_models(FLAGS.train_dir)
    if len(train_dirs) > 1 and not output_file:
        raise utils.UserError(
            f"--output_file: not given, and --train_dir names {len(train_dirs)} models; name the CSV file, such as "
            "--output_file=predictions.csv"
        )
    utils.import_tensorflow()
    user_files.import_all()
    from cats_vs_dogs import bad_examples, checkpoints, distribution, ensemble, trained_data
    from cats_vs_dogs.prediction import Predictor

    specs = ensemble.load_specs(train_dirs)
    for one in train_dirs:
        checkpoints.require_checkpoint(one)  # Before the data is read.
    patterns = [pattern] if pattern else trained_data.default_patterns(train_dirs, "test", _FLAG)
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
    if data.has_pictures and sys.stdout.isatty():
        print(*table(first, writer, output_file), sep="\n", flush=True)
    num_bad = len(data.shards.bad_list)
    missing = f"; records missing from it: {num_bad}, listed in {bad_path}" if num_bad else ""
    logging.info(
        "Done with inference. The output file was written to %s: %d rows%s", output_file, writer.num_rows, missing
    )


if __name__ == "__main__":
    utils.run_script(main, define_flags)
