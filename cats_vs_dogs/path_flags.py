"""Flags that hold a path or a pattern: what a user may type, and the path that the code gets."""

import glob
import os
import re
import unicodedata
import urllib.parse
from collections.abc import Sequence

from absl import flags

# What a browser's address bar, or a link, shows of an object on Cloud Storage.
_CLOUD_STORAGE_PAGE = re.compile(
    r"https://(?:storage\.googleapis\.com|storage\.cloud\.google\.com|console\.cloud\.google\.com/storage/browser"
    r"(?:/_details)?)/(?P<path>[^?;]+)"
)
_SCHEMES = "gs|https?|ftp|file|s3a?|hdfs|kaggle"


def define_path(name: str, default: str, help: str, module_name: str) -> None:
    """Defines a flag whose value is a path or a pattern, see `expand_path`.

    Args:
        name: the flag's name.
        default: its default value.
        help: its line in --help.
        module_name: its part of --help, one of utils.FLAG_GROUPS.
    """
    flags.DEFINE(_PathParser(), name, default, help, serializer=flags.ArgumentSerializer(), module_name=module_name)


class _PathParser(flags.ArgumentParser):
    def parse(self, argument: str) -> str:
        return expand_path(argument)


def expand_path(text: str) -> str:
    """Returns the path that a user means: `~` and `~name` at its start become a home folder, as in a shell.

    A shell expands `~` only at the start of a word, so it does not in --train_dir=~/model. All other characters stay,
    and gs:// addresses stay as they are.

    Args:
        text: a path or a pattern, as typed.

    Raises:
        ValueError: if it cannot be what the user means: an address that cannot be read here, or a name that a shell
            should have replaced. The message says what to write.
    """
    if re.match(rf"[A-Za-z][\w+.-]*://|(?:{_SCHEMES}):/", text, re.IGNORECASE):
        _check_address(text)
        return text
    if text.startswith("--"):
        raise ValueError(f"its value is missing, and a flag comes next; write ./{text} for a file of that name")
    if text.endswith(("\r", "\n")):
        raise ValueError(
            "ends with a line break; if the command is in a file, save that with the line ends of Unix (LF)"
        )
    if os.name != "nt" and re.match(r"[A-Za-z]:[\\/]", text):
        folder = text[3:].replace("\\", "/")
        raise ValueError(
            f"is a path of Windows; write it as this machine names it, such as /mnt/{text[0].lower()}/{folder}"
        )
    variable = re.match(r"\$(\w+|\{\w+\})(?=/|$)", text)
    if variable and not os.path.lexists(variable[0]):
        raise ValueError(
            f"{variable[0]} was not replaced by its value, since it is in single quotes; use double quotes, or write "
            f"./{text} for a folder of that name"
        )
    if not text.startswith("~"):
        return _as_on_disk(text)
    expanded = os.path.expanduser(text)
    if expanded == text:
        user = text[1:].partition("/")[0]
        reason = f"this machine has no user {user}" if user else "the home folder is not known"
        raise ValueError(f"{reason}; write ./{text} for a folder of that name, or the whole path")
    return _as_on_disk(expanded)


def split_paths(text: str) -> list[str]:
    """Returns the paths in a list such as "/tmp/a, ~/b", each as `expand_path` returns it.

    A comma belongs to a name if there is a file or folder of that name, or a pattern with it matches any. It also does
    after gs://, where looking is not cheap, unless a path or an address comes next.

    Args:
        text: the list, as typed; perhaps one path.

    Raises:
        ValueError: if one of several paths is empty or cannot be what the user means.
    """
    parts, paths = text.split(","), []
    while parts:
        count = next((n for n in range(len(parts), 1, -1) if _is_one_path(parts[:n])), 1)
        path = expand_path(",".join(parts[:count]).strip())
        if not path and text:
            raise ValueError("has an empty name before, after or between its commas; write the folders as in a,b")
        paths.append(path)
        del parts[:count]
    return paths


def _is_one_path(parts: Sequence[str]) -> bool:
    """Whether the parts of a list, with the commas between them, are one path."""
    path = ",".join(parts).strip()
    if path.startswith("gs://"):
        return not any(re.match(r"\s*($|gs://|/|~|\.\.?/)", part) for part in parts[1:])
    path = os.path.expanduser(path)
    return os.path.exists(path) or bool(glob.glob(path))


def _as_on_disk(path: str) -> str:
    """Returns a path with Hangul in the form that the disk has: macOS decomposes it (NFD), and keyboards do not."""
    parts = path.split("/")
    for i, part in enumerate(parts):
        for form in ("NFC", "NFD"):
            written, other = "/".join(parts[: i + 1]), "/".join([*parts[:i], unicodedata.normalize(form, part)])
            if other != written and os.path.lexists(other) and not os.path.lexists(written):
                parts[i] = unicodedata.normalize(form, part)
    return "/".join(parts)


def _check_address(text: str) -> None:
    """Raises a ValueError unless TensorFlow can read an address: gs://bucket/name, see `expand_path`."""
    scheme, _, path = text.partition(":")
    path = path.lstrip("/")
    page = _CLOUD_STORAGE_PAGE.match(text)
    if page:
        raise ValueError(f"is an address for browsers; write gs://{urllib.parse.unquote(page['path'])}")
    if scheme.lower() == "file":
        path = "/" + urllib.parse.unquote(path.removeprefix("localhost/"))
        raise ValueError(f"is an address, not a path; write {path}")
    if scheme.lower() == "gs":
        if not text.startswith("gs://") or text.startswith("gs:///"):
            raise ValueError(f"is not an address of Cloud Storage; write gs://{path}")
        return
    raise ValueError("only paths on this machine and gs:// can be used; download it first, then give its path")
