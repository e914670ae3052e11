"""Where files other than results go: temporary folders, which end with the program, and the user's cache."""

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

# Followed by the owner's process id. No user's own folder may look so, as /tmp/rresnet-2026-11-28 would without "of":
# what dead owners have left is removed.
_PREFIX = "rresnet-of-"
_SHORT = ("/tmp", "/dev/shm")  # nosec B108 - names there are mkdtemp's


def cache_folder() -> Path:
    """The program's part of the user's cache folder: downloads, and what a compiler made."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rresnet"


def base_folder(longest: str) -> Path:
    """Where to make a `folder`, so that the path of a socket in it, which ends in `longest`, is not too long.

    This is the directory for temporary files, or else `/tmp` or `/dev/shm`.

    Raises:
        OSError: there is no such place.
    """
    room = (107 if sys.platform == "linux" else 103) - len(f"/{_PREFIX}{os.getpid()}-12345678{longest}")
    for path in (tempfile.gettempdir(), *_SHORT):
        # Ray takes no other characters in the paths of its sockets.
        if path.isascii() and len(path) <= room and os.access(path, os.W_OK | os.X_OK):
            return Path(path)
    raise OSError(
        f"{tempfile.gettempdir()} can't hold the paths of sockets: set TMPDIR to a path of at most {room} ASCII letters"
    )


@contextlib.contextmanager
def folder(base: Path | None = None) -> Iterator[Path]:
    """Make a temporary folder for the length of a block, with its owner's process id in its name and locked by it."""
    made = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=base))
    lock = os.open(made, os.O_RDONLY)  # released when the owner ends, however it ends
    try:
        with contextlib.suppress(OSError):  # a file system without locks: then nobody else can take it
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def remove_stale(*bases: Path) -> None:
    """Remove folders whose owners were killed before they could do so, and end the processes that still work there.

    Looks in the directory for temporary files, and in `bases`.
    """
    for path in (path for at in {Path(tempfile.gettempdir()), *bases} for path in at.glob(f"{_PREFIX}*-*")):
        if _is_left(path):
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    if _works_in(path, process):
                        process.kill()
            shutil.rmtree(path, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    """Whether a folder named like ours has lost its owner; any user may have made a folder with such a name.

    An owner that is not seen here may live in another container with the same temporary folder: it holds the lock.
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
    """Whether a process was given the folder: on its command line, which some overwrite, or as its TMPDIR."""
    named = any(str(folder) in word for word in process.cmdline())
    return named or process.environ().get("TMPDIR") == str(folder)
