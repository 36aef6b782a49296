"""What a train_dir holds: model_flags.json, checkpoints, exports, event files; writing it and reading it again."""

import contextlib
import dataclasses
import os
import re
import tempfile
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from cats_vs_dogs.classifier import Classifier, ModelSpec
from cats_vs_dogs.files import atomic_write, explain_error, is_remote, make_dirs, read_json, upload, write_json
from cats_vs_dogs.utils import UserError

# Everything that the kit writes into a train_dir; --start_new_model deletes nothing else.
_OWN_FILES = re.compile(
    r"(best/)?(model_flags\.json|model\.ckpt-\d+\..*)|run\.json|checkpoint|predictions\.csv(\.bad_examples\.csv)?|"
    r"(eval/)?events\.out\.tfevents\..*|(eval/)?(bad_examples\.csv|metrics\.jsonl)|(best|eval)/metrics-\d+\.json|export/step_\d+|"
    r"plugins/profile|.*\.\d+\.tmp"
)
_OWN_FOLDERS = ("best", "eval", "export", "plugins")
# What a run that was killed leaves half written.
_HALF_WRITTEN = re.compile(
    r"model\.ckpt-.*\.tmp.*|(checkpoint\.|.*\.json\.|metrics\.jsonl\.|(eval/)?cut\.|export/step_).*\.tmp|best/.*\.tmp.*"
)


def model_flags_path(train_dir: str) -> str:
    """Returns the path of model_flags.json."""
    return os.path.join(train_dir, "model_flags.json")


def save_spec(train_dir: str, spec: ModelSpec) -> None:
    """Writes model_flags.json."""
    write_json(model_flags_path(train_dir), dataclasses.asdict(spec))


def load_spec(train_dir: str, **expected: str | None) -> ModelSpec:
    """Reads model_flags.json.

    Args:
        train_dir: where a model was trained.
        **expected: what the user says of the model with flags, such as model="MoeModel"; None: nothing.

    Returns:
        What is needed to build the model.

    Raises:
        UserError: if there is no model, or it is another one than expected.
    """
    path = model_flags_path(train_dir)
    try:
        is_there = tf.io.gfile.exists(path)
    except tf.errors.OpError as error:
        raise UserError(f"--train_dir={train_dir}: cannot be read: {explain_error(error)}") from error
    if not is_there:
        raise UserError(f"--train_dir={train_dir}: holds no model (no model_flags.json); train one with train.py first")
    kinds = {
        "model": str,
        "model_params": dict,
        "label_loss": str,
        "loss_params": dict,
        "image_size": int,
        "resize_method": str,
    }
    stored = read_json(path)
    if {key: type(value) for key, value in stored.items()} != kinds:
        expected = ", ".join(f"{key} ({kind.__name__})" for key, kind in kinds.items())
        raise UserError(f"{path}: must have exactly the keys {expected}; fix it, or train anew in another train_dir")
    spec = ModelSpec(**stored)
    try:
        spec.classes()
    except UserError as error:
        raise UserError(f"{path}: {error}; put the class back, or name another train_dir") from error
    for flag, value in expected.items():
        if value is not None and value != getattr(spec, flag):
            raise UserError(
                f"--{flag}={value}: the model in --train_dir={train_dir} was trained with {flag}="
                f"{getattr(spec, flag)}; leave the flag out, or name another train_dir"
            )
    return spec


def all_checkpoints(train_dir: str) -> list[str]:
    """Returns the paths of all checkpoints, such as "train_dir/model.ckpt-78", the newest first.

    Looks at the files themselves: the text file "checkpoint" may be lost or name what is not there.
    """
    found = tf.io.gfile.glob(os.path.join(train_dir, "model.ckpt-*.index"))
    paths = [path.removesuffix(".index") for path in found if re.fullmatch(r"model\.ckpt-\d+\.index", _name(path))]
    return sorted(paths, key=step_of, reverse=True)


def newest_checkpoint(train_dir: str) -> str | None:
    """Returns the path of the newest checkpoint, such as "train_dir/model.ckpt-78"; None if there is none."""
    return next(iter(all_checkpoints(train_dir)), None)


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def latest_checkpoint(train_dir: str) -> str:
    """Returns the path of the newest checkpoint, such as "train_dir/model.ckpt-78".

    Raises:
        UserError: if there is none.
    """
    path = newest_checkpoint(train_dir)
    if path is None:
        raise UserError(f"--train_dir={train_dir}: holds no checkpoint; train a model with train.py first")
    return path


def step_of(checkpoint_path: str) -> int:
    """Returns the step in the name of a checkpoint: 78 for ".../model.ckpt-78"."""
    return int(checkpoint_path.rsplit("-", 1)[1])


def restore_newest(classifier: Classifier, train_dir: str) -> str:
    """Restores the weights of a classifier from the newest checkpoint that can be read, and returns its path.

    Raises:
        UserError: if there is no checkpoint, none can be read, or it is of another model.
    """
    latest_checkpoint(train_dir)
    return _restore_first(train_dir, lambda path: restore_classifier(classifier, path))


def restore_classifier(classifier: Classifier, checkpoint_path: str) -> None:
    """Restores the weights of a classifier.

    Raises:
        UserError: if the checkpoint cannot be read or is of another model.
    """
    _check_fits(classifier, checkpoint_path)
    with _damage_named(checkpoint_path):
        checkpoint = tf.train.Checkpoint(weights=_values(classifier.model.weights))
        checkpoint.read(checkpoint_path).expect_partial()


def save_best(classifier: Classifier, best_dir: str, step: int, metrics: dict) -> None:
    """Puts a model and its metrics in the place of the best so far. The folder can be used like a train_dir.

    Args:
        classifier: its weights are saved.
        best_dir: where; what is there is replaced.
        step: at which the model is.
        metrics: of its evaluation, for metrics-<step>.json.
    """
    make_dirs(best_dir)
    save_spec(best_dir, classifier.spec)
    write_json(os.path.join(best_dir, f"metrics-{step}.json"), metrics)
    path = os.path.join(best_dir, f"model.ckpt-{step}")
    _write(tf.train.Checkpoint(weights=_values(classifier.model.weights)), path)
    for other in all_checkpoints(best_dir):
        if other != path:
            _delete(other)
            tf.io.gfile.remove(os.path.join(best_dir, f"metrics-{step_of(other)}.json"))


class Progress:
    """How training stands, besides the weights: a few numbers that a checkpoint holds.

    Attributes:
        step: steps done.
        evaluated: the step of the last evaluation.
        best_step: the step with the lowest loss of an evaluation so far.
        best_loss: that loss; infinite before the first evaluation.
        worse_in_a_row: how many evaluations there were since.
    """

    def __init__(self):
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="global_step")
        self.evaluated = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.best_step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.best_loss = tf.Variable(np.inf, dtype=tf.float64, trainable=False)
        self.worse_in_a_row = tf.Variable(0, dtype=tf.int64, trainable=False)


class TrainingCheckpoint:
    """Saves and restores everything that a training run needs to go on.

    Args:
        train_dir: where the checkpoints are.
        classifier: its weights and the states of its random layers are saved.
        optimizer: built, its variables are saved.
        keep: how many checkpoints to keep.

    Attributes:
        progress: is saved too.
    """

    def __init__(self, train_dir: str, classifier: Classifier, optimizer: keras.optimizers.Optimizer, keep: int):
        self.progress = Progress()
        self._train_dir = train_dir
        self._classifier = classifier
        self._optimizer = optimizer
        self._keep = keep
        # Plain lists, so that the names in the file do not depend on how Keras keeps its layers.
        self._checkpoint = tf.train.Checkpoint(
            progress=vars(self.progress),
            weights=_values(classifier.model.weights),
            # Under the name of its class: the variables of many optimizers have the same shapes.
            optimizer={type(optimizer).__name__: _values(optimizer.variables)},
            seeds=_values(classifier.model.seed_states),
        )

    def restore_latest(self) -> str | None:
        """Restores the newest checkpoint that can be read and returns its path; None if there is no checkpoint.

        Raises:
            UserError: if no checkpoint can be read, or it is of another model or optimizer.
        """
        return _restore_first(self._train_dir, self._restore) if newest_checkpoint(self._train_dir) else None

    def _restore(self, path: str) -> None:
        shapes = _check_fits(self._classifier, path)
        made_with = {key.split("/")[1] for key in shapes if key.startswith("optimizer/")}
        optimizer = type(self._optimizer).__name__
        if made_with != {optimizer}:
            raise UserError(
                f"--optimizer: {path} was made with {', '.join(made_with)}, not with {optimizer}; give the one it was "
                "made with, or --start_new_model, or another --train_dir"
            )
        num_variables = sum(key.startswith(f"optimizer/{optimizer}/") for key in shapes)
        if num_variables != len(self._optimizer.variables):
            raise UserError(
                f"--optimizer_params: {path} has {num_variables} variables of the optimizer {optimizer}, which now has "
                f"{len(self._optimizer.variables)}; give the parameters it was made with, or --start_new_model, or "
                "another --train_dir"
            )
        num_seeds = sum(key.startswith("seeds/") for key in shapes)
        if num_seeds != len(self._classifier.model.seed_states):
            raise UserError(
                f"{path}: was made with {num_seeds} random layers, such as dropout; {self._classifier.spec.model} now "
                f"has {len(self._classifier.model.seed_states)}; {_UNDO}"
            )
        with _damage_named(path):
            self._checkpoint.read(path).assert_existing_objects_matched()

    def save(self) -> str:
        """Saves and returns the path, such as "train_dir/model.ckpt-78"; deletes the oldest beyond `keep`.

        Raises:
            UserError: if a value is not finite; then nothing is saved.
        """
        values = _values(self._classifier.model.weights) + _values(self._optimizer.variables)
        if not all(np.isfinite(value.numpy()).all() for value in values if value.dtype.is_floating):
            raise UserError(
                f"weights or optimizer state are not finite any more at step {int(self.progress.step)}; they were not "
                "saved, and the last checkpoint was left as it is; try a lower --base_learning_rate"
            )
        path = os.path.join(self._train_dir, f"model.ckpt-{int(self.progress.step)}")
        _write(self._checkpoint, path)
        # Later ones are of a run that could not be gone on with: this one began with an older checkpoint.
        others = [other for other in all_checkpoints(self._train_dir) if other != path]
        older = [other for other in others if step_of(other) < step_of(path)]
        kept = [path, *older[: self._keep - 1]]
        self._write_state(kept)
        for other in others:
            if other not in kept:
                _delete(other)
        return path

    def _write_state(self, paths: list[str]) -> None:
        """Writes the text file that tf.train.latest_checkpoint reads. The kit itself needs none."""
        with atomic_write(os.path.join(self._train_dir, "checkpoint"), "") as file:
            file.write(f'model_checkpoint_path: "{_name(paths[0])}"\n')
            for path in reversed(paths):
                file.write(f'all_model_checkpoint_paths: "{_name(path)}"\n')


def _write(checkpoint: tf.train.Checkpoint, path: str) -> None:
    """Writes a checkpoint so that it is there, whole, or not there at all: its index file appears last."""
    gfile = tf.io.gfile
    if is_remote(path):  # TensorFlow itself would make some forty requests of it.
        with tempfile.TemporaryDirectory() as folder:
            target, name = path.rsplit("/", 1)
            checkpoint.write(os.path.join(folder, name))
            _delete(path)
            upload(folder, target, last=".index")
        return
    aside = f"{path}.{os.getpid()}.tmp"
    try:
        checkpoint.write(aside)
        data, index = sorted(gfile.glob(f"{aside}.*"))
        _delete(path)  # There may be a damaged one of that name.
        gfile.rename(data, path + data.removeprefix(aside))
        gfile.rename(index, path + index.removeprefix(aside))
    except BaseException:
        with contextlib.suppress(tf.errors.OpError):
            _delete(aside)
        raise


def _delete(path: str) -> None:
    """Deletes a checkpoint, its index file first, so that no half of one is ever taken for a whole."""
    for file in sorted(tf.io.gfile.glob(f"{path}[._]*"), reverse=True):
        if re.fullmatch(r"\.index|\.data-[^.]*", file.removeprefix(path)):
            tf.io.gfile.remove(file)
        elif file == f"{path}_temp":
            tf.io.gfile.rmtree(file)


def _values(variables: list[keras.Variable]) -> list[tf.Variable]:
    return [variable.value for variable in variables]


class _DamageError(UserError):
    """A checkpoint that cannot be read."""


@contextlib.contextmanager
def _damage_named(checkpoint_path: str) -> Iterator[None]:
    """Turns whatever TensorFlow raises about a damaged checkpoint into one line."""
    try:
        yield
    except (tf.errors.OpError, IndexError, ValueError, RuntimeError, AssertionError) as error:
        raise _DamageError(
            f"{checkpoint_path}: the checkpoint is damaged or incomplete ({str(error).strip()})"
        ) from error


def _restore_first(train_dir: str, restore: Callable[[str], None]) -> str:
    """Restores the newest checkpoint that can be read, with a warning for each that cannot, and returns its path."""
    paths = all_checkpoints(train_dir)
    for path in paths:
        try:
            restore(path)
            return path
        except _DamageError as error:
            logging.warning("%s", error)
    raise UserError(
        f"--train_dir={train_dir}: none of its checkpoints can be read ({', '.join(map(_name, paths))}); nothing was "
        "deleted; put a copy of one back, or train anew with --start_new_model or another --train_dir"
    )


_UNDO = "undo the change, or train anew with --start_new_model or another --train_dir"


def _check_fits(classifier: Classifier, checkpoint_path: str) -> dict[str, list[int]]:
    """Makes sure that the checkpoint has weights of just the shapes of the classifier's.

    Returns:
        The shapes of everything in the checkpoint, by name.

    Raises:
        UserError: if it has others, or cannot be read.
    """
    with _damage_named(checkpoint_path):
        shapes = tf.train.load_checkpoint(checkpoint_path).get_variable_to_shape_map()
    weights = classifier.model.weights
    found = [shapes.get(f"weights/{i}/.ATTRIBUTES/VARIABLE_VALUE") for i in range(len(weights))]
    num_found = sum(key.startswith("weights/") for key in shapes)
    if num_found != len(weights) or found != [list(weight.shape) for weight in weights]:
        raise UserError(
            f"{checkpoint_path}: its weights do not fit {classifier.spec.model} as it now is in cvd_models.py; {_UNDO}"
        )
    return shapes


def lock(train_dir: str) -> int | None:
    """Keeps other training processes out of a train_dir, until this process ends, however it ends.

    Without effect on object stores, and where the operating system or a network drive knows no such lock.

    Returns:
        The descriptor whose closing ends the lock; None if there is no lock.

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


def delete_half_written(train_dir: str) -> None:
    """Deletes what a training run that was killed did not finish writing; to be called with the `lock`."""
    for name in filter(_HALF_WRITTEN.fullmatch, _names(train_dir)):
        path = os.path.join(train_dir, name)
        (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)


def _names(train_dir: str) -> list[str]:
    """Returns the names of what is in a train_dir, and in those of its folders that the kit makes: "best/run.json"."""
    gfile = tf.io.gfile
    if is_remote(train_dir) and not gfile.isdir(train_dir):  # There is no object in it yet.
        return []
    names = []
    for name in gfile.listdir(train_dir):
        folder = os.path.join(train_dir, name.rstrip("/"))
        if name.rstrip("/") in _OWN_FOLDERS and gfile.isdir(folder) and not os.path.islink(folder):
            names += [os.path.join(name, inner) for inner in gfile.listdir(folder) if inner.strip("/")]
        else:
            names.append(name)
    return [name.rstrip("/") for name in names if name.strip("/")]


def own_files(train_dir: str) -> list[str]:
    """Returns the paths of what the kit wrote into a train_dir, which --start_new_model deletes.

    Raises:
        UserError: if there is anything else in it, or it is not a folder for a model alone.
    """
    refusal = f"--start_new_model: --train_dir={train_dir} "
    if os.path.islink(train_dir.rstrip("/")):
        raise UserError(f"{refusal}is a symbolic link; nothing was deleted; name the folder that it points to")
    if os.path.realpath(train_dir) in (os.path.abspath(os.sep), os.path.realpath(os.path.expanduser("~"))):
        raise UserError(f"{refusal}is no folder for a model alone; nothing was deleted; name another train_dir")
    paths = {name: os.path.join(train_dir, name) for name in _names(train_dir)}
    foreign = sorted(name for name in paths if not _OWN_FILES.fullmatch(name) or os.path.islink(paths[name]))
    if foreign:
        raise UserError(
            f"{refusal}holds files that the kit did not write, such as {foreign[0]}; nothing was deleted; move them "
            "away, or name another train_dir"
        )
    return list(paths.values())


def delete_training(train_dir: str) -> None:
    """Deletes what the kit wrote into a train_dir.

    Raises:
        UserError: if there is anything else in it; then nothing is deleted.
    """
    for path in own_files(train_dir):
        (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)
