"""Tests of the sample set: what is drawn, how hard it is to learn, and that it is complete or absent."""

import glob
import io
import itertools
import logging
import os
import subprocess
import sys
import tempfile
import types

import numpy as np
import pytest
import tensorflow as tf
from conftest import REPOSITORY
from PIL import Image

from cats_vs_dogs import sample_data, tfrecords
from cats_vs_dogs.labels import CLASS_NAMES
from cats_vs_dogs.utils import UserError

FEATURES = {
    tfrecords.IMAGE: tf.io.FixedLenFeature([], tf.string),
    tfrecords.FILENAME: tf.io.FixedLenFeature([], tf.string),
    tfrecords.LABEL: tf.io.FixedLenFeature([], tf.int64, default_value=-1),
}


def read(pattern):
    """Returns the encoded pictures, the names and the labels (-1: no label) of shards, in order."""
    records = list(tf.data.TFRecordDataset(sorted(glob.glob(pattern))).as_numpy_iterator())
    examples = tf.io.parse_example(records, FEATURES)
    names = [name.decode() for name in examples[tfrecords.FILENAME].numpy()]
    return examples[tfrecords.IMAGE].numpy().tolist(), names, examples[tfrecords.LABEL].numpy()


def size_of(encoded):
    return Image.open(io.BytesIO(encoded)).size


@pytest.fixture(scope="module")
def full_set(session_cache):
    """Returns the whole sample set: {split: (pictures, names, labels)}."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(session_cache))
        return {split: read(sample_data.pattern(split)) for split in sample_data.NUM_EXAMPLES}


@pytest.fixture
def small_set(monkeypatch, tmp_path):
    """Reduces the set to 24 pictures, and returns the folder that holds the cache."""
    for split, number in {"train": 12, "validation": 6, "test": 6}.items():
        monkeypatch.setitem(sample_data.NUM_EXAMPLES, split, number)
    monkeypatch.setattr(sample_data, "_EXAMPLES_PER_SHARD", 5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "cache" / "cats_vs_dogs"


def forbid_drawing(monkeypatch, error=AssertionError, after=0):
    """Makes `draw` raise an error after `after` pictures."""
    draw, calls = sample_data.draw, []

    def broken_draw(label, rng):
        calls.append(label)
        if len(calls) > after:
            raise error
        return draw(label, rng)

    monkeypatch.setattr(sample_data, "draw", broken_draw)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_half_are_cats_and_half_are_dogs_in_random_order(full_set, split):
    _, names, labels = full_set[split]
    assert len(labels) == sample_data.NUM_EXAMPLES[split]
    assert np.mean(labels == 1) == np.mean(labels == 0) == 0.5
    assert abs(np.mean(labels[1:] == labels[:-1]) - 0.5) < 0.1
    assert [name.split(".")[0] for name in names] == [CLASS_NAMES[label] for label in labels]


def test_names_are_unique_over_train_and_validation_as_in_kaggles_download(full_set):
    names = set(full_set["train"][1] + full_set["validation"][1])
    each = (sample_data.NUM_EXAMPLES["train"] + sample_data.NUM_EXAMPLES["validation"]) // 2
    assert names == {f"{animal}.{number}.jpg" for animal in CLASS_NAMES for number in range(each)}


def test_test_pictures_have_numbers_and_no_labels(full_set):
    _, names, labels = full_set["test"]
    assert names == [f"{number}.jpg" for number in range(1, sample_data.NUM_EXAMPLES["test"] + 1)]
    assert set(labels) == {-1}


def test_pictures_are_unique_jpegs_of_many_sizes(full_set):
    encoded = [picture for split in full_set.values() for picture in split[0]]
    assert all(picture.startswith(b"\xff\xd8") for picture in encoded)
    assert len(set(encoded)) == len(encoded) == sum(sample_data.NUM_EXAMPLES.values())
    sizes = np.array([size_of(picture) for picture in encoded])
    assert len(np.unique(sizes, axis=0)) > 1000
    assert sizes.min() == 48 and sizes.max() == 128


def test_another_process_draws_the_same_bytes():
    code = """if True:
        import sys
        from cats_vs_dogs import sample_data
        for split in sample_data.NUM_EXAMPLES:
            for _, picture in zip(range(10), sample_data._pictures(split)):
                sys.stdout.buffer.write(picture[2])
    """
    output = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE).stdout
    drawn = [itertools.islice(sample_data._pictures(split), 10) for split in sample_data.NUM_EXAMPLES]
    assert output == b"".join(picture for pictures in drawn for *_, picture in pictures)


@pytest.mark.parametrize("label", [0, 1])
def test_the_picture_depends_only_on_the_generator(label):
    first, again, other = (sample_data.draw(label, np.random.default_rng(seed)).tobytes() for seed in (1, 1, 2))
    assert first == again != other


def test_a_linear_model_does_better_than_chance_and_leaves_room_for_better_models(full_set):
    def pixels(split):
        small = [
            Image.open(io.BytesIO(encoded)).resize((32, 32), Image.Resampling.BOX) for encoded in full_set[split][0]
        ]
        flat = np.stack([np.asarray(picture, np.float32).ravel() / 127.5 - 1 for picture in small])
        return np.hstack([flat, np.ones((len(flat), 1), np.float32)])

    train, targets = pixels("train"), full_set["train"][2] * 2.0 - 1
    weights = np.linalg.solve(train.T @ train + 300 * np.eye(train.shape[1]), train.T @ targets)
    accuracy = np.mean((pixels("validation") @ weights > 0) == full_set["validation"][2])
    assert 0.6 < accuracy < 0.95


def test_the_cache_is_drawn_once(small_set, monkeypatch, caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        pattern = sample_data.pattern("train")
    assert pattern == os.path.join(sample_data.cache_folder(), "train-*")
    assert [record.getMessage() for record in caplog.records] == [
        f"Drawing the sample set (24 cats and dogs) in {sample_data.cache_folder()}, once"
    ]
    forbid_drawing(monkeypatch)
    assert sample_data.pattern("train") == pattern
    assert len(read(pattern)[0]) == 12
    assert len(read(sample_data.pattern("validation"))[0]) == len(read(sample_data.pattern("test"))[0]) == 6
    assert os.listdir(small_set) == [os.path.basename(sample_data.cache_folder())]


def test_a_relative_xdg_cache_home_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert os.path.dirname(sample_data.cache_folder()) == str(tmp_path / ".cache" / "cats_vs_dogs")


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interrupted_drawing_leaves_nothing(small_set, monkeypatch, error):
    with monkeypatch.context() as patch:
        forbid_drawing(patch, error, after=15)
        with pytest.raises(error):
            sample_data.pattern("train")
    assert os.listdir(small_set) == []
    assert len(read(sample_data.pattern("train"))[0]) == 12


def test_a_cache_that_lost_a_shard_is_drawn_again(small_set):
    shards = sorted(glob.glob(sample_data.pattern("train")))
    os.remove(shards[1])
    assert sorted(glob.glob(sample_data.pattern("train"))) == shards
    assert os.listdir(small_set) == [os.path.basename(sample_data.cache_folder())]


def test_the_slower_of_two_processes_uses_the_set_of_the_faster(small_set, monkeypatch):
    write_shards = sample_data._write_shards

    def write_shards_and_be_overtaken(folder):
        write_shards(folder)
        monkeypatch.setattr(sample_data, "_write_shards", write_shards)
        sample_data._draw_into_cache(sample_data.cache_folder())
        inodes.append(os.stat(sample_data.cache_folder()).st_ino)

    inodes = []
    monkeypatch.setattr(sample_data, "_write_shards", write_shards_and_be_overtaken)
    sample_data.pattern("train")
    assert inodes == [os.stat(sample_data.cache_folder()).st_ino]
    assert os.listdir(small_set) == [os.path.basename(sample_data.cache_folder())]


def test_a_cache_that_cannot_be_written_falls_back_to_temporary_files(small_set, monkeypatch, caplog, tmp_path):
    (tmp_path / "cache").write_text("a file, so that even root cannot make a folder in it")
    pattern = sample_data.pattern("test")
    assert pattern.startswith(str(tmp_path / "temporary"))
    assert len(read(pattern)[0]) == 6
    assert f"cannot be kept in {sample_data.cache_folder()}" in caplog.text
    forbid_drawing(monkeypatch)
    assert sample_data.pattern("test") == pattern


@pytest.mark.parametrize("temporary_folder_exists", [True, False])
def test_when_nothing_can_be_written_the_error_says_what_to_do(
    small_set, monkeypatch, tmp_path, temporary_folder_exists
):
    def no_temporary_folder():
        raise FileNotFoundError("No usable temporary directory found")

    (tmp_path / "cache").write_text("a file")
    (tmp_path / "temporary").rmdir()
    (tmp_path / "temporary").write_text("a file")
    if not temporary_folder_exists:
        monkeypatch.setattr(tempfile, "gettempdir", no_temporary_folder)
    with pytest.raises(UserError, match="set XDG_CACHE_HOME to a folder"):
        sample_data.pattern("train")


def test_a_full_disk_is_a_user_error_and_leaves_nothing(small_set, monkeypatch):
    def fail(path, examples):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tfrecords, "write_shard", fail)
    with pytest.raises(UserError):
        sample_data.pattern("train")
    assert os.listdir(small_set) == []
    assert [os.listdir(folder) for folder in glob.glob(f"{tempfile.gettempdir()}/*")] == [[]]


def draw_into(monkeypatch, folder, as_images=False):
    """Does what the command does with these flags."""
    monkeypatch.setattr(sample_data, "FLAGS", types.SimpleNamespace(output_dir=str(folder), as_images=as_images))
    sample_data.main()


def test_the_command_writes_shards_or_images_as_kaggles_download(small_set, monkeypatch, tmp_path):
    draw_into(monkeypatch, tmp_path / "new" / "folder")
    draw_into(monkeypatch, tmp_path / "images", as_images=True)
    in_shards = {split: read(f"{tmp_path}/new/folder/{split}-*") for split in sample_data.NUM_EXAMPLES}
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == [
        *(f"test-0000{index}-of-00002" for index in range(2)),
        *(f"train-0000{index}-of-00003" for index in range(3)),
        *(f"validation-0000{index}-of-00002" for index in range(2)),
    ]
    assert sorted(os.listdir(tmp_path / "images")) == ["test1", "train"]
    assert set(os.listdir(tmp_path / "images" / "train")) == set(in_shards["train"][1] + in_shards["validation"][1])
    assert set(os.listdir(tmp_path / "images" / "test1")) == set(in_shards["test"][1])
    assert (tmp_path / "images" / "test1" / "5.jpg").read_bytes() == in_shards["test"][0][4]


def test_the_command_needs_an_empty_folder_on_this_machine(fails_in_one_line, monkeypatch, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        draw_into(monkeypatch, tmp_path)
    with pytest.raises(UserError, match="cannot be written to"):
        draw_into(monkeypatch, tmp_path / "mine.txt")
    for arguments in ([], ["--output_dir=gs://bucket/samples"]):
        assert "name a folder on this machine, such as --output_dir=samples" in fails_in_one_line(
            "sample_data", *arguments
        )
    assert os.listdir(tmp_path) == ["mine.txt"]
