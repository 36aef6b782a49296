"""How the code is laid out: imports go downwards, no module does anything when it is imported."""

import ast
import re
import subprocess
import sys

import pytest
import vermin
from conftest import REPOSITORY

# A module imports only from floors above its own in this list.
FLOORS = [
    {"plain_imports", "functions_of_2017"},
    {"flag_files", "flag_names", "path_flags"},
    {"utils", "labels", "augmentation", "interruption", "pictures", "terminal"},
    {"file_patterns", "rendezvous"},
    {"files", "figures", "pixel_checks", "porting", "untracked", "average_precision_calculator"},
    {"archives", "kept_folders"},
    {"beam_runners", "weight_files"},
    {"config", "event_files", "plain_paths", "tfrecords", "backbones", "batch_norm", "models", "losses"}
    | {"mean_average_precision_calculator", "user_files"},
    {"cvd_models", "decoding", "optimizers", "photo_sources", "photo_splits", "sample_data", "submission"}
    | {"eval_util", "example_index"},
    {"convert_images_to_tfrecords", "readers", "summaries", "metrics_log", "plan", "report_figures", "saliency"},
    {"classifier", "distribution", "image_bytes", "open_reader", "photo_shards", "picture_files", "pixel_files"},
    {"bad_examples"},
    {"batch_pipeline", "frozen_features", "pixel_models", "prediction", "report_photos", "train_dir", "trainer"},
    {"advice", "checkpoints", "evaluation", "training_log", "trained_data"},
    {"ensemble", "report"},
    {
        "batch_predict",
        "convert_prediction_from_json_to_csv",
        "download_tfrecords",
        "eval",
        "export_model",
        "inference",
        "training_evaluation",
    },
    {"job"},
    {"training_tools"},
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


def test_the_oldest_python_has_all_that_is_used(monkeypatch, capsys):
    """Linters know the syntax of Python 3.10, but not that its glob.glob cannot include hidden files."""
    (oldest,) = re.findall(r'python_requires=">=([0-9.]+)"', (REPOSITORY / "setup.py").read_text())
    folders = [str(REPOSITORY / name) for name in ("cats_vs_dogs", "tests", "benchmarks", "setup.py")]
    arguments = ["vermin", f"-t={oldest}-", "--no-tips", "--violations", "--processes=1", *folders]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        vermin.main()
    assert ended.value.code == 0, capsys.readouterr().out


@pytest.mark.slow
def test_all_scripts_can_be_imported_in_one_process():
    names = sorted(set.union(*FLOORS))
    code = ";".join(f"import cats_vs_dogs.{name}" for name in names)
    code += ";from absl import flags; assert 'train_dir' not in flags.FLAGS, 'flags are defined when a script runs'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


SCRIPTS = sorted(path.stem for path in PACKAGE.glob("*.py") if '__name__ == "__main__"' in path.read_text())


def run_without_heavy_imports(script, argument):
    """Runs a script with an argument that ends it before it imports TensorFlow, and returns it ended."""
    code = (
        f"import sys, runpy; sys.argv = ['{script}', '{argument}']\n"
        f"try: runpy.run_module('cats_vs_dogs.{script}', run_name='__main__', alter_sys=True)\n"
        "finally: assert not {'tensorflow', 'keras', 'pandas', 'matplotlib'} & set(sys.modules), 'a heavy import'"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert "AssertionError" not in process.stderr
    return process


@pytest.mark.parametrize("argument", ["--help", "--no_such_flag=3"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_are_read_before_tensorflow_is_imported(script, argument):
    process = run_without_heavy_imports(script, argument)
    if argument == "--help":
        assert process.returncode == 0 and re.search(r"^(data|model|output):\n  --", process.stdout, re.MULTILINE)
    elif script == "batch_predict":  # Beam may know the flag.
        assert process.stderr.startswith("error: --model_dir")
    else:
        assert process.stderr.startswith("error: Unknown command line flag 'no_such_flag'")


WRONG_VALUES = {
    "train": ["--model=Logistc", "--label_loss=Hinge", "--optimizer=Adm", "--model_params={", "--first_image_size=64"],
    "eval": ["--train_dir=/nowhere"],
    "inference": ["--train_dir=/nowhere", "--output_column=x"],
    "export_model": ["--train_dir=/nowhere", "--eval_data_pattern=x", "--format=tflite"],
}


@pytest.mark.parametrize(
    ("script", "flag"), [(script, flag) for script, flags in WRONG_VALUES.items() for flag in flags]
)
def test_wrong_values_are_reported_before_tensorflow_is_imported(script, flag):
    process = run_without_heavy_imports(script, flag)
    assert process.returncode == 1 and process.stderr.startswith("error: "), process.stderr
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_the_kits_environment_one_line_says_so(script):
    command = [sys.executable, "-I", "-S", str(PACKAGE / f"{script}.py")]  # Without any installed package.
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 1 and process.stderr.count("\n") == 1
    assert process.stderr.startswith(f"error: the kit is not installed in {sys.executable}; activate its environment, ")
