from pathlib import Path

import pandas as pd
import pytest

import rresnet
from rresnet.cell import CELL_COLUMNS, Cell, Trial

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "results" / "reference"
FOLDERS = [REFERENCE, REFERENCE / "h100", REFERENCE / "h100-compile", REFERENCE / "zen3"]


@pytest.mark.parametrize("kept_in", FOLDERS)
def test_kept_rows_have_the_ids_that_a_run_of_today_would_give_them(kept_in):
    for kept in rresnet.read(kept_in).trials.to_dict("records"):
        cell = Cell(**{name: None if pd.isna(kept[name]) else kept[name] for name in CELL_COLUMNS})
        assert cell.cell_id == kept["cell_id"]
        assert Trial(cell=cell, repeat=kept["repeat"], process=kept["process"]).trial_id == kept["trial_id"]


def test_what_the_docs_say_of_the_gpu_is_what_its_rows_say():
    trials = rresnet.read(REFERENCE / "h100").trials
    told = {}
    for over, one in (("recipe", "blog"), ("device", "cpu")):
        for found in rresnet.speedup(trials, over=over, reference=one).to_dict("records"):
            interval = f"{found['speedup']:.3g} ({found['low']:.3g} - {found['high']:.3g})"
            told[f"{found['device']} {found['recipe']} over {one}"] = interval
    docs = (ROOT / "docs/performance.md").read_text()
    assert len(told) == 4
    assert told["gpu tuned over blog"] == "12.2 (10.1 - 14.8)"
    assert told["gpu tuned over cpu"] in docs
    assert told["gpu blog over cpu"] in docs


@pytest.mark.parametrize("kept_in", FOLDERS)
def test_what_comes_with_the_checkout_can_be_read_and_is_not_in_ones_own(kept_in):
    tables = rresnet.read(kept_in)
    assert set(tables.trials["status"]) == {"ok"}
    assert tables.trials["images_per_second"].gt(0).all()
    assert len(tables.windows.merge(tables.trials, on=["run_id", "trial_id"])) == len(tables.windows) > 0
    assert not (REFERENCE.parent / "trials" / "reference").exists()
    assert tables.trials["model"].unique().tolist() == ["resnet50"]
