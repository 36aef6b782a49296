"""Files damaged at random: each is read as it was, or up to where it is whole, or refused in one line."""

import base64
import csv
import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import jpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cats_vs_dogs import bad_examples, checkpoints, readers, tfrecords, utils
from cats_vs_dogs import convert_prediction_from_json_to_csv as converter
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.config import ModelSpec

MORE = int(os.environ.get("MORE_DAMAGE", "1"))  # times as many examples


def damages(max_examples):
    """Calls a test with this number of accidents, the same in every run, so it fails only if the code changes."""

    def decorate(test):
        unchecked = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
        limits = settings(
            max_examples=max_examples * MORE,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=unchecked,
        )
        return limits(given(damage=DAMAGE)(test))

    return decorate


# Where: anywhere, or near the beginning or the end of the file.
PLACES = st.integers(0, 2**20) | st.integers(-40, 40)
DAMAGE = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "cut", "remove", "double", "splice"]), PLACES, st.integers(1, 200), PLACES
    ),
    min_size=1,
    max_size=3,
)


def damaged(data, damage):
    """Returns bytes after some accidents."""
    for kind, place, length, other in damage:
        place, other = (value % (len(data) + 1) for value in (place, other))
        if kind == "flip":
            data = data[:place] + bytes(byte ^ 1 << length % 8 for byte in data[place : place + 1]) + data[place + 1 :]
        elif kind == "set":
            data = data[:place] + bytes([length]) * len(data[place : place + length]) + data[place + length :]
        elif kind == "cut":
            data = data[:place]
        elif kind == "remove":
            data = data[:place] + data[place + length :]
        elif kind == "double":
            data = data[: place + length] + data[place:]
        else:
            data = data[:place] + data[other : other + length] + data[place:]
    return data


def expect_one_line(error):
    assert len(str(error).splitlines()) == 1, str(error)


# ---- Shards.


@pytest.fixture(scope="module")
def reader():
    return readers.CatsVsDogsFeatureReader(image_size=4)  # Builds its graph once.


@pytest.fixture(scope="module")
def records():
    return [tfrecords.make_example(jpeg(8, 8, seed=i), f"{i}.jpg", i % 2) for i in range(8)]


@pytest.fixture(scope="module")
def written(reader, records):
    """What the records are, by id."""
    ids, images, labels = (column.numpy() for column in reader.decode_serialized_examples(tf.constant(records)))
    return {
        image_id: (image.tolist(), label.tolist()) for image_id, image, label in zip(ids, images, labels, strict=True)
    }


def read(pattern, reader, flag):
    """Returns what shards give, as (id, (image, label)); None if that is an error of one line."""
    try:
        shards = bad_examples.open_shards(pattern, "train_data_pattern", reader, flag)
        with bad_examples.explain_read_errors(reader, shards):
            batches = [
                [column.numpy().tolist() for column in batch] for batch in readers.make_dataset(reader, shards, 3)
            ]
    except utils.UserError as error:
        expect_one_line(error)
        return None
    rows = [(image_id, (image, label)) for batch in batches for image_id, image, label in zip(*batch, strict=True)]
    num_bad = sum(path in shards.records for path, *_ in shards.bad_list)
    assert len(rows) == shards.num_examples == sum(shards.records.values()) - num_bad
    assert not (flag == "fail" and shards.bad_list)
    return rows


@pytest.mark.parametrize("flag", ["fail", pytest.param("skip", marks=pytest.mark.slow)])
@damages(15)
def test_shards(tmp_path, reader, records, written, flag, damage):
    whole, broken = str(tmp_path / "train-0"), tmp_path / "train-1"
    tfrecords.write_shard(whole, records[:4])
    tfrecords.write_shard(str(broken), records[4:])
    broken.write_bytes(damaged(broken.read_bytes(), damage))
    rows = read(str(tmp_path / "train-*"), reader, flag)
    if rows is not None:
        assert rows[:4] == list(written.items())[:4]
        assert all(written[image_id] == row for image_id, row in rows)  # Nothing that was not written.


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["fail", "skip"])
@damages(8)
def test_records_of_a_whole_shard(tmp_path, reader, records, written, flag, damage):
    # As if they had been damaged before they were written: the checksums are right.
    tfrecords.write_shard(str(tmp_path / "train-0"), [*records[:4], damaged(records[4], damage), *records[5:]])
    rows = read(str(tmp_path / "train-*"), reader, flag)
    if rows is not None:
        assert rows[:4] == list(written.items())[:4]
        assert rows[-3:] == list(written.items())[-3:]
        assert len(rows) in (7, 8)
    else:
        assert flag == "fail"


# ---- JSON lines of a batch prediction.


def prediction_lines():
    for i in range(9):
        record = base64.b64encode(tfrecords.make_example(b"", f"{i}.jpg", None)).decode()
        prediction = {"image_id": f"{i}.jpg", "class_indexes": [0, 1], "predictions": [1 - i / 8, i / 8]}
        yield [
            prediction,
            {"instance": {"b64": record}, "prediction": prediction},
            {"instance": {"b64": record}, "prediction": [1 - i / 8, i / 8]},
        ][i % 3]


@damages(100)
def test_json_lines(tmp_path, damage):
    lines = [json.dumps(line).encode() + b"\n" for line in prediction_lines()]
    (tmp_path / "prediction.results-0").write_bytes(b"".join(lines[:4]))
    (tmp_path / "prediction.results-1").write_bytes(damaged(b"".join(lines[4:]), damage))
    output = tmp_path / "out.csv"
    output.write_text("older")
    try:
        num_rows = converter.convert(str(tmp_path / "prediction.results-*"), str(output), "probability")
    except utils.UserError as error:
        expect_one_line(error)
        assert output.read_text() == "older"
    else:
        with open(output, newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        assert header == ["Id", "Probability"]
        assert len(rows) == len({image_id for image_id, _ in rows}) == num_rows
        assert all(0 <= float(probability) <= 1 for _, probability in rows)
    assert len(list(tmp_path.iterdir())) == 3


# ---- Checkpoints.


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A checkpoint's folder, its files after two savings, the variables, and the values of each saving."""
    folder = tmp_path_factory.mktemp("model")
    classifier = Classifier(ModelSpec("LogisticModel", {}, "CrossEntropyLoss", {}, 4, "area"))
    optimizer = keras.optimizers.Adam()
    optimizer.build(classifier.model.trainable_variables)
    checkpoint = checkpoints.TrainState(str(folder), classifier, optimizer, keep=5)
    variables = [*classifier.model.weights, *optimizer.variables, checkpoint.progress.step]
    saved = []
    for step in (1, 2):
        for variable in variables:
            variable.assign(np.full_like(variable.numpy(), step))
        checkpoint.save()
        saved.append([variable.numpy().tolist() for variable in variables])
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return folder, files, classifier, checkpoint, variables, saved


@pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001"])
@damages(50)
def test_checkpoints(training, suffix, damage):
    folder, files, classifier, checkpoint, variables, (older, newer) = training
    for name, data in files.items():
        (folder / name).write_bytes(damaged(data, damage) if name == f"model.ckpt-2.{suffix}" else data)

    def restored(restore):
        for variable in variables:
            variable.assign(np.zeros_like(variable.numpy()))
        try:
            restore()
        except utils.UserError as error:
            expect_one_line(error)
            return None
        return [variable.numpy().tolist() for variable in variables]

    assert restored(checkpoint.restore) in (newer, older)  # Never neither: the older one is whole.
    num_weights = len(classifier.model.weights)
    weights = restored(lambda: checkpoints.restore_classifier(classifier, str(folder / "model.ckpt-2")))
    assert weights is None or weights[:num_weights] == newer[:num_weights]
