"""What the machine did while a trial was measured: processors, memory and GPU, read at the edges of the windows."""

import contextlib
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import pynvml

from rresnet import cgroup, hardware
from rresnet.quality.rapl import Rapl

# Reasons for a GPU to run below its clocks that are the machine's doing, as idling and chosen clocks are not.
_THROTTLING = (
    pynvml.nvmlClocksThrottleReasonSwPowerCap
    | pynvml.nvmlClocksThrottleReasonHwSlowdown
    | pynvml.nvmlClocksThrottleReasonSwThermalSlowdown
    | pynvml.nvmlClocksThrottleReasonHwThermalSlowdown
    | pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
)
THROTTLED_SHARE = 0.1  # of the time, held down: a GPU that boosts keeps touching its power limit for moments

_Counters = Mapping[str, Any]  # readings at one moment, by the names of `Usage`


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What was used in `seconds`. None where the machine doesn't tell."""

    seconds: float
    cpu_seconds: float  # of this process, over its threads
    busy_cpu_seconds: float | None  # of the processors that this process may run on
    steal_cpu_seconds: float | None  # of the same, that the hypervisor gave to others
    major_faults: int
    swapped_bytes: int  # of the whole machine, in and out
    throttled_cpu_seconds: float = 0.0  # for which threads stood still because a cgroup's quota was used up
    energy_joules: float | None = None
    gpu_utilization_percent: float | None = None
    gpu_throttled: bool = False
    gpu_foreign_processes: int = 0

    @property
    def foreign_cpu_seconds(self) -> float | None:
        """CPU time of everybody else on these processors."""
        return None if self.busy_cpu_seconds is None else max(0.0, self.busy_cpu_seconds - self.cpu_seconds)


class Monitor:
    """Adds up what happens inside its `watching` blocks.

    Args:
        gpu_uuid: the GPU that is watched, as PyTorch names it; None for a trial on the CPU.
    """

    def __init__(self, gpu_uuid: str | None = None) -> None:
        self._gpu = _Gpu(gpu_uuid) if gpu_uuid else None
        self._rapl = Rapl()
        self._spans: list[tuple[_Counters, _Counters]] = []
        self._utilization: list[float | None] = []
        self._throttled = False
        self._foreign = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Count what happens in the block."""
        self._throttled |= self._gpu is not None and self._gpu.throttled()
        before = self._read()
        yield
        if self._gpu:
            self._throttled |= self._gpu.throttled()  # first, since the GPU begins to idle
            self._utilization.append(self._gpu.utilization_percent())
            self._foreign = max(self._foreign, self._gpu.foreign_processes())
        self._spans.append((before, self._read()))

    def keep_up(self) -> None:
        """Keep counting right in a long block; to be called in it, every few seconds or more often."""
        self._rapl.keep_up()

    def usage(self) -> Usage:
        """What the blocks used in all; there must have been at least one."""

        def total(name: str) -> Any:
            parts = [(before[name], after[name]) for before, after in self._spans]
            known = all(None not in part and part[0] <= part[1] for part in parts)
            return sum(after - before for before, after in parts) if known else None

        utilization = [percent for percent in self._utilization if percent is not None]
        found = {name: total(name) for name in self._spans[0][0]}
        for counter in ("major_faults", "swapped_bytes", "throttled_cpu_seconds"):
            found[counter] = found[counter] or 0  # also where one went backwards
        held = found.pop("gpu_held_seconds")
        return Usage(
            **found,
            gpu_utilization_percent=sum(utilization) / len(utilization) if utilization else None,
            gpu_throttled=self._throttled if held is None else held > THROTTLED_SHARE * found["seconds"],
            gpu_foreign_processes=self._foreign,
        )

    def _read(self) -> _Counters:
        own, swap = resource.getrusage(resource.RUSAGE_SELF), psutil.swap_memory()
        busy, steal = _processors()
        return {
            "seconds": time.perf_counter(),
            "cpu_seconds": own.ru_utime + own.ru_stime,
            "busy_cpu_seconds": busy,
            "steal_cpu_seconds": steal,
            "throttled_cpu_seconds": cgroup.throttled_seconds(),
            "major_faults": own.ru_majflt,
            "swapped_bytes": swap.sin + swap.sout,
            "gpu_held_seconds": self._gpu.held_seconds() if self._gpu else None,
            "energy_joules": self._gpu.energy_joules() if self._gpu else self._rapl.joules(),
        }


def _processors() -> tuple[float | None, float | None]:
    """CPU seconds so far for which the processors that this process may run on were busy, and those stolen from them.

    None under a quota of fewer processors, since others' work need not be in our way there; and where ours can't be
    found in the list.
    """
    cpus, listed = hardware.cpus(), psutil.cpu_times(percpu=True)
    # A container's list may be of its own processors alone, numbered anew.
    ours = listed if len(listed) == len(cpus) else [times for number, times in enumerate(listed) if number in cpus]
    if len(ours) != len(cpus) or hardware.probe().cpu_count < len(cpus):
        return None, None
    kinds = ("user", "nice", "system", "irq", "softirq")
    busy = sum(getattr(times, kind, 0.0) for times in ours for kind in kinds)
    return busy, sum(getattr(times, "steal", 0.0) for times in ours)


def _parent(pid: int) -> int | None:
    """The id of a process's parent; None if the process is gone, or its id is not one of ours."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).ppid()
    return None


class _Gpu:
    """One GPU's readings through NVML, which stays open for the life of the process.

    Not every GPU answers every question: a part of one (MIG) reports no utilization, an old one no energy. A GPU that
    NVML does not know by PyTorch's name for it answers none.
    """

    def __init__(self, uuid: str) -> None:
        self._handle: Any = None
        for name in [uuid] if uuid.startswith(("GPU-", "MIG-")) else [f"GPU-{uuid}", f"MIG-{uuid}"]:
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlInit()  # may be called any number of times; a container may have CUDA but not NVML
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(name)
                break

    def energy_joules(self) -> float | None:
        millijoules = self._ask(pynvml.nvmlDeviceGetTotalEnergyConsumption)
        return None if millijoules is None else float(millijoules) / 1000

    def utilization_percent(self) -> float | None:
        rates = self._ask(pynvml.nvmlDeviceGetUtilizationRates)
        return None if rates is None else float(rates.gpu)

    def throttled(self) -> bool:
        """Whether the GPU is known to be throttled at this moment."""
        return bool((self._ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons) or 0) & _THROTTLING)

    def held_seconds(self) -> float | None:
        """Seconds so far in which power held the GPU below its clocks, plus those in which heat did."""
        policies = pynvml.NVML_PERF_POLICY_POWER, pynvml.NVML_PERF_POLICY_THERMAL
        told = [self._ask(pynvml.nvmlDeviceGetViolationStatus, policy) for policy in policies]
        return None if None in told else float(sum(status.violationTime for status in told)) / 1e9  # nanoseconds

    def foreign_processes(self) -> int:
        """How many processes computing on the GPU are neither this one nor of the same Ray: a run's own take turns.

        In a container NVML may give ids that are not ours: then all but one are taken to be foreign.
        """
        pids = {process.pid for process in self._ask(pynvml.nvmlDeviceGetComputeRunningProcesses) or ()}
        if os.getpid() not in pids:
            return max(0, len(pids) - 1)
        return sum(pid != os.getpid() and _parent(pid) != os.getppid() for pid in pids)

    def _ask(self, question: Callable[..., Any], *of: int) -> Any:
        try:
            return None if self._handle is None else question(self._handle, *of)
        except pynvml.NVMLError:
            return None


def process_peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
