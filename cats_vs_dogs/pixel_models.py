"""Models that take pixels instead of files: for phones and small computers (LiteRT), and for ONNX Runtime.

The app that runs such a model decodes and resizes the pictures. So a JSON file beside the model says how to do that,
and how many photos the model gets right.
"""

import dataclasses
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from cats_vs_dogs import files, readers, terminal
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.labels import is_dog
from cats_vs_dogs.utils import UserError

_ABOUT = "model.json"
_FLOAT32, _INT8, _ONNX = "model_float32.tflite", "model_int8.tflite", "model.onnx"

# What an export may consist of, see `export_model.publish`.
PARTS = (_ABOUT, _FLOAT32, _INT8, _ONNX)

_RESIZING = {
    "area": "each pixel is the mean of the source pixels that it covers, those at its edges in part, rounded",
    "legacy_bilinear": "bilinear between four source pixels, without half-pixel centres, rounded down: "
    "tf.raw_ops.ResizeBilinear with its defaults",
}

# From pixels of one picture, [1, size, size, 3], to the probability of a dog.
Run = Callable[[np.ndarray], float]


@dataclasses.dataclass(frozen=True)
class PixelModel:
    """A converted model.

    Attributes:
        name: of its file.
        data: the content of its file.
        run: predicts with it, as an app does.
    """

    name: str
    data: bytes
    run: Run


def convert(classifier: Classifier, reader: readers.BaseReader, model_format: str) -> list[PixelModel]:
    """Converts a model.

    Args:
        classifier: the model.
        reader: returns the pictures that it takes.
        model_format: "litert": in float32, and with weights in int8; "onnx": in float32.

    Raises:
        UserError: if it cannot be converted, or packages are missing.
    """
    pixels = _pixels(reader)
    module = tf.Module()
    module.predict = tf.function(lambda pixels: {"probability": classifier.probability(pixels)}, [pixels])
    module.tracked = [variable.value for variable in classifier.model.weights + classifier.model.seed_states]
    try:
        return _FORMATS[model_format](module)
    except ImportError as error:
        raise UserError(f"--format={model_format}: {error}; pip install -e '.[{model_format}]'") from error
    except Exception as error:  # The converters raise errors of many kinds.
        reason = str(error).strip().split("\n")[0][:300]
        raise UserError(
            f"--format={model_format}: {classifier.spec.model} cannot be converted ({reason}); its operations must be "
            "those of the format; --format=saved_model can hold any"
        ) from error


def _pixels(reader: readers.BaseReader) -> tf.TensorSpec:
    """Returns what a model takes: one picture as a reader returns it, see `readers.scale_images`."""
    images = readers.prepare_graph(reader).structured_outputs[1]
    return tf.TensorSpec([1, *images.shape[1:]], images.dtype, name="pixels")


def _to_litert(module: tf.Module) -> list[PixelModel]:
    models = []
    for name, optimizations in ((_FLOAT32, []), (_INT8, [tf.lite.Optimize.DEFAULT])):
        converter = tf.lite.TFLiteConverter.from_concrete_functions([module.predict.get_concrete_function()], module)
        # Without pictures to measure the ranges of activations, these stay float32; only the weights become int8.
        converter.optimizations = optimizations
        data = converter.convert()
        models.append(PixelModel(name, data, _run_litert(data)))
    return models


def _run_litert(data: bytes) -> Run:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*Warning: tf.lite.Interpreter is deprecated")
        runner = tf.lite.Interpreter(model_content=data).get_signature_runner()
    return lambda pixels: runner(pixels=pixels)["probability"].item()


def _to_onnx(module: tf.Module) -> list[PixelModel]:
    import onnxruntime
    import tf2onnx

    model, _ = tf2onnx.convert.from_function(module.predict, module.predict.input_signature)
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return [PixelModel(_ONNX, data, lambda pixels: session.run(None, {"pixels": pixels})[0].item())]


_FORMATS = {"litert": _to_litert, "onnx": _to_onnx}


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """How many photos each of several models gets right.

    Attributes:
        data: name of the photos.
        photos: how many there are.
        right: for each model, how many it gets right.
    """

    data: str
    photos: int
    right: Sequence[int]


def measure(models: Sequence[PixelModel], reader: readers.BaseReader, shards: readers.Shards, data: str) -> Accuracy:
    """Counts how many photos models get right, one photo at a time.

    Args:
        models: the models.
        reader: returns pictures and labels.
        shards: the photos, which have labels.
        data: their name.
    """
    right = [0] * len(models)
    with terminal.progress_bar(shards.num_examples, " pictures", "measuring") as progress:
        for _, images, labels in readers.make_dataset(reader, shards, batch_size=32):
            for image, label in zip(images.numpy(), labels.numpy()[:, 0], strict=True):
                for i, model in enumerate(models):
                    right[i] += int(is_dog(model.run(image[np.newaxis])) == label)
            progress.update(len(images))
    return Accuracy(data, shards.num_examples, right)


def about(
    classifier: Classifier,
    reader: readers.BaseReader,
    step: int,
    models: Sequence[PixelModel],
    accuracy: Accuracy | None,
) -> dict[str, Any]:
    """Returns what an app must know of models, as the JSON file beside them says it."""
    pixels, spec = _pixels(reader), classifier.spec
    is_own = type(reader) is not readers.CatsVsDogsFeatureReader
    resizing = {"method": spec.resize_method, "size": spec.image_size, "how": _RESIZING[spec.resize_method]}
    return {
        "model": spec.model,
        "step": step,
        "input": {
            "name": pixels.name,
            "shape": pixels.shape.as_list(),
            "dtype": pixels.dtype.name,
            "values": "red, green, blue, 0 to 255" if pixels.dtype == tf.uint8 else "red, green, blue, -1 to 1",
        },
        "resizing": {"method": "that of your own reader, see get_reader in readers.py"} if is_own else resizing,
        "output": {"name": "probability", "shape": [1, 1], "dtype": "float32", "meaning": "probability of a dog"},
        "measured_on": {"data": accuracy.data, "photos": accuracy.photos} if accuracy else None,
        "files": {
            model.name: {
                "bytes": len(model.data),
                "accuracy": accuracy.right[i] / accuracy.photos if accuracy else None,
            }
            for i, model in enumerate(models)
        },
    }


def write(folder: str, models: Sequence[PixelModel], facts: dict[str, Any]) -> None:
    """Writes models and the JSON file about them to a local folder, which must not exist.

    Raises:
        OSError or UserError: if they cannot be written.
    """
    os.makedirs(folder)
    for model in models:
        files.write_bytes(os.path.join(folder, model.name), model.data)
    files.write_json(os.path.join(folder, _ABOUT), facts)


def table(models: Sequence[PixelModel], accuracy: Accuracy | None) -> list[str]:
    """Returns the lines of a table of models, their sizes and, if it is known, their accuracy."""
    rows = [["", "kB", *(["accuracy"] if accuracy else [])]]
    for i, model in enumerate(models):
        scores = [f"{accuracy.right[i] / accuracy.photos:.4f}"] if accuracy else []
        rows.append([model.name, f"{len(model.data) / 1000:,.0f}", *scores])
    return terminal.table(rows)
