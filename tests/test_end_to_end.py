"""The kit as a user meets it: through the command line, from any folder, with good and bad input."""

import csv
import json
import re
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import (
    DATA,
    REPOSITORY,
    RUN_SCRIPTS,
    forked_python,
    jpeg,
    make_config,
    run_scripts,
    values_of,
    write_shards,
)

from cats_vs_dogs import distribution, train_dir
from cats_vs_dogs import train as train_script


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A folder with train, validation and test shards that a linear model tells apart."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, "train", num_examples=64, num_shards=3)
    write_shards(folder, "validation", num_examples=20, num_shards=2)
    write_shards(folder, "test", num_examples=15, num_shards=2, labelled=False)
    return folder


def training(shards, folder, *flags):
    """Returns train.py and its flags."""
    return ["train", f"--train_data_pattern={shards}/train-*", f"--train_dir={folder}", "--batch_size=16", *flags]


def train_here(shards, folder, **settings):
    """Trains in this process, which is faster."""
    settings = {"train_data_pattern": f"{shards}/train-*", "train_dir": str(folder), "batch_size": 16, **settings}
    train_script.train(make_config(**settings), distribution.local_devices())


@pytest.fixture(scope="module")
def trained_and_said(run_script, shards, tmp_path_factory):
    """A train_dir with a LogisticModel, and what training said. Tests must leave it as it is."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, run_script(*training(shards, folder)).stderr


@pytest.fixture(scope="module")
def trained(trained_and_said):
    """The train_dir."""
    return trained_and_said[0]


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def weights_of(folder):
    path = tf.train.latest_checkpoint(str(folder))
    return path, values_of(path)


@pytest.mark.slow
def test_without_a_flag_the_sample_set_is_used(run_script, tmp_path):
    # --train_dir only because the default, /tmp/cvd_model, may hold a model of whoever runs the tests.
    where = f"--train_dir={tmp_path}"
    said = run_script("train", where).stderr
    assert "using the kit's own sample set" in said
    assert "LogisticModel: 3,073 parameters." in said
    assert "training step 10 | Loss: " in said
    assert f"eval.py --run_once --train_dir={tmp_path}" in said
    evaluated = run_script("eval", "--run_once", "--noreport", where)
    metrics = json.loads((tmp_path / "eval" / "metrics-40.json").read_text())
    assert "epoch/eval number 40 | Avg_Hit@1: " in evaluated.stderr
    assert 0.6 < metrics["avg_hit_at_one"] < 0.95
    # The table alone is on stdout, and says what no log line does but that of 2017.
    assert evaluated.stdout.startswith(f"accuracy                    {metrics['avg_hit_at_one']:.4f}\n")
    assert f"The worst of {round(500 * (1 - metrics['avg_hit_at_one']))} mistakes:\n" in evaluated.stdout
    assert "log loss" not in evaluated.stderr and "mistakes" not in evaluated.stderr
    (events,) = (tmp_path / "eval").glob("events.*")
    written = f"{tmp_path}/eval/metrics-40.json, {tmp_path}/eval/metrics.jsonl, {events}"
    assert f"Wrote {written}.\n" in evaluated.stderr
    said = run_script("inference", where).stderr
    assert "num examples processed: " in said
    rows = rows_of(tmp_path / "predictions.csv")
    assert rows[0] == ["Id", "Category"]
    assert len(rows) == 1 + 500
    assert {row[1] for row in rows[1:]} == {"0", "1"}


def test_what_training_leaves_behind(trained):
    names = {path.name.split(".out.")[0] for path in trained.iterdir()}
    files = {"model_flags.json", "run.json", "checkpoint", "model.ckpt-20.index", "model.ckpt-20.data-00000-of-00001"}
    assert names == files | {"events", "export", "metrics.jsonl", "trained_on.npy"}
    assert [path.name for path in (trained / "export").iterdir()] == ["step_20"]
    run = json.loads((trained / "run.json").read_text())
    assert run["parameters"] == 3073
    assert sorted(run["shards"].values()) == [21, 21, 22]
    assert run["flags"]["batch_size"] == 16
    assert run["versions"]["tensorflow"] == tf.__version__


def test_summaries_have_the_tags_of_2017_and_descriptions(run_script, shards, trained, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shutil.copytree(trained, tmp_path / "model")
    pattern = f"--eval_data_pattern={shards}/validation-*"
    run_script("eval", f"--train_dir={tmp_path}/model", pattern, "--run_once", "--noreport", "--batch_size=8")

    def charts(folder):
        events = EventAccumulator(str(folder)).Reload()
        metadata = {tag: events.SummaryMetadata(tag) for tag in events.Tags()["tensors"]}
        of_runs = ("_hparams_/experiment", "_hparams_/session_start_info", "flags")
        assert all(one.summary_description for tag, one in metadata.items() if tag not in of_runs)
        return set(metadata), {tag for tag, one in metadata.items() if one.plugin_data.plugin_name == "scalars"}

    compared = {"Compare/accuracy", "Compare/log_loss", "Compare/loss"}
    tags, scalars = charts(tmp_path / "model" / "eval")
    batches = {f"GlobalStep/Eval_{name}" for name in ("Hit@1", "Perr", "Loss", "Example_Second")}
    of_2017 = {f"Epoch/Eval_{name}" for name in ("Avg_Hit@1", "Avg_Perr", "Avg_Loss", "MAP", "GAP")}
    assert scalars == compared | batches | of_2017 | {"Epoch/Eval_ROC_AUC"}
    pictures = {"figures/confusion_matrix", "figures/roc_curve", "photos/confident_mistakes", "photos/least_sure"}
    assert tags - scalars == pictures | {"pr_curve", "model_input_raw", "model_activations"}

    tags, scalars = charts(trained)
    speed = {"global_step/Examples/Second", "global_step/Waiting_For_Data"}
    of_2017 = {f"model/Training_{name}" for name in ("Hit@1", "Perr", "GAP")} | {"label_loss", "reg_loss"}
    assert scalars == compared | speed | of_2017 | {"gradient_norm", "learning_rate"}
    assert tags >= {"gradient_norms_log10", "photos/training", "flags", "_hparams_/session_start_info"}
    assert {"model/input_raw", "dense/kernel", "dense/bias"} <= tags
    events = EventAccumulator(str(trained)).Reload()
    assert [event.step for event in events.Tensors("Compare/loss")] == [10, 20]


@pytest.mark.slow
def test_every_loss(run_script, shards, tmp_path):
    """Of MoeModel, whose three kinds of predictions have more code than those of LogisticModel."""
    pattern, scripts = f"{shards}/validation-*", []
    folders = {name: tmp_path / name for name in ("CrossEntropyLoss", "HingeLoss", "SoftmaxLoss")}
    for label_loss, folder in folders.items():
        where, flags = f"--train_dir={folder}", ["--model=MoeModel", f"--label_loss={label_loss}"]
        scripts.append(training(shards, folder, *flags, "--num_epochs=10"))
        scripts.append(["eval", where, "--run_once", "--noreport", f"--eval_data_pattern={pattern}", *flags])
        scripts.append(["inference", where, f"--input_data_pattern={pattern}"])
    run_scripts(run_script, scripts)
    for label_loss, folder in folders.items():
        metrics = json.loads((folder / "eval" / "metrics-40.json").read_text())
        assert metrics["avg_hit_at_one"] > 0.9, label_loss
        assert metrics["roc_auc"] > 0.95, label_loss
        rows = rows_of(folder / "predictions.csv")[1:]
        right = np.mean([(row[0].startswith("dog")) == (row[1] == "1") for row in rows])
        assert right == pytest.approx(metrics["avg_hit_at_one"]), label_loss


@pytest.mark.slow
def test_a_users_own_models_and_loss(run_script, shards, tmp_path):
    """A contestant edits cvd_models.py and losses.py in a clone; everything else works without being touched."""
    clone = tmp_path / "clone"
    shutil.copytree(REPOSITORY / "cats_vs_dogs", clone / "cats_vs_dogs")
    (clone / "tests").mkdir()
    shutil.copy(RUN_SCRIPTS, clone / "tests")
    with open(clone / "cats_vs_dogs" / "cvd_models.py", "a", encoding="utf-8") as file:
        file.write("""

class ConvModel(models.BaseModel):
    def create_model(self, model_input, num_classes=2, filters=8, **params):
        net = keras.layers.RandomFlip("horizontal")(model_input)
        net = keras.layers.Conv2D(filters, 3, strides=2, use_bias=False)(net)
        net = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.5)(net))
        net = keras.layers.Dropout(0.3)(keras.layers.GlobalAveragePooling2D()(net))
        return {"predictions": keras.layers.Dense(1, activation="sigmoid")(net)}


class OwnLossModel(models.BaseModel):
    def create_model(self, model_input, num_classes=2, labels=None, **params):
        net = keras.layers.Flatten()(model_input)
        p = keras.layers.Dense(1, activation="sigmoid", kernel_regularizer="l2")(net)
        return {"predictions": p, "loss": ops.mean(ops.square(p - ops.cast(labels, "float32")))}
""")
    with open(clone / "cats_vs_dogs" / "losses.py", "a", encoding="utf-8") as file:
        file.write("""

class SquaredLoss(BaseLoss):
    def calculate_loss(self, predictions, labels, weight=1.0, **params):
        return weight * tf.reduce_mean(tf.square(predictions - tf.cast(labels, tf.float32)))
""")

    pattern, scripts = f"{shards}/validation-*", []
    for name, flags in {
        "conv": ["--model=ConvModel", '--model_params={"filters": 4}', "--label_loss=SquaredLoss"],
        "own": ["--model=OwnLossModel"],
    }.items():
        where = f"--train_dir={tmp_path}/{name}"
        scripts += [
            training(shards, tmp_path / name, "--num_epochs=15", *flags),
            ["eval", where, "--run_once", "--noreport", f"--eval_data_pattern={pattern}"],
            ["inference", where, f"--input_data_pattern={pattern}", "--output_column=probability"],
        ]
    scripts.append(["export_model", f"--train_dir={tmp_path}/own", f"--export_dir={tmp_path}/own/export/saved"])
    flags = ["--model=OwnLossModel", "--augment=flip_crop_mix"]
    scripts.append(training(shards, tmp_path / "mixed", *flags))
    process = run_scripts(run_script, scripts, clone, check=False)
    assert process.returncode == 1 and "Traceback" not in process.stderr, process.stderr
    last_line = process.stderr.strip().splitlines()[-1]
    assert last_line.startswith("error: --augment=flip_crop_mix: OwnLossModel calculates its own loss"), process.stderr
    for folder, exports in ((tmp_path / "conv", ["step_60"]), (tmp_path / "own", ["step_60", "saved"])):
        metrics = json.loads((folder / "eval" / "metrics-60.json").read_text())
        assert metrics["avg_hit_at_one"] > 0.9

        # Evaluation, inference and the export agree on the same photos.
        rows = rows_of(folder / "predictions.csv")[1:]
        probabilities = np.array([float(row[1]) for row in rows])
        labels = np.array([row[0].startswith("dog") for row in rows])
        log_loss = -np.mean(np.log(np.where(labels, probabilities, 1 - probabilities)))
        assert metrics["log_loss"] == pytest.approx(log_loss, abs=1e-5)  # six decimals in the CSV
        squared = np.mean((probabilities - labels) ** 2)
        assert metrics["avg_loss"] == pytest.approx(squared, abs=2e-6)
        files = tf.data.TFRecordDataset(sorted(map(str, shards.glob("validation-*"))))
        records = tf.stack(list(files))
        for export in (folder / "export" / name for name in exports):
            outputs = tf.saved_model.load(str(export)).signatures["serving_default"](example_bytes=records)
            assert [one.decode() for one in outputs["image_id"].numpy()] == [row[0] for row in rows]
            np.testing.assert_allclose(outputs["predictions"][:, 1], probabilities, atol=2e-6, rtol=0)


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_weights(shards, tmp_path, trained, log):
    train_here(shards, tmp_path, max_steps=7)
    train_here(shards, tmp_path)
    train_here(shards, tmp_path)
    assert f"Resuming from {tmp_path}/model.ckpt-7." in log.text
    (path, weights), (expected_path, expected) = weights_of(tmp_path), weights_of(trained)
    assert path.endswith("model.ckpt-20") and expected_path.endswith("model.ckpt-20")
    assert weights.keys() == expected.keys()
    for name in weights.keys() - {"save_counter/.ATTRIBUTES/VARIABLE_VALUE"}:
        np.testing.assert_array_equal(weights[name], expected[name], err_msg=name)
    nothing_left = "Nothing left to train: the model is at step 20, and training ends at 20. Raise --num_epochs"
    assert nothing_left in log.text


def test_with_and_without_cache_the_same_weights(run_script, shards, tmp_path, trained_and_said):
    trained, said_with_cache = trained_and_said
    assert "Cache: pictures are decoded once and stay in memory" in said_with_cache
    said_without = run_script(*training(shards, tmp_path, "--cache=none")).stderr
    assert "Cache: " not in said_without and "Waiting for data: " in said_without
    # The log is the same too, but for times.
    both = (said_with_cache, said_without)
    once, twice = (
        re.findall(r"^training step (\d+) (.*)Examples/sec: [.\d]+ (.*GAP.*) \| \d+:.* left", log, re.M) for log in both
    )
    assert len(once) == 2 and once == twice
    (_, with_cache), (_, without) = weights_of(trained), weights_of(tmp_path)
    for name, value in with_cache.items():
        np.testing.assert_array_equal(value, without[name], err_msg=name)


@pytest.mark.slow
def test_profile_and_precision(run_script, shards, tmp_path):
    trains = training(shards, tmp_path, "--profile_steps=3,6", "--precision=mixed_bfloat16", "--model=MoeModel")
    predicts = [f"--train_dir={tmp_path}", f"--input_data_pattern={shards}/test-*", "--output_column=probability"]
    run_scripts(run_script, [trains, ["inference", *predicts]])
    assert list((tmp_path / "plugins" / "profile").rglob("*.xplane.pb"))
    # The export and the evaluation graph calculate in float32, whatever training did.
    predicted = [float(row[1]) for row in rows_of(tmp_path / "predictions.csv")[1:]]
    records = tf.stack(list(tf.data.TFRecordDataset(sorted(map(str, shards.glob("test-*"))))))
    exported = tf.saved_model.load(str(tmp_path / "export" / "step_20")).signatures["serving_default"]
    np.testing.assert_allclose(exported(example_bytes=records)["predictions"][:, 1], predicted, atol=2e-6, rtol=0)
    train_dir.delete_model(str(tmp_path))  # Whatever the profile left there.
    assert not (tmp_path / "model_flags.json").exists()


def test_fewer_examples_than_a_batch(shards, tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    train_here(shards, tmp_path, batch_size=1000)
    assert "64 examples, 5 steps = 5 epochs of 1 steps." in caplog.text
    assert "training step 5 | Loss: " in caplog.text


def test_event_files_of_another_program_stay(shards, tmp_path):
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        tf.summary.scalar("mine", 1.0, step=7)
    (mine,) = tmp_path.iterdir()
    before = mine.read_bytes()
    train_here(shards, tmp_path, max_steps=1)
    assert mine.read_bytes() == before


def test_legacy_pixels_cosine_and_keras_optimizer(shards, tmp_path):
    settings = {"resize_method": "legacy_bilinear", "image_size": 20, "learning_rate_schedule": "cosine"}
    train_here(shards, tmp_path, **settings, warmup_examples=32, optimizer="AdamW", max_steps=3)
    assert json.loads((tmp_path / "model_flags.json").read_text())["resize_method"] == "legacy_bilinear"


@pytest.mark.slow
def test_three_ways_to_start_a_script(run_script, shards, trained, tmp_path):
    package = REPOSITORY / "cats_vs_dogs"
    flags = [f"--train_dir={trained}", f"--input_data_pattern={shards}/test-*"]
    outputs = []
    for name, command, cwd in (
        ("as_file", [*forked_python(), str(package / "inference.py")], "/"),
        ("in_folder", [*forked_python(), "inference.py"], package),
        ("as_module", [sys.executable, "-m", "cats_vs_dogs.inference"], "/"),
    ):
        output = tmp_path / f"{name}.csv"
        process = run_script("inference", *flags, f"--output_file={output}", command=command, cwd=cwd)
        outputs.append(output.read_text())
    assert outputs[0] == outputs[1] == outputs[2]
    assert outputs[0].splitlines()[:3] == ["Id,Category", "0.jpg,0", "2.jpg,0"]
    # TensorFlow, which the last one imported, says nothing of its own.
    for line in ("oneDNN", "cuInit", "cuda drivers", "cudart", "InitializeLog", "cpu_feature_guard"):
        assert line not in process.stderr
    assert process.stderr.startswith("number of input files: ")
    for script in ("train", "eval", "export_model"):
        for command, cwd in (
            ([sys.executable, f"{script}.py"], package),
            ([sys.executable, "-m", f"cats_vs_dogs.{script}"], "/"),
        ):
            shown = run_script(script, "--help", command=command, cwd=cwd, check=False).stdout
            assert "--train_dir" in shown


def test_plain_photos_and_names_that_need_quotes(run_script, trained, tmp_path):
    for i, name in enumerate(["a,b.jpg", 'say "miau".jpg', "강아지.jpg"]):
        (tmp_path / name).write_bytes(jpeg(seed=i))
    output = tmp_path / "out.csv"
    flags = [f"--train_dir={trained}", f"--input_data_pattern={tmp_path}/*.jpg", f"--output_file={output}"]
    run_script("inference", *flags)
    assert sorted(row[0] for row in rows_of(output)) == ["Id", "a,b.jpg", 'say "miau".jpg', "강아지.jpg"]
    assert '"a,b.jpg",' in output.read_text()


@pytest.mark.slow
def test_skipping_bad_examples(run_script, tmp_path):
    pattern = write_shards(tmp_path / "shards", num_examples=30, num_shards=2, bad=(4, 7))
    model = tmp_path / "model"
    flags = [f"--train_dir={model}", "--bad_examples=skip"]
    trains = ["train", f"--train_data_pattern={pattern}", *flags, "--num_epochs=1"]
    evaluates = ["eval", *flags, "--run_once", "--noreport", f"--eval_data_pattern={pattern}"]
    predicts = ["inference", *flags, f"--input_data_pattern={pattern}"]
    said = run_scripts(run_script, [trains, evaluates, predicts]).stderr
    assert "WARNING: 2 of 30 records cannot be read and are skipped" in said
    assert "28 examples, 1 steps" in said
    assert len(rows_of(model / "bad_examples.csv")) == 3
    assert len(rows_of(model / "predictions.csv")) == 1 + 28
    assert len(rows_of(model / "predictions.csv.bad_examples.csv")) == 3
    train_dir.delete_model(str(model))  # As --start_new_model does.
    assert not list(model.glob("*.csv"))


BAD_TRAINING = {
    "no such file": (["--train_data_pattern=/nowhere/*"], "--train_data_pattern=/nowhere/*: matches no file"),
    "a folder": (["--train_data_pattern={shards}"], "is a folder; write --train_data_pattern='{shards}/train-*'"),
    "unknown model": (["--model=Logistc"], "--model=Logistc: no such class in cvd_models.py; did you mean Logistic"),
    "not a model": (
        ["--model=ops"],
        "--model=ops: it is not a subclass of models.BaseModel; available: ConvNetModel, Logistic",
    ),
    "unknown loss": (["--label_loss=hingeloss"], "did you mean HingeLoss?"),
    "not a loss": (["--label_loss=UserError"], "it is not a subclass of losses.BaseLoss"),
    "unknown optimizer": (["--optimizer=Adm"], "--optimizer=Adm: no such optimizer; did you mean Adam?"),
    "batch size": (["--batch_size=0"], "--batch_size=0"),
    "epochs": (["--num_epochs=-1"], "--num_epochs=-1"),
    "not finite": (["--clip_gradient_norm=nan"], "--clip_gradient_norm=nan: must be a finite number"),
    "too large": (["--seed=4294967296"], "--seed=4294967296"),
    "no train_dir": (["--train_dir="], "--train_dir= is empty"),
    "other optimizer": (["--train_dir={trained}", "--optimizer=Ftrl"], "was made with Adam, not with Ftrl"),
    "other slots": (
        ["--train_dir={trained}", '--optimizer_params={{"amsgrad": true}}'],
        "--optimizer_params: {trained}/model.ckpt-",
    ),
    "no number": (["--batch_size=many"], "--batch_size=many"),
    "unknown flag": (["--batchsize=3"], "Unknown command line flag 'batchsize'; did you mean --batch_size?"),
    "no flag": (["train.tfrecord"], "train.tfrecord: not a flag"),
    "shrinks": (
        ["--first_image_size=64"],
        "first_image_size=64, image_size=32: pictures grow to image_size; give a smaller",
    ),
    "grows": (["--first_image_size=16"], "--first_image_size: LogisticModel cannot be built for pictures that grow"),
    "too small at first": (
        ["--model=PretrainedModel", '--model_params={{"backbone": "InceptionV3", "weights": null}}', "--image_size=96"]
        + ["--first_image_size=64"],
        "--first_image_size=64: the model does not take that size: --image_size=64: InceptionV3 takes pictures of at",
    ),
    "loss parameter out of range": (
        ['--loss_params={{"label_smoothing": 1.5}}'],
        'error: --loss_params: "label_smoothing" must be at least 0 and less than 1; got 1.5',
    ),
    "schedule": (["--learning_rate_schedule=cosin"], "should be one of <exponential|cosine|constant>"),
    "no JSON": (["--model_params={{num_mixtures: 4"], "--model_params={{num_mixtures: 4: not JSON"),
    "no object": (["--model_params=4"], "--model_params=4: expected a JSON object"),
    "parameter": (
        ["--model=MoeModel", '--model_params={{"mixtures": 4}}'],
        'MoeModel.create_model has no parameter "mixtures"; it takes: l2_penalty, num_mixtures',
    ),
    "loss parameter": (['--loss_params={{"b": 4}}'], 'CrossEntropyLoss.calculate_loss has no parameter "b"'),
    "unlabelled": (["--train_data_pattern={shards}/test-*"], "it has no image/class/label; test shards cannot be used"),
    "photos": (["--train_data_pattern={photos}/*.jpg"], "none of the 1 files in it has a label; put photos into"),
    "read-only": (["--train_dir=/proc/model"], "--train_dir=/proc/model: cannot be written to"),
    "new model that cannot be built": (
        ["--train_dir={trained}", "--start_new_model", "--model=MoeModel", '--model_params={{"nix": 1}}'],
        'has no parameter "nix"',
    ),
    "new model on bad data": (
        ["--train_dir={trained}", "--start_new_model", "--train_data_pattern={shards}/test-*"],
        "test shards cannot be used here",
    ),
    "other model": (
        ["--train_dir={trained}", "--model=MoeModel"],
        "has model=LogisticModel; pass the same to resume it",
    ),
}


@pytest.mark.slow
def test_bad_input_of_train(run_script, shards, trained, tmp_path):
    """All in one process, in which each says one line and trains nothing."""
    (tmp_path / "1.jpg").write_bytes(jpeg())
    names = {"shards": shards, "photos": tmp_path, "trained": trained}
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    defaults = [f"--train_data_pattern={shards}/train-*", f"--train_dir={tmp_path}/model"]
    scripts = [["train", *defaults, *(flag.format(**names) for flag in flags)] for flags, _ in BAD_TRAINING.values()]
    process = run_scripts(run_script, scripts, check=False)
    assert process.returncode == 1 and "Traceback" not in process.stderr, process.stderr
    lines = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    for (case, (_, said)), line in zip(BAD_TRAINING.items(), lines, strict=True):
        assert said.format(**names) in line, case
    assert not list(tmp_path.rglob("model.ckpt*"))
    assert before == {path: path.stat().st_mtime_ns for path in trained.rglob("*")}


def test_bad_input_of_eval_inference_and_export(fails_in_one_line, shards, trained, tmp_path):
    good = f"--train_dir={trained}"
    pattern = f"--eval_data_pattern={shards}/validation-*"
    for script in ("eval", "inference", "export_model"):
        line = fails_in_one_line(script, f"--train_dir={tmp_path}/none")
        assert "holds no model (no model_flags.json); train one with train.py first" in line
    assert "holds no checkpoint" in fails_in_one_line(
        "eval", f"--train_dir={_without_checkpoint(trained, tmp_path)}", "--run_once"
    )
    assert "was trained with model=LogisticModel" in fails_in_one_line("eval", good, pattern, "--model=MoeModel")
    unlabelled = f"--eval_data_pattern={shards}/test-*"
    assert "it has no image/class/label" in fails_in_one_line("eval", good, unlabelled, "--run_once")
    nothing = "--input_data_pattern=/nowhere/*.jpg"
    assert "matches no file" in fails_in_one_line("inference", good, nothing)
    inputs = f"--input_data_pattern={shards}/test-*"
    line = fails_in_one_line("inference", good, inputs, f"--output_file={tmp_path}/gone/out.csv")
    assert f"--output_file={tmp_path}/gone/out.csv: the folder {tmp_path}/gone does not exist" in line
    assert "is a folder" in fails_in_one_line("inference", good, inputs, f"--output_file={tmp_path}")


def _without_checkpoint(trained, tmp_path):
    folder = tmp_path / "flags_only"
    folder.mkdir()
    shutil.copy(trained / "model_flags.json", folder)
    return folder


def test_an_export_replaces_nothing_but_an_export(fails_in_one_line, run_script, trained, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "thesis.txt"):
        line = fails_in_one_line("export_model", f"--train_dir={trained}", f"--export_dir={path}")
        assert f"{path}: exists and is not a SavedModel" in line
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    run_scripts(run_script, [["export_model", f"--train_dir={trained}", f"--export_dir={tmp_path}/saved"]] * 2)


def test_going_on_with_other_data_is_said(run_script, shards, trained, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(trained, folder)
    other = write_shards(tmp_path / "other", num_examples=40)
    said = run_script("train", f"--train_data_pattern={other}", f"--train_dir={folder}", "--seed=3").stderr
    changes = "other shards, batch_size=16 (now 512), seed=0 (now 3); it resumes from its step"
    assert f"WARNING: the model in {folder} was trained with {changes}" in said
    assert "To predict photos, name them (photo.jpg, a folder or a .zip file) after this command:" in said


def test_help_is_no_error(run_script):
    said = run_script("convert_prediction_from_json_to_csv", "--help").stdout
    assert "--csv_output_file" in said and "Converts the JSON lines" in said


def test_a_failed_inference_leaves_the_older_file(fails_in_one_line, trained, tmp_path):
    pattern = write_shards(tmp_path / "shards", num_examples=30, num_shards=1, bad=(20,))
    output = tmp_path / "out.csv"
    output.write_text("older\n")
    flags = [f"--train_dir={trained}", f"--input_data_pattern={pattern}", f"--output_file={output}", "--batch_size=4"]
    line = fails_in_one_line("inference", *flags)
    assert "train-00000-of-00001: record 20 (cat.20.jpg): its picture cannot be decoded" in line
    assert output.read_text() == "older\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "shards"]
    (tmp_path / "x.jpg").write_bytes(jpeg()[:200])
    line = fails_in_one_line("inference", flags[0], f"--input_data_pattern={tmp_path}/*.jpg", flags[2])
    assert "x.jpg: JPEG with a damaged header; fix or remove it, or pass --bad_examples=skip" in line
    assert output.read_text() == "older\n"


def test_a_train_dir_of_version_2_0_resumes(run_script, tmp_path):
    folder, old = tmp_path / "model", DATA / "train_dir_of_2_0"
    shutil.copytree(old, folder)
    write_shards(tmp_path, "train", num_examples=24)
    write_shards(tmp_path, "validation", num_examples=9, num_shards=1)
    flags = [f"--train_data_pattern={tmp_path}/train-*", f"--eval_data_pattern={tmp_path}/validation-*"]
    flags += [f"--train_dir={folder}", "--image_size=8", "--batch_size=8", "--num_epochs=5", "--augment=flip"]
    said = run_script("train", *flags, "--noreport", '--optimizer_params={"beta_1": 0.8}').stderr
    assert f"Resuming from {folder}/model.ckpt-9." in said
    changes = re.findall("was trained with (.*); it resumes", said)
    assert not any("tensorflow=" not in change and "keras=" not in change for change in changes), changes
    assert (folder / "model.ckpt-15.index").exists()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "evaluation"] == [3, 6, 9, 12, 15]
    for path in old.glob("eval/events*"):  # It may be eval.py's: nobody can tell.
        assert path.read_bytes() == (folder / "eval" / path.name).read_bytes()


@pytest.mark.slow
def test_a_path_is_not_a_pattern(run_script, shards, trained, tmp_path):
    model = tmp_path / "model [1] *?{a}"
    shutil.copytree(trained, model)
    goes_on = training(shards, model, "--num_epochs=6", "--keep_checkpoints=1")
    evaluates = ["eval", f"--train_dir={model}", f"--eval_data_pattern={shards}/validation-*", "--run_once"]
    predicts = ["inference", f"--train_dir={model}", f"--input_data_pattern={shards}/test-*"]
    said = run_scripts(run_script, [goes_on, evaluates, predicts]).stderr
    assert f"Resuming from {model}/model.ckpt-20." in said
    assert [path.name for path in model.iterdir() if path.suffix == ".index"] == ["model.ckpt-24.index"]
    assert (model / "eval" / "metrics-24.json").exists() and (model / "predictions.csv").exists()
    train_dir.delete_model(str(model))  # As --start_new_model does.
    assert not [path for path in model.iterdir() if path.suffix == ".index"]


@pytest.mark.slow
def test_evaluation_while_training_leaves_the_history_of_eval(run_script, shards, trained, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(trained, folder)
    pattern = f"{shards}/validation-*"
    run_script("eval", f"--train_dir={folder}", f"--eval_data_pattern={pattern}", "--run_once", "--noreport")
    # Those in metrics-<step>.json are of the newest evaluation, whoever made it.
    names = [path for path in (folder / "eval").iterdir() if not path.name.startswith("metrics-")]
    history = {path: path.read_bytes() for path in names}
    assert len(history) == 2  # An event file and metrics.jsonl.
    train_here(shards, folder, eval_data_pattern=pattern, num_epochs=6, report=True)
    assert {path: path.read_bytes() for path in history} == history
    assert "step 24" in (folder / "eval" / "report.html").read_text()
