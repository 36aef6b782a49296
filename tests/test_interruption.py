"""Training that is killed or stopped resumes, and ends with the same result as an uninterrupted run."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, forked_python, values_of, write_shards
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cats_vs_dogs.interruption import StopRequest

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
    """Runs train.py for 5 epochs of 4 steps; the last batch of an epoch is smaller."""
    plan = json.dumps({"kill": kill, "count": count, "num_devices": num_devices})
    common = [f"--train_data_pattern={shards}/train-*", f"--train_dir={train_dir}", "--image_size=16"]
    common += [f"--batch_size={16 // num_devices}", "--num_readers=2", "--seed=3"]
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
    values, expected = values_of(train_dir / "model.ckpt-20"), values_of(reference / "model.ckpt-20")
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


# (event, n): the process is killed at its n-th event of this kind; all kills happen in one train_dir.
KILLS = {
    # Saves at every step.
    "often": [("save", 1), ("rename", 3), ("export", 1), ("save", 3), ("save", 5)],
    # Evaluates, and therefore saves, only at the end of an epoch (every fourth step); exports every eighth step.
    "each epoch": [("save", 1), ("rename", 2), ("export", 1), ("save", 1), ("save", 3)],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "num_devices", "kills"),
    [("FrozenModel", 1, "often"), ("NoisyModel", 1, "each epoch"), ("NoisyModel", 2, "often")],
)
def test_killed_again_and_again(run_script, shards, tmp_path, model, num_devices, kills):
    flags = [f"--model={model}", "--keep_checkpoints=2"]
    if model == "NoisyModel":
        flags += ["--first_image_size=8"]  # Until step 13 of 20.
    else:
        flags += ["--augment=flip"]  # Runs on features, of which no pictures are shown.
    if kills == "often":
        flags += ["--log_steps=3", "--export_model_steps=7", "--save_checkpoint_secs=0.000001"]
    else:
        flags += ["--log_steps=3", "--export_model_steps=8", "--save_checkpoint_secs=0"]
        flags += [f"--eval_data_pattern={shards}/validation-*", "--early_stop_evals=5"]
        flags += ["--augment=flip_crop_mix", "--optimizer=AdamW", '--optimizer_params={"weight_decay": 0.1}']
    # In an interpreter of its own, whose hash seed is another one than that of all the others.
    train(run_script, shards, tmp_path / "whole", *flags, num_devices=num_devices, python=[sys.executable])
    resumed_at = []
    for i, (kill, count) in enumerate([*KILLS[kills], (None, 1)]):
        # The cache does not change the result.
        cache = ("memory", "disk", "none")[i % 3 if model == "NoisyModel" else 0]
        how = {"kill": kill, "count": count, "num_devices": num_devices}
        said = train(run_script, shards, tmp_path / "killed", *flags, f"--cache={cache}", **how)
        resumed_at += re.findall(r"Resuming from .*model.ckpt-(\d+)", said)
        assert "WARNING: " not in said.replace("WARNING: All log messages", "")
    assert resumed_at == {"often": ["2", "7", "9", "13"], "each epoch": ["4", "8", "8", "16"]}[kills]
    assert_same_result(tmp_path / "killed", tmp_path / "whole")
    steps = [(row["kind"], row["step"]) for row in rows_of(tmp_path / "whole")]
    assert [step for kind, step in steps if kind == "training"] == [3, 6, 9, 12, 15, 18, 20]
    evaluated = [4, 8, 12, 16, 20] if kills == "each epoch" else []
    assert [step for kind, step in steps if kind == "evaluation"] == evaluated


def start(shards, train_dir, *flags):
    """Starts a train.py that would run for very long, and returns its process at the first log line of a step."""
    command = [*forked_python(), str(REPOSITORY / "cats_vs_dogs" / "train.py"), f"--train_dir={train_dir}"]
    command += [f"--train_data_pattern={shards}/train-*", "--batch_size=16", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd="/")
    for line in process.stderr:
        if line.startswith("training step"):
            return process
    raise AssertionError(f"ended with {process.wait()}")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(run_script, shards, tmp_path, number, code):
    process = start(shards, tmp_path, "--num_epochs=100000", "--export_model_steps=0", "--log_steps=10000")
    time.sleep(0.5)  # By now the next 10,000 steps run in one graph call.
    asked = time.monotonic()
    process.send_signal(number)
    said = process.stderr.read()
    assert process.wait() == code
    assert time.monotonic() - asked < 10  # On an idle machine about one second, mostly Python's exit.
    step, command = re.search(r"Stopped at step (\d+), which is saved. To resume: (.*)", said).groups()
    assert int(step) % 10000 != 0
    assert [path.stem for path in tmp_path.glob("model.ckpt-*.index")] == [f"model.ckpt-{step}"]
    assert not (tmp_path / "export").exists()
    more = f"--max_steps={int(step) + 1}"
    said = run_script(
        "", command=["bash", "-c", f"{shlex.join(forked_python())} {command.partition(' ')[2]} {more}"]
    ).stderr
    assert f"Resuming from {tmp_path}/model.ckpt-{step}." in said


@pytest.mark.slow
def test_the_command_to_resume_does_not_start_a_new_model(run_script, shards, tmp_path):
    process = start(shards, tmp_path, "--num_epochs=100000", "--log_steps=50", "--start_new_model")
    process.send_signal(signal.SIGTERM)
    assert "start_new_model" not in process.stderr.read().partition("To resume: ")[2]
    assert process.wait() == 143


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


@pytest.mark.slow
def test_a_second_training_in_the_same_folder_is_refused(fails_in_one_line, shards, tmp_path):
    process = start(shards, tmp_path, "--num_epochs=100000", "--log_steps=50")
    try:
        for flag in ("--start_new_model", "--nostart_new_model"):
            said = fails_in_one_line("train", f"--train_dir={tmp_path}", f"--train_data_pattern={shards}/train-*", flag)
            assert said.startswith(f"error: --train_dir={tmp_path}: another train.py is training there")
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    assert (tmp_path / "run.json").exists()


@pytest.mark.slow
def test_what_is_not_finite_stops_training_and_the_last_checkpoint_stays(
    run_script, fails_in_one_line, shards, tmp_path
):
    train(run_script, shards, tmp_path, "--num_epochs=2", "--optimizer=SGD")
    before = {path: path.read_bytes() for path in tmp_path.glob("model.ckpt-8.*")}
    flags = [f"--train_dir={tmp_path}", f"--train_data_pattern={shards}/train-*", "--image_size=16", "--batch_size=16"]
    flags += ["--optimizer=SGD", "--clip_gradient_norm=0", "--save_checkpoint_secs=0.000001"]
    said = fails_in_one_line("train", *flags, "--base_learning_rate=1e38")
    assert re.search(r"between step \d+ and step \d+: .*the norm of the gradients .*the learning rate 1e\+38", said)
    assert "try a lower --base_learning_rate" in said
    assert {path: path.read_bytes() for path in tmp_path.glob("model.ckpt-*.*")}.items() >= before.items()
    for path in tmp_path.glob("model.ckpt-*.index"):
        assert all(np.isfinite(v).all() for k, v in values_of(path.with_suffix("")).items() if "weights" in k)


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_whole(run_script, fails_in_one_line, shards, tmp_path):
    flags = [f"--train_data_pattern={shards}/train-*", f"--train_dir={tmp_path}", "--batch_size=16"]
    flags += ["--model=ConvNetModel", '--model_params={"filters": 2}']
    # No file of this process may be larger than 190 kB. Checkpoints (77 kB) and event files (146 kB) are smaller; the
    # saved_model.pb of an export (245 kB) is not.
    command = ["bash", "-c", f'ulimit -f 190; trap "" XFSZ; exec {sys.executable} "$0" "$@"']
    command.append(str(REPOSITORY / "cats_vs_dogs" / "train.py"))
    said = fails_in_one_line("", *flags, command=command)
    assert said.startswith(f"error: --train_dir={tmp_path}: cannot be written to: {tmp_path}/export/step_20.")
    assert "is the disk full?" in said
    assert list((tmp_path / "export").iterdir()) == []
    said = run_script("train", *flags).stderr
    assert f"Resuming from {tmp_path}/model.ckpt-20." in said
    assert (tmp_path / "export" / "step_20" / "saved_model.pb").exists()


@pytest.mark.slow
def test_evaluation_while_training_keeps_the_best_and_stops_early(run_script, shards, tmp_path):
    flags = ["--log_steps=100", f"--eval_data_pattern={shards}/validation-*", "--early_stop_evals=2"]
    # After the first epoch the learning rate is nearly 0, so the loss stays the same.
    flags += ["--learning_rate_decay=0", "--learning_rate_decay_examples=64", "--model=NoisyModel"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    said = train(run_script, shards, whole, *flags, "--num_epochs=50")
    assert "2 evaluations without a lower loss: training stops early." in said
    losses = {
        int(path.stem.split("-")[1]): json.loads(path.read_text())["avg_loss"] for path in whole.glob("eval/*.json")
    }
    best = min(losses, key=lambda step: (losses[step], step))
    assert f"The best model, that of step {best}, is in {whole}/best." in said
    assert sorted(losses) == list(range(4, max(losses) + 1, 4))
    assert max(losses) == best + 8
    assert [path.name for path in whole.glob("best/*.index")] == [f"model.ckpt-{best}.index"]
    assert json.loads((whole / "best" / f"metrics-{best}.json").read_text())["avg_loss"] == losses[best]
    assert [path.name for path in whole.glob("export/*")] == [f"step_{max(losses)}"]
    shown = summaries_of(whole / "eval")["Compare/loss"]
    assert shown[0] == sorted(losses)

    # A stopped run remembers its best evaluation and the number of evaluations since.
    train(run_script, shards, stopped, *flags, f"--max_steps={best + 4}")
    said = train(run_script, shards, stopped, *flags, "--num_epochs=50")
    assert f"best so far: step {best}, " in said
    assert summaries_of(stopped / "eval")["Compare/loss"] == shown
    assert "Nothing left to train: training stopped early at step" in train(
        run_script, shards, stopped, *flags, "--num_epochs=50"
    )

    # best/ can be used like a train_dir.
    run_script("inference", f"--train_dir={whole}/best", f"--input_data_pattern={shards}/validation-*", check=False)
