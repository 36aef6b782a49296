"""Tests of the conversion of photos to shards: labels, ids, splits, what is written and what is reported."""

import csv
import glob
import os
import shlex

import numpy as np
import pytest
import tensorflow as tf
from conftest import REPOSITORY, jpeg
from photo_files import JPEG, encode, picture, write_folder, write_zip

from cats_vs_dogs import convert_images_to_tfrecords as converter
from cats_vs_dogs import files as kit_files
from cats_vs_dogs import tfrecords, utils
from cats_vs_dogs.utils import UserError


def read_shards(folder, split):
    """Returns {id: (label, bytes)} of the shards of a split."""
    records = {}
    for path in sorted(folder.glob(f"{split}-*")):
        for raw in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            features = tf.train.Example.FromString(raw).features.feature
            label = features[tfrecords.LABEL].int64_list.value[0] if tfrecords.LABEL in features else None
            photo_id = features[tfrecords.FILENAME].bytes_list.value[0].decode()
            assert photo_id not in records
            records[photo_id] = (label, features[tfrecords.IMAGE].bytes_list.value[0])
    return records


def bad_images(folder):
    """Returns {file: (action, reason)}."""
    if not (folder / "bad_images.csv").exists():
        return {}
    with open(folder / "bad_images.csv", newline="", encoding="utf-8") as file:
        return {row["file"]: (row["action"], row["reason"]) for row in csv.DictReader(file)}


@pytest.fixture
def convert(tmp_path):
    """Returns a function that converts photos and returns the folder of the shards."""

    def run(images, output_dir=tmp_path / "out", validation_percent=0, examples_per_shard=1000, num_threads=2):
        converter.convert(str(images), str(output_dir), validation_percent, examples_per_shard, num_threads)
        return output_dir

    return run


KAGGLE = {"train/cat.0.jpg": JPEG, "train/cat.1.jpg": JPEG, "train/dog.0.jpg": JPEG}
KAGGLE_TEST = {"test1/1.jpg": JPEG, "test1/2.jpg": JPEG}
MICROSOFT = {"PetImages/Cat/0.jpg": JPEG, "PetImages/Dog/0.jpg": JPEG, "readme[1].txt": b"Hello"}


@pytest.mark.parametrize("make", [write_folder, write_zip])
@pytest.mark.parametrize(
    ("files", "train", "test"),
    [
        (KAGGLE, {"cat.0.jpg": 0, "cat.1.jpg": 0, "dog.0.jpg": 1}, []),
        (KAGGLE_TEST, {}, ["1.jpg", "2.jpg"]),
        (KAGGLE | KAGGLE_TEST, {"cat.0.jpg": 0, "cat.1.jpg": 0, "dog.0.jpg": 1}, ["1.jpg", "2.jpg"]),
        (MICROSOFT, {"Cat/0.jpg": 0, "Dog/0.jpg": 1}, []),
        ({"CATS/a.jpg": JPEG, "dogs/b.jpg": JPEG}, {"a.jpg": 0, "b.jpg": 1}, []),
        (
            {"train/cats/a.jpg": JPEG, "train/dogs/b.jpg": JPEG, "validation/cats/a.jpg": JPEG},
            {"train/cats/a.jpg": 0, "train/dogs/b.jpg": 1},  # The third is in validation-*.
            [],
        ),
    ],
)
def test_layouts(convert, tmp_path, make, files, train, test):
    junk = {"__MACOSX/cat.9.jpg": JPEG, "._cat.8.jpg": JPEG, ".DS_Store": b"x", "train/Thumbs.db": b"x"}
    out = convert(make(tmp_path / "in.zip", files | junk))
    written = read_shards(out, "train")
    assert {photo_id: label for photo_id, (label, _) in written.items()} == train
    assert all(data == JPEG for _, data in written.values())
    assert read_shards(out, "test") == dict.fromkeys(test, (None, JPEG))
    assert set(bad_images(out)) == set(files) & {"readme[1].txt"}
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("cat.0.jpg", 0),
        ("DOG_1.JPG", 1),
        ("dog-1.jpg", 1),
        ("cat1.jpg", 0),
        ("Dog (3).png", 1),
        ("category.jpg", None),
        ("dogma/1.jpg", None),
        ("concat.1.jpg", None),
        ("Dog/x/1.jpg", 1),
        ("dogs/cat.1.jpg", 1),
    ],
)
def test_labels(path, label):
    assert converter.label_of(path) == label


def test_bad_images_are_listed(convert, tmp_path):
    files = {"cat.0.jpg": JPEG, "dog.0.jpg": encode(picture(), "PNG"), "dog.1.jpg": b"", "dog.2.jpg": JPEG[:-9]}
    out = convert(write_zip(tmp_path / "in.zip", files))
    assert set(read_shards(out, "train")) == {"cat.0.jpg", "dog.0.jpg"}
    assert [(name, action) for name, (action, _) in bad_images(out).items()] == [
        ("dog.0.jpg", "re-encoded"),
        ("dog.1.jpg", "skipped"),
        ("dog.2.jpg", "skipped"),
    ]


def test_bad_images_csv_quotes_names(convert, tmp_path):
    name = 'dog.1, the "good" one\n.jpg'
    out = convert(write_folder(tmp_path / "in", {"cat.0.jpg": JPEG, name: b"", "강아지/dog.2.jpg": b"<html>"}))
    assert (out / "bad_images.csv").read_bytes().decode() == (
        "file,action,reason\n"
        '"dog.1, the ""good"" one\n.jpg",skipped,empty file (0 bytes)\n'
        '강아지/dog.2.jpg,skipped,"HTML page, perhaps the error message of a download"\n'
    )


def test_split_and_order_do_not_depend_on_other_photos():
    def split(names):
        photos = [converter.Photo(name, None, converter.label_of(name), name) for name in names]
        return {key: [photo.id for photo in photos] for key, photos in converter.split_photos(photos, 10).items()}

    names = [f"{kind}.{i}.jpg" for kind in ("cat", "dog") for i in range(2000)]
    all_of_them, some = split(names), split(names[::3])
    assert 320 < len(all_of_them["validation"]) < 480
    for key in ("train", "validation"):
        assert some[key] == [name for name in all_of_them[key] if name in set(names[::3])]
    cats = [name.startswith("cat") for name in all_of_them["train"]]
    assert all(0.35 < np.mean(cats[i : i + 200]) < 0.65 for i in range(0, 3600, 200))
    # This split was published. It must never change.
    assert split([f"cat.{i}.jpg" for i in range(20)])["validation"] == ["cat.4.jpg", "cat.15.jpg", "cat.17.jpg"]


def test_same_input_same_bytes(convert, tmp_path):
    files = {f"{kind}.{i}.jpg": jpeg(seed=i) for kind in ("cat", "dog") for i in range(20)}
    files |= {f"dog.{i}.jpg": encode(picture(colour=(i, i, i)), "PNG") for i in range(20, 25)}
    source = write_zip(tmp_path / "in.zip", files)
    folder = write_folder(tmp_path / "in", dict(reversed(files.items())))
    first = convert(source, tmp_path / "a", validation_percent=20, examples_per_shard=8, num_threads=1)
    second = convert(folder, tmp_path / "b", validation_percent=20, examples_per_shard=8, num_threads=5)
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    num_train = len(read_shards(first, "train"))
    assert num_train + len(read_shards(first, "validation")) == 45
    assert f"train-00000-of-{-(-num_train // 8):05d}" in names
    # By default, protobuf's order of the features differs from process to process.
    raw = next(tf.data.TFRecordDataset(str(first / names[1])).as_numpy_iterator())
    positions = [raw.index(name.encode()) for name in (tfrecords.LABEL, tfrecords.IMAGE, tfrecords.FILENAME)]
    assert positions == sorted(positions)


def test_memory_is_bounded():
    waiting, most = 0, 0

    def count(item):
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        return item

    with converter.ThreadPoolExecutor(2) as pool:
        for _ in converter._map_in_order(pool, count, range(100), 8):
            waiting -= 1
    assert most <= 8


def test_names_from_macos_and_windows_get_the_same_ids(convert, tmp_path):
    decomposed = "dog.\u1102\u1161.jpg"  # 나, as macOS writes it.
    folder = write_folder(tmp_path / "folder", {"dog.1.jpg": JPEG, decomposed: JPEG})
    with open(os.fsencode(folder) + b"/cat." + "나비".encode("cp949") + b".jpg", "wb") as file:
        file.write(JPEG)
    assert set(read_shards(convert(folder), "train")) == {"cat.나비.jpg", "dog.1.jpg", "dog.나.jpg"}


def test_names_that_lead_out_of_the_folder_are_skipped(convert, tmp_path):
    files = {"cat.0.jpg": JPEG, "../cat.1.jpg": JPEG, "/cat.2.jpg": JPEG, "C:\\cat.3.jpg": JPEG, "./dog.0.jpg": JPEG}
    out = convert(write_zip(tmp_path / "in.zip", files | {"dog.0.jpg": b"the same name again"}))
    assert read_shards(out, "train") == {"cat.0.jpg": (0, JPEG), "dog.0.jpg": (1, JPEG)}
    assert {name: reason.split(" (")[0] for name, (_, reason) in bad_images(out).items()} == {
        "../cat.1.jpg": "the name is empty or leads out of the folder",
        "/cat.2.jpg": "the name is empty or leads out of the folder",
        "C:/cat.3.jpg": "the name is empty or leads out of the folder",
        "dog.0.jpg": "a second file of this name",
    }


def test_links_and_special_files(convert, tmp_path):
    folder = write_folder(tmp_path / "in", {"real/1.jpg": JPEG, "dog/2.jpg": JPEG})
    (folder / "cat").symlink_to(folder / "real")
    os.mkfifo(folder / "dog" / "3.jpg")
    out = convert(folder)
    assert read_shards(out, "train") == {"1.jpg": (0, JPEG), "2.jpg": (1, JPEG)}
    assert set(bad_images(out)) == {"dog/3.jpg"}


def test_folders_may_have_brackets_and_spaces_in_their_names(convert, tmp_path):
    folder = write_folder(tmp_path / "my photos [0-9]", {"cat/a [1].jpg": JPEG, "dog/b*.jpg": JPEG})
    out = convert(folder, tmp_path / "my shards [0-9]")
    assert [path.name for path in out.iterdir()] == ["train-00000-of-00001"]
    with pytest.raises(UserError, match="already has 1 train shards, such as train-00000-of-00001"):
        convert(folder, out)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no picture in it"),
        ({".DS_Store": b"x"}, "no picture in it"),
        ({"dog.0.jpg": b"x", "cat.0.jpg": b"", "read.me": b"x"}, "none of the 3 files is a usable picture"),
        ({"siamese/1.jpg": JPEG, "poodle/1.jpg": JPEG}, "poodle and siamese; name them cat and dog"),
        ({"in/cat/1.jpg": JPEG, "in/puppies/1.jpg": JPEG}, "name them cat and dog"),
    ],
)
def test_no_usable_input_is_an_error(convert, tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        convert(write_zip(tmp_path / "in.zip", files))
    out = tmp_path / "out"
    assert not out.exists() or [path.name for path in out.iterdir()] == ["bad_images.csv"]


def test_a_broken_source_leaves_no_output_folder(convert, tmp_path):
    (tmp_path / "in.zip").write_bytes(b"not a .zip")
    for name in ("in.zip", "missing.zip"):
        with pytest.raises(UserError, match=name):
            convert(tmp_path / name)
    assert not (tmp_path / "out").exists()


def test_older_shards_are_not_mixed_with_new_ones(convert, tmp_path):
    train = write_zip(tmp_path / "train.zip", KAGGLE)
    test = write_zip(tmp_path / "test1.zip", KAGGLE_TEST)
    microsoft = write_zip(tmp_path / "microsoft.zip", MICROSOFT)
    out = convert(train)
    convert(test)  # Another split: one folder may hold both.
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for images, split in ((train, "train"), (test, "test"), (microsoft, "train")):
        with pytest.raises(UserError, match=f"already has 1 {split} shards"):
            convert(images)
    # Without a suffix, it is known only at the end that this is a photo. Still, nothing is added.
    with pytest.raises(UserError, match="already has 1 test shards"):
        convert(write_zip(tmp_path / "no_suffix.zip", {"photo": JPEG}))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    for path in out.glob("train-*"):
        path.unlink()
    convert(microsoft)  # Its read-me has no label but is not a photo, so the test shards may stay.


@pytest.mark.parametrize(
    ("error", "expected"), [(KeyboardInterrupt, KeyboardInterrupt), (OSError(28, "No space left on device"), UserError)]
)
def test_a_failed_run_leaves_no_shards(convert, tmp_path, monkeypatch, error, expected):
    source = write_zip(tmp_path / "in.zip", {f"cat.{i}.jpg": JPEG for i in range(6)})
    replace, moved = kit_files.replace, []

    def fail_at_the_second_move(temporary, path):
        if os.path.dirname(path) == str(tmp_path / "out"):
            moved.append(path)
            if len(moved) == 2:
                raise error
        replace(temporary, path)

    monkeypatch.setattr(kit_files, "replace", fail_at_the_second_move)
    with pytest.raises(expected):
        convert(source, examples_per_shard=2)
    assert len(moved) == 2
    assert not list((tmp_path / "out").iterdir())


def test_warnings_of_a_class_without_photos_and_an_empty_validation_split(convert, tmp_path, caplog):
    convert(write_zip(tmp_path / "in.zip", {"cat.0.jpg": JPEG}), validation_percent=0)
    assert "no dog at all" in caplog.text
    caplog.clear()
    convert(write_zip(tmp_path / "two.zip", {"cat.0.jpg": JPEG, "dog.0.jpg": JPEG}), tmp_path / "two", 1)
    assert "no photo fell into validation" in caplog.text
    assert "no dog" not in caplog.text


@pytest.mark.slow
def test_the_script(run_script, fails_in_one_line, tmp_path):
    source = write_zip(tmp_path / "in.zip", KAGGLE | {"train/dog.1.jpg": JPEG[:-50]})
    arguments = (f"--images={source}", f"--output_dir={tmp_path}/out", "--validation_percent=0")
    process = run_script("convert_images_to_tfrecords", *arguments)
    assert "train: 2 cats, 1 dog in 1 file\n" in process.stderr
    assert "0 re-encoded, 1 skipped" in process.stderr
    assert f"/train.py --train_data_pattern='{tmp_path}/out/train-*' --train_dir=" in process.stderr
    assert "Premature end" not in process.stderr
    assert "already has 1 train shards" in fails_in_one_line("convert_images_to_tfrecords", *arguments)


@pytest.mark.parametrize(
    ("files", "script", "flag"),
    [(KAGGLE, "train.py", "train_data_pattern"), (KAGGLE_TEST, "inference.py", "input_data_pattern")],
)
def test_the_next_command_can_be_pasted(convert, tmp_path, monkeypatch, caplog, files, script, flag):
    caplog.set_level("INFO", logger="absl")
    (tmp_path / "my kit").symlink_to(REPOSITORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["my kit/cats_vs_dogs/convert_images_to_tfrecords.py"])
    out = convert(write_zip(tmp_path / "in.zip", files), tmp_path / "it's [0-9] mine")
    command = next(message for message in caplog.messages if message.startswith("next: "))
    python, path, data, _ = shlex.split(command.removeprefix("next: "))
    assert (python, path) == (utils.python_command(), f"my kit/cats_vs_dogs/{script}")
    name, pattern = data.split("=", 1)
    assert name == f"--{flag}"
    assert kit_files.list_files(pattern, flag) == glob.glob(f"{glob.escape(str(out))}/*-of-*") != []


@pytest.mark.parametrize(("given", "missing"), [("output_dir", "images"), ("images", "output_dir")])
def test_empty_flags_are_errors(fails_in_one_line, tmp_path, given, missing):
    message = fails_in_one_line("convert_images_to_tfrecords", f"--{given}={tmp_path}")
    assert f"--{missing}=: must not be empty; name a folder" in message
    assert f"such as --{missing}=" in message
