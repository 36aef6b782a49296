"""Photos per second and peak memory of training, for each way to keep decoded pictures between epochs.

    python benchmarks/memory.py --shards='shards/train-*'

The limit is four batches of float32 pictures plus 1 GB, and the pictures that are kept. The model is LogisticModel,
whose own activations are small.
"""

import argparse
import collections
import functools
import os
import shutil
import tempfile
from collections.abc import Callable

from common import PYTHON, alternate, open_shards, print_table, run_process, say_machine, seconds_of

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--shards", required=True)
parser.add_argument("--num_photos", type=int, default=2000)
parser.add_argument("--sizes", type=int, nargs="+", default=[160, 224])
parser.add_argument("--caches", nargs="+", default=["none", "disk", "memory"])
parser.add_argument("--batch_size", type=int, default=512)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--rounds", type=int, default=3)
arguments = parser.parse_args()

TRAIN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "cats_vs_dogs", "train.py")


def peak_memory(folder: str, size: int, cache: str) -> float:
    """Trains on the photos in a folder, evaluates each epoch, and returns the peak memory of the process in MB."""
    shutil.rmtree(f"{folder}/model", ignore_errors=True)
    data = [f"--{name}_data_pattern={folder}/train-*" for name in ("train", "eval")]
    flags = [f"--image_size={size}", f"--batch_size={arguments.batch_size}", f"--num_epochs={arguments.epochs}"]
    command = [*PYTHON, TRAIN, *data, *flags, f"--train_dir={folder}/model", f"--cache={cache}", "--noreport"]
    _, peak = run_process(command, env={**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"})
    return peak * 1024 / 1e6


def pipelines(shards, size: int) -> dict[str, Callable[[], float]]:
    """Returns, for each cache, a function that reads training batches of some epochs and returns photos/s."""
    from cats_vs_dogs import pixel_files, readers

    reader = readers.get_reader(True, size, "area")
    decoded = {
        "none": None,
        "disk": pixel_files.PixelFiles(reader, shards).columns(),
        "memory": readers.decode_all(reader, shards),
    }

    def speed(columns) -> float:
        order = readers.Order(arguments.batch_size, seed=0, num_epochs=arguments.epochs)
        batches = readers.scale_batches(readers.make_training_dataset(reader, shards, order, columns))
        seconds = seconds_of(lambda: collections.deque(batches, maxlen=0))
        return arguments.epochs * shards.num_examples / seconds

    return {cache: functools.partial(speed, decoded[cache]) for cache in arguments.caches}


def main() -> None:
    say_machine()
    import tensorflow as tf

    from cats_vs_dogs import tfrecords

    with tempfile.TemporaryDirectory() as folder:
        records = tf.data.TFRecordDataset(open_shards(arguments.shards, arguments.num_photos).files)
        photos = list(records.take(arguments.num_photos).as_numpy_iterator())
        for i in range(4):
            tfrecords.write_shard(tfrecords.shard_path(folder, "train", i, 4), photos[i::4])
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        rows = []
        for size in arguments.sizes:
            median = alternate(pipelines(open_shards(f"{folder}/train-*"), size), arguments.rounds)
            rows += [
                (size, cache, f"{speed:,.0f}", f"{speed / median[arguments.caches[0]]:.2f}")
                for cache, speed in median.items()
            ]
        print_table(("size", "cache", "photos/s", f"against {arguments.caches[0]}"), rows)
        print("\nPeak memory of training, with an evaluation of the same photos after each epoch:\n")
        rows = []
        for size in arguments.sizes:
            for cache in arguments.caches:
                # Those to train on and those to evaluate on. Mapped files count as memory while there is enough.
                kept = 2 * len(photos) * size**2 * 3 / 1e6 if cache != "none" else 0
                limit = 4 * arguments.batch_size * size**2 * 3 * 4 / 1e6 + 1000 + kept
                peak = peak_memory(folder, size, cache)
                rows.append((size, cache, f"{kept:,.0f}", f"{peak:,.0f}", f"{limit:,.0f}", f"{peak / limit:.2f}"))
        print_table(("size", "cache", "pictures kept, MB", "peak MB", "limit MB", "ratio"), rows)


if __name__ == "__main__":
    main()
