"""Augmentation: random changes to training images that leave the animal recognizable.

The changes are a function of (seed, step, row of the batch). A resumed run therefore sees the same images as an
uninterrupted one, and a batch that is split over devices gets the same images as on one device.
"""

import dataclasses

import numpy as np
import tensorflow as tf

_MAX_CUT = 0.5  # A crop removes at most this fraction of a side.
_MAX_STRETCH = 1.6  # A crop changes the ratio of height to width by at most this factor.
_MAX_COLOUR_CHANGE = 0.3  # The largest relative change of brightness, contrast and saturation.
# The fraction of the steps that may mix. The last ones do not, so that probabilities are calibrated.
_MIXED_UNTIL = 0.85
_SIZE_STEP = 32  # pixels. Networks that halve their input five times pad in the same places at each of these sizes.


@dataclasses.dataclass(frozen=True)
class SizeSchedule:
    """The size of training images by step: small at first, since small images are faster to learn from.

    The size grows by 32 pixels at a time. Each size gets half as many steps as the one before, so all sizes take
    about the same time. This is progressive resizing; the choice of sizes and steps is this kit's own.

    Attributes:
        first_size: height and width at step 0, pixels.
        last_size: height and width at the last step, pixels; at least `first_size`.
        total_steps: the step at which training ends.
    """

    first_size: int
    last_size: int
    total_steps: int

    def stages(self) -> list[tuple[int, int]]:
        """Returns (size, end) for each size: images have this size up to, but not including, step `end`.

        The last stage ends at `total_steps`. If there are fewer steps than sizes, the smallest sizes are left out.
        """
        sizes = [*range(self.first_size, self.last_size, _SIZE_STEP), self.last_size]
        fractions = 0.5 ** np.arange(len(sizes))
        ends = np.round(self.total_steps * np.cumsum(fractions) / np.sum(fractions)).astype(int)
        larger_sizes = np.arange(len(sizes))[::-1]
        ends = np.minimum(ends, self.total_steps - larger_sizes)  # Leaves at least one step for each larger size.
        return [(size, end) for size, end in zip(sizes, ends.tolist(), strict=True) if end > 0]

    def size_at(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the size of the images in a batch, an int32 scalar.

        Args:
            step: int64 scalar, the step that trains on the batch, counted from 0.
        """
        sizes, ends = zip(*self.stages(), strict=True)
        return tf.constant(sizes)[tf.reduce_sum(tf.cast(step >= tf.constant(ends[:-1], tf.int64), tf.int32))]

    def work_left(self, step: int) -> float:
        """Returns the remaining work in steps of the last size, to estimate the time left.

        The time of a step is taken to be proportional to its number of pixels.

        Args:
            step: the number of completed steps.
        """
        pixels, start = 0, 0
        for size, end in self.stages():
            pixels += size**2 * max(0, end - max(step, start))
            start = end
        return pixels / self.last_size**2

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
    """Changes the images of a batch at random, or only resizes them.

    Args:
        images: uint8 [n, height, width, 3], as the kit's readers return them; or float32 in [-1, 1], as a reader of
            the user's own may.
        kind: "none": no random change. "flip": mirrors half of the images left to right. "flip_crop": also cuts out a
            rectangle of at least half of each side and resizes it by bilinear sampling. "flip_crop_colour": also
            changes brightness, contrast and saturation by up to 30 %. "flip_crop_mix": as "flip_crop"; the trainer then
            calls `mix`.
        seed: the run's seed.
        step: int64 scalar, the step that trains on the batch.
        rows: int64 [n], each image's row in the global batch, which may be split over several devices.
        batch_size: number of rows in a full global batch.
        size: height and width of the result in pixels, an int32 scalar; None keeps the size. Kinds that do not crop
            resize by area averages.

    Returns:
        [n, size, size, 3], with the dtype and range of `images`.
    """
    if kind == "none":
        return _resize(images, size)
    is_mirrored, other_numbers = _random_numbers(seed, step, rows, batch_size)
    if kind == "flip":
        return _resize(tf.where(_per_image(is_mirrored), tf.reverse(images, [2]), images), size)
    boxes = _crop_boxes(is_mirrored, *other_numbers[:4])
    crop_size = tf.shape(images)[1:3] if size is None else tf.stack([size, size])
    pixels = images if images.dtype == tf.uint8 else (images + 1.0) * 127.5
    pixels = tf.image.crop_and_resize(pixels, boxes, tf.range(tf.shape(images)[0]), crop_size)
    if kind == "flip_crop_colour":
        pixels = _change_colours(pixels, *other_numbers[4:])
    return _round_to_uint8(pixels) if images.dtype == tf.uint8 else pixels / 127.5 - 1.0


def middle(images: tf.Tensor, part: float) -> tf.Tensor:
    """Returns the middle of each image, enlarged to the image's size by bilinear sampling as crops of training are.

    Args:
        images: float32 [n, height, width, 3].
        part: height and width of the middle, as a fraction of those of the image.

    Returns:
        float32 [n, height, width, 3].
    """
    n, margin = tf.shape(images)[0], (1.0 - part) / 2.0
    boxes = tf.tile([[margin, margin, 1.0 - margin, 1.0 - margin]], [n, 1])
    return tf.image.crop_and_resize(images, boxes, tf.range(n), tf.shape(images)[1:3])


def mix(
    images: tf.Tensor, labels: tf.Tensor, step: tf.Tensor, seed: int, total_steps: int
) -> tuple[tf.Tensor, list[tuple[tf.Tensor, tf.Tensor]]]:
    """Mixes each image of a batch with its neighbour, for "flip_crop_mix".

    Half of the steps mix nothing, a quarter blends the two images (mixup, Zhang et al. 2018), and a quarter puts a
    rectangle of the neighbour into the image (CutMix, Yun et al. 2019). All images of a step are mixed the same way, so
    that any loss can be used: it is the mean of the losses for both labels, weighted by the shares. The first image of
    a pair takes the second for its neighbour and the other way round. So several devices that each get an even part of
    a batch do as one device does.

    Args:
        images: float32 [n, height, width, 3]; an image without a neighbour, the last of an odd number, stays as it is.
        labels: int32 [n, 1].
        step: int64 scalar, the step that trains on the batch.
        seed: the run's seed.
        total_steps: the step at which training ends; the last 15 % of the steps mix nothing.

    Returns:
        (images, parts): float32 [n, height, width, 3], and (share, labels) for the image and for its neighbour. The
        shares are float32 scalars that sum to 1. The first is at least 0.5, but for the rounding of rectangles.
    """
    step = tf.cast(step, tf.int64)
    state = tf.stack([tf.cast(seed, tf.int64), -1 - step])  # No step of `augment` has it.
    numbers = tf.random.stateless_uniform([5], state)
    is_on, is_blended, amount, top, left = tf.unstack(numbers)
    is_on = (is_on < 0.5) & (tf.cast(step, tf.float32) < _MIXED_UNTIL * total_steps)
    amount = tf.where(is_on, amount / 2.0, 0.0)
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    rectangle = _is_inside(height, top, tf.sqrt(amount))[:, tf.newaxis] * _is_inside(width, left, tf.sqrt(amount))
    taken = tf.where(is_blended < 0.5, tf.fill([height, width], amount), rectangle)
    last = tf.shape(images)[0] - 1
    neighbours = tf.minimum(tf.bitwise.bitwise_xor(tf.range(last + 1), 1), last)
    mixed = images + taken[:, :, tf.newaxis] * (tf.gather(images, neighbours) - images)
    share = tf.reduce_mean(taken)
    return mixed, [(1.0 - share, labels), (share, tf.gather(labels, neighbours))]


def _is_inside(size: tf.Tensor, place: tf.Tensor, fraction: tf.Tensor) -> tf.Tensor:
    """Returns 1 for the pixels of a stretch that is a fraction of a side of `size` pixels and 0 elsewhere, float32.

    Its place, in [0, 1), is from the first pixels to the last.
    """
    size = tf.cast(size, tf.float32)
    start = place * (1.0 - fraction) * size
    centres = tf.range(size) + 0.5
    return tf.cast((centres >= start) & (centres < start + fraction * size), tf.float32)


def choose_view(views: tf.Tensor, seed: int, step: tf.Tensor, rows: tf.Tensor, batch_size: int) -> tf.Tensor:
    """Chooses the features of each image or of its mirror image, the same way as "flip" mirrors a batch's images.

    Args:
        views: [n, views, ...], see `frozen_features.calculate`; with one view there is nothing to choose.
        seed: see `augment`, as the other arguments.
        step: int64 scalar.
        rows: int64 [n].
        batch_size: number of rows in a full global batch.

    Returns:
        [n, ...]
    """
    if views.shape[1] == 1:
        return views[:, 0]
    is_mirrored, _ = _random_numbers(seed, step, rows, batch_size)
    return tf.gather(views, tf.cast(is_mirrored, tf.int32), axis=1, batch_dims=1)


def _random_numbers(seed: int, step: tf.Tensor, rows: tf.Tensor, batch_size: int) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Returns which images of a batch are mirrored, bool [n], and seven more random numbers for each, float32 [n].

    The numbers do not depend on the kind of augmentation, so all kinds mirror the same images.
    """
    numbers = tf.random.stateless_uniform([batch_size, 8], tf.stack([tf.cast(seed, tf.int64), step]))
    mirror_number, *others = tf.unstack(tf.gather(numbers, rows), axis=1)
    return mirror_number < 0.5, others


def _resize(images: tf.Tensor, size: tf.Tensor | None) -> tf.Tensor:
    if size is None:
        return images
    resized = tf.image.resize(images, tf.stack([size, size]), method="area")
    return _round_to_uint8(resized) if images.dtype == tf.uint8 else resized


def _round_to_uint8(pixels: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.round(pixels), tf.uint8)


def _per_image(values: tf.Tensor) -> tf.Tensor:
    """Reshapes one value per image, [n], to [n, 1, 1, 1]."""
    return values[:, tf.newaxis, tf.newaxis, tf.newaxis]


def _crop_boxes(
    is_mirrored: tf.Tensor, size: tf.Tensor, stretch: tf.Tensor, top: tf.Tensor, left: tf.Tensor
) -> tf.Tensor:
    """Returns the rectangle to cut out of each image, as `tf.image.crop_and_resize` takes it.

    Args:
        is_mirrored: bool [n]; a mirrored rectangle has its left and right sides exchanged.
        size: float32 [n], a random number in [0, 1) for the rectangle's size; `stretch`, `top` and `left` likewise for
            its ratio of sides and its position.

    Returns:
        float32 [n, 4]: top, left, bottom and right, as fractions of the image's height and width.
    """
    size, stretch = 1.0 - _MAX_CUT * size, _MAX_STRETCH ** (stretch - 0.5)
    height, width = (tf.clip_by_value(side, 1.0 - _MAX_CUT, 1.0) for side in (size * stretch, size / stretch))
    top, left = top * (1.0 - height), left * (1.0 - width)
    bottom, right = top + height, left + width
    boxes = tf.stack([top, tf.where(is_mirrored, right, left), bottom, tf.where(is_mirrored, left, right)], axis=1)
    # A sample that rounding moves outside of the image would be black, so the rectangle stays a little inside.
    return tf.clip_by_value(boxes, 1e-6, 1.0 - 1e-6)


def _change_colours(pixels: tf.Tensor, *numbers: tf.Tensor) -> tf.Tensor:
    """Changes brightness, contrast and saturation in one pass over the pixels.

    Computes brightness * (mean + contrast * (grey + saturation * (pixel - grey) - mean)), where grey is the mean of a
    pixel's three colours and mean is that of the image.

    Args:
        pixels: float32 [n, height, width, 3] in [0, 255].
        *numbers: three times float32 [n], random numbers in [0, 1).

    Returns:
        float32 [n, height, width, 3] in [0, 255].
    """
    factors = (1.0 + _MAX_COLOUR_CHANGE * (2.0 * number - 1.0) for number in numbers)
    brightness, contrast, saturation = map(_per_image, factors)
    grey = tf.reduce_mean(pixels, axis=3, keepdims=True)
    mean = tf.reduce_mean(grey, axis=(1, 2), keepdims=True)
    grey = brightness * (contrast * (1.0 - saturation) * grey + (1.0 - contrast) * mean)
    return tf.clip_by_value(brightness * contrast * saturation * pixels + grey, 0.0, 255.0)
