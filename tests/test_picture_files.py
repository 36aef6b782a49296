"""A picture has the same pixels as a file and in a shard, and they are those that Pillow shows."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from conftest import jpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from photo_files import encode
from PIL import Image, ImageOps
from test_readers import files_of, ids_of

from cats_vs_dogs import bad_examples, pictures, readers, tfrecords
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
FILES = dict.fromkeys("abcdefgh", b"")
BATCHES = PictureBatches(READER, pictures_of(FILES), len(FILES), FILES.get)  # Built once, to be quick.
prepare = tf.function(readers.prepare_function(READER), input_signature=[tf.TensorSpec([None], tf.string)])


def from_files(data):
    """Returns the images of eight picture files, uint8 [8, 8, 8, 3]."""
    FILES.update(zip(FILES, data, strict=True))
    return next(iter(BATCHES))[1].numpy()


def from_shards(data):
    """Returns the images of the records that the converter writes for picture files."""
    records = [tfrecords.make_example(pictures.usable_jpeg(one)[0], "a", None) for one in data]
    return prepare(tf.constant(records))[1].numpy()


def averages(covered):
    """Returns the matrix [8, covered] whose rows average the pixels that each of 8 pixels covers."""
    edges = np.arange(9) * covered / 8
    starts, ends = (np.clip(edges[side][:, None] - np.arange(covered), 0, 1) for side in (slice(8), slice(1, 9)))
    return (ends - starts) / (covered / 8)


def as_pillow_shows(data):
    """Returns the average of what Pillow decodes, upright and on white, float [8, 8, 3]."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode in ("I", "I;16"):  # Pillow would clip the values.
        transparent = np.asarray(image) == image.info.get("transparency", -1)
        image = Image.fromarray(np.where(transparent, 255, np.asarray(image) // 256).astype(np.uint8))
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, image).convert("RGB"), float)
    return np.einsum("ih,hwc,jw->ijc", averages(pixels.shape[0]), pixels, averages(pixels.shape[1]))


# How to write a picture of each format: Pillow's options, and the modes it can be written in.
FORMATS = {
    "JPEG": ({"quality": 90, "subsampling": 0}, ("L", "RGB", "CMYK", "YCbCr")),
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
SIZES = st.one_of(st.sampled_from([(1, 1), (3, 200), (200, 3)]), st.tuples(st.integers(1, 200), st.integers(1, 200)))


def drawn(mode, size, seed):
    """Returns a Pillow image of a mode: no two corners are alike, and colours and transparency vary everywhere."""
    width, height = size
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 256, (2, 2, 4))
    down, across = (np.linspace(0, 1, side) for side in (height, width))
    weights = np.stack([1 - down, down], axis=-1), np.stack([1 - across, across], axis=-1)
    pixels = np.einsum("hi,wj,ijc->hwc", *weights, corners) + rng.integers(-4, 5, (height, width, 4))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode in ("LA", "RGBA"):
        return image.convert(mode)
    if mode == "PA":
        palette = image.convert("RGB").quantize(16).convert("PA")
        palette.putalpha(image.getchannel("A"))
        return palette
    return image.convert("RGB").convert(mode)


def file_of(case, size, orientation, transparent, seed):
    """Returns the bytes of a picture. With `transparent`, one colour is transparent, if the format allows it."""
    name, mode = case
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


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(
    st.lists(
        st.builds(
            file_of,
            st.sampled_from(CASES),
            size=SIZES,
            orientation=st.integers(0, 8),
            transparent=st.booleans(),
            seed=st.integers(0, 99),
        ),
        min_size=len(FILES),
        max_size=len(FILES),
    )
)
def test_any_picture_has_the_same_pixels_as_a_file_and_in_a_shard(data):
    images = from_files(data)
    np.testing.assert_array_equal(images, from_shards(data))
    for image, one in zip(images, data, strict=True):
        assert np.abs(image - as_pillow_shows(one)).mean() < 2


def segment(marker, content):
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_segment(data, marker, content):
    """Returns a JPEG with one more segment at its beginning."""
    return data[:2] + segment(marker, content) + data[2:]


def without_segment(data, marker):
    start = data.index(bytes([0xFF, marker]))
    return data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]


SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6  # orientation
XMP = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'
ODD_EXIF = (
    b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\1\0\x06\0\0\x01\x0f\0\x07\xff\xff\xff\xff\0\0\0\0\0\0\0\0"
)
PHOTO = encode(drawn("RGB", (64, 128), 1), "JPEG")
CMYK = encode(drawn("CMYK", (64, 64), 2), "JPEG", quality=90)
ARITHMETIC = (  # A grey of 8 x 8 pixels that Pillow cannot write.
    *(
        b"\xff\xd8",
        segment(0xDB, b"\0" + bytes([1] * 64)),
        segment(0xC9, struct.pack(">BHHB3s", 8, 8, 8, 1, b"\1\x11\0")),
    ),
    *(segment(0xDA, b"\1\1\0\0\x3f\0"), b"\x5a\x12\xff\xd9"),
)
UNUSUAL = {
    "XMP": with_segment(PHOTO, 0xE1, XMP % 8),
    "XMP, but EXIF says otherwise": with_segment(with_segment(PHOTO, 0xE1, XMP % 8), 0xE1, SIDEWAYS.tobytes()),
    "XMP upright": with_segment(PHOTO, 0xE1, XMP % 1),
    "XMP after the frame": PHOTO.replace(b"\xff\xda", segment(0xE1, XMP % 3) + b"\xff\xda", 1),
    "EXIF after other segments": encode(
        Image.open(io.BytesIO(PHOTO)), "JPEG", exif=SIDEWAYS, icc_profile=b"x" * 70_000
    ),
    "EXIF with tags that cannot be written": with_segment(PHOTO, 0xE1, ODD_EXIF),
    "EXIF without sense": with_segment(PHOTO, 0xE1, b"Exif\0\0nonsense"),
    "EXIF of a PNG without sense": encode(drawn("RGBA", (64, 64), 3), "PNG", exif=b"Exif\0\0nonsense"),
    "orientation 9": with_segment(PHOTO, 0xE1, ODD_EXIF.replace(b"\0\x06\0\0\x01\x0f", b"\0\x09\0\0\x01\x0f")),
    "CMYK": CMYK,
    "CMYK without Adobe's marker": without_segment(CMYK, 0xEE),
    "RGB with Adobe's marker": with_segment(PHOTO, 0xEE, b"Adobe\0\x64\0\0\0\0\0"),
    "arithmetic": b"".join(ARITHMETIC),
    "padded": PHOTO[:2] + b"\xff\xff" + PHOTO[2:],
    "more bytes after it": PHOTO + b"PK\3\4" * 99,
}


def test_unusual_pictures():
    for name, data in UNUSUAL.items():
        images = from_files([data] * 8)
        np.testing.assert_array_equal(images, from_shards([data] * 8), name)
        if "without sense" in name or "cannot be written" in name:  # Pillow's exif_transpose raises an error.
            continue
        expected = as_pillow_shows(data)
        assert np.abs(images[0] - expected).mean() < 2, name


def test_damaged_exif_turns_nothing_and_odd_exif_does():
    upright, turned = (
        np.asarray(Image.open(io.BytesIO(PHOTO)).rotate(angle, expand=True), float) for angle in (0, -90)
    )
    for name, pixels in (("EXIF without sense", upright), ("EXIF with tags that cannot be written", turned)):
        expected = np.einsum("ih,hwc,jw->ijc", averages(pixels.shape[0]), pixels, averages(pixels.shape[1]))
        assert np.abs(from_files([UNUSUAL[name]] * 8)[0] - expected).mean() < 2


def test_what_only_pillow_decodes_is_the_same_both_ways(monkeypatch):
    data = [PHOTO, b"\xff\xd8only Pillow"] * 4
    usable = pictures.usable_jpeg

    def usable_jpeg(data, check_decoding=True):
        if data in (PHOTO, b"") or not check_decoding:
            return data, ""
        return usable(encode(drawn("RGB", (64, 64), 3), "PNG"))

    monkeypatch.setattr("cats_vs_dogs.picture_files.usable_jpeg", usable_jpeg)
    images = from_files(data)
    np.testing.assert_array_equal(images[::2], from_shards(data[::2]))
    np.testing.assert_array_equal(images[1], from_shards([encode(drawn("RGB", (64, 64), 3), "PNG")])[0])


def test_a_reader_of_ones_own_gets_the_same_records():
    class LengthReader(readers.BaseReader):
        def prepare_serialized_examples(self, serialized_examples):
            return serialized_examples, tf.strings.length(serialized_examples)

    records = [
        tfrecords.make_example(pictures.usable_jpeg(one)[0], name, None) for name, one in (("a", PHOTO), ("b", CMYK))
    ]
    read = {"x/a": PHOTO, "x/b": CMYK}.get
    (batch,) = PictureBatches(LengthReader(), pictures_of(["x/a", "x/b"]), 5, read)
    assert batch[0].numpy().tolist() == records


def patch_frame(data, marker, bits):
    start = data.index(b"\xff\xc0")
    return data[: start + 1] + bytes([marker]) + data[start + 2 : start + 4] + bytes([bits]) + data[start + 5 :]


UNSUPPORTED = {
    "a.heic": (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC, which cannot be read; save it as JPEG"),
    "b.jxl": (b"\xff\x0a" + bytes(50), "JPEG XL, which cannot be read; save it as JPEG"),
    "c.jpg": (
        patch_frame(PHOTO, 0xC1, 12),
        "JPEG with 12 bits per colour, which cannot be read; save it as a usual JPEG",
    ),
    "d.jpg": (
        patch_frame(PHOTO, 0xC3, 8),
        "lossless JPEG with 8 bits per colour, which cannot be read; save it as a usual",
    ),
    "e.psd": (b"8BPS\0\1" + bytes(50), "Photoshop file, which cannot be read; save it as JPEG"),
    "f.svg": (b'<?xml version="1.0"?><svg>', "SVG drawing, which cannot be read; save it as JPEG"),
    "g.tif": (
        encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"),
        "TIFF with 32 bits per pixel: the file does",
    ),
}


def test_a_good_picture_of_an_unsupported_kind_is_not_called_damaged(monkeypatch):
    monkeypatch.setattr(pictures, "_available_formats", lambda: ("JPEG", "TIFF"))
    read = {name: data for name, (data, _) in UNSUPPORTED.items()}.get
    found = list(bad_examples.find_bad_pictures(READER, list(UNSUPPORTED), read=read))
    assert [bad[0] for bad in found] == list(UNSUPPORTED)
    for name, _, _, reason in found:
        assert reason.startswith(UNSUPPORTED[name][1])
        with pytest.raises(pictures.BadImage) as error:  # As bad_images.csv shows it.
            pictures.usable_jpeg(UNSUPPORTED[name][0])
        assert str(error.value) == reason
    shards = pictures_of(UNSUPPORTED)
    with pytest.raises(bad_examples.UserError) as error, bad_examples.explain_picture_errors(READER, shards, read):
        list(PictureBatches(READER, shards, 8, read))
    assert str(error.value).startswith(
        "a.heic: HEIC, which cannot be read; save it as JPEG; or pass --bad_examples=skip"
    )
