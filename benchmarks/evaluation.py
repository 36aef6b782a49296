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

from cats_vs_dogs import distribution, inference, submission
from cats_vs_dogs.evaluation import Evaluator
from cats_vs_dogs.event_files import EventFile
from cats_vs_dogs.prediction import Predictor

PASSES = 4  # Over the shards: building the graph takes half a second, which should weigh little.


def main() -> None:
    say_machine()
    shards = open_shards(arguments.shards)
    cluster = distribution.local_devices()
    classifier = make_classifier("LogisticModel", 32)
    labelled, unlabelled = (batches_in_order(shards, kind, 32, 1024).repeat(PASSES) for kind in (True, False))
    with tempfile.TemporaryDirectory() as folder:
        evaluator = Evaluator(Predictor(classifier, cluster, labelled), shows_batches=True)
        predictor, events = Predictor(classifier, cluster, unlabelled), EventFile(folder)

        def speed(function) -> float:
            start = time.perf_counter()
            function()
            return PASSES * shards.num_examples / (time.perf_counter() - start)

        median = alternate(
            {
                "pipeline alone": lambda: speed(lambda: sum(1 for _ in labelled)),
                "evaluation": lambda: speed(lambda: evaluator.evaluate(1, events)),
                "inference": lambda: speed(
                    lambda: inference.predict(predictor, submission.Writer(io.StringIO(), "probability"))
                ),
            },
            arguments.rounds,
        )
    rows = [(name, f"{value:,.0f}", f"{value / median['pipeline alone']:.2f}") for name, value in median.items()]
    print_table(("what", "photos/s", "against the pipeline alone"), rows)


if __name__ == "__main__":
    main()
