import math
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from samples import make_cell

from rresnet.analysis import comparison, pairing
from rresnet.analysis.load import quiet_and_loaded
from rresnet.quality import states
from rresnet.tables.measurement import TRIALS

FAST, SLOW = 0.010, 0.016
BLOG, TUNED = make_cell(recipe="blog"), make_cell(recipe="tuned")


def run(copies, ratios, flags=None):
    """Two cells in as many repeats as there are canaries; the tuned one is faster by the given ratios."""
    rng = np.random.default_rng(0)
    rows = []
    for repeat, (seconds, ratio) in enumerate(zip(copies, ratios, strict=True)):
        for cell, rate in ((BLOG, 100.0), (TUNED, 100.0 * ratio)):
            rows.append(
                {
                    **asdict(cell),
                    "cell_id": cell.cell_id,
                    "trial_id": f"{cell.recipe}{repeat}",
                    "run_id": "r",
                    "hostname": "vm",
                    "repeat": repeat,
                    "process": repeat // 4,
                    "status": "ok",
                    "images_per_second": rate * float(np.exp(rng.normal(0, 0.005))),
                    "canary_copy_seconds": seconds * float(np.exp(rng.normal(0, 0.02))),
                    "canary_matrix_seconds": 0.02 * float(np.exp(rng.normal(0, 0.02))),
                    "quality_flags": list((flags or {}).get(repeat, ())),
                }
            )
    return pd.DataFrame(rows).reindex(columns=[f.name for f in TRIALS])


def test_a_steady_machine_has_one_state():
    assert states.slow_repeats(run([FAST] * 12, [1.3] * 12)) == set()
    assert states.changed(run([FAST] * 12, [1.3] * 12)) == set()


def test_the_repeats_with_a_slow_canary_are_named():
    trials = run([FAST] * 8 + [SLOW] * 4, [1.3] * 12)
    assert states.slow_repeats(trials) == {("r", "vm", repeat) for repeat in range(8, 12)}
    assert states.changed(trials) == {f"{recipe}{repeat}" for recipe in ("blog", "tuned") for repeat in range(8, 12)}


def test_where_the_machine_was_mostly_slow_the_fast_repeats_are_the_changed_ones():
    assert states.changed(run([FAST] * 3 + [SLOW] * 9, [1.3] * 12)) == {
        f"{recipe}{repeat}" for recipe in ("blog", "tuned") for repeat in range(3)
    }


def test_one_odd_repeat_is_noise():
    assert states.slow_repeats(run([FAST] * 11 + [SLOW], [1.3] * 12)) == set()


def by_state(trials):
    pairs = pairing.paired(trials, TUNED.cell_id, BLOG.cell_id)
    return quiet_and_loaded(pairs, slow=states.slow_repeats(trials))


def test_the_ratio_is_told_apart_by_state_where_it_depends_on_it():
    trials = run([FAST] * 8 + [SLOW] * 4, [1.35] * 8 + [1.16] * 4)
    quiet, loaded = by_state(trials)
    assert quiet.estimate == pytest.approx(1.35, rel=0.01)
    assert loaded.estimate == pytest.approx(1.16, rel=0.01)
    assert (quiet.count, loaded.count) == (8, 4)


def test_the_load_flags_tell_the_state_too():
    trials = run([FAST] * 12, [1.35] * 6 + [1.16] * 6, flags={repeat: ["foreign_load"] for repeat in range(6, 12)})
    _, loaded = by_state(trials)
    assert loaded.count == 6


def test_a_ratio_that_does_not_depend_on_the_state_is_not_split():
    trials = run([FAST] * 8 + [SLOW] * 4, [1.3] * 12)
    assert by_state(trials) is None


def test_what_the_two_intervals_allow_for_is_no_difference():
    random, found = np.random.default_rng(7), []
    flags = {repeat: ["steal"] for repeat in range(12, 24)}
    for difference in (0.0, math.log(1.34 / 1.22)):  # bf16 over fp32 in the two states of a traced machine
        told = 0
        for _ in range(40):
            logs = 0.03 * random.standard_normal(24) + np.repeat([difference, 0.0], 12)
            trials = run([FAST] * 24, np.exp(logs), flags=flags)
            told += by_state(trials) is not None
        found.append(told)
    assert found[0] <= 2  # expected where there is no difference: 0.3
    assert found[1] >= 22  # expected where there is: 32


def test_two_loaded_repeats_prove_nothing():
    trials = run([FAST] * 12, [1.35] * 10 + [1.16] * 2, flags={10: ["steal"], 11: ["steal"]})
    assert by_state(trials) is None


def test_rows_without_a_canary_have_no_state():
    trials = run([FAST] * 8 + [SLOW] * 4, [1.3] * 12)
    trials[["canary_copy_seconds", "canary_matrix_seconds"]] = None
    assert states.changed(trials) == set()


@pytest.mark.parametrize("count", [5, 6, 8, 12, 24])
def test_normal_noise_is_rarely_taken_for_a_change_however_few_the_repeats(count):
    rng = np.random.default_rng(1)
    apart = [states.two_groups(rng.normal(0, 1, count))[2] for _ in range(2000)]
    assert sum(sds > states.change_per_sd(count) for sds in apart) <= 30  # fewer than 20 expected, 4.4 the sd


def test_noise_of_six_repeats_is_no_change():
    """Its groups lie 6.6 sds apart."""
    copies = FAST * np.exp([0.0, 0.05, 0.1, 0.33, 0.38, 0.43])
    assert states.two_groups(np.log(copies))[2] == pytest.approx(0.33 / 0.05)
    trials = run(copies, [1.3] * 6).assign(canary_copy_seconds=np.repeat(copies, 2))
    assert states.changed(trials) == set()


def test_the_two_groups_are_those_of_least_scatter():
    upper, gap, sds = states.two_groups(np.array([1.0, 5.0, 1.2, 5.4, 1.1, 5.2]))
    assert upper.tolist() == [False, True, False, True, False, True]
    assert gap == pytest.approx(5.2 - 1.1)
    assert sds == pytest.approx(4.1 / math.sqrt((2 * 0.01 + 2 * 0.04) / 4))


def test_the_noise_floor_grades_a_speedup():
    # Identical cells came out 5 % apart in every repeat; 3 % more speed is then no finding, however sure it looks.
    def rows(cell, rate):
        return (
            run([FAST] * 12, [1.0] * 12)
            .query("recipe == 'blog'")
            .assign(
                **asdict(cell), cell_id=cell.cell_id, images_per_second=[rate * (1 + 0.0001 * i) for i in range(12)]
            )
        )

    again = make_cell(recipe="blog", copy=1)
    alone = pd.concat([rows(BLOG, 100.0), rows(TUNED, 103.0)])
    assert comparison.noise_floors(alone) == {}
    assert comparison.speedup(alone, "recipe", "blog").iloc[0]["distinguishable"]
    graded = pd.concat([alone, rows(again, 105.0)])
    assert comparison.noise_floors(graded) == {"cpu": pytest.approx(0.05, abs=0.001)}
    assert not comparison.speedup(graded, "recipe", "blog").iloc[0]["distinguishable"]


def test_repeats_that_two_canaries_found_slow_are_the_changed_ones_and_not_those_between():
    trials = run([SLOW] * 4 + [FAST] * 8, [1.3] * 12)
    trials.loc[trials["repeat"] >= 8, "canary_matrix_seconds"] *= 1.6
    slow = [0, 1, 2, 3, 8, 9, 10, 11]
    assert states.slow_repeats(trials) == {("r", "vm", repeat) for repeat in slow}
    assert states.changed(trials) == {f"{recipe}{repeat}" for recipe in ("blog", "tuned") for repeat in slow}
