"""The kit's losses. Add your own here and train with --label_loss=YourLoss."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from cats_vs_dogs.labels import DOG, NUM_CLASSES
from cats_vs_dogs.utils import UserError


class BaseLoss:
    """The base class of losses. To add a loss, inherit from it in losses.py and pass --label_loss=YourLoss.

    Attributes:
        output_layer: the kind of predictions that the loss needs: "probability" ([batch, 1] in [0, 1]), "score"
            ([batch, 1], any real number, positive for dogs), "logits" ([batch, num_classes], any real numbers), or
            None for any kind. The kit passes it to `create_model`, so that a model can support several losses.
    """

    output_layer: str | None = None

    def calculate_loss(self, predictions: tf.Tensor, labels: tf.Tensor, **params: Any) -> tf.Tensor:
        """Computes the mean loss of a batch.

        Args:
            predictions: float32 [batch, 1] or [batch, num_classes], the model's output.
            labels: int32 [batch, 1], 1 = dog, 0 = cat.
            **params: the arguments from --loss_params.

        Returns:
            A float32 scalar.
        """
        raise NotImplementedError

    def probability(self, predictions: tf.Tensor) -> tf.Tensor:
        """Converts predictions to the probability of a dog, for evaluation, inference and export.

        This default returns the last column unchanged. Override it if the predictions are not probabilities.

        Args:
            predictions: float32 [batch, 1] or [batch, num_classes].

        Returns:
            float32 [batch, 1] in [0, 1].
        """
        return predictions[:, -1:]


class CrossEntropyLoss(BaseLoss):
    """Cross entropy of probabilities, such as the output of a sigmoid.

    The loss is -(y log(p + e) + (1 - y) log(1 - p + e)), where y is 1 for dogs and 0 for cats, and e = 10e-6; it is
    summed over columns.

    Two options can be set with --loss_params:
        '{"label_smoothing": 0.1}' replaces y by 0.95 for dogs and 0.05 for cats (Szegedy et al. 2016).
        '{"class_weights": [1.0, 3.0]}' multiplies the loss of cats by 1 and that of dogs by 3, for data with fewer
            dogs than cats.
    """

    output_layer = "probability"

    def calculate_loss(
        self,
        predictions: tf.Tensor,
        labels: tf.Tensor,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
    ) -> tf.Tensor:
        epsilon = 10e-6
        is_dog = labels[:, -1]
        labels = _smooth(_as_columns(labels, predictions), label_smoothing)
        log_likelihood = labels * tf.math.log(predictions + epsilon) + (1 - labels) * tf.math.log(
            1 - predictions + epsilon
        )
        return _mean(tf.reduce_sum(-log_likelihood, axis=1), is_dog, class_weights)


class HingeLoss(BaseLoss):
    """Hinge loss of scores: max(0, b - s) for dogs and max(0, b + s) for cats, summed over columns.

    Set the margin b with --loss_params='{"b": 2.0}'. Class weights work as in `CrossEntropyLoss`.
    """

    output_layer = "score"

    def calculate_loss(
        self,
        predictions: tf.Tensor,
        labels: tf.Tensor,
        b: float = 1.0,
        class_weights: Sequence[float] | None = None,
    ) -> tf.Tensor:
        signs = 2 * _as_columns(labels, predictions) - 1
        hinges = tf.reduce_sum(tf.maximum(0.0, b - signs * predictions), axis=1)
        return _mean(hinges, labels[:, -1], class_weights)

    def probability(self, predictions: tf.Tensor) -> tf.Tensor:
        """Returns the sigmoid of the score. It is 0.5 at the decision boundary, but not a calibrated probability."""
        if predictions.shape[1] == 1:
            return tf.sigmoid(predictions)
        return tf.sigmoid(predictions[:, 1:] - predictions[:, :1])


class SoftmaxLoss(BaseLoss):
    """Cross entropy of the softmax over logits, one column per class.

    Label smoothing and class weights work as in `CrossEntropyLoss`.
    """

    output_layer = "logits"

    def calculate_loss(
        self,
        predictions: tf.Tensor,
        labels: tf.Tensor,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
    ) -> tf.Tensor:
        is_dog = labels[:, -1]
        labels = _as_columns(labels, predictions)
        # As in 2017: the labels of an example sum to 1.
        labels /= tf.maximum(tf.reduce_sum(labels, axis=1, keepdims=True), 10e-8)
        labels = _smooth(labels, label_smoothing)
        return _mean(tf.nn.softmax_cross_entropy_with_logits(labels, predictions), is_dog, class_weights)

    def probability(self, predictions: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(predictions)[:, DOG : DOG + 1]


def _as_columns(labels: tf.Tensor, predictions: tf.Tensor) -> tf.Tensor:
    """Returns the labels as float32, one-hot if the predictions have one column per class."""
    if labels.shape[1] == 1 and predictions.shape[1] > 1:
        labels = tf.one_hot(labels[:, 0], predictions.shape[1])
    return tf.cast(labels, predictions.dtype)


def _smooth(labels: tf.Tensor, label_smoothing: float) -> tf.Tensor:
    """Moves labels of 0 and 1 towards 0.5."""
    if not 0 <= label_smoothing < 1:
        raise UserError(f'--loss_params: "label_smoothing" must be at least 0 and less than 1; got {label_smoothing}')
    return labels * (1 - label_smoothing) + label_smoothing / 2 if label_smoothing else labels


def _mean(losses: tf.Tensor, is_dog: tf.Tensor, class_weights: Sequence[float] | None) -> tf.Tensor:
    """Returns the mean of the losses, each multiplied by the weight of its class.

    The sum is divided by the number of examples, not by the sum of weights. So several devices, each with a part of the
    batch, compute the same mean as one device.

    Args:
        losses: float32 [batch].
        is_dog: int32 [batch], 1 = dog.
        class_weights: the weights of a cat and of a dog; None for 1 and 1.
    """
    if class_weights is None:
        return tf.reduce_mean(losses)
    is_pair = isinstance(class_weights, list | tuple) and len(class_weights) == NUM_CLASSES
    if not is_pair or not all(isinstance(weight, int | float) and weight >= 0 for weight in class_weights):
        raise UserError(
            '--loss_params: "class_weights" must be two numbers that are not negative, the weights of cats and dogs, '
            f"such as [1.0, 3.0]; got {class_weights}"
        )
    cat_weight, dog_weight = map(float, class_weights)
    return tf.reduce_mean(tf.where(is_dog > 0, dog_weight, cat_weight) * losses)


# Activations with values above 1 or below 0.
_UNBOUNDED = ("linear", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "softplus", "softsign", "tanh")


def check_output_layer(loss: BaseLoss, model_name: str, network: keras.Model) -> None:
    """Checks that the last layer of a network suits a loss, by its number of columns and its activation.

    A network that ends in something other than a layer with an activation passes.

    Args:
        loss: the label loss.
        model_name: the model's class name, for the message.
        network: the model, from images to predictions.

    Raises:
        UserError: if the last layer does not suit the loss.
    """
    columns = network.output_shape[1]
    last = network.output._keras_history.operation
    activation = getattr(getattr(last, "activation", None), "__name__", None)
    if activation == "softmax" and columns == 1:
        raise UserError(f"--model={model_name}: a softmax over one column is always 1; use activation='sigmoid'")
    wrong = None
    if loss.output_layer == "logits" and columns == 1:
        wrong = "one column"
    elif loss.output_layer in ("logits", "score") and activation in ("sigmoid", "softmax"):
        wrong = f"a last layer with activation {activation}"
    elif loss.output_layer == "probability" and isinstance(last, keras.layers.Dense) and activation in _UNBOUNDED:
        wrong = "a last layer without activation" if activation == "linear" else f"a last layer with {activation}"
    if wrong:
        needed = {
            "logits": "logits: a last layer like Dense(num_classes), without activation",
            "score": "a score: a last layer like Dense(1), without activation",
            "probability": 'a probability: a last layer like Dense(1, activation="sigmoid")',
        }[loss.output_layer]
        raise UserError(
            f"--model={model_name} --label_loss={type(loss).__name__}: the loss needs {needed}; the model has {wrong}"
        )
