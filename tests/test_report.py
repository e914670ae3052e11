import base64
import hashlib
import io
import json
import re
import subprocess
import sys
from datetime import timedelta

import pandas as pd
import pytest
from pages import Page, made, two
from samples import make_cell

from results import BLOG, START, TUNED, trial, trials, write
from rresnet import command
from rresnet.reporting import parts, report


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The report of `two`: its folder, page, summary, and what was printed."""
    place = tmp_path_factory.mktemp("plain")
    return place / "out", *made(place, write(place / "a", two()))


def test_the_page_opens_with_the_answer_and_the_summary_has_it(plain):
    _, page, summary, printed = plain
    # The geometric mean of 200, 220, 180, 200 is 199.5.
    answer = (
        "Fastest: cpu tuned batch 64, 199 images/s. That is 2.00x the second, cpu blog batch 64 (95 % interval 2.00"
    )
    assert page.text.index(answer) < page.text.index("Settings")
    assert answer in printed
    assert answer in summary
    assert "| cpu tuned batch 64 | 199" in summary
    assert "| 2.00 (2.00 - 2.00) |" in summary
    assert "| 3 MiB | 4 ok |" in summary
    # 10,000 images at 199.5 a second, and at the ends of the interval.
    assert "| 199 (167 - 238) | 50 s (42 s - 1 min 00 s) projected |" in summary


def test_figures_lie_beside_the_page_and_in_it(plain):
    folder, page, _, _ = plain
    files = sorted(file.name for file in folder.glob("*.*g"))
    assert files == [f"{key}-r1-vm.{kind}" for key in ("memory", "speedup", "time") for kind in ("png", "svg")]
    drawn = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawn) == 3
    identities = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identities) == len(set(identities))
    assert all(set(attributes["aria-labelledby"].split()) <= set(identities) for attributes in drawn)


def test_what_has_nothing_to_show_says_why(plain):
    _, page, _, _ = plain
    assert "Energy: this machine's energy could not be read." in page.text
    assert 'Cost: no price was given (--price "gpu=4.10 USD/h").' in page.text
    assert "Images/s against batch size: each setting was measured at one batch size." in page.text


def test_each_figures_data_can_be_had(plain):
    _, page, _, _ = plain
    links = {a["download"]: a["href"] for tag, a in page.tags if tag == "a" and "download" in a}
    kind, content = links["speedup.csv"].split(",")
    assert kind == "data:text/csv;charset=utf-8;base64"
    table = pd.read_csv(io.BytesIO(base64.b64decode(content)))
    assert table["setting"].tolist() == ["cpu tuned batch 64"]
    assert table["speedup"].tolist() == pytest.approx([2.0])
    assert table["pairs"].tolist() == [4]


def test_every_row_is_in_the_page(plain):
    _, page, _, _ = plain
    data = json.loads(page.data)
    assert data["rows"] == 8
    columns = {column["name"]: column for column in data["columns"]}
    assert columns["images_per_second"]["values"] == [100, 110, 90, 100, 200, 220, 180, 200]
    assert [columns["recipe"]["levels"][code] for code in columns["recipe"]["codes"]] == ["blog"] * 4 + ["tuned"] * 4
    assert columns["setting"]["levels"] == ["cpu blog batch 64", "cpu tuned batch 64"]
    assert columns["setting"]["shown"]
    assert not columns["recipe"]["shown"]
    assert "energy_joules" not in columns  # null in every row


def test_no_trials_at_all_is_said(tmp_path):
    page, summary, printed = made(tmp_path, write(tmp_path / "a", []))
    assert "There are no trials in these results" in page.text
    assert "There are no trials in these results" in summary
    assert "There are no trials in these results" in printed
    assert json.loads(page.data) == {"rows": 0, "columns": []}


def test_one_row_is_told_as_one(tmp_path):
    page, _, _ = made(tmp_path, write(tmp_path / "a", trials((BLOG, [100.0]))))
    assert "The only setting measured: cpu blog batch 64, 100 images/s." in page.text
    assert "1 trial in all" in page.text
    assert "Speedup: no two settings were measured in the same repeat." in page.text


def test_all_failed_says_how(tmp_path):
    rows = trials((BLOG, [None, None]), (TUNED, [None]), error_message="<b>no</b> memory\nat line 3")
    page, summary, _ = made(tmp_path, write(tmp_path / "a", rows))
    assert "No trial ended ok, so there is no answer" in page.text
    assert "<b>no</b> memory" in page.text  # as text, not as an element
    assert not [tag for tag, _ in page.tags if tag in ("b", "svg")]
    assert "- 3 error: &#60;b&#62;no&#60;/b&#62; memory" in summary


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "a$b$ & \"'"])
def test_data_stays_text(tmp_path, evil):
    rows = two(hostname=evil, quality_flags=[evil], cpu_model=evil) + trials(
        ({**BLOG, "dataset": evil, "model": evil}, [50.0, 50.0, 50.0]), hostname=evil, quality_flags=[evil]
    )
    page, summary, _ = made(tmp_path, write(tmp_path / "a", rows))
    assert [tag for tag, _ in page.tags].count("script") == 2  # the rows, and the page's own
    assert not [tag for tag, _ in page.tags if tag in ("img", "b")]
    assert evil in page.text
    assert evil in json.loads(page.data)["columns"][-1].get("levels", []) or evil in page.data.encode().decode(
        "unicode_escape"
    )
    assert "<script" not in summary
    assert "<img" not in summary


def test_the_edge_of_what_was_measured_is_told_unless_larger_sizes_were_looked_for(tmp_path):
    rising = trials((BLOG, [100.0] * 3), ({**BLOG, "batch_size": 128}, [200.0] * 3))
    edge = "Batch 128 is the largest measured for cpu blog; a larger one may be faster."
    page, summary, said = made(tmp_path, write(tmp_path / "a", rising), figures=False)
    assert all(edge in text for text in (page.text, summary, said))
    probes = trials((BLOG, [100.0]), run_id="r0", experiment="compare-sizes")
    page, _, said = made(tmp_path, write(tmp_path / "b", rising + probes), figures=False)
    assert edge not in page.text + said
    elsewhere = [row | {"hostname": "another"} for row in probes]
    page, _, said = made(tmp_path, write(tmp_path / "c", rising + elsewhere), figures=False)
    assert edge in page.text


def test_runs_and_machines_are_kept_apart_and_named_the_newest_first(tmp_path):
    later = START + timedelta(days=1)
    other = [row | {"trial_id": f"{row['repeat']}"} for row in trials((BLOG, [400.0] * 4), hostname="other")]
    a = write(tmp_path / "a", two() + other)
    b = write(tmp_path / "b", two(run_id="r2", start=later), name="r2")
    found = parts.read([a, b, a])
    assert [(part.run_id, part.machine, len(part.trials)) for part in found] == [
        ("r2", "vm", 8),
        ("r1", "vm", 8),
        ("r1", "other", 4),
    ]
    page, summary, said = made(tmp_path, a, b, figures=False)
    assert "3 runs and machines, kept apart" in page.text
    newest = "The newest of 3 runs and machines, compare on vm, 02 Mar 2026 12:00 UTC: Fastest: cpu tuned batch 64, 199"
    for text in (page.text, said):  # what holds over all of them comes first
        assert text.index("That is 2.01 times as fast as the second, cpu tuned batch 64 on vm") < text.index(newest)
    assert summary.endswith("\n")
    assert "resnet18 on" in summary
    headings = ["compare on vm, 02 Mar 2026 12:00 UTC", "compare on vm, 01 Mar 2026", "compare on other, 01 Mar 2026"]
    places = [page.text.index(heading) for heading in headings]
    assert places == sorted(places)
    # 4 pairs in r1 on the vm: the rows of the other machine, and of the other run, made none.
    assert page.text.count("(95 % interval 2.00 - 2.00, 4 pairs)") >= 3


def test_the_accuracy_stands_beside_the_speed_where_it_was_evaluated(tmp_path):
    rows = [row | {"test_accuracy": 0.8125} for row in two()]
    page, summary, _ = made(tmp_path, write(tmp_path / "a", rows), figures=False)
    assert "| trials | test accuracy |" in summary
    assert summary.count("| 4 ok | 0.812 |") == 2
    assert "trials test accuracy" in page.text
    assert "test accuracy |" not in made(tmp_path, write(tmp_path / "b", two()), figures=False)[1]


def test_a_speedup_that_is_not_distinguishable_is_marked_and_what_the_mark_means_is_told(tmp_path):
    page, summary, _ = made(tmp_path, write(tmp_path / "a", two()), figures=False)
    meaning = "~: not distinguishable from the reference."
    assert meaning not in page.text
    assert "\\~" not in summary
    near = trials((BLOG, [100.0, 110.0, 90.0, 100.0]), (TUNED, [110.0, 100.0, 90.0, 105.0]))
    page, summary, _ = made(tmp_path, write(tmp_path / "b", near), figures=False)
    assert "~ 1.01 (" in page.text
    assert meaning in page.text
    assert "| \\~ 1.01 (" in summary
    assert f"\\{meaning}" in summary


def test_what_is_cheapest_is_said_of_a_single_run_too(tmp_path):
    _, _, said = made(tmp_path, write(tmp_path / "a", two()), prices=["cpu=3.60 EUR/h"], figures=False)
    assert said.index("Fastest: ") < said.index("Cheapest: cpu tuned batch 64") < said.index("Report: ")


def test_the_headline_over_several_runs_is_what_is_fastest(tmp_path):
    later = write(tmp_path / "b", two(run_id="r2", start=START + timedelta(days=1)), name="r2")
    prices = ["cpu=3.60 EUR/h", "NVIDIA A100=4 EUR/h"]
    page, _, _ = made(tmp_path, write(tmp_path / "a", two()), later, prices=prices, figures=False)
    assert "2 runs, kept apart" in page.text
    assert page.text.index("Fastest: ") < page.text.index("Over all runs and machines") < page.text.index("Cheapest: ")
    assert page.text.index("Over all runs and machines") < page.text.index("No trial takes the price")


def test_a_run_and_a_copy_of_its_folder_are_one_whatever_their_order(tmp_path):
    rows = two()
    old, same = (write(tmp_path / name, rows) for name in ("old", "same"))
    again = [
        row | {"images_per_second": 600.0, "finished_at": START + timedelta(hours=1)}
        for row in rows
        if row["recipe"] == "tuned"
    ]
    new = write(tmp_path / "new", [*again, *(row for row in rows if row["recipe"] == "blog")])
    texts = []
    for folders in ([old, new, same], [new, same, old]):
        (part,) = parts.read(folders)
        assert (part.source, len(part.trials)) == (str(new), 8)
        page, _, said = made(tmp_path, *folders, figures=False)
        texts.append(said)
        assert "4 pairs" in page.text
        assert "8 pairs" not in page.text
    assert texts[0] == texts[1]
    assert "Fastest: cpu tuned batch 64, 600 images/s. That is 6.02x" in texts[0]  # 600 over 99.75


def test_runs_can_be_chosen_and_an_unknown_one_is_named(tmp_path, capsys):
    a = write(tmp_path / "a", two())
    write(a, two(run_id="r2"), name="r2")
    assert [part.run_id for part in parts.read([a], ["r1"])] == ["r1"]
    assert command.main(["report", str(a), "--run", "r3", "--out", str(tmp_path / "out")]) == 2
    assert "no run r3 in" in (told := capsys.readouterr().err.replace("\n", " "))
    assert "there are: r1, r2" in told


def test_a_folder_without_results_is_one_message(tmp_path, capsys):
    assert command.main(["report", str(tmp_path / "none")]) == 2
    assert "no results in" in capsys.readouterr().err


def test_out_that_can_not_be_written_is_one_message(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command.main(["report", str(write(tmp_path / "a", two())), "--out", str(tmp_path / "file" / "x")]) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_a_part_says_what_was_trained_on_which_data(tmp_path):
    other = {"model": "resnet50", "dataset": "photos", "image_size": 64}
    a = write(tmp_path / "a", [{**row, **other} if row["recipe"] == "tuned" else row for row in two()])
    page, _, _ = made(tmp_path, a, figures=False)
    assert "resnet18 on fashion-mnist-12k, 32 x 32, resnet50 on photos, 64 x 64" in page.text


def test_rows_that_are_doubtful_are_told_beside_the_answer(tmp_path):
    flagged = [{**row, "quality_flags": ["foreign_load"]} for row in two()]
    page, summary, _ = made(tmp_path, write(tmp_path / "a", flagged), figures=False)
    told = f"{len(flagged)} of {len(flagged)} rows are doubtful: foreign_load."
    assert page.text.index(told) < page.text.index("Settings")
    assert told in summary.replace("\\", "")


def test_an_unfinished_run_says_so(tmp_path):
    a = write(tmp_path / "a", two())
    (a / "runs").mkdir()
    manifest = {"run_id": "r1", "experiment": "compare", "name": "compare", "plan_id": "p", "planned": 24}
    (a / "runs" / "r1.json").write_text(json.dumps(manifest | {"started_at": START.isoformat()}))
    page, summary, _ = made(tmp_path, a, figures=False)
    assert "Not finished: 8 of 24 planned trials have a row so far." in page.text
    assert "resnet18 on fashion-mnist-12k, 32 x 32" in page.text
    assert "Not finished" in summary


def test_flags_are_told_with_advice(tmp_path):
    rows = two()
    rows[0]["quality_flags"] = ["swapping"]
    page, summary, _ = made(tmp_path, write(tmp_path / "a", rows), figures=False)
    advice = "1 of 8 rows: memory was short and pages came from disk; give a smaller --batch-size, or free memory."
    assert f"swapping , {advice}" in page.text
    assert advice in summary


def test_prices_give_costs(tmp_path):
    page, _, _ = made(tmp_path, write(tmp_path / "a", two()), prices=["cpu=3.60 EUR/h"])
    links = {a["download"]: a["href"] for tag, a in page.tags if tag == "a" and "download" in a}
    table = pd.read_csv(io.BytesIO(base64.b64decode(links["cost.csv"].split(",")[1]))).set_index("setting")
    # 10,000 images at 100 a second are 100 s, at 3.60 an hour 0.10; the tuned setting takes half of both.
    assert table.loc["cpu blog batch 64", "epoch_cost"] == pytest.approx(0.10, rel=0.01)
    assert table.loc["cpu tuned batch 64", "epoch_cost"] == pytest.approx(0.05, rel=0.01)
    assert table["on_front"].to_dict() == {"cpu blog batch 64": False, "cpu tuned batch 64": True}
    assert "Price: cpu 3.60 EUR an hour." in page.text


def test_prices_may_be_given_one_flag_each(tmp_path, capsys):
    flags = ["--price", "cpu=3.60 EUR/h", "--price", "gpu=4 EUR/h", "--out", str(tmp_path / "out")]
    assert command.main(["report", str(write(tmp_path / "a", two())), *flags]) == 0
    page = Page((tmp_path / "out" / "index.html").read_text()).text
    assert "Price: cpu 3.60 EUR an hour." in page
    assert "No trial takes the price given for: gpu." in page


def test_only_the_newest_runs_have_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MOST_WITH_FIGURES", 1)
    a = write(tmp_path / "a", two())
    write(a, two(run_id="r2", start=START + timedelta(days=1)), name="r2")
    page, _, _ = made(tmp_path, a)
    assert {file.name.split("-")[1] for file in (tmp_path / "out").glob("*.png")} == {"r2"}
    assert "--run r1" in page.text


def test_many_settings_are_drawn_in_part_and_it_says_so(tmp_path):
    cells = [(make_cell(batch_size=size), 100.0 + size) for size in range(1, 51)]
    rows = [trial(cell, repeat, rate) for cell, rate in cells for repeat in range(3)]
    page, summary, _ = made(tmp_path, write(tmp_path / "a", rows))
    assert "The fastest first: 40 of 50." in page.text
    assert "The 40 fastest of 49 settings are drawn." in page.text
    assert "The 40 fastest of 50 settings are drawn." in page.text  # where time went, of all of which it is told:
    seconds = sum(row["warmup_seconds"] + row["measured_seconds"] for row in rows)
    assert f"of {seconds:,.0f} s was measured training" in page.text
    assert "The 40 fastest of 50 settings." in summary
    assert json.loads(page.data)["rows"] == 150


def test_a_row_that_names_no_machine_goes_to_the_runs_only_one(tmp_path):
    rows = two() + trials((TUNED, [None] * 5), hostname=None)[4:]
    assert [len(part.trials) for part in parts.read([write(tmp_path / "a", rows)])] == [9]


def test_the_report_needs_neither_ray_nor_torch():
    code = "import sys, rresnet.reporting.report; sys.exit(bool({'ray', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_pages_script_may_run_and_no_other(plain):
    folder, page, _, _ = plain
    text = (folder / "index.html").read_text()
    (policy,) = (a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert not re.findall(r'(?:src|href)="(?!#|data:)', text)
