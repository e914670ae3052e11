"""The house: data flows one way, and what runs where imports no more than it needs."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rresnet"


def listed():
    """The modules in the order of docs/architecture.md: one imports only what stands after it, as does a folder."""
    folder = ""
    for line in (PACKAGE.parent / "docs" / "architecture.md").read_text().splitlines():
        if row := re.match(r"\| ([^|]*)\| (`[^|]*)\|", line):  # stage, modules
            folder = row[1].strip() or folder
            within = f"{folder[1:-1]}." if folder[0] == "`" else ""  # a stage in words is of the package itself
            for name in re.findall(r"`(\w+)`", row[2]):
                yield name if f"{name}." == within else within + name


ORDER = list(listed())
LATE = {  # imported where they run, or for their types alone
    ("runner.lane", "runner.trial"),
    ("runner.lane", "runner.sweep"),
    ("runner.events", "runner.lane"),
    ("tables.place", "tables.objects"),
    ("data", "data.folder"),
    ("data", "data.parquet"),
    ("data", "data.named"),
}


def path_of(module):
    path = PACKAGE / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(path, top_level_only=True):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rresnet":
            inner = node.module.partition(".")[2]
            for alias in node.names:
                whole = f"{inner}.{alias.name}".strip(".")
                found.add(whole if whole in ORDER else inner)
    return found - {""}  # what the package itself has: its version


def test_every_module_has_its_place():
    found = {str(p.relative_to(PACKAGE).with_suffix("")).replace("/", ".") for p in PACKAGE.rglob("*.py")}
    empty = {
        "reporting",
        "experiments",
        "analysis",
        "figures",
        "runner",
        "training",
        "quality",
        "tables",
    }  # a docstring each
    assert sorted(ORDER) == sorted({name.removesuffix(".__init__") for name in found} - empty - {"__init__"})
    assert all(len(ast.parse(path_of(folder).read_text()).body) == 1 for folder in empty)


@pytest.mark.parametrize("module", ORDER)
def test_imports_follow_the_data(module):
    later = set(ORDER[ORDER.index(module) + 1 :])
    wrong = {name for name in imports(path_of(module)) - later if (name, module) not in LATE}
    assert not wrong, f"{module} imports {wrong}, which stand before it"


@pytest.mark.parametrize("module", ORDER)
def test_what_is_imported_late_follows_the_data_too(module):
    later = set(ORDER[ORDER.index(module) + 1 :])
    found = imports(path_of(module), top_level_only=False)
    wrong = {name for name in found - later if not LATE & {(module, name), (name, module)}}
    assert not wrong, f"{module} imports {wrong}, which stand before it"


def test_the_driver_does_not_wait_for_torch():
    code = "import sys, rresnet.cli, rresnet.runner.sweep, rresnet.runner.cluster; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_ray_stands_at_the_edge():
    for module in ORDER:
        if not module.startswith("runner.") and module not in ("training.workbench", "experiments.running"):
            assert not re.search(r"^\s*(import|from) ray\b", path_of(module).read_text(), re.MULTILINE), module


def test_every_benchmark_can_be_imported():
    """They are started by hand, months apart: what they import must still be there then."""
    names = [path.stem for path in (PACKAGE.parent / "benchmarks").glob("*.py")]
    code = f"import sys; sys.path.insert(0, 'benchmarks'); import {', '.join(names)}"
    line = [sys.executable, "-W", "ignore", "-c", code]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")
    }  # one is called so
    done = subprocess.run(line, cwd=PACKAGE.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
