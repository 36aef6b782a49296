"""The signature `image_bytes` of an export: JPEG and PNG files in, as they are on disk.

The graph gives each file the pixels that the converter gives it, see `pictures.usable_jpeg`, with TensorFlow's
operations alone: an export runs without this kit and without Pillow. For the other signature, which takes records,
`require_records` explains what is no record.
"""

from typing import Any

import tensorflow as tf

from cats_vs_dogs import decoding, pictures, tfrecords

NOT_A_PICTURE = "it is neither a JPEG nor a PNG; save it as JPEG"
FOUR_COLOURS = "it is a JPEG for printing (CMYK); save it with the colours RGB"
DAMAGED = "it is damaged, or an unusual kind of JPEG or PNG; save it as JPEG again"

_AT_ONCE = 16  # Pictures that are decoded at the same time, if there are as many cores.
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112  # The EXIF tag that says how a picture must be turned, 1 (it is upright) to 8.
_LONG = 4  # The type of an EXIF tag's value that takes four bytes. An orientation should take two.
_XMP_ORIENTATION = r'\C*?tiff:Orientation(?:="|>)([0-9])\C*'


@tf.autograph.experimental.do_not_convert  # To rewrite it would take longer than to build its graph.
def read_pictures(prepare: Any, encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Reads picture files. A bad one does not keep the others from being read.

    Args:
        prepare: reads a record, as `readers.prepare_graph` returns it; each picture becomes a record.
        encoded: string [batch], the bytes of the files.

    Returns:
        images, [batch, size, size, 3] as the reader returns them, anything for a bad picture; and problems,
        string [batch], why a picture cannot be read, "" if it can.
    """
    spec = prepare.structured_outputs[1]
    no_image = tf.zeros(spec.shape[1:], spec.dtype)

    def read(number: tf.Tensor, one: tf.Tensor) -> tuple[tf.Tensor, ...]:
        problem = find_problem(one)
        image = tf.cond(problem == b"", lambda: prepare(_record(upright_jpeg(one))[tf.newaxis])[1][0], lambda: no_image)
        return number, image, problem

    # Operations cannot catch the error of a damaged picture, but a dataset can leave out what raises one.
    size = tf.size(encoded, tf.int64)
    rows = tf.data.Dataset.from_tensor_slices(encoded).enumerate().map(read, num_parallel_calls=_AT_ONCE)
    end = tf.data.Dataset.from_tensors((size, no_image, b""))  # One more row: perhaps no picture can be read.
    numbers, images, problems = rows.ignore_errors().concatenate(end).batch(size + 1).get_single_element()
    images = tf.scatter_nd(numbers[:, tf.newaxis], images, [size + 1, *spec.shape[1:]])
    all_damaged = tf.fill([size + 1], DAMAGED)
    return images[:-1], tf.tensor_scatter_nd_update(all_damaged, numbers[:, tf.newaxis], problems)[:-1]


def find_problem(encoded: tf.Tensor) -> tf.Tensor:
    """Returns why one file is not decoded, "" if nothing in its header speaks against it; a string scalar.

    Fails with an InvalidArgumentError if its header is damaged.

    Args:
        encoded: string scalar, the bytes of any file.
    """
    shape = tf.case(
        [
            (tf.io.is_jpeg(encoded), lambda: tf.io.extract_jpeg_shape(encoded, tf.int64)),
            (_starts(encoded, _PNG), lambda: tf.concat([_big_endian(encoded, 16, 8, tf.int32), [3]], axis=0)),
        ],
        default=lambda: tf.zeros([3], tf.int64),
    )
    problem = tf.where(shape[2] == 4, FOUR_COLOURS, "")
    problem = tf.where(shape[0] * shape[1] > pictures.MAX_PIXELS, decoding.TOO_LARGE, problem)
    return tf.where(shape[2] == 0, NOT_A_PICTURE, problem)


def upright_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    """Returns an upright JPEG for a JPEG or PNG, as `pictures.usable_jpeg` does; a string scalar.

    Fails with an InvalidArgumentError if the picture is damaged.

    Args:
        encoded: string scalar, the bytes of a file for which `find_problem` returns "".
    """
    is_jpeg = tf.io.is_jpeg(encoded)
    metadata = tf.cond(is_jpeg, lambda: _metadata_of_jpeg(encoded), lambda: _metadata_of_png(encoded))
    orientation = _orientation(*metadata)

    def new_jpeg() -> tf.Tensor:
        image = tf.cond(
            is_jpeg,
            lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
            lambda: _on_white(tf.io.decode_png(encoded, channels=4), _big_endian(encoded, 24, 1, tf.uint8)[0]),
        )
        return tf.io.encode_jpeg(turn_upright(image, orientation), "rgb", quality=95, chroma_downsampling=False)

    return tf.cond(is_jpeg & (orientation == 1), lambda: encoded, new_jpeg)


def turn_upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns an image, [height, width, 3], as EXIF's orientation, an int32 scalar from 1 to 8, says."""
    image = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    flips = [tf.reduce_any(orientation == kinds) for kinds in ((3, 4, 7, 8), (2, 3, 6, 7))]
    return tf.raw_ops.Reverse(tensor=image, dims=[*flips, False])


def _big_endian(encoded: tf.Tensor, start: tf.Tensor | int, length: int, dtype: tf.DType) -> tf.Tensor:
    """Returns the numbers in `length` bytes of a file, int64. Fails if the file is too short."""
    numbers = tf.io.decode_raw(tf.strings.substr(encoded, start, length), dtype, little_endian=False)
    numbers = tf.ensure_shape(numbers, [length // dtype.size])
    return tf.cast(numbers, tf.int64)


def _on_white(image: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Puts pixels on white, with the rounding of Pillow.

    Args:
        image: uint8 [height, width, 4], red, green, blue and alpha, from a PNG.
        bits: the bits per colour in the file, an int64 scalar.
    """
    colours, alpha = tf.cast(image[..., :3], tf.uint16), tf.cast(image[..., 3:], tf.uint16)
    # If a file has no transparency, TensorFlow makes alpha the largest number of so many bits, which need not be 255.
    opaque = tf.cast(2 ** tf.minimum(bits, 8) - 1, tf.uint16)
    alpha = tf.where(tf.reduce_all(alpha == opaque), tf.constant(255, tf.uint16), alpha)
    total = colours * alpha + 255 * (255 - alpha) + 128
    eight = tf.constant(8, tf.uint16)
    return tf.cast(tf.bitwise.right_shift(total + tf.bitwise.right_shift(total, eight), eight), tf.uint8)


# ---- EXIF and XMP, each "" if the file has none.


def _metadata_of_jpeg(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the EXIF and the XMP of a JPEG, string scalars."""

    def has_more(position: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        marker = _big_endian(encoded, position, 2, tf.uint16)[0]
        return (marker // 256 == 0xFF) & (marker != 0xFFDA)  # After that come the pixels.

    def next_segment(position: tf.Tensor, exif: tf.Tensor, xmp: tf.Tensor) -> tuple[tf.Tensor, ...]:
        marker, length = tf.unstack(_big_endian(encoded, position, 4, tf.uint16))
        content = tf.where(marker == 0xFFE1, tf.strings.substr(encoded, position + 4, length - 2), b"")
        exif = tf.where(_starts(content, b"Exif\0\0") & (exif == b""), content, exif)
        xmp = tf.where(_starts(content, b"http://ns.adobe.com/xap/1.0/\0"), content, xmp)
        return tf.where(marker == 0xFFFF, position + 1, position + 2 + length), exif, xmp

    return tf.while_loop(has_more, next_segment, [tf.constant(2, tf.int64), b"", b""])[1:]


def _metadata_of_png(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the EXIF and the XMP of a PNG, string scalars."""
    size = tf.cast(tf.strings.length(encoded), tf.int64)

    def next_chunk(position: tf.Tensor, exif: tf.Tensor, xmp: tf.Tensor) -> tuple[tf.Tensor, ...]:
        length, kind = _big_endian(encoded, position, 4, tf.int32)[0], tf.strings.substr(encoded, position + 4, 4)
        length = tf.clip_by_value(length, 0, size)
        content = tf.where((kind == b"eXIf") | (kind == b"iTXt"), tf.strings.substr(encoded, position + 8, length), b"")
        exif = tf.where(kind == b"eXIf", b"Exif\0\0" + content, exif)
        xmp = tf.where(_starts(content, b"XML:com.adobe.xmp\0"), content, xmp)
        return position + 12 + length, exif, xmp

    start = tf.constant(len(_PNG), tf.int64)
    return tf.while_loop(lambda position, *_: position + 12 <= size, next_chunk, [start, b"", b""])[1:]


def _orientation(exif: tf.Tensor, xmp: tf.Tensor) -> tf.Tensor:
    """Returns how a picture must be turned, an int32 scalar from 1 to 8. EXIF counts more than XMP."""
    # A header of 6 bytes, then a TIFF file; then zeros, so that all slices exist.
    tiff = tf.strings.substr(exif + b"\0" * 20, 6, 65550)
    numbers, size = tf.cast(tf.io.decode_raw(tiff, tf.uint8), tf.int32), tf.strings.length(tiff) - 14
    is_little_endian = _starts(tiff, b"I")

    def number(digits: tf.Tensor) -> tf.Tensor:
        """Returns numbers, int32 [...], for their bytes, int32 [..., length]."""
        powers = [256**place for place in range(digits.shape[-1])]
        return tf.reduce_sum(digits * tf.where(is_little_endian, powers, powers[::-1]), axis=-1)

    start = tf.clip_by_value(number(tf.slice(numbers, [4], [4])), 0, size)
    entries = tf.minimum(number(tf.slice(numbers, [start], [2])), (size - start) // 12)
    entries = tf.reshape(numbers[start + 2 : start + 2 + 12 * entries], [-1, 12])  # tag, type, count, value
    values = tf.where(number(entries[:, 2:4]) == _LONG, number(entries[:, 8:]), number(entries[:, 8:10]))
    values = tf.where(number(entries[:, :2]) == _ORIENTATION, values, 0)
    by_exif = tf.reduce_max(tf.concat([[0], values], axis=0))
    has_xmp = tf.strings.regex_full_match(xmp, _XMP_ORIENTATION)
    by_xmp = tf.strings.to_number(
        tf.where(has_xmp, tf.strings.regex_replace(xmp, _XMP_ORIENTATION, r"\1"), "1"), tf.int32
    )
    orientation = tf.where(by_exif == 0, by_xmp, by_exif)
    return tf.where((orientation >= 1) & (orientation <= 8), orientation, 1)


def _starts(content: tf.Tensor, beginning: bytes) -> tf.Tensor:
    return tf.strings.substr(content, 0, len(beginning)) == beginning


# ---- Records.


@tf.autograph.experimental.do_not_convert
def require_records(serialized: tf.Tensor) -> tf.Tensor:
    """Returns records, string [batch], or fails with a message that can be read if one is no `tf.train.Example`.

    TensorFlow's own message is all bytes of the record. To save time, this looks at the first bytes only: they tell a
    picture, a text and a record that is cut off.
    """
    head = tf.strings.substr(tf.strings.substr(serialized, 0, 6) + b"\0" * 6, 0, 6)
    head = tf.cast(tf.io.decode_raw(head, tf.uint8), tf.int64)
    ones, digits = tf.ones_like(head[:, :1]), head[:, 1:]  # What follows takes so many bytes, see `_varints`.
    is_used = tf.math.cumprod(tf.concat([ones, tf.cast(digits[:, :-1] >= 128, tf.int64)], axis=1), axis=1)
    length = tf.reduce_sum(is_used * (digits % 128) * 128 ** tf.range(5, dtype=tf.int64), axis=1)
    size = tf.cast(tf.strings.length(serialized), tf.int64)
    is_record = (head[:, 0] == 0x0A) & (1 + tf.reduce_sum(is_used, axis=1) + length <= size) | (size == 0)
    message = "cannot parse as a tf.train.Example (the signature image_bytes takes JPEG and PNG files): example_bytes"
    bad = tf.where(~is_record)[:, 0]
    with tf.control_dependencies([tf.raw_ops.Assert(condition=tf.size(bad) == 0, data=[message, bad])]):
        return tf.identity(serialized)


def _record(jpeg: tf.Tensor) -> tf.Tensor:
    """Returns a serialized `tf.train.Example` with a picture and no id, as `tfrecords.make_example` does."""
    key = tfrecords.IMAGE.encode()
    # From the outside to the inside: an example, its map of features, an entry of that, a feature, a list of bytes.
    # Each begins with a tag; then comes, in five bytes, the length of all that follows.
    tags = [b"\x0a", b"\x0a", b"\x0a" + bytes([len(key)]) + key + b"\x12", b"\x0a", b"\x0a"]
    head_lengths = [sum(len(tag) + 5 for tag in tags[number + 1 :]) for number in range(len(tags))]
    head = tf.strings.reduce_join(tf.stack([tags, _varints(tf.strings.length(jpeg) + head_lengths)], axis=1))
    # Two serialized messages, one after the other, are one message with the fields of both.
    id_alone = tf.train.Example()
    id_alone.features.feature[tfrecords.FILENAME].bytes_list.value.append(b"")
    return id_alone.SerializeToString() + head + jpeg


def _varints(lengths: tf.Tensor) -> tf.Tensor:
    """Returns lengths, int32 [n], as protocol buffers write them, in five bytes of seven bits each: string [n]."""
    digits = tf.bitwise.right_shift(lengths[:, tf.newaxis], tf.range(0, 35, 7)) % 128 + [128, 128, 128, 128, 0]
    return tf.strings.reduce_join(tf.gather([bytes([value]) for value in range(256)], digits), axis=1)
