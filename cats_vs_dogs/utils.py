"""What every script needs: starting up, errors for users, files that are whole or absent.

TensorFlow is imported inside the functions that need it, so that a script that does not can start at once.
"""

import contextlib
import difflib
import inspect
import io
import json
import logging as python_logging
import math
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import IO, Any

from absl import app, flags, logging

TRAIN_DIR = "/tmp/cvd_model/"


class UserError(Exception):
    """Something that the user can mend. Scripts print its message in one line and exit with 1, without a traceback."""


def run_script(main: Callable[..., None], define_flags: Callable[[], None], pass_on_flags: bool = False) -> None:
    """Runs a script: defines its flags, reads the command line, calls `main`, and ends with a proper exit code.

    Args:
        main: called once the flags have been read; without arguments, or with `pass_on_flags` with those of the
            command line that are no flags of the script, a list of strings.
        define_flags: defines the script's flags. Called here and not on import, so that one process can import
            every script.
        pass_on_flags: whether others than the script's flags are allowed.
    """
    define_flags()

    def parse_flags(argv: Sequence[str]) -> list[str]:
        if {"-h", "-help", "--help"} & set(argv[1:]):
            print(sys.modules["__main__"].__doc__, flags.FLAGS.main_module_help(), sep="\n")
            sys.exit(0)  # absl would exit with 1.
        try:
            flags.FLAGS.set_gnu_getopt(pass_on_flags)  # The script's flags may stand behind others: --other 1 --its=2
            rest = flags.FLAGS(argv, known_only=pass_on_flags)
        except flags.Error as error:
            _exit_with_error(f"{error} (--help lists all flags)")
        if len(rest) > 1 and not pass_on_flags:
            _exit_with_error(f"{' '.join(rest[1:])}: not a flag; write --name=value, and put quotes around patterns")
        for name, value in flags.FLAGS.flag_values_dict().items():
            if isinstance(value, float) and not math.isfinite(value):  # No bound holds nan back.
                _exit_with_error(f"--{name}={value}: must be a finite number")
        return rest

    def guarded_main(argv: Sequence[str]) -> None:
        logging.set_verbosity(logging.INFO)
        logging.get_absl_handler().setFormatter(_LineFormatter())
        logging.get_absl_handler().addFilter(_is_ours_or_grave)
        python_logging.getLogger("tensorflow").setLevel(python_logging.WARNING)
        # As an exception, so that what is half written is cleaned up.
        signal.signal(signal.SIGTERM, lambda number, unused_frame: sys.exit(128 + number))
        try:
            main(*([argv[1:]] if pass_on_flags else []))
        except UserError as error:
            _exit_with_error(str(error))
        except KeyboardInterrupt:
            sys.exit(130)

    app.run(guarded_main, flags_parser=parse_flags)


class _LineFormatter(python_logging.Formatter):
    """The plain message for information, as the 2017 log lines; the level in front of anything graver."""

    def format(self, record: python_logging.LogRecord) -> str:
        message = record.getMessage()
        return message if record.levelno <= python_logging.INFO else f"{record.levelname}: {message}"


def _is_ours_or_grave(record: python_logging.LogRecord) -> bool:
    """Whether a log record is of this package, or a warning of anyone; TensorFlow logs through absl too."""
    return record.levelno > python_logging.INFO or os.path.dirname(record.pathname) == os.path.dirname(__file__)


def _exit_with_error(message: str) -> None:
    sys.stdout.flush()
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(1)


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


def parse_json_flag(text: str, flag: str) -> dict[str, Any]:
    """Returns the dict that a flag such as `--model_params='{"num_mixtures": 4}'` holds; an empty text is {}.

    Raises:
        UserError: if the text is not a JSON object.
    """
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise UserError(f"--{flag}={text}: not JSON ({error}); write it like --{flag}='{{\"name\": 1}}'") from error
    if not isinstance(value, dict):
        raise UserError(f"--{flag}={text}: expected a JSON object, like --{flag}='{{\"name\": 1}}'")
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
        offered: passed only as far as the signature names them or has `**params`.
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


def place_of(error: Exception) -> str:
    """Returns the last line of code, outside the libraries, that an error went through: "file line n: code"."""
    places = [(frame.filename, frame.lineno, frame.line) for frame in traceback.extract_tb(error.__traceback__)]
    places += re.findall(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)', str(error))  # See above.
    libraries = re.compile(r"/(tensorflow|keras|numpy|absl)/|__autograph_generated_file")
    filename, number, line = [place for place in places if not libraries.search(place[0])][-1]
    return f"{os.path.basename(filename)} line {number}: {line}"


def is_remote(path: str) -> bool:
    """Whether a path is on an object store, such as gs://bucket/name.

    There an object is whole or absent by itself, a rename is a copy, folders need not be made, and each look at a file
    is a request or two.
    """
    return "://" in path


def upload(folder: str, target: str, last: str) -> None:
    """Copies the files of a local folder, with those of its subfolders, to an object store.

    Args:
        folder: the local folder.
        target: the folder on the object store. Files of the same name there are replaced.
        last: how the names of the files end that are copied after all others, and so tell that these are there.
    """
    import tensorflow as tf

    files = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]
    for file in sorted(files, key=lambda file: file.endswith(last)):
        tf.io.gfile.copy(file, f"{target}/{os.path.relpath(file, folder)}", overwrite=True)


def reason_of(error: Exception) -> str:
    """Says why TensorFlow could not read or write a file; of what Cloud Storage answers, what matters."""
    message = str(getattr(error, "message", None) or error)
    answer = re.search(r'HTTP response code (\d+) .*?"message": *"([^"]*)"', message, re.DOTALL)
    if not answer:
        return message
    login = " (log in with gcloud auth application-default login?)" if answer[1] in ("401", "403") else ""
    return f"Cloud Storage answered {answer[1]}: {answer[2]}{login}"


def list_files(pattern: str, flag: str) -> list[str]:
    """Returns the files that a pattern matches, sorted.

    Raises:
        UserError: if the pattern matches no file.
    """
    import tensorflow as tf

    gfile = tf.io.gfile
    try:
        found = set(gfile.glob(pattern))
        if is_remote(pattern):  # One listing instead of requests for each.
            folders = {os.path.dirname(path) for path in gfile.glob(f"{pattern}/*")}
        else:
            folders = set(filter(gfile.isdir, found))
        files = sorted(found - folders)
    except tf.errors.OpError as error:
        raise UserError(f"--{flag}={pattern}: cannot be listed: {reason_of(error)}") from error
    if not files and gfile.isdir(pattern):
        name = {"train_data_pattern": "train-*", "eval_data_pattern": "validation-*"}.get(flag, "*")
        raise UserError(f"--{flag}={pattern}: is a folder; write --{flag}='{os.path.join(pattern, name)}'")
    if not files:
        where = "" if os.path.isabs(pattern) or "://" in pattern else f" (looked for in {os.getcwd()})"
        raise UserError(f"--{flag}={pattern}: matches no file{where}; give the path of shards, such as '/data/train-*'")
    return files


@contextlib.contextmanager
def write_aside(path: str, flag: str) -> Iterator[IO[str]]:
    """Opens a text file that appears at `path` only when the block ends without an exception.

    The file is opened at once, so an output that cannot be written is noticed before the work and not after it.
    For an object store the text is kept in memory and uploaded at the end.

    Args:
        path: where the whole file will be. An older file there stays until then.
        flag: the flag that named it, for the message; "" if none did.

    Yields:
        The open file, UTF-8.

    Raises:
        UserError: if the file cannot be written.
    """
    import tensorflow as tf

    gfile = tf.io.gfile
    aside = f"{path}.{os.getpid()}.tmp"
    name = f"--{flag}={path}" if flag else path
    if is_remote(path):
        text = io.StringIO()
        if flag:
            _try_writing(aside, name, "name another file")
        yield text
        try:
            with gfile.GFile(path, "w") as output:
                output.write(text.getvalue())
        except tf.errors.OpError as error:
            raise UserError(f"{name}: cannot be written: {reason_of(error)}") from error
        return
    try:
        if gfile.isdir(path):
            raise UserError(f"{name}: is a folder; name a file in it")
        output = gfile.GFile(aside, "w")
        output.write("")  # GFile opens the file at the first write.
    except tf.errors.OpError as error:
        folder = os.path.dirname(path)
        if folder and not gfile.isdir(folder):
            raise UserError(f"{name}: the folder {folder} does not exist; make it first") from error
        raise UserError(f"{name}: cannot be written: {error.message}; name another file") from error
    try:
        with output:
            yield output
        gfile.rename(aside, path, overwrite=True)
    except BaseException as error:
        with contextlib.suppress(tf.errors.OpError):
            gfile.remove(aside)
        if isinstance(error, tf.errors.OpError) and aside in str(error.message):
            raise UserError(f"{name}: cannot be written: {error.message}") from error
        raise


def makedirs(path: str) -> None:
    """Makes a folder and its parents if they are not there; on an object store they need not be made."""
    import tensorflow as tf

    if not is_remote(path):
        tf.io.gfile.makedirs(path)


def check_output(path: str, flag: str) -> None:
    """Makes sure that a file can be written with `write_aside`, before the work for it begins. Changes nothing.

    Raises:
        UserError: if it cannot.
    """

    class Tried(Exception):
        pass

    with contextlib.suppress(Tried), write_aside(path, flag):
        raise Tried  # So that nothing appears at `path`.


def make_folder(path: str, flag: str) -> None:
    """Makes a folder and its parents if they are not there, and makes sure that it can be written to.

    Raises:
        UserError: if it cannot be made or written to.
    """
    import tensorflow as tf

    if not path:
        raise UserError(f"--{flag}= is empty; name a folder")
    name, advice = f"--{flag}={path}", "name another folder"
    try:
        makedirs(path)
    except tf.errors.OpError as error:
        raise UserError(f"{name}: cannot be written to: {error.message}; {advice}") from error
    _try_writing(os.path.join(path, f".write-test-{os.getpid()}"), name, advice)


def _try_writing(probe: str, name: str, advice: str) -> None:
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(probe, "w") as file:
            file.write("")
        tf.io.gfile.remove(probe)
    except tf.errors.OpError as error:
        raise UserError(f"{name}: cannot be written to: {reason_of(error)}; {advice}") from error


def free_memory() -> int:
    """Returns how many bytes of memory this process may still take, by the machine and by its control group."""

    def read(path: str) -> str:
        with open(path, encoding="ascii") as file:
            return file.read().strip()

    free = []
    with contextlib.suppress(OSError, ValueError):  # Not on macOS and Windows.
        free.append(1024 * int(re.search(r"MemAvailable:\s+(\d+) kB", read("/proc/meminfo"))[1]))
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # No control group, or one without limit: "max".
            free.append(int(read(limit)) - int(read(used)))
    return max(0, min(free)) if free else 4 * 2**30


@contextlib.contextmanager
def writing(path: str, flag: str) -> Iterator[None]:
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
        reason = re.sub(r"\{\{function_node .*?\}\} | \[Op:.*", "", reason_of(error))
        raise UserError(
            f"--{flag}={path}: cannot be written to: {reason}; what was saved before is whole; mend it (is the disk "
            "full?) and start again with the same flags"
        ) from error


def write_json(path: str, value: dict[str, Any]) -> None:
    """Writes a JSON file, whole or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    with write_aside(path, "") as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str) -> dict[str, Any]:
    """Reads a JSON file that the kit wrote.

    Raises:
        UserError: if the file is damaged.
    """
    import tensorflow as tf

    with tf.io.gfile.GFile(path, "r") as file:
        text = file.read()
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: damaged, not JSON ({error}); mend it, or train anew in another train_dir") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: damaged, not a JSON object; mend it, or train anew in another train_dir")
    return value
