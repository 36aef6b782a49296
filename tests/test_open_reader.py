"""A reader of a contestant's own reads the same pictures in training, evaluation, inference and export."""

import csv
import json
import types

import numpy as np
import pytest
import tensorflow as tf
from conftest import DATA, make_config, write_shards

from cats_vs_dogs import bad_examples, distribution, eval, inference, open_reader, readers, train
from cats_vs_dogs.utils import UserError


class CropReader(readers.CatsVsDogsFeatureReader):
    """Returns the middle of a larger picture, in the manner of 2017."""

    def prepare_serialized_examples(self, serialized_examples, width=32, height=32, channels=3):
        ids, images, labels = super().prepare_serialized_examples(serialized_examples, width + 8, height + 8, channels)
        return ids, tf.image.central_crop(images, width / (width + 8)), labels


class UnlabelledCropReader(CropReader):
    """The second class that 2017 needed; it reads no label."""

    def prepare_serialized_examples(self, serialized_examples, width=32, height=32, channels=3):
        reader = readers.CatsVsDogsTestFeatureReader()
        ids, images = reader.prepare_serialized_examples(serialized_examples, width + 8, height + 8, channels)
        return ids, tf.image.central_crop(images, width / (width + 8))


class BareReader(readers.BaseReader):
    """Subclasses nothing of the kit but the base class; one value differs from the kit's."""

    dtype, size, seed = tf.float32, 16, None

    def prepare_serialized_examples(self, serialized_examples):
        features = {
            "image/encoded": tf.io.FixedLenFeature([], tf.string),
            "image/filename": tf.io.FixedLenFeature([], tf.string),
            "image/class/label": tf.io.FixedLenFeature([], tf.int64),
        }
        parsed = tf.io.parse_example(serialized_examples, features)
        images = tf.map_fn(
            lambda one: tf.image.resize(tf.io.decode_jpeg(one, channels=3), [self.size, self.size]) / 128 - 1,
            parsed["image/encoded"],
            fn_output_signature=tf.TensorSpec([self.size, self.size, 3], tf.float32),
        )
        if self.seed:
            images += tf.random.uniform(tf.shape(images))
        labels = tf.cast(parsed["image/class/label"][:, tf.newaxis], tf.int32)
        return parsed["image/filename"], tf.cast(images, self.dtype), labels


class MirroringReader(readers.CatsVsDogsFeatureReader):
    """Overrides the method that keeps uint8, and the decoding in it."""

    def decode_serialized_examples(self, serialized_examples):
        ids, images, labels = super().decode_serialized_examples(serialized_examples)
        return ids, 255 - images, labels

    def decode_images(self, encoded):
        return super().decode_images(encoded)[:, ::-1]


def use(monkeypatch, labelled, unlabelled=None):
    def get_reader(is_labelled, image_size, resize_method):
        reader_class = labelled if is_labelled else unlabelled or labelled
        is_kit = issubclass(reader_class, readers.CatsVsDogsTestFeatureReader)
        return reader_class(image_size=image_size, resize_method=resize_method) if is_kit else reader_class()

    monkeypatch.setattr(readers, "get_reader", get_reader)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labelled", "unlabelled"),
    [
        (CropReader, UnlabelledCropReader),
        (MirroringReader, None),
    ],
)
def test_one_reader_serves_all(tmp_path, monkeypatch, labelled, unlabelled):
    use(monkeypatch, labelled, unlabelled)
    train_pattern = write_shards(tmp_path / "train", num_examples=16, num_shards=1)
    eval_pattern = write_shards(tmp_path / "data", "validation", num_examples=6, num_shards=1, first=16)
    write_shards(tmp_path / "data", "test", 6, 1, labelled=False, first=16)
    folder = str(tmp_path / "model")
    data = {"train_data_pattern": train_pattern, "eval_data_pattern": eval_pattern, "train_dir": folder}
    train.train(make_config(**data, image_size=16, batch_size=8, num_epochs=1), distribution.local_devices())
    row = [json.loads(line) for line in (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()][-1]

    common = {
        "train_dir": folder,
        "batch_size": 4,
        "bad_examples": "fail",
        "flip_average": False,
        "crop_average": False,
    }
    others = {"model": None, "label_loss": None, "eval_data_pattern": eval_pattern, "run_once": True}
    flags = types.SimpleNamespace(**common, **others, mistakes_file="", report=False)
    monkeypatch.setattr(eval, "FLAGS", flags)
    eval.main()
    path = tmp_path / "model" / "eval" / f"metrics-{row['step']}.json"
    assert json.loads(path.read_text())["avg_loss"] == pytest.approx(row["avg_loss"], abs=1e-6)

    exported = tf.saved_model.load(f"{folder}/export/step_{row['step']}").signatures["serving_default"]
    log_loss, output = row["log_loss"], tmp_path / "out.csv"
    pattern = str(tmp_path / "data" / "*")  # With labels and without.
    others = {"input_data_pattern": pattern, "output_file": str(output), "submission": "2017"}
    flags = types.SimpleNamespace(**common, **others, output_column="probability")
    monkeypatch.setattr(inference, "FLAGS", flags)
    inference.main()
    rows = list(csv.DictReader(output.open()))
    predictions = exported(example_bytes=tf.constant(list_of(pattern)))
    assert [row["Id"].encode() for row in rows] == predictions["image_id"].numpy().tolist()
    probabilities = np.array([float(row["Probability"]) for row in rows])
    np.testing.assert_allclose(probabilities, predictions["predictions"][:, 1], atol=1e-6)
    of_class = [row["Id"].split(".")[0] for row in rows]
    of_label = [
        p if one == "dog" else 1 - p for one, p in zip(of_class, probabilities, strict=True) if one in ("cat", "dog")
    ]
    assert -np.mean(np.log(of_label)) == pytest.approx(log_loss, abs=1e-5)  # As in the evaluation.


def list_of(pattern):
    return list(tf.data.TFRecordDataset(sorted(tf.io.gfile.glob(pattern))).as_numpy_iterator())


def variant(**values):
    return type("BareReader", (BareReader,), values)


def returning(*parts):
    return variant(prepare_serialized_examples=lambda self, records: parts)


def failing(self, serialized_examples):
    return tf.io.parse_example(serialized_examples, {"x": tf.io.FixedLenFeature([], tf.string)})["y"]


IDS, IMAGES, LABELS = tf.constant([b"a"]), tf.zeros([1, 16, 16, 3]), tf.zeros([1, 1], tf.int32)
KIT = (readers.CatsVsDogsFeatureReader, readers.CatsVsDogsTestFeatureReader)
WRONG = {
    "only one kind": (
        CropReader,
        KIT[1],
        "returns CropReader for labelled .* and CatsVsDogsTest.*; return CropReader for",
    ),
    "only the other": (KIT[0], BareReader, "returns CatsVsDogsFeatureReader for .*; return BareReader for both"),
    "other pixels": (
        CropReader,
        MirroringReader,
        "and MirroringReader for .* different images of the same record; return CropReader",
    ),
    "random": (
        variant(seed=1),
        None,
        "BareReader for .* different images of the same record; .* random changes to --augment",
    ),
    "size": (variant(size=20), None, r"as float32 \[batch, 16, 16, 3\], not float32 \(None, 20, 20, 3\); --image_size"),
    "dtype": (variant(dtype=tf.float64), None, "must return images as float32 .*, not float64"),
    "no labels": (returning(IDS, IMAGES), None, "must return a tuple of ids, images and labels"),
    "flat labels": (
        returning(IDS, IMAGES, LABELS[0]),
        None,
        r"must return labels as int32 \[batch, 1\], not int32 \(1,\)",
    ),
    "long labels": (
        returning(IDS, IMAGES, tf.cast(LABELS, tf.int64)),
        None,
        "must return labels as int32 .*, not int64",
    ),
    "nothing": (variant(prepare_serialized_examples=lambda self, records: None), None, "must return a tuple"),
    "abstract": (type("EmptyReader", (readers.BaseReader,), {}), None, "EmptyReader.prepare_.* failed: NotImplemented"),
    "error": (variant(prepare_serialized_examples=failing), None, r"failed: KeyError: 'y' \(test_open_reader.py line"),
}


@pytest.mark.parametrize("case", WRONG)
def test_readers_that_do_not_fit(tmp_path, monkeypatch, case):
    labelled, unlabelled, message = WRONG[case]
    pattern = write_shards(tmp_path / "data", num_examples=4, num_shards=1)
    use(monkeypatch, labelled, unlabelled)
    settings = make_config(train_data_pattern=pattern, train_dir=str(tmp_path / "model"), image_size=16, num_epochs=1)
    with pytest.raises(UserError, match=message) as error:
        train.train(settings, distribution.local_devices())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("get_reader", "message"),
    [
        (lambda is_labelled, size, method: None, "^get_reader in readers.py must return a BaseReader, not NoneType$"),
        (lambda is_labelled, size, method: BareReader, "must return a BaseReader, not type$"),
        (lambda is_labelled, size, method: BareReader(image_size=size), "^get_reader failed: TypeError: .*image_size"),
        (lambda: BareReader(), "^get_reader failed: TypeError: .* takes 0 positional arguments"),
    ],
)
def test_what_get_reader_must_return(monkeypatch, get_reader, message):
    monkeypatch.setattr(readers, "get_reader", get_reader)
    with pytest.raises(UserError, match=message):
        open_reader.open_reader(False, 16, "area")


def test_pixels_that_are_not_scaled_are_warned_of(tmp_path, monkeypatch, caplog):
    def prepare(self, records):
        ids, images, labels = BareReader.prepare_serialized_examples(self, records)
        return ids, images * 100, labels

    use(monkeypatch, variant(prepare_serialized_examples=prepare))
    pattern = write_shards(tmp_path, num_examples=4, num_shards=1)
    shards = bad_examples.open_shards(pattern, "x", open_reader.open_reader(True, 16, "area"), "fail")
    open_reader.check(shards, 16, "area")
    assert "BareReader returns pixels as large as " in caplog.text


def test_the_kits_readers_fit(tmp_path):
    pattern = write_shards(tmp_path, num_examples=4, num_shards=1)
    for method in ("area", "legacy_bilinear"):
        reader = open_reader.open_reader(True, 8, method)
        open_reader.check(bad_examples.open_shards(pattern, "train_data_pattern", reader, "fail"), 8, method)


def test_the_arguments_of_2017():
    records = tf.constant(list_of(str(DATA / "golden" / "reader_examples.tfrecord"))[:2])
    reader = readers.CatsVsDogsFeatureReader()
    assert reader.prepare_serialized_examples(records)[1].shape == [2, 32, 32, 3]
    assert reader.prepare_serialized_examples(records, width=20, height=20)[1].shape == [2, 20, 20, 3]
    assert reader.prepare_serialized_examples(records, 20)[1].shape == [2, 20, 20, 3]
    for wrong in ({"width": 20, "height": 24}, {"channels": 1}):
        with pytest.raises(ValueError, match="images are squares with 3 channels"):
            reader.prepare_serialized_examples(records, **wrong)
