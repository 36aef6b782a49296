"""Which photos are for training, validation and test: by the folders they lie in, else by a hash of their ids."""

import hashlib
import mimetypes
import re
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from absl import logging


class Photo(Protocol):
    """What `split_photos` needs to know of a photo, see `convert_images_to_tfrecords.Photo`."""

    path: str
    label: int | None
    id: str


PhotoT = TypeVar("PhotoT", bound=Photo)

SPLITS = ("train", "validation", "test")

# The split of each folder name: {"train": "train", "training_set": "train", "val": "validation", ...}.
_NAMES = {"train": "train|training", "validation": "validation|val|valid", "test": "test|testing"}
_FOLDERS = {split: re.compile(rf"({names})([_ -]?set)?", re.IGNORECASE) for split, names in _NAMES.items()}


def split_photos(photos: Sequence[PhotoT], validation_percent: int) -> dict[str, list[PhotoT]]:
    """Assigns each photo to a split. Its own label and id decide, unless the photos are in folders of splits.

    Args:
        photos: the photos, with their ids.
        validation_percent: percentage of the labelled photos that is assigned to "validation".

    Returns:
        The photos of each of `SPLITS`, in a pseudo-random order that is always the same.
    """
    folders = split_of_folders(photos)
    _log_folders(folders, photos, validation_percent)
    threshold = 0 if "validation" in folders.values() else validation_percent
    splits: dict[str, list[tuple[bytes, str, PhotoT]]] = {split: [] for split in SPLITS}
    for photo in photos:
        digest = hashlib.sha256(photo.id.encode("utf-8")).digest()
        split = "test" if photo.label is None else folders.get(photo.path, "train")
        if split == "train" and int.from_bytes(digest[:8], "big") % 100 < threshold:
            split = "validation"
        splits[split].append((digest[8:], photo.id, photo))
    return {split: [photo for _, _, photo in sorted(rows, key=lambda row: row[:2])] for split, rows in splits.items()}


def split_of_folders(photos: Iterable[Photo]) -> dict[str, str]:
    """Returns the split of each labelled photo whose folders name one, by path.

    The innermost folder with such a name counts.

    Args:
        photos: the photos.

    Returns:
        {} unless labelled photos are in a folder train (or training) and in a folder validation (val, valid) or test
        (testing), in any case, perhaps with "_set" at the end.
    """
    paths = [photo.path for photo in photos if photo.label is not None and not _is_another_file(photo.path)]
    splits = {}
    for path in paths:
        for folder in reversed(path.split("/")[:-1]):
            split = next((split for split in SPLITS if _FOLDERS[split].fullmatch(folder)), None)
            if split:
                splits[path] = split
                break
    found = set(splits.values())
    if "train" in found and len(found) > 1:
        return splits
    if found and found != {"train"} and (len(found) > 1 or len(splits) < len(paths)):
        logging.warning(
            "%d labelled photos are in folders named %s, and none is in one named train; such folders are not heeded, "
            "so photos of them become training photos",
            *(len(splits), " and ".join(split for split in SPLITS if split in found)),
        )
    return {}


def _is_another_file(path: str) -> bool:
    """Whether a file's name ends like that of something else than a picture."""
    kind = mimetypes.guess_type(path)[0]
    return kind is not None and not kind.startswith("image/")


def _log_folders(splits: dict[str, str], photos: Sequence[Photo], validation_percent: int) -> None:
    """Logs that the split of the folders is kept, if they have one.

    Args:
        splits: the result of `split_of_folders`.
        photos: all photos.
        validation_percent: what --validation_percent says.
    """
    if not splits:
        return
    found = [split for split in SPLITS if split in splits.values()]
    counts = ", ".join(f"{sum(one == split for one in splits.values())} for {split}" for split in found)
    num_others = sum(photo.label is not None and photo.path not in splits for photo in photos)
    others = f" ({num_others} labelled files in no such folder are taken as training photos)" if num_others else ""
    rest = f"--validation_percent={validation_percent} is not used"
    if "validation" not in found:
        rest = f"{validation_percent} % of those for train become validation (--validation_percent)"
    logging.info("the split of the folders is kept: %s%s; %s", counts, others, rest)
