"""A model and its label loss together: what is trained, evaluated and exported."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from cats_vs_dogs import cvd_models, losses, models, readers, utils

NUM_CLASSES = 2


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What is needed to build a model again; `train_dir/model_flags.json` holds it. The names are those of flags."""

    model: str
    model_params: dict[str, Any]
    label_loss: str
    loss_params: dict[str, Any]
    image_size: int
    resize_method: str

    def classes(self) -> tuple[type[models.BaseModel], type[losses.BaseLoss]]:
        """Returns the classes of the model and the loss.

        Raises:
            UserError: if there is no such class, or it inherits from something else.
        """
        return (
            utils.find_class(self.model, cvd_models, models.BaseModel, "model"),
            utils.find_class(self.label_loss, losses, losses.BaseLoss, "label_loss"),
        )


class Classifier:
    """A built model with its label loss.

    Args:
        spec: which model and which loss.
        seed: seed of the initial weights and of layers such as dropout.
        precision: what the layers calculate in: "float32", "mixed_bfloat16" or "mixed_float16". Weights, predictions
            and loss are float32 in any case.
        is_new: whether training starts with it; False: its weights will be restored or copied.
        any_size: whether the model takes pictures of any size, not only of that of the spec.
        flip_average: whether `probability` and `evaluate_batch` go by the mean of what the model gives for a picture
            and for its mirror image.

    Raises:
        UserError: if the names, the parameters, or what `create_model` returns are not right.
    """

    def __init__(
        self,
        spec: ModelSpec,
        seed: int = 0,
        precision: str = "float32",
        is_new: bool = False,
        any_size: bool = False,
        flip_average: bool = False,
    ):
        model_class, loss_class = spec.classes()
        keras.utils.set_random_seed(seed)
        keras.config.set_dtype_policy(precision)
        self.spec = spec
        self.flip_average = flip_average
        self.loss = loss_class()
        image_size = None if any_size else spec.image_size
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
        self._check_loss()

    def _check_loss(self) -> None:
        """Traces the loss once, so that a mistake in it is said at the start and in one line."""
        size = self.spec.image_size
        images, labels = tf.TensorSpec([None, size, size, 3], tf.uint8), tf.TensorSpec([None, 1], tf.int32)
        try:
            tf.function(self.evaluate_batch).get_concrete_function(images, labels)
        except Exception as error:
            raise utils.user_code_error(self.spec.label_loss, error) from error

    def label_loss(self, outputs: dict[str, tf.Tensor], labels: tf.Tensor) -> tf.Tensor:
        """Returns the model's own loss if it gives one, else the label loss of its predictions; a scalar.

        Args:
            outputs: what the model gave for a batch.
            labels: int32 [batch, 1].
        """
        if "loss" in outputs:
            return outputs["loss"]
        loss = self.loss.calculate_loss(outputs["predictions"], labels, **self._loss_arguments)
        if not isinstance(loss, tf.Tensor) or loss.shape.rank != 0 or not loss.dtype.is_floating:
            what = f"{loss.dtype.name} {loss.shape}" if isinstance(loss, tf.Tensor) else type(loss).__name__
            raise TypeError(
                f"it must return a float scalar, the mean over the batch, such as tf.reduce_mean(...); got {what}"
            )
        return loss

    def regularization_loss(self, outputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """Returns the sum of what the model gave as "regularization_loss" and of its layers' regularizers, a scalar."""
        terms = [*self.model.regularizer_losses, outputs.get("regularization_loss", tf.constant(0.0))]
        return tf.add_n(terms)

    def copy_weights(self, source: "Classifier") -> None:
        """Takes over the weights of a classifier of the same model, which may calculate in another precision."""
        if source is not self:
            for target, value in zip(self.model.weights, source.model.weights, strict=True):
                target.assign(value)

    def probability_of(self, predictions: tf.Tensor) -> tf.Tensor:
        """Returns the probability of a dog, float32 [batch, 1], that predictions mean.

        Within 1e-5 of [0, 1] it is brought there: a mixture that is sure of a dog may come to 1.0000001.
        """
        probability = self.loss.probability(predictions)
        bounded = tf.clip_by_value(probability, 0.0, 1.0)
        return tf.where(tf.abs(probability - bounded) < 1e-5, bounded, probability)

    def probability(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the probability of a dog, float32 [batch, 1], by the evaluation graph.

        Args:
            images: uint8, or float32 in [-1, 1], [batch, size, size, 3].
        """
        return self.probability_of(self._outputs(self.model.network, images))

    def evaluate_batch(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the probability of a dog, float32 [batch, 1], and the label loss, a scalar.

        Args:
            images: uint8, or float32 in [-1, 1], [batch, size, size, 3].
            labels: int32 [batch, 1], 1 = dog.
        """
        outputs = self._outputs(self.model, images, labels)
        return self.probability_of(outputs["predictions"]), self.label_loss(outputs, labels)

    def _outputs(self, model: Callable, images: tf.Tensor, *labels: tf.Tensor) -> Any:
        """Returns what the evaluation graph gives; with `flip_average` the mean of that and what it gives mirrored."""
        images = readers.scale_images(images)
        outputs = model(images, *labels, training=False)
        if not self.flip_average:
            return outputs
        mirrored = model(tf.image.flip_left_right(images), *labels, training=False)
        return tf.nest.map_structure(lambda one, other: (one + other) / 2, outputs, mirrored)
