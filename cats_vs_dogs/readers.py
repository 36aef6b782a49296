"""Reads shards and picture files: records -> shuffle -> batch -> decode -> images, as one `tf.data` pipeline.

Records are shuffled while they are still JPEG bytes, and pictures stay uint8 until they reach the device: both take a
fraction of the memory of float32 pixels.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Sequence

import tensorflow as tf

from cats_vs_dogs import augmentation, terminal, tfrecords
from cats_vs_dogs.pictures import MAX_PIXELS

RESIZE_METHODS = ("area", "legacy_bilinear")

_SHUFFLE_BYTES = 32 * 2**20  # how much of the shards the shuffle buffer holds; the first batch waits for it
_READ_BYTES = 256 * 2**10  # how much is read from a file at once

# Why a picture is not decoded, although TensorFlow might.
TOO_LARGE = f"its picture is larger than {MAX_PIXELS:,} pixels"
NOT_READ = "its picture is a JPEG XL or a BMP with a palette; save it as JPEG"


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


def scale_batches(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Scales images within the input pipeline, beside the model: for CPUs, where a device has no memory of its own.

    Args:
        batches: of ids, images and perhaps labels, as `make_dataset` and `make_training_dataset` give them.

    Returns:
        The same with float32 images in [-1, 1].
    """

    def scale(ids: tf.Tensor, images: tf.Tensor, *labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
        if images.dtype == tf.uint8:
            # One pass over the memory instead of four, with the same result to the bit.
            codes = tf.bitcast(images, tf.quint8)
            images = tf.raw_ops.Dequantize(input=codes, min_range=-1.0, max_range=1.0, mode="MIN_COMBINED")
        return ids, images, *labels

    return _map_batches(batches, scale)


def decode_and_resize(encoded: tf.Tensor, image_size: int, resize_method: str) -> tf.Tensor:
    """Decodes one picture and resizes it to a square.

    Fails with an InvalidArgumentError for what cannot be decoded, and for a JPEG of more than `MAX_PIXELS` pixels.

    Args:
        encoded: string scalar, the bytes of a JPEG; with "area" also of a PNG, GIF (the first frame) or BMP.
        image_size: height and width of the result, pixels.
        resize_method: "area": the average of the source pixels that a pixel covers, rounded. "legacy_bilinear": the
            pixels of 2017, bit for bit: four source pixels sampled without half-pixel centres, truncated.

    Returns:
        uint8 [image_size, image_size, 3].
    """
    size = [image_size, image_size]
    is_jpeg = tf.io.is_jpeg(encoded)
    if resize_method == "legacy_bilinear":
        shape = tf.cond(is_jpeg, lambda: tf.io.extract_jpeg_shape(encoded, tf.int64), lambda: tf.ones([3], tf.int64))
        image = tf.io.decode_jpeg(_unless_too_large(encoded, shape[0] * shape[1]), channels=3)
        resized = tf.raw_ops.ResizeBilinear(images=image[tf.newaxis], size=size)[0]
        return tf.cast(resized, tf.uint8)
    image = tf.cond(
        is_jpeg,
        lambda: _decode_jpeg_scaled(encoded, image_size),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )
    image = tf.ensure_shape(image, [None, None, 3])
    resized = tf.image.resize(image, size, method="area")
    return tf.ensure_shape(tf.cast(tf.round(resized), tf.uint8), [image_size, image_size, 3])


def _decode_jpeg_scaled(encoded: tf.Tensor, image_size: int) -> tf.Tensor:
    """Lets libjpeg average blocks of 2, 4 or 8 pixels while it decodes, as far as the result stays large enough."""
    shape = tf.io.extract_jpeg_shape(encoded, tf.int64)
    encoded = _unless_too_large(encoded, shape[0] * shape[1])
    pixels_per_pixel = tf.minimum(shape[0], shape[1]) // image_size
    decoders = [lambda ratio=ratio: tf.io.decode_jpeg(encoded, channels=3, ratio=ratio) for ratio in (1, 2, 4, 8)]
    index = tf.reduce_sum(tf.cast(pixels_per_pixel >= tf.constant([2, 4, 8], tf.int64), tf.int32))
    return tf.switch_case(index, decoders)


def _check_headers(encoded: tf.Tensor) -> tf.Tensor:
    """Returns pictures, string [batch], or fails if one that is no JPEG should not be given to TensorFlow.

    Not within `decode_and_resize`: there it would cost every single picture a tenth of the time of a small one.
    """
    start = tf.strings.substr(encoded, 0, 32) + b"\0" * 32
    is_png, is_gif, is_bmp = (tf.strings.substr(start, 0, len(kind)) == kind for kind in (b"\x89PNG", b"GIF8", b"BM"))
    png_sides = tf.io.decode_raw(tf.strings.substr(start, 16, 8), tf.int32, little_endian=False)
    gif_sides = tf.io.decode_raw(tf.strings.substr(start, 6, 4), tf.uint16)
    png_pixels, gif_pixels = (tf.reduce_prod(tf.cast(sides, tf.int64), axis=1) for sides in (png_sides, gif_sides))
    # A BMP is not compressed, and a WebP, which TensorFlow decodes by now, has less than 16,384 x 16,384 pixels.
    pixels = tf.where(is_png, png_pixels, tf.where(is_gif, gif_pixels, 0))
    encoded = _unless_too_large(encoded, tf.reduce_max(pixels))
    # Of a palette TensorFlow takes the numbers of the colours for greys; the size of a JPEG XL is hard to find out.
    has_palette = is_bmp & (tf.io.decode_raw(tf.strings.substr(start, 28, 1), tf.uint8)[:, 0] <= 8)
    is_jpeg_xl = (tf.strings.substr(start, 0, 2) == b"\xff\x0a") | (tf.strings.substr(start, 4, 4) == b"JXL ")
    return _with_assert(encoded, ~tf.reduce_any(has_palette | is_jpeg_xl), NOT_READ)


def _unless_too_large(encoded: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
    """Returns `encoded`, or fails if it has too many pixels, before memory is taken for them."""
    return _with_assert(encoded, pixels <= MAX_PIXELS, TOO_LARGE)


def _with_assert(tensor: tf.Tensor, condition: tf.Tensor, message: str) -> tf.Tensor:
    with tf.control_dependencies([tf.raw_ops.Assert(condition=condition, data=[message])]):
        return tf.identity(tensor)


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
            _check_headers(encoded),
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


def prepare_function(reader: BaseReader) -> Callable[[tf.Tensor], tuple[tf.Tensor, ...]]:
    """Returns the reader's function for a batch of records: the one that keeps uint8, if no subclass replaced it."""
    if type(reader).prepare_serialized_examples is CatsVsDogsTestFeatureReader.prepare_serialized_examples:
        return reader.decode_serialized_examples
    return reader.prepare_serialized_examples


@dataclasses.dataclass(frozen=True)
class Shards:
    """TFRecord files, and which of their records are read.

    Attributes:
        records: number of records of each file, by path.
        bad_list: (file, number of the record in it from 0, id or "", reason) of each record to leave out. A file that
            is left out as a whole is there once, and not among `records`.
        num_bytes: how long the files of `records` are together; 0: not known, taken for short.
    """

    records: dict[str, int]
    bad_list: list[tuple[str, int, str, str]] = dataclasses.field(default_factory=list)
    num_bytes: int = 0

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
        """For each file, and behind the last, how many records are read before it."""
        read = [count - len(self.bad.get(path, ())) for path, count in self.records.items()]
        return [0, *itertools.accumulate(read)]


def make_dataset(reader: BaseReader, shards: Shards, batch_size: int) -> tf.data.Dataset:
    """Returns all records once, in the order of the files and of the records in them.

    Args:
        reader: how to read a record.
        shards: what to read.
        batch_size: records a batch; the last batch may have fewer.

    Returns:
        Batches of what the reader gives, with images still uint8 (see `scale_images`).
    """
    records = tf.data.Dataset.range(len(shards.files)).flat_map(_record_source(shards))
    return _decode_batches(reader, records.batch(batch_size))


def make_training_dataset(
    reader: BaseReader,
    shards: Shards,
    batch_size: int,
    seed: int,
    num_epochs: int,
    start_step: int = 0,
    num_readers: int = 8,
    decoded: tuple[tf.Tensor, ...] | None = None,
    num_replicas: int = 1,
    replicas: range = range(1),
    augment: str = "none",
    growth: augmentation.SizeSchedule | None = None,
) -> tf.data.Dataset:
    """Returns the batches of a training run, from any step on.

    The order is a function of the seed and the epoch: shards in an order of the epoch, `num_readers` of them read in
    turn, records shuffled in a buffer, then cut into batches. So a run goes on where it stopped by arithmetic:
    the records before `start_step` are skipped before they are decoded.

    Each batch is split over the devices. A worker reads all the shards, and decodes only the parts of its own devices:
    so every example is seen once an epoch, in the same batch as on one device, however many shards there are.

    Args:
        reader: how to read a record.
        shards: what to read.
        batch_size: records a batch, over all devices; the last batch of an epoch may have fewer.
        seed: seed of the order.
        num_epochs: passes over the data.
        start_step: number of batches to skip.
        num_readers: how many shards are read in turn.
        decoded: what `decode_all` gave; then examples are taken from there, in the same order. None: from the files.
        num_replicas: over how many devices a batch is split.
        replicas: the numbers of those whose parts are returned.
        augment: how pictures are changed at random, one of `augmentation.KINDS`.
        growth: how they grow while training; None: they do not.

    Returns:
        Of each batch the part of one replica after the other: what the reader gives, with images still uint8 (see
        `scale_images`), and the share of the batch that the part is, float32. A replica for which a small batch has no
        example gets one of another replica, with a share of 0.
    """
    start_epoch, skipped_batches = divmod(start_step, -(-shards.num_examples // batch_size))
    buffer_size = max(
        batch_size, min(shards.num_examples, _SHUFFLE_BYTES * shards.num_examples // max(1, shards.num_bytes))
    )
    source = _record_source(shards) if decoded is None else _number_source(shards)

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(tf.range(len(shards.files), dtype=tf.int64), [seed, epoch])
        records = tf.data.Dataset.from_tensor_slices(order).interleave(source, cycle_length=num_readers)
        # Sets the first half of the shuffle's seed, in this graph only, so that the process's seed has no part in it.
        tf.random.set_seed(1)
        records = records.shuffle(buffer_size, seed=tf.cast(seed, tf.int64) * 1_000_003 + epoch)
        skip = tf.where(epoch == start_epoch, tf.cast(skipped_batches * batch_size, tf.int64), 0)
        return records.skip(skip).batch(batch_size)

    def parts(step: tf.Tensor, batch: tf.Tensor) -> tf.data.Dataset:
        size = tf.shape(batch, tf.int64)[0]

        def part(replica: tf.Tensor) -> tuple[tf.Tensor, ...]:
            start, end = replica * size // num_replicas, (replica + 1) * size // num_replicas
            share = tf.cast(end - start, tf.float32) / tf.cast(size, tf.float32)
            return step, batch[start : tf.maximum(end, start + 1)], start, share

        return tf.data.Dataset.range(replicas.start, replicas.stop).map(part)

    def take(numbers: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tuple(tf.gather(column, numbers) for column in decoded)

    prepare = prepare_function(reader) if decoded is None else take

    def prepare_part(step: tf.Tensor, part: tf.Tensor, start: int = 0, share: float = 1.0) -> tuple[tf.Tensor, ...]:
        ids, images, *labels = prepare(part)
        rows = start + tf.range(tf.shape(part, tf.int64)[0])
        size = growth.size_at(step) if growth else None
        return ids, augmentation.augment(images, augment, seed, step, rows, batch_size, size), *labels, share

    batches = tf.data.Dataset.range(start_epoch, num_epochs).flat_map(epoch_batches).enumerate(start_step)
    if num_replicas > 1:
        batches = batches.flat_map(parts)
    return _map_batches(batches, prepare_part)


def decode_all(reader: BaseReader, shards: Shards) -> tuple[tf.Tensor, ...]:
    """Reads and decodes every record once.

    Returns:
        What the reader gives, as if for one batch of all records, with images still uint8.
    """
    batches = []
    with terminal.progress_bar(shards.num_examples, " pictures", "decoding") as progress:
        for batch in make_dataset(reader, shards, batch_size=256):
            batches.append(batch)
            progress.update(len(batch[0]))
    return tuple(tf.concat(column, axis=0) for column in zip(*batches, strict=True))


def decoded_bytes(reader: BaseReader, shards: Shards) -> int:
    """Returns how much memory `decode_all` takes, but for the ids."""
    specs = make_dataset(reader, shards, batch_size=1).element_spec
    fixed = [spec for spec in specs if spec.dtype.size and spec.shape[1:].is_fully_defined()]
    return shards.num_examples * sum(spec.dtype.size * spec.shape[1:].num_elements() for spec in fixed)


def make_picture_dataset(reader: CatsVsDogsTestFeatureReader, pictures: Shards, batch_size: int) -> tf.data.Dataset:
    """Returns plain picture files as batches of ids and images, in the order of the files.

    Args:
        reader: how to decode a picture.
        pictures: the files, each as one with one record.
        batch_size: pictures a batch; the last batch may have fewer.
    """
    ids = picture_ids(pictures.files)
    good = [path for path in pictures.files if path not in pictures.bad]

    def decode(batch_ids: tf.Tensor, paths: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return batch_ids, reader.decode_images(tf.map_fn(tf.io.read_file, paths))

    slices = tf.data.Dataset.from_tensor_slices(([ids[path] for path in good], good))
    return _map_batches(slices.batch(batch_size), decode)


def picture_ids(files: Sequence[str]) -> dict[str, str]:
    """Returns the id of each picture file: its name, or its path below the folder that holds all if there are several.

    Args:
        files: their paths, sorted.
    """
    folder = os.path.dirname(files[0])
    while not all(path.startswith(os.path.join(folder, "")) for path in files):
        folder = os.path.dirname(folder)
    return {path: path[len(os.path.join(folder, "")) :] for path in files}


def is_picture(path: str) -> bool:
    """Whether a file begins like a JPEG, PNG, GIF, BMP or WebP picture."""
    with tf.io.gfile.GFile(path, "rb") as file:
        start = file.read(12)
    return start.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM")) or start[8:12] == b"WEBP"


def _decode_batches(reader: BaseReader, batches: tf.data.Dataset) -> tf.data.Dataset:
    return _map_batches(batches, prepare_function(reader))


def _map_batches(batches: tf.data.Dataset, function: Callable) -> tf.data.Dataset:
    """Applies a function to batches on all cores, a little ahead of who takes them.

    Without autotuning: it begins with one core, which a pass over few large batches hardly outlives, and its thread
    holds up the end of a pass by up to seconds.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    options = tf.data.Options()
    options.autotune.enabled = False
    batches = batches.map(function, num_parallel_calls=cores, deterministic=True)
    return batches.prefetch(2).with_options(options)


def _number_source(shards: Shards) -> Callable[[tf.Tensor], tf.data.Dataset]:
    """Returns a function from the number of a file to the numbers of its records among all that are read."""
    offsets = tf.constant(shards.offsets, tf.int64)
    return lambda file: tf.data.Dataset.range(offsets[file], offsets[file + 1])


def _record_source(shards: Shards) -> Callable[[tf.Tensor], tf.data.Dataset]:
    """Returns a function from the number of a file to the dataset of its records, without the bad ones."""
    files = tf.constant(shards.files)
    if not shards.bad:
        return lambda file: tf.data.TFRecordDataset(files[file], buffer_size=_READ_BYTES)
    bad_keys = [shards.files.index(path) << 40 | number for path, numbers in shards.bad.items() for number in numbers]
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant(bad_keys, tf.int64), tf.ones(len(bad_keys), tf.int64)),
        default_value=0,
    )
    # Behind damage nothing can be read, not even to leave it out: bad records at the end are not read at all.
    limits = tf.constant([_records_before_bad_end(shards, path) for path in shards.files], tf.int64)

    def good_records(file: tf.Tensor) -> tf.data.Dataset:
        def is_good(number: tf.Tensor, unused_record: tf.Tensor) -> tf.Tensor:
            return table.lookup(tf.bitwise.left_shift(file, tf.constant(40, tf.int64)) + number) == 0

        records = tf.data.TFRecordDataset(files[file], buffer_size=_READ_BYTES).take(limits[file]).enumerate()
        return records.filter(is_good).map(lambda unused_number, record: record)

    return good_records


def _records_before_bad_end(shards: Shards, path: str) -> int:
    count, bad = shards.records[path], set(shards.bad.get(path, ()))
    while count - 1 in bad:
        count -= 1
    return count
