"""Batch prediction with Beam: the rows of inference.py, listed errors, Beam's own flags, errors in one line."""

import csv
import gzip
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import jpeg, write_shards

from cats_vs_dogs import (
    batch_pipeline,
    batch_predict,
    checkpoints,
    convert_prediction_from_json_to_csv,
    inference,
    labels,
    tfrecords,
)
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.config import ModelSpec
from cats_vs_dogs.export_model import ModelExporter
from cats_vs_dogs.utils import UserError

ERRORS = "prediction.errors_stats-00000-of-00001"


@pytest.fixture(scope="module")
def train_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    classifier = Classifier(ModelSpec("LogisticModel", {}, "CrossEntropyLoss", {}, 4, "area"))
    checkpoints.save_best(classifier, str(folder), 1, {})
    ModelExporter(classifier).export_model(str(folder / "export"))
    return folder


@pytest.fixture
def infer(train_dir, tmp_path, monkeypatch):
    """Returns a function that returns what inference.py writes."""

    def run(pattern, bad_examples="fail"):
        output = tmp_path / "inference.csv"
        names = {"train_dir": str(train_dir), "output_file": str(output), "input_data_pattern": pattern}
        others = {"output_column": "probability", "batch_size": 1024, "bad_examples": bad_examples}
        others.update(flip_average=False, crop_average=False, submission="2017")
        monkeypatch.setattr(inference, "FLAGS", types.SimpleNamespace(**names, **others))
        inference.main()
        return output.read_text()

    return run


@pytest.fixture
def predict(train_dir, tmp_path, monkeypatch):
    """Returns a function that predicts in this process, and returns the CSV of the results and the rows of errors."""

    def run(pattern):
        output = tmp_path / "results"
        names = {"model_dir": str(train_dir / "export"), "input_data_pattern": pattern, "output_path": str(output)}
        monkeypatch.setattr(batch_predict, "FLAGS", types.SimpleNamespace(**names, batch_size=3))
        batch_predict.main([])
        return csv_of(output), rows_of(output / ERRORS)

    return run


def csv_of(folder):
    path = folder.parent / "converted.csv"
    convert_prediction_from_json_to_csv.convert(str(folder / "prediction.results-*"), str(path), "probability")
    return path.read_text()


def assert_same_rows(csv_text, expected):
    """Compares two CSVs: the same ids in the same order, and probabilities that are equal up to rounding.

    Batches of other sizes may be computed in another order, which changes the last bits. Equal numbers
    are the same text.
    """
    (header, *rows), (expected_header, *expected_rows) = (
        list(csv.reader(text.splitlines())) for text in (csv_text, expected)
    )
    assert header == expected_header == ["Id", "Probability"]
    assert [row[0] for row in rows] == [row[0] for row in expected_rows]
    probabilities, expected_probabilities = (
        np.array([float(row[1]) for row in table]) for table in (rows, expected_rows)
    )
    np.testing.assert_allclose(probabilities, expected_probabilities, rtol=0, atol=2e-6)
    for (_, text), (_, expected_text) in zip(rows, expected_rows, strict=True):
        assert (text == expected_text) == (np.float32(text) == np.float32(expected_text))
    # A probability at one half may round to either side; none of these is.
    assert np.all(np.abs(expected_probabilities - 0.5) > 4e-6)
    np.testing.assert_array_equal(labels.is_dog(probabilities), labels.is_dog(expected_probabilities))


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_are_those_of_inference(infer, predict, tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    many = write_shards(tmp_path / "many", "test", num_examples=20, num_shards=5, labelled=False)
    csv_text, errors = predict(many)
    assert errors == []
    assert_same_rows(csv_text, infer(many))
    few = write_shards(tmp_path / "few", "test", num_examples=43, num_shards=2)
    csv_text, errors = predict(few)
    assert errors == []
    assert_same_rows(csv_text, infer(few))
    # The files of the first job are removed, and so are temporary ones.
    results = [f"prediction.results-0000{number}-of-00002" for number in range(2)]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == [ERRORS, *results]
    line = json.loads((tmp_path / "results" / results[1]).read_text().splitlines()[20])
    assert list(line) == ["prediction"] and line["prediction"]["image_id"] == "dog.41.jpg"
    assert "WARNING" not in {record.levelname for record in caplog.records}


def test_bad_records_and_damaged_shards(infer, predict, tmp_path, caplog):
    pattern = write_shards(tmp_path / "in", "test", num_examples=90, num_shards=3, labelled=False, bad=(0, 3))
    first, torn, flipped = (tmp_path / "in" / f"test-0000{number}-of-00003" for number in range(3))
    records = [record for _, record in tfrecords.walk(str(first), with_bytes=True)]
    without_image = tf.train.Example()
    without_image.features.feature[tfrecords.FILENAME].bytes_list.value.append(b"no image")
    records[12:12] = [b"no example", without_image.SerializeToString(), tfrecords.make_example(jpeg(), "", None)]
    tfrecords.write_shard(str(first), records)
    torn.write_bytes(torn.read_bytes()[:-1])
    content = bytearray(flipped.read_bytes())
    content[list(tfrecords.walk(str(flipped)))[10][0] + 100] ^= 1
    flipped.write_bytes(content)
    zipped, empty = tmp_path / "in" / "test-zipped", tmp_path / "in" / "test-empty"
    zipped.write_bytes(gzip.compress(b"shard"))
    empty.write_bytes(b"")

    csv_text, errors = predict(pattern)
    # Later parts of the shard with the flipped bit can be read, but inference.py does not reach them.
    assert_same_rows(csv_text, infer(pattern, "skip"))
    assert csv_text.count("\n") == 1 + 28 + 29 + 10

    def error(path, reason, *bad):
        records = [{"record": record, "image_id": image_id} for record, image_id in bad]
        return {"file": str(path), "error": reason, "count": len(bad), "records": records}

    again = "make or download the shard again"
    assert errors == [
        error(first, "its picture cannot be decoded", (0, "0.jpg"), (1, "3.jpg")),
        error(first, "it is not a tf.train.Example", (12, "")),
        error(first, "it has no image/encoded", (13, "no image")),
        error(first, "it has no id (image/filename is missing or empty)", (14, "")),
        error(torn, f"breaks off within record 29; {again}", (29, "")),
        error(flipped, f"is damaged from record 10 on (checksum); {again}", (10, "")),
        error(empty, "the file is empty; make it again, or leave it out of the pattern", (0, "")),
        error(zipped, "is not a TFRecord file but compressed by gzip; unpack it first", (0, "")),
    ]
    assert "9 records or shards could not be read (2: its picture cannot be decoded; 1: it is not" in caplog.text


def test_few_shards_are_divided_and_read_in_parts(tmp_path):
    pattern = write_shards(tmp_path, num_examples=50, num_shards=1)
    (path,) = map(str, Path(pattern).parent.glob(Path(pattern).name))
    parts = list(batch_pipeline.divide((0, path), num_parts=64, batch_size=8))
    assert [part.first for part in parts] == [0, 8, 16, 24, 32, 40, 48]
    assert [part.count for part in parts] == [8, 8, 8, 8, 8, 8, None]
    starts = [next(tfrecords.walk(path, part.position, part.first, with_bytes=True)) for part in parts]
    records = list(tfrecords.walk(path, with_bytes=True))
    assert starts == records[::8][: len(parts)]
    assert len(list(batch_pipeline.divide((0, path), num_parts=3, batch_size=8))) == 3
    assert list(batch_pipeline.divide((7, "not opened"), num_parts=1, batch_size=8)) == [
        batch_pipeline.Part(7, "not opened")
    ]


def test_predictions_that_are_not_probabilities(train_dir, tmp_path, predict, monkeypatch):
    outputs = {
        "image_id": tf.constant(["a", "b"]),
        "class_indexes": tf.constant([[0, 1]] * 2),
        "predictions": tf.constant([[float("nan")] * 2, [0.25, 0.75]]),
    }
    model, loads = tf.Module(), []
    model.signatures = {"serving_default": lambda example_bytes: outputs}

    def load_model(handler):
        loads.append(handler)
        return model

    monkeypatch.setattr(batch_pipeline.SavedModelHandler, "load_model", load_model)
    csv_text, errors = predict(write_shards(tmp_path / "in", num_examples=2, num_shards=1))
    assert csv_text == "Id,Probability\nb,0.75\n"
    assert errors[0]["error"] == "the model's prediction is not a probability"
    assert errors[0]["records"] == [{"record": 0, "image_id": "a"}]
    assert len(loads) == 1


def test_publishing_again_after_a_failure(tmp_path):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shards = [(number, str(unfinished / str(number)), []) for number in (1, 0)]
    (unfinished / "0").write_text("0")
    (unfinished / "1").write_text("1")
    older = tmp_path / "prediction.results-00000-of-00001"
    older.write_text("older")
    # As if a first call had been stopped after it moved one of two files.
    (unfinished / "0").rename(tmp_path / "prediction.results-00000-of-00002")
    for _ in range(2):
        batch_pipeline.publish((None, shards), str(tmp_path), str(unfinished))
        results = sorted(tmp_path.glob("prediction.results-*"))
        assert [path.read_text() for path in results] == ["0", "1"]
        assert not unfinished.exists() and not older.exists()


@pytest.mark.slow
def test_two_worker_processes(run_script, infer, train_dir, tmp_path):
    pattern = write_shards(tmp_path / "in", "test", num_examples=40, num_shards=2, labelled=False, bad=(7,))
    flags = [f"--model_dir={train_dir}/export", f"--input_data_pattern={pattern}", f"--output_path={tmp_path}/results"]
    # Worker processes log their start only at this level: the line shows that Beam has got both flags.
    beam = ["--direct_running_mode=multi_processing", "--direct_num_workers", "2"]
    process = run_script("batch_predict", *beam, "--default_sdk_harness_log_level=INFO", *flags, "--batch_size=4")
    assert process.stderr.count("Python sdk harness starting") == 2
    assert_same_rows(csv_of(tmp_path / "results"), infer(pattern, "skip"))
    warning = "WARNING: 1 records or shards could not be read (1: its picture cannot be decoded)"
    assert process.stderr.splitlines()[-1] == f"{warning}; {tmp_path}/results/{ERRORS} lists them"


def test_a_misspelt_flag_is_one_line(fails_in_one_line):
    flags = ("--runner", "DirectRunner", "--model_dir=x", "--input_data_pattern=x", "--output_path=x")
    message = fails_in_one_line("batch_predict", *flags, "--output_paht=x")
    assert message.startswith("error: --output_paht=x: no flag of this script or of Beam; did you mean --output_path?")


def test_errors_before_beam_starts(predict, train_dir, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="^--input_data_pattern=.*/none-\\*: matches no file"):
        predict(str(tmp_path / "none-*"))
    assert not (tmp_path / "results").exists()
    for flags, message in {
        ("--direct_num_workers=two",): "--direct_num_workers: invalid int value: 'two'",
        ("stray",): "stray: no flag of this script or of Beam; write --name=value",
    }.items():
        with pytest.raises(UserError, match=message):
            batch_predict.parse_beam_flags(flags, [])
    options = batch_predict.parse_beam_flags(["--runner=FlinkRunner", "--of_the_cluster=1"], [])
    assert options.get_all_options(retain_unknown_options=True)["of_the_cluster"] == "1"
    with pytest.raises(UserError, match="^Beam cannot run this: Unexpected pipeline runner: Nothing"):
        options = batch_predict.parse_beam_flags(["--runner=Nothing"], [])
        batch_pipeline.run(str(train_dir / "export"), ["x"], str(tmp_path), 1, options)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[beam\]'"):
        predict(str(tmp_path / "*"))


def test_pictures_instead_of_shards_are_one_line(predict, tmp_path):
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UserError, match=f"^{tmp_path}/1.jpg: is not a TFRecord file; make shards of pictures first: "):
        predict(f"{tmp_path}/*.jpg")
    assert not (tmp_path / "results").exists()


def test_a_shard_that_cannot_be_opened_ends_the_job(predict, tmp_path):
    pattern = write_shards(tmp_path / "in", num_examples=4, num_shards=2)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "prediction.results-00000-of-00001").write_text("older")
    for name in ("train-2", "train-0"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "gone")
        with pytest.raises(UserError, match=f"^the job ended without results: .*{name}; No such file"):
            predict(pattern)
    assert [path.read_text() for path in (tmp_path / "results").iterdir()] == ["older"]


def test_folders_without_a_usable_model(train_dir, tmp_path):
    batch_pipeline.check_model(str(train_dir / "export"))
    with pytest.raises(UserError, match=f"^--model_dir={train_dir}: holds no SavedModel"):
        batch_pipeline.check_model(str(train_dir))
    for step in (9, 10):
        (tmp_path / "model [1]" / "export" / f"step_{step}").mkdir(parents=True)
    with pytest.raises(UserError, match=r"; write --model_dir='.*/model \[1\]/export/step_10'$"):
        batch_pipeline.check_model(f"{tmp_path}/model [1]/")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "saved_model.pb").write_bytes(b"\xff" * 9)
    with pytest.raises(UserError, match="holds no SavedModel"):
        batch_pipeline.check_model(str(tmp_path / "damaged"))
    module = tf.Module()
    tf.saved_model.save(module, str(tmp_path / "bare"))
    with pytest.raises(UserError, match="has no signature serving_default"):
        batch_pipeline.check_model(str(tmp_path / "bare"))
    module.f = tf.function(lambda x: {"y": x}, input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    tf.saved_model.save(module, str(tmp_path / "other"), signatures={"serving_default": module.f})
    with pytest.raises(UserError, match="its signature serving_default takes x and returns y, not example_bytes and"):
        batch_pipeline.check_model(str(tmp_path / "other"))
