"""What is not exact any more when a model goes on is said, and nothing else."""

import json

import pytest

from cats_vs_dogs import run_record

FLAGS = dict.fromkeys(run_record._EXACT_FLAGS, 1)
FLAGS |= {"learning_rate_schedule": "exponential", "num_epochs": 5, "max_steps": None, "log_steps": 10}
FLAGS |= {"first_image_size": 0}
FLAGS |= {"train_dir": "/a", "train_data_pattern": "/data/train-*", "eval_data_pattern": ""}


def record(shards=None, replicas=1, **flags):
    return run_record.make({**FLAGS, **flags}, shards or {"/data/train-0": 5, "/data/train-1": 4}, 3073, replicas)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({}, None),
        ({"log_steps": 7}, None),
        ({"num_epochs": 9}, None),
        # The order of examples depends on how many records each shard has, and on nothing else of a path.
        ({"shards": {"/elsewhere/train-0": 5, "/elsewhere/train-1": 4}}, None),
        ({"shards": {"/data/train-1": 4, "/data/train-0": 5}}, "other shards;"),
        ({"shards": {"/data/train-0": 5, "/data/train-1": 3}}, "other shards;"),
        ({"batch_size": 2, "seed": 7}, "batch_size=1 (now 2), seed=1 (now 7);"),
        ({"base_learning_rate": 0.5}, "base_learning_rate=1 (now 0.5);"),
        ({"replicas": 4}, "1 devices (now 4);"),
    ],
)
def test_changes_are_said(tmp_path, caplog, now, said):
    run_record.warn_of_changes(str(tmp_path), record())  # There is nothing to compare with.
    (tmp_path / "run.json").write_text(json.dumps(record()))
    run_record.warn_of_changes(str(tmp_path), record(**now))
    assert (f"was trained with {said}" in caplog.text) if said else not caplog.text


@pytest.mark.parametrize("flags", [{"learning_rate_schedule": "cosine"}, {"first_image_size": 64}])
def test_the_end_of_training_matters_to_what_is_planned_until_then(tmp_path, caplog, flags):
    (tmp_path / "run.json").write_text(json.dumps(record(**flags)))
    run_record.warn_of_changes(str(tmp_path), record(**flags, num_epochs=9, max_steps=3))
    assert "was trained with num_epochs=5 (now 9), max_steps=None (now 3);" in caplog.text


def test_another_tensorflow_is_said(tmp_path, caplog):
    before = record()
    before["versions"]["tensorflow"] = "2.17.0"
    (tmp_path / "run.json").write_text(json.dumps(before))
    run_record.warn_of_changes(str(tmp_path), record())
    assert "was trained with tensorflow 2.17.0 (now " in caplog.text


def test_what_all_workers_must_have_in_common():
    common = run_record.fingerprint(record())
    moved = record({"/b/train-0": 5, "/b/train-1": 4}, train_dir="/b", train_data_pattern="/b/train-*")
    assert run_record.fingerprint(moved) == common
    for other in (record({"/data/train-0": 5}), record(log_steps=9), record(eval_data_pattern="/data/validation-*")):
        assert run_record.fingerprint(other) != common
