"""The machines of a joined Ray cluster: which there are, which can still be started, and which of them measure."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rresnet.cell import UsageError
from rresnet.hardware import Hardware, probe
from rresnet.runner.layout import SLIVER, Layout
from rresnet.terminal import counted

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory

NODE_ID = "ray.io/node-id"  # a label that Ray gives each node
TAIL_CHARACTERS = 8000  # a hung process leaves the tracebacks of all its threads
POLL_SECONDS = 1.0
TELL_SECONDS = 30.0
PROBE_TIMEOUT_SECONDS = 120.0  # for a machine to say what it is


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The machines that are to measure."""

    gpu: bool = False  # they must have one
    accelerator_type: str | None = None  # Ray's name of it, for example A100
    count: int | None = None  # how many of them; None: all there are
    wait_seconds: float = 900.0  # how long to wait for those that an autoscaler still has to start

    def admits(self, resources: Mapping[str, float]) -> bool:
        """Whether a machine with these Ray resources qualifies."""
        kind = self.accelerator_type
        fits = resources.get("CPU", 0) >= 1 and (not self.gpu or resources.get("GPU", 0) >= 1)
        return fits and (kind is None or resources.get(f"accelerator_type:{kind}", 0) > 0)

    def __str__(self) -> str:
        """The machines in words."""
        kind = self.accelerator_type or ("GPU" if self.gpu else "CPU")
        return f"{counted(self.count or 1, 'machine')} with a {kind}"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine that measures."""

    node_id: str
    hardware: Hardware  # as far as Ray may use it
    logs: Path | None = None  # folder of what its trial processes print, if it is on this machine

    @property
    def whole(self) -> dict[str, float]:
        """The whole machine, as Ray resources."""
        gpus = {"GPU": float(self.hardware.gpu_count)} if self.hardware.gpu_count else {}
        return {"CPU": float(self.hardware.cpu_count), **gpus}

    def left_by(self, groups: Iterable[Layout]) -> "PlacementGroupFactory":
        """What a trial process holds: all that its worker groups don't, so that no two trials ever share the machine.

        If workers take all GPUs, the trial process shares one of theirs.
        """
        from ray.tune import PlacementGroupFactory

        taken = [those for those in groups for node in those.nodes if node == self.node_id]
        cpus = max(0.0, self.whole["CPU"] - sum(those.cores for those in taken))
        gpus = max(0, self.hardware.gpu_count - sum(those.device == "gpu" for those in taken))
        bundle = {"CPU": cpus, "GPU": float(gpus) or (SLIVER if self.hardware.gpu_count else 0.0)}
        held = {kind: amount for kind, amount in bundle.items() if amount} or {"memory": 1.0}  # one byte: not nothing
        return PlacementGroupFactory([held], bundle_label_selector=[{NODE_ID: self.node_id}])

    def alive(self) -> bool:
        """Whether the cluster still has it."""
        import ray

        return any(node["Alive"] for node in ray.nodes() if node["NodeID"] == self.node_id)

    def is_lost(self, within: float) -> bool:
        """Whether the machine is gone, when Ray has only reported that one of its processes is.

        It is not if a task sent to it answers. Ray itself may take half a minute to notice that a machine has silently
        gone; one that has not answered within `within` seconds is taken for lost. The machine of a Ray of our own never
        is: we would be gone, too.
        """
        if self.logs:
            return False
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(self.node_id, soft=False)
        answer = ray.remote(lambda: None).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote()
        deadline = time.monotonic() + within
        while self.alive() and time.monotonic() < deadline:
            if ray.wait([answer], timeout=POLL_SECONDS / 4)[0]:
                with contextlib.suppress(ray.exceptions.RayError):  # it went while the task ran
                    ray.get(answer)
                    return False
                time.sleep(POLL_SECONDS / 4)
        return True

    def release(self, *, alone: bool) -> None:
        """Free what our ended trials still hold here: a killed process's worker groups leak their placement groups.

        Args:
            alone: whether we measure on no other machine, so that placement groups without a node are this one's, too.
        """
        import ray
        from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

        job = ray.get_runtime_context().get_job_id()
        for identity, group in placement_group_table().items():
            ours = identity.endswith(job) and group["state"] != "REMOVED"  # its maker's job is the id's last part
            if ours and (alone or self.node_id in group["bundles_to_node_id"].values()):
                remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(identity))))

    def kills_for_memory(self) -> int:
        """How many processes the kernel has killed for want of memory since it started; 0 where that is not known."""
        with contextlib.suppress(OSError):
            counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines()) if self.logs else {}
            return int(counts.get("oom_kill", 0))
        return 0

    def output_tail(self, process_id: int | None) -> str | None:
        """The end of what a trial process has printed; None where that is not known."""
        files = sorted(self.logs.glob(f"worker-*-{process_id}.*"), reverse=True) if self.logs and process_id else []
        text = "".join(file.read_text(errors="replace") for file in files)
        return text[-TAIL_CHARACTERS:] or None


def wait_until_free(those: Sequence[Machine], check: Callable[[], None], tell: Callable[[str], None]) -> None:
    """Wait until the machines are entirely free at once, or one of them is gone; `check` is called meanwhile.

    Tune itself waits for the resources of a trial process, and no trial's clock runs meanwhile. A worker group that
    finds no room gives up.
    """
    deadline = time.monotonic() + TELL_SECONDS
    from ray.util.placement_group import placement_group, remove_placement_group

    selectors = [{NODE_ID: machine.node_id} for machine in those]
    held = placement_group([machine.whole for machine in those], bundle_label_selector=selectors)
    try:
        while all(machine.alive() for machine in those) and not held.wait(POLL_SECONDS):
            check()
            if time.monotonic() > deadline:
                deadline = math.inf
                names = ", ".join(machine.hardware.hostname for machine in those)
                tell(f"still waiting until all of {names} is free: other work on the cluster holds a part")
    finally:
        remove_placement_group(held)


def gathered(wanted: Wanted, tell: Callable[[str], None]) -> tuple[Machine, ...]:
    """Return the wanted machines of the joined cluster, the most capable first; ask an autoscaler for missing ones.

    Raises UsageError if there are too few and no more can come, or if they do not come in time.
    """
    nodes = _nodes(wanted)
    need = wanted.count or 1
    if len(nodes) < need:
        _check_can_come(wanted, len(nodes))
        nodes = _wait(wanted, need, tell)
    nodes.sort(key=lambda node: (-node["Resources"].get("GPU", 0), -node["Resources"]["CPU"], node["NodeID"]))
    able = (machine for node in nodes if (machine := _probed(node, tell)))
    found = tuple(itertools.islice(able, wanted.count))
    if len(found) < need:
        raise UsageError(
            f"{len(found)} of {wanted} can measure, for the reasons above: each needs the same rresnet and Ray as here"
        )
    return found


def _nodes(wanted: Wanted) -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"] and wanted.admits(node["Resources"])]


def startable(file: Path | None = None) -> list[dict[str, float]]:
    """Resources of the node types that `ray up`'s autoscaler may start, as its file on the head node names them."""
    import yaml

    path = file or Path.home() / "ray_bootstrap_config.yaml"
    try:
        types = yaml.safe_load(path.read_text())["available_node_types"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return []
    return [kind.get("resources", {}) for kind in types.values() if kind.get("max_workers", 1)]


def _check_can_come(wanted: Wanted, there: int) -> None:
    """Raise UsageError unless missing machines may still start; whoever gives a count knows that they will come."""
    import ray

    if wanted.count or any(wanted.admits(resources) for resources in startable()):
        return
    seen = ray.cluster_resources()
    what = f"{seen.get('CPU', 0):g} CPUs, {seen.get('GPU', 0):g} GPUs"
    raise UsageError(
        f"this Ray cluster has {there} of {wanted} ({what} seen), and nothing that would start more: "
        + ("drop --accelerator-type, " if wanted.accelerator_type else "drop --device gpu, " if wanted.gpu else "")
        + "or add a machine with `ray start --address=...`"
    )


def _wait(wanted: Wanted, need: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Wait for the nodes, and have an autoscaler start them: for a placement group with a place on each.

    A group is for different machines, where resources that are asked for by themselves may all fit on one; and Ray ends
    it with this process, however that ends, so that no machine is kept for nobody.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    kind = {f"accelerator_type:{wanted.accelerator_type}": 0.001} if wanted.accelerator_type else {}
    bundle = {"CPU": 1.0, **({"GPU": 1.0} if wanted.gpu or kind else {}), **kind}
    asked = placement_group([bundle] * need, strategy="STRICT_SPREAD")
    try:
        began = last_told = time.monotonic()
        tell(
            f"waiting for {wanted}, at most {wanted.wait_seconds:g} s (--wait-seconds): asked the cluster's autoscaler"
        )
        while len(nodes := _nodes(wanted)) < need:
            now = time.monotonic()
            if now - began > wanted.wait_seconds:
                raise UsageError(
                    f"after {wanted.wait_seconds:g} s the Ray cluster has {len(nodes)} of {wanted}: see `ray status` "
                    "for what the autoscaler says, raise --wait-seconds, or lower --machines"
                )
            if now - last_told > TELL_SECONDS:
                last_told = now
                tell(f"still waiting after {now - began:.0f} s: {len(nodes)} of {wanted}")
            time.sleep(POLL_SECONDS)
        return nodes
    finally:
        remove_placement_group(asked)


def _probed(node: Mapping[str, Any], tell: Callable[[str], None]) -> Machine | None:
    """The machine behind a node, as far as Ray may use it; None, and told why, if it can't say what it is."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    asked = ray.remote(lambda: probe(hidden=True)).options(num_cpus=0, scheduling_strategy=there).remote()
    try:
        hardware: Hardware = ray.get(asked, timeout=PROBE_TIMEOUT_SECONDS)
    except ray.exceptions.RayError as error:  # rresnet is not installed there, or the machine hangs or has just gone
        *_, reason = (str(error).strip() or type(error).__name__).splitlines()
        if isinstance(error, ray.exceptions.GetTimeoutError):
            reason = f"no answer within {PROBE_TIMEOUT_SECONDS:g} s"
        tell(f"{node['NodeManagerHostname']} does not measure: {reason}")
        return None
    cpus, gpus = int(node["Resources"]["CPU"]), int(node["Resources"].get("GPU", 0))
    usable = replace(
        hardware,
        cpu_count=min(cpus, hardware.cpu_count),
        cpu_cores=min(cpus, hardware.cpu_cores),
        gpu_count=min(gpus, hardware.gpu_count),
    )
    return Machine(node_id=node["NodeID"], hardware=usable)


def busy(machines: tuple[Machine, ...]) -> str | None:
    """What other work on the cluster holds of what the machines need, or None when all is free."""
    import ray

    free = ray.available_resources()
    needed = {
        "CPU": sum(machine.hardware.cpu_count for machine in machines),
        "GPU": sum(machine.hardware.gpu_count for machine in machines),
    }
    taken = [f"{n:g} {kind}s" for kind, n in needed.items() if free.get(kind, 0) < n]
    return f"waiting until {' and '.join(taken)} are free: other work on the cluster holds them" if taken else None
