"""Event files: what TensorBoard reads from them, errors of writing, memory, and rewinding."""

import subprocess
import sys
import textwrap
import time
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cats_vs_dogs import event_files
from cats_vs_dogs.event_files import EventFile


def shown_in(folder):
    """For each tag the metadata, the steps and the values, sorted by step: TensorBoard reads files by name."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    shown = {}
    for tag in events.Tags()["tensors"]:
        found = sorted(events.Tensors(tag), key=lambda event: event.step)
        values = [tf.make_ndarray(event.tensor_proto) for event in found]
        metadata = events.SummaryMetadata(tag).SerializeToString()
        shown[tag] = metadata, [event.step for event in found], [(value.dtype, value.tolist()) for value in values]
    return shown


def steps_in(folder):
    return {tag: steps for tag, (_, steps, _) in shown_in(folder).items()}


def write(folder, steps, suffix="", tag="loss"):
    events = EventFile(str(folder), suffix)
    for step in steps:
        events.scalar(tag, 1 / step, step)
        events.histogram(f"kernel_{tag}", np.array([1.0, 2.0]), step)
    return events


def test_tensorboard_shows_what_the_ops_of_tensorflow_write(tmp_path):
    values = np.random.default_rng(0).normal(size=[50, 20]).astype(np.float32)
    events = EventFile(str(tmp_path / "ours"))
    with tf.summary.create_file_writer(str(tmp_path / "tensorflow's")).as_default(7):
        tf.summary.scalar("loss", 0.3)
        tf.summary.text("flags", "| ö |")
    events.scalar("loss", 0.3, 7)
    events.text("flags", "| ö |", 7)
    with tf.summary.create_file_writer(str(tmp_path / "tensorflow's")).as_default(7):
        for tag, one in (("kernel", values), ("equal", np.full([2, 3], 0.5)), ("none", np.zeros(0))):
            tf.summary.histogram(tag, one)
            events.histogram(tag, one, 7)
        tf.summary.image("photo", np.zeros([1, 2, 3, 3], np.uint8))
    events.image("photo", tf.io.encode_png(np.zeros([2, 3, 3], np.uint8)).numpy(), width=3, height=2, step=7)
    assert shown_in(tmp_path / "ours") == shown_in(tmp_path / "tensorflow's")


def test_a_file_appears_with_its_first_event_and_each_event_at_once(tmp_path):
    folder = tmp_path / "a" / "b"
    events = EventFile(str(folder), ".train")
    events.flush()
    assert events.exists() and not (tmp_path / "a").exists()
    for step in (1, 2, 3):
        events.scalar("loss", 0.5, step)
        assert steps_in(folder) == {"loss": list(range(1, step + 1))}
    (path,) = folder.iterdir()
    assert path.name.startswith(f"events.out.tfevents.{int(time.time()) // 100}") and path.suffix == ".train"
    first = next(iter(tf.compat.v1.train.summary_iterator(str(path))))
    assert first.file_version == "brain.Event:2"
    path.unlink()
    assert not events.exists()


def test_two_files_of_one_second_have_two_names(tmp_path):
    write(tmp_path, [1])
    write(tmp_path, [2])
    assert steps_in(tmp_path)["loss"] == [1, 2] and len(list(tmp_path.iterdir())) == 2


def test_object_stores_are_not_asked_at_each_event(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(event_files.files, "is_remote", lambda path: True)
    monkeypatch.setattr(event_files.files, "exists", lambda path: tf.io.gfile.exists(path))
    events = EventFile(str(tmp_path))
    events.scalar("loss", 0.5, 1)
    assert events.exists()  # The file is made at once, which shows whether it can be written.
    now += 29
    events.scalar("loss", 0.5, 2)
    assert steps_in(tmp_path) == {}
    now += 1
    events.scalar("loss", 0.5, 3)
    assert steps_in(tmp_path) == {"loss": [1, 2, 3]}
    events.scalar("loss", 0.5, 4)
    events.flush()
    assert steps_in(tmp_path) == {"loss": [1, 2, 3, 4]}


def test_a_full_disk_is_an_error_at_once(tmp_path):
    code = f"""
        import resource
        import numpy as np
        from tensorflow import errors
        from cats_vs_dogs import event_files
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        events = event_files.EventFile({str(tmp_path)!r})
        step = 0
        try:
            for step in range(100):
                events.histogram("kernel", np.arange(99), step)
        except (OSError, errors.OpError) as error:
            print("step", step, type(error).__name__)
    """
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert process.stdout.split()[:2] == ["step", "6"], process.stdout  # About 790 bytes each.


def test_no_default_writer_is_set(tmp_path):
    write(tmp_path, [1])
    assert not tf.summary.scalar("stray", 1.0, step=1)
    assert set(steps_in(tmp_path)) == {"loss", "kernel_loss"}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8, np.int64])
def test_buckets_are_those_of_numpy(dtype):
    values = (np.random.default_rng(0).normal(size=[700, 1000]) * 9 + 50).astype(dtype)
    counts, edges = np.histogram(values.astype(np.float64), 30)
    for given in (values, [values[:300], values[300:301], values[:0], values[301:]], values[:, ::-1]):
        buckets = event_files.make_buckets(given)
        np.testing.assert_array_equal(buckets, np.stack([edges[:-1], edges[1:], counts], axis=1))


def test_buckets_of_values_with_counts():
    values, counts = np.array([[0.0, 0.5], [1.0, 7.0]]), np.array([3, 1, 0, 2])
    repeated = event_files.make_buckets(np.repeat(values, counts), num_buckets=7)
    np.testing.assert_array_equal(event_files.make_buckets(values, counts, 7), repeated)
    assert event_files.make_buckets(np.array([2.0]), np.array([5])).tolist() == [[2, 2, 0]] * 29 + [[2, 2, 5]]


def test_buckets_leave_out_what_is_not_finite():
    values = np.array([np.nan, -1, np.inf, 3, -np.inf], np.float32)
    np.testing.assert_array_equal(event_files.make_buckets(values), event_files.make_buckets(np.array([-1.0, 3.0])))
    assert not event_files.make_buckets(np.array([np.nan])).any()


def test_buckets_of_values_that_differ_by_less_than_30_floats():
    values = np.array([1.0, np.nextafter(1.0, 2.0)])
    assert event_files.make_buckets(values)[:, 2].sum() == 2


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_a_histogram_takes_little_memory(tmp_path, dtype):
    values = np.ones([2**26 // np.dtype(dtype).itemsize], dtype)  # 64 MB
    values[0] = 0
    events = EventFile(str(tmp_path))
    tracemalloc.start()
    events.histogram("input", values, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24


@pytest.mark.parametrize("last_step", [-1, 0, 15, 40])
@pytest.mark.parametrize("folder", ["run", "a[1]*?"])
def test_later_steps_are_removed(tmp_path, folder, last_step):
    folder = tmp_path / folder
    write(folder, [10, 20, 30])
    write(folder, [40, 50])
    (folder / "notes.txt").write_text("mine")
    event_files.rewind(str(folder), last_step)
    kept = [step for step in (10, 20, 30, 40) if step <= last_step]
    assert steps_in(folder) == ({"loss": kept, "kernel_loss": kept} if kept else {})
    assert len(list(folder.glob("events*"))) == (0 if last_step < 0 else 2)  # A file without events is removed.
    write(folder, [99])
    assert steps_in(folder)["loss"] == [*kept, 99]
    assert (folder / "notes.txt").read_text() == "mine"
    assert not list(folder.glob("*.tmp"))


def test_a_pattern_in_a_folder_name_does_not_reach_other_folders(tmp_path):
    write(tmp_path / "a1", [10, 20])
    write(tmp_path / "a[1]", [10, 20])
    event_files.rewind(str(tmp_path / "a[1]"), 10)
    assert steps_in(tmp_path / "a1")["loss"] == [10, 20]
    assert steps_in(tmp_path / "a[1]")["loss"] == [10]


@pytest.mark.parametrize(("suffix", "other"), [("", ".train"), (".train", "")])
def test_files_with_another_suffix_stay(tmp_path, suffix, other):
    write(tmp_path, [10, 20], suffix, "mine")
    write(tmp_path, [10, 20], other, "theirs")
    event_files.rewind(str(tmp_path), 10, suffix)
    steps = steps_in(tmp_path)
    assert (steps["mine"], steps["theirs"]) == ([10], [10, 20])
    event_files.rewind(str(tmp_path), -1, suffix)
    assert set(steps_in(tmp_path)) == {"theirs", "kernel_theirs"}


def test_files_of_older_versions_have_no_suffix(tmp_path):
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        for step in (10, 20):
            tf.summary.scalar("loss", 0.5, step)
    event_files.rewind(str(tmp_path), -1, ".train")
    assert steps_in(tmp_path)["loss"] == [10, 20]
    event_files.rewind(str(tmp_path), 10)
    assert steps_in(tmp_path)["loss"] == [10]


def test_an_object_is_replaced_by_its_upload(tmp_path, monkeypatch):
    write(tmp_path, [10, 20])
    names = [path.name for path in tmp_path.iterdir()]
    monkeypatch.setattr(event_files.files, "is_remote", lambda path: True)
    monkeypatch.setattr(event_files.files, "replace", None)  # A rename would be a copy.
    event_files.rewind(str(tmp_path), 10)
    assert steps_in(tmp_path)["loss"] == [10] and [path.name for path in tmp_path.iterdir()] == names
    event_files.rewind(str(tmp_path), -1)
    assert not list(tmp_path.iterdir())


def test_an_incomplete_file_keeps_its_complete_events(tmp_path):
    write(tmp_path, [10, 20])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])  # Within the last histogram.
    event_files.rewind(str(tmp_path), 20)
    assert steps_in(tmp_path) == {"loss": [10, 20], "kernel_loss": [10]}


def test_a_file_without_later_steps_is_not_rewritten(tmp_path):
    write(tmp_path, [10, 20])
    (path,) = tmp_path.iterdir()
    before = path.stat()
    event_files.rewind(str(tmp_path), 20)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_rewinding_a_folder_that_does_not_exist_does_nothing(tmp_path):
    event_files.rewind(str(tmp_path / "missing"), 3)
    assert not (tmp_path / "missing").exists()
