import io
import itertools
import re
import warnings
from dataclasses import asdict

import pandas as pd
import pytest
from rich.console import Console
from samples import LAPTOP, make_cell

from rresnet import grid
from rresnet.analysis import ranking
from rresnet.analysis.ladder import CHANGES, rungs, summary
from rresnet.cell import UsageError
from rresnet.config import Settings
from rresnet.experiments import blog, ladder, planning
from rresnet.figures import amounts, drawing


def test_each_rung_has_one_change_more(laptop, a100):
    found = ladder.cells(Settings(batch_size=(64,)), ["cpu"], a100)
    axes = [[getattr(c, axis) for axis in CHANGES] for c in found]
    changes = [sum(a != b for a, b in zip(one, other, strict=True)) for one, other in itertools.pairwise(axes)]
    assert changes == [1] * (len(found) - 1)
    assert found[0] == grid.cells(Settings(batch_size=(64,), recipe=("blog",)), ["cpu"], a100)[0]
    assert found[-1] == grid.cells(Settings(batch_size=(64,), recipe=("tuned",)), ["cpu"], a100)[0]
    assert (
        len(ladder.cells(Settings(batch_size=(64,)), ["cpu"], laptop)) == len(found) - 1
    )  # no bf16 units: no such rung


def test_a_gpus_ladder_ends_in_a_graph(a100):
    found = ladder.cells(Settings(batch_size=(64, 128)), ["gpu"], a100)
    assert [c.execution for c in found[:8]] == ["eager"] * 6 + ["graph"] * 2
    assert [c.kernels for c in found[:8]] == ["pytorch"] * 7 + ["fused"]
    # cuDNN keeps what it has found for a layout: no two cells of one layout may differ in how it looks.
    assert [(c.channels_last, c.cudnn_benchmark) for c in found[:8]] == [(False, False)] * 2 + [(True, True)] * 6
    assert [c.batch_size for c in found] == [64] * 8 + [128] * 8


def test_the_ladder_of_a_model_of_ones_own_ends_where_tuned_does(a100):
    found = ladder.cells(Settings(batch_size=(64,), model="samples:few_layers"), ["gpu"], a100)
    assert [(c.recipe, c.execution, c.kernels) for c in found[-2:]] == [
        ("blog", "eager", "pytorch"),
        ("tuned", "graph", "pytorch"),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": ("tuned",)},
        {"precision": ("fp32",)},
        {"input": ("resident",)},
        {"num_workers": (1, 2)},
        {"num_nodes": (2,)},
        {"aa": True},
    ],
)
def test_what_the_ladder_decides_can_not_be_given(laptop, changes):
    with pytest.raises(UsageError, match="can't be given here"):
        ladder.cells(Settings(batch_size=(64,), **changes), ["cpu"], laptop)


def test_the_summary_names_the_total_and_the_largest_step():
    (line,) = summary(rungs(rows([100.0, 110.0, 330.0])))
    assert line.startswith("cpu batch 8: tuned over blog 3.30 (")
    assert "the largest step is channels_last False -> True, 3.00" in line


def rows(rates, repeats=6):
    """A ladder's trials with the given images a second a rung."""
    cells = [
        make_cell(),
        make_cell(input="resident"),
        make_cell(recipe="tuned", input="resident", channels_last=True),
    ]
    found = [
        {
            **asdict(cell),
            "cell_id": cell.cell_id,
            "run_id": "r",
            "hostname": "h",
            "repeat": repeat,
            "process": repeat // 2,
            "status": "ok",
            "images_per_second": rate * (1 + 0.01 * (repeat % 2)),
            "epoch_seconds": 1.0,
            "epoch_seconds_kind": "projected",
            "measured_images": 100,
            "energy_joules": None,
            "peak_memory_bytes": 1,
            "quality_flags": None,
            "percent_of_limit": None,
            "bottleneck": None,
            "test_accuracy": None,
            "epochs": None,
        }
        for repeat in range(repeats)
        for cell, rate in zip(cells, rates, strict=True)
    ]
    return pd.DataFrame(found)


def test_rungs_carry_paired_ratios_to_the_one_below_and_to_the_first():
    found = rungs(rows([100.0, 110.0, 165.0]))
    assert found["change"].tolist() == ["blog", "input dataloader -> resident", "channels_last False -> True"]
    assert found["step"].tolist()[1:] == pytest.approx([1.1, 1.5])
    assert found["total"].tolist()[1:] == pytest.approx([1.1, 1.65])
    assert found["step_low"].iloc[1] <= 1.1 <= found["step_high"].iloc[1]
    assert pd.isna(found["step"].iloc[0])


def test_a_rung_that_failed_keeps_its_place():
    trials = rows([100.0, 110.0, 165.0])
    trials.loc[trials["input"].eq("resident") & ~trials["channels_last"], ["status", "images_per_second"]] = (
        "error",
        None,
    )
    found = rungs(trials)
    assert found["images_per_second"].isna().tolist() == [False, True, False]
    assert found["total"].iloc[2] == pytest.approx(1.65)


def test_the_waterfall_is_drawn(tmp_path):
    ladder.show(rows([100.0, 110.0, 165.0]), Console(file=io.StringIO()), tmp_path)
    files = sorted((tmp_path / "figures").iterdir())
    assert [file.name for file in files] == ["ladder-r.png", "ladder-r.svg"]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    drawn = files[1].read_text()
    assert all(text in drawn for text in ("100", "111", "1.10x", "166", "1.50x", "channels_last False", "cpu, batch"))


def test_a_rung_of_two_axes_leaves_the_waterfall_its_width():
    found = rungs(rows([100.0, 110.0, 165.0]))
    found["change"] = ["blog", "input", "channels_last False -> True, cudnn_benchmark False -> True"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = drawing.svg(amounts.waterfall(found)).decode()
    assert "channels_last False -&gt; True,<" in drawn
    assert "cudnn_benchmark False -&gt; True<" in drawn


def test_a_ladder_without_tuned_is_told_and_not_drawn(tmp_path):
    trials, out = rows([100.0, 110.0, 165.0]), io.StringIO()
    ladder.show(trials[trials["recipe"] == "blog"], Console(file=out, width=120), tmp_path)
    assert out.getvalue() == "cpu batch 8: no ladder, because blog and tuned do not both have rows there.\n"
    assert not list(tmp_path.iterdir())


def test_the_lowest_of_the_rungs_that_ran_is_not_called_the_blogs(tmp_path):
    trials = rows([100.0, 110.0, 165.0])
    whole, larger = (
        trials.assign(cell_id=trials["cell_id"] + "64", batch_size=64),
        trials[trials["input"] == "resident"],
    )
    found = rungs(pd.concat([whole, larger.assign(batch_size=128)]))
    assert set(found["batch_size"]) == {64}
    out = io.StringIO()
    ladder.show(pd.concat([whole, larger.assign(batch_size=128)]), Console(file=out, width=120), tmp_path)
    assert "cpu batch 64: tuned over blog 1.65" in out.getvalue()
    assert "cpu batch 128: no ladder, because blog and tuned do not both have rows there." in out.getvalue()


def test_the_blogs_cell_of_a_gpu_is_known_by_all_but_its_precision(a100, laptop):
    for machine, device in ((a100, "gpu"), (a100, "cpu"), (laptop, "cpu")):
        cells = ladder.cells(Settings(batch_size=(64,)), [device], machine)
        blogs = ranking.as_written(pd.DataFrame(map(asdict, cells)))
        assert blogs.tolist() == [True] + [False] * (len(cells) - 1)


def test_no_axis_is_none_in_the_blogs_script():
    assert None not in vars(grid.AS_WRITTEN).values(), "of a flag, None means that the recipe decides: use 0, say"


def test_the_blogs_epochs_are_whole_on_a_gpu_and_projected_on_a_cpu(a100):
    found = blog.cells(blog.BlogSettings(), ["cpu", "gpu"], a100)
    assert [(c.device, c.recipe, c.batch_size, c.epochs) for c in found] == [
        ("cpu", "blog", 64, None),
        ("cpu", "tuned", 64, None),
        ("gpu", "blog", 64, 10),
        ("gpu", "tuned", 64, 10),
    ]
    projected = planning.plan(blog.BlogSettings(), blog.cells, LAPTOP)
    assert {trial.cell.epochs for trial, _ in projected} == {None}
    assert {c.epochs for c in blog.cells(blog.BlogSettings(full=True), ["cpu"], a100)} == {10}
    assert {c.epochs for c in blog.cells(blog.BlogSettings(epochs=2), ["cpu"], a100)} == {2}


def test_the_blogs_own_figures_are_told_as_published(tmp_path):
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=120)
    blog.show(rows([100.0, 110.0, 165.0]), console, tmp_path)
    lines = console.file.getvalue().splitlines()
    published = [line for line in lines if "published" in line]
    assert any(re.search(r"cpu tuned .* s \(.* s - .* s\) +projected ", line) for line in lines)  # with its interval
    assert [line.split()[:3] for line in published] == [["the", "blog's", "A100"], ["the", "blog's", "CPU"]]
    assert all("not given" in line for line in published)
    assert not any("published" in line for line in lines if "img" in line or "cpu tuned" in line)


@pytest.mark.parametrize(("epochs", "told"), [(2, "published, 10 epochs"), (10, "published "), (None, "published ")])
def test_the_blogs_own_epochs_are_named_where_others_were_trained(epochs, told, tmp_path):
    out = io.StringIO()
    blog.show(rows([100.0, 110.0, 165.0]).assign(epochs=epochs), Console(file=out, width=120), tmp_path)
    assert f"{epochs or 10} epochs" in out.getvalue()
    assert out.getvalue().count(told) == 2
