"""Cats vs Dogs: a TensorFlow starter kit, from TFRecord shards to a submission CSV."""

import contextlib
import os
import sys
import time

# Read when TensorFlow and Keras are imported, so they are set before either is.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

_read_at = time.time()


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
            del sys.modules[name]
            globals().pop(name.split(".")[1], None)
        _read_at = time.time()
