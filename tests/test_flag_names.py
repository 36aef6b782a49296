"""Flags as other programs call them."""

import dataclasses

import pytest
from test_layout import SCRIPTS, run_without_heavy_imports

from cats_vs_dogs import config, flag_names

TRAIN = [
    *("train_dir", "train_data_pattern", "eval_data_pattern", "num_epochs", "max_steps", "batch_size", "image_size"),
    *("base_learning_rate", "model", "model_params", "label_loss", "optimizer", "optimizer_params", "num_readers"),
    *("early_stop_evals", "help"),
]


@pytest.mark.parametrize(
    ("names", "flag"),
    [
        ("epochs Epochs n_epochs num_train_epochs e num-epochs num_epoch", "num_epochs"),
        ("lr learning_rate learning-rate lr0", "base_learning_rate"),
        ("batch bs b batch-size per_device_train_batch_size batchsize", "batch_size"),
        ("output output_dir o logdir model_dir save_dir weights project checkpoint train-dir", "train_dir"),
        ("data dataset data_dir data_path train d", "train_data_pattern"),
        ("val val_data validation_data val_dir", "eval_data_pattern"),
        ("img_size imgsz img input_size", "image_size"),
        ("steps max_iter iterations", "max_steps"),
        ("loss criterion", "label_loss"),
        ("workers j", "num_readers"),
        ("arch net", "model"),
        ("patience", "early_stop_evals"),
        ("weight_decay", "optimizer_params='{\"weight_decay\": <value>}'"),
    ],
)
def test_the_flag_that_is_meant(names, flag):
    for name in names.split():
        assert flag_names.explain_unknown_flag(name, TRAIN) == f"did you mean --{flag}?"


def test_only_flags_that_the_script_has_are_named():
    available = ["train_dir", "input_data_pattern", "output_file", "batch_size"]
    expected = {
        "data": "did you mean --input_data_pattern?",
        "output": "did you mean --output_file?",
        "logdir": "did you mean --train_dir?",
        "image_size": "--image_size comes from train_dir, where train.py keeps it; leave it out",
        "imgsz": "--image_size comes from train_dir, where train.py keeps it; leave it out",
        "augment": "--augment is a flag of train.py; leave it out",
        "epochs": "--num_epochs is a flag of train.py; leave it out",
        "run_once": "--run_once is a flag of eval.py; leave it out",
        "gpu": "all GPUs are used; CUDA_VISIBLE_DEVICES=0 in front of the command chooses the first",
        "xyzzy": "",
    }
    assert {name: flag_names.explain_unknown_flag(name, available) for name in expected} == expected
    assert "part of the exported model" in flag_names.explain_unknown_flag("image_size", ["model_dir"])


def test_every_script_with_a_flag_is_named():
    scripts = "--input_data_pattern is a flag of batch_predict.py and inference.py; leave it out"
    assert flag_names.explain_unknown_flag("input_data_pattern", ["train_dir", "export_dir"]) == scripts
    assert flag_names.explain_unknown_flag("model_dir", ["export_dir", "train_dir"]) == "did you mean --train_dir?"


def test_the_flags_of_the_model_are_those_that_train_dir_holds():
    assert set(flag_names.FLAGS_OF_THE_MODEL) == {field.name for field in dataclasses.fields(config.ModelSpec)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["photos/"], "write --train_data_pattern=photos/, and put quotes"),
        (["epochs=5"], "did you mean --num_epochs=5?"),
        (["num_epochs=5"], "did you mean --num_epochs=5?"),
        (["true"], "a switch is set by its name alone"),
        (["\u2014num_epochs=3"], "its dash is that of a text program; write --num_epochs=3"),
        (["\u2013-run_once"], "its dash is that of a text program; write --run_once"),
        (["a.jpg", "b.jpg"], "write --name=value, and put quotes around patterns"),
    ],
)
def test_words_without_a_flag(words, said):
    assert said in flag_names.explain_words(words, TRAIN)


@pytest.mark.parametrize(
    ("script", "argument", "said"),
    [
        ("train", "--epochs=3", "did you mean --num_epochs? (--help lists all flags)"),
        ("train", "photos/", "error: photos/: not a flag; write --train_data_pattern=photos/"),
        ("eval", "--image_size=3", "leave it out"),
        ("train", "--log_dir=x", "did you mean --train_dir?"),  # A flag of absl, without effect.
        ("inference", "--threshold=0.5", "flag 'threshold' (--help lists all flags)"),  # absl has --stderrthreshold.
        ("export_model", "--output=x", "did you mean --export_dir?"),
    ],
)
def test_it_is_said_in_one_line_before_tensorflow_is_imported(script, argument, said):
    process = run_without_heavy_imports(script, argument)
    assert process.returncode == 1 and process.stderr.startswith("error: ") and said in process.stderr
    assert process.stderr.count("\n") == 1


def test_every_name_in_the_table_is_a_flag():
    flags = {flag for flag, _ in flag_names._OTHER_NAMES} - {"direct_num_workers"}  # Beam's.
    assert not {flag for flag in flags if not flag_names._scripts_with(flag)}
    scripts = {script for flag in flags for script in flag_names._scripts_with(flag)}
    assert scripts == {f"{script}.py" for script in SCRIPTS}
