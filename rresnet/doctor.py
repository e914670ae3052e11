"""Is this machine fit to be measured? The checks that flag rows, done before a run."""

import contextlib
import os
import sys
import time

import psutil
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from rresnet import hardware
from rresnet.cell import Precision, first_line
from rresnet.hardware import Hardware
from rresnet.quality import flags
from rresnet.quality.monitor import Monitor
from rresnet.tables import place
from rresnet.tables.place import Location
from rresnet.terminal import counted, say
from rresnet.training import limits
from rresnet.training.memory import is_out_of_memory

AMPLE_SHARE = 0.8  # of a GPU's memory: a warning if less of it is free
CONTEXT_BYTES = 2**29  # of a GPU's memory, roughly what CUDA itself takes for each process
AMPLE_BYTES = 2 * 2**30  # of memory or disk: a warning if less is free


def examine(console: Console, *, seconds: float, results_dir: Location, advice: bool) -> bool:
    """Print the machine, its limits, and what would make its figures doubtful; return True if nothing would."""
    hardware.count_gpus_as_nvml_does()
    machine = hardware.probe()
    console.print(_description(machine))
    torch.set_num_threads(machine.cpu_cores)
    table, failures = _limits(machine)
    console.print(table)
    monitor = Monitor(_gpu_uuid())
    with monitor.watching():
        time.sleep(seconds)
    usage = monitor.usage()
    busy = {"foreign_load": usage.foreign_cpu_seconds, "steal": usage.steal_cpu_seconds}
    amounts = {
        flag: f" ({(used or 0) / usage.seconds:.1f} of {counted(machine.cpu_count, 'CPU')})"
        for flag, used in busy.items()
    }
    around = flags.of_machine(usage, cpu_count=machine.cpu_count, spare_cores=0)  # a trial on the CPU takes all cores
    found = {flag: f"{flag}{amounts.get(flag, '')}" for flag in around}
    doubts = [f"{told}: {flags.ADVICE[flag]}" if advice else told for flag, told in found.items()]
    doubts += [*failures, *_settings(machine, results_dir)]
    for doubt in doubts:
        say(console, f"! {doubt}", "yellow")
    if not doubts:
        say(console, f"Found nothing in {seconds:g} s that would make figures doubtful.")
    return not doubts


def _gpu_uuid() -> str | None:
    """UUID of the first GPU; None if there is none, or if its memory is too full to ask."""
    with contextlib.suppress(RuntimeError):
        return str(torch.cuda.get_device_properties(0).uuid) if torch.cuda.is_available() else None
    return None


def _gpu_memory() -> tuple[int, int]:
    """Bytes of the first GPU's memory that other processes hold, and in total; both 0 if it is too full to ask."""
    try:
        unused, total = torch.cuda.mem_get_info()
    except RuntimeError:
        return 0, 0
    return max(0, total - unused - torch.cuda.memory_reserved() - CONTEXT_BYTES), total


def _description(machine: Hardware) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    memory = psutil.virtual_memory()
    gpus = f"{machine.gpu_count} x {machine.gpu_name}, driver {machine.driver_version}" if machine.gpu_count else "none"
    bf16 = "with bf16 products" if machine.cpu_bf16 else "without bf16 products"
    table.add_row("machine", machine.hostname)
    amount = f"{counted(machine.cpu_count, 'CPU')}, {counted(machine.cpu_cores, 'core')}"
    table.add_row("processor", f"{machine.cpu_model}, {amount}, {bf16}")
    table.add_row("memory", f"{memory.total / 2**30:.0f} GiB, {memory.available / 2**30:.0f} GiB free")
    table.add_row("GPU", gpus)
    table.add_row("PyTorch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}")
    return table


def _limits(machine: Hardware) -> tuple[Table, list[str]]:
    """The limits, and what is wrong with a GPU that does not compute."""
    failures = dict[str, None]()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("limit", "matrix product", "copy"):
        table.add_column(heading, justify="left" if heading == "limit" else "right")
    kinds: list[tuple[str, Precision]] = [("cpu", "fp32")]
    if machine.cpu_bf16:
        kinds.append(("cpu", "bf16"))
    if torch.cuda.is_available():
        kinds += [("cuda", "fp32"), ("cuda", "fp16")]
    if torch.cuda.is_available() and machine.gpu_bf16:
        kinds += [("cuda", "tf32"), ("cuda", "bf16")]
    for kind, precision in kinds:
        name = f"{'GPU' if kind == 'cuda' else 'CPU'} {precision}"
        try:
            found = limits.measure(kind, precision, machine.cpu_cores)
        except (MemoryError, RuntimeError) as error:
            short = is_out_of_memory(error)
            if kind == "cpu" and not short:
                raise
            table.add_row(name, "too little memory" if short else "fails", "")
            if not short:  # say, PyTorch's kernels are for newer GPUs
                told = f"PyTorch {torch.__version__} fails on the {machine.gpu_name} ({first_line(error)})"
                failures[f"{told}: install one that is built for it, or the trials on the GPU will fail"] = None
            continue
        rate, copy = found.matrix_flops_per_second / 1e9, found.copy_bytes_per_second / 1e9
        table.add_row(name, f"{rate:,.0f} GFLOP/s", f"{copy:,.1f} GB/s")
    return table, list(failures)


def _settings(machine: Hardware, results_dir: Location) -> list[str]:
    """What in the machine's setup, memory or disk would harm a run."""
    found = []
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads and threads.isdigit() and int(threads) < machine.cpu_cores:
        found.append(
            f"OMP_NUM_THREADS={threads} is set on a machine with {machine.cpu_cores} cores: rresnet sets its own "
            "threads, but other programs that you compare with would not"
        )
    if psutil.virtual_memory().available < AMPLE_BYTES:
        found.append("less than 2 GiB of memory is free: close programs, or choose a smaller --batch-size")
    if machine.gpu_count and not torch.cuda.is_available():
        found.append(
            f"PyTorch {torch.__version__} can't use the {machine.gpu_name}: install one that is built for its driver "
            f"({machine.driver_version}), or the trials on the GPU will fail"
        )
    if sys.platform == "linux" and not machine.gcc:
        found.append("there is no GCC (g++), with which tuned would have faster kernels on the CPU: install it")
    if machine.gpu_bf16 and not machine.gpu_triton:
        found.append(
            "there is no C++ compiler (g++) with Python's headers (python3-dev), no C compiler (gcc, or as CC says) or "
            "no Triton: tuned would have faster kernels on the GPU, and --execution compile needs them: install them"
        )
    if torch.cuda.is_available():
        if not machine.gpu_count:
            found.append(
                "PyTorch sees a GPU but NVML reports none, so no trial would use it: install the driver's NVML, or "
                "start the container with NVIDIA_DRIVER_CAPABILITIES=compute,utility"
            )
        held, total = _gpu_memory()
        if not total or held > (1 - AMPLE_SHARE) * total:
            told = f"{held / 2**30:.0f} of {total / 2**30:.0f} GiB" if total else "all"
            found.append(
                f"other processes hold {told} of the GPU's memory: end them (nvidia-smi lists them), or large batches "
                "will not fit"
            )
    kept = place.at(results_dir)
    try:
        kept.check_writable()
    except place.StoreError as error:
        return [*found, str(error)]
    if (free := kept.free_bytes()) is not None and free < AMPLE_BYTES:
        found.append(f"less than 2 GiB is free in {kept.full_name('')}: make space, or choose another --results-dir")
    return found
