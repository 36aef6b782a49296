"""The notebook docs/quickstart.ipynb: every cell is run in order. A small runner stands for Jupyter and Colab."""

import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import types

import pytest
from conftest import NUM_SAMPLES, PAGES, REPOSITORY, forked_python, make_sample_set_small
from PIL import Image

NOTEBOOK = REPOSITORY / "docs" / "quickstart.ipynb"
TEXT = NOTEBOOK.read_text(encoding="utf-8")
CELLS = json.loads(TEXT)["cells"]
CODE = {cell["id"]: "".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"}
MARKDOWN = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown"]
# Script and arguments of each command.
COMMANDS = re.findall(r"^ *!python cats_vs_dogs/(\w+)\.py(.*)", "\n".join(CODE.values()), flags=re.MULTILINE)


class Session:
    """Runs cells as Jupyter does: Python, `!` by the shell; `%` is only noted. A command that fails is an error.

    Attributes:
        names: the variables of the notebook.
        said: by cell, what its commands wrote.
        magics: the lines that began with `%`, without it.
    """

    def __init__(self, environment, **settings):
        """Gets what the commands find in the environment, and settings to use instead of the notebook's."""
        self.names = {"__name__": "__main__"}
        self.said = {}
        self.magics = []
        self._environment = {**os.environ, **environment}
        self._settings = settings

    def run(self, *cells):
        for cell in cells:
            self.said[cell] = ""
            source = re.sub(r"^( *)!(.*)$", r"\1__shell(r'''\2 ''')", CODE[cell], flags=re.MULTILINE)
            source = re.sub(r"^( *)%(.*)$", r"\1__magic(r'''\2 ''')", source, flags=re.MULTILINE)
            self.names["__shell"] = lambda line, cell=cell: self._shell(cell, self._expand(line))
            self.names["__magic"] = lambda line: self.magics.append(self._expand(line).strip())
            exec(compile(source, f"cell {cell}", "exec"), self.names)
            if cell == "settings":
                assert self._settings.keys() <= self.names.keys()
                self.names.update(self._settings)

    def _expand(self, line):
        """Replaces {NAME} by its value; IPython leaves a wrong name as it is, which is an error here."""
        return re.sub(r"\{(\w+)\}", lambda match: str(self.names[match[1]]), line)

    def _shell(self, cell, command):
        process = subprocess.run(
            ["bash", "-c", command], env=self._environment, capture_output=True, text=True, timeout=300
        )
        assert process.returncode == 0, f"{command}\n{process.stdout}{process.stderr}"
        self.said[cell] += process.stdout + process.stderr


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """A copy of the kit, in which the scripts may write; its folder docs is the current one, as in Jupyter."""
    kit = tmp_path / "copy"
    shutil.copytree(REPOSITORY / "cats_vs_dogs", kit / "cats_vs_dogs", ignore=shutil.ignore_patterns("__pycache__"))
    (kit / "docs").mkdir()
    monkeypatch.chdir(kit / "docs")
    return kit


def test_it_is_as_jupyter_saves_it_without_outputs():
    notebook = json.loads(TEXT)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    saved = json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False)
    assert saved + "\n" == TEXT  # So diffs stay small.
    for cell in CELLS:
        keys = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            keys |= {"execution_count", "outputs"}
            assert (cell["execution_count"], cell["outputs"]) == (None, [])
        assert set(cell) == keys
        assert re.fullmatch(r"[a-z-]{1,64}", cell["id"])
        assert all(line.endswith("\n") for line in cell["source"][:-1]) and not cell["source"][-1].endswith("\n")
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)


def test_nbformat_finds_it_valid():
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.reads(TEXT, as_version=4))


def test_the_settings_can_be_set_by_other_programs():
    """Tools such as Papermill insert their values after the cell with this tag."""
    assert [cell["id"] for cell in CELLS if cell["metadata"]] == ["settings"]
    assert CELLS[[cell["id"] for cell in CELLS].index("settings")]["metadata"] == {"tags": ["parameters"]}


def test_each_heading_has_a_line_in_korean():
    for text in MARKDOWN:
        heading, korean, empty = text.splitlines()[:3]
        assert heading.startswith("#") and re.search("[가-힣]", korean) and not empty


def test_flags_pages_and_recipes_that_it_names_exist():
    assert len(COMMANDS) >= 6
    sections = dict(re.findall(r"^## (\w+)\.py\n(.*?)(?=^## |\Z)", PAGES["docs/flags.en.md"], re.MULTILINE | re.DOTALL))
    for script, arguments in COMMANDS:
        assert set(re.findall(r"--(\w+)", arguments)) <= set(re.findall(r"^\| `--(\w+)`", sections[script], re.M))
    for flag in set(re.findall(r"--(\w+)", "".join([*MARKDOWN, CODE["settings"]]))):
        assert any(f"| `--{flag}` |" in section for section in sections.values()), flag
    for path in set(re.findall(r"[\w/]+\.en\.md", TEXT)):
        assert path in PAGES, path
    for script in set(re.findall(r"(\w+\.py)", TEXT)):
        assert (REPOSITORY / "cats_vs_dogs" / script).exists(), script
    names = {}
    exec(CODE["settings"], names)
    assert (REPOSITORY / "cats_vs_dogs" / "recipes" / f"{names['RECIPE']}.flags").exists()


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_it_clones_the_kit_where_there_is_none(kit, tmp_path, monkeypatch):
    own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}  # No hooks and signatures of the user.
    for command in ("init", "add .", "-c user.name=me -c user.email=me@example.com commit --quiet --message=all"):
        subprocess.run(["git", *command.split()], cwd=kit, env={**os.environ, **own}, check=True, capture_output=True)
    content = tmp_path / "content"
    content.mkdir()
    for is_first in (True, False):  # Then in the same session, and in one that was restarted.
        monkeypatch.chdir(content)
        session = Session(own, REPOSITORY=kit)
        for _ in range(2):
            session.run("settings", "install")
            assert os.getcwd() == str(content / "kit")
            assert ("Cloning" in session.said["install"]) == is_first
            is_first = False
    assert session.magics == ["pip install --quiet -e ."] * 2
    assert (content / "kit" / "cats_vs_dogs" / "train.py").exists()


def test_it_says_which_address_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="REPOSITORY is empty: write the address"):
        Session({}).run("settings", "install")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({}, [], id="sample set"),
        pytest.param({"UPLOAD": True, "TRAIN_PHOTOS": "train.zip"}, ["upload"], id="upload"),
        pytest.param({"TRAIN_DIR": "/content/drive/MyDrive/model"}, ["/content/drive"], id="model on Drive"),
        pytest.param({"TRAIN_PHOTOS": "/content/drive/MyDrive/a.zip"}, ["/content/drive"], id="photos on Drive"),
    ],
)
def test_photos_come_from_the_computer_or_from_drive(settings, expected, monkeypatch):
    asked = []
    colab = types.SimpleNamespace(
        drive=types.SimpleNamespace(mount=asked.append),
        files=types.SimpleNamespace(upload=lambda: asked.append("upload")),
    )
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    Session({}, **settings).run("settings", "photos")
    assert asked == expected


@pytest.mark.slow
def test_all_cells_run_in_their_order(kit, tmp_path, monkeypatch):
    """In a clone, with a small sample set and a few steps of training."""
    make_sample_set_small(kit)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {shlex.join(forked_python())} "$@"\n')
    python.chmod(0o755)
    shown = []
    for name in ("IPython", "IPython.display"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(HTML=shown.append))
    train_dir = tmp_path / "model"
    session = Session(
        {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path / "cache")},
        TRAIN_DIR=str(train_dir),
        FLAGS="--model=LogisticModel --image_size=32 --max_steps=4 --noreport",  # The report is that of eval.py.
    )
    session.run(*CODE)

    assert os.getcwd() == str(kit)
    assert "training step 4" in session.said["train"]
    assert "log loss" in session.said["evaluate"]
    report = (train_dir / "eval" / "report.html").read_text(encoding="utf-8")
    assert [html.unescape(re.search('srcdoc="([^"]*)"', page)[1]) for page in shown] == [report]
    assert re.search(r"1\.jpg +(cat|dog) ", session.said["photo"])
    assert isinstance(session.names["picture"], Image.Image)
    rows = (kit / "submission.csv").read_text().splitlines()
    assert rows[0] == "Id,Category" and len(rows) == 1 + NUM_SAMPLES["test"]
    assert session.said["submission"].endswith("\n".join([*rows[:4], ""]))
    assert "Nothing left to train" in session.said["resume"]
    assert session.magics[1:] == ["load_ext tensorboard", f"tensorboard --logdir='{train_dir}'"]
    assert [*train_dir.glob("events.out.tfevents.*")]
