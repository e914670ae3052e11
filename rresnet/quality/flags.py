"""What makes a row doubtful, computed from what happened while it was measured; with a line of advice for each."""

import math
from collections.abc import Sequence

from rresnet.cell import Cell
from rresnet.quality import steady
from rresnet.quality.monitor import Usage

FOREIGN_SHARE = 0.1  # of all processors, busy with other programs
FOREIGN_CORES = 0.5  # on a CPU without a core to spare, however many it has: each step waits for its slowest thread
STEAL_SHARE = 0.05  # of all processors, given to other machines by the hypervisor; its clock ticks every 10 ms
STARVED_SHARE = 0.7  # of threads x seconds that the trial got
TAKEN_SHARE = 0.5  # of what it did not get: on an idle machine, threads that wait for the input are not starved
FEWEST_WINDOWS = 2
LEARNING_STEPS = 50  # before so many steps a loss says little

ADVICE = {
    "foreign_load": "other programs used the processors; close them, or measure when the machine is idle",
    "steal": "the hypervisor gave processor time to other machines; use a dedicated one, or more --repeats",
    "cpu_starved": "the trial got less processor time than its threads could use; free the machine, check CPU limits",
    "fewer_threads": "fewer threads than cores; for a figure of the whole CPU, set --cpu-threads to the core count",
    "gpu_shared": "other processes computed on the GPU; end them, or choose another with CUDA_VISIBLE_DEVICES",
    "gpu_throttled": "heat or power held the GPU's clocks down; improve cooling, or raise its power limit",
    "swapping": "memory was short and pages came from disk; give a smaller --batch-size, or free memory",
    "few_windows": "too few windows to see a trial's scatter (intervals are over repeats); raise --seconds or --epochs",
    "unsteady": "the speed was still changing; raise --seconds or --epochs",
    "not_learning": "the loss did not fall; check the labels, the precision and the seed",
    "machine_changed": "the machine's own speed changed during the run; measure again at a quieter time",
}
LOAD_FLAGS = frozenset({"foreign_load", "steal", "cpu_starved", "gpu_shared", "gpu_throttled", "swapping"})


def of_machine(usage: Usage, *, cpu_count: int, spare_cores: float = math.inf, machines: int = 1) -> list[str]:
    """Flags of what went on around a trial, or while nothing was measured.

    `cpu_count`, and `spare_cores` that the threads of a trial on the CPU leave to others, are of each machine.
    """
    foreign, steal = (
        (seconds or 0) / usage.seconds / machines for seconds in (usage.foreign_cpu_seconds, usage.steal_cpu_seconds)
    )
    found = {
        "foreign_load": foreign > FOREIGN_SHARE * cpu_count or foreign > max(FOREIGN_CORES, spare_cores),
        "steal": steal > STEAL_SHARE * cpu_count,
        "gpu_shared": usage.gpu_foreign_processes > 0,
        "gpu_throttled": usage.gpu_throttled,
        "swapping": usage.major_faults > 0 or usage.swapped_bytes > 0,
    }
    return [name for name, true in found.items() if true]


def of_trial(
    usage: Usage,
    cell: Cell,
    *,
    cpu_count: int,
    cpu_cores: int,
    observed_threads: int,
    window_seconds: Sequence[float],
    settled: bool,
    learning: bool | None,
) -> tuple[str, ...]:
    """The flags of a trial that ended ok.

    `usage` is that of the measured windows over all workers; `cpu_count` and `cpu_cores` are of each machine,
    `observed_threads` of each worker. `window_seconds` are the seconds of a step in each measured window, in order.
    `learning` is None when too little was trained to tell.
    """
    on_cpu, threads = cell.device == "cpu", observed_threads * cell.workers_per_node
    seconds = cell.num_nodes * usage.seconds
    missing = threads * seconds - usage.cpu_seconds
    others = (usage.foreign_cpu_seconds or 0) + (usage.steal_cpu_seconds or 0)
    taken = others - (cpu_count - threads) * seconds  # beyond what fits on processors without our threads
    found = {
        "cpu_starved": on_cpu
        and missing > (1 - STARVED_SHARE) * threads * seconds
        and max(taken, usage.throttled_cpu_seconds) > TAKEN_SHARE * missing,
        "fewer_threads": on_cpu and threads < cpu_cores // cell.workers_per_node * cell.workers_per_node,
        "few_windows": len(window_seconds) < FEWEST_WINDOWS,
        "unsteady": not settled or steady.trends(window_seconds),
        "not_learning": learning is False,
    }
    spare = cpu_cores - threads if on_cpu else math.inf
    around = of_machine(usage, cpu_count=cpu_count, spare_cores=spare, machines=cell.num_nodes)
    return (*around, *(name for name, true in found.items() if true))


def learns(first_loss: float, recent_losses: Sequence[float], steps: int) -> bool | None:
    """Whether the mean of the recent losses is below the first; None before `LEARNING_STEPS` steps."""
    if steps < LEARNING_STEPS or not recent_losses:
        return None
    mean = sum(recent_losses) / len(recent_losses)
    return math.isfinite(mean) and mean < first_loss
