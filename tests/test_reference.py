import pandas as pd
import pytest
from small_results import BLOG, TUNED, row, written

import rresnet
from rresnet.analysis import reference
from rresnet.cell import CELL_COLUMNS, Cell, Trial


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path / "reference", [row(BLOG, r, 100.0) for r in range(3)])


FOLDERS = [reference.FOLDER, reference.FOLDER / "h100", reference.FOLDER / "h100-compile", reference.FOLDER / "zen3"]


@pytest.mark.parametrize("kept_in", FOLDERS)
def test_kept_rows_have_the_ids_that_a_run_of_today_would_give_them(kept_in):
    for kept in reference.read(kept_in).trials.to_dict("records"):
        cell = Cell(**{name: None if pd.isna(kept[name]) else kept[name] for name in CELL_COLUMNS})
        assert cell.cell_id == kept["cell_id"]
        assert Trial(cell=cell, repeat=kept["repeat"], process=kept["process"]).trial_id == kept["trial_id"]


def test_reference_rows_say_that_they_were_measured_elsewhere(folder):
    assert set(reference.read(folder).trials["hostname"]) == {"vm (measured elsewhere)"}


def test_reference_rows_never_pair_with_ones_own(folder):
    own = pd.DataFrame([row(TUNED, r, 200.0) for r in range(3)])  # of the same run id and host name
    both = pd.concat([reference.read(folder).trials, own])
    with pytest.raises(ValueError, match=r"they differ in hostname \(vm against vm \(measured elsewhere\)\)"):
        rresnet.speedup(both, over="recipe", reference="blog")


def test_outside_a_checkout_there_are_none(tmp_path):
    with pytest.raises(rresnet.StoreError, match="they come with a checkout of rresnet, not with an installed copy"):
        reference.read(tmp_path / "nothing")


def test_what_the_docs_say_of_the_gpu_is_what_its_rows_say():
    trials = reference.read(reference.FOLDER / "h100").trials
    told = {}
    for over, one in (("recipe", "blog"), ("device", "cpu")):
        for found in rresnet.speedup(trials, over=over, reference=one).to_dict("records"):
            interval = f"{found['speedup']:.3g} ({found['low']:.3g} - {found['high']:.3g})"
            told[f"{found['device']} {found['recipe']} over {one}"] = interval
    docs = (reference.FOLDER.parents[1] / "docs/performance.md").read_text()
    assert len(told) == 4
    assert told["gpu tuned over blog"] == "12.2 (10.1 - 14.8)"
    assert told["gpu tuned over cpu"] in docs
    assert told["gpu blog over cpu"] in docs


@pytest.mark.parametrize("kept_in", FOLDERS)
def test_what_comes_with_the_checkout_can_be_read_and_is_not_in_ones_own(kept_in):
    tables = reference.read(kept_in)
    assert set(tables.trials["status"]) == {"ok"}
    assert tables.trials["images_per_second"].gt(0).all()
    assert len(tables.windows.merge(tables.trials, on=["run_id", "trial_id"])) == len(tables.windows) > 0
    assert not (reference.FOLDER.parent / "trials" / "reference").exists()
    assert tables.trials["model"].unique().tolist() == ["resnet50"]
