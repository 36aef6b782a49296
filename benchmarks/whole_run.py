"""Wall time and peak memory of whole processes: training for one and five epochs, evaluation, inference, conversion.

python benchmarks/whole_run.py --images=train.zip
"""

import argparse
import glob
import os
import re
import shutil
import tempfile

from common import PYTHON, copy_shards, print_table, run_process, say_machine

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--images", required=True)
parser.add_argument("--rounds", type=int, default=2)
parser.add_argument("--only", default="", help="a regular expression: which rows of the table to measure")
arguments = parser.parse_args()

PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "cats_vs_dogs")


def run(script: str, *flags: str, cores: set[int] | None = None) -> tuple[float, float]:
    """Returns (seconds, peak memory in MiB) of a script's process."""
    command = [*PYTHON, os.path.join(PACKAGE, f"{script}.py"), *flags]
    seconds, peak = run_process(command, cores=cores)
    return seconds, peak / 1024


def main() -> None:
    say_machine()
    with tempfile.TemporaryDirectory() as folder:
        run("convert_images_to_tfrecords", f"--images={arguments.images}", f"--output_dir={folder}/shards")
        shards, four_times = f"{folder}/shards/train-*", f"{folder}/four_times/*"
        copy_shards(sorted(glob.glob(shards)), f"{folder}/four_times", 4)

        def train(epochs: int, data: str = shards, cache: str = "auto") -> tuple[float, float]:
            shutil.rmtree(f"{folder}/model", ignore_errors=True)
            flags = (f"--train_dir={folder}/model", f"--num_epochs={epochs}", f"--cache={cache}")
            return run("train", f"--train_data_pattern={data}", *flags)

        def predict(script: str, flag: str, data: str) -> tuple[float, float]:
            return run(script, f"--train_dir={folder}/model", f"--{flag}={data}", *more[script])

        more = {"eval": ["--run_once"], "inference": []}

        def convert(num_cores: int) -> tuple[float, float]:
            shutil.rmtree(f"{folder}/again", ignore_errors=True)
            cores = set(sorted(os.sched_getaffinity(0))[:num_cores])
            flags = (f"--images={arguments.images}", f"--output_dir={folder}/again")
            return run("convert_images_to_tfrecords", *flags, cores=cores)

        # For each row of the table: how to measure it, and the row to compare it with.
        rows = {
            "train, 1 epoch": (lambda: train(1), None),
            "train, 5 epochs": (lambda: train(5), "train, 1 epoch"),
            "train, 1 epoch, streaming": (lambda: train(1, cache="none"), None),
            "train, 1 epoch, streaming, 4 x the shards": (
                lambda: train(1, four_times, "none"),
                "train, 1 epoch, streaming",
            ),
            "eval": (lambda: predict("eval", "eval_data_pattern", shards), None),
            "eval, 4 x the shards": (lambda: predict("eval", "eval_data_pattern", four_times), "eval"),
            "inference": (lambda: predict("inference", "input_data_pattern", shards), None),
            "inference, 4 x the shards": (lambda: predict("inference", "input_data_pattern", four_times), "inference"),
            "convert, 1 core": (lambda: convert(1), None),
            "convert, 2 cores": (lambda: convert(2), "convert, 1 core"),
        }
        rows = {name: row for name, row in rows.items() if re.search(arguments.only, name)}
        best: dict[str, tuple[float, float]] = {}
        for _ in range(arguments.rounds):
            for name, (measure, _) in rows.items():
                seconds, memory = measure()
                best[name] = min(best.get(name, (seconds, memory)), (seconds, memory))
    table = []
    for name, (_, other) in rows.items():
        seconds, memory = best[name]
        ratios = (
            [f"{mine / theirs:.2f}" for mine, theirs in zip(best[name], best[other], strict=True)]
            if other in best
            else ["", ""]
        )
        table.append((name, f"{seconds:.1f}", f"{memory:,.0f}", other or "", *ratios))
    print_table(
        ("process", "seconds", "peak MiB", "against", "memory ratio", "time ratio"),
        [(*row[:4], row[5], row[4]) for row in table],
    )


if __name__ == "__main__":
    main()
