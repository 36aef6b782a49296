"""Archives: .zip files are opened, and those of other kinds are answered with what to do."""

import os
import re
import shlex
import zipfile
from collections.abc import Sequence

from cats_vs_dogs import pictures
from cats_vs_dogs.files import is_remote
from cats_vs_dogs.utils import UserError

# How archives of other kinds begin.
_ARCHIVES = {
    b"\x1f\x8b": "gzip",
    b"\x1f\x9d": "compress",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
}
_ARCHIVE_ENDINGS = (".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".zst", ".lz4", ".7z", ".rar")


def open_zip(path: str, images: str, flag: str) -> zipfile.ZipFile:
    """Opens a .zip file on this machine.

    Args:
        path: its path.
        images: what the user gave, for messages.
        flag: the flag that named it.

    Raises:
        UserError: if it is not a complete .zip file; the message says what it is instead.
    """
    try:
        if not os.path.isfile(path):  # Opening a named pipe would wait for ever.
            raise UserError(f"--{flag}={images}: is no regular file; give a folder or a .zip")
        with open(path, "rb") as file:
            start = file.read(1024)
        other = _describe_other(start, images, flag)
        if other:
            raise UserError(f"--{flag}={images}: {other}")
        check_name(images, path, flag)
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        if not start.startswith(b"PK"):
            is_named = images.lower().endswith(".zip")
            what = "is named .zip, but is no .zip; download it again" if is_named else "neither a folder nor a .zip"
            raise UserError(f"--{flag}={images}: {what}; give a folder or .zip of photos") from error
        raise UserError(
            f"--{flag}={images}: neither a folder nor a complete .zip ({error}); download it again"
        ) from error
    except OSError as error:
        raise UserError(f"--{flag}={images}: cannot be read: {error.strerror or error}") from error


def _describe_other(start: bytes, images: str, flag: str) -> str:
    """Returns what a file that is no .zip is, and what to do, by its first 1024 bytes; "" if they do not tell."""
    if not start:
        return "is empty; download it again"
    kind = kind_of(start)
    if kind:
        return f"is an archive of the kind {kind}, and only .zip is read; unpack it first, then give the folder"
    if pictures.format_of(start) or start[4:8] == b"ftyp":
        return f"is one picture; give the folder of the photos: --{flag}={shlex.quote(os.path.dirname(images) or '.')}"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page, not a .zip: the site wants a login, or answered with an error; download it in a browser"
    return ""


def kind_of(start: bytes) -> str:
    """Returns the kind of an archive other than .zip by its first bytes, such as "gzip"; "" for other files."""
    if start[257:262] == b"ustar":
        return "tar"
    return next((name for magic, name in _ARCHIVES.items() if start.startswith(magic)), "")


def check_name(images: str, path: str, flag: str) -> None:
    """Raises a UserError for an archive of another kind, or a part of one, by its name."""
    name = images.lower()
    stem = re.sub(r"(?i)\.(zip(\.\d+)?|z\d+)$", "", path)
    parts = [f"{stem}.z01", f"{stem}.Z01", f"{stem}.zip.001"]
    if re.search(r"\.(z\d\d+|zip\.\d+)$", name) or (not is_remote(path) and any(map(os.path.exists, parts))):
        raise UserError(
            f"--{flag}={images}: is one of several parts of a .zip; unpack them together (7z x), then give the folder"
        )
    if is_remote(path) and name.endswith(_ARCHIVE_ENDINGS):
        raise UserError(
            f"--{flag}={images}: is an archive, and only .zip is read; unpack it first, then give the folder"
        )


def check_no_archives(images: str, paths: Sequence[str], flag: str) -> None:
    """Raises a UserError if there are archives in place of pictures.

    Args:
        images: what the user gave.
        paths: paths of the files in it, none of which is named like a picture.
        flag: the flag that named it.
    """
    archives = [path for path in paths if path.lower().endswith((".zip", *_ARCHIVE_ENDINGS))]
    if not archives:
        return
    wanted = "test" if flag == "input_data_pattern" else "train"  # As in Kaggle's folder: train.zip and test1.zip.
    archives.sort(key=lambda path: wanted not in path)
    names = ", ".join(archives[:3])
    if os.path.isdir(images) and archives[0].lower().endswith(".zip"):
        advice = f"give the .zip itself: --{flag}={shlex.quote(os.path.join(images, archives[0]))}"
    else:
        advice = "unpack it first, then give the folder of the photos"
    raise UserError(f"--{flag}={images}: holds no pictures, but {names}; {advice}")
