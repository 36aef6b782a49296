"""What evaluation reports, and the list of its mistakes."""

import glob
import itertools
import json
import types

import numpy as np
import pytest
from conftest import write_shards

from cats_vs_dogs import checkpoints, eval_util, evaluation
from cats_vs_dogs import eval as eval_script
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.config import ModelSpec
from cats_vs_dogs.utils import UserError


def evaluated(ids, labels, probabilities):
    metrics = eval_util.EvaluationMetrics(2, 2)
    columns = np.array(probabilities, np.float32)[:, np.newaxis], np.array(labels)[:, np.newaxis]
    metrics.accumulate(*columns, 0.5, np.array([one.encode() for one in ids], object))
    return metrics


def test_the_report():
    metrics = evaluated(["a.jpg", "b.jpg", "고양이.jpg", "d.jpg"], [0, 1, 0, 1], [0.25, 0.75, 0.875, 0.375])
    assert evaluation.table(metrics.get(), metrics.mistakes()) == [
        "accuracy                    0.5000",
        "log loss                    0.9089",
        "ROC AUC                     0.5000",
        "expected calibration error  0.5000",
        "95 % interval of the accuracy: 0.1500 to 0.8500",
        "",
        "     precision  recall      F1  examples  called cat  called dog",
        "cat     0.5000  0.5000  0.5000         2           1           1",
        "dog     0.5000  0.5000  0.5000         2           1           1",
        "",
        "The worst of 2 mistakes:",
        "id          label  probability of dog",
        "고양이.jpg  cat                0.8750",
        "d.jpg       dog                0.3750",
    ]


def test_a_report_without_mistakes_and_with_more_than_are_shown():
    metrics = evaluated(["a.jpg"], [1], [0.75])
    assert not any("mistake" in line for line in evaluation.table(metrics.get(), metrics.mistakes()))
    metrics = evaluated([f"{i}.jpg" for i in range(12)], [0] * 12, np.linspace(0.6, 0.9, 12))
    lines = evaluation.table(metrics.get(), metrics.mistakes())
    assert "The worst of 12 mistakes:" in lines
    assert [line.split()[0] for line in lines[-10:]] == [f"{i}.jpg" for i in range(11, 1, -1)]


def test_mistakes_keep_ids_and_digits(tmp_path):
    ids, probabilities = ['a,"b"', "고양이\n", "=1+1", "007"], [0.99999994, 1e-9, 0.875, 2**-24]
    metrics = evaluated(ids, [0, 1, 0, 1], probabilities)
    evaluation.write_mistakes(str(tmp_path / "wrong.csv"), metrics.mistakes())
    assert (tmp_path / "wrong.csv").read_bytes().decode() == (
        'Id,Label,Probability\n"고양이\n",1,1e-09\n"a,""b""",0,0.99999994\n007,1,5.9604645e-08\n=1+1,0,0.875\n'
    )
    evaluation.write_mistakes(str(tmp_path / "wrong.csv"), [])
    assert (tmp_path / "wrong.csv").read_text() == "Id,Label,Probability\n"


def test_the_files_of_an_evaluation(tmp_path, monkeypatch):
    train_dir = str(tmp_path / "model")
    classifier = Classifier(ModelSpec("LogisticModel", {}, "CrossEntropyLoss", {}, 4, "area", seed=2))
    checkpoints.save_best(classifier, train_dir, 7, {})
    path, pattern = tmp_path / "wrong.csv", write_shards(tmp_path / "shards", num_examples=24)

    def evaluate(mistakes_file, flip_average, eval_data_pattern=pattern, has_report=False):
        names = {"train_dir": train_dir, "eval_data_pattern": eval_data_pattern, "mistakes_file": mistakes_file}
        names["report"] = has_report
        others = {"model": None, "label_loss": None, "batch_size": 10, "bad_examples": "fail", "run_once": True}
        monkeypatch.setattr(
            eval_script,
            "FLAGS",
            types.SimpleNamespace(**names, **others, flip_average=flip_average, crop_average=False),
        )
        eval_script.main()
        return json.loads((tmp_path / "model" / "eval" / "metrics-7.json").read_text())

    # Before anything is read.
    with pytest.raises(UserError, match=f"^--mistakes_file={tmp_path}/gone/wrong.csv: the folder .* does not exist"):
        evaluate(f"{tmp_path}/gone/wrong.csv", False, "/nowhere")
    with pytest.raises(UserError, match=f"^--mistakes_file={tmp_path}: is a folder"):
        evaluate(str(tmp_path), False, "/nowhere")
    shard = glob.glob(pattern)[0]
    with pytest.raises(UserError, match=f"^--mistakes_file={shard}: is one of the input files; name another file"):
        evaluate(shard, False)

    metrics = {flip_average: evaluate(str(path), flip_average) for flip_average in (True, False)}
    assert [metrics[flip_average]["flip_average"] for flip_average in metrics] == [True, False]
    assert metrics[True]["avg_loss"] != metrics[False]["avg_loss"]
    rows = [json.loads(line) for line in (tmp_path / "model" / "eval" / "metrics.jsonl").read_text().splitlines()]
    assert [row.pop("kind") for row in rows] == ["evaluation"] * 2 and all(row.pop("time") for row in rows)
    assert rows == list(metrics.values())

    header, *wrong = [line.split(",") for line in path.read_text().splitlines()]
    assert header == ["Id", "Label", "Probability"]
    assert len(wrong) == round(24 * (1 - metrics[False]["avg_hit_at_one"])) > 0
    for example_id, label, probability in wrong:
        assert example_id.startswith(("cat", "dog")[int(label)])
        assert (float(probability) > 0.5) != (label == "1")
    sizes = [abs(float(probability) - int(label)) for _, label, probability in wrong]
    assert all(size >= smaller - 1e-7 for size, smaller in itertools.pairwise(sizes))

    report = tmp_path / "model" / "eval" / "report.html"
    assert not report.exists()
    evaluate("", False, has_report=True)
    assert "24 photos" in report.read_text() and pattern in report.read_text()
