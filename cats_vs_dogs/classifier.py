"""A model and its label loss together: what is trained, evaluated and exported."""

import dataclasses
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

    Raises:
        UserError: if the names, the parameters, or what `create_model` returns are not right.
    """

    def __init__(self, spec: ModelSpec, seed: int = 0):
        model_class, loss_class = spec.classes()
        keras.utils.set_random_seed(seed)
        self.spec = spec
        self.loss = loss_class()
        self.model = models.build_model(
            model_class(), spec.image_size, NUM_CLASSES, self.loss.output_layer, spec.model_params
        )
        losses.check_output_layer(self.loss, spec.model, self.model.network)

    def label_loss(self, outputs: dict[str, tf.Tensor], labels: tf.Tensor) -> tf.Tensor:
        """Returns the model's own loss if it gives one, else the label loss of its predictions; a scalar.

        Args:
            outputs: what the model gave for a batch.
            labels: int32 [batch, 1].
        """
        if "loss" in outputs:
            return outputs["loss"]
        loss = utils.call_with_accepted(
            self.loss.calculate_loss,
            f"{self.spec.label_loss}.calculate_loss",
            "loss_params",
            args=(outputs["predictions"], labels),
            offered={},
            asked=self.spec.loss_params,
        )
        if loss.shape.rank != 0:
            raise utils.UserError(
                f"{self.spec.label_loss}.calculate_loss must return a scalar, the mean over the batch; it returned "
                f"a tensor of shape {loss.shape}"
            )
        return loss

    def regularization_loss(self, outputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """Returns the sum of what the model gave as "regularization_loss" and of its layers' regularizers, a scalar."""
        terms = [*self.model.regularizer_losses, outputs.get("regularization_loss", tf.constant(0.0))]
        return tf.add_n(terms)

    def probability(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the probability of a dog, float32 [batch, 1], by the evaluation graph.

        Args:
            images: uint8, or float32 in [-1, 1], [batch, size, size, 3].
        """
        return self.loss.probability(self.model.network(readers.scale_images(images), training=False))

    def evaluate_batch(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the probability of a dog, float32 [batch, 1], and the label loss, a scalar.

        Args:
            images: uint8, or float32 in [-1, 1], [batch, size, size, 3].
            labels: int32 [batch, 1], 1 = dog.
        """
        outputs = self.model(readers.scale_images(images), labels, training=False)
        return self.loss.probability(outputs["predictions"]), self.label_loss(outputs, labels)
