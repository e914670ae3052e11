"""What a report says of one part: its sections in their order."""

from collections.abc import Sequence

import pandas as pd

from rresnet.analysis.costs import costs as costs_of
from rresnet.analysis.prices import Price, used
from rresnet.reporting import speed, use
from rresnet.reporting.parts import Part
from rresnet.reporting.section import MOST_LINES, Section


def sections(part: Part, cells: pd.DataFrame, prices: Sequence[Price]) -> list[Section]:
    """Every section of a part and its `answer.compared`, those without anything to show included."""
    measured = cells[(cells["repeats"] > 0) & (cells["copy"] == 0)].reset_index(drop=True)
    if measured.empty:
        return []
    shown = measured.head(MOST_LINES)
    first_copies = part.trials[part.trials["copy"] == 0]
    costs = costs_of(first_copies, used(first_copies, prices))  # the others are for other parts of the report
    found = [
        speed.speedups(measured),
        speed.batch_sizes(part, measured),
        speed.climbs(part),
        use.time(part, shown),
        use.clocks(part, shown),
        use.limit(shown),
        speed.learning(part, measured),
        use.memory(shown),
        use.energy(shown, costs),
        use.cost(costs, prices),
    ]
    return [section for section in found if section is not None]
