"""PretrainedModel and its backbones: preprocessing, freezing, and reading or downloading weights."""

import keras
import numpy as np
import pytest

from cats_vs_dogs import backbones, checkpoints
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.config import ModelSpec
from cats_vs_dogs.utils import UserError

PIXELS = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
IMAGES = PIXELS / 127.5 - 1


def spec(seed=0, **params):
    return ModelSpec("PretrainedModel", {"backbone": "MobileNet", **params}, "CrossEntropyLoss", {}, 32, "area", seed)


def test_unknown_names_and_pictures_that_are_too_small():
    with pytest.raises(UserError, match='backbone="MobilNet": no such .*; did you mean MobileNet[?] available: Conv'):
        backbones.build("MobilNet", 32)
    with pytest.raises(UserError, match="--image_size=74: InceptionV3 takes pictures of at least 75x75 pixels; give"):
        backbones.build("InceptionV3", 74)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("ConvNeXtTiny", "convnext"),
        ("DenseNet121", "densenet"),
        ("EfficientNetV2B0", "efficientnet_v2"),
        ("InceptionResNetV2", "inception_resnet_v2"),
        ("InceptionV3", "inception_v3"),
        ("MobileNet", "mobilenet"),
        ("MobileNetV2", "mobilenet_v2"),
        ("MobileNetV3Small", "mobilenet_v3"),
        ("NASNetMobile", "nasnet"),
        ("ResNet50", "resnet"),
        ("ResNet50V2", "resnet_v2"),
        ("VGG16", "vgg16"),
        ("VGG19", "vgg19"),
        ("Xception", "xception"),
    ],
)
def test_preprocessing_is_that_of_the_family(name, family):
    inputs = keras.Input((32, 32, 3))
    prepared = keras.Model(inputs, backbones.preprocess(name, inputs))(IMAGES)
    expected = getattr(keras.applications, family).preprocess_input(PIXELS.copy())
    np.testing.assert_allclose(prepared, expected, atol=1e-4)


def test_the_first_efficientnets_calculate_as_those_of_keras(monkeypatch):
    """With weights="imagenet" Keras builds another network, and reads the mean and variance from the file."""
    read = []

    def read_file(network, path):
        (normalization,) = (layer for layer in network.layers if isinstance(layer, keras.layers.Normalization))
        # This is the mistake in the file: it has the standard deviation instead of the variance.
        normalization.load_own_variables({"0": [0.485, 0.456, 0.406], "1": [0.229, 0.224, 0.225], "2": 0})
        read.append(network)

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda *args, **kwargs: "file.h5")
    monkeypatch.setattr(keras.Model, "load_weights", read_file)
    ours = backbones.build("EfficientNetB0", 32)
    backbones.load_weights("EfficientNetB0", ours, "imagenet")
    (theirs,) = read
    stems = [keras.Model(model.input, model.get_layer("stem_conv").output) for model in (ours, theirs)]
    inputs = keras.Input((32, 32, 3))
    prepared = keras.Model(inputs, backbones.preprocess("EfficientNetB0", inputs))(IMAGES)
    np.testing.assert_allclose(stems[0](prepared), stems[1](PIXELS), atol=1e-5)

    backbones.freeze(ours, None)
    np.testing.assert_array_equal(ours(PIXELS, training=True), ours(PIXELS, training=False))  # No dropout either.


def test_what_is_trained():
    backbone = backbones.build("MobileNet", 32)
    for trainable_from, num_kernels in ((None, 0), ("conv_pw_13", 1), ("conv_dw_13", 2), ("all", 27)):
        for layer in backbone.layers:
            layer.trainable = True
        backbones.freeze(backbone, trainable_from)
        assert [variable.name for variable in backbone.trainable_variables] == ["kernel"] * num_kernels
    with pytest.raises(
        UserError, match='trainable_from="conv_pw13": .* no such layer; the nearest names are conv_pw_13'
    ):
        backbones.freeze(backbone, "conv_pw13")
    with pytest.raises(UserError, match="no such layer"):  # Keras chose this name.
        backbones.freeze(backbone, backbone.layers[0].name)


@pytest.mark.parametrize(("file", "has_top"), [("a.weights.h5", False), ("a.weights.h5", True), ("a.h5", True)])
def test_weights_of_a_file(tmp_path, file, has_top):
    path = str(tmp_path / file)
    source = keras.applications.MobileNet(
        include_top=has_top, weights=None, input_shape=None if has_top else (32, 32, 3)
    )
    source.save_weights(path) if file == "a.weights.h5" else source.save(path)
    backbone = backbones.build("MobileNet", 32)
    backbones.load_weights("MobileNet", backbone, path)
    assert len(backbone.weights) == 135
    for ours, theirs in zip(backbone.weights, source.weights, strict=False):
        np.testing.assert_array_equal(ours, theirs)


def test_weights_are_needed_only_when_training_starts(tmp_path):
    path = tmp_path / "a.weights.h5"
    Classifier(spec(seed=5, weights=None)).model.network.get_layer("mobilenet_1.00_32").save_weights(path)
    with_file = spec(seed=1, weights=str(path))
    new = Classifier(with_file, is_new=True)
    checkpoints.save_best(new, str(tmp_path / "best"), 1, {})
    path.unlink()
    restored = Classifier(with_file)
    kernel, _ = restored.model.trainable_variables
    np.testing.assert_array_equal(kernel, new.model.trainable_variables[0])  # The same with a file and without.
    assert np.any(restored.model.weights[0] != new.model.weights[0].numpy())
    checkpoints.restore_newest(restored, str(tmp_path / "best"))
    np.testing.assert_array_equal(restored.probability(IMAGES), new.probability(IMAGES))
    with pytest.raises(UserError, match=f"--model_params: weights={path}: no such file; give the path of a .h5 file"):
        Classifier(with_file, is_new=True)


def test_a_file_that_does_not_fit(tmp_path):
    path = tmp_path / "a.h5"
    path.write_text("not HDF5")
    with pytest.raises(
        UserError,
        match=f"weights={path}: is no weights file of Keras .*not HDF5.*; give a .h5, .weights.h5 or .keras file",
    ):
        backbones.load_weights("MobileNet", backbones.build("MobileNet", 32), str(path))


def test_without_the_internet_one_line_says_what_to_do(tmp_path, monkeypatch):
    def no_network(*args):
        raise OSError("Name or service not known")

    monkeypatch.setattr("keras.src.utils.file_utils.config.keras_home", lambda: str(tmp_path))
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    said = (
        "MobileNet cannot be downloaded: .*https://.*/mobilenet_1_0_224_tf_no_top.h5.*not known; "
        "download that file .* its path.* or take a recipe that needs no weights, such as --recipe=good"
    )
    with pytest.raises(UserError, match=said):
        backbones.load_weights("MobileNet", backbones.build("MobileNet", 32), "imagenet")
