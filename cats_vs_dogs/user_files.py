"""Imports the files that users edit, says in one line what is wrong in them, and what tells them from others."""

import contextlib
import hashlib
import importlib
import os
import sys
import sysconfig
import traceback

from cats_vs_dogs import plain_imports, porting
from cats_vs_dogs.utils import UserError

# Each imports only those before it.
_NAMES = ("losses", "readers", "cvd_models")
_FOLDER = os.path.dirname(os.path.abspath(__file__))


def import_all() -> None:
    """Imports the losses, the readers and the models, with all files that they import.

    Raises:
        UserError: if one of them cannot be imported, naming the file and the line; or if a file of the folder has a
            name that means another module.
    """
    for entry in sorted(os.listdir(_FOLDER)):
        name = entry.removesuffix(".py")
        if plain_imports.is_taken(name):
            path = os.path.join(_FOLDER, entry)
            raise UserError(f"{path}: `import {name}` means a module that is not in this folder; give it another name")
    for name in _NAMES:
        try:
            importlib.import_module(f"{__package__}.{name}")
        except UserError:
            raise
        except Exception as error:
            raise UserError(explain(error)) from error


def code_hashes() -> dict[str, str]:
    """Returns a hash of each imported file of the kit and of the user, by what it is: "the code of losses.py".

    The user's are all that are not in a folder of Python or of installed packages; they have the module's name.
    """
    kit = os.path.realpath(_FOLDER)
    libraries = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    hashes: dict[str, str] = {}
    for module in list(sys.modules.values()):
        path = os.path.realpath(getattr(module, "__file__", None) or "")
        is_kit = path.startswith(kit + os.sep)
        is_library = any(path.startswith(folder + os.sep) for folder in libraries) or "-packages" + os.sep in path
        if path.endswith(".py") and (is_kit or not is_library):
            name = os.path.relpath(path, kit) if is_kit else module.__name__
            with contextlib.suppress(OSError), open(path, "rb") as file:  # It may have been deleted since.
                hashes[f"the code of {name}"] = hashlib.blake2b(file.read(), digest_size=4).hexdigest()
    return dict(sorted(hashes.items()))


def explain(error: Exception) -> str:
    """Says where the import of a file failed, why, and what to write instead of a name of 2017.

    Args:
        error: what the import raised.
    """
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        where, message = (error.filename, error.lineno, error.text), f"{type(error).__name__}: {error.msg}"
    else:
        # The last line in a file of the kit's folder; below it is code that the user did not write.
        frames = [(frame.filename, frame.lineno, frame.line) for frame in traceback.extract_tb(error.__traceback__)]
        own = [frame for frame in frames if os.path.abspath(frame[0]).startswith(_FOLDER + os.sep)]
        where = own[-1]
    path, number, line = where
    place = f"{os.path.basename(path or '')} line {number}: {(line or '').strip()}"
    instead = porting.advice(error, is_loss=place.startswith("losses.py "))
    return f"{place}: {message}{f'; {instead}; see {porting.PAGE}' if instead else ''}"
