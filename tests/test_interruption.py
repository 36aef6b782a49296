"""Training that is killed or stopped resumes, and ends with the same result as an uninterrupted run."""

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, forked_python, make_config, values_of, write_shards
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cats_vs_dogs import distribution
from cats_vs_dogs import train as train_script
from cats_vs_dogs.interruption import StopRequest
from cats_vs_dogs.utils import UserError

DRIVER = Path(__file__).resolve().parent / "killed_train.py"
# The only summaries that may differ: times, and the flags, which include train_dir.
OF_THIS_RUN = {"global_step/Examples/Second", "global_step/Waiting_For_Data", "flags"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, "train", num_examples=61, num_shards=3)
    write_shards(folder, "validation", num_examples=20, num_shards=2, first=100)
    return folder


def train(run_script, shards, train_dir, *flags, kill=None, count=1, num_devices=1, python=None):
    """Runs train.py for 2 epochs of 4 steps; the last batch of an epoch is smaller."""
    plan = json.dumps({"kill": kill, "count": count, "num_devices": num_devices})
    common = [f"--train_data_pattern={shards}/train-*", f"--train_dir={train_dir}", "--image_size=16"]
    common += [f"--batch_size={16 // num_devices}", "--num_readers=2", "--seed=3", "--num_epochs=2", "--noreport"]
    command = [*(python or forked_python()), str(DRIVER), plan]
    process = run_script("train", *common, *flags, command=command, check=False)
    assert process.returncode == (-signal.SIGKILL if kill else 0), process.stderr
    return process.stderr


def summaries_of(folder):
    """Returns the steps and values of each TensorBoard tag; times and flags without values."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    shown = {}
    for tag in events.Tags()["tensors"]:
        found = events.Tensors(tag)
        values = [] if tag in OF_THIS_RUN else [event.tensor_proto.SerializeToString() for event in found]
        shown[tag] = [event.step for event in found], values
    return shown


def rows_of(train_dir):
    """Returns the rows of metrics.jsonl without times."""
    rows = [json.loads(line) for line in (train_dir / "metrics.jsonl").read_text().splitlines()]
    times = {"time", "examples_per_second", "waiting_for_data"}
    return [{key: value for key, value in row.items() if key not in times} for row in rows]


def assert_same_result(train_dir, reference):
    values, expected = values_of(train_dir / "model.ckpt-8"), values_of(reference / "model.ckpt-8")
    assert values.keys() == expected.keys()
    for name in values:
        np.testing.assert_array_equal(values[name], expected[name], err_msg=name)
    for folder in filter(lambda name: (reference / name).exists(), ("", "eval")):
        shown, expected = summaries_of(train_dir / folder), summaries_of(reference / folder)
        assert shown.keys() == expected.keys()
        for tag in shown:
            assert shown[tag] == expected[tag], tag
    assert rows_of(train_dir) == rows_of(reference)
    for pattern in ("export/*", "best/*", "eval/metrics-*"):
        names = {path.name for path in train_dir.glob(pattern)}
        assert names == {path.name for path in reference.glob(pattern)}
    assert not list(train_dir.rglob("*tmp*"))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["FrozenModel", "NoisyModel"])
def test_killed_again_and_again(run_script, shards, tmp_path, model):
    flags = [f"--model={model}", "--keep_checkpoints=2", "--log_steps=3", "--export_model_steps=7"]
    flags += ["--save_checkpoint_secs=0.000001"]  # Saves at every step.
    # (event, n): the process is killed at its n-th event of this kind; all kills happen in one train_dir.
    if model == "FrozenModel":
        num_devices, python, kills, saved = 1, None, [("rename", 3), ("export", 1)], ["2", "7"]
        flags += ["--augment=flip"]  # Runs on features, of which no pictures are shown.
    else:
        # In an interpreter of its own, whose hash seed is another one than that of all the others.
        num_devices, python, kills, saved = 2, [sys.executable], [("rename", 4)], ["3"]
        flags += [f"--eval_data_pattern={shards}/validation-*", "--early_stop_evals=9"]  # Before each save.
        flags += ["--first_image_size=8"]  # Until step 5 of 8.
        flags += ["--augment=flip_crop_mix", "--optimizer=AdamW", '--optimizer_params={"weight_decay": 0.1}']
    train(run_script, shards, tmp_path / "whole", *flags, num_devices=num_devices, python=python)
    resumed_at = []
    for i, (kill, count) in enumerate([*kills, (None, 1)]):
        # The cache does not change the result: that of the uninterrupted run is in memory.
        cache = ("disk", "none")[i] if model == "NoisyModel" else "memory"
        how = {"kill": kill, "count": count, "num_devices": num_devices}
        said = train(run_script, shards, tmp_path / "killed", *flags, f"--cache={cache}", **how)
        resumed_at += re.findall(r"Resuming from .*model.ckpt-(\d+)", said)
        assert "WARNING: " not in said.replace("WARNING: All log messages", "")
    assert resumed_at == saved
    assert_same_result(tmp_path / "killed", tmp_path / "whole")
    steps = [(row["kind"], row["step"]) for row in rows_of(tmp_path / "whole")]
    assert [step for kind, step in steps if kind == "training"] == [3, 6, 8]
    evaluated = [*range(1, 9)] if model == "NoisyModel" else []
    assert [step for kind, step in steps if kind == "evaluation"] == evaluated


def start(command):
    """Starts a train.py that would run for very long, and returns its process and what it says up to a step."""
    process = subprocess.Popen(["bash", "-c", command], stderr=subprocess.PIPE, text=True, cwd="/")
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith("training step"):
            return process, said
    raise AssertionError(f"ended with {process.wait()}: {said}")


@pytest.mark.slow
def test_asked_to_stop_it_saves_and_says_how_to_go_on(shards, tmp_path):
    """Stops it by a signal, and then, resumed by the command that it gives, by another one."""
    python = f"exec {shlex.join(forked_python())} "
    flags = [f"--train_dir={tmp_path}", f"--train_data_pattern={shards}/train-*", "--batch_size=16", "--image_size=16"]
    flags += ["--num_epochs=100000", "--export_model_steps=0", "--log_steps=3000", "--start_new_model"]
    command, saved = shlex.join([str(REPOSITORY / "cats_vs_dogs" / "train.py"), *flags]), []
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process, said = start(python + command)
        assert re.findall("Resuming from (.*)[.]", said) == [f"{tmp_path}/{name}" for name in saved]
        time.sleep(0.5)  # By now the next 3,000 steps run in one graph call.
        asked = time.monotonic()
        process.send_signal(number)
        said = process.stderr.read()
        assert process.wait() == code
        assert time.monotonic() - asked < 10  # On an idle machine about one second, mostly Python's exit.
        step, command = re.search(r"Stopped at step (\d+), which is saved. To resume: \S+ (.*)", said).groups()
        assert int(step) % 3000 != 0
        saved.append(f"model.ckpt-{step}")
        assert {path.stem for path in tmp_path.glob("model.ckpt-*.index")} == set(saved)
        assert not (tmp_path / "export").exists()
        assert "start_new_model" not in command


def test_a_second_ctrl_c_quits_at_once(monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    stop = StopRequest()
    with stop.listening():
        for number, expected in ((signal.SIGTERM, []), (signal.SIGTERM, []), (signal.SIGINT, [130])):
            os.kill(os.getpid(), number)
            time.sleep(0.2)
            assert bool(stop) and bool(stop.requested)
            assert codes == expected
    assert stop.signal_number == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):  # The old handler is back.
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def settings_for(shards, train_dir, **settings):
    """Returns settings of LogisticModel for 5 epochs of 4 steps, unless some say else."""
    few = {"train_data_pattern": f"{shards}/train-*", "train_dir": str(train_dir), "image_size": 8, "batch_size": 16}
    return make_config(**few | {"num_epochs": 5} | settings)


def train_here(shards, train_dir, **settings):
    """Trains in this process."""
    assert train_script.train(settings_for(shards, train_dir, **settings), distribution.local_devices()) is None


def test_a_second_training_in_the_same_folder_is_refused(shards, tmp_path, monkeypatch):
    refused, run = [], train_script.run

    def run_with_others_beside(job):
        monkeypatch.setattr(train_script, "run", run)
        for start_new_model in (True, False):
            with pytest.raises(UserError, match=f"^--train_dir={tmp_path}: another train.py is training there"):
                train_here(shards, tmp_path, start_new_model=start_new_model)
            refused.append(start_new_model)
        return run(job)

    monkeypatch.setattr(train_script, "run", run_with_others_beside)
    train_here(shards, tmp_path)
    assert refused == [True, False]
    assert (tmp_path / "model.ckpt-20.index").exists()


def test_what_is_not_finite_stops_training_and_the_last_checkpoint_stays(shards, tmp_path):
    train_here(shards, tmp_path, num_epochs=2, optimizer="SGD")
    before = {path: path.read_bytes() for path in tmp_path.glob("model.ckpt-8.*")}
    assert before
    settings = {"optimizer": "SGD", "clip_gradient_norm": 0, "save_checkpoint_secs": 1e-6, "base_learning_rate": 1e38}
    with pytest.raises(UserError, match="try a lower --base_learning_rate") as error:
        train_here(shards, tmp_path, **settings)
    said = str(error.value)
    assert re.search(r"between step \d+ and step \d+: .*the norm of the gradients .*the learning rate 1e\+38", said)
    assert {path: path.read_bytes() for path in tmp_path.glob("model.ckpt-*.*")}.items() >= before.items()
    for path in tmp_path.glob("model.ckpt-*.index"):
        assert all(np.isfinite(v).all() for k, v in values_of(path.with_suffix("")).items() if "weights" in k)


def test_a_full_disk_leaves_the_last_checkpoint_whole(shards, tmp_path, log):
    # No file of this process may be larger than 100 kB. Checkpoints and event files (43 kB) are smaller; the
    # saved_model.pb of an export (175 kB) is not.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError) as error:
            train_here(shards, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = str(error.value)
    assert said.startswith(f"--train_dir={tmp_path}: cannot be written to: {tmp_path}/export/step_20.")
    assert "is the disk full?" in said
    assert list((tmp_path / "export").iterdir()) == []
    train_here(shards, tmp_path)
    assert f"Resuming from {tmp_path}/model.ckpt-20." in log.text
    assert (tmp_path / "export" / "step_20" / "saved_model.pb").exists()


def test_evaluation_while_training_keeps_the_best_and_stops_early(shards, tmp_path, log):
    settings = {"log_steps": 100, "eval_data_pattern": f"{shards}/validation-*", "early_stop_evals": 2}
    # After the first epoch the learning rate is 0, so the loss stays the same.
    settings |= {"learning_rate_decay": 0, "learning_rate_decay_examples": 64, "num_epochs": 50}
    train_here(shards, tmp_path, **settings | {"max_steps": 8})
    # The stopped run remembers its best evaluation and the number of evaluations since.
    log.clear()
    train_here(shards, tmp_path, **settings)
    assert "best so far: step 4, " in log.text
    assert "2 evaluations without a lower loss: training stops early." in log.text
    assert f"The best model, that of step 4, is in {tmp_path}/best." in log.text
    losses = {
        int(path.stem.split("-")[1]): json.loads(path.read_text())["avg_loss"] for path in tmp_path.glob("eval/*.json")
    }
    assert sorted(losses) == [4, 8, 12]
    assert losses[4] == min(losses.values())
    assert [path.name for path in tmp_path.glob("best/*.index")] == ["model.ckpt-4.index"]
    assert json.loads((tmp_path / "best" / "metrics-4.json").read_text())["avg_loss"] == losses[4]
    assert {path.name for path in tmp_path.glob("export/*")} == {"step_8", "step_12"}
    assert summaries_of(tmp_path / "eval")["Compare/loss"][0] == [4, 8, 12]
    train_here(shards, tmp_path, **settings)
    assert "Nothing left to train: training stopped early at step" in log.text
