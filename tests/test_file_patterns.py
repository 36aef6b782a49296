"""Which part of a path is a pattern, what it matches, and what is said of a wrong one."""

import glob
import os
import shlex
import sys
import unicodedata

import pytest
from conftest import REPOSITORY
from photo_files import JPEG, write_folder, write_zip

from cats_vs_dogs import file_patterns, files, utils
from cats_vs_dogs.path_flags import expand_path
from cats_vs_dogs.utils import UserError

TREE = [
    "rec/1.jpg",
    "rec/a/2.jpg",
    "rec/a/b/3.jpg",
    "rec/a/b/.hidden/4.jpg",
    "rec/a/b/5.png",
    "rec [1]/6.jpg",
    "rec [1]/IMG [2].jpg",
    "rec [1]/c*/7.jpg",
    "rec1/8.jpg",
]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Makes the files of TREE in the working directory."""
    write_folder(tmp_path, dict.fromkeys(TREE, b"x"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [
        ("rec/*.jpg", "1"),
        ("rec/**/*.jpg", "1234"),
        ("rec/**/**/*.jpg", "1234"),
        ("rec/**", "12345"),
        ("rec/**/", "12345"),
        ("rec/**/b/*.jpg", "3"),
        ("rec/**/b/**/*.jpg", "34"),
        ("rec/a/**/2.jpg", "2"),
        ("**/3.jpg", "3"),
        ("re*/**/[38].jpg", "38"),
        ("rec [[]1]/**/7.jpg", "7"),
        # A folder or file of exactly this name is no pattern.
        ("rec [1]/*.jpg", "6]"),
        ("rec [1]/**/*.jpg", "67]"),
        ("rec [1]/c*/*.jpg", "7"),
        ("rec [1]/IMG [2].jpg", "]"),
        # Nor are brackets that would match nothing.
        ("rec [1]/IMG [2].*", "]"),
        ("*/IMG [2]*", "]"),
        # Other brackets are.
        ("rec[1]/*.jpg", "8"),
        ("rec/[0-9].jpg", "1"),
    ],
)
def test_what_a_pattern_matches(tree, pattern, numbers):
    for prefix in ("", "./", f"{tree}/"):
        found = files.list_files(prefix + pattern, "input_data_pattern")
        assert found == sorted(set(found)) and all(path.startswith(prefix) for path in found)
        assert "".join(sorted(path[-5] for path in found)) == numbers


@pytest.mark.parametrize(("written", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_hangul_as_macos_writes_it(tmp_path, written, on_disk):
    folder, name = "고양이 [1]", "강아지.jpg"
    write_folder(tmp_path, {unicodedata.normalize(on_disk, f"{folder}/{name}"): b"x"})
    for pattern in (f"{folder}/{name}", f"{folder}/*.jpg", f"{folder}/강아지*", "**/강아지.*"):
        typed = expand_path(f"{tmp_path}/{unicodedata.normalize(written, pattern)}")
        assert files.list_files(typed, "x") == [f"{tmp_path}/{unicodedata.normalize(on_disk, f'{folder}/{name}')}"]
    new = f"{tmp_path}/{unicodedata.normalize(written, f'{folder}/새 모델')}"
    assert expand_path(new) == f"{tmp_path}/{unicodedata.normalize(on_disk, folder)}/" + new.rpartition("/")[2]


def test_a_folder_that_links_lead_to_is_read_once(tree):
    os.symlink("..", tree / "rec" / "a" / "up")
    os.symlink(tree / "rec1", tree / "rec" / "z")
    os.symlink(tree / "rec1", tree / "rec" / "y")
    assert [path[-7:] for path in files.list_files("rec/**/*.jpg", "x")][-1] == "y/8.jpg"
    assert len(files.list_files("rec/**/*.jpg", "x")) == 5


def test_all_files_of_the_root_folder_are_not_asked_for_by_mistake():
    from cats_vs_dogs.file_patterns import split_at_globstar

    assert split_at_globstar("/**/x") == ("/", "x")
    assert split_at_globstar("**") == ("", "*")
    assert split_at_globstar("a/**/**/x/") == ("a", "x")
    assert split_at_globstar("a**/b") is None


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("rec/**.jpg", "write --x='rec/**/*.jpg'"),
        ("re**/1.jpg", "write --x='**/re*/1.jpg'"),
        ("rec/a**/2.jpg", "write --x='rec/**/a*/2.jpg'"),
        ("rec [1]/***", "write --x='rec [1]/**/*'"),
        ("rec/*.{jpg,png}", "{a,b} is not a pattern here"),
        ("rec/no*", "matches no file (looked for in "),
        ("*", "matches folders only; for all files in them, at all levels, write '*/**'"),
        ("\u201crec/*.jpg\u201d", "its quotes are read as a part of it; write 'rec/*.jpg'"),
        ("'rec/*.jpg'", "its quotes are read as a part of it; write 'rec/*.jpg'"),
        ("rec/1.jpg,rec/a/*", "is a list, and only one path or pattern is read"),
        ("rec/1.jpg rec/1.jpg", "is a list, and only one path or pattern is read"),
        ("rec/1.jpg,no.jpg", "matches no file (looked for in "),
        ("rec1", "is a folder; write --x='rec1/*'"),
        ("rce/1.jpg", "; did you mean rec/1.jpg?"),
        ("rec/a/2.jgp", "; did you mean rec/a/2.jpg?"),
        ("rce/*.jpg", "; did you mean 'rec/*.jpg'?"),
    ],
)
def test_what_is_said_of_a_wrong_pattern(tree, pattern, said):
    with pytest.raises(UserError) as caught:
        files.list_files(pattern, "x")
    assert str(caught.value).startswith(f"--x={pattern}: ") and said in str(caught.value)
    advice = str(caught.value).partition("write --x=")[2]
    if advice:  # What it says to write is right.
        assert files.list_files(*shlex.split(advice), "x")


def shard(split):
    return f"{split}-00000-of-00001"


@pytest.mark.parametrize(
    ("flag", "names", "said"),
    [
        ("train_data_pattern", [shard("train"), shard("test")], "write --train_data_pattern='in [0]/train-*'"),
        ("train_data_pattern", [f"a/b/{shard('train')}", "a/1.jpg"], "write --train_data_pattern='in [0]/a/b/train-*'"),
        ("train_data_pattern", [shard("mine")], "write --train_data_pattern='in [0]/mine-*'"),
        ("train_data_pattern", [shard("test"), shard("validation")], "holds test-* and validation-*, but no train-*"),
        ("eval_data_pattern", [shard("train"), shard("validation")], "='in [0]/validation-*'"),
        ("input_data_pattern", [shard("train"), shard("test")], "='in [0]/test-*'"),
        ("input_data_pattern", [shard("train")], "='in [0]/train-*'"),
        ("json_prediction_files_pattern", [shard("prediction.results")], "='in [0]/prediction.results-*'"),
        ("train_data_pattern", ["a/cat/1.JPG"], "--images='in [0]' --output_dir='in [0]-shards'"),
        (
            "train_data_pattern",
            ["read.me", "train.zip"],
            "--images='in [0]/train.zip' --output_dir='in [0]/train-shards'",
        ),
        ("eval_data_pattern", ["1.webp"], "make shards of them first: "),
        ("train_data_pattern", [], "is an empty folder"),
        ("train_data_pattern", ["cats.tfrecord"], "write --train_data_pattern='in [0]/*'"),
    ],
)
def test_what_is_said_of_a_folder(tmp_path, monkeypatch, flag, names, said):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "in [0]", dict.fromkeys(names, b"x")).mkdir(exist_ok=True)
    with pytest.raises(UserError) as caught:
        files.list_files("in [0]", flag)
    assert str(caught.value).startswith(f"--{flag}=in [0]: ") and said in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "images"),
    [("in/photos/cat/*", "in/photos"), ("in/photos/x/1.jpg", "in/photos/x"), ("in/p.zip", "in/p.zip")],
)
def test_what_is_said_of_pictures(tmp_path, monkeypatch, pattern, images):
    from cats_vs_dogs import bad_examples, readers

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(REPOSITORY / "cats_vs_dogs" / "train.py")])
    write_folder(tmp_path / "in", {"photos/cat/1.jpg": JPEG, "photos/x/1.jpg": JPEG})
    write_zip(tmp_path / "in" / "p.zip", {"cat/1.jpg": JPEG})
    with pytest.raises(UserError) as caught:
        bad_examples.open_shards(pattern, "train_data_pattern", readers.get_reader(True, 8, "area"), "fail")
    command = f"{utils.python_command()} {REPOSITORY}/cats_vs_dogs/convert_images_to_tfrecords.py --images={images} "
    assert command in str(caught.value)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="glob.glob has no include_hidden")
def test_patterns_match_what_those_of_python_do(tree):
    write_folder(tree, {".a/.b.jpg": b"x", ".a/c.jpg/d": b"x", "no?/e": b"x"})
    os.symlink("gone", tree / "rec" / "link.jpg")
    patterns = ["*", "*/", "*/*", "*/*/", "**/*", ".*/*.jpg", "*/*.jpg/", "rec/a", "gone", "gone/*", "*/b", "*/1.jpg/"]
    patterns += ["./*", "rec//*.jpg", "rec [[]1]/*", "rec[1]/*", "no[?]/*", "", f"{glob.escape(str(tree))}/*/*", "/*"]
    for pattern in patterns:
        expected = sorted(glob.glob(pattern, include_hidden=True))  # novm - Not with Python 3.10.
        assert sorted(file_patterns._glob(pattern)) == expected, pattern
