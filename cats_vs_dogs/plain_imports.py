"""Lets the files of this folder import each other by their plain names, as in 2017: `import models`.

In a file of the folder, such as cvd_models.py, the plain name of another file or subfolder there means
`cats_vs_dogs.<name>`, as in Python 2. So there is one `BaseModel`, under whichever name it is imported. Other packages
are not affected: their own `utils` stays theirs.
"""

import ast
import importlib
import importlib.machinery
import os
import re
import sys
from collections.abc import Iterator, Sequence
from types import CodeType, ModuleType

_PACKAGE = __package__
_FOLDER = os.path.dirname(os.path.realpath(__file__))

# What the kit itself imports from elsewhere. A file of the folder cannot replace it, nor a module of Python.
REQUIRED = {
    *("PIL", "absl", "apache_beam", "distributed", "google", "google_crc32c", "h5py", "jinja2", "keras", "matplotlib"),
    *("numpy", "onnxruntime", "pandas", "requests", "tensorboard", "tensorflow", "tf2onnx", "tqdm", "urllib3"),
}
_IMPORT = re.compile(rb"(?:^|[;:])[ \t]*(?:from[ \t]+(\w+)|import[ \t]+([^\n;#]+))", re.MULTILINE)
_WORDS_OF_IMPORT = re.compile(r"(?:^|,)\s*(\w+)")


def install() -> None:
    """Makes Python's import system use this module, and no earlier copy of it."""
    others = [finder for finder in sys.meta_path if getattr(finder, "__module__", "") != __name__]
    sys.meta_path[:] = [_Finder, *others, _ScriptFinder]


def is_taken(name: str) -> bool:
    """Whether a plain module name means a module of Python, or a package that the kit needs."""
    return name in sys.stdlib_module_names or name in REQUIRED


def is_in_folder(name: str) -> bool:
    """Whether a plain module name, such as "models", means a file or a subfolder of this folder."""
    if is_taken(name):
        return False
    path = os.path.join(_FOLDER, name)
    return os.path.isfile(f"{path}.py") or (
        os.path.isdir(path) and any(one.endswith(".py") for one in os.listdir(path))
    )


class _Finder(importlib.machinery.PathFinder):
    """Finds the package's modules. Those that import others by plain names get `_Loader`."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(f"{_PACKAGE}."):
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            with open(spec.origin, "rb") as file:
                source = file.read()
            if any(map(is_in_folder, _imported_names(source))):
                spec.loader = _Loader(fullname, spec.origin)
        return spec


def _imported_names(source: bytes) -> set[str]:
    """Returns the first parts of what a source file imports. May return more, since it does not parse the file."""
    lines = _IMPORT.findall(re.sub(rb"\\\r?\n", b" ", source))
    texts = [(module or names).decode("ascii", "replace") for module, names in lines]
    return {name for text in texts for name in _WORDS_OF_IMPORT.findall(text)}


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a file with full names instead of plain ones. It uses no cached bytecode, which has the plain ones."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)

    def source_to_code(self, data: bytes, path: str, *, _optimize: int = -1) -> CodeType:
        tree = _FullNames().visit(ast.parse(data, path))
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)


class _FullNames(ast.NodeTransformer):
    """Replaces plain names of the folder's modules in import statements."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        if node.level == 0 and is_in_folder(node.module.partition(".")[0]):
            node.module = f"{_PACKAGE}.{node.module}"
        return node

    def visit_Import(self, node: ast.Import) -> list[ast.stmt]:
        statements = [statement for alias in node.names for statement in _import_statements(alias)]
        return [ast.fix_missing_locations(ast.copy_location(statement, node)) for statement in statements]


def _import_statements(alias: ast.alias) -> Iterator[ast.stmt]:
    """Yields statements that import what `import <alias>` does and bind the same name."""
    first = alias.name.partition(".")[0]
    if not is_in_folder(first):
        yield ast.Import([alias])
        return
    yield ast.Import([ast.alias(f"{_PACKAGE}.{alias.name}", alias.asname or first)])
    if "." in alias.name and not alias.asname:  # `import nets.vgg` binds `nets`.
        yield ast.Import([ast.alias(f"{_PACKAGE}.{first}", first)])


class _ScriptFinder:
    """Finds plain names for a script of the folder that runs, and for `importlib.import_module` in the folder's files.

    It comes last, so it is asked only for names that nothing else has.
    """

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if path is None and is_in_folder(fullname) and os.path.realpath(_importing_file()).startswith(_FOLDER + os.sep):
            return importlib.machinery.ModuleSpec(fullname, cls)
        return None

    @staticmethod
    def create_module(spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(f"{_PACKAGE}.{spec.name}")
        spec.loader_state = module.__spec__
        return module

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Executes nothing: the module has been executed under its full name, which it keeps."""
        module.__spec__ = module.__spec__.loader_state


def _importing_file() -> str:
    """Returns the path of the file that imports something now; "" if that is no file."""
    frame = sys._getframe(2)
    while frame is not None and "importlib" in frame.f_code.co_filename:
        frame = frame.f_back
    return frame.f_globals.get("__file__") or "" if frame is not None else ""
