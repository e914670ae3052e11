"""The Parquet tables as they are written, trial by trial, atomically."""

import contextlib
import json
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rresnet.tables.measurement import SCHEMAS
from rresnet.tables.place import Location, Place, StoreError, at
from rresnet.tables.reading import matching, read_files
from rresnet.tables.runs import Run

Rows = Mapping[str, Sequence[Mapping[str, Any]]]  # table name -> rows of one trial
PAUSE_SECONDS = 0.25  # longest pause after a write: trials of milliseconds go together in the next one
PAUSE_PER_WRITE = 8.0  # pause this many times as long as the write took, if that is less
ROWS_PER_PART = 256  # trials in the part that is rewritten at each write; bounds the cost of a write


class _TableWriter:
    """One table of one run: full parts that are left alone, and an open part that each write replaces whole.

    A reader lists files, then opens them, so a file that it saw must stay: parts are replaced by rename, and never
    removed while the run goes on. No row is ever in two of them: the rows of a trial that is run again take the place
    of its earlier rows in their file.
    """

    def __init__(self, place: Place, name: str, run_id: str, schema: pa.Schema) -> None:
        self.place, self.name, self.run_id, self.schema = place, name, run_id, schema
        self.finish()
        self.earlier = self._read(f"{run_id}.parquet")  # rows of an interrupted run that is continued
        self.number = 1 if self.earlier.num_rows else 0  # of the open part
        self.open: dict[str, pa.Table] = {}  # trial id -> its rows
        self._changed: set[int] = set()  # numbers of the files that are to be written

    def file(self, number: int) -> str:
        suffix = f".part{number}" if number else ""
        return f"{self.name}/{self.run_id}{suffix}.parquet"

    def add(self, trial_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add all rows of a trial, in place of any that it had; there may be none."""
        table = pa.Table.from_pylist(rows, schema=self.schema)
        others = self.earlier.filter(pc.not_equal(self.earlier["trial_id"], pa.scalar(trial_id)))
        if others.num_rows < self.earlier.num_rows:
            self.earlier = pa.concat_tables([others, table])
            self._changed.add(0)
        elif rows:
            self.open[trial_id] = table
            self._changed.add(self.number)

    def flush(self) -> None:
        for number in sorted(self._changed):
            rows = self.open.values() if number == self.number else [self.earlier]
            self._write(self.file(number), pa.concat_tables(rows))
        self._changed.clear()
        if len(self.open) >= ROWS_PER_PART:
            self.number, self.open = self.number + 1, {}

    def finish(self) -> None:
        """Leave one file for the run: join every part to the first, then remove the others."""
        parts = matching(self.place, self.name, f"{self.run_id}.part*.parquet")
        if parts:
            self._write(self.file(0), self._read(f"{self.run_id}*.parquet"))
            for part in parts:
                self.place.remove(part)

    def flag(self, trial_ids: Collection[str], flag: str) -> None:
        """Give these rows of the finished file a quality flag and take it off the others: a run may be judged again."""
        rows, changed = self._read(f"{self.run_id}.parquet").to_pylist(), False
        for row in rows:
            flags, flagged = row["quality_flags"] or [], row["trial_id"] in trial_ids
            if flagged != (flag in flags):
                row["quality_flags"] = [*flags, flag] if flagged else [one for one in flags if one != flag]
                changed = True
        if changed:
            self._write(self.file(0), pa.Table.from_pylist(rows, schema=self.schema))

    def count(self) -> int:
        """Rows of the finished file."""
        return int(self._read(f"{self.run_id}.parquet").num_rows)

    def _read(self, pattern: str) -> pa.Table:
        return read_files(self.place, self.name, pattern, self.schema)

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
        with self._as_store_error():
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
        """Queue the rows of one trial, written in a quarter second. Raises StoreError if an earlier write failed."""
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
            with self._as_store_error():
                raise self._error

    @contextlib.contextmanager
    def _as_store_error(self) -> Iterator[None]:
        """Turn what goes wrong with the system into a StoreError."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            reason = self._place.reason(error) if isinstance(error, OSError) else str(error)
            raise StoreError(
                f"can't write to {self._place.full_name('')}: {reason}; what was written before is intact: "
                "make space or repair the storage, then run the same command again"
            ) from error

    def finish(self, finished_at: str, flagged: Collection[str] = (), flag: str = "") -> None:
        """Mark the run as complete and leave one file a table, once every row is written (`flush`).

        Args:
            finished_at: when it ended, ISO 8601.
            flagged: ids of trials that the run as a whole makes doubtful.
            flag: the quality flag that they get, and that others lose.
        """
        with self._as_store_error():
            for table in self._tables.values():
                table.finish()
            if flag:
                self._tables["trials"].flag(flagged, flag)
            planned = self._tables["trials"].count()
            self._write_manifest(replace(self.run, finished_at=finished_at, planned=planned, retried_at=None))

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
            except Exception as error:  # whatever it is: the thread goes on, and the next caller is told
                self._error = error
            for item in batch:
                if isinstance(item, threading.Event):
                    item.set()
            if running:
                time.sleep(min(PAUSE_SECONDS, PAUSE_PER_WRITE * (time.monotonic() - began)))

    def _commit(self, batch: Sequence[tuple[str, Rows]]) -> None:
        self._hold.confirm()
        for name in reversed(self._tables):  # trials last: a trial's row says that its windows are there
            table = self._tables[name]
            for trial_id, rows in batch:
                table.add(trial_id, rows.get(name, ()))
            table.flush()
