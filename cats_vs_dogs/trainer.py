"""Training steps: several of them in one graph, on one device or many."""

import dataclasses
import time
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from cats_vs_dogs import readers
from cats_vs_dogs.classifier import Classifier


@dataclasses.dataclass(frozen=True)
class StepOutputs:
    """What some steps gave, most of it of the last of them. The lists have a tensor for each device of this process.

    Attributes:
        num_steps: how many steps were taken.
        is_finite: whether loss and gradients of the last step are; those of the steps before it are.
        largest_gradient_norm: of all steps of this process, but for one that is not finite.
        gradient_norm: norm of all gradients together, before they are clipped.
        gradient_norms: the norm of the gradient of each trainable variable, by its path; 0 without a gradient.
        label_loss: mean over the global batch.
        regularization_loss: the same on every device.
        images: uint8 or float32 [batch on the device, size, size, 3].
        probabilities: float32 [batch on the device, 1].
        labels: int32 [batch on the device, 1].
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


class Trainer:
    """Runs training steps.

    Args:
        classifier: what to train, built in the strategy's scope.
        optimizer: built, with a learning rate that is a function of its step.
        strategy: on which devices to train.
        regularization_penalty: weight of the regularization loss.
        jit_compile: whether XLA compiles the forward and backward pass.
        measures_waiting: whether to measure how long steps wait for a batch.
        stop: bool; once it is true on any worker, the step that is being done is the last. None: nothing stops it.

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
        regularization_penalty: float,
        jit_compile: bool,
        measures_waiting: bool = True,
        stop: tf.Variable | None = None,
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
        self._regularization_penalty = regularization_penalty
        self._measures_waiting = measures_waiting
        self._stop = tf.Variable(False) if stop is None else stop
        self._gradients = tf.function(
            self._gradients_of_batch, jit_compile=jit_compile or None
        )  # None, not False: inlined
        self._replica_step = tf.function(self._step_on_replica)
        self._run_steps = tf.function(self._run_steps_in_graph)

    def run_steps(self, batches: Iterator, num_steps: int) -> StepOutputs:
        """Takes steps without returning to Python between them.

        Args:
            batches: iterator over (images, labels, share of the global batch), perhaps distributed over devices.
            num_steps: how many steps to take, at least 1. Fewer are taken if `stop` becomes true, or when the loss or
                a gradient is not finite any more; and only one the first time.

        Returns:
            Their outputs.
        """
        is_timed = self._is_warm or num_steps == 1
        if not is_timed:
            num_steps = 1  # The first waits for the graph to be built.
        self._is_warm = True
        start = time.monotonic()
        num_done, waiting, is_finite, largest_norm, sums, outputs = self._run_steps(batches, tf.constant(num_steps))
        images, probabilities, labels = outputs
        self._largest_gradient_norm = max(self._largest_gradient_norm, float(largest_norm))
        finished = StepOutputs(
            int(num_done),
            bool(is_finite),
            self._largest_gradient_norm,
            float(sums["norm"]),
            dict(zip(self._paths, sums["norms"].numpy().tolist(), strict=True)),
            float(sums["label_loss"]),
            float(sums["regularization_loss"]),
            images,
            probabilities,
            labels,
        )
        if is_timed:
            self.timed_steps += finished.num_steps
            self.seconds += time.monotonic() - start
            self.waiting_seconds += float(waiting)
        return finished

    def _run_steps_in_graph(self, batches, num_steps):
        sums, outputs, waiting = self._next_step(batches, self._now())
        num_done, largest_norm, is_finite = 1, _finite_or_zero(sums["norm"]), self._is_finite(sums)
        # Not `and`, which would become branches of the graph.
        while (num_done < num_steps) & is_finite & (sums["stop"] == 0.0):
            with tf.control_dependencies([sums["norm"]]):  # Not the loss, which is there before the backward pass.
                step_done = self._now()
            sums, outputs, seconds = self._next_step(batches, step_done)
            waiting += seconds
            num_done += 1
            largest_norm = tf.maximum(largest_norm, _finite_or_zero(sums["norm"]))
            is_finite = self._is_finite(sums)
        return num_done, waiting, is_finite, largest_norm, sums, outputs

    def _next_step(self, batches, after: tf.Tensor):
        """Takes a batch once `after` is there, and a step with it; also says how many seconds the batch took."""
        with tf.control_dependencies([after]):
            asked = self._now()
        with tf.control_dependencies([asked]):
            batch = next(batches)
        with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
            waited = self._now() - asked
        sums, outputs = self._strategy.run(self._replica_step, args=(*batch, self._stop.read_value()))
        local = self._strategy.experimental_local_results
        return (
            {name: local(value)[0] for name, value in sums.items()},
            [list(local(output)) for output in outputs],
            waited,
        )

    def _now(self) -> tf.Tensor:
        return tf.timestamp() if self._measures_waiting else tf.zeros([], tf.float64)

    def _is_finite(self, sums) -> tf.Tensor:
        loss = sums["label_loss"] + sums["regularization_loss"]
        # With a scaled loss gradients may overflow: the optimizer leaves out that step and lowers the scale.
        return tf.math.is_finite(loss if self._scales_loss else loss + sums["norm"])

    def _step_on_replica(self, images, labels, share, stop):
        gradients, label_loss, regularization_loss, probabilities = self._gradients(images, labels, share)
        # A variable that the loss does not depend on has no gradient.
        variables = self._classifier.model.trainable_variables
        has_gradient = [gradient is not None for gradient in gradients]
        pairs = [pair for pair in zip(gradients, variables, strict=True) if pair[0] is not None]
        # Summed here, since Keras clips before it sums. It then sums once more: each replica gives its part of the sum.
        # The losses and the request to stop are summed too, so that all workers go on or end at the same step.
        others = [label_loss, regularization_loss, tf.cast(stop, tf.float32)]
        replicas = tf.distribute.get_replica_context()
        *gradients, label_loss, regularization_loss, stop = replicas.all_reduce(
            tf.distribute.ReduceOp.SUM, [*(gradient for gradient, _ in pairs), *others]
        )
        halves = tf.stack([tf.nn.l2_loss(gradient) for gradient in gradients])  # As tf.linalg.global_norm does.
        norm, norms = tf.sqrt(2.0 * tf.reduce_sum(halves)), tf.sqrt(2.0 * halves)
        if self._scales_loss:
            norm, norms = norm / self._optimizer.dynamic_scale, norms / self._optimizer.dynamic_scale
        gradients = [gradient / self._strategy.num_replicas_in_sync for gradient in gradients]
        self._optimizer.apply_gradients(zip(gradients, [variable for _, variable in pairs], strict=True))
        norms = tf.scatter_nd(np.flatnonzero(has_gradient)[:, np.newaxis], norms, [len(variables)])
        losses = {"label_loss": label_loss, "regularization_loss": regularization_loss}
        return {**losses, "norm": norm, "norms": norms, "stop": stop}, (images, probabilities, labels)

    def _gradients_of_batch(self, images, labels, share):
        """Gradients of this replica's part of the loss, which is the mean over the global batch."""
        variables = [variable.value for variable in self._classifier.model.trainable_variables]
        with tf.GradientTape() as tape:
            outputs = self._classifier.model(readers.scale_images(images), labels, training=True)
            label_loss = share * self._classifier.label_loss(outputs, labels)
            regularization_loss = self._classifier.regularization_loss(outputs) / self._strategy.num_replicas_in_sync
            loss = label_loss + self._regularization_penalty * regularization_loss
            if self._scales_loss:
                loss = self._optimizer.scale_loss(loss)
        probabilities = self._classifier.probability_of(outputs["predictions"])
        return tape.gradient(loss, variables), label_loss, regularization_loss, probabilities


def _finite_or_zero(value: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.math.is_finite(value), value, 0.0)
