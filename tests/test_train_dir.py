"""A resumed run warns of what makes it inexact, and of nothing else."""

import json

import pytest
from conftest import make_config

from cats_vs_dogs import train_dir
from cats_vs_dogs.config import WITHOUT_EFFECT
from cats_vs_dogs.utils import UserError

SETTINGS = {"train_dir": "/a", "train_data_pattern": "/data/train-*"}


def record(shards=None, replicas=1, **settings):
    config = make_config(**SETTINGS, **settings) if not SETTINGS.keys() & settings else make_config(**settings)
    record = train_dir.make_record(config, shards or {"/data/train-0": 5, "/data/train-1": 4}, 3073, replicas, 1)
    return json.loads(json.dumps(record))  # As in run.json.


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
        ({"batch_size": 2, "seed": 7}, "batch_size=512 (now 2), seed=0 (now 7);"),
        ({"base_learning_rate": 0.5}, "base_learning_rate=0.01 (now 0.5);"),
        ({"replicas": 4}, "1 devices (now 4);"),
        # Adam and AdamOptimizer, also with loss scaling, differ in nothing else.
        ({"optimizer": "Adam"}, "epsilon=1e-08 (now 1e-07);"),
        ({"optimizer_params": {"weight_decay": 0.25}}, "weight_decay=None (now 0.25);"),
        ({"deterministic": True}, "deterministic=False (now True);"),
    ],
)
def test_changes_are_said(tmp_path, caplog, now, said):
    train_dir.warn_of_changes(str(tmp_path), record())  # There is nothing to compare with.
    (tmp_path / "run.json").write_text(json.dumps(record()))
    train_dir.warn_of_changes(str(tmp_path), record(**now))
    assert (f"was trained with {said}" in caplog.text) if said else not caplog.text


@pytest.mark.parametrize("flags", [{"learning_rate_schedule": "cosine"}, {"first_image_size": 64}])
def test_the_end_of_training_matters_to_what_is_planned_until_then(tmp_path, caplog, flags):
    (tmp_path / "run.json").write_text(json.dumps(record(**flags)))
    train_dir.warn_of_changes(str(tmp_path), record(**flags, num_epochs=9, max_steps=3))
    assert "was trained with num_epochs=5 (now 9), max_steps=None (now 3);" in caplog.text


def test_another_tensorflow_is_said(tmp_path, caplog):
    before = record()
    before["versions"]["tensorflow"] = "2.17.0"
    (tmp_path / "run.json").write_text(json.dumps(before))
    train_dir.warn_of_changes(str(tmp_path), record())
    assert "was trained with tensorflow=2.17.0 (now " in caplog.text


def test_what_all_workers_must_have_in_common():
    common = train_dir.in_common(make_config(**SETTINGS))
    assert common["--batch_size"] == 512 and {"the version of keras", "the version of python"} <= common.keys()
    elsewhere = make_config(train_dir="/b", train_data_pattern="/b/train-*", join_timeout=5.0)
    assert train_dir.in_common(elsewhere) == common
    for changed in ({"log_steps": 9}, {"worker_timeout": 9.0}, {"eval_data_pattern": "/data/validation-*"}):
        assert train_dir.in_common(make_config(**SETTINGS, **changed)) != common


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_another_optimizer_is_refused(tmp_path, precision):
    folder = str(tmp_path)
    settings = {"train_dir": folder, "precision": precision}
    config = make_config(**settings, optimizer="AdamOptimizer")
    train_dir.save_spec(folder, config.model)
    train_dir.save_record(folder, train_dir.make_record(config, {}, 1, 1, 1))
    assert train_dir.check(folder, config)
    assert train_dir.check(folder, make_config(**settings, optimizer="Adam"))  # A warning comes later.
    for other in ("Nadam", "AdamW", "SGD"):
        with pytest.raises(UserError, match=f"--optimizer={other}: .* was made with Adam, not with {other}"):
            train_dir.check(folder, make_config(**settings, optimizer=other))


def test_a_run_of_an_older_version_is_compared_by_its_flags(tmp_path, caplog):
    old = record()
    del old["optimizer"]
    old["flags"] |= {"optimizer_params": '{"beta_1": 0.5}', "model_params": ""}
    (tmp_path / "run.json").write_text(json.dumps(old))
    train_dir.warn_of_changes(str(tmp_path), record())
    assert "was trained with beta_1=0.5 (now 0.9);" in caplog.text


def test_settings_without_effect_exist():
    known = set(make_config().settings())
    assert known >= WITHOUT_EFFECT


def test_the_run_of_a_best_model_is_that_of_its_train_dir(tmp_path):
    own, best = tmp_path / "best", tmp_path / "best" / "best"  # A user may name a train_dir like that, too.
    best.mkdir(parents=True)
    assert train_dir.find_run(str(best)) == (str(own), {})
    train_dir.save_record(str(own), {"seed": 1})
    train_dir.save_record(str(tmp_path), {"seed": 2})
    assert train_dir.find_run(f"{best}/") == (str(own), {"seed": 1})
    assert train_dir.find_run(str(own)) == (str(own), {"seed": 1})
