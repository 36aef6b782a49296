"""Opens the reader that `readers.get_reader` returns, and checks that all scripts see the same pictures with it."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import logging

from cats_vs_dogs import readers, tfrecords
from cats_vs_dogs.labels import CAT
from cats_vs_dogs.utils import UserError, user_code_error

_LARGE = 20  # Standardized images can leave [-1, 1], but hardly exceed this.
_KIT_READERS = (readers.CatsVsDogsFeatureReader, readers.CatsVsDogsTestFeatureReader)


class _WithoutLabels(readers.BaseReader):
    """Reads unlabelled records with a reader of labelled ones: each record gets a label, which is then left out.

    Args:
        reader: may return labels or not.
    """

    def __init__(self, reader: readers.BaseReader):
        self._reader = reader

    def prepare_serialized_examples(self, serialized_examples: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Returns ids and images as `readers.prepare_function` does for the reader: images may be uint8."""
        # Two serialized messages, one after the other, are one message with the fields of both.
        label = tf.train.Example()
        label.features.feature[tfrecords.LABEL].int64_list.value.append(CAT)
        ids, images, *_ = readers.prepare_function(self._reader)(serialized_examples + label.SerializeToString())
        return ids, images


def open_reader(is_labelled: bool, image_size: int, resize_method: str) -> readers.BaseReader:
    """Returns the reader of `readers.get_reader`. One reader can serve both kinds of records.

    Args:
        is_labelled: whether the reader must return labels (training, evaluation) or must not (inference, export).
        image_size: height and width of the images, pixels.
        resize_method: see `decoding.decode_and_resize`.

    Raises:
        UserError: if `readers.get_reader` returns the kit's reader for one kind of records and another for the other
            kind, or if a reader of a contestant's own fails or returns something else than it must.
    """
    kinds = [type(_get_reader(one, image_size, resize_method)) for one in (True, False)]
    own = [kind.__name__ for kind in kinds if kind not in _KIT_READERS]
    if len(own) == 1:
        raise UserError(
            f"{_names(*kinds)}; return {own[0]} for both: if records have no labels, the kit leaves its labels out"
        )
    reader = _get_reader(is_labelled, image_size, resize_method)
    name = type(reader).__name__
    opened = reader if is_labelled or type(reader) is readers.CatsVsDogsTestFeatureReader else _WithoutLabels(reader)
    if type(reader) not in _KIT_READERS:
        _check_outputs(name, _trace(name, opened).structured_outputs, is_labelled, image_size)
    return opened


def check(shards: readers.Shards, image_size: int, resize_method: str) -> None:
    """Checks that inference and export will read a picture as training does, with the first record of the shards.

    The kit's own readers do, so it costs time only with a reader of a contestant's own.

    Args:
        shards: labelled ones.
        image_size: height and width of the images, pixels.
        resize_method: see `decoding.decode_and_resize`.

    Raises:
        UserError: if a reader fails, or if the images differ.
    """
    one, other = (type(_get_reader(is_labelled, image_size, resize_method)) for is_labelled in (True, False))
    if one in _KIT_READERS and other in _KIT_READERS:
        return
    record, images = readers.first_record(shards), []
    for is_labelled, kind in ((True, one), (False, other)):
        prepare = _trace(kind.__name__, open_reader(is_labelled, image_size, resize_method))
        for _ in range(2):  # A graph's random numbers begin with the same ones.
            try:
                outputs = prepare(record)
            except tf.errors.OpError as error:
                raise user_code_error(_method(kind.__name__), error) from error
            _check_outputs(kind.__name__, outputs, is_labelled, image_size)
            images.append(readers.scale_images(outputs[1]).numpy())
    # Two graphs of the same calculation can differ in the last bits.
    if not all(np.allclose(images[0], image, rtol=0, atol=1e-4, equal_nan=True) for image in images[1:]):
        raise UserError(
            f"{_names(one, other)}, which make different images of the same record; return {one.__name__} for both, "
            "and leave random changes to --augment or to layers of the model"
        )
    if (largest := np.abs(images[0]).max()) > _LARGE:
        logging.warning(
            "%s returns pixels as large as %.4g, but models take the range [-1, 1]; scale them", one.__name__, largest
        )


def _get_reader(is_labelled: bool, image_size: int, resize_method: str) -> readers.BaseReader:
    try:
        reader = readers.get_reader(is_labelled, image_size, resize_method)
    except Exception as error:
        raise user_code_error("get_reader", error) from error
    if not isinstance(reader, readers.BaseReader):
        raise UserError(f"get_reader in readers.py must return a BaseReader, not {type(reader).__name__}")
    return reader


def _names(labelled: type, unlabelled: type) -> str:
    return (
        f"get_reader in readers.py returns {labelled.__name__} for labelled records and {unlabelled.__name__} for "
        "unlabelled ones"
    )


def _trace(name: str, reader: readers.BaseReader) -> Callable[[tf.Tensor], tuple[tf.Tensor, ...]]:
    """Returns the graph of a reader's function of records, string [batch]."""
    try:
        return readers.prepare_graph(reader)
    except Exception as error:
        raise user_code_error(_method(name), error) from error


def _check_outputs(name: str, outputs: tuple[tf.Tensor, ...], has_labels: bool, image_size: int) -> None:
    """Checks the number, the dtypes and the shapes of what a reader returns, as far as the shapes are known."""
    if not isinstance(outputs, tuple) or len(outputs) != (3 if has_labels else 2):
        raise UserError(f"{_method(name)} must return a tuple of ids, images and labels")
    size = [image_size, image_size, 3]
    kinds = [
        ("ids", (tf.string,), [None], "string [batch]"),
        ("images", (tf.float32, tf.uint8), [None, *size], f"float32 [batch, {image_size}, {image_size}, 3]"),
        ("labels", (tf.int32,), [None, 1], "int32 [batch, 1]"),
    ]
    for (what, dtypes, shape, expected), output in zip(kinds, outputs, strict=False):
        if output.dtype not in dtypes or not output.shape.is_compatible_with(shape):
            advice = "; --image_size sets the size" if what == "images" else ""
            raise UserError(
                f"{_method(name)} must return {what} as {expected}, not {output.dtype.name} {output.shape}{advice}"
            )


def _method(name: str) -> str:
    return f"{name}.prepare_serialized_examples"
