"""The TFRecord format: records, names of shards, damage."""

import bz2
import gzip
import lzma

import pytest
import tensorflow as tf
from conftest import jpeg, write_shards

from cats_vs_dogs import tfrecords


def test_features_of_an_example():
    example = tf.train.Example.FromString(tfrecords.make_example(b"bytes", "고양이.1.jpg", 1))
    features = example.features.feature
    assert features["image/encoded"].bytes_list.value[0] == b"bytes"
    assert features["image/filename"].bytes_list.value[0].decode() == "고양이.1.jpg"
    assert list(features["image/class/label"].int64_list.value) == [1]
    unlabelled = tf.train.Example.FromString(tfrecords.make_example(b"", "1.jpg", None))
    assert "image/class/label" not in unlabelled.features.feature


def test_names_of_shards():
    assert tfrecords.shard_path("/data", "train", 3, 14) == "/data/train-00003-of-00014"


def test_counting_records(tmp_path):
    write_shards(tmp_path, num_examples=7, num_shards=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train-00000-of-00002", "train-00001-of-00002"]
    scans = [tfrecords.scan(str(path)) for path in sorted(tmp_path.iterdir())]
    assert [(scan.count, scan.damage) for scan in scans] == [(4, ""), (3, "")]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"", "the file is empty"),
        (lambda data: data[:-1], "breaks off within record 6"),
        (lambda data: data[:5], "is not a TFRecord file"),
        (lambda data: jpeg(), "is not a TFRecord file; make shards of pictures first: "),
        (lambda data: gzip.compress(data), "is not a TFRecord file but compressed by gzip; unpack it"),
        (lambda data: bz2.compress(data), "is not a TFRecord file but compressed by bzip2; unpack it"),
        (lambda data: lzma.compress(data), "is not a TFRecord file but compressed by xz; unpack it"),
        (lambda data: b"7z\xbc\xaf\x27\x1c" + data, "is not a TFRecord file but compressed by 7z; unpack it"),
        (lambda data: b"a text file\n" * 9, "is not a TFRecord file; leave it out"),
    ],
)
def test_damage_is_noticed(tmp_path, damage, said):
    write_shards(tmp_path, num_examples=7, num_shards=1)
    path = tmp_path / "train-00000-of-00001"
    path.write_bytes(damage(path.read_bytes()))
    assert said in tfrecords.scan(str(path)).damage


def test_an_older_shard_is_replaced(tmp_path):
    path = str(tmp_path / "train-00000-of-00001")
    for records in ([b"one", b"two"], [b"three"]):
        tfrecords.write_shard(path, records)
        assert [record for _, record in tfrecords.walk(path, with_bytes=True)] == records
    assert [file.name for file in tmp_path.iterdir()] == ["train-00000-of-00001"]


def test_an_error_while_writing_a_shard_is_raised(tmp_path):
    with pytest.raises(tf.errors.NotFoundError):
        tfrecords.write_shard(str(tmp_path / "no folder" / "train-00000-of-00001"), [b"one"])


def test_a_shard_is_complete_or_absent(tmp_path):
    def examples():
        yield b"one"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        tfrecords.write_shard(str(tmp_path / "train-00000-of-00001"), examples())
    assert not (tmp_path / "train-00000-of-00001").exists()
