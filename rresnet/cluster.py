"""Ray itself: start it on this machine or join a cluster, and see what is there."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from rresnet import scratch
from rresnet.config import Device, UsageError
from rresnet.hardware import Hardware, probe

# Each was needed in practice; the reason stands beside it.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry, and no prompt about it
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # processes that hold no GPU keep CUDA_VISIBLE_DEVICES as it is
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's boxes, which verbose=0 does not silence
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process for each worker group, unused
    "RAY_TRAIN_METRICS_ENABLED": "0",  # needs the dashboard
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the default of 2 s is added to each trial of a worker group
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",  # an error instead of a wait without end
    "RAY_worker_niceness": "0",  # Ray's workers yield to any other process by default: a measurement must not
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our rows are the record; no CSV, JSON and TensorBoard files a trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C reaches us, and we finish writing
    "TUNE_WARN_THRESHOLD_S": "60",  # Tune's remarks on its own slowness
}


CONNECT_SECONDS = 5.0
TAIL_CHARACTERS = 8000  # a hung process leaves the tracebacks of all its threads


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A connected Ray cluster."""

    hardware: Hardware  # of the machine that measures
    logs: Path | None = None  # what its trial processes print, where that is on this machine

    def output_tail(self, process_id: int | None) -> str | None:
        """The end of what a trial process has printed; None where that is not known."""
        files = sorted(self.logs.glob(f"worker-*-{process_id}.*"), reverse=True) if self.logs and process_id else []
        text = "".join(file.read_text(errors="replace") for file in files)
        return text[-TAIL_CHARACTERS:] or None

    @property
    def devices(self) -> tuple[Device, ...]:
        """Device kinds there are."""
        return ("cpu", "gpu") if self.hardware.gpu_count else ("cpu",)

    @property
    def trial_resources(self) -> dict[str, float]:
        """What the hot trial process holds: a whole machine, so that no two trials ever share one."""
        gpus = {"GPU": float(self.hardware.gpu_count)} if self.hardware.gpu_count else {}
        return {"CPU": float(self.hardware.cpu_count), **gpus}


# Ray puts this resource on the head node; holding a sliver of it leaves every CPU to the trial's workers.
WORKER_GROUP_RESOURCES = {"node:__internal_head__": 0.001}


@contextlib.contextmanager
def connect(address: str | None, hardware: Hardware) -> Iterator[Cluster]:
    """Ray for the length of a block: started here when `address` is None and ended after, else joined and left.

    Raises UsageError when there is no such cluster.
    """
    if address not in (None, "auto"):
        _check_reachable(address)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    terminate = signal.getsignal(signal.SIGTERM)  # Ray replaces it with a handler that ends the process at once
    importing = threading.Thread(target=import_module, args=("ray.tune",))  # seconds, in which Ray can start
    importing.start()
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    cleanup, logs = contextlib.ExitStack(), None
    try:
        if address is None:
            scratch.remove_stale()
            temporary = cleanup.enter_context(scratch.folder())  # Ray would leave its logs behind
            common["_temp_dir"] = str(temporary)
            logs = temporary / "session_latest" / "logs"
            with _temporary_files_in(temporary):
                ray.init(
                    "local", num_cpus=hardware.cpu_count, num_gpus=hardware.gpu_count, include_dashboard=False, **common
                )
            _protect_token()
        else:
            ray.init(address, **common)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if address is None:
            raise UsageError(f"Ray does not start on this machine: {reason}") from error
        raise UsageError(_no_cluster(address, reason)) from error
    finally:
        importing.join()
        signal.signal(signal.SIGTERM, terminate)
    with cleanup:
        try:
            yield Cluster(hardware=hardware, logs=logs) if address is None else _joined()
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Have the processes that are started in the block put theirs there: one that is killed can't remove its own."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["TMPDIR"]
        if before is not None:
            os.environ["TMPDIR"] = before


def _protect_token() -> None:
    """Ray listens on every interface and lets in whoever has its token, in a file that it leaves to all to read."""
    with contextlib.suppress(OSError):
        (Path.home() / ".ray" / "auth_token").chmod(0o600)


def _check_reachable(address: str) -> None:
    """Ray itself goes on trying for minutes: ask first whether anybody listens there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--address must be auto or host:port (Ray's own port is 6379), got {address}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(_no_cluster(address, str(error))) from error


def _no_cluster(address: str, reason: str) -> str:
    return (
        f"no Ray cluster answers at --address {address} ({reason}): "
        "start one with `ray start --head`, or drop --address to measure on this machine"
    )


def _joined() -> Cluster:
    """The machine of the joined cluster that has the most GPUs, then CPUs, as far as Ray may use it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if not nodes:
        raise UsageError("no machine of this Ray cluster has a CPU to offer: start one with `ray start --address=...`")
    best = max(nodes, key=lambda node: (node["Resources"].get("GPU", 0), node["Resources"]["CPU"]))
    there = NodeAffinitySchedulingStrategy(best["NodeID"], soft=False)
    hardware = ray.get(ray.remote(probe).options(num_cpus=0, scheduling_strategy=there).remote(), timeout=120)
    cpus, gpus = int(best["Resources"]["CPU"]), int(best["Resources"].get("GPU", 0))
    usable = replace(
        hardware,
        cpu_count=min(cpus, hardware.cpu_count),
        cpu_cores=min(cpus, hardware.cpu_cores),
        gpu_count=min(gpus, hardware.gpu_count),
    )
    return Cluster(hardware=usable)


def waiting_for(cluster: Cluster) -> str | None:
    """What other work on the cluster holds of what a trial needs, or None when all is free."""
    import ray

    free = ray.available_resources()
    taken = [f"{n:g} {kind}s" for kind, n in cluster.trial_resources.items() if free.get(kind, 0) < n]
    return f"waiting until {' and '.join(taken)} are free: other work on the cluster holds them" if taken else None
