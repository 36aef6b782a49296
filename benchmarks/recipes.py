"""How good the recipes of docs/recipes.en.md are: time, accuracy, log loss and calibration over several seeds.

python benchmarks/recipes.py --images=train.zip --recipe=0
python benchmarks/recipes.py --images=train.zip --recipe=1 --photos 500 1000 2000

Trains on the cats and dogs with the numbers 1 to 2000, or the first of them, and evaluates on 2251 to 2500.
"""

import argparse
import glob
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import tempfile
import zipfile

from common import PYTHON, print_table, say_machine, seconds_of

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--images", required=True, help="a .zip of pictures named cat.1.jpg, dog.1.jpg and so on")
parser.add_argument("--recipe", type=int, required=True, help="number of the command in docs/recipes.en.md, from 0")
parser.add_argument("--photos", type=int, nargs="+", default=[4000], help="how many to train on")
parser.add_argument("--seeds", type=int, default=3)
arguments = parser.parse_args()

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FIGURES = ("avg_hit_at_one", "log_loss", "ece")


def run(script: str, *flags: str) -> None:
    command = [*PYTHON, os.path.join(REPOSITORY, "cats_vs_dogs", f"{script}.py"), *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def recipe_flags(number: int) -> list[str]:
    """Returns a recipe's flags, without the paths of photos and model."""
    with open(os.path.join(REPOSITORY, "docs", "recipes.en.md"), encoding="utf-8") as file:
        command = re.findall(r"^python cats_vs_dogs/train\.py (.*)$", file.read(), re.MULTILINE)[number]
    return [flag for flag in shlex.split(command) if not flag.startswith(("--train_data_pattern", "--train_dir"))]


def make_shards(folder: str, first: int, last: int) -> str:
    """Makes shards of the photos with these numbers and returns their pattern."""
    pictures = os.path.join(folder, f"pictures_{first}_{last}")
    with zipfile.ZipFile(arguments.images) as archive:
        for name in archive.namelist():
            found = re.search(r"(cat|dog)\.(\d+)\.jpg$", name)
            if found and first <= int(found[2]) <= last:
                os.makedirs(os.path.join(pictures, found[1]), exist_ok=True)
                with open(os.path.join(pictures, found[1], os.path.basename(name)), "wb") as file:
                    file.write(archive.read(name))
    run("convert_images_to_tfrecords", f"--images={pictures}", f"--output_dir={pictures}.d", "--validation_percent=0")
    return f"{pictures}.d/train-*"


def evaluate(train_dir: str, pattern: str, *flags: str) -> list[float]:
    """Returns the figures of the newest checkpoint."""
    run("eval", f"--train_dir={train_dir}", f"--eval_data_pattern={pattern}", "--run_once", *flags)
    (path,) = glob.glob(f"{train_dir}/eval/metrics-*.json")
    with open(path, encoding="utf-8") as file:
        metrics = json.load(file)
    return [metrics[name] for name in FIGURES]


def mean_and_range(values: list[float], digits: int = 3) -> str:
    shown = [f"{value:.{digits}f}" for value in (statistics.mean(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def main() -> None:
    say_machine()
    flags, rows = recipe_flags(arguments.recipe), []
    with tempfile.TemporaryDirectory() as folder:
        test, train_dir = make_shards(folder, 2251, 2500), os.path.join(folder, "model")
        for num_photos in arguments.photos:
            train, results = make_shards(folder, 1, num_photos // 2), []
            for seed in range(arguments.seeds):
                where = (f"--train_data_pattern={train}", f"--train_dir={train_dir}", f"--seed={seed}")
                seconds = seconds_of(lambda where=where: run("train", *flags, *where))
                plain, averaged = evaluate(train_dir, test), evaluate(train_dir, test, "--flip_average")
                results.append([seconds, *plain, *averaged])
                shutil.rmtree(train_dir)
            seconds, *figures = zip(*results, strict=True)
            rows.append((f"{num_photos:,}", mean_and_range(seconds, 0), *map(mean_and_range, figures)))
    names = ("accuracy", "log loss", "calibration error")
    print_table(("photos", "seconds", *names, *(f"{name}, flip_average" for name in names)), rows)


if __name__ == "__main__":
    main()
