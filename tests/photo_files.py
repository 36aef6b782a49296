"""Makes what the tests of the photo converter read: pictures of many formats, folders and .zip files of them."""

import io
import zipfile

from conftest import jpeg
from PIL import Image

JPEG = jpeg()


def picture(mode="RGB", colour=(200, 120, 40), size=(60, 40)):
    """Returns a Pillow image of one colour."""
    return Image.new("RGB", size, colour).convert(mode)


def encode(image, file_format, **kwargs):
    """Returns the bytes of a Pillow image's file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **kwargs)
    return buffer.getvalue()


def write_folder(folder, files):
    """Writes files, {path relative to the folder: bytes}, and returns the folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_zip(path, files):
    """Writes a .zip file of files, {name: bytes}, and returns its path."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path
