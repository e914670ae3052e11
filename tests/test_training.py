import gzip
import io
import itertools
import json
import time
from dataclasses import replace

import pytest
import torch
from benches import CPU, image_data, small_bench
from samples import make_cell

from rresnet.config import How
from rresnet.quality.monitor import Monitor, Usage
from rresnet.training import clocks, limits
from rresnet.training.timing import Stopwatch, steps_in
from rresnet.training.train import NonFiniteLossError, _warm_up, evaluate, train, train_epochs, visit
from rresnet.training.workbench import Workbench


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def batches(*sizes):
    return iter([(torch.empty(n),) for n in sizes])


def test_a_window_is_the_time_from_the_first_step_to_the_last():
    clock = Clock()
    watch = Stopwatch(CPU, clock)
    clock.now = 10.0
    source = batches(8, 8, 4)
    for _ in watch.window(source, 2, "warmup"):
        clock.now += 0.5
    clock.now += 100.0  # between windows: counted nowhere
    for _ in watch.window(source, 2, "measured", world=2):
        clock.now += 0.25
    assert watch.total("warmup") == (1.0, 2, 16)
    assert watch.total("measured") == (0.25, 1, 8)  # the short batch of 4 images, on each of two workers
    assert watch.windows[0].started_seconds == 10.0
    assert list(watch.window(source, 2, "measured")) == []
    assert len(watch.windows) == 2  # a window without a step is none


def test_a_window_has_at_least_one_step():
    assert [steps_in(0.5, s) for s in (2.0, 0.5, 0.2, 0.01)] == [1, 1, 2, 50]


def test_a_visit_measures_at_least_the_seconds_asked_for_and_a_later_one_warms_up_one_step():
    found = small_bench(input="resident", batch_size=4)
    first = visit(found, seconds=0.05, startup_seconds=0.1, progress=lambda rate: None)
    network = found.network
    second = visit(found, seconds=0.05, startup_seconds=0.0, progress=lambda rate: None)
    assert found.network is network  # nothing is built again
    m = first.measurement
    assert m.measured_seconds >= 0.05
    assert m.images_per_second == pytest.approx(m.measured_images / m.measured_seconds)
    assert m.epoch_seconds == pytest.approx(40 / m.images_per_second)
    assert (m.status, m.epoch_seconds_kind, m.observed_threads) == ("ok", "projected", 1)
    assert sum(w.steps for w in first.windows if w.kind == "warmup") >= 2
    assert [w.steps for w in second.windows if w.kind == "warmup"] == [1]
    assert second.measurement.first_loss == m.first_loss


def test_whole_epochs_are_measured_and_counted_truly():
    found = train_epochs(small_bench(input="resident"), epochs=2, startup_seconds=0.0, progress=lambda rate: None)
    assert found.measurement.measured_images == 80
    assert found.measurement.epoch_seconds_kind == "measured"
    assert found.measurement.epoch_seconds == pytest.approx(sum(e.seconds for e in found.epochs) / 2)
    assert [e.images for e in found.epochs] == [40, 40]
    assert found.measurement.test_accuracy == found.epochs[-1].test_accuracy
    assert found.epochs[1].train_loss < found.epochs[0].train_loss
    measured = sum(w.seconds for w in found.windows if w.kind == "measured")
    assert measured == pytest.approx(found.measurement.measured_seconds)


def test_what_the_warm_up_trained_is_no_part_of_an_epochs_losses():
    found = small_bench(input="resident")
    train_epochs(found, epochs=1, startup_seconds=0.0, progress=lambda rate: None)
    assert found.steps_trained == 5
    assert len(found.recent_losses()) == 5


def test_energy_is_the_measured_windows_share_of_what_was_watched(monkeypatch):
    used = Usage(
        seconds=20.0,
        cpu_seconds=1.0,
        busy_cpu_seconds=1.0,
        steal_cpu_seconds=0.0,
        major_faults=0,
        swapped_bytes=0,
        energy_joules=100.0,
    )
    monkeypatch.setattr(Monitor, "usage", lambda monitor: used)
    one = small_bench(input="resident")
    found = visit(one, seconds=0.05, startup_seconds=0, progress=lambda rate: None).measurement
    assert found.energy_joules == pytest.approx(100.0 * found.measured_seconds / 20.0)
    used = replace(used, energy_joules=None)
    found = visit(one, seconds=0.05, startup_seconds=0, progress=lambda rate: None).measurement
    assert found.energy_joules is None


def test_each_worker_brings_in_its_share_of_what_its_machine_used(monkeypatch):
    """Four workers on two machines, all of which read the same."""
    found = small_bench(input="resident", num_workers=4, num_nodes=2)
    found.world, found.workers = 4, "those four"
    among = {"those four": 4, None: 8}  # of eight that there are
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, group: tensor.mul_(among[group]))
    one = {"seconds": 2.0, "cpu_seconds": 1.5, "busy_cpu_seconds": 4.0, "steal_cpu_seconds": 1.0, "energy_joules": 10.0}
    used = found.over_workers(Usage(**one, major_faults=0, swapped_bytes=0, throttled_cpu_seconds=0.5))
    assert (used.cpu_seconds, used.busy_cpu_seconds, used.steal_cpu_seconds) == (6.0, 8.0, 2.0)
    assert (used.foreign_cpu_seconds, used.energy_joules, used.seconds) == (2.0, 20.0, 2.0)
    assert used.throttled_cpu_seconds == 1.0
    unknown = {**one, "busy_cpu_seconds": None, "steal_cpu_seconds": None, "energy_joules": None}
    used = found.over_workers(Usage(**unknown, major_faults=0, swapped_bytes=0))
    assert (used.cpu_seconds, used.foreign_cpu_seconds, used.steal_cpu_seconds) == (6.0, None, None)
    assert used.energy_joules is None


def test_gradients_of_several_workers_stand_where_they_are_exchanged(monkeypatch):
    wrapped = []

    def prepare_model(network, **how):
        wrapped.append(how)
        return network

    monkeypatch.setattr("ray.train.torch.prepare_model", prepare_model)
    cell = make_cell(input="resident", num_workers=2, cpu_threads=1)
    Workbench(cell=cell, data=image_data(64), device=CPU, rank=0, world=2, workers="those two")
    of_ddp = {"process_group": "those two", "gradient_as_bucket_view": True}
    assert wrapped == [{"move_to_device": False, "parallel_strategy_kwargs": of_ddp}]


def test_what_ddp_allots_in_its_second_step_is_over_when_memory_is_noted(monkeypatch):
    begun, taken = [], []
    for world in (1, 2):
        found = small_bench(input="resident")
        found.world = world
        noted = found.noting_memory

        def noting(found=found, noted=noted):
            begun.append(found.steps_trained)
            return noted()

        monkeypatch.setattr(found, "noting_memory", noting)
        monkeypatch.setattr(found, "agreed", lambda steps: steps)
        monkeypatch.setattr(found, "steps_in_window", lambda: 1)  # of a slow cell
        watch = Stopwatch(CPU)
        _warm_up(found, watch)
        taken.append([window.steps for window in watch.windows])
    assert begun == [1, 2]
    assert (taken[0][:3], taken[1][:3]) == ([1, 2, 1], [2, 2, 1])


def test_what_the_exchange_took_when_last_looked_at_is_a_part_of_what_holds_a_step_up(monkeypatch):
    found = small_bench(data=image_data(64))
    found.measured_seconds = 2000.0  # pays for the other clocks
    visit(found, seconds=0.1, startup_seconds=0, progress=lambda rate: None)
    assert found.other_clocks()["bottleneck"] != "communication"
    monkeypatch.setattr(clocks, "communication", lambda step, batch, steps: 1000.0)
    found.world = 2
    monkeypatch.setattr(found, "agreed", lambda steps: steps)
    found.communication_seconds()
    assert found.other_clocks()["bottleneck"] == "communication"


def test_a_trained_model_and_its_trace_are_kept_where_they_are_asked_for():
    found = small_bench(input="resident", epochs=1)
    how = How(seconds=0.01, profile=True, save_model=True)
    record = train(found, how, startup_seconds=0.0, progress=lambda rate: None)
    assert set(record.files) == {".pt", ".trace.json.gz"}
    kept = torch.load(io.BytesIO(record.files[".pt"]), weights_only=True)
    assert kept.keys() == found.network.state_dict().keys()
    events = json.loads(gzip.decompress(record.files[".trace.json.gz"]))["traceEvents"]
    assert any("conv" in event.get("name", "") for event in events)
    assert record.losses == ()  # ten steps: no hundredth
    timed = train(small_bench(), How(seconds=0.01, save_model=True), startup_seconds=0.0, progress=lambda rate: None)
    assert timed.files == {}  # a timed trial has trained no model worth keeping


def test_the_model_that_is_kept_is_the_one_that_was_evaluated(monkeypatch):
    def other_clocks(self):
        for raw in itertools.islice(self.batches, 5):  # as the real ones do: they train on
            self.take_step(raw)
        return {}

    monkeypatch.setattr(Workbench, "other_clocks", other_clocks)
    found = small_bench(input="resident", epochs=1)
    record = train(found, How(seconds=0.01, save_model=True), startup_seconds=0.0, progress=lambda rate: None)
    found.network.load_state_dict(torch.load(io.BytesIO(record.files[".pt"]), weights_only=True))
    assert evaluate(found) == (record.epochs[-1].test_loss, record.epochs[-1].test_accuracy)


def test_the_loss_of_every_hundredth_step_is_kept(monkeypatch):
    monkeypatch.setattr("rresnet.training.train.LOSS_STEPS", 4)
    found = train_epochs(small_bench(input="resident"), epochs=2, startup_seconds=0.0, progress=lambda rate: None)
    assert [(loss.epoch, loss.step) for loss in found.losses] == [(0, 4), (1, 4)]  # of five steps
    assert all(loss.loss > 0 for loss in found.losses)


def test_a_loss_that_is_not_a_number_is_an_error():
    found = small_bench()
    with torch.no_grad():
        next(found.network.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="the loss became nan after"):
        visit(found, seconds=0.1, startup_seconds=0, progress=lambda rate: None)


def test_epochs_start_from_the_seed_whatever_the_warm_up_did():
    found = small_bench(input="resident")
    epoch = train_epochs(found, epochs=1, startup_seconds=0.0, progress=lambda rate: None).epochs[0]
    cold = small_bench(input="resident")
    expected = torch.tensor([cold.train_step(*batch).item() for batch in cold.inputs.epoch()]).mean().item()
    assert epoch.train_loss == pytest.approx(expected, rel=1e-4)


def test_threads_are_what_the_cell_asks_for():
    small_bench(cpu_threads=1)
    assert torch.get_num_threads() == 1
    small_bench(cpu_threads=2)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_memory_that_is_short_for_the_other_clocks_does_not_cost_the_trial(monkeypatch, error):
    def short(*_, **__):
        raise error

    monkeypatch.setattr(limits, "measure", short)
    monkeypatch.setattr(limits, "_fastest_looks", {})
    found = visit(small_bench(), seconds=0.1, startup_seconds=0, progress=lambda rate: None).measurement
    assert (found.status, found.percent_of_limit, found.matrix_flops_per_second) == ("ok", None, None)
    assert found.images_per_second > 0


def test_all_calls_of_the_canary_are_time_that_no_training_took(monkeypatch):
    def canary(kind, half):
        time.sleep(0.3)
        return 0.001, 0.001  # the fastest of several calls each

    monkeypatch.setattr(limits, "canary", canary)
    monkeypatch.setattr("rresnet.training.train._clocks", lambda bench: ({}, None))
    one = small_bench()
    for _ in range(2):  # the first also counts the operations of the model
        found = visit(one, seconds=0.1, startup_seconds=0, progress=lambda rate: None).measurement
    assert found.clocks_seconds >= 0.3


def test_memory_that_is_short_for_the_canary_does_not_cost_the_trial(monkeypatch):
    errors = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("something else")]

    def short(kind, half):
        raise errors.pop(0)

    monkeypatch.setattr(limits, "canary", short)
    found = visit(small_bench(), seconds=0.1, startup_seconds=0, progress=lambda rate: None).measurement
    assert (found.status, found.canary_matrix_seconds, found.canary_copy_seconds) == ("ok", None, None)
    assert found.clocks_seconds > 0
    with pytest.raises(RuntimeError, match="something else"):
        visit(small_bench(), seconds=0.1, startup_seconds=0, progress=lambda rate: None)
