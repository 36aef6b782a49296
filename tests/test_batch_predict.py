"""Batch prediction with Beam: the rows of inference.py, listed errors, Beam's own flags, Dask, errors in one line."""

import concurrent.futures
import contextlib
import csv
import gc
import gzip
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import dask.bag
import distributed
import numpy as np
import pytest
import tensorflow as tf
from conftest import REPOSITORY, forked_python, jpeg, write_shards

from cats_vs_dogs import (
    batch_pipeline,
    batch_predict,
    beam_runners,
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

    def run(pattern, *beam_flags):
        output = tmp_path / "results"
        names = {"model_dir": str(train_dir / "export"), "input_data_pattern": pattern, "output_path": str(output)}
        monkeypatch.setattr(batch_predict, "FLAGS", types.SimpleNamespace(**names, batch_size=3))
        batch_predict.main(beam_flags)
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
    parts = list(batch_pipeline.divide(0, path, num_parts=64, batch_size=8))
    assert [part.first for part in parts] == [0, 8, 16, 24, 32, 40, 48]
    assert [part.count for part in parts] == [8, 8, 8, 8, 8, 8, None]
    assert len({part.name for part in parts}) == len(parts)
    starts = [next(tfrecords.walk(path, part.position, part.first, with_bytes=True)) for part in parts]
    records = list(tfrecords.walk(path, with_bytes=True))
    assert starts == records[::8][: len(parts)]
    assert len(list(batch_pipeline.divide(0, path, num_parts=3, batch_size=8))) == 3
    assert list(batch_pipeline.divide(7, "not opened", num_parts=1, batch_size=8)) == [
        batch_pipeline.Part(7, "not opened")
    ]


def test_a_whole_batch_before_damage_and_none(train_dir):
    """A part may end at its damage with a batch that is full, begun or empty."""
    model = batch_pipeline.load_model(str(train_dir / "export"))
    for count in (0, 1, 2, 3):
        data = tfrecords.make_example(jpeg(), "1.jpg", None)
        records = [batch_pipeline.Record(number, data) for number in range(count)]
        damage = batch_pipeline.Outcome(count, error="damaged", is_damage=True)
        outcomes = list(batch_pipeline.predict(model, iter([*records, damage]), batch_size=2))
        assert [outcome.number for outcome in outcomes] == list(range(count + 1))
        assert outcomes[-1] == damage and all(outcome.line for outcome in outcomes[:-1])


def test_predictions_that_are_not_probabilities(train_dir, tmp_path, predict, monkeypatch):
    outputs = {
        "image_id": tf.constant(["a", "b"]),
        "class_indexes": tf.constant([[0, 1]] * 2),
        "predictions": tf.constant([[float("nan")] * 2, [0.25, 0.75]]),
    }
    model, loads = tf.Module(), []
    model.signatures = {"serving_default": lambda example_bytes: outputs}

    def load_model(model_dir):
        loads.append(model_dir)
        return model

    monkeypatch.setattr(batch_pipeline, "load_model", load_model)
    csv_text, errors = predict(write_shards(tmp_path / "in", num_examples=2, num_shards=1))
    assert csv_text == "Id,Probability\nb,0.75\n"
    assert errors[0]["error"] == "the model's prediction is not a probability"
    assert errors[0]["records"] == [{"record": 0, "image_id": "a"}]
    assert len(loads) == 1


def test_a_part_may_be_predicted_twice_but_must_be_once(train_dir, tmp_path):
    pattern = write_shards(tmp_path / "in", num_examples=4, num_shards=1, bad=(1, 3))
    path = pattern.replace("*", "00000-of-00001")
    (tmp_path / "parts").mkdir()
    predict_part = batch_pipeline.PartPredictor(str(train_dir / "export"), 2, str(tmp_path / "parts"))
    first, second = batch_pipeline.divide(0, path, num_parts=2, batch_size=2)
    (tmp_path / "prediction.results-00000-of-00002").write_text("older")
    # As if a worker had been lost while it wrote the part, and another one while it renamed the file.
    (tmp_path / "parts" / "0123").write_text("begun")
    (tmp_path / "parts" / "0-0.errors").write_text("[]")
    for _ in range(2):
        predict_part(first)
        assert {file.name for file in (tmp_path / "parts").iterdir()} == {"0123", "0-0", "0-0.errors"}
    arguments = [first, second], ["shard"], str(tmp_path), str(tmp_path / "parts")
    with pytest.raises(UserError, match=f"those of {path} from record {second.first} on are missing; all workers"):
        batch_pipeline.publish(*arguments)
    assert (tmp_path / "prediction.results-00000-of-00002").read_text() == "older"
    predict_part(second)
    batch_pipeline.publish(*arguments)
    (results,) = tmp_path.glob("prediction.results-*")
    assert [row["prediction"]["image_id"] for row in rows_of(results)] == ["cat.0.jpg", "cat.2.jpg"]
    (row,) = rows_of(tmp_path / ERRORS)
    assert (row["file"], [record["record"] for record in row["records"]]) == ("shard", [1, 3])


def test_other_files_beside_the_results_stay(train_dir, predict, tmp_path):
    pattern = write_shards(tmp_path / "in", num_examples=2, num_shards=1)
    mine, taken = (tmp_path / "results" / f"prediction.results-{name}" for name in ("mine.csv", "00000-of-00001"))
    taken.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match=f"--output_path={tmp_path}/results: cannot be written to: .*00000-of-00001"):
        predict(pattern)
    taken.rmdir()
    with contextlib.suppress(UserError):  # The converter takes the other file for results.
        predict(pattern)
    assert mine.read_text() == "mine" and taken.is_file()
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == [ERRORS, taken.name, mine.name]


@pytest.mark.slow
def test_two_worker_processes(infer, predict, tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.setenv("PYTHONPATH", "")  # The job changes it.
    pattern = write_shards(tmp_path / "in", "test", num_examples=40, num_shards=2, labelled=False, bad=(7,))
    # Worker processes log their start only at this level: the line shows that Beam has got both flags.
    beam = ["--direct_running_mode=multi_processing", "--direct_num_workers", "2"]
    csv_text, errors = predict(pattern, *beam, "--default_sdk_harness_log_level=INFO")
    assert capfd.readouterr().err.count("Python sdk harness starting") == 2
    assert_same_rows(csv_text, infer(pattern, "skip"))
    assert [error["error"] for error in errors] == ["its picture cannot be decoded"]
    warning = "1 records or shards could not be read (1: its picture cannot be decoded)"
    assert f"{warning}; {tmp_path}/results/{ERRORS} lists them" in caplog.messages


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


def test_a_shard_that_cannot_be_opened_ends_the_job(predict, tmp_path, monkeypatch):
    pattern = write_shards(tmp_path / "in", num_examples=4, num_shards=2)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "prediction.results-00000-of-00001").write_text("older")
    for name in ("train-2", "train-0"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "gone")
        with pytest.raises(UserError, match=f"^the job ended without results: .*{name}; No such file"):
            predict(pattern)
    monkeypatch.setattr(batch_pipeline, "_PARTS", 1)  # As if there were so many shards that only workers open them.
    with pytest.raises(UserError, match="train-0: cannot be read: .*; leave it out of the pattern$"):
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


@pytest.fixture
def start_scheduler():
    """Returns a function that starts a scheduler and workers in this process and returns the scheduler's address."""
    with contextlib.ExitStack() as stack:

        def start(num_workers):
            settings = {"processes": False, "protocol": "tcp", "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
            cluster = distributed.LocalCluster(n_workers=num_workers, threads_per_worker=1, **settings)
            return stack.enter_context(cluster).scheduler_address

        yield start


def dask_options(*flags):
    return batch_predict.parse_beam_flags(["--runner=DaskRunner", *flags], [])


def test_dask_by_its_short_name_gets_one_partition_a_part():
    from apache_beam.options.pipeline_options import StandardOptions
    from apache_beam.runners.dask.dask_runner import DaskOptions

    for flags, num_partitions in {(): 7, ("--dask_npartitions=2",): 2, ("--dask_partition_size=2",): None}.items():
        for name in ("DaskRunner", "dask", beam_runners._DASK):
            options = batch_predict.parse_beam_flags([f"--runner={name}", *flags], [])
            options = beam_runners.open_pipeline(options, []).options
            beam_runners.set_partitions(options, 7)
            assert options.view_as(DaskOptions).npartitions == num_partitions
            assert options.view_as(StandardOptions).runner == beam_runners._DASK


def test_flags_of_dask(monkeypatch):
    with pytest.raises(UserError, match="^--dask_client_adress=x: no flag of this script or of Beam; did you mean"):
        dask_options("--dask_client_adress=x")
    with pytest.raises(UserError, match="^--dask_client_address=x: only Dask's runner has this flag; add --runner=D"):
        batch_predict.parse_beam_flags(["--dask_client_address=x"], [])
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"^Dask cannot be imported .*; pip install -e '\.\[dask\]'"):
        dask_options()


def test_a_job_on_dask(start_scheduler, infer, train_dir, tmp_path, monkeypatch):
    pattern = write_shards(tmp_path / "in", "test", num_examples=20, num_shards=2, labelled=False, bad=(7,))
    torn = tmp_path / "in" / "test-00001-of-00002"
    torn.write_bytes(torn.read_bytes()[:-1])
    options = dask_options(f"--dask_client_address={start_scheduler(1)}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    shards = sorted(os.path.join("in", name) for name in os.listdir("in"))
    model_dir = os.path.relpath(train_dir / "export")
    from_sequence, partitions = dask.bag.from_sequence, []

    def spy(items, npartitions=None, **others):
        partitions.append((len(items), npartitions))
        return from_sequence(items, npartitions=npartitions, **others)

    with monkeypatch.context() as patch:
        patch.setattr(dask.bag, "from_sequence", spy)
        batch_pipeline.run(model_dir, shards, "results", 4, options)
    ((num_parts, num_partitions),) = partitions
    assert num_partitions == num_parts > 2  # Otherwise one worker would do everything.
    assert_same_rows(csv_of(tmp_path / "results"), infer(pattern, "skip"))
    assert [(row["file"], row["count"]) for row in rows_of(tmp_path / "results" / ERRORS)] == [(shards[1], 1)] * 2
    assert sorted(os.listdir("results")) == [ERRORS, *(f"prediction.results-0000{i}-of-00002" for i in range(2))]
    # What ends a job on a worker is said as it is.
    torn.unlink()
    monkeypatch.setattr(batch_pipeline, "_PARTS", 1)
    with pytest.raises(UserError, match="test-00001-of-00002: cannot be read: .*No such file"):
        batch_pipeline.run(model_dir, shards, "results", 4, options)


def test_a_cluster_that_cannot_run_the_job_is_one_line(start_scheduler, monkeypatch):
    for address, *more in (("tcp://127.0.0.1:9", "--dask_connection_timeout=1"), ("abc://x",)):
        with pytest.raises(UserError, match=f"^--dask_client_address={address}: no Dask scheduler answers there"):
            beam_runners.open_pipeline(dask_options(f"--dask_client_address={address}", *more), [])
        gc.collect()  # Closes what is left of the client; while another client starts, that would wait for ever.
    with pytest.raises(UserError, match="^--dask_scheduler_file=/not/there: no such file; dask scheduler writes it"):
        beam_runners.open_pipeline(dask_options("--dask_scheduler_file=/not/there"), [])
    address = start_scheduler(0)
    monkeypatch.setattr(beam_runners, "_PATIENCE", 0.1)
    with pytest.raises(UserError, match=f"has had no worker for 0.1 seconds; .*: dask worker {address}$"):
        beam_runners.open_pipeline(dask_options(f"--dask_client_address={address}"), [])
    address = start_scheduler(1)
    options = dask_options(f"--dask_client_address={address}")
    with pytest.raises(
        UserError, match=r"^the Dask worker tcp://\S+ has no /not/there; name .* that all machines share$"
    ):
        beam_runners.open_pipeline(options, ["/", "gs://x", "/not/there"])
    with monkeypatch.context() as patch:
        patch.setattr(beam_runners, "_lack", lambda paths=None: lambda: "" if paths is None else 1 / 0)
        with pytest.raises(UserError, match=rf"does not answer \(Zero.*end it, .*: dask worker {address}$"):
            beam_runners.open_pipeline(options, [])
    get_versions = distributed.Client.get_versions

    def with_older_scheduler(client):
        versions = get_versions(client)
        versions["scheduler"]["host"]["python"] = "3.9.1.final.0"
        return versions

    monkeypatch.setattr(distributed.Client, "get_versions", with_older_scheduler)
    with pytest.raises(
        UserError, match=r"^the Dask scheduler has Python 3\.9, not 3\.\d+; install .*: dask scheduler$"
    ):
        beam_runners.open_pipeline(options, [])


def test_a_process_of_the_cluster_says_what_it_lacks(monkeypatch):
    lack = beam_runners._lack()
    assert lack() == ""
    monkeypatch.setattr("apache_beam.__version__", "1.0")
    assert lack().startswith("has Beam 1.0 and TensorFlow 2.")
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    assert lack().startswith("cannot import what the job needs (")


def test_a_job_ends_if_its_cluster_is_gone(start_scheduler, monkeypatch):
    class Job:
        def __init__(self):
            self.client = distributed.Client(start_scheduler(0), set_as_default=False)
            self.futures = [types.SimpleNamespace(status="cancelled")]

        def wait_until_finish(self, milliseconds):
            if self.futures[0].status == "pending":
                raise distributed.TimeoutError

    job = Job()
    with pytest.raises(UserError, match="^the Dask scheduler tcp://.* was lost; start it and"):
        beam_runners.wait(job)
    assert job.client.status == "closed"
    job = Job()
    job.futures[0].status = "pending"
    monkeypatch.setattr(beam_runners, "_PATIENCE", 0.1)
    with pytest.raises(UserError, match="^the Dask scheduler tcp://.* has had no worker for"):
        beam_runners.wait(job)


def test_a_runner_that_fails_is_one_line(train_dir, tmp_path):
    write_shards(tmp_path / "in", num_examples=2, num_shards=1)
    options = batch_predict.parse_beam_flags(["--runner=PortableRunner"], [])
    with pytest.raises(
        UserError, match="^--runner=PortableRunner failed: NotImplementedError: You must .* this machine$"
    ):
        shards = list(map(str, (tmp_path / "in").iterdir()))
        batch_pipeline.run(str(train_dir / "export"), shards, str(tmp_path / "in"), 4, options)
    assert list(map(str, (tmp_path / "in").iterdir())) == shards
    with (
        pytest.raises(UserError, match="^--runner=DaskRunner failed: KilledWorker: a b; the logs of the scheduler and"),
        beam_runners.failures_in_one_line(dask_options()),
    ):
        raise type("KilledWorker", (Exception,), {})("a\n b")


@pytest.mark.slow
def test_a_killed_worker_costs_no_row(run_script, start_scheduler, infer, train_dir, tmp_path):
    """A scheduler and two workers; one worker is killed while it has work."""
    (tmp_path / "in").mkdir()
    picture = jpeg(1000, 1000)  # Takes long enough to decode.
    for shard in range(2):
        records = [tfrecords.make_example(picture, f"{shard}{number:02d}.jpg", None) for number in range(64)]
        records[5:5] = [b"no example"]
        tfrecords.write_shard(tfrecords.shard_path(str(tmp_path / "in"), "test", shard, 2), records)
    address = start_scheduler(0)
    dask_script = tmp_path / "dask_script.py"
    dask_script.write_text(f"import sys; sys.path[0] = {str(REPOSITORY)!r}; from dask.__main__ import main; main()")
    command = [*forked_python(), str(dask_script), "worker", address, "--host=127.0.0.1", "--no-dashboard"]
    command += ["--no-nanny", "--nthreads=1", "--memory-limit=0", f"--local-directory={tmp_path}"]

    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open(tmp_path / "workers.log", "ab"))
        victim, other = (subprocess.Popen(command, cwd="/", stdout=log, stderr=log) for _ in range(2))
        for process in (victim, other):
            stack.callback(process.wait)
            stack.callback(process.kill)
        client = stack.enter_context(distributed.Client(address, set_as_default=False))
        client.wait_for_workers(2, timeout=300)

        def kill_in_the_middle():
            wait_until(lambda: list((tmp_path / "results").glob("unfinished-*/*.errors")))
            assert all(client.processing().values())  # Both workers have work.
            os.kill(victim.pid, signal.SIGKILL)
            return len(list((tmp_path / "results").glob("unfinished-*/*.errors")))

        with concurrent.futures.ThreadPoolExecutor() as pool:
            num_done = pool.submit(kill_in_the_middle)
            flags = [f"--model_dir={os.path.relpath(train_dir / 'export', tmp_path)}", "--input_data_pattern=in/test-*"]
            flags += ["--output_path=results", "--runner=DaskRunner", f"--dask_client_address={address}"]
            process = run_script("batch_predict", *flags, "--batch_size=2", cwd=tmp_path, timeout=600)
        assert 0 < num_done.result() < 64
    assert_same_rows(csv_of(tmp_path / "results"), infer(f"{tmp_path}/in/test-*", "skip"))
    assert process.stderr.splitlines()[-1].startswith("WARNING: 2 records or shards could not be read (2: it is not")


def wait_until(condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
