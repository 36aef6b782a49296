"""Turns photographs of cats and dogs, a folder or a .zip of them, into TFRecord shards.

    python cats_vs_dogs/convert_images_to_tfrecords.py --images=train.zip --output_dir=/tmp/cvd_data

A photograph is labelled by a folder on its path that is named cat(s) or dog(s), else by a file name that begins so
(cat.0.jpg). Labelled ones become train-* and validation-* shards, the others test-* shards. What is not a usable
JPEG is re-encoded or left out, and listed in bad_images.csv.
"""

import collections
import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import mimetypes
import os
import re
import struct
import sys
import tempfile
import threading
import unicodedata
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

if __package__ in (None, ""):  # Run as a file: import the package beside this file, from whatever folder.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from absl import flags, logging

from cats_vs_dogs import files, terminal, utils

FLAGS = flags.FLAGS

SPLITS = ("train", "validation", "test")
BAD_IMAGES = "bad_images.csv"

# A small file can claim a size that fills the memory; no photograph comes near these.
MAX_FILE_BYTES = 256 * 2**20
MAX_PIXELS = 100_000_000

_LOG_EVERY = 5000  # photos, where there is no terminal for a progress bar

# Not every format of Pillow: EPS, for one, would run the program Ghostscript on a stranger's file.
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM")

_CLASSES = {"cat": 0, "cats": 0, "dog": 1, "dogs": 1}
_CLASS_PREFIX = re.compile(r"(cats?|dogs?)(?![^\W\d_])", re.IGNORECASE)  # cat.0.jpg, "Dog (3).png"; not category.jpg


def define_flags() -> None:
    """Defines the flags of this script."""
    flags.DEFINE_string(
        "images",
        "",
        "The photographs: a folder or a .zip, such as Kaggle's train.zip and test1.zip, Microsoft's PetImages, or any "
        "folder with the sub-folders cat and dog.",
    )
    flags.DEFINE_string("output_dir", "", "Folder for the shards and bad_images.csv. It is made if it is not there.")
    flags.DEFINE_integer(
        "validation_percent",
        10,
        "Percentage of the labelled photographs that goes into validation-* shards, chosen by a hash of the name, so "
        "that a photograph never changes sides. 0 writes no validation shards.",
        lower_bound=0,
        upper_bound=50,
    )
    flags.DEFINE_integer("examples_per_shard", 1000, "Number of photographs in one shard.", lower_bound=1)


def main() -> None:
    """Converts what --images names."""
    if not FLAGS.images:
        raise utils.UserError("--images is empty; name a folder or .zip of photographs: --images=train.zip")
    if not FLAGS.output_dir:
        raise utils.UserError("--output_dir is empty; name a folder for the shards: --output_dir=/tmp/cvd_data")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # A bad picture goes into bad_images.csv, not also onto the screen.
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # JPEGs are decoded on the CPU; leave the GPU's memory to others.
    convert(FLAGS.images, FLAGS.output_dir, FLAGS.validation_percent, FLAGS.examples_per_shard, os.cpu_count() or 1)


class BadImage(Exception):
    """A file that cannot become an example. Its message is the reason, as bad_images.csv shows it."""


@dataclasses.dataclass(frozen=True)
class Photo:
    """A file that may be a photograph.

    Attributes:
        path: where it is below --images, with "/" between folders, as text that can be read.
        key: how the source finds it again.
        label: 1 for a dog, 0 for a cat, None if nothing says which.
        id: the name that the record carries; unique among all photos of a run.
    """

    path: str
    key: Any
    label: int | None
    id: str = ""


@dataclasses.dataclass
class Report:
    """What has happened so far.

    Attributes:
        rows: (file, action, reason) for bad_images.csv.
        written: number of examples by (split, label).
        shards: number of shards by split.
    """

    rows: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    written: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    shards: dict[str, int] = dataclasses.field(default_factory=dict)

    def count(self, action: str) -> int:
        """Returns how many files were "skipped" or "re-encoded"."""
        return sum(row[1] == action for row in self.rows)


def convert(images: str, output_dir: str, validation_percent: int, examples_per_shard: int, num_threads: int) -> Report:
    """Writes the shards of a folder or .zip of photographs. The same input gives the same bytes.

    Args:
        images: the folder or .zip file.
        output_dir: where the shards go.
        validation_percent: percentage (0 to 50) of the labelled photographs that is kept for validation.
        examples_per_shard: number of photographs in a shard; the last shard of a split may hold fewer.
        num_threads: number of photographs that are checked at the same time.

    Returns:
        What was written and what was not.

    Raises:
        UserError: if nothing can be converted or written, or `output_dir` already has shards. Then no shard is added.
    """
    import tensorflow as tf

    with _open_source(images) as source:
        report = Report()
        photos = list_photos(source, report)
        if not photos:
            raise utils.UserError(f"--images={images}: no picture in it; name a folder or .zip of photographs")
        _check_folder_names(images, photos)
        splits = split_photos(photos, validation_percent)
        # A stray text file is no reason to expect test shards, hence the look at the file name.
        expected = [split for split in SPLITS if any(map(_is_named_as_picture, splits[split]))]
        _check_no_shards(output_dir, expected)
        files.make_output_folder(output_dir, "output_dir")
        try:
            _write(source, splits, output_dir, examples_per_shard, num_threads, report)
        except tf.errors.OpError as error:
            raise utils.UserError(
                f"--output_dir={output_dir}: cannot be written: {files.explain_error(error)}"
            ) from error
    _log_summary(report, output_dir, validation_percent)
    return report


# ---- Finding the photographs.


class _Folder:
    """The files of a folder and its sub-folders."""

    def __init__(self, path: str):
        self._path = path

    def files(self) -> Iterator[tuple[str, str]]:
        """Yields (path below the folder, its absolute path) of each file."""

        def fail(error: OSError) -> None:
            raise utils.UserError(f"--images={self._path}: {error.filename} cannot be listed: {error.strerror}")

        visited = set()
        for folder, subfolders, names in os.walk(self._path, onerror=fail, followlinks=True):
            # Links are followed, since class folders may well be links; one to a folder above must not go round.
            if os.path.realpath(folder) in visited:
                subfolders.clear()
                continue
            visited.add(os.path.realpath(folder))
            subfolders.sort()  # Of two links to one folder, or two spellings of one name, always the same counts.
            for name in sorted(names):
                full_path = os.path.join(folder, name)
                below = os.path.relpath(full_path, self._path).replace(os.sep, "/")
                yield _decode_name(os.fsencode(below)), full_path

    def read(self, full_path: str) -> bytes:
        """Returns the bytes of a file, or raises BadImage."""
        try:
            if not os.path.isfile(full_path):  # Opening a named pipe would wait for ever.
                raise BadImage("not a regular file, or a broken link")
            _check_size(os.path.getsize(full_path))
            with open(full_path, "rb") as file:
                return file.read(MAX_FILE_BYTES)
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror}") from error


class _RemoteFolder:
    """The files of a folder on an object store, such as gs://bucket/photos, and of its sub-folders."""

    def __init__(self, path: str):
        self._path = path

    def files(self) -> Iterator[tuple[str, str]]:
        """Yields (path below the folder, its whole path) of each file."""
        import tensorflow as tf

        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                names = tf.io.gfile.listdir(os.path.join(self._path, folder))
            except tf.errors.OpError as error:
                raise utils.UserError(
                    f"--images={self._path}: cannot be listed: {files.explain_error(error)}"
                ) from error
            for name in filter(None, names):
                if name.endswith("/"):
                    folders.append(folder + name)
                else:
                    yield folder + name, os.path.join(self._path, folder + name)

    def read(self, full_path: str) -> bytes:
        """Returns the bytes of a file, or raises BadImage."""
        import tensorflow as tf

        try:
            with tf.io.gfile.GFile(full_path, "rb") as file:
                _check_size(file.size())
                return file.read(MAX_FILE_BYTES)
        except tf.errors.OpError as error:
            raise BadImage(f"cannot be read: {files.explain_error(error)}") from error


class _Zip:
    """The files of a .zip. They are read in place; nothing is extracted to the disk."""

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive
        self._lock = threading.Lock()

    def files(self) -> Iterator[tuple[str, zipfile.ZipInfo]]:
        """Yields (name, member) of each file."""
        for member in self._archive.infolist():
            name = member.filename
            if not member.flag_bits & 0x800:  # Not marked as UTF-8, so zipfile took it for cp437.
                with contextlib.suppress(UnicodeEncodeError):
                    name = _decode_name(name.encode("cp437"))
            name = name.replace("\\", "/")
            if not name.endswith("/"):  # Else it is a folder.
                yield name, member

    def read(self, member: zipfile.ZipInfo) -> bytes:
        """Returns the bytes of a member, or raises BadImage. Threads may call it at the same time."""
        if member.flag_bits & 0x1:
            raise BadImage("encrypted; make a .zip without a password")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadImage("compressed by an unusual method; make the .zip with the method Deflate")
        _check_size(member.file_size)
        try:
            # ZipFile locks its reads by itself, but not the count of open members, which open() and close() change.
            with self._lock:
                file = self._archive.open(member)
            try:
                return file.read(member.file_size)  # By a size: read() alone would unpack more than was declared.
            finally:
                with self._lock:
                    file.close()
        except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError) as error:
            raise BadImage(f"damaged in the .zip: {error}") from error


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_FILE_BYTES:
        raise BadImage(f"{num_bytes} bytes; at most {MAX_FILE_BYTES} are read")


def _decode_name(raw: bytes) -> str:
    """Returns a file name as text. Korean Windows writes cp949 and macOS UTF-8, neither says so in a .zip."""
    for encoding in ("utf-8", "cp949"):
        with contextlib.suppress(UnicodeDecodeError):
            return raw.decode(encoding)
    return raw.decode("cp437")


@contextlib.contextmanager
def _open_source(images: str) -> Iterator[_Folder | _RemoteFolder | _Zip]:
    if files.is_remote(images) and not images.lower().endswith(".zip"):
        yield _RemoteFolder(images)
        return
    if files.is_remote(images):  # Photos are read in an order of their own, which would be a request for each.
        with tempfile.TemporaryDirectory() as folder, _open_source(_download(images, folder)) as source:
            yield source
        return
    if os.path.isdir(images):
        yield _Folder(images)
        return
    if not os.path.exists(images):
        raise utils.UserError(f"--images={images}: no such file or folder on this machine; give a folder or a .zip")
    try:
        archive = zipfile.ZipFile(images)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise utils.UserError(
            f"--images={images}: neither a folder nor a whole .zip ({error}); download it again"
        ) from error
    except OSError as error:
        raise utils.UserError(f"--images={images}: cannot be read: {error.strerror or error}") from error
    with archive:
        yield _Zip(archive)


def _download(images: str, folder: str) -> str:
    """Copies a file of an object store into a folder of this machine and returns where it is."""
    import tensorflow as tf

    path = os.path.join(folder, os.path.basename(images))
    try:
        tf.io.gfile.copy(images, path)
    except tf.errors.OpError as error:
        raise utils.UserError(f"--images={images}: cannot be downloaded: {files.explain_error(error)}") from error
    return path


def list_photos(source: _Folder | _RemoteFolder | _Zip, report: Report) -> list[Photo]:
    """Returns the files of a source that may be photographs, with their labels and ids, sorted by path.

    Args:
        source: the folder or .zip.
        report: gets a row for each file whose name forbids its use.
    """
    photos: dict[str, Photo] = {}
    for path, key in source.files():
        # macOS writes Korean letters in parts (NFD), others whole: one photograph, one id, one split on all of them.
        path = unicodedata.normalize("NFC", path)
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if any(map(_is_junk, parts)):
            continue
        if not parts or path.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", path):
            report.rows.append((path, "skipped", "the name is empty or leads out of the folder (absolute, or with ..)"))
        elif "/".join(parts) in photos:
            report.rows.append((path, "skipped", "a second file of this name"))
        else:
            path = "/".join(parts)
            photos[path] = Photo(path, key, label_of(path))
    return _with_ids([photos[path] for path in sorted(photos)])


def _is_junk(part: str) -> bool:
    """Tells whether a folder or file is one that systems leave behind, or hidden."""
    return part.lower() in ("__macosx", "thumbs.db", "desktop.ini") or (part.startswith(".") and part != "..")


def label_of(path: str) -> int | None:
    """Returns 1 for a dog, 0 for a cat, None if neither the folders nor the file name tell."""
    *folders, name = path.split("/")
    for folder in reversed(folders):  # Before the file name: who sorts photos into folders corrects their names.
        if folder.lower() in _CLASSES:
            return _CLASSES[folder.lower()]
    prefix = _CLASS_PREFIX.match(name)
    return _CLASSES[prefix[1].lower()] if prefix else None


def _with_ids(photos: list[Photo]) -> list[Photo]:
    """Gives each photo the shortest id that keeps all of them apart: cat.0.jpg, else Cat/0.jpg, else the whole path."""
    # The root of the labelled ones if there are any: Microsoft's .zip has a read-me beside the folder PetImages.
    rooted = [photo for photo in photos if photo.label is not None] or photos
    root = os.path.commonpath([os.path.dirname(photo.path) for photo in rooted]) if rooted else ""

    def base_name(path: str) -> str:
        return path.rsplit("/", 1)[-1]

    def below_root(path: str) -> str:
        return path.removeprefix(f"{root}/")

    for make_id in (base_name, below_root, str):
        ids = [make_id(photo.path) for photo in photos]
        if len(set(ids)) == len(ids):
            break
    return [dataclasses.replace(photo, id=photo_id) for photo, photo_id in zip(photos, ids, strict=True)]


def _is_named_as_picture(photo: Photo) -> bool:
    """Tells what the name promises. Only for advice before the work; what counts are the bytes."""
    return (mimetypes.guess_type(photo.path)[0] or "").startswith("image/")


def _check_folder_names(images: str, photos: Sequence[Photo]) -> None:
    """Refuses two folders of pictures that look like two classes, but are not named so."""
    pictures = [photo for photo in photos if _is_named_as_picture(photo)]
    folders = sorted({os.path.dirname(photo.path) for photo in pictures})
    labels = {photo.label for photo in pictures}
    if len(folders) == 2 and all(folders) and None in labels and not {0, 1} <= labels:
        raise utils.UserError(
            f"--images={images}: its two folders are named {folders[0]} and {folders[1]}; name them cat and dog "
            "(unlabelled photographs: give one folder alone)"
        )


def split_photos(photos: Iterable[Photo], validation_percent: int) -> dict[str, list[Photo]]:
    """Assigns each photo to a split, by nothing but its label and its id.

    Args:
        photos: the photos, with their ids.
        validation_percent: percentage of the labelled ones that goes to "validation".

    Returns:
        The photos of each of `SPLITS`, in a pseudo-random order that is always the same.
    """
    splits: dict[str, list[tuple[bytes, str, Photo]]] = {split: [] for split in SPLITS}
    for photo in photos:
        digest = hashlib.sha256(photo.id.encode("utf-8")).digest()
        if photo.label is None:
            split = "test"
        else:
            split = "validation" if int.from_bytes(digest[:8], "big") % 100 < validation_percent else "train"
        splits[split].append((digest[8:], photo.id, photo))
    return {split: [photo for _, _, photo in sorted(rows, key=lambda row: row[:2])] for split, rows in splits.items()}


# ---- Checking one photograph.


def usable_jpeg(data: bytes) -> tuple[bytes, str]:
    """Returns a JPEG that the readers decode.

    Args:
        data: the bytes of a file of any kind.

    Returns:
        The bytes as they are and "", or the bytes of a new JPEG and what it was made from.

    Raises:
        BadImage: if there is no whole picture in it.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=_known_formats())  # Reads the header only.
    except Image.DecompressionBombError as error:
        raise BadImage(f"more than {MAX_PIXELS} pixels") from error
    except Exception as error:  # Pillow's parsers raise whatever a damaged file makes them stumble over.
        raise BadImage(_describe(data)) from error
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"{image.width}x{image.height}: more than {MAX_PIXELS} pixels")
    is_jpeg = image.format in ("JPEG", "MPO")  # MPO: a JPEG with further ones behind it, from some cameras.
    if is_jpeg and image.mode in ("L", "RGB") and _tensorflow_decodes(data):
        return data, ""
    return _encode_as_jpeg(image)


def _known_formats() -> list[str]:
    from PIL import Image

    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]  # AVIF came late, HEIF comes with pillow-heif.


def _tensorflow_decodes(data: bytes) -> bool:
    import tensorflow as tf

    try:
        tf.io.decode_jpeg(data, channels=3)
    except tf.errors.InvalidArgumentError:
        return False
    return True


def _encode_as_jpeg(image: Any) -> tuple[bytes, str]:
    """Returns a Pillow image (its first frame) as a JPEG on white, and a description of what it was."""
    from PIL import ImageOps

    what = f"{image.format}, mode {image.mode}"
    try:
        upright = ImageOps.exif_transpose(image)  # The new file has no EXIF to say which side is up.
        buffer = io.BytesIO()
        _to_rgb(upright, image.format).save(buffer, "JPEG", quality=95, subsampling=0)
    except BadImage:
        raise
    except Exception as error:  # As above.
        raise BadImage(f"damaged {what}: {str(error) or type(error).__name__}") from error
    return buffer.getvalue(), what


def _to_rgb(image: Any, file_format: str) -> Any:
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        grey = (np.asarray(image) >> 8).astype(np.uint8)  # Pillow would cut 16 bits off at 255, not scale them.
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise BadImage(f"{file_format} with 32 bits a pixel: nothing says which value is white")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _describe(data: bytes) -> str:
    """Says what a file is that is no picture."""
    start = data[:1024].lstrip().lower()
    if not data:
        return "empty file (0 bytes)"
    if data.startswith(b"\xff\xd8"):
        return "JPEG with a damaged header"
    if start.startswith((b"<!doctype html", b"<html")):
        return "HTML page, perhaps the error message of a download"
    if data[4:8] == b"ftyp":
        return "HEIC, AVIF or video that this Pillow cannot read; save it as JPEG"
    if data.startswith(b"PK\x03\x04"):
        return "a .zip or Office file; if it holds photographs, unpack it and give it to --images by itself"
    return "not a picture, or of an unknown format"


# ---- Writing the shards.


def _write(
    source: _Folder | _RemoteFolder | _Zip,
    splits: dict[str, list[Photo]],
    output_dir: str,
    examples_per_shard: int,
    num_threads: int,
    report: Report,
) -> None:
    """Writes all shards into a hidden folder, and moves them to `output_dir` when the last one is whole."""
    import tensorflow as tf

    aside = os.path.join(output_dir, f".unfinished-{os.getpid()}")
    files.make_dirs(aside)
    try:
        _write_aside(source, splits, aside, examples_per_shard, num_threads, report)
        _write_bad_images(report, output_dir)
        if not report.written:
            raise utils.UserError(
                f"--output_dir={output_dir}: no shards written, since none of the {report.count('skipped')} files is a "
                f"usable picture; {os.path.join(output_dir, BAD_IMAGES)} says why"
            )
        _move_shards(aside, output_dir, report.shards)
    finally:
        with contextlib.suppress(tf.errors.NotFoundError):  # Without an object in it, a folder of a bucket is gone.
            tf.io.gfile.rmtree(aside)


def _write_aside(
    source: _Folder | _RemoteFolder | _Zip,
    splits: dict[str, list[Photo]],
    aside: str,
    examples_per_shard: int,
    num_threads: int,
    report: Report,
) -> None:
    from cats_vs_dogs import tfrecords

    # Pillow warns of oddities that do not matter here, and of many pixels, which are counted above.
    warnings.filterwarnings("ignore", module="PIL")

    def make_example(photo: Photo) -> tuple[Photo, bytes | None, str]:
        try:
            encoded, reencoded_from = usable_jpeg(source.read(photo.key))
        except BadImage as error:
            return photo, None, str(error)
        return photo, tfrecords.make_example(encoded, photo.id, photo.label), reencoded_from

    with (
        ThreadPoolExecutor(num_threads) as pool,  # Threads suffice: Pillow and TensorFlow decode without the GIL.
        terminal.progress_bar(sum(map(len, splits.values())), " photos") as progress,
    ):

        def examples(split: str) -> Iterator[bytes]:
            results = _map_in_order(pool, make_example, splits[split], 4 * num_threads)
            for done, (photo, example, note) in enumerate(results, start=1):
                progress.update()
                if progress.disable and done % _LOG_EVERY == 0:
                    logging.info("%s: %d of %d photos done", split, done, len(splits[split]))
                if example is None:
                    report.rows.append((photo.path, "skipped", note))
                    continue
                if note:
                    report.rows.append((photo.path, "re-encoded", note))
                report.written[split, photo.label] += 1
                yield example

        for split in SPLITS:
            stream = examples(split)
            for first in stream:
                index = report.shards.get(split, 0)
                shard = itertools.chain([first], itertools.islice(stream, examples_per_shard - 1))
                tfrecords.write_shard(os.path.join(aside, f"{split}-{index}"), shard)
                report.shards[split] = index + 1


def _map_in_order(pool: ThreadPoolExecutor, function: Callable, items: Iterable, limit: int) -> Iterator:
    """Yields function(item) in the order of the items, with at most `limit` of them in memory."""
    pending: collections.deque = collections.deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) == limit:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _check_no_shards(output_dir: str, splits: Iterable[str]) -> None:
    """Refuses a folder that has shards of one of `splits`: old and new ones would be read together."""
    import tensorflow as tf

    try:
        present = tf.io.gfile.listdir(output_dir) if tf.io.gfile.isdir(output_dir) else []
    except tf.errors.OpError as error:
        raise utils.UserError(f"--output_dir={output_dir}: cannot be listed: {files.explain_error(error)}") from error
    for split in splits:
        old = sorted(name for name in present if name.startswith(f"{split}-"))
        if old:
            raise utils.UserError(
                f"--output_dir={output_dir}: already has {len(old)} {split} shards, such as {old[0]}; "
                "delete them or name another folder"
            )


def _move_shards(aside: str, output_dir: str, shards: dict[str, int]) -> None:
    """Gives the shards their final names, all of them or none."""
    import tensorflow as tf

    from cats_vs_dogs import tfrecords

    _check_no_shards(output_dir, shards)  # Again, for the splits that are really there.
    moved = []
    try:
        for split, num_shards in shards.items():
            for index in range(num_shards):
                path = tfrecords.shard_path(output_dir, split, index, num_shards)
                moved.append(path)
                tf.io.gfile.rename(os.path.join(aside, f"{split}-{index}"), path)
    except BaseException:
        for path in moved:
            with contextlib.suppress(tf.errors.OpError):
                tf.io.gfile.remove(path)
        raise


def _write_bad_images(report: Report, output_dir: str) -> None:
    if report.rows:
        with files.atomic_write(os.path.join(output_dir, BAD_IMAGES), "output_dir") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("file", "action", "reason"))
            writer.writerows(sorted(report.rows))


def _log_summary(report: Report, output_dir: str, validation_percent: int) -> None:
    for split, num_shards in report.shards.items():
        cats, dogs, unlabelled = (report.written[split, label] for label in (0, 1, None))
        what = f"{unlabelled} photos without a label" if split == "test" else f"{cats} cats, {dogs} dogs"
        logging.info("%s: %s in %d files", split, what, num_shards)
        if split == "train" and not (cats and dogs):
            logging.warning("train: no %s at all; a model learns nothing from one class", "dog" if cats else "cat")
    if report.rows:
        logging.info(
            "%d re-encoded, %d skipped; see %s",
            report.count("re-encoded"),
            report.count("skipped"),
            os.path.join(output_dir, BAD_IMAGES),
        )
    if "train" in report.shards:
        if validation_percent and "validation" not in report.shards:
            logging.warning("no photo fell into validation; raise --validation_percent=%d", validation_percent)
        script, flag, split = "train", "train_data_pattern", "train"
    else:
        script, flag, split = "inference", "input_data_pattern", "test"
    if split in report.shards:
        shards = os.path.join(output_dir, f"{split}-*")
        logging.info("next: python cats_vs_dogs/%s.py --%s='%s' --train_dir=/tmp/photo_model", script, flag, shards)


if __name__ == "__main__":
    utils.run_script(main, define_flags)
