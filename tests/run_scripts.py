"""Runs scripts of the kit one after the other as __main__ in one process, which imports TensorFlow once.

python run_scripts.py '[["train", "--train_dir=/tmp/m"], ["eval", "--train_dir=/tmp/m", "--run_once"]]'

"killed_train" is the script of that name beside this one. Ends with the highest exit code.
"""

import json
import os
import runpy
import sys

if __package__ in (None, ""):
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    import cats_vs_dogs  # noqa: F401 - Sets what TensorFlow reads when it is imported.

import keras
from absl import flags

TESTS = os.path.dirname(os.path.abspath(__file__))
codes = [0]
for script, *arguments in json.loads(sys.argv[1]):
    before = set(flags.FLAGS)
    folder = TESTS if script == "killed_train" else os.path.join(sys.path[0], "cats_vs_dogs")
    sys.argv = [os.path.join(folder, f"{script}.py"), *arguments]
    keras.utils.clear_session()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        codes.append(end.code or 0)
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
sys.exit(max(codes))
