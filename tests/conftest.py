"""Fixtures that several test files share."""

import functools
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fork_server import ForkServer
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(__file__).resolve().parent / "data"
RUN_SCRIPTS = Path(__file__).resolve().parent / "run_scripts.py"
# The READMEs and the pages of docs/ by path: the README first, as a reader meets them. English pages end with .en.md.
PAGES = {
    str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8")
    for path in [*sorted(REPOSITORY.glob("README*.md")), *sorted(REPOSITORY.glob("docs/*.md"))]
}
ENGLISH = {name: text for name, text in PAGES.items() if name.endswith(".en.md")}


def pytest_sessionstart():
    """Lets Ctrl-C end this process and those that tests start.

    A shell starts background jobs with SIGINT ignored, and children inherit that.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    """Puts slow tests first in each part of the tests, which are what the workers begin with."""
    num_workers = getattr(config, "workerinput", {}).get("workercount", 1)
    slow = [item for item in items if item.get_closest_marker("slow")]
    others = [item for item in items if not item.get_closest_marker("slow")]

    def part(tests, worker):
        return tests[len(tests) * worker // num_workers : len(tests) * (worker + 1) // num_workers]

    if num_workers > 1:
        items[:] = [test for worker in range(num_workers) for tests in (slow, others) for test in part(tests, worker)]


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


# Of the copies with a small sample set.
NUM_SAMPLES = {"train": 80, "validation": 40, "test": 30}

# Scripts that import TensorFlow in any case. The others import it late, or with settings of their own.
_FORKED = ("train", "eval", "inference", "export_model")


@functools.cache
def forked_python() -> list[str]:
    """Returns what to write instead of `[sys.executable]` before a script that imports TensorFlow: it starts sooner."""
    return ForkServer().python


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory):
    """The XDG_CACHE_HOME that the scripts of the whole test session share: the sample set is drawn once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def run_script(session_cache):
    """Returns a function that runs a script of the kit as a user does, in its own process, and returns it ended."""

    def run(script, *args, check=True, cwd="/", timeout=300, command=None, env=None):
        arguments = [str(arg) for arg in args]
        environment = {**os.environ, "XDG_CACHE_HOME": str(session_cache), **(env or {})}
        if command is None:
            python = forked_python() if script in _FORKED else [sys.executable]
            command = [*python, str(REPOSITORY / "cats_vs_dogs" / f"{script}.py")]
        process = subprocess.run(
            [*command, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
        )
        if check:
            assert process.returncode == 0, process.stderr
        return process

    return run


def run_scripts(run_script, scripts, clone=REPOSITORY, **kwargs):
    """Runs scripts of a clone one after the other in one process, which saves imports: [[name, flag, ...], ...].

    Another clone than this one needs a copy of run_scripts.py in its folder tests.
    """
    arguments = json.dumps([[str(word) for word in script] for script in scripts])
    return run_script("", command=[*forked_python(), str(clone / "tests" / RUN_SCRIPTS.name), arguments], **kwargs)


def make_sample_set_small(clone):
    """Lets a copy of the kit draw a few pictures only."""
    path = clone / "cats_vs_dogs" / "sample_data.py"
    sizes = f"NUM_EXAMPLES = {NUM_SAMPLES}"
    source, count = re.subn(r"^NUM_EXAMPLES = .*", sizes, path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert count == 1
    path.write_text(source, encoding="utf-8")


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


def make_config(**settings):
    """Returns the config of train.py's default flags without the report, which takes time, and with some settings."""
    from absl import flags

    from cats_vs_dogs import config

    if "train_data_pattern" not in flags.FLAGS:
        config.define_flags()
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["train.py"])
    return config.from_settings(config.read(flags.FLAGS).settings() | {"report": False} | settings)


def jpeg(height=40, width=60, colour=(200, 120, 40), seed=0):
    """Returns the bytes of a JPEG of one colour with some noise."""
    noise = np.random.default_rng(seed).integers(-30, 30, (height, width, 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write_shards(folder, split="train", num_examples=24, num_shards=3, labelled=True, bad=(), first=0):
    """Writes shards of bright dogs and dark cats, and returns their pattern.

    Args:
        folder: a pathlib.Path.
        split: first part of the shards' names.
        num_examples: how many examples, half cats and half dogs.
        num_shards: over how many shards.
        labelled: whether the records have labels.
        bad: numbers of the examples whose JPEG is cut off.
        first: number of the first example; shards share the examples with the same numbers.
    """
    from cats_vs_dogs import tfrecords

    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for i in range(first, first + num_examples):
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


def free_ports(count):
    """Returns the numbers of some ports of this machine that no program has."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def values_of(checkpoint):
    """Returns all values that a checkpoint holds, by name."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(checkpoint))
    names = [name for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name]
    return {name: reader.get_tensor(name) for name in names}


@pytest.fixture
def log(caplog):
    """What is logged, also after an export, which sets the level of absl's logger to this one."""
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.INFO)
    yield caplog
    logging.set_verbosity(verbosity)


@pytest.fixture(scope="session")
def golden():
    """The numbers that the 2017 code computed; tests/data/golden/README.md says what they are."""
    return np.load(DATA / "golden" / "kit2017.npz")
