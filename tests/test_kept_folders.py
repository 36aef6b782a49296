"""Folders in the cache: complete or absent, kept while they are used, and the oldest make room."""

import fcntl
import os
from pathlib import Path

import pytest

from cats_vs_dogs import kept_folders


def writer(text):
    def write(folder):
        with open(os.path.join(folder, "text"), "w") as file:
            file.write(text)

    return write


def make(folder, text="new"):
    kept_folders.make(str(folder), writer(text))
    return folder


def test_a_folder_is_made_once(tmp_path):
    folder = make(tmp_path / "a" / "b")
    assert (make(folder, "newer") / "text").read_text() == "new"
    assert os.listdir(tmp_path / "a") == ["b"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_folder_is_absent(tmp_path, error):
    def write(folder):
        writer("half")(folder)
        raise error

    with pytest.raises(error):
        kept_folders.make(str(tmp_path / "a"), write)
    assert not list(tmp_path.iterdir())


def test_a_damaged_folder_is_replaced(tmp_path):
    folder = make(tmp_path / "a", "damaged")
    kept_folders.make(str(folder), writer("new"), lambda path: "damaged" not in Path(path, "text").read_text())
    assert (folder / "text").read_text() == "new" and os.listdir(tmp_path) == ["a"]


def test_the_slower_of_two_processes_uses_the_folder_of_the_faster(tmp_path):
    def write_and_be_overtaken(folder):
        writer("slower")(folder)
        make(tmp_path / "a", "faster")

    kept_folders.make(str(tmp_path / "a"), write_and_be_overtaken)
    assert (tmp_path / "a" / "text").read_text() == "faster" and os.listdir(tmp_path) == ["a"]


def test_the_least_recently_used_folders_make_room(tmp_path):
    for i, name in enumerate("abcd"):
        make(tmp_path / name, "x" * 10)
        os.utime(tmp_path / name, (i, i))
    assert kept_folders.hold(str(tmp_path / "a"))  # Now it is the newest.
    kept_folders.make_room(str(tmp_path), 5, 40)
    assert sorted(os.listdir(tmp_path)) == ["a", "c", "d"]
    os.utime(tmp_path / "a", (1, 1))
    kept_folders.make_room(str(tmp_path), 5, 10)  # The oldest is in use.
    assert os.listdir(tmp_path) == ["a"]
    kept_folders.make_room(str(tmp_path / "not there"), 5, 10)


def test_a_folder_that_another_process_is_deleting_is_not_held(tmp_path):
    folder = make(tmp_path / "a")
    deleting = os.open(folder, os.O_RDONLY)
    fcntl.flock(deleting, fcntl.LOCK_EX)  # Like `make_room`. A second descriptor excludes the first, as a process does.
    assert not kept_folders.hold(str(folder))
    os.close(deleting)
    assert kept_folders.hold(str(folder))


def test_a_folder_that_is_deleted_is_not_held(tmp_path):
    folder = make(tmp_path / "a")
    assert kept_folders.hold(str(folder)) and kept_folders.hold(str(folder))
    (folder / "text").unlink()
    folder.rmdir()
    assert not kept_folders.hold(str(folder))
    make(folder)
    assert kept_folders.hold(str(folder))
