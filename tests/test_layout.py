"""How the code is laid out: imports go downwards, no module does anything when it is imported."""

import ast
import subprocess
import sys

import pytest
from conftest import REPOSITORY

# A module imports only from floors above its own in this list.
FLOORS = [
    {"utils", "labels", "augmentation", "event_files", "interruption", "pictures", "summaries", "terminal"},
    {"files"},
    {"average_precision_calculator", "backbones", "models", "losses", "optimizers", "tfrecords", "metrics_file"},
    {"mean_average_precision_calculator", "cvd_models", "readers", "photo_sources", "sample_data", "submission"},
    {"eval_util", "classifier", "bad_examples", "distribution"},
    {"batch_pipeline", "checkpoints", "run_record", "trainer"},
    {
        "export_model",
        "eval",
        "inference",
        "batch_predict",
        "convert_images_to_tfrecords",
        "convert_prediction_from_json_to_csv",
        "download_tfrecords",
    },
    {"train"},
]
PACKAGE = REPOSITORY / "cats_vs_dogs"


def test_imports_go_downwards():
    floor_of = {name: number for number, names in enumerate(FLOORS) for name in names}
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*floor_of, "__init__"}
    for name, floor in floor_of.items():
        for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())):
            imported = []
            if isinstance(node, ast.ImportFrom) and node.module == "cats_vs_dogs":
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cats_vs_dogs."):
                imported = [node.module.split(".")[1]]
            for other in imported:
                assert floor_of[other] < floor, f"{name} imports {other}"


def test_all_scripts_can_be_imported_in_one_process():
    names = sorted(set.union(*FLOORS))
    code = ";".join(f"import cats_vs_dogs.{name}" for name in names)
    code += ";from absl import flags; assert 'train_dir' not in flags.FLAGS, 'flags are defined when a script runs'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


@pytest.mark.parametrize(
    "script",
    [
        "batch_predict",
        "convert_images_to_tfrecords",
        "convert_prediction_from_json_to_csv",
        "download_tfrecords",
        "sample_data",
    ],
)
def test_help_does_not_import_tensorflow(script):
    code = (
        f"import sys, runpy; sys.argv = ['{script}', '--help']\n"
        f"try: runpy.run_module('cats_vs_dogs.{script}', run_name='__main__', alter_sys=True)\n"
        "finally: assert 'tensorflow' not in sys.modules, 'tensorflow was imported'"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert "AssertionError" not in process.stderr
    assert any(flag in process.stdout for flag in ("--output", "--csv_output_file", "--destination"))
