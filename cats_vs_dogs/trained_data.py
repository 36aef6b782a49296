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

from cats_vs_dogs import files, photo_shards, photo_sources, sample_data, train_dir
from cats_vs_dogs.readers import Shards
from cats_vs_dogs.utils import UserError

# ---- Where run.json is.


def find_run(model_dir: str) -> tuple[str, dict[str, Any]]:
    """Does the same as `train_dir.find_run`, with {} for a run.json that lacks flags or shards."""
    folder, run = train_dir.find_run(model_dir)
    is_complete = all(isinstance(run.get(key), dict) for key in ("flags", "shards"))
    return folder, run if is_complete and run["shards"] else {}


# ---- Photos in place of shards.


def eval_patterns(pattern: str, flag: str, trained_patterns: Sequence[str]) -> list[str]:
    """Returns the file patterns of the shards to evaluate on, and logs what they are if photos are given.

    Args:
        pattern: what the user gave: shards, or photos. Of photos that a model was trained on, those for validation are
            meant, otherwise all that have labels.
        flag: the flag that gave it, for messages.
        trained_patterns: what models were trained on.

    Raises:
        UserError: if it names nothing, or no photo to evaluate on.
    """
    photos = photo_shards.find(pattern, flag)
    if photos is None:
        return [pattern]
    if not any(one and photo_shards.are_same(photos.name, one, flag) for one in trained_patterns):
        logging.info("Evaluating on all labelled photos of %s.", pattern)
        return photos.labelled_patterns()
    if not photos.count("validation"):
        raise UserError(
            f"--{flag}={pattern}: the model was trained on it, and none of its photos is for validation; name photos "
            "that it was not trained on"
        )
    logging.info("Evaluating on the %d photos of %s for validation.", photos.count("validation"), pattern)
    return [photos.pattern("validation")]


def trained_patterns(model_dirs: Sequence[str]) -> list[str]:
    """Returns what models were trained on, as their run.json says; those of which it is not known are left out."""
    found = []
    for model_dir in model_dirs:
        with contextlib.suppress(UserError):  # A damaged run.json does not keep a model from being evaluated.
            _, run = find_run(model_dir)
            found.append(run.get("flags", {}).get("train_data_pattern", ""))
    return found


# ---- The data to use if no flag names any.


def find_eval_data(model_dirs: Sequence[str], pattern: str, flag: str) -> tuple[list[str], str]:
    """Returns the file patterns of the shards to evaluate models on, and what their metrics call them.

    Args:
        model_dirs: see `default_patterns`.
        pattern: what the user gave, see `eval_patterns`; "": what belongs to the models.
        flag: the flag that gave it, for messages.

    Raises:
        UserError: see `eval_patterns` and `default_patterns`.
    """
    if not pattern:
        return _find_default(model_dirs, "validation", flag)
    patterns = eval_patterns(pattern, flag, trained_patterns(model_dirs))
    names = [pattern] if patterns == [pattern] else photo_sources.split_list(pattern, flag)
    return patterns, ",".join(map(files.absolute_path, names))


def default_patterns(model_dirs: Sequence[str], split: str, flag: str) -> list[str]:
    """Returns the file patterns of the data that belong to models, and logs which and why.

    They are the data that training evaluated on (for "validation"), else the shards of the split beside the training
    shards; for a model of the sample set those of the sample set.

    Args:
        model_dirs: the train_dir of each model, or the folder `best` in one.
        split: "validation" or "test".
        flag: the flag that was not given, for messages.

    Raises:
        UserError: if it is not known what a model was trained on, there are no such shards, or they differ between
            the models.
    """
    return _find_default(model_dirs, split, flag)[0]


def _find_default(model_dirs: Sequence[str], split: str, flag: str) -> tuple[list[str], str]:
    """Returns what `default_patterns` does, and the name of the data."""
    first, *others = model_dirs
    patterns, name, why = _find_patterns(first, split, flag)
    for other in others:
        other_patterns, *_ = _find_patterns(other, split, flag)
        if _real_paths(other_patterns, flag) != _real_paths(patterns, flag):
            raise UserError(
                f"--{flag}: not given, and the models have different data: {first} has {' and '.join(patterns)}, "
                f"{other} has {' and '.join(other_patterns)}; give the shards with --{flag}='.../{split}-*'"
            )
    logging.info("No --%s given: using %s", flag, why)
    return patterns, name


def _find_patterns(model_dir: str, split: str, flag: str) -> tuple[list[str], str, str]:
    """Returns the patterns that belong to one model, their name, and the words to log; see `default_patterns`."""
    folder, run = find_run(model_dir)
    advice = f"give the shards with --{flag}='.../{split}-*'"
    if not run:
        raise UserError(
            f"--{flag}: not given, and --train_dir={model_dir} does not say what the model was trained on (no "
            f"run.json); {advice}"
        )
    evaluated = run["flags"].get("eval_data_pattern") if split == "validation" else ""
    trained = run["flags"].get("train_data_pattern")
    if not evaluated and not trained:
        pattern = sample_data.pattern(split)
        return [pattern], pattern, f"the kit's own sample set, which the model knows: {pattern}"
    if evaluated:
        looked_for, why = [evaluated], "which train.py evaluated on"
    else:
        folders = dict.fromkeys(os.path.dirname(path) for path in run["shards"])
        looked_for = [os.path.join(folder, f"{split}-*") for folder in folders]
        why = "beside the training shards"
    photos = evaluated or trained
    if _are_photos(photos):
        found = eval_patterns(photos, flag, [trained]) if split == "validation" else _test_patterns(photos, flag)
        return found, photos, f"{photos}, which train.py {'evaluated' if evaluated else 'was given to train'} on."
    # Older versions stored paths as typed. They mean these files only if the training shards are here, too.
    is_here = all(os.path.isabs(path) or os.path.exists(path) or files.is_remote(path) for path in run["shards"])
    found = [pattern for pattern in looked_for if is_here and _matches(pattern)]
    if not found:
        where = "" if is_here else f" in {os.getcwd()}, where the training shards are not"
        raise UserError(
            f"--{flag}: not given, and no file matches {' or '.join(looked_for)}{where} ({why}, says "
            f"{os.path.join(folder, 'run.json')}); {advice}"
        )
    name = ",".join(map(files.absolute_path, found))
    return found, name, f"{' and '.join(found)}, {why}."


def _are_photos(pattern: str) -> bool:
    """Whether a pattern names photos, which are there."""
    try:
        return photo_sources.find_places([pattern], "") is not None
    except UserError:
        return False


def _test_patterns(pattern: str, flag: str) -> list[str]:
    """Returns the pattern of the shards of photos that are neither for training nor for validation.

    Raises:
        UserError: if there are none.
    """
    photos = photo_shards.find(pattern, flag)
    if not photos or not photos.count("test"):
        raise UserError(
            f"--{flag}: not given, and {pattern}, which the model was trained on, has no photos without a label; name "
            "photos to predict, such as photo.jpg, a folder or a .zip file"
        )
    return [photos.pattern("test")]


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


def has_new_pictures(folder: str, shards: Shards) -> bool:
    """Whether shards have pictures or ids that the model in a train_dir was not trained on before, as far as known."""
    before, keys = load_keys(folder), shards.index.keys() if shards.index else None
    return before is not None and keys is not None and not np.isin(keys[keys != 0], before).all()


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
    return _count(_find_trained_on(shards, keys, trained_paths, flag))


def count_known(model_dirs: Sequence[str], shards: Shards, flag: str) -> int | None:
    """Does the same as `count_trained_on` for models by what their train_dirs say about their training.

    An example counts if any of several models was trained on it. Each warning then names its model.

    Args:
        model_dirs: see `default_patterns`.
        shards: see `count_trained_on`.
        flag: see `count_trained_on`.
    """
    found = []
    for model_dir in model_dirs:
        folder, run = model_dir, {}
        with contextlib.suppress(UserError):  # A damaged run.json does not keep a model from being evaluated.
            folder, run = find_run(model_dir)
        by_whom = f" by the model in {model_dir}" if len(model_dirs) > 1 else ""
        found.append(_find_trained_on(shards, load_keys(folder), list(run.get("shards", {})), flag, by_whom))
    known = [rows for rows in found if rows is not None]
    count = _count(np.any(known, axis=0)) if known else None
    return count if count or len(known) == len(found) else None


def _count(rows: np.ndarray | None) -> int | None:
    return None if rows is None else int(np.count_nonzero(rows))


def _find_trained_on(
    shards: Shards, keys: np.ndarray | None, trained_paths: Sequence[str], flag: str, by_whom: str = ""
) -> np.ndarray | None:
    """Returns which examples the model was trained on, bool [n], and warns of them; see `count_trained_on`."""
    own_keys = shards.index.keys() if shards.index else None
    if keys is not None and own_keys is not None:
        rows = np.any(np.isin(own_keys, keys) & (own_keys != 0), axis=1)
        first = next((example.id for example, shared in zip(shards.index, rows, strict=True) if shared), "")
        what = f"such as {first}" if first else "by their pictures"
    else:
        trained = set(map(files.real_path, trained_paths))
        shared = [files.real_path(path) in trained for path in shards.files]
        rows = np.repeat(shared, np.diff(shards.offsets))
        if not rows.any():
            return None
        what = f"all of {shards.files[shared.index(True)]}"
    if rows.any():
        logging.warning(
            "%d of the %d examples of --%s were trained on%s (the same picture or id), %s; the metrics do not show how "
            "the model does on new pictures; evaluate on shards that were not trained on",
            *(np.count_nonzero(rows), shards.num_examples, flag, by_whom, what),
        )
    return rows


def _real_paths(patterns: Sequence[str], flag: str) -> set[str]:
    return {files.real_path(path) for pattern in patterns for path in files.list_files(pattern, flag)}
