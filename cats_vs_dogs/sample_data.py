"""The sample set: drawn cats and dogs, so that every script works without any data.

`pattern` draws the set into the user's cache on first use. As a script, this module draws it into any folder:

    python cats_vs_dogs/sample_data.py --output_dir=samples              # TFRecord shards
    python cats_vs_dogs/sample_data.py --output_dir=samples --as_images  # JPEG files in the layout of Kaggle's download

TensorFlow is imported only to write shards.
"""

import os
import sys

if __package__ in (None, ""):  # Run as a file: make the package importable from any working directory.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    import cats_vs_dogs  # noqa: F401 - Says in one line that the kit is not installed.

import contextlib
import getpass
import io
import itertools
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
from absl import flags, logging
from PIL import Image, ImageDraw

from cats_vs_dogs import files, kept_folders, labels, utils
from cats_vs_dogs.path_flags import define_path
from cats_vs_dogs.utils import UserError

FLAGS = flags.FLAGS

NUM_EXAMPLES = {"train": 4000, "validation": 500, "test": 500}

_VERSION = 1  # Increase it when the drawing changes, so that nobody trains on one version and evaluates on another.
_EXAMPLES_PER_SHARD = 1000

_OVERSAMPLING = 2  # Pillow draws hard edges. Pictures are drawn larger by this factor and averaged down.
_CIRCLE = np.exp(2j * np.pi * np.arange(20) / 20)
_FURS = ((232, 226, 214), (240, 196, 120), (214, 138, 66), (150, 96, 54), (120, 118, 122), (70, 62, 62))
_EYES = ((120, 180, 70), (220, 180, 60), (90, 160, 210), (130, 84, 40))
_DARK, _WHITE, _PINK, _TONGUE = (34, 28, 30), (250, 250, 246), (226, 140, 140), (228, 96, 110)


def cache_folder() -> str:
    """Returns the path of the cached sample set. It may not have been drawn yet."""
    return os.path.join(files.cache_folder(), f"sample-v{_VERSION}")


def pattern(split: str) -> str:
    """Returns the glob pattern of a split's shards. Draws the sample set first if it is missing.

    Args:
        split: "train", "validation" or "test". Records of "test" have no label.

    Raises:
        UserError: if neither the cache nor the system's temporary folder can be written to.
    """
    folders = [cache_folder()]
    with contextlib.suppress(OSError):  # Some machines have no temporary folder.
        user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()  # In containers, a user may have no name.
        folders.append(os.path.join(tempfile.gettempdir(), f"cats_vs_dogs-{user}", f"sample-v{_VERSION}"))
    for folder in folders:
        if _is_complete(folder):
            return os.path.join(folder, f"{split}-*")
    for folder in folders:
        try:
            _draw_into_cache(folder)
            return os.path.join(folder, f"{split}-*")
        except OSError as error:
            logging.warning("The sample set cannot be kept in %s: %s", folder, error)
    raise UserError(
        f"the sample set cannot be written to {' nor to '.join(folders)}; "
        "set XDG_CACHE_HOME to a folder that can be written to, or give a data pattern"
    )


def draw(label: int, rng: np.random.Generator) -> Image.Image:
    """Draws one picture.

    Fur, background, pose, light and objects in front of the animal have the same distributions for both classes. Only
    the animal's shape and size differ. Dogs are slightly larger, so even a linear model can learn something.

    Args:
        label: `labels.CAT` or `labels.DOG`.
        rng: the only source of randomness.

    Returns:
        An RGB picture, 48 to 128 pixels high and wide.
    """
    width, height = (int(side) for side in rng.integers(48, 129, 2))
    canvas = _background(width * _OVERSAMPLING, height * _OVERSAMPLING, rng)
    pen = _place(canvas, label, rng)
    fur = tuple((_FURS[rng.integers(len(_FURS))] + rng.integers(-12, 13, 3)).tolist())
    pen.oval(rng.uniform(-0.4, 0.4) + 2j, 1.15, 1.5, _shade(fur, 0.9), outline=_shade(fur, 0.6))
    if rng.random() < 0.5:
        pen.oval(rng.uniform(-0.2, 0.2) + 1.7j, 0.5, 0.8, _lighten(fur))  # A light chest.
    draw_head = _draw_dog_head if label == labels.DOG else _draw_cat_head
    draw_head(pen, fur, rng)
    if rng.random() < 0.3:
        _hide_part(pen, rng)
    return _photograph(canvas.reduce(_OVERSAMPLING), rng)


class _Pen:
    """Draws in the animal's own coordinates, which are independent of its position, size and tilt in the picture.

    A point is a complex number: 0 is the centre of the head, 1 its right edge and 1j its chin, from the viewer's side.

    Args:
        canvas: the picture to draw on.
        middle: position of the origin, pixels: x + 1j * y.
        turn: a factor that scales the animal's coordinates to pixels and rotates them.
    """

    def __init__(self, canvas: Image.Image, middle: complex, turn: complex):
        self._draw = ImageDraw.Draw(canvas)
        self._middle = middle
        self._turn = turn

    def shape(self, points, fill, outline=None) -> None:
        self._draw.polygon(self._pixels(points), fill, outline, self._width(0.07) if outline else 1)

    def oval(self, middle, half_width, half_height, fill, outline=None, tilt=0.0) -> None:
        edge = half_width * _CIRCLE.real + 1j * half_height * _CIRCLE.imag
        self.shape(middle + edge * np.exp(1j * tilt), fill, outline)

    def line(self, points, fill, width) -> None:
        self._draw.line(self._pixels(points), fill, self._width(width))

    def _pixels(self, points) -> list[float]:
        return (self._middle + self._turn * np.asarray(points, np.complex128)).view(np.float64).tolist()

    def _width(self, width: float) -> int:
        return max(1, round(width * abs(self._turn)))


def _place(canvas: Image.Image, label: int, rng: np.random.Generator) -> _Pen:
    """Chooses the head's position, size and tilt. A few heads are cut off by the left or right border."""
    x = rng.choice((0.08, 0.92)) if rng.random() < 0.12 else rng.uniform(0.36, 0.64)
    y = rng.uniform(0.42, 0.6)
    size = rng.uniform(0.28, 0.38) * (1.06 if label == labels.DOG else 1.0) * min(canvas.size)
    return _Pen(canvas, x * canvas.width + 1j * y * canvas.height, size * np.exp(1j * rng.uniform(-0.35, 0.35)))


def _draw_cat_head(pen: _Pen, fur: tuple, rng: np.random.Generator) -> None:
    """Draws a round face, upright pointed ears, slit eyes, a small nose and whiskers."""
    line, looks = (
        _shade(fur, 0.6),
        rng.uniform(-0.25, 0.25),
    )  # The cat looks left or right: its face is moved on the head.
    height = rng.uniform(1.3, 1.65)
    for side in (-1, 1):
        ear = np.array([-0.95 - 0.2j, -0.8 - 1j * height, -0.1 - 0.8j])
        ear.real *= side
        pen.shape(ear, fur, line)
        pen.shape(ear.mean() + 0.55 * (ear - ear.mean()), _PINK)
    pen.oval(0, 1.0, 0.88, fur, line)
    if rng.random() < 0.5:
        for x in (-0.25, 0, 0.25):
            pen.line([x - 0.78j, 0.6 * x - 0.45j], line, 0.09)
    if rng.random() < 0.5:
        for side in (-1, 1):
            pen.oval(looks + 0.2 * side + 0.42j, 0.26, 0.22, _lighten(fur))
    iris = _EYES[rng.integers(len(_EYES))]
    for side in (-1, 1):
        pen.oval(looks + 0.42 * side - 0.08j, 0.24, 0.2, iris, _DARK, tilt=0.3 * side)
        pen.oval(looks + 0.42 * side - 0.08j, 0.06, 0.18, _DARK)
        for slope in (-0.12, 0.0, 0.12):
            pen.line([looks + 0.3 * side + 0.38j, looks + 1.15 * side + 1j * (0.36 + 2 * slope)], _WHITE, 0.04)
    pen.shape([looks - 0.12 + 0.22j, looks + 0.12 + 0.22j, looks + 0.36j], _PINK if rng.random() < 0.5 else _DARK)
    mouth = np.array([-0.26 + 0.46j, -0.14 + 0.54j, 0.36j, 0.14 + 0.54j, 0.26 + 0.46j])
    pen.line(looks + mouth, _DARK, 0.05)


def _draw_dog_head(pen: _Pen, fur: tuple, rng: np.random.Generator) -> None:
    """Draws hanging ears, round eyes, a long muzzle with a large nose, and in some pictures a tongue."""
    line, looks = _shade(fur, 0.6), rng.uniform(-0.25, 0.25)
    pen.oval(-0.05j, 0.88, 0.95, fur, line)
    if rng.random() < 0.5:
        pen.oval(looks + rng.choice((-0.36, 0.36)) - 0.25j, 0.32, 0.36, _shade(fur, 0.75))
    length = rng.uniform(0.55, 0.8)
    if rng.random() < 0.4:
        pen.oval(looks + 1.12j, 0.18, 0.32, _TONGUE, _shade(_TONGUE, 0.7))
    pen.oval(looks + 0.55j, 0.48, 0.58, _lighten(fur), line)
    pen.line([looks + 0.4j, looks + 0.78j], _DARK, 0.06)
    pen.line([looks - 0.3 + 0.68j, looks + 0.8j, looks + 0.3 + 0.68j], _DARK, 0.06)
    pen.oval(looks + 0.28j, 0.24, 0.17, _DARK)
    for side in (-1, 1):
        pen.oval(looks + 0.36 * side - 0.25j, 0.16, 0.16, _DARK)
        pen.oval(looks + 0.36 * side - 0.3j + 0.04, 0.05, 0.05, _WHITE)
        pen.oval(0.95 * side + 0.05j, 0.3, length, _shade(fur, 0.7), line, tilt=-0.25 * side)


def _background(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Returns soft patches of colour with a few objects on them. Some are shaped like ears or muzzles."""
    patches = rng.integers(90, 170, 3) + rng.integers(-45, 46, (3, 3, 3))
    canvas = Image.fromarray(patches.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    for _ in range(rng.integers(0, 4)):
        where = rng.uniform(0, width) + 1j * rng.uniform(0, height)
        thing = _Pen(canvas, where, rng.uniform(0.1, 0.3) * min(width, height) * np.exp(1j * rng.uniform(0, 6.28)))
        corners = (3, 4, len(_CIRCLE))[rng.integers(3)]
        thing.shape(_CIRCLE[:: len(_CIRCLE) // corners][:corners], _any_colour(rng))
    return canvas


def _hide_part(pen: _Pen, rng: np.random.Generator) -> None:
    """Draws a bar or an oval over one side of the head. Enough stays visible to tell a cat from a dog."""
    colour, away = _any_colour(rng), rng.uniform(0.5, 1.3) * np.exp(1j * rng.uniform(0, 2 * np.pi))
    if rng.random() < 0.5:
        pen.oval(away, rng.uniform(0.3, 0.6), rng.uniform(0.3, 0.6), colour)
    else:
        along = 6j * away / abs(away)
        pen.line([away - along, away + along], colour, rng.uniform(0.2, 0.5))


def _photograph(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Adds light from one side, and noise, as in a photo."""
    pixels = np.asarray(picture).astype(np.float32)
    left, right = rng.uniform(0.75, 1.1, 2)
    pixels *= np.linspace(left, right, picture.width, dtype=np.float32)[:, np.newaxis]
    strength = rng.integers(2, 13)
    pixels += rng.integers(-strength, strength, pixels.shape, dtype=np.int8)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _any_colour(rng: np.random.Generator) -> tuple:
    """Returns a random muted colour: the average of a colour and a grey."""
    return tuple(((rng.integers(30, 240, 3) + rng.integers(60, 240)) // 2).tolist())


def _shade(colour: tuple, factor: float) -> tuple:
    return tuple(int(factor * channel) for channel in colour)


def _lighten(colour: tuple) -> tuple:
    return tuple((channel + 255) // 2 for channel in colour)


def _pictures(split: str) -> Iterator[tuple[str, int | None, bytes]]:
    """Draws the pictures of a split. They are the same in every call.

    Yields:
        The file name, the label (None in the test split) and the bytes of the JPEG file. Names are as in Kaggle's
        download: cats and dogs are each numbered from 0, through train and then validation. Test pictures are
        numbered from 1.
    """
    seed, size = list(NUM_EXAMPLES).index(split), NUM_EXAMPLES[split]
    drawn_labels = np.random.default_rng([seed, 0]).permutation(size) % labels.NUM_CLASSES
    counts = [NUM_EXAMPLES["train"] // labels.NUM_CLASSES if split == "validation" else 0] * labels.NUM_CLASSES
    for number, label in enumerate(drawn_labels.tolist(), start=1):
        buffer = io.BytesIO()
        draw(label, np.random.default_rng([seed, number])).save(buffer, "JPEG", quality=90)
        if split == "test":
            yield f"{number}.jpg", None, buffer.getvalue()
        else:
            yield f"{labels.CLASS_NAMES[label]}.{counts[label]}.jpg", label, buffer.getvalue()
            counts[label] += 1


def _shard_paths(folder: str, split: str) -> list[str]:
    from cats_vs_dogs import tfrecords

    num_shards = -(-NUM_EXAMPLES[split] // _EXAMPLES_PER_SHARD)
    return [tfrecords.shard_path(folder, split, index, num_shards) for index in range(num_shards)]


def _write_shards(folder: str) -> None:
    import tensorflow as tf

    from cats_vs_dogs import tfrecords

    for split in NUM_EXAMPLES:
        examples = (tfrecords.make_example(encoded, name, label) for name, label, encoded in _pictures(split))
        for path in _shard_paths(folder, split):
            try:
                tfrecords.write_shard(path, itertools.islice(examples, _EXAMPLES_PER_SHARD))
            except tf.errors.OpError as error:
                raise OSError(error.message) from error


def _write_images(folder: str) -> None:
    for split, subfolder in (("train", "train"), ("validation", "train"), ("test", "test1")):
        os.makedirs(os.path.join(folder, subfolder), exist_ok=True)
        for name, _, encoded in _pictures(split):
            with open(os.path.join(folder, subfolder, name), "wb") as file:
                file.write(encoded)


def _is_complete(folder: str) -> bool:
    # A complete folder is moved here, but programs that clean /tmp may later delete single files.
    return all(os.path.isfile(path) for split in NUM_EXAMPLES for path in _shard_paths(folder, split))


def _draw_into_cache(folder: str) -> None:
    """Draws the set into a folder that is then complete or absent.

    Raises:
        OSError: if the folder cannot be written to.
    """
    logging.info("Drawing the sample set (%d cats and dogs) in %s, once", sum(NUM_EXAMPLES.values()), folder)
    kept_folders.make(folder, _write_shards, _is_complete)


def define_flags() -> None:
    """Defines the flags of this script."""
    define_path(
        "output_dir", "", "The folder to draw the sample set in. Made if needed; must be empty.", module_name="output"
    )
    flags.register_validator(
        "output_dir",
        lambda folder: folder and not files.is_remote(folder),
        "name a folder on this machine, such as --output_dir=samples",
    )
    flags.DEFINE_bool(
        "as_images",
        False,
        "Write JPEG files in the layout of Kaggle's download (train/cat.0.jpg, test1/1.jpg) instead of TFRecord "
        "shards. The folder train then also holds the validation pictures.",
        module_name="output",
    )


def main() -> None:
    """Draws the sample set into --output_dir."""
    if FLAGS.as_images:
        draw_into_folder(FLAGS.output_dir, _write_images)
    else:
        utils.import_tensorflow()
        draw_into_folder(FLAGS.output_dir, _write_shards)


def draw_into_folder(folder: str, write: Callable[[str], None]) -> None:
    """Draws the sample set into an empty folder.

    Args:
        folder: the folder; made if needed.
        write: writes the set into the folder that it is called with.

    Raises:
        UserError: if the folder is not empty or cannot be written to.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        if os.listdir(folder):
            raise UserError(f"--output_dir={folder}: is not empty; name a new folder")
        logging.info("Drawing the sample set (%d cats and dogs) in %s", sum(NUM_EXAMPLES.values()), folder)
        # The temporary folder is inside the folder, since nothing can be renamed onto a mount point.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".drawing-") as temporary:
            write(temporary)
            for name in os.listdir(temporary):
                files.replace(os.path.join(temporary, name), os.path.join(folder, name))
    except OSError as error:
        raise UserError(f"--output_dir={folder}: cannot be written to: {error}; name another folder") from error


if __name__ == "__main__":
    utils.run_script(main, define_flags)
