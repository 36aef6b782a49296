"""Fixtures that several test files share."""

import io
import multiprocessing
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(__file__).resolve().parent / "data"
# The READMEs and the pages of docs/ by path: the README first, as a reader meets them. English pages end with .en.md.
PAGES = {
    str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8")
    for path in [*sorted(REPOSITORY.glob("README*.md")), *sorted(REPOSITORY.glob("docs/*.md"))]
}
ENGLISH = {name: text for name, text in PAGES.items() if name.endswith(".en.md")}


def blocks(text, language):
    """Returns the fenced blocks of a language in a page."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [code for name, code in fenced if name == language]


def commands_here_and_in_the_cloud():
    """Returns the sh blocks of all pages: those that test_readmes.py runs, and those of the section "Google Cloud".

    The latter need gcloud and a server that answers it: test_vertex.py runs them.
    """
    here, in_the_cloud = [], []
    for text in ENGLISH.values():
        before, _, rest = text.partition("\n## Google Cloud\n")
        section, _, after = rest.partition("\n## ")
        here += blocks(before, "sh") + blocks(after, "sh")
        in_the_cloud += blocks(section, "sh")
    assert in_the_cloud
    return here, in_the_cloud


# TensorFlow's import takes more than two seconds, the half of what these take: one process does it for all. The other
# scripts import it late, or with settings of their own.
_FORKED = ("train", "eval", "inference", "export_model")
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tensorflow", "keras", "cats_vs_dogs.train", "cats_vs_dogs.inference"])


def _run_in_fork(path, arguments, cwd, env, output):
    """Makes this process one that was started as `python path arguments`."""
    if not path.startswith(str(REPOSITORY)):  # A copy of the kit, with modules of its own.
        for name in [name for name in sys.modules if name.partition(".")[0] == "cats_vs_dogs"]:
            del sys.modules[name]
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv, sys.path[:0] = [path, *arguments], [os.path.dirname(path)]
    runpy.run_path(path, run_name="__main__")


@pytest.fixture(scope="session")
def run_script(tmp_path_factory):
    """Returns a function that runs a script of the kit as a user does, in a process of its own, and returns it ended.

    The sample set is drawn into a folder that the whole test session shares.
    """
    cache = tmp_path_factory.mktemp("cache")

    def run(script, *args, check=True, cwd="/", timeout=300, command=None, env=None, repository=REPOSITORY):
        arguments = [str(arg) for arg in args]
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache), **(env or {})}
        path = str(repository / "cats_vs_dogs" / f"{script}.py")
        if script not in _FORKED:
            command = command or [sys.executable, path]
        if command:
            process = subprocess.run(
                [*command, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
            )
        else:
            output = tmp_path_factory.mktemp("output") / script
            fork = _FORKS.Process(target=_run_in_fork, args=(path, arguments, str(cwd), environment, str(output)))
            fork.start()
            fork.join(timeout)
            if fork.exitcode is None:
                fork.kill()
                raise subprocess.TimeoutExpired(path, timeout)
            said = [Path(f"{output}.{name}").read_text() for name in ("stdout", "stderr")]
            process = subprocess.CompletedProcess([path, *arguments], fork.exitcode, *said)
        if check:
            assert process.returncode == 0, process.stderr
        return process

    return run


@pytest.fixture(scope="session")
def fails_in_one_line(run_script):
    """Returns a function that runs a script which must fail, and returns its last line, which must be the only one."""

    def run(script, *args, **kwargs):
        process = run_script(script, *args, check=False, **kwargs)
        lines = process.stderr.strip().splitlines()
        assert process.returncode == 1, process.stderr
        assert lines[-1].startswith("error: "), process.stderr
        assert "Traceback" not in process.stderr, process.stderr
        return lines[-1]

    return run


def jpeg(height=40, width=60, colour=(200, 120, 40), seed=0):
    """Returns the bytes of a JPEG of one colour with some noise."""
    noise = np.random.default_rng(seed).integers(-30, 30, (height, width, 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write_shards(folder, split="train", num_examples=24, num_shards=3, labelled=True, bad=()):
    """Writes shards of bright dogs and dark cats, and returns their pattern.

    Args:
        folder: a pathlib.Path.
        split: first part of the shards' names.
        num_examples: how many examples, half cats and half dogs.
        num_shards: over how many shards.
        labelled: whether the records have labels.
        bad: numbers of the examples whose JPEG is cut off.
    """
    from cats_vs_dogs import tfrecords

    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for i in range(num_examples):
        label = i % 2
        encoded = jpeg(30 + i % 7, 40 + i % 5, (200, 180, 160) if label else (60, 70, 80), seed=i)
        if i in bad:
            encoded = encoded[: len(encoded) // 2]
        filename = f"{('cat', 'dog')[label]}.{i}.jpg" if labelled else f"{i}.jpg"
        examples.append(tfrecords.make_example(encoded, filename, label if labelled else None))
    for shard in range(num_shards):
        path = tfrecords.shard_path(str(folder), split, shard, num_shards)
        tfrecords.write_shard(path, examples[shard::num_shards])
    return str(folder / f"{split}-*")


def values_of(checkpoint):
    """Returns all values that a checkpoint holds, by name."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(checkpoint))
    names = [name for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name]
    return {name: reader.get_tensor(name) for name in names}


@pytest.fixture(scope="session")
def golden():
    """The numbers that the 2017 code computed; tests/data/golden/README.md says what they are."""
    return np.load(DATA / "golden" / "kit2017.npz")
