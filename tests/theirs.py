"""Real Ray processes of a user, on ports and in folders of their own."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

RAY = str(Path(sys.executable).parent / "ray")
TOKEN = "from rresnet.runner import cluster; cluster._make_token()"


def environment(home):
    """For commands that are to see no other Ray than those of `home`."""
    apart = {"HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    return {**{name: value for name, value in os.environ.items() if not name.startswith("RAY_")}, **apart}


def in_home(home, *line):
    return subprocess.run(line, env=environment(home), text=True, capture_output=True, timeout=600)


class Theirs:
    """A user's own Ray, on ports and in a folder of its own; `flags` are `ray start`'s."""

    def __init__(self, home, *flags):
        self.environment = environment(home)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.line = [RAY, "start", "--head", f"--port={port}", "--node-ip-address=127.0.0.1", *flags]
        self.line += [
            "--include-dashboard=false",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--disable-usage-stats",
        ]

    def __enter__(self):
        with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as self.folder:
            pass  # short, for it holds sockets
        self.environment["RRESNET_TEST_RAY"] = self.folder
        subprocess.run([sys.executable, "-c", TOKEN], env=self.environment, check=True)
        line = [*self.line, f"--temp-dir={self.folder}"]
        for _ in range(5):  # on a busy machine Ray may find that it takes too long, and gives up
            started = subprocess.run(line, env=self.environment, capture_output=True, text=True, timeout=300)
            self.processes = self.marked()
            if started.returncode == 0:
                return self
            self.end()
        pytest.fail(started.stdout + started.stderr)

    def marked(self):
        """Its processes. Agents write a title over their environment: they are known as their raylet's children."""
        found = set()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("RRESNET_TEST_RAY") == self.folder and process.pid != os.getpid():
                    found |= {process, *process.children(recursive=True)}
        return found

    def end(self):
        for process in self.marked():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def __exit__(self, *reason):
        self.end()
        shutil.rmtree(self.folder, ignore_errors=True)
