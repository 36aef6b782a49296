"""Seconds for the metrics of a million predictions of two columns.

python benchmarks/metrics.py
"""

import argparse

from common import print_table, say_machine, seconds_of

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--predictions", type=int, default=1_000_000)
arguments = parser.parse_args()

import numpy as np

from cats_vs_dogs import eval_util
from cats_vs_dogs.average_precision_calculator import AveragePrecisionCalculator


def main() -> None:
    say_machine()
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (arguments.predictions, 1))
    probabilities = np.clip(0.3 * labels + 0.7 * rng.random(labels.shape), 0, 1).astype(np.float32)
    both_probabilities, both_labels = eval_util.as_two_columns(probabilities), eval_util.as_two_columns(labels)
    metrics = {
        "GAP": lambda: eval_util.calculate_gap(both_probabilities, both_labels),
        "MAP": lambda: [AveragePrecisionCalculator.ap(both_probabilities[:, i], both_labels[:, i]) for i in (0, 1)],
        "PERR": lambda: eval_util.calculate_precision_at_equal_recall_rate(both_probabilities, both_labels),
        "Hit@1": lambda: eval_util.calculate_hit_at_one(probabilities, labels),
    }
    seconds = {name: seconds_of(function) for name, function in metrics.items()}
    seconds["all four"] = sum(seconds.values())
    rows = [(name, f"{value:.2f}", f"{value / seconds['all four']:.2f}") for name, value in seconds.items()]
    print_table(("metric", "seconds", "of all"), rows)


if __name__ == "__main__":
    main()
