"""Augmentation: its effect on an image, and that it depends on seed, step and row only."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from cats_vs_dogs import augmentation
from cats_vs_dogs.config import AUGMENTATIONS

ROWS = tf.range(64, dtype=tf.int64)


def augment(images, kind, seed=1, step=2, rows=None, batch_size=64, size=None):
    rows = ROWS[: len(images)] if rows is None else rows
    return augmentation.augment(
        tf.constant(images), kind, seed, tf.constant(step, tf.int64), rows, batch_size, size
    ).numpy()


def expect_same_pixels(found, expected, kind):
    """Expects equal pictures; kernels that round differently, in graphs and for other batch sizes, may differ by 1."""
    if kind != "flip":  # Which only moves pixels.
        difference = found.astype(int) - expected
        assert np.abs(difference).max() <= 1 and np.mean(difference != 0) < 1e-3
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module")
def images():
    """Copies of a gradient from left to right and top to bottom, with colours that no change clips."""
    height, width = np.meshgrid(np.arange(16), np.arange(16), indexing="ij")
    picture = np.stack([60 + 4 * height, 60 + 4 * width, 60 + 2 * height + 2 * width], axis=2)
    return np.repeat(picture[np.newaxis].astype(np.uint8), 64, axis=0)


def test_flip_mirrors_about_half_and_changes_nothing_else(images):
    np.testing.assert_array_equal(augment(images, "none"), images)
    flipped = augment(images, "flip")
    is_mirrored = [np.array_equal(one, images[0][:, ::-1]) for one in flipped]
    assert 20 < sum(is_mirrored) < 44
    assert all(
        np.array_equal(one, images[0]) for one, mirrored in zip(flipped, is_mirrored, strict=True) if not mirrored
    )


@pytest.mark.parametrize("kind", AUGMENTATIONS[1:])
def test_augmentation_is_a_function_of_seed_step_and_row(images, kind):
    whole = augment(images, kind)
    in_parts = [augment(images[start:end], kind, rows=ROWS[start:end]) for start, end in ((0, 1), (1, 40), (40, 64))]
    expect_same_pixels(np.concatenate(in_parts), whole, kind)
    for other in ({"seed": 2}, {"step": 3}):
        assert not np.array_equal(augment(images, kind, **other), whole)
    in_graph = tf.function(lambda: augmentation.augment(images, kind, 1, tf.constant(2, tf.int64), ROWS, 64))
    expect_same_pixels(in_graph().numpy(), whole, kind)


def test_a_crop_keeps_half_of_each_side_of_the_picture_and_needs_nothing_from_outside(images):
    cropped = augment(images, "flip_crop").astype(int)
    assert cropped.shape == images.shape
    # The colours show where a pixel came from: red grows by 4 per row, green by 4 per column.
    heights = (cropped[:, -1, 0, 0] - cropped[:, 0, 0, 0]) / 60
    widths = np.abs(cropped[:, 0, -1, 1] - cropped[:, 0, 0, 1]) / 60
    for sides in (heights, widths):
        assert 0.48 < sides.min() < 0.7 and 0.95 < sides.max() <= 1.0
    assert cropped.min() >= images.min() and cropped.max() <= images.max()
    assert len({one.tobytes() for one in cropped}) == 64


def test_colours_change_a_little_and_the_same_for_the_whole_picture(images):
    cropped, coloured = (augment(images, kind).astype(float) for kind in ("flip_crop", "flip_crop_colour"))
    ratios = coloured.mean(axis=(1, 2, 3)) / cropped.mean(axis=(1, 2, 3))
    assert 0.69 < ratios.min() < 0.8 and 1.2 < ratios.max() < 1.31
    spread = coloured.std(axis=(1, 2, 3)) / cropped.std(axis=(1, 2, 3)) / ratios
    assert 0.7 * 0.7 < spread.min() < 0.9 and 1.1 < spread.max() < 1.3 * 1.3  # By contrast and saturation.


def test_floats_are_changed_like_bytes(images):
    floats = images / np.float32(127.5) - 1
    for kind in AUGMENTATIONS:
        expected = augment(images, kind) / np.float32(127.5) - 1
        np.testing.assert_allclose(augment(floats, kind), expected, atol=0.5 / 127.5 + 1e-5)


def mix(images, step, seed=1, total_steps=1000):
    labels = tf.range(len(images))[:, tf.newaxis]
    mixed, parts = augmentation.mix(tf.constant(images), labels, tf.constant(step, tf.int64), seed, total_steps)
    return mixed.numpy(), [(float(share), labels.numpy()[:, 0].tolist()) for share, labels in parts]


def test_mixed_images_have_the_shares_of_their_labels():
    images = np.repeat(np.arange(5, dtype=np.float32), 10 * 12 * 3).reshape(5, 10, 12, 3)
    kinds = collections.Counter()
    shares = []
    for step in range(200):
        mixed, ((share, labels), (other_share, other_labels)) = mix(images, step)
        assert labels == [0, 1, 2, 3, 4] and other_labels == [1, 0, 3, 2, 4]
        assert 0.45 < share <= 1 and share + other_share == pytest.approx(1)
        expected = share * np.array(labels) + other_share * np.array(other_labels)
        np.testing.assert_allclose(mixed.mean(axis=(1, 2, 3)), expected, atol=1e-5)
        if share == 1:
            kinds["none"] += 1
            continue
        shares.append(share)
        (blended,) = {len(np.unique(image)) == 1 for image in mixed[:4]}
        kinds["blended" if blended else "rectangle"] += 1
        if not blended:  # A rectangle of the neighbour, in the same place of each image.
            is_other = mixed[0, :, :, 0] == 1
            rows, columns = np.flatnonzero(is_other.any(axis=1)), np.flatnonzero(is_other.any(axis=0))
            assert is_other[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert is_other.sum() == len(rows) * len(columns) == pytest.approx(other_share * 120)
            np.testing.assert_array_equal(mixed[2, :, :, 0] == 3, is_other)
    assert 80 < kinds["none"] < 125 and kinds["blended"] > 30 and kinds["rectangle"] > 30
    assert min(shares) < 0.55 and max(shares) > 0.9


def test_mixing_is_a_function_of_seed_and_step_and_ends_before_training_does():
    images = np.random.default_rng(0).random((4, 8, 8, 3), dtype=np.float32)
    shares = [mix(images, step)[1][0][0] for step in range(850)]
    assert min(shares[-10:]) < 1
    mixed, parts = mix(images, 7)
    np.testing.assert_array_equal(mix(images, 7)[0], mixed)
    assert mix(images[:2], 7)[1][0][0] == parts[0][0]  # A part of a batch is mixed as the batch is.
    assert [mix(images, step, seed=2)[1][0][0] for step in range(20)] != shares[:20]
    for step in range(850, 1000, 10):
        unmixed, parts = mix(images, step)
        np.testing.assert_array_equal(unmixed, images)
        assert parts[0][0] == 1


def test_a_size_schedule_by_hand():
    schedule = augmentation.SizeSchedule(64, 128, total_steps=700)  # 400 + 200 + 100 steps
    assert schedule.stages() == [(64, 400), (96, 600), (128, 700)]
    assert str(schedule) == "64 pixels until step 400, 96 pixels until step 600, then 128"
    steps = {0: 64, 399: 64, 400: 96, 599: 96, 600: 128, 699: 128, 700: 128}
    assert {step: int(schedule.size_at(tf.constant(step, tf.int64))) for step in steps} == steps
    expected = {
        0: 100 + 112.5 + 100,
        1: 99.75 + 112.5 + 100,
        400: 112.5 + 100,
        401: 199 * 9 / 16 + 100,
        650: 50,
        700: 0,
    }
    assert {step: schedule.work_left(step) for step in expected} == pytest.approx(expected)
    assert augmentation.SizeSchedule(32, 80, total_steps=7).stages() == [(32, 4), (64, 6), (80, 7)]


def test_a_size_schedule_with_few_steps_ends_at_the_full_size():
    assert augmentation.SizeSchedule(64, 128, total_steps=3).stages() == [(64, 1), (96, 2), (128, 3)]
    assert augmentation.SizeSchedule(64, 128, total_steps=2).stages() == [(96, 1), (128, 2)]
    one_step = augmentation.SizeSchedule(64, 128, total_steps=1)
    assert one_step.stages() == [(128, 1)] and str(one_step) == "then 128"
    assert int(one_step.size_at(tf.constant(0, tf.int64))) == 128
    assert augmentation.SizeSchedule(32, 224, total_steps=50).stages()[-2:] == [(192, 49), (224, 50)]


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_images_get_the_requested_size(images, kind):
    small = augment(images, kind, size=8)
    assert small.shape == (64, 8, 8, 3) and small.dtype == np.uint8
    np.testing.assert_array_equal(augment(images, kind, size=tf.constant(8)), small)
    if kind == "none":  # The mean of four pixels.
        means = images.reshape(64, 8, 2, 8, 2, 3).mean(axis=(2, 4))
        np.testing.assert_allclose(small, means, atol=0.5)
    # It is the same part of the image, so its mean is nearly that of the image at full size.
    whole = augment(images, kind).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(small.mean(axis=(1, 2, 3)), whole, rtol=0.03)
