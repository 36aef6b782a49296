"""What inference writes when some of its input cannot be read, or cannot be told apart in a CSV."""

import csv
import gzip
import io
import os
import subprocess
import sys
import types

import pytest
from conftest import jpeg, write_shards
from photo_files import encode, write_folder, write_zip
from PIL import Image

from cats_vs_dogs import bad_examples, checkpoints, convert_images_to_tfrecords, inference, tfrecords
from cats_vs_dogs.classifier import Classifier
from cats_vs_dogs.config import ModelSpec
from cats_vs_dogs.utils import UserError

JPEG = jpeg()


@pytest.fixture(scope="module")
def train_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("model"))
    checkpoints.save_best(Classifier(ModelSpec("LogisticModel", {}, "CrossEntropyLoss", {}, 4, "area")), folder, 1, {})
    return folder


@pytest.fixture
def infer(train_dir, tmp_path, monkeypatch):
    """Returns a function that predicts what a pattern matches, below tmp_path, and returns the rows and the list."""

    def run(pattern, bad_examples="fail", submission_format="2017", words=()):
        output = tmp_path / "out.csv"
        names = {"train_dir": train_dir, "output_file": str(output), "input_data_pattern": str(tmp_path / pattern)}
        others = {
            "output_column": "probability",
            "batch_size": 3,
            "bad_examples": bad_examples,
            "flip_average": False,
            "crop_average": False,
        }
        others["submission"] = submission_format
        monkeypatch.setattr(inference, "FLAGS", types.SimpleNamespace(**names, **others))
        inference.main(words)
        listed = tmp_path / "out.csv.bad_examples.csv"
        return rows_of(output), rows_of(listed) if listed.exists() else None

    return run


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def write_test_shards(folder, *shards):
    folder.mkdir()
    for number, ids in enumerate(shards):
        records = [tfrecords.make_example(JPEG, one, None) for one in ids]
        tfrecords.write_shard(str(folder / f"test-{number}"), records)


def test_ambiguous_ids(infer, tmp_path, caplog):
    write_test_shards(tmp_path / "in", ["a", "b", "c", "d"], ["e", "", "f", "b"])
    first, second = tmp_path / "in" / "test-0", tmp_path / "in" / "test-1"
    (tmp_path / "out.csv").write_text("older")
    with pytest.raises(UserError) as error:
        infer("in/*")
    assert str(error.value) == (
        f"{second}: record 1: it has no id (image/filename is missing or empty); fix or remove it, or pass "
        "--bad_examples=skip"
    )
    tfrecords.write_shard(str(second), [tfrecords.make_example(JPEG, one, None) for one in ("e", "f", "b")])
    with pytest.raises(UserError) as error:
        infer("in/*")
    assert str(error.value) == (
        f"{second}: record 2 (b): its id came before, in {first}: record 1; fix or remove it, or pass "
        "--bad_examples=skip"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.csv"]
    assert (tmp_path / "out.csv").read_text() == "older"

    caplog.set_level("INFO", logger="absl")
    rows, listed = infer("in/*", "skip")
    assert [row[0] for row in rows] == ["a", "b", "c", "d", "e", "f"]
    assert listed == [[str(second), "2", "b", f"its id came before, in {first}: record 1"]]
    assert (
        f"The output file was written to {tmp_path}/out.csv: 6 rows; records missing from it: 1, "
        f"listed in {tmp_path}/out.csv.bad_examples.csv" in caplog.text
    )

    caplog.clear()
    assert infer("in/test-0")[1] is None  # The older list is deleted.
    assert f"The output file was written to {tmp_path}/out.csv: 4 rows\n" in caplog.text


def test_kaggle_of_shards(infer, tmp_path):
    write_test_shards(tmp_path / "in", ["12.jpg", "1.jpg"], ["2.jpg", "cover.jpg", "0.jpg"], ["01.png", "3.jpg"])
    _, second, third = (tmp_path / "in" / f"test-{number}" for number in range(3))
    (tmp_path / "out.csv").write_text("older")
    no_number = "its id is not a number, such as 12.jpg, which --submission=kaggle needs"
    twice = f"its number is that of 1.jpg, which came before, in {tmp_path}/in/test-0: record 1"
    with pytest.raises(UserError) as error:
        infer("in/*", submission_format="kaggle")
    advice = "fix or remove it, or pass --bad_examples=skip"
    assert str(error.value) == f"{second}: record 1 (cover.jpg): {no_number}; {advice}"
    with pytest.raises(UserError) as error:
        infer("in/*[02]", submission_format="kaggle")
    assert str(error.value) == f"{third}: record 0 (01.png): {twice}; {advice}"
    assert (tmp_path / "out.csv").read_text() == "older"
    rows, listed = infer("in/*", "skip", "kaggle")
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "12"]
    assert listed == [[str(second), "1", "cover.jpg", no_number], [str(third), "0", "01.png", twice]]


def test_kaggle_of_pictures(infer, tmp_path, monkeypatch):
    folder = tmp_path / "test1"
    folder.mkdir()
    for name in ("10.jpg", "2.jpg", "cover.jpg"):
        (folder / name).write_bytes(JPEG)
    rows, listed = infer("test1/*", "skip", "kaggle")
    assert [row[0] for row in rows] == ["2", "10"]
    assert [row[2] for row in listed] == ["cover.jpg"]
    monkeypatch.setattr(inference, "predict", None)  # The ids are checked before the first prediction.
    with pytest.raises(UserError, match="^.*/cover.jpg: record 0 .cover.jpg.: its id is not a number, such as 12.jpg"):
        infer("test1/*", submission_format="kaggle")


@pytest.mark.parametrize("num_after", [1, 5])
def test_a_shard_that_changes_while_it_is_predicted(infer, tmp_path, monkeypatch, num_after):
    write_test_shards(tmp_path / "in", ["a", "b", "c"])
    make_id_check = bad_examples.make_id_check

    def change(*args):
        records = [tfrecords.make_example(JPEG, str(number), None) for number in range(num_after)]
        tfrecords.write_shard(str(tmp_path / "in" / "test-0"), records)
        return make_id_check(*args)

    monkeypatch.setattr(bad_examples, "make_id_check", change)
    with pytest.raises(
        UserError, match=f"^{num_after} examples predicted, but 3 counted at the start: the input files"
    ):
        infer("in/*")
    assert not (tmp_path / "out.csv").exists()


def test_the_csv_replaces_no_input(infer, tmp_path):
    (tmp_path / "out.csv").write_bytes(JPEG)
    (tmp_path / "photo.jpg").write_bytes(JPEG)
    with pytest.raises(UserError, match=f"^--output_file={tmp_path}/out.csv: is one of the input files; name another"):
        infer("*.*")
    assert (tmp_path / "out.csv").read_bytes() == JPEG


def test_names_that_no_csv_can_have(infer, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "1.jpg").write_bytes(JPEG)
    with open(os.path.join(os.fsencode(folder), b"\xb0\xed.jpg"), "wb") as file:
        file.write(JPEG)
    for flag in ("fail", "skip"):
        with pytest.raises(UserError, match="in/.udcb0.udced.jpg', whose name is not UTF-8; rename it$"):
            infer("in/*", flag)
    (folder / "2\n.jpg").write_bytes(JPEG)
    with pytest.raises(
        UserError, match="2\n.jpg.: its id has a line break; fix or remove it, or pass --bad_examples=s"
    ):
        infer("in/[12]*")
    rows, listed = infer("in/[12]*", "skip")
    assert [row[0] for row in rows] == ["1.jpg"]
    assert [row[2:] for row in listed] == [["2\n.jpg", "its id has a line break"]]


def test_damaged_shards(infer, tmp_path):
    write_shards(tmp_path / "in", "test", num_examples=30, num_shards=3, labelled=False, bad=(1, 7))
    torn, zipped = tmp_path / "in" / "test-00000-of-00003", tmp_path / "in" / "test-00002-of-00003"
    torn.write_bytes(torn.read_bytes()[:-1])
    zipped.write_bytes(gzip.compress(zipped.read_bytes()))
    rows, listed = infer("in/*", "skip")
    assert [row[0] for row in rows] == [f"{i}.jpg" for i in (*range(0, 27, 3), *range(1, 30, 3)) if i not in (1, 7)]
    assert [row[1:3] for row in listed] == [["9", ""], ["0", "1.jpg"], ["2", "7.jpg"], ["0", ""]]


def test_pictures(infer, tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    for name, encoded in (("1", b""), ("2", JPEG), ("3", JPEG[:99]), ("4", JPEG), ("5", b"text"), ("6", JPEG)):
        (tmp_path / f"{name}.jpg").write_bytes(encoded)
    with pytest.raises(UserError, match=rf"^{tmp_path}/1.jpg: empty file \(0 bytes\); fix or remove it"):
        infer("*.jpg")
    rows, listed = infer("*.jpg", "skip")
    assert [row[0] for row in rows] == ["2.jpg", "4.jpg", "6.jpg"]
    reasons = {1: "empty file (0 bytes)", 3: "JPEG with a damaged header", 5: "not a picture, or of an unknown format"}
    assert [row[1:] for row in listed] == [["0", f"{i}.jpg", reason] for i, reason in reasons.items()]
    assert "3 rows; records missing from it: 3" in caplog.text
    (tmp_path / "6.jpg").unlink()
    with pytest.raises(UserError, match="^3 of 5 records cannot be read, more than half; the first: .*/1.jpg"):
        infer("*.jpg", "skip")
    assert len(rows_of(tmp_path / "out.csv")) == 3


def test_the_answers_are_printed(infer, tmp_path, capsys):
    for i in range(23):
        (tmp_path / f"{i:02} a.jpg").write_bytes(jpeg(seed=i))
    for pattern, num_shown in (("0[01]*.jpg", 2), ("[01]*.jpg", 20), ("*.jpg", 5)):
        rows, _ = infer(pattern)
        lines = capsys.readouterr().out.splitlines()
        dogs = [float(row[1]) for row in rows]
        for line, row, dog in zip(lines[:num_shown], rows, dogs, strict=False):
            name, animal, percent, unit = line.rsplit(maxsplit=3)
            assert (name, animal, unit) == (row[0], "dog" if dog > 0.5 else "cat", "%")
            assert float(percent) == pytest.approx(100 * max(dog, 1 - dog), abs=0.051)
        num_dogs = sum(dog > 0.5 for dog in dogs)
        more = [f"... and 18 more in {tmp_path}/out.csv"] if num_shown == 5 else []
        assert lines[num_shown:] == [*more, f"{len(rows)} photos: {len(rows) - num_dogs} cats, {num_dogs} dogs"]
    infer("00*")
    assert len(capsys.readouterr().out.splitlines()) == 1
    write_test_shards(tmp_path / "in", ["a", "b"])
    infer("in/*")
    assert capsys.readouterr().out.startswith("2 photos: ")


def test_words_are_inputs(infer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path, {"one.jpg": JPEG, "more [1]/2.jpg": JPEG, "more [1]/b/3.jpg": JPEG, "x,y/4.jpg": JPEG})
    write_zip(tmp_path / "some.zip", {"a/5.jpg": JPEG, "read.me": b"x"})
    rows, _ = infer("one.jpg", words=["more [1]/", "some.zip", "x,y/*", "one.jpg,more [1]/2.jpg", "some.zip"])
    # The first is absolute, since the fixture joins it with its folder; so each id is the whole path.
    relative = ["more [1]/2.jpg", "more [1]/b/3.jpg", "some.zip/a/5.jpg", "x,y/4.jpg", "one.jpg"]
    assert [row[0] for row in rows] == [f"{tmp_path}/one.jpg", *relative]
    rows, _ = infer("one.jpg", words=[f"{tmp_path}/one.jpg", f"{tmp_path}/x,y"])
    assert [row[0] for row in rows] == ["one.jpg", "x,y/4.jpg"]
    write_test_shards(tmp_path / "in", ["a"])
    with pytest.raises(UserError, match="^--input_data_pattern: in/test-0 names shards, and .*/one.jpg pictures; give"):
        infer("one.jpg", words=["in/test-0"])
    with pytest.raises(UserError, match="^gone.jpg: matches no file"):
        infer("one.jpg", words=["gone.jpg"])
    (tmp_path / "read.me").write_text("x")
    with pytest.raises(UserError, match="^read.me: not a picture, or of an unknown format; fix or remove it, or pass"):
        infer("one.jpg", words=["read.me"])
    (tmp_path / "bad.jpg").write_bytes(JPEG[:400])
    with pytest.raises(UserError, match="^bad.jpg: JPEG with a damaged header; fix or remove it, or pass --bad_ex"):
        infer("one.jpg", words=["bad.jpg"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["epochs=5"], "epochs=5: not a flag; "),
        (["photo.jpg", "train_dir=/tmp/x"], "train_dir=/tmp/x: not a flag; did you mean --train_dir=/tmp/x?"),
        (["\u2014run_once"], "its dash is that of a text program"),
        (["photo.jpg", "--train_dir=/nowhere"], "--train_dir=/nowhere: holds no model"),
        (["https://x.org/1.jpg"], "https://x.org/1.jpg: only paths on this machine and gs:// can be used"),
        (["gone.jpg", "--train_dir={model}"], "gone.jpg: matches no file"),
    ],
)
def test_wrong_words_are_reported_before_tensorflow_is_imported(tmp_path, words, said):
    write_folder(tmp_path, {"model_flags.json": b"{}"})
    code = "import runpy, sys; sys.argv = ['inference', *sys.argv[1:]]\n" + (
        "try: runpy.run_module('cats_vs_dogs.inference', run_name='__main__', alter_sys=True)\n"
        "finally: assert 'tensorflow' not in sys.modules"
    )
    arguments = [word.format(model=tmp_path) for word in words]
    process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd="/")
    assert process.returncode == 1 and process.stderr.startswith("error: ") and said in process.stderr
    assert process.stderr.count("\n") == 1


def test_a_shard_that_begins_like_a_picture(infer, tmp_path):
    long = JPEG + bytes(int.from_bytes(b"BM", "little") - len(tfrecords.make_example(JPEG, "a", None)) - 5)
    record = tfrecords.make_example(long, "a", None)
    tfrecords.write_shard(str(tmp_path / "test-0"), [record])
    assert (tmp_path / "test-0").read_bytes().startswith(b"BM")
    assert [row[0] for row in infer("test-0")[0]] == ["a"]


@pytest.mark.parametrize("bad_examples", ["fail", "skip"])
def test_neither_pictures_nor_shards(infer, tmp_path, bad_examples):
    (tmp_path / "1").write_bytes(b"")
    (tmp_path / "2").write_bytes(b"text")
    with pytest.raises(UserError, match="1: .*the file is empty; make it again, or leave it out of the pattern"):
        infer("[12]", bad_examples)


@pytest.mark.parametrize("bad_examples", ["fail", "skip"])
def test_a_bad_picture_has_the_same_reason_by_itself_and_in_a_folder(infer, tmp_path, bad_examples):
    reasons = {
        "1.jpg": (b"", r"empty file \(0 bytes\)"),
        "2.png": (b"<html>", "HTML page, perhaps the error message of a download"),
    }
    for name, (data, reason) in reasons.items():
        write_folder(tmp_path / f"in-{name}", {name: data})
        for pattern in (f"in-{name}", f"in-{name}/{name}", f"in-{name}/*"):
            with pytest.raises(UserError, match=f"{name}: (record 0: )?{reason}") as error:
                infer(pattern, bad_examples)
            assert "shard" not in str(error.value)


def test_a_shard_among_pictures_is_named(infer, tmp_path):
    write_test_shards(tmp_path / "in", ["a"])
    write_folder(tmp_path / "in", {"1.jpg": JPEG})
    with pytest.raises(UserError, match="test-0: not a picture.*; give pictures and shards by patterns of their own$"):
        infer("in/*")


def many_kinds():
    """Returns files of photos and of what else a folder holds, {path: bytes}."""
    sideways = Image.Exif()
    sideways[0x0112] = 6
    image = Image.open(io.BytesIO(jpeg(80, 40))).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    photos = {
        "1.jpg": encode(image.convert("RGB"), "JPEG", exif=sideways),
        "a [1]/2.png": encode(image, "PNG", exif=sideways),
        "a [1]/3~*?.webp": encode(image, "WEBP"),
        "a [1]/b/4.GIF": encode(image, "GIF"),
        "고양이/5": encode(image.convert("CMYK"), "TIFF"),
    }
    junk = {".DS_Store": b"x", "a [1]/Thumbs.db": b"x", "__MACOSX/a [1]/._2.png": JPEG, "a [1]/.hidden.jpg": JPEG}
    return photos, {**photos, **junk, "notes.txt": b"text", "a [1]/film.mp4": b"\0\0\0\x18ftypisom"}


def test_pictures_are_predicted_alike_from_a_folder_a_zip_and_shards(infer, tmp_path, caplog):
    photos, files = many_kinds()
    write_folder(tmp_path / "in [1]", files)
    write_zip(tmp_path / "in [1].zip", files)
    caplog.set_level("INFO", logger="absl")
    rows, _ = infer("in [1]")
    assert "2 of 7 files are left out because they are no pictures, such as a [1]/film.mp4" in caplog.text
    assert [row[0] for row in rows] == sorted(photos)
    assert infer("in [1].zip")[0] == infer("*.zip")[0] == rows
    convert_images_to_tfrecords.convert(str(tmp_path / "in [1]"), str(tmp_path / "shards"), 0, 10, 1)
    from_shards = infer("shards/test-*")[0]
    assert sorted(from_shards) == sorted([row[0].rpartition("/")[2], row[1]] for row in rows)
    assert infer("in [[]1]/a*/*.png")[0] == [["2.png", dict(rows)["a [1]/2.png"]]]


def test_folders_and_zips_with_bad_pictures(infer, tmp_path):
    files = {"a/1.jpg": JPEG, "a/2.jpg": JPEG[:400], "a/3.jpg": JPEG}
    folder, archive = write_folder(tmp_path / "in", files), write_zip(tmp_path / "in.zip", files)
    for source in (folder, archive):
        with pytest.raises(
            UserError, match=f"^{source}/a/2.jpg: JPEG with a damaged header; fix or remove it, or pass"
        ):
            infer(source.name)
        rows, listed = infer(source.name, "skip")
        assert [row[0] for row in rows] == ["1.jpg", "3.jpg"]
        assert listed == [[f"{source}/a/2.jpg", "0", "2.jpg", "JPEG with a damaged header"]]


def test_folders_without_pictures(infer, tmp_path):
    write_test_shards(tmp_path / "in [1]", ["a"])
    write_folder(tmp_path / "texts", {"a.txt": b"text"})
    write_zip(tmp_path / "in.zip", {"a.txt": b"text"})
    (tmp_path / "no.zip").write_bytes(b"text")
    write_folder(tmp_path / "kaggle", {"train.zip": b"", "test1.zip": b"", "sample.csv": b""})
    zip_advice = f"give the .zip itself: --input_data_pattern={tmp_path}/kaggle/test1.zip"
    for name, message in {
        "in [1]": f"is a folder; write --input_data_pattern='{tmp_path}/in [1]/*'",
        "texts": "has no picture in it; name pictures or shards",
        "in.zip": "has no picture in it",
        "kaggle": f"holds no pictures, but test1.zip, train.zip; {zip_advice}",
        "no.zip": "is named .zip, but is no .zip; download it again",
    }.items():
        with pytest.raises(UserError) as error:
            infer(name)
        assert str(error.value).startswith(f"--input_data_pattern={tmp_path}/{name}: {message}")
