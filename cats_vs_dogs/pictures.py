"""One picture: whether its bytes are usable, and the JPEG that goes into a record.

The converter writes that JPEG to a shard, and inference.py predicts it. So a picture has the same pixels in both.
TensorFlow and Pillow are imported only when a picture is checked.
"""

import functools
import io
import os
import re
import struct
from typing import Any

MAX_PIXELS = 100_000_000  # A file of a few kilobytes can claim enough pixels to fill the memory. No photo comes near.

# The formats that Pillow may open. EPS is not among them: Pillow would run Ghostscript on a stranger's file.
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM")

# How pictures begin, and the format's name.
NUM_FIRST_BYTES = 12
_BEGINNINGS = (
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG", "PNG"),
    (rb"GIF8", "GIF"),
    (rb"BM.{4}\0\0\0\0", "BMP"),
    (rb"RIFF.{4}WEBP", "WEBP"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF"),
    (rb".{4}ftypavi[fs]", "AVIF"),
    (rb".{4}ftyp(hei|hev|mif1|msf1)", "HEIC"),
    (rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ", "JPEG2000"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL"),
    (rb"P[1-7Ff][ \t\r\n#]", "PPM"),
    (rb"8BPS", "Photoshop file"),
    (rb"\0\0\x01\0", "icon"),
)
_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".gif", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".avif"),
    *(".heic", ".heif", ".jp2", ".j2k", ".jpx", ".jxl", ".ppm", ".pgm", ".pbm", ".pnm", ".psd", ".ico", ".svg"),
)

_SAVE = "save it as JPEG"  # What to do with a good picture of a kind that cannot be read.

_APP1 = 0xE1  # The segment of a JPEG that holds EXIF or XMP.
_START_OF_SCAN = 0xDA
_TENSORFLOW_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_FRAMES = {
    **dict.fromkeys((0xC0, 0xC1, 0xC2, 0xC9, 0xCA), "JPEG"),
    **dict.fromkeys((0xC3, 0xCB, 0xF7), "lossless JPEG"),
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical JPEG"),
}


class BadImage(Exception):
    """A file that cannot become an example. Its message is the reason, as bad_images.csv shows it."""


def format_of(start: bytes) -> str:
    """Returns which format of pictures a file's first `NUM_FIRST_BYTES` show, such as "PNG"; "" if none."""
    return next((name for beginning, name in _BEGINNINGS if re.match(beginning, start, re.DOTALL)), "")


def is_named_as_picture(path: str) -> bool:
    """Whether a file name ends like a picture's. The bytes may be of another kind."""
    return os.path.splitext(path)[1].lower() in _ENDINGS


def usable_jpeg(data: bytes, check_decoding: bool = True) -> tuple[bytes, str]:
    """Returns a JPEG that the readers can decode and that is upright without its EXIF tags, which they ignore.

    Args:
        data: the bytes of any file.
        check_decoding: whether to decode a JPEG that seems to need no change, and to make a new one if only Pillow can
            decode it. False saves that time for a caller who decodes it anyway.

    Returns:
        A pair (bytes, note). For an upright JPEG that TensorFlow decodes: `data` unchanged and "". For any other
        picture: a new JPEG, RGB, upright, on a white background, and what it was made from, such as "PNG, mode RGBA"
        or "JPEG, orientation 6".

    Raises:
        BadImage: if the file is not a complete picture, or has more than `MAX_PIXELS` pixels.
    """
    if _needs_no_change(data) and (not check_decoding or _tensorflow_decodes(data)):
        return data, ""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=_available_formats())  # Reads the header only.
    except Image.DecompressionBombError as error:
        raise BadImage(f"more than {MAX_PIXELS} pixels") from error
    except Exception as error:  # A damaged file can make Pillow's parsers raise anything.
        raise BadImage(_describe_non_picture(data)) from error
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"{image.width}x{image.height}: more than {MAX_PIXELS} pixels")
    is_jpeg = image.format in ("JPEG", "MPO")  # MPO: several JPEGs in one file, written by some cameras.
    is_upright_jpeg = is_jpeg and image.mode in ("L", "RGB") and _orientation(image) == 1
    if is_upright_jpeg and (not check_decoding or _tensorflow_decodes(data)):
        return data, ""
    try:
        return _encode_as_jpeg(image)
    except BadImage as error:
        unusual = _unusual_jpeg(data)
        raise BadImage(unusual) if unusual else error from error


def _needs_no_change(data: bytes) -> bool:
    """Whether a JPEG's header says that TensorFlow shows it as viewers do. Takes far less time than Pillow's look."""
    frame, bits, num_pixels, num_colours, has_app1 = _jpeg_header(data)
    return (
        frame in _TENSORFLOW_FRAMES
        and bits == 8
        and 0 < num_pixels <= MAX_PIXELS
        and num_colours in (1, 3)
        and not has_app1
    )


def _jpeg_header(data: bytes) -> tuple[int, int, int, int, bool]:
    """Returns what a JPEG's header says: kind of frame, bits per colour, pixels, colours, whether it has EXIF or XMP.

    All are 0 if the data are no JPEG, or its header is not as expected.
    """
    frame, position, has_app1 = (0, 0, 0, 0), 2, False
    while data.startswith(b"\xff\xd8") and position + 10 <= len(data) and data[position] == 0xFF:
        marker, length = struct.unpack_from(">xBH", data, position)
        if marker == _START_OF_SCAN:
            return *frame, has_app1
        has_app1 |= marker == _APP1
        if marker in _FRAMES:
            bits, height, width, num_colours = struct.unpack_from(">BHHB", data, position + 4)
            frame = marker, bits, height * width, num_colours
        position += 2 + length
    return 0, 0, 0, 0, False


def _unusual_jpeg(data: bytes) -> str:
    """Returns what is said of a JPEG of a kind that is hardly ever used; "" for others."""
    frame, bits, *_ = _jpeg_header(data)
    kind = _FRAMES.get(frame, "JPEG")
    if kind == "JPEG" and bits in (0, 8):
        return ""
    return f"{kind} with {bits} bits per colour, which cannot be read; save it as a usual JPEG"


@functools.cache
def _available_formats() -> tuple[str, ...]:
    """Returns the names in `_FORMATS` that the installed Pillow can open."""
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)  # Old versions lack AVIF; HEIF needs pillow-heif.


def _tensorflow_decodes(data: bytes) -> bool:
    import tensorflow as tf

    try:
        tf.io.decode_jpeg(data, channels=3)
    except tf.errors.InvalidArgumentError:
        return False
    return True


def _orientation(image: Any) -> int:
    """Returns how a Pillow image must be turned, as EXIF or XMP says: 1 (it is upright) to 8."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # Damaged EXIF can make Pillow raise anything. Viewers ignore it.
        return 1
    return orientation if orientation in range(2, 9) else 1


def _turn_upright(image: Any, orientation: int) -> Any:
    """Does what `ImageOps.exif_transpose` does, except that it writes no EXIF, which fails for some cameras' tags."""
    from PIL.Image import Transpose

    flips = (Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE)
    turns = (Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90)
    return image if orientation == 1 else image.transpose((*flips, *turns)[orientation - 2])


def _encode_as_jpeg(image: Any) -> tuple[bytes, str]:
    """Returns a Pillow image's first frame as a JPEG, and a description of the original."""
    description = f"{image.format}, mode {image.mode}"
    try:
        image.load()  # Turns a TIFF upright, and finds the EXIF of a PNG.
        orientation = _orientation(image)
        rgb = _turn_upright(_to_rgb(image, image.format), orientation)
        buffer = io.BytesIO()
        # A higher quality would bring no nearer what TensorFlow decodes: its fast transform is made for up to this one.
        rgb.save(buffer, "JPEG", quality=95, subsampling=0)
    except BadImage:
        raise
    except Exception as error:  # A damaged file can make Pillow's decoders raise anything.
        state = "damaged" if image.format in ("JPEG", "MPO", "PNG", "GIF", "WEBP") else "damaged or unusual"
        raise BadImage(f"{state} {description}: {str(error) or type(error).__name__}") from error
    if orientation != 1:
        is_usual = image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")
        description = f"{image.format if is_usual else description}, orientation {orientation}"
    return buffer.getvalue(), description


def _to_rgb(image: Any, file_format: str) -> Any:
    """Returns a Pillow image in mode RGB, with transparent pixels on white."""
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        values = np.asarray(image)
        grey = Image.fromarray((values >> 8).astype(np.uint8))  # Pillow would clip values at 255 instead of scaling.
        if "transparency" in image.info:
            grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
        image = grey
    if image.mode in ("I", "F"):
        raise BadImage(f"{file_format} with 32 bits per pixel: the file does not say which value is white; {_SAVE}")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _describe_non_picture(data: bytes) -> str:
    """Returns what kind of file these bytes are, given that Pillow cannot open them."""
    start = data[:1024].lstrip().lower()
    if not data:
        return "empty file (0 bytes)"
    name = format_of(data)
    if name == "JPEG":
        return _unusual_jpeg(data) or "JPEG with a damaged header"
    if name in _available_formats():
        return f"{name} with a damaged or unusual header"
    if name:
        return f"{name}, which cannot be read; {_SAVE}"
    if b"<svg" in start:
        return f"SVG drawing, which cannot be read; {_SAVE}"
    if start.startswith((b"<!doctype html", b"<html")):
        return "HTML page, perhaps the error message of a download"
    if data[4:8] == b"ftyp":
        return "a video, or a picture of an unknown format; save one picture as JPEG"
    if data.startswith(b"PK\x03\x04"):
        return "a .zip or Office file; if it holds photos, give it by itself, or unpack it"
    return "not a picture, or of an unknown format"
