"""Training steps: several of them in one graph, on one device or many."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from cats_vs_dogs import models, readers
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.config import OptimizerConfig
from cats_vs_dogs.labels import SMALLEST_PROBABILITY, is_dog

# What `run_steps` adds up: the number of examples, and the sum of each other figure over them.
SUMS = ("examples", "label_loss", "regularization_loss", "log_loss", "accuracy")
_NO_SUMS = np.zeros(len(SUMS))


@dataclasses.dataclass(frozen=True)
class StepOutputs:
    """Outputs of `run_steps`, of the last step unless noted. The lists have a tensor per device of this process.

    Attributes:
        num_steps: how many steps were taken.
        is_finite: whether loss and gradients are finite; those of the earlier steps are.
        largest_gradient_norm: the largest finite gradient norm of all steps since the start of the process.
        gradient_norm: norm of all gradients together, before clipping.
        gradient_norms: the gradient norm of each trainable variable, by its path; 0 without a gradient.
        label_loss: mean over the global batch.
        regularization_loss: the same on every device.
        images: uint8 or float32 [batch on the device, size, size, 3]; empty if training runs on features.
        probabilities: float32 [batch on the device, 1].
        labels: int32 [batch on the device, 1].
        weights: the fraction of the global batch that each device has; 0: its examples are copies of another device's.
        sums: float64 [len(SUMS)], those given to `run_steps` plus those of its steps, over their global batches.
    """

    num_steps: int
    is_finite: bool
    largest_gradient_norm: float
    gradient_norm: float
    gradient_norms: dict[str, float]
    label_loss: float
    regularization_loss: float
    images: list[tf.Tensor]
    probabilities: list[tf.Tensor]
    labels: list[tf.Tensor]
    weights: list[tf.Tensor]
    sums: np.ndarray


class Trainer:
    """Runs training steps.

    Args:
        classifier: what to train, built in the strategy's scope.
        optimizer: built, with a learning rate that is a function of its step.
        strategy: the devices to train on.
        config: its `regularization_penalty` and `clip_gradient_norm` are used.
        jit_compile: whether XLA compiles the forward and backward pass.
        interrupts: bool variables; once one is true on any worker, `run_steps` returns after the current step.
        measures_waiting: whether to measure how long steps wait for a batch. TensorFlow does not allow it in
            deterministic mode.
        on_features: whether batches hold features, as the model's frozen part returns them, instead of images.
        mix: mixes the images of a batch, given images, labels and step; see `augmentation.mix`. None: nothing is mixed.

    Attributes:
        timed_steps: number of steps timed so far: all but the first, which waits for the graph to be built.
        seconds: how long they took.
        waiting_seconds: how much of it they waited for a batch.
    """

    def __init__(
        self,
        classifier: Classifier,
        optimizer: keras.optimizers.Optimizer,
        strategy: tf.distribute.Strategy,
        config: OptimizerConfig,
        jit_compile: bool = False,
        interrupts: Sequence[tf.Variable] = (),
        measures_waiting: bool = True,
        on_features: bool = False,
        mix: Callable | None = None,
    ):
        self.timed_steps = 0
        self.seconds = 0.0
        self.waiting_seconds = 0.0
        self._is_warm = False
        self._largest_gradient_norm = 0.0
        self._classifier = classifier
        self._paths = [variable.path for variable in classifier.model.trainable_variables]
        self._optimizer = optimizer
        self._scales_loss = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        self._strategy = strategy
        self._regularization_penalty = config.regularization_penalty
        self._clip_gradient_norm = config.clip_gradient_norm
        self._measures_waiting = measures_waiting
        self._on_features = on_features
        self._mix = mix
        self._interrupts = interrupts
        synchronize_batch_norm(classifier.model.network, strategy, jit_compile)
        # To rewrite their code would take longer than to build their graphs.
        function = functools.partial(tf.function, autograph=False)
        # Without XLA it is no graph of its own: inside one, devices cannot synchronise.
        self._gradients = function(self._gradients_of_batch, jit_compile=True) if jit_compile else None
        self._replica_step = function(self._step_on_replica)
        self._next_step = function(self._next_step_in_graph)
        self._run_steps = function(self._run_steps_in_graph)

    def run_steps(self, batches: Iterator, num_steps: int, sums: tf.Tensor | np.ndarray = _NO_SUMS) -> StepOutputs:
        """Takes steps without returning to Python between them.

        Args:
            batches: iterator over (images or features, labels, weight: the fraction of the global batch), perhaps
                distributed over devices.
            num_steps: how many steps to take, at least 1. It takes fewer if it is interrupted, or when the loss or a
                gradient is no longer finite; and only one at the first call.
            sums: float64 [len(SUMS)], to which the steps add. They are added step by step, so the result does not
                depend on how many steps one call takes.

        Returns:
            Their outputs.
        """
        is_timed = self._is_warm or num_steps == 1
        if not is_timed:
            num_steps = 1  # The first step waits for the graph to be built.
        self._is_warm = True
        start = time.monotonic()
        num_done, waiting, largest_norm, sums, is_finite, reduced, outputs = self._run_steps(
            batches, tf.constant(num_steps), tf.convert_to_tensor(sums)
        )
        images, probabilities, labels, weights = outputs
        self._largest_gradient_norm = max(self._largest_gradient_norm, float(largest_norm))
        finished = StepOutputs(
            int(num_done),
            bool(is_finite),
            self._largest_gradient_norm,
            float(reduced["gradient_norm"]),
            dict(zip(self._paths, reduced["gradient_norms"].numpy().tolist(), strict=True)),
            float(reduced["label_loss"]),
            float(reduced["regularization_loss"]),
            [] if self._on_features else images,
            probabilities,
            labels,
            weights,
            sums.numpy(),
        )
        if is_timed:
            self.timed_steps += finished.num_steps
            self.seconds += time.monotonic() - start
            self.waiting_seconds += float(waiting)
        return finished

    def _run_steps_in_graph(self, batches, num_steps, sums):
        def goes_on(num_done, waiting, largest_norm, sums, reduced, outputs):
            return (num_done < num_steps) & self._is_finite(reduced) & (reduced["interrupts"] == 0.0)

        def take_step(num_done, waiting, largest_norm, sums, reduced, outputs):
            with tf.control_dependencies([reduced["gradient_norm"]]):  # The loss is there before the backward pass.
                step_done = self._now()
            reduced, outputs, seconds = self._next_step(batches, step_done)
            largest_norm = tf.maximum(largest_norm, _finite_or_zero(reduced["gradient_norm"]))
            return num_done + 1, waiting + seconds, largest_norm, sums + self._sums_of_step(reduced), reduced, outputs

        # Zeros stand for the step before the first one. If the first step were outside the loop, the graph would be
        # twice as large, and the start would take seconds more.
        *of_step, _ = self._next_step.get_concrete_function(batches, self._now()).structured_outputs
        zeros = tf.nest.map_structure(lambda one: tf.zeros([size or 0 for size in one.shape], one.dtype), of_step)
        start = (tf.constant(0), tf.zeros([], tf.float64), tf.zeros([]), sums)
        shapes = tf.nest.map_structure(lambda one: one.shape, (*start, *of_step))
        *so_far, reduced, outputs = tf.while_loop(goes_on, take_step, (*start, *zeros), shapes)
        return *so_far, self._is_finite(reduced), reduced, outputs

    def _sums_of_step(self, reduced) -> tf.Tensor:
        """Returns the SUMS of one step, as float64: float32 would round the sums of many steps."""
        examples, log_loss, num_right = tf.unstack(tf.cast(reduced["sums"], tf.float64))
        losses = [tf.cast(reduced[name], tf.float64) for name in ("label_loss", "regularization_loss")]
        return tf.stack([examples, *(examples * loss for loss in losses), log_loss, num_right])

    def _next_step_in_graph(self, batches, after: tf.Tensor):
        """Waits for `after`, fetches a batch, takes one step. Also returns how many seconds the batch took."""
        with tf.control_dependencies([after]):
            asked = self._now()
        with tf.control_dependencies([asked]):
            batch = next(batches)
        with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
            waited = self._now() - asked
        interrupts = [tf.cast(interrupt.read_value(), tf.float32) for interrupt in self._interrupts]
        args = (*batch, tf.add_n([tf.constant(0.0), *interrupts]))
        reduced, outputs = self._strategy.run(self._replica_step, args=args)
        local = self._strategy.experimental_local_results
        return (
            {name: local(value)[0] for name, value in reduced.items()},
            [list(local(output)) for output in outputs],
            waited,
        )

    def _now(self) -> tf.Tensor:
        return tf.timestamp() if self._measures_waiting else tf.zeros([], tf.float64)

    def _is_finite(self, reduced) -> tf.Tensor:
        loss = reduced["label_loss"] + reduced["regularization_loss"]
        # With a scaled loss, gradients may overflow: the optimizer then skips that step and lowers the scale.
        return tf.math.is_finite(loss if self._scales_loss else loss + reduced["gradient_norm"])

    def _step_on_replica(self, images, labels, weight, interrupts):
        """Takes a step on one device; returns what is summed over all devices, and this device's part of the batch."""
        parts = [(tf.constant(1.0), labels)]
        if self._mix is not None:
            images, parts = self._mix(readers.scale_images(images), labels, self._optimizer.iterations)
        gradients_of = self._gradients or self._gradients_of_batch
        gradients, label_loss, regularization_loss, probabilities = gradients_of(images, parts, weight)
        # A variable that the loss does not depend on has no gradient.
        variables = self._classifier.model.trainable_variables
        has_gradient = [gradient is not None for gradient in gradients]
        pairs = [pair for pair in zip(gradients, variables, strict=True) if pair[0] is not None]
        # The losses and the requests to interrupt are summed too, so that all workers leave the graph at the same step.
        replicas = tf.distribute.get_replica_context()
        *gradients, label_loss, regularization_loss, interrupts, sums = replicas.all_reduce(
            tf.distribute.ReduceOp.SUM,
            [
                *(gradient for gradient, _ in pairs),
                label_loss,
                regularization_loss,
                tf.identity(interrupts),
                _sums_of_part(probabilities, labels, weight),
            ],
        )
        scale = self._optimizer.dynamic_scale if self._scales_loss else 1.0
        halves = tf.stack([tf.nn.l2_loss(gradient) for gradient in gradients])  # As tf.linalg.global_norm does.
        norm, norms = tf.sqrt(2.0 * tf.reduce_sum(halves)) / scale, tf.sqrt(2.0 * halves) / scale
        if self._clip_gradient_norm:
            gradients = [tf.clip_by_norm(gradient, self._clip_gradient_norm * scale) for gradient in gradients]
        # Keras sums the gradients of all devices once more.
        gradients = [gradient / self._strategy.num_replicas_in_sync for gradient in gradients]
        self._optimizer.apply_gradients(zip(gradients, [variable for _, variable in pairs], strict=True))
        reduced = {
            "label_loss": label_loss,
            "regularization_loss": regularization_loss,
            "sums": sums,
            "gradient_norm": norm,
            "gradient_norms": tf.scatter_nd(np.flatnonzero(has_gradient)[:, np.newaxis], norms, [len(variables)]),
            "interrupts": interrupts,
        }
        return reduced, (images, probabilities, labels, weight)

    def _gradients_of_batch(self, images, parts, weight):
        """Returns the gradients of this replica's part of the loss, which is the mean over the global batch.

        Args:
            images: images or features.
            parts: pairs of a share of the loss and the labels for it, one pair unless images are mixed.
            weight: the fraction of the global batch.
        """
        variables = [variable.value for variable in self._classifier.model.trainable_variables]
        with tf.GradientTape() as tape:
            outputs = self._classifier.training_outputs(images, parts[0][1], self._on_features)
            losses = [share * self._classifier.label_loss(outputs, labels) for share, labels in parts]
            label_loss = weight * tf.add_n(losses)
            regularization_loss = self._classifier.regularization_loss(outputs) / self._strategy.num_replicas_in_sync
            loss = label_loss + self._regularization_penalty * regularization_loss
            if self._scales_loss:
                loss = self._optimizer.scale_loss(loss)
        probabilities = self._classifier.probability_of(outputs["predictions"])
        return tape.gradient(loss, variables), label_loss, regularization_loss, probabilities


def _sums_of_part(probabilities: tf.Tensor, labels: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """Returns what this device adds to "examples", "log_loss" and "accuracy" of the SUMS, float32 [3].

    Args:
        probabilities: float32 [batch on the device, 1].
        labels: int32 [batch on the device, 1].
        weight: the fraction of the global batch; 0: the examples are copies of another device's, which count there.
    """
    are_dogs = labels > 0
    of_truth = tf.where(are_dogs, probabilities, 1.0 - probabilities)
    log_losses = -tf.math.log(tf.maximum(of_truth, SMALLEST_PROBABILITY))
    are_right = tf.cast(is_dog(probabilities) == are_dogs, tf.float32)
    sums = [tf.cast(tf.size(labels), tf.float32), tf.reduce_sum(log_losses), tf.reduce_sum(are_right)]
    return tf.where(weight > 0, tf.stack(sums), tf.zeros(3))


def _finite_or_zero(value: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.math.is_finite(value), value, 0.0)


def synchronize_batch_norm(model: keras.Model, strategy: tf.distribute.Strategy, jit_compile: bool) -> None:
    """Lets batch norm take its statistics over the global batch, so that N devices give the weights of one.

    Args:
        model: its layers are changed.
        strategy: nothing is done for one device.
        jit_compile: XLA cannot synchronise devices; then each device keeps its own statistics, with a warning.
    """
    if strategy.num_replicas_in_sync == 1:
        return
    layers = [layer for layer in models.all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    if layers and jit_compile:
        logging.warning(
            "batch norm takes its statistics on each device alone, since XLA compiles the step; pass --jit_compile=off "
            "to take them over the global batch"
        )
        return
    for layer in layers:
        layer.synchronized = True


class Profiler:
    """Records the steps of a window for TensorBoard's Profile tab.

    Args:
        folder: where the profile goes.
        window: the step to start after and the step to end after; empty: nothing is recorded.
    """

    def __init__(self, folder: str, window: Sequence[int]):
        self._folder = folder
        self._start, self._end = window or (0, 0)
        self._is_running = False

    def update(self, step: int) -> None:
        """Starts or ends the recording, as is due after `step` steps."""
        if not self._is_running and self._start <= step < self._end:
            tf.profiler.experimental.start(self._folder)
            self._is_running = True
        elif self._is_running and step >= self._end:
            self.close()

    def close(self) -> None:
        """Ends a recording and writes it."""
        if self._is_running:
            self._is_running = False
            tf.profiler.experimental.stop()
