"""Downloads shards from Cloud Storage. In 2017, `gsutil cp` did this.

    python cats_vs_dogs/download_tfrecords.py --source='gs://my-bucket/shards/*' --destination=/tmp/cvd_data

The size and CRC-32C of every file are checked. After an interruption, run the same command again: complete files are
kept, and an incomplete file is fetched again from its start. Only one download at a time may write to a folder.

A public bucket needs no login. For any other bucket, the default credentials of this machine are used.
"""

import base64
import collections
import contextlib
import fnmatch
import logging as python_logging
import os
import re
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from typing import Any

if __package__ in (None, ""):  # Run as a file: import the package beside this file, from whatever folder.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    import cats_vs_dogs  # noqa: F401 - Says in one line that the kit is not installed.

from absl import flags, logging
from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper

from cats_vs_dogs import file_patterns, files, utils
from cats_vs_dogs.path_flags import define_path

FLAGS = flags.FLAGS

# For how long a failing request is retried. Without a network, listing fails first, and it should fail soon.
LISTING_SECONDS = 30.0
DOWNLOAD_SECONDS = 120.0
FIRST_DELAY_SECONDS = 1.0  # Before the first retry. The delay doubles each time, with random jitter, up to a minute.

_SOURCE_PATTERN = r"(?s)gs://([a-z0-9][a-z0-9._-]+[a-z0-9])(?:/(.*))?"
_SOURCE_RULE = (
    "must be gs://, the name of a bucket, and a pattern, folder or object in it: --source='gs://my-bucket/shards/*'"
)
_OTHER_PHOTOS = (
    "the photos are also available as Kaggle's \"Dogs vs. Cats\" and as Microsoft's PetImages; "
    "convert_images_to_tfrecords.py makes shards of either"
)


def define_flags() -> None:
    """Defines the flags of this script."""
    define_path(
        "source",
        "",
        "What to download, in quotes: a pattern such as 'gs://my-bucket/shards/train-*', a folder, or one object. *, "
        "? and [abc] match within one folder; with ** in the pattern, they match across folders.",
        module_name="data",
    )
    define_path("destination", "", "Folder for the files. It is created if it does not exist.", module_name="output")
    flags.DEFINE_integer(
        "num_workers", 8, "Number of files to download at the same time.", 1, 64, module_name="machine"
    )
    flags.register_validator("source", lambda source: re.fullmatch(_SOURCE_PATTERN, source), _SOURCE_RULE)
    flags.register_validator(
        "destination",
        lambda path: path and not files.is_remote(path),
        "must be a folder on this machine, such as --destination=/tmp/cvd_data",
    )


def main() -> None:
    """Downloads the objects that --source names."""
    for name in ("google", "urllib3"):  # They warn about retries and a missing login, both harmless.
        python_logging.getLogger(name).setLevel(python_logging.ERROR)
    download(FLAGS.source, FLAGS.destination, FLAGS.num_workers)


def download(source: str, destination: str, num_workers: int = 8) -> collections.Counter:
    """Downloads the objects that a pattern or folder names.

    Args:
        source: a gs:// address, see --source.
        destination: local folder for the files, created if it does not exist.
        num_workers: number of files to download at the same time.

    Returns:
        The number of files "fetched", and of those that were already "complete".

    Raises:
        UserError: if the bucket or the network fails, nothing matches, or a file cannot be written. Complete files are
            kept.
    """
    bucket, pattern = parse_source(source)
    with contextlib.closing(_make_client()) as client:
        with _explained(source, destination, listing=True):
            blobs = list_blobs(client, bucket, pattern)
        names = file_names([blob.name for blob in blobs], pattern)
        jobs = [(blob, os.path.join(destination, name)) for blob, name in zip(blobs, names, strict=True)]
        with _explained(source, destination):
            _prepare_destination(destination, jobs)
        return _download_all(jobs, source, destination, num_workers)


# ---- Finding the objects.


def parse_source(source: str) -> tuple[str, str]:
    """Returns the bucket of a gs:// address, and the pattern after it ("" for the complete bucket).

    Raises:
        UserError: if it is not such an address.
    """
    match = re.fullmatch(_SOURCE_PATTERN, source)
    if not match:
        raise utils.UserError(f"--source={source}: {_SOURCE_RULE}")
    return match[1], match[2] or ""


def _make_client() -> Any:
    """Returns a `google.cloud.storage.Client` with this machine's credentials; an anonymous one if it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # About Python versions that it will stop supporting.
            from google.auth.exceptions import DefaultCredentialsError
            from google.cloud import storage
    except ImportError as error:
        raise utils.UserError(f"{error}; install it: pip install google-cloud-storage") from error
    # Otherwise the library requests the bucket's metadata in the background, which many readers are not allowed to do.
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    try:
        return storage.Client(project=None)  # Reading needs no project, and credentials may come without one.
    except DefaultCredentialsError as error:
        if "GOOGLE_APPLICATION_CREDENTIALS" in os.environ:  # The user wants these, not anonymous access.
            raise utils.UserError(f"GOOGLE_APPLICATION_CREDENTIALS: {error}; fix it, or unset it") from error
        return storage.Client.create_anonymous_client()


def _retry(seconds: float) -> Any:
    """Returns the library's rule for what to retry (429, 5xx, broken connections), with a time limit."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(seconds).with_delay(initial=FIRST_DELAY_SECONDS, maximum=60, multiplier=2)


def list_blobs(client: Any, bucket: str, pattern: str) -> list[Any]:
    """Lists the objects that a pattern or folder names, sorted by name.

    Args:
        client: a `google.cloud.storage.Client`.
        bucket: name of the bucket.
        pattern: what follows the bucket in the address.

    Returns:
        The library's `Blob`s, with their name, size, generation, and CRC-32C; the latter is None for objects that are
        encrypted with a customer's key.

    Raises:
        UserError: if no object matches.
    """
    prefix = _literal_prefix(pattern)
    fields = "items(name,size,generation,crc32c),nextPageToken"
    listed = client.list_blobs(bucket, prefix=prefix, fields=fields, retry=_retry(LISTING_SECONDS))
    listed = [blob for blob in listed if not blob.name.endswith("/")]  # These stand for empty folders.
    folders = {name[: cut.start()] for name in (blob.name for blob in listed) for cut in re.finditer("/", name)}
    meant = "".join(file_patterns.split_at_folder(pattern, folders.__contains__))  # A folder may have brackets.
    matching = [blob for blob in listed if blob.name == pattern or matches(blob.name, meant)]
    if matching:
        return sorted(matching, key=lambda blob: blob.name)
    source = f"--source=gs://{bucket}/{pattern}"
    if listed:
        raise utils.UserError(
            f"{source}: matches no object; {len(listed)} begin with gs://{bucket}/{prefix}, such as "
            f"{listed[0].name}; * matches within one folder, ** also across folders"
        )
    if not prefix:
        raise utils.UserError(f"{source}: the bucket is empty; {_OTHER_PHOTOS}")
    raise utils.UserError(f"{source}: matches no object, and none begins with {prefix}; look up the path in the bucket")


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names an object: as its name, as a folder that contains it, or with wildcards."""
    if name == pattern or name.startswith(pattern if pattern.endswith("/") or not pattern else f"{pattern}/"):
        return True
    if "**" in pattern:
        return any(fnmatch.fnmatchcase(name, one) for one in (pattern, pattern.replace("**/", "")))
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _literal_prefix(pattern: str) -> str:
    """Returns the part before the first wildcard. The names of all matching objects begin with it."""
    return re.split(r"[*?\[]", pattern, maxsplit=1)[0]


def file_names(names: Sequence[str], pattern: str) -> list[str]:
    """Returns each object's path below the destination.

    This is the last part of its name, as with `gsutil cp`. If two objects share their last part, all objects keep their
    path below the folder that the pattern begins with.

    Args:
        names: names of objects that match `pattern`.
        pattern: what follows the bucket in the address.

    Raises:
        UserError: if a file would be outside of the destination, or would have to be a folder too.
    """
    for name in names:
        unsafe = {"", ".", ".."} & set(name.split("/")) or "\0" in name
        if unsafe or (os.sep != "/" and (os.sep in name or os.path.splitdrive(name)[0])):
            raise utils.UserError(
                f"the object {name!r} would be written outside of --destination, or has no proper file name; nothing "
                "was downloaded; name a pattern that leaves this object out"
            )
    short = [name.rpartition("/")[2] for name in names]
    if len(set(short)) == len(short):
        return short
    start = len(_literal_prefix(pattern).rpartition("/")[0])
    below = [name[start:].lstrip("/") for name in names]
    folders = {"/".join(path.split("/")[:depth]) for path in below for depth in range(1, path.count("/") + 1)}
    for path in below:
        if path in folders:
            raise utils.UserError(
                f'"{path}" is an object, and also a folder with other objects, which no disk can hold; name a pattern '
                "that leaves one of them out"
            )
    return below


# ---- Fetching them.


class _Stopped(Exception):
    """Ends a thread's work after another file failed or Ctrl-C was pressed."""


def _prepare_destination(destination: str, jobs: Sequence[tuple[Any, str]]) -> None:
    """Makes the destination, deletes incomplete files of earlier runs, and checks that all files will fit."""
    if os.path.isfile(destination):
        raise utils.UserError(f"--destination={destination}: is a file; name a folder")
    files.make_output_folder(destination, "destination")
    paths = {path for _, path in jobs}
    for folder in {os.path.dirname(path) for path in paths}:
        for file in files.list_matching(folder, r".+\.\d+\.(tmp|part)"):  # Older versions of this script wrote .part.
            if file.rsplit(".", 2)[0] in paths and file not in paths:
                os.remove(file)
    for path in paths:
        if os.path.isdir(path):
            raise utils.UserError(
                f"--destination={destination}: {path} is a folder, but an object needs this name; name another folder"
            )
    missing = sum(blob.size for blob, path in jobs if not _has_size(path, blob.size))
    free = shutil.disk_usage(destination).free
    if missing > free:
        raise utils.UserError(
            f"--destination={destination}: has {free / 1e6:,.1f} MB free, and the download needs "
            f"{missing / 1e6:,.1f} MB; make room, or name a folder on another disk"
        )


def _download_all(
    jobs: Sequence[tuple[Any, str]], source: str, destination: str, num_workers: int
) -> collections.Counter:
    """Downloads (blob, path) pairs in threads. The first error ends the download.

    The library's `transfer_manager.download_many` returns only when all files are done, so it shows no progress, and
    neither an error nor Ctrl-C ends it. The threads of a `ThreadPool` are daemons: a thread that waits for the network
    does not delay the end of the process.
    """
    stop, lock = threading.Event(), threading.Lock()
    num_bytes = sum(blob.size for blob, _ in jobs)
    bar = tqdm(total=num_bytes, unit="B", unit_scale=True, desc="downloading", disable=None)  # Only on a terminal.

    def count(num_bytes: int) -> None:
        if stop.is_set():
            raise _Stopped
        with lock:
            bar.update(num_bytes)

    def work(job: tuple[Any, str]) -> tuple[Any, str]:
        try:
            count(0)
            with _explained(source, destination):
                return job[0], _get(*job, count)
        except Exception:
            if stop.is_set():
                return job[0], "stopped"
            stop.set()
            raise

    done: collections.Counter = collections.Counter()
    try:
        with bar, ThreadPool(min(num_workers, len(jobs))) as pool:
            for blob, outcome in pool.imap_unordered(work, jobs):
                done[outcome] += 1
                if bar.disable and outcome != "stopped":
                    how = "fetched" if outcome == "fetched" else "already complete"
                    logging.info("%d of %d: %s, %.1f MB, %s", done.total(), len(jobs), blob.name, blob.size / 1e6, how)
    except BaseException:
        stop.set()
        for _, path in jobs:
            with contextlib.suppress(OSError):  # Most of them do not exist.
                os.remove(files.temporary_path(path))
        raise
    summary = "%d files, %.1f MB in %s: %d fetched, %d already complete"
    logging.info(summary, len(jobs), num_bytes / 1e6, destination, done["fetched"], done["complete"])
    return done


def _get(blob: Any, path: str, count: Callable[[int], None]) -> str:
    """Makes `path` a complete copy of an object. Returns "complete" if it was one already, else "fetched".

    Args:
        blob: the object, as listed.
        path: where the file will be.
        count: called with the number of bytes after each part; negative if they must be fetched again.
    """
    if _is_complete(path, blob):
        count(blob.size)
        return "complete"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = files.temporary_path(path)
    for attempt in (1, 2):
        with open(temporary, "wb") as file:
            _fetch(blob, CallbackIOWrapper(count, file, "write"))
        if _is_complete(temporary, blob):
            files.replace(temporary, path)
            return "fetched"
        count(-os.path.getsize(temporary))
        logging.warning("%s: its CRC-32C differs from the bucket's (attempt %d of 2)", blob.name, attempt)
    raise utils.UserError(
        f"{blob.name}: its CRC-32C differs from the bucket's, twice; a proxy or this machine's memory may damage the "
        "data; try again, or use another network"
    )


def _fetch(blob: Any, file: Any) -> None:
    """Writes an object's bytes to a file.

    When the connection breaks, the library resumes at the next byte. However, it counts its time limit from the start,
    so a long download gets a new limit whenever bytes have arrived.
    """
    from google.api_core.exceptions import RetryError

    while True:
        start = file.tell()
        # A download overwrites fields of its blob, so it gets a new one. The generation asks for the version that was
        # listed, even if the object has been replaced since.
        version = blob.bucket.blob(blob.name, generation=blob.generation)
        try:
            # raw_download: without decompression, since the CRC-32C is that of the stored bytes. The library does not
            # check resumed downloads, so `_get` checks the complete file instead.
            version.download_to_file(
                file, start=start or None, raw_download=True, checksum=None, retry=_retry(DOWNLOAD_SECONDS)
            )
            return
        except RetryError:
            if file.tell() == start:
                raise


def _has_size(path: str, size: int) -> bool:
    return os.path.isfile(path) and os.path.getsize(path) == size


def _is_complete(path: str, blob: Any) -> bool:
    """Whether a file has the size and, if the bucket states one, the CRC-32C of an object."""
    import google_crc32c

    if not _has_size(path, blob.size):
        return False
    if blob.crc32c is None:
        return True
    with open(path, "rb") as file:
        checksum = google_crc32c.Checksum()
        collections.deque(checksum.consume(file, 2**20), maxlen=0)
    return base64.b64encode(checksum.digest()).decode() == blob.crc32c


# ---- Errors, in one line.


@contextlib.contextmanager
def _explained(source: str, destination: str, listing: bool = False) -> Iterator[None]:
    """Turns errors of Cloud Storage, the network and the disk into a UserError that names the flag.

    While listing, a 404 is about the bucket, not about an object, and no error is about the disk.
    """
    from google.api_core.exceptions import GoogleAPICallError, RetryError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage.exceptions import InvalidResponse
    from requests import RequestException
    from urllib3.exceptions import HTTPError

    of_network = (RequestException, HTTPError, ConnectionError, TimeoutError)  # Some of these are OSErrors too.
    try:
        yield
    except (GoogleAPICallError, RetryError, GoogleAuthError, InvalidResponse, *of_network, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, of_network) and not listing:
            raise utils.UserError(
                f"--destination={destination}: cannot be written: {files.explain_error(error)}; fix it, or name "
                "another folder, and start again; complete files are kept"
            ) from error
        cause = error.cause if isinstance(error, RetryError) and error.cause else error
        raise utils.UserError(f"--source={source}: {_explain_request(cause, listing)}") from error


def _explain_request(error: Exception, listing: bool) -> str:
    """Returns why a request failed, and what to do."""
    from google.auth.exceptions import GoogleAuthError, InvalidOperation, TransportError

    code = getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, InvalidOperation):  # After a 401 the library renews the login; an anonymous client has none.
        code = 401
    login = "gcloud auth application-default login"
    if code == 404 and listing:
        return f"there is no such bucket (404), or it was deleted; {_OTHER_PHOTOS}"
    if code == 404:
        return "an object was replaced or deleted during the download (404); start again with the same flags"
    if code in (401, 403):
        return f"the bucket is closed to you ({code}); if you may read it, log in: {login}; {_OTHER_PHOTOS}"
    if code and (code in (408, 429) or code >= 500):
        return (
            f"Cloud Storage is overloaded or disturbed ({code}, also after retries); start again later with the same "
            "flags; complete files are kept"
        )
    if code:
        return f"Cloud Storage answered {code}: {_shorten(getattr(error, 'message', error))}"
    if isinstance(error, GoogleAuthError) and not isinstance(error, TransportError):
        return f"the credentials of this machine do not work: {_shorten(error)}; log in again: {login}"
    # requests wraps urllib3's error, whose reason is the informative part.
    reason = getattr(error.args[0], "reason", error) if error.args else error
    return (
        f"Cloud Storage cannot be reached: {_shorten(reason)}; check the network (and https_proxy, if you need one) "
        "and start again with the same flags; complete files are kept"
    )


def _shorten(error: object) -> str:
    """Returns an error's message in one line, cut to 300 characters; the libraries' messages can fill a page."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."


if __name__ == "__main__":
    utils.run_script(main, define_flags)
