"""The Parquet tables as they are read: at any time, even while a run writes them, and older versions too."""

import re
import warnings
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rresnet.tables.measurement import DEFAULTS, SCHEMA_VERSION, SCHEMAS, TRIAL_KEY
from rresnet.tables.place import Location, Place, StoreError, at

_FILE = re.compile(r"(?:.*/)?(?P<run_id>.+?)(?:\.part(?P<number>\d+))?\.parquet", re.DOTALL)  # of a run
_VERSION = b"rresnet_schema_version"
_SHORTAGE = re.compile("memory|alloc|thread", re.IGNORECASE)


class DamagedFileWarning(UserWarning):
    """A file of a results folder is damaged, not rresnet's, or a copy of another, and was left out."""


def check_there(results: Location) -> None:
    """Raise StoreError unless there are results."""
    kept = at(results)
    if not kept.holds("trials"):
        above, _, last = str(results).rstrip("/").rpartition("/")
        todo = f"give {above or '.'}" if last in SCHEMAS else "run python experiments/compare.py first"
        raise StoreError(f"no results in {kept.full_name('')} (no folder {kept.full_name('trials')}): {todo}")


def read_tables(
    results: Location, names: Iterable[str] = tuple(SCHEMAS), *, run_id: str | None = None
) -> dict[str, pa.Table]:
    """Tables of a results folder, or of one run in it, whatever else goes on there. Raises StoreError."""
    place = at(results)

    def files(name: str) -> Iterable[str]:
        return parts_of(place, name, run_id).values() if run_id else matching(place, name, "*.parquet")

    return {name: read_files(place, files(name), SCHEMAS[name]) for name in names}


def parts_of(place: Place, name: str, run_id: str) -> dict[int, str]:
    """The files that hold a table of one run, by number: 0 is the first, of the run's own name."""
    found = (_FILE.fullmatch(file) for file in matching(place, name, "*.parquet"))
    return {int(file["number"] or 0): file[0] for file in found if file and file["run_id"] == run_id}


def matching(place: Place, folder: str, pattern: str) -> list[str]:
    """Names of a folder's files that match, relative to the results folder."""
    try:
        return [f"{folder}/{name}" for name in place.names(folder) if fnmatchcase(name, pattern)]
    except OSError as error:
        raise StoreError(f"can't read {place.full_name(folder)}: {place.reason(error)}") from error


def content_of(place: Place, name: str) -> bytes | None:
    """A file's content; None where it is gone."""
    try:
        return place.read(name)
    except FileNotFoundError:  # removed since it was listed
        return None
    except OSError as error:  # the system's fault, not the file's
        raise StoreError(f"can't read {place.full_name(name)}: {place.reason(error)}") from error


def read_files(place: Place, files: Iterable[str], schema: pa.Schema) -> pa.Table:
    """Every row of the files, no trial twice; those that are gone, or damaged, have none."""
    tables = dict[str, pa.Table]()
    for name in files:
        content = content_of(place, name)
        table = None if content is None else _rows(place, name, content, schema)
        if table is not None:
            tables[name] = table
    once = _once(place, tables)
    return pa.concat_tables(once) if once else schema.empty_table()


def _once(place: Place, tables: Mapping[str, pa.Table]) -> list[pa.Table]:
    """The files' rows, without those of another file's run that a file repeats: such a file is a copy."""
    runs = {name: set[Any](pc.unique(table["run_id"]).to_pylist()) for name, table in tables.items()}
    own = {name for name in tables if (file := _FILE.fullmatch(name)) and runs[name] <= {file["run_id"]}}
    found = {name: table for name, table in tables.items() if name in own}
    for name in (name for name in tables if name not in own):
        there = {key for other, rows in found.items() if runs[other] & runs[name] for key in _keys(rows)}
        again = [key in there for key in _keys(tables[name])]
        found[name] = tables[name].filter(pa.array([not one for one in again], pa.bool_()))
        if any(again):
            what = f"{place.full_name(name)} has {sum(again)} rows that another file has too, and they are left out"
            warnings.warn(f"{what}: move this copy to another folder", DamagedFileWarning, stacklevel=2)
    return list(found.values())


def _keys(rows: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*(rows[column].to_pylist() for column in TRIAL_KEY), strict=True))


def _rows(place: Place, name: str, content: bytes, schema: pa.Schema) -> pa.Table | None:
    """A file's rows, or None if it is damaged: it is then set aside under another name, and the others are read.

    A file that rresnet has not written is only left out.
    """
    path, ours = place.full_name(name), True
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        ours = _VERSION in (file.schema_arrow.metadata or {})
        _check_version(path, file.schema_arrow.metadata)
        return _conform(file.read(), schema)
    except (pa.ArrowException, MemoryError, OSError, KeyError, UnicodeError) as error:
        if _is_shortage(error):
            raise StoreError(
                f"can't read {path} now ({error}): free memory, then run the same command again"
            ) from error
        what = f"is not a table of rresnet's ({error}) and is left out: move it to another folder"
        if ours:
            place.set_aside(name)
            what = f"is damaged ({error}) and is left out: run the command of its run again to measure its trials again"
        warnings.warn(f"{path} {what}", DamagedFileWarning, stacklevel=2)
        return None


def _is_shortage(error: Exception) -> bool:
    """Whether memory, threads or the system failed, not the file: faults of a file have error types of their own."""
    if isinstance(error, OSError):  # errors that Parquet's reader finds have no number
        return error.errno is not None or _SHORTAGE.search(str(error)) is not None
    return isinstance(error, MemoryError) or type(error) is pa.ArrowException


def _check_version(path: str, metadata: Mapping[bytes, bytes] | None) -> None:
    """Raise StoreError for a newer version, since what it means by a column is not known.

    Older versions are read: columns that they lack are null.
    """
    version = (metadata or {}).get(_VERSION, b"0")
    if version.isdigit() and int(version) > SCHEMA_VERSION:
        raise StoreError(
            f"{path} was written by a newer rresnet (schema_version {int(version)}, this one knows up to "
            f"{SCHEMA_VERSION}): update rresnet, or name another results folder"
        )


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with the columns of `schema`: what an older version did not write is null, or for an axis its default."""
    if lacking := [name for name in TRIAL_KEY if name not in table.column_names or table[name].null_count]:
        raise pa.ArrowInvalid(f"not every row has a {' and a '.join(lacking)}")
    there = set(table.column_names)
    columns = [table[f.name] if f.name in there else pa.nulls(table.num_rows, f.type) for f in schema]
    found = pa.table(columns, schema=schema)  # casts them
    for number, field in enumerate(schema):
        if field.name in DEFAULTS and found[number].null_count:
            found = found.set_column(number, field, found[number].fill_null(DEFAULTS[field.name]))
    return found
