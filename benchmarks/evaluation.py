"""Photos per second of evaluation and inference, against their input pipeline alone.

python benchmarks/evaluation.py --shards='shards/train-*'
"""

import argparse
import glob
import io
import tempfile
import time

from common import alternate, print_table, say_machine

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--shards", required=True)
parser.add_argument("--rounds", type=int, default=3)
arguments = parser.parse_args()

import tensorflow as tf

from cats_vs_dogs import distribution, eval, inference, readers, tfrecords
from cats_vs_dogs.classifier import Classifier, ModelSpec

PASSES = 4  # over the shards, so that building the graph (half a second) weighs as little as with 20,000 photos


def main() -> None:
    say_machine()
    shards = readers.Shards({path: tfrecords.scan(path).count for path in sorted(glob.glob(arguments.shards))})
    cluster = distribution.local_devices()
    classifier = Classifier(ModelSpec("LogisticModel", {}, "CrossEntropyLoss", {}, 32, "area"))
    labelled = readers.make_dataset(readers.get_reader(True, 32, "area"), shards, 1024).repeat(PASSES)
    unlabelled = readers.make_dataset(readers.get_reader(False, 32, "area"), shards, 1024).repeat(PASSES)
    with tempfile.TemporaryDirectory() as folder:
        evaluator = eval.Evaluator(classifier, cluster, labelled, tf.summary.create_file_writer(folder), True)

        def speed(function) -> float:
            start = time.perf_counter()
            function()
            return PASSES * shards.num_examples / (time.perf_counter() - start)

        median = alternate(
            {
                "pipeline alone": lambda: speed(lambda: sum(1 for _ in labelled)),
                "evaluation": lambda: speed(lambda: evaluator.evaluate(step=1)),
                "inference": lambda: speed(
                    lambda: inference.predict(classifier, cluster, unlabelled, io.StringIO(), "probability")
                ),
            },
            arguments.rounds,
        )
    rows = [(name, f"{value:,.0f}", f"{value / median['pipeline alone']:.2f}") for name, value in median.items()]
    print_table(("what", "photos/s", "against the pipeline alone"), rows)


if __name__ == "__main__":
    main()
