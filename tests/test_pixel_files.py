"""Decoded pictures in files: epochs read them, the weights are those of the other ways, and no bad file is used."""

import errno
import os
import shutil
from collections import namedtuple

import numpy as np
import pytest
from absl import logging
from conftest import make_config, values_of, write_shards

from cats_vs_dogs import bad_examples, checkpoints, distribution, pixel_files, readers, train, training_tools
from cats_vs_dogs.pixel_files import PixelFiles
from cats_vs_dogs.utils import UserError

SIZE = 12


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    logging.set_verbosity(logging.INFO)  # The export of a model before may have changed it.
    return tmp_path / "cache" / "cats_vs_dogs" / "pixels"


def opened(pattern, action="fail", **reader_settings):
    reader = readers.CatsVsDogsFeatureReader(**{"image_size": SIZE, **reader_settings})
    return reader, bad_examples.open_shards(pattern, "train_data_pattern", reader, action, with_index=True)


def kept(folder):
    return sorted(folder.iterdir()) if folder.exists() else []


def assert_decoded(columns, reader, shards):
    for column, expected in zip(columns, readers.decode_all(reader, shards), strict=True):
        assert column.dtype == expected.dtype
        np.testing.assert_array_equal(column, expected)


def test_files_hold_what_is_decoded_and_serve_the_next_run(tmp_path, folder, caplog, monkeypatch):
    reader, shards = opened(write_shards(tmp_path, num_examples=150))
    files = PixelFiles(reader, shards)
    assert_decoded(files.columns(), reader, shards)
    (kept_folder,) = kept(folder)
    assert f"Decoded pictures of 150 examples are in {kept_folder}" in caplog.text
    assert files.num_bytes == 150 * (3 * SIZE**2 + 4)
    size = sum(path.stat().st_size for path in kept_folder.iterdir())
    assert files.num_bytes < size < files.num_bytes + 5000
    expected = readers.decode_all(reader, shards)
    monkeypatch.setattr(readers, "make_dataset", None)  # Nothing is decoded any more.
    monkeypatch.setattr(readers, "decoded_bytes", lambda *args: 0)
    for column, values in zip(PixelFiles(reader, shards).columns(), expected, strict=True):
        np.testing.assert_array_equal(column, values)
    assert f"Decoded pictures of 150 examples, made by an earlier run, are in {kept_folder}" in caplog.text


def test_batches_in_order_come_from_files(tmp_path):
    reader, shards = opened(write_shards(tmp_path, num_examples=21))
    decoded = PixelFiles(reader, shards).columns()
    for one, other in zip(
        readers.make_dataset(reader, shards, 8), readers.make_dataset(reader, shards, 8, decoded), strict=True
    ):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_the_weights_are_the_same_to_the_bit_wherever_pictures_stay(tmp_path, folder, caplog, monkeypatch):
    patterns = [write_shards(tmp_path, num_examples=40, bad=(3, 8)), write_shards(tmp_path, "validation", 9, first=90)]
    settings = {"augment": "flip_crop", "bad_examples": "skip"}
    said = {
        "none": "",
        "disk": "Cache: pictures are decoded once and stay in files (--cache=disk).",
        "auto": "Cache: pictures are decoded once and stay in files "
        "(0 MiB, more than a quarter of what is free in memory).",
    }
    found = {}
    for cache, line in said.items():
        if cache == "auto":
            monkeypatch.setattr("cats_vs_dogs.utils.free_memory", lambda: 1)
        caplog.clear()
        data = {"train_data_pattern": patterns[0], "eval_data_pattern": patterns[1], "cache": cache}
        own = {"train_dir": str(tmp_path / cache), "image_size": SIZE, "batch_size": 8, "num_epochs": 2, **settings}
        train.train(make_config(**data, **own), distribution.local_devices())
        assert line in caplog.text
        assert len(kept(folder)) == (0 if cache == "none" else 2)  # Those to evaluate on, too.
        found[cache] = values_of(checkpoints.require_checkpoint(str(tmp_path / cache)))
    assert caplog.text.count(" made by an earlier run, are in ") == 2
    for values in found.values():
        assert values.keys() == found["none"].keys()
        for name, value in values.items():
            np.testing.assert_array_equal(value, found["none"][name], err_msg=name)


def truncate(path):
    (path / "images.npy").write_bytes((path / "images.npy").read_bytes()[:-100])


def change(path):
    data = bytearray((path / "images.npy").read_bytes())
    data[500] ^= 1
    (path / "images.npy").write_bytes(data)


def empty(path):
    (path / "checksums.npy").write_bytes(b"")


def remove(path):
    (path / "labels.npy").unlink()


@pytest.mark.parametrize("harm", [truncate, change, empty, remove])
def test_damaged_files_are_made_again(tmp_path, folder, harm):
    reader, shards = opened(write_shards(tmp_path))
    PixelFiles(reader, shards).columns()
    harm(kept(folder)[0])
    assert_decoded(PixelFiles(reader, shards).columns(), reader, shards)
    (kept_folder,) = kept(folder)
    assert sorted(path.name for path in kept_folder.iterdir()) == [
        "checksums.npy",
        "ids.npy",
        "images.npy",
        "labels.npy",
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_file_is_not_used(tmp_path, folder, monkeypatch, error):
    reader, shards = opened(write_shards(tmp_path, num_examples=150))
    original = pixel_files._append

    def append(file, rows, num_rows):
        original(file, rows, num_rows)
        if file.tell() > 64 * SIZE**2 * 3:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(pixel_files, "_append", append)
        with pytest.raises(type(error) if isinstance(error, OSError) else error):
            PixelFiles(reader, shards).columns()
    assert not kept(folder)
    # What a killed process leaves: an unfinished folder under a name of its own.
    PixelFiles(reader, shards).columns()
    (kept_folder,) = kept(folder)
    unfinished = folder / f"{kept_folder.name}.abc"
    shutil.move(kept_folder, unfinished / "made")
    truncate(unfinished / "made")
    assert_decoded(PixelFiles(reader, shards).columns(), reader, shards)
    assert kept(folder) == [kept_folder, unfinished]


@pytest.mark.parametrize("read", [lambda *data: PixelFiles(*data).columns(), readers.decode_all])
@pytest.mark.parametrize("num_examples", [3, 30])
def test_shards_that_have_changed_since_they_were_counted(tmp_path, folder, read, num_examples):
    reader, shards = opened(write_shards(tmp_path, num_examples=20, num_shards=1))
    write_shards(tmp_path, num_examples=num_examples, num_shards=1)
    with pytest.raises(UserError, match=f"20 examples were counted at the start, and {num_examples} are read now: .*"):
        read(reader, shards)
    assert not kept(folder)


def test_what_files_depend_on(tmp_path, folder):
    pattern = write_shards(tmp_path)
    others = write_shards(tmp_path / "others", first=100)
    bad = write_shards(tmp_path / "bad", bad=(2,))
    cases = [opened(pattern), opened(pattern, image_size=13), opened(pattern, resize_method="legacy_bilinear")]
    cases += [opened(others), opened(bad, "skip")]
    for number, case in enumerate(cases):
        assert_decoded(PixelFiles(*case).columns(), *case)
        assert len(kept(folder)) == number + 1


def test_files_that_no_later_run_could_find_have_no_name(tmp_path, folder):
    """A reader of the user's own may read anything, and of large data not all examples are known."""

    class Inverted(readers.CatsVsDogsFeatureReader):
        def prepare_serialized_examples(self, serialized_examples, width=32, height=32):
            ids, images, labels = super().prepare_serialized_examples(serialized_examples, width, height)
            return ids, -images, labels

    _, shards = opened(write_shards(tmp_path))
    inverted = Inverted(image_size=SIZE)
    assert_decoded(PixelFiles(inverted, shards).columns(), inverted, shards)
    reader, without_index = readers.CatsVsDogsFeatureReader(image_size=SIZE), readers.Shards(shards.records)
    assert_decoded(PixelFiles(reader, without_index).columns(), reader, without_index)
    assert not kept(folder)


def test_there_is_room_for_a_quarter_of_what_is_free_and_up_to_the_limit(tmp_path, folder, monkeypatch):
    reader, shards = opened(write_shards(tmp_path))
    files = PixelFiles(reader, shards)
    usage = namedtuple("usage", "free")
    for free, has_room in ((4 * files.num_bytes, True), (4 * files.num_bytes - 1, False)):
        monkeypatch.setattr(pixel_files.shutil, "disk_usage", lambda path, free=free: usage(free))
        assert files.has_room() is has_room
    files.columns()
    assert files.has_room()  # They are there.
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setattr(pixel_files, "_MAX_KEPT_BYTES", files.num_bytes - 1)
    assert not PixelFiles(reader, shards).has_room()


def test_files_beyond_the_limit_are_not_kept_and_a_full_disk_is_said(tmp_path, folder, monkeypatch):
    reader, shards = opened(write_shards(tmp_path))
    monkeypatch.setattr(pixel_files, "_MAX_KEPT_BYTES", 10)
    assert_decoded(PixelFiles(reader, shards).columns(), reader, shards)
    assert not kept(folder)
    monkeypatch.setattr(pixel_files.shutil, "disk_usage", lambda path: namedtuple("usage", "free")(3 * 2**20))
    monkeypatch.setattr(readers, "decoded_bytes", lambda *args: 5 * 2**20)
    with pytest.raises(UserError, match="^--cache=disk: .*/pixels: 5 MiB are needed, and 3 MiB are free; set XDG_CACH"):
        training_tools.keep_pictures("disk", reader, shards, 2)


def test_the_oldest_files_make_room(tmp_path, folder, monkeypatch):
    cases = [opened(write_shards(tmp_path / str(i), first=100 * i)) for i in range(3)]
    PixelFiles(*cases[0]).columns()
    (oldest,) = kept(folder)
    os.close(pixel_files.kept_folders._held.pop(str(oldest)))  # As if that run had ended.
    size = sum(path.stat().st_size for path in oldest.iterdir())
    monkeypatch.setattr(pixel_files, "_MAX_KEPT_BYTES", int(2.5 * size))
    os.utime(oldest, (1, 1))
    for case in cases[1:]:
        PixelFiles(*case).columns()
    assert len(kept(folder)) == 2 and oldest not in kept(folder)


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    reader, shards = opened(write_shards(tmp_path))
    message = f"decoded pictures cannot be written to {tmp_path}/file/cats_vs_dogs/pixels: .*; set XDG_CACHE_HOME"
    with pytest.raises(UserError, match=f"^--cache=disk: {message} .*, or pass --cache=none$"):
        training_tools.keep_pictures("disk", reader, shards, 2)
    monkeypatch.setattr("cats_vs_dogs.utils.free_memory", lambda: 1)
    assert training_tools.keep_pictures("auto", reader, shards, 2) is None
    assert "Cache: pictures are decoded in each epoch (0 MiB, more than a quarter of what is free in" in caplog.text
    monkeypatch.setattr(PixelFiles, "has_room", lambda files: True)  # Another program has taken it meanwhile.
    assert training_tools.keep_pictures("auto", reader, shards, 2) is None
    assert "they are decoded in each epoch; set XDG_CACHE_HOME" in caplog.text
