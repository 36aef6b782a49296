"""The data that belong to a model: what it was trained on, and the shards to evaluate and to predict by default.

run.json names the training shards. trained_on.npy holds keys of the pictures and ids that were trained on, so that an
evaluation can say how many of its examples are among them, also where the training shards are not.
"""

import contextlib
import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from cats_vs_dogs import files, sample_data, train_dir
from cats_vs_dogs.readers import Shards
from cats_vs_dogs.utils import UserError

# ---- Where run.json is.


def find_run(model_dir: str) -> tuple[str, dict[str, Any]]:
    """Does the same as `train_dir.find_run`, with {} for a run.json that lacks flags or shards."""
    folder, run = train_dir.find_run(model_dir)
    is_complete = all(isinstance(run.get(key), dict) for key in ("flags", "shards"))
    return folder, run if is_complete and run["shards"] else {}


# ---- The data to use if no flag names any.


def default_patterns(model_dir: str, split: str, flag: str) -> list[str]:
    """Returns the file patterns of the data that belong to a model, and logs which and why.

    They are the data that training evaluated on (for "validation"), else the shards of the split beside the training
    shards; for a model of the sample set those of the sample set.

    Args:
        model_dir: the train_dir, or the folder `best` in one.
        split: "validation" or "test".
        flag: the flag that was not given, for messages.

    Raises:
        UserError: if it is not known what the model was trained on, or there are no such shards.
    """
    folder, run = find_run(model_dir)
    advice = f"give the shards with --{flag}='.../{split}-*'"
    if not run:
        raise UserError(
            f"--{flag}: not given, and --train_dir={model_dir} does not say what the model was trained on (no "
            f"run.json); {advice}"
        )
    evaluated = run["flags"].get("eval_data_pattern") if split == "validation" else ""
    if not evaluated and not run["flags"].get("train_data_pattern"):
        pattern = sample_data.pattern(split)
        logging.info("No --%s given: using the kit's own sample set, which the model knows: %s", flag, pattern)
        return [pattern]
    if evaluated:
        looked_for, why = [evaluated], "which train.py evaluated on"
    else:
        folders = dict.fromkeys(os.path.dirname(path) for path in run["shards"])
        looked_for = [os.path.join(folder, f"{split}-*") for folder in folders]
        why = "beside the training shards"
    # Older versions stored paths as typed. They mean these files only if the training shards are here, too.
    is_here = all(os.path.isabs(path) or os.path.exists(path) or files.is_remote(path) for path in run["shards"])
    found = [pattern for pattern in looked_for if is_here and _matches(pattern)]
    if not found:
        where = "" if is_here else f" in {os.getcwd()}, where the training shards are not"
        raise UserError(
            f"--{flag}: not given, and no file matches {' or '.join(looked_for)}{where} ({why}, says "
            f"{os.path.join(folder, 'run.json')}); {advice}"
        )
    logging.info("No --%s given: using %s, %s.", flag, " and ".join(found), why)
    return found


def _matches(pattern: str) -> bool:
    try:
        return bool(files.list_files(pattern, ""))
    except UserError:
        return False


# ---- What was trained on.


def _keys_path(folder: str) -> str:
    return os.path.join(folder, "trained_on.npy")


def load_keys(folder: str) -> np.ndarray | None:
    """Returns the keys of all that the model in a train_dir was trained on, uint64 [n]; None if they are not known.

    See `example_index.ExampleIndex.keys`.
    """
    try:
        keys = np.load(io.BytesIO(files.read_bytes(_keys_path(folder))), allow_pickle=False)
    except (ValueError, EOFError, *files.file_errors()):  # Not there, or damaged.
        return None
    return keys if keys.dtype == np.uint64 and keys.ndim == 1 else None


def save_keys(folder: str, keys: np.ndarray | None) -> None:
    """Writes trained_on.npy; deletes an older one if the keys are not known."""
    if keys is not None:
        buffer = io.BytesIO()
        np.save(buffer, keys, allow_pickle=False)
        files.write_bytes(_keys_path(folder), buffer.getvalue())
    elif files.exists(_keys_path(folder)):
        files.remove(_keys_path(folder))


def keys_of_run(folder: str, shards: Shards, is_resumed: bool) -> np.ndarray | None:
    """Returns the keys of what a model will have been trained on, uint64 [n], sorted; None if not all are known.

    Args:
        folder: the train_dir.
        shards: what is trained on now.
        is_resumed: whether the model was trained before.
    """
    keys = shards.index.keys() if shards.index else None
    if keys is None:
        return None
    keys = np.unique(keys[keys != 0])
    if not is_resumed:
        return keys
    before = load_keys(folder)
    if before is not None:
        return np.union1d(before, keys)
    return keys if train_dir.same_shards(train_dir.read_run(folder), shards.records) else None


def count_trained_on(shards: Shards, keys: np.ndarray | None, trained_paths: Sequence[str], flag: str) -> int | None:
    """Counts the examples of an evaluation that the model was trained on, and warns if there are any.

    An example counts if its picture was trained on, or another picture with its id: perhaps a copy in another format.

    Args:
        shards: what is evaluated.
        keys: of what was trained on; None if they are not known.
        trained_paths: the training shards.
        flag: the flag that named `shards`, for the message.

    Returns:
        How many; None if that is not known.
    """
    own_keys = shards.index.keys() if shards.index else None
    if keys is not None and own_keys is not None:
        is_shared = np.any(np.isin(own_keys, keys) & (own_keys != 0), axis=1)
        count = int(np.count_nonzero(is_shared))
        first = next((example.id for example, shared in zip(shards.index, is_shared, strict=True) if shared), "")
        what = f"such as {first}" if first else "by their pictures"
    else:
        trained = set(map(_real_path, trained_paths))
        shared = [path for path in shards.files if _real_path(path) in trained]
        count = sum(shards.records[path] - len(shards.bad.get(path, ())) for path in shared) or None
        what = f"all of {shared[0]}" if shared else ""
    if count:
        logging.warning(
            "%d of the %d examples of --%s were trained on (the same picture or id), %s; the metrics do not show how "
            "the model does on new pictures; evaluate on shards that were not trained on",
            *(count, shards.num_examples, flag, what),
        )
    return count


def count_known(model_dir: str, shards: Shards, flag: str) -> int | None:
    """Does the same as `count_trained_on` with what a train_dir, or that of a folder `best`, says of its training."""
    folder, run = model_dir, {}
    with contextlib.suppress(UserError):  # A damaged run.json does not keep a model from being evaluated.
        folder, run = find_run(model_dir)
    return count_trained_on(shards, load_keys(folder), list(run.get("shards", {})), flag)


def _real_path(path: str) -> str:
    return path if files.is_remote(path) else os.path.realpath(path)
