"""The CPU quota of the control groups (cgroups, version 1 or 2) that this process is in, as containers have one."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


@functools.cache
def quota() -> tuple[float, Path] | None:
    """The tightest quota, in processors, and the folder of the group that has it; None without one. Read once."""
    found = [(processors, folder) for folder in _folders() if (processors := _processors(folder)) is not None]
    return min(found, default=None)


def throttled_seconds() -> float:
    """CPU seconds so far that the quota kept from threads that could have run; 0 without one."""
    tightest = quota()
    with contextlib.suppress(OSError, ValueError):
        told = dict(line.split() for line in (tightest[1] / "cpu.stat").read_text().splitlines()) if tightest else {}
        return int(told.get("throttled_usec", 0)) / 1e6 + int(told.get("throttled_time", 0)) / 1e9  # versions 2 and 1
    return 0.0


def _folders() -> Iterator[Path]:
    """The folders of our group and the groups around it, whose quotas hold for us too."""
    with contextlib.suppress(OSError, ValueError):
        for line in OWN.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            # Version 2 has one tree, which lies beside those of version 1 where there are both.
            named = (ROOT / controllers, ROOT / "cpu") if controllers else (ROOT / "unified",)
            root = next(filter(Path.is_dir, named), ROOT)
            # In a container, the path may be the one that the host sees, and the root of the tree be our own group.
            group = PurePosixPath(path.lstrip("/"))
            inside = () if ".." in group.parts else (group, *group.parents)
            yield from (root / folder for folder in dict.fromkeys((*inside, PurePosixPath())))


def _processors(folder: Path) -> float | None:
    """The quota of one group, in processors."""
    with contextlib.suppress(OSError, ValueError):
        limit, period = (folder / "cpu.max").read_text().split()
        return int(limit) / int(period)  # `max` is no number
    with contextlib.suppress(OSError, ValueError):
        limit, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(limit) / int(period) if int(limit) > 0 else None  # -1 without one
    return None
