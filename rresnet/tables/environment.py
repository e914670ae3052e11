"""What a trial ran with: software versions and the machine, for its row."""

import contextlib
import functools
import hashlib
import platform
import subprocess
from collections.abc import Collection
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from rresnet.cell import Cell, Device, stable_hash
from rresnet.hardware import Hardware, affinity, probe
from rresnet.tables.measurement import Environment

UNKNOWN = "not known"  # of code: a run begun with code that is known is not continued with it, nor the reverse


@functools.cache
def describe(device: Device) -> Environment:
    """The environment of a trial on `device` in this process."""
    import torch

    hardware = probe(hidden=True)  # the same in every process of a run, whichever GPUs Ray shows it
    gpu = device == "gpu"
    software = {
        "os_version": _system(),
        "python_version": platform.python_version(),
        "torch_version": str(torch.__version__),  # a str subclass of torch's would make the driver import torch
        "torchvision_version": version("torchvision"),
        "cuda_version": torch.version.cuda,
        "ray_version": version("ray"),
        "rresnet_version": version("rresnet"),
    }
    machine = [hardware.cpu_model, hardware.cpu_count, hardware.gpu_name, hardware.driver_version]
    return Environment(
        hostname=hardware.hostname,
        cpu_model=hardware.cpu_model,
        cpu_count=hardware.cpu_count,
        cpu_affinity=affinity(),
        gpu_name=probe().gpu_name if gpu else None,
        driver_version=hardware.driver_version if gpu else None,
        **software,
        git_commit=git_commit(),
        variables=hardware.variables,
        environment_fingerprint=stable_hash([software, machine, hardware.variables]),
    )


def of_trial(cell: Cell) -> Environment:
    """The environment of a trial of the cell in this process."""
    here, code = describe(cell.device), model_code(cell.model)
    if code is None:
        return here
    return replace(here, model_code=code, environment_fingerprint=stable_hash([here.environment_fingerprint, code]))


def of_run(hardware: Hardware, images: str, *, models: Collection[str] = (), local: bool = False) -> dict[str, str]:
    """What a run is begun with, by name, for the run's manifest; nothing of it is imported.

    Args:
        hardware: the first machine.
        images: fingerprint of the data.
        models: the names of the models.
        local: whether only this machine may continue the run; the machines of a cluster come and go.
    """
    packages = {name: version(name) for name in ("torch", "torchvision", "ray", "rresnet")}
    system = {"operating system": _system(), "driver": str(hardware.driver_version)}
    machine = {"processor": hardware.cpu_model, "processors": str(hardware.cpu_count), "GPU": str(hardware.gpu_name)}
    machine |= {"cores": str(hardware.cpu_cores), "GPUs": str(hardware.gpu_count)}
    there = {"g++": hardware.gcc, "a C++ compiler": hardware.compiler, "Triton": hardware.triton}
    compilers = ", ".join(name for name, found in there.items() if found) or "none"  # recipes depend on them
    found = {"Python": platform.python_version(), **packages, **system, **machine, "compilers": compilers}
    found |= {"images": images, "set in the environment": hardware.variables}
    found |= {f"code of {model}": model_code(model) or UNKNOWN for model in sorted(models) if ":" in model}
    found |= {"machine": hardware.hostname} if local else {}
    return {**found, "rresnet's commit": git_commit() or UNKNOWN}


def _system() -> str:
    return f"{platform.system()} {platform.release()}"


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout this package runs from, or None: an installed copy has none.

    If the code that measures has changed since, `-dirty-` and a hash of the changes follow: the rows are not the
    commit's. If git can't tell whether it has, `-dirty-unknown` follows.
    """
    folder = Path(__file__).parents[2]
    commit = _git(folder, "rev-parse", "HEAD") if (folder / ".git").exists() else None
    if not commit:
        return None
    what = ["rresnet", "experiments", *(f":!rresnet/{apart}" for apart in ("analysis", "figures", "reporting"))]
    quietly = ["--no-optional-locks", "-c", "core.fileMode=false"]
    status = _git(folder, *quietly, "status", "--porcelain", "--untracked-files=all", "-z", "--", *what)
    if status is None:
        return f"{commit.decode().strip()}-dirty-unknown"
    changed = sorted(entry[3:] for entry in status.decode(errors="surrogateescape").split("\0") if entry)
    if not changed:
        return commit.decode().strip()
    contents = [[name, _content_hash(folder / name)] for name in changed]
    return f"{commit.decode().strip()}-dirty-{stable_hash(contents)[:8]}"


@functools.cache
def model_code(model: str) -> str | None:
    """Hash of the code of a user's own model, as it is when first asked for; found without importing it.

    It covers the module's file, or every Python file of its package. None for torchvision's, or if it is not found.
    """
    module, own, _ = model.partition(":")
    with contextlib.suppress(ImportError, ValueError, OSError):
        if own and (spec := find_spec(module.partition(".")[0])):
            folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
            found = [(str(file.relative_to(of)), file) for of in folders for file in sorted(of.rglob("*.py"))]
            return stable_hash([[name, _content_hash(file)] for name, file in found or [("", Path(spec.origin or ""))]])
    return None


def _content_hash(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None  # deleted, or renamed


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What git prints; None where it fails, or is not installed."""
    try:
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
