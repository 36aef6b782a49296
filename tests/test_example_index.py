"""What training data can teach: classes, their sizes and other labels than 0 and 1."""

import pytest
import tensorflow as tf
from conftest import jpeg
from test_bad_examples import record_with
from test_readers import READER

from cats_vs_dogs import example_index, readers, tfrecords
from cats_vs_dogs.bad_examples import open_shards
from cats_vs_dogs.utils import UserError

JPEGS = [jpeg(16, 16, seed=seed) for seed in range(4)]


def write(folder, *labels_of_shards):
    """Writes a shard for each list of labels; returns their pattern."""
    number = 0
    for shard, labels in enumerate(labels_of_shards):
        records = []
        for label in labels:
            records.append(tfrecords.make_example(JPEGS[number % 4], f"{number}.jpg", label))
            number += 1
        tfrecords.write_shard(str(folder / f"train-{shard}"), records)
    return str(folder / "train-*")


def opened(pattern, bad_examples="fail", reader=READER):
    return open_shards(pattern, "train_data_pattern", reader, bad_examples, with_index=True)


@pytest.fixture(params=["all", "the first"])
def read(request, monkeypatch):
    """Reads all records, or as of large data the first ones of some shards."""
    if request.param == "the first":
        monkeypatch.setattr(example_index, "MAX_BYTES", 0)
    return request.param


OTHER_LABELS = {
    "1 and 2": ([1, 2] * 6, "labels start at 1; subtract 1"),
    "1 and one 2": ([1] * 11 + [2], "labels start at 1; subtract 1"),
    "-1 and 1": ([-1, 1] * 6, "replace -1 by 0"),
    "three classes": ([0, 1, 2] * 5, "is 0 in 5, 1 in 5 and 2 in 5 records; "),
    "few of the third": ([2, 2] + [0, 1] * 5, "write the shards again with these labels"),
    "0 and 2": ([0, 2] * 6, "is 0 in 6 and 2 in 6 records; "),
    "0 and 255": ([0, 255] * 6, "is 0 in 6 and 255 in 6 records; "),
    "large ones": ([2**40, -(2**40)] * 6, "write the shards again with these labels"),
    "many classes": (
        [i // 2 for i in range(14)],
        "is 0 in 2, 1 in 2, 2 in 2, 3 in 2 and 3 other values in other records; ",
    ),
}


@pytest.mark.parametrize("bad_examples", ["fail", "skip"])
@pytest.mark.parametrize("case", OTHER_LABELS)
def test_other_classes_are_an_error_and_never_left_out(tmp_path, read, case, bad_examples):
    labels, said = OTHER_LABELS[case]
    pattern = write(tmp_path, labels[:9], labels[9:])
    with pytest.raises(UserError) as error:
        opened(pattern, bad_examples)
    assert str(error.value).startswith(f"--train_data_pattern={pattern}: image/class/label is ")
    if read == "the first" and bad_examples == "fail" and said.startswith("is "):
        said = " of the first records; "  # The others are not counted.
    assert said in str(error.value)


def test_a_stray_label_may_be_left_out(tmp_path, read):
    shards = opened(write(tmp_path, [0, 1, 0, 7, 1, 0, 1, -1]), "skip")
    assert [bad[1] for bad in shards.bad_list] == [3, 7]
    assert shards.index.counts == {0: 3, 1: 3}


ONE_CLASS = {
    "cats": ([[0] * 5, [0] * 5], "all 10 labels are 0 (cat); a model learns nothing from one class; give shards"),
    "dogs": ([[1] * 20], "all 20 labels are 1 (dog); a model learns nothing from one class; check that labels are 0"),
}


@pytest.mark.parametrize("case", ONE_CLASS)
def test_one_class_is_an_error_unless_it_is_asked_for(tmp_path, read, case):
    labels, said = ONE_CLASS[case]
    index = opened(write(tmp_path, *labels)).index
    assert index.is_complete == (read == "all")
    with pytest.raises(UserError) as error:
        example_index.check_classes(index, "--x=y", allow_one_class=False)
    assert str(error.value).startswith(f"--x=y: {said}")
    assert str(error.value).endswith("or pass --allow_one_class")
    example_index.check_classes(index, "--x=y", allow_one_class=True)


@pytest.mark.parametrize(
    "labels",
    [
        [[0] * 40, [0] * 40, [1]],
        [[0] * 40, [0] * 39 + [1], [0] * 40],  # Seen only if everything is read.
        [[0], [1]],
    ],
)
def test_shards_may_be_sorted_by_class(tmp_path, read, labels):
    example_index.check_classes(opened(write(tmp_path, *labels)).index, "--x=y", allow_one_class=False)


def test_a_class_whose_records_are_all_bad_is_missing(tmp_path):
    records = [tfrecords.make_example(JPEGS[0] if i % 2 else b"", f"{i}.jpg", i % 2) for i in range(8)]
    records += [record_with(image_encoded=JPEGS[1], image_filename=b"x.jpg", image_class_label=1)] * 2
    tfrecords.write_shard(str(tmp_path / "train-0"), records)
    index = opened(str(tmp_path / "train-*"), "skip").index
    assert index.counts == {1: 6}
    with pytest.raises(UserError, match=r"all 6 labels are 1 \(dog\)"):
        example_index.check_classes(index, "--x=y", allow_one_class=False)


@pytest.mark.parametrize(
    ("labels", "params", "said"),
    [
        (
            [0] * 40 + [1] * 2,
            {},
            """40 cats, 2 dogs; the model may call everything a cat; .*'{"class_weights": [1.0, 20.0]}'""",
        ),
        (
            [0] + [1] * 50,
            {"b": 2},
            """1 cat, 50 dogs; .* a dog; .*--loss_params='{"b": 2, "class_weights": [50.0, 1.0]}'""",
        ),
        ([0] * 39 + [1] * 2, {}, None),
        ([0] * 40 + [1] * 2, {"class_weights": [1, 9]}, None),
        ([0] * 40, {}, None),
    ],
)
def test_very_unequal_classes_are_said_with_the_flag_that_helps(tmp_path, caplog, labels, params, said):
    index = opened(write(tmp_path, labels)).index
    example_index.warn_of_unequal_classes(index, params)
    if said is None:
        assert not caplog.text
    else:
        before, _, after = said.partition(".*")
        assert before in caplog.text and after.rpartition(".*")[2].strip() in caplog.text
        assert caplog.text.count("\n") == 1


def test_pictures_with_both_labels_are_said(tmp_path, caplog):
    example_index.warn_of_contradictions(opened(write(tmp_path, [0, 1, 0, 1] * 3)).index)
    assert not caplog.text  # Copies, which agree.
    example_index.warn_of_contradictions(opened(write(tmp_path, [0, 1, 0, 1, 1, 1, 1])).index)
    said = "2 pictures are copies of one with the other label, such as 0.jpg (label 0) and 4.jpg (label 1); a model"
    assert said in caplog.text


class OwnReader(readers.BaseReader):
    """Reads records with other features."""

    def prepare_serialized_examples(self, serialized_examples):
        parsed = tf.io.parse_example(serialized_examples, {"n": tf.io.FixedLenFeature([], tf.int64)})
        number = tf.reshape(parsed["n"], [-1, 1])
        return tf.strings.as_string(number[:, 0]), tf.zeros([len(number), 4, 4, 3]), tf.cast(number % 2, tf.int32)


@pytest.mark.parametrize("bad_examples", ["fail", "skip"])
@pytest.mark.parametrize("with_label", [False, True])
def test_a_reader_of_other_features_is_left_alone(tmp_path, caplog, read, bad_examples, with_label):
    label = {"image_class_label": 7} if with_label else {}
    tfrecords.write_shard(str(tmp_path / "train-0"), [record_with(n=i, **label) for i in range(6)])
    index = opened(str(tmp_path / "train-*"), bad_examples, OwnReader()).index
    example_index.check_classes(index, "--x=y", allow_one_class=False)
    example_index.warn_of_unequal_classes(index, {})
    assert not caplog.text
    assert index.keys() is None


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (b"", (None, "")),
        (b"no example", (None, "")),
        (b"\xff\xfe", (None, "")),
        (record_with(image_class_label=[0, 1], image_filename=b"a"), (None, "a")),
        (record_with(image_class_label=b"dog", image_filename=[b"a", b"b"]), (None, "ab")),
        (record_with(image_class_label=-3, image_filename=5, image_encoded=[b"1", b"2"]), (-3, "")),
        (record_with(image_class_label=1, image_filename=b"\xff"), (1, "\ufffd")),
    ],
    ids=range(7),
)
def test_any_record_can_be_looked_at(record, expected):
    example = example_index.read_example(record)
    assert (example.label, example.id) == expected
    assert (example.picture_key, bool(example.id_key)) == (0, bool(example.id))


def test_copies_of_a_picture_have_one_key_and_so_do_records_with_one_id():
    first, copy, other = (
        example_index.read_example(tfrecords.make_example(encoded, name, 1))
        for encoded, name in ((JPEGS[0], "a"), (JPEGS[0], "b"), (JPEGS[1], "a"))
    )
    assert first.picture_key == copy.picture_key != other.picture_key
    assert first.id_key == other.id_key != copy.id_key
