"""Reads shards and picture files: records -> shuffle -> batch -> decode -> images, as one `tf.data` pipeline.

Records are shuffled while they are still JPEG bytes, and pictures stay uint8 until they reach the device: both take a
fraction of the memory of float32 pixels.
"""

import contextlib
import csv
import os
from collections.abc import Iterator, Sequence

import tensorflow as tf
from absl import logging

from cats_vs_dogs import tfrecords
from cats_vs_dogs.utils import UserError

RESIZE_METHODS = ("area", "legacy_bilinear")

_SHUFFLE_BYTES = 128 * 2**20  # how much of the shards the shuffle buffer holds


def scale_images(images: tf.Tensor) -> tf.Tensor:
    """Scales pixels to what models take.

    Args:
        images: uint8 [..., 3] in [0, 255]; or float32, which is returned as it is.

    Returns:
        float32 in [-1, 1], by the arithmetic of 2017: (x / 255 - 0.5) * 2.
    """
    if images.dtype != tf.uint8:
        return images
    return (tf.image.convert_image_dtype(images, tf.float32) - 0.5) * 2.0


def decode_and_resize(encoded: tf.Tensor, image_size: int, resize_method: str) -> tf.Tensor:
    """Decodes one picture and resizes it to a square.

    Args:
        encoded: string scalar, the bytes of a JPEG; with "area" also of a PNG, GIF (the first frame) or BMP.
        image_size: height and width of the result, pixels.
        resize_method: "area": the average of the source pixels that a pixel covers, rounded. "legacy_bilinear": the
            pixels of 2017, bit for bit: four source pixels sampled without half-pixel centres, truncated.

    Returns:
        uint8 [image_size, image_size, 3].
    """
    size = [image_size, image_size]
    if resize_method == "legacy_bilinear":
        image = tf.io.decode_jpeg(encoded, channels=3)
        resized = tf.raw_ops.ResizeBilinear(images=image[tf.newaxis], size=size)[0]
        return tf.cast(resized, tf.uint8)
    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: _decode_jpeg_scaled(encoded, image_size),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )
    image = tf.ensure_shape(image, [None, None, 3])
    resized = tf.image.resize(image, size, method="area")
    return tf.ensure_shape(tf.cast(tf.round(resized), tf.uint8), [image_size, image_size, 3])


def _decode_jpeg_scaled(encoded: tf.Tensor, image_size: int) -> tf.Tensor:
    """Lets libjpeg average blocks of 2, 4 or 8 pixels while it decodes, as far as the result stays large enough."""
    shape = tf.io.extract_jpeg_shape(encoded)
    pixels_per_pixel = tf.minimum(shape[0], shape[1]) // image_size
    decoders = [lambda ratio=ratio: tf.io.decode_jpeg(encoded, channels=3, ratio=ratio) for ratio in (1, 2, 4, 8)]
    index = tf.reduce_sum(tf.cast(pixels_per_pixel >= tf.constant([2, 4, 8]), tf.int32))
    return tf.switch_case(index, decoders)


class BaseReader:
    """Inherit from this class when implementing new readers."""

    num_classes = 2

    def prepare_serialized_examples(self, serialized_examples: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Turns a batch of serialized records into what the model takes.

        Args:
            serialized_examples: string [batch].

        Returns:
            ids, string [batch]; images, float32 [batch, size, size, 3] in [-1, 1]; and, where records have labels,
            labels, int32 [batch, 1], 1 = dog.
        """
        raise NotImplementedError


class CatsVsDogsTestFeatureReader(BaseReader):
    """Reads unlabelled records.

    Args:
        num_classes: 2.
        image_size: height and width of the images, pixels.
        resize_method: see `decode_and_resize`.
    """

    def __init__(self, num_classes: int = 2, image_size: int = 32, resize_method: str = "area"):
        self.num_classes = num_classes
        self.image_size = image_size
        self.resize_method = resize_method

    def prepare_serialized_examples(self, serialized_examples: tf.Tensor) -> tuple[tf.Tensor, ...]:
        ids, images, *labels = self.decode_serialized_examples(serialized_examples)
        return ids, scale_images(images), *labels

    def decode_serialized_examples(self, serialized_examples: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Like `prepare_serialized_examples`, with images as uint8 in [0, 255]."""
        features = tf.io.parse_example(serialized_examples, self._feature_map())
        return features[tfrecords.FILENAME], self.decode_images(features[tfrecords.IMAGE])

    def decode_images(self, encoded: tf.Tensor) -> tf.Tensor:
        """Decodes picture files, string [batch], to uint8 [batch, size, size, 3]."""
        return tf.map_fn(
            lambda one: decode_and_resize(one, self.image_size, self.resize_method),
            encoded,
            fn_output_signature=tf.TensorSpec([self.image_size, self.image_size, 3], tf.uint8),
        )

    def _feature_map(self) -> dict[str, tf.io.FixedLenFeature]:
        return {
            tfrecords.IMAGE: tf.io.FixedLenFeature([], tf.string),
            tfrecords.FILENAME: tf.io.FixedLenFeature([], tf.string, default_value=""),
        }


class CatsVsDogsFeatureReader(CatsVsDogsTestFeatureReader):
    """Reads labelled records."""

    def decode_serialized_examples(self, serialized_examples: tf.Tensor) -> tuple[tf.Tensor, ...]:
        features = tf.io.parse_example(serialized_examples, self._feature_map())
        labels = tf.reshape(features[tfrecords.LABEL], [-1, 1])
        in_range = tf.reduce_all((labels >= 0) & (labels < self.num_classes))
        message = f"{tfrecords.LABEL} must be 0 (cat) or 1 (dog)"
        with tf.control_dependencies([tf.debugging.Assert(in_range, [message])]):
            labels = tf.cast(labels, tf.int32)
        return features[tfrecords.FILENAME], self.decode_images(features[tfrecords.IMAGE]), labels

    def _feature_map(self) -> dict[str, tf.io.FixedLenFeature]:
        return {**super()._feature_map(), tfrecords.LABEL: tf.io.FixedLenFeature([], tf.int64)}


def get_reader(is_labelled: bool, image_size: int, resize_method: str) -> BaseReader:
    """Returns the reader that all scripts use. To have them use one of your own, return it here.

    Args:
        is_labelled: whether it is for labelled records (training, evaluation) or not (inference, export).
        image_size: height and width of the images, pixels.
        resize_method: see `decode_and_resize`.
    """
    reader_class = CatsVsDogsFeatureReader if is_labelled else CatsVsDogsTestFeatureReader
    return reader_class(image_size=image_size, resize_method=resize_method)


def _prepare_function(reader: BaseReader):
    """The reader's function for batches; the one that keeps uint8 unless a subclass has its own way to prepare."""
    if type(reader).prepare_serialized_examples is CatsVsDogsTestFeatureReader.prepare_serialized_examples:
        return reader.decode_serialized_examples
    return reader.prepare_serialized_examples


def make_dataset(
    reader: BaseReader,
    files: Sequence[str],
    batch_size: int,
    bad_records: dict[str, list[int]] | None = None,
) -> tf.data.Dataset:
    """Returns all records once, in the order of the files and of the records in them.

    Args:
        reader: how to read a record.
        files: TFRecord files.
        batch_size: records a batch; the last batch may have fewer.
        bad_records: for each file the numbers of records to leave out, from `find_bad_examples`.

    Returns:
        Batches of what the reader gives, with images still uint8 (see `scale_images`).
    """
    records = tf.data.Dataset.from_tensor_slices(list(files)).flat_map(_record_source(bad_records))
    return _decode_batches(reader, records.batch(batch_size))


def make_training_dataset(
    reader: BaseReader,
    files: Sequence[str],
    num_examples: int,
    batch_size: int,
    seed: int,
    num_epochs: int,
    start_step: int = 0,
    num_readers: int = 8,
    bad_records: dict[str, list[int]] | None = None,
) -> tf.data.Dataset:
    """Returns the batches of a training run, from any step on.

    The order is a function of the seed and the epoch: shards in an order of the epoch, `num_readers` of them read in
    turn, records shuffled in a buffer, then cut into batches. So a run goes on where it stopped by arithmetic:
    the records before `start_step` are skipped before they are decoded.

    Args:
        reader: how to read a record.
        files: TFRecord files.
        num_examples: how many records the files have, without the bad ones.
        batch_size: records a batch, over all devices; the last batch of an epoch may have fewer.
        seed: seed of the order.
        num_epochs: passes over the data.
        start_step: number of batches to skip.
        num_readers: how many shards are read in turn.
        bad_records: for each file the numbers of records to leave out, from `find_bad_examples`.

    Returns:
        Batches of what the reader gives, with images still uint8 (see `scale_images`).
    """
    steps_per_epoch = -(-num_examples // batch_size)
    start_epoch, skipped_batches = divmod(start_step, steps_per_epoch)
    total_bytes = sum(tf.io.gfile.stat(path).length for path in files)
    buffer_size = max(batch_size, min(num_examples, _SHUFFLE_BYTES * num_examples // total_bytes))
    source = _record_source(bad_records)

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(tf.range(len(files)), seed=[seed, epoch])
        paths = tf.data.Dataset.from_tensor_slices(tf.gather(tf.constant(list(files)), order))
        records = paths.interleave(source, cycle_length=num_readers)
        # Sets the first half of the shuffle's seed, in this graph only, so that the process's seed has no part in it.
        tf.random.set_seed(1)
        records = records.shuffle(buffer_size, seed=tf.cast(seed, tf.int64) * 1_000_003 + epoch)
        skip = tf.where(epoch == start_epoch, tf.cast(skipped_batches * batch_size, tf.int64), 0)
        return records.skip(skip).batch(batch_size)

    epochs = tf.data.Dataset.range(start_epoch, num_epochs)
    return _decode_batches(reader, epochs.flat_map(epoch_batches))


def make_picture_dataset(reader: CatsVsDogsTestFeatureReader, files: Sequence[str], batch_size: int) -> tf.data.Dataset:
    """Returns plain picture files as batches of ids and images, in the order of the files.

    The id is the file name, or the path below the folder that holds all of them if they are in several.
    """
    folder = os.path.dirname(files[0])
    while not all(path.startswith(os.path.join(folder, "")) for path in files):
        folder = os.path.dirname(folder)
    ids = [path[len(os.path.join(folder, "")) :] for path in files]

    def decode(batch_ids: tf.Tensor, paths: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return batch_ids, reader.decode_images(tf.map_fn(tf.io.read_file, paths))

    batches = tf.data.Dataset.from_tensor_slices((ids, list(files))).batch(batch_size)
    return batches.map(decode, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def is_picture(path: str) -> bool:
    """Whether a file begins like a JPEG, PNG, GIF, BMP or WebP picture."""
    with tf.io.gfile.GFile(path, "rb") as file:
        start = file.read(12)
    return start.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM")) or start[8:12] == b"WEBP"


def _decode_batches(reader: BaseReader, batches: tf.data.Dataset) -> tf.data.Dataset:
    batches = batches.map(_prepare_function(reader), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def _record_source(bad_records: dict[str, list[int]] | None):
    """Returns a function from a path to the dataset of its records, without the bad ones."""
    if not bad_records:
        return tf.data.TFRecordDataset
    keys = [f"{path}\n{number}" for path, numbers in bad_records.items() for number in numbers]
    bad = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, [1] * len(keys)), default_value=0)
    # Behind damage nothing can be read, not even to leave it out: bad records at the end are not read at all.
    readable = [_records_before_bad_end(path, set(numbers)) for path, numbers in bad_records.items()]
    limits = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(list(bad_records), tf.constant(readable, tf.int64)),
        default_value=tf.int64.max,
    )

    def good_records(path: tf.Tensor) -> tf.data.Dataset:
        def is_good(number: tf.Tensor, unused_record: tf.Tensor) -> tf.Tensor:
            return bad.lookup(tf.strings.join([path, "\n", tf.strings.as_string(number)])) == 0

        records = tf.data.TFRecordDataset(path).take(limits.lookup(path)).enumerate()
        return records.filter(is_good).map(lambda unused_number, record: record)

    return good_records


def _records_before_bad_end(path: str, bad_numbers: set[int]) -> int:
    count = tfrecords.count_records(path)
    while count - 1 in bad_numbers:
        count -= 1
    return count


def find_bad_examples(
    reader: BaseReader, files: Sequence[str], first_only: bool = False
) -> list[tuple[str, int, str, str]]:
    """Reads all records and returns those that the reader cannot read.

    Args:
        reader: how to read a record.
        files: TFRecord files.
        first_only: stop at the first one.

    Returns:
        (file, number of the record in it from 0, id or "", reason) for each.
    """
    prepare = tf.function(_prepare_function(reader), input_signature=[tf.TensorSpec([1], tf.string)])
    bad = []
    for path in files:
        records = tf.data.TFRecordDataset(path).enumerate()
        # Only the numbers of the good records come back, decoded by all cores; the few others are then looked at.
        good = records.map(lambda number, record: (number, prepare(record[tf.newaxis])), tf.data.AUTOTUNE)
        good = good.map(lambda number, unused_outputs: number).ignore_errors()
        good_numbers = set(good.as_numpy_iterator())
        try:
            for number, record in records.filter(lambda number, unused: True).as_numpy_iterator():
                if number in good_numbers:
                    continue
                try:
                    prepare(tf.constant([record]))
                except tf.errors.OpError as error:
                    bad.append((path, int(number), _id_of(record), _reason(error)))
                    if first_only:
                        return bad
        except tf.errors.DataLossError as error:
            count = tfrecords.count_records(path)
            readable = len(good_numbers) + sum(1 for one in bad if one[0] == path)
            bad.extend((path, number, "", _reason(error)) for number in range(readable, count))
            if first_only:
                return bad[:1]
    return bad


def _id_of(record: bytes) -> str:
    with contextlib.suppress(Exception):  # Whatever is wrong with the record is said elsewhere.
        feature = tf.train.Example.FromString(record).features.feature[tfrecords.FILENAME]
        return feature.bytes_list.value[0].decode("utf-8", "replace")
    return ""


def _reason(error: tf.errors.OpError) -> str:
    """Says in a few words what a TensorFlow error about a record means."""
    text = str(error.message)
    if isinstance(error, tf.errors.DataLossError):
        return "the shard is damaged from here on (checksum)"
    if f"Key: {tfrecords.LABEL}" in text or f"{tfrecords.LABEL} (data type" in text:
        return f"it has no {tfrecords.LABEL}; test shards cannot be used here, give labelled ones"
    if tfrecords.IMAGE in text:
        return f"it has no {tfrecords.IMAGE}"
    if "must be 0 (cat)" in text:
        return f"{tfrecords.LABEL} is neither 0 (cat) nor 1 (dog)"
    if "parse" in text.lower() and "example" in text.lower():
        return "it is not a tf.train.Example"
    return "its picture cannot be decoded"


def list_bad_examples(reader: BaseReader, records: dict[str, int], csv_path: str) -> dict[str, list[int]]:
    """Reads all records and lists those that cannot be read in a CSV file.

    Args:
        reader: how to read a record.
        records: number of records of each file.
        csv_path: where the list goes; nothing is written if all can be read.

    Returns:
        For each file with bad records their numbers, for `make_dataset` and `make_training_dataset`.

    Raises:
        UserError: if more than half of the records are bad.
    """
    bad = find_bad_examples(reader, list(records))
    if not bad:
        return {}
    num_records = sum(records.values())
    path, number, _, reason = bad[0]
    logging.warning("%d of %d records cannot be read and are skipped; %s lists them", len(bad), num_records, csv_path)
    if len(bad) > num_records / 2:
        raise UserError(
            f"{len(bad)} of {num_records} records cannot be read, more than half; the first: {path}: record {number}: "
            f"{reason}"
        )
    with tf.io.gfile.GFile(csv_path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["File", "Record", "Id", "Reason"])
        writer.writerows(bad)
    numbers: dict[str, list[int]] = {}
    for path, number, _, _ in bad:
        numbers.setdefault(path, []).append(number)
    return numbers


@contextlib.contextmanager
def named_errors(reader: BaseReader, files: Sequence[str]) -> Iterator[None]:
    """Turns an error of the input pipeline inside the block into one that names the record.

    Costs nothing until something fails; then the shards are read once more to find the record.

    Raises:
        UserError: naming shard, number of the record and id.
    """
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
        bad = find_bad_examples(reader, files, first_only=True)
        if not bad:
            raise
        path, number, example_id, reason = bad[0]
        name = f" ({example_id})" if example_id else ""
        advice = "" if tfrecords.LABEL in reason else "; mend or remove it, or pass --bad_examples=skip"
        raise UserError(f"{path}: record {number}{name}: {reason}{advice}") from error


@contextlib.contextmanager
def named_picture_errors(reader: CatsVsDogsTestFeatureReader, files: Sequence[str]) -> Iterator[None]:
    """The same as `named_errors` for plain picture files.

    Raises:
        UserError: naming the file.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError:
        bad = next(iter(find_bad_pictures(reader, files)), None)
        if bad is None:
            raise
        raise UserError(
            f"{bad}: not a JPEG, PNG, GIF or BMP that can be decoded; mend or remove it, and give pictures and shards "
            "by patterns of their own"
        ) from None


def check_first_example(reader: BaseReader, files: Sequence[str]) -> None:
    """Reads the very first record, to notice shards of the wrong kind before anything else is done.

    Raises:
        UserError: if it cannot be read.
    """
    with named_errors(reader, files[:1]):
        next(iter(make_dataset(reader, files[:1], batch_size=1)))


def find_bad_pictures(reader: CatsVsDogsTestFeatureReader, files: Sequence[str]) -> Iterator[str]:
    """Yields the picture files that cannot be decoded."""
    decode = tf.function(reader.decode_images, input_signature=[tf.TensorSpec([1], tf.string)])
    for path in files:
        try:
            decode(tf.io.read_file(path)[tf.newaxis])
        except tf.errors.OpError:
            yield path
