"""What the docs say is so: links lead somewhere, commands take their flags, Python runs and prints what is shown."""

import contextlib
import functools
import inspect
import io
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from unittest import mock

import pytest
import tyro
from rich.console import Console

import rresnet
from rresnet import command
from rresnet.experiments import experiment, printing

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "results" / "reference"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/*.md"), REFERENCE / "README.md"])
CHANGED = "extending.md"  # what it shows runs in a changed copy of the package, and is tested there
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SCRIPT = re.compile(r"(?:experiments|benchmarks|clusters|tools)/\w+\.py(?=\s|$)")


with mock.patch.object(tyro.extras, "subcommand_cli_from_dict") as cli:
    command.main([])
COMMANDS = set(cli.call_args.args[0])  # of rresnet


def blocks(page, language):
    return [block for of, block in FENCE.findall(page.read_text()) if of == language]


def prose(page):
    return FENCE.sub("", page.read_text())


def anchors(page):
    """Of the page's headings, as both GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings}


def of_pages(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


@of_pages(PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@of_pages(PAGES)
def test_no_heading_goes_on_as_the_paragraph_below_it(page):
    assert all(len(heading) < 75 for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE))


def commands(page):
    """What a page says to type of our commands: in its console blocks, and in its prose."""
    typed = [line[2:] for block in blocks(page, "console") for line in block.splitlines() if line.startswith("$ ")]
    told = [" ".join(code.split()) for code in re.findall(r"`(\w+\s[^`]+)`", prose(page))]
    return [line for line in typed + told if re.match(r"(make|rresnet)\s", line) or SCRIPT.search(line)]


@pytest.mark.parametrize("line", sorted({line for page in PAGES if page.name != CHANGED for line in commands(page)}))
def test_commands_take_what_they_are_given(line, monkeypatch):
    """All is done but the work."""
    monkeypatch.setattr(experiment, "run", lambda *args: True)
    for name in COMMANDS:
        monkeypatch.setattr(command, name, functools.wraps(getattr(command, name))(lambda *args, **kwargs: True))
    monkeypatch.setattr("signal.signal", lambda *args: None)  # Ctrl-C stays pytest's
    monkeypatch.setenv("COLUMNS", "140")  # which a command changes
    program, *arguments = shlex.split(line, comments=True)
    if program == "make":
        targets = [word for word in arguments if "=" not in word]
        assert targets
        assert set(targets) <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        flags = next((word.removeprefix("ARGS=") for word in arguments if word.startswith("ARGS=")), "")
        assert targets != ["compare"] or ends("experiments/compare.py", shlex.split(flags), monkeypatch) == 0
    elif program == "rresnet":
        named = len(arguments) == 1 and arguments[0] in COMMANDS  # it is spoken of, whatever it needs
        assert named or exit_code(lambda: command.main(arguments)) == 0
    else:
        place = next(i for i, word in enumerate(arguments) if SCRIPT.search(word))
        assert ends(SCRIPT.search(arguments[place])[0], arguments[place + 1 :], monkeypatch) == 0


def ends(script, arguments, monkeypatch):
    """The exit code of an experiment; of other scripts 0 where each option is written in them."""
    if script.startswith("experiments/"):
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        return exit_code(lambda: runpy.run_path(str(ROOT / script), run_name="__main__"))
    source = (ROOT / script).read_text()
    options = [word[2:] for word in arguments if word.startswith("--")]
    return [o for o in options if not re.search(rf'"--{o}"|\b{o.replace("-", "_")}\s*[:=]', source)] or 0


def exit_code(call):
    try:
        return call()
    except SystemExit as stopped:
        return stopped.code or 0


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder like a checkout after a run."""
    shutil.copytree(REFERENCE, tmp_path / "results")
    shutil.copytree(REFERENCE, tmp_path / "results" / "reference")
    monkeypatch.chdir(tmp_path)


def printed(block, names):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block, "docs", "exec"), names)
    return out.getvalue()


@of_pages([page for page in PAGES if blocks(page, "python") and page.name not in (CHANGED, "analysis.md")])
def test_python_runs(page, place):
    """Of analysis.md in tests/test_docs_analysis.py."""
    names = {}
    for block in blocks(page, "python"):
        if "s3://" in block:
            compile(block, page, "exec")
        else:
            printed(block, names)


def test_the_tutorial_shows_what_is_printed(place, capsys):
    page, names = ROOT / "docs" / "tutorial.md", {}
    shown = [block.strip("\n") for block in blocks(page, "text")]
    out, trials = io.StringIO(), rresnet.read("results/reference").trials
    console = Console(file=out, width=140)
    printing.findings(trials, console)
    printing.remarks(trials, console)
    table = "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines()).strip("\n")
    report = next(line for line in commands(page) if line.startswith("rresnet report"))
    assert command.main(shlex.split(report)[1:]) == 0
    python = [printed(block, names).strip("\n") for block in blocks(page, "python")]
    assert shown == [table, capsys.readouterr().out.strip("\n"), *python]


def test_the_readme_shows_what_the_gpus_rows_say():
    out = io.StringIO()
    printing.findings(rresnet.read("results/reference/h100").trials, Console(file=out, width=160))
    told = [line.strip() for line in out.getvalue().splitlines()]
    shown = next(block for block in blocks(ROOT / "README.md", "text") if "gpu tuned" in block)
    lines = [line.strip() for line in shown.splitlines() if line.strip() and "──" not in line]
    assert len(lines) == 7
    assert [line for line in lines if line not in told] == []


def test_the_reference_has_every_command():
    shown = {
        page: set(re.findall(r"<!-- output: (.+) --help -->", (ROOT / "docs" / page).read_text()))
        for page in ("flags.md", "commands.md")
    }
    assert shown["flags.md"] == {f"python {path.relative_to(ROOT)}" for path in ROOT.glob("experiments/*.py")}
    assert shown["commands.md"] == {"rresnet", *(f"rresnet {name}" for name in COMMANDS)}


def test_the_python_page_lists_the_public_names():
    listed = re.findall(r"^::: rresnet\.(\w+)$", (ROOT / "docs" / "python.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(set(rresnet.__all__) - {"__version__"})


@pytest.mark.parametrize("name", sorted(set(rresnet.__all__) - {"__version__"}))
def test_public_names_say_what_they_are(name):
    public = getattr(rresnet, name)
    assert inspect.getdoc(public)
    if inspect.isfunction(public):
        signature = inspect.signature(public)
        assert signature.return_annotation is not signature.empty
        assert all(of.annotation is not signature.empty for of in signature.parameters.values())
