"""Weights files: which are read, how their layers are found, and what is said of other files."""

import io
import pickle
import re
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest

from cats_vs_dogs import backbones, weight_files
from cats_vs_dogs.utils import UserError

WHERE = "--model_params: weights=FILE"


def network(size=8, prefix="", blocks=2):
    """Returns a network like those of keras.applications: with names of its own, numbered layers and branches."""
    inputs = keras.Input((size, size, 3))
    net = keras.layers.Conv2D(4, 1, name=f"{prefix}conv1")(inputs)
    net = keras.layers.BatchNormalization(name=f"{prefix}bn1")(net)
    for block in range(blocks):
        branches = [keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 1)(net)) for _ in range(2)]
        net = keras.layers.Add()([*branches, keras.layers.Conv2D(4, 1, name=f"{prefix}block{block}")(net)])
    stem = keras.Sequential([keras.Input(net.shape[1:]), keras.layers.Dense(5, name=f"{prefix}inner")])
    return keras.Model(inputs, stem(net), name="small")


def randomize(model):
    rng = np.random.default_rng(len(model.weights))
    for weight in model.weights:
        if "seed" not in weight.name:
            weight.assign(rng.normal(size=weight.shape))
    return model


def nested(base):
    layers = [keras.layers.RandomFlip(), keras.layers.Rescaling(2.0), base, keras.layers.GlobalAveragePooling2D()]
    for layer in base.layers[: len(base.layers) // 2]:
        layer.trainable = False  # Legacy files list the trainable weights first.
    return keras.Sequential([keras.Input(base.input_shape[1:]), *layers, keras.layers.Dense(2)])


def flat(base):
    net = keras.layers.Dense(7)(keras.layers.GlobalAveragePooling2D()(base.output))
    return keras.Model(base.input, keras.layers.Dense(2)(keras.layers.BatchNormalization()(net)))


def save(model, path):
    model.save_weights(path) if str(path).endswith(".weights.h5") else model.save(path)


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first.weights, second.weights, strict=True))


def forget_names(path):
    """Makes a .weights.h5 file like those of Keras 3.3, without layers' names."""
    with h5py.File(path, "r+") as file:
        file.visititems(lambda _, item: item.attrs.pop("name", None) and None)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("ending", [".h5", ".weights.h5", ".keras"])
@pytest.mark.parametrize("wrap", [lambda base: base, nested, flat], ids=["alone", "nested", "flat"])
def test_every_kind_of_file(tmp_path, wrap, ending):
    path = str(tmp_path / f"a{ending}")
    source = randomize(network())
    save(wrap(source), path)
    target = network(size=16)  # Keras numbers its layers on.
    weight_files.load("Small", target, path, WHERE)
    assert same(target, source)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("wrap", [lambda base: base, nested, flat], ids=["alone", "nested", "flat"])
def test_files_that_hold_no_config_or_no_names(tmp_path, wrap):
    source = randomize(network())
    save(wrap(source), str(tmp_path / "a.h5"))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file.attrs["model_config"]  # As save_weights of Keras 2 writes it.
    save(wrap(source), str(tmp_path / "b.weights.h5"))
    forget_names(tmp_path / "b.weights.h5")
    for name in ("a.h5", "b.weights.h5"):
        target = network()
        weight_files.load("Small", target, str(tmp_path / name), WHERE)
        assert same(target, source), name


def test_a_keras_file_of_keras_3_3(tmp_path):
    source = randomize(network())
    nested(source).save(tmp_path / "new.keras")
    with zipfile.ZipFile(tmp_path / "new.keras") as new, zipfile.ZipFile(tmp_path / "old.keras", "w") as old:
        (tmp_path / "weights.h5").write_bytes(new.read("model.weights.h5"))
        forget_names(tmp_path / "weights.h5")
        old.write(tmp_path / "weights.h5", "model.weights.h5")
        old.writestr("config.json", new.read("config.json"))
    target = network()
    weight_files.load("Small", target, str(tmp_path / "old.keras"), WHERE)
    assert same(target, source)


def test_names_of_keras_2():
    assert weight_files._plain("expanded_conv/depthwise/BatchNorm") == "expanded_conv_depthwise_bn"
    assert weight_files._plain("conv2_block1_0/bn") == "conv2_block1_0_bn"
    for old, new in {
        "gamma:0": "gamma",
        "bn_conv1_running_std_1:0": "moving_variance",
        "conv1_W_1:0": "conv1_W",
    }.items():
        assert weight_files._weight_name(old) == new


def chain(names, size=4):
    """Returns a network of equal convolutions, one after the other."""
    inputs = net = keras.Input((size, size, 3))
    for name in names:
        net = keras.layers.Conv2D(3, 1, name=name)(net)
    return keras.Model(inputs, net)


def branches(names):
    """Returns a network of equal convolutions, side by side."""
    inputs = keras.Input((4, 4, 3))
    return keras.Model(inputs, keras.layers.Add()([keras.layers.Conv2D(3, 1, name=name)(inputs) for name in names]))


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("ending", [".h5", ".weights.h5"])
def test_layers_of_other_names_are_found_by_order_only_where_it_is_sure(tmp_path, ending):
    path = str(tmp_path / f"a{ending}")
    source = randomize(chain(["z", "y", "x"]))
    save(source, path)
    target = chain(["a", "b", "c"])
    weight_files.load("Chain", target, path, WHERE)
    assert same(target, source)
    save(randomize(branches(["z", "y", "x"])), path)
    with pytest.raises(
        UserError, match=r"neither names nor order tell which of z, y, x ... is a \(1, 1, 3, 3\) \(3,\);"
    ):
        weight_files.load("Branches", branches(["a", "b", "c"]), path, WHERE)


@pytest.mark.parametrize("ending", [".weights.h5", ".keras"])
@pytest.mark.parametrize(
    ("holds", "said"),
    [
        (
            lambda: chain(["a", "a2", "b"]),
            r"does not fit Chain \(2 layers .*; the layer a2 does not belong to it; give",
        ),
        (lambda: chain(["a"]), r"holds .*\(1 layer with weights, a ...\); there is no layer b \(1, 1, 3, 3\) \(3,\)"),
        (lambda: chain(["a", "b2"]), "there is no layer b"),
        (lambda: chain(["x", "y", "z"]), "neither names nor order tell which of x, y, z"),
        (lambda: nested(network()), r"holds .* layers? with weights.*; there is no layer a"),
        (
            lambda: keras.Sequential([keras.Input((4, 4, 3)), chain(["a", "b"]), chain(["a", "b"])]),
            "it holds 2 networks that do; save the",
        ),
    ],
    ids=["deeper", "shorter", "renamed", "other-names", "other", "twice"],
)
def test_other_networks(tmp_path, holds, said, ending):
    path = str(tmp_path / f"a{ending}")
    save(holds(), path)
    target = chain(["a", "b"])
    before = [weight.numpy() for weight in target.weights]
    with pytest.raises(UserError, match=said) as raised:
        weight_files.load("Chain", target, path, WHERE)
    assert str(raised.value).startswith(WHERE) and "\n" not in str(raised.value)
    assert all(np.array_equal(a, b) for a, b in zip(before, target.weights, strict=True))


def test_other_shapes(tmp_path):
    inputs = keras.Input((4, 4, 3))
    net = keras.layers.Conv2D(5, 1, name="b")(keras.layers.Conv2D(3, 1, name="a")(inputs))
    keras.Model(inputs, net).save(tmp_path / "a.keras")
    with pytest.raises(UserError, match=r"b \(1, 1, 3, 3\) \(3,\) has the shapes \(1, 1, 3, 5\) \(5,\)"):
        weight_files.load("Chain", chain(["a", "b"]), str(tmp_path / "a.keras"), WHERE)


def test_weights_that_are_no_numbers(tmp_path):
    source = chain(["a", "b"])
    source.weights[0].assign(source.weights[0] * np.nan)
    source.save(tmp_path / "a.keras")
    with pytest.raises(UserError, match="holds weights that are infinite or no numbers"):
        weight_files.load("Chain", chain(["a", "b"]), str(tmp_path / "a.keras"), WHERE)


def test_numbers_and_order_that_contradict_each_other(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["layer_names"] = ["conv2d_8", "conv2d_7"]
        for number in (8, 7):
            group = file.create_group(f"conv2d_{number}")
            group.attrs["weight_names"] = ["kernel:0", "bias:0"]
            group["kernel:0"], group["bias:0"] = np.zeros((1, 1, 3, 3), np.float32), np.zeros(3, np.float32)
    with pytest.raises(UserError, match="the numbers of the layers conv2d and their order contradict each other"):
        weight_files.load("Chain", chain([None, None]), str(tmp_path / "a.h5"), WHERE)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_nothing_of_a_file_is_executed_and_no_other_file_is_read(tmp_path):
    source = randomize(chain(["a", "b"]))
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Lambda(lambda images: images), source])
    for name in ("a.h5", "a.keras"):
        model.save(tmp_path / name)
        target = chain(["a", "b"])
        weight_files.load("Chain", target, str(tmp_path / name), WHERE)
        assert same(target, source)
    source.save_weights(tmp_path / "other.weights.h5")
    shutil.copy(tmp_path / "other.weights.h5", tmp_path / "a.weights.h5")
    with h5py.File(tmp_path / "a.weights.h5", "r+") as file:
        del file["layers/conv2d/vars/0"]
        file["layers/conv2d/vars/0"] = h5py.ExternalLink("other.weights.h5", "layers/conv2d/vars/0")
    with pytest.raises(UserError, match=r"a \(1, 1, 3, 3\) \(3,\) has the shapes \(3,\)"):
        weight_files.load("Chain", chain(["a", "b"]), str(tmp_path / "a.weights.h5"), WHERE)


def zip_of(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return file.getvalue()


OTHERS = {
    "empty.h5": (b"", "is empty; download it again"),
    "lfs.h5": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of Git LFS, .* git lfs pull"),
    "page.h5": (b"\n<!DOCTYPE html><html>", "is a web page: .* download it in a browser"),
    "new.pt": (zip_of("model/data.pkl", "model/data/0"), "is a file of PyTorch, which cannot be read here"),
    "old.pth": (pickle.dumps([1]), "is a pickle of Python, as PyTorch writes, and could run any code"),
    "a.ckpt.data-00000-of-00001": (b"\x01\x02", "is a checkpoint of TensorFlow"),
    "a.tar.gz": (b"\x1f\x8b\x08", "is an archive of the kind gzip; unpack it"),
    "photos.zip": (zip_of("cat.1.jpg"), "is a .zip, but no .keras file: it holds cat.1.jpg"),
    "weights.zip": (zip_of("a.h5"), "is a .zip with the file a.h5; unpack it"),
    "text.h5": (b"hello", r"is no weights file of Keras \(it begins with b'hello'\)"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_kinds(tmp_path, name):
    content, said = OTHERS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as raised:
        weight_files.load("Chain", chain(["a"]), str(tmp_path / name), WHERE)
    assert str(raised.value).endswith("; give a .h5, .weights.h5 or .keras file")


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("ending", [".h5", ".weights.h5", ".keras"])
def test_a_file_that_is_cut_off_or_of_something_else(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    save(chain(["a", "b"]), str(path))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"is damaged or not complete \(.*\); download or copy it again"):
        weight_files.load("Chain", chain(["a", "b"]), str(path), WHERE)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["measured"] = [1.0, 2.0]
    with pytest.raises(UserError, match="is an HDF5 file, but holds no layers of Keras"):
        weight_files.load("Chain", chain(["a", "b"]), str(tmp_path / "data.h5"), WHERE)


@pytest.mark.parametrize(
    ("name", "inside", "said"),
    [
        ("train_dir", "model_flags.json", "is a train_dir; train that model further with --train_dir, or give a .h5"),
        ("export", "saved_model.pb", "is a SavedModel folder; load it in TensorFlow and save its weights"),
        ("folder", "b.keras", "is a folder; give a file in it, such as b.keras"),
        ("photos", "cat.1.jpg", "is a folder; give a .h5"),
    ],
)
def test_folders(tmp_path, name, inside, said):
    folder = tmp_path / name
    folder.mkdir(parents=True)
    (tmp_path / name / inside).write_text("x")
    with pytest.raises(UserError, match=f"--model_params: weights={re.escape(str(folder))}: {said}"):
        backbones.load_weights("Chain", chain(["a"]), str(folder))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
# Chosen from 12 that were tried: layers of their own within others, a Normalization layer. `network` has the rest.
@pytest.mark.parametrize("name", ["ConvNeXtTiny", "EfficientNetB0"])
def test_families_calculate_the_same_with_the_weights_of_a_file(tmp_path, name):
    rng = np.random.default_rng(0)
    source, target = backbones.build(name, 32), backbones.build(name, 32)  # Keras numbers its layers on.
    for variable in backbones._loadable(source):
        is_scale = variable.name in ("gamma", "moving_variance")
        variable.assign(rng.uniform(0.5, 1.5, variable.shape) if is_scale else rng.normal(0, 0.05, variable.shape))
    images = rng.uniform(0, 1, (2, 32, 32, 3)).astype(np.float32)
    expected = source(images)
    assert np.all(np.isfinite(expected)) and np.any(np.abs(target(images) - expected) > 1e-3)
    for wrap, ending in ((nested, ".h5"), (flat, ".weights.h5"), (nested, ".keras")):
        path = str(tmp_path / f"a{ending}")
        save(wrap(source), path)
        for variable in backbones._loadable(target):
            variable.assign(variable * 0)
        backbones.load_weights(name, target, path)
        np.testing.assert_allclose(target(images), expected, rtol=1e-5, atol=1e-5)
