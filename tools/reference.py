"""The parts of the docs site that are made from the code: an mkdocs hook (`make docs`, mkdocs.yml).

In a page, a comment `<!-- output: COMMAND -->` becomes what the command prints, and `<!-- columns -->` the columns of
all tables. Files of the checkout that pages link to become part of the site, where the pages of docs/ lie beside them:
the link `../README.md` in docs/x.md becomes `README.md`, and `docs/x.md` in README.md becomes `x.md`.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from rresnet.tables.measurement import SCHEMAS

ROOT = Path(__file__).parents[1]
FROM_ROOT = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
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
    """Insert what is generated, and point links to where the site has their files."""
    markdown = re.sub(r"<!-- output: (.+) -->", lambda found: output(found[1]), markdown)
    markdown = markdown.replace("<!-- columns -->", "\n".join(columns()))
    return re.sub(r"\]\((\.\./|docs/)", "](", markdown)


def output(command: str) -> str:
    """Run a command at the checkout's root with this environment's programs; return what it prints as a code block.

    Raises CalledProcessError if the command fails.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "COLUMNS": "100"}
    done = subprocess.run(command.split(), cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return "\n".join(["```text", *(line.rstrip() for line in done.stdout.strip().splitlines()), "```"])


def columns() -> Iterator[str]:
    """The columns of each table, from the schemas that the files are written with."""
    for name, schema in SCHEMAS.items():
        yield from (f"## {name}", "", "| column | type | what it holds |", "|---|---|---|")
        for field in schema:
            told = (field.metadata or {})[b"doc"].decode()
            yield f"| `{field.name}` | {field.type} | {told} |"
        yield ""
