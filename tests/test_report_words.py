"""What a report says beside its figures: on which machine, over what, how sure, and of how many trials."""

from pages import made, two
from stored import make_run

from results import BLOG, TUNED, trials, write
from rresnet.tables.store import Writer


def on(rows, **columns):
    return [row | columns for row in rows]


def test_the_page_names_the_machine_and_what_was_measured_on_it(tmp_path):
    rows = on(two(), cpu_model="Some CPU", cpu_count=12)
    page, _, _ = made(tmp_path, write(tmp_path / "a", rows), figures=False)
    assert (
        "resnet18 on fashion-mnist-12k, 32 x 32 · compare on vm, 01 Mar 2026 12:00 UTC · Some CPU, 12 CPUs" in page.text
    )
    assert "GPU: none was measured here." in page.text
    gpu = on(
        trials((BLOG | {"device": "gpu"}, [300.0] * 4)), gpu_name="NVIDIA A100", cpu_model="Some CPU", cpu_count=12
    )
    page, _, _ = made(tmp_path, write(tmp_path / "b", rows + gpu), figures=False)
    assert "Some CPU, 12 CPUs, NVIDIA A100" in page.text
    assert "GPU: none was measured here." not in page.text


def test_a_run_is_told_by_the_name_that_it_was_given(tmp_path):
    folder = write(tmp_path / "a", two())
    for name, title in (("nightly", "nightly (compare) on vm, 01 Mar"), ("compare", "compare on vm, 01 Mar")):
        Writer(folder, make_run(run_id="r1", experiment="compare", name=name)).close()
        page, summary, _ = made(tmp_path, folder, figures=False)
        assert f" · {title}" in page.text
        assert title in summary.replace("\\", "")


def test_the_table_names_what_it_compares_with(tmp_path):
    page, summary, _ = made(tmp_path, write(tmp_path / "a", two()), figures=False)
    assert "Speedups are over cpu blog batch 64, paired by repeat; in brackets" in page.text
    assert "Speedups are over cpu blog batch 64, paired by repeat; in brackets" in summary
    failed = trials((BLOG, [None] * 3))
    page, summary, _ = made(tmp_path, write(tmp_path / "b", failed), figures=False)
    assert "Speedups are over" not in page.text
    assert "Speedups are over" not in summary


def test_the_answers_scatter_stands_beside_it_but_not_beside_a_ladders(tmp_path):
    rows = on(trials((BLOG, [100.0, 110.0, 90.0, 100.0]), (TUNED, [210.0, 200.0, 190.0, 200.0])), process=0)
    page, _, _ = made(tmp_path, write(tmp_path / "a", rows), figures=False)
    assert page.text.index(told := "The lead over the second scatters by") < page.text.index("Settings")
    page, _, _ = made(tmp_path, write(tmp_path / "b", on(rows, experiment="ladder")), figures=False)
    assert "tuned over blog" in page.text
    assert told not in page.text


def test_what_more_workers_bring_is_told(tmp_path):
    rows = trials((BLOG, [100.0] * 3), (BLOG | {"num_workers": 2, "cpu_threads": 1}, [80.0] * 3))
    page, _, _ = made(tmp_path, write(tmp_path / "a", rows), figures=False)
    assert "cpu blog batch 64, 2 workers over 1: 0.80 (" in page.text


def test_whether_compiling_pays_is_told(tmp_path):
    rows = trials((BLOG, [100.0] * 3), (BLOG | {"execution": "compile"}, [125.0] * 3))
    page, _, _ = made(tmp_path, write(tmp_path / "a", rows), figures=False)
    assert "cpu blog batch 64, compiled over eager: 1.25 (" in page.text


def test_prices_that_fit_nothing_are_named_and_not_told_as_used(tmp_path):
    page, _, _ = made(tmp_path, write(tmp_path / "a", two()), prices=["cpu=0.125 EUR/h", "NVIDA A100=4 EUR/h"])
    assert "No trial takes the price given for: NVIDA A100." in page.text
    assert "Price: cpu 0.125 EUR an hour." in page.text
    assert "Price: NVIDA" not in page.text
