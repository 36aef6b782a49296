"""The signature image_bytes of an export: the pixels and the refusals of the converter, without Pillow."""

import base64
import io
import json

import numpy as np
import pytest
import tensorflow as tf
from conftest import jpeg
from photo_files import encode
from PIL import Image

from cats_vs_dogs import bad_examples, decoding, image_bytes, pictures, readers, tfrecords
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.config import ModelSpec
from cats_vs_dogs.export_model import ModelExporter

SIZE = 16
READER = readers.CatsVsDogsTestFeatureReader(2, SIZE, "area")
NOISE = np.random.default_rng(0)
RGB = Image.open(io.BytesIO(jpeg(90, 70, seed=1)))


def with_orientation(number, big_endian=False, is_long=False):
    if big_endian:
        value = b"\x04\0\0\0\x01\0\0\0" + bytes([number]) if is_long else b"\x03\0\0\0\x01\0" + bytes([number, 0, 0])
        entry = b"\x01\x12\0" + value
        return b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + entry + b"\0\0\0\0"
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "A photo", number
    return exif.tobytes()


def with_alpha(mode):
    image = RGB.convert("RGBA")
    image.putalpha(Image.fromarray(NOISE.integers(0, 256, (90, 70), dtype=np.uint8)))
    return image.convert(mode)


GOOD = {
    "JPEG": jpeg(90, 70),
    "small": jpeg(5, 9),
    "grey": encode(RGB.convert("L"), "JPEG"),
    "progressive": encode(RGB, "JPEG", progressive=True),
    **{f"EXIF {number}": encode(RGB, "JPEG", exif=with_orientation(number)) for number in range(10)},
    **{f"big-endian {number}": encode(RGB, "JPEG", exif=with_orientation(number, True)) for number in (1, 6)},
    "big-endian, of four bytes": encode(RGB, "JPEG", exif=with_orientation(6, True, is_long=True)),
    "EXIF in PNG": encode(RGB, "PNG", exif=with_orientation(8)),
    "XMP": encode(RGB, "JPEG", xmp=b'<x tiff:Orientation="6" y="\xc3\xa9"/>'),
    "damaged EXIF": encode(RGB, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\0\x08\0\x01"),
    "short EXIF": encode(RGB, "JPEG", exif=b"Exif\0\0MM"),
    "empty EXIF": encode(RGB, "JPEG", exif=b"Exif\0\0"),
    **{f"PNG {mode}": encode(RGB.convert(mode), "PNG") for mode in ("RGB", "L", "P", "1")},
    **{f"PNG {mode}": encode(with_alpha(mode), "PNG") for mode in ("RGBA", "LA")},
    "PNG of 4 colours": encode(RGB.quantize(4), "PNG"),
    "PNG of 4 colours, one transparent": encode(RGB.quantize(4), "PNG", transparency=1),
    "PNG, transparent grey": encode(RGB.convert("L"), "PNG", transparency=100),
    "PNG of 16 bits": encode(Image.fromarray(NOISE.integers(0, 65536, (30, 40), dtype=np.uint16)), "PNG"),
}
PNG = GOOD["PNG RGBA"]
BAD = {
    "empty": (b"", image_bytes.NOT_A_PICTURE),
    "text": (b"no picture", image_bytes.NOT_A_PICTURE),
    "WebP": (encode(RGB, "WEBP"), image_bytes.NOT_A_PICTURE),
    "CMYK": (encode(RGB.convert("CMYK"), "JPEG"), image_bytes.FOUR_COLOURS),
    "JPEG, 3 bytes": (GOOD["JPEG"][:3], image_bytes.DAMAGED),
    "JPEG, 30 bytes": (GOOD["JPEG"][:30], image_bytes.DAMAGED),
    "JPEG, half": (GOOD["JPEG"][: len(GOOD["JPEG"]) // 2], image_bytes.DAMAGED),
    "PNG, 20 bytes": (PNG[:20], image_bytes.DAMAGED),
    "PNG, half": (PNG[: len(PNG) // 2], image_bytes.DAMAGED),
    "PNG that claims 2**32 pixels": (PNG[:16] + b"\0\1\0\0\0\1\0\0" + PNG[24:], decoding.TOO_LARGE),
}


@pytest.fixture(scope="module")
def read():
    prepare = readers.prepare_graph(READER)
    return tf.function(lambda files: image_bytes.read_pictures(prepare, files), [tf.TensorSpec([None], tf.string)])


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("export") / "step_1")
    ModelExporter(Classifier(ModelSpec("LogisticModel", {}, "CrossEntropyLoss", {}, SIZE, "area"))).export_model(folder)
    return folder


def test_pictures_have_the_pixels_of_the_converter(read):
    images, problems = read(tf.constant(list(GOOD.values())))
    jpegs = [pictures.usable_jpeg(data)[0] for data in GOOD.values()]
    expected = READER.decode_images(tf.constant(jpegs))
    for name, problem, image, its_expected in zip(GOOD, problems.numpy(), images, expected, strict=True):
        assert problem == b"", name
        np.testing.assert_array_equal(image, its_expected, err_msg=name)


def test_a_bad_picture_has_a_reason_and_does_not_keep_others_from_being_read(read):
    files = [jpeg(), *(data for data, _ in BAD.values()), jpeg()]
    images, problems = read(tf.constant(files))
    for name, (_, expected), problem in zip(BAD, BAD.values(), problems.numpy()[1:-1], strict=True):
        assert expected in problem.decode(), name
    assert problems[0] == problems[-1] == b""
    alone = READER.decode_images(tf.constant([jpeg()]))[0]
    np.testing.assert_array_equal(images[0], alone)
    np.testing.assert_array_equal(images[-1], alone)
    assert [len(column) for column in read(tf.constant([], tf.string))] == [0, 0]


class OtherReader(readers.CatsVsDogsFeatureReader):
    """One as a contestant writes it: it returns other pixels, and labels."""

    def prepare_serialized_examples(self, serialized_examples):
        ids, images, labels = super().prepare_serialized_examples(serialized_examples)
        return ids, -images, labels


def test_a_reader_of_your_own_reads_them_too(monkeypatch, tmp_path):
    monkeypatch.setattr(readers, "get_reader", lambda is_labelled, size, method: OtherReader(2, size, method))
    classifier = Classifier(ModelSpec("LogisticModel", {}, "CrossEntropyLoss", {}, SIZE, "area"))
    ModelExporter(classifier).export_model(str(tmp_path / "step_1"))
    outputs = tf.saved_model.load(str(tmp_path / "step_1")).signatures["image_bytes"](image_bytes=tf.constant([jpeg()]))
    images = -readers.scale_images(READER.decode_images(tf.constant([jpeg()])))
    np.testing.assert_allclose(outputs["predictions"][:, 1:], classifier.probability(images), atol=2e-6, rtol=0)


@pytest.mark.parametrize("number", [1, 7, 100])
def test_the_answers_are_those_of_records(model_dir, number):
    loaded = tf.saved_model.load(model_dir)
    files = [jpeg(seed=i) for i in range(number)]
    records = [tfrecords.make_example(data, "", None) for data in files]
    outputs = loaded.signatures["image_bytes"](image_bytes=tf.constant(files, tf.string))
    expected = loaded.signatures["serving_default"](example_bytes=tf.constant(records, tf.string))
    assert set(outputs) == {*expected, "problem"}
    for name, value in expected.items():
        np.testing.assert_array_equal(outputs[name], value)


def test_a_json_request_as_tensorflow_serving_reads_it(model_dir):
    """TensorFlow Serving decodes {"b64": ...}; an instance that is no object is the only input."""
    files = [jpeg(), b"no picture", PNG]
    body = json.dumps(
        {"signature_name": "image_bytes", "instances": [{"b64": base64.b64encode(data).decode()} for data in files]}
    )
    request = json.loads(body)
    signature = tf.saved_model.load(model_dir).signatures[request["signature_name"]]
    (name,) = signature.structured_input_signature[1]
    assert name.endswith("_bytes")  # Vertex AI decodes base64 only for such names.
    outputs = signature(**{name: tf.constant([base64.b64decode(one["b64"]) for one in request["instances"]])})
    assert all(len(column) == len(files) for column in outputs.values())
    assert np.isnan(outputs["predictions"].numpy()).tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert [bool(problem) for problem in outputs["problem"].numpy()] == [False, True, False]


@pytest.mark.parametrize("data", [jpeg(), PNG, b"text", b"\n\xff\xff\xff\xff\x0f", tf.io.encode_base64(jpeg()).numpy()])
def test_what_is_no_record_is_named_by_its_number(model_dir, data):
    serving = tf.saved_model.load(model_dir).signatures["serving_default"]
    good = tfrecords.make_example(jpeg(), "1.jpg", None)
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        serving(example_bytes=tf.constant([good, data]))
    assert "cannot parse as a tf.train.Example (the signature image_bytes takes JPEG and PNG files)" in str(
        caught.value
    )
    assert "example_bytes] [1]" in str(caught.value) and "\\x" not in str(caught.value)
    assert bad_examples.describe_error(caught.value) == "it is not a tf.train.Example"
    with pytest.raises(tf.errors.InvalidArgumentError, match="could not be found"):
        serving(example_bytes=tf.constant([b""]))
