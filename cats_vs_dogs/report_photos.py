"""The photos of report.html: which are worth a look, as pictures of the original files, and where the model looked."""

import base64
import contextlib
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from absl import logging
from PIL import Image

from cats_vs_dogs import eval_util, files, readers, saliency, submission, tfrecords, utils
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.labels import CLASS_NAMES, is_dog
from cats_vs_dogs.report_figures import sureness

NUM_SHOWN = 12  # of each kind
# Of a model that is mostly right, the mistakes of which it is this sure may be mistakes of the labels.
SURE_ENOUGH, RIGHT_ENOUGH = 0.95, 0.9

_SIDE = 240  # The longer side of a picture, pixels.
_MOST_BYTES = 1_700_000  # of all pictures together; base64 makes a third more of it
_QUALITIES = (82, 60, 40, 20)  # of JPEG; the first with which they take no more than that
_MAP_STRENGTH = 0.55
_LONGEST_ID = 120  # characters


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo as the report shows it.

    Attributes:
        id: the id of its example; of a long one, the end.
        label: name of the class that the label says.
        said: name of the class that the model said.
        sure: probability of that class.
        picture: the photo, a data URL; "" if it cannot be shown.
        looked: the photo with the map of where the model looked, a data URL; "" without one.
    """

    id: str
    label: str
    said: str
    sure: float
    picture: str = ""
    looked: str = ""


def choose(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, list[int]]:
    """Chooses photos that are worth a look; none twice.

    Args:
        probabilities: [n, 1], probability of a dog.
        labels: [n, 1], 1 = dog.

    Returns:
        The numbers of at most `NUM_SHOWN` examples each: "suspects", whose label may be wrong: surest mistakes, see
        `SURE_ENOUGH`, of a model that is `RIGHT_ENOUGH`; "mistakes", the surest of the others; and "least_sure".
    """
    sure = sureness(probabilities)
    mistakes = eval_util.worst_mistakes(probabilities, labels).tolist()
    is_good = eval_util.calculate_hit_at_one(probabilities, labels) >= RIGHT_ENOUGH
    suspects = [number for number in mistakes if is_good and sure[number] >= SURE_ENOUGH][:NUM_SHOWN]
    others = [number for number in mistakes if number not in suspects][:NUM_SHOWN]
    taken = {*suspects, *others}
    unsure = np.argsort(sure, kind="stable")[: NUM_SHOWN + len(taken)].tolist()
    least_sure = [number for number in unsure if number not in taken][:NUM_SHOWN]
    return {"suspects": suspects, "mistakes": others, "least_sure": least_sure}


def show(
    numbers: Sequence[int],
    ids: np.ndarray,
    probabilities: np.ndarray,
    labels: np.ndarray,
    classifiers: Sequence[Classifier],
    reader: readers.BaseReader,
    shards: readers.Shards,
) -> tuple[list[Photo], str]:
    """Returns photos with their pictures.

    Args:
        numbers: of the examples, in the order in which the shards are read.
        ids: bytes [n], of all examples.
        probabilities: [n, 1], of all examples, probability of a dog.
        labels: [n, 1], of all examples, 1 = dog.
        classifiers: the model, or those of an ensemble, whose maps are averaged.
        reader: how they read a record.
        shards: the examples.

    Returns:
        The photos, and why they have no maps of where the model looked; "" if they have them.
    """
    records = read_records(shards, numbers)
    thumbnails = {number: thumbnail for number in records if (thumbnail := _thumbnail(records[number]))}
    shown = list(thumbnails)
    are_dogs = is_dog(probabilities.ravel()[shown])
    maps, why_not = _find_maps(classifiers, reader, [records[number] for number in shown], are_dogs)
    overlaid = {
        number: _overlay(thumbnails[number], [one[row] for one in maps])
        for row, number in enumerate(shown)
        if any(one[row].any() for one in maps)
    }
    pictures, looked = _encode(thumbnails, overlaid)
    sure, said = sureness(probabilities), is_dog(probabilities.ravel())
    photos = [
        Photo(
            shortened(submission.id_text(ids[number])),
            CLASS_NAMES[int(labels.ravel()[number] > 0)],
            CLASS_NAMES[int(said[number])],
            float(sure[number]),
            pictures.get(number, ""),
            looked.get(number, ""),
        )
        for number in numbers
    ]
    return photos, why_not


def shortened(text: str) -> str:
    """Returns a text that can be shown: without control characters, and of a long one the end, which says more."""
    text = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
    return text if len(text) <= _LONGEST_ID else f"…{text[1 - _LONGEST_ID :]}"


# ---- The original photos.


def read_records(shards: readers.Shards, numbers: Sequence[int]) -> dict[int, bytes]:
    """Returns records by their numbers in the order in which the shards are read; without those that vanished."""
    wanted: dict[str, dict[int, int]] = {}
    offsets, paths = shards.offsets, shards.files
    for number in numbers:
        file = int(np.searchsorted(offsets, number, side="right")) - 1
        place = number - offsets[file]
        for bad in sorted(shards.bad.get(paths[file], ())):  # Records that are left out have no number.
            place += bad <= place
        wanted.setdefault(paths[file], {})[place] = number
    records = {}
    for path, places in wanted.items():
        with contextlib.suppress(tfrecords.DamageError, utils.UserError, *files.file_errors()):
            for place, (position, _) in enumerate(tfrecords.walk(path)):
                if place in places:
                    _, records[places[place]] = next(tfrecords.walk(path, position, place, with_bytes=True))
                if place >= max(places):
                    break
    return {number: records[number] for number in numbers if number in records}


def _thumbnail(record: bytes) -> Image.Image | None:
    """Returns the photo of a record, small; None if the record has none, as that of a reader of your own may."""
    try:
        encoded = tf.train.Example.FromString(record).features.feature[tfrecords.IMAGE].bytes_list.value[0]
        picture = Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG", "GIF", "BMP", "WEBP"))
        picture.draft("RGB", (2 * _SIDE, 2 * _SIDE))  # libjpeg decodes a large photo to a smaller one.
        picture = picture.convert("RGB")
    except Exception:  # Pillow's parsers raise anything, and TensorFlow may decode what they do not.
        return None
    picture.thumbnail((_SIDE, _SIDE), reducing_gap=2.0)
    return picture


def _encode(*groups: dict[int, Image.Image]) -> list[dict[int, str]]:
    """Returns pictures as data URLs, in the best quality with which they are not too large together."""
    for quality in _QUALITIES:
        encoded = [{number: _jpeg(picture, quality) for number, picture in group.items()} for group in groups]
        if sum(len(one) for group in encoded for one in group.values()) <= _MOST_BYTES:
            break
    return [{number: data_url(one, "image/jpeg") for number, one in group.items()} for group in encoded]


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def data_url(data: bytes, kind: str) -> str:
    """Returns a file as an address that holds all of it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


# ---- Where the model looked.


def _find_maps(
    classifiers: Sequence[Classifier], reader: readers.BaseReader, records: list[bytes], are_dogs: np.ndarray
) -> tuple[list[np.ndarray], str]:
    """Returns the maps of each model that has some, [n, height, width] in [0, 1], or why there are none."""
    if not records:
        return [], ""
    try:
        _, images, *_ = readers.prepare_graph(reader)(tf.constant(records))
        by_model = images if isinstance(images, tuple) else (images,)
        found = [
            saliency.find_maps(classifier.model.network, readers.scale_images(its_images), are_dogs)
            for classifier, its_images in zip(classifiers, by_model, strict=True)
        ]
    except Exception as error:  # Layers of your own may be anything, and the rest of the report is worth having.
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        logging.warning("the report does not show where the model looked: %s", reason)
        return [], f"It could not be calculated where the model looked ({shortened(reason)})."
    maps = [one for one in found if one is not None]
    return maps, "" if maps else "The model has no convolution, so no map shows where it looked."


def _overlay(picture: Image.Image, maps: Sequence[np.ndarray]) -> Image.Image:
    """Returns a photo under the mean of maps, [height, width] in [0, 1]: from dark violet to yellow."""
    import matplotlib

    sized = [Image.fromarray(one).resize(picture.size, Image.Resampling.BICUBIC) for one in maps]
    mean = np.mean([np.asarray(one) for one in sized], axis=0).clip(0, 1)
    colours = matplotlib.colormaps["plasma"](mean, bytes=True)[..., :3]
    return Image.blend(picture, Image.fromarray(colours), _MAP_STRENGTH)
