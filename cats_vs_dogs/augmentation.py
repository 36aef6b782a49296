"""Augmentation: each training picture a little different each time it is seen, and still a picture of the same animal.

Everything is a function of (seed, step, row of the batch). So a run that goes on sees what it would have seen, and the
parts of a batch on several devices are what the whole is on one.
"""

import dataclasses

import numpy as np
import tensorflow as tf

KINDS = ("none", "flip", "flip_crop", "flip_crop_colour")

_LARGEST_CUT = 0.5  # how much of a side a crop leaves out at most
_LARGEST_STRETCH = 1.6  # how much more a crop may be stretched in one direction than in the other
_LARGEST_CHANGE = 0.3  # of brightness, contrast and saturation
_PIXELS_PER_GROWTH = 32  # A network that halves its input five times sees no other borders at the next size.


@dataclasses.dataclass(frozen=True)
class Growth:
    """Training pictures that are small at first and grow, since most can be learned from small ones in less time.

    They grow by 32 pixels at a time, and each size has half as many steps as the one before: it takes about as long.
    (Progressive resizing; the sizes and shares are this kit's own.)

    Attributes:
        first_size: height and width at the start, pixels.
        last_size: height and width at the end, pixels; at least as large.
        total_steps: the step at which training ends.
    """

    first_size: int
    last_size: int
    total_steps: int

    def stages(self) -> list[tuple[int, int]]:
        """Returns (size, the step before which pictures have it) for each size; the last ends with training.

        If there are fewer steps than sizes, the smallest sizes are left out.
        """
        sizes = [*range(self.first_size, self.last_size, _PIXELS_PER_GROWTH), self.last_size]
        shares = 0.5 ** np.arange(len(sizes))
        ends = np.round(self.total_steps * np.cumsum(shares) / np.sum(shares)).astype(int)
        ends = np.minimum(ends, self.total_steps - np.arange(len(sizes))[::-1])  # At least a step for each larger one.
        return [(size, end) for size, end in zip(sizes, ends.tolist(), strict=True) if end > 0]

    def size_at(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the size of the pictures of a batch, an int32 scalar.

        Args:
            step: int64 scalar, number of the batch in the run.
        """
        sizes, ends = zip(*self.stages(), strict=True)
        return tf.constant(sizes)[tf.reduce_sum(tf.cast(step >= tf.constant(ends[:-1], tf.int64), tf.int32))]

    def steps_left(self, step: int) -> float:
        """Returns how many steps of the present size would take as long as all that are left, going by the pixels.

        Args:
            step: the number of steps done, at least 1.
        """
        pixels, start, sizes = 0, 0, []
        for size, end in self.stages():
            pixels += size**2 * max(0, end - max(step, start))
            sizes += [size] if step <= end else []
            start = end
        return pixels / sizes[0] ** 2

    def __str__(self) -> str:
        *before, (last_size, _) = self.stages()
        return "".join(f"{size} pixels until step {end:,}, " for size, end in before) + f"then {last_size}"


def augment(
    images: tf.Tensor,
    kind: str,
    seed: int,
    step: tf.Tensor,
    rows: tf.Tensor,
    batch_size: int,
    size: tf.Tensor | None = None,
) -> tf.Tensor:
    """Changes the pictures of a batch at random.

    Args:
        images: uint8 [n, size, size, 3], or float32 in [-1, 1].
        kind: "none"; "flip": mirrored left to right, or not; "flip_crop": also cut out, at least half of each side, and
            brought to `size` by bilinear sampling; "flip_crop_colour": also brightness, contrast and saturation by up
            to 30 %.
        seed: of the run.
        step: int64 scalar, number of the batch in the run.
        rows: int64 [n], the row of each picture in the whole batch, which may be split over devices.
        batch_size: rows of a whole batch.
        size: height and width of the result, an int32 scalar, pixels; None: that of the images. Where nothing is cut
            out, smaller pictures are area averages.

    Returns:
        [n, size, size, 3] of the same dtype.
    """
    if kind == "none":
        return _resize(images, size)
    # Always as many numbers a picture, so that it is mirrored alike in all kinds.
    numbers = tf.random.stateless_uniform([batch_size, 8], tf.stack([tf.cast(seed, tf.int64), step]))
    number, *crop_numbers = tf.unstack(tf.gather(numbers, rows), axis=1)
    is_mirrored = number < 0.5
    if kind == "flip":
        return _resize(tf.where(_per_picture(is_mirrored), tf.reverse(images, [2]), images), size)
    pixels = images if images.dtype == tf.uint8 else (images + 1.0) * 127.5
    boxes = _crop_boxes(is_mirrored, *crop_numbers[:4])
    crop_size = tf.shape(images)[1:3] if size is None else tf.stack([size, size])
    pixels = tf.image.crop_and_resize(pixels, boxes, tf.range(tf.shape(images)[0]), crop_size)
    if kind == "flip_crop_colour":
        pixels = _change_colours(pixels, *crop_numbers[4:])
    return tf.cast(tf.round(pixels), tf.uint8) if images.dtype == tf.uint8 else pixels / 127.5 - 1.0


def _resize(images: tf.Tensor, size: tf.Tensor | None) -> tf.Tensor:
    if size is None:
        return images
    resized = tf.image.resize(images, tf.stack([size, size]), method="area")
    return tf.cast(tf.round(resized), tf.uint8) if images.dtype == tf.uint8 else resized


def _per_picture(numbers: tf.Tensor) -> tf.Tensor:
    return numbers[:, tf.newaxis, tf.newaxis, tf.newaxis]


def _crop_boxes(
    is_mirrored: tf.Tensor, size: tf.Tensor, stretch: tf.Tensor, top: tf.Tensor, left: tf.Tensor
) -> tf.Tensor:
    """Returns a rectangle to cut out of each picture, for crop_and_resize; its sides are in turn where it mirrors."""
    size, stretch = 1.0 - _LARGEST_CUT * size, _LARGEST_STRETCH ** (stretch - 0.5)
    height, width = (tf.clip_by_value(side, 1.0 - _LARGEST_CUT, 1.0) for side in (size * stretch, size / stretch))
    top, left = top * (1.0 - height), left * (1.0 - width)
    bottom, right = top + height, left + width
    boxes = tf.stack([top, tf.where(is_mirrored, right, left), bottom, tf.where(is_mirrored, left, right)], axis=1)
    # A little inside, since what rounding brings outside would become black.
    return tf.clip_by_value(boxes, 1e-6, 1.0 - 1e-6)


def _change_colours(pixels: tf.Tensor, *numbers: tf.Tensor) -> tf.Tensor:
    """brightness * (mean + contrast * (grey + saturation * (pixel - grey) - mean)), in one pass over the pixels."""
    factors = (1.0 + _LARGEST_CHANGE * (2.0 * number - 1.0) for number in numbers)
    brightness, contrast, saturation = map(_per_picture, factors)
    grey = tf.reduce_mean(pixels, axis=3, keepdims=True)
    mean = tf.reduce_mean(grey, axis=(1, 2), keepdims=True)
    grey = brightness * (contrast * (1.0 - saturation) * grey + (1.0 - contrast) * mean)
    return tf.clip_by_value(brightness * contrast * saturation * pixels + grey, 0.0, 255.0)
