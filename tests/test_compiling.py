"""Whether compiling pays, in sentences."""

import pytest
from samples import make_cell
from tables import trials as made

from rresnet import grid
from rresnet.analysis import compiling
from rresnet.config import Settings

CELLS = {execution: make_cell(execution=execution, batch_size=8) for execution in ("eager", "graph", "compile")}


def measured(compile_seconds=(50.0, None, 10.0, None), **rates):
    """Rows of the executions with the given images a second, one process for two repeats."""
    table = made(*((CELLS[execution], of_one) for execution, of_one in rates.items()))
    found = dict(enumerate(compile_seconds))
    table["compile_seconds"] = table["repeat"].map(found).where(table["execution"] == "compile")
    table["compile_cache"] = table["compile_seconds"].map({50.0: "cold", 10.0: "warm"})
    return table


def test_what_compiling_brings_and_costs_and_after_how_long_it_pays():
    (line,) = compiling.summary(measured(eager=[100.0] * 4, compile=[125.0, 125.1, 124.9, 125.0]))
    assert line.startswith("cpu blog batch 8, compiled over eager: 1.25 (")
    # 250 s train 25,000 images eagerly; compiled they take 200 s, after 50 s of compiling.
    assert line.endswith(
        "times the images/s; compiling takes 50 s cold and 10 s warm, and pays off if training takes longer than "
        "4 min 10 s (4 min 07 s - 4 min 13 s)."
    )


def test_what_is_faster_by_an_interval_that_holds_next_to_nothing_may_never_pay():
    assert compiling._pays_after(50.0, 1.0) == "never"
    (line,) = compiling.summary(measured(eager=[100.0] * 2, compile=[125.0] * 2))  # no interval
    assert line.endswith("1.25 times the images/s; compiling takes 50 s cold.")


def test_compiling_that_was_slower_from_the_cache_is_counted_as_it_was_without():
    table = measured(eager=[100.0] * 4, compile=[125.0, 125.1, 124.9, 125.0])
    table["compile_seconds"] = table["compile_seconds"].replace(10.0, 70.0)
    (line,) = compiling.summary(table)
    assert (
        "compiling takes 50 s cold and 1 min 10 s warm, and pays off if training takes longer than 4 min 10 s" in line
    )


def test_it_is_told_over_the_fastest_of_the_others():
    (line,) = compiling.summary(measured(eager=[50.0] * 4, graph=[100.0] * 4, compile=[125.0, 125.1, 124.9, 125.0]))
    assert "compiled over graph: 1.25" in line


@pytest.mark.parametrize("kernels", [(), ("pytorch", "fused")])
def test_a_gpus_graph_is_what_a_compiled_step_is_told_over_whosever_kernels_it_has(a100, kernels):
    settings = Settings(batch_size=(8,), recipe=("tuned",), execution=("compile", "graph"), kernels=kernels)
    cells = [cell for cell in grid.cells(settings, ["gpu"], a100) if grid.infeasible(cell, a100) is None]
    table = made(*((cell, [rate] * 4) for cell, rate in zip(cells, (120.0, 80.0, 100.0), strict=False)))
    (line,) = compiling.summary(table.assign(compile_seconds=9.0, compile_cache="cold"))
    assert line.startswith(f"gpu tuned batch 8, compiled over graph: {'1.20' if kernels else '1.50'} (")


def test_what_making_the_other_step_ready_takes_is_taken_off():
    table = measured(graph=[100.0] * 4, compile=[125.0, 125.1, 124.9, 125.0])
    table.loc[table["execution"] == "graph", "compile_seconds"] = 40.0
    (line,) = compiling.summary(table)  # 10 s more: 50 s train 5,000 images in a graph, compiled 40 s
    assert "takes 50 s cold and 10 s warm, and pays off if training takes longer than 50 s" in line
    table.loc[table["execution"] == "graph", "compile_seconds"] = 60.0
    (line,) = compiling.summary(table)
    assert line.endswith("compiling takes 50 s cold and 10 s warm, no longer than making the graph step ready.")


@pytest.mark.parametrize(
    ("rates", "told"),
    [
        ([80.0, 80.1, 79.9, 80.0], "0.80 (0.80 - 0.80) times the images/s; compiling takes 50 s cold and 10 s warm."),
        (
            [90.0, 130.0, 80.0, 110.0],
            "times the images/s, not distinguishable; compiling takes 50 s cold and 10 s warm.",
        ),
    ],
)
def test_what_is_no_faster_does_not_pay(rates, told):
    (line,) = compiling.summary(measured(eager=[100.0] * 4, compile=rates))
    assert line.endswith(told)
    assert "pays" not in line


def test_what_was_not_measured_is_told_so():
    table = measured(eager=[100.0] * 4, compile=[125.0] * 4, compile_seconds=(None,) * 4)
    (line,) = compiling.summary(table)
    assert line.endswith("times the images/s; how long compiling took is not known.")
    apart = table[(table["execution"] == "eager") == (table["repeat"] < 2)]
    (line,) = compiling.summary(apart)
    assert "compiled over eager: never measured side by side" in line
    assert compiling.summary(table[table["execution"] == "compile"]) == []
    assert compiling.summary(table[table["execution"] == "eager"]) == []


def test_settings_are_paired_with_their_own_kind_and_a_second_copy_with_none():
    other = [make_cell(execution=execution, batch_size=16) for execution in ("eager", "compile")]
    twice = make_cell(execution="eager", batch_size=8, copy=1)
    table = made(
        (CELLS["eager"], [100.0] * 4), (CELLS["compile"], [200.0] * 4), (twice, [900.0] * 4),
        (other[0], [100.0] * 4), (other[1], [300.0] * 4),
    ).assign(compile_seconds=None, compile_cache=None)  # fmt: skip
    lines = compiling.summary(table)
    assert [(line.split(",")[0], line.split(": ")[1][:4]) for line in sorted(lines)] == [
        ("cpu blog batch 16", "3.00"), ("cpu blog batch 8", "2.00")
    ]  # fmt: skip
