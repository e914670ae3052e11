"""What an hour of a machine costs, from the command line or a file, and which price applies to a trial."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from rresnet.cell import DEVICES, UsageError

EXPECTED = (
    'WHAT=AMOUNT [CURRENCY]/h, WHAT being cpu, gpu or a part of a name, for example "gpu=4.10 USD/h" or '
    '"NVIDIA A100=4.10/h"; or a .toml file'
)
LEAST, MOST = 1e-9, 1e12  # per hour, in any currency; beyond these, a cost may become 0 or infinite


@dataclass(frozen=True, kw_only=True)
class Price:
    """What an hour of one machine (node) costs."""

    what: str  # device kind, or a part of the GPU's, processor's or machine's name
    per_hour: float
    currency: str | None = None
    date: str | None = None
    source: str | None = None


def prices(texts: Sequence[str]) -> tuple[Price, ...]:
    """Read prices of an hour of a machine, from the command line or a file.

    Args:
        texts: each `WHAT=AMOUNT/h` (`gpu=4.10/h`, `NVIDIA A100=4.10/h`, `cpu=0.40 EUR/h`), or the path of a TOML file
            with a table `price` of such pairs (`gpu = 4.10`) and, if known, `currency`, `date` and `source`.

    Raises:
        UsageError: one can't be understood, one thing has two prices, or the currencies differ.
    """
    found: list[Price] = []
    for text in [texts] if isinstance(texts, str) else texts:
        found += _of_file(Path(text)) if text.endswith(".toml") else [_of_text(text)]
    names = [price.what.lower() for price in found]
    if twice := sorted({what for what in names if names.count(what) > 1}):
        raise UsageError(f"--price names {', '.join(twice)} twice: give each one price")
    currencies = sorted({price.currency for price in found if price.currency})
    if len(currencies) > 1:
        raise UsageError(f"prices in {' and '.join(currencies)} can't be compared: give all of them in one currency")
    return tuple(replace(price, currency=next(iter(currencies), None)) for price in found)


def _of_text(text: str) -> Price:
    what, _, amount = text.strip().rpartition("=")
    number, _, currency = amount.removesuffix("/h").strip().partition(" ")
    try:
        if not (what.strip() and amount.endswith("/h")):
            raise ValueError
        return Price(what=what.strip(), per_hour=_amount(float(number), text), currency=currency.strip() or None)
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"--price must be {EXPECTED}, got {text!r}") from None


def _of_file(path: Path) -> list[Price]:
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else f"not TOML: {error}"
        raise UsageError(f"can't read the price file {path} ({why}): give a TOML file with a table [price]") from None
    pairs = content.get("price")
    if unknown := sorted(set(content) - {"price", "currency", "date", "source"}):
        raise UsageError(
            f"{path} has {', '.join(unknown)}: only the table [price], currency, date and source are valid"
        )
    if not isinstance(pairs, dict) or not pairs:
        raise UsageError(f"{path} has no table [price]: name prices an hour in it, for example gpu = 4.10")
    about = {key: str(content[key]) for key in ("currency", "date", "source") if key in content}
    for what, amount in pairs.items():
        if isinstance(amount, bool) or not isinstance(amount, int | float):
            raise UsageError(f"{path}: the price of {what} must be a number an hour (4.10), got {amount!r}")
    return [Price(what=what, per_hour=_amount(n, f"{what} in {path}"), **about) for what, n in pairs.items()]


def _amount(value: float, where: str) -> float:
    if not LEAST <= value <= MOST:
        given = f"{value:g}" if isinstance(value, float) else f"{value}"[:20]  # TOML's whole numbers have no end
        raise UsageError(f"a price must be a number above 0, got {given} ({where}): {LEAST:g} to {MOST:g} are valid")
    return float(value)


def used(trials: pd.DataFrame, prices: Sequence[Price]) -> list[Price]:
    """The prices that apply to at least one of the trials."""
    machines = trials[["device", "gpu_name", "cpu_model", "hostname"]].drop_duplicates().to_dict("records")
    found = [price_of(machine, prices) for machine in machines]
    return [price for price in prices if price in found]


def price_of(row: Mapping[Any, Any], prices: Sequence[Price]) -> Price | None:
    """The price of the machine that a trial ran on: the longest name that fits, else that of its device kind."""
    machine = (row["gpu_name"] if row["device"] == "gpu" else row["cpu_model"], row["hostname"])
    names = [str(of).lower() for of in machine if not pd.isna(of)]
    by_name = [p for p in prices if p.what.lower() not in DEVICES and any(p.what.lower() in of for of in names)]
    by_kind = [p for p in prices if p.what.lower() == row["device"]]
    return max(by_name, key=lambda p: len(p.what), default=next(iter(by_kind), None))
