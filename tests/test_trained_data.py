"""The data that belong to a model: which shards are used by default, and a warning of those that were trained on."""

import json
import os
import shutil
import types

import numpy as np
import pytest
from conftest import make_config, write_shards

from cats_vs_dogs import (
    checkpoints,
    distribution,
    example_index,
    inference,
    readers,
    sample_data,
    tfrecords,
    train,
    trained_data,
)
from cats_vs_dogs import eval as eval_script
from cats_vs_dogs.bad_examples import open_shards
from cats_vs_dogs.utils import UserError


@pytest.fixture
def model(tmp_path):
    """Returns a function that makes a train_dir which knows what it was trained on, without training."""

    def make(shards, name="model", **patterns):
        (tmp_path / name / "best").mkdir(parents=True)
        flags = {"train_data_pattern": "somewhere", "eval_data_pattern": "", **patterns}
        run = {"flags": flags, "shards": dict.fromkeys(map(str, shards), 5)}
        (tmp_path / name / "run.json").write_text(json.dumps(run))
        return str(tmp_path / name)

    return make


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def defaults(caplog):
    """Returns a function that returns the default patterns and the log line about them."""

    def find(train_dir, split):
        caplog.clear()
        caplog.set_level("INFO", logger="absl")
        flag = {"validation": "eval_data_pattern", "test": "input_data_pattern"}[split]
        return trained_data.default_patterns([train_dir], split, flag), caplog.messages[-1]

    return find


def test_the_default_is_beside_the_training_shards(tmp_path, model, defaults):
    for folder in ("a [1]", "b", "c"):
        touch(tmp_path / folder / "train-0", tmp_path / folder / "train-1")
    touch(tmp_path / "a [1]" / "validation-0", tmp_path / "b" / "validation-0", tmp_path / "b" / "test-0")
    folder = model(tmp_path / shard for shard in ("a [1]/train-0", "b/train-0", "b/train-1", "c/train-0"))
    expected = [f"{tmp_path}/a [1]/validation-*", f"{tmp_path}/b/validation-*"]
    for train_dir in (folder, f"{folder}/", f"{folder}/best", f"{folder}/best/"):
        patterns, said = defaults(train_dir, "validation")
        assert patterns == expected
        assert said == f"No --eval_data_pattern given: using {' and '.join(expected)}, beside the training shards."
    assert defaults(folder, "test")[0] == [f"{tmp_path}/b/test-*"]


def test_the_default_is_what_training_evaluated_on(tmp_path, model, defaults):
    touch(tmp_path / "a/train-0", tmp_path / "a/validation-0", tmp_path / "b/held-out-0", tmp_path / "b/test-0")
    folder = model([tmp_path / "a/train-0"], eval_data_pattern=f"{tmp_path}/b/held*")
    assert defaults(folder, "validation")[0] == [f"{tmp_path}/b/held*"]
    with pytest.raises(
        UserError, match=f"^--input_data_pattern: not given, and no file matches {tmp_path}/a/test-\\* \\("
    ):
        defaults(folder, "test")
    (tmp_path / "b/held-out-0").unlink()  # The other one was evaluated on by nobody.
    with pytest.raises(UserError, match=r"b/held\* \(which train.py evaluated on, says .*/run.json\); give the shards"):
        defaults(folder, "validation")


def test_the_sample_set_is_the_default_of_its_own_models_only(tmp_path, model, defaults, monkeypatch):
    monkeypatch.setattr(sample_data, "pattern", lambda split: f"/sample/{split}-*")
    folder = model(["/sample/train-0"], train_data_pattern="")
    assert defaults(folder, "validation")[0] == ["/sample/validation-*"]
    assert "the kit's own sample set" in defaults(f"{folder}/best", "test")[1]
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "run.json").unlink()
    shutil.copytree(tmp_path / "model" / "best", tmp_path / "taken")
    for lonely in ("copy", "copy/best", "taken"):
        with pytest.raises(UserError) as error:
            defaults(str(tmp_path / lonely), "validation")
        assert str(error.value) == (
            f"--eval_data_pattern: not given, and --train_dir={tmp_path}/{lonely} does not say what the model was "
            "trained on (no run.json); give the shards with --eval_data_pattern='.../validation-*'"
        )


def test_relative_paths_of_older_versions(tmp_path, model, defaults, monkeypatch):
    touch(tmp_path / "here/s/train-0", tmp_path / "here/s/validation-0", tmp_path / "there/s/validation-0")
    folder = model(["s/train-0"])
    monkeypatch.chdir(tmp_path / "here")
    assert defaults(folder, "validation")[0] == ["s/validation-*"]
    monkeypatch.chdir(tmp_path / "there")  # Other shards of the same name.
    with pytest.raises(UserError, match=f"s/validation-.* in {tmp_path}/there, where the training shards are not"):
        defaults(folder, "validation")


# ---- What was trained on.

READER = readers.CatsVsDogsFeatureReader(image_size=4)


def opened(pattern):
    return open_shards(str(pattern), "eval_data_pattern", READER, "fail", with_index=True)


@pytest.fixture
def count(caplog):
    """Returns a function that counts the trained examples among some, and returns the warning, too."""

    def run(evaluated, trained, **kwargs):
        caplog.clear()
        keys = None if trained is None else opened(trained).index.keys()
        number = trained_data.count_trained_on(opened(evaluated), keys, kwargs.get("paths", []), "eval_data_pattern")
        return number, caplog.text

    return run


def test_shared_examples_are_counted_wherever_they_are(tmp_path, count):
    all_of_them = write_shards(tmp_path / "a", num_examples=24, num_shards=3)
    assert count(all_of_them, tmp_path / "a" / "train-00001-of-00003")[0] == 8
    (tmp_path / "link").symlink_to(tmp_path / "a" / "train-00001-of-00003")
    shutil.copy(tmp_path / "a" / "train-00001-of-00003", tmp_path / "copy")
    for other in ("link", "copy"):
        number, said = count(tmp_path / other, all_of_them)
        assert number == 8
        assert (
            "8 of the 8 examples of --eval_data_pattern were trained on (the same picture or id), such as dog.1.jpg; "
            in said
        )
    # Other shards of some of the same photos.
    number, said = count(write_shards(tmp_path / "c", "validation", num_examples=30, num_shards=2), all_of_them)
    assert number == 24 and "24 of the 30 examples" in said
    assert count(all_of_them, tmp_path / "copy")[0] == 8


def test_the_same_picture_or_the_same_id_counts(tmp_path, count):
    from test_example_index import JPEGS

    def write(shard, *examples):
        tfrecords.write_shard(
            str(tmp_path / shard), [tfrecords.make_example(JPEGS[i], name, 0) for i, name in examples]
        )
        return tmp_path / shard

    trained = write("trained", (0, "cat.0.jpg"), (1, "cat.1.jpg"), (2, ""))
    number, said = count(write("a", (0, "renamed.jpg"), (3, "cat.1.jpg"), (3, "new.jpg"), (3, "")), trained)
    assert number == 2
    assert "2 of the 4 examples of --eval_data_pattern were trained on (the same picture or id), such as renam" in said
    assert count(write("b", (3, "new.jpg"), (3, "")), trained) == (0, "")


def test_without_keys_the_paths_tell(tmp_path, count):
    pattern = write_shards(tmp_path / "a", num_examples=24, num_shards=3)
    paths = [str(tmp_path / "a" / f"train-0000{i}-of-00003") for i in range(2)]
    (tmp_path / "link").symlink_to(paths[1])
    assert count(pattern, None, paths=paths)[0] == 16
    number, said = count(tmp_path / "link", None, paths=paths)
    assert number == 8 and f"were trained on (the same picture or id), all of {tmp_path}/link; " in said
    assert count(tmp_path / "link", None, paths=paths[:1]) == (None, "")


def test_large_data_are_not_counted(tmp_path, count, monkeypatch):
    pattern = write_shards(tmp_path / "a", num_examples=24, num_shards=3)
    monkeypatch.setattr(example_index, "MAX_BYTES", 100)
    assert count(pattern, pattern) == (None, "")
    assert trained_data.keys_of_run(str(tmp_path), opened(pattern), is_resumed=False) is None


def test_the_keys_of_a_resumed_model_are_those_of_all_its_data(tmp_path):
    folder = str(tmp_path)
    first, second = (opened(write_shards(tmp_path / name, num_examples=n)) for name, n in (("a", 24), ("b", 30)))
    assert trained_data.load_keys(folder) is None
    assert trained_data.keys_of_run(folder, first, is_resumed=True) is None  # Nobody knows what was before.
    trained_data.save_keys(folder, trained_data.keys_of_run(folder, second, is_resumed=False))
    assert len(trained_data.load_keys(folder)) == 60
    assert len(trained_data.keys_of_run(folder, first, is_resumed=True)) == 60
    assert len(trained_data.keys_of_run(folder, first, is_resumed=False)) == 48
    trained_data.save_keys(folder, None)
    assert not os.path.exists(tmp_path / "trained_on.npy")
    for damaged in (b"", b"x", b"\x93NUMPY", np.array(["a"]).tobytes()):
        (tmp_path / "trained_on.npy").write_bytes(damaged)
        assert trained_data.load_keys(folder) is None


@pytest.mark.slow
def test_training_and_eval_say_what_they_share(tmp_path, monkeypatch, caplog):
    write_shards(tmp_path / "s", num_examples=16, num_shards=1)
    write_shards(tmp_path / "s", "validation", num_examples=24, num_shards=1)
    write_shards(tmp_path / "s", "test", num_examples=6, num_shards=1)
    monkeypatch.chdir(tmp_path)
    settings = {"train_dir": "m", "image_size": 4, "batch_size": 8, "num_epochs": 1, "train_data_pattern": "s/train-*"}
    cluster = distribution.local_devices()
    assert train.train(make_config(**settings, eval_data_pattern="s/validation-*"), cluster) is None
    assert (
        "16 of the 24 examples of --eval_data_pattern were trained on (the same picture or id), such as cat.0.jpg; "
        in caplog.text
    )
    run = json.loads((tmp_path / "m" / "run.json").read_text())
    assert list(run["shards"]) == [f"{tmp_path}/s/train-00000-of-00001"]
    assert run["flags"]["eval_data_pattern"] == f"{tmp_path}/s/validation-*"

    def metrics():
        stored = json.loads((tmp_path / "m" / "eval" / "metrics-2.json").read_text())
        return stored["trained_on"], stored["eval_data_pattern"]

    assert metrics() == (16, f"{tmp_path}/s/validation-*")
    assert json.loads((tmp_path / "m" / "best" / "metrics-2.json").read_text())["trained_on"] == 16

    def evaluate(pattern, train_dir="m"):
        caplog.clear()
        names = {"train_dir": str(tmp_path / train_dir), "eval_data_pattern": pattern, "mistakes_file": ""}
        names["report"] = False
        others = {"model": None, "label_loss": None, "batch_size": 10, "bad_examples": "fail", "run_once": True}
        monkeypatch.setattr(
            eval_script, "FLAGS", types.SimpleNamespace(**names, **others, flip_average=False, crop_average=False)
        )
        eval_script.main()
        return caplog.text

    os.chdir("/")
    assert "16 of the 24 examples of --eval_data_pattern were trained on" in evaluate("", "m/best")
    said = evaluate("")
    assert "were trained on" in said and "metrics-2.json held" not in said
    said = evaluate(f"{tmp_path}/s/test-*")
    assert "6 of the 6 examples" in said and metrics() == (6, f"{tmp_path}/s/test-*")
    assert f"metrics-2.json held the metrics on {tmp_path}/s/validation-*; now it holds those on {tmp_path}/s/t" in said

    with pytest.raises(
        UserError, match="^--train_data_pattern: not given, but the model in .* was trained on .*/s/train"
    ):
        train.train(make_config(**settings | {"train_data_pattern": "", "train_dir": f"{tmp_path}/m"}), cluster)
    flags = {
        "train_dir": f"{tmp_path}/m",
        "output_file": "",
        "input_data_pattern": "",
        "output_column": None,
        "submission": "2017",
    }
    flags |= {"batch_size": 3, "bad_examples": "fail", "flip_average": False, "crop_average": False}
    monkeypatch.setattr(inference, "FLAGS", types.SimpleNamespace(**flags))
    inference.main()
    assert (tmp_path / "m" / "predictions.csv").read_text().count("\n") == 7


def test_one_class_ends_training_before_train_dir_is_changed(tmp_path):
    from test_example_index import write

    pattern = write(tmp_path, [0] * 8)
    settings = {"train_dir": str(tmp_path / "m"), "image_size": 4, "batch_size": 8, "train_data_pattern": pattern}
    with pytest.raises(UserError, match=r"train-\*: all 8 labels are 0 \(cat\); .* or pass --allow_one_class"):
        train.train(make_config(**settings), distribution.local_devices())
    assert not list((tmp_path / "m").iterdir())
    assert train.train(make_config(**settings, allow_one_class=True), distribution.local_devices()) is None
    assert checkpoints.newest_checkpoint(str(tmp_path / "m"))
