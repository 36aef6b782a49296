"""Where photos come from: a folder, a folder on an object store, or a .zip file."""

import contextlib
import os
import re
import shlex
import struct
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from cats_vs_dogs.files import explain_error, is_remote
from cats_vs_dogs.pictures import BadImage
from cats_vs_dogs.utils import UserError

MAX_FILE_BYTES = 256 * 2**20  # A damaged or malicious file can claim a size that fills the memory.


class PhotoSource:
    """A collection of files, some of which are photos."""

    def files(self) -> Iterator[tuple[str, Any]]:
        """Yields a pair (path, key) for each file.

        The path is relative to the source, with "/" between folders, decoded to text. The key is for `read`.

        Raises:
            UserError: if the files cannot be listed.
        """
        raise NotImplementedError

    def read(self, key: Any) -> bytes:
        """Returns the bytes of a file. Several threads may call this at the same time.

        Raises:
            BadImage: if the file cannot be read, or has more than `MAX_FILE_BYTES` bytes.
        """
        raise NotImplementedError


@contextlib.contextmanager
def open_source(images: str) -> Iterator[PhotoSource]:
    """Opens a folder or a .zip file, on this machine or on an object store.

    Args:
        images: its path. A path is never a pattern, so it may contain any character.

    Raises:
        UserError: if it does not exist, cannot be read, or is neither a folder nor a .zip file.
    """
    if is_remote(images):
        _check_name(images, images)
    if is_remote(images) and not images.lower().endswith(".zip"):
        yield _RemoteFolder(images)
        return
    if is_remote(images):  # The conversion reads photos in random order; in place, each would be a request.
        with tempfile.TemporaryDirectory() as folder, _open_zip(_download(images, folder), images) as archive:
            yield _Zip(archive)
        return
    if os.path.isdir(images):
        yield _Folder(images)
        return
    if not os.path.exists(images):
        is_pattern = any(character in images for character in "*?")
        advice = "a pattern is not read here; give the folder" if is_pattern else "give a folder or a .zip"
        raise UserError(f"--images={images}: no such file or folder on this machine; {advice}")
    with _open_zip(images, images) as archive:
        yield _Zip(archive)


def check_archives(images: str, paths: Sequence[str]) -> None:
    """Raises a UserError if there are archives among the files of a source that has no pictures."""
    archives = [path for path in paths if path.lower().endswith((".zip", *_ARCHIVE_ENDINGS))]
    if not archives:
        return
    archives.sort(key=lambda path: "train" not in path)  # As in Kaggle's folder: train.zip and test1.zip.
    names = ", ".join(archives[:3])
    if os.path.isdir(images) and archives[0].lower().endswith(".zip"):
        advice = f"give the .zip itself: --images={shlex.quote(os.path.join(images, archives[0]))}"
    else:
        advice = "unpack it first, then give the folder of the photos"
    raise UserError(f"--images={images}: holds no pictures, but {names}; {advice}")


def _open_zip(path: str, images: str) -> zipfile.ZipFile:
    """Opens a .zip file on this machine.

    Args:
        path: its path.
        images: what the user gave, for messages.
    """
    try:
        if not os.path.isfile(path):  # Opening a named pipe would wait for ever.
            raise UserError(f"--images={images}: is no regular file; give a folder or a .zip")
        with open(path, "rb") as file:
            start = file.read(1024)
        other = _describe_other(start, images)
        if other:
            raise UserError(f"--images={images}: {other}")
        _check_name(images, path)
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        if not start.startswith(b"PK"):
            is_named = images.lower().endswith(".zip")
            what = "is named .zip, but is no .zip; download it again" if is_named else "neither a folder nor a .zip"
            raise UserError(f"--images={images}: {what}; give a folder or .zip of photos") from error
        raise UserError(
            f"--images={images}: neither a folder nor a complete .zip ({error}); download it again"
        ) from error
    except OSError as error:
        raise UserError(f"--images={images}: cannot be read: {error.strerror or error}") from error


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
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")


def _describe_other(start: bytes, images: str) -> str:
    """Returns what a file that is no .zip is, and what to do, by its first 1024 bytes; "" if they do not tell."""
    if not start:
        return "is empty; download it again"
    kind = next((name for magic, name in _ARCHIVES.items() if start.startswith(magic)), None)
    if kind is None and start[257:262] == b"ustar":
        kind = "tar"
    if kind:
        return f"is an archive of the kind {kind}, and only .zip is read; unpack it first, then give the folder"
    if start.startswith(_PICTURES) or start[4:8] == b"ftyp":
        return f"is one picture; give the folder of the photos: --images={shlex.quote(os.path.dirname(images) or '.')}"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page, not a .zip: the site wants a login, or answered with an error; download it in a browser"
    return ""


def _check_name(images: str, path: str) -> None:
    """Raises a UserError for an archive of another kind, or a part of one, by its name."""
    name = images.lower()
    stem = re.sub(r"(?i)\.(zip(\.\d+)?|z\d+)$", "", path)
    parts = [f"{stem}.z01", f"{stem}.Z01", f"{stem}.zip.001"]
    if re.search(r"\.(z\d\d+|zip\.\d+)$", name) or (not is_remote(path) and any(map(os.path.exists, parts))):
        raise UserError(
            f"--images={images}: is one of several parts of a .zip; unpack them together (7z x), then give the folder"
        )
    if is_remote(path) and name.endswith(_ARCHIVE_ENDINGS):
        raise UserError(
            f"--images={images}: is an archive, and only .zip is read; unpack it first, then give the folder"
        )


def _download(images: str, folder: str) -> str:
    """Copies a file from an object store into a local folder. Returns the local path."""
    import tensorflow as tf

    path = os.path.join(folder, os.path.basename(images))
    try:
        tf.io.gfile.copy(images, path)
    except tf.errors.OpError as error:
        raise UserError(f"--images={images}: cannot be downloaded: {explain_error(error)}") from error
    return path


class _Folder(PhotoSource):
    """A local folder and its subfolders. A key is a full path."""

    def __init__(self, path: str):
        self._path = path

    def files(self) -> Iterator[tuple[str, str]]:
        def fail(error: OSError) -> None:
            raise UserError(f"--images={self._path}: {error.filename} cannot be listed: {error.strerror}")

        visited = set()
        for folder, subfolders, names in os.walk(self._path, onerror=fail, followlinks=True):
            # A class folder may be a link, so links are followed. A link to a parent folder must not loop for ever.
            if os.path.realpath(folder) in visited:
                subfolders.clear()
                continue
            visited.add(os.path.realpath(folder))
            subfolders.sort()  # If two links lead to one folder, the same one is visited on every machine.
            for name in sorted(names):
                full_path = os.path.join(folder, name)
                relative_path = os.path.relpath(full_path, self._path).replace(os.sep, "/")
                yield _decode_name(os.fsencode(relative_path)), full_path

    def read(self, key: str) -> bytes:
        try:
            if not os.path.isfile(key):  # Opening a named pipe would wait for ever.
                raise BadImage("not a regular file, or a broken link")
            _check_size(os.path.getsize(key))
            with open(key, "rb") as file:
                return file.read(MAX_FILE_BYTES)
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror}") from error


class _RemoteFolder(PhotoSource):
    """A folder on an object store, such as gs://bucket/photos, and its subfolders. A key is a full path."""

    def __init__(self, path: str):
        self._path = path

    def files(self) -> Iterator[tuple[str, str]]:
        import tensorflow as tf

        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                names = tf.io.gfile.listdir(os.path.join(self._path, folder))
            except tf.errors.OpError as error:
                raise UserError(f"--images={self._path}: cannot be listed: {explain_error(error)}") from error
            for name in filter(None, names):
                if name.endswith("/"):
                    folders.append(folder + name)
                else:
                    yield folder + name, os.path.join(self._path, folder + name)

    def read(self, key: str) -> bytes:
        import tensorflow as tf

        try:
            with tf.io.gfile.GFile(key, "rb") as file:
                _check_size(file.size())
                return file.read(MAX_FILE_BYTES)
        except tf.errors.OpError as error:
            raise BadImage(f"cannot be read: {explain_error(error)}") from error


class _Zip(PhotoSource):
    """A .zip file, which is read in place: nothing is extracted to the disk. A key is a `zipfile.ZipInfo`."""

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive
        self._lock = threading.Lock()

    def files(self) -> Iterator[tuple[str, zipfile.ZipInfo]]:
        for member in self._archive.infolist():
            name = member.filename
            if not member.flag_bits & 0x800:  # The name is not marked as UTF-8, so zipfile decoded it as cp437.
                with contextlib.suppress(UnicodeEncodeError):
                    name = _decode_name(name.encode("cp437"))
            name = name.replace("\\", "/")
            if not name.endswith("/"):  # A name that ends with "/" is a folder.
                yield name, member

    def read(self, key: zipfile.ZipInfo) -> bytes:
        if key.flag_bits & 0x1:
            raise BadImage("encrypted; make a .zip without a password")
        if key.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadImage("compressed by an unusual method; make the .zip with the method Deflate")
        _check_size(key.file_size)
        try:
            # ZipFile locks its reads, but not the count of open members that open() and close() change.
            with self._lock:
                file = self._archive.open(key)
            try:
                return file.read(key.file_size)  # Without a size, read() would unpack more than was declared.
            finally:
                with self._lock:
                    file.close()
        except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError) as error:
            raise BadImage(f"damaged in the .zip: {error}") from error


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_FILE_BYTES:
        raise BadImage(f"{num_bytes} bytes; the limit is {MAX_FILE_BYTES}")


def _decode_name(raw: bytes) -> str:
    """Returns a file name as text. In a .zip, Korean Windows writes cp949 and macOS UTF-8, and neither says so."""
    for encoding in ("utf-8", "cp949"):
        with contextlib.suppress(UnicodeDecodeError):
            return raw.decode(encoding)
    return raw.decode("cp437")
