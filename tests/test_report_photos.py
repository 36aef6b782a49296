"""Which photos the report shows, and that they are those of the records."""

import base64
import io
import os

import numpy as np
import tensorflow as tf
from conftest import jpeg, write_shards
from PIL import Image

from cats_vs_dogs import bad_examples, readers, report_photos, tfrecords


def column(*values):
    return np.array(values, np.float32)[:, np.newaxis]


def test_suspects_are_the_surest_mistakes_of_a_good_model():
    labels = np.tile([[0], [1]], (20, 1))
    probabilities = np.where(labels, 0.9, 0.1).astype(np.float32)
    probabilities[[2, 5, 8]] = column(0.96, 0.01, 0.7)
    assert report_photos.choose(probabilities, labels) | {"least_sure": []} == {
        "suspects": [5, 2],
        "mistakes": [8],
        "least_sure": [],
    }
    probabilities[10:14] = 1 - probabilities[10:14]  # Now it is right for 33 of 40.
    assert report_photos.choose(probabilities, labels)["suspects"] == []


def test_no_photo_is_shown_twice():
    rng = np.random.default_rng(0)
    for count in (1, 5, 30, 200):
        labels = rng.integers(0, 2, (count, 1))
        chosen = report_photos.choose(rng.uniform(size=(count, 1)).astype(np.float32), labels)
        numbers = [number for some in chosen.values() for number in some]
        assert len(numbers) == len(set(numbers)) >= min(count, 12)
        assert all(len(some) <= 12 for some in chosen.values())


def test_records_are_found_by_their_numbers(tmp_path):
    pattern, reader = (
        write_shards(tmp_path, num_examples=24, num_shards=3, bad=(1, 10)),
        readers.get_reader(True, 8, "area"),
    )
    shards = bad_examples.open_shards(pattern, "eval_data_pattern", reader, "skip")
    assert shards.num_examples == 22
    ids = [name for batch, *_ in readers.make_dataset(reader, shards, 5) for name in batch.numpy()]
    numbers = list(range(22))[::-1]
    records = report_photos.read_records(shards, numbers)
    assert list(records) == numbers
    assert [bad_examples.id_of(records[number]).encode() for number in range(22)] == ids
    os.remove(shards.files[1])
    assert 0 < len(report_photos.read_records(shards, numbers)) < 22


def test_pictures_are_the_original_photos_upright_and_small():
    photo = jpeg(600, 900, (200, 30, 30))
    thumbnail = report_photos._thumbnail(tfrecords.make_example(photo, "a.jpg", 1))
    assert thumbnail.size == (240, 160)
    (pictures,) = report_photos._encode({7: thumbnail})
    kind, _, data = pictures[7].partition(",")
    assert kind == "data:image/jpeg;base64"
    pixel = Image.open(io.BytesIO(base64.b64decode(data))).getpixel((120, 80))
    np.testing.assert_allclose(pixel, (200, 30, 30), atol=25)


def test_a_record_without_a_photo_has_no_picture():
    assert report_photos._thumbnail(tf.train.Example().SerializeToString()) is None
    assert report_photos._thumbnail(tfrecords.make_example(b"no picture", "a.jpg", 1)) is None


def test_texts_that_cannot_be_shown():
    assert report_photos.shortened("고양이 <b>.jpg") == "고양이 <b>.jpg"
    assert report_photos.shortened("a\0b\n\udc80\u202e.jpg") == "a�b���.jpg"
    long = report_photos.shortened("x" * 500 + "end.jpg")
    assert len(long) == 120 and long.startswith("…x") and long.endswith("end.jpg")
