"""Tests of the sources of photos: folders and .zip files, good, odd and malicious ones."""

import os
import struct
import tarfile
import tracemalloc
import zipfile

import pytest
from photo_files import JPEG, write_folder, write_zip

from cats_vs_dogs import convert_images_to_tfrecords, photo_sources
from cats_vs_dogs.pictures import BadImage
from cats_vs_dogs.utils import UserError


def contents(path):
    """Returns {path in the source: bytes, or the reason why they cannot be read}."""
    found = {}
    with photo_sources.open_source(str(path)) as source:
        for name, key in source.files():
            assert name not in found
            try:
                found[name] = source.read(key)
            except BadImage as error:
                found[name] = str(error)
    return found


@pytest.mark.parametrize("make", [write_folder, write_zip])
@pytest.mark.parametrize("name", ["in.zip", "my photos [0-9] *?.zip", "고양이.zip"])
def test_a_path_is_never_a_pattern(tmp_path, make, name):
    files = {"a [1].jpg": b"one", "cat/b*.jpg": b"two", "cat/deep er/c.jpg": b"three"}
    assert contents(make(tmp_path / name, files)) == files


def test_korean_names_from_windows_and_macos(tmp_path):
    path = write_zip(tmp_path / "in.zip", {"cat/AAAA.jpg": b"1", "dog/BBBBBB.jpg": b"2", "dog/U.jpg": b"3"})
    # zipfile always marks non-ASCII names as UTF-8, so the bytes are replaced afterwards.
    data = path.read_bytes().replace(b"AAAA", "나비".encode("cp949")).replace(b"BBBBBB", "바둑".encode())
    path.write_bytes(data)
    assert contents(path) == {"cat/나비.jpg": b"1", "dog/바둑.jpg": b"2", "dog/U.jpg": b"3"}
    folder = write_folder(tmp_path / "folder", {"dog.1.jpg": b"4"})
    with open(os.fsencode(folder) + b"/cat." + "나비".encode("cp949") + b".jpg", "wb") as file:
        file.write(b"5")
    assert contents(folder) == {"dog.1.jpg": b"4", "cat.나비.jpg": b"5"}


def test_members_that_cannot_be_read_have_a_reason(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "in.zip", {"good.jpg": JPEG})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("lzma.jpg", JPEG, zipfile.ZIP_LZMA)
        archive.writestr("large.jpg", b"x" * 5000)
        archive.writestr("encrypted.jpg", JPEG)
        archive.getinfo("encrypted.jpg").flag_bits |= 1  # Written to the directory when the archive is closed.
        archive.writestr("damaged.jpg", b"damaged here")
        archive.writestr("windows\\c.jpg", b"a backslash between folders")
    path.write_bytes(path.read_bytes().replace(b"damaged here", b"damaged hers", 1))
    monkeypatch.setattr(photo_sources, "MAX_FILE_BYTES", 4000)
    found = contents(path)
    assert found.pop("good.jpg") == JPEG
    assert found.pop("windows/c.jpg") == b"a backslash between folders"
    assert "method" in found.pop("lzma.jpg")
    assert "5000 bytes; the limit is 4000" in found.pop("large.jpg")
    assert "encrypted" in found.pop("encrypted.jpg")
    assert "CRC" in found.pop("damaged.jpg")
    assert not found


def test_zip_bombs_take_no_memory(tmp_path):
    real, small, huge = 100 * 2**20, 1001, 2**31
    data = write_zip(tmp_path / "in.zip", {"bomb": bytes(real), "claims": bytes(small)}).read_bytes()
    # The headers now say that "claims" has gigabytes, and that "bomb" has about a kilobyte.
    for old, new in ((small, huge), (real, small)):
        assert data.count(struct.pack("<I", old)) == 2
        data = data.replace(struct.pack("<I", old), struct.pack("<I", new))
    (tmp_path / "in.zip").write_bytes(data)
    tracemalloc.start()
    found = contents(tmp_path / "in.zip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20
    assert "damaged in the .zip: Bad CRC-32" in found["bomb"]
    assert "2147483648 bytes; the limit is" in found["claims"]


def test_links_and_special_files_in_a_folder(tmp_path):
    folder = write_folder(tmp_path / "in", {"real/1.jpg": b"one", "dog/2.jpg": b"two"})
    (folder / "cat").symlink_to(folder / "real")
    (folder / "dog" / "loop").symlink_to(folder)
    os.mkfifo(folder / "dog" / "3.jpg")
    (folder / "dog" / "4.jpg").symlink_to(folder / "nowhere")
    reason = "not a regular file, or a broken link"
    # "cat" and "real" are one folder, which is visited under its first name.
    assert contents(folder) == {"cat/1.jpg": b"one", "dog/2.jpg": b"two", "dog/3.jpg": reason, "dog/4.jpg": reason}


def test_a_large_file_in_a_folder_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(photo_sources, "MAX_FILE_BYTES", 4)
    folder = write_folder(tmp_path / "in", {"a": b"1234", "b": b"12345"})
    assert contents(folder) == {"a": b"1234", "b": "5 bytes; the limit is 4"}


def test_a_broken_or_missing_source_is_an_error(tmp_path):
    complete = write_zip(tmp_path / "in.zip", {"cat.0.jpg": JPEG}).read_bytes()
    (tmp_path / "in.zip").write_bytes(complete[:-30])
    with pytest.raises(UserError, match=r"--images=.*in.zip: neither a folder nor a complete \.zip.*download it again"):
        contents(tmp_path / "in.zip")
    with pytest.raises(UserError, match="--images=.*other.zip: no such file or folder"):
        contents(tmp_path / "other.zip")


def tar(kind, tmp_path):
    """Returns the bytes of a tar of one photo, compressed or not, as `tarfile` writes it."""
    with tarfile.open(tmp_path / "tar", f"w:{kind}") as archive:
        (tmp_path / "cat.0.jpg").write_bytes(JPEG)
        archive.add(tmp_path / "cat.0.jpg", "cat.0.jpg")
    return (tmp_path / "tar").read_bytes()


UNPACK = "only .zip is read; unpack it first, then give the folder"
OTHERS = {
    "gz": (lambda path: tar("gz", path), f"is an archive of the kind gzip, and {UNPACK}"),
    "bz2": (lambda path: tar("bz2", path), f"is an archive of the kind bzip2, and {UNPACK}"),
    "xz": (lambda path: tar("xz", path), f"is an archive of the kind xz, and {UNPACK}"),
    "tar": (lambda path: tar("", path), f"is an archive of the kind tar, and {UNPACK}"),
    "zstd": (lambda path: b"\x28\xb5\x2f\xfd\x04\x00", f"is an archive of the kind zstd, and {UNPACK}"),
    "7z": (lambda path: b"7z\xbc\xaf\x27\x1c\x00\x04", f"is an archive of the kind 7z, and {UNPACK}"),
    "rar": (lambda path: b"Rar!\x1a\x07\x01\x00", f"is an archive of the kind rar, and {UNPACK}"),
    "a tar of a zip": (lambda path: tar_of_a_zip(path), f"is an archive of the kind tar, and {UNPACK}"),
    "a web page": (lambda path: b"\n <!DOCTYPE html><html>log in", "is a web page, not a .zip: the site wants a login"),
    "an answer": (lambda path: b'{"code": 403}', "is named .zip, but is no .zip; download it again"),
    "nothing": (lambda path: b"", "is empty; download it again"),
    "a picture": (lambda path: JPEG, "is one picture; give the folder of the photos: --images="),
    "half a zip": (
        lambda path: write_zip(path / "x", {"cat.0.jpg": JPEG}).read_bytes()[:-30],
        "not a zip file); downl",
    ),
}


def tar_of_a_zip(tmp_path):
    """Returns a tar that ends like a .zip, so that `zipfile` opens it."""
    inner = write_zip(tmp_path / "train.zip", {"cat.0.jpg": JPEG})
    with tarfile.open(tmp_path / "tar", "w") as archive:
        archive.add(inner, "train.zip")
    return (tmp_path / "tar").read_bytes()


@pytest.mark.parametrize("name", ["in [1].zip", "in"])
@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_zip_is_named_by_its_first_bytes(tmp_path, kind, name):
    make, said = OTHERS[kind]
    path = tmp_path / name
    path.write_bytes(make(tmp_path))
    if kind == "an answer" and name == "in":
        said = "neither a folder nor a .zip; give a folder or .zip of photos"
    with pytest.raises(UserError) as caught:
        contents(path)
    assert str(caught.value).startswith(f"--images={path}: ") and said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["in.zip", "in.z01", "in.zip.001"])
def test_a_part_of_a_zip(tmp_path, name):
    for part in ("in.z01", "in.zip.001", name):
        (tmp_path / part).write_bytes(b"PK\x07\x08 some part")
    with pytest.raises(UserError, match=f"^--images={tmp_path}/{name}: is one of several parts of a .zip; unpack them"):
        contents(tmp_path / name)


def test_patterns_and_pipes_are_no_sources(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is no regular file; give a folder or a .zip"):
        contents(tmp_path / "pipe")
    with pytest.raises(UserError, match="a pattern is not read here; give the folder"):
        contents(tmp_path / "*.jpg")


@pytest.mark.parametrize(
    ("make", "files", "said"),
    [
        (
            write_folder,
            {"test1.zip": b"PK", "train.zip": b"PK", "read.me": b"x"},
            "train.zip, test1.zip; give the .zip itself",
        ),
        (write_folder, {"a/cats.tar.gz": b"x"}, "a/cats.tar.gz; unpack it first, then give the folder of the photos"),
        (
            write_zip,
            {"test1.zip": b"PK", "train.zip": b"PK"},
            "train.zip, test1.zip; unpack it first, then give the folder",
        ),
    ],
)
def test_archives_in_place_of_photos(tmp_path, make, files, said):
    path = make(tmp_path / "in [1]", files)
    with pytest.raises(UserError) as caught:
        convert_images_to_tfrecords.convert(str(path), str(tmp_path / "out"), 10, 1000, 1)
    assert str(caught.value).startswith(f"--images={path}: holds no pictures, but {said}")
    if "itself" in said:
        assert f"--images='{path}/train.zip'" in str(caught.value)
    assert not (tmp_path / "out").exists()
