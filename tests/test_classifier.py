"""A model and its loss together: mistakes in a user's loss are said at the start, in one line."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cats_vs_dogs import augmentation, cvd_models, losses, models
from cats_vs_dogs.classifier import Classifier, seeded
from cats_vs_dogs.config import ModelSpec
from cats_vs_dogs.utils import UserError


def classifier_with(monkeypatch, calculate_loss, **loss_params):
    loss_class = type("MyLoss", (losses.BaseLoss,), {"calculate_loss": calculate_loss} if calculate_loss else {})
    monkeypatch.setattr(losses, "MyLoss", loss_class, raising=False)
    return Classifier(ModelSpec("LogisticModel", {}, "MyLoss", loss_params, 4, "area"))


def test_a_loss_with_parameters_and_its_probability(monkeypatch):
    def squared(self, predictions, labels, weight=1.0):
        return weight * tf.reduce_mean(tf.square(predictions - tf.cast(labels, tf.float32)))

    classifier = classifier_with(monkeypatch, squared, weight=3.0)
    images, labels = tf.random.stateless_uniform([5, 4, 4, 3], [1, 2]), tf.constant([[1], [0], [1], [1], [0]])
    probability, loss = classifier.evaluate_batch(images, labels)
    np.testing.assert_allclose(loss, 3 * np.mean((probability.numpy() - labels.numpy()) ** 2), rtol=1e-5)


def test_random_numbers_are_those_of_the_seed_whatever_was_drawn_before():
    def drawn():
        return [keras.random.normal([3]), tf.random.normal([3]), np.random.normal(size=3)]

    keras.random.normal([3])  # Creates the generator that Keras uses without a seed.
    with seeded(3):
        expected = drawn()
    keras.random.normal([3])
    with seeded(3):
        np.testing.assert_array_equal(drawn(), expected)


def test_branches_and_loops_over_tensors_become_part_of_the_graph(monkeypatch):
    def calculate_loss(self, predictions, labels):
        total = tf.constant(0.0)
        for row in tf.range(tf.shape(labels)[0]):
            if labels[row, 0] == 1 and predictions[row, 0] > 0.0:
                total -= tf.math.log(predictions[row, 0])
        return total

    def probability(self, predictions):
        return predictions if tf.reduce_mean(predictions) > 0.0 else 1.0 - predictions

    images, labels = tf.random.stateless_uniform([5, 4, 4, 3], [1, 2]), tf.constant([[1], [0], [1], [1], [0]])
    monkeypatch.setattr(losses.CrossEntropyLoss, "probability", probability)
    rewritten = classifier_with(monkeypatch, calculate_loss)
    rewritten.check_training()
    for classifier in (rewritten, Classifier(ModelSpec("LogisticModel", {}, "CrossEntropyLoss", {}, 4, "area"))):
        shown, loss = tf.function(classifier.evaluate_batch)(images, labels)
        if classifier is rewritten:
            np.testing.assert_allclose(loss, -np.log(shown.numpy()[labels.numpy() == 1]).sum(), rtol=1e-5)
        np.testing.assert_array_equal(shown, tf.function(classifier.probability)(images))
        with tf.GradientTape() as tape:
            loss = classifier.label_loss(classifier.training_outputs(images, labels, False), labels)
        assert np.abs(tape.gradient(loss, classifier.model.trainable_variables[0].value)).max() > 0


def test_constants_of_a_loss_with_a_loop_are_seen(monkeypatch):
    def calculate_loss(self, predictions, labels):
        weights = tf.constant(np.random.default_rng().normal(size=3), tf.float32)
        total = tf.constant(0.0)
        for i in tf.range(3):
            total += weights[i] * tf.reduce_mean(predictions)
        return total

    with pytest.raises(UserError, match="^LogisticModel: its constants are others each time it is built"):
        classifier_with(monkeypatch, calculate_loss).check_constants()


def test_the_mean_over_a_picture_and_its_mirror_image(monkeypatch):
    class OwnLossModel(models.BaseModel):
        def create_model(self, model_input, labels):
            p = keras.layers.Dense(1, activation="sigmoid")(keras.layers.Flatten()(model_input))
            return {"predictions": p, "loss": keras.ops.mean((p - keras.ops.cast(labels, "float32")) ** 2)}

    monkeypatch.setattr(cvd_models, "OwnLossModel", OwnLossModel, raising=False)
    images, labels = tf.random.stateless_uniform([5, 4, 4, 3], [1, 2]), tf.constant([[1], [0], [1], [1], [0]])
    for model in ("OwnLossModel", "LogisticModel"):
        spec = ModelSpec(model, {}, "CrossEntropyLoss", {}, 4, "area", seed=1)
        plain, flipping = Classifier(spec), Classifier(spec, flip_average=True)
        ways = [plain.evaluate_batch(pictures, labels) for pictures in (images, images[:, :, ::-1])]
        probability, loss = flipping.evaluate_batch(images, labels)
        mean = (ways[0][0] + ways[1][0]) / 2
        np.testing.assert_allclose(probability, mean, atol=2e-6, rtol=0)
        np.testing.assert_allclose(flipping.probability(images), mean, atol=2e-6, rtol=0)
        assert np.abs(ways[0][0] - mean).max() > 1e-3
        # The model's own loss is averaged, too; else the loss is that of the average.
        own = (ways[0][1] + ways[1][1]) / 2
        of_mean = plain.loss.calculate_loss(mean, labels)
        np.testing.assert_allclose(loss, own if model == "OwnLossModel" else of_mean, atol=2e-6, rtol=0)
        assert abs(own - of_mean) > 1e-5


def test_the_mean_over_a_picture_and_its_middle():
    spec = ModelSpec("LogisticModel", {}, "CrossEntropyLoss", {}, 40, "area", seed=1)
    images = tf.random.stateless_uniform([3, 40, 40, 3], [1, 2])
    places = np.linspace(0.1 * 39, 0.9 * 39, 40)  # From the pixel at 10 % of the picture to that at 90 %.
    weights = np.stack([np.interp(places, np.arange(40), pixel) for pixel in np.eye(40)], axis=1)
    middle = augmentation.middle(images, 0.8)
    np.testing.assert_allclose(middle, np.einsum("ih,nhwc,jw->nijc", weights, images, weights), atol=1e-5)
    plain = Classifier(spec)
    views = [images, augmentation.middle(images, 0.9), middle]
    for flip_average, expected in ((False, views), (True, views + [view[:, :, ::-1] for view in views])):
        averaging = Classifier(spec, flip_average=flip_average, crop_average=True)
        assert averaging.graph_number == plain.graph_number  # It stands for the model alone.
        mean = np.mean([plain.probability(view) for view in expected], axis=0)
        np.testing.assert_allclose(averaging.probability(images), mean, atol=2e-6, rtol=0)
        assert np.abs(plain.probability(images) - mean).max() > 1e-3


def test_rounding_does_not_make_a_probability_wrong(monkeypatch):
    classifier = classifier_with(monkeypatch, lambda self, predictions, labels: tf.reduce_mean(predictions))
    given = tf.constant([[1.0000002], [-3e-7], [0.25], [1.1], [-0.1], [float("nan")]])
    expected = [[1.0], [0.0], [0.25], [1.1], [-0.1], [float("nan")]]  # The user has to fix the last three.
    np.testing.assert_array_equal(classifier.probability_of(given), np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("calculate_loss", "said"),
    [
        (None, "MyLoss has no calculate_loss; define"),
        (lambda self, predictions, labels: None, "MyLoss failed: TypeError: it must return a float scalar.* NoneType"),
        (lambda self, predictions, labels: 0.5, "it must return a float scalar.* got float"),
        (lambda self, predictions, labels: tf.abs(predictions), r"it must return a float scalar.* float32 \(None, 1\)"),
        (lambda self, predictions, labels: tf.reduce_sum(labels), "it must return a float scalar.* int32"),
        (lambda self, predictions: predictions, "MyLoss failed: TypeError: .*takes 2 positional arguments but 3"),
        (lambda self, predictions, labels, margin: predictions, "missing 1 required positional argument: 'margin'"),
        (lambda self, predictions, labels: tf.reduce_mean(labels - predictions), "int32.*test_classifier.py line"),
        (
            lambda self, predictions, labels: np.mean(predictions),
            "MyLoss failed: NotImplementedError: Cannot convert a",
        ),
        (lambda self, predictions, labels: nothing, "MyLoss failed: NameError: name 'nothing' is not defined"),  # noqa: F821
    ],
)
def test_mistakes_in_a_loss(monkeypatch, calculate_loss, said):
    with pytest.raises(UserError, match=said) as error:
        classifier_with(monkeypatch, calculate_loss)
    assert "in user code" not in str(error.value)


def test_an_unknown_parameter_of_a_loss(monkeypatch):
    with pytest.raises(UserError, match='--loss_params: MyLoss.calculate_loss has no parameter "b"; it takes: weight'):
        classifier_with(monkeypatch, lambda self, predictions, labels, weight=1.0: weight, b=2.0)
