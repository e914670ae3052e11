"""The Parquet tables: written trial by trial, atomically, and read at any time."""

import contextlib
import json
import queue
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rresnet.config import SCHEMA_VERSION
from rresnet.tables.measurement import SCHEMAS
from rresnet.tables.place import Location, Place, StoreError, at

__all__ = ["DamagedFileWarning", "Run", "StoreError", "Writer", "check_writable", "open_run", "read_tables", "runs"]

Rows = Mapping[str, Sequence[Mapping[str, Any]]]  # table name -> rows of one trial
KEY = ("run_id", "trial_id")  # what every row of every table has
PAUSE_SECONDS = 0.25  # after a write, at most: trials of milliseconds go together in the next one
PAUSE_PER_WRITE = 8.0  # times as long as the write took, where that is less
ROWS_PER_PART = 256  # trials in the part that is rewritten at each write; bounds the cost of a write


class DamagedFileWarning(UserWarning):
    """A file of a results folder could not be read and was left out."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as its manifest `runs/<run_id>.json` records it."""

    run_id: str
    experiment: str
    name: str
    plan_id: str  # hash of the planned trials: the same command has the same
    planned: int
    started_at: str
    finished_at: str | None = None
    request_id: str | None = None  # hash of the flags: the same command has the same, on any machine
    environment: Mapping[str, str] | None = None  # what it was begun with, by name


class _TableWriter:
    """One table of one run: full parts that are left alone, and an open part that each write replaces whole.

    A reader lists files, then opens them, so a file that it saw must stay: parts are replaced by rename, never removed
    while the run goes on, and no row is ever in two of them.
    """

    def __init__(self, place: Place, name: str, run_id: str, schema: pa.Schema) -> None:
        self.place, self.name, self.run_id, self.schema = place, name, run_id, schema
        self.finish()
        self.number = 0
        self.existing = self._read(f"{run_id}.parquet")  # rows of an interrupted run that is continued
        self.open: dict[str, pa.Table] = {}  # trial id -> its rows

    def file(self, number: int) -> str:
        suffix = f".part{number}" if number else ""
        return f"{self.name}/{self.run_id}{suffix}.parquet"

    def add(self, trial_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if self.existing.num_rows:  # a trial that is run again replaces its old row
            self.existing = self.existing.filter(pc.not_equal(self.existing["trial_id"], pa.scalar(trial_id)))
        self.open[trial_id] = pa.Table.from_pylist(rows, schema=self.schema)

    def flush(self) -> None:
        earlier = [self.existing] if self.number == 0 and self.existing.num_rows else []
        self._write(self.file(self.number), pa.concat_tables([*earlier, *self.open.values()]))
        if len(self.open) >= ROWS_PER_PART:
            self.number, self.open, self.existing = self.number + 1, {}, self.existing.slice(0, 0)

    def finish(self) -> None:
        """One file for the run: every part joins the first, then the others go."""
        parts = _matching(self.place, self.name, f"{self.run_id}.part*.parquet")
        if parts:
            self._write(self.file(0), self._read(f"{self.run_id}*.parquet"))
            for part in parts:
                self.place.remove(part)

    def flag(self, trial_ids: Collection[str], flag: str) -> None:
        """Add a quality flag to rows of the finished file."""
        rows = self._read(f"{self.run_id}.parquet").to_pylist()
        for row in rows:
            flags = row["quality_flags"] or []
            if row["trial_id"] in trial_ids and flag not in flags:
                row["quality_flags"] = [*flags, flag]
        self._write(self.file(0), pa.Table.from_pylist(rows, schema=self.schema))

    def count(self) -> int:
        """Rows of the finished file."""
        return int(self._read(f"{self.run_id}.parquet").num_rows)

    def _read(self, pattern: str) -> pa.Table:
        return _read(self.place, self.name, pattern, self.schema)

    def _write(self, file: str, table: pa.Table) -> None:
        content = pa.BufferOutputStream()
        pq.write_table(table, content, compression="zstd", write_page_checksum=True)
        self.place.write(file, content.getvalue().to_pybytes())


class Writer:
    """Writes the rows of one run on a thread of its own; rows that arrive during a write go together in the next.

    As a context manager it writes what is left when the block is left, whatever the reason.
    """

    def __init__(self, results: Location, run: Run, tell: Callable[[str], object] = lambda text: None) -> None:
        """Hold the run; `tell` is called where that takes a while. Raises StoreError."""
        self.results, self.run = results, run
        self._place = at(results)
        with self._told():
            self._hold = self._place.hold(run.run_id, tell)
            self._tables = {
                name: _TableWriter(self._place, name, run.run_id, schema) for name, schema in SCHEMAS.items()
            }
            self._write_manifest(run)
        self._queue: queue.SimpleQueue[tuple[str, Rows] | threading.Event | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="rresnet-store")
        self._thread.start()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()
        if kind is None:
            self.check()

    def close(self) -> None:
        """Write what is left, and let another process have the run."""
        self._queue.put(None)
        self._thread.join()
        self._hold.close()

    def write(self, trial_id: str, rows: Rows) -> None:
        """Queue the rows of one trial; written in a quarter second. Raises StoreError when an earlier one failed."""
        self.check()
        self._queue.put((trial_id, rows))

    def keep(self, name: str, content: bytes) -> None:
        """Write a file that a trial sent to `files/<run_id>/<name>`."""
        try:
            self._place.write(f"files/{self.run.run_id}/{name}", content)
        except OSError as error:
            self._error = error
        self.check()

    def flush(self) -> None:
        """Wait until every row that was given is on disk. Raises StoreError when one could not be written."""
        written = threading.Event()
        self._queue.put(written)
        written.wait()
        self.check()

    def check(self) -> None:
        """Raise StoreError when a write failed (a full disk, say)."""
        if self._error:
            with self._told():
                raise self._error

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Let what goes wrong with the system be a StoreError."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            reason = self._place.reason(error) if isinstance(error, OSError) else str(error)
            raise StoreError(
                f"can't write to {self._place.told('')}: {reason}; what was written before is whole: "
                "make space or mend the place, then give the same command again"
            ) from error

    def finish(self, finished_at: str, flagged: Collection[str] = (), flag: str = "") -> None:
        """Mark the run as complete and leave one file a table. Call once it is closed.

        Args:
            finished_at: when it ended, ISO 8601.
            flagged: ids of trials that the run as a whole makes doubtful.
            flag: the quality flag that they get.
        """
        with self._told():
            for table in self._tables.values():
                table.finish()
            if flagged:
                self._tables["trials"].flag(flagged, flag)
            planned = self._tables["trials"].count()
            self._write_manifest(replace(self.run, finished_at=finished_at, planned=planned))

    def _write_manifest(self, run: Run) -> None:
        self._place.write(f"runs/{run.run_id}.json", json.dumps(vars(run), indent=1).encode())

    def _work(self) -> None:
        running = True
        while running:
            batch = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < ROWS_PER_PART:
                    batch.append(self._queue.get_nowait())
            running = None not in batch
            began = time.monotonic()
            try:
                self._commit([item for item in batch if isinstance(item, tuple)])
            except (OSError, pa.ArrowException, StoreError) as error:
                self._error = error
            for item in batch:
                if isinstance(item, threading.Event):
                    item.set()
            if running:
                time.sleep(min(PAUSE_SECONDS, PAUSE_PER_WRITE * (time.monotonic() - began)))

    def _commit(self, batch: Sequence[tuple[str, Rows]]) -> None:
        self._hold.confirm()
        for name in reversed(self._tables):  # trials last: a trial's row says that its windows are there
            table, changed = self._tables[name], False
            for trial_id, rows in batch:
                if rows.get(name):
                    table.add(trial_id, rows[name])
                    changed = True
            if changed:
                table.flush()


def check_writable(results: Location) -> None:
    """Raise StoreError where results can't be written, before anything is begun."""
    at(results).check_writable()


def open_run(results: Location, run: Run, *, fresh: bool, again: bool = False, mix: bool = False) -> Run:
    """`run`, or the newest run of the same name and request in `results` that is to be continued.

    Args:
        results: the results folder, or its URL.
        run: a new run.
        fresh: start it, whatever is there.
        again: continue the newest run even where it is complete.
        mix: continue a run that was begun in another environment.

    Raises:
        StoreError: the folder can't be written to, or the run to continue was begun in another environment.
    """
    check_writable(results)
    same = [r for r in runs(results) if (r.name, r.experiment) == (run.name, run.experiment) and _same_request(r, run)]
    candidates = [r for r in same if again or r.finished_at is None]
    if fresh or not candidates:
        return run
    found = candidates[-1]
    changes = _changes(found.environment or {}, run.environment or {})
    if changes and not mix:
        raise StoreError(
            f"run {found.run_id} was begun with other means ({'; '.join(changes)}), and rows of both would be mixed: "
            "--fresh starts a new run, --mix-environments goes on with this one all the same"
        )
    return replace(found, finished_at=None)


def _same_request(one: Run, other: Run) -> bool:
    known = one.request_id is not None and other.request_id is not None
    return one.request_id == other.request_id if known else one.plan_id == other.plan_id


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [
        f"{name} was {before[name]}, is {now[name]}" for name in before if now.get(name, before[name]) != before[name]
    ]


def runs(results: Location) -> list[Run]:
    """The runs in a results folder, oldest first; a manifest that is damaged is passed over."""
    place, found = at(results), []
    for name in _matching(place, "runs", "*.json"):
        content = _content(place, name)
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            run = Run(**json.loads(content or b""))
            if name == f"runs/{run.run_id}.json" and _is_whole(run):
                found.append(run)
    return sorted(found, key=lambda run: run.started_at)


def _is_whole(run: Run) -> bool:
    """Whether each field is of its kind: a manifest is a file that anybody may have changed."""
    texts = (run.experiment, run.name, run.plan_id, run.started_at)
    perhaps = (run.finished_at, run.request_id)
    means = {} if run.environment is None else run.environment
    return (
        all(isinstance(text, str) for text in texts)
        and all(text is None or isinstance(text, str) for text in perhaps)
        and isinstance(means, dict)
        and all(isinstance(value, str) for value in means.values())
    )


def read_tables(results: Location, *, run_id: str | None = None) -> dict[str, pa.Table]:
    """The tables of a results folder, or of one run in it, whatever else goes on there. Raises StoreError."""
    place, pattern = at(results), f"{run_id}*.parquet" if run_id else "*.parquet"
    return {name: _read(place, name, pattern, schema) for name, schema in SCHEMAS.items()}


def _matching(place: Place, folder: str, pattern: str) -> list[str]:
    """Names of a folder's files, from the results folder on."""
    try:
        return [f"{folder}/{name}" for name in place.names(folder) if fnmatchcase(name, pattern)]
    except OSError as error:
        raise StoreError(f"can't read {place.told(folder)}: {place.reason(error)}") from error


def _content(place: Place, name: str) -> bytes | None:
    """A file's content; None where it is gone."""
    try:
        return place.read(name)
    except FileNotFoundError:  # joined since it was listed
        return None
    except OSError as error:  # the system's fault, not the file's
        raise StoreError(f"can't read {place.told(name)}: {place.reason(error)}") from error


def _read(place: Place, folder: str, pattern: str, schema: pa.Schema) -> pa.Table:
    """Every row of the files that match, no trial twice: parts that were just joined may still lie beside the whole."""
    tables: list[pa.Table] = []
    for name in _matching(place, folder, pattern):
        content = _content(place, name)
        table = None if content is None else _rows(place, name, content, schema)
        if table is None:
            continue
        if ".part" in name:
            seen = pa.chunked_array([t["trial_id"].combine_chunks() for t in tables], pa.string())
            table = table.filter(pc.invert(pc.is_in(table["trial_id"], seen)))
        tables.append(table)
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _rows(place: Place, name: str, content: bytes, schema: pa.Schema) -> pa.Table | None:
    """A file's rows, or None where it is damaged: it is set aside under another name, and the rest is read."""
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        _check_version(place.told(name), file.schema_arrow.metadata)
        return _conform(file.read(), schema)
    except (pa.ArrowException, OSError, KeyError, UnicodeError) as error:
        place.set_aside(name)
        what = (
            f"{place.told(name)} is damaged ({error}) and left out: "
            "the command of its run, given again, measures its trials anew"
        )
        warnings.warn(what, DamagedFileWarning, stacklevel=2)
        return None


def _check_version(path: str, metadata: Mapping[bytes, bytes] | None) -> None:
    """Older versions are read: columns that they lack are null. What a newer one means by a column is not known."""
    version = (metadata or {}).get(b"rresnet_schema_version", b"0")
    if version.isdigit() and int(version) > SCHEMA_VERSION:
        raise StoreError(
            f"{path} was written by a newer rresnet (schema_version {int(version)}, this one knows up to "
            f"{SCHEMA_VERSION}): update rresnet, or name another results folder"
        )


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with the columns of `schema`: one that an older version did not write is null."""
    if lacking := [name for name in KEY if name not in table.column_names or table[name].null_count]:
        raise pa.ArrowInvalid(f"not every row has a {' and a '.join(lacking)}")
    columns = [
        table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(table.num_rows, f.type) for f in schema
    ]
    return pa.table(columns, schema=schema)
