"""The command of an experiment: flags in, an exit code out that says how it went."""

import errno
import math
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection
from types import FrameType

from rresnet import grid, usage
from rresnet.cell import UsageError
from rresnet.config import Settings
from rresnet.experiments import experiment, planning, running
from rresnet.usage import INTERRUPTED, OK, SOME_FAILED, TERMINATED, WRONG_REQUEST, complain

PATIENCE_SECONDS = 10.0  # for which more signals mean the same as the first: what it set going is to end
ASKED_SECONDS = 2.0  # after it was last asked for, a signal waits as long to be asked for again
PLAIN_WIDTH = 140  # columns of output that goes to a file or a pipe


def main(
    name: str,
    description: str,
    *,
    defaults: Settings | None = None,
    cells: planning.Cells = grid.cells,
    show: running.Show | None = None,
    trainable: Callable[..., None] | None = None,
    decided: Collection[str] = (),
) -> int:
    """Run an experiment from the command line and return the exit code.

    `description` is what `--help` says: the experiment's docstring. `defaults` are the settings before any flag, and
    `decided` the flags that the experiment decides itself. The other arguments are the fields of `running.Experiment`.
    """
    what = running.Experiment(name=name, cells=cells, show=show, trainable=trainable)
    stop = _Stop()
    try:
        with usage.prepared():
            # So that --model finds the user's own module; Ray's workers look there anyway.
            sys.path.append(_working_folder())
            settings = usage.settings(defaults or Settings(), name=name, description=description, decided=decided)
            if not sys.stdout.isatty():
                os.environ.setdefault("COLUMNS", str(PLAIN_WIDTH))
            # It keeps the stdout of this moment: while Ray works, stdout is redirected to catch Ray's own output.
            console = _Console(file=sys.stdout)
            return OK if experiment.run(what, settings, console, stop.asked) else SOME_FAILED
    except UsageError as error:
        complain(f"error: {error}", "red")
        return WRONG_REQUEST
    except experiment.StoppedAfterAll as stopped:
        if stop.signal is None:  # the reader has gone, and missed only the end of the answer
            return OK if stopped.fine else SOME_FAILED
        complain(f"\nStopped; the run is complete: rresnet report {shlex.quote(stopped.results_dir)} shows it")
        return INTERRUPTED if stop.signal == signal.SIGINT else TERMINATED
    except KeyboardInterrupt as stopped:
        if "--dry-run" not in sys.argv:  # which has measured nothing: its reader has seen enough (`| head`)
            complain(f"\nStopped; every trial that ended is kept. To continue: {_again()}")
        if isinstance(stopped.__cause__, UsageError):  # it can't print
            return WRONG_REQUEST
        return INTERRUPTED if stop.signal in (None, signal.SIGINT) else TERMINATED
    finally:
        stop.done()


class _Console(usage.Output):
    """A console that stops the run, as Ctrl-C does, when nobody reads it (`| head`) or it can't be written to.

    Tune would report any other error as one of its own.
    """

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except UsageError as error:
            self.quiet = True
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EIO:
                return  # its terminal has gone, and whoever took the command's SIGHUP from it wants it to go on
            complain(f"error: {error}", "red")
            raise KeyboardInterrupt from error

    def on_broken_pipe(self) -> None:
        """Stop the run instead of exiting with rich's code, which here means that a trial failed."""
        self.quiet = True
        raise KeyboardInterrupt


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        raise UsageError(f"the working folder is gone ({error.strerror}): change to one that is there") from error


def _again() -> str:
    """The command that continues, from this folder, what this one has begun."""
    words = [word for word in sys.argv if word != "--fresh"]  # which would start over
    python = "python"
    if shutil.which("python") != sys.executable:  # `make` runs one that the shell may not find
        python = shlex.quote(min(os.path.relpath(sys.executable), sys.executable, key=len))
    return f"{python} {shlex.join(words)}"


class _Stop:
    """Ctrl-C, SIGTERM or a closing terminal: whoever asks for them stops; if nobody does, KeyboardInterrupt is raised.

    Raised in the midst of what the main thread does, it may leave a lock of Python's own library held for good, that of
    a thread pool for one (https://github.com/python/cpython/issues/74174); the end of the run would wait for it for
    ever. So nothing is raised while it is being asked, as at each of Tune's events. Nor would it always arrive there:
    code in between may swallow it.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._asked = self._raised = -math.inf  # when last, by time.monotonic
        self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]  # noted now: later, one that is gone does not say so
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, self._handle)

    def asked(self) -> bool:
        """Whether a signal came; then whoever asks stops."""
        self._asked = time.monotonic()
        if self.signal is None:
            return False
        if math.isinf(self._raised):
            self._raised = self._asked
        self.done()
        return True

    def done(self) -> None:
        """Take back the alarm that a signal has set."""
        if self.signal is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)  # a shell and the system may both send it
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for terminal in self._terminals:  # writing to it would fail
                os.dup2(nowhere, terminal)
        if time.monotonic() - self._asked < ASKED_SECONDS:
            signal.setitimer(signal.ITIMER_REAL, ASKED_SECONDS)  # a lock could be held here, too: a timer needs none
        elif time.monotonic() - self._raised > PATIENCE_SECONDS:
            self._raised = time.monotonic()
            raise KeyboardInterrupt
