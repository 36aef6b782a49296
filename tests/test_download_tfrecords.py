"""Downloading from Cloud Storage, against a server on loopback."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
import types

import google_crc32c
import pytest
from conftest import REPOSITORY
from fake_gcs import FakeGcs

from cats_vs_dogs import download_tfrecords
from cats_vs_dogs.download_tfrecords import download, file_names, matches, parse_source
from cats_vs_dogs.utils import UserError

TRAIN = {f"shards/train-{i:05d}-of-00003": random.Random(i).randbytes(50_000 + i) for i in range(3)}
VALIDATION = {"shards/validation-00000-of-00001": random.Random(9).randbytes(20_000)}
FIRST = "shards/train-00000-of-00003"


@pytest.fixture
def gcs(monkeypatch):
    """A server with a bucket "cvd", honoured by the library; retries do not wait long."""
    with FakeGcs(cvd={**TRAIN, **VALIDATION}, empty={}) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.address)
        monkeypatch.setattr(download_tfrecords, "FIRST_DELAY_SECONDS", 0.01)
        monkeypatch.setattr(download_tfrecords, "LISTING_SECONDS", 0.3)
        monkeypatch.setattr(download_tfrecords, "DOWNLOAD_SECONDS", 0.3)
        yield server


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def short(objects):
    return {name.rpartition("/")[2]: data for name, data in objects.items()}


def media_only(fault):
    """Orders a fault for the requests for bytes of an object only; it is called with the first byte asked for."""

    def of_request(number, path, offset):
        return None if offset is None else fault(offset)

    return of_request


# ---- What is downloaded, and to where.


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("shards/train-*", TRAIN),
        ("shards/train-0000[01]-*", {name: data for name, data in TRAIN.items() if "00002" not in name}),
        ("shards/train-0000?-of-00003", TRAIN),
        ("*/validation-*", VALIDATION),
        ("**", TRAIN | VALIDATION),
        ("shards", TRAIN | VALIDATION),
        ("shards/", TRAIN | VALIDATION),
        ("", TRAIN | VALIDATION),
        (FIRST, {FIRST: TRAIN[FIRST]}),
    ],
)
def test_patterns_and_folders(gcs, tmp_path, pattern, expected):
    gcs.page_size = 3  # The listing has more than one page.
    done = download(f"gs://cvd/{pattern}", str(tmp_path / "new" / "folder"))
    assert files_in(tmp_path / "new" / "folder") == short(expected)
    assert done == {"fetched": len(expected)}


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("a/b/c", "a/*", False),
        ("a/b/c", "a/**", True),
        ("a/b/c", "a/*/c", True),
        ("a/b/c", "a/b", True),
        ("a/bc", "a/b", False),
        ("a/b", "A/b", False),
        ("a/b", "a/?", True),
        ("a[1]", "a[1]", True),  # An object that has that name.
        ("a1", "a[1]", True),
        ("a2", "a[!1]", True),
    ],
)
def test_matches(name, pattern, expected):
    assert matches(name, pattern) == expected


def test_the_bytes_are_checked_by_the_checksum_that_cloud_storage_uses():
    assert google_crc32c.value(b"123456789") == 0xE3069283  # RFC 3720's CRC-32C; fake_gcs uses the same function.


def test_same_file_names_keep_their_path_below_the_pattern(gcs, tmp_path):
    gcs.buckets["cvd"] = {"x/a/1": b"one", "x/b/1": b"two", "x/b/2": b"three", "x/b/": b""}
    download("gs://cvd/x/*/*", str(tmp_path))
    assert files_in(tmp_path) == {"a/1": b"one", "b/1": b"two", "b/2": b"three"}
    assert file_names(["x/a/1", "x/b/2"], "x/*/*") == ["1", "2"]
    assert file_names(["x/a/1", "x/b/1"], "") == ["x/a/1", "x/b/1"]
    with pytest.raises(UserError, match='^"a/1" is an object, and also a folder with other objects'):
        file_names(["x/a/1", "x/a/1/z", "x/b/1"], "x/**")


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "a//evil", "a/./evil", "a\0evil", ".."])
def test_names_that_lead_out_of_the_destination_are_refused(gcs, tmp_path, name):
    gcs.buckets["cvd"][name] = b"evil"
    with pytest.raises(UserError, match="would be written outside of --destination"):
        download("gs://cvd/**", str(tmp_path / "inside"))
    assert files_in(tmp_path) == {}
    assert gcs.media_requests() == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gs://cvd/shards/test-*", "matches no object, and none begins with shards/test-;"),
        ("gs://cvd/*", r"matches no object; 4 begin with gs://cvd/, such as shards/train-00000-of-00003; \* matches"),
        ("gs://cvd/shards/train", r"matches no object; 3 begin with gs://cvd/shards/train,"),
        ("gs://empty", "the bucket is empty.*Kaggle"),
        ("gs://empty/*", "the bucket is empty"),
        ("gs://gone/*", r"there is no such bucket \(404\).*Kaggle.*PetImages.*convert_images_to_tfrecords.py"),
        ("shards/*", "^--source=shards/.: must be gs://, the name of a bucket, and a pattern"),
        ("gs://", "^--source=gs://: must be gs://, the name of a bucket"),
        ("gs://c*/shards/x", "must be gs://, the name of a bucket"),
    ],
)
def test_nothing_to_download(gcs, tmp_path, source, message):
    with pytest.raises(UserError, match=message):
        download(source, str(tmp_path))
    assert files_in(tmp_path) == {}


def test_files_are_downloaded_at_the_same_time(gcs, tmp_path):
    barrier = threading.Barrier(3)  # Each of three requests is answered when all three have come.

    def wait_for_the_others(offset):
        barrier.wait(timeout=10)

    gcs.fault = media_only(wait_for_the_others)
    assert download("gs://cvd/shards/train-*", str(tmp_path), num_workers=3) == {"fetched": 3}
    assert not barrier.broken


def test_parse_source():
    assert parse_source("gs://my-bucket/a/b*") == ("my-bucket", "a/b*")
    assert parse_source("gs://my-bucket/") == parse_source("gs://my-bucket") == ("my-bucket", "")


# ---- Starting again.


def test_complete_files_are_not_fetched_again(gcs, tmp_path):
    download("gs://cvd/shards/*", str(tmp_path))
    assert len(gcs.media_requests()) == 4
    gcs.requests.clear()
    assert download("gs://cvd/shards/*", str(tmp_path)) == {"complete": 4}
    assert len(gcs.requests) == 1  # The listing.
    (tmp_path / FIRST[7:]).write_bytes(b"x" * len(TRAIN[FIRST]))  # The right size is not enough.
    assert download("gs://cvd/shards/*", str(tmp_path)) == {"complete": 3, "fetched": 1}
    assert gcs.media_requests() == [(FIRST, None)]
    (tmp_path / FIRST[7:]).write_bytes(TRAIN[FIRST][:-1])
    assert download("gs://cvd/shards/*", str(tmp_path)) == {"complete": 3, "fetched": 1}
    assert gcs.media_requests() == [(FIRST, None)] * 2
    assert files_in(tmp_path) == short(TRAIN | VALIDATION)


@pytest.mark.parametrize("ending", ["1.part", "6.part", "4321.tmp", "{pid}.tmp"])
@pytest.mark.parametrize("is_complete", [False, True])
def test_incomplete_files_of_earlier_runs_are_deleted(gcs, tmp_path, ending, is_complete):
    """Those of a killed run, and the .part files of older versions of the script."""
    others = {"other.6.part": b"1", f"{FIRST[7:]}.other.6.tmp": b"2", f"{FIRST[7:]}.tmp": b"3", "6.part": b"4"}
    for name, data in {**others, f"{FIRST[7:]}.{ending.format(pid=os.getpid())}": TRAIN[FIRST][:99]}.items():
        (tmp_path / name).write_bytes(data)
    if is_complete:
        (tmp_path / FIRST[7:]).write_bytes(TRAIN[FIRST])
    download(f"gs://cvd/{FIRST}", str(tmp_path))
    assert gcs.media_requests() == ([] if is_complete else [(FIRST, None)])
    assert files_in(tmp_path) == {FIRST[7:]: TRAIN[FIRST], **others}


def test_an_object_with_the_name_of_an_incomplete_file_is_kept(gcs, tmp_path):
    gcs.buckets["cvd"] = {"a": b"1", "a.5.tmp": b"2"}
    download("gs://cvd/*", str(tmp_path))
    assert download("gs://cvd/*", str(tmp_path)) == {"complete": 2}
    assert files_in(tmp_path) == gcs.buckets["cvd"]


def test_an_empty_object(gcs, tmp_path):
    gcs.buckets["cvd"] = {"nothing": b""}
    assert download("gs://cvd/nothing", str(tmp_path)) == {"fetched": 1}
    assert files_in(tmp_path) == {"nothing": b""}
    assert download("gs://cvd/nothing", str(tmp_path)) == {"complete": 1}


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_killed_download_is_started_again(gcs, tmp_path, number, exit_code):
    """Killed while the server sends nothing more for one file; the next run fetches that file only."""
    objects = gcs.buckets["cvd"] = {"big": random.Random(5).randbytes(3_000_000), "small": b"1"}
    gcs.fault = lambda number, path, offset: ("stall", 2_000_000) if offset is not None and "big" in path else None
    # A shell ignores SIGINT in background jobs, and child processes inherit that.
    code = (
        "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv = sys.argv[1:]"
    )
    command = [sys.executable, "-c", f"{code}; runpy.run_path(sys.argv[0], run_name='__main__')"]
    command += [str(REPOSITORY / "cats_vs_dogs" / "download_tfrecords.py"), "--source=gs://cvd/*"]
    process = subprocess.Popen([*command, f"--destination={tmp_path}"], stderr=subprocess.PIPE, text=True)
    incomplete = tmp_path / f"big.{process.pid}.tmp"
    deadline = time.monotonic() + 60
    while not ((tmp_path / "small").exists() and incomplete.exists() and incomplete.stat().st_size > 1_900_000):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    began = time.monotonic()
    assert process.wait(timeout=30) == exit_code
    assert time.monotonic() - began < 5  # Requests time out after a minute.
    assert "Traceback" not in process.stderr.read()
    assert set(files_in(tmp_path)) == {"small"} | ({incomplete.name} if number == signal.SIGKILL else set())
    gcs.fault = media_only(lambda offset: None)
    gcs.requests.clear()
    assert download("gs://cvd/*", str(tmp_path)) == {"fetched": 1, "complete": 1}
    assert gcs.media_requests() == [("big", None)]
    assert files_in(tmp_path) == objects


# ---- A server that fails.


def test_a_wrong_checksum_is_fetched_again(gcs, tmp_path):
    wrong = b"x" * len(TRAIN[FIRST])
    gcs.fault = lambda number, path, offset: wrong if number == 2 else None
    assert download(f"gs://cvd/{FIRST}", str(tmp_path)) == {"fetched": 1}
    assert gcs.media_requests() == [(FIRST, None)] * 2
    assert files_in(tmp_path) == short({FIRST: TRAIN[FIRST]})


def test_a_checksum_that_stays_wrong_is_an_error(gcs, tmp_path):
    gcs.fault = media_only(lambda offset: b"x" * len(TRAIN[FIRST]))
    with pytest.raises(UserError, match=f"^{FIRST}: its CRC-32C differs from the bucket's, twice"):
        download(f"gs://cvd/{FIRST}", str(tmp_path))
    assert len(gcs.media_requests()) == 2
    assert files_in(tmp_path) == {}


def test_a_damaged_file_does_not_replace_the_older_one(gcs, tmp_path):
    (tmp_path / FIRST[7:]).write_bytes(b"of yesterday")
    gcs.fault = media_only(lambda offset: b"x" * len(TRAIN[FIRST]))
    with pytest.raises(UserError, match="twice"):
        download(f"gs://cvd/{FIRST}", str(tmp_path))
    assert files_in(tmp_path) == {FIRST[7:]: b"of yesterday"}


def test_a_broken_connection_is_resumed(gcs, tmp_path):
    gcs.fault = media_only(lambda offset: ("break", 20_000))
    download(f"gs://cvd/{FIRST}", str(tmp_path))
    assert gcs.media_requests() == [(FIRST, None), (FIRST, "bytes=20000-"), (FIRST, "bytes=40000-")]
    assert files_in(tmp_path) == short({FIRST: TRAIN[FIRST]})


def test_a_long_download_is_resumed_at_each_break(gcs, tmp_path, monkeypatch):
    """The library alone gives up at the first break after its time limit, even if bytes have arrived since."""
    monkeypatch.setattr(download_tfrecords, "DOWNLOAD_SECONDS", 0.0)
    gcs.fault = media_only(lambda offset: ("break", 10_000))
    download(f"gs://cvd/{FIRST}", str(tmp_path))
    assert [asked for _, asked in gcs.media_requests()][1:] == [f"bytes={n}0000-" for n in (1, 2, 3, 4)]
    assert files_in(tmp_path) == short({FIRST: TRAIN[FIRST]})


def test_a_server_that_always_breaks_off_ends_in_an_error(gcs, tmp_path):
    gcs.fault = media_only(lambda offset: ("break", 20_000 if offset == 0 else 0))
    with pytest.raises(UserError, match="Cloud Storage cannot be reached.*complete files are kept"):
        download(f"gs://cvd/{FIRST}", str(tmp_path))
    assert files_in(tmp_path) == {}


def test_damage_is_noticed_in_a_resumed_download(gcs, tmp_path):
    """The library does not check what it has resumed."""
    begin = TRAIN[FIRST][:20_000]
    faults = iter([("break", 20_000), b"x" * (len(TRAIN[FIRST]) - len(begin))])
    gcs.fault = media_only(lambda offset: next(faults, None))
    assert download(f"gs://cvd/{FIRST}", str(tmp_path)) == {"fetched": 1}
    assert gcs.media_requests() == [(FIRST, None), (FIRST, "bytes=20000-"), (FIRST, None)]
    assert files_in(tmp_path) == short({FIRST: TRAIN[FIRST]})


@pytest.mark.parametrize("status", [429, 503])
def test_every_third_request_fails(gcs, tmp_path, status):
    faulty = []

    def fault(number, path, offset):
        if number % 3 == 1:  # The first one too, which is the listing.
            faulty.append(path)
            return status
        return None

    gcs.fault = fault
    assert download("gs://cvd/**", str(tmp_path), num_workers=2) == {"fetched": 4}
    assert len(faulty) >= 2
    assert len(gcs.media_requests()) > 4
    assert files_in(tmp_path) == short(TRAIN | VALIDATION)


@pytest.mark.parametrize("when", ["listing", "downloading"])
@pytest.mark.parametrize(
    ("status", "message", "again"),
    [
        (400, "Cloud Storage answered 400: .*as ordered", False),
        (401, r"the bucket is closed to you \(401\).*Kaggle.*PetImages", False),
        (403, r"the bucket is closed to you \(403\).*Kaggle.*PetImages", False),
        (
            404,
            {"listing": "no such bucket .404.*Kaggle", "downloading": "replaced or deleted during the download"},
            False,
        ),
        (429, r"overloaded or disturbed \(429, also after retries\)", True),
        (503, r"overloaded or disturbed \(503, also after retries\)", True),
    ],
)
def test_a_server_that_always_refuses(gcs, tmp_path, when, status, message, again):
    gcs.fault = lambda number, path, offset: status if (when == "listing") == (offset is None) else None
    began = time.monotonic()
    with pytest.raises(UserError, match=message if isinstance(message, str) else message[when]) as error:
        download(f"gs://cvd/{FIRST}", str(tmp_path))
    assert str(error.value).startswith(f"--source=gs://cvd/{FIRST}: ")
    assert "\n" not in str(error.value)
    num_requests = len(gcs.requests) if when == "listing" else len(gcs.media_requests())
    assert num_requests > 2 if again else num_requests == 1
    assert time.monotonic() - began < 5
    assert FIRST[7:] not in files_in(tmp_path)


def test_an_object_replaced_after_listing(gcs, tmp_path):
    def replace(offset):
        gcs.generations["cvd", FIRST] = 2

    gcs.fault = media_only(replace)
    with pytest.raises(UserError, match="replaced or deleted during the download"):
        download(f"gs://cvd/{FIRST}", str(tmp_path))
    assert download(f"gs://cvd/{FIRST}", str(tmp_path)) == {"fetched": 1}
    assert files_in(tmp_path) == short({FIRST: TRAIN[FIRST]})


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("http://127.0.0.1:9", ".*Connection refused"),
        ("http://nowhere.invalid:80", ".*Failed to resolve 'nowhere.invalid'"),
        ("nonsense", "Invalid URL"),
        ("https://127.0.0.1:9", ".*CA certificate bundle, invalid path: /nowhere.pem"),
    ],
)
def test_no_network(gcs, tmp_path, monkeypatch, host, reason):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    with pytest.raises(UserError, match=rf"^--source=gs://cvd/\*: Cloud Storage cannot be reached: {reason}"):
        download("gs://cvd/*", str(tmp_path))


def test_after_an_error_no_other_file_is_begun(gcs, tmp_path):
    gcs.fault = media_only(lambda offset: 403)
    with pytest.raises(UserError, match="closed to you"):
        download("gs://cvd/**", str(tmp_path), num_workers=1)
    assert len(gcs.media_requests()) == 1


# ---- Credentials.


def test_credentials(monkeypatch, tmp_path):
    google_auth = pytest.importorskip("google.auth")
    from google.auth.credentials import AnonymousCredentials
    from google.auth.exceptions import DefaultCredentialsError
    from google.oauth2.credentials import Credentials

    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)

    def no_default(*unused_args, **unused_kwargs):
        raise DefaultCredentialsError("none here")

    monkeypatch.setattr(google_auth, "default", no_default)
    assert isinstance(download_tfrecords._make_client()._credentials, AnonymousCredentials)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/gone.json")
    with pytest.raises(UserError, match="^GOOGLE_APPLICATION_CREDENTIALS: none here; fix it"):
        download_tfrecords._make_client()
    mine = Credentials("token")
    monkeypatch.setattr(google_auth, "default", lambda *unused_args, **unused_kwargs: (mine, None))
    assert download_tfrecords._make_client()._credentials.token == "token"


def test_credentials_that_have_expired(gcs, tmp_path, monkeypatch):
    from google.auth.exceptions import RefreshError
    from google.cloud import storage

    def refuse(*unused_args, **unused_kwargs):
        raise RefreshError("invalid_grant:\nexpired")

    monkeypatch.setattr(storage.Client, "list_blobs", refuse)
    with pytest.raises(UserError, match="the credentials of this machine do not work: invalid_grant: expired; log in"):
        download("gs://cvd/*", str(tmp_path))


# ---- The disk.


def test_destinations_that_cannot_be_written(gcs, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder" / FIRST[7:]).mkdir(parents=True)
    for destination, message in (
        (tmp_path / "file", "is a file; name a folder"),
        (tmp_path / "file" / "below", "cannot be written to: Not a directory"),
        (tmp_path / "folder", f".*{FIRST[7:]} is a folder, but an object needs this name; name another folder"),
        ("/proc/nowhere", "cannot be written to: No such file or directory"),
    ):
        with pytest.raises(UserError, match=f"^--destination={destination}: {message}"):
            download("gs://cvd/**", str(destination))
    assert gcs.media_requests() == []
    assert (tmp_path / "file").read_text() == "mine"


def test_too_little_room_is_noticed_before_the_download(gcs, tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=170_002)
    monkeypatch.setattr(download_tfrecords.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"has 0\.2 MB free, and the download needs 0\.2 MB; make room"):
        download("gs://cvd/**", str(tmp_path))
    assert gcs.media_requests() == []
    usage.free += 1
    download("gs://cvd/**", str(tmp_path))
    usage.free = 0
    assert download("gs://cvd/**", str(tmp_path)) == {"complete": 4}  # What is there needs no room.


def test_a_disk_that_fills_up(gcs, fails_in_one_line, tmp_path):
    """A limit of 40 KB on the size of a file is what a full disk looks like to the script."""
    command = f"ulimit -f 40; exec {sys.executable} {REPOSITORY}/cats_vs_dogs/download_tfrecords.py "
    command += f"--source='gs://cvd/{FIRST}' --destination={tmp_path}"
    env = {"PYTHONDONTWRITEBYTECODE": "1"}
    line = fails_in_one_line("", command=["bash", "-c", command], env=env)
    assert f"--destination={tmp_path}: cannot be written: {os.strerror(errno.EFBIG)}; fix it" in line
    assert files_in(tmp_path) == {}


# ---- From the command line.


def test_as_a_user_runs_it(gcs, run_script, fails_in_one_line, tmp_path):
    flags = ("download_tfrecords", "--source=gs://cvd/shards/*", f"--destination={tmp_path}")
    process = run_script(*flags, "--num_workers=1")
    assert files_in(tmp_path) == short(TRAIN | VALIDATION)
    lines = process.stderr.strip().splitlines()
    assert lines[0] == f"1 of 4: {FIRST}, 0.1 MB, fetched"
    assert lines[-1] == f"4 files, 0.2 MB in {tmp_path}: 4 fetched, 0 already complete"
    assert len(lines) == 5
    assert "1 of 4" in run_script(*flags).stderr
    gcs.fault = lambda number, path, offset: 403
    assert "closed to you (403)" in fails_in_one_line(*flags)
    for wrong, message in (
        ("--source=", "--source=: must be gs://, the name of a bucket, and a pattern"),
        ("--source=shards/*", "--source=shards/*: must be gs://"),
        (
            "--destination=",
            "--destination=: must be a folder on this machine, such as --destination=/tmp/cvd_data",
        ),
        ("--destination=gs://cvd/copy", "--destination=gs://cvd/copy: must be a folder on this machine"),
    ):
        assert message in fails_in_one_line(*flags, wrong)


def test_tensorflow_is_not_imported(gcs, tmp_path):
    code = (
        "import sys; from cats_vs_dogs.download_tfrecords import download\n"
        f"download('gs://cvd/**', {str(tmp_path)!r}); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("sh [1]/train-*", "train-1"),
        ("sh [1]/**/train-*", "train-1 train-2"),
        ("sh [1]", "test-1 train-1 train-2"),
        ("sh [1]/train-1", "train-1"),
        ("sh [2-9]/train-*", "train-3"),
        ("sh[1]/train-*", ""),
    ],
)
def test_a_folder_of_exactly_the_name_is_no_pattern(gcs, tmp_path, pattern, expected):
    names = ["sh [1]/train-1", "sh [1]/test-1", "sh [1]/a/train-2", "sh 2/train-3", "sh 1/train-4"]
    gcs.buckets["cvd"] = dict.fromkeys(names, b"x")
    if not expected:
        with pytest.raises(UserError, match="matches no object"):
            download(f"gs://cvd/{pattern}", str(tmp_path))
        return
    download(f"gs://cvd/{pattern}", str(tmp_path))
    assert " ".join(sorted(files_in(tmp_path))) == expected
