"""What of the docs site is made from the code: an mkdocs hook (`make docs`, mkdocs.yml).

In a page, a comment `<!-- generated: NAME -->` becomes what the code says: flags, commands, columns. And the files of
the checkout that pages link to become part of the site, which lays docs/ among them: what is `../README.md` from
docs/cluster.md is `README.md` there, and what is `docs/cluster.md` from README.md is `cluster.md`.
"""

import contextlib
import functools
import io
import re
import runpy
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from unittest import mock

import griffe
import tyro
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from rresnet import cli, command
from rresnet.config import Settings
from rresnet.measurement import SCHEMAS

ROOT = Path(__file__).parents[1]
FROM_ROOT = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "LICENSE",
    "results/reference/README.md",
    "cluster.yaml",
    "clusters/gcp-a100.yaml",
    "clusters/local.yaml",
    "clusters/kuberay-rayjob.yaml",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to outside of docs/."""
    for name in FROM_ROOT:
        files.append(File.generated(config, name, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in what is generated, and let links lead where the site has their files."""
    filled = re.sub(r"<!-- generated: (\w+) -->", lambda found: GENERATED[found[1]](), markdown)
    return re.sub(r"\]\((\.\./|docs/)", "](", filled)


@functools.cache
def experiments() -> tuple[tuple[str, str, Settings], ...]:
    """Name, docstring and default flags of each command in experiments/, as its file gives them to `cli.main`."""
    found = []
    for path in sorted((ROOT / "experiments").glob("*.py")):
        with mock.patch.object(cli, "main", return_value=0) as main, contextlib.suppress(SystemExit):
            runpy.run_path(str(path), run_name="__main__")
        (name, docstring), given = main.call_args
        found.append((name, docstring, given.get("defaults") or Settings()))
    return tuple(found)


def flags() -> str:
    """The flags of every experiment, then what each has more, and what it has by another default."""
    common = _flags(Settings())
    lines = ["## Every experiment", "", *_table(("flag", "values", "default", "what it does"), common.values())]
    for name, docstring, defaults in experiments():
        apart = [row for flag, row in _flags(defaults).items() if row != common.get(flag)]
        lines += ["", f"## {name}", "", f"`python experiments/{name}.py`: {docstring.splitlines()[0]}", ""]
        lines += _table(("flag", "values", "default", "what it does"), apart) if apart else ["The flags above."]
    return "\n".join(lines)


def _flags(settings: Settings) -> dict[str, tuple[str, ...]]:
    """A row for each flag, by the name of its field."""
    kind, meaning = type(settings), {}
    for base in reversed(kind.__mro__[:-1]):
        members = _package()[base.__module__.partition(".")[2]][base.__name__].members
        meaning |= {name: member.docstring.value for name, member in members.items() if member.docstring}
    hints, rows = get_type_hints(kind), {}
    for name in (f.name for f in fields(settings)):
        on = getattr(settings, name) is True  # a switch that is on: its flag is the one that turns it off
        option, told = name.replace("_", "-"), meaning[name]
        rows[name] = (
            _code(f"--no-{option}" if on else f"--{option}"),
            _values(hints[name]),
            _default(getattr(settings, name)),
            f"Don't: {told[0].lower()}{told[1:]}" if on else told,
        )
    return rows


@functools.cache
def _package() -> griffe.Module:
    """The package's source, with the docstrings of fields, which Python itself does not keep."""
    loaded = griffe.load("rresnet", search_paths=[ROOT])
    assert isinstance(loaded, griffe.Module)
    return loaded


def _values(hint: Any) -> str:
    """What a flag takes: words to choose from, or a kind; dots where it takes several."""
    if get_origin(hint) is Literal:
        return ", ".join(map(_code, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"{_values(get_args(hint)[0])} ..."
    kinds = [one for one in get_args(hint) if one is not type(None)]
    if kinds:
        return " or ".join(map(_values, kinds))
    return {bool: "", str: "text", int: "integer", float: "number", Path: "path"}[hint]


def _default(value: object) -> str:
    if isinstance(value, bool) or value is None or value == ():
        return ""  # a switch, or what the flag's meaning tells
    return _code(" ".join(map(str, value)) if isinstance(value, tuple) else value)


def commands() -> str:
    """What `rresnet --help`, and `--help` of each of its commands, print."""
    with mock.patch.object(tyro.extras, "subcommand_cli_from_dict") as cli_of:
        command.main([])
    told = [("rresnet", _help([])), *((f"rresnet {name}", _help([name])) for name in cli_of.call_args.args[0])]
    return "\n".join(f"## {name}\n\n```text\n{text}\n```\n" for name, text in told)


def _help(arguments: list[str]) -> str:
    out = io.StringIO()
    with mock.patch.dict("os.environ", COLUMNS="100"), contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        command.main([*arguments, "--help"])
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def columns() -> str:
    """The columns of each table, from the schemas that the files are written with."""
    lines = []
    for name, schema in SCHEMAS.items():
        rows = [(_code(f.name), str(f.type), f.metadata[b"doc"].decode()) for f in schema]
        lines += [f"## {name}", "", *_table(("column", "type", "what it holds"), rows), ""]
    return "\n".join(lines)


def _table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (headings, ("---",) * len(headings), *rows)]


def _code(text: object) -> str:
    return f"`{text}`"


GENERATED: dict[str, Callable[[], str]] = {"flags": flags, "commands": commands, "columns": columns}
