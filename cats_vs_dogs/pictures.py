"""One picture: whether its bytes are usable, and the JPEG that goes into a record.

TensorFlow and Pillow are imported only when a picture is checked.
"""

import io
from typing import Any

MAX_PIXELS = 100_000_000  # A file of a few kilobytes can claim enough pixels to fill the memory. No photo comes near.

# The formats that Pillow may open. EPS is not among them: Pillow would run Ghostscript on a stranger's file.
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM")


class BadImage(Exception):
    """A file that cannot become an example. Its message is the reason, as bad_images.csv shows it."""


def usable_jpeg(data: bytes) -> tuple[bytes, str]:
    """Returns a JPEG that the readers can decode.

    Args:
        data: the bytes of any file.

    Returns:
        A pair (bytes, note). For a JPEG that TensorFlow decodes: `data` unchanged and "". For any other picture: a new
        JPEG, RGB, upright, on a white background, and what it was made from, such as "PNG, mode RGBA".

    Raises:
        BadImage: if the file is not a complete picture, or has more than `MAX_PIXELS` pixels.
    """
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
    if is_jpeg and image.mode in ("L", "RGB") and _tensorflow_decodes(data):
        return data, ""
    return _encode_as_jpeg(image)


def _available_formats() -> list[str]:
    """Returns the names in `_FORMATS` that the installed Pillow can open."""
    from PIL import Image

    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]  # Old versions lack AVIF; HEIF needs pillow-heif.


def _tensorflow_decodes(data: bytes) -> bool:
    import tensorflow as tf

    try:
        tf.io.decode_jpeg(data, channels=3)
    except tf.errors.InvalidArgumentError:
        return False
    return True


def _encode_as_jpeg(image: Any) -> tuple[bytes, str]:
    """Returns a Pillow image's first frame as a JPEG, and a description of the original."""
    from PIL import ImageOps

    description = f"{image.format}, mode {image.mode}"
    try:
        upright = ImageOps.exif_transpose(image)  # The new file has no EXIF tag for the orientation.
        buffer = io.BytesIO()
        _to_rgb(upright, image.format).save(buffer, "JPEG", quality=95, subsampling=0)
    except BadImage:
        raise
    except Exception as error:  # A damaged file can make Pillow's decoders raise anything.
        raise BadImage(f"damaged {description}: {str(error) or type(error).__name__}") from error
    return buffer.getvalue(), description


def _to_rgb(image: Any, file_format: str) -> Any:
    """Returns a Pillow image in mode RGB, with transparent pixels on white."""
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        grey = (np.asarray(image) >> 8).astype(np.uint8)  # Pillow would clip 16-bit values at 255 instead of scaling.
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise BadImage(f"{file_format} with 32 bits per pixel: the file does not say which value is white")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _describe_non_picture(data: bytes) -> str:
    """Returns what kind of file these bytes are, given that Pillow cannot open them."""
    start = data[:1024].lstrip().lower()
    if not data:
        return "empty file (0 bytes)"
    if data.startswith(b"\xff\xd8"):
        return "JPEG with a damaged header"
    if start.startswith((b"<!doctype html", b"<html")):
        return "HTML page, perhaps the error message of a download"
    if data[4:8] == b"ftyp":
        return "HEIC, AVIF or video that this Pillow cannot read; save it as JPEG"
    if data.startswith(b"PK\x03\x04"):
        return "a .zip or Office file; if it holds photos, pass it to --images by itself or unpack it"
    return "not a picture, or of an unknown format"
