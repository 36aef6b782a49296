"""What the benchmarks share: calls of the kit, the median of several runs, and a table with the ratio last."""

import functools
import glob
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import cats_vs_dogs  # noqa: F401 - Sets what TensorFlow reads when it is imported.

# The command that starts Python. Tests set the variable to start processes sooner.
PYTHON = shlex.split(os.environ.get("BENCHMARK_PYTHON", "")) or [sys.executable]

# Runs a command and prints its peak memory. Linux counts for a new process the peak of the one that started it, and a
# benchmark may be larger than what it measures; so this small process starts it.
_PEAK_OF = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code != 0)
"""


def say_machine() -> None:
    """Prints what the figures were measured on."""
    import keras
    import tensorflow as tf

    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), name)
    print(
        f"{os.cpu_count()} cores, {name}; Python {platform.python_version()}, TensorFlow {tf.__version__}, "
        f"Keras {keras.__version__}\n"
    )


def add_small_conv_net() -> None:
    """Adds SmallConvNet to the models: three convolutions with batch norm, of 94,000 parameters."""
    import keras

    from cats_vs_dogs import cvd_models, models

    class SmallConvNet(models.BaseModel):
        def create_model(self, model_input, width=32):
            net = model_input
            for filters in (width, 2 * width, 4 * width):
                net = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(net)
                net = keras.layers.MaxPooling2D()(keras.layers.ReLU()(keras.layers.BatchNormalization()(net)))
            net = keras.layers.GlobalAveragePooling2D()(net)
            return {"predictions": keras.layers.Dense(1, activation="sigmoid")(net)}

    cvd_models.SmallConvNet = SmallConvNet


def open_shards(pattern: str, max_records: int | None = None):
    """Returns the `readers.Shards` that match a pattern, or the first of them up to about `max_records` records."""
    from cats_vs_dogs import readers, tfrecords

    records = {}
    for path in sorted(glob.glob(pattern)):
        if max_records is None or sum(records.values()) < max_records:
            records[path] = tfrecords.scan(path).count
    return readers.Shards(records, num_bytes=sum(map(os.path.getsize, records)))


def copy_shards(shards: Sequence[str], folder: str, num_copies: int) -> None:
    """Writes copies of shards into a new folder, as "<copy>-<number of the shard>", each record with an id of its own.

    inference.py lets each id come once.
    """
    import tensorflow as tf

    from cats_vs_dogs import tfrecords

    def records(path: str, copy: int):
        for _, record in tfrecords.walk(path, with_bytes=True):
            example = tf.train.Example.FromString(record)
            ids = example.features.feature[tfrecords.FILENAME].bytes_list.value
            ids[0] = b"%d-%s" % (copy, ids[0])
            yield example.SerializeToString()

    os.mkdir(folder)
    for copy in range(num_copies):
        for number, path in enumerate(shards):
            tfrecords.write_shard(f"{folder}/{copy}-{number}", records(path, copy))


def make_classifier(model: str, image_size: int):
    """Returns a new `Classifier` with the cross-entropy loss."""
    from cats_vs_dogs.classifier import Classifier
    from cats_vs_dogs.config import ModelSpec

    return Classifier(ModelSpec(model, {}, "CrossEntropyLoss", {}, image_size, "area"))


@functools.cache
def default_config():
    """Returns the config of train.py's default flags."""
    from absl import flags

    from cats_vs_dogs import config

    config.define_flags()
    flags.FLAGS(["train.py"])
    return config.read(flags.FLAGS)


def make_trainer(classifier, cluster, batch_size: int):
    """Returns a `Trainer` with the default flags of train.py."""
    from cats_vs_dogs import optimizers
    from cats_vs_dogs.trainer import Trainer

    rate = optimizers.LearningRate(0.01, batch_size)
    optimizer = optimizers.make_optimizer("AdamOptimizer", rate, classifier.model.trainable_variables)
    return Trainer(classifier, optimizer, cluster.strategy, default_config().optimizer)


def training_batches(shards, image_size: int, batch_size: int):
    """Returns one epoch of train.py's input pipeline: (ids, images, labels, weight) for each batch."""
    from cats_vs_dogs import readers

    reader = readers.get_reader(True, image_size, "area")
    return readers.make_training_dataset(reader, shards, readers.Order(batch_size, seed=0, num_epochs=1))


def batches_in_order(shards, is_labelled: bool, image_size: int, batch_size: int):
    """Returns the input pipeline of evaluation or inference."""
    from cats_vs_dogs import readers

    return readers.make_dataset(readers.get_reader(is_labelled, image_size, "area"), shards, batch_size)


def alternate(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Runs contestants in turn, so that a slow spell of the machine meets all of them, and returns the median of each.

    Args:
        contestants: functions that return a speed.
        rounds: how often each runs.
    """
    speeds = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            speeds[name].append(run())
    return {name: statistics.median(values) for name, values in speeds.items()}


def seconds_of(function: Callable[[], object]) -> float:
    """Returns how long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def run_process(
    command: Sequence[str], env: dict[str, str] | None = None, cores: set[int] | None = None
) -> tuple[float, int]:
    """Runs a command on some cores, or on all, and returns (seconds, peak memory in KiB) of its process.

    Raises:
        SystemExit: the command failed.
    """
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", _PEAK_OF, *command],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
    )
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)} failed")
    return seconds, int(process.stdout)


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a Markdown table."""
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(map(str, row)) + " |")
