"""Paths of checkpoints and exports as TensorFlow can read them: it takes such a path for a pattern."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator

import tensorflow as tf

from cats_vs_dogs import files


@contextlib.contextmanager
def plain_path(path: str) -> Iterator[str]:
    """Yields a path without `[`, `*`, `?` or a backslash, which leads to the same files.

    Args:
        path: a folder, or what the names of files in a folder begin with.
    """
    if not re.search(r"[\[*?\\]", path):
        yield path
        return
    with tempfile.TemporaryDirectory() as place:
        plain = os.path.join(place, "plain")
        if files.is_remote(path):
            _download(path, plain)
            yield plain
            return
        folder, name = (path, "") if os.path.isdir(path) else os.path.split(path)
        os.symlink(os.path.abspath(folder), plain)
        yield os.path.join(plain, name)


def _download(path: str, target: str) -> None:
    """Copies a folder, or the files whose names begin with a path, from an object store."""
    sources = [os.path.join(folder, name) for folder, _, names in tf.io.gfile.walk(path) for name in names]
    if not sources:
        folder, name = path.rsplit("/", 1)
        sources = files.list_matching(folder, re.escape(name) + r"\..*")
    for source in sources:
        copy = target + source.removeprefix(path)
        os.makedirs(os.path.dirname(copy), exist_ok=True)
        tf.io.gfile.copy(source, copy)
