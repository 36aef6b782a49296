"""Where photos come from: folders, .zip files and single pictures, on this machine or on an object store."""

import contextlib
import functools
import os
import re
import struct
import tempfile
import threading
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from absl import logging

from cats_vs_dogs import archives, file_patterns, files, path_flags, pictures
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


class _Places(PhotoSource):
    """Several folders, .zip files and pictures as one source. A path begins with the name of the place."""

    def __init__(self, sources: Sequence[tuple[str, PhotoSource | str]]):
        """Gets the name and the source of each place; a picture is its own source: its path."""
        self._sources = sources

    def files(self) -> Iterator[tuple[str, Any]]:
        for name, source in self._sources:
            if isinstance(source, str):
                yield _decode_name(os.fsencode(name)), (None, source)
                continue
            for path, key in source.files():
                yield f"{name}/{path}", (source, key)

    def read(self, key: tuple[PhotoSource | None, Any], num_bytes: int = MAX_FILE_BYTES) -> bytes:
        source, inner = key
        return source.read(inner, num_bytes) if source else read_file(inner, num_bytes)


@contextlib.contextmanager
def open_places(places: Sequence[str], flag: str) -> Iterator[PhotoSource]:
    """Opens one place as `open_source` does, or several as one source.

    Args:
        places: folders, which end with "/", .zip files and pictures, as `find_places` returns them.
        flag: the flag that named them, for messages.

    Raises:
        UserError: if one does not exist or cannot be read.
    """
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(open_source(one, flag)) if _holds_files(one) else one for one in places]
        is_one = len(sources) == 1 and isinstance(sources[0], PhotoSource)
        yield sources[0] if is_one else _Places(list(zip(_names_of(places), sources, strict=True)))


def _holds_files(place: str) -> bool:
    return is_zip(place) or place.endswith("/")


def _names_of(places: Sequence[str]) -> list[str]:
    """Returns the path of each place from the innermost folder that holds all on, that folder's name included.

    So a picture in a folder cat has the label of that folder.
    """
    paths = [files.absolute_path(place).rstrip("/").split("/") for place in places]
    common = os.path.commonprefix([path[:-1] for path in paths])  # It compares the parts, not characters.
    first = max(0, len(common) - 1)
    return ["/".join(filter(None, path[first:])) for path in paths]


def stamps(places: Sequence[str], flag: str) -> list[tuple[str, int, int]]:
    """Returns name, size and time of change of each file that a conversion reads: if they are the same, so is it.

    Args:
        places: see `open_places`.
        flag: see `open_places`.

    Raises:
        UserError: if a folder cannot be listed.
    """
    rows: list[tuple[str, str]] = []
    for name, place in zip(_names_of(places), places, strict=True):
        if not place.endswith("/"):
            rows.append((name if len(places) > 1 else os.path.basename(place), place))
            continue
        with open_source(place, flag) as source:
            keys, _ = list_photos(source)
        rows += [(path if len(places) == 1 else f"{name}/{path}", key) for path, key in keys.items()]
    with ThreadPoolExecutor(32) as pool:  # On an object store, each is a request.
        is_slow = any(map(is_remote, places))
        found = (pool.map if is_slow else map)(_size_and_time, [path for _, path in rows])
        return [(name, *stamp) for (name, _), stamp in zip(rows, found, strict=True)]


def _size_and_time(path: str) -> tuple[int, int]:
    """Returns the size of a file in bytes, and the time of its last change in nanoseconds; zeros if it is missing."""
    try:
        if is_remote(path):
            import tensorflow as tf

            stat = tf.io.gfile.stat(path)
            return stat.length, stat.mtime_nsec
        stat = os.stat(path)
        return stat.st_size, stat.st_mtime_ns
    except file_errors():  # Such as a broken link: it is listed as a bad picture.
        return 0, 0


# ---- What patterns name.


def is_zip(path: str) -> bool:
    """Whether a path is named like a .zip file, and is no folder on this machine."""
    return path.lower().endswith(".zip") and not os.path.isdir(path)


def check_there(pattern: str, flag: str) -> None:
    """Checks, before TensorFlow is imported, that a pattern on this machine names something; see `find_places`.

    Args:
        pattern: the value of the flag; "" names nothing by intent.
        flag: its name, for messages.

    Raises:
        UserError: if it does not.
    """
    for one in split_list(pattern, flag) if pattern else []:
        if not is_remote(one) and not os.path.isdir(one):
            files.list_files(one, flag)


def find_places(patterns: Sequence[str], flag: str) -> list[str] | None:
    """Finds the folders, .zip files and single pictures that patterns name.

    Args:
        patterns: paths and file patterns. One of them may also be a list, with commas between paths.
        flag: the flag that named them, for messages.

    Returns:
        Their paths, each once, those of folders with "/" at the end; None if the patterns name shards.

    Raises:
        UserError: if a pattern matches nothing, a folder holds no pictures, or there are pictures and shards.
    """
    found: dict[str, list[str]] = {}
    kinds: dict[str, str] = {}
    for pattern in [part for one in patterns for part in split_list(one, flag)]:
        is_folder = False
        with contextlib.suppress(*file_errors()):  # `list_files` reports them.
            is_folder = files.is_dir(pattern)
        if is_folder:
            _check_has_pictures(pattern, flag)
        found[pattern] = [os.path.join(pattern, "")] if is_folder else files.list_files(pattern, flag)
        others = [path for path in found[pattern] if not _holds_files(path)]
        holds_more = len(others) < len(found[pattern])  # A folder or .zip files.
        kinds[pattern] = (others and _kind_of(others)) or ("pictures" if holds_more else "")
    with_pictures, with_shards = ([one for one in found if kinds[one] == kind] for kind in ("pictures", "shards"))
    if with_pictures and with_shards:
        raise UserError(
            f"--{flag}: {with_shards[0]} names shards, and {with_pictures[0]} pictures; give one kind at a time"
        )
    # A file that is neither is a bad picture among pictures.
    return list(dict.fromkeys(path for paths in found.values() for path in paths)) if with_pictures else None


def split_list(pattern: str, flag: str) -> list[str]:
    """Returns the parts of a list with commas, see `path_flags.split_paths`; the pattern itself if it is none.

    Raises:
        UserError: if a part is empty, or cannot be what the user means.
    """
    if "," not in pattern or re.search(r"\{.*,.*\}", pattern):  # `list_files` says what to write instead of {a,b}.
        return [pattern]
    with contextlib.suppress(UserError, *file_errors()):  # Then it is a list, or wrong.
        if files.is_dir(pattern) or files.list_files(pattern, flag):
            return [pattern]
    try:
        return path_flags.split_paths(pattern)
    except ValueError as error:
        raise UserError(f"--{flag}={pattern}: {error}") from error


def _check_has_pictures(folder: str, flag: str) -> None:
    """Raises a UserError for a folder without pictures, which says what to write instead."""
    with open_source(folder, flag) as source:
        keys, _ = list_photos(source)
        if any(map(pictures.is_named_as_picture, keys)):
            return
        if holds_shards(folder):
            files.list_files(folder, flag)  # Says which pattern to write instead.
        archives.check_no_archives(folder, list(keys), flag)
        if not any(_seems_a_picture(source, path, key) for path, key in keys.items()):
            raise UserError(f"--{flag}={folder}: has no picture in it; name pictures or shards")


def holds_shards(folder: str) -> bool:
    """Whether a folder has TFRecord files in it, or a folder in it has files named like shards."""
    from cats_vs_dogs import tfrecords

    paths = [path for path in files.list_matching(folder, ".*") if not files.is_dir(path)]
    if any(map(tfrecords.is_shard, paths)):
        return True
    inner = [] if is_remote(folder) else file_patterns.walk_folders(folder)
    return any(re.fullmatch(r".+-\d+-of-\d+", name) for place in inner for name in files.list_dir(place))


def _kind_of(paths: Sequence[str]) -> str:
    """Returns "pictures" or "shards", by the first of some files that begins like either: damaged ones may not.

    If none of them does, by their names, so that a damaged picture is not called a damaged shard; "" if those do not
    tell, either.
    """
    from cats_vs_dogs import tfrecords

    for path in paths:
        with contextlib.suppress(BadImage, *file_errors()):  # A later step reports it.
            if tfrecords.is_shard(path):
                return "shards"
            if pictures.format_of(read_file(path, pictures.NUM_FIRST_BYTES)):
                return "pictures"
    return "pictures" if any(map(pictures.is_named_as_picture, paths)) else ""


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
def open_pictures(places: Sequence[str], flag: str) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """Finds the pictures in folders and .zip files, on all levels.

    A file there is taken for a picture if its name ends or its bytes begin like a picture's. What is left out is
    logged.

    Args:
        places: folders, .zip files and single pictures, as `find_places` returns them.
        flag: the flag that named them, for messages.

    Yields:
        The paths of the pictures, sorted within each place: that of the place joined with the path in it; and a
        function that reads one, given its path, which raises BadImage if it cannot.

    Raises:
        UserError: if a place cannot be opened or listed, or holds no pictures.
    """
    readers: dict[str, Callable[[], bytes]] = {}
    with contextlib.ExitStack() as stack:
        for place in places:
            if not _holds_files(place):
                readers.setdefault(place, functools.partial(read_file, place))
                continue
            source = stack.enter_context(open_source(place, flag))
            for path, key in _pictures_in(source, place, flag).items():
                readers.setdefault(path, functools.partial(source.read, key))
        yield list(readers), lambda picture: readers[picture]()


def _pictures_in(source: PhotoSource, place: str, flag: str) -> dict[str, Any]:
    """Returns the key of each picture in a folder or .zip file by its path, and logs what is left out."""
    keys, refused = list_photos(source)
    others = [name for name, key in keys.items() if not _seems_a_picture(source, name, key)]
    if len(others) == len(keys):
        archives.check_no_archives(place, others, flag)
        raise UserError(f"--{flag}={place}: has no picture in it; name pictures or shards")
    if others:
        message = "%s: %d of %d files are left out because they are no pictures, such as %s"
        logging.info(message, place, len(others), len(keys), others[0])
    for name, reason in refused:
        logging.warning("%s: %s is left out: %s", place, name, reason)
    left_out = set(others)
    return {os.path.join(place, name): key for name, key in keys.items() if name not in left_out}


def _seems_a_picture(source: PhotoSource, path: str, key: Any) -> bool:
    if pictures.is_named_as_picture(path):
        return True
    try:
        return bool(pictures.format_of(source.read(key, pictures.NUM_FIRST_BYTES)))
    except BadImage:
        return False
