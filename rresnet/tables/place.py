"""Where results go: a folder of this machine, or object storage. Files appear whole or not at all."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from rresnet.cell import UsageError, first_line

if TYPE_CHECKING:
    from rresnet.tables.objects import _Objects

# Files by their names relative to a results folder. A reader sees each file whole, in its old or its new form.
Place: TypeAlias = "_Folder | _Objects"
Location = str | Path  # a folder, or a URL of object storage
LEAST_FREE_BYTES = 2**20  # with less than this a run is not begun

# Path("s3://bucket/x") is s3:/bucket/x: both are understood.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9.+-]+):/+(.*)", re.DOTALL)


class StoreError(UsageError):
    """Results that can't be written or read; the message says why and what to do."""


def busy(run_id: str, where: str) -> str:
    """The message when another process holds a run."""
    return f"another process is working on run {run_id} in {where}: wait for it, or start a new run with --fresh"


def at(results: Location) -> Place:
    """The place that a path or a URL names. Raises StoreError where a URL names none."""
    url = _URL.fullmatch(str(results))
    if url is None:
        try:
            return _Folder(Path(results).expanduser())  # a shell does not expand ~ behind --results-dir=
        except RuntimeError as error:
            raise StoreError(
                f"{results} is in the home folder of a user that is not here: name another folder"
            ) from error
    scheme, rest = url.groups()
    if scheme == "file":
        return _Folder(Path("/", rest))
    if not rest.strip("/"):
        raise StoreError(f"{results} names no bucket: give --results-dir {scheme}://BUCKET/FOLDER")
    from rresnet.tables import objects

    return objects.at(f"{scheme}://{rest.rstrip('/')}")


class _Folder:
    """A folder of a local or network file system. What its methods say holds for object storage, too."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def full_name(self, name: str) -> str:
        """A file's full name, for people."""
        return str(self.path / name)

    def holds(self, folder: str) -> bool:
        """Whether there is such a folder. Raises StoreError."""
        try:
            return (self.path / folder).is_dir()
        except OSError as error:  # no right to look there, or too long a name
            raise StoreError(f"can't read {self.full_name(folder)}: {self.reason(error)}") from error

    def names(self, folder: str) -> list[str]:
        """Names of a folder's files, sorted, hidden ones left out; none where there is no folder. Raises OSError."""
        try:
            with os.scandir(self.path / folder) as entries:
                return sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, name: str) -> bytes:
        """A file's content. Raises OSError."""
        return (self.path / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file, and return once it would survive a loss of power. Raises OSError."""
        path = self.path / name  # a hidden file beside it is written, synced and renamed, and the folder synced
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)) from error
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def set_aside(self, name: str) -> None:
        """Hide a damaged file under another name, where that can be done."""
        path = self.path / name
        with contextlib.suppress(OSError):  # a folder that may only be read
            path.rename(path.with_name(f".{path.name}.damaged"))

    def reason(self, error: OSError) -> str:
        """What an error of this place says, in one line."""
        return error.strerror or first_line(error)

    def hold(self, run_id: str, tell: Callable[[str], object]) -> "_FileLock":
        """Hold a run, and clear away what a killed process has half written of it. Raises StoreError, OSError."""
        held = _FileLock(self, run_id)
        for pattern in (f"*/.{run_id}.*.tmp", f"files/{run_id}/.*.tmp"):
            for half in self.path.glob(pattern):
                half.unlink(missing_ok=True)
        return held

    def check_writable(self) -> None:
        """Raise StoreError if nothing can be written. Leave nothing behind: the request may still prove wrong."""
        if obstacle := self._obstacle():
            raise StoreError(f"can't write to {self.path}: {obstacle}; choose another --results-dir")

    def _obstacle(self) -> str | None:
        """Why nothing can be written; None where it can."""
        try:
            nearest, free = self._nearest(), self.free_bytes()
        except OSError as error:
            return self.reason(error)
        if not nearest.is_dir():
            return f"{nearest} is not a folder"
        if not os.access(nearest, os.W_OK | os.X_OK):
            return f"no permission to write in {nearest}"
        return "the disk is full (less than 1 MiB is free; make space)" if free < LEAST_FREE_BYTES else None

    def free_bytes(self) -> int:
        """Space left, bytes; None where it has no limit."""
        return shutil.disk_usage(self._nearest()).free

    def _nearest(self) -> Path:
        """The folder, or the nearest one above it that is there."""
        return next(path for path in (self.path, *self.path.absolute().parents) if path.exists())


class _FileLock:
    """The system's lock on a file: it ends with the process, however that ends.

    `write` writes a file of the run as long as that is ours, which with this lock it always is.
    """

    def __init__(self, folder: _Folder, run_id: str) -> None:
        self.write = folder.write
        path = folder.path / "runs" / f"{run_id}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise StoreError(busy(run_id, folder.full_name(""))) from error

    def confirm(self) -> None:
        """Raise StoreError where the run has been lost to another process; a file lock never is."""

    def close(self) -> None:
        """Let another process have the run."""
        self._file.close()
