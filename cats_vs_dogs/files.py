"""Files on this machine and on object stores: listing, reading, and writing them completely or not at all.

A path is never taken for a pattern, except by `list_files`. TensorFlow is imported only for paths such as
gs://bucket/name, so that a script can look at local files and fail before that import.
"""

import contextlib
import functools
import glob
import io
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from typing import IO, Any

from cats_vs_dogs import file_patterns
from cats_vs_dogs.utils import UserError


def is_remote(path: str) -> bool:
    """Whether a path is on an object store, such as gs://bucket/name.

    There an object is complete or absent by itself, a rename is a copy, folders need not be made, and each look at a
    file costs a request or two.
    """
    return "://" in path


def _gfile() -> Any:
    import tensorflow as tf

    return tf.io.gfile


def file_errors() -> tuple[type[Exception], ...]:
    """Returns the exceptions that reading or writing a file may raise, here or on an object store."""
    if "tensorflow" not in sys.modules:  # Local files need no TensorFlow, and neither do errors about them.
        return (OSError,)
    from tensorflow import errors

    return (OSError, errors.OpError)


def explain_error(error: Exception) -> str:
    """Returns why a file could not be read or written, in a few words.

    Args:
        error: an OSError, or what TensorFlow raised. Of an answer of Cloud Storage, its code and message are kept.
    """
    if isinstance(error, OSError) and error.strerror:
        path = error.filename2 or error.filename  # Of a rename, the new name.
        return f"{path}: {error.strerror}" if path else error.strerror
    message = str(getattr(error, "message", None) or error)
    answer = re.search(r'HTTP response code (\d+) .*?"message": *"([^"]*)"', message, re.DOTALL)
    if not answer:
        return re.sub(r"\{\{function_node .*?\}\} | \[Op:.*", "", message)
    login = " (log in with gcloud auth application-default login?)" if answer[1] in ("401", "403") else ""
    return f"Cloud Storage answered {answer[1]}: {answer[2]}{login}"


# ---- Looking.


def exists(path: str) -> bool:
    """Whether there is a file or folder."""
    return _gfile().exists(path) if is_remote(path) else os.path.exists(path)


def is_dir(path: str) -> bool:
    """Whether there is a folder."""
    return _gfile().isdir(path) if is_remote(path) else os.path.isdir(path)


def list_dir(folder: str) -> list[str]:
    """Returns the sorted names of what is in a folder; [] if there is no such folder."""
    if is_remote(folder):  # Without asking first whether it is there, which costs a request or two.
        from tensorflow import errors

        try:
            names = _gfile().listdir(folder)
        except errors.NotFoundError:
            return []
    else:
        names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(filter(None, (name.rstrip("/") for name in names)))


def list_matching(folder: str, name_pattern: str) -> list[str]:
    """Returns the sorted paths of what is in a folder under a name that a regular expression matches as a whole."""
    return [os.path.join(folder, name) for name in list_dir(folder) if re.fullmatch(name_pattern, name)]


def list_files(pattern: str, flag: str) -> list[str]:
    """Returns the files that a pattern matches, sorted.

    A file or folder of exactly the name that is written is meant as it is, whatever characters it has: in
    "photos [1]/*.jpg", only the part after an existing folder "photos [1]" is a pattern. If brackets match nothing as
    a pattern, they are taken as they are.

    Args:
        pattern: a path with `*`, `?` or `[abc]` in it, which match within one folder, or with `**` as a complete part,
            which stands for any number of folders; or the path of one file.
        flag: name of the flag that gave the pattern, for messages.

    Raises:
        UserError: if the pattern matches no file or is a folder, or a file's name is one that TensorFlow and a CSV
            cannot have.
    """
    try:
        is_file = not is_remote(pattern) and os.path.isfile(pattern)
        folder, rest = (glob.escape(pattern), "") if is_file else file_patterns.split_at_folder(pattern, is_dir)
        file_patterns.check_globstars(pattern, rest, flag)
        search = _glob_remote if is_remote(pattern) else file_patterns.glob_local
        for meant in file_patterns.readings(rest):
            found = search(folder + meant)
            if found:
                break
        matching = sorted(found - _folders_among(found, folder + meant))
        is_folder = not matching and is_dir(pattern)
    except Exception as error:
        if not isinstance(error, file_errors()):
            raise
        raise UserError(f"--{flag}={pattern}: cannot be listed: {explain_error(error)}") from error
    if is_folder:
        raise UserError(f"--{flag}={pattern}: {file_patterns.explain_folder(pattern, _walk(pattern), flag)}")
    if not matching:
        raise UserError(f"--{flag}={pattern}: {file_patterns.explain_no_match(pattern, bool(found))}")
    for path in matching:
        try:
            path.encode()
        except UnicodeEncodeError as error:  # As in a .zip of Korean Windows, unpacked without "-O cp949".
            raise UserError(f"--{flag}={pattern}: matches {path!a}, whose name is not UTF-8; rename it") from error
    return matching


def check_not_input(path: str, flag: str, inputs: Iterable[str]) -> None:
    """Checks that an output does not replace a file that it is made from.

    Args:
        path: where the output will be.
        flag: the flag that named it.
        inputs: paths of the files that are read.

    Raises:
        UserError: if it does.
    """
    real_path, name = os.path.realpath(path), os.path.basename(path)
    if any(os.path.basename(one) == name and os.path.realpath(one) == real_path for one in inputs):
        raise UserError(f"--{flag}={path}: is one of the input files; name another file")


def _walk(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Yields (folder, names in it) of a folder and, on this machine, of its subfolders; what can be listed of them."""
    with contextlib.suppress(*file_errors()):
        folders = [folder] if is_remote(folder) else file_patterns.walk_folders(folder)
        for place in itertools.islice(folders, 1000):
            yield place, list_dir(place)


def _glob_remote(pattern: str) -> set[str]:
    """Returns the objects and folders that a pattern on an object store matches."""
    parts = file_patterns.split_at_globstar(pattern)
    if parts is None:
        return set(_gfile().glob(pattern))
    level, after = parts
    found = _glob_remote(f"{level}/{after}")
    while _gfile().glob(f"{level}/*"):  # TensorFlow knows no `**`: one level after the other.
        level += "/*"
        found |= _glob_remote(f"{level}/{after}")
    return found


def _folders_among(found: set[str], pattern: str) -> set[str]:
    if not is_remote(pattern):
        return set(filter(os.path.isdir, found))
    return {os.path.dirname(path) for path in _glob_remote(f"{pattern}/*")}  # One listing, not a request for each.


def real_path(path: str) -> str:
    """Returns the path without links; on an object store, without the slash at the end. Equal ones are one file."""
    return path.rstrip("/") if is_remote(path) else os.path.realpath(path)


def absolute_path(path: str) -> str:
    """Returns a path or pattern that means the same in any working directory; "" stays empty."""
    return path if not path or is_remote(path) else os.path.join(os.getcwd(), path)


# ---- Reading.


def cache_folder() -> str:
    """Returns the kit's folder in the user's cache. It may not be there yet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # The XDG specification says to ignore relative paths.
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "cats_vs_dogs")


def read_bytes(path: str) -> bytes:
    """Returns the bytes of a file."""
    if is_remote(path):
        with _gfile().GFile(path, "rb") as file:
            return file.read()
    with open(path, "rb") as file:
        return file.read()


def read_json(path: str) -> dict[str, Any]:
    """Reads a JSON file that the kit wrote.

    Raises:
        UserError: if the file is damaged.
    """
    advice = "fix it, or train in another train_dir"
    try:
        value = json.loads(read_bytes(path).decode("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged, not JSON ({error}); {advice}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: damaged, not a JSON object; {advice}")
    return value


# ---- Writing.


def make_dirs(path: str) -> None:
    """Makes a folder and its parents where they are missing. Object stores need no folders."""
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)


def remove(path: str) -> None:
    """Deletes a file, or a folder with all that is in it."""
    if is_remote(path):
        from tensorflow import errors

        try:
            _gfile().remove(path)
        except errors.NotFoundError:  # There is no object of that name, so it is a folder.
            _gfile().rmtree(path)
    elif os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.remove(path)


def temporary_path(path: str) -> str:
    """Returns where to write a file or folder until it is complete; `replace` then gives it its name."""
    return f"{path.rstrip('/')}.{os.getpid()}.tmp"


def replace(temporary: str, path: str) -> None:
    """Renames a complete local file or folder to its final name; an older file of that name is replaced.

    Its bytes are brought to the disk first: otherwise a power cut could leave an empty file under the final name.
    """
    for folder, _, names in os.walk(temporary):
        for name in names:
            _sync(os.path.join(folder, name))
    if not os.path.isdir(temporary):
        _sync(temporary)
    os.replace(temporary, path)
    _sync(os.path.dirname(path) or ".")


def _sync(path: str) -> None:
    with contextlib.suppress(OSError):  # Some file systems cannot sync a folder, or a file opened for reading.
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def upload(folder: str, target: str, last: str) -> None:
    """Copies the files of a local folder, with those of its subfolders, to an object store.

    Args:
        folder: the local folder.
        target: the folder on the object store. Files of the same name there are replaced.
        last: ending of the names that are copied after all others; their presence tells that the others are complete.
    """
    files = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]
    for file in sorted(files, key=lambda file: file.endswith(last)):
        _gfile().copy(file, f"{target}/{os.path.relpath(file, folder)}", overwrite=True)


@contextlib.contextmanager
def atomic_write(path: str, flag: str = "") -> Iterator[IO[str]]:
    """Opens a text file that appears at `path` only when the block ends without an exception.

    The file is opened at once, so an output that cannot be written is noticed before the work and not after it.
    For an object store the text is kept in memory and uploaded at the end.

    Args:
        path: where the complete file will be. An older file there stays until then.
        flag: the flag that named it, for messages; "" if none did.

    Yields:
        The open file, UTF-8, with "\\n" as it is.

    Raises:
        UserError: if the file cannot be written.
    """
    name = f"--{flag}={path}" if flag else path
    write = _write_remote(path, name, bool(flag)) if is_remote(path) else _write_local(path, name)
    with write as output:
        yield output


@contextlib.contextmanager
def _write_remote(path: str, name: str, is_tried: bool) -> Iterator[IO[str]]:
    text = io.StringIO(newline="")
    if is_tried:
        _try_writing(temporary_path(path), name, "name another file")
    yield text
    try:
        with _gfile().GFile(path, "w") as output:
            output.write(text.getvalue())
    except Exception as error:
        if not isinstance(error, file_errors()):
            raise
        raise UserError(f"{name}: cannot be written: {explain_error(error)}") from error


@contextlib.contextmanager
def _write_local(path: str, name: str) -> Iterator[IO[str]]:
    temporary = temporary_path(path)
    if os.path.isdir(path):
        raise UserError(f"{name}: is a folder; name a file in it")
    try:
        output = open(temporary, "w", encoding="utf-8", newline="")  # noqa: SIM115 - closed below.
    except OSError as error:
        folder = os.path.dirname(path)
        if folder and not os.path.isdir(folder):
            raise UserError(f"{name}: the folder {folder} does not exist; make it first") from error
        raise UserError(f"{name}: cannot be written: {error.strerror}; name another file") from error
    try:
        with output:
            yield output
        replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        # A full disk is noticed by `write` or `close`, which name no file.
        if isinstance(error, OSError) and error.filename in (None, temporary):
            raise UserError(f"{name}: cannot be written: {error.strerror or error}") from error
        raise


def write_bytes(path: str, data: bytes) -> None:
    """Writes a file, completely or not at all.

    Raises:
        OSError, or tf.errors.OpError on an object store: if it cannot be written, see `explain_write_errors`.
    """
    if is_remote(path):
        with _gfile().GFile(path, "wb") as file:
            file.write(data)
        return
    temporary = temporary_path(path)
    with open(temporary, "wb") as file:
        file.write(data)
    replace(temporary, path)


def write_json(path: str, value: dict[str, Any]) -> None:
    """Writes a JSON file, completely or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def check_output_file(path: str, flag: str) -> None:
    """Checks, before the work for it begins, that `atomic_write` can write a file. Changes nothing.

    Raises:
        UserError: if it cannot.
    """

    class Tried(Exception):
        pass

    with contextlib.suppress(Tried), atomic_write(path, flag):
        raise Tried  # So nothing appears at `path`.


def make_output_folder(path: str, flag: str) -> None:
    """Makes a folder and its parents where they are missing, and checks that files can be written to it.

    Raises:
        UserError: if it cannot be made or written to.
    """
    if not path:
        raise UserError(f"--{flag}= is empty; name a folder")
    name, advice = f"--{flag}={path}", "name another folder"
    try:
        make_dirs(path)
    except OSError as error:
        raise UserError(f"{name}: cannot be written to: {error.strerror}; {advice}") from error
    _try_writing(os.path.join(path, f".write-test-{os.getpid()}"), name, advice)


def _try_writing(probe: str, name: str, advice: str) -> None:
    open_file = functools.partial(_gfile().GFile, probe) if is_remote(probe) else functools.partial(open, probe)
    try:
        with open_file("w") as file:
            file.write("")
        remove(probe)
    except Exception as error:
        if not isinstance(error, file_errors()):
            raise
        raise UserError(f"{name}: cannot be written to: {explain_error(error)}; {advice}") from error


@contextlib.contextmanager
def explain_write_errors(path: str, flag: str) -> Iterator[None]:
    """Turns an error about writing files inside the block into one line.

    Args:
        path: the folder that is written to.
        flag: the flag that named it, for the message.

    Raises:
        UserError: if the disk is full, the folder vanished, may not be written to, and the like.
    """
    from tensorflow import errors

    try:
        yield
    except (errors.InvalidArgumentError, errors.DataLossError):  # Not about files that are written.
        raise
    except (errors.OpError, OSError) as error:
        raise UserError(
            f"--{flag}={path}: cannot be written to: {explain_error(error)}; what was saved before is intact; fix it "
            "(is the disk full?) and start again with the same flags"
        ) from error
