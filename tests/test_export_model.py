"""The SavedModel: its signature, its numbers, and that older TensorFlow can load it."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import DATA, jpeg
from tensorflow.core.protobuf import saved_model_pb2

from cats_vs_dogs import export_model, readers, tfrecords
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.config import ModelSpec

RECORDS = tf.constant([tfrecords.make_example(jpeg(40 + 30 * i, 60, seed=i), f"{i}.jpg", None) for i in range(5)])


@pytest.mark.parametrize("resize_method", ["area", "legacy_bilinear"])
@pytest.mark.parametrize("label_loss", ["CrossEntropyLoss", "HingeLoss", "SoftmaxLoss"])
def test_export(tmp_path, resize_method, label_loss):
    classifier = Classifier(ModelSpec("MoeModel", {}, label_loss, {}, 16, resize_method))
    exporter = export_model.ModelExporter(classifier)
    model_dir = str(tmp_path / "step_1")
    exporter.export_model(model_dir)
    loaded = tf.saved_model.load(model_dir)
    outputs = loaded.signatures["serving_default"](example_bytes=RECORDS)
    assert set(outputs) == {"image_id", "class_indexes", "predictions"}
    assert list(outputs["image_id"].numpy()) == [f"{i}.jpg".encode() for i in range(5)]
    np.testing.assert_array_equal(outputs["class_indexes"], [[0, 1]] * 5)
    np.testing.assert_allclose(tf.reduce_sum(outputs["predictions"], axis=1), np.ones(5), atol=1e-6)
    reader = readers.CatsVsDogsTestFeatureReader(2, 16, resize_method)
    dog = classifier.probability(reader.decode_serialized_examples(RECORDS)[1])
    np.testing.assert_allclose(outputs["predictions"][:, 1:], dog, atol=2e-6, rtol=0)

    used = {node.op for node in _nodes(model_dir)}
    known = set((DATA / "tf215_ops.txt").read_text().split())
    assert "DecodeJpeg" in used
    assert used - known == set()


def _nodes(model_dir):
    with open(f"{model_dir}/saved_model.pb", "rb") as file:
        (meta_graph,) = saved_model_pb2.SavedModel.FromString(file.read()).meta_graphs
    yield from meta_graph.graph_def.node
    for function in meta_graph.graph_def.library.function:
        yield from function.node_def


def test_an_export_is_a_snapshot_and_replaces_an_older_one(tmp_path):
    classifier = Classifier(ModelSpec("LogisticModel", {}, "CrossEntropyLoss", {}, 8, "area"))
    exporter = export_model.ModelExporter(classifier)
    model_dir = str(tmp_path / "step_1")
    for bias in (-3.0, 3.0):
        kernel, bias_variable = classifier.model.weights
        kernel.assign(tf.zeros(kernel.shape))
        bias_variable.assign([bias])
        exporter.export_model(model_dir)
        bias_variable.assign([0.0])
        outputs = tf.saved_model.load(model_dir).signatures["serving_default"](example_bytes=RECORDS)
        np.testing.assert_allclose(outputs["predictions"][:, 1], np.full(5, 1 / (1 + np.exp(-bias))), atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]
