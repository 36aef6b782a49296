"""Optimizers, found by their 2017 or Keras names, and learning rate schedules."""

import inspect
import json
from typing import Any

import keras
import tensorflow as tf

from cats_vs_dogs.config import OPTIMIZERS_OF_2017
from cats_vs_dogs.utils import UserError, suggest

# Arguments of Keras optimizers that users cannot set: they have flags of their own, or the kit does not support them.
_SET_BY_THE_KIT = {
    "learning_rate",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "gradient_accumulation_steps",
    "name",
    "kwargs",
}


def _available() -> dict[str, tuple[type, dict[str, float]]]:
    """Returns the class and its default arguments for each name of an optimizer."""
    by_keras_name = {
        name: (value, {})
        for name, value in vars(keras.optimizers).items()
        if isinstance(value, type)
        and issubclass(value, keras.optimizers.Optimizer)
        and name not in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
    }
    of_2017 = {
        name: (getattr(keras.optimizers, class_name), defaults)
        for name, (class_name, defaults) in OPTIMIZERS_OF_2017.items()
    }
    return {**of_2017, **by_keras_name}


def check_name(name: str) -> None:
    """Checks the name of an optimizer.

    Raises:
        UserError: if there is no such optimizer.
    """
    if name not in _available():
        raise UserError(f"--optimizer={name}: no such optimizer{suggest(name, sorted(_available()))}")


def make_optimizer(
    name: str,
    learning_rate: keras.optimizers.schedules.LearningRateSchedule,
    variables: list[keras.Variable],
    scale_loss: bool = False,
    params: dict[str, Any] | None = None,
) -> keras.optimizers.Optimizer:
    """Creates an optimizer and builds it for the variables to train.

    Weight decay applies to kernels and other matrices only, not to biases and the parameters of batch norm (Goyal et
    al. 2017, He et al. 2018).

    Args:
        name: a name of 2017, such as "AdamOptimizer", or of Keras, such as "AdamW".
        learning_rate: the learning rate schedule, a function of the optimizer's step.
        variables: the variables to train.
        scale_loss: whether to scale the loss dynamically, as float16 needs.
        params: further arguments of the Keras class, such as {"weight_decay": 0.05}.

    Returns:
        The optimizer.

    Raises:
        UserError: if there is no such optimizer, or it does not accept the parameters.
    """
    optimizer = _create(name, params or {}, learning_rate=learning_rate)
    if optimizer.weight_decay:
        optimizer.exclude_from_weight_decay(var_list=[variable for variable in variables if len(variable.shape) < 2])
    if scale_loss:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(variables)
    return optimizer


def configuration(name: str, params: dict[str, Any]) -> dict[str, Any]:
    """Returns everything that decides an optimizer's update rule, to tell whether two runs use the same one.

    Two names of one rule have equal configurations, such as "GradientDescentOptimizer" and "SGD". "AdamOptimizer" and
    "Adam" do not, because their epsilons differ. The learning rate and clipping have flags of their own and are left
    out.

    Args:
        name: a name of 2017, such as "AdamOptimizer", or of Keras, such as "AdamW".
        params: further arguments of the Keras class, such as {"weight_decay": 0.05}.

    Returns:
        "class", the name of the Keras class, and its arguments with defaults filled in, such as "epsilon". All values
        can be written as JSON.

    Raises:
        UserError: if there is no such optimizer, or it does not accept the parameters.
    """
    # With a name of its own: Keras counts those that it makes up, and checkpoints hold them.
    optimizer = _create(name, params, name="compared")
    arguments = {key: value for key, value in optimizer.get_config().items() if key not in _SET_BY_THE_KIT}
    return {"class": type(optimizer).__name__, **arguments}


def _create(optimizer_name: str, params: dict[str, Any], **arguments: Any) -> keras.optimizers.Optimizer:
    """Creates an optimizer with a user's parameters and the kit's arguments, see `make_optimizer`."""
    check_name(optimizer_name)
    optimizer_class, defaults = _available()[optimizer_name]
    accepted = sorted(set(inspect.signature(optimizer_class).parameters) - _SET_BY_THE_KIT)
    for param, value in params.items():
        if param not in accepted:
            raise UserError(
                f'--optimizer_params: {optimizer_name} has no parameter "{param}"; it takes: {", ".join(accepted)}'
            )
        if not isinstance(value, int | float):
            raise UserError(f'--optimizer_params: "{param}" must be a number, true or false; got {json.dumps(value)}')
    try:
        return optimizer_class(**{**defaults, **params, **arguments})
    except ValueError as error:
        raise UserError(f"--optimizer_params={json.dumps(params)}: {error}; change or leave out that value") from error


class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate schedule whose periods are counted in examples, so they do not depend on the batch size.

    Args:
        base: the initial learning rate, after warm-up.
        global_batch_size: examples per step, over all devices.
        schedule: "exponential": base * decay ** floor(examples / decay_examples), as in 2017. "cosine": falls from
            base to 0 at `total_steps` (Loshchilov and Hutter 2017, without restarts). "constant": base.
        decay: factor of the exponential schedule.
        decay_examples: period of the exponential schedule, examples.
        warmup_examples: length of the warm-up, examples. Meanwhile the scheduled rate is multiplied by a factor that
            grows linearly to 1. 0 means no warm-up.
        total_steps: the step at which training ends.
    """

    def __init__(
        self,
        base: float,
        global_batch_size: int,
        schedule: str = "exponential",
        decay: float = 0.95,
        decay_examples: float = 4_000_000,
        warmup_examples: int = 0,
        total_steps: int = 1,
    ):
        self.base = base
        self.global_batch_size = global_batch_size
        self.schedule = schedule
        self.decay = decay
        self.decay_examples = decay_examples
        self.warmup_examples = warmup_examples
        self.total_steps = total_steps

    def __call__(self, step) -> tf.Tensor:
        """Returns the learning rate of a step, a float32 scalar.

        Args:
            step: the step, counted from 0.
        """
        examples = tf.cast(step, tf.float64) * self.global_batch_size
        rate = tf.constant(self.base, tf.float64)
        if self.schedule == "exponential":
            rate *= tf.constant(self.decay, tf.float64) ** tf.floor(examples / self.decay_examples)
        elif self.schedule == "cosine":
            warmup_steps = self.warmup_examples / self.global_batch_size
            after_warmup = (tf.cast(step, tf.float64) - warmup_steps) / max(1.0, self.total_steps - warmup_steps)
            rate *= 0.5 * (1 + tf.cos(3.141592653589793 * tf.clip_by_value(after_warmup, 0.0, 1.0)))
        if self.warmup_examples:
            rate *= tf.minimum(tf.constant(1.0, tf.float64), (examples + self.global_batch_size) / self.warmup_examples)
        return tf.cast(rate, tf.float32)
