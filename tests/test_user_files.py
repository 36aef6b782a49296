"""A mistake in a file that users edit is reported in one line."""

import json
import shutil
import subprocess

import pytest
from conftest import REPOSITORY, forked_python

from cats_vs_dogs import user_files
from cats_vs_dogs.utils import UserError

# A file, a line that comes before its code, and what the error says of it.
MISTAKES = [
    (
        "cvd_models",
        "import tensorflow.contrib.slim as slim",
        "cvd_models.py line 1: import tensorflow.contrib.slim as slim: ModuleNotFoundError: No module named "
        "'tensorflow.contrib'; tf.contrib: write import keras, then the layers of this table; see docs/porting.en.md",
    ),
    ("losses", "from tensorflow import flags", "losses.py line 1: from tensorflow import flags: ImportError: "),
    ("readers", "import no_such_module", "readers.py line 1: import no_such_module: ModuleNotFoundError: "),
    ("cvd_models", "x = y", "cvd_models.py line 1: x = y: NameError: name 'y' is not defined"),
    ("cvd_models", "import helper", "helper.py line 2: 1 / 0: ZeroDivisionError: division by zero"),
    ("cvd_models", "def f(:", "cvd_models.py line 1: def f(:: SyntaxError: "),
    ("cvd_models", "print 'x'", "cvd_models.py line 1: print 'x': SyntaxError: Missing parentheses"),
    ("cvd_models", "import utils\nprint 'x'", "cvd_models.py line 2: print 'x': SyntaxError: Missing parentheses"),
    ("cvd_models", "from models import NoModel", "cvd_models.py line 1: from models import NoModel: ImportError: "),
    ("losses", "import json; json.loads('{')", "losses.py line 1: import json; json.loads('{'): JSONDecodeError: "),
    (
        "losses",
        "from tensorflow.python.nothing import x",
        "losses.py line 1: from tensorflow.python.nothing import x: ",
    ),
]


@pytest.mark.parametrize("name", ["random", "queue", "keras"])
def test_a_name_that_is_taken(monkeypatch, tmp_path, name):
    (tmp_path / f"{name}.py").write_text("")
    monkeypatch.setattr(user_files, "_FOLDER", str(tmp_path))
    with pytest.raises(UserError, match=f"^{tmp_path}/{name}.py: `import {name}` means a module .* another name$"):
        user_files.import_all()


@pytest.mark.parametrize(("name", "line", "expected"), MISTAKES, ids=[line for _, line, _ in MISTAKES])
def test_a_mistake_is_one_line(tmp_path, name, line, expected):
    package = tmp_path / "cats_vs_dogs"
    shutil.copytree(REPOSITORY / "cats_vs_dogs", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "helper.py").write_text("import models\n1 / 0\n")
    path = package / f"{name}.py"
    path.write_text(f"{line}\n{path.read_text()}")
    command = [*forked_python(), "cats_vs_dogs/train.py", f"--train_dir={tmp_path}/model"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 1 and process.stderr.startswith(f"error: {expected}"), process.stderr
    assert process.stderr.count("\n") == 1, process.stderr


@pytest.mark.slow
def test_the_code_that_workers_compare(tmp_path):
    def code_hashes(name, code):
        """Those of a copy of the kit whose losses.py has a line of code more, and which is at another place."""
        shutil.copytree(REPOSITORY / "cats_vs_dogs", tmp_path / name / "cats_vs_dogs")
        with open(tmp_path / name / "cats_vs_dogs" / "losses.py", "a") as file:
            file.write(code)
        (tmp_path / name / "of_the_user.py").write_text(code)
        (tmp_path / name / "script.py").write_text(
            "import json, sys; sys.path.insert(0, sys.path[0]); import of_the_user, cats_vs_dogs.losses\n"
            "from cats_vs_dogs import user_files; print(json.dumps(user_files.code_hashes()))"
        )
        command = [*forked_python(), str(tmp_path / name / "script.py")]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    first, same, other = code_hashes("a", ""), code_hashes("b", ""), code_hashes("c", "\nx = 1\n")
    assert first == same
    changed = {name for name in first if first[name] != other[name]}
    assert changed == {"the code of losses.py", "the code of of_the_user"}
    assert "the code of plain_imports.py" in first and not any("tensorflow" in name for name in first)
