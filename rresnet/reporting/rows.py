"""Every row of the trials table as compact JSON for a page's own table, and which columns it shows at first."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from rresnet.tables.measurement import TRIALS

LONGEST_TEXT = 1000  # letters; a traceback's end may be longer
DIGITS = 6  # significant ones
SHOWN = (
    "setting",
    "batch_size",
    "precision",
    "num_workers",
    "repeat",
    "status",
    "images_per_second",
    "step_seconds",
    "epoch_seconds",
    "peak_memory_bytes",
    "percent_of_limit",
    "bottleneck",
    "test_accuracy",
    "quality_flags",
    "error_message",
)
ALWAYS = ("setting", "batch_size", "repeat", "status", "images_per_second")
PART = "part"
OWN_DOCS = {PART: "number of the run and machine in this report", "setting": "name of the setting in its run"}


def encode(trials: Sequence[pd.DataFrame]) -> dict[str, Any]:
    """The rows of a report's parts, column by column; a column that is null everywhere is left out.

    Args:
        trials: rows of the trials table, one frame per part, with a column `setting` if settings have names; parts are
            numbered from 1.

    Returns:
        `rows`, the number of rows, and `columns`, each with `name`, `doc`, `shown` and the `values` of all rows. If the
        values are texts, or few of them are distinct, there are instead `levels`, the distinct values, and `codes`, the
        position of each row's value among them. Null is null, or -1 as a code.
    """
    numbered = [frame.assign(part=number) for number, frame in enumerate(trials, start=1)]
    table = pd.concat([frame.astype({PART: "int64"}) for frame in numbered]) if numbered else pd.DataFrame()
    docs = OWN_DOCS | {f.name: (f.metadata or {})[b"doc"].decode() for f in TRIALS}
    filled = [name for name in docs if name in table and table[name].notna().any()]
    first = [name for name in (PART, *SHOWN) if name in filled]
    columns = []
    for name in dict.fromkeys([*first, *filled]):
        values = _plain(table[name])
        several = values.nunique(dropna=False) > 1
        shown = name in ALWAYS or (several and name in first)
        columns.append({"name": name, "doc": docs[name], "shown": shown, **_column(values)})
    return {"rows": len(table), "columns": columns}


def _plain(values: "pd.Series[Any]") -> "pd.Series[Any]":
    """The values as JSON can hold them: texts, numbers, and None."""
    if isinstance(values.dtype, pd.DatetimeTZDtype):
        plain: pd.Series[Any] = values.dt.strftime("%Y-%m-%d %H:%M:%S")
    else:
        plain = values.map(_value)
    return plain.astype(object)


def _value(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            return None if math.isnan(value) else str(value)
        short = float(f"{value:.{DIGITS}g}")
        return int(short) if short.is_integer() and abs(short) < 2**53 else short
    if isinstance(value, str):
        return value if len(value) <= LONGEST_TEXT else f"{value[:LONGEST_TEXT]} ... ({len(value):,} letters)"
    if value is None or isinstance(value, bool | int):
        return value
    return ", ".join(map(str, value))  # quality flags


def _column(values: "pd.Series[Any]") -> dict[str, Any]:
    codes, levels = pd.factorize(values)
    if len(levels) > len(values) / 2 and not isinstance(levels[0], str):
        return {"values": [None if pd.isna(value) else value for value in values]}
    return {"levels": list(levels), "codes": codes.tolist()}


def dumps(value: object) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=lambda v: v.item())
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text
