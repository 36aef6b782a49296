"""Vertex AI: the job files, the package that jobs install, and the cloud commands of docs/ with the real gcloud."""

import copy
import json
import os
import shutil
import subprocess
import sys
import tarfile

import pytest
import yaml
from conftest import REPOSITORY, commands_here_and_in_the_cloud
from mock_vertex import MockVertex, complaint

from cats_vs_dogs import flag_files

JOB_FILES = {path.name: path.read_text() for path in REPOSITORY.glob("cloudml-*.yaml")}
GPU = yaml.safe_load(JOB_FILES["cloudml-gpu.yaml"])
SDIST = "cats_vs_dogs-2.0.0.tar.gz"
SOURCES = ["setup.py", "pyproject.toml", "README.md", "LICENSE", *JOB_FILES]
# What other programs than gcloud ask of Google is led to the stand-in and to files here.
NO_WAY_OUT = r"""
set -euo pipefail
curl() { command curl "${@/https:\/\/us-east1-aiplatform.googleapis.com/$VERTEX}"; }
python() { "$PYTHON" "${@/gs:\/\/my-bucket\/predictions/$PREDICTIONS}"; }
tensorboard() { echo "$@" > tensorboard.txt; }
"""


def pools(spec):
    return spec["workerPoolSpecs"]


def test_the_job_files_ask_for_the_machines_that_docs_name():
    gpus = {}
    for name, text in JOB_FILES.items():
        spec = yaml.safe_load(text)
        gpus[name] = [(int(pool["replicaCount"]), pool["machineSpec"]["acceleratorCount"]) for pool in pools(spec)]
        assert complaint({"jobSpec": spec}) == ""
        spot = yaml.safe_load(text.replace("# strategy", "strategy"))
        assert spot["scheduling"].pop("strategy") == "SPOT"
        assert spot == spec
        assert spec["scheduling"].get("restartJobOnWorkerRestart", False) == (len(pools(spec)) > 1)
        for pool in pools(spec):
            assert pool["containerSpec"] == pools(GPU)[0]["containerSpec"]
    assert gpus == {
        "cloudml-gpu.yaml": [(1, 1)],
        "cloudml-4gpu.yaml": [(1, 4)],
        "cloudml-gpu-distributed.yaml": [(1, 1), (2, 1)],
    }
    assert pools(GPU)[0]["containerSpec"]["env"] == [{"name": "PYTHONUNBUFFERED", "value": "1"}]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda spec: spec.update(trainingInput=spec.pop("workerPoolSpecs")), "no trainingInput"),
        (lambda spec: spec["scheduling"].update(strategy="PREEMPTIBLE"), "no strategy PREEMPTIBLE"),
        (lambda spec: spec["scheduling"].update(timeout="1d"), "seconds"),
        (lambda spec: spec.update(baseOutputDirectory={"outputUriPrefix": "/tmp"}), "gs://"),
        (lambda spec: pools(spec)[0].update(replicaCount=2), "chief"),
        (
            lambda spec: pools(spec)[0]["machineSpec"].update(acceleratorType="NVIDIA_T4"),
            "g2-standard-8 with 1 NVIDIA_T4",
        ),
        (lambda spec: pools(spec)[0]["machineSpec"].update(acceleratorCount=4), "with 4 NVIDIA_L4"),
        (lambda spec: pools(spec)[0]["containerSpec"].update(imageURI="a"), "no imageURI"),
        (lambda spec: pools(spec)[0]["containerSpec"].pop("imageUri"), "imageUri is missing"),
    ],
)
def test_the_stand_in_refuses_what_the_service_would(change, said):
    spec = copy.deepcopy(GPU)
    change(spec)
    assert said in complaint({"jobSpec": spec})


def test_a_job_installs_the_package_and_becomes_the_script(tmp_path):
    """With a `python` that says what it is asked, the command as the image's bash runs it."""
    (tmp_path / "opt/kit/bin").mkdir(parents=True)
    for name, path in (("python", tmp_path / "python"), ("pip", tmp_path / "opt/kit/bin/pip")):
        path.write_text(f'#!/bin/sh\necho "{name} $@" >> {tmp_path}/log\n')
        path.chmod(0o755)
    script = tmp_path / "opt/kit/bin/python"
    script.write_text('#!/bin/sh\necho $$\nfor word in "$@"; do echo "$word"; done\nexit 143\n')
    script.chmod(0o755)
    shell, option, command = pools(GPU)[0]["containerSpec"]["command"]
    args = ["train", "--train_data_pattern=gs://b/train-*", '--model_params={"a": 1}']
    process = subprocess.Popen(
        [shell, option, command.replace("/opt/kit", f"{tmp_path}/opt/kit"), *args],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    said = process.communicate(timeout=60)[0].splitlines()
    # The process of the shell, to which the machine sends its signals, is the script's; and so is the exit code.
    assert said == [str(process.pid), "-m", "cats_vs_dogs.train", *args[1:]]
    assert process.returncode == 143
    venv, install = (tmp_path / "log").read_text().splitlines()
    assert venv == f"python -m venv --system-site-packages {tmp_path}/opt/kit"
    assert install == f"pip install --quiet /gcs/BUCKET/packages/{SDIST}"


@pytest.fixture
def clone(tmp_path):
    """A folder with what a clone has at its top, the package, and shards."""
    folder = tmp_path / "clone"
    shutil.copytree(REPOSITORY / "cats_vs_dogs", folder / "cats_vs_dogs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCES:
        shutil.copy(REPOSITORY / name, folder)
    for name in ("shards/train-00000-of-00001", "shards/validation-00000-of-00001", "test_shards/test-00000-of-00001"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def test_the_package_holds_every_module(clone):
    subprocess.run([sys.executable, "setup.py", "--quiet", "sdist"], cwd=clone, check=True, capture_output=True)
    with tarfile.open(clone / "dist" / SDIST) as file:
        packed = set(file.getnames())
    modules = {f"cats_vs_dogs-2.0.0/cats_vs_dogs/{path.name}" for path in (clone / "cats_vs_dogs").glob("*.py")}
    recipes = {f"cats_vs_dogs-2.0.0/cats_vs_dogs/recipes/{name}.flags" for name in flag_files.recipes()}
    templates = {"cats_vs_dogs-2.0.0/cats_vs_dogs/templates/report.html"}
    assert len(modules) > 20 and recipes
    assert (
        modules | recipes | templates | {"cats_vs_dogs-2.0.0/setup.py", "cats_vs_dogs-2.0.0/pyproject.toml"} <= packed
    )


def test_setup_needs_no_other_file(tmp_path):
    shutil.copy(REPOSITORY / "setup.py", tmp_path)
    process = subprocess.run([sys.executable, "setup.py", "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert process.stdout.splitlines()[-1] == "2.0.0", process.stderr


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcloud") or not shutil.which("curl"), reason="needs gcloud and curl")
def test_every_cloud_command_works(clone, tmp_path):
    """The section "Google Cloud" in one shell, in its order; what it asks of the service is looked at."""
    commands = "".join(commands_here_and_in_the_cloud()[1])
    results = tmp_path / "predictions" / "prediction-cats_vs_dogs-2026_11_22T06_00_00_000Z"
    results.mkdir(parents=True)
    for number in range(2):
        prediction = {"image_id": f"{number}.jpg", "class_indexes": [0, 1], "predictions": [0.2, 0.8]}
        line = json.dumps({"instance": {"b64": "AAAA"}, "prediction": prediction})
        (results / f"prediction.results-0000{number}-of-00002").write_text(f"{line}\n")
    (results / "prediction.errors_stats-00000-of-00001").touch()
    (tmp_path / "configuration").mkdir()
    with MockVertex() as mock:
        for step in (9, 45):
            mock.objects["my-bucket", f"my_model/export/step_{step}/saved_model.pb"] = b"a model"
        mock.objects["my-bucket", "submission.csv"] = b"Id,Category\n"
        process = subprocess.run(
            ["bash", "-c", NO_WAY_OUT + commands],
            cwd=clone,
            env={
                **os.environ,
                **mock.environment(str(tmp_path / "configuration")),
                "PYTHON": sys.executable,
                "VERTEX": mock.address,
                "PREDICTIONS": str(tmp_path / "predictions"),
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert process.returncode == 0, process.stderr

    assert mock.asked("unknown") == []
    assert {path for what, path, body in mock.requests if "/locations/" in path} == {
        f"/v1/projects/my-project/locations/us-east1/{what}"
        for what in ("customJobs", "models:upload", "batchPredictionJobs")
    }
    (bucket,) = mock.asked("bucket")
    assert (bucket["name"], bucket["location"].lower()) == ("my-bucket", "us-east1")
    for name in ("shards/train-00000-of-00001", "shards/validation-00000-of-00001"):
        assert mock.objects["my-bucket", name] == (clone / name).read_bytes()
    assert mock.objects["my-bucket", "shards/test-00000-of-00001"] == b"test_shards/test-00000-of-00001"
    assert mock.objects["my-bucket", f"packages/{SDIST}"] == (clone / "dist" / SDIST).read_bytes()

    jobs = mock.asked("customJobs")
    assert all(complaint(job) == "" and "BUCKET" not in json.dumps(job) for job in jobs)
    assert [len(pools(job["jobSpec"])) for job in jobs] == [1, 2, 1, 1]
    containers = [pool["containerSpec"] for job in jobs for pool in pools(job["jobSpec"])]
    for container in containers:
        assert f"/gcs/my-bucket/packages/{SDIST}" in container["command"][2]
    shards, model = "gs://my-bucket/shards", "gs://my-bucket/my_model"
    train = ["train", f"--train_data_pattern={shards}/train-*"]
    assert [container["args"] for container in containers] == [
        [*train, f"--train_dir={model}"],
        [*train, "--train_dir=gs://my-bucket/large_model"],
        [*train, "--train_dir=gs://my-bucket/large_model"],
        ["eval", "--run_once", f"--eval_data_pattern={shards}/validation-*", f"--train_dir={model}"],
        [
            "inference",
            f"--input_data_pattern={shards}/test-*",
            f"--train_dir={model}",
            "--output_file=gs://my-bucket/submission.csv",
        ],
    ]
    assert (clone / "tensorboard.txt").read_text() == f"--logdir={model}\n"

    (upload,) = mock.asked("models:upload")
    assert upload["model"]["artifactUri"] == f"{model}/export/step_45/"
    assert upload["model"]["containerSpec"]["imageUri"].startswith("us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.")
    (job,) = mock.asked("batchPredictionJobs")
    assert job["model"] == "projects/my-project/locations/us-east1/models/5000"
    assert job["inputConfig"] == {"instancesFormat": "tf-record", "gcsSource": {"uris": [f"{shards}/test-*"]}}
    assert job["outputConfig"]["gcsDestination"] == {"outputUriPrefix": "gs://my-bucket/predictions"}
    assert (clone / "submission.csv").read_text() == "Id,Category\n0.jpg,1\n1.jpg,1\n"
