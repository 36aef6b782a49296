"""What every script needs: reading flags, starting up, errors for users, classes found by name.

Imports nothing heavy: a script reads its flags before TensorFlow is imported.
"""

import contextlib
import difflib
import gc
import inspect
import json
import logging as python_logging
import math
import os
import re
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, NoReturn

from absl import app, flags, logging

from cats_vs_dogs import flag_files, flag_names, path_flags
from cats_vs_dogs.functions_of_2017 import (  # noqa: F401 - utils.py had them in 2017.
    Dequantize,
    MakeSummary,
    clip_gradient_norms,
    combine_gradients,
    find_class_by_name,
)

TRAIN_DIR = "/tmp/cvd_model/"


class UserError(Exception):
    """Something that the user can fix. Scripts print its message in one line and exit with 1, without a traceback."""


# The parts of --help, in this order. A flag names its part as `module_name` where it is defined.
FLAG_GROUPS = ("data", "model", "training", "evaluation", "output", "machine")


def run_script(
    main: Callable[..., None],
    define_flags: Callable[[], None],
    pass_on_flags: bool = False,
    takes_paths: bool = False,
) -> None:
    """Reads the flags of a script and runs it, see `read_flags` and `run_main`.

    Args:
        main: takes no argument; with `pass_on_flags` or `takes_paths` a list of the arguments that are not flags of
            the script.
        define_flags: defines the script's flags.
        pass_on_flags: whether flags other than the script's are allowed.
        takes_paths: whether paths and patterns that belong to no flag are allowed.
    """
    others = read_flags(define_flags, pass_on_flags, takes_paths)
    run_main(lambda: main(others) if pass_on_flags or takes_paths else main())


def read_flags(define_flags: Callable[[], None], pass_on_flags: bool = False, takes_paths: bool = False) -> list[str]:
    """Defines a script's flags and reads the command line. Ends the process if it is wrong, or asks for --help.

    To be called before TensorFlow is imported, which takes seconds.

    Args:
        define_flags: defines the script's flags, each with one of FLAG_GROUPS as `module_name`. Called here and not on
            import, so that one process can import every script.
        pass_on_flags: whether flags other than the script's are allowed.
        takes_paths: whether paths and patterns that belong to no flag are allowed.

    Returns:
        The arguments that are not flags of the script; paths are those that the user means, see
        `path_flags.expand_path`.
    """
    _use_utf8()
    for name in _own_flags():
        delattr(flags.FLAGS, name)  # Of an earlier script in this process, as in a notebook.
    if "log_dir" in flags.FLAGS:
        del flags.FLAGS.log_dir  # absl's, which has no effect here. Users mean train_dir by it.
    arguments: list[flag_files.Argument] = []
    try:
        define_flags()  # A default may be wrong, too: that of train_dir may come from the environment.
        if {"-h", "-help", "--help", "--helpshort", "--helpfull", "-?"} & set(sys.argv[1:]):
            parts = [
                flags.FLAGS.module_help(group) for group in FLAG_GROUPS if group in flags.FLAGS.flags_by_module_dict()
            ]
            print(sys.modules["__main__"].__doc__, *parts, sep="\n")
            sys.exit(0)
        # The script's flags may come after others: --other 1 --its=2
        flags.FLAGS.set_gnu_getopt(pass_on_flags or takes_paths)
        has_recipe = "recipe" in flags.FLAGS
        arguments = flag_files.read_arguments(sys.argv[1:], has_recipe)
        others = flags.FLAGS([sys.argv[0], *(text for text, _ in arguments)], known_only=pass_on_flags)[1:]
        if has_recipe:
            flag_files.merge_params(flags.FLAGS)
    except flags.UnrecognizedFlagError as error:
        answer = flag_names.explain_unknown_flag(error.flagname, _own_flags())
        message = f"Unknown command line flag '{error.flagname}'{answer and f'; {answer}'}"
        where = flag_files.place_of([error.flagname], arguments)
        _exit_with_error(f"{where}{message} (--help lists all flags)")
    except flags.Error as error:
        message = "; ".join(line.removeprefix("flag ") for line in str(error).splitlines())
        wrong = [name for name in _own_flags() if re.search(rf"\b{name}=", message)]
        where = flag_files.place_of(wrong, arguments)
        _exit_with_error(f"{where}{message} (--help lists all flags)")
    wrong = list(filter(flag_names.looks_like_a_flag, others)) if takes_paths else others
    if wrong and not pass_on_flags:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""  # Perhaps all files that a pattern matches.
        advice = flag_names.explain_words(wrong, _own_flags())
        where = flag_files.place_of(wrong[:1], arguments)
        _exit_with_error(f"{where}{' '.join(wrong[:3])}{more}: not a flag; {advice} (--help lists all flags)")
    if takes_paths:
        others = list(map(_expand_path, others))
    for name, value in flags.FLAGS.flag_values_dict().items():
        if isinstance(value, float) and not math.isfinite(value):  # A lower or upper bound lets nan pass.
            where = flag_files.place_of([name], arguments)
            _exit_with_error(f"{where}--{name}={value}: must be a finite number")
    return others


def _expand_path(word: str) -> str:
    """Returns the path that a word on the command line means; ends the process if it cannot be one."""
    try:
        return path_flags.expand_path(word)
    except ValueError as error:
        _exit_with_error(f"{word}: {error}")


def _own_flags() -> list[str]:
    """Returns the names of the flags that a script of the kit has defined. Others are absl's, such as --verbosity."""
    defined = flags.FLAGS.flags_by_module_dict()
    return [flag.name for group in FLAG_GROUPS for flag in defined.get(group, [])]


def _use_utf8() -> None:
    """Starts this script again in Python's UTF-8 mode if Python takes paths for another encoding, such as ASCII.

    TensorFlow takes paths for UTF-8 always. A notebook, whose process is not this script's, is left as it is.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError):  # A notebook's stream.
            stream.reconfigure(errors="backslashreplace")  # A name that a terminal cannot show is no error.
    if sys.getfilesystemencoding() == "utf-8" or not _is_own_process() or not sys.executable:
        return
    if "utf8" in sys._xoptions:
        _exit_with_error("-X utf8=0: paths must be UTF-8; leave the option out")
    os.environ["PYTHONUTF8"] = "1"  # For processes that this one starts.
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _is_own_process() -> bool:
    """Whether this process was started for the script, unlike a notebook's."""
    names = {sys.argv[0], f"cats_vs_dogs.{os.path.basename(sys.argv[0]).removesuffix('.py')}"}  # The latter with -m.
    return bool(names & set(sys.orig_argv))


def run_main(main: Callable[[], None]) -> None:
    """Runs a script whose flags have been read, and ends the process with a proper exit code."""

    def guarded_main(unused_argv: Sequence[str]) -> None:
        try:
            with _exit_on_sigterm(), exit_on_user_error():
                main()
        except KeyboardInterrupt:
            sys.exit(130)

    try:
        with _own_logging():
            app.run(guarded_main, flags_parser=lambda argv: argv)
    finally:
        if _is_own_process():
            gc.freeze()  # Otherwise Python goes through all objects once more, over a second with TensorFlow's.


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Ends the process with one line and exit code 1 if the block raises a UserError."""
    try:
        yield
    except UserError as error:
        _exit_with_error(str(error))


@contextlib.contextmanager
def _own_logging() -> Iterator[None]:
    """Logs as scripts do inside the block. A notebook, which runs scripts in its own process, then logs as before."""
    root, tensorflow, handler = python_logging.root, python_logging.getLogger("tensorflow"), logging.get_absl_handler()
    handlers, level, verbosity = root.handlers[:], tensorflow.level, logging.get_verbosity()
    formatter = handler.formatter
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler.setFormatter(_LineFormatter())
    handler.addFilter(_is_ours_or_grave)
    tensorflow.setLevel(python_logging.WARNING)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        logging.set_verbosity(verbosity)
        handler.setFormatter(formatter)
        handler.removeFilter(_is_ours_or_grave)
        tensorflow.setLevel(level)


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Turns SIGTERM into an exception inside the block, so that temporary files are deleted."""
    before = signal.signal(signal.SIGTERM, lambda number, unused_frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


# What TensorFlow writes to stderr, past its log level, when it starts on a machine without a GPU.
_STARTUP_LINES = re.compile(
    rb"All log messages before absl::InitializeLog|oneDNN custom operations are on|Could not find cuda drivers|"
    rb"This TensorFlow binary is optimized|To enable the following instructions|"
    rb"failed call to cuInit|Unable to register cu|Cannot dlopen some GPU libraries|Skipping registering GPU devices|"
    rb"computation_placer already registered|TF-TRT Warning|Could not find TensorRT"
)


def import_tensorflow() -> None:
    """Imports TensorFlow; on a machine without an NVIDIA GPU, its usual start-up lines are not shown.

    TensorFlow writes them from C++, before its log level applies. A child process filters stderr meanwhile, so that
    any other line is shown even if the import ends this process.
    """
    if "tensorflow" in sys.modules:
        return
    is_own_process = _is_own_process()
    if is_own_process:
        os.environ["MPLBACKEND"] = "agg"  # Keras imports matplotlib, which may lack that of the notebook around it.
        gc.disable()  # What is imported stays. To look for garbage in it takes a second, now and at the exit.
    with _explain_keras_json(), _without_startup_lines():
        import tensorflow as tf

        tf.config.list_physical_devices("GPU")  # Now, since the first look at the GPUs writes such a line too.
    if is_own_process:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def _without_startup_lines() -> Iterator[None]:
    """Leaves TensorFlow's start-up lines out of what the block writes to stderr."""
    if not hasattr(os, "fork") or os.path.exists("/dev/nvidiactl"):
        yield
        return
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        with os.fdopen(reader, "rb") as lines:
            for line in lines:
                if not _STARTUP_LINES.search(line):
                    os.write(2, line)
        os._exit(0)
    os.close(reader)
    stderr = os.dup(2)
    os.dup2(writer, 2)
    os.close(writer)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.waitpid(child, 0)


@contextlib.contextmanager
def _explain_keras_json() -> Iterator[None]:
    """Ends the process with one line if TensorFlow, when it is imported, cannot use the user's keras.json."""
    try:
        yield
    except (AssertionError, AttributeError, TypeError, ValueError, OSError) as error:
        path = os.path.join(os.environ.get("KERAS_HOME", os.path.expanduser("~/.keras")), "keras.json")
        # Keras and TensorFlow's older copy of it read the file.
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        is_read = re.search(r"[/\\]keras[/\\](.*[/\\])?(backend|backend_config|config)\.py$", raised_in)
        if not is_read or not os.path.exists(path):
            raise
        _exit_with_error(f"{path}: TensorFlow cannot be imported with it; delete it ({type(error).__name__}: {error})")


class _LineFormatter(python_logging.Formatter):
    """The plain message for information, as the 2017 log lines; the level in front of anything graver."""

    def format(self, record: python_logging.LogRecord) -> str:
        message = record.getMessage()
        return message if record.levelno <= python_logging.INFO else f"{record.levelname}: {message}"


def _is_ours_or_grave(record: python_logging.LogRecord) -> bool:
    """Whether a log record is of this package, or a warning of anyone; TensorFlow logs through absl too."""
    return record.levelno > python_logging.INFO or os.path.dirname(record.pathname) == os.path.dirname(__file__)


def _exit_with_error(message: str) -> NoReturn:
    sys.stdout.flush()
    # In one line, but a path in it may have several spaces.
    print("error: " + re.sub(r"\s*\n\s*", " ", message.strip()), file=sys.stderr)
    sys.exit(1)


def command(script: str, *switches: str, **values: str) -> str:
    """Returns a command to paste into a shell: it runs a script that lies beside the one that is running.

    Args:
        script: the script's file name, such as "eval.py".
        switches: flags without a value, such as "run_once".
        values: flags and their values.
    """
    folder, own_folder = os.path.dirname(sys.argv[0]), os.path.dirname(os.path.abspath(__file__))
    if os.path.realpath(folder) != os.path.realpath(own_folder):  # Imported by another program.
        folder = own_folder
    path = os.path.join(folder, script)
    arguments = [f" --{name}" for name in switches]
    for name, value in values.items():
        value = f"./{value}" if value.startswith(("~", "$", "--")) else value  # See path_flags.expand_path.
        arguments.append(f" --{name}={shlex.quote(value)}")
    return f"{python_command()} {shlex.quote(path)}{''.join(arguments)}"


# Where TensorBoard is once it runs, with a smoothing of 0 in both tabs with curves. It has no flag for that.
TENSORBOARD_ADDRESS = "http://localhost:6006/?smoothing=0#scalars&_smoothingWeight=0"


def tensorboard_command() -> str:
    """Returns what starts TensorBoard in a shell."""
    is_on_path = os.path.dirname(shutil.which("tensorboard") or "") == os.path.dirname(sys.executable)
    return "tensorboard" if is_on_path else f"{python_command()} -m tensorboard.main"


def python_command() -> str:
    """Returns what starts this interpreter in a shell: "python" if PATH leads to it, else its path."""
    folder = os.path.dirname(sys.executable)
    for name in ("python", "python3"):
        if os.path.dirname(shutil.which(name) or "") == folder:
            return name
    return shlex.quote(sys.executable)


def default_train_dir() -> str:
    """Returns the train_dir of scripts that are given none: where a job of Vertex AI is told to write, else TRAIN_DIR.

    https://cloud.google.com/vertex-ai/docs/training/code-requirements#environment-variables
    """
    names = ("AIP_CHECKPOINT_DIR", "AIP_MODEL_DIR", "AIP_TENSORBOARD_LOG_DIR")
    return next((os.environ[name] for name in names if os.environ.get(name)), TRAIN_DIR)


def find_class(name: str, module: ModuleType, base_class: type, flag: str) -> type:
    """Finds a class of `module` by name.

    Args:
        name: the class name, as the user typed it.
        module: where users add their classes.
        base_class: what the class must inherit from.
        flag: name of the flag that named it, for the message.

    Returns:
        The class.

    Raises:
        UserError: if there is no such class, or it does not inherit from `base_class`.
    """
    where = os.path.basename(module.__file__ or module.__name__)
    available = sorted(
        key
        for key, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, base_class) and value is not base_class
    )
    found = getattr(module, name, None)
    if found is None:
        raise UserError(f"--{flag}={name}: no such class in {where}{suggest(name, available)}")
    if name not in available:
        raise UserError(
            f"--{flag}={name}: it is not a subclass of {base_class.__module__.split('.')[-1]}.{base_class.__name__}; "
            f"available: {', '.join(available)}"
        )
    return found


def suggest(name: str, available: Sequence[str]) -> str:
    """Returns "; did you mean X? available: ..." for a name that is not among `available`."""
    by_lower_case = {candidate.lower(): candidate for candidate in available}
    nearest = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    hint = f"; did you mean {by_lower_case[nearest[0]]}?" if nearest else ";"
    return f"{hint} available: {', '.join(available)}"


def parse_json_object(text: str) -> dict[str, Any]:
    """Returns the dict of a flag such as --model_params='{"num_mixtures": 4}'; an empty text is {}.

    Raises:
        ValueError: if the text is not a JSON object; it says how to write one.
    """
    example = "'{\"name\": 1}'"
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}); write it like {example}") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, like {example}")
    return value


def accepted_arguments(
    function: Callable, what: str, flag: str, num_positional: int, offered: dict[str, Any], asked: dict[str, Any]
) -> dict[str, Any]:
    """Returns the keyword arguments for a user's function: what the kit offers and what the user asked for by a flag.

    Args:
        function: a bound method such as `create_model`.
        what: its name for messages, such as "LogisticModel.create_model".
        flag: the JSON flag that `asked` came from.
        num_positional: how many positional arguments the kit passes besides.
        offered: passed only if the signature names them or has `**params`.
        asked: each must be accepted.

    Raises:
        UserError: if the signature does not accept a name in `asked`.
    """
    parameters = list(inspect.signature(function).parameters.values())
    accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    keywords = [p.name for p in parameters[num_positional:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for name in asked:
        if name in offered or (name not in keywords and not accepts_any):
            accepted = ", ".join(sorted(set(keywords) - set(offered))) or "none"
            raise UserError(f'--{flag}: {what} has no parameter "{name}"; it takes: {accepted}')
    return {name: value for name, value in offered.items() if accepts_any or name in keywords} | asked


def user_code_error(what: str, error: Exception) -> UserError:
    """Says in one line where the user's own code failed, and why. What a UserError says is left as it is.

    Args:
        what: the function that was called, such as "MyModel.create_model".
        error: what it raised, perhaps while TensorFlow traced it.

    Returns:
        The error to raise instead.
    """
    message = str(error).strip()
    if "in user code:" in message:  # TensorFlow moves the frames of code that it traces into the message.
        message = message.rsplit("\n\n", 1)[-1].strip()
    message = message.removeprefix(f"{type(error).__name__}: ")
    if isinstance(error, UserError):
        return UserError(message)
    return UserError(f"{what} failed: {type(error).__name__}: {message} ({place_of(error)})")


# Paths of code that is not the user's.
LIBRARIES = re.compile(r"/(tensorflow|keras|numpy|absl)/|__autograph_generated_file")


def place_of(error: Exception) -> str:
    """Returns the last line of code, outside the libraries, that an error went through: "file line n: code"."""
    places = [(frame.filename, frame.lineno, frame.line) for frame in traceback.extract_tb(error.__traceback__)]
    places += re.findall(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)', str(error))  # See above.
    filename, number, line = [place for place in places if not LIBRARIES.search(place[0])][-1]
    return f"{os.path.basename(filename)} line {number}: {line}"


def free_memory(root: str = "") -> int:
    """Returns how many bytes of memory this process can still allocate on its machine and in its control groups.

    A group's limit holds for all groups in it, so each group from the own one up to the root counts. Memory that caches
    files counts as free, since the kernel reclaims it when a process needs it.

    Args:
        root: path in front of /proc and /sys, for tests.
    """
    free = []
    with contextlib.suppress(OSError, KeyError, ValueError):  # macOS and Windows have no such file.
        free.append(1024 * _read_numbers(f"{root}/proc/meminfo")["MemAvailable:"])
    for version, root_group, path in _memory_groups(root):
        names = path.split("/")  # The first one is empty: the root group.
        for depth in range(len(names)):
            free += _free_in_group(root_group + "/".join(names[: depth + 1]), version)
    return max(0, min(free)) if free else 4 * 2**30


def _memory_groups(root: str) -> Iterator[tuple[int, str, str]]:
    """Yields each version of control groups, the folder of its root group, and the path of the own group below that.

    In a container the path may be the one outside of it. Its folders are not there then, but the root group's folder is
    that of the container's group.
    """
    paths = {1: "", 2: ""}
    with contextlib.suppress(OSError, ValueError), open(f"{root}/proc/self/cgroup", encoding="utf-8") as file:
        for line in file:
            number, controllers, path = line.rstrip("\n").split(":", 2)
            if number == "0" or "memory" in controllers.split(","):
                paths[2 if number == "0" else 1] = path.rstrip("/")
    yield 1, f"{root}/sys/fs/cgroup/memory", paths[1]
    yield 2, f"{root}/sys/fs/cgroup", paths[2]
    yield 2, f"{root}/sys/fs/cgroup/unified", paths[2]  # Where both versions are mounted.


def _free_in_group(folder: str, version: int) -> list[int]:
    """Returns what is free below each limit of a control group; nothing without a limit or without such a group."""
    limits, usage, prefix = ("memory.max", "memory.high"), "memory.current", ""
    if version == 1:
        limits, usage, prefix = ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_"
    free = []
    for limit in limits:
        with contextlib.suppress(OSError, ValueError):  # There is no such file, or no limit: "max".
            free.append(_read_number(f"{folder}/{limit}") - _read_number(f"{folder}/{usage}"))
    cached = 0
    with contextlib.suppress(OSError, KeyError, ValueError):
        numbers = _read_numbers(f"{folder}/memory.stat")
        cached = numbers[f"{prefix}inactive_file"] + numbers[f"{prefix}active_file"]
    return [number + cached for number in free]


def _read_number(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())


def _read_numbers(path: str) -> dict[str, int]:
    """Returns the numbers of a file with a name and a number in each line, such as /proc/meminfo."""
    with open(path, encoding="ascii") as file:
        return {words[0]: int(words[1]) for words in map(str.split, file)}
