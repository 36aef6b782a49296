"""Records, files and pictures that cannot be read are named, or left out and listed."""

import csv
import gzip
import io
import itertools
import resource

import numpy as np
import pytest
import tensorflow as tf
from conftest import jpeg, write_shards
from PIL import Image
from test_pictures import png_header
from test_readers import READER, files_of, ids_of

from cats_vs_dogs import bad_examples, readers, submission, tfrecords
from cats_vs_dogs.bad_examples import open_shards
from cats_vs_dogs.config import RESIZE_METHODS
from cats_vs_dogs.picture_files import PictureBatches
from cats_vs_dogs.readers import Shards
from cats_vs_dogs.utils import UserError


def record_with(**features):
    def feature(value):
        values = value if isinstance(value, list) else [value]
        if isinstance(values[0], bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    named = {name.replace("_", "/"): feature(value) for name, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=named)).SerializeToString()


def encode(image, file_format, **kwargs):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **kwargs)
    return buffer.getvalue()


def with_picture(encoded):
    return tfrecords.make_example(encoded, "x.jpg", 1)


JPEG = jpeg()
PICTURE = Image.new("RGB", (60, 40), (200, 120, 40))
PNG = encode(PICTURE, "PNG")
# What a header claims to be 20,000 x 20,000 pixels; with area, TensorFlow would take 1.2 GB for the PNG.
LARGE_PNG = PNG[:16] + 2 * (20_000).to_bytes(4, "big") + PNG[24:]
LARGE_GIF = b"GIF89a" + 2 * (20_000).to_bytes(2, "little") + encode(PICTURE, "GIF")[10:]
SIZE = JPEG.index(b"\xff\xc0") + 5
LARGE_JPEG = JPEG[:SIZE] + 2 * (20_000).to_bytes(2, "big") + JPEG[SIZE + 4 :]

LARGE = "its picture is larger than 100,000,000 pixels"
BAD_RECORDS = {
    "truncated JPEG": (with_picture(JPEG[:300]), "its picture cannot be decoded"),
    "no bytes": (with_picture(b""), "its picture cannot be decoded"),
    "text": (with_picture(b"<!DOCTYPE html>"), "its picture cannot be decoded"),
    "TIFF": (with_picture(encode(PICTURE, "TIFF")), "its picture cannot be decoded"),
    "large JPEG": (with_picture(LARGE_JPEG), LARGE),
    "large PNG": (with_picture(LARGE_PNG), LARGE),
    "large GIF": (with_picture(LARGE_GIF), LARGE),
    "JPEG XL": (with_picture(b"\xff\x0a" + b"\x7f" * 50), "its picture is a JPEG XL or a BMP with a palette; save"),
    "palette": (with_picture(encode(PICTURE.convert("P"), "BMP")), "its picture is a JPEG XL or a BMP with a palette"),
    "label 7": (tfrecords.make_example(JPEG, "x.jpg", 7), "image/class/label is neither 0 (cat) nor 1 (dog)"),
    "no label": (tfrecords.make_example(JPEG, "x.jpg", None), "it has no image/class/label; test shards cannot be us"),
    "label as text": (
        record_with(image_encoded=JPEG, image_filename=b"x.jpg", image_class_label=b"1"),
        "image/class/label is not one integer",
    ),
    "two labels": (
        record_with(image_encoded=JPEG, image_filename=b"x.jpg", image_class_label=[0, 1]),
        "image/class/label is not one integer",
    ),
    "no picture": (record_with(image_filename=b"x.jpg", image_class_label=1), "it has no image/encoded"),
    "number for a picture": (
        record_with(image_encoded=5, image_filename=b"x.jpg", image_class_label=1),
        "image/encoded is not one string",
    ),
    "no Example": (b"not an example", "it is not a tf.train.Example"),
    "no Example and no text": (b"\xff\xfe\xdc", "it is not a tf.train.Example"),
    "nothing": (b"", "it has no image/"),
}


def write_between_good_ones(path, records):
    """Writes a shard in which a good record is before and after each of the given ones."""
    good = [tfrecords.make_example(JPEG, f"{i}.jpg", 0) for i in range(len(records) + 1)]
    tfrecords.write_shard(str(path), [*itertools.chain(*zip(good, records, strict=False)), good[-1]])
    return str(path)


@pytest.mark.parametrize("case", ["truncated JPEG", "large PNG", "no label", "no Example and no text"])
def test_a_bad_record_is_named(tmp_path, case):
    record, reason = BAD_RECORDS[case]
    write_between_good_ones(tmp_path / "train-0", [])
    path = write_between_good_ones(tmp_path / "train-1", [record, record])
    reader = readers.CatsVsDogsFeatureReader()
    shards = open_shards(str(tmp_path / "train-*"), "train_data_pattern", reader, "fail")
    with pytest.raises(UserError) as error, bad_examples.explain_read_errors(reader, shards):
        list(readers.make_dataset(reader, shards, batch_size=3))
    name = " (x.jpg)" if b"x.jpg" in record else ""
    assert str(error.value).startswith(f"{path}: record 1{name}: {reason}")
    assert ("pass --bad_examples=skip" in str(error.value)) == (case != "no label")


@pytest.mark.parametrize("resize_method", RESIZE_METHODS)
def test_every_bad_record_is_left_out_with_its_reason(tmp_path, resize_method):
    path = write_between_good_ones(tmp_path / "train-0", [record for record, _ in BAD_RECORDS.values()])
    reader = readers.CatsVsDogsFeatureReader(resize_method=resize_method)
    shards = open_shards(path, "train_data_pattern", reader, "skip")
    for number, (bad, (case, (record, reason))) in enumerate(zip(shards.bad_list, BAD_RECORDS.items(), strict=True)):
        assert bad[:3] == (path, 2 * number + 1, "x.jpg" if b"x.jpg" in record else ""), case
        assert bad[3].startswith(reason), case
    good = [f"{i}.jpg" for i in range(len(BAD_RECORDS) + 1)]
    assert sum(ids_of(readers.make_dataset(reader, shards, 3)), []) == good


OTHER_PICTURES = {
    # What TensorFlow decodes depends on its version, and with legacy_bilinear it is neither GIF nor BMP.
    "PNG": (PNG, True),
    "transparent PNG": (encode(PICTURE.convert("RGBA"), "PNG"), True),
    "PNG with palette": (encode(PICTURE.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), True),
    "GIF": (encode(PICTURE.convert("P", palette=Image.Palette.ADAPTIVE), "GIF"), False),
    "BMP": (encode(PICTURE, "BMP"), False),
    "progressive JPEG": (encode(PICTURE, "JPEG", progressive=True), True),
    "CMYK": (encode(PICTURE.convert("CMYK"), "JPEG", quality=95), True),
    "1x1": (encode(PICTURE.resize((1, 1)), "JPEG"), True),
    "1x900": (encode(PICTURE.resize((1, 900)), "JPEG"), True),
    "WebP": (encode(PICTURE, "WEBP", lossless=True), None),
    "transparent WebP": (encode(PICTURE.convert("RGBA"), "WEBP", lossless=True), None),
    "animated WebP": (encode(PICTURE, "WEBP", save_all=True, append_images=[PICTURE.rotate(9)]), None),
}


@pytest.mark.parametrize("resize_method", RESIZE_METHODS)
def test_a_picture_of_another_kind_named_jpg_is_right_or_bad(tmp_path, resize_method):
    records = [tfrecords.make_example(encoded, name, 1) for name, (encoded, _) in OTHER_PICTURES.items()]
    path = write_between_good_ones(tmp_path / "train-0", records)
    reader = readers.CatsVsDogsFeatureReader(image_size=8, resize_method=resize_method)
    shards = open_shards(path, "train_data_pattern", reader, "skip")
    ids, images, _ = readers.decode_all(reader, shards)
    shown = dict(zip((one.decode() for one in ids.numpy()), images.numpy().astype(int), strict=True))
    not_shown = {name: reason for _, _, name, reason in shards.bad_list}
    for name, (_, always) in OTHER_PICTURES.items():
        if name in shown:
            assert np.abs(shown[name] - (200, 120, 40)).max() <= 2, name
        else:
            assert always is None or (always is False and resize_method == "legacy_bilinear"), name
            assert not_shown[name] == "its picture cannot be decoded"


def test_bad_records_are_left_out_and_listed(tmp_path, caplog):
    files = files_of(write_shards(tmp_path / "shards", num_examples=20, num_shards=2, bad=(3, 4, 9)))
    csv_path = tmp_path / "bad_examples.csv"
    shards = open_shards(str(tmp_path / "shards" / "*"), "train_data_pattern", READER, "skip")
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]
    assert shards.records == {files[0]: 10, files[1]: 10}
    assert shards.bad == {files[0]: [2], files[1]: [1, 4]}
    assert (shards.num_examples, shards.offsets) == (17, [0, 9, 17])
    bad_examples.write_bad_examples(shards, str(csv_path))
    assert f"3 of 20 records cannot be read and are skipped; {csv_path} lists them" in caplog.text
    reason = "its picture cannot be decoded"
    assert list(csv.reader(csv_path.read_text().splitlines())) == [
        ["File", "Record", "Id", "Reason"],
        [files[0], "2", "cat.4.jpg", reason],
        [files[1], "1", "dog.3.jpg", reason],
        [files[1], "4", "dog.9.jpg", reason],
    ]
    expect_ids(READER, shards, [name_of(i) for i in (*range(0, 20, 2), *range(1, 20, 2)) if i not in (3, 4, 9)])


def name_of(i):
    return f"{('cat', 'dog')[i % 2]}.{i}.jpg"


def expect_ids(reader, shards, expected):
    """Expects the same examples, each once, from the files in order, while training, and while training from memory."""
    assert shards.num_examples == shards.offsets[-1] == len(expected)
    streams = [readers.make_dataset(reader, shards, 8)]
    for decoded in (None, readers.decode_all(reader, shards)):
        streams.append(readers.make_training_dataset(reader, shards, readers.Order(8, seed=1, num_epochs=2), decoded))
    in_order, streamed, from_memory = map(ids_of, streams)
    assert sum(in_order, []) == expected
    num_batches = -(-len(expected) // 8)
    assert sorted(sum(streamed[:num_batches], [])) == sorted(sum(streamed[num_batches:], [])) == sorted(expected)
    assert from_memory == streamed
    order = readers.Order(8, seed=1, num_epochs=2, start_step=num_batches - 1)
    rest = readers.make_training_dataset(reader, shards, order)
    assert ids_of(rest) == streamed[num_batches - 1 :]


def test_the_list_quotes_what_a_csv_must(tmp_path):
    bad_list = [("a, b", 3, "", 'a "quote"'), ("b", 12, "a\nb", "\u9ad8")]
    bad_examples.write_bad_examples(Shards({"a, b": 13}, bad_list), str(tmp_path / "list.csv"))
    expected = 'File,Record,Id,Reason\n"a, b",3,,"a ""quote"""\nb,12,"a\nb",\u9ad8\n'
    assert (tmp_path / "list.csv").read_bytes() == expected.encode()


def test_nothing_bad_deletes_an_older_list(tmp_path):
    shards = Shards(dict.fromkeys(files_of(write_shards(tmp_path / "shards")), 8))
    older = tmp_path / "bad_examples.csv"
    older.write_text("of an earlier run")
    for _ in range(2):
        bad_examples.write_bad_examples(shards, str(older))
        assert not older.exists()


def test_a_list_that_cannot_be_written_is_an_error(tmp_path):
    shards = Shards({"a": 3}, [("a", 1, "", "why")])
    with pytest.raises(UserError, match=f"^{tmp_path}: is a folder"):
        bad_examples.write_bad_examples(shards, str(tmp_path))
    assert not list(tmp_path.parent.glob("*.tmp"))


def flip(data, position):
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def header_of(data, number):
    """Returns where the header of a record begins."""
    position = 0
    for _ in range(number):
        position += 16 + int.from_bytes(data[position : position + 8], "little")
    return position


DAMAGE = {
    # What is done to a shard of 10 records: (damage, how many can be read, numbers that are listed, what is said)
    "empty": (lambda data: b"", 0, [0], "the file is empty; make it again"),
    "text": (lambda data: b"a text file\n" * 9, 0, [0], "is not a TFRecord file; leave it out of the pattern"),
    "zeros": (lambda data: bytes(len(data)), 0, [0], "is not a TFRecord file"),
    "gzip": (gzip.compress, 0, [0], "is not a TFRecord file but compressed by gzip; unpack it first"),
    "a picture": (lambda data: JPEG, 0, [0], "is not a TFRecord file; make shards of pictures first: "),
    "torn in the first": (lambda data: data[:50], 0, [0], "breaks off within record 0"),
    "torn in a record": (lambda data: data[: header_of(data, 6) + 50], 6, [6], "breaks off within record 6"),
    "torn in a header": (lambda data: data[: header_of(data, 6) + 5], 6, [6], "breaks off within record 6"),
    "torn in the last": (lambda data: data[:-1], 9, [9], "breaks off within record 9"),
    "zeros at the end": (
        lambda data: data[: header_of(data, 6)] + bytes(5000),
        *(6, [6], "is damaged from record 6 on (checksum)"),
    ),
    "a length": (
        lambda data: flip(data, header_of(data, 4)),
        *(4, [4], "is damaged from record 4 on (checksum)"),
    ),
    "a bit": (
        lambda data: flip(data, header_of(data, 6) + 99),
        *(6, [6, 7, 8, 9], "the shard is damaged from here on (checksum)"),
    ),
    "a bit, and torn": (
        lambda data: flip(data[:-1], header_of(data, 6) + 99),
        *(6, [6, 7, 8, 9], "the shard is damaged from here on (checksum)"),
    ),
}


def test_damaged_shards_stop_or_are_read_up_to_there(tmp_path):
    write_shards(tmp_path, num_examples=10 * len(DAMAGE) + 20, num_shards=len(DAMAGE) + 2)
    files = files_of(str(tmp_path / "*"))
    expected_ids, expected_list, expected_said = [], [], []
    for shard, path in enumerate(files):
        num_good = 10
        if 0 < shard < len(files) - 1:
            name, (damage, num_good, numbers, said) = list(DAMAGE.items())[shard - 1]
            expected_list += [(path, number, "") for number in numbers]
            expected_said += [said] * (len(numbers) - 1) + [said if "torn" not in name else "breaks off"]
            with open(path, "rb") as file:
                data = damage(file.read())
            with open(path, "wb") as file:
                file.write(data)
            with pytest.raises(UserError, match=f"^{path}: ") as error:
                shards = open_shards(path, "train_data_pattern", READER, "fail")
                with bad_examples.explain_read_errors(READER, shards):
                    list(readers.make_dataset(READER, shards, batch_size=3))
            assert expected_said[-1] in str(error.value)
        expected_ids += [name_of(i * len(files) + shard) for i in range(num_good)]

    shards = open_shards(str(tmp_path / "*"), "train_data_pattern", READER, "skip")
    assert [bad[:3] for bad in shards.bad_list] == expected_list
    for (*_, reason), said in zip(shards.bad_list, expected_said, strict=True):
        assert said in reason
    assert shards.files == [path for path in files if path not in [bad[0] for bad in expected_list if bad[1] == 0]]
    expect_ids(READER, shards, expected_ids)


def test_the_first_bad_record_is_named_even_if_a_checksum_behind_it_is_wrong(tmp_path):
    pattern = write_shards(tmp_path, num_examples=10, num_shards=1, bad=(2,))
    (path,) = tmp_path.iterdir()
    path.write_bytes(flip(path.read_bytes(), header_of(path.read_bytes(), 6) + 99))
    shards = open_shards(pattern, "train_data_pattern", READER, "fail")
    with pytest.raises(UserError, match="record 2 "), bad_examples.explain_read_errors(READER, shards):
        list(readers.make_dataset(READER, shards, batch_size=3))


def test_a_file_that_lost_records_or_vanished_since_it_was_counted_does_not_hide_the_next_one(tmp_path):
    paths = files_of(write_shards(tmp_path, num_examples=9, num_shards=3, bad=(5,)))  # The second of the third file.
    counts = {paths[0]: 5, str(tmp_path / "gone"): 2, paths[1]: 3, paths[2]: 3}
    found = [(path, number) for path, number, *_ in bad_examples.find_bad_examples(READER, counts)]
    lost = [(paths[0], 3), (paths[0], 4), (str(tmp_path / "gone"), 0), (str(tmp_path / "gone"), 1)]
    assert found == [*lost, (paths[2], 1)]


def test_more_than_half_bad_stops(tmp_path):
    pattern = write_shards(tmp_path, num_examples=4, num_shards=2, bad=(0, 2))
    assert open_shards(pattern, "train_data_pattern", READER, "skip").num_examples == 2
    (tmp_path / "train-0.txt").write_text("hello")
    with pytest.raises(UserError, match="^3 of 5 records cannot be read, more than half; the first: .*: record 0: "):
        open_shards(pattern, "train_data_pattern", READER, "skip")
    with pytest.raises(UserError, match="^1 of 1 records cannot be read, more than half"):
        open_shards(str(tmp_path / "*.txt"), "train_data_pattern", READER, "skip")


def test_what_was_left_out_is_not_blamed_for_another_error(tmp_path):
    pattern = write_shards(tmp_path, num_examples=6, num_shards=1, bad=(2,))
    shards = open_shards(pattern, "train_data_pattern", READER, "skip")
    with (
        pytest.raises(tf.errors.InvalidArgumentError, match="of the model"),
        bad_examples.explain_read_errors(READER, shards),
    ):
        raise tf.errors.InvalidArgumentError(None, None, "an error of the model")


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    pattern = write_shards(tmp_path)
    (tmp_path / "train-x").symlink_to(tmp_path / "nowhere")
    for bad in ("fail", "skip"):
        with pytest.raises(UserError, match=f"^{tmp_path}/train-x: cannot be read: .*leave it out of the pattern$"):
            open_shards(pattern, "train_data_pattern", READER, bad)


@pytest.mark.parametrize("becomes", ["nothing", "a folder"])
def test_a_shard_that_vanishes_is_named(tmp_path, becomes):
    pattern = write_shards(tmp_path)
    reader = IdReader()
    shards = open_shards(pattern, "train_data_pattern", reader, "fail")
    (tmp_path / "train-00001-of-00003").unlink()
    if becomes == "a folder":
        (tmp_path / "train-00001-of-00003").mkdir()
    match = "train-00001-of-00003: record 0: the file cannot be read: "
    with pytest.raises(UserError, match=match), bad_examples.explain_read_errors(reader, shards):
        list(readers.make_dataset(reader, shards, batch_size=3))


def test_bad_pictures_are_found_for_any_reader(tmp_path):
    class BareReader(readers.BaseReader):
        def prepare_serialized_examples(self, serialized_examples):
            features = {name: tf.io.FixedLenFeature([], tf.string) for name in (tfrecords.IMAGE, tfrecords.FILENAME)}
            parsed = tf.io.parse_example(serialized_examples, features)
            return parsed[tfrecords.FILENAME], tf.map_fn(
                lambda one: tf.image.resize(tf.io.decode_jpeg(one, channels=3), [4, 4]),
                parsed[tfrecords.IMAGE],
                fn_output_signature=tf.TensorSpec([4, 4, 3], tf.float32),
            )

    pattern = write_shards(tmp_path, num_examples=6, num_shards=1, bad=(2,))
    shards = open_shards(pattern, "train_data_pattern", BareReader(), "skip")
    assert [bad[1:] for bad in shards.bad_list] == [(2, "cat.2.jpg", "its picture cannot be decoded")]


def test_shards_of_the_wrong_kind_are_noticed_at_the_first_record(tmp_path):
    pattern = write_shards(tmp_path, labelled=False)
    with pytest.raises(UserError, match="test shards cannot be used here"):
        open_shards(pattern, "eval_data_pattern", READER, "fail")


def test_ids_are_named_where_they_are_behind_bad_records(tmp_path):
    shards = Shards({"a": 4, "b": 4}, [("a", 1, "", "why"), ("b", 0, "", "why"), ("c", 0, "", "why")])
    check = bad_examples.make_id_check(shards)
    check(["1", "2"])
    with pytest.raises(UserError, match=r"^b: record 3 \(2\): its id came before, in a: record 2; "):
        check(["3", "4", "5", "2"])


class IdReader(readers.BaseReader):
    """Does not decode, to be quick."""

    def prepare_serialized_examples(self, serialized_examples):
        feature = tf.io.FixedLenFeature([], tf.string, default_value="")
        return (tf.io.parse_example(serialized_examples, {tfrecords.FILENAME: feature})[tfrecords.FILENAME],)


AMBIGUOUS = {
    # What the ids of two shards are: (the first, the second, number of the bad record in the second, what is said)
    "missing": (["a", "b"], ["c", None, "d"], 1, "record 1: it has no id (image/filename is missing or empty)"),
    "empty": (["a", "b"], ["c", "", "d"], 1, "record 1: it has no id (image/filename is missing or empty)"),
    "in another file": (["a", "b"], ["c", "d", "b"], 2, "record 2 (b): its id came before, in {first}: record 1"),
    "in one file": (["a", "b"], ["c", "c", "d"], 1, "record 1 (c): its id came before, in {second}: record 0"),
    "alike when shown": (
        ["a", b"\xff"],
        ["c", b"\xfe"],
        1,
        "record 1 (\ufffd): its id came before, in {first}: record",
    ),
    "line break": (["a", "b"], ["c", "d\re"], 1, "its id has a line break"),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_ids_that_a_csv_cannot_have(tmp_path, case):
    *shards_ids, number, said = AMBIGUOUS[case]
    for name, ids in zip(("test-0", "test-1"), shards_ids, strict=True):
        encoded = [one.encode() if isinstance(one, str) else one for one in ids]
        records = [
            record_with(image_encoded=JPEG, **({} if one is None else {"image_filename": one})) for one in encoded
        ]
        tfrecords.write_shard(str(tmp_path / name), records)
    pattern = str(tmp_path / "test-*")
    first, second = files_of(pattern)
    reader = IdReader()
    said = said.format(first=first, second=second)

    shards = open_shards(pattern, "input_data_pattern", reader, "fail", submission_format="2017")
    check = bad_examples.make_id_check(shards)
    with pytest.raises(UserError) as error:
        for (ids,) in readers.make_dataset(reader, shards, 2):
            check([submission.id_text(one) for one in ids.numpy()])
    assert f"{second}: record {number}" in str(error.value)
    assert said in str(error.value)
    assert "pass --bad_examples=skip" in str(error.value)

    shards = open_shards(pattern, "input_data_pattern", reader, "skip", submission_format="2017")
    assert shards.bad == {second: [number]}
    assert said.endswith(shards.bad_list[0][3]) or shards.bad_list[0][3].startswith(said.split(": ", 1)[-1][:40])
    check = bad_examples.make_id_check(shards)
    for (ids,) in readers.make_dataset(reader, shards, 2):
        check([submission.id_text(one) for one in ids.numpy()])
    # Who does not ask for unique ids, as training, gets all.
    assert open_shards(pattern, "input_data_pattern", reader, "skip").num_examples == sum(map(len, shards_ids))


def test_pictures_are_left_out_and_keep_their_ids(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("a/1.jpg", "a/2.jpg", "a/5.jpg"):
        (tmp_path / name).write_bytes(JPEG)
    (tmp_path / "a" / "3.jpg").write_bytes(JPEG[:200])
    (tmp_path / "a" / "4.jpg").write_bytes(png_header(20_000, 20_000))
    (tmp_path / "b" / "6.jpg").write_bytes(b"")
    (tmp_path / "b" / "7.jpg").symlink_to(tmp_path / "nowhere")
    files = files_of(str(tmp_path / "*" / "*.jpg"))
    reader = readers.CatsVsDogsTestFeatureReader(image_size=4)

    pictures = bad_examples.open_pictures(files, reader, "fail")
    with pytest.raises(UserError, match=f"^{tmp_path}/a/3.jpg: JPEG with a damaged header; fix or remove it"):  # noqa: SIM117
        with bad_examples.explain_picture_errors(reader, pictures):
            list(PictureBatches(reader, pictures, 2))

    with pytest.raises(UserError, match="^4 of 7 records cannot be read, more than half"):
        bad_examples.open_pictures(files, reader, "skip")
    pictures = bad_examples.open_pictures(files[:-1], reader, "skip")
    assert pictures.bad_list == [
        (files[2], 0, "a/3.jpg", "JPEG with a damaged header"),
        (files[3], 0, "a/4.jpg", "more than 100000000 pixels"),
        (files[5], 0, "b/6.jpg", "empty file (0 bytes)"),
    ]
    assert pictures.num_examples == 3
    # What was left out is not blamed for another error.
    with pytest.raises(tf.errors.InvalidArgumentError), bad_examples.explain_picture_errors(reader, pictures):
        raise tf.errors.InvalidArgumentError(None, None, "an error of the model")
    # As if the only one in folder b were readable too.
    assert ids_of(PictureBatches(reader, pictures, 2)) == [["a/1.jpg", "a/2.jpg"], ["a/5.jpg"]]
    with pytest.raises(UserError, match=f"^{tmp_path}/b/7.jpg: not a regular file, or a broken link"):  # noqa: SIM117
        with bad_examples.explain_picture_errors(reader, Shards(dict.fromkeys(files[-1:], 1))):
            list(PictureBatches(reader, Shards(dict.fromkeys(files[-1:], 1)), 2))


@pytest.mark.parametrize("resize_method", RESIZE_METHODS)
def test_large_pictures_take_no_memory(resize_method):
    reader = readers.CatsVsDogsTestFeatureReader(resize_method=resize_method)
    decode = tf.function(reader.decode_images, input_signature=[tf.TensorSpec([None], tf.string)])
    decode(tf.constant([JPEG]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for large in (LARGE_JPEG, LARGE_PNG, LARGE_GIF):
        with pytest.raises(tf.errors.InvalidArgumentError, match="larger than"):
            decode(tf.constant([JPEG, large]))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
