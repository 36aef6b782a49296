"""Several processes on loopback train one model, as several machines do: what they give, and when one is lost."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import forked_python, free_ports, values_of, write_shards

from cats_vs_dogs import distribution
from cats_vs_dogs.utils import UserError

DRIVER = Path(__file__).resolve().parent / "killed_train.py"
ALONE = {"kill": None, "count": 1, "num_devices": 1}
LAST = "model.ckpt-15"
FLAG = re.compile("--")
HANGING = 600  # Seconds after which a process is taken to hang, also on a loaded machine.


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Fewer shards than workers; the last batch of an epoch, of one example, is too small for two devices."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, "train", num_examples=65, num_shards=1)
    write_shards(folder, "validation", num_examples=9, num_shards=1)
    return folder


class Workers:
    """Processes of train.py, one for each plan, that train one model in 3 epochs of 5 steps unless a flag says else."""

    def __init__(self, shards, train_dir, *flags, plans=(ALONE, ALONE), chief="chief", of_each=((), ()), start=None):
        """Starts them.

        Args:
            shards: folder of the shards.
            train_dir: the train_dir of all.
            flags: those of all.
            plans: what killed_train.py does in each.
            chief: what TF_CONFIG calls the chief.
            of_each: more of each process: flags, and variables of the environment such as "UNITS=3".
            start: numbers of the workers to start; None: all.
        """
        ports = free_ports(len(plans))
        cluster = {chief: [f"127.0.0.1:{ports[0]}"], "worker": [f"127.0.0.1:{port}" for port in ports[1:]]}
        command = [f"--train_data_pattern={shards}/train-*", f"--train_dir={train_dir}", "--image_size=16", "--seed=3"]
        command += ["--noreport", "--num_epochs=3", "--model=NormModel", "--log_steps=2"]
        command += ["--optimizer=SGD", "--base_learning_rate=0.05", f"--batch_size={16 // len(plans)}", *flags]
        self.processes = []
        self.addresses = [f"127.0.0.1:{port}" for port in ports]
        for number, plan in enumerate(plans):
            if start is not None and number not in start:
                continue
            task = {"type": "worker", "index": number - 1} if number else {"type": chief, "index": 0}
            # A single process has no TF_CONFIG; the extra keys are those of Vertex AI.
            config = json.dumps({"cluster": cluster, "task": {**task, "cloud": "x"}, "environment": "cloud"})
            environment = {**os.environ, "TMPDIR": str(train_dir.parent), "XDG_CACHE_HOME": str(shards / "cache")}
            environment |= {"TF_CONFIG": config} if len(plans) > 1 else {}
            own = of_each[number]
            environment |= dict(word.split("=") for word in own if not word.startswith("--"))
            process = subprocess.Popen(
                [*forked_python(), str(DRIVER), json.dumps(plan), *command, *filter(FLAG.match, own)],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
                cwd="/",
            )
            self.processes.append(process)

    def read_until(self, start):
        """Reads what the first process says, up to a line that begins so."""
        for line in self.processes[0].stderr:
            last = line
            if line.startswith(start):
                return
        raise AssertionError(f"ended with {self.processes[0].wait()}: {last}")

    def end(self, *codes):
        """Waits for all to end, expects these exit codes, and returns what each said."""
        try:
            said = [process.communicate(timeout=HANGING)[1] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()  # Does nothing to those that have ended.
        assert [process.returncode for process in self.processes] == list(codes), "\n\n".join(said)
        return said


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """What two workers give that nothing happens to, and what they said."""
    folder = tmp_path_factory.mktemp("whole")
    flags = [f"--eval_data_pattern={shards}/validation-*", "--cache=disk"]
    said = Workers(shards, folder / "train_dir", *flags).end(0, 0)
    return folder / "train_dir", said


@pytest.mark.slow
def test_two_workers_give_what_one_process_gives_with_twice_the_batch(shards, whole, tmp_path):
    """Batch norm is synchronized between the workers."""
    Workers(shards, tmp_path / "one", plans=[ALONE]).end(0)
    assert all("Cache: pictures are decoded once and stay in files" in said for said in whole[1])
    assert len(list((shards / "cache").glob("*/pixels/*"))) == 2  # Both trained on the same; the chief evaluated.
    two, one = values_of(whole[0] / LAST), values_of(tmp_path / "one" / LAST)
    assert two.keys() == one.keys()
    for name in two:
        if "progress" not in name:
            np.testing.assert_allclose(two[name], one[name], atol=1e-6, rtol=0, err_msg=name)
    # The lines of the chief are about the whole batch, also about the last one of an epoch, of one example.
    of_two, of_one = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (whole[0], tmp_path / "one")
    )
    of_two = [row for row in of_two if row["kind"] == "training"]
    assert [row["step"] for row in of_two] == [row["step"] for row in of_one] == [*range(2, 15, 2), 15]
    for name in ("accuracy", "perr", "gap", "label_loss", "log_loss"):
        np.testing.assert_allclose([row[name] for row in of_two], [row[name] for row in of_one], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_only_the_chief_logs_evaluates_and_writes(whole):
    train_dir, (chief, worker) = whole
    assert "This is worker 1 of 2, the chief." in chief and "This is worker 2 of 2." in worker
    for line in ("training step 15 |", "epoch/eval number 15 |", "Exporting the model", "Done training."):
        assert line in chief and line not in worker
    # Event files, of the chief's two writers; nothing beside train_dir, where temporary files go.
    assert len(list(train_dir.rglob("events.out.tfevents.*"))) == 2
    assert [path.name for path in train_dir.parent.iterdir()] == ["train_dir"]
    assert json.loads((train_dir / "run.json").read_text())["replicas"] == 2


@pytest.mark.slow
def test_a_lost_worker_ends_all_and_together_they_go_on(shards, whole, tmp_path):
    flags = [f"--eval_data_pattern={shards}/validation-*", "--worker_timeout=10"]
    kill = {"kill": "steps", "count": 5, "num_devices": 1}
    resumed_at = []
    for plans in ([kill, ALONE], [ALONE, kill]):  # First the chief is lost, then the other.
        workers = Workers(shards, tmp_path, *flags, plans=plans)
        killed, survivor = workers.processes if plans[0] is kill else workers.processes[::-1]
        rest = killed.communicate(timeout=HANGING)[1]
        assert killed.returncode == -signal.SIGKILL, rest
        try:
            said = survivor.communicate(timeout=180)[1]
        except subprocess.TimeoutExpired:
            survivor.kill()  # Its exit code is then -9.
            said = survivor.communicate()[1]
        came = f"the survivor ended with {survivor.returncode} and said:\n{said[-4000:]}"
        assert survivor.returncode == 1, came
        last = said.strip().splitlines()[-1]
        assert last.startswith("error: another worker of the cluster was lost (this is worker "), came
        assert "Traceback" not in said, came
        resumed_at += re.findall(r"Resuming from .*ckpt-(\d+)", said)
    for said in Workers(shards, tmp_path, *flags).end(0, 0):
        resumed_at += re.findall(r"Resuming from .*ckpt-(\d+)", said)
    assert resumed_at == ["5", "10", "10"]
    resumed, expected = values_of(tmp_path / LAST), values_of(whole[0] / LAST)
    for name in expected:
        np.testing.assert_array_equal(resumed[name], expected[name], err_msg=name)


@pytest.mark.slow
def test_a_pause_of_a_worker_is_not_the_end_but_a_signal_stops_all_and_the_step_is_saved(shards, tmp_path):
    # In 2017 the chief was called master.
    forever = ["--num_epochs=100000", "--log_steps=500", "--model=LogisticModel"]
    pause = {"kill": "pause", "count": 3, "num_devices": 1}  # After the first step and the next 499.
    workers = Workers(shards, tmp_path, *forever, chief="master", plans=(ALONE, pause))
    workers.read_until("training step 500")
    paused = time.monotonic()
    workers.read_until("training step 1000")
    resumed = time.monotonic()
    assert resumed - paused > 10.5  # TensorFlow alone ends all after 10 seconds.
    while time.monotonic() < resumed + 2:  # If anybody had been taken for lost, all would end in this time.
        workers.read_until("training step")
    time.sleep(0.3)  # Now the next 500 steps are being done in one graph call.
    workers.processes[1].send_signal(signal.SIGTERM)
    chief, worker = workers.end(143, 143)
    assert "SIGTERM: training stops after this step and saves." in worker
    steps = [re.search(r"Stopped at step (\d+), which is saved", said)[1] for said in (chief, worker)]
    assert [path.stem for path in tmp_path.glob("model.ckpt-*.index")] == [f"model.ckpt-{steps[0]}"]
    assert steps[0] == steps[1] and int(steps[0]) % 500 != 0


@pytest.mark.slow
@pytest.mark.parametrize("worker", [0, 1])
def test_a_worker_alone_says_whom_it_waits_for_and_ends(shards, tmp_path, worker):
    workers = Workers(shards, tmp_path / "train_dir", start=[worker])
    address = workers.addresses[1 - worker]
    workers.read_until(f"Worker {worker + 1} of 2: waiting for {address}.")
    workers.processes[0].send_signal(signal.SIGTERM)
    workers.end(143)
    (said,) = Workers(shards, tmp_path / "train_dir", "--join_timeout=1", start=[worker]).end(1)
    assert re.search(r"\nerror: --join_timeout=1: no answer from 127.0.0.1:\d+ in that many seconds; .*\n$", said)
    assert "Traceback" not in said and not (tmp_path / "train_dir").exists()


def differences(said):
    """Returns what all workers say last, which must be the same."""
    last, *others = {text.strip().splitlines()[-1] for text in said}
    assert not others and "Traceback" not in said, said
    assert last.startswith("error: the workers of the cluster differ (worker 1 is the chief): ")
    return last


@pytest.mark.slow
def test_workers_that_differ_all_say_in_what(shards, tmp_path):
    said = Workers(shards, tmp_path / "a", of_each=(["--seed=4"], ["--log_steps=5"])).end(1, 1)
    last = differences(said)
    assert "--seed is 4 on worker 1 and 3 on worker 2; " in last and "--log_steps is 2 on worker 1 and 5" in last
    write_shards(tmp_path / "shards", num_examples=64, num_shards=1)
    pattern = f"--train_data_pattern={tmp_path}/shards/train-*"
    said = Workers(shards, tmp_path / "b", "--model=OtherModel", of_each=(["UNITS=3"], ["UNITS=4", pattern])).end(1, 1)
    last = differences(said)
    assert ' is "train-00000-of-00001, 65 records" on worker 1 and "train-00000-of-00001, 64 records" on wor' in last
    assert 'the weight dense/kernel is "[768, 3], trained" on worker 1 and "[768, 4], trained" on worker 2; ' in last
    assert not list(tmp_path.rglob("run.json"))  # Nobody has trained.


def test_the_tasks_of_a_cluster():
    def read_tf_config(cluster, job="worker", index=0):
        return distribution.read_tf_config(
            json.dumps({"cluster": cluster, "task": {"type": job, "index": index}, "job": {}})
        )

    for alone in ("", "{}", '{"task": {"type": "chief", "index": 0}, "environment": "cloud"}'):
        assert distribution.read_tf_config(alone) is None
    assert read_tf_config({"chief": ["a:1"]}, "chief") is None
    assert read_tf_config({"worker": ["a:1"]}) is None
    config, num_workers, worker = read_tf_config({"master": ["a:1"], "worker": ["b:1", "c:1"]}, "worker", 1)
    assert config["cluster"] == {"chief": ["a:1"], "worker": ["b:1", "c:1"]} and config["job"] == {}
    assert (num_workers, worker) == (3, 2)
    config, num_workers, worker = read_tf_config({"master": ["a:1"], "worker": ["b:1"]}, "master")
    assert config["task"] == {"type": "chief", "index": 0} and (num_workers, worker) == (2, 0)
    assert read_tf_config({"worker": ["a:1", "b:1"]}, "worker", 0)[1:] == (2, 0)


@pytest.mark.parametrize(
    ("cluster", "job", "index", "reason"),
    [
        ({"chief": ["a:1"], "worker": ["b:1"], "ps": ["c:1"]}, "chief", 0, "parameter servers .* take them out"),
        ({"chief": ["a:1"], "worker": ["b:1"]}, "ps", 0, "parameter servers"),
        ({"chief": ["a:1"], "worker": ["b:1"]}, "evaluator", 0, "run eval.py as a job of its own"),
        ({"chief": ["a:1"], "worker": ["b:1"], "evaluator": ["c:1"]}, "chief", 0, "run eval.py as a job of its own"),
        ({"chief": ["a:1"], "worker": ["b:1"]}, "worker", 1, "its task, worker 1, is not in its cluster"),
        ({"chief": ["a:1", "b:1"], "worker": ["c:1"]}, "chief", 0, "more than one chief"),
        ({"chief": ["a:1"], "server": ["b:1"]}, "chief", 0, 'of the kind "server"'),
        (["a:1"], "chief", 0, "is not JSON like"),
        ({"chief": 3}, "chief", 0, "is not JSON like"),
        ({"chief": "a:1", "worker": ["b:1"]}, "chief", 0, "is not JSON like"),
        ({"chief": ["a:1"], "worker": {"0": "b:1"}}, "chief", 0, "is not JSON like"),
        ({"chief": ["a:1"], "worker": ["b:1"]}, "chief", "first", "is not JSON like"),
    ],
)
def test_a_cluster_that_cannot_be_joined(cluster, job, index, reason):
    with pytest.raises(UserError, match=f"TF_CONFIG=.*{reason}"):
        distribution.read_tf_config(json.dumps({"cluster": cluster, "task": {"type": job, "index": index}}))


def test_a_broken_tf_config_is_one_line(fails_in_one_line, tmp_path):
    said = fails_in_one_line("train", f"--train_dir={tmp_path}", env={"TF_CONFIG": '{"cluster": '})
    assert said.startswith('error: TF_CONFIG={"cluster": : is not JSON like {')
