"""Summaries of steps that are done again are taken back."""

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cats_vs_dogs import event_files


def steps_in(folder):
    """The steps of each tag, sorted: files of one second may be read in another order than they were written in."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return {tag: sorted(event.step for event in events.Tensors(tag)) for tag in events.Tags()["tensors"]}


def write(folder, steps):
    with tf.summary.create_file_writer(str(folder)).as_default():
        for step in steps:
            tf.summary.scalar("loss", 1 / step, step=step)
            tf.summary.histogram("kernel", [1.0, 2.0], step=step)


@pytest.mark.parametrize("last_step", [-1, 0, 15, 40])
def test_later_steps_are_taken_back(tmp_path, last_step):
    write(tmp_path, [10, 20, 30])
    write(tmp_path, [40, 50])
    (tmp_path / "notes.txt").write_text("mine")
    event_files.cut(str(tmp_path), last_step)
    kept = [step for step in (10, 20, 30, 40) if step <= last_step]
    assert steps_in(tmp_path) == ({"loss": kept, "kernel": kept} if kept else {})
    assert len(list(tmp_path.glob("events*"))) == (0 if last_step < 0 else 2)  # What is empty is removed.
    write(tmp_path, [99])
    assert steps_in(tmp_path)["loss"] == [*kept, 99]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.glob("*.tmp"))


def test_a_file_that_breaks_off_keeps_what_is_whole(tmp_path):
    write(tmp_path, [10, 20])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])  # Within the last histogram.
    event_files.cut(str(tmp_path), 20)
    assert steps_in(tmp_path) == {"loss": [10, 20], "kernel": [10]}


def test_what_needs_no_cut_is_not_written_again(tmp_path):
    write(tmp_path, [10, 20])
    (path,) = tmp_path.iterdir()
    before = path.stat()
    event_files.cut(str(tmp_path), 20)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
