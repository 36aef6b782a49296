"""Files of the package's folder import each other by their plain names, as in 2017."""

import ast
import os
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from cats_vs_dogs import plain_imports

# What a file of the folder may write, and an expression that must be true after it.
IMPORTS = {
    "import models": "models is full('models')",
    "import math, models, os.path": "models is full('models') and math.pi and os.path",
    "import models as m": "m is full('models')",
    "from models import BaseModel": "BaseModel is full('models').BaseModel",
    "from models import (BaseModel as B,\n    BuiltModel)": "B is full('models').BaseModel",
    "import losses, \\\n    utils": "losses is full('losses') and utils is full('utils')",
    "import math; import readers": "readers is full('readers')",
    "try: import eval_util\nexcept ImportError: raise": "eval_util is full('eval_util')",
    "def late():\n  import cvd_models\n  return cvd_models": "late() is full('cvd_models')",
    "import eval as e, export_model, train": "e is full('eval') and export_model.main and train.main",
    "import average_precision_calculator as a": "a is full('average_precision_calculator')",
    "import mean_average_precision_calculator as m": "m is full('mean_average_precision_calculator')",
    "import convert_prediction_from_json_to_csv as c": "c is full('convert_prediction_from_json_to_csv')",
    "from inference import main": "main is full('inference').main",
    "import layers": "layers.MINE == 1 and layers.models is full('models')",
    "from data import *": "MINE == 2",
    "import nets.vgg": "nets is full('nets') and nets.vgg.models is full('models')",
    "import nets.vgg as vgg": "vgg is full('nets.vgg')",
    "from nets import vgg": "vgg.models is full('models')",
    "from nets.vgg import models": "models is full('models')",
    "import plain.deep": "plain.deep.layers is full('layers')",  # A folder without __init__.py.
    "import importlib\nm = importlib.import_module('models')": "m is full('models')",
    "from importlib import reload\nimport layers": "reload(layers) is layers is full('layers')",
    "import importlib\nm = importlib.reload(importlib.import_module('layers'))": "m is full('layers')",
    "import pickle, losses": "type(pickle.loads(pickle.dumps(losses.BaseLoss()))) is full('losses').BaseLoss",
    "import random": "random.random",  # Python's, though a random.py is there.
    "from cats_vs_dogs import models": "models is full('models')",
    "from . import models": "models is full('models')",
}


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    """A copy of the kit, with files of a contestant's own."""
    folder = tmp_path_factory.mktemp("fork")
    package = folder / "cats_vs_dogs"
    shutil.copytree(REPOSITORY / "cats_vs_dogs", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "nets").mkdir()
    (package / "plain").mkdir()
    (package / "nothing_to_import").mkdir()
    for name, text in {
        "layers": "import models\nMINE = 1\n",
        "data": "MINE = 2\n",
        "random": "raise RuntimeError\n",
        "nets/__init__": "",
        "nets/vgg": "import models\nimport layers\n",
        "plain/deep": "import layers\n",
        "helper": "import cvd_models\n",
    }.items():
        (package / f"{name}.py").write_text(text)
    return folder


def run(folder, *arguments, code="", cwd=None):
    command = [sys.executable, *arguments] if arguments else [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd or folder, env=environment)


def test_every_form_of_import_gives_the_one_module(fork):
    files = []
    for number, (statement, expression) in enumerate(IMPORTS.items()):
        (fork / "cats_vs_dogs" / f"form{number}.py").write_text(
            f"{statement}\nimport importlib as i\ndef full(name): return i.import_module('cats_vs_dogs.' + name)\n"
            f"assert {expression}, {statement!r}\n"
        )
        files.append(f"form{number}")
    process = run(fork, code=f"import importlib\nfor name in {files}: importlib.import_module('cats_vs_dogs.' + name)")
    assert process.returncode == 0, process.stderr


def test_bytecode_of_plain_python_is_not_used(fork):
    path = fork / "cats_vs_dogs" / "layers.py"
    run(fork, "-m", "py_compile", str(path))
    assert run(fork, code="import cats_vs_dogs.layers").returncode == 0


def test_other_packages_keep_their_own_modules(fork, tmp_path):
    (tmp_path / "utils.py").write_text("OTHER = 1\n")
    (tmp_path / "other.py").write_text(
        "import utils\nassert utils.OTHER\ntry:\n  import models\nexcept ImportError:\n  pass\nelse:\n  assert 0\n"
    )
    (fork / "cats_vs_dogs" / "both.py").write_text("import other, utils\nutils.UserError\nimport models\n")
    for order in ("import other, cats_vs_dogs.both", "import cats_vs_dogs.both, other"):
        code = f"import sys; sys.path.append({str(tmp_path)!r})\n{order}\nimport utils; assert utils.OTHER"
        process = run(fork, code=code)
        assert process.returncode == 0, process.stderr


def test_required_packages_are_those_that_the_kit_imports(fork):
    found = set()
    for path in (REPOSITORY / "cats_vs_dogs").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.split(".")[0] for name in names} - sys.stdlib_module_names
    assert found - {"cats_vs_dogs"} == plain_imports.REQUIRED


def test_a_circle_of_imports(fork):
    models = fork / "cats_vs_dogs" / "cvd_models.py"
    models.write_text("import helper\nimport utils\n" + models.read_text())
    code = "import cats_vs_dogs.cvd_models as m; assert m.helper.cvd_models is m and m.utils.UserError"
    process = run(fork, code=code)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    ("arguments", "where"),
    [(["cats_vs_dogs/eval.py"], "."), (["eval.py"], "cats_vs_dogs"), (["-m", "cats_vs_dogs.eval"], ".")],
)
def test_a_script_imports_plain_names_in_each_way_of_starting_it(fork, arguments, where):
    script = fork / "cats_vs_dogs" / "eval.py"
    original = script.read_text()
    line = "import utils, data\nfrom cats_vs_dogs import utils as full\nassert utils is full and data.MINE\n"
    try:
        script.write_text(original.replace("import functools\n", f"import functools\n{line}"))
        process = run(fork, *arguments, "--train_dir=/nowhere", cwd=fork / where)
    finally:
        script.write_text(original)
    assert process.stderr.startswith("error: --train_dir=/nowhere"), process.stderr
