"""The command line, made from settings and functions: flags in groups, help that fits, suggestions, exit codes."""

import ast
import contextlib
import difflib
import functools
import inspect
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import field, fields, make_dataclass
from itertools import chain, pairwise
from types import GenericAlias
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro
from rich.console import Console

from rresnet import data, grid
from rresnet.cell import Axes, UsageError
from rresnet.config import FlagGroup, Settings
from rresnet.terminal import say

S = TypeVar("S", bound=Settings)
T = TypeVar("T")

OK, SOME_FAILED, WRONG_REQUEST, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143  # exit codes
COMPLETION, SHELLS = "--tyro-print-completion", ("bash", "zsh", "fish")
PRINTING = ("-h", "--help", COMPLETION)
NARROWEST = 20  # columns of a terminal that are counted on
WIDTH = 78  # columns of the text before the flags; the flags are fitted to the terminal
CONFIG = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, tyro.conf.PositionalMetavarFromFieldName)


def settings(given: S, *, name: str, description: str, decided: Collection[str] = ()) -> S:
    """Parse the program's arguments into settings. Exits if they are wrong or ask for help.

    The `given` settings are the defaults; flags that only this experiment has form a group called `name`. Those
    that it has `decided` itself can't be given, as the help says.
    """
    hints, docs = get_type_hints(type(given)), _docs(type(given))
    hints["recipe"] = GenericAlias(tuple, (tyro.extras.literal_type_from_choices(grid.RECIPES), ...))
    docs["recipe"] += "".join(f" {recipe}: {_summary(of)}" for recipe, of in grid.RECIPES.items())
    docs["dataset"] += f" Names: {', '.join(data.DATASETS)}."
    docs |= dict.fromkeys(decided, f"Not for {name}.py, which decides it itself.")
    own, groups = FlagGroup(name, "Flags that only this experiment has."), dict[FlagGroup, list[tuple[str, Any, Any]]]()
    for flag, metadata in given.flags().items():
        value = getattr(given, flag)
        silent = value in (None, ()) or isinstance(value, bool) or flag in decided
        default = "" if silent else None  # None: as tyro shows it
        metavar = None if isinstance(value, bool) else _metavar(hints[flag])
        shown = tyro.conf.arg(help=docs.get(flag), metavar=metavar, help_behavior_hint=default)
        group = next((one for one in metadata if isinstance(one, FlagGroup)), own)
        groups.setdefault(group, []).append((flag, Annotated[hints[flag], shown], field(default=value)))
    parts = [(group, make_dataclass(group.name, flags)) for group, flags in groups.items()]
    for group, part in parts:
        part.__doc__ = group.doc
    form: Any = make_dataclass("Form", [(group.name, part, field(default_factory=part)) for group, part in parts])
    cli = functools.partial(tyro.cli, form, prog=f"{name}.py", description=_laid_out(description), config=CONFIG)
    found = _parsed(cli, sys.argv[1:], _choices(hints), _several(hints))
    return type(given)(**{flag: value for part in vars(found).values() for flag, value in vars(part).items()})


def command(commands: Mapping[str, Callable[..., T]], *, prog: str, description: str, arguments: Sequence[str]) -> T:
    """Run the command that the arguments name, and return its result. Exits if they are wrong or ask for help."""
    (name, *rest), config = arguments or ["--help"], (*CONFIG, tyro.conf.DisallowNone)
    if name in commands:
        function, about = commands[name], (inspect.getdoc(commands[name]) or "").partition("Args:")[0]
        cli = functools.partial(tyro.cli, function, prog=f"{prog} {name}", description=_laid_out(about), config=config)
        hints = get_type_hints(function)
        returned: T = _parsed(cli, rest, _choices(hints), _several(hints))
    else:
        of_all, about = tyro.extras.subcommand_cli_from_dict, _laid_out(description)
        cli = functools.partial(of_all, dict(commands), prog=prog, description=about, config=config)
        returned = _parsed(cli, [name, *rest], {"": tuple(commands)}, ())
    return returned


def _parsed(
    cli: Callable[..., Any], arguments: Sequence[str], valid: Mapping[str, Sequence[str]], several: Collection[str]
) -> Any:
    """Parse the arguments with tyro; if it exits because they are wrong, print what was likely meant."""
    prints = any(word.startswith(PRINTING) for word in arguments)  # tyro, which then ends; else it runs a command
    for word, following in pairwise([*arguments, ""]):
        if word == COMPLETION and following not in SHELLS:
            raise UsageError(
                f"{COMPLETION} must be followed by one of {', '.join(SHELLS)}, got {following or 'nothing'}"
            )
    with printing() if prints else contextlib.nullcontext():
        try:
            return cli(args=gathered(arguments, several))
        except SystemExit as stopped:
            if stopped.code and (meant := likely(arguments, valid, several)):
                complain(f"Did you mean {', '.join(meant)}?")
            raise
    raise SystemExit(OK)  # nobody reads on: `--help | head`


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Mend, for a block, what in the environment would keep a command from working, and tell warnings as messages."""
    if os.environ.get("COLUMNS") == "0":
        del os.environ["COLUMNS"]  # rich would print nothing
    if shutil.get_terminal_size().columns < NARROWEST:
        os.environ["COLUMNS"] = str(NARROWEST)  # tyro would not come to an end with its help
    if os.path.expanduser("~") == "~":  # neither HOME nor an entry for the user: Ray and Path.home() would raise
        os.environ["HOME"] = "/nonexistent"  # Debian's home of those who have none
    with warnings.catch_warnings():  # where in our code they come from helps nobody
        warnings.showwarning = lambda message, *of: complain(f"warning: {message}", "yellow")
        yield


def complain(text: str, style: str | None = None) -> None:
    """Print to stderr; where that can't be written to, the exit code has to do."""
    with contextlib.suppress(OSError):
        say(_Errors(stderr=True), text, style)


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Print in the block, and nothing else; it is left if the reader goes away (`| head`), or for a UsageError."""
    try:
        yield
    except BrokenPipeError:
        _discard()
    except OSError as error:  # a full disk, say
        _discard()
        raise UsageError(
            f"can't print ({error.strerror}): make space or send the output elsewhere, then run the same command again"
        ) from error


def _discard() -> None:
    """Discard further output, so that nothing is written at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class _Errors(Console):
    """A console whose reader may go away."""

    def on_broken_pipe(self) -> None:
        """Raise what a console for other output raises; rich would exit with 1."""
        raise BrokenPipeError


class Output(Console):
    """A console whose output is discarded once its reader has gone, where rich would exit with 1."""

    def _check_buffer(self) -> None:
        with printing():
            super()._check_buffer()

    def on_broken_pipe(self) -> None:
        """Discard further output."""
        self.quiet = True
        raise BrokenPipeError


def gathered(arguments: Sequence[str], several: Collection[str]) -> list[str]:
    """The arguments with all values of a flag that takes `several` behind its first mention.

    Of a flag that is given twice, the values given first would otherwise be dropped without a word.
    """
    parts: dict[str | int, list[str]] = {"": []}  # by flag, or by where they begin; "": the words before any flag
    at: str | int = ""
    for position, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        flag = name.replace("_", "-")
        if not word.startswith("--"):
            parts[at].append(word)
        elif flag in several:
            parts.setdefault(flag, [flag]).extend([value] if equals else [])
            at = "" if equals else flag  # after --flag=value the flag takes no more words
        else:
            at = position
            parts[at] = [word]
    return [*chain.from_iterable(parts.values())]


def likely(arguments: Sequence[str], valid: Mapping[str, Sequence[str]], several: Collection[str]) -> list[str]:
    """Return, for each word that is not valid where it stands, what was likely meant, with its flag.

    That is the nearest valid word. `valid` holds the closed sets of values by flag, and under "" those of the first
    word. Flags that take `several` values take each as a word: those with commas in between are separated.
    """
    flag, meant = "", []
    for word in arguments:
        if word.startswith("--"):
            flag, _, word = word.partition("=")
        known, words = valid.get(flag, ()), word.split(",") if flag in several else [word]
        near = [[one] if one in known or one.isdecimal() else difflib.get_close_matches(one, known, 1) for one in words]
        if all(near) and near != [[word]]:
            meant.append(" ".join([flag, *chain.from_iterable(near)]).strip())
    return meant


def _choices(hints: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The words that each flag takes, where these are a closed set."""
    return {f"--{name.replace('_', '-')}": words for name, hint in hints.items() if (words := tuple(_literals(hint)))}


def _several(hints: Mapping[str, Any]) -> list[str]:
    """The flags that take several values."""

    def takes_several(hint: Any) -> bool:
        return get_origin(hint) is tuple or any(map(takes_several, get_args(hint)))

    return [f"--{name.replace('_', '-')}" for name, hint in hints.items() if takes_several(hint)]


def _metavar(hint: Any) -> str:
    """The placeholder for a flag's values in the help: their words, or their type."""
    if get_origin(hint) is Literal:
        return f"{{{','.join(get_args(hint))}}}"
    if get_origin(hint) is tuple:
        return f"{_metavar(get_args(hint)[0])} ..."
    several = [_metavar(one) for one in get_args(hint) if one is not type(None)]
    return "|".join(several) or hint.__name__.upper()


def _literals(hint: Any) -> Iterator[str]:
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    else:
        yield from chain.from_iterable(map(_literals, get_args(hint)))


def _docs(of: type[Settings]) -> dict[str, str]:
    """The help of each flag: the text below its field of the settings, or the `flag` of its axis."""
    docs = {f.name: f.metadata["flag"] for f in fields(Axes) if f.metadata["flag"]}
    for base in reversed(of.__mro__[:-1]):
        (defined,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(defined, ast.ClassDef)
        for one, below in pairwise(defined.body):
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(below, ast.Expr):
                docs[one.target.id] = " ".join(ast.literal_eval(below.value).split())
    return docs


def _summary(function: Callable[..., Any]) -> str:
    """The first paragraph of its docstring on one line, as it goes on after a colon; empty if it has none."""
    text = " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())
    return text[:1].lower() + text[1:]


def _laid_out(text: str) -> str:
    """Lay out text as tyro keeps it: paragraphs filled, all but the first indented, blocks with indented lines kept."""
    first, *rest = inspect.cleandoc(text).split("\n\n")
    told = [part if "\n  " in part else textwrap.fill(part, WIDTH - 2) for part in rest]
    return "\n".join(
        [textwrap.fill(first, WIDTH, subsequent_indent="  "), *(textwrap.indent(part, "  ") for part in told)]
    )
