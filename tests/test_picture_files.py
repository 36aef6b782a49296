"""A picture has the same pixels as a file, in a folder, in a .zip file and in a shard, and they are those that Pillow shows."""

import io
import itertools

import numpy as np
import pytest
import tensorflow as tf
from conftest import jpeg, write_shards
from hypothesis import example, given, settings
from hypothesis import strategies as st
from photo_files import encode, picture, write_folder, write_zip
from PIL import Image, ImageOps
from test_readers import files_of, ids_of

from cats_vs_dogs import convert_images_to_tfrecords, photo_sources, pictures, readers, tfrecords
from cats_vs_dogs.picture_files import PictureBatches
from cats_vs_dogs.readers import Shards


def pictures_of(files):
    return Shards(dict.fromkeys(files, 1))


def test_plain_pictures(tmp_path):
    reader = readers.CatsVsDogsTestFeatureReader(image_size=8)
    (tmp_path / "a").mkdir()
    (tmp_path / "1.jpg").write_bytes(jpeg())
    Image.new("RGBA", (9, 5), (255, 0, 0, 255)).save(tmp_path / "2.png")
    Image.new("L", (9, 5), 128).save(tmp_path / "3.gif")
    Image.new("RGB", (9, 5), (0, 0, 255)).save(tmp_path / "a" / "4.bmp")
    files = files_of(str(tmp_path / "*.*"))
    assert ids_of(PictureBatches(reader, pictures_of(files), 2)) == [["1.jpg", "2.png"], ["3.gif"]]
    files.append(str(tmp_path / "a" / "4.bmp"))
    batches = list(PictureBatches(reader, pictures_of(files), 2))
    assert list(batches[1][0].numpy()) == [b"3.gif", b"a/4.bmp"]
    np.testing.assert_allclose(batches[0][1][1], np.broadcast_to([255, 0, 0], (8, 8, 3)), atol=2)
    np.testing.assert_allclose(batches[1][1][1], np.broadcast_to([0, 0, 255], (8, 8, 3)), atol=2)


# ---- The same pixels whichever way they come in.

READER = readers.CatsVsDogsTestFeatureReader(image_size=8)


def from_file(data):
    return next(iter(PictureBatches(READER, pictures_of(["a"]), 1, lambda path: data)))[1].numpy()[0]


prepare = tf.function(readers.prepare_function(READER), input_signature=[tf.TensorSpec([None], tf.string)])


def from_shard(data):
    record = tfrecords.make_example(pictures.usable_jpeg(data)[0], "a", None)
    return prepare(tf.constant([record]))[1].numpy()[0]


def averages(covered):
    """Returns the matrix [8, covered] whose rows average the pixels that each of 8 pixels covers."""
    edges = np.arange(9) * covered / 8
    starts, ends = (np.clip(edges[side][:, None] - np.arange(covered), 0, 1) for side in (slice(8), slice(1, 9)))
    return (ends - starts) / (covered / 8)


def as_pillow_shows(data):
    """Returns the average of what Pillow decodes, upright and on white, [8, 8, 3] float."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode in ("I", "I;16"):
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, image).convert("RGB"), float)
    return np.einsum("ih,hwc,jw->ijc", averages(pixels.shape[0]), pixels, averages(pixels.shape[1]))


# How to write a picture of each format: Pillow's options, and the modes it can be written in.
FORMATS = {
    "JPEG": ({"quality": 95, "subsampling": 0}, ("L", "RGB", "CMYK", "YCbCr")),
    "progressive": ({"format": "JPEG", "quality": 90, "progressive": True}, ("L", "RGB", "CMYK")),
    "MPO": ({"save_all": True}, ("L", "RGB")),
    "PNG": ({}, ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    "GIF": ({}, ("1", "L", "P", "RGB", "RGBA")),
    "animated GIF": ({"format": "GIF", "save_all": True}, ("L", "P", "RGB")),
    "BMP": ({}, ("1", "L", "P", "RGB", "RGBA")),
    "TIFF": ({"compression": "tiff_lzw"}, ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "CMYK", "LAB")),
    "WEBP": ({"lossless": True, "exact": True}, ("L", "RGB", "RGBA", "P")),
    "lossy WEBP": ({"format": "WEBP"}, ("RGB", "RGBA")),
    "animated WEBP": ({"format": "WEBP", "save_all": True}, ("RGB", "RGBA")),
    "PPM": ({}, ("1", "L", "RGB", "I;16")),
    "JPEG2000": ({}, ("L", "LA", "RGB", "RGBA", "I;16")),
}
CASES = [(name, mode) for name, (_, modes) in FORMATS.items() for mode in modes]
SIZES = [
    (1, 1),
    (3, 200),
    (200, 3),
    (13, 11),
    (64, 48),
    (48, 96),
]  # No block of pixels that libjpeg averages is cut off.


def drawn(mode, size, seed):
    """Returns a Pillow image of a mode: no two corners are alike, and colours and transparency vary everywhere."""
    width, height = size
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 256, (2, 2, 4))
    down, across = (np.linspace(0, 1, side) for side in (height, width))
    weights = np.stack([1 - down, down], axis=-1), np.stack([1 - across, across], axis=-1)
    pixels = np.einsum("hi,wj,ijc->hwc", *weights, corners) + rng.integers(-9, 10, (height, width, 4))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode == "PA":
        palette = image.convert("RGB").quantize(16).convert("PA")
        palette.putalpha(image.getchannel("A"))
        return palette
    if mode in ("LA", "RGBA"):
        return image.convert(mode)
    return image.convert("RGB").convert(mode)


def file_of(name, mode, size, orientation, transparent, seed):
    """Returns the bytes of a picture; `transparent` makes one colour transparent where a file without alpha allows it."""
    options = {"format": name, **FORMATS[name][0]}
    image = drawn(mode, size, seed)
    if options.get("save_all"):
        options["append_images"] = [drawn(mode, size, seed + 1)]
    if transparent and options["format"] in ("PNG", "GIF") and mode in ("1", "L", "P", "RGB", "I;16"):
        pixel = image.getpixel((0, 0))
        if not (mode == "RGB" and options["format"] == "GIF"):
            options["transparency"] = pixel
    if options["format"] in ("JPEG", "PNG", "WEBP", "TIFF", "MPO") and orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    return encode(image, options.pop("format"), **options)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.sampled_from(CASES),
    st.sampled_from(SIZES),
    st.integers(0, 8),
    st.booleans(),
    st.integers(0, 5),
)
def test_any_picture_has_the_same_pixels_as_a_file_and_in_a_shard(case, size, orientation, transparent, seed):
    data = file_of(*case, size, orientation, transparent, seed)
    pixels = from_file(data)
    np.testing.assert_array_equal(pixels, from_shard(data))
    assert np.abs(pixels - as_pillow_shows(data)).mean() < 2
