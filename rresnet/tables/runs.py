"""The runs of a results folder, each a manifest `runs/<run_id>.json`; and which of them a command continues."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from rresnet.tables.place import Location, StoreError, at
from rresnet.tables.reading import content_of, matching


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as its manifest `runs/<run_id>.json` records it."""

    run_id: str
    experiment: str
    name: str
    plan_id: str  # hash of the planned trials
    planned: int
    started_at: str
    finished_at: str | None = None
    request_id: str | None = None  # hash of the flags: the same command has the same, on any machine
    environment: Mapping[str, str] | None = None  # what it was begun with, by name
    retried_at: str | None = None  # since when all its trials are run again (`--retry all`), until it is complete


def open_run(
    results: Location, run: Run, *, fresh: bool, again: bool = False, reuse: bool = False, mix: bool = False
) -> Run:
    """`run`, or the newest run of the same name, request and environment in `results` if it is to be continued.

    Args:
        results: the results folder, or its URL.
        run: a new run.
        fresh: start it, whatever is there.
        again: continue the newest run of any environment, even where it is complete.
        reuse: continue the newest run of this environment, even where it is complete.
        mix: take runs of other environments for runs of this one.

    Raises:
        StoreError: the folder can't be written to, or the run to continue was begun in another environment. If none was
            begun in this one, that is the newest, unless it is complete.
    """
    at(results).check_writable()
    same = of_request(results, run.name, run.experiment, run.request_id)
    alike = [r for r in same if mix or not _changes(r, run)]
    found = next(reversed(same if again or not alike else alike), None)  # what is older has been superseded (--fresh)
    if fresh or found is None or not (again or found.finished_at is None or (reuse and found in alike)):
        return run
    changes = _changes(found, run)
    if changes and not mix:
        raise StoreError(
            f"run {found.run_id} was begun in another environment ({'; '.join(changes)}), and rows of both would "
            "be mixed: --fresh starts a new run, --mix-environments continues this one all the same"
        )
    return found


def of_request(results: Location, name: str, experiment: str, request_id: str | None) -> list[Run]:
    """The runs of that name and request in a results folder, oldest first."""
    asked = (name, experiment, request_id)
    return [r for r in read_runs(results) if (r.name, r.experiment, r.request_id) == asked]


def _changes(one: Run, other: Run) -> list[str]:
    before, now = one.environment or {}, other.environment or {}
    return [
        f"{name} was {before[name]}, is {now[name]}" for name in before if now.get(name, before[name]) != before[name]
    ]


def read_runs(results: Location) -> list[Run]:
    """The runs in a results folder, oldest first; a manifest that is damaged is passed over."""
    place, found = at(results), []
    for name in matching(place, "runs", "*.json"):
        content = content_of(place, name)
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            run = Run(**json.loads(content or b""))
            if name == f"runs/{run.run_id}.json" and _is_whole(run):
                found.append(run)
    return sorted(found, key=lambda run: run.started_at)


def _is_whole(run: Run) -> bool:
    """Whether each field is of its kind: a manifest is a file that anybody may have changed."""
    begun_with = {} if run.environment is None else run.environment
    given = [text for text in (run.finished_at, run.request_id, run.retried_at) if text is not None]
    texts = (run.experiment, run.name, run.plan_id, run.started_at, *given)
    return isinstance(begun_with, dict) and all(isinstance(text, str) for text in (*texts, *begun_with.values()))
