"""Which machines of a cluster measure, without a cluster: what is admitted, what may still come, what is told."""

import dataclasses
import itertools
import signal
import socket
import sys
import threading
from types import SimpleNamespace

import pytest
import ray
import ray.util.placement_group
from samples import LAPTOP

from rresnet.cell import UsageError
from rresnet.runner import cluster, machines, presence
from rresnet.runner.layout import Layout
from rresnet.runner.machines import Wanted

HEAD = {"CPU": 0.0, "memory": 1e9}
SMALL = {"CPU": 2.0}
A100 = {"CPU": 96.0, "GPU": 8.0, "accelerator_type:A100": 1.0}


@pytest.mark.parametrize(
    ("wanted", "admitted"),
    [
        (Wanted(), [SMALL, A100]),
        (Wanted(gpu=True), [A100]),
        (Wanted(accelerator_type="A100"), [A100]),
        (Wanted(accelerator_type="H100"), []),
    ],
)
def test_the_head_that_offers_no_cpu_never_measures_and_the_others_by_what_is_wanted(wanted, admitted):
    assert [one for one in (HEAD, SMALL, A100) if wanted.admits(one)] == admitted


def test_the_node_types_that_ray_up_may_start_stand_in_its_file_on_the_head(tmp_path):
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(
        "available_node_types:\n  head: {resources: {CPU: 0}, max_workers: 0}\n"
        "  a100: {resources: {CPU: 96, GPU: 8}, max_workers: 2}\n"
    )
    assert machines.startable(file) == [{"CPU": 96, "GPU": 8}]
    assert machines.startable(tmp_path / "none") == []
    file.write_text("[not, a, mapping")
    assert machines.startable(file) == []


@pytest.mark.parametrize(
    ("alone", "given_back"),
    [
        (False, {"group here", "over both"}),
        (True, {"group here", "over both", "group there", "not placed"}),
    ],
)
def test_what_ended_trials_hold_of_a_machine_is_given_back_and_nothing_of_another_machines_lane(
    alone, given_back, monkeypatch
):
    cpus = {"CPU": 1.0}
    groups = {  # bundles, nodes, state; our job is 0100
        "group here": ([cpus, cpus], ["here", "here"], "CREATED"),
        "over both": ([cpus, cpus], ["there", "here"], "CREATED"),
        "group there": ([cpus, cpus], ["there", "there"], "CREATED"),
        "not placed": ([cpus], [""], "PENDING"),
        "ended": ([cpus], ["here"], "REMOVED"),
    }
    identity = {name: f"{number:02x}" + "0100" for number, name in enumerate(groups)}
    table = {
        identity[name]: {
            "state": state,
            "bundles": dict(enumerate(bundles)),
            "bundles_to_node_id": dict(enumerate(nodes)),
        }
        for name, (bundles, nodes, state) in groups.items()
    }
    table["ff0200"] = {"state": "CREATED", "bundles": {0: cpus}, "bundles_to_node_id": {0: "here"}}  # another job's
    removed = []
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "0100"))
    monkeypatch.setattr(ray, "PlacementGroupID", bytes.hex)
    placements = sys.modules["ray.util.placement_group"]  # a function of that name hides it
    monkeypatch.setattr(placements, "PlacementGroup", lambda found: found)
    monkeypatch.setattr(placements, "placement_group_table", lambda: table)
    monkeypatch.setattr(placements, "remove_placement_group", removed.append)
    machines.Machine(node_id="here", hardware=LAPTOP).release(alone=alone)
    assert set(removed) == {identity[name] for name in given_back}


@pytest.mark.parametrize(
    ("groups", "held"),
    [
        ([], {"CPU": 8.0, "GPU": 2.0}),
        ([("cpu", "hhhh", 2)], {"GPU": 2.0}),
        ([("cpu", "hht", 2)], {"CPU": 4.0, "GPU": 2.0}),  # one of the workers is elsewhere
        ([("gpu", "h", 3)], {"CPU": 5.0, "GPU": 1.0}),
        ([("gpu", "hh", 4)], {"GPU": 0.01}),  # shared with a worker
        ([("cpu", "hh", 4), ("gpu", "hh", 0)], {"GPU": 0.01}),
        ([("cpu", "tt", 4)], {"CPU": 8.0, "GPU": 2.0}),
    ],
)
def test_a_trial_process_holds_what_its_workers_leave_of_the_machine(groups, held):
    there = machines.Machine(node_id="h", hardware=dataclasses.replace(LAPTOP, gpu_count=2))
    those = [Layout(device=device, nodes=tuple(nodes), cores=cores) for device, nodes, cores in groups]
    assert there.left_by(those).bundles == [held]


def test_a_trial_process_that_is_left_nothing_still_has_its_place():
    there = machines.Machine(node_id="h", hardware=LAPTOP)
    found = there.left_by([Layout(device="cpu", nodes=("h",) * 8, cores=1)])
    assert found.bundles == [{"memory": 1.0}]
    assert found.strategy == "PACK"


def test_a_machine_with_fewer_cores_than_its_workers_would_take_holds_no_negative_number_of_them():
    there = machines.Machine(node_id="h", hardware=LAPTOP)
    assert there.left_by([Layout(device="cpu", nodes=("h",) * 16, cores=1)]).bundles == [{"memory": 1.0}]


@pytest.mark.parametrize(("alive", "asks"), [(True, 3), (False, 0)])
def test_machines_are_waited_for_while_they_are_there_and_then_let_go(alive, asks, monkeypatch):
    answers, asked, let_go = iter([False] * 3 + [True]), [], []
    held = SimpleNamespace(wait=lambda seconds: next(answers))
    placements = sys.modules["ray.util.placement_group"]
    monkeypatch.setattr(
        placements, "placement_group", lambda bundles, bundle_label_selector: asked.append(bundles) or held
    )
    monkeypatch.setattr(placements, "remove_placement_group", let_go.append)
    monkeypatch.setattr(machines.Machine, "alive", lambda self: alive)
    clock = itertools.count(0, 20)  # seconds
    monkeypatch.setattr(machines, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    checks, told = [], []
    two = [machines.Machine(node_id=name, hardware=LAPTOP) for name in "ab"]
    machines.wait_until_free(two, lambda: checks.append("looked"), told.append)
    assert (asked, let_go, len(checks)) == ([[{"CPU": 8.0}] * 2], [held], asks)
    once = ["still waiting until all of laptop, laptop is free: other work on the cluster holds a part"]
    assert told == (once if alive else [])


class FakeRay:
    """A cluster whose nodes come when they were asked for and some seconds have passed."""

    def __init__(self, monkeypatch, there, coming=(), after=3, types=()):
        self.nodes_now, self.coming, self.after, self.asked = list(there), list(coming), after, []
        self.clock = itertools.count()
        monkeypatch.setattr(machines, "startable", lambda: list(types))
        placements = sys.modules["ray.util.placement_group"]
        monkeypatch.setattr(placements, "placement_group", lambda *of, **how: self.asked.append((*of, how)) or "asked")
        monkeypatch.setattr(placements, "remove_placement_group", self.asked.append)
        monkeypatch.setattr(machines, "_probed", lambda node, tell: node["NodeID"])
        monkeypatch.setattr(machines, "time", SimpleNamespace(monotonic=lambda: next(self.clock), sleep=self.sleep))
        monkeypatch.setattr("ray.nodes", self.nodes)
        monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})

    def sleep(self, seconds):
        self.after -= 1
        if self.after == 0:
            self.nodes_now += self.coming

    def nodes(self):
        return [{"NodeID": str(i), "Alive": True, "Resources": one} for i, one in enumerate(self.nodes_now)]


def test_machines_that_are_there_measure_the_most_able_first(monkeypatch):
    fake, told = FakeRay(monkeypatch, [HEAD, SMALL, A100, SMALL]), []
    assert machines.gathered(Wanted(), told.append) == ("2", "1", "3")
    assert machines.gathered(Wanted(count=2), told.append) == ("2", "1")
    assert (told, fake.asked) == ([], [])


def test_a_machine_that_can_not_say_what_it_is_is_told_and_left_out(monkeypatch):
    fake, told = FakeRay(monkeypatch, [HEAD, SMALL, A100, SMALL]), []
    monkeypatch.setattr(machines, "_probed", lambda node, tell: node["NodeID"] if node["NodeID"] != "2" else None)
    assert machines.gathered(Wanted(), told.append) == ("1", "3")
    assert machines.gathered(Wanted(count=1), told.append) == ("1",)
    with pytest.raises(UsageError, match=r"2 of 3 machines with a CPU can measure, .* the same rresnet"):
        machines.gathered(Wanted(count=3), told.append)
    assert fake.asked == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ray.exceptions.GetTimeoutError("Get timed out"), "no answer within 120 s"),
        (ray.exceptions.RaySystemError("it failed to import\nModuleNotFoundError: no rresnet"), "ModuleNotFoundError"),
    ],
)
def test_why_a_machine_does_not_measure_is_told(error, reason, monkeypatch):
    def get(asked, timeout):
        raise error

    asked = SimpleNamespace(options=lambda **how: SimpleNamespace(remote=lambda: None))
    monkeypatch.setattr(ray, "remote", lambda function: asked)
    monkeypatch.setattr(ray, "get", get)
    told = []
    assert machines._probed({"NodeID": "0" * 56, "NodeManagerHostname": "far"}, told.append) is None
    assert len(told) == 1
    assert told[0].startswith(f"far does not measure: {reason}")


def test_machines_that_the_autoscaler_may_start_are_asked_for_waited_for_and_let_go(monkeypatch):
    fake, told = FakeRay(monkeypatch, [HEAD], coming=[A100], types=[HEAD, A100]), []
    assert machines.gathered(Wanted(accelerator_type="A100"), told.append) == ("1",)
    bundle = {"CPU": 1.0, "GPU": 1.0, "accelerator_type:A100": 0.001}
    assert fake.asked == [([bundle], {"strategy": "STRICT_SPREAD"}), "asked"]
    assert told == ["waiting for 1 machine with a A100, at most 900 s (--wait-seconds): asked the cluster's autoscaler"]


def test_what_nothing_would_start_is_told_at_once(monkeypatch):
    fake = FakeRay(monkeypatch, [SMALL])
    with pytest.raises(UsageError, match=r"has 0 of 1 machine with a GPU \(2 CPUs, 0 GPUs seen\).*drop --device gpu"):
        machines.gathered(Wanted(gpu=True), print)
    assert fake.asked == []


def test_a_machine_that_does_not_come_in_time_is_told_and_no_longer_asked_for(monkeypatch):
    fake = FakeRay(monkeypatch, [SMALL], types=[A100])
    with pytest.raises(UsageError, match="after 20 s the Ray cluster has 0 of 2 machines with a GPU"):
        machines.gathered(Wanted(gpu=True, count=2, wait_seconds=20.0), print)
    assert fake.asked == [([{"CPU": 1.0, "GPU": 1.0}] * 2, {"strategy": "STRICT_SPREAD"}), "asked"]


@pytest.fixture
def server(monkeypatch):
    """An address where nothing is said, unless the test does so over the socket that listens."""
    monkeypatch.setattr(presence, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening, "127.0.0.1:{1}".format(*listening.getsockname())


def test_a_machine_without_bash_is_told_that_ray_needs_it(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="with bash, which is not in PATH"), cluster.connect(None, LAPTOP):
        pass


def test_an_interrupt_while_ray_starts_does_not_wait_for_an_import_that_may_never_end(monkeypatch):
    never, ended = threading.Event(), []
    monkeypatch.setattr(cluster, "import_module", lambda name: ended.append(never.wait(60)))
    monkeypatch.setattr(cluster, "STUCK_SECONDS", 0.1)
    with pytest.raises(KeyboardInterrupt), cluster._connecting(str):
        raise KeyboardInterrupt
    assert ended == []
    never.set()


def test_a_sigterm_that_rays_handler_takes_while_it_starts_is_handed_to_ours(monkeypatch):
    handed, before = [], signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cluster, "import_module", lambda name: None)

    def start():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)

    try:
        signal.signal(signal.SIGTERM, lambda number, frame: handed.append(number))
        ours = signal.getsignal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), cluster._connecting(str):
            start()
        assert handed == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_takes_connections_and_never_answers_is_told_and_ends_in_an_error(server):
    told = []
    silent = cluster.connect(server[1], LAPTOP, Wanted(wait_seconds=0.1), told.append)
    with pytest.raises(UsageError, match=r"no Ray .* \(it accepts connections, but does not answer\)"), silent:
        pass
    assert told == [f"waiting up to 0.1 s more for an answer from {server[1]}"]


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://127.0.0.1:8265", r"RAY_ADDRESS .* must be auto or host:port .*, got http://127.0.0.1:8265"),
        ("local", "RAY_ADDRESS .* must be auto or host:port .*, got local"),  # Ray would start one of its own
        ("127.0.0.1:1", "no Ray cluster answers at RAY_ADDRESS .* 127.0.0.1:1 "),  # Ray would try for minutes
    ],
)
def test_an_address_from_the_environment_is_checked_as_the_flags_and_named(address, told, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UsageError, match=told), cluster.connect("auto", LAPTOP):
        pass


def test_a_ray_that_is_shut_down_while_somebody_looks_is_not_told_as_gone(monkeypatch):
    looks, is_left, exits = threading.Event(), threading.Event(), []
    monkeypatch.setattr(presence, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(presence.os, "_exit", exits.append)

    def there():
        looks.set()
        is_left.wait()
        return False

    with presence.watched(there, 0.0, "it is gone"):
        looks.wait()
        (watch,) = (thread for thread in threading.enumerate() if thread.name == "rresnet-watch")
    is_left.set()
    watch.join()
    assert exits == []


@pytest.mark.parametrize(
    ("answer", "is_ray"),
    [(b"HTTP/1.1 400 Bad Request", False), (b"SSH-2.0-OpenSSH", False), (bytes([0, 0, 18, 4, 0]), True), (b"", True)],
)
def test_what_answers_otherwise_than_ray_is_told_and_who_closes_is_left_to_ray(server, answer, is_ray):
    def say():
        with server[0].accept()[0] as line:
            line.recv(100)
            line.sendall(answer)

    thread = threading.Thread(target=say)
    thread.start()
    try:
        if is_ray:
            presence.check(server[1], "--address", 5, print)
        else:
            with pytest.raises(
                UsageError, match=r"\(what answers there is not Ray\): start one with `ray start --head`"
            ):
                presence.check(server[1], "--address", 5, print)
    finally:
        thread.join()
