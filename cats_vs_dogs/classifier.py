"""A model and its label loss together: what is trained, evaluated and exported."""

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state  # Has no public name.

from cats_vs_dogs import augmentation, cvd_models, losses, models, pixel_checks, porting, readers, untracked, utils
from cats_vs_dogs.config import ModelSpec
from cats_vs_dogs.labels import NUM_CLASSES

_MIDDLES = (0.9, 0.8)  # With flip_crop, training pictures are crops: they show animals larger than whole pictures do.
_UNSEEDED = 87654321  # What TensorFlow returns as its seed if none was set.
# What Keras keeps for the process: its seed, the generator of keras.random, and how many layers have had a name.
_LAYER_NUMBERS = "object_name_uids"
_KERAS_STATE = ("global_random_seed", "global_seed_generator", _LAYER_NUMBERS)


def find_classes(spec: ModelSpec) -> tuple[type[models.BaseModel], type[losses.BaseLoss]]:
    """Returns the classes of a model and its loss.

    Raises:
        UserError: if there is no such class, or it inherits from something else.
    """
    return (
        utils.find_class(spec.model, cvd_models, models.BaseModel, "model"),
        utils.find_class(spec.label_loss, losses, losses.BaseLoss, "label_loss"),
    )


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the random numbers of Python, NumPy and TensorFlow inside the block, and restores them after it.

    Keras draws the seeds of its initializers and random layers from Python's. It numbers the names of layers from the
    start inside the block, and as before after it: a model has the same names whenever it is built.
    """
    keras_state = {name: global_state.get_global_attribute(name) for name in _KERAS_STATE}
    keras_state[_LAYER_NUMBERS] = copy.copy(keras_state[_LAYER_NUMBERS])
    python_state, numpy_state = random.getstate(), np.random.get_state()
    tensorflow_seed, _ = tf.compat.v1.random.get_seed(1)
    for name in _KERAS_STATE:  # With a new seed, Keras 3.12 keeps the generator of the old one.
        global_state.set_global_attribute(name, None)
    keras.utils.set_random_seed(seed)
    try:
        yield
    finally:
        for name, value in keras_state.items():
            global_state.set_global_attribute(name, value)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        tf.random.set_seed(None if tensorflow_seed == _UNSEEDED else tensorflow_seed)


def _use_keras_defaults() -> None:
    """Sets Keras' defaults for this process, whatever the user's keras.json says: they are part of what a model is."""
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)


@contextlib.contextmanager
def _dtype_policy(precision: str) -> Iterator[None]:
    """Gives the layers that are built inside the block a precision. They keep it; the process does not."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


class Classifier:
    """A built model with its label loss. Building one changes nothing for the rest of the process.

    Args:
        spec: which model and which loss. Its seed is that of the initial weights, of layers such as dropout, and of all
            else that `create_model` draws.
        precision: number format of the layers' calculations: "float32", "mixed_bfloat16" or "mixed_float16". Weights,
            predictions and loss are always float32.
        is_new: whether training starts with it; False: its weights will be restored or copied.
        any_size: whether the model takes pictures of any size, not only of the spec's.
        flip_average: whether `probability` and `evaluate_batch` average over a picture and its mirror image.
        crop_average: whether they average over a picture and its middle, see `augmentation.middle`; with
            `flip_average`, also over the mirror images of all.

    Attributes:
        graph_number: stands for the operations and constants of the evaluation, see `untracked.graph_number`.

    Raises:
        UserError: if a name, a parameter, or what `create_model` returns is not right.
    """

    def __init__(
        self,
        spec: ModelSpec,
        precision: str = "float32",
        is_new: bool = False,
        any_size: bool = False,
        flip_average: bool = False,
        crop_average: bool = False,
    ):
        model_class, loss_class = find_classes(spec)
        _use_keras_defaults()
        self.spec = spec
        self.flip_average = self.crop_average = False
        image_size = None if any_size else spec.image_size
        with seeded(spec.seed), _dtype_policy(precision):
            self.loss = loss_class()
            self.model = models.build_model(
                model_class(), image_size, NUM_CLASSES, self.loss.output_layer, spec.model_params, is_new
            )
        losses.check_output_layer(self.loss, spec.model, self.model.network)
        name = spec.label_loss
        if loss_class.calculate_loss is losses.BaseLoss.calculate_loss:
            raise utils.UserError(f"{name} has no calculate_loss; define calculate_loss(self, predictions, labels)")
        self._loss_arguments = utils.accepted_arguments(
            self.loss.calculate_loss, f"{name}.calculate_loss", "loss_params", 2, {}, spec.loss_params
        )
        self._calculate_loss, self._calculate_probability = self._loss_of, self.loss.probability
        graph = self._check(self.evaluate_batch, is_training=False)
        self._drawn = untracked.drawn_constants(graph)
        self.graph_number = untracked.graph_number(graph, self.model.variables)
        self.flip_average, self.crop_average = flip_average, crop_average  # Now, since they change the graph.

    @property
    def num_parameters(self) -> int:
        """The number of weights, moving averages included."""
        return sum(int(np.prod(weight.shape)) for weight in self.model.weights)

    def check_training(self) -> None:
        """Checks before the first step what only training calculates; evaluation is checked from the start.

        It warns of layers that expect other pixels than those in [-1, 1].

        Raises:
            UserError: if the loss fails, or something uses a variable that Keras does not track.
        """
        keras.random.uniform([])  # Creates the generator of keras.random, which cannot be created on several devices.
        # A frozen part is left out: it computes the same as in evaluation, which has been checked.
        self._check(self._training_losses, is_training=True, inputs=self.model.frozen and self.model.frozen.output)
        with seeded(self.spec.seed):
            pixel_checks.warn(self.model.network, self.spec.image_size, f"{self.spec.model}.create_model")
        keras.random.uniform([])  # Again, since `seeded` resets it.

    def check_constants(self) -> None:
        """Checks that the model has the same constants if it is built again, as eval.py does.

        Raises:
            UserError: if it has others.
        """
        if self._drawn and Classifier(self.spec)._drawn != self._drawn:
            raise utils.UserError(
                f"{self.spec.model}: its constants are others each time it is built, so evaluation would use another "
                "model than training; draw them with np.random.normal(...) or the like, which the kit seeds, not with "
                "np.random.default_rng() without a seed, and not depending on is_new"
            )

    @tf.autograph.experimental.do_not_convert  # To rewrite it would take longer than to build its graph.
    def _training_losses(self, inputs: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        outputs = self.training_outputs(inputs, labels, on_features=self.model.frozen is not None)
        return self.label_loss(outputs, labels), self.regularization_loss(outputs)

    def training_outputs(self, inputs: tf.Tensor, labels: tf.Tensor, on_features: bool) -> dict[str, tf.Tensor]:
        """Returns the model's outputs in training for a batch of images, or of features as `frozen` returns them."""
        if on_features:
            return self.model.from_features(inputs, labels, training=True)
        return self.model(readers.scale_images(inputs), labels, training=True)

    def _check(self, function: Callable, is_training: bool, inputs: keras.KerasTensor | None = None) -> tf.Graph:
        """Traces a function of inputs and labels, so that a mistake is reported at the start and in one line.

        Args:
            function: what to trace.
            is_training: whether the function trains.
            inputs: a symbolic input, such as the output of the frozen part; None: images.
        """
        size, what = self.spec.image_size, f"{self.spec.model} with {self.spec.label_loss}"
        images, labels = tf.TensorSpec([None, size, size, 3], tf.uint8), tf.TensorSpec([None, 1], tf.int32)
        if inputs is not None:
            images = tf.TensorSpec(inputs.shape, inputs.dtype)
        try:
            graph = self._trace(function, images, labels)
        except Exception as error:
            if crop_error := pixel_checks.crop_error(self.model.network, error):
                raise utils.UserError(f"{self.spec.model}.create_model: {crop_error}") from error
            raise untracked.creation_error(what, error) or porting.explain(self.spec.label_loss, error, True) from error
        untracked.check(graph, self.model.variables, what, is_training)
        if not is_training:
            untracked.check_predictions(graph, self.model.seed_states, what)
        return graph

    def _trace(self, function: Callable, *specs: tf.TensorSpec) -> tf.Graph:
        """Returns the graph of a function of this classifier. If it fails, AutoGraph rewrites the loss from here on.

        AutoGraph turns Python's branches and loops over tensors into those of a graph. Most losses have none, and to
        rewrite them would take longer than to build the graph.
        """
        try:
            return tf.function(function).get_concrete_function(*specs).graph
        except Exception:  # Whatever it is, the second try shows it again or succeeds.
            self._calculate_loss = tf.function(self._loss_of)
            self._calculate_probability = tf.function(self.loss.probability)
        return tf.function(function).get_concrete_function(*specs).graph

    def label_loss(self, outputs: dict[str, tf.Tensor], labels: tf.Tensor) -> tf.Tensor:
        """Returns the model's own loss if it has one, else the label loss of its predictions; a scalar.

        Args:
            outputs: the model's outputs for a batch.
            labels: int32 [batch, 1].
        """
        if "loss" in outputs:
            return outputs["loss"]
        return self._calculate_loss(outputs["predictions"], labels)

    def _loss_of(self, predictions: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        loss = self.loss.calculate_loss(predictions, labels, **self._loss_arguments)
        if not isinstance(loss, tf.Tensor) or loss.shape.rank != 0 or not loss.dtype.is_floating:
            what = f"{loss.dtype.name} {loss.shape}" if isinstance(loss, tf.Tensor) else type(loss).__name__
            raise TypeError(
                f"it must return a float scalar, the mean over the batch, such as tf.reduce_mean(...); got {what}"
            )
        return loss

    def regularization_loss(self, outputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """Returns the model's "regularization_loss" plus the losses of its layers' regularizers, a scalar."""
        terms = [*self.model.regularizer_losses, outputs.get("regularization_loss", tf.constant(0.0))]
        return tf.add_n(terms)

    def copy_weights(self, source: "Classifier") -> None:
        """Copies the weights of a classifier of the same model, which may use another precision."""
        if source is not self:
            for target, value in zip(self.model.weights, source.model.weights, strict=True):
                target.assign(value)

    def probability_of(self, predictions: tf.Tensor) -> tf.Tensor:
        """Turns predictions into the probability of a dog, float32 [batch, 1].

        A value within 1e-5 of [0, 1] is clipped to it: a mixture of experts may return 1.0000001.
        """
        probability = self._calculate_probability(predictions)
        bounded = tf.clip_by_value(probability, 0.0, 1.0)
        return tf.where(tf.abs(probability - bounded) < 1e-5, bounded, probability)

    @tf.autograph.experimental.do_not_convert
    def probability(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the probability of a dog, float32 [batch, 1]. Inference and export use it.

        Args:
            images: [batch, size, size, 3], see `readers.scale_images`.
        """
        return self.probability_of(self._outputs(self.model.network, images))

    @tf.autograph.experimental.do_not_convert
    def evaluate_batch(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the probability of a dog, float32 [batch, 1], and the label loss, a scalar.

        Args:
            images: [batch, size, size, 3], see `readers.scale_images`.
            labels: int32 [batch, 1], 1 = dog.
        """
        return self._evaluated(self._outputs(self.model, images, labels), labels)

    @tf.autograph.experimental.do_not_convert
    def evaluate_features(self, features: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Like `evaluate_batch`, for features as the model's frozen part returns them, float32 [batch, ...]."""
        return self._evaluated(self.model.from_features(features, labels, training=False), labels)

    def _evaluated(self, outputs: dict[str, tf.Tensor], labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return self.probability_of(outputs["predictions"]), self.label_loss(outputs, labels)

    def _outputs(self, model: Callable, images: tf.Tensor, *labels: tf.Tensor) -> Any:
        """Returns the evaluation graph's outputs, or their mean over several views of each picture."""
        views = [readers.scale_images(images)]
        if self.crop_average:
            views += [augmentation.middle(views[0], part) for part in _MIDDLES]
        if self.flip_average:
            views += list(map(tf.image.flip_left_right, views))
        outputs = [model(view, *labels, training=False) for view in views]
        if len(outputs) == 1:
            return outputs[0]
        return tf.nest.map_structure(lambda *values: tf.add_n(values) / len(values), *outputs)
