"""The compilers: PyTorch's TorchInductor and Triton, and GCC; and where they keep what they have made."""

import contextlib
import ctypes
import os
import subprocess
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rresnet import hardware, scratch
from rresnet.cell import stable_hash

Function = Callable[..., torch.Tensor]


def _inductor_folder() -> str:
    """Where TorchInductor keeps what it has compiled."""
    return os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(scratch.cache_folder() / "inductor"))


class Inductor:
    """TorchInductor, with its cache in the user's cache folder, unless TORCHINDUCTOR_CACHE_DIR says otherwise."""

    def __init__(self) -> None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = _inductor_folder()
        from torch._functorch import config

        config.autograd_cache_allow_custom_autograd_functions = True  # else a network of our layers is traced each time
        self._before = self._seen()

    @staticmethod
    def compile(forward: Function) -> Function:
        """`forward` as it will be compiled at its first call, for the shapes of that call alone.

        PyTorch keeps what it has compiled by code object, and gives up after eight versions of one. So the code object
        is copied, and the shapes of one cell have nothing to do with those of another.
        """
        f: Any = forward
        own = types.FunctionType(f.__code__.replace(), f.__globals__, f.__name__, f.__defaults__, f.__closure__)
        result: Function = torch.compile(own, fullgraph=True, dynamic=False)
        return result

    @property
    def cache(self) -> str:
        """Whether all that was compiled since was in the cache: "warm" if so, else "cold", also if the cache is off."""
        hits, misses = (now - before for now, before in zip(self._seen(), self._before, strict=True))
        return "warm" if hits and not misses else "cold"

    @staticmethod
    def _seen() -> tuple[int, int]:
        """Hits and misses so far."""
        from torch._dynamo.utils import counters

        hits = counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"]
        return int(hits), int(counters["inductor"]["fxgraph_cache_miss"] + counters["inductor"]["fxgraph_cache_bypass"])


def keep_kernels() -> None:
    """Have Triton keep its kernels where TorchInductor has it do so, whichever of a process's cells comes first."""
    os.environ.setdefault("TRITON_CACHE_DIR", os.path.join(_inductor_folder(), "triton", "0"))


# The arithmetic is IEEE's; only what it would say of errors is not asked for, which keeps loops from being vectorized.
_GCC = ("g++", "-std=c++11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")


def native(source: Path) -> ctypes.CDLL:
    """The functions of a C++ file, compiled for this processor; what was compiled is kept in the user's cache folder.

    It is linked to no OpenMP of its own, so that it runs on PyTorch's threads: others would keep these from the cores.

    Raises RuntimeError, which says what to do, if it can't be compiled here.
    """
    key = stable_hash([source.read_text(), *_GCC, *hardware.processor()])
    kept = _native_folder()
    try:
        made = kept and kept / f"{source.stem}-{key}.so"
        if made and made.exists():
            with contextlib.suppress(OSError):  # damaged, or linked to another system's libraries: made anew
                return ctypes.CDLL(str(made))
        with scratch.folder(kept) as folder:
            unlinked, linked = str(folder / "code.o"), str(folder / "code.so")
            for words in ((*_GCC, "-c", str(source), "-o", unlinked), ("g++", "-shared", unlinked, "-o", linked)):
                subprocess.run(words, check=True, capture_output=True, text=True)
            loaded = ctypes.CDLL(linked)
            if made:
                with open(linked, "rb") as file:
                    os.fsync(file.fileno())  # half of one, after a power cut, would end each process that loads it
                os.replace(linked, made)  # at once: other processes may do the same
            return loaded
    except (OSError, subprocess.CalledProcessError) as error:
        why = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        raise RuntimeError(f"the fused kernels of a CPU can't be made here ({why}): use --kernels pytorch") from error


def _native_folder() -> Path | None:
    """Where compiled C++ is kept; None where this user has no such place, so that each process compiles for itself."""
    with contextlib.suppress(OSError, RuntimeError):  # no right to, no room, or no home
        folder = scratch.cache_folder() / "native"
        folder.mkdir(parents=True, exist_ok=True)
        runs = not os.statvfs(folder).f_flag & os.ST_NOEXEC  # what lies there
        return folder if runs and os.access(folder, os.W_OK | os.X_OK) else None
    return None
