"""Checkpoints: the state of a training run, written completely or not at all, and read again."""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from cats_vs_dogs import event_files, files, metrics_log, train_dir
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.plain_paths import plain_path
from cats_vs_dogs.trainer import SUMS
from cats_vs_dogs.utils import UserError

_VALUE = ".ATTRIBUTES/VARIABLE_VALUE"  # How TensorFlow names the value of a variable in a checkpoint.
_UNDO = "undo the change, or train a new model with --start_new_model or another --train_dir"


def all_checkpoints(folder: str) -> list[str]:
    """Returns the paths of all checkpoints, such as "folder/model.ckpt-78", the newest first.

    Looks at the files themselves: the text file "checkpoint" may be lost or outdated.
    """
    paths = files.list_matching(folder, r"model\.ckpt-\d+\.index")
    return sorted((path.removesuffix(".index") for path in paths), key=step_of, reverse=True)


def newest_checkpoint(folder: str) -> str | None:
    """Returns the path of the newest checkpoint, such as "folder/model.ckpt-78"; None without a checkpoint."""
    return next(iter(all_checkpoints(folder)), None)


def require_checkpoint(folder: str) -> str:
    """Returns the path of the newest checkpoint.

    Raises:
        UserError: if there is no checkpoint.
    """
    path = newest_checkpoint(folder)
    if path is None:
        raise UserError(f"--train_dir={folder}: holds no checkpoint; train a model with train.py first")
    return path


def step_of(checkpoint_path: str) -> int:
    """Returns the step in the name of a checkpoint: 78 for ".../model.ckpt-78"."""
    return int(checkpoint_path.rsplit("-", 1)[1])


def restore_newest(classifier: Classifier, folder: str) -> str:
    """Restores a classifier's weights from the newest readable checkpoint, and returns its path.

    Raises:
        UserError: if there is no checkpoint, none can be read, or it belongs to another model.
    """
    require_checkpoint(folder)
    train_dir.warn_of_other_graph(folder, classifier.graph_number)
    return _restore_first(folder, lambda path: restore_classifier(classifier, path))


def restore_classifier(classifier: Classifier, checkpoint_path: str) -> None:
    """Restores the weights of a classifier.

    Raises:
        UserError: if the checkpoint cannot be read or belongs to another model.
    """
    _check_fits(classifier, checkpoint_path)
    with _explain_damage(checkpoint_path), plain_path(checkpoint_path) as path:
        checkpoint = tf.train.Checkpoint(weights=_values(classifier.model.weights))
        checkpoint.read(path).expect_partial()


def save_best(classifier: Classifier, folder: str, step: int, metrics: dict[str, Any]) -> None:
    """Replaces the best model so far and its metrics. The folder can be used like a train_dir.

    Args:
        classifier: its weights are saved.
        folder: where the best model is kept.
        step: the step of the model.
        metrics: its evaluation, for metrics-<step>.json.
    """
    files.make_dirs(folder)
    train_dir.save_spec(folder, classifier.spec)
    train_dir.write_metrics(folder, step, metrics)
    path = os.path.join(folder, f"model.ckpt-{step}")
    _write(tf.train.Checkpoint(weights=_values(classifier.model.weights)), path)
    for other in all_checkpoints(folder):
        if other != path:
            _delete(other)
            files.remove(os.path.join(folder, f"metrics-{step_of(other)}.json"))


class Progress:
    """How far training is, besides the weights: a few numbers that a checkpoint holds.

    Attributes:
        step: steps done.
        evaluated: the step of the last evaluation.
        best_step: the step with the lowest evaluation loss so far.
        best_loss: that loss; infinite before the first evaluation.
        worse_in_a_row: number of evaluations since.
        sums: float64 [len(trainer.SUMS)], those of the steps since the last logged one.
    """

    def __init__(self):
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="global_step")
        self.evaluated = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.best_step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.best_loss = tf.Variable(np.inf, dtype=tf.float64, trainable=False)
        self.worse_in_a_row = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.sums = tf.Variable(np.zeros(len(SUMS)), trainable=False)


class TrainState:
    """Everything that a training run needs to resume: it is saved and restored together.

    Args:
        folder: the train_dir.
        classifier: its weights and the states of its random layers are saved.
        optimizer: built; its variables are saved.
        keep: how many checkpoints to keep.

    Attributes:
        progress: is saved too.
    """

    def __init__(self, folder: str, classifier: Classifier, optimizer: keras.optimizers.Optimizer, keep: int):
        self.progress = Progress()
        self._folder = folder
        self._classifier = classifier
        self._optimizer = optimizer
        self._keep = keep
        self._checkpoint = self._make_checkpoint(vars(self.progress))

    def _make_checkpoint(self, progress: dict[str, tf.Variable]) -> tf.train.Checkpoint:
        # Plain lists, so that the names in the file do not depend on how Keras keeps its layers.
        return tf.train.Checkpoint(
            progress=progress,
            weights=_values(self._classifier.model.weights),
            # Under the name of its class: the variables of many optimizers have the same shapes.
            optimizer={type(self._optimizer).__name__: _values(self._optimizer.variables)},
            seeds=_values(self._classifier.model.seed_states),
        )

    @property
    def step(self) -> int:
        """The number of steps done."""
        return int(self.progress.step)

    def restore(self) -> str | None:
        """Restores the newest readable checkpoint and returns its path; None if there is no checkpoint.

        Raises:
            UserError: if no checkpoint can be read, or it belongs to another model or optimizer.
        """
        return _restore_first(self._folder, self._restore) if newest_checkpoint(self._folder) else None

    def rewind(self, is_resumed: bool) -> None:
        """Takes the records in train_dir back to the restored step, so none is missing or written twice later.

        Args:
            is_resumed: False: there was no checkpoint, so all records of training are removed.
        """
        evaluated = int(self.progress.evaluated)
        event_files.rewind(self._folder, self.step if is_resumed else -1)
        event_files.rewind(train_dir.eval_dir(self._folder), evaluated, train_dir.EVALUATION_SUFFIX)
        metrics_log.MetricsFile(self._folder).rewind(training=self.step, evaluation=evaluated)

    def _restore(self, path: str) -> None:
        shapes = _check_fits(self._classifier, path)
        optimizer = type(self._optimizer).__name__
        made_with = {key.split("/")[1] for key in shapes if key.startswith("optimizer/")}
        if made_with != {optimizer}:
            raise UserError(
                f"--optimizer: {path} was made with {', '.join(made_with)}, not with {optimizer}; pass the same, or "
                "--start_new_model, or another --train_dir"
            )
        num_variables = sum(key.startswith(f"optimizer/{optimizer}/") for key in shapes)
        if num_variables != len(self._optimizer.variables):
            raise UserError(
                f"--optimizer_params: {path} has {num_variables} variables of the optimizer {optimizer}, which now has "
                f"{len(self._optimizer.variables)}; pass the parameters it was made with, or --start_new_model, or "
                "another --train_dir"
            )
        num_seeds = sum(key.startswith("seeds/") for key in shapes)
        if num_seeds != len(self._classifier.model.seed_states):
            raise UserError(
                f"{path}: was made with {num_seeds} random layers, such as dropout; {self._classifier.spec.model} now "
                f"has {len(self._classifier.model.seed_states)}; {_UNDO}"
            )
        progress = dict(vars(self.progress))
        if f"progress/sums/{_VALUE}" not in shapes:  # Of an older version of the kit.
            del progress["sums"]
        with _explain_damage(path), plain_path(path) as readable_path:
            self._make_checkpoint(progress).read(readable_path).assert_existing_objects_matched()

    def save(self) -> str:
        """Saves and returns the path, such as "train_dir/model.ckpt-78"; deletes the oldest beyond `keep`.

        Raises:
            UserError: if a value is not finite; then nothing is saved.
        """
        values = _values(self._classifier.model.weights) + _values(self._optimizer.variables)
        if not all(np.isfinite(value.numpy()).all() for value in values if value.dtype.is_floating):
            raise UserError(
                f"weights or optimizer state are not finite any more at step {self.step}; they were not saved, and the "
                "last checkpoint is unchanged; try a lower --base_learning_rate"
            )
        path = os.path.join(self._folder, f"model.ckpt-{self.step}")
        _write(self._checkpoint, path)
        # Newer checkpoints are unreadable leftovers; this run resumed from an older one.
        others = [other for other in all_checkpoints(self._folder) if other != path]
        older = [other for other in others if step_of(other) < step_of(path)]
        kept = [path, *older[: self._keep - 1]]
        self._write_index(kept)
        for other in others:
            if other not in kept:
                _delete(other)
        return path

    def _write_index(self, paths: list[str]) -> None:
        """Writes the text file that tf.train.latest_checkpoint reads. The kit itself does not need it."""
        with files.atomic_write(os.path.join(self._folder, "checkpoint")) as file:
            file.write(f'model_checkpoint_path: "{os.path.basename(paths[0])}"\n')
            for path in reversed(paths):
                file.write(f'all_model_checkpoint_paths: "{os.path.basename(path)}"\n')


def _write(checkpoint: tf.train.Checkpoint, path: str) -> None:
    """Writes a checkpoint so that it is there completely or not at all: its index file appears last."""
    if files.is_remote(path):  # TensorFlow itself would make about forty requests.
        with tempfile.TemporaryDirectory() as folder:
            target, name = path.rsplit("/", 1)
            checkpoint.write(os.path.join(folder, name))
            _delete(path)
            files.upload(folder, target, last=".index")
        return
    temporary = files.temporary_path(path)
    try:
        checkpoint.write(temporary)
        data, index = _files_of(temporary)
        _delete(path)  # A damaged one of that name may be there.
        files.replace(data, path + data.removeprefix(temporary))
        files.replace(index, path + index.removeprefix(temporary))
    except BaseException:
        with contextlib.suppress(*files.file_errors()):
            _delete(temporary)
        raise


def _files_of(path: str) -> list[str]:
    """Returns the files of a checkpoint, the index file last."""
    folder, name = os.path.split(path)
    return files.list_matching(folder, re.escape(name) + r"(\.index|\.data-[^.]*)")


def _delete(path: str) -> None:
    """Deletes a checkpoint, its index file first, so that an incomplete one is never taken for a complete one."""
    for file in reversed(_files_of(path)):
        files.remove(file)
    if not files.is_remote(path) and os.path.exists(f"{path}_temp"):
        files.remove(f"{path}_temp")


def _values(variables: list[keras.Variable]) -> list[tf.Variable]:
    return [variable.value for variable in variables]


class _DamageError(UserError):
    """A checkpoint that cannot be read."""


@contextlib.contextmanager
def _explain_damage(checkpoint_path: str) -> Iterator[None]:
    """Turns whatever TensorFlow raises about a damaged checkpoint into one line."""
    try:
        yield
    except (tf.errors.OpError, IndexError, ValueError, RuntimeError, AssertionError) as error:
        raise _DamageError(
            f"{checkpoint_path}: the checkpoint is damaged or incomplete ({str(error).strip()})"
        ) from error


def _restore_first(folder: str, restore: Callable[[str], None]) -> str:
    """Restores the newest readable checkpoint, with a warning for each damaged one, and returns its path."""
    paths = all_checkpoints(folder)
    for path in paths:
        try:
            restore(path)
            return path
        except _DamageError as error:
            logging.warning("%s", error)
    names = ", ".join(map(os.path.basename, paths))
    raise UserError(
        f"--train_dir={folder}: none of its checkpoints can be read ({names}); nothing was deleted; put a copy of one "
        "back, or train a new model with --start_new_model or another --train_dir"
    )


def _check_fits(classifier: Classifier, checkpoint_path: str) -> dict[str, list[int]]:
    """Checks that a checkpoint has weights of exactly the classifier's shapes.

    Returns:
        The shapes of everything in the checkpoint, by name.

    Raises:
        UserError: if it has others, or cannot be read.
    """
    with _explain_damage(checkpoint_path), plain_path(checkpoint_path) as path:
        shapes = tf.train.load_checkpoint(path).get_variable_to_shape_map()
    weights = classifier.model.weights
    found = [shapes.get(f"weights/{i}/{_VALUE}") for i in range(len(weights))]
    num_found = sum(key.startswith("weights/") for key in shapes)
    if num_found != len(weights) or found != [list(weight.shape) for weight in weights]:
        raise UserError(
            f"{checkpoint_path}: its weights do not fit {classifier.spec.model} as it now is in cvd_models.py; {_UNDO}"
        )
    return shapes
