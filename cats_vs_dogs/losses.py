"""The losses of the kit. Add your own here, and name it on the command line: --label_loss=YourLoss."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from cats_vs_dogs.utils import UserError


class BaseLoss:
    """Inherit from this class in losses.py to add a loss; name it with --label_loss=YourLoss.

    Attributes:
        output_layer: which kind of predictions the loss needs: "probability" ([batch, 1] in [0, 1]), "score"
            ([batch, 1], any number, positive for dogs), "logits" ([batch, num_classes], any numbers), or None if
            it takes whatever the model gives. Passed to `create_model` for models that can give several kinds.
    """

    output_layer: str | None = None

    def calculate_loss(self, predictions: tf.Tensor, labels: tf.Tensor, **params: Any) -> tf.Tensor:
        """Calculates the mean loss of a batch.

        Args:
            predictions: float32 [batch, 1] or [batch, num_classes], what the model returned.
            labels: int32 [batch, 1], 1 = dog, 0 = cat.
            **params: anything given with --loss_params.

        Returns:
            A scalar, the mean over the batch.
        """
        raise NotImplementedError

    def probability(self, predictions: tf.Tensor) -> tf.Tensor:
        """Turns predictions into the probability of a dog, which evaluation, inference and export use.

        Args:
            predictions: float32 [batch, 1] or [batch, num_classes].

        Returns:
            float32 [batch, 1] in [0, 1]. Here: the last column, as it is. Override it if your predictions are not
            probabilities.
        """
        return predictions[:, -1:]


class CrossEntropyLoss(BaseLoss):
    """Cross entropy of probabilities, which the model gives through a sigmoid.

    -(y log(p + e) + (1 - y) log(1 - p + e)) with e = 10e-6, summed over columns.

    With --loss_params='{"label_smoothing": 0.1}' y is 0.95 for dogs and 0.05 for cats (Szegedy et al. 2016). Class
    weights are for photos with more of one kind: '{"class_weights": [1.0, 3.0]}' lets a dog count three times.
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

    The margin b is set with --loss_params='{"b": 2.0}', class weights as with CrossEntropyLoss.
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
        """The sigmoid of the score: one half at the decision boundary. It ranks well and is not calibrated."""
        if predictions.shape[1] == 1:
            return tf.sigmoid(predictions)
        return tf.sigmoid(predictions[:, 1:] - predictions[:, :1])


class SoftmaxLoss(BaseLoss):
    """Cross entropy of the softmax over logits, one column a class. Labels are normalised to a sum of 1.

    Label smoothing and class weights are set as with CrossEntropyLoss.
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
        labels /= tf.maximum(tf.reduce_sum(labels, axis=1, keepdims=True), 10e-8)
        labels = _smooth(labels, label_smoothing)
        return _mean(tf.nn.softmax_cross_entropy_with_logits(labels, predictions), is_dog, class_weights)

    def probability(self, predictions: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(predictions)[:, 1:2]


def _as_columns(labels: tf.Tensor, predictions: tf.Tensor) -> tf.Tensor:
    """Returns the labels as float32 with as many columns as the predictions: as they are, or one-hot."""
    if labels.shape[1] == 1 and predictions.shape[1] > 1:
        labels = tf.one_hot(labels[:, 0], predictions.shape[1])
    return tf.cast(labels, predictions.dtype)


def _smooth(labels: tf.Tensor, label_smoothing: float) -> tf.Tensor:
    """Brings labels nearer to one half."""
    if not 0 <= label_smoothing < 1:
        raise UserError(f'--loss_params: "label_smoothing" must be at least 0 and less than 1; got {label_smoothing}')
    return labels * (1 - label_smoothing) + label_smoothing / 2 if label_smoothing else labels


def _mean(losses: tf.Tensor, is_dog: tf.Tensor, class_weights: Sequence[float] | None) -> tf.Tensor:
    """Returns the mean over the batch of losses, float32 [batch], each counted as often as its class weighs.

    Divided by the number of examples, not by the sum of their weights: so the mean over devices is that of one device.
    """
    if class_weights is None:
        return tf.reduce_mean(losses)
    is_pair = isinstance(class_weights, list | tuple) and len(class_weights) == 2
    if not is_pair or not all(isinstance(weight, int | float) and weight >= 0 for weight in class_weights):
        raise UserError(
            f'--loss_params: "class_weights" must be two numbers, of a cat and of a dog, such as [1.0, 3.0]; got '
            f"{class_weights}"
        )
    cat, dog = class_weights
    return tf.reduce_mean(tf.where(is_dog > 0, float(dog), float(cat)) * losses)


# Activations that give more than 1 or less than 0.
_UNBOUNDED = ("linear", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "softplus", "softsign", "tanh")


def check_output_layer(loss: BaseLoss, model_name: str, network: keras.Model) -> None:
    """Makes sure, as far as one can see, that a network ends in the kind of layer that a loss needs.

    Args:
        loss: the label loss.
        model_name: the class name of the model, for the message.
        network: the model, from images to predictions.

    Raises:
        UserError: if the number of columns or the activation of the last layer does not suit the loss.
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
