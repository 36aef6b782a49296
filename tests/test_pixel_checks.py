"""Which layers are named since they expect pixels of another range, and that the check changes nothing."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_config
from keras import layers, ops

from cats_vs_dogs import cvd_models, models, pixel_checks
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.utils import UserError

RIGHT = (-1, 1)


def standardize():
    return layers.Lambda(tf.image.per_image_standardization)


def make_network(*parts, size=32):
    net = images = keras.Input((size, size, 3))
    for part in parts:
        net = part(net)
    return keras.Model(images, layers.Dense(1)(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(net))))


@pytest.fixture
def warnings_of(monkeypatch):
    """Returns a function that checks a network and returns the warnings, without their beginning."""
    said = []
    monkeypatch.setattr(pixel_checks.logging, "warning", lambda message, *args: said.append(message % args))

    def check(network, size=32):
        said.clear()
        pixel_checks.warn(network, size, "MyModel.create_model")
        assert all(line.startswith("MyModel.create_model: the layer ") for line in said), said
        return [line.removeprefix("MyModel.create_model: the layer ") for line in said]

    return check


class OwnLayer(layers.Layer):
    """A layer of the user's own with a layer inside."""

    def __init__(self):
        super().__init__()
        self.inner = layers.RandomContrast(0.2)

    def call(self, images, training=None):
        return self.inner(images, training=training)


def layers_with_a_range():
    """Returns the classes of Keras that take a value_range.

    Equalization is missing: in Keras 3.15 it does nothing when it is called on a Keras tensor.
    """
    classes = [value for value in vars(layers).values() if inspect.isclass(value) and issubclass(value, keras.Layer)]
    return [one for one in classes if "value_range" in inspect.signature(one).parameters and one != layers.Equalization]


def make_layer(layer_class, **options):
    """Makes a layer with a strength of its own, if it needs one."""
    required = [p.name for p in inspect.signature(layer_class).parameters.values() if p.default is p.empty]
    strengths = {"bits": 4, "factor": 0.5} | ({"factor": 4} if "Posterization" in layer_class.__name__ else {})
    return layer_class(**{name: strengths[name] for name in required if name in strengths}, **options)


WITH_A_SEED = ("RandomBrightness", "RandomContrast", "RandomHue", "RandomInvert", "RandomSaturation")
BETWEEN = (
    "; call it with value_range=(0, 1), between keras.layers.Rescaling(0.5, 0.5) and keras.layers.Rescaling(2, -1)"
)
START_AT_0 = ("RandomInvert", "RandomSaturation")  # Layers that are wrong for values below 0 even if told so.


@pytest.mark.parametrize("layer_class", layers_with_a_range())
def test_each_layer_of_keras_that_was_not_told_the_range(layer_class, warnings_of):
    (line,) = warnings_of(make_network(make_layer(layer_class)))
    assert "expects values from 0 to 255 and gets -0.999 to 1; " in line
    assert line.endswith(BETWEEN if layer_class.__name__ in START_AT_0 else "; write value_range=(-1, 1)")


@pytest.mark.parametrize("layer_class", layers_with_a_range())
def test_each_layer_of_keras_that_was_told_the_range(layer_class, warnings_of):
    said = warnings_of(make_network(make_layer(layer_class, value_range=RIGHT)))
    if layer_class.__name__ in START_AT_0:
        assert len(said) == 1 and said[0].endswith(BETWEEN)
    else:
        assert said == []


@pytest.mark.parametrize("layer_class", [one for one in layers_with_a_range() if one.__name__ in WITH_A_SEED])
def test_a_layer_that_was_told_the_range_does_what_it_does_from_0_to_1(layer_class):
    """So the advice is right; the two exceptions compute something else."""
    images = pixel_checks._pictures(32)
    found = make_layer(layer_class, value_range=RIGHT, seed=1)(images, training=True)
    expected = make_layer(layer_class, value_range=(0, 1), seed=1)((images + 1) / 2, training=True) * 2 - 1
    assert np.allclose(found, expected, atol=1e-4) == (layer_class.__name__ not in START_AT_0)


WRONG = {
    "in a model": [lambda: keras.Sequential([layers.RandomFlip(), layers.RandomContrast(0.2)])],
    "in a model in a model": [lambda: keras.Sequential([make_network_of_pixels(layers.RandomContrast(0.2))])],
    "in a layer": [OwnLayer],
    "told 0 to 1": [lambda: layers.RandomContrast(0.2, value_range=(0, 1))],
    "after a flip": [layers.RandomFlip, lambda: layers.RandomContrast(0.2)],
}


def make_network_of_pixels(layer):
    images = keras.Input((32, 32, 3))
    return keras.Model(images, layer(images))


@pytest.mark.parametrize("parts", WRONG.values(), ids=WRONG)
def test_a_layer_that_was_not_told_the_range(parts, warnings_of):
    (line,) = warnings_of(make_network(*(part() for part in parts)))
    assert "expects values from 0 to" in line and line.endswith("gets -0.999 to 1; write value_range=(-1, 1)")


OTHERS = [
    ("(0, 1)", [lambda: layers.Rescaling(0.5, 0.5), lambda: layers.RandomContrast(0.2)]),
    ("call it on model_input", [standardize, lambda: layers.RandomContrast(0.2, value_range=RIGHT)]),
    ("call it on model_input", [layers.BatchNormalization, lambda: layers.RandomBrightness(0.1, value_range=RIGHT)]),
    (BETWEEN, [lambda: layers.RandomColorJitter(value_range=RIGHT, saturation_factor=0.2)]),
    ("mixes pictures but not their labels", [layers.MixUp]),
    ("mixes pictures but not their labels", [layers.CutMix]),
    ("(Rescaling) shrinks pixels to -0.00392 to 0.00392", [lambda: layers.Rescaling(1 / 255)]),
    ("(Rescaling) shrinks pixels to -1.01 to -0.992", [lambda: layers.Rescaling(1 / 127.5, -1)]),
    ("shrinks pixels", [lambda: layers.Lambda(lambda images: images / 255)]),
    ("shrinks pixels", [lambda: lambda images: images / 255]),
    ("shrinks pixels", [lambda: keras.applications.mobilenet_v2.preprocess_input]),
    ("shrinks pixels", [lambda: layers.Normalization(mean=[124.0, 116.0, 104.0], variance=[3400.0, 3260.0, 3290.0])]),
    ("below 0 the same", [lambda: layers.Lambda(lambda images: tf.clip_by_value(images, 0.0, 1.0))]),
    ("below 0 the same", [lambda: lambda images: ops.clip(images, 0.0, 1.0)]),
]


@pytest.mark.parametrize(("said", "parts"), OTHERS)
def test_other_layers_that_ruin_pixels(said, parts, warnings_of):
    (line,) = warnings_of(make_network(*(part() for part in parts)))
    assert said in line


RIGHT_ONES = {
    "told": [lambda: layers.RandomContrast(0.2, value_range=RIGHT), lambda: layers.RandAugment(value_range=RIGHT)],
    "before standardization": [lambda: layers.RandomBrightness(0.1, value_range=RIGHT), standardize],
    "0 to 255 and back": [
        lambda: layers.Rescaling(127.5, 127.5),
        lambda: layers.RandomContrast(0.2),
        lambda: layers.Rescaling(1 / 127.5, -1),
    ],
    "0 to 1 and back": [
        lambda: layers.Rescaling(0.5, 0.5),
        lambda: layers.RandomInvert(value_range=(0, 1)),
        lambda: layers.Rescaling(2.0, -1.0),
    ],
    "geometry": [layers.RandomFlip, lambda: layers.RandomRotation(0.1), lambda: layers.RandomCrop(28, 28)],
    "noise": [lambda: layers.GaussianNoise(0.1), lambda: layers.Dropout(0.5)],
    "learned colours": [lambda: layers.Conv2D(8, 1), lambda: layers.Conv2D(3, 1), layers.ReLU],
    "batch norm": [layers.BatchNormalization],
    "preprocessing": [lambda: lambda images: keras.applications.resnet.preprocess_input((images + 1) * 127.5)],
}


@pytest.mark.parametrize("parts", RIGHT_ONES.values(), ids=RIGHT_ONES)
def test_right_layers_get_no_warning(parts, warnings_of):
    assert warnings_of(make_network(*(part() for part in parts))) == []


def test_the_network_stays_as_it_is(warnings_of):
    network = make_network(
        layers.RandomContrast(0.2), layers.BatchNormalization(), keras.Sequential([layers.Dropout(0.5)])
    )
    before = [np.asarray(variable) for variable in network.variables]
    assert warnings_of(network)
    for variable, value in zip(network.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert not any("call" in vars(part) for part in pixel_checks._parts(network))


def test_a_check_that_fails_is_only_a_warning(monkeypatch):
    said = []
    monkeypatch.setattr(pixel_checks.logging, "warning", lambda message, *args: said.append(message % args))

    class Fails(layers.Layer):
        def call(self, images):
            if tf.executing_eagerly() and not isinstance(images, keras.KerasTensor):
                raise ValueError("only in a graph")
            return images

    pixel_checks.warn(make_network(Fails()), 32, "MyModel.create_model")
    (line,) = said
    assert line.startswith("MyModel.create_model: the ranges that layers expect cannot be checked: ")
    assert "only in a graph" in line and "\n" not in line


@pytest.mark.parametrize("backbone", ["MobileNetV3Small", "EfficientNetV2B0"])
def test_backbones_with_their_own_preprocessing(backbone, warnings_of):
    network = getattr(keras.applications, backbone)(include_top=False, weights=None, input_shape=(32, 32, 3))
    (line,) = warnings_of(make_network(network, layers.Resizing(8, 8)))
    assert "(Rescaling) shrinks pixels" in line and "before the model it belongs to" in line
    built = models.build_model(
        cvd_models.PretrainedModel(), 32, 2, "probability", {"backbone": backbone, "weights": None}
    )
    assert warnings_of(built.network) == []


def test_training_warns_once_and_evaluation_does_not(monkeypatch):
    class Contrast(models.BaseModel):
        def create_model(self, model_input):
            net = layers.Flatten()(layers.RandomContrast(0.2)(model_input))
            return {"predictions": layers.Dense(1, "sigmoid")(net)}

    said = []
    monkeypatch.setattr(pixel_checks.logging, "warning", lambda message, *args: said.append(message % args))
    monkeypatch.setattr(cvd_models, "Contrast", Contrast, raising=False)
    classifier = Classifier(make_config(model="Contrast").model)
    assert said == []
    classifier.check_training()
    assert len(said) == 1 and said[0].startswith("Contrast.create_model: the layer random_contrast")


def test_a_crop_that_evaluation_lacks_is_explained(monkeypatch):
    def create_model(self, model_input, center=False):
        net = layers.RandomCrop(28, 24)(model_input)
        net = layers.CenterCrop(28, 24)(net) if center else net
        return {"predictions": layers.Dense(1, "sigmoid")(layers.Flatten()(net))}

    monkeypatch.setattr(cvd_models, "Crop", type("Crop", (models.BaseModel,), {"create_model": create_model}), False)
    with pytest.raises(
        UserError, match=r"Crop.create_model: .*CenterCrop\(28, 24\)\(keras.layers.RandomCrop\(28, 24\)"
    ):
        Classifier(make_config(model="Crop").model)
    Classifier(make_config(model="Crop", model_params={"center": True}).model).check_training()
