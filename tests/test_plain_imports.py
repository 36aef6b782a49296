"""Files of the package's folder import each other by their plain names, as in 2017."""

import ast
import os
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY, forked_python, write_shards

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
    "# -*- coding: latin-1 -*-\nimport models  # \xe9": "models is full('models')",
    "from __future__ import division\nimport models": "models is full('models')",
    "import models\r\nimport utils\r\n": "models is full('models') and utils is full('utils')",
    "if True:\n\timport models": "models is full('models')",
    "import utils as u, losses as l": "u is full('utils') and l is full('losses')",
    "exec('import models')": "models is full('models')",
    "class A:\n  import models\n  from utils import UserError as E": "A.models is full('models') and A.E",
    "import models; models = 3; import models": "models is full('models')",
    '"Docs: import models"': "'models' not in globals()",
    "import xml.dom.minidom, nets.vgg, models": "xml.dom.minidom.parse and nets.vgg and models is full('models')",
    "with open(__file__):\n  from nets import vgg as v, models as m": "v.models is m is full('models')",
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
        "nets/__init__": "import models\n",
        "nets/vgg": "import models\nimport layers\n",
        "plain/deep": "import layers\n",
        "helper": "import cvd_models\n",
    }.items():
        (package / f"{name}.py").write_text(text)
    return folder


def run(folder, *arguments, code="", cwd=None):
    """Runs Python with the kit of a folder: with arguments, or a script beside the kit with some code."""
    (folder / "script.py").write_text(code)
    command = [sys.executable, *arguments] if arguments else [*forked_python(), "script.py"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd or folder, env=environment)


def test_every_form_of_import_gives_the_one_module(fork):
    files = []
    for number, (statement, expression) in enumerate(IMPORTS.items()):
        text = f"{statement}\nimport importlib as i\ndef full(name): return i.import_module('cats_vs_dogs.' + name)\n"
        text += f"assert {expression}, {statement!r}\n"
        (fork / "cats_vs_dogs" / f"form{number}.py").write_bytes(text.encode("latin-1"))
        files.append(f"form{number}")
    process = run(fork, code=f"import importlib\nfor name in {files}: importlib.import_module('cats_vs_dogs.' + name)")
    assert process.returncode == 0, process.stderr


def test_a_package_of_the_fork_has_its_folders(fork, tmp_path):
    shutil.copy(REPOSITORY / "setup.py", fork)
    run(fork, "setup.py", "--quiet", "build", "--build-base", str(tmp_path), "--build-lib", str(tmp_path / "lib"))
    code = "import cats_vs_dogs.nets.vgg as v, cats_vs_dogs.plain.deep as d; print(d.layers is v.layers, v.__file__)"
    process = run(tmp_path / "lib", code=code)
    assert process.stdout == f"True {tmp_path}/lib/cats_vs_dogs/nets/vgg.py\n", process.stderr
    assert not (tmp_path / "lib" / "cats_vs_dogs" / "nothing_to_import").exists()


def test_models_and_losses_of_helper_modules_are_trained(fork, tmp_path):
    package = fork / "cats_vs_dogs"
    (package / "my_models.py").write_text("import cvd_models\nclass MyModel(cvd_models.LogisticModel): pass\n")
    (package / "my_losses.py").write_text(
        "import losses\n"
        "class MyLoss(losses.CrossEntropyLoss):\n"
        "  def calculate_loss(self, predictions, labels):\n"
        "    import models, tensorflow as tf\n"
        "    if tf.reduce_sum(labels) > 0: assert models.BaseModel\n"  # AutoGraph rewrites this function.
        "    return super().calculate_loss(predictions, labels)\n"
    )
    originals = {name: (package / f"{name}.py").read_text() for name in ("cvd_models", "losses")}
    try:
        for name, line in (("cvd_models", "from my_models import MyModel"), ("losses", "from my_losses import MyLoss")):
            (package / f"{name}.py").write_text(f"{originals[name]}\n\n{line}\n")
        flags = ["--model=MyModel", "--label_loss=MyLoss", "--max_steps=1", f"--train_dir={tmp_path}/model"]
        data = [f"--train_data_pattern={write_shards(tmp_path)}", "--image_size=4"]
        command = [*forked_python(), str(package / "train.py"), *flags, *data]
        process = subprocess.run(command, cwd=fork, capture_output=True, text=True)
    finally:
        for name, text in originals.items():
            (package / f"{name}.py").write_text(text)
    assert process.returncode == 0 and "MyModel: 49 parameters." in process.stderr, process.stderr


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
