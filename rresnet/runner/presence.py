"""Whether a Ray is there: at an address, before it is joined; and as long as it is used."""

import contextlib
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import psutil

from rresnet.cell import UsageError

CONNECT_SECONDS = 5.0
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # of gRPC, which Ray speaks
_SETTINGS = b"\x04"  # the fourth byte of its answer
VERSIONS = "Version mismatch"  # begins what Ray says of a cluster with another Ray or Python
WATCH_SECONDS = 1.0  # between checks that Ray is still there; when its raylet has died, it ends this process in 3 s


def check(address: str, source: str, patience: float, tell: Callable[[str], None]) -> None:
    """Check first that something listens there and speaks Ray's protocol: Ray itself would go on trying for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in host:  # Ray Client (ray://) can't carry Tune's callbacks
        raise UsageError(f"{source} must be auto or host:port (Ray's own port is 6379), got {address}")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS) as line:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                _check_answer(
                    line, patience, lambda: tell(f"waiting up to {patience:g} s more for an answer from {address}")
                )
    except (OSError, OverflowError) as error:
        raise UsageError(missing(f"{source} {address}", str(error))) from error


def _check_answer(line: socket.socket, patience: float, tell: Callable[[], None]) -> None:
    """Raise OSError if nothing answers, or if what answers is not Ray."""
    line.sendall(_HELLO)
    if not select.select([line], [], [], CONNECT_SECONDS)[0]:
        tell()
        if not select.select([line], [], [], patience)[0]:
            raise OSError("it accepts connections, but does not answer")
    answer = line.recv(4)
    if answer and answer[3:] != _SETTINGS:
        raise OSError("what answers there is not Ray")


def missing(where: str, reason: str) -> str:
    """What to tell of a cluster that can't be joined."""
    if reason.startswith(VERSIONS):
        return (
            f"the Ray cluster at {where} has other versions than this environment ({reason}): "
            "install the same Ray and Python here as there"
        )
    return (
        f"no Ray cluster answers at {where} ({reason}): "
        "start one with `ray start --head`, or drop --address to measure on this machine"
    )


def refused(where: str, reason: str) -> str:
    """What to tell of a cluster that answers and can't be joined."""
    if reason.startswith(VERSIONS):
        return missing(where, reason)
    return (
        f"the Ray cluster at {where} answers, but can't be joined ({reason}): if it was started with a token, as Ray "
        "does by default, have its ~/.ray/auth_token here and set RAY_AUTH_MODE=token"
    )


@contextlib.contextmanager
def watched(there: Callable[[], bool], patience: float, message: str) -> Iterator[None]:
    """End this process with a message once Ray has not been `there` for so many seconds: Ray would end it without one.

    By then the driver waits inside Ray, where no exception reaches it. The rows that arrived are written.
    """
    left = threading.Event()

    def watch() -> None:
        seen = time.monotonic()
        while not left.wait(WATCH_SECONDS):
            if there():
                seen = time.monotonic()
            elif time.monotonic() - seen > patience and not left.is_set():  # else it has been shut down in the meantime
                print(f"\nerror: {message}", file=sys.__stderr__, flush=True)
                os._exit(2)

    threading.Thread(target=watch, name="rresnet-watch", daemon=True).start()
    try:
        yield
    finally:
        left.set()


def answers(address: str) -> bool:
    """Whether something at the address, host:port, takes a connection."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        return True
    return False


def alive(process: psutil.Process) -> bool:
    """Whether a child lives; one that has died is a zombie until Ray looks."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False
