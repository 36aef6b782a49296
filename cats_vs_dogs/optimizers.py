"""Optimizers by their names of 2017 or of Keras, and learning rates as functions of the step."""

import inspect
import json
from typing import Any

import keras
import tensorflow as tf

from cats_vs_dogs.utils import UserError, suggest

# The names of tf.train in 2017, with the defaults they had there where those of Keras differ. MomentumOptimizer had no
# default momentum and could not be used; 0.9 is the usual one.
_NAMES_OF_2017 = {
    "AdadeltaOptimizer": (keras.optimizers.Adadelta, {"rho": 0.95, "epsilon": 1e-8}),
    "AdagradOptimizer": (keras.optimizers.Adagrad, {"initial_accumulator_value": 0.1, "epsilon": 0.0}),
    "AdamOptimizer": (keras.optimizers.Adam, {"epsilon": 1e-8}),
    "FtrlOptimizer": (keras.optimizers.Ftrl, {}),
    "GradientDescentOptimizer": (keras.optimizers.SGD, {}),
    "MomentumOptimizer": (keras.optimizers.SGD, {"momentum": 0.9}),
    "RMSPropOptimizer": (keras.optimizers.RMSprop, {"rho": 0.9, "epsilon": 1e-10}),
}

# Arguments of optimizers that have flags of their own, or that the training step and its checkpoints know nothing of.
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

SCHEDULES = ("exponential", "cosine", "constant")


def _available() -> dict[str, tuple[type, dict]]:
    by_keras_name = {
        name: (value, {})
        for name, value in vars(keras.optimizers).items()
        if isinstance(value, type)
        and issubclass(value, keras.optimizers.Optimizer)
        and name not in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
    }
    return {**_NAMES_OF_2017, **by_keras_name}


def check_name(name: str) -> None:
    """Raises UserError if there is no optimizer of that name."""
    if name not in _available():
        raise UserError(f"--optimizer={name}: no such optimizer{suggest(name, sorted(_available()))}")


def make_optimizer(
    name: str,
    learning_rate: keras.optimizers.schedules.LearningRateSchedule,
    variables: list[keras.Variable],
    clip_gradient_norm: float = 0.0,
    scale_loss: bool = False,
    params: dict[str, Any] | None = None,
) -> keras.optimizers.Optimizer:
    """Makes an optimizer, built for the variables it will move.

    Weight decay, if there is any, leaves biases and the scales of batch norm alone: everything that is not a matrix or
    a kernel (Goyal et al. 2017, He et al. 2018).

    Args:
        name: a name of 2017, such as "AdamOptimizer", or of Keras, such as "AdamW".
        learning_rate: the schedule, a function of the optimizer's step.
        variables: what is trained.
        clip_gradient_norm: largest norm of the gradient of each variable; 0: no limit.
        scale_loss: whether the loss is scaled, up and down by what the gradients bear, as float16 needs.
        params: further arguments of the Keras class, such as {"weight_decay": 0.05}.

    Returns:
        The optimizer.

    Raises:
        UserError: if there is no optimizer of that name, or it does not take the parameters.
    """
    check_name(name)
    optimizer_class, arguments = _available()[name]
    params = params or {}
    accepted = sorted(set(inspect.signature(optimizer_class).parameters) - _SET_BY_THE_KIT)
    for param, value in params.items():
        if param not in accepted:
            raise UserError(f'--optimizer_params: {name} has no parameter "{param}"; it takes: {", ".join(accepted)}')
        if not isinstance(value, int | float):
            raise UserError(f'--optimizer_params: "{param}" must be a number, true or false; got {json.dumps(value)}')
    try:
        optimizer = optimizer_class(
            learning_rate=learning_rate, clipnorm=clip_gradient_norm or None, **{**arguments, **params}
        )
    except ValueError as error:
        raise UserError(f"--optimizer_params={json.dumps(params)}: {error}") from error
    if optimizer.weight_decay:
        optimizer.exclude_from_weight_decay(var_list=[variable for variable in variables if len(variable.shape) < 2])
    if scale_loss:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(variables)
    return optimizer


class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of a step, counted in examples so that it does not depend on the batch size.

    Args:
        base: the learning rate to start with.
        global_batch_size: examples a step, over all devices.
        schedule: "exponential": base * decay ** floor(examples / decay_examples), as in 2017; "cosine": from base down
            to 0 at `total_steps` (Loshchilov and Hutter 2017, without restarts); "constant": base.
        decay: factor of the exponential schedule.
        decay_examples: period of the exponential schedule, examples.
        warmup_examples: the rate grows linearly from 0 to its full value over so many examples; 0: no warm-up.
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
        """Returns the learning rate, a float32 scalar, of the step with this number (the first is 0)."""
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
