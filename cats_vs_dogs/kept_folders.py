"""Folders in the user's cache: complete or absent, and deleted when newer ones need the room.

A process holds a lock on each folder that it makes or uses, so that no other process deletes it. A lock ends with its
process, however that ends. Some operating systems and network drives have no such lock.
"""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator

from cats_vs_dogs import files

_held: dict[str, int] = {}  # The lock of each folder that this process uses until it ends.


def make(folder: str, write: Callable[[str], None], is_complete: Callable[[str], bool] = os.path.isdir) -> None:
    """Makes a folder under another name and renames it when it is complete.

    If two processes make it at the same time, the folder of the faster one stays: both are the same.

    Args:
        folder: what to make; its parents are made, too.
        write: writes all that it holds into the empty folder that it is called with.
        is_complete: tells whether a folder has all that it must have. One that is not complete is replaced.

    Raises:
        OSError: if it cannot be written.
    """
    parent, name = os.path.split(folder)
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=f"{name}.") as temporary, _locked(temporary):
        made = os.path.join(temporary, "made")
        os.mkdir(made)
        write(made)
        if not is_complete(folder):
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder, os.path.join(temporary, "damaged"))
        try:
            files.replace(made, folder)
        except OSError:
            if not is_complete(folder):  # Otherwise another process was faster.
                raise


def hold(folder: str) -> bool:
    """Keeps other processes from deleting a folder until this process ends; returns whether the folder is there."""
    if folder not in _held:
        try:
            descriptor = _lock(folder, exclusive=False)
        except BlockingIOError:  # Another process is deleting it.
            return False
        if descriptor is not None:
            _held[folder] = descriptor
    with contextlib.suppress(OSError):
        os.utime(folder)  # The least recently used ones are deleted first.
    if folder in _held:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(_held[folder]), os.stat(folder)):
                return True
        os.close(_held.pop(folder))  # The lock is that of a folder which was deleted.
        return False
    return os.path.isdir(folder)


def make_room(parent: str, num_bytes: int, limit: int) -> None:
    """Deletes the least recently used folders in a folder until more bytes fit. Those in use stay.

    Args:
        parent: the folder.
        num_bytes: how many bytes will be written there.
        limit: how many bytes all folders there may have together.
    """
    with contextlib.suppress(OSError):  # Another process may delete them at the same time.
        folders = sorted(filter(os.path.isdir, (entry.path for entry in os.scandir(parent))), key=os.path.getmtime)
        sizes = {folder: _size(folder) for folder in folders}
        total = sum(sizes.values()) + num_bytes
        for folder in folders:
            if total <= limit:
                break
            with _locked(folder, exclusive=True) as is_unused:
                if is_unused:
                    shutil.rmtree(folder, ignore_errors=True)
                    total -= sizes[folder]


def check_room(parent: str, num_bytes: int, limit: int) -> None:
    """Makes room in a folder, see `make_room`, and checks that the disk has it.

    Raises:
        OSError: if it does not, or the folder cannot be written to.
    """
    os.makedirs(parent, exist_ok=True)
    make_room(parent, num_bytes, limit)
    free = shutil.disk_usage(parent).free
    if free < num_bytes:
        raise OSError(errno.ENOSPC, f"{num_bytes / 2**20:,.0f} MiB are needed, and {free / 2**20:,.0f} MiB are free")


def _size(folder: str) -> int:
    """Returns the bytes of all files in a folder."""
    paths = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]
    return sum(os.stat(path).st_size for path in paths)


@contextlib.contextmanager
def _locked(folder: str, exclusive: bool = False) -> Iterator[bool]:
    """Holds the lock of a folder inside the block; yields whether that is possible, or no lock is needed."""
    try:
        descriptor = _lock(folder, exclusive)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(folder: str, exclusive: bool) -> int | None:
    """Returns the file descriptor whose closing ends a lock; None if there is no lock or no such folder.

    Raises:
        BlockingIOError: if another holder excludes it.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # Windows; the folder is not there.
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # The drive has no locks.
        os.close(descriptor)
        return None
    return descriptor
