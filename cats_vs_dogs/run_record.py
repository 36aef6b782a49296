"""run.json: what was run, written before it runs, and compared when a model goes on."""

import json
import os
import platform
import zlib

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from cats_vs_dogs import files

# Flags that change what the same data and step give.
_EXACT_FLAGS = (
    "batch_size",
    "seed",
    "num_readers",
    "augment",
    "first_image_size",
    "bad_examples",
    "base_learning_rate",
    "learning_rate_schedule",
    "learning_rate_decay",
    "learning_rate_decay_examples",
    "warmup_examples",
    "optimizer_params",
    "clip_gradient_norm",
    "regularization_penalty",
    "precision",
    "jit_compile",
)


def path_in(train_dir: str) -> str:
    """Returns the path of run.json."""
    return os.path.join(train_dir, "run.json")


def warn_of_changes(train_dir: str, record: dict) -> None:
    """Warns if a model goes on in another way than run.json says it was trained.

    Args:
        train_dir: where run.json is.
        record: of this run, see `make`.
    """
    path = path_in(train_dir)
    if not tf.io.gfile.exists(path):
        return
    then = files.read_json(path)
    changes = ["other shards"] if _shards(then) != _shards(record) else []
    names = list(_EXACT_FLAGS)
    if record["flags"]["learning_rate_schedule"] == "cosine" or record["flags"]["first_image_size"]:
        names += ["num_epochs", "max_steps"]  # The rate comes down, or pictures grow, until the end.
    for name in names:
        before, now = then.get("flags", {}).get(name), record["flags"][name]
        if before != now:
            changes.append(f"{name}={before} (now {now})")
    for name in ("tensorflow", "keras"):
        before, now = then.get("versions", {}).get(name), record["versions"][name]
        if before != now:
            changes.append(f"{name} {before} (now {now})")
    if then.get("replicas", 1) != record["replicas"]:
        changes.append(f"{then.get('replicas', 1)} devices (now {record['replicas']})")
    if changes:
        logging.warning(
            "the model in %s was trained with %s; it goes on from its step, but not as an uninterrupted run would. "
            "For a new model name another --train_dir or pass --start_new_model",
            *(train_dir, ", ".join(changes)),
        )


def _shards(record: dict) -> list[tuple[str, int]]:
    return [(os.path.basename(file), count) for file, count in record.get("shards", {}).items()]


def fingerprint(record: dict) -> int:
    """Returns a number for what all workers of a cluster must have in common: flags but for folders, and shards."""
    folders = ("train_dir", "train_data_pattern", "eval_data_pattern")
    flags = {name: value for name, value in record["flags"].items() if name not in folders}
    common = [flags, bool(record["flags"]["eval_data_pattern"]), record["versions"]["tensorflow"], _shards(record)]
    return zlib.crc32(json.dumps(common).encode())


def make(flag_values: dict, shards: dict[str, int], num_parameters: int, num_replicas: int) -> dict:
    """Returns what run.json holds: what is run, written before it runs.

    Args:
        flag_values: all flags of the script.
        shards: number of records of each shard.
        num_parameters: number of weights of the model.
        num_replicas: number of devices.
    """
    return {
        "flags": flag_values,
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
        },
        "seed": flag_values["seed"],
        "shards": shards,
        "parameters": num_parameters,
        "replicas": num_replicas,
    }
