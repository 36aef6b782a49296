"""Converts photos of cats and dogs, in a folder or a .zip file, to TFRecord shards.

    python cats_vs_dogs/convert_images_to_tfrecords.py --images=train.zip --output_dir=/tmp/cvd_data

A photo's label comes from a folder on its path that is named cat(s) or dog(s). Without such a folder, it comes from
the beginning of the file name (cat.0.jpg). Labelled photos are written to train-* and validation-* shards, all others
to test-* shards. Photos in folders named train and validation, or train and test, keep that split. A file that is not
a usable JPEG is re-encoded or skipped, and listed in bad_images.csv.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

if __package__ in (None, ""):  # Run as a file: make the package importable from any working directory.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    import cats_vs_dogs  # noqa: F401 - Says in one line that the kit is not installed.

from absl import flags, logging

from cats_vs_dogs import archives, files, labels, photo_sources, pictures, terminal, utils
from cats_vs_dogs.path_flags import define_path
from cats_vs_dogs.photo_splits import SPLITS, split_photos
from cats_vs_dogs.utils import UserError

FLAGS = flags.FLAGS

BAD_IMAGES = "bad_images.csv"

VALIDATION_PERCENT, EXAMPLES_PER_SHARD = 10, 1000  # The defaults of the flags.

_LOG_EVERY = 5000  # The period of log lines, in photos, if there is no terminal for a progress bar.

# The label of each class name: {"cat": 0, "cats": 0, "dog": 1, "dogs": 1}.
_CLASSES = {name + ending: label for label, name in enumerate(labels.CLASS_NAMES) for ending in ("", "s")}
# Matches cat.0.jpg and "Dog (3).png", but not category.jpg.
_CLASS_PREFIX = re.compile(rf"({'|'.join(_CLASSES)})(?![^\W\d_])", re.IGNORECASE)


def define_flags() -> None:
    """Defines the flags of this script."""
    define_path(
        "images",
        "",
        "The photos: a folder or a .zip file, such as Kaggle's train.zip and test1.zip, Microsoft's PetImages, or any "
        "folder with the subfolders cat and dog.",
        module_name="data",
    )
    flags.register_validator(
        "images", bool, "must not be empty; name a folder or .zip of photos, such as --images=train.zip"
    )
    define_path("output_dir", "", "The folder for the shards and bad_images.csv. Made if needed.", module_name="output")
    flags.register_validator(
        "output_dir", bool, "must not be empty; name a folder for the shards, such as --output_dir=/tmp/cvd_data"
    )
    flags.DEFINE_integer(
        "validation_percent",
        VALIDATION_PERCENT,
        "Percentage of the labelled photos that is written to validation-* shards. A hash of the photo's id decides, "
        "so a photo never changes sides. 0: no validation shards. Not used if the photos are in folders named train "
        "and validation.",
        lower_bound=0,
        upper_bound=50,
        module_name="data",
    )
    flags.DEFINE_integer(
        "examples_per_shard", EXAMPLES_PER_SHARD, "The number of photos per shard.", 1, module_name="output"
    )


def main() -> None:
    """Converts what the flags name."""
    # A bad picture is listed in bad_images.csv. TensorFlow's own error lines about it are not needed.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    utils.import_tensorflow()
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # JPEGs are decoded on the CPU; do not reserve the GPU's memory.
    convert(FLAGS.images, FLAGS.output_dir, FLAGS.validation_percent, FLAGS.examples_per_shard, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class Photo:
    """A file that may be a photo.

    Attributes:
        path: its path relative to the source, with "/" between folders.
        key: what the source's `read` needs.
        label: an index of `labels.CLASS_NAMES`; None if the path does not tell the class.
        id: the id that the record stores; unique among all photos of a conversion.
    """

    path: str
    key: Any
    label: int | None
    id: str = ""


@dataclasses.dataclass
class Outcome:
    """What a conversion has done so far.

    Attributes:
        rows: rows of bad_images.csv: (file, action, reason). An action is "skipped" or "re-encoded".
        written: the number of examples by (split, label).
        shards: the number of shards by split.
    """

    rows: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    written: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    shards: dict[str, int] = dataclasses.field(default_factory=dict)

    def count(self, action: str) -> int:
        """Returns the number of files with an action."""
        return sum(row[1] == action for row in self.rows)


def convert(
    images: str, output_dir: str, validation_percent: int, examples_per_shard: int, num_threads: int
) -> Outcome:
    """Writes the photos of a folder or .zip file as shards. The same input always results in the same bytes.

    Args:
        images: the folder or .zip file.
        output_dir: the folder for the shards.
        validation_percent: percentage of the labelled photos that is written to validation shards, 0 to 50.
        examples_per_shard: the number of photos per shard. The last shard of a split may have fewer.
        num_threads: the number of photos that are checked at the same time.

    Returns:
        What was written, and what was skipped or re-encoded.

    Raises:
        UserError: if no photo can be converted, the folder cannot be written to, or it already has shards. Then no
            shard is added to it.
    """
    with photo_sources.open_source(images) as source:
        outcome = Outcome()
        photos = find_photos(source, images, "images", outcome)
        splits = split_photos(photos, validation_percent)
        # A text file has no label either, but it is no reason to expect test shards.
        expected = [
            split for split in SPLITS if any(pictures.is_named_as_picture(photo.path) for photo in splits[split])
        ]
        _check_no_shards(output_dir, expected)
        files.make_output_folder(output_dir, "output_dir")
        with files.explain_write_errors(output_dir, "output_dir"):
            _write(source, splits, output_dir, examples_per_shard, num_threads, outcome)
    _log_outcome(outcome, output_dir, validation_percent)
    return outcome


def convert_photos(source: photo_sources.PhotoSource, photos: Sequence[Photo], folder: str, outcome: Outcome) -> None:
    """Writes photos into an empty folder of this machine, as the script does without further flags. Logs nothing.

    Args:
        source: where the photos are.
        photos: the result of `find_photos`.
        folder: the folder. Without any usable picture, it gets no shards.
        outcome: that of `find_photos`; receives what is written, skipped and re-encoded.
    """
    splits = split_photos(photos, VALIDATION_PERCENT)
    _write_shards(source, splits, folder, EXAMPLES_PER_SHARD, os.cpu_count() or 1, outcome)
    _write_bad_images(outcome, folder)
    _move_shards(folder, folder, outcome.shards)


# ---- Labels and ids.


def find_photos(source: photo_sources.PhotoSource, images: str, flag: str, outcome: Outcome) -> list[Photo]:
    """Lists the files that may be photos, with their labels and ids.

    Args:
        source: the folder or .zip file.
        images: what the user gave, for messages.
        flag: the flag that named it.
        outcome: receives a row for each file that is skipped because of its name.

    Returns:
        The photos, sorted by path.

    Raises:
        UserError: if there is no photo, or if folders of classes have other names than cat and dog.
    """
    keys, refused = photo_sources.list_photos(source)
    outcome.rows += [(path, "skipped", reason) for path, reason in refused]
    photos = _with_ids([Photo(path, key, label_of(path)) for path, key in keys.items()])
    if not photos:
        raise UserError(f"--{flag}={images}: no picture in it; name a folder or .zip of photos")
    if not any(pictures.is_named_as_picture(photo.path) for photo in photos):
        archives.check_no_archives(images, [photo.path for photo in photos], flag)
    _check_folder_names(f"--{flag}={images}", photos)
    return photos


def label_of(path: str) -> int | None:
    """Returns a photo's label: an index of `labels.CLASS_NAMES`, or None if the path does not tell the class."""
    *folders, name = path.split("/")
    for folder in reversed(folders):  # Folders come first: sorting photos into folders corrects wrong file names.
        if folder.lower() in _CLASSES:
            return _CLASSES[folder.lower()]
    prefix = _CLASS_PREFIX.match(name)
    return _CLASSES[prefix[1].lower()] if prefix else None


def _with_ids(photos: list[Photo]) -> list[Photo]:
    """Adds ids: the file names (0.jpg) if they are unique, else shortened paths (Cat/0.jpg), else the full paths."""
    # Microsoft's .zip has a read-me next to the folder PetImages. Only labelled photos determine the common folder.
    rooted = [photo for photo in photos if photo.label is not None] or photos
    root = os.path.commonpath([os.path.dirname(photo.path) for photo in rooted]) if rooted else ""

    def below_root(path: str) -> str:
        return path.removeprefix(f"{root}/")

    for make_id in (os.path.basename, below_root, str):
        ids = [make_id(photo.path) for photo in photos]
        if len(set(ids)) == len(ids):
            break
    return [dataclasses.replace(photo, id=photo_id) for photo, photo_id in zip(photos, ids, strict=True)]


def _check_folder_names(given: str, photos: Sequence[Photo]) -> None:
    """Raises a UserError for two folders of pictures that look like two classes but are not named after them."""
    named = [photo for photo in photos if pictures.is_named_as_picture(photo.path)]
    folders = sorted({os.path.dirname(photo.path) for photo in named})
    found = {photo.label for photo in named}
    if len(folders) == 2 and all(folders) and None in found and not set(range(labels.NUM_CLASSES)) <= found:
        raise UserError(
            f"{given}: its two folders are named {' and '.join(folders)}; name them "
            f"{' and '.join(labels.CLASS_NAMES)} (for photos without labels, give one folder)"
        )


# ---- Writing shards.


def _check_no_shards(output_dir: str, splits: Iterable[str]) -> None:
    """Raises a UserError if a folder has shards of one of `splits`: old and new shards would be read together."""
    try:
        present = files.list_dir(output_dir)
    except files.file_errors() as error:
        raise UserError(f"--output_dir={output_dir}: cannot be listed: {files.explain_error(error)}") from error
    for split in splits:
        old = [name for name in present if name.startswith(f"{split}-")]
        if old:
            raise UserError(
                f"--output_dir={output_dir}: already has {len(old)} {split} shards, such as {old[0]}; "
                "delete them or name another folder"
            )


def _write(
    source: photo_sources.PhotoSource,
    splits: dict[str, list[Photo]],
    output_dir: str,
    examples_per_shard: int,
    num_threads: int,
    outcome: Outcome,
) -> None:
    """Writes all shards to a hidden temporary folder, then moves the complete set to `output_dir`."""
    import tensorflow as tf

    temporary = files.temporary_path(os.path.join(output_dir, ".shards"))
    files.make_dirs(temporary)
    try:
        _write_shards(source, splits, temporary, examples_per_shard, num_threads, outcome)
        _write_bad_images(outcome, output_dir)
        if not outcome.written:
            raise UserError(
                f"--output_dir={output_dir}: no shards written, since none of the {outcome.count('skipped')} files is "
                f"a usable picture; {os.path.join(output_dir, BAD_IMAGES)} lists the reasons"
            )
        _check_no_shards(output_dir, outcome.shards)  # Again: only now it is known which splits have photos.
        _move_shards(temporary, output_dir, outcome.shards)
    finally:
        # On an object store, a folder without objects does not exist.
        with contextlib.suppress(FileNotFoundError, tf.errors.NotFoundError):
            files.remove(temporary)


def _write_shards(
    source: photo_sources.PhotoSource,
    splits: dict[str, list[Photo]],
    folder: str,
    examples_per_shard: int,
    num_threads: int,
    outcome: Outcome,
) -> None:
    """Writes the shards of all splits under preliminary names such as "train-0": their number is not known yet."""
    from cats_vs_dogs import tfrecords

    # Pillow warns of harmless oddities, and of large pictures, which `usable_jpeg` checks.
    warnings.filterwarnings("ignore", module="PIL")
    with (
        ThreadPoolExecutor(num_threads) as pool,  # Threads suffice: Pillow and TensorFlow decode without the GIL.
        terminal.progress_bar(sum(map(len, splits.values())), " photos") as progress,
    ):
        for split in SPLITS:
            results = _map_in_order(pool, functools.partial(_make_example, source), splits[split], 4 * num_threads)
            results = _with_progress(results, progress, split, len(splits[split]))
            examples = _usable_examples(results, split, outcome)
            for first in examples:
                index = outcome.shards.get(split, 0)
                shard = itertools.chain([first], itertools.islice(examples, examples_per_shard - 1))
                tfrecords.write_shard(os.path.join(folder, f"{split}-{index}"), shard)
                outcome.shards[split] = index + 1


def _make_example(source: photo_sources.PhotoSource, photo: Photo) -> tuple[Photo, bytes | None, str]:
    """Returns a photo, its serialized example, and a note: see `usable_jpeg`. For a bad image: None, and the reason."""
    from cats_vs_dogs import tfrecords

    try:
        encoded, note = pictures.usable_jpeg(source.read(photo.key))
    except pictures.BadImage as error:
        return photo, None, str(error)
    return photo, tfrecords.make_example(encoded, photo.id, photo.label), note


def _map_in_order(pool: ThreadPoolExecutor, function: Callable, items: Iterable, limit: int) -> Iterator:
    """Yields function(item) in the order of the items, with at most `limit` results in memory."""
    pending: collections.deque = collections.deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) == limit:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _with_progress(results: Iterable, progress: Any, split: str, total: int) -> Iterator:
    """Yields the results, and shows their number in the progress bar or in log lines."""
    for done, result in enumerate(results, start=1):
        progress.update()
        if progress.disable and done % _LOG_EVERY == 0:
            logging.info("%s: %d of %d photos done", split, done, total)
        yield result


def _usable_examples(
    results: Iterable[tuple[Photo, bytes | None, str]], split: str, outcome: Outcome
) -> Iterator[bytes]:
    """Yields the examples among the results of `_make_example`, and records in `outcome` what happened to each."""
    for photo, example, note in results:
        if example is None:
            outcome.rows.append((photo.path, "skipped", note))
            continue
        if note:
            outcome.rows.append((photo.path, "re-encoded", note))
        outcome.written[split, photo.label] += 1
        yield example


def _write_bad_images(outcome: Outcome, output_dir: str) -> None:
    if not outcome.rows:
        return
    import pandas as pd

    table = pd.DataFrame(sorted(outcome.rows), columns=["file", "action", "reason"])
    with files.atomic_write(os.path.join(output_dir, BAD_IMAGES), "output_dir") as file:
        table.to_csv(file, index=False, lineterminator="\n")


def _move_shards(temporary: str, output_dir: str, num_shards: dict[str, int]) -> None:
    """Moves the shards to their final names. If one move fails, those before it are undone."""
    import tensorflow as tf

    from cats_vs_dogs import tfrecords

    move = tf.io.gfile.rename if files.is_remote(output_dir) else files.replace
    moved = []
    try:
        for split, count in num_shards.items():
            for index in range(count):
                path = tfrecords.shard_path(output_dir, split, index, count)
                moved.append(path)
                move(os.path.join(temporary, f"{split}-{index}"), path)
    except BaseException:
        for path in moved:
            with contextlib.suppress(*files.file_errors()):
                files.remove(path)
        raise


# ---- Reporting.


def _log_outcome(outcome: Outcome, output_dir: str, validation_percent: int) -> None:
    """Logs what was written, warns of what looks wrong, and prints the next command."""
    for split, num_shards in outcome.shards.items():
        counts = {name: outcome.written[split, label] for label, name in enumerate(labels.CLASS_NAMES)}
        photos = [labels.counted(count, name) for name, count in counts.items()] if any(counts.values()) else []
        unlabelled = outcome.written[split, None]
        photos += [f"{labels.counted(unlabelled, 'photo')} without a label"] if unlabelled else []
        logging.info("%s: %s in %s", split, ", ".join(photos), labels.counted(num_shards, "file"))
        for name, count in counts.items():
            if split == "train" and not count:
                logging.warning("train: no %s at all; a model learns nothing from one class", name)
    if outcome.rows:
        path = os.path.join(output_dir, BAD_IMAGES)
        logging.info("%d re-encoded, %d skipped; see %s", outcome.count("re-encoded"), outcome.count("skipped"), path)
    if "train" in outcome.shards and validation_percent and "validation" not in outcome.shards:
        logging.warning("no photo fell into validation; raise --validation_percent=%d", validation_percent)
    if "train" in outcome.shards:
        logging.info("next: %s", _next_command("train.py", "train_data_pattern", output_dir, "train"))
    elif "test" in outcome.shards:
        logging.info("next: %s", _next_command("inference.py", "input_data_pattern", output_dir, "test"))


def _next_command(script: str, flag: str, output_dir: str, split: str) -> str:
    """Returns a command that reads the new shards, to be pasted into a shell."""
    pattern = os.path.join(output_dir, f"{split}-*")  # `files.list_files` takes a folder's own brackets as they are.
    return utils.command(script, **{flag: pattern, "train_dir": "/tmp/photo_model"})


if __name__ == "__main__":
    utils.run_script(main, define_flags)
