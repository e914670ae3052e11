"""The house: data flows one way, and what runs where imports no more than it needs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rresnet"

# From the front door to the foundations: a module imports only what stands after it.
ORDER = [
    "command", "doctor", "cli", "usage", "report", "page", "sections", "speed", "use", "section", "parts",
    "ladder", "blog", "scaling", "bars", "figures", "drawing", "rows", "experiment", "running", "planning", "search",
    "growth", "diff_text", "diff", "trackers", "export", "reference", "decision", "costs", "prediction", "answer",
    "regimes", "unpaired", "comparison", "analysis", "prices",
    "trial", "train", "workbench", "clocks", "limits", "timing", "step", "model", "convolution", "inputs",
    "flags", "monitor", "steady", "sweep", "lane", "handout", "agenda", "cluster", "machines",
    "environment", "progress", "store", "objects", "place", "measurement", "statistics",
    "data", "data_files", "data_torchvision", "grid", "hardware", "scratch", "config", "cell",
]  # fmt: skip
LAZY = {
    ("data", "data_files"),
    ("place", "objects"),
    ("data", "data_torchvision"),
    ("lane", "trial"),
    ("command", "doctor"),
}  # imported where they run


def imports(path, top_level_only=True):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rresnet":
            inner = node.module.partition(".")[2]
            found |= {inner} if inner else {alias.name for alias in node.names}
    return found


def test_every_module_has_its_place():
    assert sorted(ORDER) == sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("module", [m for m in ORDER if m not in ("data_files", "data_torchvision")])
def test_imports_follow_the_data(module):
    later = set(ORDER[ORDER.index(module) + 1 :])
    wrong = {name for name in imports(PACKAGE / f"{module}.py") if name not in later}
    assert not wrong, f"{module} imports {wrong}, which stand before it"


def test_the_driver_does_not_wait_for_torch():
    code = "import sys, rresnet.cli, rresnet.sweep, rresnet.cluster; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_ray_stands_at_the_edge():
    inside = {"sweep", "lane", "handout", "trial", "workbench", "cluster", "machines", "running"}
    for path in PACKAGE.glob("*.py"):
        if path.stem not in inside:
            assert "import ray" not in path.read_text(), path.stem
            assert "from ray" not in path.read_text(), path.stem
