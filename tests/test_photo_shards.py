"""Photos in place of shards: they become the shards of the converter, once, and each script takes them."""

import json
import os
import shutil
import types
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import forked_python, jpeg, make_config, values_of, write_shards
from photo_files import JPEG, encode, picture, write_folder, write_zip

from cats_vs_dogs import checkpoints, distribution, job, kept_folders, photo_shards, train, trained_data
from cats_vs_dogs import convert_images_to_tfrecords as converter
from cats_vs_dogs import eval as eval_script
from cats_vs_dogs.utils import UserError

FLAG = "train_data_pattern"
# Of these, cat.4, cat.15 and cat.17 are for validation, among others.
PHOTOS = {
    f"{kind}.{i}.jpg": jpeg(colour=(200 - 120 * label, 120, 40), seed=2 * i + label)
    for label, kind in enumerate(("cat", "dog"))
    for i in range(20)
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Sets a cache of the test's own, and returns where shards of photos are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "cats_vs_dogs" / "photos"


def find(pattern):
    return photo_shards.find(str(pattern), FLAG)


def contents(folder):
    """Returns the bytes of all shards in a folder, and of the list of bad pictures."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "photos.json"}


def converted(images, tmp_path):
    """Returns what the converter writes without further flags."""
    converter.convert(str(images), str(tmp_path / "converted"), 10, 1000, 2)
    written = contents(tmp_path / "converted")
    shutil.rmtree(tmp_path / "converted")
    return written


def test_the_shards_are_those_of_the_converter(tmp_path, cache, caplog):
    caplog.set_level("INFO", logger="absl")
    files = {f"train/{name}": data for name, data in PHOTOS.items()}
    files |= {"train/dog.99.jpg": encode(picture(), "PNG"), "train/cat.98.jpg": b"", "test1/1.jpg": JPEG}
    folder, archive = write_folder(tmp_path / "in", files), write_zip(tmp_path / "in.zip", files)
    expected = converted(folder, tmp_path)
    for pattern in (folder, f"{folder}/", archive, "in.zip", f"{folder}/**", "in/*/*.jpg"):
        caplog.clear()
        shards = find(pattern)
        written = contents(cache / shards.folder)
        is_pattern = "*" in str(pattern)  # Then the list of bad pictures shows the folder that all lie in.
        assert (written.pop("bad_images.csv") != expected["bad_images.csv"]) == is_pattern
        assert written == {name: data for name, data in expected.items() if name != "bad_images.csv"}
        assert f"Photos of {pattern}: train: 17 cats, 21 dogs; validation: 3 cats; test: 1 unlabelled. " in caplog.text
        assert os.path.dirname(shards.folder) == str(cache)
        assert f"1 re-encoded, 1 skipped; see {shards.folder}/bad_images.csv" in caplog.text
    assert shards.pattern("train") == f"{shards.folder}/train-*"
    assert {split: shards.count(split) for split in ("train", "validation", "test")} == {
        split: sum(shards.counts[split].values()) for split in ("train", "validation", "test")
    }
    assert shards.count("train") + shards.count("validation") == 41 and shards.count("validation") > 0
    assert shards.labelled_patterns() == [f"{shards.folder}/train-*", f"{shards.folder}/validation-*"]


def test_they_are_made_once_and_again_when_a_photo_changes(tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    folder = write_folder(tmp_path / "in", PHOTOS)
    first = find(folder)
    assert "Making shards of" in caplog.text and ". Their shards are in " in caplog.text
    caplog.clear()
    (folder / ".DS_Store").write_bytes(b"A look at the folder changes no photo.")
    assert find(folder) == first
    assert "Making" not in caplog.text and ". Their shards, made by an earlier run, are in " in caplog.text
    shutil.move(folder, tmp_path / "moved")
    assert find(tmp_path / "moved").folder == first.folder
    os.remove(f"{first.folder}/validation-00000-of-00001")  # As a program does that cleans caches.
    assert os.path.exists(find(tmp_path / "moved").pattern("validation").replace("*", "00000-of-00001"))
    os.truncate(f"{first.folder}/train-00000-of-00001", 1000)
    assert os.path.getsize(find(tmp_path / "moved").pattern("train").replace("*", "00000-of-00001")) > 1000
    shutil.rmtree(first.folder)
    assert find(tmp_path / "moved").folder == first.folder
    os.utime(tmp_path / "moved" / "cat.1.jpg", (1, 1))
    assert find(tmp_path / "moved").folder != first.folder


def test_an_interrupted_conversion_leaves_nothing(tmp_path, cache, monkeypatch):
    folder = write_folder(tmp_path / "in", PHOTOS)
    with monkeypatch.context() as patch:
        patch.setattr(converter, "_move_shards", lambda *unused: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            find(folder)
    assert not list(cache.iterdir())
    with monkeypatch.context() as patch:
        change = converter.find_photos

        def find_and_change(*args):
            (folder / "cat.0.jpg").write_bytes(JPEG)
            return change(*args)

        patch.setattr(converter, "find_photos", find_and_change)
        with pytest.raises(UserError, match="^--train_data_pattern=.*/in: has changed while it was read; start again"):
            find(folder)
    assert not list(cache.iterdir())


def test_others_make_room_but_not_those_in_use(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(photo_shards, "_MAX_KEPT_BYTES", 10)
    patterns = [
        write_folder(tmp_path / str(i), {f"{name}{i}": data for name, data in PHOTOS.items()}) for i in range(3)
    ]
    first = find(patterns[0]).folder
    os.close(kept_folders._held.pop(first))  # As when the process ends.
    second = find(patterns[1]).folder
    third = find(patterns[2]).folder
    assert sorted(map(str, cache.iterdir())) == sorted([second, third])


def test_lists_and_patterns(tmp_path, cache):
    """Labels and ids come from the paths as if all lay in one folder."""
    cats = {name: data for name, data in PHOTOS.items() if name.startswith("cat")}
    write_folder(tmp_path / "all, of [them]" / "cat", {name[4:]: data for name, data in cats.items()})
    dogs = {name[4:]: data for name, data in PHOTOS.items() if name not in cats}
    write_folder(tmp_path / "all, of [them]" / "dog", dogs)
    both = find("all, of [them]")
    expected = contents(cache / both.folder)
    for pattern in ("all, of [them]/cat,all, of [them]/dog", "all, of [them]/*/*.jpg", f"{tmp_path}/all, of [them]/**"):
        shards = find(pattern)
        assert contents(cache / shards.folder) == expected, pattern
        assert photo_shards.are_same(shards.name, pattern, FLAG)
    assert shards.name == f"{tmp_path}/all, of [them]/**"
    write_zip(tmp_path / "강아지.zip", dogs | {"dog.0.jpg": JPEG})
    write_folder(tmp_path, {"several/read.me": b"x"})
    write_zip(tmp_path / "several" / "train.zip", PHOTOS)
    assert find("several/*").count("train") == 37
    several = find(f"{unicodedata.normalize('NFC', '강아지.zip')},all, of [them]/")
    assert several.name == f"{tmp_path}/강아지.zip,{tmp_path}/all, of [them]/"
    assert several.count("train") + several.count("validation") == 41 and several.counts["test"]["unlabelled"] == 20
    only_cats = find("all, of [them]/cat/*.jpg")
    assert only_cats.count("train") == only_cats.counts["train"]["cat"] > 0


BAD = {
    "no label": (
        "test1.zip",
        "test1.zip: none of the 2 files in it has a label; put photos into folders named cat and",
    ),
    "one class": ("pets/cat", "since it is the folder of one class; name the folder that holds both: pets"),
    "shards": ("shards", "shards: is a folder; write --train_data_pattern='shards/train-*'"),
    "deep shards": ("deep", "deep: is a folder; write --train_data_pattern='deep/shards/train-*'"),
    "zips": ("kaggle", "holds no pictures, but train.zip; give the .zip itself: --train_data_pattern=kaggle/train.zip"),
    "texts": ("texts", "texts: has no picture in it"),
    "nothing": ("empty", "empty: has no picture in it; name pictures or shards"),
    "missing": ("gone.zip", "gone.zip: matches no file"),
    "missing in a list": ("pets,gone.zip", "--train_data_pattern=gone.zip: matches no file"),
    "no zip": ("kaggle/train.zip", "is named .zip, but is no .zip"),
    "pictures and shards": (
        "mixed/*",
        "mixed/*: matches pictures and shards, such as mixed/train-00000-of-00001; give",
    ),
    "a list of both": (
        "pets,shards/train-*",
        "shards/train-* names shards, and pets pictures; give one kind at a time",
    ),
    "damaged": ("damaged", "damaged: has no usable picture in it, such as cat.1.jpg: empty file (0 bytes)"),
    "zips and pictures": ("both", "give the .zip itself: both/train.zip"),
    "races": ("races", "its two folders are named poodle and siamese; name them cat and dog"),
    "braces": ("pets/*.{jpg,png}", "{a,b} is not a pattern here"),
    "an empty part": ("pets,", "has an empty name before, after or between its commas"),
    "folders": ("pets/*", "matches folders only; for all files in them, at all levels, write 'pets/*/**'"),
    "tar": ("pets.tar.gz", ""),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_photos_for_training(tmp_path, cache, case):
    pattern, said = BAD[case]
    write_zip(tmp_path / "test1.zip", {"test1/1.jpg": JPEG, "test1/2.jpg": JPEG})
    write_folder(tmp_path, {"pets/cat/1.jpg": JPEG, "pets/dog/1.jpg": JPEG, "kaggle/train.zip": b"x"})
    write_folder(tmp_path, {"races/siamese/1.jpg": JPEG, "races/poodle/1.jpg": JPEG, "mixed/cat.1.jpg": JPEG})
    write_folder(tmp_path, {"damaged/cat.1.jpg": b"", "texts/a.txt": b"x", "pets.tar.gz": b"\x1f\x8b x"})
    write_folder(tmp_path, {"both/test1.zip": b"x", "both/train.zip": b"x", "both/1.jpg": JPEG})
    (tmp_path / "empty").mkdir()
    for folder in ("shards", "deep/shards", "mixed"):
        write_shards(tmp_path / folder, num_examples=2, num_shards=1)
    if not said:  # Reading it as a shard says what it is.
        assert find(pattern) is None
        return
    with pytest.raises(UserError) as error:
        find(pattern)
    assert said in str(error.value) and str(error.value).startswith("--train_data_pattern")
    assert not cache.exists() or not list(cache.iterdir())


def test_a_folder_with_photos_and_shards(tmp_path, caplog):
    folder = write_folder(tmp_path / "in", PHOTOS)
    write_shards(folder / "shards", num_examples=2, num_shards=1)
    shards = find(folder)
    assert shards.count("train") + shards.count("validation") == 40
    assert (
        "in holds pictures and shards, such as shards/train-00000-of-00001; only the pictures are used" in caplog.text
    )


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "in", PHOTOS)
    (tmp_path / "cache").write_text("a file, so that even root cannot make a folder in it")
    with pytest.raises(UserError, match="in: its shards cannot be written to .*/photos: .*; set XDG_CACHE_HOME to a"):
        find(folder)
    (tmp_path / "cache").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda unused: types.SimpleNamespace(free=100))
    with pytest.raises(UserError, match="0 MiB are needed, and 0 MiB are free.*set XDG_CACHE_HOME to a"):
        find(folder)


# ---- Scripts.


def settings_of(folder, pattern, **settings):
    common = {"image_size": 4, "batch_size": 8, "num_epochs": 2}
    return make_config(train_dir=str(folder), train_data_pattern=str(pattern), **{**common, **settings})


def trained(folder, pattern, **settings):
    """Trains a model, and returns the values in its last checkpoint."""
    train.train(settings_of(folder, pattern, **settings), distribution.local_devices())
    return values_of(checkpoints.require_checkpoint(str(folder)))


def evaluate(monkeypatch, train_dir, pattern):
    """Returns the metrics that eval.py writes."""
    names = {"train_dir": str(train_dir), "eval_data_pattern": str(pattern), "mistakes_file": ""}
    others = {"model": None, "label_loss": None, "batch_size": 10, "bad_examples": "fail", "run_once": True}
    averages = {"flip_average": False, "crop_average": False, "report": False}
    monkeypatch.setattr(eval_script, "FLAGS", types.SimpleNamespace(**names, **others, **averages))
    eval_script.main()
    (path,) = (train_dir / "eval").glob("metrics-10.json")
    return json.loads(path.read_text())


def test_training_and_evaluating_on_photos(tmp_path, monkeypatch, log):
    archive = write_zip(tmp_path / "in.zip", PHOTOS)
    converter.convert(str(archive), str(tmp_path / "s"), 10, 1000, 1)
    of_shards = trained(tmp_path / "shards", "s/train-*")
    of_photos = trained(tmp_path / "photos", "in.zip")
    assert of_shards.keys() <= of_photos.keys()
    assert all(
        value.tobytes() == of_photos[name].tobytes() for name, value in of_shards.items() if "rogress" not in name
    )

    # What was trained on is evaluated on where it is for validation.
    folder = tmp_path / "photos"
    run = json.loads((folder / "run.json").read_text())
    assert run["flags"][FLAG] == run["flags"]["eval_data_pattern"] == str(archive)
    expected = find(archive).count("validation")
    by_training = json.loads((folder / "eval" / "metrics-10.json").read_text())
    metrics = evaluate(monkeypatch, folder, "in.zip")
    assert metrics["num_examples"] == by_training["num_examples"] == expected
    assert metrics["eval_data_pattern"] == by_training["eval_data_pattern"] == str(archive)
    assert metrics["trained_on"] == 0
    assert "metrics-10.json held" not in log.text
    assert evaluate(monkeypatch, tmp_path / "shards", "in.zip")["num_examples"] == 40
    assert "of the 40 examples of --eval_data_pattern were trained on" in log.text

    # Predictions need photos; those without a label that were beside the others are the default.
    with pytest.raises(UserError) as error:
        trained_data.default_patterns([str(folder)], "test", "input_data_pattern")
    assert "in.zip, which the model was trained on, has no photos without a label; name photos to" in str(error.value)

    # Nothing is resumed on other data without a word.
    def resume():
        log.clear()
        train.prepare(job.look(settings_of(folder, archive, num_epochs=3), distribution.local_devices()))

    resume()
    assert "Resuming from" in log.text and "was trained with" not in log.text
    write_zip(archive, PHOTOS | {"cat.1.jpg": jpeg(seed=1000)})
    resume()
    assert "was trained with other shards" in log.text
    archive.unlink()
    with pytest.raises(UserError, match="^--train_data_pattern=.*in.zip: matches no file"):
        resume()


def test_the_photos_to_evaluate_on_while_training(tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    few = write_folder(tmp_path / "few", {"cat.1.jpg": JPEG, "dog.1.jpg": JPEG})
    settings, _ = job.find_photos(settings_of("m", few))
    assert not settings.data.eval_data_pattern
    assert "Nothing is evaluated while training: none of the 2 photos fell into validation" in caplog.text
    with pytest.raises(UserError, match="^--early_stop_evals=2: stopping early needs evaluations; give"):
        job.find_photos(settings_of("m", few, early_stop_evals=2))
    with pytest.raises(UserError, match="the model was trained on it, and none of its photos is for validation"):
        trained_data.eval_patterns("few/", "eval_data_pattern", [str(few)])
    many = write_folder(tmp_path / "many", PHOTOS)
    settings, photos = job.find_photos(settings_of("m", "many", early_stop_evals=2))
    assert settings.data.train_data_pattern == settings.data.eval_data_pattern == photos.name == str(many)
    settings, _ = job.find_photos(settings_of("m", "many", eval_data_pattern="few"))
    assert settings.data.eval_data_pattern == "few"
    assert trained_data.eval_patterns("few", "eval_data_pattern", [str(many)]) == find(few).labelled_patterns()
    only_validation = write_folder(tmp_path / "v", {"cat.4.jpg": JPEG, "1.jpg": JPEG})
    with pytest.raises(UserError, match="v: none of its labelled photos is for training; give more photos"):
        job.find_photos(settings_of("m", only_validation))


@pytest.mark.slow
def test_two_trainings_at_once_and_the_whole_way(run_script, tmp_path):
    write_zip(tmp_path / "in.zip", PHOTOS | {"test1/7.jpg": JPEG})
    env = {"XDG_CACHE_HOME": str(tmp_path / "shared")}
    flags = ["--train_data_pattern=in.zip", "--image_size=4", "--batch_size=8", "--num_epochs=1"]

    forked_python()  # Before two threads ask for it.

    def run(name):
        return run_script("train", *flags, f"--train_dir={name}", cwd=tmp_path, env=env).stderr

    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(run, "ab"))
    assert all(f"{tmp_path}/shared/cats_vs_dogs/photos/" in one and "Evaluating on" in one for one in said)
    assert len(list((tmp_path / "shared" / "cats_vs_dogs" / "photos").iterdir())) == 1
    one, two = (values_of(checkpoints.require_checkpoint(str(tmp_path / name))) for name in "ab")
    assert all(value.tobytes() == two[name].tobytes() for name, value in one.items() if name.startswith("model"))
    process = run_script("inference", "--train_dir=a", cwd=tmp_path, env=env)
    assert "1 photo: " in process.stdout and (tmp_path / "a" / "predictions.csv").read_text().startswith(
        "Id,Category\n7.jpg,"
    )
