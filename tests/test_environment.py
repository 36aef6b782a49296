"""What the user's environment sets changes no result, or one line says so."""

import json
import sys

import keras
import pytest
import tensorflow as tf
from conftest import REPOSITORY, jpeg, make_config, write_shards

from cats_vs_dogs import distribution, train
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.config import ModelSpec

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_the_defaults_of_keras_are_the_kits_own():
    spec = ModelSpec("ConvNetModel", {"filters": 4}, "CrossEntropyLoss", {}, 32, "area")
    images = tf.random.stateless_uniform([2, 32, 32, 3], [1, 2])
    expected = Classifier(spec)
    before = keras.config.image_data_format(), keras.config.floatx(), keras.config.epsilon()
    keras.config.set_image_data_format("channels_first")
    keras.config.set_floatx("float16")
    keras.config.set_epsilon(0.1)
    try:
        other = Classifier(spec)
        assert (keras.config.image_data_format(), keras.config.floatx(), keras.config.epsilon()) == before
    finally:
        keras.config.set_image_data_format(before[0])
        keras.config.set_floatx(before[1])
        keras.config.set_epsilon(before[2])
    assert (other.probability(images).numpy() == expected.probability(images).numpy()).all()


def command(script):
    """Starts a script in a new interpreter: a fork has the locale and the Keras of the first one."""
    return [sys.executable, str(REPOSITORY / "cats_vs_dogs" / f"{script}.py")]


@pytest.mark.parametrize("text", ["[1]", '{"floatx": "bfloat16"}', '{"epsilon": 1}'])
def test_a_keras_json_that_cannot_be_used_is_one_line(tmp_path, fails_in_one_line, text):
    (tmp_path / "keras.json").write_text(text)
    said = fails_in_one_line(
        "train", f"--train_dir={tmp_path}/model", command=command("train"), env={"KERAS_HOME": str(tmp_path)}
    )
    assert said.startswith(f"error: {tmp_path}/keras.json: TensorFlow cannot be imported with it; delete it (")


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nowhere"])
def test_a_notebook_sets_a_backend_that_the_scripts_python_lacks(tmp_path, fails_in_one_line, backend):
    data = ["--train_data_pattern=/nowhere/*", f"--train_dir={tmp_path}"]
    said = fails_in_one_line("train", *data, command=command("train"), env={"MPLBACKEND": backend})
    assert said.startswith("error: --train_data_pattern=/nowhere/*")


@pytest.mark.slow
def test_paths_in_hangul_in_an_ascii_locale(tmp_path, run_script):
    folder = tmp_path / "고양이 사진"
    pattern = write_shards(folder)
    for i in range(2):
        (folder / f"고양이 {i}.jpg").write_bytes(jpeg(seed=i))
    keras_json = {"floatx": "float16", "epsilon": 0.1, "backend": "jax", "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(keras_json))
    environment = {**ASCII, "KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "jax", "TF_USE_LEGACY_KERAS": "1"}
    model = folder / "모델"
    settings = make_config(train_data_pattern=pattern, train_dir=str(model), image_size=8, num_epochs=1)
    train.train(settings, distribution.local_devices())
    flags = [f"--input_data_pattern={folder}/*.jpg", f"--train_dir={model}", f"--output_file={folder}/답.csv"]
    run_script("inference", *flags, command=command("inference"), env=environment)
    rows = (folder / "답.csv").read_text(encoding="utf-8").splitlines()
    assert [row.split(",")[0] for row in rows] == ["Id", "고양이 0.jpg", "고양이 1.jpg"]


def test_an_option_that_keeps_python_from_utf8_is_one_line(tmp_path, fails_in_one_line):
    script = [sys.executable, "-X", "utf8=0", *command("export_model")[1:]]
    said = fails_in_one_line("export_model", f"--train_dir={tmp_path}", command=script, env=ASCII)
    assert said == "error: -X utf8=0: paths must be UTF-8; leave the option out"
