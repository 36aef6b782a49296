"""Photos in place of shards: the shards that the converter makes of them, made once and kept in the user's cache.

train.py and eval.py take photos in place of shards. The names, sizes and times of the photos' files tell whether the
shards of an earlier run can be used. Deleted shards are made again, and changed photos get new shards.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Sequence

from absl import logging

from cats_vs_dogs import convert_images_to_tfrecords as converter
from cats_vs_dogs import files, kept_folders, labels, photo_sources, pictures, tfrecords
from cats_vs_dogs.utils import UserError

_VERSION = 1  # Increase it when the converter makes other shards of the same photos.
_MAX_KEPT_BYTES = 16 * 2**30  # Limit for the shards of all photos together. Those in use are kept, even above it.
_ABOUT = "photos.json"
_UNLABELLED = "unlabelled"


@dataclasses.dataclass(frozen=True)
class PhotoShards:
    """The shards that were made of photos.

    Attributes:
        name: the pattern that named the photos, with absolute paths.
        folder: where the shards are.
        counts: number of photos by split and then class, "unlabelled" for those without a label; splits without a
            photo are left out.
    """

    name: str
    folder: str
    counts: dict[str, dict[str, int]]

    def pattern(self, split: str) -> str:
        """Returns the file pattern of the shards of a split; "" if there are none."""
        return os.path.join(self.folder, f"{split}-*") if split in self.counts else ""

    def count(self, split: str) -> int:
        """Returns the number of photos of a split."""
        return sum(self.counts.get(split, {}).values())

    def labelled_patterns(self) -> list[str]:
        """Returns the patterns of the shards of all splits whose photos have labels."""
        return [self.pattern(split) for split, counts in self.counts.items() if not counts[_UNLABELLED]]


def find(pattern: str, flag: str) -> PhotoShards | None:
    """Returns the shards of labelled photos, which are made if needed, and logs where they are.

    Args:
        pattern: a folder, a .zip file or a file pattern, or several with commas between them.
        flag: the flag that gave it, for messages.

    Returns:
        The shards; None if the pattern names shards itself.

    Raises:
        UserError: if it names nothing, no photo has a label or can be used, or the shards cannot be written.
    """
    places = photo_sources.find_places([pattern], flag)
    if places is None:
        return None
    stamps = photo_sources.stamps(places, flag)
    _check_no_shards(places, pattern, flag, [name for name, _, _ in stamps])
    parent = os.path.join(files.cache_folder(), "photos")
    folder, is_new = os.path.join(parent, _key(stamps)), False

    def convert(new: str) -> None:
        _convert(places, pattern, flag, new, folder)
        if photo_sources.stamps(places, flag) != stamps:
            raise UserError(f"--{flag}={pattern}: has changed while it was read; start again when it is complete")

    while not ((about := _read_about(folder)) and kept_folders.hold(folder)):
        is_new = True
        try:
            num_bytes = sum(size for name, size, _ in stamps if _is_copied(name))
            kept_folders.check_room(parent, num_bytes, _MAX_KEPT_BYTES)
            kept_folders.make(folder, convert, lambda one: bool(_read_about(one)))
        except files.file_errors() as error:
            raise UserError(
                f"--{flag}={pattern}: its shards cannot be written to {parent}: {files.explain_error(error)}; set "
                "XDG_CACHE_HOME to a folder that can be written to and has room"
            ) from error
    parts = photo_sources.split_list(pattern, flag)
    shards = PhotoShards(",".join(map(files.absolute_path, parts)), folder, about["counts"])
    _log(pattern, shards, about["bad"], is_new)
    return shards


def are_same(pattern: str, other: str, flag: str) -> bool:
    """Whether two patterns name the same photos: the same folders, .zip files and file patterns."""
    one, two = ({files.real_path(part) for part in photo_sources.split_list(text, flag)} for text in (pattern, other))
    return one == two


def _check_no_shards(places: Sequence[str], pattern: str, flag: str, names: Sequence[str]) -> None:
    """Says that shards among photos are left out.

    Args:
        places: see `photo_sources.find_places`.
        pattern: what named them.
        flag: the flag that gave it.
        names: paths of the files in them.

    Raises:
        UserError: if the pattern matches files of both kinds, so that it is not known which are meant.
    """
    shards = [name for name in names if re.fullmatch(r"(.*/)?.+-\d+-of-\d+", name)]
    if {os.path.basename(name) for name in shards} & {os.path.basename(place) for place in places}:
        raise UserError(
            f"--{flag}={pattern}: matches pictures and shards, such as {shards[0]}; give one kind at a time"
        )
    if shards:
        logging.warning(
            "%s holds pictures and shards, such as %s; only the pictures are used; for shards give their pattern",
            *(pattern, shards[0]),
        )


def _key(stamps: Sequence[tuple[str, int, int]]) -> str:
    """Returns a name that only the same files and settings of the converter have."""
    settings = (_VERSION, converter.VALIDATION_PERCENT, converter.EXAMPLES_PER_SHARD)
    return hashlib.blake2b(repr((settings, sorted(stamps))).encode(), digest_size=16).hexdigest()


def _is_copied(name: str) -> bool:
    """Whether the bytes of a file with this name go into shards; those of a film beside the photos do not."""
    return pictures.is_named_as_picture(name) or photo_sources.is_zip(name)


def _convert(places: Sequence[str], pattern: str, flag: str, folder: str, final_folder: str) -> None:
    """Writes the shards of photos and a file about them into an empty folder, and logs where they will be."""
    outcome = converter.Outcome()
    with photo_sources.open_places(places, flag) as source:
        photos = converter.find_photos(source, pattern, flag, outcome)
        if all(photo.label is None for photo in photos):
            raise UserError(f"--{flag}={pattern}: {_explain_no_label(places, [photo.path for photo in photos])}")
        logging.info("Making shards of %s (%d files) in %s, once", pattern, len(photos), final_folder)
        converter.convert_photos(source, photos, folder, outcome)
    if not outcome.written:
        path, _, reason = min(outcome.rows)
        raise UserError(f"--{flag}={pattern}: has no usable picture in it, such as {path}: {reason}")
    counts = {
        split: {
            name: outcome.written[split, label] for label, name in [*enumerate(labels.CLASS_NAMES), (None, _UNLABELLED)]
        }
        for split in outcome.shards
    }
    bad = {action: outcome.count(action) for action in ("re-encoded", "skipped")}
    about = {"counts": counts, "shards": outcome.shards, "bad": bad}
    about["bytes"] = list(map(os.path.getsize, _paths(folder, about)))
    files.write_json(os.path.join(folder, _ABOUT), about)


def _explain_no_label(places: Sequence[str], paths: Sequence[str]) -> str:
    """Returns what is wrong, and what to do, if the paths of files in places tell no class."""
    folder, name = os.path.split(places[0].rstrip("/"))
    message = f"none of the {len(paths):,} files in it has a label"
    archives = sorted(filter(photo_sources.is_zip, paths), key=lambda path: "train" not in path)
    if len(places) == 1 and archives:
        return f"{message}; to read a .zip file in it, give the .zip itself: {os.path.join(places[0], archives[0])}"
    if len(places) == 1 and converter.label_of(f"{name}/x") is not None:
        return f"{message}, since it is the folder of one class; name the folder that holds both: {folder or '.'}"
    return f"{message}; put photos into folders named cat and dog, or name them like cat.1.jpg and dog.1.jpg"


def _read_about(folder: str) -> dict[str, dict]:
    """Returns what a folder of shards says about itself; {} if it is missing, or a shard is missing or incomplete."""
    try:
        about = files.read_json(os.path.join(folder, _ABOUT))
        is_complete = about["bytes"] == list(map(os.path.getsize, _paths(folder, about)))
    except (OSError, UserError, KeyError, AttributeError, TypeError):  # Missing, or damaged.
        return {}
    return about if is_complete else {}


def _paths(folder: str, about: dict[str, dict]) -> list[str]:
    """Returns the paths of the shards in a folder, by what the folder says about itself."""
    return [
        tfrecords.shard_path(folder, split, index, count)
        for split, count in about["shards"].items()
        for index in range(count)
    ]


def _log(pattern: str, shards: PhotoShards, bad: dict[str, int], is_new: bool) -> None:
    shown = []
    for split, counts in shards.counts.items():
        parts = [
            f"{count:,} {name}" if name == _UNLABELLED else labels.counted(count, name)
            for name, count in counts.items()
            if count
        ]
        shown.append(f"{split}: {', '.join(parts)}")
    made = "" if is_new else ", made by an earlier run,"
    logging.info("Photos of %s: %s. Their shards%s are in %s", pattern, "; ".join(shown), made, shards.folder)
    if any(bad.values()):
        path = os.path.join(shards.folder, converter.BAD_IMAGES)
        logging.info("%d re-encoded, %d skipped; see %s", bad["re-encoded"], bad["skipped"], path)
