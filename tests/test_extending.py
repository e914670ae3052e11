"""Each walk-through of docs/extending.md, applied to a copy of the package and run there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rresnet import hardware

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "extending.md").read_text()


def blocks(heading, kind):
    """The code blocks of a kind under a heading of the guide."""
    section = GUIDE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{kind}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def apply(diff, folder):
    """Change the files as the diff says; returns the files and how many places of them."""
    places = []
    for name, body in re.findall(r"^--- (\S+)\n((?:(?!--- ).*\n)*)", diff, re.MULTILINE):
        lines = body.splitlines(keepends=True)
        before = "".join(line[1:] or "\n" for line in lines if line[0] != "+")
        after = "".join(line[1:] or "\n" for line in lines if line[0] != "-")
        path = folder / name
        assert path.read_text().count(before) == 1, f"{name} has not once:\n{before}"
        path.write_text(path.read_text().replace(before, after))
        places.append(name)
    return places


@pytest.fixture
def copy(tmp_path):
    """A copy of the package and its experiments, to be changed."""
    for name in ("rresnet", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(folder, *command, fails=False, columns=200):
    """What a Python command prints in the folder, on its package; on stderr where it is to fail with 2."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT / 'tests'}", "COLUMNS": str(columns)}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == (2 if fails else 0), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if fails else done.stdout


def commands(heading):
    """The commands of a walk-through, as lists of words after `python`."""
    found = [line.removeprefix("$ python ").split() for line in "".join(blocks(heading, "console")).splitlines()]
    assert found
    return found


AXIS = """
import json, pickle, sys
import pandas as pd
from results import trials, write
from samples import LAPTOP, make_cell
import rresnet
from rresnet import grid
from rresnet.training import model
from rresnet.cell import Cell, CELL_COLUMNS, Trial
from rresnet.config import Settings
from rresnet.tables.measurement import TRIALS

kept = rresnet.read(sys.argv[1]).trials
row = kept.iloc[0].to_dict()
cell = Cell(**{name: None if pd.isna(row[name]) else row[name] for name in CELL_COLUMNS})
import torch
decayed = make_cell(weight_decay=0.01)
rows = trials(({"weight_decay": 0.0}, [100, 101, 99]), ({"weight_decay": 0.01}, [90, 91, 89]))
found = rresnet.speedup(rresnet.read(write(__import__("pathlib").Path("out"), rows)).trials, "weight_decay", 0.0)
print(json.dumps({
    "older rows": kept["weight_decay"].unique().tolist(),
    "their id": [row["cell_id"], cell.cell_id],
    "their trial": [row["trial_id"], Trial(cell=cell, repeat=row["repeat"], process=0).trial_id],
    "request": Settings().request_id,
    "label": decayed.label(),
    "again": pickle.loads(pickle.dumps(Trial(cell=decayed, repeat=0, process=0))).cell.weight_decay,
    "doc": TRIALS.field("weight_decay").metadata[b"doc"].decode(),
    "decay": model.build(decayed, 4, torch.device("cpu"))[1].param_groups[0]["weight_decay"],
    "speedup": found["speedup"].round(2).tolist(),
}))
"""


def test_an_axis(copy):
    (diff,) = blocks("An axis", "diff")
    assert apply(diff, copy) == ["rresnet/cell.py", "rresnet/training/model.py"]
    (dry_run,) = commands("An axis")
    plan = run(copy, *dry_run, "--repeats", "1", "--batch-size", "8", "--recipe", "blog", "--device", "cpu")
    assert "Would run 2 trials" in plan
    assert re.search(r"weight\s+decay", plan)
    assert re.search(r"  0\.01 ", plan)
    assert "--weight-decay FLOAT ..." in run(copy, "experiments/compare.py", "--help")
    said = run(copy, "experiments/compare.py", "--weight-decay", "-1", fails=True)
    assert "--weight-decay must be at least 0, got -1.0" in said
    found = json.loads(run(copy, "-c", AXIS, str(ROOT / "results" / "reference")))
    assert found["older rows"] == [0.0]
    assert found["their id"][0] == found["their id"][1]
    assert found["their trial"][0] == found["their trial"][1]
    assert found["label"] == "cpu blog fp32 batch 8 weight decay 0.01"
    assert (found["again"], found["decay"]) == (0.01, 0.01)
    assert found["doc"] == "Adam's L2 penalty"
    assert found["speedup"] == [0.9]
    from rresnet.config import Settings

    assert found["request"] == Settings().request_id  # an unfinished run goes on


def test_a_recipe(copy):
    (diff,) = blocks("A recipe", "diff")
    assert apply(diff, copy) == ["rresnet/grid.py"]
    (command,) = commands("A recipe")
    plan = run(copy, *command, "--dry-run", "--repeats", "1", "--batch-size", "8", "--device", "cpu")
    assert re.search(r"  half +bf16 ", plan)
    assert "In all of them: device cpu, input dataloader, execution eager" in plan
    told = run(copy, "experiments/compare.py", "--help")
    assert "--recipe {blog,tuned,half" in told
    beside = " ".join(told.replace("│", " ").split())  # the flags stand in two columns
    assert "half: the blog's" in beside
    assert "script in half precision, and nothing else changed." in beside
    said = run(copy, "experiments/compare.py", "--recipe", "hlaf", fails=True)
    assert "Did you mean --recipe half?" in said


LOAD = """
import json
from pathlib import Path
from rresnet import data
from rresnet.data import named
named._IDX = {name: (20 if "train" in name else 10, *shape[1:]) for name, shape in named._IDX.items()}
found = [data.load(name, image_size=16, data_dir=Path("images")) for name in ("kmnist", "stripes")]
try:
    data.load("kmnits", image_size=16)
except data.DataError as error:
    said = str(error)
shapes = [[list(split.images.shape) for split in (of.train, of.test)] for of in found]
print(json.dumps([*shapes, found[0].classes[1], found[1].classes, said]))
"""


def test_a_data_set(copy):
    from test_named_data import idx_files

    of_torchvision, own = blocks("A data set", "diff")
    assert apply(of_torchvision, copy) == ["rresnet/data/__init__.py"]
    assert apply(own, copy) == ["rresnet/data/__init__.py"]
    idx_files(copy / "images" / "KMNIST" / "raw")
    kmnist, stripes, second, classes, said = json.loads(run(copy, "-c", LOAD))
    assert (kmnist, second) == ([[20, 1, 16, 16], [10, 1, 16, 16]], "ki")
    assert (stripes, classes) == ([[600, 1, 16, 16]] * 2, ["lying", "standing"])
    assert "did you mean kmnist?" in said
    help_text = " ".join(run(copy, "experiments/compare.py", "--help", columns=80).replace("│", " ").split())
    assert "stripes, fashion-mnist-12k, fashion-mnist, mnist, kmnist, cifar10" in help_text


@pytest.mark.integration
def test_a_model(copy):
    (module,) = blocks("A model", "python")
    (copy / "mynets.py").write_text(module)
    (command,) = commands("A model")
    modes = ["eager", "compile"] if hardware.probe().compiler else ["eager"]
    flags = ["--repeats", "1", "--seconds", "0.1", "--batch-size", "8", "--recipe", "tuned", "--device", "cpu"]
    said = run(copy, *command, *flags, "--execution", *modes)
    assert f"Run complete: {'its one trial is' if len(modes) == 1 else 'all 2 trials are'} ok." in said
    for told in ("compiled over eager: ", "compiling takes"):  # whether that pays
        assert said.count(told) == len(modes) - 1
    row = "import rresnet; row = rresnet.read().trials.iloc[0]; print(*row[['model', 'status', 'flops_per_image']])"
    assert re.match(r"mynets:small ok [1-9]", run(copy, "-c", row))


def test_a_figure_of_the_report(copy):
    from results import BLOG, TUNED, trials, write

    (diff,) = blocks("A figure of the report", "diff")
    assert apply(diff, copy) == ["rresnet/reporting/use.py", "rresnet/reporting/report.py"]
    rows = trials((BLOG, [100, 101, 99]), (TUNED, [200, 201, 199]))
    write(copy / "results", [row | {"canary_matrix_seconds": 0.01 * (row["repeat"] + 1)} for row in rows])
    code = "import sys; from rresnet.command import main; sys.exit(main(sys.argv[1:]))"
    assert blocks("A figure of the report", "console") == ["$ rresnet report results\n"]
    run(copy, "-c", code, "report", "results")
    page = (copy / "results" / "report" / "index.html").read_text()
    assert "How steady the machine was" in page
    assert "cpu tuned batch 64: 3 slowest over fastest" in page
    assert list((copy / "results" / "report").glob("canary-*.png"))


def test_an_experiment(copy):
    (script,) = blocks("An experiment", "python")
    (copy / "widths.py").write_text(script)
    plan = run(copy, "widths.py", "--dry-run", "--repeats", "1", "--batch-size", "8", "--device", "cpu")
    assert "Would run 4 trials" in plan
    assert "Do larger images pay?" in run(copy, "widths.py", "--help")


def test_the_table_names_every_walk_through():
    headings = re.findall(r"^## (.*)$", GUIDE, re.MULTILINE)
    anchors = re.findall(r"^\| \[.*?\]\(#(.*?)\)", GUIDE, re.MULTILINE)
    assert anchors == [heading.lower().replace(" ", "-") for heading in headings]
    for name in re.findall(r"`(rresnet/\w+\.py|experiments/\w+\.py|tests/\w+\.py)`", GUIDE):
        assert (ROOT / name).is_file(), name
