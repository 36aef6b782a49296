"""Paths as users type them, and commands as the scripts print them."""

import os
import pwd
import re
import shlex
import subprocess

import pytest
from conftest import REPOSITORY, forked_python, jpeg, write_shards
from photo_files import write_folder
from test_layout import SCRIPTS, run_without_heavy_imports

from cats_vs_dogs import config, utils
from cats_vs_dogs.path_flags import expand_path
from cats_vs_dogs.utils import UserError

ROOT = pwd.getpwuid(0)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a/~b",
        "./~x",
        "gs://bucket/~b [1]",
        "run[lr=0.01]",
        "my data/고양이 *?",
        "./$HOME",
        "a$HOME/x",
        "C:",
        "a:b/c",
    ],
)
def test_paths_that_stay_as_they_are(path):
    assert expand_path(path) == path


def test_home_folders(monkeypatch):
    monkeypatch.setenv("HOME", "/home/고양이 [1]")
    assert expand_path("~") == "/home/고양이 [1]"
    assert expand_path("~/m/*~") == "/home/고양이 [1]/m/*~"
    assert expand_path(f"~{ROOT.pw_name}/m") == f"{ROOT.pw_dir}/m"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("~nobody-here/x", r"no user nobody-here; write \./~nobody-here/x for a folder of that name"),
        ("~$report.docx", r"write \./~\$report"),
        ("$HOME/m", r"\$HOME was not replaced .* use double quotes, or write \./\$HOME/m"),
        ("${HOME}/m", "use double quotes"),
        ("--max_steps=3", "its value is missing"),
        ("/data/m\r", "ends with a line break"),
        ("file:///data/a%20b", "write /data/a b$"),
        ("gs:/bucket/m", "write gs://bucket/m$"),
        ("gs:///bucket/m", "write gs://bucket/m$"),
        ("GS://bucket/m", "write gs://bucket/m$"),
        ("https://storage.googleapis.com/b/a%20b/train-*", r"write gs://b/a b/train-\*$"),
        ("https://console.cloud.google.com/storage/browser/b/shards;tab=objects", "write gs://b/shards$"),
        ("http://host/train.zip", "download it first"),
        ("HTTPS://www.kaggle.com/c/dogs-vs-cats", "download it first"),
        ("ftp://host/x", "download it first"),
        ("kaggle://competitions/dogs", "download it first"),
        ("s3://bucket/x", "only paths on this machine and gs:// can be used"),
        ("hdfs://host/x", "only paths on this machine and gs:// can be used"),
        ("abfss://box@host/x", "only paths on this machine and gs:// can be used"),
        ("http:/host/x", "download it first"),
        ("C:\\Users\\me\\photos", "such as /mnt/c/Users/me/photos$"),
    ],
)
def test_paths_that_cannot_be_meant(path, said):
    with pytest.raises(ValueError, match=said) as caught:
        expand_path(path)
    assert "\n" not in str(caught.value)


PATH_FLAGS = {
    "train": ["train_dir", "train_data_pattern", "eval_data_pattern"],
    "eval": ["train_dir", "eval_data_pattern", "mistakes_file"],
    "inference": ["train_dir", "input_data_pattern", "output_file"],
    "export_model": ["train_dir", "export_dir"],
    "batch_predict": ["model_dir", "input_data_pattern", "output_path"],
    "convert_images_to_tfrecords": ["images", "output_dir"],
    "convert_prediction_from_json_to_csv": ["json_prediction_files_pattern", "csv_output_file"],
    "download_tfrecords": ["source", "destination"],
    "sample_data": ["output_dir"],
}


def test_all_path_flags_of_all_scripts_are_read_in_the_same_way():
    assert set(PATH_FLAGS) == set(SCRIPTS)
    names = r"\w*(?:dir|file|pattern|path|images|source|destination)"
    for path in (REPOSITORY / "cats_vs_dogs").glob("*.py"):
        source = path.read_text()
        expected = PATH_FLAGS.get({"config": "train", "train": ""}.get(path.stem, path.stem), [])
        assert sorted(re.findall(r'define_path\(\s*"(\w+)"', source)) == sorted(expected)
        assert not re.findall(rf'DEFINE_string\(\s*"({names})"', source)


@pytest.mark.parametrize("script", ["train", "eval", "convert_images_to_tfrecords"])
@pytest.mark.parametrize("path", ["~nobody-here/m", "https://host/m"])
def test_wrong_paths_are_reported_before_tensorflow_is_imported(script, path):
    flag = PATH_FLAGS[script][0]
    process = run_without_heavy_imports(script, f"--{flag}={path}")
    assert process.returncode == 1 and process.stderr.startswith(f"error: --{flag}={path}: ")
    assert process.stderr.count("\n") == 1


def test_pretrained_weights_in_the_home_folder(monkeypatch, tmp_path):
    from cats_vs_dogs import backbones

    monkeypatch.setenv("HOME", str(tmp_path))
    network = backbones.build("MobileNetV3Small", 32)
    with pytest.raises(UserError, match=f"weights={tmp_path}/none.h5: no such file"):
        backbones.load_weights("MobileNetV3Small", network, "~/none.h5")
    with pytest.raises(UserError, match="weights=~nobody-here/none.h5: this machine has no user"):
        backbones.load_weights("MobileNetV3Small", network, "~nobody-here/none.h5")


NAME = "my data [1] '고양이' *  $x"


def run_printed(output, script, cwd, **environment):
    """Runs the command that a script printed, in a shell, and returns what it printed."""
    commands = [line.strip().removeprefix("next: ") for line in output.splitlines()]
    command = next(line for line in commands if f"/{script}.py" in line)
    python = utils.python_command()
    assert command.startswith(f"{python} ")
    command = shlex.join(forked_python()) + command.removeprefix(python)
    shell = subprocess.run(
        ["bash", "-c", command], cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    assert shell.returncode == 0, command + shell.stderr
    return shell.stderr


@pytest.mark.parametrize("path", ["~x/a", "$HOME/a", "--a", "a'b \"c", "고양이 [1]", "a\\b"])
def test_a_command_reads_the_path_that_is_meant(path):
    *_, argument = shlex.split(utils.command("eval.py", "run_once", train_dir=path))
    meant = expand_path(argument.removeprefix("--train_dir="))
    assert os.path.abspath(meant) == os.path.abspath(path)


def test_a_wrong_default_from_the_environment(fails_in_one_line):
    line = fails_in_one_line("export_model", env={"AIP_CHECKPOINT_DIR": "hdfs://host/x"})
    assert line.startswith("error: --train_dir=hdfs://host/x: only paths on this machine and gs://")


@pytest.mark.slow
def test_every_command_that_is_printed_can_be_pasted(run_script, tmp_path):
    folder, home = tmp_path / NAME, tmp_path / "home [2]"
    names = [f"{one}/{i}.jpg" for one in ("cat", "dog", "others") for i in range(6)]
    photos = {name: jpeg(seed=seed) for seed, name in enumerate(names)}  # Copies in both classes would be warned of.
    write_folder(folder / "photos", photos)
    kit, home = folder / "kit", home.mkdir() or home
    kit.symlink_to(REPOSITORY)
    script = f"{NAME}/kit/cats_vs_dogs/convert_images_to_tfrecords.py"
    command = [*forked_python(), script, f"--images={NAME}/photos", "--output_dir=~/shards [3]"]
    said = run_script("", "--validation_percent=40", command=command, cwd=tmp_path, env={"HOME": str(home)}).stderr
    assert not list(tmp_path.glob("~*"))
    # In /tmp/photo_model by default.
    said = said.replace("/tmp/photo_model", f"'{tmp_path}/model [4]' --num_epochs=1 --image_size=8 --noreport")
    said = run_printed(said, "train", tmp_path)
    assert "WARNING" not in said
    rows = run_printed(said, "inference", tmp_path)
    assert "6 rows" in rows and f"{tmp_path}/model [4]/predictions.csv" in rows
    assert f"{tmp_path}/model [4]/model.ckpt-1" in run_printed(said, "eval", tmp_path)


def test_a_folder_of_pictures_with_an_odd_name_is_trained_on(run_script, tmp_path):
    names = [f"{one}/{i}.jpg" for one in ("cat", "dog") for i in range(6)]
    write_folder(tmp_path / NAME, {name: jpeg(seed=seed) for seed, name in enumerate(names)})
    flags = [
        f"--train_data_pattern={NAME}",
        f"--train_dir={tmp_path}/m",
        "--image_size=4",
        "--num_epochs=1",
        "--noreport",
    ]
    said = run_script("train", *flags, cwd=tmp_path, env={"XDG_CACHE_HOME": str(tmp_path / "cache")}).stderr
    assert f"Photos of {NAME}: train: " in said and "What to type next:" in said


def test_what_is_printed_where_data_is_missing(run_script, tmp_path):
    pattern = write_shards(tmp_path / "shards")
    said = run_script("train", f"--train_data_pattern={pattern}", f"--train_dir={tmp_path}/m", "--num_epochs=1").stderr
    said = said.partition("What to type next:")[2]
    assert "eval.py --" not in said and "..." not in said
    assert re.search(rf"after this command:\n  .*inference.py --train_dir={tmp_path}/m\n", said)
    assert "tensorboard" in said and "To evaluate the model, give eval.py labelled shards" in said


@pytest.mark.parametrize(
    "path", ["model.ckpt-8", "model.ckpt-8.index", "export/step_8", "eval/", "export/step_8/variables"]
)
def test_a_part_of_a_model_is_answered_with_its_folder(tmp_path, path):
    folder = write_folder(tmp_path / "run [1]", {"model_flags.json": b"{}"})
    with pytest.raises(
        UserError, match=rf"holds no model \(no model_flags.json\); write --train_dir='{tmp_path}/run \[1\]'$"
    ):
        config.require_model(f"{folder}/{path}")


def test_a_misspelt_train_dir_is_answered_with_the_model_that_is_there(tmp_path):
    write_folder(tmp_path / "photo_model", {"model_flags.json": b"{}"})
    (tmp_path / "others").mkdir()
    with pytest.raises(UserError, match=rf"; did you mean --train_dir={tmp_path}/photo_model\?$"):
        config.require_model(f"{tmp_path}/photo_modle/")
    with pytest.raises(UserError, match="; train one with train.py first$"):
        config.require_model(f"{tmp_path}/other")
