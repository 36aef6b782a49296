"""Every command and every piece of code in the READMEs is run."""

import re
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import READMES, REPOSITORY, blocks, commands_here_and_in_the_cloud, write_shards
from fake_gcs import FakeGcs

FLAGS_OF_BEAM = {"runner", "direct_num_workers", "direct_running_mode", "setup_file", "max_num_workers"}
FLAGS_OF_BEAM |= {"project", "region", "temp_location"}
# Flags of gcloud, TensorBoard and benchmarks; test_vertex.py runs gcloud with them.
FLAGS_OF_OTHERS = {
    "args",
    "artifact",
    "config",
    "container",
    "display",
    "format",
    "help",
    "location",
    "logdir",
    "recipe",
    "region",
}
LINE_OF_JSON = '{"image_id": "1.jpg", "class_indexes": [0, 1], "predictions": [0.2, 0.8]}\n'


def test_both_readmes_have_the_same_commands_code_tables_and_links():
    korean, english = READMES.values()
    for language in ("sh", "python", ""):
        assert blocks(korean, language) == blocks(english, language)
    for pattern in (r"^#+ ", r"^\|", r"^\* ", r"^\d\. "):  # headings, rows, list items
        assert len(re.findall(pattern, korean, re.MULTILINE)) == len(re.findall(pattern, english, re.MULTILINE))
    assert set(re.findall(r"--\w+", korean)) == set(re.findall(r"--\w+", english))


@pytest.mark.parametrize("name", READMES)
def test_links_lead_somewhere(name):
    headings = re.findall(r"^#+ (.*)$", READMES[name], flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", READMES[name]):
        if target.startswith("#"):
            assert target[1:] in anchors
        elif not target.startswith("https://"):
            assert (REPOSITORY / target).exists()


@pytest.mark.parametrize("name", READMES)
def test_flags_and_files_named_exist(name):
    code = "".join(path.read_text() for path in (REPOSITORY / "cats_vs_dogs").glob("*.py"))
    for flag in set(re.findall(r"--(\w+)", READMES[name])) - FLAGS_OF_OTHERS - FLAGS_OF_BEAM:
        assert f'"{flag}"' in code, flag
    for file in set(re.findall(r"`(\w+\.py)`", READMES[name])):
        assert (REPOSITORY / "cats_vs_dogs" / file).exists(), file
    for path in (REPOSITORY / "cats_vs_dogs").glob("[a-z]*.py"):
        assert path.name in READMES[name]


def test_messages_explained_are_those_that_users_see():
    code = "".join(path.read_text() for path in (REPOSITORY / "cats_vs_dogs").glob("*.py"))
    code = re.sub(r'"\n\s*f?"', "", code)  # Strings of several lines.
    table = READMES["README.en.md"].partition("## When something goes wrong")[2].partition("## ")[0]
    messages = [part for row in re.findall(r"^\| (`.*?`) \|", table, re.M) for part in re.findall("`(.*?)`", row)]
    assert len(messages) > 15
    for message in messages:
        assert message in code, message


def test_the_first_commands_are_those_of_ci():
    first, second = (block for block in blocks(READMES["README.en.md"], "sh") if "venv" in block)
    assert first.startswith("python3 -m venv .venv && . .venv/bin/activate && pip install -e . && ")
    assert "pip install -e '.[test]' && pytest" in second
    ci = (REPOSITORY / ".ci" / "run").read_text()
    assert "python3 -m venv" in ci and "-e '.[test]'" in ci and ci.rstrip().endswith("pytest")


def test_the_workflow_runs_ci_from_the_oldest_versions_allowed_on():
    job = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "tests.yml").read_text())["jobs"]["tests"]
    assert job["steps"][-1] == {"run": ".ci/run"}
    oldest = re.findall(r'(?:python_requires="|"tensorflow)>=([0-9.]+)"', (REPOSITORY / "setup.py").read_text())
    versions = [
        tuple(entry[name] for name in ("tensorflow", "python")) for entry in job["strategy"]["matrix"]["include"]
    ]
    assert sorted(versions[0]) == sorted(oldest)  # As strings: 3.10 without quotes is the number 3.1.


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone whose user has added the code of the README to cvd_models.py and losses.py, and has data at hand."""
    clone = tmp_path_factory.mktemp("clone")
    shutil.copytree(REPOSITORY / "cats_vs_dogs", clone / "cats_vs_dogs")
    for code in blocks(READMES["README.en.md"], "python"):
        module = "losses" if "BaseLoss" in code else "cvd_models"
        with open(clone / "cats_vs_dogs" / f"{module}.py", "a", encoding="utf-8") as file:
            file.write(f"\n\n{code}")
    pictures = clone / "pictures"
    command = [sys.executable, "cats_vs_dogs/sample_data.py", f"--output_dir={pictures}", "--as_images"]
    subprocess.run(command, cwd=clone, check=True, capture_output=True)
    for number, path in enumerate(sorted((pictures / "train").iterdir())):
        if number % 15:  # A tenth or so is enough here.
            path.unlink()
    for name in ("train", "test1"):
        shutil.make_archive(str(clone / name), "zip", pictures, name)
    (clone / "results").mkdir()
    (clone / "results" / "prediction.results-00000-of-00001").write_text(LINE_OF_JSON)
    return clone


@pytest.fixture
def bucket(monkeypatch):
    """The bucket that the READMEs download from, on loopback."""
    with FakeGcs(**{"my-bucket": {"shards/train-00000-of-00001": b"a shard"}}) as gcs:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.address)
        yield


def test_recipes_can_be_typed(run_script, tmp_path):
    """Their first step: whole, they take minutes."""
    section = READMES["README.en.md"].partition("\n## Recipes\n")[2].partition("\n## ")[0]
    commands = [line for line in "".join(blocks(section, "")).splitlines() if "/train.py " in line]
    assert len(commands) == 5
    pattern = write_shards(tmp_path, num_examples=4, num_shards=1)
    for command in commands:
        command = command.replace("/tmp/", f"{tmp_path}/").replace("shards/train-*", pattern)
        assert str(tmp_path) in command.partition("--train_dir=")[2]
        command = command.replace("python", sys.executable, 1) + " --max_steps=1"
        run_script("", command=["bash", "-c", command], cwd=REPOSITORY)


def test_every_command_works(run_script, clone, bucket):
    """In the order of the README, in one folder, as a reader would type them; test_vertex.py runs the others."""
    here, in_the_cloud = commands_here_and_in_the_cloud()
    assert sorted(here + in_the_cloud) == sorted(blocks(READMES["README.en.md"], "sh"))
    commands = "".join(here).splitlines()
    ran = set()
    for command in commands:
        command = command.split("&& ")[-1].replace("/tmp/", f"{clone}/tmp/")
        if command == "pytest":
            continue
        if command.startswith("tensorboard "):
            command = command.replace("tensorboard ", f"{sys.executable} -m tensorboard.main --inspect ", 1)
        else:
            script = re.match(r"python cats_vs_dogs/(\w+)\.py", command)[1]
            ran.add(script)
            if script in ("train", "eval", "inference") and "--train_dir" not in command:
                command += f" --train_dir={clone}/tmp/cvd_model"
            command = command.replace("python", sys.executable, 1)
        run_script("", command=["bash", "-c", command], cwd=clone)
    scripts = {
        path.stem for path in (clone / "cats_vs_dogs").glob("*.py") if "utils.run_script(main" in path.read_text()
    }
    assert ran == scripts
    submission = (clone / "submission.csv").read_text().splitlines()
    assert submission[0] == "Id,Category" and len(submission) == 1 + 500
    batch = (clone / "batch.csv").read_text().splitlines()
    assert batch[0] == "Id,Category" and len(batch) == 1 + 500
    assert (clone / "probabilities.csv").read_text().startswith("Id,Probability\n1.jpg,")
    assert (clone / "tmp" / "cvd_data" / "train-00000-of-00001").read_bytes() == b"a shard"
    assert (clone / "from_json.csv").read_text() == "Id,Category\n1.jpg,1\n"
