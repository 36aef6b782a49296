"""Reads shards: records -> shuffle -> batch -> decode -> images, as one `tf.data` pipeline.

Records are shuffled while they are still JPEG bytes, and pictures stay uint8 until they reach the device: both take a
fraction of the memory of float32 pixels.
"""

import copy
import dataclasses
import functools
import inspect
import itertools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from cats_vs_dogs import decoding, example_index, terminal, tfrecords
from cats_vs_dogs.utils import UserError

_SHUFFLE_BYTES = 32 * 2**20  # size of the shuffle buffer; the first batch waits until it is full
_READ_BYTES = 256 * 2**10  # number of bytes that one read of a file returns
_BYTES_AHEAD = 64 * 2**20  # size of the batches that are decoded at once, on any number of cores; at least one is


@tf.autograph.experimental.do_not_convert  # To rewrite it would take longer than to build its graph.
def scale_images(images: tf.Tensor) -> tf.Tensor:
    """Scales images to the range of models.

    Args:
        images: images as a reader returns them, [..., 3]: uint8 in [0, 255] from the kit's readers, or float32 in
            [-1, 1] from a reader of your own. Where images may be either, other docstrings refer to this one.

    Returns:
        float32 in [-1, 1]: float32 images unchanged, others by the arithmetic of 2017: (x / 255 - 0.5) * 2.
    """
    if images.dtype != tf.uint8:
        return images
    return (tf.image.convert_image_dtype(images, tf.float32) - 0.5) * 2.0


def scale_batches(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Scales images within the input pipeline, while the model computes: for CPUs, which need no transfer to a device.

    Args:
        batches: batches of ids, images and perhaps labels, as `make_dataset` and `make_training_dataset` return them.

    Returns:
        The same batches with images as `scale_images` returns them.
    """

    @tf.autograph.experimental.do_not_convert
    def scale(ids: tf.Tensor, images: tf.Tensor, *labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
        if images.dtype == tf.uint8:
            # One pass over the memory instead of four, with the same result to the bit.
            codes = tf.bitcast(images, tf.quint8)
            images = tf.raw_ops.Dequantize(input=codes, min_range=-1.0, max_range=1.0, mode="MIN_COMBINED")
        return ids, images, *labels

    # One batch ahead: floats are four times as large as what they are made of.
    return batches.map(scale).prefetch(1).with_options(_without_autotuning())


class BaseReader:
    """Inherit from this class when implementing new readers."""

    num_classes = 2

    def prepare_serialized_examples(self, serialized_examples: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Turns a batch of serialized records into ids, images and labels.

        Training, evaluation, inference and export all call it. Records without a label get one before the call, and
        their labels are left out after it.

        Args:
            serialized_examples: string [batch].

        Returns:
            ids, string [batch]; images, float32 [batch, size, size, 3] in [-1, 1], where size is --image_size; and
            labels, int32 [batch, 1], 1 = dog.
        """
        raise NotImplementedError

    @functools.cached_property
    def _reading_graph(self) -> Any:
        """See `prepare_graph`."""
        with tf.device(None):  # Whoever asks first need not be where all run.
            return tf.function(prepare_function(self)).get_concrete_function(tf.TensorSpec([None], tf.string))


class CatsVsDogsTestFeatureReader(BaseReader):
    """Reads unlabelled records.

    Args:
        num_classes: 2.
        image_size: height and width of the images, pixels.
        resize_method: see `decoding.decode_and_resize`.
    """

    def __init__(self, num_classes: int = 2, image_size: int = 32, resize_method: str = "area"):
        self.num_classes = num_classes
        self.image_size = image_size
        self.resize_method = resize_method

    def prepare_serialized_examples(
        self,
        serialized_examples: tf.Tensor,
        width: int | None = None,
        height: int | None = None,
        channels: int = 3,
    ) -> tuple[tf.Tensor, ...]:
        """See `BaseReader`. `width`, `height` and `channels` are the arguments of 2017.

        Raises:
            ValueError: if the images would not be squares with three channels.
        """
        width, height = width or height or self.image_size, height or width or self.image_size
        if width != height or channels != 3:
            raise ValueError(f"width={width}, height={height}, channels={channels}: images are squares with 3 channels")
        reader = copy.copy(self)
        reader.image_size = width
        ids, images, *labels = reader.decode_serialized_examples(serialized_examples)
        return ids, scale_images(images), *labels

    def decode_serialized_examples(self, serialized_examples: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Like `prepare_serialized_examples`, with images as uint8 in [0, 255]."""
        features = tf.io.parse_example(serialized_examples, self._feature_map())
        return features[tfrecords.FILENAME], self.decode_images(features[tfrecords.IMAGE])

    def decode_images(self, encoded: tf.Tensor) -> tf.Tensor:
        """Decodes picture files, string [batch], to uint8 [batch, size, size, 3]."""
        return tf.map_fn(
            lambda one: decoding.decode_and_resize(one, self.image_size, self.resize_method),
            decoding.check_headers(encoded),
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


class ReaderForModels(BaseReader):
    """Reads each record once, for several models that may take pictures of different sizes.

    Args:
        readers: one for each kind of pictures.
        kinds: for each model, the index of its reader in `readers`.
    """

    def __init__(self, readers: Sequence[BaseReader], kinds: Sequence[int]):
        self.readers = readers
        self._kinds = kinds

    def prepare_serialized_examples(self, serialized_examples: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """See `BaseReader`. Returns a tuple with the images of each model, perhaps uint8, in place of images."""
        read = [prepare_function(reader)(serialized_examples) for reader in self.readers]
        ids, _, *labels = read[0]
        return ids, tuple(read[kind][1] for kind in self._kinds), *labels


def get_reader(is_labelled: bool, image_size: int, resize_method: str) -> BaseReader:
    """Returns the reader that all scripts use. To use a reader of your own, return it here, whatever `is_labelled` is.

    Args:
        is_labelled: whether labels are needed (training, evaluation) or not (inference, export).
        image_size: height and width of the images, pixels.
        resize_method: see `decoding.decode_and_resize`.
    """
    reader_class = CatsVsDogsFeatureReader if is_labelled else CatsVsDogsTestFeatureReader
    return reader_class(image_size=image_size, resize_method=resize_method)


def prepare_function(reader: BaseReader) -> Callable[[tf.Tensor], tuple[tf.Tensor, ...]]:
    """Returns the reader's function for a batch of records: the one that keeps uint8, unless a subclass has its own.

    If that has parameters `width` and `height`, as in 2017, they are the reader's image size.
    """
    prepare = reader.prepare_serialized_examples
    if type(reader) in (CatsVsDogsTestFeatureReader, CatsVsDogsFeatureReader):
        # These need no AutoGraph, which takes longer than building the rest of the pipeline.
        return tf.autograph.experimental.do_not_convert(reader.decode_serialized_examples)
    if type(reader).prepare_serialized_examples is CatsVsDogsTestFeatureReader.prepare_serialized_examples:
        return reader.decode_serialized_examples
    names = {"width", "height"} & set(inspect.signature(prepare).parameters)
    if names and hasattr(reader, "image_size"):
        return functools.partial(prepare, **dict.fromkeys(names, reader.image_size))
    return prepare


def prepare_graph(reader: BaseReader) -> Any:
    """Returns the reader's function for a batch of records (string [batch]) as a graph, which each reader builds once.

    It is called as `prepare_function` is, and its `structured_outputs` tell shapes and dtypes.
    """
    return reader._reading_graph


@dataclasses.dataclass(frozen=True)
class Shards:
    """TFRecord files, and which of their records are read.

    Attributes:
        records: number of records in each file, by path.
        bad_list: (file, record number in it from 0, id or "", reason) of each record to leave out. A file without any
            good record is listed once, and is not in `records`.
        num_bytes: total size of the files in `records`; 0 if unknown: the shuffle buffer then holds all records.
        index: labels and pictures of the records that are read, or of the first ones; None if nobody asked for them.
    """

    records: dict[str, int]
    bad_list: list[tuple[str, int, str, str]] = dataclasses.field(default_factory=list)
    num_bytes: int = 0
    index: example_index.ExampleIndex | None = None

    @functools.cached_property
    def bad(self) -> dict[str, list[int]]:
        """Numbers of the records to leave out, by path."""
        numbers: dict[str, list[int]] = {}
        for path, number, _, _ in self.bad_list:
            if path in self.records:
                numbers.setdefault(path, []).append(number)
        return numbers

    @property
    def files(self) -> list[str]:
        """The paths."""
        return list(self.records)

    @property
    def num_examples(self) -> int:
        """How many records are read."""
        return sum(self.records.values()) - sum(map(len, self.bad.values()))

    @property
    def offsets(self) -> list[int]:
        """For each file, how many records are read before it; the last number counts all records."""
        read = [count - len(self.bad.get(path, ())) for path, count in self.records.items()]
        return [0, *itertools.accumulate(read)]


def make_dataset(
    reader: BaseReader, shards: Shards, batch_size: int, decoded: tuple[tf.Tensor, ...] | None = None
) -> tf.data.Dataset:
    """Returns all records once, in the order of the files and of the records in them.

    Args:
        reader: how to read a record.
        shards: what to read.
        batch_size: records per batch; the last batch may have fewer.
        decoded: the result of `decode_all`, which the examples are taken from. None: from the files.

    Returns:
        Batches of what the reader returns, with images still uint8 (see `scale_images`).
    """
    if decoded is not None:
        numbers = tf.data.Dataset.range(shards.num_examples).batch(batch_size)
        return map_batches(numbers, functools.partial(_gather, decoded), batch_size).with_options(_keep_decoded())
    records = tf.data.Dataset.range(len(shards.files)).flat_map(_record_source(shards))
    return map_batches(records.batch(batch_size), prepare_graph(reader), batch_size)


def records_in(path: str | tf.Tensor) -> tf.data.Dataset:
    """Returns the records of one file, string scalars."""
    return tf.data.TFRecordDataset(path, buffer_size=_READ_BYTES)


def first_record(shards: Shards) -> tf.Tensor:
    """Returns the first record that is read, string [1]."""
    source = _record_source(shards)
    files = (source(tf.constant(number, tf.int64)) for number in range(len(shards.files)))
    return next(record for file in files for record in file.take(1))[tf.newaxis]


@dataclasses.dataclass(frozen=True)
class Order:
    """Which records a training run reads, in which order.

    Attributes:
        batch_size: records per batch, over all devices; the last batch of an epoch may have fewer.
        seed: seed of the order.
        num_epochs: number of passes over the data.
        start_step: number of batches to skip.
        num_readers: number of shards that are read in turn.
    """

    batch_size: int
    seed: int
    num_epochs: int
    start_step: int = 0
    num_readers: int = 8


def make_training_dataset(
    reader: BaseReader,
    shards: Shards,
    order: Order,
    decoded: tuple[tf.Tensor, ...] | None = None,
    num_replicas: int = 1,
    replicas: range = range(1),
    change: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
) -> tf.data.Dataset:
    """Returns the batches of a training run, from any step on.

    The order depends only on the seed and the epoch: the epoch shuffles the shards, `num_readers` of them are read in
    turn, a buffer shuffles the records, and the records are cut into batches. So a run can resume at any step: the
    records before `start_step` are skipped before they are decoded.

    Each batch is split over the devices. A worker reads all shards, but decodes only the parts of its own devices. So
    every example is seen once per epoch, in the same batch as on one device, for any number of shards.

    Args:
        reader: how to read a record.
        shards: what to read.
        order: the order of the records.
        decoded: the result of `decode_all`: the examples are taken from it, in the same order. None: from the files.
        num_replicas: number of devices that a batch is split over.
        replicas: the numbers of the devices whose parts are returned.
        change: a function of the images of a part of a batch; the number of the batch in the run, an int64 scalar; and
            the rows of the images in the global batch, int64 [n]. It returns the images to train on. None: images stay
            as they are.

    Returns:
        For each batch, the part of each replica in turn: what the reader returns, with images still uint8 (see
        `scale_images`), and the part's weight, float32: its fraction of the global batch. If a small batch has no
        example for a replica, the replica gets an example of another one, with weight 0.
    """
    first_epoch = order.start_step // _batches_per_epoch(shards, order)
    source = _record_source(shards) if decoded is None else _number_source(shards)
    batches = tf.data.Dataset.range(first_epoch, order.num_epochs)
    epoch_batches = functools.partial(_epoch_batches, source, shards, order)
    batches = batches.flat_map(epoch_batches).enumerate(order.start_step)
    if num_replicas > 1:
        batches = batches.flat_map(lambda step, batch: _split_batch(step, batch, num_replicas, replicas))
    prepare = prepare_graph(reader) if decoded is None else functools.partial(_gather, decoded)

    @tf.autograph.experimental.do_not_convert
    def prepare_part(step: tf.Tensor, part: tf.Tensor, start: int = 0, weight: float = 1.0) -> tuple[tf.Tensor, ...]:
        ids, images, *labels = prepare(part)
        if change is not None:
            images = change(images, step, start + tf.range(tf.shape(part, tf.int64)[0]))
        return ids, images, *labels, weight

    batches = map_batches(batches, prepare_part, -(-order.batch_size // num_replicas))
    return batches if decoded is None else batches.with_options(_keep_decoded())


def _keep_decoded() -> tf.data.Options:
    """Returns options without optimizations of the pipeline's graph, which would copy all decoded images into it."""
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    return options


def _batches_per_epoch(shards: Shards, order: Order) -> int:
    return -(-shards.num_examples // order.batch_size)


@tf.autograph.experimental.do_not_convert
def _epoch_batches(source: Callable, shards: Shards, order: Order, epoch: tf.Tensor) -> tf.data.Dataset:
    """Returns an epoch's batches of records, or of their numbers, without those before `order.start_step`."""
    files = tf.range(len(shards.files), dtype=tf.int64)
    files = tf.random.experimental.stateless_shuffle(files, [order.seed, epoch])
    records = tf.data.Dataset.from_tensor_slices(files).interleave(source, cycle_length=order.num_readers)
    buffered = min(shards.num_examples, _SHUFFLE_BYTES * shards.num_examples // max(1, shards.num_bytes))
    # Sets the first half of the shuffle's seed, in this graph only. So the process's seed does not change the order.
    tf.random.set_seed(1)
    shuffle_seed = tf.cast(order.seed, tf.int64) * 1_000_003 + epoch
    records = records.shuffle(max(order.batch_size, buffered), seed=shuffle_seed)
    first_epoch, skipped_batches = divmod(order.start_step, _batches_per_epoch(shards, order))
    skip = tf.where(epoch == first_epoch, tf.cast(skipped_batches * order.batch_size, tf.int64), 0)
    return records.skip(skip).batch(order.batch_size)


@tf.autograph.experimental.do_not_convert
def _split_batch(step: tf.Tensor, batch: tf.Tensor, num_replicas: int, replicas: range) -> tf.data.Dataset:
    """Returns step, records, first row and weight of the part of each of `replicas`."""
    size = tf.shape(batch, tf.int64)[0]

    def part(replica: tf.Tensor) -> tuple[tf.Tensor, ...]:
        start, end = replica * size // num_replicas, (replica + 1) * size // num_replicas
        weight = tf.cast(end - start, tf.float32) / tf.cast(size, tf.float32)
        return step, batch[start : tf.maximum(end, start + 1)], start, weight

    return tf.data.Dataset.range(replicas.start, replicas.stop).map(part)


@tf.autograph.experimental.do_not_convert
def _gather(columns: tuple[tf.Tensor, ...], numbers: tf.Tensor) -> tuple[tf.Tensor, ...]:
    return tuple(tf.gather(column, numbers) for column in columns)


def decode_all(reader: BaseReader, shards: Shards) -> tuple[tf.Tensor, ...]:
    """Reads and decodes every record once.

    Returns:
        What the reader returns, as if for one batch of all records, with images still uint8.
    """
    with tf.device("CPU"):
        batches = make_dataset(reader, shards, batch_size=64)
        return collect(batches, batches.element_spec, shards.num_examples, "decoding")


def collect(
    batches: Iterable[tuple[tf.Tensor, ...]], specs: Sequence[tf.TensorSpec], num_examples: int, doing: str
) -> tuple[tf.Tensor, ...]:
    """Joins batches into one array for each column.

    Each batch is copied into arrays that have room for all examples, so memory holds the rows once. They stay in the
    CPU's memory, which is larger than a GPU's.

    Args:
        batches: tuples of columns, [batch, ...].
        specs: the shape and dtype of each column.
        num_examples: number of rows in all batches together.
        doing: the label of the progress bar.

    Returns:
        The columns, [num_examples, ...].

    Raises:
        UserError: if the batches have more or fewer rows.
    """
    with tf.device("CPU"):
        arrays = [_empty_array(num_examples, spec) if _is_fixed(spec) else None for spec in specs]
        others: list[list[tf.Tensor]] = [[] for _ in arrays]
        end = 0
        with terminal.progress_bar(num_examples, " pictures", doing) as progress:
            for batch in batches:
                start, end = end, end + len(batch[0])
                for array, other, column in zip(arrays, others, batch, strict=True):
                    if array is None:
                        other.append(column)
                    elif end <= num_examples:  # `check_count` tells of more.
                        array[start:end] = column.numpy()
                progress.update(len(batch[0]))
        check_count(end, num_examples)
        return tuple(
            # Unlike `tf.constant`, it does not copy the array.
            tf.concat(other, axis=0) if array is None else tf.experimental.dlpack.from_dlpack(array.__dlpack__())
            for array, other in zip(arrays, others, strict=True)
        )


def check_count(num_read: int, num_counted: int) -> None:
    """Checks that examples that are kept are as many as were counted.

    Raises:
        UserError: if they are not: the files were replaced meanwhile.
    """
    if num_read != num_counted:
        raise UserError(
            f"{num_counted:,} examples were counted at the start, and {num_read:,} are read now: the files of the data "
            "have changed; start again when they are complete"
        )


def _is_fixed(spec: tf.TensorSpec) -> bool:
    """Whether all examples of a column take the same number of bytes, as images and labels do and ids do not."""
    return bool(spec.dtype.size) and spec.shape[1:].is_fully_defined()


def _empty_array(num_examples: int, spec: tf.TensorSpec) -> np.ndarray:
    """Returns an array for a column of all examples. Its address is a multiple of 64, as TensorFlow's kernels need."""
    shape = (num_examples, *spec.shape[1:])
    num_bytes = math.prod(shape) * spec.dtype.size
    buffer = np.empty(num_bytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + num_bytes].view(spec.dtype.as_numpy_dtype).reshape(shape)


def decoded_bytes(reader: BaseReader, shards: Shards) -> int:
    """Returns how many bytes of memory the result of `decode_all` takes, without the ids."""
    return shards.num_examples * _row_bytes(prepare_graph(reader).structured_outputs)


def _row_bytes(specs: Sequence[Any]) -> int:
    """Returns how many bytes an example of columns takes, as far as that is known; the columns may be nested."""
    fixed = [spec for spec in tf.nest.flatten(specs) if _is_fixed(spec)]
    return sum(spec.dtype.size * spec.shape[1:].num_elements() for spec in fixed)


def map_batches(batches: tf.data.Dataset, function: Callable, batch_size: int = 1) -> tf.data.Dataset:
    """Applies a function to batches on all cores, up to two batches ahead; to large batches one at a time.

    Autotuning is off. It begins with one core, and a pass over few large batches ends before it uses more. Its thread
    also delays the end of a pass by up to seconds.

    Args:
        batches: what the function is applied to.
        function: returns the columns of a batch.
        batch_size: rows of a batch, to tell how much memory the batches take that are calculated at once.
    """
    calls = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    mapped = batches.map(function, num_parallel_calls=calls, deterministic=True)
    most_calls = max(1, _BYTES_AHEAD // max(1, batch_size * _row_bytes(mapped.element_spec)))
    if calls > most_calls:
        calls = most_calls
        mapped = batches.map(function, num_parallel_calls=calls, deterministic=True)
    # A single call runs one batch ahead by itself.
    return (mapped.prefetch(2) if calls > 1 else mapped).with_options(_without_autotuning())


def _without_autotuning() -> tf.data.Options:
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def _number_source(shards: Shards) -> Callable[[tf.Tensor], tf.data.Dataset]:
    """Returns a function from a file's number to the numbers of its records among all records that are read."""
    offsets = tf.constant(shards.offsets, tf.int64)
    return lambda file: tf.data.Dataset.range(offsets[file], offsets[file + 1])


def _record_source(shards: Shards) -> Callable[[tf.Tensor], tf.data.Dataset]:
    """Returns a function from a file's number to the dataset of its records, without the bad ones."""
    files = tf.constant(shards.files)
    if not shards.bad:
        # To rewrite it would take longer than to build its graph.
        return tf.autograph.experimental.do_not_convert(lambda file: records_in(files[file]))
    bad_keys = [shards.files.index(path) << 40 | number for path, numbers in shards.bad.items() for number in numbers]
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant(bad_keys, tf.int64), tf.ones(len(bad_keys), tf.int64)),
        default_value=0,
    )
    # Nothing after damage can be read, not even to skip it. So bad records at a file's end are not read at all.
    limits = tf.constant([_records_before_bad_end(shards, path) for path in shards.files], tf.int64)

    def good_records(file: tf.Tensor) -> tf.data.Dataset:
        def is_good(number: tf.Tensor, unused_record: tf.Tensor) -> tf.Tensor:
            return table.lookup(tf.bitwise.left_shift(file, tf.constant(40, tf.int64)) + number) == 0

        records = records_in(files[file]).take(limits[file]).enumerate()
        return records.filter(is_good).map(lambda unused_number, record: record)

    return good_records


def _records_before_bad_end(shards: Shards, path: str) -> int:
    count, bad = shards.records[path], set(shards.bad.get(path, ()))
    while count - 1 in bad:
        count -= 1
    return count
