"""Scripts that run one after the other in one process, as in a notebook: nothing of one is left to the next."""

import json
import shutil
import subprocess
import textwrap

import pytest
from conftest import REPOSITORY, forked_python, write_shards

# Runs scripts as a notebook's %run does, and says what each leaves behind.
CODE = """
    import json, logging, os, random, runpy, signal, sys

    folder, *runs = sys.argv[1], *json.loads(sys.argv[2])
    import cats_vs_dogs  # Sets what TensorFlow reads.
    import keras, numpy as np, tensorflow as tf
    from absl import logging as absl_logging
    from tensorflow.python.framework import config

    def state():
        return {
            "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
            "logging": [str(logging.root.handlers), str(absl_logging.get_absl_handler().filters)],
            "levels": [absl_logging.get_verbosity(), logging.getLogger("tensorflow").level],
            "formatter": str(absl_logging.get_absl_handler().formatter),
            "policy": keras.config.dtype_policy().name,
            "deterministic": config.is_op_determinism_enabled(),
            "placement": tf.debugging.get_log_device_placement(),
            "strategy": tf.distribute.has_strategy(),
            "seed": str(tf.compat.v1.random.get_seed(1)[0]),
            "keras": str(keras.utils.get_random_seed()) if hasattr(keras.utils, "get_random_seed") else "",
            "random": [hash(random.getstate()), np.random.get_state()[1].tolist()],
            "locked": sum(line.split()[4].startswith(f"{os.getpid()}") for line in open("/proc/locks")),
        }

    for script, arguments, edit in runs:
        for old, new in edit:
            path = os.path.join(folder, "cats_vs_dogs", "cvd_models.py")
            text = open(path).read()
            assert old in text
            edited = os.stat(path).st_mtime + 2  # Python notices an edit of equal size by the second.
            open(path, "w").write(text.replace(old, new))
            os.utime(path, (edited, edited))
        before = state()
        sys.argv = [os.path.join(folder, "cats_vs_dogs", f"{script}.py"), *arguments]
        code = 0
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        except ZeroDivisionError:
            code = "ZeroDivisionError"
        after = state()
        print("RUN", json.dumps([code, {name: after[name] for name in after if after[name] != before[name]}]))
"""

MODEL = """

class OwnModel(models.BaseModel):
    def create_model(self, model_input, num_classes=2):
        net = keras.layers.Dense(3)(keras.layers.Flatten()(model_input))  # Edited.
        return {"predictions": keras.layers.Dense(1, "sigmoid")(net)}
"""


def run_all(tmp_path, runs):
    """Runs scripts of a copy of the kit; returns the exit code of each, what it leaves, and all that they wrote."""
    shutil.copytree(REPOSITORY / "cats_vs_dogs", tmp_path / "kit" / "cats_vs_dogs")
    with open(tmp_path / "kit" / "cats_vs_dogs" / "cvd_models.py", "a") as file:
        file.write(MODEL)
    script = tmp_path / "kit" / "script.py"
    script.write_text(textwrap.dedent(CODE))
    command = [*forked_python(), str(script), str(tmp_path / "kit"), json.dumps(runs)]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    ended = [json.loads(line[4:]) for line in process.stdout.splitlines() if line.startswith("RUN ")]
    assert len(ended) == len(runs), process.stderr
    return [code for code, _ in ended], [left for _, left in ended], process.stderr


def read_run(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.mark.slow
def test_nothing_of_a_run_is_left_to_the_next_but_edits_are(tmp_path):
    write_shards(tmp_path)
    write_shards(tmp_path, "validation", num_examples=8, num_shards=1)
    data = [f"--train_data_pattern={tmp_path}/train-*", "--image_size=8", "--num_epochs=1"]
    validation = f"--eval_data_pattern={tmp_path}/validation-*"
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    special = ["--seed=5", "--deterministic", "--log_device_placement", "--precision=mixed_bfloat16", "--batch_size=8"]
    special += ["--model=OwnModel"]
    fails, is_interrupted = "; 1 / 0  # Edited.", "; raise KeyboardInterrupt  # Edited."
    repaired = [(is_interrupted, ""), ("Dense(3)(", "Dense(5)(")]
    codes, left, said = run_all(
        tmp_path,
        [
            ("train", ["--help"], []),
            ("train", ["--modle=OwnModel"], []),
            ("train", ["--train_data_pattern=/nowhere/*", f"--train_dir={third}"], []),
            ("train", [*data, *special, f"--train_dir={third}"], [("  # Edited.", fails)]),
            ("train", [*data, *special, f"--train_dir={third}"], [(fails, is_interrupted)]),  # The lock is gone.
            ("train", [*data, *special, validation, f"--train_dir={first}"], repaired),
            ("train", [*data, f"--train_dir={second}"], []),
            ("eval", [validation, f"--train_dir={first}", "--run_once", "--noreport"], []),
            ("inference", [f"--input_data_pattern={tmp_path}/validation-*", f"--train_dir={first}"], []),
            ("export_model", [f"--train_dir={first}", f"--export_dir={tmp_path}/export"], []),
        ],
    )
    assert codes == [0, 1, 1, 1, 130, 0, 0, 0, 0, 0], said
    assert left == [{}] * 10
    assert "error: OwnModel.create_model failed: ZeroDivisionError: division by zero (cvd_models.py line" in said
    assert read_run(first)["parameters"] == 192 * 5 + 5 + 5 + 1
    flags = [read_run(folder)["flags"] for folder in (first, second)]
    assert [flags[0][name] for name in ("seed", "deterministic", "precision", "model")] == [
        *(5, True, "mixed_bfloat16", "OwnModel")
    ]
    assert [flags[1][name] for name in ("seed", "deterministic", "precision", "model")] == [
        *(0, False, "float32", "LogisticModel")
    ]
    assert not (third / "run.json").exists()
