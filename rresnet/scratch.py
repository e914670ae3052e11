"""Where files go that are not results: temporary folders that don't outlive us, and the user's cache, which does."""

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

_PREFIX = "rresnet-"
_SHORT = ("/tmp", "/dev/shm")  # nosec B108 - names there are mkdtemp's


def cache_folder() -> Path:
    """Our part of the user's cache folder: downloads, and what a compiler made."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rresnet"


def place(longest: str) -> Path:
    """Where a `folder` may hold a socket of that path in it: where temporary files go, or where their paths are short.

    Raises:
        OSError: there is no such place.
    """
    room = (107 if sys.platform == "linux" else 103) - len(f"/{_PREFIX}{os.getpid()}-12345678{longest}")
    for path in (tempfile.gettempdir(), *_SHORT):
        if len(os.fsencode(path)) <= room and os.access(path, os.W_OK | os.X_OK):
            return Path(path)
    raise OSError(f"{tempfile.gettempdir()} is too long for the paths of sockets: set TMPDIR to at most {room} bytes")


@contextlib.contextmanager
def folder(place: Path | None = None) -> Iterator[Path]:
    """A temporary folder that bears its owner's process id and is locked by it, for the length of a block."""
    made = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=place))
    lock = os.open(made, os.O_RDONLY)  # ends with the owner, however that ends
    try:
        with contextlib.suppress(OSError):  # a file system without locks: then it can't be taken, either
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def remove_stale(*places: Path) -> None:
    """Remove folders whose owners are gone, killed before they could do it, and end what they started to work there.

    They are looked for where temporary files go, and in `places`.
    """
    for path in (path for at in {Path(tempfile.gettempdir()), *places} for path in at.glob(f"{_PREFIX}*-*")):
        if _is_left(path):
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    if _works_in(path, process):
                        process.kill()
            shutil.rmtree(path, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    """Whether a folder of ours has lost its owner; any user may have made one whose name is like ours.

    An owner that is not seen here may live in another container that has the same temporary folder: it holds the lock.
    """
    owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
    with contextlib.suppress(OverflowError, OSError):  # a number that no process can have; locked, or another user's
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            finally:
                os.close(lock)
    return False


def _works_in(folder: Path, process: psutil.Process) -> bool:
    """Whether a process was told of the folder: by its command line, which some overwrite, or as its TMPDIR."""
    named = any(str(folder) in word for word in process.cmdline())
    return named or process.environ().get("TMPDIR") == str(folder)
