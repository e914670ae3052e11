"""Ray itself: start it on this machine, or join a cluster."""

import contextlib
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from rresnet import scratch
from rresnet.cell import UsageError
from rresnet.hardware import Hardware
from rresnet.runner import machines, presence
from rresnet.runner.machines import Machine, Wanted

# Each of these was needed in practice, for the reason beside it.
_ENVIRONMENT = {
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # numbers GPUs as NVML does, in the workers of a group too
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry, and no prompt about it
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # processes that hold no GPU keep CUDA_VISIBLE_DEVICES as it is
    "RAY_AIR_NEW_OUTPUT": "0",  # no boxes from Tune, which verbose=0 does not silence
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # no extra process for each worker group, which nothing here uses
    "RAY_TRAIN_METRICS_ENABLED": "0",  # Ray Train's metrics need the dashboard
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",  # an error instead of an endless wait
    "RAY_worker_niceness": "0",  # by default Ray's workers yield to any other process: a measurement must not
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # saves no experiment state: a run continues from our rows
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our rows are the record: no CSV, JSON and TensorBoard files
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C reaches us, and we finish writing
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # no traceback on the terminal: errors are rows
    "TUNE_WARN_THRESHOLD_S": "60",  # Tune remarks on its own slowness only beyond this
}


# For a Ray that we start ourselves.
_LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's switch for laptops: its servers listen on loopback alone
    "RAY_enable_worker_prestart": "0",  # no process for each core: Tune uses none of them, its own have an environment
    "RAY_prestart_worker_first_driver": "0",  # the same, at the start
}
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
_SERVERS = ("gcs_server", "raylet")  # without either, a Ray does nothing more
ANSWER_SECONDS = 60.0  # how long something that accepts connections may stay silent
STUCK_SECONDS = 10.0  # how long imports are waited for after an interrupt, which may have left a lock held
LOST_SECONDS = 40.0  # how long a joined cluster may be unreachable; after 60 s Ray ends this process


class ClusterLostError(UsageError):
    """No machine of the cluster is left to measure on."""


@contextlib.contextmanager
def connect(
    address: str | None, hardware: Hardware, wanted: Wanted | None = None, tell: Callable[[str], None] = print
) -> Iterator[tuple[Machine, ...]]:
    """Provide Ray for a block: started here and ended afterwards if `address` is None, else joined and left.

    Yields the machines that measure, the most capable first.

    Args:
        address: the address of the cluster to join.
        hardware: the hardware of this machine.
        wanted: the machines of a joined cluster that are to measure.
        tell: is called with what is being waited for.

    Raises:
        UsageError: there is no such cluster, or it has no such machines and none come.
    """
    wanted = wanted or Wanted()
    told, source = address, "--address"
    if address == "auto" and os.environ.get("RAY_ADDRESS"):  # which Ray then takes instead
        told, source = os.environ["RAY_ADDRESS"], "RAY_ADDRESS (for --address auto)"
    if told not in (None, "auto"):
        presence.check(told, source, min(wanted.wait_seconds, ANSWER_SECONDS), tell)
    for name, value in (_ENVIRONMENT if address else {**_ENVIRONMENT, **_LOCAL}).items():
        os.environ.setdefault(name, value)
    with _started(hardware) if address is None else _joined(address, wanted, tell) as those:
        yield those


@contextlib.contextmanager
def _started(hardware: Hardware) -> Iterator[tuple[Machine, ...]]:
    """Start a Ray of our own, on this machine alone."""
    import ray

    if not shutil.which("bash"):
        raise UsageError("Ray starts its processes with bash, which is not in PATH: install it, or set PATH")
    with contextlib.ExitStack() as cleanup:
        with _connecting(_no_start):
            base = scratch.base_folder(f"/session_2026-11-24_12-00-00_123456_{os.getpid()}/sockets/plasma_store")
            scratch.remove_stale(base)
            folder = cleanup.enter_context(scratch.folder(base))  # Ray would leave its logs behind
            _make_token()
            with _temporary_files_in(folder):
                _start(
                    num_cpus=hardware.cpu_count,
                    num_gpus=hardware.gpu_count,
                    _temp_dir=str(folder),
                    include_dashboard=False,
                    **_QUIET,
                )
        cleanup.callback(ray.shutdown)
        servers = [process for process in psutil.Process().children() if process.name() in _SERVERS]
        cleanup.enter_context(
            presence.watched(
                lambda: all(map(presence.alive, servers)),
                1.5 * presence.WATCH_SECONDS,  # that is two checks, in which the rows that have arrived are written
                "a process of Ray's has died (was the machine out of memory?): what was written is kept; run the same "
                "command again",
            )
        )
        yield (Machine(node_id=ray.nodes()[0]["NodeID"], hardware=hardware, logs=folder / "session_latest" / "logs"),)


@contextlib.contextmanager
def _joined(address: str, wanted: Wanted, tell: Callable[[str], None]) -> Iterator[tuple[Machine, ...]]:
    """Join a running Ray; yield those of its machines that are to measure."""
    import ray

    told = presence.missing if address == "auto" else presence.refused  # any other has answered
    with _connecting(lambda reason: told(f"--address {address}", reason)):
        ray.init(address, **_QUIET)
    try:
        gcs = ray.get_runtime_context().gcs_address
        message = (
            f"the Ray cluster at {gcs} is gone: what was written is kept; run the same command again when the cluster "
            "is back, or without --address"
        )
        with presence.watched(lambda: presence.answers(gcs), LOST_SECONDS, message):
            yield machines.gathered(wanted, tell)
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _connecting(message: Callable[[str], str]) -> Iterator[None]:
    """Import Tune while the block starts or joins Ray, and keep the handler of SIGTERM.

    Whatever the block raises becomes a UsageError, whose text `message` makes from the reason.
    """
    terminate = signal.getsignal(signal.SIGTERM)  # Ray replaces it with a handler that ends the process at once
    importing = threading.Thread(target=import_module, args=("ray.tune",), daemon=True)
    importing.start()  # takes seconds, in which Ray can start
    try:
        yield
    except SystemExit as ended:  # by Ray's handler
        if callable(terminate):
            terminate(signal.SIGTERM, None)
        raise KeyboardInterrupt from ended
    except Exception as error:  # Ray also raises plain ones, say when its own processes don't start in time
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UsageError(message(" ".join(lines if lines[0].startswith(presence.VERSIONS) else lines[:1]))) from error
    else:
        importing.join()
    finally:
        importing.join(STUCK_SECONDS)  # (https://github.com/python/cpython/issues/74174)
        signal.signal(signal.SIGTERM, terminate)


def _start(**how: Any) -> None:
    """Start Ray, and try again if that fails: Ray gives its helpers 15 s to be ready, too little on a busy machine.

    The second attempt starts all helpers: another version of Ray may need those that `_few_helpers` leaves out.
    """
    import ray

    try:
        with _few_helpers():
            ray.init("local", **how)
    except Exception:
        ray.shutdown()
        ray.init("local", **how)


@contextlib.contextmanager
def _few_helpers() -> Iterator[None]:
    """Keep Ray from starting processes that nothing here uses.

    They are the dashboard's server, which Ray starts for usage statistics even without a dashboard, the autoscaler, and
    the process that would bring the output of workers to the driver. Starting them keeps both cores busy for seconds,
    for two of which Ray waits. Ray has no switch for them.
    """
    from ray._private import ray_constants, services
    from ray._private.node import Node
    from ray.experimental.internal_kv import _internal_kv_put

    def no_server(*of: Any, **how: Any) -> tuple[str, None]:
        """Return no address and no process.

        The address that is stored keeps Ray's agent, which has events for the server, from looking for it every second.
        """
        _internal_kv_put(ray_constants.DASHBOARD_ADDRESS, "localhost:0", namespace=ray_constants.KV_NAMESPACE_DASHBOARD)
        return "", None

    with (
        mock.patch.object(services, "start_api_server", no_server),
        mock.patch.object(Node, "start_monitor"),
        mock.patch.object(Node, "start_log_monitor"),
    ):
        yield


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Put the temporary files of processes started in the block into `folder`: a killed one can't remove its own."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["TMPDIR"]
        if before is not None:
            os.environ["TMPDIR"] = before


def _make_token() -> None:
    """Make the token without which nobody gets into our Ray, if there is none: Ray's own would be readable by all.

    Where no home folder can hold it, as in another user's container, it goes into the environment.
    """
    file = Path(os.path.expanduser("~"), ".ray", "auth_token")
    try:
        file.parent.mkdir(exist_ok=True)
        with (
            contextlib.suppress(FileExistsError),
            open(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as made,
        ):
            made.write(secrets.token_hex(32))
        file.chmod(0o600)
    except OSError:
        if not os.access(file, os.R_OK) and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _no_start(reason: str) -> str:
    return (
        f"Ray does not start on this machine: {reason.rstrip('.')}; if other programs keep it busy, run the same "
        "command again when they have ended"
    )
