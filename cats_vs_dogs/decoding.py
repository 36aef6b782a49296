"""Decodes pictures to small squares, by TensorFlow, and refuses those that would take too much memory."""

import functools

import tensorflow as tf

from cats_vs_dogs.pictures import MAX_PIXELS

# Why a picture is not decoded, although TensorFlow might be able to.
TOO_LARGE = f"its picture is larger than {MAX_PIXELS:,} pixels"
NOT_READ = "its picture is a JPEG XL or a BMP with a palette; save it as JPEG"

_SMALLEST_SCALED = 40  # Smaller pictures are decoded in full, which takes little time: their edges weigh more.


@tf.autograph.experimental.do_not_convert  # To rewrite it would take longer than to build its graph.
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
        lambda: decode_jpeg_scaled(encoded, image_size),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )
    image = tf.ensure_shape(image, [None, None, 3])
    resized = tf.image.resize(image, size, method="area")
    return tf.ensure_shape(tf.cast(tf.round(resized), tf.uint8), [image_size, image_size, 3])


def decode_jpeg_scaled(encoded: tf.Tensor, image_size: int) -> tf.Tensor:
    """Lets libjpeg average blocks of 2, 4 or 8 pixels while it decodes, where that hardly changes the result.

    A block that lies across the edge of a result's pixel counts for one of its neighbours, so blocks are at most half
    as large as a result's pixel. Blocks at the right and lower edges may be incomplete; what they lack is at most a
    quarter of a result's pixel.
    """
    shape = tf.io.extract_jpeg_shape(encoded, tf.int64)
    encoded = _unless_too_large(encoded, shape[0] * shape[1])
    blocks, sides = tf.constant([[2], [4], [8]], tf.int64), shape[:2]
    is_small = sides // blocks >= max(2 * image_size, _SMALLEST_SCALED)
    is_complete = 4 * image_size * (-sides % blocks) <= sides
    index = tf.reduce_sum(tf.cast(tf.reduce_all(is_small & is_complete, axis=1), tf.int32))
    return tf.switch_case(index, [functools.partial(_decode_accurately, encoded, ratio) for ratio in (1, 2, 4, 8)])


def _decode_accurately(encoded: tf.Tensor, ratio: int) -> tf.Tensor:
    return tf.io.decode_jpeg(encoded, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")


@tf.autograph.experimental.do_not_convert
def check_headers(encoded: tf.Tensor) -> tf.Tensor:
    """Returns pictures, string [batch], or fails if TensorFlow should not decode one of them. Checks all but JPEGs.

    `decode_and_resize` does not call it: a check for each picture takes a tenth of the time of decoding a small one.
    """
    start = tf.strings.substr(encoded, 0, 32) + b"\0" * 32
    is_png, is_gif, is_bmp = (tf.strings.substr(start, 0, len(kind)) == kind for kind in (b"\x89PNG", b"GIF8", b"BM"))
    png_sides = tf.io.decode_raw(tf.strings.substr(start, 16, 8), tf.int32, little_endian=False)
    gif_sides = tf.io.decode_raw(tf.strings.substr(start, 6, 4), tf.uint16)
    png_pixels, gif_pixels = (tf.reduce_prod(tf.cast(sides, tf.int64), axis=1) for sides in (png_sides, gif_sides))
    # A BMP is not compressed. A WebP, which newer versions of TensorFlow decode, has less than 16,384 x 16,384 pixels.
    pixels = tf.where(is_png, png_pixels, tf.where(is_gif, gif_pixels, 0))
    encoded = _unless_too_large(encoded, tf.reduce_max(pixels))
    # TensorFlow reads a palette's colour numbers as greys. The size of a JPEG XL is hard to find.
    has_palette = is_bmp & (tf.io.decode_raw(tf.strings.substr(start, 28, 1), tf.uint8)[:, 0] <= 8)
    is_jpeg_xl = (tf.strings.substr(start, 0, 2) == b"\xff\x0a") | (tf.strings.substr(start, 4, 4) == b"JXL ")
    return _with_assert(encoded, ~tf.reduce_any(has_palette | is_jpeg_xl), NOT_READ)


def _unless_too_large(encoded: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
    """Returns `encoded`, or fails, before memory is allocated, if the picture has too many pixels."""
    return _with_assert(encoded, pixels <= MAX_PIXELS, TOO_LARGE)


def _with_assert(tensor: tf.Tensor, condition: tf.Tensor, message: str) -> tf.Tensor:
    with tf.control_dependencies([tf.raw_ops.Assert(condition=condition, data=[message])]):
        return tf.identity(tensor)
