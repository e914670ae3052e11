"""Speedups over several runs, machines and experiments, and the noise floor."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from samples import make_cell
from tables import BLOG, QUIET, TUNED, printed, scaled, trials

import rresnet
from rresnet import grid, naming
from rresnet.analysis import comparison, decision, pairing
from rresnet.analysis.statistics import ROUND_SECONDS
from rresnet.config import Settings


def test_rows_with_variables_set_and_without_are_not_compared_and_those_older_than_the_column_are():
    one, other = (trials((BLOG, [100.0] * 3), (TUNED, [150.0] * 3), run_id=run) for run in ("one", "other"))
    tables = [one.assign(variables="none"), other.assign(variables="LD_PRELOAD=x.so")]
    with pytest.raises(
        ValueError, match=r"different variables \((none and LD_PRELOAD=x\.so|LD_PRELOAD=x\.so and none)\)"
    ):
        rresnet.speedup(pd.concat(tables), over="recipe", reference="blog")
    older = pd.concat([tables[0], other])
    assert rresnet.speedup(older, over="recipe", reference="blog")["pairs"].tolist() == [6]


def test_runs_that_asked_for_other_axes_do_not_hide_each_others_pairs():
    # The second run asks for two precisions, so there precision is matched; in the first it was the recipe's.
    half = make_cell(recipe="tuned", batch_size=64, precision="bf16", input="resident", fused_optimizer=True)
    whole = replace(half, precision="fp32")
    first = trials((BLOG, [100.0] * 3), (half, [300.0] * 3), run_id="first")
    asked = (
        (BLOG, [100.0] * 3),
        (whole, [200.0] * 3),
        (replace(BLOG, precision="bf16"), [50.0] * 3),
        (half, [300.0] * 3),
    )
    found = rresnet.speedup(pd.concat([first, trials(*asked, run_id="second")]), over="recipe", reference="blog")
    by_precision = {None if pd.isna(p) else p: s for p, s in zip(found["precision"], found["speedup"], strict=True)}
    assert by_precision == pytest.approx({None: 3.0, "fp32": 2.0, "bf16": 6.0})
    assert "precision: bf16 vs fp32" in found.loc[found["precision"].isna(), "differs"].item()


def test_a_ladder_tells_of_its_ends_what_the_recipes_are_worth():
    rung = replace(BLOG, input="resident")
    ladder = trials((BLOG, [100.0] * 3), (rung, [180.0] * 3), (TUNED, [200.0] * 3), run_id="l").assign(
        experiment="ladder"
    )
    compared = trials((BLOG, [100.0] * 3), (TUNED, [200.0] * 3))
    for rows, pairs in ((ladder, 3), (pd.concat([compared, ladder]), 6)):
        (found,) = rresnet.speedup(rows, over="recipe", reference="blog").to_dict("records")
        assert (found["speedup"], found["pairs"]) == (pytest.approx(2), pairs)
    assert rresnet.speedup(ladder, over="input", reference="dataloader")["speedup"].tolist() == pytest.approx([1.8])


@pytest.mark.parametrize("column", ["cpu_model", "gpu_name", "torch_version", "dataset_fingerprint"])
def test_rows_of_unlike_machines_software_or_data_are_not_averaged(column):
    cells = (BLOG, [100.0] * 3), (TUNED, [200.0] * 3)
    mixed = pd.concat([trials(*cells, run_id=run).assign(**{column: run}) for run in ("one", "other")])
    with pytest.raises(ValueError, match=rf"rows with different {column} \(one and other\) may not be .* averaged"):
        rresnet.speedup(mixed, over="recipe", reference="blog")
    (found,) = rresnet.speedup(mixed, over="recipe", reference="blog", allow=(column,)).to_dict("records")
    assert (found["speedup"], found["pairs"]) == (pytest.approx(2), 6)


@pytest.mark.parametrize(("repeats", "known"), [(3, 1), (2, 0)])
def test_what_is_known_to_be_distinguishable_can_be_picked_out_with_and_without_intervals(repeats, known):
    found = comparison.speedup(trials((BLOG, [100.0] * repeats), (TUNED, [200.0] * repeats)), "recipe", "blog")
    assert [len(found[found["distinguishable"].eq(is_so)]) for is_so in (True, False)] == [known, 0]
    assert [bool(row["distinguishable"]) for _, row in found.iterrows()] == [bool(known)]
    assert [str(found[column].dtype) for column in ("low", "high")] == ["float64"] * 2
    assert found["low"].isna().tolist() == found["distinguishable"].isna().tolist() == [not known]


def test_probes_of_batch_sizes_pair_with_nothing_and_win_nothing_where_something_was_measured():
    larger = replace(TUNED, batch_size=128)
    probes = trials((BLOG, [100.0]), (TUNED, [300.0]), (larger, [310.0]), run_id="s").assign(experiment="compare-sizes")
    measured = trials((BLOG, [100.0] * 3), (TUNED, [200.0] * 3), run_id="r").assign(experiment="compare")
    both = pd.concat([probes, measured])
    (found,) = rresnet.speedup(both, over="recipe", reference="blog").to_dict("records")
    assert (found["speedup"], found["pairs"]) == (pytest.approx(2), 3)
    (verdict,) = decision.verdicts(both)
    assert (verdict.amount, verdict.ratio.estimate, verdict.distinguishable) == ("200 images/s", pytest.approx(2), True)
    assert decision.verdicts(probes)[0].amount == "310 images/s"
    failed = measured.assign(status="error", images_per_second=math.nan)
    assert decision.verdicts(pd.concat([probes, failed]))[0].amount == "310 images/s"


def test_runs_of_unlike_commits_are_told_apart():
    one = trials((BLOG, [100.0] * 3), (TUNED, [150.0] * 3), run_id="one").assign(git_commit="aaa")
    other = trials((BLOG, [100.0] * 3), (TUNED, [300.0] * 3), run_id="other").assign(git_commit="bbb")
    found = rresnet.speedup(pd.concat([one, other]), over="recipe", reference="blog")
    assert dict(zip(found["git_commit"], found["speedup"], strict=True)) == pytest.approx({"aaa": 1.5, "bbb": 3.0})
    assert "git_commit" not in rresnet.speedup(one, over="recipe", reference="blog")
    assert rresnet.speedup(one.drop(columns="git_commit"), over="recipe", reference="blog")["pairs"].tolist() == [3]


def at(table, minutes, commands):
    """The rows, begun so many minutes after a moment, by the commands of those numbers."""
    moment = pd.Timestamp("2026-11-01", tz="UTC")
    began, command = (
        moment + pd.to_timedelta(pd.Series(of, index=table.index), unit="min") for of in (minutes, commands)
    )
    return table.assign(started_at=began, command_started_at=command)


def test_a_trial_that_was_tried_again_the_next_day_is_no_pair():
    table = trials((BLOG, [100.0] * 4), (TUNED, [200.0] * 4))
    together = at(table, [0, 2, 4, 6, 1, 3, 5, 7], [0] * 8)
    assert pairing.ratio(together, TUNED.cell_id, BLOG.cell_id).count == 4
    again = at(table, [0, 2, 4, 6, 1440, 3, 5, 7], [0] * 4 + [1439] + [0] * 3)
    texts = again.assign(**{c: [t.isoformat() for t in again[c]] for c in ("started_at", "command_started_at")})
    texts.loc[0, "started_at"] = "2026-11-01 00:00:00.000001Z"
    for rows in (again, texts):  # as from a CSV or JSON file
        assert pairing.ratio(rows, TUNED.cell_id, BLOG.cell_id).count == 3
        assert rresnet.speedup(rows, over="recipe", reference="blog")["pairs"].tolist() == [3]
    never = at(table, [0, 2, 4, 6, 1440, 1441, 1442, 1443], [0] * 4 + [1439] * 4)
    assert "never measured side by side with the second, cpu blog batch 64. --fresh" in printed(never)
    with pytest.raises(ValueError, match="two commands measured them more than ten minutes apart; use --fresh"):
        rresnet.speedup(never, over="recipe", reference="blog")


def test_rows_of_two_commits_are_no_pair():
    table = trials((BLOG, QUIET), (TUNED, scaled(2.0))).assign(git_commit="aaa", environment_fingerprint="one")
    new = table["repeat"].ge(4)
    table.loc[new, "git_commit"] = "bbb"
    table.loc[(table["repeat"] == 3) & (table["recipe"] == "tuned"), ["git_commit", "images_per_second"]] = "bbb", 900.0
    pairs = pairing.paired(table, TUNED.cell_id, BLOG.cell_id)
    assert pairs["repeat"].tolist() == [0, 1, 2, 4, 5]
    found = rresnet.speedup(table, over="recipe", reference="blog")
    assert found[["git_commit", "pairs"]].to_dict("list") == {"git_commit": ["aaa", "bbb"], "pairs": [3, 2]}
    assert found["speedup"].tolist() == pytest.approx([2.0, 2.0])


def test_repeats_that_were_measured_again_come_where_they_then_were():
    table = trials((BLOG, [100.0] * 8), (TUNED, [200.0] * 8))
    seconds = table["repeat"] * 0.5 + (table["repeat"] % 2) * 86_400  # every second one, the next day
    begun = pd.Timestamp("2026-11-01", tz="UTC") + pd.to_timedelta(seconds, unit="s")
    series = pairing.series_of(pairing.paired(table.assign(started_at=begun), TUNED.cell_id, BLOG.cell_id))
    assert series.rounds == pytest.approx(8 * 1.0 / ROUND_SECONDS)
    table.loc[table["recipe"] == "tuned", "images_per_second"] = [200.0 + repeat for repeat in range(8)]
    series = pairing.series_of(pairing.paired(table.assign(started_at=begun), TUNED.cell_id, BLOG.cell_id))
    assert (100 * np.exp(series.logs) - 200).round().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.mark.parametrize(("cores", "workers"), [(12, (1, 2, 4, 8)), (2, (1, 2)), (7, (2, 3))])
def test_workers_that_share_all_cores_are_compared_though_their_threads_differ(cores, workers):
    cells = [make_cell(num_workers=count, cpu_threads=cores // count) for count in workers]
    table = trials(*((cell, scaled(cell.num_workers)) for cell in cells))
    found = rresnet.speedup(table, over="num_workers", reference=workers[0])
    assert found["num_workers"].tolist() == list(workers[1:])
    assert "cpu_threads" in found["differs"].iloc[-1]
    assert [naming.name(vars(cell), [vars(one) for one in cells]) for cell in cells] == [
        f"cpu blog batch 8 {count} worker{'s' if count > 1 else ''}" for count in workers
    ]


@pytest.mark.parametrize("commands", [[0, 0], [None, 60], [0, 25]])
def test_what_one_command_measured_is_a_pair_and_what_another_did_soon_after_or_nobody_knows(commands):
    minutes = [0, 30] if commands != [0, 25] else [21, 30]
    rows = at(trials((BLOG, [100.0]), (TUNED, [200.0])), minutes, commands)
    assert pairing.ratio(rows, TUNED.cell_id, BLOG.cell_id).count == 1
    assert rresnet.speedup(rows, over="recipe", reference="blog")["pairs"].tolist() == [1]


def test_rows_of_unlike_data_are_no_pair():
    table = trials((BLOG, [100.0] * 3), (TUNED, [200.0] * 3)).assign(dataset_fingerprint=["a"] * 5 + ["b"])
    assert pairing.ratio(table, TUNED.cell_id, BLOG.cell_id).count == 2


def test_the_ratios_to_all_others_at_once_are_those_of_each_two():
    """In two runs: a setting that lacks repeats, one that never ended ok, and environments that are mixed."""
    larger, failing, rng = replace(TUNED, batch_size=128), replace(TUNED, batch_size=256), np.random.default_rng(0)
    cells = [(cell, rng.uniform(100, 200, 8).tolist()) for cell in (BLOG, TUNED)]
    one = trials(*cells, (larger, [150.0, 151.0] * 4))
    mixed = trials(*cells, (larger, [None, 160.0, 161.0, 165.0]), run_id="r2")
    mixed = mixed.assign(torch_version=rng.choice(["2.11", "2.15"], len(mixed)))
    table = pd.concat([one, mixed, trials((failing, [300.0] * 8), status="error")])
    others = [TUNED.cell_id, larger.cell_id]
    assert pairing.ratios(table, None, BLOG.cell_id) == {
        other: pairing.ratio(table, other, BLOG.cell_id) for other in others
    }
    assert pairing.ratios(table, BLOG.cell_id, None) == {
        other: pairing.ratio(table, BLOG.cell_id, other) for other in others
    }


def test_a_machines_noise_is_not_another_ones():
    rng = np.random.default_rng(0)
    quiet = trials((BLOG, [100.0] * 6), (TUNED, list(130.0 + rng.normal(0, 1, 6))), hostname="quiet")
    noisy = trials((BLOG, [100.0] * 6), (replace(BLOG, copy=1), [140.0] * 6), run_id="r2", hostname="noisy")
    table = pd.concat([quiet, noisy])
    assert comparison.floors_by_host(table) == {("noisy", "cpu"): pytest.approx(0.4)}
    assert comparison.speedup(table, "recipe", "blog")["distinguishable"].tolist() == [True]
    same = pd.concat([quiet, noisy.assign(hostname="quiet")])
    assert comparison.speedup(same, "recipe", "blog")["distinguishable"].tolist() == [False]


def test_the_noise_of_one_device_does_not_silence_the_others():
    copy, gpu = make_cell(batch_size=64, copy=1), replace(BLOG, device="gpu")
    cpus = trials((BLOG, [100.0] * 3), (copy, [145.0] * 3))
    gpus = trials((gpu, [100.0] * 3), (replace(gpu, copy=1), [101.0] * 3), (replace(gpu, recipe="tuned"), [115.0] * 3))
    found = rresnet.speedup(pd.concat([cpus, gpus]), over="recipe", reference="blog")
    assert found["distinguishable"].tolist() == [True]
    across = rresnet.speedup(pd.concat([cpus, gpus.assign(images_per_second=130.0)]), over="device", reference="cpu")
    assert set(across["distinguishable"]) == {False}  # the CPU's noise is in this ratio
    told = printed(pd.concat([cpus, gpus]))
    assert "below 45.0 % on cpu and 1.0 % on gpu" in told


@pytest.mark.parametrize("repeats", [1, 2])
def test_identical_cells_under_3_repeats_give_a_floor_without_intervals(repeats):
    table = trials((BLOG, [100.0] * repeats), (make_cell(batch_size=64, copy=1), [110.0] * repeats))
    assert comparison.noise_floors(table) == {"cpu": pytest.approx(0.1)}
    assert "no interval with fewer than 3 pairs" in printed(table)


def test_rows_that_are_older_than_an_axis_are_compared_by_its_default():
    table = trials((BLOG, [100.0] * 3), (TUNED, [200.0] * 3)).drop(columns=["small_maps", "cudnn_benchmark"])
    (found,) = rresnet.speedup(table, over="recipe", reference="blog").to_dict("records")
    assert found["speedup"] == pytest.approx(2)
    assert len(decision.costs(table)) == 2


def test_runs_that_were_each_given_one_value_are_told_apart():
    slow, fast = replace(BLOG, precision="bf16"), replace(TUNED, precision="bf16")
    whole = replace(TUNED, precision="fp32")
    first = trials((BLOG, [100.0] * 3), (whole, [200.0] * 3), run_id="fp32")
    second = trials((slow, [50.0] * 3), (fast, [400.0] * 3), run_id="bf16")
    both = pd.concat([first, second])
    found = rresnet.speedup(both, over="recipe", reference="blog").set_index("precision")
    assert found["speedup"].to_dict() == pytest.approx({"fp32": 2.0, "bf16": 8.0})
    assert found["pairs"].tolist() == [3, 3]
    mixed = trials((BLOG, [100.0] * 3), (fast, [400.0] * 3), run_id="mixed")
    found = rresnet.speedup(pd.concat([first, mixed]), over="recipe", reference="blog").sort_values("speedup")
    assert found["speedup"].tolist() == pytest.approx([2.0, 4.0])
    assert found["differs"].iloc[1].startswith("precision: bf16 vs fp32")


def test_identical_cells_on_unlike_machines_are_told_all_the_same():
    cells = (BLOG, [100.0] * 3), (replace(BLOG, copy=1), [101.0] * 3)
    table = pd.concat([trials(*cells, hostname=host).assign(cpu_model=host) for host in ("one", "other")])
    assert "Identical settings against each other" in printed(table)


def test_without_its_lower_end_a_ladder_tells_nothing_of_the_recipes():
    rung = replace(BLOG, input="resident")
    failed = trials((BLOG, [100.0] * 3), run_id="l", status="error")
    table = pd.concat([failed, trials((rung, [150.0] * 3), (TUNED, [200.0] * 3), run_id="l")])
    table["experiment"] = "ladder"
    with pytest.raises(ValueError, match="no ok rows with recipe = 'blog'"):
        rresnet.speedup(table, over="recipe", reference="blog")
    with pytest.raises(ValueError, match="no ok rows with recipe = 'blog'"):  # nor where it has no row at all
        rresnet.speedup(table[table["status"] == "ok"], over="recipe", reference="blog")


def test_what_may_differ_is_not_averaged_with_what_does_not():
    blog, two, four = replace(BLOG, cpu_threads=2), replace(TUNED, cpu_threads=2), replace(TUNED, cpu_threads=4)
    runs = ("r1", two, 200.0), ("r2", four, 300.0)
    table = pd.concat([trials((blog, [100.0] * 3), (of, [rate] * 3), run_id=run) for run, of, rate in runs])
    found = rresnet.speedup(table, over="recipe", reference="blog", allow=("cpu_threads",)).sort_values("speedup")
    assert found["speedup"].tolist() == pytest.approx([2.0, 3.0])
    assert "cpu_threads: 4 vs 2" in found["differs"].iloc[1]


def test_rows_of_a_model_whose_code_was_changed_are_not_compared():
    tables = [
        trials((BLOG, [100.0] * 3), (TUNED, [200.0] * 3), run_id=run_id).assign(model_code=code)
        for run_id, code in (("r1", "aaa"), ("r2", "bbb"))
    ]
    both = pd.concat(tables)
    with pytest.raises(ValueError, match=r"different model_code .*may not be compared or averaged"):
        rresnet.speedup(both, over="recipe", reference="blog")
    assert rresnet.speedup(both, over="recipe", reference="blog", allow=("model_code",))["pairs"].tolist() == [6]
    other = make_cell(batch_size=64, model="mynets:b")
    models = pd.concat(
        [trials((BLOG, [100.0] * 3)).assign(model_code="a"), trials((other, [200.0] * 3)).assign(model_code="b")]
    )
    assert rresnet.speedup(models, over="model", reference=BLOG.model)["pairs"].tolist() == [3]


def test_rows_of_unlike_environments_in_one_run_are_no_pair_and_that_is_told():
    """As after --mix-environments: the blog's rows of repeats 2 to 5 are of another PyTorch than the tuned ones."""
    rows = trials((BLOG, [100.0] * 6), (TUNED, [200.0] * 2 + [900.0] * 4))
    assert pairing.mixed(rows.assign(torch_version="2.11")) == []
    other = (rows["cell_id"] == TUNED.cell_id) & (rows["repeat"] >= 2)
    for fingerprints in (None, other.map({True: "a", False: "b"})):
        run = rows.assign(torch_version=other.map({True: "2.15", False: "2.11"}), environment_fingerprint=fingerprints)
        with pytest.raises(ValueError, match="different torch_version"):
            rresnet.speedup(run, over="recipe", reference="blog")
        found = pairing.paired(run, TUNED.cell_id, BLOG.cell_id)
        assert found["ratio"].tolist() == [2.0, 2.0]
        assert "mixes rows from different environments (they differ in torch_version)" in " ".join(printed(run).split())
        unknown = run.assign(torch_version=run["torch_version"].where(~other))  # older than the column
        assert len(pairing.paired(unknown, TUNED.cell_id, BLOG.cell_id)) == 6
    models = rows.assign(model=rows["cell_id"], model_code=rows["cell_id"])
    assert len(pairing.paired(models, TUNED.cell_id, BLOG.cell_id)) == 6
    assert pairing.mixed(models) == []


def test_a_run_on_unlike_machines_says_that_its_figures_are_means_over_them():
    cells = (BLOG, [100.0] * 3), (TUNED, [200.0] * 3)
    alike, other = (trials(*cells, hostname=host).assign(cpu_model="A") for host in ("one", "other"))
    assert "are unlike" not in printed(pd.concat([alike, other]))
    text = " ".join(printed(pd.concat([alike, other.assign(cpu_model="B")])).split())
    assert "The machines of this run are unlike (they differ in cpu_model): rates and ratios are means over" in text


@pytest.mark.parametrize("column", ["run_id", "repeat", "process", "cell_id"])
def test_rows_without_what_pairs_them_are_refused_by_name(column):
    rows = trials((BLOG, [100.0] * 3), (TUNED, [200.0] * 3))
    with pytest.raises(ValueError, match=f"trials lack the columns {column}, epochs: give rows as rresnet.read"):
        rresnet.speedup(rows.drop(columns=[column, "epochs"]), over="recipe", reference="blog")
    with pytest.raises(ValueError, match=f"ok rows have no {column}: leave these rows out"):
        rresnet.speedup(rows.assign(**{column: rows[column].where(rows["repeat"] > 0)}), "recipe", "blog")


def test_rows_that_do_not_say_their_experiment_are_compared():
    rows = trials((BLOG, [100.0] * 3), (TUNED, [200.0] * 3)).drop(columns="experiment")
    assert rresnet.speedup(rows, over="recipe", reference="blog")["speedup"].tolist() == pytest.approx([2.0])


def test_rows_that_are_there_twice_are_refused_with_what_to_do():
    rows = trials((BLOG, [100.0] * 3), (TUNED, [200.0] * 3))
    with pytest.raises(ValueError, match=r"there twice: give trials\.drop_duplicates"):
        rresnet.speedup(pd.concat([rows, rows]), over="recipe", reference="blog")


@pytest.mark.parametrize(("kernels", "pairs"), [((), ["fused"]), (("pytorch", "fused"), ["pytorch"])])
def test_kernels_that_executions_left_to_the_recipe_may_differ_and_are_named(a100, kernels, pairs):
    settings = Settings(batch_size=(64,), execution=("eager", "graph"), kernels=kernels)
    cells = [cell for cell in grid.cells(settings, ["gpu"], a100) if grid.infeasible(cell, a100) is None]
    table = trials(*((cell, [100.0] * 3) for cell in cells))
    found = rresnet.speedup(table[table["recipe"] == "tuned"], over="execution", reference="eager")
    assert found["differs"].tolist() == ["kernels: fused vs pytorch" if found == "fused" else "" for found in pairs]
    recipes = rresnet.speedup(table, over="recipe", reference="blog")
    assert recipes["execution"].tolist() == ["eager", "graph"]
    assert ["kernels: fused" in told for told in recipes["differs"]] == [False, pairs == ["fused"]]
