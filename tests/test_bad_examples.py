"""Records that cannot be read are named, or left out and listed."""

import pytest
import tensorflow as tf
from conftest import jpeg, write_shards
from test_readers import files_of, ids_of

from cats_vs_dogs import bad_examples, readers, tfrecords
from cats_vs_dogs.bad_examples import open_shards
from cats_vs_dogs.readers import Shards
from cats_vs_dogs.utils import UserError


def record_with(**features):
    def feature(value):
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    named = {name.replace("_", "/"): feature(value) for name, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=named)).SerializeToString()


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (tfrecords.make_example(jpeg()[:300], "x.jpg", 1), r"record 2 \(x.jpg\): its picture cannot be decoded"),
        (tfrecords.make_example(b"", "x.jpg", 1), r"\(x.jpg\): its picture cannot be decoded"),
        (tfrecords.make_example(jpeg(), "x.jpg", None), r"\(x.jpg\): it has no image/class/label; test shards"),
        (tfrecords.make_example(jpeg(), "x.jpg", 7), r"\(x.jpg\): image/class/label is neither 0 \(cat\) nor 1"),
        (record_with(image_filename=b"x.jpg", image_class_label=1), r"\(x.jpg\): it has no image/encoded"),
        (b"not an example", "record 2: it is not a tf.train.Example"),
    ],
)
def test_a_bad_record_is_named(tmp_path, record, said):
    good = [tfrecords.make_example(jpeg(), f"{i}.jpg", 0) for i in range(4)]
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    tfrecords.write_shard(paths[0], good)
    tfrecords.write_shard(paths[1], [*good[:2], record, *good[2:]])
    shards = Shards(dict(zip(paths, (4, 5), strict=True)))
    reader = readers.CatsVsDogsFeatureReader()
    with pytest.raises(UserError, match=f"^{paths[1]}: .*{said}"), bad_examples.named_errors(reader, shards):
        list(readers.make_dataset(reader, shards, batch_size=3))


def test_bad_records_are_left_out_and_listed(tmp_path):
    files = files_of(write_shards(tmp_path / "shards", num_examples=20, num_shards=2, bad=(3, 4, 9)))
    reader = readers.CatsVsDogsFeatureReader(image_size=4)
    csv_path = tmp_path / "bad_examples.csv"
    shards = open_shards(str(tmp_path / "shards" / "*"), "train_data_pattern", reader, "skip", str(csv_path))
    assert shards.records == {files[0]: 10, files[1]: 10}
    assert shards.bad == {files[0]: [2], files[1]: [1, 4]}
    assert (shards.num_examples, shards.offsets) == (17, [0, 9, 17])
    listed = [line.split(",")[1:3] for line in csv_path.read_text().splitlines()]
    assert listed == [["Record", "Id"], ["2", "cat.4.jpg"], ["1", "dog.3.jpg"], ["4", "dog.9.jpg"]]
    expected = {f"{('cat', 'dog')[i % 2]}.{i}.jpg" for i in range(20) if i not in (3, 4, 9)}
    streams = [readers.make_dataset(reader, shards, 8)]
    for decoded in (None, readers.decode_all(reader, shards)):
        streams.append(readers.make_training_dataset(reader, shards, 8, seed=1, num_epochs=1, decoded=decoded))
    in_order, streamed, from_memory = (sum(ids_of(stream), []) for stream in streams)
    assert set(in_order) == set(streamed) == expected
    assert len(in_order) == len(streamed) == 17
    assert from_memory == streamed


def test_a_shard_with_a_flipped_bit_is_read_up_to_there(tmp_path):
    files = files_of(write_shards(tmp_path / "shards", num_examples=10, num_shards=1))
    shard = tmp_path / "shards" / "train-00000-of-00001"
    data = bytearray(shard.read_bytes())
    data[len(data) * 65 // 100] ^= 1  # within record 6
    shard.write_bytes(data)
    reader = readers.CatsVsDogsFeatureReader(image_size=4)
    assert tfrecords.count_records(files[0]) == 10
    shards = Shards({files[0]: 10})
    match = r": record 6: the shard is damaged"
    with pytest.raises(UserError, match=match), bad_examples.named_errors(reader, shards):
        list(readers.make_dataset(reader, shards, 4))
    bad = bad_examples.list_bad_examples(reader, shards.records, str(tmp_path / "bad.csv"))
    assert bad == {files[0]: [6, 7, 8, 9]}
    assert len(sum(ids_of(readers.make_dataset(reader, Shards(shards.records, bad), 4)), [])) == 6


def test_more_than_half_bad_stops_in_any_case(tmp_path):
    files = files_of(write_shards(tmp_path, num_examples=4, num_shards=1, bad=(0, 1, 2)))
    with pytest.raises(UserError, match="3 of 4 records cannot be read, more than half"):
        bad_examples.list_bad_examples(readers.CatsVsDogsFeatureReader(), {files[0]: 4}, str(tmp_path / "bad.csv"))


def test_nothing_bad_writes_nothing(tmp_path):
    files = files_of(write_shards(tmp_path))
    assert (
        bad_examples.list_bad_examples(readers.CatsVsDogsFeatureReader(), dict.fromkeys(files, 8), "/nowhere/x") == {}
    )


def test_shards_of_the_wrong_kind_are_noticed_at_the_first_record(tmp_path):
    pattern = write_shards(tmp_path, labelled=False)
    with pytest.raises(UserError, match="test shards cannot be used here"):
        open_shards(pattern, "eval_data_pattern", readers.CatsVsDogsFeatureReader(), "fail", "")
