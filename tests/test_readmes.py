"""Every command and every piece of code in the READMEs and in docs/ is run."""

import collections
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import (
    ENGLISH,
    PAGES,
    REPOSITORY,
    RUN_SCRIPTS,
    blocks,
    commands_here_and_in_the_cloud,
    forked_python,
    jpeg,
    make_sample_set_small,
    run_scripts,
)
from fake_gcs import FakeGcs

FLAGS_OF_BEAM = {"runner", "direct_num_workers", "direct_running_mode", "setup_file", "max_num_workers"}
FLAGS_OF_BEAM |= {"project", "region", "temp_location", "dask_client_address"}
# Flags of gcloud, TensorBoard, Dask, benchmarks and absl; test_vertex.py runs gcloud with them.
FLAGS_OF_OTHERS = {
    "args",
    "artifact",
    "config",
    "container",
    "display",
    "flagfile",
    "format",
    "help",
    "host",
    "location",
    "logdir",
    "nthreads",
    "port",
    "region",
}
LINE_OF_JSON = '{"image_id": "1.jpg", "class_indexes": [0, 1], "predictions": [0.2, 0.8]}\n'
SCRIPTS = sorted(
    path.stem for path in (REPOSITORY / "cats_vs_dogs").glob("*.py") if 'if __name__ == "__main__":' in path.read_text()
)
NUM_TEST_PHOTOS = 20


def in_korean(name):
    return name.replace(".en.md", ".md")


def resolve(page, target):
    """Returns the page and the anchor that a link in a page leads to; the page is a path in this repository."""
    path, _, anchor = target.partition("#")
    path = (REPOSITORY / page).parent / path if path else REPOSITORY / page
    return str(path.resolve().relative_to(REPOSITORY)), anchor


def links(page):
    """Returns the targets of the links in a page, without code."""
    return re.findall(r"\]\(([^)]+)\)", re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL))


def anchors(page):
    """Returns the anchors of a page's headings, in their order."""
    text = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def neutral_links(page):
    """Returns a page's links so that those of both languages are equal: Korean pages, headings as numbers."""
    neutral = collections.Counter()
    for target in links(page):
        if not target.startswith("https://"):
            path, anchor = resolve(page, target)
            target = (in_korean(path), anchors(path).index(anchor) if anchor else None)
        neutral[target] += 1
    return neutral


def test_each_page_is_there_in_both_languages():
    assert len(PAGES) == 2 * len(ENGLISH) > 15
    assert set(PAGES) == set(ENGLISH) | {in_korean(name) for name in ENGLISH}


@pytest.mark.parametrize("name", ENGLISH)
def test_both_languages_have_the_same_commands_code_tables_and_links(name):
    english, korean = PAGES[name], PAGES[in_korean(name)]
    for language in ("sh", "python", ""):
        assert blocks(korean, language) == blocks(english, language)
    for pattern in (r"^#+ ", r"^\|", r"^\* ", r"^\d\. ", r"^$"):  # headings, rows, list items, paragraphs
        assert len(re.findall(pattern, korean, re.MULTILINE)) == len(re.findall(pattern, english, re.MULTILINE))
    assert sorted(re.findall(r"--\w+", korean)) == sorted(re.findall(r"--\w+", english))
    assert neutral_links(in_korean(name)) == neutral_links(name)


@pytest.mark.parametrize("name", ENGLISH)
def test_both_languages_have_the_same_figures(name):
    """Numbers with a decimal point or a separator of thousands, those with a unit, and ranges."""

    def figures(text):
        text = re.sub(r"(?<=\d)( to |–)(?=\d)", " to ", text).replace("%", " %")
        return collections.Counter(re.findall(r"\d+(?:[.,]\d+)+|\d+(?= +(?:%|MB|kB|MiB))|\d+ to \d+", text))

    assert figures(PAGES[in_korean(name)]) == figures(PAGES[name])


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for target in links(name):
        if not target.startswith("https://"):
            path, anchor = resolve(name, target)
            assert (REPOSITORY / path).exists(), target
            assert not anchor or anchor in anchors(path), target
            if path in PAGES and links(name).index(target):  # The first link leads to the page in the other language.
                assert (path in ENGLISH) == (name in ENGLISH), target


def test_the_readme_leads_to_every_page():
    assert set(ENGLISH) <= {resolve("README.en.md", target)[0] for target in links("README.en.md")} | {"README.en.md"}


@pytest.mark.parametrize("name", ["README.md", "README.en.md"])
def test_a_readme_is_short(name):
    assert len(PAGES[name].splitlines()) <= 400


@pytest.mark.parametrize("name", PAGES)
def test_flags_and_files_named_exist(name):
    code = "".join(path.read_text() for path in (REPOSITORY / "cats_vs_dogs").glob("*.py"))
    for flag in set(re.findall(r"--(\w+)", PAGES[name])) - FLAGS_OF_OTHERS - FLAGS_OF_BEAM:
        names = (flag, flag.removeprefix("no"))  # --noreport is --report=false.
        assert any(f'"{name}"' in code for name in names), flag
    for file in set(re.findall(r"`(\w+\.py)`", PAGES[name])):
        assert (REPOSITORY / "cats_vs_dogs" / file).exists(), file


@pytest.mark.parametrize("name", ["docs/files.md", "docs/files.en.md"])
def test_the_overview_has_every_file(name):
    modules = {path.name for path in (REPOSITORY / "cats_vs_dogs").glob("[a-z]*.py")}
    assert modules == set(re.findall(r"`(\w+\.py)`", PAGES[name]))
    assert {path.name for path in REPOSITORY.glob("*.yaml")} == set(re.findall(r"`([\w-]+\.yaml)`", PAGES[name]))


@pytest.fixture(scope="module")
def flags_of_scripts():
    """What --help says of each script's flags: their part of it and their default, None for those without."""
    found = {}
    for script in SCRIPTS:
        command = [sys.executable, f"cats_vs_dogs/{script}.py", "--help"]
        said = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
        found[script] = {}
        for line in said.splitlines():
            if match := re.match(r"(\w+):$", line):
                group = match[1]
            elif match := re.match(r"  --(?:\[no\])?(\w+):", line):
                found[script][match[1]] = (group, None)
                flag = match[1]
            elif match := re.match(r"    \(default: '?(.*?)'?\)$", line):
                found[script][flag] = (group, match[1] or None)
    return found


@pytest.mark.parametrize("name", ["docs/flags.md", "docs/flags.en.md"])
def test_the_page_of_flags_has_every_flag_and_its_default(name, flags_of_scripts):
    sections = dict(re.findall(r"^## (\w+)\.py\n(.*?)(?=^## |\Z)", PAGES[name], flags=re.MULTILINE | re.DOTALL))
    assert sorted(sections) == SCRIPTS
    for script, section in sections.items():
        rows = dict(re.findall(r"^\| `--(\w+)` \| (.*?) \|", section, flags=re.MULTILINE))
        assert set(rows) == set(flags_of_scripts[script]), script
        for flag, (_, default) in flags_of_scripts[script].items():
            shown = re.fullmatch(r"`([^`]*)`|.*", rows[flag])[1]  # None: words, such as "none" or "sample set".
            if default and re.fullmatch(r"[\d.]+", default):
                assert float(shown) == float(default), flag
            else:
                assert shown == default, flag


def test_the_page_of_flags_has_the_parts_of_help(flags_of_scripts):
    section = PAGES["docs/flags.en.md"].partition("## train.py\n")[2].partition("\n## ")[0]
    for part in re.split(r"^(?=\w+:$)", section, flags=re.MULTILINE)[1:]:
        group = part.partition(":")[0].lower()
        listed = set(re.findall(r"^\| `--(\w+)`", part, flags=re.MULTILINE))
        assert listed == {flag for flag, (name, _) in flags_of_scripts["train"].items() if name == group}, group


def test_messages_explained_are_those_that_users_see():
    code = "".join(path.read_text() for path in (REPOSITORY / "cats_vs_dogs").glob("*.py"))
    code = re.sub(r'"\n\s*f?"', "", code)  # Strings of several lines.
    quoted = []  # Per language.
    for name in ("docs/errors.en.md", "docs/errors.md"):
        rows = re.findall(r"^\| (`.*?`) \|", PAGES[name], re.M)
        quoted.append([part for row in rows for part in re.findall("`(.*?)`", row)])
    assert quoted[0] == quoted[1] and len(quoted[0]) > 15
    for message in quoted[0]:
        assert message in code, message


def test_the_first_commands_are_those_of_ci():
    first, second = (block for block in blocks(PAGES["README.en.md"], "sh") if "venv" in block)
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
    """A clone whose user has added the code of the pages to cvd_models.py and losses.py, and has data at hand.

    Its sample set is small.
    """
    clone = tmp_path_factory.mktemp("clone")
    shutil.copytree(REPOSITORY / "cats_vs_dogs", clone / "cats_vs_dogs", ignore=shutil.ignore_patterns("__pycache__"))
    make_sample_set_small(clone)
    (clone / "tests").mkdir()
    shutil.copy(RUN_SCRIPTS, clone / "tests")
    for code in (code for text in ENGLISH.values() for code in blocks(text, "python") if "class " in code):
        module = "losses" if "BaseLoss" in code else "cvd_models"
        with open(clone / "cats_vs_dogs" / f"{module}.py", "a", encoding="utf-8") as file:
            file.write(f"\n\n{code}")
    names = [f"train/{kind}.{number}.jpg" for kind in ("cat", "dog") for number in range(60)]
    for number, name in enumerate([*names, *(f"test1/{number + 1}.jpg" for number in range(NUM_TEST_PHOTOS))]):
        (clone / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / "photos" / name).write_bytes(jpeg(seed=number))
    for name in ("train", "test1"):
        shutil.make_archive(str(clone / name), "zip", clone / "photos", name)
    (clone / "results").mkdir()
    (clone / "results" / "prediction.results-00000-of-00001").write_text(LINE_OF_JSON)
    return clone


@pytest.fixture
def bucket(monkeypatch):
    """The bucket that the pages download from, on loopback."""
    with FakeGcs(**{"my-bucket": {"shards/train-00000-of-00001": b"a shard"}}) as gcs:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.address)
        yield


def words_of(command):
    """Returns the script and the arguments that bash makes of a command such as `python x.py --y='a b'`."""
    script = f'python() {{ printf "%s\\0" "$@"; }}; {command}'
    said = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True, cwd="/").stdout
    path, *arguments = said.split("\0")[:-1]
    return re.fullmatch(r"cats_vs_dogs/(\w+)\.py", path)[1], arguments


@pytest.mark.slow
def test_every_command_works(run_script, clone, bucket):
    """In the order of the pages, in one folder and one process; test_vertex.py runs the others.

    Training commands stop after two steps. ConvNetModel is left to test_recipes_can_be_typed; only
    one model has a report.
    """
    here, in_the_cloud = commands_here_and_in_the_cloud()
    assert sorted(here + in_the_cloud) == sorted(block for text in ENGLISH.values() for block in blocks(text, "sh"))
    scripts, boards = [], []
    for command in "".join(here).splitlines():
        command = command.split("&& ")[-1].replace("/tmp/", f"{clone}/tmp/")
        if command == "pytest":
            continue
        if command.startswith("tensorboard "):
            boards.append(shlex.split(command)[1:])
            continue
        script, arguments = words_of(command)
        if script in ("train", "eval", "inference") and not any(flag.startswith("--train_dir") for flag in arguments):
            arguments.append(f"--train_dir={clone}/tmp/cvd_model")
        if script == "train":
            arguments.append("--max_steps=2")
        if "--recipe=good" in arguments or "--model=ConvNetModel" in arguments:
            arguments += ["--model=LogisticModel", "--first_image_size=0"]
        if script == "train" or script == "eval" and f"--train_dir={clone}/tmp/photo_model" not in arguments:
            arguments.append("--noreport")
        scripts.append([script, *arguments])
    run_scripts(run_script, scripts, clone, cwd=clone, env={"XDG_CACHE_HOME": str(clone / "cache")})
    board = importlib.util.find_spec("tensorboard.main").origin
    for arguments in boards:
        run_script("", *arguments, "--inspect", command=[*forked_python(), board], cwd=clone)
    assert sorted({script for script, *_ in scripts}) == SCRIPTS
    for name in ("submission", "predictions", "batch", "best"):
        rows = (clone / f"{name}.csv").read_text().splitlines()
        assert rows[0] == ("id,label" if name == "submission" else "Id,Category") and len(rows) == 1 + NUM_TEST_PHOTOS
    # The first is of the model that was trained on shards, the second of the one that was trained on their photos.
    assert (clone / "predictions.csv").read_text() == (clone / "batch.csv").read_text()
    assert "</html>" in (clone / "tmp" / "photo_model" / "eval" / "report.html").read_text()
    assert (clone / "probabilities.csv").read_text().startswith("Id,Probability\n1.jpg,")
    assert (clone / "mistakes.csv").read_text().startswith("Id,Label,Probability\n")
    assert (clone / "tmp" / "cvd_data" / "train-00000-of-00001").read_bytes() == b"a shard"
    assert (clone / "from_json.csv").read_text() == "Id,Category\n1.jpg,1\n"
