"""Photos per second of the input pipeline, against decoding alone, Keras and PyTorch.

    python benchmarks/input_pipeline.py --shards='shards/train-*' --images=train

The shards and the folder hold the same photos. Files in the folder are named cat.0.jpg, dog.0.jpg and so on.
"""

import argparse
import collections
import glob
import importlib.util
import os
import statistics
import tempfile
import time

from common import alternate, open_shards, print_table, say_machine, training_batches

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--shards", required=True)
parser.add_argument("--images", required=True)
parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128, 224])
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--num_photos", type=int, default=5000)
arguments = parser.parse_args()

import keras
import tensorflow as tf

from cats_vs_dogs import decoding, readers, tfrecords

BATCH_SIZE = 128
AUTOTUNE = tf.data.AUTOTUNE


cpu_microseconds: dict[tuple[int, str], list[float]] = collections.defaultdict(list)


def speed(size: int, name: str, dataset) -> float:
    """Returns photos per second of one pass. Also keeps its processor time, which varies less on a busy machine."""
    start, cpu_start = time.perf_counter(), time.process_time()
    num_photos = 0
    for batch in dataset:
        num_photos += len(batch[1] if isinstance(batch, tuple) else batch)
        # Measured at each batch, since a pipeline with autotuning may take seconds to end after the last one.
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    cpu_microseconds[size, name].append(cpu_seconds / num_photos * 1e6)
    return num_photos / seconds


def ours(shards: readers.Shards, size: int):
    return training_batches(shards, size, BATCH_SIZE).map(lambda ids, images, *others: (ids, images))


def decoding_alone(photos: list[bytes], size: int):
    """Decodes JPEGs in memory at the same scale as the kit, and drops the pixels."""

    def decode(encoded):
        image = decoding.decode_jpeg_scaled(encoded, size)
        return tf.reduce_sum(tf.cast(image[:1, :1], tf.int32))

    return tf.data.Dataset.from_tensor_slices(photos).map(decode, num_parallel_calls=AUTOTUNE).batch(BATCH_SIZE)


def keras_directory(folder: str, size: int):
    return (
        keras.utils.image_dataset_from_directory(
            folder, image_size=(size, size), batch_size=BATCH_SIZE, seed=0, verbose=False
        )
        .prefetch(AUTOTUNE)
        .map(lambda images, labels: (labels, images))
    )


def torch_loader(paths: list[str], size: int):
    import numpy as np
    import torch
    from PIL import Image

    class Photos(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, i):
            image = Image.open(paths[i])
            image.draft("RGB", (size, size))  # Pillow's way to let libjpeg scale.
            return torch.from_numpy(np.array(image.convert("RGB").resize((size, size), Image.BOX)))

    return torch.utils.data.DataLoader(Photos(), BATCH_SIZE, shuffle=True, num_workers=os.cpu_count())


def stages(photos: list[bytes]) -> list[tuple]:
    """Returns the processor time of decoding and resizing alone, the least that TensorFlow operations can take."""

    def cpu(function) -> str:
        dataset = tf.data.Dataset.from_tensor_slices(photos).map(function, num_parallel_calls=AUTOTUNE).batch(64)
        passes = []
        for _ in range(arguments.rounds):
            start = time.process_time()
            for _ in dataset:
                pass
            passes.append((time.process_time() - start) / len(photos) * 1e6)
        return f"{min(passes):.0f}"

    rows = []
    for size in arguments.sizes:

        def scaled(encoded, size=size):
            return tf.ensure_shape(decoding.decode_jpeg_scaled(encoded, size), [None, None, 3])

        def whole(encoded):
            return tf.io.decode_jpeg(encoded, channels=3)

        def area(encoded, size=size):
            return decoding.decode_and_resize(encoded, size, "area")

        def bilinear(encoded, decode, size=size):
            return tf.cast(tf.image.resize(decode(encoded), [size, size]), tf.uint8)

        rows.append(
            (
                size,
                cpu(lambda encoded, scaled=scaled: scaled(encoded)[:1, :1]),
                cpu(area),
                cpu(lambda encoded, bilinear=bilinear, scaled=scaled: bilinear(encoded, scaled)),
                cpu(lambda encoded, bilinear=bilinear: bilinear(encoded, whole)),
            )
        )
    return rows


def main() -> None:
    say_machine()
    shards = open_shards(arguments.shards, arguments.num_photos)
    raw = tf.data.TFRecordDataset(shards.files)
    encoded = [
        tf.train.Example.FromString(record).features.feature[tfrecords.IMAGE].bytes_list.value[0]
        for record in raw.as_numpy_iterator()
    ]
    paths = sorted(glob.glob(os.path.join(arguments.images, "**", "*.jpg"), recursive=True))[: shards.num_examples]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for i, path in enumerate(paths):  # Keras needs a folder for each class.
            in_class = os.path.join(folder, "dog" if "dog" in os.path.basename(path).lower() else "cat")
            os.makedirs(in_class, exist_ok=True)
            os.symlink(os.path.abspath(path), os.path.join(in_class, f"{i}.jpg"))
        makers = {
            "this kit": lambda size: ours(shards, size),
            "decoding alone": lambda size: decoding_alone(encoded, size),
            "Keras image_dataset_from_directory": lambda size: keras_directory(folder, size),
        }
        if importlib.util.find_spec("torch"):
            makers["PyTorch DataLoader"] = lambda size: torch_loader(paths, size)
        for size in arguments.sizes:
            median = alternate(
                {
                    name: lambda size=size, name=name, make=make: speed(size, name, make(size))
                    for name, make in makers.items()
                },
                arguments.rounds,
            )
            for name, photos_per_second in median.items():
                cpu = f"{statistics.median(cpu_microseconds[size, name]):.0f}"
                ratio = f"{median['this kit'] / photos_per_second:.2f}"
                # The processor time of a DataLoader is spent in its worker processes and not measured here.
                rows.append((size, name, "" if "PyTorch" in name else cpu, f"{photos_per_second:,.0f}", ratio))
    print_table(("size", "pipeline", "CPU us a photo", "photos/s", "this kit against it"), rows)
    print("\nProcessor time of the stages, microseconds a photo:\n")
    header = ("size", "scaled decode", "and area (this kit)", "and bilinear", "full decode and bilinear (Keras)")
    print_table(header, stages(encoded[:1000]))


if __name__ == "__main__":
    main()
