"""Augmentation: each training picture a little different each time it is seen, and still a picture of the same animal.

Everything is a function of (seed, step, row of the batch). So a run that goes on sees what it would have seen, and the
parts of a batch on several devices are what the whole is on one.
"""

import tensorflow as tf

KINDS = ("none", "flip", "flip_crop", "flip_crop_colour")

_LARGEST_CUT = 0.3  # how much of a side a crop leaves out at most
_LARGEST_STRETCH = 1.25  # how much more a crop may be stretched in one direction than in the other
_LARGEST_CHANGE = 0.3  # of brightness, contrast and saturation


def augment(images: tf.Tensor, kind: str, seed: int, step: tf.Tensor, rows: tf.Tensor, batch_size: int) -> tf.Tensor:
    """Changes the pictures of a batch at random.

    Args:
        images: uint8 [n, size, size, 3], or float32 in [-1, 1].
        kind: "none"; "flip": mirrored left to right, or not; "flip_crop": also cut out, at least 70 % of each side, and
            brought back to its size; "flip_crop_colour": also brightness, contrast and saturation by up to 30 %.
        seed: of the run.
        step: int64 scalar, number of the batch in the run.
        rows: int64 [n], the row of each picture in the whole batch, which may be split over devices.
        batch_size: rows of a whole batch.

    Returns:
        The same shape and dtype.
    """
    if kind == "none":
        return images
    # Always as many numbers a picture, so that it is mirrored alike in all kinds.
    numbers = tf.random.stateless_uniform([batch_size, 8], tf.stack([tf.cast(seed, tf.int64), step]))
    number, *crop_numbers = tf.unstack(tf.gather(numbers, rows), axis=1)
    is_mirrored = number < 0.5
    if kind == "flip":
        return tf.where(_per_picture(is_mirrored), tf.reverse(images, [2]), images)
    pixels = images if images.dtype == tf.uint8 else (images + 1.0) * 127.5
    pixels = _crop(pixels, is_mirrored, *crop_numbers[:4])
    if kind == "flip_crop_colour":
        pixels = _change_colours(pixels, *crop_numbers[4:])
    return tf.cast(tf.round(pixels), tf.uint8) if images.dtype == tf.uint8 else pixels / 127.5 - 1.0


def _per_picture(numbers: tf.Tensor) -> tf.Tensor:
    return numbers[:, tf.newaxis, tf.newaxis, tf.newaxis]


def _crop(
    pixels: tf.Tensor, is_mirrored: tf.Tensor, size: tf.Tensor, stretch: tf.Tensor, top: tf.Tensor, left: tf.Tensor
) -> tf.Tensor:
    """Cuts a rectangle out of each picture, mirrors some, and brings them back to the picture's size, bilinearly."""
    size, stretch = 1.0 - _LARGEST_CUT * size, _LARGEST_STRETCH ** (stretch - 0.5)
    height, width = (tf.clip_by_value(side, 1.0 - _LARGEST_CUT, 1.0) for side in (size * stretch, size / stretch))
    top, left = top * (1.0 - height), left * (1.0 - width)
    bottom, right = top + height, left + width
    boxes = tf.stack([top, tf.where(is_mirrored, right, left), bottom, tf.where(is_mirrored, left, right)], axis=1)
    # A little inside, since what rounding brings outside would become black.
    boxes = tf.clip_by_value(boxes, 1e-6, 1.0 - 1e-6)
    return tf.image.crop_and_resize(pixels, boxes, tf.range(tf.shape(pixels)[0]), tf.shape(pixels)[1:3])


def _change_colours(pixels: tf.Tensor, *numbers: tf.Tensor) -> tf.Tensor:
    """brightness * (mean + contrast * (grey + saturation * (pixel - grey) - mean)), in one pass over the pixels."""
    factors = (1.0 + _LARGEST_CHANGE * (2.0 * number - 1.0) for number in numbers)
    brightness, contrast, saturation = map(_per_picture, factors)
    grey = tf.reduce_mean(pixels, axis=3, keepdims=True)
    mean = tf.reduce_mean(grey, axis=(1, 2), keepdims=True)
    grey = brightness * (contrast * (1.0 - saturation) * grey + (1.0 - contrast) * mean)
    return tf.clip_by_value(brightness * contrast * saturation * pixels + grey, 0.0, 255.0)
