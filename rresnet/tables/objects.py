"""Results in object storage: whatever `pyarrow.fs` has a URL for, `s3://` and `gs://` above all."""

import contextlib
import functools
import re
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.fs as pa_fs

from rresnet.cell import first_line
from rresnet.tables.place import StoreError, busy

RETRY_SECONDS = (1, 2, 4, 8, 15)  # pauses before an upload is tried again
BEAT_SECONDS = 5.0  # how often the writer of a run in object storage shows that it is alive
DEAD_SECONDS = 20.0  # without a beat, after which another process may continue the run
_PASSING = ("NETWORK_CONNECTION", "SLOW_DOWN", "SERVICE_UNAVAILABLE", "INTERNAL_FAILURE", "REQUEST_TIMEOUT")


@functools.cache
def at(url: str) -> "_Objects":
    """The place that a URL names. Raises StoreError."""
    try:
        system, base = pa_fs.FileSystem.from_uri(url)
    except (pa.ArrowInvalid, OSError, ImportError, ValueError) as error:
        raise StoreError(_refusal(url, error)) from error
    return _Objects(url, system, base)


def _refusal(url: str, error: Exception) -> str:
    return (
        f"can't use {url} ({_reason(error)}): check the bucket's name, the credentials (AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE), AWS_ENDPOINT_URL and the network, or name a folder as --results-dir"
    )


def _reason(error: BaseException) -> str:
    """An error's own words in one line; those of an object store without the call and the request's number."""
    text = first_line(error)
    _, found, detail = text.partition("AWS Error ")
    return re.split(r" \(Request ID|; Details:", detail, maxsplit=1)[0] if found else text


class _Objects:
    """Object storage: an object appears when its upload is complete, and can't be renamed."""

    def __init__(self, url: str, system: pa_fs.FileSystem, base: str) -> None:
        self.url, self.system, self.base = url, system, base

    def full_name(self, name: str) -> str:
        return f"{self.url}/{name}".rstrip("/")

    def holds(self, folder: str) -> bool:
        try:
            return bool(self.names(folder))
        except OSError as error:
            raise StoreError(_refusal(self.url, error)) from error

    def names(self, folder: str) -> list[str]:
        listed = self.system.get_file_info(pa_fs.FileSelector(f"{self.base}/{folder}", allow_not_found=True))
        return sorted(info.base_name for info in listed if info.is_file and not info.base_name.startswith("."))

    def read(self, name: str) -> bytes:
        """Read an object, again if it is replaced between the requests for its size and its content.

        The content is of one version, but cut or filled up to the size that was reported before. Only a size that
        changes and changes back within one read would go unnoticed; ours grow, or stay.
        """
        path = f"{self.base}/{name}"
        for _ in range(10):
            with self.system.open_input_file(path) as file:
                try:
                    content = file.read()
                except OSError as error:
                    if self.system.get_file_info(path).type != pa_fs.FileType.NotFound:
                        raise
                    raise FileNotFoundError(f"{self.full_name(name)} has just been removed") from error
            if self.system.get_file_info(path).size == len(content):
                return bytes(content)
        raise OSError(11, f"{self.full_name(name)} is replaced faster than it can be read")

    def write(self, name: str, content: bytes, check: Callable[[], object] = lambda: None) -> None:
        """Upload on a thread of its own: Ctrl-C here would end the stream, and one that is left early is kept."""
        failed = list[BaseException]()

        def upload() -> None:
            try:
                self._upload(name, content, check)
            except BaseException as error:
                failed.append(error)

        uploading = threading.Thread(target=upload, name="rresnet-upload")
        uploading.start()
        uploading.join()
        if failed:
            raise failed[0]

    def _upload(self, name: str, content: bytes, check: Callable[[], object]) -> None:
        """Upload in one call, and again after faults that may pass; `check` is called before each try."""
        for pause in (*RETRY_SECONDS, None):
            check()
            try:
                with self.system.open_output_stream(f"{self.base}/{name}", compression=None) as file:
                    file.write(content)
                return
            except OSError as error:
                if pause is None or not any(kind in str(error) for kind in _PASSING):
                    raise
                time.sleep(pause)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.system.delete_file(f"{self.base}/{name}")

    def reason(self, error: OSError) -> str:
        return _reason(error)

    def set_aside(self, name: str) -> None:
        """Leave it where it is: to move is to copy and delete, and what is deleted may be a newer version."""

    def hold(self, run_id: str, tell: Callable[[str], object]) -> "_Beat":
        return _Beat(self, run_id, tell)

    def check_writable(self) -> None:
        name = f"runs/.probe-{uuid.uuid4().hex}"
        try:
            with self.system.open_output_stream(f"{self.base}/{name}", compression=None) as file:
                file.write(b"rresnet looks whether it may write here")
            self.remove(name)
        except OSError as error:
            raise StoreError(_refusal(self.url, error)) from error

    def free_bytes(self) -> None:
        return None


class _Beat:
    """A lock object of our own that is replaced again and again by one of another name: it beats.

    Of two processes that each put up theirs and then look for others, at least one sees the other: object storage lists
    at once what is written. A process beats while it looks, so of two that see each other at least one gives way.

    The next lock is put up before the last one is taken down. If that is gone by then, a process that thought us dead
    has removed it, however long ago and whatever became of that process.
    """

    def __init__(self, place: _Objects, run_id: str, tell: Callable[[str], object]) -> None:
        self._place, self._run_id = place, run_id
        self._own = f"{run_id}.{uuid.uuid4().hex}."
        self._count, self._alive_at, self._lost = 0, time.time(), False
        self._beating, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="rresnet-hold", daemon=True)
        try:
            self._put_up(0)
            self._thread.start()
            self._outlive(tell)
        except BaseException:
            self.close()
            raise

    def confirm(self) -> None:
        if time.time() - self._alive_at > DEAD_SECONDS / 2:  # by the wall clock, which goes on while a machine sleeps
            self._beat()
        if self._lost:
            raise StoreError(
                f"another process took over run {self._run_id} in {self._place.url} while this one was held up: "
                "run the same command again to measure what that one has not"
            )

    def write(self, name: str, content: bytes) -> None:
        self._place.write(name, content, self.confirm)

    def close(self) -> None:
        self._closed.set()
        if self._thread.ident:  # it was started
            self._thread.join()
        with contextlib.suppress(OSError):
            for name in self._locks(self._own):  # also one that was put up although we were told otherwise
                self._place.remove(name)

    def _outlive(self, tell: Callable[[str], object]) -> None:
        """Wait until others' locks are known to be dead, and remove them. Raises StoreError if one of them beats."""
        seen, end = self._others(), time.monotonic() + DEAD_SECONDS
        if not seen:
            return
        tell(
            f"Run {self._run_id} is locked, or was left locked: waiting {DEAD_SECONDS:g} s to be sure that no process "
            "is at it"
        )
        while seen and time.monotonic() < end:
            time.sleep(1)
            now = self._others()
            if now - seen:
                raise StoreError(busy(self._run_id, self._place.url))
            seen = now
        for name in seen:
            self._place.remove(name)
        if self._others():  # put up while we removed the one before
            raise StoreError(busy(self._run_id, self._place.url))

    def _locks(self, beginning: str) -> set[str]:
        names = self._place.names("runs")
        return {f"runs/{name}" for name in names if name.startswith(beginning) and name.endswith(".lock")}

    def _others(self) -> set[str]:
        """The locks of others on our run."""
        return {name for name in self._locks(f"{self._run_id}.") if not name.startswith(f"runs/{self._own}")}

    def _work(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # `confirm` checks before anything is written
                self._beat()

    def _beat(self) -> None:
        """Show that we are alive, unless somebody who thought us dead has removed our lock."""
        with self._beating:  # by `confirm`, on another thread
            if self._lost:
                return
            began, last = time.time(), self._name(self._count)
            self._put_up(self._count + 1)
            info: Any = self._place.system.get_file_info(f"{self._place.base}/{last}")
            self._lost = info.type == pa_fs.FileType.NotFound
            if self._lost:
                self._place.remove(self._name(self._count + 1))
                return
            self._count, self._alive_at = self._count + 1, began
            self._place.remove(last)

    def _put_up(self, count: int) -> None:
        self._place.write(self._name(count), b"held")

    def _name(self, count: int) -> str:
        return f"runs/{self._own}{count}.lock"
