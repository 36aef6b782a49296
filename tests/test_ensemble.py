"""Several models that predict together: which ones, on which data, what comes out, and where it is written."""

import csv
import json
import os
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import jpeg, write_shards

from cats_vs_dogs import (
    bad_examples,
    checkpoints,
    config,
    ensemble,
    eval_util,
    example_index,
    inference,
    metrics_log,
    path_flags,
    readers,
    train_dir,
    trained_data,
)
from cats_vs_dogs import eval as eval_script
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.config import ModelSpec
from cats_vs_dogs.utils import UserError

# Of two losses, two sizes and two ways to resize; the first and the last take the same images.
SPECS = {
    "logistic": ModelSpec("LogisticModel", {}, "CrossEntropyLoss", {}, 4, "area", seed=1),
    "hinge": ModelSpec("LogisticModel", {}, "HingeLoss", {}, 6, "area", seed=2),
    "moe": ModelSpec("MoeModel", {}, "CrossEntropyLoss", {}, 4, "legacy_bilinear", seed=3),
    "same_images": ModelSpec("LogisticModel", {}, "SoftmaxLoss", {}, 4, "area", seed=4),
}
STEPS = dict(zip(SPECS, (3, 20, 7, 5), strict=True))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a train_dir of each model."""
    folder = tmp_path_factory.mktemp("models")
    for name, spec in SPECS.items():
        checkpoints.save_best(Classifier(spec), str(folder / name), STEPS[name], {})
        (folder / name / f"metrics-{STEPS[name]}.json").unlink()
    return folder


@pytest.fixture
def models(made, tmp_path):
    """The train_dirs of the models."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return [str(tmp_path / name) for name in SPECS]


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """Returns a function that runs eval.py and returns the folder that it wrote to, and the metrics."""

    def run(folders, pattern, **others):
        flags = {"train_dir": ",".join(folders), "eval_data_pattern": pattern, "run_once": True, "batch_size": 10}
        flags |= {
            "model": None,
            "label_loss": None,
            "mistakes_file": "",
            "bad_examples": "fail",
            "flip_average": False,
            "crop_average": False,
            "report": False,
        }
        monkeypatch.setattr(eval_script, "FLAGS", types.SimpleNamespace(**flags | others))
        eval_script.main()
        folder = train_dir.ensemble_dir(folders) if len(folders) > 1 else train_dir.eval_dir(folders[0])
        (path,) = (name for name in os.listdir(folder) if name.startswith("metrics-"))
        with open(os.path.join(folder, path), encoding="utf-8") as file:
            return os.path.join(folder, path), json.load(file)

    return run


@pytest.fixture
def infer(tmp_path, monkeypatch):
    """Returns a function that runs inference.py and returns the ids and the probabilities of a dog."""

    def run(folders, pattern, **others):
        flags = {
            "train_dir": ",".join(folders),
            "output_file": str(tmp_path / "out.csv"),
            "input_data_pattern": pattern,
        }
        flags |= {"output_column": "probability", "submission": "2017", "batch_size": 5, "bad_examples": "fail"}
        monkeypatch.setattr(
            inference, "FLAGS", types.SimpleNamespace(**flags | {"flip_average": False, "crop_average": False} | others)
        )
        inference.main()
        with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
            ids, probabilities = zip(*list(csv.reader(file))[1:], strict=True)
        return ids, np.array(probabilities, float)

    return run


# ---- Which models.


def make_models(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "model_flags.json").write_text("{}")


def test_lists_of_folders(tmp_path, monkeypatch):
    make_models(tmp_path, "m_1", "m_2", "m_2/best", "m_10", "a,b", "lr 0.1", "home/x", "m[1]")
    (tmp_path / "m_3_without_a_model").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", f"{tmp_path}/home")
    for text, expected in {
        "m_1": ["m_1"],
        "m_1/": ["m_1/"],
        "m_1,m_2/best": ["m_1", "m_2/best"],
        "m_2, lr 0.1 ,m_1": ["m_2", "lr 0.1", "m_1"],
        "a,b": ["a,b"],
        "m_1,a,b,m_2": ["m_1", "a,b", "m_2"],
        "./a,b": ["./a,b"],
        "m_1,~/x": ["m_1", f"{tmp_path}/home/x"],
        "~/x,m_1": [f"{tmp_path}/home/x", "m_1"],
        "m_*": ["m_1", "m_10", "m_2"],
        "m_?,a,b": ["m_1", "m_2", "a,b"],
        "m[1]": ["m[1]"],
    }.items():
        assert config.find_models(path_flags.expand_path(text)) == expected, text


def test_lists_on_object_stores():
    for text, expected in {
        "gs://b/x": ["gs://b/x"],
        "gs://b/run,lr=0.1": ["gs://b/run,lr=0.1"],
        "gs://b/x,gs://b/y,z, gs://c/x": ["gs://b/x", "gs://b/y,z", "gs://c/x"],
        "gs://b/x,/tmp/y,gs://b/z": ["gs://b/x", "/tmp/y", "gs://b/z"],
    }.items():
        assert path_flags.split_paths(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m_1,gone", "--train_dir=gone: holds no model (no model_flags.json); train one with train.py first"),
        ("m_1,m_2/export/step_3", "--train_dir=m_2/export/step_3: holds no model (no model_flags.json); write --train"),
        (
            "m_1,,m_2",
            "--train_dir=m_1,,m_2: has an empty name before, after or between its commas; write the folders as",
        ),
        (
            "m_1,",
            "--train_dir=m_1,: has an empty name before, after or between its commas; write the folders as in a,b",
        ),
        ("m_1,m_1", "--train_dir=m_1,m_1: names m_1 twice; name each model once"),
        ("m_1,link", "--train_dir=m_1,link: names link twice (m_1 is the same folder); name each model once"),
        ("m_*,m_2/", "--train_dir=m_*,m_2/: names m_2/ twice (m_2 is the same folder); name each model once"),
        ("n_*", "--train_dir=n_*: matches no folder that holds a model; name the folders as in a,b"),
        ("m_1,https://x.org/m", "--train_dir=m_1,https://x.org/m: only paths on this machine and gs:// can be used; "),
        ("m_1 m_2", "--train_dir=m_1 m_2: put commas between folders: --train_dir=m_1,m_2"),
    ],
    ids=str,
)
def test_wrong_lists(tmp_path, monkeypatch, text, message):
    make_models(tmp_path, "m_1", "m_2")
    (tmp_path / "link").symlink_to(tmp_path / "m_1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        config.find_models(text)
    assert str(error.value).startswith(message)


def test_other_scripts_take_one_model(tmp_path, monkeypatch):
    make_models(tmp_path, "a", "b")
    monkeypatch.chdir(tmp_path)
    message = r"^--train_dir=a,b: names 2 models; this script takes one model, so name one of them \(eval.py and infer"
    with pytest.raises(UserError, match=message):
        config.require_model("a,b")  # export_model.py
    flags = types.SimpleNamespace(train_dir="a,b")
    with pytest.raises(UserError, match=message):
        config.read(flags)  # train.py
    config.check_one_model("a,c")  # Perhaps a new folder of that name.
    make_models(tmp_path, "a,b")
    config.check_one_model("a,b")


def test_flags_of_one_model(tmp_path, monkeypatch):
    make_models(tmp_path, "a", "b")
    monkeypatch.chdir(tmp_path)
    check = eval_script.check_ensemble_flags
    check(["a"], False, "MoeModel", "HingeLoss")
    check(["a", "b"], True, None, None)
    with pytest.raises(UserError, match="^--model=MoeModel: --train_dir names 2 models, and each knows its own; leave"):
        check(["a", "b"], True, "MoeModel", None)
    with pytest.raises(UserError, match="^--label_loss=HingeLoss: --train_dir names 2 models, and each knows its own"):
        check(["a", "b"], True, None, "HingeLoss")
    with pytest.raises(UserError, match="^--train_dir names 2 models, which are evaluated once, .*; add --run_once$"):
        check(["a", "b"], False, None, None)


def test_inference_needs_a_place_for_the_csv(infer, models):
    with pytest.raises(UserError, match="^--output_file: not given, and --train_dir names 4 models; name the CSV file"):
        infer(models, "/nowhere", output_file="")


def test_a_model_without_a_checkpoint_is_named_before_the_data_is_read(evaluate, infer, models, tmp_path):
    (tmp_path / "shard").write_text("damaged")
    for path in checkpoints.all_checkpoints(models[2]):
        os.remove(f"{path}.index")
    for run in (evaluate, infer):
        with pytest.raises(UserError, match=f"^--train_dir={models[2]}: holds no checkpoint; train a model with train"):
            run(models, f"{tmp_path}/shard")


# ---- What comes out.


def test_images_are_decoded_once_a_size(tmp_path):
    reader = ensemble.open_reader_for(list(SPECS.values()), is_labelled=True)
    assert [(one.image_size, one.resize_method) for one in reader.readers] == [
        (4, "area"),
        (6, "area"),
        (4, "legacy_bilinear"),
    ]
    shards = bad_examples.open_shards(write_shards(tmp_path), "eval_data_pattern", reader, "fail", with_index=True)
    assert shards.index.has_labels
    ((ids, images, labels),) = readers.make_dataset(reader, shards, 24)
    for one, spec in zip(images, SPECS.values(), strict=True):
        alone = ensemble.open_reader_for([spec], is_labelled=True)
        ((its_ids, expected, its_labels),) = readers.make_dataset(alone, shards, 24)
        assert one.dtype == tf.uint8
        for value, of_one in ((ids, its_ids), (one, expected), (labels, its_labels)):
            np.testing.assert_array_equal(value, of_one)


def test_inference_writes_the_mean(infer, models, tmp_path):
    pattern = write_shards(tmp_path / "shards", "test", num_examples=12, labelled=False)
    alone = [infer([folder], pattern, flip_average=True) for folder in models]
    ids, probabilities = infer(models, pattern, flip_average=True)
    assert all(one[0] == ids for one in alone) and len(ids) == 12
    np.testing.assert_allclose(probabilities, np.mean([one[1] for one in alone], axis=0), rtol=0, atol=1e-6)
    assert np.ptp([one[1] for one in alone], axis=0).min() > 1e-3


def test_pictures_as_input(infer, models, tmp_path):
    models = models[:2]
    (tmp_path / "photos").mkdir()
    for number in range(7):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(jpeg(seed=number))
    (tmp_path / "photos" / "bad.jpg").write_bytes(jpeg()[:100])
    pattern = str(tmp_path / "photos" / "*.jpg")
    with pytest.raises(
        UserError, match=r"^.*/bad.jpg: its picture cannot be decoded|^.*/bad.jpg: .*--bad_examples=skip"
    ):
        infer(models, pattern)
    alone = [infer([folder], pattern, bad_examples="skip") for folder in models]
    ids, probabilities = infer(models, pattern, bad_examples="skip")
    assert ids == tuple(f"{number}.jpg" for number in range(7))
    np.testing.assert_allclose(probabilities, np.mean([one[1] for one in alone], axis=0), rtol=0, atol=1e-6)
    assert (tmp_path / "out.csv.bad_examples.csv").exists()


def test_evaluation(evaluate, models, tmp_path, caplog, capsys):
    caplog.set_level("INFO", logger="absl")
    pattern = write_shards(tmp_path / "shards", num_examples=24)
    alone = [evaluate([folder], pattern) for folder in models]
    before = {path: Path(path).read_bytes() for path, _ in alone}
    caplog.clear()
    capsys.readouterr()
    path, metrics = evaluate(models, pattern, mistakes_file=str(tmp_path / "wrong.csv"))
    assert os.path.dirname(os.path.dirname(path)) == f"{models[0]}/eval"
    assert os.path.basename(path) == "metrics-20.json" and metrics["step"] == 20
    assert {path: Path(path).read_bytes() for path in before} == before

    names = ("avg_hit_at_one", "log_loss", "roc_auc", "ece")
    for member, folder, (_, its_own) in zip(metrics["members"], models, alone, strict=True):
        assert member == {"train_dir": folder, "step": its_own["step"], **{name: its_own[name] for name in names}}
    assert "avg_loss" not in metrics and "Loss" not in caplog.text
    assert metrics["num_examples"] == 24
    with open(tmp_path / "wrong.csv", encoding="utf-8") as file:
        assert len(file.readlines()) == 1 + round(24 * (1 - metrics["avg_hit_at_one"]))
    table = capsys.readouterr().out
    table = table[table.index("model ") :]
    for name, figures in [*zip(models, metrics["members"], strict=True), ("mean of all", metrics)]:
        line = next(line for line in table.splitlines() if f"{name} " in line)
        assert line.endswith(f"{figures['ece']:.4f}") and f" {figures['log_loss']:.4f} " in line

    # In any order it is the same ensemble; with another model it is another one.
    assert os.path.basename(train_dir.ensemble_dir(models[::-1])) == os.path.basename(os.path.dirname(path))
    assert train_dir.ensemble_dir(models[:3]) != os.path.dirname(path)
    row = json.loads(Path(path).with_name("metrics.jsonl").read_text())
    assert row.pop("kind") == "evaluation" and row.pop("time") and row == metrics
    # Which --start_new_model deletes with the model.
    assert f"{models[0]}/eval/{os.path.basename(os.path.dirname(path))}" in train_dir.check_deletable(models[0])


def test_rows_without_a_loss():
    metrics = eval_util.EvaluationMetrics(2, 2)
    columns = np.array([[0.75]], np.float32), np.array([[1]])
    assert metrics.accumulate(*columns, None) == {"hit_at_one": 1.0, "perr": 1.0}
    assert "avg_loss" not in metrics.get() and metrics.get()["avg_hit_at_one"] == 1
    written = []
    events = types.SimpleNamespace(scalar=lambda tag, value, step, about: written.append(tag))
    metrics_log.record_evaluation(events, {"step": 1, **metrics.get()})
    assert "Compare/accuracy" in written and not any("oss" in tag for tag in written if tag != "Compare/log_loss")


def test_the_same_weights_twice(models, tmp_path, caplog):
    checkpoints.save_best(Classifier(SPECS["logistic"]), str(tmp_path / "copy"), 9, {})
    folders = [*models, str(tmp_path / "copy")]
    classifiers = [Classifier(train_dir.load_spec(folder)) for folder in folders]
    restored = ensemble.restore(classifiers, folders)
    assert [one["step"] for one in restored] == [*STEPS.values(), 9]
    (said,) = (line for line in caplog.messages if "counts twice" in line)
    assert said.startswith(f"{models[0]} and {tmp_path}/copy hold the same model with the same weights, so it counts")


class FloatReader(readers.CatsVsDogsFeatureReader):
    """A user's reader: it makes pictures darker."""

    def prepare_serialized_examples(self, serialized_examples):
        ids, images, labels = super().prepare_serialized_examples(serialized_examples)
        return ids, images * 0.5, labels


def test_a_reader_of_ones_own(infer, models, tmp_path, monkeypatch):
    models = models[1:3]
    monkeypatch.setattr(readers, "get_reader", lambda _, size, method: FloatReader(2, size, method))
    pattern = write_shards(tmp_path / "shards", "test", num_examples=12, labelled=False)
    alone = [infer([folder], pattern) for folder in models]
    ids, probabilities = infer(models, pattern)
    np.testing.assert_allclose(probabilities, np.mean([one[1] for one in alone], axis=0), rtol=0, atol=1e-6)


def test_bad_records_are_those_of_any_model(tmp_path):
    reader = ensemble.open_reader_for(list(SPECS.values()), is_labelled=True)
    pattern = write_shards(tmp_path, bad=(4, 9))
    shards = bad_examples.open_shards(pattern, "eval_data_pattern", reader, "skip", with_index=True)
    assert {bad[2] for bad in shards.bad_list} == {"cat.4.jpg", "dog.9.jpg"} and shards.num_examples == 22
    whole = readers.Shards(shards.records)
    with (
        pytest.raises(UserError, match=r"record 3 \(dog.9.jpg\): its picture cannot be decoded"),
        bad_examples.explain_read_errors(reader, whole),
    ):
        list(readers.make_dataset(reader, whole, 10))


# ---- On which data.


def test_examples_that_any_model_was_trained_on(tmp_path, caplog):
    shards = bad_examples.open_shards(
        write_shards(tmp_path / "s", num_examples=24),
        "eval_data_pattern",
        readers.get_reader(True, 4, "area"),
        "fail",
        with_index=True,
    )
    keys = [example_index.ExampleIndex({"": [one]}, True, True).keys().ravel() for one in shards.index]
    ids = [one.id for one in shards.index]

    def known(*trained):
        folders = [str(tmp_path / f"model_{number}") for number in range(len(trained))]
        for folder, (its_keys, paths) in zip(folders, trained, strict=True):
            os.makedirs(folder, exist_ok=True)
            trained_data.save_keys(folder, its_keys)
            with open(f"{folder}/run.json", "w", encoding="utf-8") as file:
                json.dump({"flags": {}, "shards": dict.fromkeys(paths, 8)}, file)
        caplog.clear()
        return trained_data.count_known(folders, shards, "eval_data_pattern"), caplog.messages

    nothing, first_three, others = (np.array(keys[a:b], np.uint64).ravel() for a, b in ((0, 0), (0, 3), (2, 6)))
    assert known((nothing, []), (nothing, [])) == (0, [])
    count, said = known((first_three, []), (nothing, []), (others, []))
    assert count == 6 and len(said) == 2
    assert (
        f"3 of the 24 examples of --eval_data_pattern were trained on by the model in {tmp_path}/model_0 (" in said[0]
    )
    assert (
        f"4 of the 24 examples of --eval_data_pattern were trained on by the model in {tmp_path}/model_2 (" in said[1]
    )
    assert f"such as {ids[0]}; " in said[0] and f"such as {ids[2]}; " in said[1]
    # A model that knows only its shards, and one that knows nothing.
    assert known((first_three, []), (None, shards.files[1:2]))[0] == 3 + 8
    assert known((first_three, []), (None, []))[0] == 3
    assert known((nothing, []), (None, []))[0] is None
    assert known((None, []), (None, []))[0] is None


def test_models_must_agree_on_the_data_by_default(tmp_path):
    folders = []
    for number, evaluated in enumerate(("a/validation-*", "", "a/v*", "b/validation-*")):
        write_shards(tmp_path / "a", "validation", num_examples=2, num_shards=1)
        write_shards(tmp_path / "b", "validation", num_examples=2, num_shards=1)
        flags = {"train_data_pattern": "somewhere", "eval_data_pattern": evaluated and f"{tmp_path}/{evaluated}"}
        run = {"flags": flags, "shards": {f"{tmp_path}/a/train-0": 5}}
        folders.append(str(tmp_path / f"model_{number}"))
        os.makedirs(folders[-1])
        with open(f"{folders[-1]}/run.json", "w", encoding="utf-8") as file:
            json.dump(run, file)
    expected = [f"{tmp_path}/a/validation-*"]
    assert trained_data.default_patterns(folders[:3], "validation", "eval_data_pattern") == expected
    with pytest.raises(UserError) as error:
        trained_data.default_patterns(folders, "validation", "eval_data_pattern")
    assert str(error.value) == (
        f"--eval_data_pattern: not given, and the models have different data: {folders[0]} has {expected[0]}, "
        f"{folders[3]} has {tmp_path}/b/validation-*; give the shards with --eval_data_pattern='.../validation-*'"
    )
