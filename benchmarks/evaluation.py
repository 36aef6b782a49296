"""Photos per second of evaluation and inference, against their input pipeline alone.

python benchmarks/evaluation.py --shards='shards/train-*'
"""

import argparse
import io
import tempfile
import time

from common import alternate, batches_in_order, make_classifier, open_shards, print_table, say_machine

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--shards", required=True)
parser.add_argument("--rounds", type=int, default=3)
arguments = parser.parse_args()

import tensorflow as tf

from cats_vs_dogs import distribution, eval, inference

PASSES = 4  # Over the shards: building the graph takes half a second, which should weigh little.


def main() -> None:
    say_machine()
    shards = open_shards(arguments.shards)
    cluster = distribution.local_devices()
    classifier = make_classifier("LogisticModel", 32)
    labelled, unlabelled = (batches_in_order(shards, kind, 32, 1024).repeat(PASSES) for kind in (True, False))
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
