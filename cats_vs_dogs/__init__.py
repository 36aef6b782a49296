"""Cats vs Dogs: a TensorFlow starter kit, from TFRecord shards to a submission CSV."""

import contextlib
import importlib.util
import os
import shlex
import sys
import time

from cats_vs_dogs import plain_imports

# Read when TensorFlow and Keras are imported, so they are set before either is.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

_FOLDER = os.path.dirname(os.path.abspath(__file__))

# A script that is run without the kit's environment ends with one line.
if os.path.dirname(os.path.abspath((sys.argv or [""])[0])) == _FOLDER and importlib.util.find_spec("absl") is None:
    sys.exit(
        f"error: the kit is not installed in {sys.executable}; activate its environment, such as "
        f"`. .venv/bin/activate`, or install it: pip install -e {shlex.quote(os.path.dirname(_FOLDER))}"
    )

_read_at = time.time()
plain_imports.install()


def forget_edited() -> None:
    """Lets a script import the kit's modules again if one was edited since an earlier run in the same process.

    In a notebook the modules would stay as they were at the first run. Scripts call this before they import a module.
    """
    global _read_at
    names = [name for name in sys.modules if name.startswith(f"{__name__}.")]
    changed = 0.0
    for name in names:
        with contextlib.suppress(OSError, AttributeError, TypeError):
            status = os.stat(sys.modules[name].__file__)
            changed = max(changed, status.st_mtime, status.st_ctime)  # The latter if an older file was copied there.
    if changed > _read_at:
        for name in names:
            module, plain_name = sys.modules.pop(name), name.split(".")[1]
            globals().pop(plain_name, None)
            if sys.modules.get(plain_name) is module:  # See `plain_imports`.
                del sys.modules[plain_name]
        _read_at = time.time()
