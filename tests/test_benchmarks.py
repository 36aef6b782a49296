"""Each benchmark runs once on a tiny input and prints its table."""

import os
import re
import shlex
import subprocess
import sys
import zipfile

import pytest
from conftest import REPOSITORY, forked_python, jpeg, write_shards

from cats_vs_dogs import checkpoints, export_model
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.config import ModelSpec

BENCHMARKS = {
    "batch_prediction": ["--shards={shards}", "--train_dir={train_dir}", "--model_dir={export}"]
    + ["--rounds=1", "--copies=2", "--workers", "1"],
    "devices": ["--shards={shards}", "--rounds=1", "--batch_size=8", "--epochs=7", "--only=2 workers"],
    "evaluation": ["--shards={shards}", "--rounds=1"],
    "input_pipeline": ["--shards={shards}", "--images={images}", "--sizes", "32", "--rounds=1"],
    "memory": ["--shards={shards}", "--sizes", "8", "--rounds=1", "--epochs=2", "--batch_size=8", "--num_photos=16"]
    + ["--caches", "disk"],
    "metrics": ["--predictions=1000"],
    "recipes": ["--images={images}.zip", "--recipe=", "--photos", "8", "--seeds=1", "--choose", "--keep=kept"]
    + ["--", "--model=LogisticModel", "--image_size=8", "--max_steps=1", "--noreport"],
    "train_step": ["--rounds=1", "--steps=10", "--only=LogisticModel"],
    "whole_run": ["--images={images}.zip", "--rounds=1", "--only=^train, 1 epoch$|^eval$|^inference$|convert"],
}
SLOW = ("batch_prediction", "devices", "evaluation", "memory", "recipes", "train_step", "whole_run")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Returns paths of photos, as a folder and as a .zip of the same name, of shards and of a model with its export."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number in (*range(1, 13), 2001, 2002):  # recipes.py trains on the first ones and tests on the others.
            for animal in ("cat", "dog"):
                path = folder / "images" / f"{animal}.{number}.jpg"
                path.write_bytes(jpeg(seed=number))
                archive.write(path, path.name)
    classifier = Classifier(ModelSpec("LogisticModel", {}, "CrossEntropyLoss", {}, 8, "area"))
    export_model.ModelExporter(classifier).export_model(str(folder / "export"))
    checkpoints.save_best(classifier, str(folder / "train_dir"), 1, {})
    shards = write_shards(folder / "shards", num_examples=24, num_shards=2)
    return {
        "images": folder / "images",
        "shards": shards,
        "export": folder / "export",
        "train_dir": folder / "train_dir",
    }


def test_no_benchmark_is_forgotten_here():
    assert {path.stem for path in (REPOSITORY / "benchmarks").glob("*.py")} == {*BENCHMARKS, "common"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in BENCHMARKS]
)
def test_a_benchmark_prints_its_table(data, tmp_path, name):
    process = subprocess.run(
        [
            *forked_python(),
            str(REPOSITORY / "benchmarks" / f"{name}.py"),
            *(flag.format(**data) for flag in BENCHMARKS[name]),
        ],
        env={**os.environ, "BENCHMARK_PYTHON": shlex.join(forked_python())},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert process.returncode == 0, process.stderr
    assert re.match(r"\d+ cores, ", process.stdout)
    rows = [line.strip("| ").split(" | ") for line in process.stdout.splitlines() if line.startswith("| ")]
    header, line, *rows = rows
    assert set(line) == {"---"} and rows
    assert all(float(value.replace(",", "")) >= 0 for value in re.findall(r"\d[\d,]*\.?\d*", " ".join(rows[-1][1:])))
    assert re.search(r"\d", rows[-1][-1]), process.stdout  # The ratio or figure in the last column.
    if name == "recipes":
        assert re.search(r"^8 photos, seed 0: seconds \d+\.\d+; accuracy \d", process.stdout, re.MULTILINE)
        kept = {path.name for path in (tmp_path / "kept").iterdir()}
        assert kept - {"cache"} == {"-8-0", "shards_1_4", "shards_2001_2250"}


def test_the_peak_memory_of_a_process_is_its_own_and_not_that_of_the_benchmark():
    code = """
import sys
import common
large = bytearray(b"1" * 300_000_000)
_, small = common.run_process([sys.executable, "-c", ""])
_, middle = common.run_process([sys.executable, "-c", "bytearray(b'1' * 100_000_000)"])
print(small, middle)
"""
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY / "benchmarks")
    small, middle = map(int, process.stdout.split())
    assert small < 60_000 and 97_000 < middle < 260_000  # KiB
