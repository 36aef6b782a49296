"""How good a recipe of train.py is: time, accuracy, log loss and calibration error over several seeds.

    python benchmarks/recipes.py --images=train.zip --recipe=good
    python benchmarks/recipes.py --images=train.zip --recipe=good --photos 500 1000 2000 4000
    python benchmarks/recipes.py --images=train.zip --recipe=good --choose --seeds=1 -- --num_epochs=60

Trains on the cats and dogs with the numbers 1 to 2000, or the first of them, and evaluates on 2251 to 2500. What
follows -- are further flags of train.py. The seconds in the table are those of the first seed: with a pretrained
network, the others read the features that it has calculated.
"""

import argparse
import glob
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import zipfile

from common import PYTHON, print_table, say_machine, seconds_of

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--images", required=True, help="a .zip of pictures named cat.1.jpg, dog.1.jpg and so on")
parser.add_argument("--recipe", required=True, help="its name; empty: only the flags that follow --")
parser.add_argument("--photos", type=int, nargs="+", default=[4000], help="how many to train on")
parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 on")
parser.add_argument("--choose", action="store_true", help="evaluate on 2001 to 2250: to choose flags")
parser.add_argument("--keep", help="a folder that keeps the models, <recipe>-<photos>-<seed>, and the shards")
end = [*sys.argv, "--"].index("--")
arguments, train_flags = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]

PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "cats_vs_dogs")
FIGURES = {"accuracy": "avg_hit_at_one", "log loss": "log_loss", "calibration error": "ece"}
# Name: flags of eval.py.
AVERAGES = {"": [], ", flip_average": ["--flip_average"], ", both averages": ["--flip_average", "--crop_average"]}
NAMES = ("seconds", *(f"{name}{averages}" for averages in AVERAGES for name in FIGURES))


def run(script: str, *flags: str) -> None:
    """Runs a script of the kit; if it fails, this program ends with what it said."""
    command = [*PYTHON, os.path.join(PACKAGE, f"{script}.py"), *flags]
    process = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if process.returncode:
        raise SystemExit(f"{script}.py failed: {process.stderr.strip()[-2000:]}")


def make_shards(folder: str, first: int, last: int) -> str:
    """Makes shards of the photos with these numbers, unless they are there, and returns their pattern."""
    shards = os.path.join(folder, f"shards_{first}_{last}")
    if not os.path.exists(shards):
        with tempfile.TemporaryDirectory(dir=folder) as pictures, zipfile.ZipFile(arguments.images) as archive:
            for name in archive.namelist():
                found = re.search(r"(cat|dog)\.(\d+)\.jpg$", name)
                if found and first <= int(found[2]) <= last:
                    os.makedirs(os.path.join(pictures, found[1]), exist_ok=True)
                    with open(os.path.join(pictures, found[1], os.path.basename(name)), "wb") as file:
                        file.write(archive.read(name))
            made = f"{pictures}.shards"
            run("convert_images_to_tfrecords", f"--images={pictures}", f"--output_dir={made}", "--validation_percent=0")
            os.rename(made, shards)
    return f"{shards}/train-*"


def train(train_dir: str, pattern: str, seed: int) -> float:
    """Trains a model and returns how many seconds that took."""
    where = (f"--train_data_pattern={pattern}", f"--train_dir={train_dir}", f"--seed={seed}")
    shutil.rmtree(train_dir, ignore_errors=True)  # It would be resumed.
    return seconds_of(lambda: run("train", f"--recipe={arguments.recipe}", *where, *train_flags))


def evaluate(train_dir: str, pattern: str, *flags: str) -> list[float]:
    """Returns the figures of the newest checkpoint."""
    run("eval", f"--train_dir={train_dir}", f"--eval_data_pattern={pattern}", "--run_once", "--noreport", *flags)
    (path,) = glob.glob(f"{glob.escape(train_dir)}/eval/metrics-*.json")
    with open(path, encoding="utf-8") as file:
        metrics = json.load(file)
    return [metrics[name] for name in FIGURES.values()]


def mean_and_range(values: list[float]) -> str:
    shown = [f"{value:.3f}" for value in (statistics.mean(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def measure(folder: str) -> list[tuple[str, ...]]:
    """Trains and evaluates all models, and prints the figures of each at once; returns the rows of the table."""
    rows = []
    os.environ["XDG_CACHE_HOME"] = os.path.join(folder, "cache")  # No features of earlier runs.
    evaluated_on = make_shards(folder, *((2001, 2250) if arguments.choose else (2251, 2500)))
    for num_photos in arguments.photos:
        trained_on, results = make_shards(folder, 1, num_photos // 2), []
        for seed in range(arguments.seeds):
            train_dir = os.path.join(folder, f"{arguments.recipe}-{num_photos}-{seed}")
            seconds = train(train_dir, trained_on, seed)
            figures = [evaluate(train_dir, evaluated_on, *flags) for flags in AVERAGES.values()]
            results.append([seconds, *itertools.chain(*figures)])
            shown = "; ".join(f"{name} {value:.3f}" for name, value in zip(NAMES, results[-1], strict=True))
            print(f"{num_photos:,} photos, seed {seed}: {shown}", flush=True)
            if not arguments.keep:
                shutil.rmtree(train_dir)
        seconds, *figures = zip(*results, strict=True)
        rows.append((f"{num_photos:,}", f"{seconds[0]:.0f}", *map(mean_and_range, figures)))
    return rows


def main() -> None:
    say_machine()
    if arguments.keep:
        os.makedirs(arguments.keep, exist_ok=True)
        rows = measure(os.path.abspath(arguments.keep))
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(folder)
    print()
    print_table(("photos", *NAMES), rows)


if __name__ == "__main__":
    main()
