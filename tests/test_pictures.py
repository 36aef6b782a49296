"""Tests of `usable_jpeg`, on small pictures drawn here."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tensorflow as tf
from conftest import jpeg
from photo_files import JPEG, encode, picture
from PIL import Image

from cats_vs_dogs import decoding, pictures


def decode(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def png_header(width, height):
    """Returns a PNG of a few bytes that claims to be large."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize(
    ("image", "file_format", "kwargs", "expected"),
    [
        (picture(), "PNG", {}, (200, 120, 40)),
        (picture(), "BMP", {}, (200, 120, 40)),
        (picture(), "WEBP", {"lossless": True}, (200, 120, 40)),
        (picture(), "TIFF", {}, (200, 120, 40)),
        (picture(), "PPM", {}, (200, 120, 40)),
        (picture("CMYK"), "JPEG", {"quality": 95}, (200, 120, 40)),
        (picture("P", (204, 102, 51)), "GIF", {"save_all": True, "append_images": [picture("P")]}, (204, 102, 51)),
        (Image.new("RGBA", (60, 40), (0, 0, 0, 0)), "PNG", {}, (255, 255, 255)),
        (Image.new("LA", (60, 40), (0, 128)), "PNG", {}, (127, 127, 127)),
        (Image.new("P", (60, 40), 0), "PNG", {"transparency": 0}, (255, 255, 255)),
        (Image.fromarray(np.full((40, 60), 32768, np.uint16)), "PNG", {}, (128, 128, 128)),
    ],
)
def test_other_formats_become_jpegs(image, file_format, kwargs, expected):
    data, note = pictures.usable_jpeg(encode(image, file_format, **kwargs))
    assert note.startswith(file_format)
    pixels = tf.io.decode_jpeg(data, channels=3).numpy().astype(int)
    assert pixels.shape == (40, 60, 3)
    assert np.abs(pixels - expected).max() <= 3


def test_usable_jpegs_are_not_changed():
    for data in (
        JPEG,
        encode(picture("L"), "JPEG"),
        encode(picture(), "JPEG", progressive=True),
        JPEG + b"trailing bytes",
        encode(picture(), "JPEG", exif=b"Exif\0\0nonsense"),
    ):
        assert pictures.usable_jpeg(data) == (data, "")


def test_reencoding_keeps_the_pixels_and_applies_the_orientation():
    image = Image.open(io.BytesIO(jpeg(40, 60, seed=3)))
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: viewers rotate the picture by 90 degrees clockwise.
    data, _ = pictures.usable_jpeg(encode(image, "PNG", exif=exif))
    assert np.abs(decode(data) - np.rot90(np.asarray(image).astype(int), -1)).mean() < 1.5


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello", "not a picture"),
        (b"<!DOCTYPE html><p>404", "HTML"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"PK\x03\x04zip", ".zip"),
        (JPEG[:-100], "damaged JPEG"),
        (JPEG[:50], "damaged"),
        (encode(picture(), "PNG")[:-40], "damaged PNG"),
        (png_header(12_000, 12_000), "12000x12000: more than 100000000 pixels"),
        (png_header(60_000, 60_000), "more than 100000000 pixels"),
        (encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "32 bits"),
    ],
)
def test_unusable_bytes_have_a_reason(data, reason):
    with pytest.raises(pictures.BadImage, match=reason):
        pictures.usable_jpeg(data)


def test_a_jpeg_that_is_too_large_is_not_decoded(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    monkeypatch.setattr(tf.io, "decode_jpeg", None)
    with pytest.raises(pictures.BadImage, match="60x40: more than 100 pixels"):
        pictures.usable_jpeg(JPEG)


def test_a_jpeg_that_only_pillow_can_decode_is_reencoded(monkeypatch):
    monkeypatch.setattr(pictures, "_tensorflow_decodes", lambda data: False)
    data, note = pictures.usable_jpeg(JPEG)
    assert data != JPEG and note == "JPEG, mode RGB"


def test_decoding_has_the_same_limit():
    assert decoding.MAX_PIXELS is pictures.MAX_PIXELS


def test_importing_the_module_does_not_import_tensorflow():
    code = "import sys, cats_vs_dogs.pictures; assert not {'tensorflow', 'PIL', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")
