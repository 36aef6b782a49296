"""Patterns of paths: which part is a pattern, what it matches, and what to write instead of a wrong one."""

import contextlib
import difflib
import fnmatch
import glob
import os
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from cats_vs_dogs.labels import CLASS_NAMES
from cats_vs_dogs.pictures import is_named_as_picture
from cats_vs_dogs.utils import UserError, command

_CLASS_FOLDERS = {name + ending for name in CLASS_NAMES for ending in ("", "s")}
_SPLIT_OF_FLAG = {"train_data_pattern": "train", "eval_data_pattern": "validation", "input_data_pattern": "test"}


def split_at_folder(pattern: str, is_dir: Callable[[str], bool]) -> tuple[str, str]:
    """Splits a pattern after the longest part of it that is a folder of exactly that name.

    Args:
        pattern: the pattern.
        is_dir: tells whether there is a folder of a name.

    Returns:
        The folder, escaped for `glob`, or "" if no part with `*`, `?` or `[` is one; and the rest of the pattern.
    """
    position = len(pattern)
    while (position := pattern.rfind("/", 0, position)) > 0 and glob.has_magic(pattern[:position]):
        if is_dir(pattern[:position]):
            return glob.escape(pattern[:position]), pattern[position:]
    return "", pattern


def check_globstars(pattern: str, rest: str, flag: str) -> None:
    """Raises a UserError for `**` as a part of a name, which would match within one folder only."""
    for part in rest.split("/"):
        if "**" in part and part != "**":
            fixed = pattern.removesuffix(rest) + rest.replace(part, "**/" + re.sub(r"\*+", "*", part))
            raise UserError(
                f"--{flag}={pattern}: ** stands for folders and must be a complete part of the path; for the files in "
                f"folders of all levels write --{flag}={shlex.quote(fixed)}"
            )


def readings(pattern: str) -> list[str]:
    """Returns what a pattern may mean, the likeliest first.

    Brackets may be those of a file's name. macOS decomposes Hangul in file names (NFD), and keyboards do not (NFC).
    """
    forms = [unicodedata.normalize(form, pattern) for form in ("NFC", "NFD")]
    return list(dict.fromkeys([pattern, pattern.replace("[", "[[]"), *forms]))


def split_at_globstar(pattern: str) -> tuple[str, str] | None:
    """Returns what comes before and after the first `**` of a pattern; None without any."""
    before, found, after = f"/{pattern}/".partition("/**/")
    if not found:
        return None
    root = "/" if before == "/" and pattern.startswith("/") else ""
    return before[1:] or root, re.sub(r"^(\*\*/)+", "", after).rstrip("/") or "*"


def glob_local(pattern: str) -> set[str]:
    """Returns the files and folders that a local pattern matches."""
    parts = split_at_globstar(pattern)
    if parts is None:
        return set(_glob(pattern))
    before, after = parts
    found = set()
    for base in _glob(before) if before else [""]:
        if not base or os.path.isdir(base):
            for folder in walk_folders(base):
                found |= glob_local(os.path.join(glob.escape(folder), after))
    return found


def _glob(pattern: str) -> Iterator[str]:
    """Yields what `glob.glob(pattern, include_hidden=True)` returns. Python 3.10 has no `include_hidden`."""
    if not glob.has_magic(pattern):
        yield from glob.glob(pattern)
        return
    folder, name = os.path.split(pattern)
    for place in _glob(folder) if glob.has_magic(folder) else [folder]:
        if not glob.has_magic(name):
            yield from filter(os.path.lexists, [os.path.join(place, name)])
        else:
            with contextlib.suppress(OSError):
                yield from (os.path.join(place, one) for one in fnmatch.filter(os.listdir(place or os.curdir), name))


def walk_folders(path: str) -> Iterator[str]:
    """Yields a local folder and its subfolders of all levels, each once, even if links lead to it.

    Args:
        path: the folder; "" is the working directory, whose subfolders are then yielded as relative paths.

    Raises:
        OSError: if one of them cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    visited = set()
    for folder, subfolders, _ in os.walk(path or os.curdir, onerror=fail, followlinks=True):
        if os.path.realpath(folder) in visited:  # A link to a parent folder must not loop for ever.
            subfolders.clear()
            continue
        visited.add(os.path.realpath(folder))
        subfolders.sort()
        yield folder if path else folder[len("./") :]


def explain_folder(folder: str, listing: Iterable[tuple[str, list[str]]], flag: str) -> str:
    """Returns what to write instead of a folder, by what it holds.

    Args:
        folder: the folder that was given as a pattern.
        listing: (folder, names in it) of it and its subfolders.
        flag: the flag that it was given to.
    """
    is_empty, pictures = True, ""
    for place, names in listing:
        is_empty = is_empty and not names
        shards = {match[1] for match in (re.fullmatch(r"(.+)-\d+-of-\d+", name) for name in names) if match}
        if shards:
            return _choose_shards(place, shards, flag)
        if pictures or flag not in _SPLIT_OF_FLAG:
            continue
        archives = [os.path.join(place, name) for name in names if name.lower().endswith(".zip")]
        if archives or any(map(is_named_as_picture, names)):
            pictures = archives[0] if archives else folder
    if pictures:
        return f"is a folder of pictures; make shards of them first: {convert_command(pictures)}"
    if is_empty:
        return "is an empty folder; name the pattern of files in another one"
    return f"is a folder; write --{flag}={shlex.quote(os.path.join(folder, '*'))}"


def _choose_shards(folder: str, found: set[str], flag: str) -> str:
    wanted = _SPLIT_OF_FLAG.get(flag, "prediction.results")
    others = sorted(found - set(_SPLIT_OF_FLAG.values())) or (sorted(found) if flag == "input_data_pattern" else [])
    if wanted not in found and not others:
        there = " and ".join(f"{split}-*" for split in sorted(found))
        return (
            f"is a folder that holds {there}, but no {wanted}-*; name another folder's shards, or the pattern you mean"
        )
    split = wanted if wanted in found else others[0]
    return f"is a folder; write --{flag}={shlex.quote(os.path.join(folder, f'{split}-*'))}"


def explain_no_match(pattern: str, matches_folders: bool) -> str:
    """Returns what to write instead of a pattern that matches no file, or only folders."""
    if matches_folders:
        deeper = shlex.quote(f"{pattern.rstrip('/')}/**")
        return f"matches folders only; for all files in them, at all levels, write {deeper}"
    quoted = re.fullmatch("[\"'\u2018\u201c](.+)[\"'\u2019\u201d]", pattern)
    if quoted:
        return f"matches no file, because its quotes are read as a part of it; write {shlex.quote(quoted[1])}"
    parts = re.split(r"[,\s]+", pattern)
    if len(parts) > 1 and all(map(glob.glob, parts)):
        return "is a list, and only one path or pattern is read; write a pattern that matches all of them, such as '*'"
    where = "" if os.path.isabs(pattern) or "://" in pattern else f" (looked for in {os.getcwd()})"
    if similar := nearest(pattern):
        return f"matches no file{where}; did you mean {shlex.quote(similar)}?"
    if re.search(r"\{.*,.*\}", pattern):
        return f"matches no file{where}; {{a,b}} is not a pattern here, so write * in its place"
    return f"matches no file{where}; give the path of a file that is there, or a pattern such as '/data/train-*'"


def nearest(pattern: str) -> str | None:
    """Returns a local pattern whose first name that is not there is replaced by the most similar one that is."""
    folder, name, rest = pattern.rstrip("/"), "", ""
    while folder and not os.path.isdir(folder) and folder != "/":
        rest = os.path.join(name, rest) if name else rest
        folder, name = os.path.split(folder)
    if not name or glob.has_magic(name):
        return None
    with contextlib.suppress(OSError):
        names = [one for one in os.listdir(folder or os.curdir) if not one.endswith(".py")]  # Never data.
        for similar in difflib.get_close_matches(name, names, n=1):
            return os.path.join(folder, similar, rest).rstrip("/")
    return None


def convert_command(images: str) -> str:
    """Returns a command that makes shards of pictures, to paste into a shell.

    Args:
        images: a folder or a .zip file. Of one that is named cat or dog, the folder that holds it is converted.
    """
    if os.path.basename(images.rstrip("/")).lower() in _CLASS_FOLDERS:
        images = os.path.dirname(images.rstrip("/")) or "."
    name = re.sub(r"(?i)\.zip$", "", images.rstrip("/"))
    output_dir = "shards" if os.path.basename(name) in ("", ".", "..") else f"{name}-shards"
    return command("convert_images_to_tfrecords.py", images=images, output_dir=output_dir)
