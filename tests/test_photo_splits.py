"""Folders named train, validation and test keep their split; everything else is split by a hash."""

import pytest
from test_convert_images_to_tfrecords import JPEG, convert, read_shards, write_folder, write_zip  # noqa: F401

from cats_vs_dogs import convert_images_to_tfrecords as converter
from cats_vs_dogs import photo_splits


def split_of(paths, validation_percent=0):
    photos = [converter.Photo(path, None, converter.label_of(path), path) for path in sorted(paths)]
    splits = photo_splits.split_photos(photos, validation_percent)
    return {photo.path: split for split, some in splits.items() for photo in some}


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        (["train/cats/1.jpg", "train/dogs/2.jpg"], ["validation/cats/3.jpg", "validation/dogs/4.jpg"], []),
        (["cats_and_dogs_filtered/train/cats/1.jpg"], ["cats_and_dogs_filtered/validation/dogs/2.jpg"], []),
        (["data/v2/Train/Cat/1.jpg"], ["data/v2/VAL/Dog/2.jpg"], ["data/v2/Test/Cat/3.jpg"]),
        (["training_set/training_set/cats/1.jpg"], [], ["test_set/test_set/dogs/2.jpg"]),
        (["train/cat.1.jpg"], ["valid/cat.2.jpg"], ["testing/dog.3.jpg", "test1/9.jpg"]),
        (["cats/train/1.jpg", "dogs/train/2.jpg"], ["cats/val/3.jpg"], ["dogs/test/4.jpg"]),
        (["training/cats/1.jpg", "more/dogs/5.jpg"], ["validation/dogs/2.jpg"], []),  # In no such folder: training.
        (["test/data/train/cats/1.jpg"], ["test/data/val/cats/2.jpg"], []),  # The innermost one counts.
        (["train/cats/1.jpg"], ["train/validation/dogs/2.jpg"], []),
        (["a/cats/train/1.jpg"], ["a/train/val/dogs/2.jpg"], []),
        (["사진/train/cats/1.jpg"], ["사진/validation/dogs/2.jpg"], ["readme.txt"]),
        # As ever: not both of them, or no labels, or other names.
        (["train/cats/1.jpg", "train/dogs/2.jpg"], [], ["test1/3.jpg", "test/4.jpg"]),
        (["validation/cats/1.jpg", "test/dogs/2.jpg"], [], []),
        (["trainer/cats/1.jpg", "valley/dogs/2.jpg", "train.old/cats/3.jpg", "val1/cats/3.jpg"], [], []),
        (["train/cats/1.jpg", "val.jpg/cats/2.jpg"], [], []),
        (["train/cats/1.jpg", "test/cats/notes.txt"], [], []),
    ],
)
def test_folders(train, validation, test):
    expected = {
        path: split
        for split, paths in zip(photo_splits.SPLITS, (train, validation, test), strict=True)
        for path in paths
    }
    assert split_of(expected) == expected


def test_without_a_validation_folder_the_hash_takes_it_from_training():
    train = [f"train/cats/{i}.jpg" for i in range(300)]
    test = [f"test/dogs/{i}.jpg" for i in range(50)]
    split = split_of(train + test, 20)
    assert [split[path] for path in test] == ["test"] * 50
    assert {path: split[path] for path in train} == split_of(train, 20)
    assert 30 < sum(split[path] == "validation" for path in train) < 90


def test_with_a_validation_folder_no_other_photo_becomes_validation(caplog):
    caplog.set_level("INFO", logger="absl")
    train, validation = [f"train/cats/{i}.jpg" for i in range(300)], ["val/dogs/1.jpg"]
    assert set(split_of(train + validation, 50).items()) == {
        *((path, "train") for path in train),
        ("val/dogs/1.jpg", "validation"),
    }
    assert (
        "the split of the folders is kept: 300 for train, 1 for validation; --validation_percent=50 is not used"
        in caplog.text
    )


@pytest.mark.parametrize("make", [write_folder, write_zip])
def test_labelled_test_photos_keep_their_labels(convert, tmp_path, make, caplog):  # noqa: F811
    caplog.set_level("INFO", logger="absl")
    files = dict.fromkeys(["a/train/cats/1.jpg", "a/train/dogs/2.jpg", "a/test/cats/3.jpg", "a/test/4.jpg"], JPEG)
    out = convert(make(tmp_path / "in.zip", files))
    assert {name: label for name, (label, _) in read_shards(out, "train").items()} == {"1.jpg": 0, "2.jpg": 1}
    assert {name: label for name, (label, _) in read_shards(out, "test").items()} == {"3.jpg": 0, "4.jpg": None}
    assert "test: 1 cat, 0 dogs, 1 photo without a label in 1 file" in caplog.text


def test_a_validation_folder_without_a_training_folder_is_said(caplog):
    assert split_of(["more/cats/1.jpg", "test/dogs/2.jpg"]).keys() == {
        "more/cats/1.jpg",
        "test/dogs/2.jpg",
    }
    assert (
        "1 labelled photos are in folders named test, and none is in one named train; such folders are not"
        in caplog.text
    )
