"""Losses: against the results of the 2017 code, by hand, and the probabilities they return."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cats_vs_dogs import losses
from cats_vs_dogs.utils import UserError


@pytest.mark.parametrize(
    ("loss", "params", "predictions", "labels", "expected"),
    [
        (losses.CrossEntropyLoss, {}, "loss_probabilities", "loss_labels", "loss_cross_entropy"),
        (losses.CrossEntropyLoss, {}, "loss_edge_predictions", "loss_edge_labels", "loss_cross_entropy_edge"),
        (losses.HingeLoss, {}, "loss_scores", "loss_labels", "loss_hinge"),
        (losses.HingeLoss, {"b": 2.0}, "loss_scores", "loss_labels", "loss_hinge_b2"),
        (losses.SoftmaxLoss, {}, "loss_logits", "loss_one_hot", "loss_softmax"),
    ],
)
def test_golden_values_of_2017(golden, loss, params, predictions, labels, expected):
    value = loss().calculate_loss(tf.constant(golden[predictions]), tf.constant(golden[labels]), **params)
    assert float(value) == pytest.approx(golden[expected], abs=1e-6)


def test_by_hand():
    labels = tf.constant([[1], [0]])
    cross_entropy = losses.CrossEntropyLoss().calculate_loss(tf.constant([[0.8], [0.4]]), labels)
    assert float(cross_entropy) == pytest.approx(-np.mean(np.log([0.8 + 1e-5, 0.6 + 1e-5])), abs=1e-6)
    hinge = losses.HingeLoss().calculate_loss(tf.constant([[0.25], [0.5]]), labels)
    assert float(hinge) == pytest.approx((0.75 + 1.5) / 2)
    softmax = losses.SoftmaxLoss().calculate_loss(tf.constant([[0.0, np.log(3.0)], [1.0, 1.0]]), labels)
    assert float(softmax) == pytest.approx(-np.mean(np.log([0.75, 0.5])), abs=1e-6)


def test_label_smoothing_and_class_weights_by_hand():
    labels, probabilities = tf.constant([[1], [0]]), tf.constant([[0.8], [0.4]])
    smooth = losses.CrossEntropyLoss().calculate_loss(probabilities, labels, label_smoothing=0.2)
    dog, cat = 0.9 * np.log(0.8) + 0.1 * np.log(0.2), 0.9 * np.log(0.6) + 0.1 * np.log(0.4)
    assert float(smooth) == pytest.approx(-(dog + cat) / 2, abs=1e-4)
    weighted = losses.CrossEntropyLoss().calculate_loss(probabilities, labels, class_weights=[0.5, 3.0])
    assert float(weighted) == pytest.approx(-(3.0 * np.log(0.8) + 0.5 * np.log(0.6)) / 2, abs=1e-4)

    logits = tf.math.log(tf.concat([1 - probabilities, probabilities], axis=1))  # The same, through a softmax.
    for params, expected in (({"label_smoothing": 0.2}, smooth), ({"class_weights": [0.5, 3.0]}, weighted)):
        value = losses.SoftmaxLoss().calculate_loss(logits, labels, **params)
        assert float(value) == pytest.approx(float(expected), abs=1e-4)
    hinge = losses.HingeLoss().calculate_loss(tf.constant([[0.25], [0.5]]), labels, class_weights=[0.5, 3.0])
    assert float(hinge) == pytest.approx((3.0 * 0.75 + 0.5 * 1.5) / 2)


@pytest.mark.parametrize("params", [{"label_smoothing": 1.5}, {"class_weights": 3.0}, {"class_weights": [1.0, -1.0]}])
def test_wrong_parameters_are_named(params):
    (name,) = params
    with pytest.raises(UserError, match=f'--loss_params: "{name}" must be '):
        losses.CrossEntropyLoss().calculate_loss(tf.constant([[0.8]]), tf.constant([[1]]), **params)


def test_one_column_of_labels_is_made_one_hot_for_two_columns_of_predictions(golden):
    logits, one_hot = tf.constant(golden["loss_logits"]), golden["loss_one_hot"]
    value = losses.SoftmaxLoss().calculate_loss(logits, tf.constant(one_hot[:, 1:]))
    assert float(value) == pytest.approx(golden["loss_softmax"], abs=1e-6)


def test_what_predictions_mean():
    column, columns = tf.constant([[0.0], [2.0]]), tf.constant([[0.0, 2.0]])
    np.testing.assert_allclose(losses.CrossEntropyLoss().probability(tf.constant([[0.3]])), [[0.3]])
    np.testing.assert_allclose(losses.BaseLoss().probability(tf.constant([[0.7, 0.3]])), [[0.3]])
    np.testing.assert_allclose(losses.HingeLoss().probability(column), [[0.5], [1 / (1 + np.exp(-2))]], rtol=1e-6)
    np.testing.assert_allclose(losses.HingeLoss().probability(columns), [[1 / (1 + np.exp(-2))]], rtol=1e-6)
    np.testing.assert_allclose(losses.SoftmaxLoss().probability(columns), [[1 / (1 + np.exp(-2))]], rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "units", "activation", "wrong"),
    [
        (losses.SoftmaxLoss, 1, None, "the model has one column"),
        (losses.SoftmaxLoss, 2, "softmax", "activation softmax"),
        (losses.HingeLoss, 1, "sigmoid", "activation sigmoid"),
        (losses.CrossEntropyLoss, 1, None, "without activation"),
        (losses.CrossEntropyLoss, 1, "relu", "a last layer with relu"),
        (losses.CrossEntropyLoss, 1, "tanh", "a last layer with tanh"),
        (losses.SoftmaxLoss, 2, None, None),
        (losses.HingeLoss, 1, "tanh", None),
        (losses.CrossEntropyLoss, 1, "sigmoid", None),
        (losses.CrossEntropyLoss, 2, "softmax", None),
        (losses.BaseLoss, 1, None, None),
    ],
)
def test_a_loss_says_which_output_layer_it_needs(loss, units, activation, wrong):
    images = keras.Input((4, 4, 3))
    outputs = keras.layers.Dense(units, activation=activation)(keras.layers.Flatten()(images))
    network = keras.Model(images, outputs)
    if wrong is None:
        losses.check_output_layer(loss(), "MyModel", network)
    else:
        with pytest.raises(UserError, match=f"--model=MyModel --label_loss={loss.__name__}: .*{wrong}"):
            losses.check_output_layer(loss(), "MyModel", network)


def test_a_softmax_over_one_column_is_refused():
    images = keras.Input((4, 4, 3))
    network = keras.Model(images, keras.layers.Dense(1, activation="softmax")(keras.layers.Flatten()(images)))
    with pytest.raises(UserError, match="--model=MyModel: a softmax over one column is always 1"):
        losses.check_output_layer(losses.BaseLoss(), "MyModel", network)
