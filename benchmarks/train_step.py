"""Examples per second of training steps on pictures in memory, against Keras fit.

python benchmarks/train_step.py
"""

import argparse
import re
import time

from common import add_small_conv_net, alternate, make_classifier, make_trainer, print_table, say_machine

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--steps", type=int, default=400, help="of LogisticModel; SmallConvNet takes a tenth of them")
parser.add_argument("--only", default="", help="a regular expression: which models to measure")
arguments = parser.parse_args()

import keras
import numpy as np
import tensorflow as tf

from cats_vs_dogs import distribution, readers

# (Name of the model, whether every step gets the same batch): (steps a run, size, batch size).
RUNS = {
    ("LogisticModel", False): (arguments.steps, 32, 512),
    ("LogisticModel", True): (arguments.steps, 32, 512),
    ("SmallConvNet", False): (max(10, arguments.steps // 10), 64, 64),
}


def dataset(size: int, batch_size: int, num_steps: int, one_batch: bool) -> tf.data.Dataset:
    """Returns batches like those of the kit's cache, uint8 from memory; or one scaled batch again and again."""
    num_examples = batch_size if one_batch else 8 * batch_size
    rng = np.random.default_rng(0)
    images = tf.constant(rng.integers(0, 256, (num_examples, size, size, 3), dtype=np.uint8))
    labels = tf.constant(rng.integers(0, 2, (num_examples, 1), dtype=np.int32))
    ids = tf.fill([num_examples], b"")
    if one_batch:
        return tf.data.Dataset.from_tensors((ids, readers.scale_images(images), labels, 1.0)).repeat(num_steps)
    numbers = tf.data.Dataset.range(num_examples).shuffle(num_examples, seed=0).repeat().batch(batch_size)
    batches = numbers.map(lambda i: (tf.gather(ids, i), tf.gather(images, i), tf.gather(labels, i), 1.0))
    return batches.take(num_steps).prefetch(tf.data.AUTOTUNE)


def ours(name: str, one_batch: bool):
    num_steps, size, batch_size = RUNS[name, one_batch]
    cluster = distribution.local_devices()
    trainer = make_trainer(make_classifier(name, size), cluster, batch_size)

    def batches_of(num_steps: int):
        return iter(cluster.distribute(dataset(size, batch_size, num_steps, one_batch)))

    trainer.run_steps(batches_of(4), 4)

    def run() -> float:
        batches = batches_of(num_steps)
        start = time.perf_counter()
        for _ in range(num_steps // 10):  # Ten steps for each log line, as in train.py.
            trainer.run_steps(batches, 10)
        return num_steps * batch_size / (time.perf_counter() - start)

    return run


def keras_fit(name: str, one_batch: bool, **compile_arguments):
    num_steps, size, batch_size = RUNS[name, one_batch]
    network = make_classifier(name, size).model.network
    optimizer = keras.optimizers.Adam(0.01, epsilon=1e-8, clipnorm=1.0)
    network.compile(optimizer, "binary_crossentropy", metrics=["accuracy"], **compile_arguments)

    def pairs(num_steps: int) -> tf.data.Dataset:
        batches = dataset(size, batch_size, num_steps, one_batch)
        batches = batches.map(lambda ids, images, labels, share: (readers.scale_images(images), labels))
        return batches.prefetch(tf.data.AUTOTUNE)

    network.fit(pairs(min(20, num_steps)), verbose=0)

    def run() -> float:
        batches = pairs(num_steps)
        start = time.perf_counter()
        network.fit(batches, verbose=0)
        return num_steps * batch_size / (time.perf_counter() - start)

    return run


def main() -> None:
    say_machine()
    add_small_conv_net()
    rows = []
    for name, one_batch in RUNS:
        if not re.search(arguments.only, name):
            continue
        median = alternate(
            {
                "this kit": ours(name, one_batch),
                "Keras fit, default settings": keras_fit(name, one_batch),
                "Keras fit, jit_compile=False, steps_per_execution=10": keras_fit(
                    name, one_batch, jit_compile=False, steps_per_execution=10
                ),
            },
            arguments.rounds,
        )
        what = f"{name}, the same batch each step" if one_batch else name
        rows += [(what, who, f"{value:,.0f}", f"{median['this kit'] / value:.2f}") for who, value in median.items()]
    print_table(("model", "loop", "examples/s", "this kit against it"), rows)


if __name__ == "__main__":
    main()
