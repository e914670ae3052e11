"""The Parquet tables as they are written, trial by trial, atomically."""

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rresnet.tables.measurement import SCHEMAS
from rresnet.tables.place import Location, Place, StoreError, at
from rresnet.tables.reading import parts_of, read_files
from rresnet.tables.runs import Run

Rows = Mapping[str, Sequence[Mapping[str, Any]]]  # table name -> rows of one trial
PAUSE_SECONDS = 0.25  # longest pause after a write: trials of milliseconds go together in the next one
PAUSE_PER_WRITE = 8.0  # pause this many times as long as the write took, if that is less
TRIALS_PER_PART = 1024  # from which on a part is left alone; bounds the cost of a write


class _TableWriter:
    """One table of one run, in parts; a write replaces each part that changed as a whole.

    A reader lists files, then opens them, so a file that it saw must stay: parts are replaced by rename, and never
    removed. No row is ever in two of them: the rows of a trial that is run again take the place of its earlier rows in
    their part.
    """

    def __init__(
        self, place: Place, write: Callable[[str, bytes], None], name: str, run_id: str, schema: pa.Schema
    ) -> None:
        self.place, self.write, self.name, self.run_id, self.schema = place, write, name, run_id, schema
        self._part_of: dict[str, int] = {}  # trial id -> number of the part that has its rows
        for number, rows in self._read():  # of an interrupted run that is continued
            self._part_of |= dict.fromkeys(map(str, rows["trial_id"].to_pylist()), number)
        self._open = max(self._part_of.values(), default=0)  # number of the part that new trials go to
        self._parts: dict[int, pa.Table] = {}  # the open part, and others that are to be written
        self._new: dict[int, dict[str, pa.Table]] = {}  # of each part that is to be written: trial id -> its new rows

    def add(self, trial_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add all rows of a trial, in place of any that it had; there may be none."""
        if rows or trial_id in self._part_of:
            number = self._part_of.setdefault(trial_id, self._open)
            self._new.setdefault(number, {})[trial_id] = pa.Table.from_pylist(rows, schema=self.schema)

    def flush(self) -> None:
        for number, trials in sorted(self._new.items()):
            part = self._part(number)
            others = part.filter(pc.invert(pc.is_in(part["trial_id"], pa.array(trials, pa.string()))))
            self._parts[number] = pa.concat_tables([others, *trials.values()]).combine_chunks()
            self._write(number, self._parts[number])
        self._new.clear()
        if len(pc.unique(self._part(self._open)["trial_id"])) >= TRIALS_PER_PART:
            self._open += 1
        self._parts = {self._open: self._part(self._open)}

    def flag(self, trial_ids: Collection[str], flag: str) -> None:
        """Give these rows a quality flag and take it off the others: a run may be judged again."""
        for number, part in self._read():
            rows, changed = part.to_pylist(), False
            for row in rows:
                flags, flagged = row["quality_flags"] or [], row["trial_id"] in trial_ids
                if flagged != (flag in flags):
                    row["quality_flags"] = [*flags, flag] if flagged else [one for one in flags if one != flag]
                    changed = True
            if changed:
                self._write(number, pa.Table.from_pylist(rows, schema=self.schema))

    def count(self) -> tuple[int, int]:
        """How many trials have rows, and how many were written: fewer have if files were removed or damaged since."""
        return len({one for _, part in self._read() for one in part["trial_id"].to_pylist()}), len(self._part_of)

    def _part(self, number: int) -> pa.Table:
        if number not in self._parts:
            file = parts_of(self.place, self.name, self.run_id).get(number)
            self._parts[number] = read_files(self.place, [file] if file else [], self.schema)
        return self._parts[number]

    def _read(self) -> Iterator[tuple[int, pa.Table]]:
        for number, file in parts_of(self.place, self.name, self.run_id).items():
            yield number, read_files(self.place, [file], self.schema)

    def _write(self, number: int, table: pa.Table) -> None:
        content = pa.BufferOutputStream()
        pq.write_table(table, content, compression="zstd", write_page_checksum=True)
        suffix = f".part{number}" if number else ""
        self.write(f"{self.name}/{self.run_id}{suffix}.parquet", content.getvalue().to_pybytes())


class Writer:
    """Writes the rows of one run on a thread of its own; rows that arrive during a write go together in the next.

    As a context manager it writes what is left when the block is left, whatever the reason.
    """

    def __init__(self, results: Location, run: Run, tell: Callable[[str], object] = lambda text: None) -> None:
        """Hold the run; `tell` is called where that takes a while. Raises StoreError."""
        self.results, self.run = results, replace(run, finished_at=None)
        self._place = at(results)
        with self._as_store_error():
            self._hold = self._place.hold(run.run_id, tell)
            try:
                self._tables = {
                    name: _TableWriter(self._place, self._hold.write, name, run.run_id, schema)
                    for name, schema in SCHEMAS.items()
                }
                self._write_manifest(self.run)
            except BaseException:
                self._hold.close()
                raise
        self._given: deque[tuple[str, Rows]] = deque()  # and not yet written
        self._errors: dict[str, BaseException] = {}  # of what is not written: a trial's id, a file's name, or "rows"
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rresnet-store")
        self._next = Future[None]()  # the latest write that was asked for

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()
        if kind in (None, KeyboardInterrupt):  # who stops is told that what was measured is kept
            self.check()

    def close(self) -> None:
        """Write what is left, and let another process have the run."""
        try:
            self._pool.submit(self._commit)
            self._pool.shutdown()
        finally:
            self._hold.close()

    def write(self, trial_id: str, rows: Rows) -> None:
        """Queue the rows of one trial, written in a quarter second. Raises StoreError if an earlier write failed."""
        self.check()
        self._given.append((trial_id, rows))
        self._next.cancel()  # if it still waits its turn: this one writes the rows of both
        self._next = self._pool.submit(self._commit, pause=True)

    def keep(self, name: str, content: bytes) -> None:
        """Write a file that a trial sent to `files/<run_id>/<name>`."""
        try:
            self._hold.write(f"files/{self.run.run_id}/{name}", content)
        except OSError as error:
            self._errors[name] = error
        self.check()

    def flush(self) -> None:
        """Wait until every row that was given is on disk. Raises StoreError when one could not be written."""
        self._pool.submit(self._commit).result()
        self.check()

    def check(self) -> None:
        """Raise StoreError when a write failed (a full disk, say)."""
        for error in list(self._errors.values()):
            with self._as_store_error():
                raise error

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
        """Mark the run as complete, once every row is written (`flush`).

        Args:
            finished_at: when it ended, ISO 8601.
            flagged: ids of trials that the run as a whole makes doubtful.
            flag: the quality flag that they get, and that others lose.

        Raises StoreError, and leaves it to be continued, if rows that were written are no longer there.
        """
        with self._as_store_error():
            if flag:
                self._tables["trials"].flag(flagged, flag)
            there, written = self._tables["trials"].count()
            if there < written:
                self._write_manifest(self.run)  # which may be gone, too
                raise StoreError(
                    f"{written - there} of {written} trials of run {self.run.run_id} have lost their rows in "
                    f"{self._place.full_name('trials')}: something has removed or damaged files there; the same "
                    "command measures them again"
                )
            self._write_manifest(replace(self.run, finished_at=finished_at, planned=there, retried_at=None))

    def _write_manifest(self, run: Run) -> None:
        self._hold.write(f"runs/{run.run_id}.json", json.dumps(vars(run), indent=1).encode())

    def _commit(self, *, pause: bool = False) -> None:
        """Write all that was given so far, and what an earlier write has failed to; with `pause`, wait after it."""
        began = time.monotonic()
        try:
            self._hold.confirm()
            while self._given:  # all before any is written: if that fails, the next write has them
                trial_id, rows = self._given.popleft()
                try:
                    for name, table in self._tables.items():
                        table.add(trial_id, rows.get(name, ()))
                except Exception as error:  # rows that no table can hold
                    self._errors[trial_id] = error
            for table in reversed(self._tables.values()):  # trials last: a trial's row says that its windows are there
                table.flush()
            self._errors.pop("rows", None)  # an earlier write's: this one has written them
        except Exception as error:  # whatever it is: the thread goes on, and the next caller is told
            self._errors["rows"] = error
        if pause:
            time.sleep(min(PAUSE_SECONDS, PAUSE_PER_WRITE * (time.monotonic() - began)))
