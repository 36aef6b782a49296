"""A train_dir: every file that the kit writes there, what may be done with it, and what its JSON files hold."""

import contextlib
import dataclasses
import json
import os
import platform
import re
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import logging

from cats_vs_dogs import files, optimizers
from cats_vs_dogs.classifier import find_classes
from cats_vs_dogs.config import WITHOUT_EFFECT, Config, ModelSpec, model_flags_path
from cats_vs_dogs.utils import UserError

EVALUATION_SUFFIX = ".train"  # Event files in eval/ that train.py writes; all others there are eval.py's.


class _Entry(NamedTuple):
    """Files of one kind: their paths in train_dir, the scripts that write them, what a resumed run does to them."""

    path: str
    writers: str
    on_resume: str


# Every file that the kit writes into a train_dir. --start_new_model deletes these and nothing else.
_ENTRIES = (
    _Entry(r"model_flags\.json|run\.json|trained_on\.npy|bad_examples\.csv", "train", "replaced"),
    _Entry(r"checkpoint|model\.ckpt-\d+\..*", "train", "kept up to the newest readable one"),
    _Entry(r"metrics\.jsonl|events\.out\.tfevents\..*", "train", "cut after the checkpoint"),
    _Entry(r"plugins/profile", "train", "kept"),
    _Entry(r"best/(model_flags\.json|model\.ckpt-\d+\..*|metrics-\d+\.json)", "train", "kept"),
    _Entry(r"eval/events\.out\.tfevents\..*\.train", "train", "cut after the checkpoint's last evaluation"),
    _Entry(r"(best/)?eval/(metrics\.jsonl|events\.out\.tfevents\..*)", "eval", "kept"),
    _Entry(r"(best/)?eval/(metrics-\d+\.json|bad_examples\.csv|report\.html)", "eval, train", "kept"),
    _Entry(r"(best/)?eval/ensemble-[0-9a-f]{8}", "eval", "kept"),
    _Entry(r"(best/)?export/step_\d+(_litert|_onnx)?", "export_model, train", "kept"),
    _Entry(r"(best/)?predictions\.csv(\.bad_examples\.csv|report\.html)?", "inference", "kept"),
    _Entry(r"(.*/)?\.write-test-\d+|.*\.\d+\.tmp.*", "all", "deleted if train.py wrote it"),
)
_FOLDERS = ("best", "best/eval", "best/export", "eval", "export", "plugins")
# Temporary files of a training run that was killed. Other scripts may be writing theirs at this moment.
_LEFTOVERS = re.compile(
    r"\.write-test-\d+|model\.ckpt-.*\.tmp.*|best/.*\.tmp.*|"
    r"(checkpoint|[^/]*\.json|trained_on\.npy|metrics\.jsonl|bad_examples\.csv|eval/report\.html|(eval/)?cut|export/step_\d+)\.\d+\.tmp"
)
# What a resumed run cannot change. With another seed it has another order of examples, but the same model.
_FIXED = {field.name for field in dataclasses.fields(ModelSpec)} - {"seed"}


def eval_dir(train_dir: str) -> str:
    """Returns the folder of evaluations."""
    return os.path.join(train_dir, "eval")


def ensemble_dir(train_dirs: Sequence[str]) -> str:
    """Returns the folder for evaluations of an ensemble, in that of its first model. Its number ignores the order."""
    number = zlib.crc32("\n".join(sorted(map(files.real_path, train_dirs))).encode())
    return os.path.join(eval_dir(train_dirs[0]), f"ensemble-{number:08x}")


def best_dir(train_dir: str) -> str:
    """Returns the folder of the best model so far; it can be used like a train_dir."""
    return os.path.join(train_dir, "best")


def export_dir(train_dir: str, step: int, model_format: str = "saved_model") -> str:
    """Returns the folder of a step's export in a format of export_model.py."""
    suffix = "" if model_format == "saved_model" else f"_{model_format}"
    return os.path.join(train_dir, "export", f"step_{step}{suffix}")


def write_metrics(folder: str, step: int, metrics: dict[str, Any]) -> str:
    """Writes the metrics of an evaluation to metrics-<step>.json in a folder, and returns its path.

    Logs a warning if they replace those of the same step on other data; metrics.jsonl keeps both.

    Raises:
        UserError: if it cannot be written.
    """
    path, name = os.path.join(folder, f"metrics-{step}.json"), "eval_data_pattern"
    with contextlib.suppress(UserError, *files.file_errors()):  # The file is missing or damaged.
        old = files.read_json(path)
        if old.get(name) and metrics.get(name) and old[name] != metrics[name]:
            logging.warning(
                "%s held the metrics on %s; now it holds those on %s, and metrics.jsonl both",
                *(path, old[name], metrics[name]),
            )
    files.write_json(path, metrics)
    return path


# ---- Whose files are there.


def lock(train_dir: str) -> int | None:
    """Keeps other training processes out of a train_dir, until the lock is closed or this process ends.

    Object stores, and some operating systems and network drives, have no such lock.

    Returns:
        The file descriptor whose closing ends the lock; None if there is no lock.

    Raises:
        UserError: if another process trains there.
    """
    try:
        import fcntl

        folder = os.open(train_dir, os.O_RDONLY)
    except (ImportError, OSError):  # Windows; gs://
        return None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return folder
    except BlockingIOError:
        os.close(folder)
        raise UserError(
            f"--train_dir={train_dir}: another train.py is training there; wait for it, stop it, or name another "
            "train_dir"
        ) from None
    except OSError:
        os.close(folder)
        return None


def _paths(train_dir: str, within: str = "") -> list[str]:
    """Returns the paths of what is in a train_dir and in the kit's folders there, relative to it: "best/run.json"."""
    paths = []
    for name in files.list_dir(os.path.join(train_dir, within) if within else train_dir):
        path = f"{within}/{name}" if within else name
        folder = os.path.join(train_dir, path)
        is_own = path in _FOLDERS and files.is_dir(folder) and not os.path.islink(folder)
        paths += _paths(train_dir, path) if is_own else [path]
    return paths


def check_deletable(train_dir: str) -> list[str]:
    """Checks that --start_new_model may delete what is in a train_dir.

    Returns:
        The paths of the kit's files in it.

    Raises:
        UserError: if it holds anything else, or is not a folder for one model.
    """
    refusal = f"--start_new_model: --train_dir={train_dir} "
    if os.path.islink(train_dir.rstrip("/")):
        raise UserError(f"{refusal}is a symbolic link; nothing was deleted; name the folder that it points to")
    if os.path.realpath(train_dir) in (os.path.abspath(os.sep), os.path.realpath(os.path.expanduser("~"))):
        raise UserError(f"{refusal}is not a folder for one model; nothing was deleted; name another train_dir")
    paths = {path: os.path.join(train_dir, path) for path in _paths(train_dir)}
    own = re.compile("|".join(f"({entry.path})" for entry in _ENTRIES))
    foreign = sorted(path for path in paths if not own.fullmatch(path) or os.path.islink(paths[path]))
    if foreign:
        raise UserError(
            f"{refusal}holds files that the kit did not write, such as {foreign[0]}; nothing was deleted; move them "
            "away, or name another train_dir"
        )
    return list(paths.values())


def delete_model(train_dir: str) -> None:
    """Deletes everything that the kit wrote into a train_dir, and logs it if there is anything.

    Raises:
        UserError: if it holds anything else; then nothing is deleted.
    """
    paths = check_deletable(train_dir)
    if paths:
        logging.info("Removing existing train directory.")
    for path in paths:
        files.remove(path)


def describe(train_dir: str, is_short: bool = False) -> str:
    """Returns the names of the kit's files in a train_dir, such as "best/model.ckpt-8, eval/metrics-*.json, run.json".

    A "*" stands for the numbers of several files of a kind.

    Args:
        train_dir: the folder.
        is_short: whether a folder stands for its files, as in "best/, eval/, run.json".
    """
    own = re.compile("|".join(f"({entry.path})" for entry in _ENTRIES))
    names = {re.sub(r"(model\.ckpt-\d+)\..*", r"\1", path) for path in _paths(train_dir) if own.fullmatch(path)}
    if is_short:
        names = {re.sub("/.*", "/", name) for name in names}
    kinds: dict[str, list[str]] = {}
    for name in sorted(names):
        kinds.setdefault(re.sub(r"(?<=tfevents\.).*|\d+", "*", name), []).append(name)
    return ", ".join(kind if len(paths) > 1 else paths[0] for kind, paths in kinds.items())


def delete_leftovers(train_dir: str) -> None:
    """Deletes the temporary files of a training run that was killed. The caller holds the `lock`."""
    for path in filter(_LEFTOVERS.fullmatch, _paths(train_dir)):
        files.remove(os.path.join(train_dir, path))


def check(train_dir: str, config: Config) -> bool:
    """Checks that a run can use a train_dir. Changes nothing in it.

    Returns:
        Whether it holds a model to resume, perhaps without a checkpoint.

    Raises:
        UserError: if it holds another model, or a model that may not be deleted.
    """
    if config.start_new_model:
        check_deletable(train_dir)
        return False
    names = files.list_dir(train_dir)
    if os.path.basename(model_flags_path(train_dir)) not in names:
        if any(re.fullmatch(r"model\.ckpt-\d+\.index", name) for name in names):
            raise UserError(
                f"--train_dir={train_dir}: holds checkpoints of another program (no model_flags.json); name another "
                "train_dir"
            )
        return False
    stored = load_spec(train_dir)
    for name in _FIXED:
        now, then = getattr(config.model, name), getattr(stored, name)
        if now != then:
            raise UserError(
                f"--{name}={now}: the model in --train_dir={train_dir} has {name}={then}; pass the same to "
                "resume it, or --start_new_model to delete it, or another --train_dir"
            )
    _check_optimizer(train_dir, config)
    return True


def _check_optimizer(train_dir: str, config: Config) -> None:
    then, now = _stored_optimizer(read_run(train_dir)), _optimizer_of(config)
    if then and then["class"] != now["class"]:
        raise UserError(
            f"--optimizer={config.optimizer.optimizer}: the model in --train_dir={train_dir} was made with "
            f"{then['class']}, not with {now['class']}; pass the same optimizer to resume it, or --start_new_model to "
            "delete it, or another --train_dir"
        )


# ---- model_flags.json: what is needed to build the model.


def save_spec(train_dir: str, spec: ModelSpec) -> None:
    """Writes model_flags.json."""
    files.write_json(model_flags_path(train_dir), dataclasses.asdict(spec))


def load_spec(train_dir: str) -> ModelSpec:
    """Reads model_flags.json.

    Raises:
        UserError: if there is no model, or it cannot be built with the present classes.
    """
    path = model_flags_path(train_dir)
    try:
        exists = files.exists(path)
    except Exception as error:
        if not isinstance(error, files.file_errors()):
            raise
        raise UserError(f"--train_dir={train_dir}: cannot be read: {files.explain_error(error)}") from error
    if not exists:
        raise UserError(f"--train_dir={train_dir}: holds no model (no model_flags.json); train one with train.py first")
    stored = files.read_json(path)
    if "seed" not in stored:  # Of an older version of the kit.
        stored["seed"] = _seed_of_run(train_dir)
    types = {field.name: field.type for field in dataclasses.fields(ModelSpec)}
    types |= {"model_params": dict, "loss_params": dict}
    if {key: type(value) for key, value in stored.items()} != types:
        keys = ", ".join(f"{key} ({kind.__name__})" for key, kind in types.items())
        raise UserError(f"{path}: must have exactly the keys {keys}; fix it, or train in another train_dir")
    spec = ModelSpec(**stored)
    try:
        find_classes(spec)
    except UserError as error:
        raise UserError(f"{path}: {error}; put the class back, or name another train_dir") from error
    return spec


def _seed_of_run(train_dir: str) -> int:
    """Returns the seed in the run.json of a model, see `find_run`; 0 without one."""
    _, run = find_run(train_dir)
    seed = run.get("seed")
    return seed if isinstance(seed, int) else 0


def check_expected(train_dir: str, spec: ModelSpec, model: str | None, label_loss: str | None) -> None:
    """Checks what the user says about the model with flags that are not needed.

    Args:
        train_dir: where the model is.
        spec: the model.
        model: the name of its class; None: not given.
        label_loss: the name of its loss; None: not given.

    Raises:
        UserError: if it is another model or loss.
    """
    for flag, value in (("model", model), ("label_loss", label_loss)):
        if value is not None and value != getattr(spec, flag):
            raise UserError(
                f"--{flag}={value}: the model in --train_dir={train_dir} was trained with {flag}="
                f"{getattr(spec, flag)}; leave the flag out, or name another train_dir"
            )


# ---- run.json: what was run, written before it runs, and compared on resume.


def make_record(
    config: Config, shards: dict[str, int], num_parameters: int, num_replicas: int, graph_number: int
) -> dict[str, Any]:
    """Returns what run.json holds.

    Args:
        config: the settings of the run.
        shards: number of records of each shard, by path.
        num_parameters: number of the model's weights.
        num_replicas: number of devices.
        graph_number: that of the model, see `Classifier`.
    """
    settings = config.settings()
    patterns = {name: files.absolute_path(settings[name]) for name in ("train_data_pattern", "eval_data_pattern")}
    return {
        "flags": settings | patterns,
        "versions": versions(),
        "seed": config.system.seed,
        "optimizer": _optimizer_of(config),
        "shards": {files.absolute_path(path): count for path, count in shards.items()},
        "parameters": num_parameters,
        "replicas": num_replicas,
        "calculation": graph_number,
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries on which results depend."""
    import keras
    import numpy as np
    import tensorflow as tf

    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def save_record(train_dir: str, record: dict[str, Any]) -> None:
    """Writes run.json."""
    files.write_json(os.path.join(train_dir, "run.json"), record)


def read_run(train_dir: str) -> dict[str, Any]:
    """Returns what run.json holds; {} if it is not there."""
    path = os.path.join(train_dir, "run.json")
    try:
        return files.read_json(path) if files.exists(path) else {}
    except Exception as error:
        if not isinstance(error, files.file_errors()):
            raise
        raise UserError(f"{path}: cannot be read: {files.explain_error(error)}; fix it") from error


def find_run(model_dir: str) -> tuple[str, dict[str, Any]]:
    """Finds run.json for a train_dir, or for the folder `best` in one, which has none of its own.

    Returns:
        The train_dir, and what run.json holds; {} if it is missing.

    Raises:
        UserError: if it is damaged.
    """
    run = read_run(model_dir)
    parent, name = os.path.split(model_dir.rstrip("/") if files.is_remote(model_dir) else os.path.abspath(model_dir))
    return (model_dir, run) if run or name != "best" else (parent, read_run(parent))


def in_common(config: Config) -> dict[str, Any]:
    """Returns the flags and the versions that all workers must share, by name; folders may differ."""
    own = ("train_dir", "train_data_pattern", "eval_data_pattern", "join_timeout")
    flags = {f"--{name}": value for name, value in config.settings().items() if name not in own}
    libraries = {f"the version of {name}": version for name, version in versions().items()}
    return {**flags, "whether --eval_data_pattern is given": bool(config.data.eval_data_pattern), **libraries}


def warn_of_changes(train_dir: str, record: dict[str, Any], has_new_pictures: bool = False) -> None:
    """Warns if a model is resumed in another way than run.json says it was trained.

    Args:
        train_dir: where run.json is.
        record: this run's, see `make_record`.
        has_new_pictures: whether the shards hold pictures that it was not trained on, whatever their names are.
    """
    then = read_run(train_dir)
    if not then:
        return
    changes = ["other shards"] if _shards(then) != _shards(record) or has_new_pictures else []
    changes += _differences(_results_flags(then, record), _results_flags(record, record))
    changes += _differences(_stored_optimizer(then), record["optimizer"])
    versions = ("tensorflow", "keras")
    old_versions = {name: then.get("versions", {}).get(name) for name in versions}
    changes += _differences(old_versions, {name: record["versions"][name] for name in versions})
    if then.get("replicas", 1) != record["replicas"]:
        changes.append(f"{then.get('replicas', 1)} devices (now {record['replicas']})")
    if changes:
        logging.warning(
            "the model in %s was trained with %s; it resumes from its step, but not as an uninterrupted run would. "
            "For a new model name another --train_dir or pass --start_new_model",
            *(train_dir, ", ".join(changes)),
        )


def warn_of_other_graph(train_dir: str, graph_number: int) -> None:
    """Warns if a model is built in another way than in training, although its weights fit.

    Args:
        train_dir: where the model is.
        graph_number: that of the model, see `Classifier`.
    """
    run = {}
    with contextlib.suppress(UserError):  # A damaged run.json does not keep a model from being used.
        _, run = find_run(train_dir)
    # Another version of a library may have other operations for the same.
    if run.get("versions") == versions() and run.get("calculation", graph_number) != graph_number:
        logging.warning(
            "the model in %s is built with other operations or constants than in training, so its answers differ: its "
            "code has changed, or it depends on a file, an environment variable, hash(), or the order of a set; build "
            "it as it was, or train a new one",
            train_dir,
        )


def same_shards(run: dict[str, Any], shards: dict[str, int]) -> bool:
    """Whether a run was trained on shards with these names and numbers of records; their folders may differ."""
    return _shards(run) == _shards({"shards": shards})


def _shards(record: dict[str, Any]) -> list[tuple[str, int]]:
    return [(os.path.basename(file), count) for file, count in record.get("shards", {}).items()]


def _results_flags(record: dict[str, Any], present: dict[str, Any]) -> dict[str, Any]:
    """Returns the flags that change a run's results; flags that the kit no longer has are left out."""
    without_effect = set(WITHOUT_EFFECT) | {"optimizer", "optimizer_params"}  # Compared by themselves.
    without_effect.add("recipe")  # The flags that it sets have.
    without_effect |= _FIXED  # Other ones are refused.
    flags = present["flags"]
    if flags["learning_rate_schedule"] != "cosine" and not flags["first_image_size"]:
        without_effect |= {"num_epochs", "max_steps"}  # Nothing else depends on when training ends.
    old = record.get("flags", {})
    return {name: old[name] for name in flags if name in old and name not in without_effect}


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [f"{name}={then[name]} (now {now[name]})" for name in then if name in now and then[name] != now[name]]


def _optimizer_of(config: Config) -> dict[str, Any]:
    return optimizers.configuration(config.optimizer.optimizer, config.optimizer.optimizer_params)


def _stored_optimizer(run: dict[str, Any]) -> dict[str, Any]:
    """Returns the optimizer's configuration in run.json. Older versions of the kit stored only its flags."""
    if "optimizer" in run or "optimizer" not in run.get("flags", {}):
        return run.get("optimizer", {})
    params = run["flags"].get("optimizer_params") or "{}"
    return optimizers.configuration(
        run["flags"]["optimizer"], json.loads(params) if isinstance(params, str) else params
    )
