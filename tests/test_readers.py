"""Pixels, labels, order and damage of what the readers give."""

import collections
import io
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import DATA, jpeg, write_shards
from PIL import Image

from cats_vs_dogs import decoding, readers, tfrecords

READER = readers.CatsVsDogsFeatureReader(image_size=4)  # Its graph is built once.


def golden_records():
    return list(tf.data.TFRecordDataset(str(DATA / "golden" / "reader_examples.tfrecord")).as_numpy_iterator())


def ids_of(dataset):
    return [[one.decode() for one in batch[0].numpy()] for batch in dataset]


def files_of(pattern):
    return sorted(tf.io.gfile.glob(pattern))


@pytest.mark.parametrize("in_graph", [False, True])
def test_legacy_pixels_are_those_of_2017_bit_for_bit(golden, in_graph):
    reader = readers.CatsVsDogsFeatureReader(resize_method="legacy_bilinear")
    prepare = tf.function(reader.prepare_serialized_examples) if in_graph else reader.prepare_serialized_examples
    ids, images, labels = prepare(tf.constant(golden_records()))
    np.testing.assert_array_equal(ids, golden["reader_ids"])
    np.testing.assert_array_equal(images, golden["reader_images"])
    np.testing.assert_array_equal(labels, golden["reader_labels"])
    assert (images.dtype, labels.dtype) == (tf.float32, tf.int32)


def test_area_averages_what_a_pixel_covers():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    image = decoding.decode_and_resize(tf.constant(buffer.getvalue()), 2, "area").numpy()
    expected = pixels.reshape(2, 2, 2, 3, 3).astype(np.float64).mean(axis=(1, 3))
    np.testing.assert_allclose(image, expected, atol=0.51)
    assert image.dtype == np.uint8


@pytest.mark.parametrize(("height", "width"), [(500, 375), (64, 64), (100, 900), (20, 30), (1, 1)])
def test_scaled_decoding_gives_nearly_the_average_of_the_full_picture(height, width):
    smooth = np.add.outer(np.linspace(0, 200, height), np.linspace(0, 55, width))
    buffer = io.BytesIO()
    Image.fromarray(np.stack([smooth] * 3, axis=-1).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    encoded = tf.constant(buffer.getvalue())
    image = decoding.decode_and_resize(encoded, 32, "area").numpy().astype(float)
    full = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
    full = tf.image.resize(full, [32, 32], method="area").numpy()
    assert image.shape == (32, 32, 3)
    # Smooth pictures leave rounding, and at edges the blocks that a side of 375 or 500 does not fill.
    assert np.abs(image - full).mean() < 0.6
    assert np.abs(image - full).max() < 3


def test_scaling_to_the_range_of_models():
    scaled = readers.scale_images(tf.constant([0, 51, 255], tf.uint8))
    np.testing.assert_allclose(scaled, [-1, -0.6, 1], atol=1e-6)
    floats = tf.constant([0.3])
    assert readers.scale_images(floats) is floats


def test_scaling_in_the_pipeline_gives_the_same_to_the_bit():
    every_value = tf.reshape(tf.cast(tf.range(768) // 3, tf.uint8), [1, 16, 16, 3])
    batches = tf.data.Dataset.from_tensors(([b"id"], every_value, [[1]]))
    (_, images, labels), *_ = readers.scale_batches(batches)
    np.testing.assert_array_equal(images, readers.scale_images(every_value))
    assert labels.numpy().tolist() == [[1]]
    (_, unchanged), *_ = readers.scale_batches(tf.data.Dataset.from_tensors(([b"id"], images)))
    np.testing.assert_array_equal(unchanged, images)


def test_unlabelled_reader_gives_ids_and_images():
    reader = readers.CatsVsDogsTestFeatureReader(image_size=16)
    record = tfrecords.make_example(jpeg(), "7.jpg", None)
    ids, images = reader.prepare_serialized_examples(tf.constant([record]))
    assert (ids[0], images.shape, images.dtype) == (b"7.jpg", (1, 16, 16, 3), tf.float32)
    assert -1 <= float(tf.reduce_min(images)) < float(tf.reduce_max(images)) <= 1


def test_dataset_in_order(tmp_path):
    shards = shards_of(write_shards(tmp_path, num_examples=23, num_shards=3))
    dataset = readers.make_dataset(readers.CatsVsDogsFeatureReader(), shards, batch_size=10)
    batches = list(dataset)
    assert [len(batch[0]) for batch in batches] == [10, 10, 3]
    assert batches[0][1].dtype == tf.uint8
    numbers = [int(one.split(".")[1]) for batch in ids_of(dataset) for one in batch]
    assert numbers == [*range(0, 23, 3), *range(1, 23, 3), *range(2, 23, 3)]
    labels = np.concatenate([batch[2].numpy() for batch in batches])[:, 0]
    assert list(labels) == [number % 2 for number in numbers]


def shards_of(pattern):
    return readers.Shards({path: tfrecords.scan(path).count for path in files_of(pattern)})


def training_ids(shards, **kwargs):
    arguments = {"batch_size": 8, "seed": 5, "num_epochs": 3, "num_readers": 2, **kwargs}
    return ids_of(readers.make_training_dataset(READER, shards, readers.Order(**arguments)))


def test_training_sees_every_example_once_an_epoch_in_an_order_of_seed_and_epoch(tmp_path):
    shards = shards_of(write_shards(tmp_path, num_examples=21, num_shards=3))
    batches = training_ids(shards)
    assert [len(batch) for batch in batches] == [8, 8, 5] * 3
    epochs = [sum(batches[i : i + 3], []) for i in (0, 3, 6)]
    assert len(set(epochs[0])) == 21
    assert all(collections.Counter(epoch) == collections.Counter(epochs[0]) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    tf.random.set_seed(1234)  # The process's seed has no part in it.
    assert training_ids(shards) == batches
    assert training_ids(shards, seed=6) != batches
    assert training_ids(shards, seed=0) != batches


def test_training_goes_on_at_any_step(tmp_path):
    shards = shards_of(write_shards(tmp_path, num_examples=21, num_shards=3))
    whole = training_ids(shards)
    for start_step in (1, 2, 3, 4, 8, 9):
        assert training_ids(shards, start_step=start_step) == whole[start_step:], start_step


def test_skipped_examples_are_not_decoded(tmp_path):
    # The broken example is the first of all; whoever decodes it fails.
    shards = shards_of(write_shards(tmp_path, num_examples=2, num_shards=1, bad=(0, 1)))
    with pytest.raises(tf.errors.InvalidArgumentError):
        training_ids(shards, batch_size=1, num_epochs=1)
    assert training_ids(shards, batch_size=1, num_epochs=1, start_step=2) == []


@pytest.mark.parametrize("start_step", [0, 4])
def test_decoded_examples_come_in_the_same_order(tmp_path, start_step):
    shards = shards_of(write_shards(tmp_path, num_examples=21, num_shards=3))
    decoded = readers.decode_all(READER, shards)
    assert [column.shape[0] for column in decoded] == [21, 21, 21]
    assert sum(column.shape.num_elements() * column.dtype.size for column in decoded[1:]) == readers.decoded_bytes(
        READER, shards
    )
    order = readers.Order(batch_size=8, seed=5, num_epochs=3, num_readers=2, start_step=start_step)
    streamed = list(readers.make_training_dataset(READER, shards, order))
    from_memory = list(readers.make_training_dataset(READER, shards, order, decoded))
    assert len(streamed) == len(from_memory) == 9 - start_step
    for one, other in zip(streamed, from_memory, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("num_workers", "per_worker"), [(1, 2), (3, 1), (2, 2)])
def test_batches_are_split_over_replicas(tmp_path, num_workers, per_worker):
    shards = shards_of(write_shards(tmp_path, num_examples=17, num_shards=2))
    decoded = readers.decode_all(READER, shards)
    order = readers.Order(batch_size=8, seed=5, num_epochs=2, start_step=1)
    whole = list(readers.make_training_dataset(READER, shards, order))
    assert [len(batch[0]) for batch in whole] == [8, 1, 8, 8, 1]
    assert [float(batch[-1]) for batch in whole] == [1.0] * 5
    for source in (None, decoded):
        parts = [[] for _ in whole]
        for worker in range(num_workers):
            replicas = range(worker * per_worker, (worker + 1) * per_worker)
            num_replicas = num_workers * per_worker
            of_worker = list(readers.make_training_dataset(READER, shards, order, source, num_replicas, replicas))
            assert len(of_worker) == len(whole) * per_worker
            for i, part in enumerate(of_worker):
                parts[i // per_worker].append(part)
        for batch, of_batch in zip(whole, parts, strict=True):
            counted = [part for part in of_batch if float(part[-1]) > 0]
            for column in range(3):
                joined = np.concatenate([part[column] for part in counted])
                np.testing.assert_array_equal(joined, batch[column])
            weights = [len(part[0]) / len(batch[0]) for part in counted]
            np.testing.assert_allclose([float(part[-1]) for part in counted], weights, rtol=1e-6)
            # A replica without an example of its own gets another one's, since no layer accepts an empty batch.
            assert all(len(part[0]) == 1 for part in of_batch if float(part[-1]) == 0)


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_images_are_changed_by_step_and_row(tmp_path, num_replicas):
    shards = shards_of(write_shards(tmp_path, num_examples=5, num_shards=1))

    def change(images, step, rows):
        assert (images.dtype, step.dtype, rows.dtype) == (tf.uint8, tf.int64, tf.int64)
        return tf.stack([tf.fill(tf.shape(rows), step), rows], axis=1)

    order = readers.Order(batch_size=4, seed=5, num_epochs=2, start_step=1)
    parts = readers.make_training_dataset(READER, shards, order, None, num_replicas, range(num_replicas), change)
    changed = [part[1].numpy().tolist() for part in parts if float(part[-1]) > 0]
    assert sum(changed, []) == [[1, 0], [2, 0], [2, 1], [2, 2], [2, 3], [3, 0]]


@pytest.mark.slow
def test_decoded_images_are_in_memory_once(tmp_path):
    shards = shards_of(write_shards(tmp_path, num_examples=2000, num_shards=1))
    code = f"""if True:
        import resource
        import tensorflow as tf
        from cats_vs_dogs import readers

        def peak():
            return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        reader = readers.CatsVsDogsFeatureReader(image_size=128)
        shards = readers.Shards({shards.records})
        for _ in zip(range(9), readers.make_dataset(reader, shards, 64)):  # The memory of a pass without a copy.
            pass
        before = peak()
        decoded = readers.decode_all(reader, shards)
        order = readers.Order(4, seed=0, num_epochs=1)
        batches = iter(readers.scale_batches(readers.make_training_dataset(reader, shards, order, decoded)))
        next(batches)
        print((peak() - before) / readers.decoded_bytes(reader, shards))
        assert all("CPU" in column.device for column in decoded)
    """
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert float(output) < 1.4


def counting(batches, seconds=0.0):
    """Passes on batches, and notes how many calls there were, and how many at once."""
    lock, seen = threading.Lock(), {"now": 0, "at once": 0, "all": 0}

    def count(images):
        with lock:
            seen["now"] += 1
            seen["all"] += 1
            seen["at once"] = max(seen["at once"], seen["now"])
        time.sleep(seconds)
        with lock:
            seen["now"] -= 1
        return images

    def counted(images):
        return tf.ensure_shape(tf.numpy_function(count, [images], images.dtype), images.shape)

    return counted, seen


@pytest.mark.parametrize(("limit", "at_once"), [(10**9, min(4, len(os.sched_getaffinity(0)))), (5 * 48, 1), (1, 1)])
def test_large_batches_are_decoded_one_at_a_time(monkeypatch, limit, at_once):
    monkeypatch.setattr(readers, "_BYTES_AHEAD", limit)
    batches = tf.data.Dataset.from_tensor_slices(np.zeros((16, 4, 4, 3), np.uint8)).batch(4)
    counted, seen = counting(batches, seconds=0.3)
    assert len(list(readers.map_batches(batches, counted, batch_size=4))) == 4
    assert seen["all"] == 4 and min(seen["at once"], 4) == at_once


def test_floats_are_made_one_batch_ahead():
    images = np.zeros((16, 4, 4, 3), np.uint8)
    counted, seen = counting(images)
    batches = tf.data.Dataset.from_tensor_slices(images).batch(1).map(lambda images: (b"", counted(images)))
    iterator = iter(readers.scale_batches(batches))
    next(iterator)
    time.sleep(0.3)
    assert seen["all"] <= 2


def test_a_subclass_with_its_own_preparation_is_used(tmp_path):
    class GrayReader(readers.CatsVsDogsFeatureReader):
        def prepare_serialized_examples(self, serialized_examples):
            ids, images, labels = super().prepare_serialized_examples(serialized_examples)
            return ids, tf.repeat(tf.reduce_mean(images, axis=-1, keepdims=True), 3, axis=-1), labels

    shards = shards_of(write_shards(tmp_path))
    (_, images, _), *_ = readers.make_dataset(GrayReader(), shards, batch_size=4)
    assert images.dtype == tf.float32
    np.testing.assert_array_equal(images[..., 0], images[..., 1])


def test_a_reader_from_scratch(tmp_path):
    class MeanReader(readers.BaseReader):
        def prepare_serialized_examples(self, serialized_examples):
            return (tf.strings.as_string(tf.strings.length(serialized_examples)),)

    shards = shards_of(write_shards(tmp_path, num_examples=6))
    assert len(list(readers.make_dataset(MeanReader(), shards, batch_size=4))) == 2
