"""Tests of the sources of photos: folders and .zip files, good, odd and malicious ones."""

import os
import struct
import tracemalloc
import zipfile

import pytest
from photo_files import JPEG, write_folder, write_zip

from cats_vs_dogs import photo_sources
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
