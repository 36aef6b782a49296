"""Where photos come from: a folder, a folder on an object store, or a .zip file."""

import contextlib
import os
import re
import struct
import tempfile
import threading
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

from cats_vs_dogs import archives, pictures
from cats_vs_dogs.files import explain_error, file_errors, is_remote
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

    def read(self, key: Any, num_bytes: int = MAX_FILE_BYTES) -> bytes:
        """Returns the bytes of a file, or its first `num_bytes`. Several threads may call this at the same time.

        Raises:
            BadImage: if the file cannot be read, or has more than `MAX_FILE_BYTES` bytes.
        """
        raise NotImplementedError


@contextlib.contextmanager
def open_source(images: str, flag: str = "images") -> Iterator[PhotoSource]:
    """Opens a folder or a .zip file, on this machine or on an object store.

    Args:
        images: its path. A path is never a pattern, so it may contain any character.
        flag: the flag that named it, for messages.

    Raises:
        UserError: if it does not exist, cannot be read, or is neither a folder nor a .zip file.
    """
    if is_remote(images):
        archives.check_name(images, images, flag)
    if is_remote(images) and not images.lower().endswith(".zip"):
        yield _RemoteFolder(images, flag)
        return
    if is_remote(images):  # The conversion reads photos in random order; in place, each would be a request.
        with (
            tempfile.TemporaryDirectory() as folder,
            archives.open_zip(_download(images, folder, flag), images, flag) as archive,
        ):
            yield _Zip(archive)
        return
    if os.path.isdir(images):
        yield _Folder(images, flag)
        return
    if not os.path.exists(images):
        is_pattern = any(character in images for character in "*?")
        advice = "a pattern is not read here; give the folder" if is_pattern else "give a folder or a .zip"
        raise UserError(f"--{flag}={images}: no such file or folder on this machine; {advice}")
    with archives.open_zip(images, images, flag) as archive:
        yield _Zip(archive)


def _download(images: str, folder: str, flag: str) -> str:
    """Copies a file from an object store into a local folder. Returns the local path."""
    import tensorflow as tf

    path = os.path.join(folder, os.path.basename(images))
    try:
        tf.io.gfile.copy(images, path)
    except tf.errors.OpError as error:
        raise UserError(f"--{flag}={images}: cannot be downloaded: {explain_error(error)}") from error
    return path


class _Folder(PhotoSource):
    """A local folder and its subfolders. A key is a full path."""

    def __init__(self, path: str, flag: str):
        self._path = path
        self._flag = flag

    def files(self) -> Iterator[tuple[str, str]]:
        def fail(error: OSError) -> None:
            raise UserError(f"--{self._flag}={self._path}: {error.filename} cannot be listed: {error.strerror}")

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

    def read(self, key: str, num_bytes: int = MAX_FILE_BYTES) -> bytes:
        return read_file(key, num_bytes)


class _RemoteFolder(PhotoSource):
    """A folder on an object store, such as gs://bucket/photos, and its subfolders. A key is a full path."""

    def __init__(self, path: str, flag: str):
        self._path = path
        self._flag = flag

    def files(self) -> Iterator[tuple[str, str]]:
        import tensorflow as tf

        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                names = tf.io.gfile.listdir(os.path.join(self._path, folder))
            except tf.errors.OpError as error:
                raise UserError(f"--{self._flag}={self._path}: cannot be listed: {explain_error(error)}") from error
            for name in filter(None, names):
                if name.endswith("/"):
                    folders.append(folder + name)
                else:
                    yield folder + name, os.path.join(self._path, folder + name)

    def read(self, key: str, num_bytes: int = MAX_FILE_BYTES) -> bytes:
        return read_file(key, num_bytes)


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

    def read(self, key: zipfile.ZipInfo, num_bytes: int = MAX_FILE_BYTES) -> bytes:
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
                return file.read(
                    min(key.file_size, num_bytes)
                )  # Without a size, read() would unpack more than was declared.
            finally:
                with self._lock:
                    file.close()
        except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError) as error:
            raise BadImage(f"damaged in the .zip: {error}") from error


def read_file(path: str, num_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Returns the bytes of a file, here or on an object store, or its first `num_bytes`.

    Raises:
        BadImage: if the file cannot be read, or has more than `MAX_FILE_BYTES` bytes.
    """
    try:
        if is_remote(path):
            import tensorflow as tf

            with tf.io.gfile.GFile(path, "rb") as file:
                _check_size(file.size())
                return file.read(num_bytes)
        if not os.path.isfile(path):  # Opening a named pipe would wait for ever.
            raise BadImage("not a regular file, or a broken link")
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            _check_size(size)
            return file.read(min(size, num_bytes))  # Python allocates at once what is asked for.
    except file_errors() as error:
        raise BadImage(f"cannot be read: {getattr(error, 'strerror', None) or explain_error(error)}") from error


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_FILE_BYTES:
        raise BadImage(f"{num_bytes} bytes; the limit is {MAX_FILE_BYTES}")


def _decode_name(raw: bytes) -> str:
    """Returns a file name as text. In a .zip, Korean Windows writes cp949 and macOS UTF-8, and neither says so."""
    for encoding in ("utf-8", "cp949"):
        with contextlib.suppress(UnicodeDecodeError):
            return raw.decode(encoding)
    return raw.decode("cp437")


# ---- Which of the files are photos.


def list_photos(source: PhotoSource) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Lists the files of a source, without hidden ones and those that an operating system left there.

    Returns:
        The key of each file by its path, sorted by path; and (path, reason) of each file that is refused for its name.
    """
    keys: dict[str, Any] = {}
    refused = []
    for path, key in source.files():
        # macOS decomposes Korean letters (NFD). In one form, a photo has the same id and split on every system.
        path = unicodedata.normalize("NFC", path)
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if any(map(_is_junk, parts)):
            continue
        if not parts or path.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", path):
            refused.append((path, "the name is empty or leads out of the folder (absolute, or with ..)"))
        elif "/".join(parts) in keys:
            refused.append((path, "a second file of this name"))
        else:
            keys["/".join(parts)] = key
    return {path: keys[path] for path in sorted(keys)}, refused


def _is_junk(part: str) -> bool:
    """Returns whether a folder or file name is hidden, or left by an operating system."""
    return part.lower() in ("__macosx", "thumbs.db", "desktop.ini") or (part.startswith(".") and part != "..")


@contextlib.contextmanager
def open_pictures(path: str, flag: str) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """Opens a folder or a .zip file and finds the pictures in it, on all levels.

    A file is taken for a picture if its name ends or its bytes begin like a picture's. What is left out is logged.

    Args:
        path: the folder or .zip file.
        flag: the flag that named it, for messages.

    Yields:
        The paths of the pictures, sorted: `path` joined with the path in it; and a function that reads one, given its
        path, which raises BadImage if it cannot.

    Raises:
        UserError: if the source cannot be opened or listed.
    """
    with open_source(path, flag) as source:
        keys, refused = list_photos(source)
        others = [name for name, key in keys.items() if not _seems_a_picture(source, name, key)]
        if others:
            message = "%s: %d of %d files are left out because they are no pictures, such as %s"
            logging.info(message, path, len(others), len(keys), others[0])
        for name, reason in refused:
            logging.warning("%s: %s is left out: %s", path, name, reason)
        left_out = set(others)
        keys = {os.path.join(path, name): key for name, key in keys.items() if name not in left_out}
        yield list(keys), lambda picture: source.read(keys[picture])


def _seems_a_picture(source: PhotoSource, path: str, key: Any) -> bool:
    if pictures.is_named_as_picture(path):
        return True
    try:
        return bool(pictures.format_of(source.read(key, pictures.NUM_FIRST_BYTES)))
    except BadImage:
        return False
