"""Machines that are not there: each in namespaces of its own, on a network that leads nowhere, with its own sshd.

A host has its own processes, network, host name, home, /tmp, /run and /dev/shm, and sees the rest of this machine's
files. All of it hangs on one process that dies with the test process, so nothing is left behind however that ends.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
NETWORK = "10.77.0"  # of the namespaces alone
HOME = Path("/run/host")  # of root on every host
TOOLS = ("ip", "nsenter", "rsync", "setpriv", "ssh-keygen", "unshare", "/usr/sbin/sshd")

START = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd {home}/.ssh /run/checkout
mount --bind {root} /run/checkout
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /dev/shm
mkdir -p {root}
mount --bind /run/checkout {root}
sed 's|^root:.*|root:x:0:0:root:{home}:/bin/bash|' /etc/passwd > /run/passwd
echo '127.0.0.1 localhost' > /run/hosts
: > /run/nothing
mount --bind /run/passwd /etc/passwd
mount --bind /run/hosts /etc/hosts
mount --bind /run/nothing /etc/resolv.conf
hostname {name}
cat > {home}/.ssh/authorized_keys <<< '{key}'
ssh-keygen -q -t ed25519 -N '' -f /run/host_key
cat > /run/sshd_config <<'CONFIG'
Port 22
HostKey /run/host_key
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthorizedKeysFile {home}/.ssh/authorized_keys
{settings}
CONFIG
ip link set lo up
echo ready
read -r connected
{sshd}
while :; do sleep 3600 & wait $!; done
"""


def missing() -> str | None:
    """Why no hosts can be made here, or None."""
    if os.geteuid() != 0:
        return "namespaces need root"
    lacking = [tool for tool in TOOLS if not shutil.which(tool)]
    if lacking:
        return f"not installed: {', '.join(lacking)} (apt-get install iproute2 openssh-server rsync)"
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "true"], check=False)
    return "this machine lets nobody make namespaces" if tried.returncode else None


@dataclass(kw_only=True)
class Host:
    """One machine; it runs from its making until `kill`."""

    name: str
    address: str
    key: str = ""  # the public key that its sshd lets in; none: no sshd
    cpus: int | None = None  # those that Ray is to find; None: all
    core: int | None = None  # the only one it may run on
    _keeper: "subprocess.Popen[str]" = field(init=False, repr=False)
    pid: int = field(init=False)

    def __post_init__(self) -> None:
        settings = f"""SetEnv RAY_OVERRIDE_RESOURCES="{{\\"CPU\\":{self.cpus}}}" """ if self.cpus is not None else ""
        script = START.format(
            home=HOME, root=ROOT, name=self.name, key=self.key, settings=settings,
            sshd="/usr/sbin/sshd -f /run/sshd_config" if self.key else "",
        )  # fmt: skip
        pinned = ["taskset", "--cpu-list", str(self.core)] if self.core is not None else []
        spaces = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        self._keeper = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *pinned, *spaces, "bash", "-c", script],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == "ready\n", f"{self.name} did not start"
        children = Path(f"/proc/{self._keeper.pid}/task/{self._keeper.pid}/children").read_text()
        self.pid = int(children.split()[0])

    def connected(self) -> None:
        """Its network is up: let it start its sshd."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.write("connected\n")
        self._keeper.stdin.flush()

    def run(self, command: str, *, timeout: float = 300.0, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run a shell command there, as a person logged in would."""
        path = f"{ROOT / '.venv' / 'bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        environment = {"HOME": str(HOME), "PATH": path, "TERM": "dumb", "LANG": "C.UTF-8", "USER": "root"}
        inside = ["nsenter", "--target", str(self.pid), "--net", "--mount", "--pid", "--uts", "--ipc", f"--wd={ROOT}"]
        done = subprocess.run(
            [*inside, "bash", "-c", command],
            env=environment, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{self.name}: {command}\n{done.stdout}\n{done.stderr}"
        return done

    def file(self, path: str | Path) -> Path:
        """One of its files, as this process reaches it."""
        return Path(f"/proc/{self.pid}/root") / str(path).lstrip("/")

    def processes(self, containing: str) -> list[str]:
        """Command lines of its processes that contain a text; zombies have none."""
        listing = self.run("ps -ww -eo pid,args").stdout.splitlines()[1:]
        return [line for line in listing if containing in line and "ps -ww" not in line]

    def kill(self) -> None:
        """Pull the plug: every process of it ends at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._keeper.wait()
        for stream in (self._keeper.stdin, self._keeper.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@dataclass(kw_only=True)
class Network:
    """A laptop and the hosts beside it, on one bridge in the laptop's namespace."""

    laptop: Host = field(init=False)
    hosts: list[Host] = field(default_factory=list)

    def __enter__(self) -> "Network":
        self.laptop = Host(name="laptop", address=f"{NETWORK}.1")
        self.laptop.run(
            f"ip link add lan type bridge && ip link set lan up && ip addr add {self.laptop.address}/24 dev lan"
        )
        self.laptop.run("ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/rresnet")
        return self

    def __exit__(self, *exc: object) -> None:
        for host in [*self.hosts, self.laptop]:
            host.kill()

    def add(self, name: str, *, cpus: int | None = None, core: int | None = None) -> Host:
        """One more host, with an sshd that lets the laptop in."""
        number = 10 + len(self.hosts)
        key = self.laptop.file(HOME / ".ssh/rresnet.pub").read_text().strip()
        host = Host(name=name, address=f"{NETWORK}.{number}", key=key, cpus=cpus, core=core)
        self.hosts.append(host)
        cable = f"ip link add eth0 netns {host.pid} type veth peer name port{number} netns {self.laptop.pid}"
        subprocess.run(shlex.split(cable), check=True)
        self.laptop.run(f"ip link set port{number} master lan up")
        # Ray asks the system which of its addresses leads outside; this way leads to the laptop and ends there.
        host.run(
            f"ip addr add {host.address}/24 dev eth0 && ip link set eth0 up && ip route add default via {NETWORK}.1"
        )
        host.run(f"echo '{host.address} {name}' >> /etc/hosts")
        host.connected()
        self._wait_for_sshd(host)
        return host

    def _wait_for_sshd(self, host: Host) -> None:
        deadline = time.monotonic() + 20
        while self.laptop.run(f"exec 3<>/dev/tcp/{host.address}/22", check=False).returncode:
            assert time.monotonic() < deadline, f"the sshd of {host.name} does not answer"
            time.sleep(0.1)
