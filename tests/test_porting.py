"""The table of docs/porting is true, errors quote it, and models of 2017 that were ported by it learn."""

import functools
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import DATA, PAGES, REPOSITORY, RUN_SCRIPTS, blocks, make_config, run_scripts, write_shards

from cats_vs_dogs import losses, porting
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.models import BaseModel, build_model
from cats_vs_dogs.utils import UserError

ENGLISH, KOREAN = PAGES["docs/porting.en.md"], PAGES["docs/porting.md"]
# Left cells whose functions draw random numbers, make weights, or need what a row does not show.
NOT_COMPARED = re.compile(
    r"slim|tf\.layers|random|Variable|weights|dropout|map_fn|print|set_shape|import |batch_size|Session|placeholder|"
    r"tf\.f`|FLAGS|get_collection|vocab_size|is_training|variable_scope|gfile|xrange|pack|mul|sub|another|whitening|"
    r"labels \*|summary|logging|concat\(1|sparse_to_dense"
)


def rows_of(text):
    """Returns the rows of a page's two tables, for models and for losses: pairs of cells."""
    tables = re.findall(r"^\| --- \| --- \|\n((?:\|.*\n)+)", text, re.M)
    return [re.findall(r"^\| (.*?) \| (.*) \|$", table, re.M) for table in tables]


MODEL_ROWS, LOSS_ROWS = rows_of(ENGLISH)


def code_of(cell):
    return [code for code in re.findall(r"`(.*?)`", cell) if not code.startswith(("--", '"'))]


def make_names(is_symbolic):
    """What the names of the tables stand for."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0.1, 0.9, (4, 32, 32, 3)).astype(np.float32)
    columns = {name: rng.uniform(0.1, 0.9, (4, size)).astype(np.float32) for name, size in SIZES.items()}
    net, a, b = (
        (keras.Input((32, 32, 3)) for _ in range(3)) if is_symbolic else map(tf.constant, (images, images * 2, images))
    )
    made = {name: keras.Input((SIZES[name],)) if is_symbolic else tf.constant(columns[name]) for name in SIZES}
    labels = keras.Input((1,), dtype="int32") if is_symbolic else tf.constant([[1], [0], [0], [1]])
    made |= {"net": net, "a": a, "b": b, "images": net, "labels": labels, "tf": tf, "keras": keras}
    made |= {"functools": functools, "f": tf.image.per_image_standardization, "num_classes": 2, "path": "/nowhere"}
    made |= {"self": keras.layers.Dense(1), "create_model": None, "calculate_loss": None, "model_input": net}
    scale = {"keras": keras}
    exec(blocks(ENGLISH, "python")[0], scale)
    return made | {"Scale": scale["Scale"]}


SIZES = {"predictions": 1, "logits": 2}


def run(code, names):
    """Returns the value of an expression; a statement is run and gives None."""
    try:
        compiled = compile(code, "table", "eval")
    except SyntaxError:
        exec(code, names)
        return None
    return eval(compiled, names)


@pytest.mark.parametrize("cell", dict.fromkeys(right for _, right in MODEL_ROWS))
def test_the_code_for_models_runs_on_keras_tensors(cell):
    for code in code_of(cell):
        run(code, make_names(is_symbolic=True))


@pytest.mark.parametrize("cell", dict.fromkeys(right for _, right in LOSS_ROWS))
def test_the_code_for_losses_runs_on_tensors(cell):
    for code in code_of(cell):
        run(code, make_names(is_symbolic=False))


COMPARED = [row for row in [*MODEL_ROWS, *LOSS_ROWS] if not NOT_COMPARED.search(row[0])]


@pytest.mark.parametrize(("left", "right"), COMPARED)
def test_the_code_computes_what_that_of_2017_computed(left, right):
    names = make_names(is_symbolic=False)
    if "net, 1" in left or "indices=1" in left:  # A loss has no pictures.
        names["net"] = names["predictions"]
    found = run(code_of(right)[0], names)
    for code in code_of(left):
        expected = run(code, names | {"tf": tf.compat.v1})
        if isinstance(expected, list):
            assert list(found) == expected
        elif "resize_" in code and "crop" not in code:  # The pixels of 2017 were half a pixel off.
            assert found.shape == expected.shape
        else:
            np.testing.assert_allclose(found, expected, atol=2e-6)


def test_enough_rows_are_compared():
    assert len(COMPARED) > 28


@pytest.mark.parametrize(("table", "rows"), [(porting.MODELS, MODEL_ROWS), (porting.LOSSES, LOSS_ROWS)])
def test_each_row_of_the_code_is_on_the_page_with_the_same_text(table, rows):
    for name, instead in table.items():
        named = [
            right for left, right in rows if re.search(rf"(?<![\w.]){re.escape(name)}\b", left.replace("net.", ""))
        ]
        assert instead in [right.replace("`", "")[: len(instead)] for right in named], name


@pytest.mark.parametrize(("table", "rows"), [(porting.MODELS, MODEL_ROWS), (porting.LOSSES, LOSS_ROWS)])
def test_each_row_of_the_page_is_what_errors_say(table, rows):
    for left, right in rows:
        for name in re.findall(r"`(?:with )?((?:tf|slim)\.[\w.]+)", left):
            if "sigmoid)" not in left and name != "tf.f":
                assert right.replace("`", "").startswith(table[porting._row(name, table)]), name


def test_both_languages_have_the_same_rows():
    for english, korean in zip(rows_of(ENGLISH), rows_of(KOREAN), strict=True):
        assert [sorted(re.findall("`.*?`", left + right)) for left, right in english] == [
            sorted(re.findall("`.*?`", left + right)) for left, right in korean
        ]


def test_a_random_op_in_a_lambda_runs_in_training_only():
    (code,) = set(re.findall(r"^  `(keras.layers.Lambda\(.*)`", ENGLISH, re.M))
    names = make_names(is_symbolic=True) | {"f": lambda net: tf.random.uniform(tf.shape(net))}
    network = keras.Model(names["net"], run(code, names))
    images = tf.ones([2, 32, 32, 3])
    assert np.all(network(images, training=False) == 1)
    assert np.all(network(images, training=True) < 1)


def error_of_model(create_model):
    """Returns what build_model says of a model of 2017, in one line."""
    with pytest.raises(UserError) as error:
        build_model(type("MyModel", (BaseModel,), {"create_model": create_model})(), 32, 2, "probability", {})
    return " ".join(str(error.value).split())


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("tf.log(net)", "tf.log: write keras.ops.log(net)"),
        ("tf.variable_scope('a')", "tf.variable_scope: remove it; a layer can have a name"),
        ("tf.layers.conv2d(net, 8, 3)", "tf.layers.conv2d: write keras.layers.Conv2D"),
        ("tf.layers.separable_conv2d(net, 8, 3)", "tf.layers: write the class of that name in keras.layers"),
        ("tf.contrib.layers.flatten(net)", "tf.contrib: write import keras"),
        ("slim.conv2d(net, 8, 3)", "slim.conv2d: write keras.layers.Conv2D"),
        ("slim.separable_conv2d(net, 8, 3)", "slim: write import keras"),
        ("tf.get_variable('w', [3])", "tf.get_variable: write a layer of your own"),
        ("tf.losses.log_loss(net, net)", "tf.losses: write keras.ops.mean(keras.losses"),
        ("tf.placeholder(tf.float32)", "tf.placeholder: remove it; the kit calls create_model"),
        ("tf.Session()", "tf.Session: remove it; the kit runs the model"),
        ("tf.to_float(net)", 'tf.to_float: write keras.ops.cast(net, "float32")'),
        ("net + tf.random_normal([3])", "tf.random_normal: write keras.layers.GaussianNoise"),
        ("tf.truncated_normal([3])", "tf.truncated_normal: write tf.random.truncated_normal"),
        ("tf.div(net, 2.0)", "tf.div: write a / b"),
        ("tf.reduce_mean(net, [1, 2], keep_dims=True)", "keep_dims: write keras.ops.mean("),
        ("tf.nn.dropout(net, keep_prob=0.8)", "keep_prob: write keras.layers.Dropout(0.2)"),
        ("tf.image.resize_bilinear(net, [8, 8])", "tf.image.resize_bilinear: write keras.layers.Resizing"),
        ("tf.app.flags.FLAGS", "tf.app.flags: write a parameter of create_model"),
        ("FLAGS.filters", "FLAGS: write a parameter of create_model"),
        ("tf.gfile.Open('x')", "tf.gfile: write tf.io.gfile"),
        ("xrange(3)", "xrange: write range(3)"),
        ("net.get_shape().as_list()", "get_shape: write net.shape"),
        ("net.set_shape([None, 32, 32, 3])", "set_shape: remove it; net.shape is known"),
        ("tf.exp(net)", "tf.exp: write keras.ops.exp"),
        ("tf.nn.lrn(net)", "tf.nn.lrn: write keras.layers.Lambda(tf.nn.local_response_normalization)(net)"),
        ("tf.clip_by_value(net, 0, 1)", "tf.clip_by_value: write keras.layers.Lambda(lambda x: tf.clip_by_value(x"),
        ("tf.betainc(net, net, net)", "tf.betainc: write keras.layers.Lambda(lambda x: tf.math.betainc(x"),
        ("keras.layers.Lambda(lambda x: tf.log(x))(net)", "tf.log: write keras.ops.log(net)"),
        ("math.pi", "write import math at the top of the file"),
        ("np.zeros(3)", "write import numpy as np at the top of the file"),
        ("tf.Variable([1.0]) @ tf.matmul(net, net)", "tf.Variable: write a layer of your own"),
    ],
)
def test_a_name_of_2017_in_a_model_is_explained(code, said, tmp_path):
    path = tmp_path / "my_models.py"
    path.write_text(f"import keras\nimport tensorflow as tf\ndef create_model(self, net):\n    return {code}\n")
    names = {}
    exec(compile(path.read_text(), path, "exec"), names)
    message = error_of_model(names["create_model"])
    assert f"; {said}" in message and "docs/porting.en.md" in message
    assert "my_models.py line 4: return" in message


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("tf.reduce_mean(tf.log(p))", "tf.log: write tf.math.log(predictions)"),
        ("tf.losses.log_loss(labels, p)", "tf.losses.log_loss: write tf.reduce_mean(keras.losses."),
        ("tf.losses.cosine_distance(labels, p)", "tf.losses: write tf.reduce_mean of the function"),
        ("tf.contrib.losses.log_loss(p, labels)", "tf.contrib.losses: write tf.reduce_mean"),
        ("slim.losses.log_loss(p, labels)", "slim.losses: write tf.reduce_mean"),
        ("tf.reduce_mean(tf.to_float(labels) * p)", "tf.to_float: write tf.cast(labels, tf.float32)"),
        ("tf.reduce_mean(labels * p)", "labels * predictions: write tf.cast(labels, tf.float32)"),
        ("tf.reduce_sum(p, 1, keep_dims=True)", "keep_dims: write tf.reduce_mean(net, axis=1, keepdims=True)"),
        ("tf.reduce_sum(p, reduction_indices=1)", "reduction_indices: write tf.reduce_sum(net, axis=1)"),
        ("tf.is_nan(p)", "tf.is_nan: write tf.math.is_nan"),
        ("FLAGS.weight * p", "FLAGS: write a parameter of calculate_loss"),
    ],
)
def test_a_name_of_2017_in_a_loss_is_explained(code, said, tmp_path, monkeypatch):
    path = tmp_path / "my_losses.py"
    path.write_text(f"import tensorflow as tf\ndef calculate_loss(self, p, labels):\n    return {code}\n")
    names = {}
    exec(compile(path.read_text(), path, "exec"), names)
    monkeypatch.setattr(losses, "MyLoss", type("MyLoss", (losses.BaseLoss,), names), raising=False)
    with pytest.raises(UserError) as error:
        Classifier(make_config(label_loss="MyLoss").model)
    assert f"; {said}" in str(error.value) and str(error.value).endswith("; see docs/porting.en.md")
    assert "my_losses.py line 3: return" in str(error.value)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import tensorflow.contrib.slim as slim", "tf.contrib: write import keras"),
        ("from tensorflow import flags", "tf.flags: write a parameter of create_model"),
        ("print 'text'", 'print: write print("text")'),
    ],
)
def test_a_name_of_2017_in_an_import_is_explained(code, said):
    with pytest.raises((ImportError, SyntaxError)) as error:
        exec(code, {})
    assert porting.advice(error.value).startswith(said)


@pytest.mark.parametrize(
    "code", ["keras.layers.Dens(1)", "tf.no_such_name(net)", "undefined(net)", "1 / 0", "labels * 2"]
)
def test_other_errors_get_no_advice(code):
    with pytest.raises(Exception) as error:  # noqa: PT011 - Any will do.
        eval(code, {"keras": keras, "tf": tf, "net": keras.Input((3,))})
    assert not porting.advice(error.value) and not porting.advice(error.value, is_loss=True)


# ---- Models in the manner of 2017, and what became of them by the table alone.

OLD_AND_NEW = DATA / "models2017"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone with the ported models in cvd_models.py and the ported loss in losses.py."""
    clone = tmp_path_factory.mktemp("clone")
    shutil.copytree(REPOSITORY / "cats_vs_dogs", clone / "cats_vs_dogs", ignore=shutil.ignore_patterns("__pycache__"))
    for module, ported in (("cvd_models", "ported_models.py"), ("losses", "ported_losses.py")):
        code = (OLD_AND_NEW / ported).read_text().replace("from cats_vs_dogs.losses import BaseLoss\n", "")
        with open(clone / "cats_vs_dogs" / f"{module}.py", "a", encoding="utf-8") as file:
            file.write(code)
    (clone / "tests").mkdir()
    shutil.copy(RUN_SCRIPTS, clone / "tests")
    return clone


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--model=BranchesModel", '--model_params={"branch_filters": 8}'],
        ["--model=DistortedModel", "--label_loss=FocalLoss"],
    ],
    ids=["branches", "distorted"],
)
def test_a_ported_model_learns_and_serves(flags, clone, run_script, tmp_path):
    where, data = f"--train_dir={tmp_path}/model", f"--train_data_pattern={write_shards(tmp_path, num_examples=64)}"
    pattern = write_shards(tmp_path, "validation", num_examples=40, num_shards=1, first=64)
    learns = ["--batch_size=16", "--num_epochs=15", "--base_learning_rate=0.003", "--learning_rate_schedule=cosine"]
    predicts = [f"--input_data_pattern={pattern}", f"--output_file={tmp_path}/out.csv", "--output_column=probability"]
    scripts = [["train", where, data, *flags, *learns], ["inference", where, *predicts]]
    said = run_scripts(run_script, scripts, clone).stderr
    assert "WARNING" not in said
    rows = [line.split(",") for line in (tmp_path / "out.csv").read_text().splitlines()[1:]]
    probabilities = {key: float(value) for key, value in rows}
    right = [key.startswith("dog") == (probability > 0.5) for key, probability in probabilities.items()]
    assert len(right) == 40 and np.mean(right) > 0.8  # Guesses reach that once in 40,000 runs.
    records = tf.stack(list(tf.data.TFRecordDataset(tf.io.gfile.glob(pattern))))
    outputs = tf.saved_model.load(str(tmp_path / "model" / "export" / "step_60")).signatures["serving_default"](
        example_bytes=records
    )
    ids = [one.decode() for one in outputs["image_id"].numpy()]
    exported = dict(zip(ids, outputs["predictions"].numpy()[:, 1].tolist(), strict=True))
    assert exported == pytest.approx(probabilities, abs=2e-6)


def test_the_models_as_2017_wrote_them_are_explained(tmp_path, monkeypatch):
    """One line for each name of 2017 until the file is that of ported_models.py."""
    text = (OLD_AND_NEW / "models_2017.txt").read_text()
    for name in (
        "slim.repeat",
        "slim.arg_scope",
        "tf.variable_scope",
        "tf.map_fn",
        "tf.get_variable",
        "tf.log",
        "print ",
    ):
        assert name in text
    old = re.sub(r"^(import|from|FLAGS|flags).*\n", "", text, flags=re.M).partition("class FocalLoss")[0]
    old = re.sub(r'print "shape", (.*)', r"print(\1)", old)
    path = tmp_path / "old_models.py"
    path.write_text("import tensorflow as tf\n" + old)
    names = {"models": __import__("cats_vs_dogs.models").models}
    exec(compile(path.read_text(), path, "exec"), names)
    for name in ("BranchesModel", "DistortedModel"):
        with pytest.raises(UserError, match="remove the parameter is_training; .*docs/porting.en.md"):
            build_model(names[name](), 32, 2, "probability", {})
