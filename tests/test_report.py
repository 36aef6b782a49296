"""report.html: it has each part, shows any text as text, loads nothing, can be read, and is small."""

import html.parser
import io
import json
import os
import re

import numpy as np
import pytest
from absl import logging
from PIL import Image

from cats_vs_dogs import (
    classifier,
    config,
    ensemble,
    eval_util,
    evaluation,
    figures,
    files,
    readers,
    report,
    report_figures,
    tfrecords,
)

EVIL = "<img src=x onerror=alert(1)>.jpg"
SECTIONS = ["results", "compared", "curves", "answers", "confusion", "classes", "photos", "suspects", "mistakes"]
SECTIONS += ["least_sure", "run"]
TEMPLATE = os.path.join(report.TEMPLATES, "report.html")
PATTERN = "/data/<b>&validation-*"


class Page(html.parser.HTMLParser):
    """What a browser would make of a page: tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._open = [], "", []
        self.feed(text)
        self.close()
        assert not self._open, "not closed"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def noise_jpeg(seed, size=260):
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def examples(count, num_wrong):
    """Returns labels and probabilities of so many examples; the first are sure mistakes."""
    labels = np.arange(count)[:, np.newaxis] % 2
    sure = np.random.default_rng(0).uniform(0.6, 1, (count, 1))
    sure[:num_wrong] = np.linspace(0.01, 0.4, num_wrong)[:, np.newaxis]
    return labels, np.where(labels, sure, 1 - sure).astype(np.float32)


def write_report(folder, photos, num_wrong=3, model="ConvNetModel", members=1, about=None):
    """Writes the report of a model that was not trained; the answers are made up.

    Args:
        folder: a pathlib.Path, the train_dir.
        photos: (id, JPEG) of each example.
        num_wrong: how many answers are wrong.
        model: class name of the model.
        members: how many models there are.
        about: further metrics.

    Returns:
        The text of the page.
    """
    labels, probabilities = examples(len(photos), num_wrong)
    shard = str(folder / "shards")
    folder.mkdir(parents=True, exist_ok=True)
    pairs = zip(photos, labels[:, 0].tolist(), strict=True)
    tfrecords.write_shard(shard, (tfrecords.make_example(photo, name, label) for (name, photo), label in pairs))
    accumulated = eval_util.EvaluationMetrics(2, 2)
    ids = np.array([name.encode() for name, _ in photos], object)
    accumulated.accumulate(probabilities, labels, 0.25, ids)
    rows = [{"train_dir": f"/models/{EVIL}{i}", "step": 5, **accumulated.get()} for i in range(members)]
    images = np.zeros((1, 4, 4, 3), np.float32)
    averages = {"flip_average": False, "crop_average": False}
    result = evaluation.Evaluation(7, averages, accumulated, figures.Photos(), images, rows if members > 1 else ())
    specs = [config.ModelSpec(model, {}, "CrossEntropyLoss", {}, size, "area") for size in (32, 48)[:members]]
    writer = report.Report(
        str(folder / "eval"),
        [str(folder), str(folder / "other")][:members],
        [classifier.Classifier(spec) for spec in specs],
        ensemble.open_reader_for(specs, is_labelled=True),
        readers.Shards({shard: len(photos)}),
    )
    (folder / "eval").mkdir(exist_ok=True)
    writer.write(result, result.metrics | {"eval_data_pattern": PATTERN, "trained_on": 0} | (about or {}))
    return (folder / "eval" / "report.html").read_text(encoding="utf-8")


def small_photos(count):
    return [(f"cat.{i}.jpg", noise_jpeg(i, 20)) for i in range(count)]


def write_metrics(folder, step, log_loss, **others):
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {"step": step, "avg_hit_at_one": 0.5, "log_loss": log_loss, "roc_auc": 0.5, "ece": 0.25} | others
    files.write_json(str(folder / f"metrics-{step}.json"), metrics)


FOREIGN = json.dumps({"avg_hit_at_one": 0.5, "log_loss": 0.1, "roc_auc": 0.5, "ece": 0.25})  # Without a step.


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with some train_dirs: "this", whose report is written, and others."""
    folder = tmp_path_factory.mktemp("models")
    write_metrics(folder / "better" / "eval", 40, 0.01, eval_data_pattern=PATTERN)
    write_metrics(folder / "better" / "eval", 300, 0.02, eval_data_pattern=PATTERN, trained_on=3)
    write_metrics(folder / f"other {EVIL.replace('/', '')}" / "eval", 9, 0.9, eval_data_pattern="/elsewhere")
    write_metrics(folder / "worse" / "eval", 5, 1.5, eval_data_pattern=PATTERN)
    write_metrics(folder / "better" / "best", 300, 0.02, eval_data_pattern=PATTERN)  # The same model.
    write_metrics(folder / "this" / "best", 6, 0.03, eval_data_pattern=PATTERN, flip_average=True)
    others = {"damaged": "{", "older": '{"step": 1}', "diverged": '{"log_loss": NaN}', "foreign": FOREIGN}
    for name, text in others.items():
        (folder / name / "eval").mkdir(parents=True)
        (folder / name / "eval" / "metrics-1.json").write_text(text)
    rows = [{"kind": "training", "step": i, "label_loss": 1 / i, "accuracy": 0.5} for i in range(1, 7)]
    rows.append({"kind": "training", "step": 7, "label_loss": None, "accuracy": 0.5})
    rows += [{"kind": "evaluation", "step": i, "avg_loss": 0.75, "avg_hit_at_one": 0.5} for i in (1, 3)]
    rows[-1] |= {"eval_data_pattern": PATTERN, "flip_average": False}
    lines = [json.dumps(row) for row in rows]
    (folder / "this" / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "train']))
    flags = {"train_data_pattern": "shards/train-*", "recipe": "good", "model_params": {"filters": 8}}
    files.write_json(
        str(folder / "this" / "run.json"), {"flags": flags, "shards": {"a": 20}, "versions": {"keras": "3"}}
    )
    return folder


@pytest.fixture(scope="module")
def text(models):
    return write_report(models / "this", [(EVIL, noise_jpeg(0, 40)), ("\0\n.jpg", b"none"), *small_photos(48)])


def test_the_page_has_each_part(text):
    assert text.startswith("<!DOCTYPE html>\n")
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert sorted(ids) == sorted(SECTIONS)
    drawings = [image for image in page.all("img") if image.get("class") == "drawing"]
    assert len(drawings) == 6 and all(len(image["alt"]) > 20 for image in drawings)
    assert page.all("html") == [{"lang": "en"}] and page.all("title") and "this, step 7" in page.text
    for words in ("94.0\xa0%", "47 of 50 photos", "25 cats, 25 dogs", "Log loss", "ROC AUC", "Calibration error"):
        assert words in page.text, words
    for words in ("ConvNetModel", "recipe", "good", "shards/train-*", "20 photos in 1 shards", "keras", "pytest"):
        assert words in page.text, words
    assert "Suspected wrong labels" in page.text and "99.0\xa0% sure" in page.text


def test_photos_have_id_label_answer_and_a_map(text):
    page = Page(text)
    photos = [image for image in page.all("img") if image.get("class") != "drawing"]
    assert len(photos) == len({image["src"] for image in photos})
    named = [image["alt"] for image in photos if image["alt"].startswith(EVIL)]
    assert named[0] == f"{EVIL}: a photo with the label cat"
    assert named[1:] in ([f"{EVIL}: where the model looked, in yellow"], [])  # Nothing may speak for an answer.
    assert sum("where the model looked" in image["alt"] for image in photos) >= 5
    assert "This photo cannot be shown." in page.text and "label: dog model: cat" in page.text


def test_a_name_is_shown_as_text(text):
    page = Page(text)
    assert EVIL in page.text and PATTERN in page.text and f"other {EVIL}" in page.text
    assert not any("onerror" in attributes or attributes.get("src") == "x" for _, attributes in page.tags)
    assert not page.all("b") or all(not attributes for attributes in page.all("b"))
    assert "\0" not in text and "��.jpg" in page.text


def test_the_page_loads_nothing(text):
    page = Page(text)
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert len(addresses) > 10 and all(address.startswith("data:") for address in addresses)
    assert not {"script", "iframe", "object", "form", "a"} & {tag for tag, _ in page.tags}
    assert "url(" not in text and "@import" not in text
    policy = next(one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_the_other_models_beside_it(models, text):
    table = text.partition('id="compared"')[2].partition("</table>")[0]
    rows = [" ".join(Page(f"<table>{row}</table>").text.split()) for row in re.findall("<tr.*?</tr>", table)[1:]]
    names = [row.partition(" step")[0] for row in rows]
    assert names == ["this (this page)", "worse", "better", "this/best", f"other {EVIL}"]
    assert table.count('<tr class="soft">') == 3  # Those that cannot be compared.
    better, other = rows[2], rows[-1]
    assert "step 300" in better and "0.020" in better and "was trained on 3 of these photos" in better
    assert "on other data: /elsewhere" in other and "other data" not in better
    assert any("with flip_average" in row for row in rows if row.startswith("this/best"))


def test_learning_curves_are_of_the_same_data(text):
    curves = [image["alt"] for image in Page(text).all("img") if "by step" in image["alt"]]
    assert curves == [
        "Loss by step: that of training batches goes from 1.000 to 0.167, that of evaluations goes from 0.750 to "
        "0.250.",
        "Accuracy by step: that of training batches goes from 50.0\xa0% to 50.0\xa0%, that of evaluations goes from "
        "50.0\xa0% to 94.0\xa0%.",
    ]


def test_averages_do_not_hide_the_evaluations_of_training(tmp_path):
    folder = tmp_path / "train_dir"
    folder.mkdir()
    write_metrics(tmp_path / "plain" / "eval", 5, 0.01, eval_data_pattern=PATTERN)
    rows = [{"kind": "evaluation", "step": i, "avg_loss": 1 / i, "avg_hit_at_one": 0.5} for i in (1, 2, 4)]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(row | {"eval_data_pattern": PATTERN}) + "\n" for row in rows)
    )
    page = Page(write_report(folder, small_photos(8), model="LogisticModel", about={"flip_average": True}))
    assert "plain step 5; without averages" in page.text
    assert "of evaluations goes from 1.000 to 0.250" in page.all("img")[0]["alt"]
    assert page.text.count("on the data of this page, which average nothing") == 2


def test_a_model_without_convolutions_and_a_poor_one(tmp_path):
    folder = tmp_path / "train_dir"  # Beside tmp_path lie the models of other tests.
    page = Page(write_report(folder, small_photos(8), num_wrong=2, model="LogisticModel", about={"trained_on": None}))
    assert "no convolution, so no map shows where it looked" in page.text
    assert "must be right for at least 90\xa0%" in page.text and "There is no record of the training" in page.text
    assert "whether the model was trained on some of them is not known" in page.text
    assert "No other model was evaluated" in page.text


def test_an_ensemble(tmp_path):
    page = Page(write_report(tmp_path / "a", small_photos(24), num_wrong=1, members=2))
    assert "ensemble of 2 models" in page.text and f"/models/{EVIL}1" in page.text
    assert "mean of the models' maps" in page.text and "An ensemble is not trained" in page.text


@pytest.mark.parametrize("labels", [[0, 0], [1], [1, 1, 1]], ids=str)
def test_figures_of_one_class(labels):
    labels = np.array(labels)[:, np.newaxis]
    probabilities = np.full(labels.shape, 0.5, np.float32)
    metrics = eval_util.EvaluationMetrics(2, 2)
    metrics.accumulate(probabilities, labels, 0.5)
    drawn = report._figures(probabilities, labels, metrics.get())
    assert all(figure.startswith("data:image/svg+xml;base64,") for figure in drawn.values())


def test_the_page_takes_at_most_3_mb(tmp_path):
    """Of 2,500 photos, those that are shown are noise, which no JPEG makes small."""
    noise = [(f"{'long' * 60}{i}.jpg", noise_jpeg(i)) for i in range(36)]
    rows = [{"kind": "training", "step": i, "label_loss": i % 7, "accuracy": 0.5} for i in range(5000)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = noise_jpeg(99, 8)
    photos = noise + [(f"{i}.jpg", small) for i in range(2464)]
    text = write_report(tmp_path, photos, num_wrong=36)
    assert 1_000_000 < len(text.encode()) <= 3_000_000


def test_a_report_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda message, *values: warnings.append(message % values))

    def fail(unused_contents):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "render", fail)
    with pytest.raises(FileNotFoundError):  # There is no page.
        write_report(tmp_path, small_photos(4), num_wrong=1, model="LogisticModel")
    assert len(warnings) == 1 and re.match("no report: .*No space left on device.*--noreport", warnings[0])


# ---- Colours.


def luminance(colour):
    """https://www.w3.org/TR/WCAG21/#dfn-relative-luminance"""
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_contrast_of_texts():
    assert round(contrast("#ffffff", "#000000")) == 21
    with open(TEMPLATE, encoding="utf-8") as file:
        style = file.read().partition("<style>")[2].partition("</style>")[0]
    palettes = [
        dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root {(.*?)}", style, re.DOTALL)
    ]
    assert len(palettes) == 2 and palettes[0].keys() == palettes[1].keys()
    for palette in palettes:
        for text in ("text", "soft", "accent"):
            for background in ("page", "card"):
                assert contrast(palette[text], palette[background]) >= 4.5, (text, background)
        for background in ("right", "wrong", "note"):
            assert contrast(palette["text"], palette[background]) >= 4.5, background
    assert set(re.findall(r"color: (.*?);", style)) <= {"var(--text)", "var(--soft)", "var(--accent)"}
    for colour in (report_figures.TEXT, report_figures.BLUE, report_figures.ORANGE, report_figures.GREY):
        assert contrast(colour, "#ffffff") >= 4.5
