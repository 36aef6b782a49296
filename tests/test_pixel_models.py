"""Models that take pixels: their answers, what is said of them, and the code of the page about serving."""

import json
import os
import resource
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import ENGLISH, blocks, jpeg, write_shards

from cats_vs_dogs import bad_examples, export_model, pixel_models, readers
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.config import ModelSpec
from cats_vs_dogs.utils import UserError

SIZE = 20  # Weights with fewer than 1,024 numbers stay float32.
PIXELS = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)


def make(model="LogisticModel", resize_method="area"):
    return Classifier(ModelSpec(model, {}, "CrossEntropyLoss", {}, SIZE, resize_method))


def reader_of(classifier):
    return readers.CatsVsDogsFeatureReader(2, SIZE, classifier.spec.resize_method)


def answers_of(model):
    return np.array([[model.run(image[np.newaxis])] for image in PIXELS])


@pytest.mark.parametrize("model", ["LogisticModel", "MoeModel", "ConvNetModel"])
def test_litert(model):
    classifier = make(model)
    exact, small = pixel_models.convert(classifier, reader_of(classifier), "litert")
    assert [exact.name, small.name] == ["model_float32.tflite", "model_int8.tflite"]
    expected = classifier.probability(tf.constant(PIXELS)).numpy()
    np.testing.assert_allclose(answers_of(exact), expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(answers_of(small), expected, atol=0.02, rtol=0)
    assert len(small.data) < len(exact.data)


def test_onnx():
    pytest.importorskip("tf2onnx")
    pytest.importorskip("onnxruntime")
    classifier = make()
    (model,) = pixel_models.convert(classifier, reader_of(classifier), "onnx")
    expected = classifier.probability(tf.constant(PIXELS)).numpy()
    np.testing.assert_allclose(answers_of(model), expected, atol=1e-5, rtol=0)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    classifier = make()
    with pytest.raises(UserError, match=r"^--format=onnx: .*; pip install -e '\.\[onnx\]'$"):
        pixel_models.convert(classifier, reader_of(classifier), "onnx")


def test_a_model_that_cannot_be_converted_is_named(monkeypatch):
    def fail(module):
        raise ValueError("no such operation\nat line 3")

    monkeypatch.setitem(pixel_models._FORMATS, "litert", fail)
    classifier = make()
    with pytest.raises(UserError, match=r"^--format=litert: LogisticModel cannot be converted \(no such operation\); "):
        pixel_models.convert(classifier, reader_of(classifier), "litert")


def export(classifier, tmp_path, pattern):
    folder = tmp_path / "export"
    export_model.export_pixel_models(classifier, 7, str(tmp_path), pattern, str(folder), "litert")
    return json.loads((folder / "model.json").read_text())


def test_an_export_says_how_to_use_it_and_how_good_it_is(tmp_path, capsys):
    classifier = make(resize_method="legacy_bilinear")
    pattern = write_shards(tmp_path / "shards", "validation", num_examples=10, num_shards=2)
    about = export(classifier, tmp_path, pattern)
    right = []
    shards = bad_examples.open_shards(pattern, "eval_data_pattern", reader_of(classifier), "fail")
    for _, images, labels in readers.make_dataset(reader_of(classifier), shards, 4):
        right += ((classifier.probability(images) > 0.5).numpy() == labels.numpy()).tolist()
    assert about["step"] == 7 and about["model"] == "LogisticModel"
    assert about["input"]["shape"] == [1, SIZE, SIZE, 3] and about["input"]["dtype"] == "uint8"
    assert about["resizing"]["method"] == "legacy_bilinear" and about["resizing"]["size"] == SIZE
    assert about["measured_on"] == {"data": pattern, "photos": 10}
    accuracy = about["files"]["model_float32.tflite"]["accuracy"]
    assert accuracy == np.mean(right)
    for name, facts in about["files"].items():
        assert facts["bytes"] == (tmp_path / "export" / name).stat().st_size
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[:2]] == ["accuracy", f"{accuracy:.4f}"]


def test_without_photos_the_models_are_still_written(tmp_path, capsys):
    about = export(make(), tmp_path, "")
    assert about["measured_on"] is None and about["files"]["model_int8.tflite"]["accuracy"] is None
    assert "accuracy" not in capsys.readouterr().out
    with pytest.raises(UserError, match="eval_data_pattern=.*nowhere"):
        export(make(), tmp_path, str(tmp_path / "nowhere-*"))
    (tmp_path / "export" / "model.json").rename(tmp_path / "export" / "diary.txt")
    with pytest.raises(UserError, match="exists and is not such an export, since it holds diary.txt; move that away"):
        export(make(), tmp_path, "")


def test_a_folder_with_something_else_in_it_stays(tmp_path):
    export(make(), tmp_path, "")
    (tmp_path / "export" / "diary.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not such an export, since it holds diary.txt; move that away"):
        export(make(), tmp_path, "")
    with pytest.raises(UserError, match="exists and is not a SavedModel, since it holds diary.txt"):
        export_model.ModelExporter(make()).export_model(str(tmp_path / "export"))
    assert (tmp_path / "export" / "diary.txt").read_text() == "mine"


def test_an_export_needs_room_and_no_number_of_its_own(tmp_path, monkeypatch):
    models = [pixel_models.PixelModel("model_float32.tflite", bytes(5000), None)]
    monkeypatch.setattr(pixel_models, "convert", lambda *unused: models)
    killed = tmp_path / f"export.{os.getpid()}.tmp"  # Of a process in another container, where numbers begin at 1 too.
    killed.mkdir()
    (killed / "begun").write_text("")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=f"--export_dir={tmp_path}/export: cannot be written to: .*File too large"):
            export(make(), tmp_path, "")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "export").exists() and not killed.exists()
    export(make(), tmp_path, "")
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == ["model.json", "model_float32.tflite"]


def run_code(marker, tmp_path, capsys, **names):
    """Runs the code on the page that has a marker, with other paths, and returns its names and what it prints."""
    (code,) = [code for code in blocks(ENGLISH["docs/serving.en.md"], "python") if marker in code]
    (tmp_path / "photo.jpg").write_bytes(jpeg(45, 70, seed=3))
    for old, new in {"photos/test1/1.jpg": tmp_path / "photo.jpg", **names}.items():
        assert old in code
        code = code.replace(old, str(new))
    scope = {}
    exec(code, scope)
    return scope, capsys.readouterr().out


def test_the_code_of_the_page_for_litert_resizes_as_training_does(tmp_path, capsys):
    pytest.importorskip("ai_edge_litert")
    classifier = make()
    model = pixel_models.convert(classifier, reader_of(classifier), "litert")[0]
    (tmp_path / model.name).write_bytes(model.data)
    paths = {"/tmp/my_litert/model_float32.tflite": tmp_path / model.name}
    scope, said = run_code("ai_edge_litert", tmp_path, capsys, **paths)
    images = reader_of(classifier).decode_images(tf.constant([(tmp_path / "photo.jpg").read_bytes()]))
    pixels = np.uint8(scope["small"].round()).transpose(1, 2, 0)
    np.testing.assert_allclose(pixels, images[0], atol=1)
    assert float(said.strip("[]\n")) == pytest.approx(classifier.probability(images).numpy().item(), abs=0.01)


def test_the_code_of_the_page_for_image_bytes(tmp_path, capsys):
    export_model.ModelExporter(make()).export_model(str(tmp_path / "export"))
    _, said = run_code("saved_model", tmp_path, capsys, **{"/tmp/my_export": tmp_path / "export"})
    assert "nan" in said and "neither a JPEG nor a PNG" in said
