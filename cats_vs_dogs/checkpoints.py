"""What a train_dir holds: model_flags.json, checkpoints, exports, event files; writing it and reading it again."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator

import keras
import tensorflow as tf

from cats_vs_dogs.classifier import Classifier, ModelSpec
from cats_vs_dogs.utils import UserError, read_json, write_json

# Everything that the kit writes into a train_dir; --start_new_model deletes nothing else.
_OWN_FILES = re.compile(
    r"model_flags\.json|run\.json|checkpoint|model\.ckpt-\d+\..*|events\.out\.tfevents\..*|predictions\.csv|"
    r"bad_examples\.csv|export/step_\d+|eval/metrics-\d+\.json|eval/events\.out\.tfevents\..*|"
    r"eval/bad_examples\.csv|plugins/profile|.*\.\d+\.tmp"
)
_OWN_FOLDERS = ("export", "eval", "plugins")


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
    if not tf.io.gfile.exists(path):
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
        raise UserError(f"{path}: must have exactly the keys {expected}; mend it, or train anew in another train_dir")
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


def newest_checkpoint(train_dir: str) -> str | None:
    """Returns the path of the newest checkpoint, such as "train_dir/model.ckpt-78"; None if there is none.

    Looks at the files themselves: the text file "checkpoint" may be lost or name what is not there.
    """
    found = tf.io.gfile.glob(os.path.join(train_dir, "model.ckpt-*.index"))
    paths = [path.removesuffix(".index") for path in found if re.fullmatch(r"model\.ckpt-\d+\.index", _name(path))]
    return max(paths, key=step_of, default=None)


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


def restore_classifier(classifier: Classifier, checkpoint_path: str) -> None:
    """Restores the weights of a classifier.

    Raises:
        UserError: if the checkpoint cannot be read or is of another model.
    """
    _check_fits(classifier, checkpoint_path)
    with _damage_named(checkpoint_path):
        checkpoint = tf.train.Checkpoint(weights=_values(classifier.model.weights))
        checkpoint.restore(checkpoint_path).expect_partial()


class TrainingCheckpoint:
    """Saves and restores everything that a training run needs to go on.

    Args:
        train_dir: where the checkpoints are.
        classifier: its weights and the states of its random layers are saved.
        optimizer: built, its variables are saved.
        keep: how many checkpoints to keep.

    Attributes:
        step: the number of steps done, an int64 `tf.Variable`.
    """

    def __init__(self, train_dir: str, classifier: Classifier, optimizer: keras.optimizers.Optimizer, keep: int):
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="global_step")
        self._train_dir = train_dir
        self._classifier = classifier
        self._optimizer = optimizer
        # Plain lists, so that the names in the file do not depend on how Keras keeps its layers.
        self._checkpoint = tf.train.Checkpoint(
            step=self.step,
            weights=_values(classifier.model.weights),
            # Under the name of its class: the variables of many optimizers have the same shapes.
            optimizer={type(optimizer).__name__: _values(optimizer.variables)},
            seeds=_values(classifier.model.seed_states),
        )
        self._manager = tf.train.CheckpointManager(
            self._checkpoint, train_dir, max_to_keep=keep, checkpoint_name="model.ckpt"
        )

    def restore_latest(self) -> str | None:
        """Restores the newest checkpoint and returns its path; None if there is none.

        Raises:
            UserError: if the checkpoint cannot be read, or is of another model or optimizer.
        """
        path = newest_checkpoint(self._train_dir)
        if path is None:
            return None
        shapes = _check_fits(self._classifier, path)
        made_with = {key.split("/")[1] for key in shapes if key.startswith("optimizer/")}
        optimizer = type(self._optimizer).__name__
        if made_with != {optimizer}:
            raise UserError(
                f"--optimizer: {path} was made with {', '.join(made_with)}, not with {optimizer}; give the one it was "
                "made with, or --start_new_model, or another --train_dir"
            )
        with _damage_named(path):
            self._checkpoint.restore(path).assert_existing_objects_matched()
        return path

    def save(self) -> str:
        """Saves and returns the path, such as "train_dir/model.ckpt-78"; deletes the oldest beyond `keep`."""
        return self._manager.save(checkpoint_number=int(self.step))


def _values(variables: list[keras.Variable]) -> list[tf.Variable]:
    return [variable.value for variable in variables]


@contextlib.contextmanager
def _damage_named(checkpoint_path: str) -> Iterator[None]:
    """Turns whatever TensorFlow raises about a damaged checkpoint into one line."""
    try:
        yield
    except (tf.errors.OpError, IndexError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"{checkpoint_path}: the checkpoint is damaged or incomplete ({str(error).strip()}); delete the files "
            f"{_name(checkpoint_path)}.* to use the one before, or train anew with --start_new_model"
        ) from error


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
            f"{checkpoint_path}: its weights do not fit {classifier.spec.model} as it now is in cvd_models.py; "
            "undo the change, or train anew with --start_new_model or another --train_dir"
        )
    return shapes


def own_files(train_dir: str) -> list[str]:
    """Returns the paths of what the kit wrote into a train_dir, which --start_new_model deletes.

    Raises:
        UserError: if there is anything else in it.
    """
    gfile = tf.io.gfile
    names = []
    for name in gfile.listdir(train_dir):
        name = name.rstrip("/")
        folder = os.path.join(train_dir, name)
        if name in _OWN_FOLDERS and gfile.isdir(folder):
            names += [f"{name}/{inner.rstrip('/')}" for inner in gfile.listdir(folder)]
        else:
            names.append(name)
    foreign = sorted(name for name in names if not _OWN_FILES.fullmatch(name))
    if foreign:
        raise UserError(
            f"--start_new_model: --train_dir={train_dir} holds files that the kit did not write, such as {foreign[0]}; "
            "nothing was deleted; move them away, or name another train_dir"
        )
    return [os.path.join(train_dir, name) for name in names]


def delete_training(train_dir: str) -> None:
    """Deletes what the kit wrote into a train_dir.

    Raises:
        UserError: if there is anything else in it; then nothing is deleted.
    """
    for path in own_files(train_dir):
        (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)
