"""What to train on: fastest, cheapest or least energy, and whether each is distinguishable from the second."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Literal, get_args

import pandas as pd

from rresnet.analysis import alike, answer, comparison, frames, pairing, ranking, unpaired
from rresnet.analysis.costs import costs as costs
from rresnet.analysis.costs import settings
from rresnet.analysis.prices import Price as Price
from rresnet.analysis.prices import prices as prices
from rresnet.analysis.statistics import Interval
from rresnet.terminal import number, ratios, significant

Question = Literal["fastest", "cheapest", "least energy"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The best setting by one measure, and how it compares with the second."""

    question: Question
    setting: str
    amount: str  # how fast it is, or what an epoch takes
    second: str | None = None
    ratio: Interval | None = None  # how many times better than the second
    side_by_side: bool = False  # whether the ratio is paired
    not_apart: tuple[str, ...] = ()  # settings other than the second that are not distinguishable from it
    task: str | None = None  # model, data and image size, where several were measured

    @property
    def distinguishable(self) -> bool | None:
        """Whether it is distinguishable from the second; None where no interval is claimed."""
        return self.ratio.distinguishable if self.ratio else None

    def sentence(self) -> str:
        """The verdict in one sentence."""
        best, amount = f"{self.question.capitalize()}{f' for {self.task}' if self.task else ''}", self.amount
        if self.second is None or self.ratio is None:
            return f"{best}: {self.setting}, {amount}, the only setting for which this is known."
        told = f"{best}{answer.settled(self.ratio, self.not_apart)}: {self.setting}, {amount}"
        estimate, *bounds = ratios(self.ratio.estimate, *self.ratio.bounds)
        told += f". {_MEASURES[self.question].than.format(estimate, self.second)}"
        apart, of = ("", "pairs") if self.side_by_side else ("not measured side by side", "repeats")
        if self.distinguishable is None:
            few = f"with fewer than 3 {of} no interval is claimed, so it is not known whether they differ"
            return f"{told}; {'; '.join(filter(None, (apart, few)))}."
        interval, count = f"95 % interval {' - '.join(bounds)}", f"{self.ratio.count} {of}"
        whether = answer.apart_text(self.ratio, self.not_apart)
        return f"{told} ({', '.join(filter(None, (interval, count, apart)))}): {whether}."


def verdicts(trials: pd.DataFrame, prices: Sequence[Price] = ()) -> list[Verdict]:
    """The fastest, the cheapest and the least energy for each model, data set and image size, as far as they are known.

    The ratio to the second is paired if both ran side by side, in one run on one machine; otherwise it is that of two
    independent means (`unpaired.ratio`).

    Raises:
        ValueError: `trials` lack columns, or a row is there twice.
        UsageError: no price fits any of the trials.
    """
    table = costs(trials, prices)
    trials = frames.without_probes(frames.with_all_axes(trials))
    if table.empty:
        return []
    found = []
    tasks = table.dropna(subset=["images_per_second"]).groupby(alike.TASK, dropna=False, sort=False)
    for (model, dataset, fingerprint, size), cells in tasks:
        content = fingerprint if isinstance(fingerprint, str) else "content not known"
        alone = len({str(key[2]) for key, _ in tasks if key[1] == dataset}) == 1
        data = dataset if alone else f"{dataset} ({content})"
        cells = cells.assign(setting=settings(cells.to_dict("records")))  # the task is named once, before them
        named = None if len(tasks) == 1 else f"{model} on {data} at {size} pixels"
        for question in get_args(Question):
            column = _MEASURES[question].column
            known = cells.dropna(subset=[column]).sort_values(column, ascending=question != "fastest")
            if len(known):
                found.append(_verdict(question, trials, known.to_dict("records"), named))
    return found


@dataclass(frozen=True, kw_only=True)
class _Measure:
    """What a question ranks by."""

    column: str  # of the table of costs
    # From a cell's trials: more is better. It replaces their images a second, from which ratios are computed.
    worth: Callable[[pd.DataFrame, Mapping[Any, Any]], "pd.Series[float]"]
    amount: Callable[[Mapping[Any, Any]], str]
    than: str


_MEASURES: dict[Question, _Measure] = {
    "fastest": _Measure(
        column="images_per_second",
        worth=lambda ok, cell: ok["images_per_second"],
        amount=lambda cell: f"{number(cell['images_per_second'])} images/s",
        than="That is {0} times as fast as the second, {1}",
    ),
    "cheapest": _Measure(
        column="cost_per_1000_images",
        worth=lambda ok, cell: ok["images_per_second"] / (cell["price_per_hour"] * cell["nodes"]),
        amount=lambda cell: f"{significant(cell['epoch_cost'])} {cell['currency'] or '(currency not given)'} an epoch",
        than="The second, {1}, costs {0} times as much",
    ),
    "least energy": _Measure(
        column="joules_per_1000_images",
        worth=lambda ok, cell: ok["measured_images"] / ok["energy_joules"].where(ok["energy_joules"] > 0),
        amount=lambda cell: f"{significant(cell['epoch_joules'])} J an epoch",
        than="The second, {1}, takes {0} times as much",
    ),
}


def _verdict(question: Question, trials: pd.DataFrame, ranked: list[dict[Any, Any]], task: str | None) -> Verdict:
    measure = _MEASURES[question]
    valued = [_valued(trials, cell, measure) for cell in ranked]
    every = pd.concat(valued)
    ratios = functools.cache(lambda one: pairing.ratios(_at(every, _where(ranked[one])), ranked[one]["cell_id"], None))
    floors_at = functools.cache(lambda *where: comparison.noise_floors(_at(trials, where)))
    floors = [floors_at(*_where(cell)).get(cell["device"]) for cell in ranked]

    def paired(one: int, other: int) -> Interval | None:
        if not all(frames.same(ranked[one][c], ranked[other][c]) for c in alike.AVERAGED):
            return None
        return ratios(one).get(ranked[other]["cell_id"])

    def ratio(one: int, other: int) -> Interval:
        found = paired(one, other) or unpaired.ratio(valued[one], valued[other])
        return replace(found, floor=comparison.floor_of(floors[one], floors[other]))

    first, second = ranking.first_two(ranked, ratio) if len(ranked) > 1 else (0, None)
    found = Verdict(
        question=question,
        setting=ranked[first]["setting"],
        amount=measure.amount(ranked[first]),
        task=task,
    )
    if second is None:
        return found
    over = {n: ratio(first, n) for n in range(len(ranked)) if n != first}
    return replace(
        found,
        second=ranked[second]["setting"],
        ratio=over.pop(second),
        side_by_side=paired(first, second) is not None,
        not_apart=tuple(ranked[n]["setting"] for n, one in over.items() if one.distinguishable is False),
    )


def _valued(trials: pd.DataFrame, cell: Mapping[Any, Any], measure: _Measure) -> pd.DataFrame:
    """The cell's ok rows, with the measure's worth in place of the rate."""
    ok = _at(trials[(trials["cell_id"] == cell["cell_id"]) & (trials["status"] == "ok")], _where(cell))
    valued: pd.DataFrame = ok.assign(images_per_second=measure.worth(ok, cell)).dropna(subset=["images_per_second"])
    return valued


_where = itemgetter(*alike.AVERAGED)  # of a cell: in what the trials agree that may be averaged with its own


def _at(trials: pd.DataFrame, where: Sequence[Any]) -> pd.DataFrame:
    """The trials with these values of `alike.AVERAGED`."""
    for column, value in zip(alike.AVERAGED, where, strict=True):
        trials = trials.loc[trials[column].isna() if pd.isna(value) else trials[column] == value]
    return trials
