"""docs/analysis.md does what it says, and docs/analysis.ipynb runs."""

import contextlib
import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from samples import make_cell
from small_results import row, written

from rresnet import command

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "analysis.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the page speaks of."""
    for folder in ("results", "results/reference"):
        shutil.copytree(DOCS.parent / "results" / "reference", tmp_path / folder)
    cpu, gpu = make_cell(), make_cell(device="gpu", precision="tf32", cpu_threads=16)
    machine = {"cpu_model": "A CPU", "cpu_count": 2, "git_commit": "aaa"}
    for folder, cell, rate in (("before", cpu, 100.0), ("after", cpu, 101.0)):
        written(tmp_path / folder, [row(cell, r, rate + r, run_id=folder, **machine) for r in range(4)])
    (tmp_path / "laptop").mkdir()
    written(tmp_path / "laptop" / "results", [row(cpu, r, 100.0 + r, hostname="laptop") for r in range(4)])
    (tmp_path / "cluster").mkdir()
    rows = [row(gpu, r, 3000.0 + r, hostname="node", run_id="r2") for r in range(4)]
    written(tmp_path / "cluster" / "results", rows)
    (tmp_path / "prices.toml").write_text(blocks("toml")[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_blocks_run_one_after_another(place):
    names, out = {}, io.StringIO()
    with contextlib.redirect_stdout(out):
        for block in blocks("python"):
            exec(compile(block, "docs/analysis.md", "exec"), names)
    assert names["across"].iloc[0]["speedup"] == pytest.approx(30, rel=0.02)
    assert names["from_file"][0].source == "the provider's list"
    assert names["line"]["sizes"] == 3
    assert re.search(r"Fastest(, not settled)?: cpu", out.getvalue())
    assert "Cheapest: cpu" in out.getvalue()


def test_what_the_page_names_is_there_once_rresnet_is_imported():
    names = set(re.findall(r"(?<!from )\brresnet(?:\.[A-Za-z_]\w*)+", TEXT))
    assert "rresnet.read" in names
    deepest_first = sorted(names, key=lambda name: -name.count("."))  # before another has loaded what they are in
    code = "\n".join(["import rresnet", *deepest_first])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore")  # mlflow's own
def test_the_commands_run(place, capsys):
    lines = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]
    assert len(lines) == 6
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "rresnet"
        assert command.main(arguments) == 0, line
    assert "not distinguishable" in capsys.readouterr().out
    assert (place / "windows.csv").stat().st_size > 1000


@pytest.mark.filterwarnings("ignore")  # Jupyter's own
def test_the_notebook_runs(place):
    notebook = nbformat.read(DOCS / "analysis.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(bool(line) for cell in code for line in cell.source.splitlines()) <= 10
    assert all(not cell.outputs for cell in code)  # kept empty: a figure comes from the rows at hand
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(place)}}).execute()
    last = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(last) == 1
