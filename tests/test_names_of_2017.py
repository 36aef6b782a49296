"""Every public name of the 2017 modules is where it was, or stands in the table of docs/differences."""

import importlib
import re

import numpy as np
import pytest
import tensorflow as tf
from conftest import PAGES

from cats_vs_dogs import convert_prediction_from_json_to_csv as converter
from cats_vs_dogs import eval_util, functions_of_2017, losses, utils

NAMES = {
    "train": "validate_class_name get_input_data_tensors find_class_by_name build_graph Trainer Trainer.run "
    "Trainer.export_model Trainer.start_server_if_distributed Trainer.remove_training_directory "
    "Trainer.get_meta_filename Trainer.recover_model Trainer.build_model get_reader ParameterServer start_server "
    "task_as_string main",
    "eval": "find_class_by_name get_input_evaluation_tensors build_graph evaluation_loop evaluate main",
    "inference": "format_lines get_input_data_tensors inference main",
    "export_model": "ModelExporter ModelExporter.export_model ModelExporter.build_inputs_and_outputs "
    "ModelExporter.build_prediction_graph",
    "eval_util": "flatten calculate_hit_at_one calculate_precision_at_equal_recall_rate calculate_gap top_k_by_class "
    "top_k_triplets EvaluationMetrics EvaluationMetrics.accumulate EvaluationMetrics.get EvaluationMetrics.clear",
    "readers": "resize_axis BaseReader BaseReader.prepare_reader CatsVsDogsFeatureReader "
    "CatsVsDogsFeatureReader.prepare_reader CatsVsDogsFeatureReader.prepare_serialized_examples "
    "CatsVsDogsTestFeatureReader CatsVsDogsTestFeatureReader.prepare_reader "
    "CatsVsDogsTestFeatureReader.prepare_serialized_examples",
    "losses": "BaseLoss CrossEntropyLoss HingeLoss SoftmaxLoss BaseLoss.calculate_loss "
    "CrossEntropyLoss.calculate_loss HingeLoss.calculate_loss SoftmaxLoss.calculate_loss",
    "models": "BaseModel BaseModel.create_model",
    "cvd_models": "LogisticModel MoeModel LogisticModel.create_model MoeModel.create_model models",
    "mean_average_precision_calculator": "MeanAveragePrecisionCalculator MeanAveragePrecisionCalculator.accumulate "
    "MeanAveragePrecisionCalculator.clear MeanAveragePrecisionCalculator.is_empty "
    "MeanAveragePrecisionCalculator.peek_map_at_n",
    "average_precision_calculator": "AveragePrecisionCalculator AveragePrecisionCalculator.heap_size "
    "AveragePrecisionCalculator.num_accumulated_positives AveragePrecisionCalculator.accumulate "
    "AveragePrecisionCalculator.clear AveragePrecisionCalculator.peek_ap_at_n AveragePrecisionCalculator.ap "
    "AveragePrecisionCalculator.ap_at_n",
    "utils": "Dequantize MakeSummary AddGlobalStepSummary AddEpochSummary GetListOfFeatureNamesAndSizes "
    "clip_gradient_norms combine_gradients",
    "convert_prediction_from_json_to_csv": "get_csv_header to_csv_row main",
}
TABLES = [PAGES["docs/differences.en.md"], PAGES["docs/differences.md"]]


def resolve(path):
    """Returns what a name such as "train.Trainer.run" means; None if there is nothing of that name."""
    module, *names = path.split(".")
    found = importlib.import_module(f"cats_vs_dogs.{module}")
    for name in names:
        found = getattr(found, name, None)
    return found


@pytest.mark.parametrize("module", NAMES)
def test_every_name_is_kept_or_in_the_table(module):
    for name in NAMES[module].split():
        is_kept = resolve(f"{module}.{name}") is not None
        for page in TABLES:
            old = [row.split(" | ")[0] for row in page.splitlines() if row.startswith("| `")]
            assert any(f"`{module}.{name}`" in cell for cell in old) != is_kept, f"{module}.{name}"


def test_what_the_table_names_instead_exists():
    for page in TABLES:
        table = page.split("\n## ")[1]
        cells = [row.split(" | ")[1] for row in table.splitlines() if row.startswith("| `")]
        names = [name for cell in cells for name in re.findall(r"`([a-z_]+\.\w+)`", cell) if not name.startswith("tf.")]
        assert len(names) >= 14 and all(map(resolve, names)), [name for name in names if not resolve(name)]


def test_the_functions_of_2017_are_in_utils():
    functions = [one for one in vars(functions_of_2017).values() if getattr(one, "__module__", "").endswith("_of_2017")]
    assert len(functions) == 5 and all(getattr(utils, one.__name__) is one for one in functions)


def test_dequantize():
    assert utils.Dequantize(0) == pytest.approx(-2 + 4 / 512)
    np.testing.assert_allclose(utils.Dequantize(np.array([255.0]), 1, -1), [2 / 512 + 1])


def test_make_summary():
    (value,) = utils.MakeSummary("a/b", np.float32(0.5)).value
    assert (value.tag, value.simple_value) == ("a/b", 0.5)


def test_clip_gradient_norms():
    slices = tf.IndexedSlices(tf.constant([[3.0, 4.0]]), tf.constant([1]), tf.constant([2, 2]))
    (one, a), (two, b), (none, c) = utils.clip_gradient_norms(
        [(tf.constant([0.0, 8.0]), "a"), (slices, "b"), (None, "c")], 1
    )
    assert (a, b, c, none) == ("a", "b", "c", None)
    np.testing.assert_allclose(one, [0, 1])
    np.testing.assert_allclose(two.values, [[0.6, 0.8]], rtol=1e-6)
    assert isinstance(two, tf.IndexedSlices)


def test_combine_gradients():
    slices = tf.IndexedSlices(tf.constant([[1.0]]), tf.constant([1]), tf.constant([2, 1]))
    towers = [
        [(tf.constant([1.0]), "a"), (None, "b"), (slices, "c"), (None, "d")],
        [(tf.constant([2.0]), "a"), (tf.constant([5.0]), "b"), (tf.ones([2, 1]), "c"), (None, "d")],
    ]
    combined = {name: gradient.numpy().tolist() for gradient, name in utils.combine_gradients(towers)}
    assert combined == {"a": [3], "b": [5], "c": [[1], [2]]}


def test_find_class_by_name():
    assert utils.find_class_by_name("HingeLoss", [utils, losses]) is losses.HingeLoss
    with pytest.raises(ValueError, match="no class NoLoss in cats_vs_dogs.losses"):
        utils.find_class_by_name("NoLoss", [losses])


def test_flatten():
    assert eval_util.flatten([[1, 2], [], (3,)]) == [1, 2, 3]


def test_csv_rows():
    assert converter.get_csv_header() == "Id,Category\n"
    row = {"image_id": "a,b.jpg", "class_indexes": [1, 0], "predictions": [0.8, 0.2]}
    assert converter.to_csv_row(row) == '"a,b.jpg",1\n'
    assert converter.to_csv_row({"image_id": "2", "class_indexes": [0, 1], "predictions": [0.8, 0.2]}) == "2,0\n"
    with pytest.raises(ValueError, match='"class_indexes" is missing'):
        converter.to_csv_row({"image_id": "a"})
