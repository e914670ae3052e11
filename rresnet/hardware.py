"""A machine's processors and GPUs, and the settings of its libraries; read without importing torch."""

import contextlib
import functools
import importlib.util
import os
import platform
import re
import shutil
import socket
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pynvml

from rresnet import cgroup

# Environment variables of allocators, OpenMP, oneDNN, MKL, CUDA, NCCL and PyTorch change how fast these run, and some
# change the arithmetic. Left out: those that say where something is or what is printed, or that Ray or a library sets.
_OF_LIBRARIES = re.compile(
    "GLIBC_TUNABLES|LD_PRELOAD|(THP_MEM_ALLOC|LRU_CACHE|DISABLE_ADDMM|NVIDIA_TF32)_.*|_RJEM_MALLOC_CONF|"
    "(MALLOC|TCMALLOC|OMP|GOMP|KMP|MKL|DNNL|ONEDNN|ATEN|CUDA|CUBLAS|CUDNN|NCCL|TORCH|TORCHDYNAMO|TORCHINDUCTOR|PYTORCH)_.*"
)
_NOT_OF_SPEED = re.compile(
    "(OMP|MKL)_NUM_THREADS|CUDA_VISIBLE_DEVICES|CUDA_DEVICE_ORDER|CUDA_MODULE_LOADING|TORCH_CUDA_ARCH_LIST|KMP_INIT_AT_FORK|KMP_DUPLICATE_LIB_OK|"
    "TORCH_NCCL_ASYNC_ERROR_HANDLING|"
    ".*_(DIR|HOME|ROOT|PATH|FILE|LIBRARY|VERSION|BUILD_NUMBER|IFNAME|COMM_ID|LOGS|DEBUG|VERBOSE|DISPLAY_ENV)"
)
_PROCESSORS = Path("/sys/devices/system/cpu")
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One machine as this process may use it."""

    hostname: str
    cpu_model: str
    cpu_count: int  # logical processors that this process may use
    cpu_cores: int  # physical cores among them, as far as the system tells
    cpu_bf16: bool  # bfloat16 products in hardware
    gpu_count: int
    gpu_name: str | None
    driver_version: str | None
    gpu_capability: tuple[int, int] | None  # CUDA compute capability of the first GPU
    compiler: bool  # a C++ compiler and Python's headers, which torch.compile and Triton need
    triton: bool  # Triton, which comes with PyTorch's CUDA, and the C compiler that it calls
    gcc: bool  # GCC on Linux, whose OpenMP PyTorch has, too
    variables: str = "none"  # environment variables that change how fast libraries run, as `NAME=value ...`

    @property
    def gpu_bf16(self) -> bool:
        """Whether the GPU has bfloat16 and TF32 units (Ampere, compute capability 8.0, and later)."""
        return self.gpu_capability is not None and self.gpu_capability >= (8, 0)

    @property
    def gpu_triton(self) -> bool:
        """Whether Triton can make kernels for the GPU."""
        return self.gpu_bf16 and self.compiler and self.triton


@functools.cache
def probe(*, hidden: bool = False) -> Hardware:
    """Read this machine, once per process.

    Args:
        hidden: also count GPUs that CUDA_VISIBLE_DEVICES hides. Ray hides those that a process did not ask for.
    """
    cpu_count = _usable_cpus()
    model, flags = processor()
    count, name, driver, capability = _gpus(hidden)
    return Hardware(
        hostname=socket.gethostname(),
        cpu_model=model,
        cpu_count=cpu_count,
        cpu_cores=_usable_cores(cpu_count),
        # x86: AVX512_BF16 or AMX; Arm: the bf16 feature. Without them oneDNN emulates bfloat16 and is slower than fp32.
        cpu_bf16=bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags)),
        gpu_count=count,
        gpu_name=name,
        driver_version=driver,
        gpu_capability=capability,
        compiler=_has_compiler(),
        triton=_has_triton(),
        gcc=sys.platform == "linux" and shutil.which("g++") is not None,
        variables=_variables(),
    )


def _variables() -> str:
    named = [n for n in sorted(os.environ) if _OF_LIBRARIES.fullmatch(n) and not _NOT_OF_SPEED.fullmatch(n)]
    text = " ".join(f"{name}={os.environ[name]}" for name in named) or "none"
    return text.encode(errors="surrogateescape").decode(errors="replace")  # tables hold valid UTF-8


def _has_compiler() -> bool:
    """Whether TorchInductor can build its kernels: a compiler where it looks for one, and Python's headers."""
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return any(map(shutil.which, compilers)) and headers.exists()


def _has_triton() -> bool:
    """Whether there is Triton, which is not imported, and a C compiler where it looks for one."""
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    return any(map(shutil.which, compilers)) and importlib.util.find_spec("triton") is not None


@functools.cache
def cpus() -> frozenset[int]:
    """Numbers of the processors in this process's affinity mask; read once, because OpenMP may bind a thread later."""
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def affinity() -> str:
    """The affinity mask as Linux writes lists of processors: 0-3,8."""
    numbers = sorted(cpus())
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def _usable_cpus() -> int:
    """How many processors this process may use: as many as it may run on, or fewer if a cgroup's quota says so."""
    quota = cgroup.quota()
    return min(len(cpus()), max(1, int(quota[0]))) if quota else len(cpus())


def _usable_cores(cpu_count: int) -> int:
    """How many physical cores `cpu_count` of the processors that this process may run on come to."""
    try:
        siblings = {(_PROCESSORS / f"cpu{n}" / "topology" / "thread_siblings_list").read_text() for n in cpus()}
        cores = len(siblings)
    except OSError:
        cores = psutil.cpu_count(logical=False) or cpu_count  # the whole machine's
    return max(1, min(cpu_count, cores))


@functools.cache
def processor() -> tuple[str, tuple[str, ...]]:
    """Model name and feature flags, from /proc/cpuinfo where there is one.

    Hypervisors hide the model (`AMD EPYC`), and Arm has no name for it. Its numbers follow the name there, because
    rows of unlike processors are not to be compared as if they were of one machine.
    """
    told = dict[str, str]()
    with contextlib.suppress(OSError):
        lines = [line.partition(":") for line in _CPUINFO.read_text().splitlines()]
        told = {key.strip(): value.strip() for key, _, value in reversed(lines)}  # of the first processor
    flags = {*told.get("flags", "").split(), *told.get("Features", "").split()}
    name = told.get("model name") or platform.processor() or platform.machine()
    numbers = ("cpu family", "model") if "hypervisor" in flags else ("CPU implementer", "CPU part")
    known = ", ".join(f"{which} {told[which]}" for which in numbers if which in told)
    return f"{name} ({known})" if known else name, tuple(sorted(flags))


def _gpus(hidden: bool) -> tuple[int, str | None, str | None, tuple[int, int] | None]:
    """Count the GPUs and read the first one's name, driver and compute capability, through NVML.

    A GPU that does not answer (lost, or not for this user) is not counted. If the first is split into parts (MIG), the
    name is that of the part, because a part is not the same machine as the whole.
    """
    none = 0, None, None, None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver that answers
        return none
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            with contextlib.suppress(pynvml.NVMLError):
                found.append(pynvml.nvmlDeviceGetHandleByIndex(index))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None and not hidden:
            found = _named(visible, found)
        if not found:
            return none
        name, driver = pynvml.nvmlDeviceGetName(_first_part(found[0])), pynvml.nvmlSystemGetDriverVersion()
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(_whole(found[0]))
        return len(found), name, driver, (major, minor)
    except pynvml.NVMLError:
        return none
    finally:
        pynvml.nvmlShutdown()


def count_gpus_as_nvml_does() -> None:
    """Make CUDA number GPUs as NVML does, not the fastest first. Takes effect only before CUDA starts."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


def gpu_order(name: str) -> tuple[int, str]:
    """Sort key of a name in CUDA_VISIBLE_DEVICES: GPUs are taken in this order, in whatever order they are named."""
    return len(name), name  # sorts numbers by size


def _whole(handle: Any) -> Any:
    """The GPU that a part (MIG) belongs to; a whole GPU as it is."""
    try:
        return pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    except pynvml.NVMLError:
        return handle


def _first_part(handle: Any) -> Any:
    """The part that CUDA takes if a GPU is split (MIG) and none is named, which is the first; a whole GPU as it is."""
    try:
        return pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, 0)
    except pynvml.NVMLError:
        return handle


def _named(visible: str, handles: list[Any]) -> list[Any]:
    """The GPUs that a value of CUDA_VISIBLE_DEVICES names by number or the beginning of a UUID, or parts (MIG) by UUID.

    Like CUDA, it stops at the first name that fits none. They are returned in the order in which trial processes take
    them.
    """
    named = dict[str, Any]()
    for word in (word.strip() for word in visible.split(",")):
        try:
            if word.startswith("MIG-"):
                named[word] = pynvml.nvmlDeviceGetHandleByUUID(word)
            elif word.startswith("GPU-"):
                named[word] = next(h for h in handles if pynvml.nvmlDeviceGetUUID(h).startswith(word))
            else:
                named[word] = handles[range(len(handles)).index(int(word))]
        except (pynvml.NVMLError, StopIteration, ValueError):
            break
    return [named[word] for word in sorted(named, key=gpu_order)]
