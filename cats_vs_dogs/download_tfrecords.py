"""Downloads shards from Cloud Storage, for which `gsutil cp` was used in 2017.

    python cats_vs_dogs/download_tfrecords.py --source='gs://my-bucket/shards/*' --destination=/tmp/cvd_data

--source is a pattern or a folder. Started again, it goes on where it was broken off: files that are whole are not
fetched again, and of a file that is not whole only the rest is. The CRC-32C of every file is checked. A public bucket
needs no login; for any other, the default credentials of this machine are used.
"""

import base64
import collections
import contextlib
import dataclasses
import fnmatch
import glob
import logging as python_logging
import os
import queue
import re
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

if __package__ in (None, ""):  # Run as a file: import the package beside this file, from whatever folder.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from absl import flags, logging
from tqdm import tqdm

from cats_vs_dogs import utils

FLAGS = flags.FLAGS

# How long a failing request is tried again. Without a network, listing is what fails, and nobody wants to wait.
LISTING_SECONDS = 30.0
DOWNLOAD_SECONDS = 120.0

FIRST_DELAY_SECONDS = 1.0  # before a second try; it doubles each time, with some chance in it, up to a minute

_ELSEWHERE = (
    "the photographs can also be had as Kaggle's \"Dogs vs. Cats\" or as Microsoft's PetImages download; "
    "convert_images_to_tfrecords.py makes shards of either"
)
_BLOCK_BYTES = 2**20


def define_flags() -> None:
    """Defines the flags of this script."""
    flags.DEFINE_string(
        "source",
        "",
        "What to download, in quotes: a pattern such as 'gs://my-bucket/shards/train-*', a folder, or one object. *, "
        "? and [abc] match within one folder; with ** in the pattern, they match across folders.",
    )
    flags.DEFINE_string("destination", "", "Folder for the files. It is made if it is not there.")
    flags.DEFINE_integer(
        "num_workers", 8, "Number of files that are downloaded at the same time.", lower_bound=1, upper_bound=64
    )


def main() -> None:
    """Downloads what --source names."""
    if not FLAGS.source:
        raise utils.UserError("--source is empty; name shards on Cloud Storage: --source='gs://my-bucket/shards/*'")
    if not FLAGS.destination:
        raise utils.UserError("--destination is empty; name a folder for the files: --destination=/tmp/cvd_data")
    for name in ("google", "urllib3"):  # They warn of what is tried again, or is no matter, such as a login not there.
        python_logging.getLogger(name).setLevel(python_logging.ERROR)
    download(FLAGS.source, FLAGS.destination, FLAGS.num_workers)


@dataclasses.dataclass(frozen=True)
class Shard:
    """An object of the bucket, as it was when the bucket was listed.

    Attributes:
        bucket: the library's `Bucket`.
        name: its name in the bucket, with "/" between folders.
        size: its number of bytes.
        generation: the number of this version of it.
        crc32c: its CRC-32C, None if the bucket does not tell (objects with a customer's encryption key).
    """

    bucket: Any
    name: str
    size: int
    generation: int
    crc32c: int | None


class _Stopped(Exception):
    """Ends a thread whose work nobody waits for any more."""


def download(source: str, destination: str, num_workers: int = 8) -> collections.Counter:
    """Downloads the objects that a pattern or folder names.

    Args:
        source: gs://bucket/ and a pattern, a folder, or the name of one object.
        destination: the folder for the files.
        num_workers: number of files that are downloaded at the same time.

    Returns:
        How many files were "fetched", and how many were "whole" already.

    Raises:
        UserError: if the bucket or the network fails, nothing matches, or a file cannot be written. What was fetched
            until then stays, and the next download goes on from there.
    """
    bucket, pattern = parse_source(source)
    if "://" in destination:
        raise utils.UserError(f"--destination={destination}: must be a folder of this machine")
    with contextlib.closing(_make_client()) as client:
        with _explained(source, listing=True):
            shards = list_shards(client, bucket, pattern)
        names = file_names([shard.name for shard in shards], pattern)
        with _writing(destination):
            _check_folder(destination, shards, names)
        jobs = [(shard, os.path.join(destination, name)) for shard, name in zip(shards, names, strict=True)]
        return _download_all(jobs, source, destination, num_workers)


# ---- Finding the objects.


def parse_source(source: str) -> tuple[str, str]:
    """Returns the bucket of a gs:// address, and the pattern behind it ("" for the whole bucket).

    Raises:
        UserError: if it is no such address.
    """
    match = re.fullmatch(r"gs://([^/]*)/?(.*)", source, flags=re.DOTALL)
    if not match:
        raise utils.UserError(f"--source={source}: must begin with gs://, such as --source='gs://my-bucket/shards/*'")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]+[a-z0-9]", match[1]):
        raise utils.UserError(
            f'--source={source}: "{match[1]}" is no name of a bucket; a pattern may begin only behind gs://my-bucket/'
        )
    return match[1], match[2]


def _make_client() -> Any:
    """Returns a client with this machine's credentials, or one without any if there are none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # Of Python versions that it will no longer support.
            from google.auth.exceptions import DefaultCredentialsError
            from google.cloud import storage
    except ImportError as error:
        raise utils.UserError(f"{error}; install it: pip install google-cloud-storage") from error
    # For its traces the library would ask about the bucket in the background, which readers of objects may not even do.
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    try:
        return storage.Client(project=None)  # Reading needs no project, but credentials may come without one.
    except DefaultCredentialsError as error:
        if "GOOGLE_APPLICATION_CREDENTIALS" in os.environ:  # These are wanted, so do not go on without.
            raise utils.UserError(f"GOOGLE_APPLICATION_CREDENTIALS: {error}; mend it, or unset it") from error
        return storage.Client.create_anonymous_client()


def _retry(seconds: float) -> Any:
    """Returns the library's own rule of what to try again (429, 5xx, broken connections), for a limited time."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(seconds).with_delay(initial=FIRST_DELAY_SECONDS, maximum=60, multiplier=2)


def list_shards(client: Any, bucket: str, pattern: str) -> list[Shard]:
    """Lists the objects that a pattern or folder names, sorted by name.

    Args:
        client: a `google.cloud.storage.Client`.
        bucket: name of the bucket.
        pattern: what is behind the bucket in the address.

    Raises:
        UserError: if there is none.
    """
    blobs = client.list_blobs(
        bucket,
        prefix=_literal_part(pattern),
        fields="items(name,size,generation,crc32c),nextPageToken",
        retry=_retry(LISTING_SECONDS),
    )
    listed = [blob for blob in blobs if not blob.name.endswith("/")]  # Such an object stands for an empty folder.
    shards = [
        Shard(blob.bucket, blob.name, int(blob.size), int(blob.generation), _decode_crc32c(blob.crc32c))
        for blob in listed
        if matches(blob.name, pattern)
    ]
    if shards:
        return sorted(shards, key=lambda shard: shard.name)
    source = f"--source=gs://{bucket}/{pattern}"
    if listed:
        raise utils.UserError(
            f"{source}: matches no object; {len(listed)} begin with gs://{bucket}/{_literal_part(pattern)}, such as "
            f"{listed[0].name}; * matches within one folder, ** also across folders"
        )
    if not _literal_part(pattern):
        raise utils.UserError(f"{source}: the bucket is empty; {_ELSEWHERE}")
    raise utils.UserError(f"{source}: matches no object, and none begins so; look up the path in the bucket")


def matches(name: str, pattern: str) -> bool:
    """Whether an object is named by a pattern: it is that object, is in that folder, or fits the wildcards."""
    if name == pattern or name.startswith(pattern if pattern.endswith("/") or not pattern else f"{pattern}/"):
        return True
    if "**" in pattern:
        return fnmatch.fnmatchcase(name, pattern)
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _literal_part(pattern: str) -> str:
    """Returns what is before the first wildcard; the names of all matches begin so."""
    return re.split(r"[*?\[]", pattern, maxsplit=1)[0]


def _decode_crc32c(text: str | None) -> int | None:
    return int.from_bytes(base64.b64decode(text), "big") if text else None


def file_names(names: Sequence[str], pattern: str) -> list[str]:
    """Returns the path below the destination of each object.

    That is the last part of its name, as with `gsutil cp`. If two were the same then, all keep their path below the
    folder that the pattern begins with.

    Args:
        names: names of objects that match `pattern`.
        pattern: what is behind the bucket in the address.

    Raises:
        UserError: if a file would be outside of the destination, or would have to be a folder too.
    """
    for name in names:
        unsafe = {"", ".", ".."} & set(name.split("/")) or "\0" in name
        if unsafe or (os.sep != "/" and (os.sep in name or os.path.splitdrive(name)[0])):
            raise utils.UserError(
                f"the object {name!r} would be written outside of --destination, or has no proper file name; it is "
                "not downloaded, and nothing else either: name a pattern that leaves it out"
            )
    short = [name.rpartition("/")[2] for name in names]
    if len(set(short)) == len(short):
        return short
    start = len(_literal_part(pattern).rpartition("/")[0])
    below = [name[start:].lstrip("/") for name in names]
    folders = {"/".join(path.split("/")[:depth]) for path in below for depth in range(1, path.count("/") + 1)}
    for path in below:
        if path in folders:
            raise utils.UserError(
                f'"{path}" is an object and a folder with others, which no disk can hold; name a pattern that '
                "leaves one of them out"
            )
    return below


# ---- Fetching them.


def _check_folder(destination: str, shards: Sequence[Shard], names: Sequence[str]) -> None:
    """Makes the destination, and makes sure that all will fit."""
    if os.path.isfile(destination):
        raise utils.UserError(f"--destination={destination}: is a file; name a folder")
    os.makedirs(destination, exist_ok=True)
    probe = os.path.join(destination, f".write-test-{os.getpid()}")
    with open(probe, "wb"):
        pass
    os.remove(probe)
    missing = 0
    for shard, name in zip(shards, names, strict=True):
        path = os.path.join(destination, name)
        if _size(path) != shard.size:  # Whether a file of that size is the right one is found out later.
            missing += max(0, shard.size - _size(_part_path(path, shard), missing=0))
    free = shutil.disk_usage(destination).free
    if missing > free:
        raise utils.UserError(
            f"--destination={destination}: has {free / 1e6:,.1f} MB free, and {missing / 1e6:,.1f} MB are to be "
            "downloaded; make room, or name a folder on another disk"
        )


def _download_all(
    jobs: Sequence[tuple[Shard, str]], source: str, destination: str, num_workers: int
) -> collections.Counter:
    """Downloads (object, path) pairs in threads; the first error ends it."""
    pending = collections.deque(jobs)
    ended: queue.Queue = queue.Queue()
    stop = threading.Event()
    lock = threading.Lock()
    num_bytes = sum(shard.size for shard, _ in jobs)
    bar = tqdm(total=num_bytes, unit="B", unit_scale=True, desc="downloading", disable=None)

    def count(more: int) -> None:
        if stop.is_set():
            raise _Stopped
        with lock:
            bar.update(more)

    def work() -> None:
        while not stop.is_set():
            try:
                shard, path = pending.popleft()
            except IndexError:
                return
            try:
                with _explained(source, listing=False), _writing(destination):
                    ended.put((shard, _get(shard, path, count)))
            except BaseException as error:  # Raised again below, in the thread that can end the script.
                ended.put((shard, error))
                return

    # Not a pool: its threads would be waited for at Ctrl-C, each up to a minute in a request. A file that such a thread
    # leaves half written is one that the next download goes on with.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(num_workers, len(jobs)))]
    done: collections.Counter = collections.Counter()
    try:
        for thread in threads:
            thread.start()
        for number in range(1, len(jobs) + 1):
            shard, outcome = ended.get()
            if isinstance(outcome, BaseException):
                raise outcome
            done[outcome] += 1
            if bar.disable:  # There is no terminal.
                how = "fetched" if outcome == "fetched" else "was whole already"
                logging.info("%d of %d: %s, %.1f MB, %s", number, len(jobs), shard.name, shard.size / 1e6, how)
    finally:
        stop.set()
        deadline = time.monotonic() + 1  # Those that are not waiting for the network end at once.
        for thread in threads:
            if thread.ident:
                thread.join(max(0.0, deadline - time.monotonic()))
        bar.close()
    logging.info(
        "%d files, %.1f MB in %s: %d fetched, %d were whole already",
        len(jobs),
        num_bytes / 1e6,
        destination,
        done["fetched"],
        done["whole"],
    )
    return done


def _get(shard: Shard, path: str, count: Callable[[int], None]) -> str:
    """Makes `path` a whole copy of an object; returns "whole" if it was, else "fetched"."""
    if _size(path) == shard.size and shard.crc32c in (None, _crc32c_of(path)):
        count(shard.size)
        return "whole"
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    part_path = _part_path(path, shard)
    for other in glob.glob(f"{glob.escape(path)}.*.part"):  # Begun on a version that has been replaced since.
        if other != part_path and re.fullmatch(r"\.\d+\.part", other[len(path) :]):
            os.remove(other)
    for attempt in (1, 2):
        with contextlib.closing(_Part(part_path, count)) as part:
            _fetch(shard, part)
        if part.size == shard.size and shard.crc32c in (None, part.crc32c):
            os.replace(part_path, path)
            return "fetched"
        os.remove(part_path)
        count(-part.size)
        if attempt == 1:
            logging.warning("%s: its CRC-32C is not that of the bucket; fetching it again from the start", shard.name)
    raise utils.UserError(
        f"{shard.name}: its CRC-32C is not that of the bucket, twice; something on the way damages it (a proxy, or "
        "this machine's memory); try again, or from another network"
    )


def _fetch(shard: Shard, part: "_Part") -> None:
    """Appends the rest of an object to a file."""
    from google.api_core.exceptions import RetryError

    while part.size < shard.size:
        size_before = part.size
        # A new one each time: a download changes its fields, and this version of the object is to be asked for always.
        blob = shard.bucket.blob(shard.name, generation=shard.generation)
        try:
            blob.download_to_file(
                part,
                start=part.size or None,
                raw_download=True,  # The bytes as they are stored, which are those that the CRC-32C is of.
                checksum=None,  # The library does not check it if only the rest is fetched; `_get` does.
                retry=_retry(DOWNLOAD_SECONDS),
            )
            return
        except RetryError:
            # The library counts its time from the start, so a long download that breaks off would never be resumed.
            if part.size == size_before:
                raise


class _Part:
    """The file that a download is written to until it is whole.

    Attributes:
        size: number of bytes in it.
        crc32c: the CRC-32C of these.
    """

    def __init__(self, path: str, count: Callable[[int], None]):
        import google_crc32c

        self._count = count
        self.size = _size(path, missing=0)
        self._checksum = google_crc32c.Checksum()
        self._file = open(path, "ab")  # noqa: SIM115 - closed by close().
        for block in _blocks(path):
            self._checksum.update(block)
        count(self.size)

    @property
    def crc32c(self) -> int:
        return int.from_bytes(self._checksum.digest(), "big")

    def write(self, data: bytes) -> int:
        """Called by the library with what has come."""
        self._file.write(data)
        self._checksum.update(data)
        self.size += len(data)
        self._count(len(data))
        return len(data)

    def close(self) -> None:
        self._file.close()


def _part_path(path: str, shard: Shard) -> str:
    """Returns where an object is written until it is whole. A part of another version of it is another file."""
    return f"{path}.{shard.generation}.part"


def _size(path: str, missing: int = -1) -> int:
    """Returns the size of a file, and `missing` if there is none."""
    return os.path.getsize(path) if os.path.isfile(path) else missing


def _blocks(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _crc32c_of(path: str) -> int:
    import google_crc32c

    checksum = google_crc32c.Checksum()
    for block in _blocks(path):
        checksum.update(block)
    return int.from_bytes(checksum.digest(), "big")


# ---- Errors, in one line.


@contextlib.contextmanager
def _writing(destination: str) -> Iterator[None]:
    """Turns errors of the disk into one line. Lets those of the network pass, which are OSErrors too."""
    from requests import RequestException

    try:
        yield
    except OSError as error:
        if isinstance(error, (RequestException, ConnectionError, TimeoutError)):
            raise
        what = f" {error.filename}" if error.filename not in (None, destination) else ""
        raise utils.UserError(
            f"--destination={destination}: cannot be written:{what} {error.strerror or error}; mend it, or name "
            "another folder; started again, it goes on with what is there"
        ) from error


@contextlib.contextmanager
def _explained(source: str, listing: bool) -> Iterator[None]:
    """Turns errors of Cloud Storage and of the network into one line."""
    from google.api_core.exceptions import GoogleAPICallError, RetryError
    from google.auth.exceptions import GoogleAuthError, InvalidOperation, TransportError
    from google.cloud.storage.exceptions import InvalidResponse
    from requests import RequestException
    from urllib3.exceptions import HTTPError

    of_network = (RequestException, HTTPError, ConnectionError, TimeoutError)
    try:
        yield
    except (GoogleAPICallError, RetryError, GoogleAuthError, InvalidResponse, *of_network) as error:
        cause = error.cause if isinstance(error, RetryError) and error.cause else error
        name = f"--source={source}"
        if isinstance(cause, GoogleAPICallError):
            raise utils.UserError(f"{name}: {_say_status(cause.code, cause.message, listing)}") from error
        if isinstance(cause, InvalidResponse):
            raise utils.UserError(f"{name}: {_say_status(cause.response.status_code, str(cause), listing)}") from error
        if isinstance(cause, InvalidOperation):  # After a 401 the library logs in anew; without a login it cannot.
            raise utils.UserError(f"{name}: {_say_status(401, '', listing)}") from error
        if isinstance(cause, GoogleAuthError) and not isinstance(cause, TransportError):
            raise utils.UserError(
                f"{name}: the credentials of this machine do not work: {_short(cause)}; log in again: "
                "gcloud auth application-default login"
            ) from error
        # requests wraps urllib3's error, whose reason is the part that says something.
        reason = getattr(cause.args[0], "reason", cause) if cause.args else cause
        raise utils.UserError(
            f"{name}: Cloud Storage cannot be reached: {_short(reason)}; look at the network (and at https_proxy, if "
            "you need one) and start again with the same flags, which goes on with what is there"
        ) from error


def _say_status(code: int | None, message: str, listing: bool) -> str:
    code = int(code or 0)
    if code == 404 and listing:
        return f"there is no such bucket (404), or not any more; {_ELSEWHERE}"
    if code == 404:
        return "an object was replaced or deleted meanwhile (404); start again with the same flags"
    if code in (401, 403):
        return (
            f"the bucket is closed to you ({code}); if you may read it, log in: gcloud auth application-default login; "
            f"{_ELSEWHERE}"
        )
    if code in (408, 429) or code >= 500:
        return (
            f"Cloud Storage has too much to do or is disturbed ({code}, also when asked again); start again later with "
            "the same flags, which goes on with what is there"
        )
    return f"Cloud Storage answered {code}: {_short(message)}"


def _short(error: object) -> str:
    """Returns the message of an error, of which the libraries' can be as long as a page."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."


if __name__ == "__main__":
    utils.run_script(main, define_flags)
