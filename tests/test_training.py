import gzip
import io
import itertools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import make_cell

from rresnet.cell import UsageError
from rresnet.config import How
from rresnet.data import ImageData, Split
from rresnet.quality.monitor import Usage
from rresnet.training import convolution, limits, model, step
from rresnet.training.inputs import EpochSampler, Inputs, normalise
from rresnet.training.timing import Stopwatch, steps_in
from rresnet.training.train import NonFiniteLossError, evaluate, train, train_epochs, visit
from rresnet.training.workbench import Workbench

CPU = torch.device("cpu")


def split(count, channels=1, size=32, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 4
    images = (
        random.integers(0, 64, (count, channels, size, size), dtype=np.uint8)
        + (labels * 48).astype(np.uint8)[:, None, None, None]
    )
    return Split(images=images, labels=labels)


def image_data(count=40, channels=1):
    return ImageData(
        train=split(count, channels),
        test=split(12, channels, seed=1),
        classes=tuple("abcd"),
        fingerprint="f",
    )


def bench(data=None, **changes):
    # One thread: the tests run side by side, and threads that wait for each other's cores crawl.
    return Workbench(cell=make_cell(**{"cpu_threads": 1, **changes}), data=data or image_data(), device=CPU)


def test_the_sampler_draws_what_the_blogs_random_sampler_draws():
    expected = list(torch.utils.data.RandomSampler(range(20), generator=torch.Generator().manual_seed(7)))
    assert list(EpochSampler(20, 8, seed=7)) == expected


@given(st.integers(2, 300), st.integers(1, 64), st.integers(1, 5), st.integers(0, 100))
def test_workers_share_an_epoch_without_using_an_image_twice(images, batch_size, world, seed):
    if images < world:
        return
    shares = [list(EpochSampler(images, batch_size, seed, rank, world)) for rank in range(world)]
    used = list(itertools.chain.from_iterable(shares))
    assert len(set(used)) == len(used)
    assert len({len(share) for share in shares}) == 1  # all take as many steps
    assert images - len(used) <= 2 * world - 1
    assert len(shares[0]) == 1 or len(shares[0]) % batch_size != 1 or batch_size == 1


def test_the_last_short_batch_is_trained_and_counted():
    inputs = Inputs(split(20), make_cell(batch_size=8, input="resident"), CPU)
    assert [len(inputs.load(*raw)[1]) for raw in inputs.epoch()] == [8, 8, 4]
    assert inputs.images_per_epoch == 20


def test_a_last_batch_of_one_is_left_out_because_batchnorm_can_not_train_on_it():
    inputs = Inputs(split(17), make_cell(batch_size=8, input="resident"), CPU)
    assert [len(inputs.load(*raw)[1]) for raw in inputs.epoch()] == [8, 8]
    assert inputs.images_per_epoch == 16


@pytest.mark.parametrize("channels", [1, 3])
def test_both_input_paths_give_the_same_batches(channels):
    data = split(20, channels)
    paths = [Inputs(data, make_cell(input=path), CPU) for path in ("dataloader", "resident")]
    for _ in range(2):  # the second epoch is in another order, again the same for both
        batches = (itertools.starmap(path.load, path.epoch()) for path in paths)
        for (images, labels), (resident_images, resident_labels) in zip(*batches, strict=True):
            assert images.shape[1:] == (3, 32, 32)
            torch.testing.assert_close(images, resident_images, rtol=0, atol=1e-6)
            assert labels.tolist() == resident_labels.tolist()


def test_pixels_are_brought_to_minus_one_to_one():
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).reshape(1, 1, 1, 3)
    assert (
        normalise(images)[0, :, 0].tolist() == [[-1.0, 1.0, pytest.approx(-0.6)]] * 3
    )  # 51 / 255 = 0.2, (0.2 - 0.5) / 0.5


def test_channels_last_lays_out_images_and_weights():
    found = bench(channels_last=True, input="resident")
    images, _ = found.inputs.load(*next(found.inputs.epoch()))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert found.network.conv1.weight.is_contiguous(memory_format=torch.channels_last)


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
    found = bench(input="resident", batch_size=4)
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
    found = train_epochs(bench(input="resident"), epochs=2, startup_seconds=0.0, progress=lambda rate: None)
    assert found.measurement.measured_images == 80
    assert found.measurement.epoch_seconds_kind == "measured"
    assert found.measurement.epoch_seconds == pytest.approx(sum(e.seconds for e in found.epochs) / 2)
    assert [e.images for e in found.epochs] == [40, 40]
    assert found.measurement.test_accuracy == found.epochs[-1].test_accuracy
    assert found.epochs[1].train_loss < found.epochs[0].train_loss
    measured = sum(w.seconds for w in found.windows if w.kind == "measured")
    assert measured == pytest.approx(found.measurement.measured_seconds)


def losses(execution="eager", **changes):
    """Losses of three steps in float64, where rounding does not grow into a difference of its own."""
    found = bench(**changes)
    found.network.double()

    def load(*raw):
        images, labels = found.inputs.load(*raw)
        return images.double(), labels

    cell = replace(found.cell, execution=execution)
    take = step.build(cell, found.network, found.optimizer, load, lambda: next(found.inputs.epoch()))
    found.start_over()
    return [take(*raw).item() for raw in itertools.islice(found.inputs.forever(), 3)]


def test_tuned_learns_what_the_blogs_script_learns():
    blog = losses()
    axes = {"input": "resident", "channels_last": True, "fused_optimizer": True}
    tuned = losses(recipe="tuned", pointwise="linear", small_maps="linear", **axes)
    assert tuned == pytest.approx(blog, rel=1e-4)
    assert blog[2] != pytest.approx(blog[0], rel=1e-2)


def replaying(step, example, restore):
    """A capture as a GPU makes it, on a CPU: static buffers, that a replay fills and the whole step reads."""
    static = [tensor.clone() for tensor in example]
    for _ in range(3):
        step(*static)
    restore()

    def replay(*raw):
        for buffer, tensor in zip(static, raw, strict=True):
            buffer.copy_(tensor)
        return step(*static)

    return replay, 123


@pytest.mark.parametrize("path", ["resident", "dataloader"])
def test_a_captured_step_trains_as_an_eager_one_short_batches_included(path):
    data = image_data(20)  # batches of 8, 8 and 4
    plain, other = bench(data, input=path, batch_size=8), bench(data, input=path, batch_size=8)
    (network, optimizer), example = (other.network, other.optimizer), next(other.inputs.epoch())
    other.start_over()
    random = torch.get_rng_state()
    captured = step.Prepared(other.cell, network, optimizer, other.inputs.load, example, replaying)
    assert torch.equal(torch.get_rng_state(), random)
    assert captured.held_bytes == 123
    assert captured.compile_seconds > 0
    expected = [plain.train_step(*raw).item() for _ in range(2) for raw in plain.inputs.epoch()]
    assert [captured(*raw).item() for _ in range(2) for raw in other.inputs.epoch()] == expected
    assert len(set(expected)) == 6


def test_a_batch_of_another_size_is_not_replayed():
    found = bench(image_data(20), input="resident", batch_size=8)
    sizes = []

    def noting(step, example, restore):
        return lambda *raw: sizes.append(len(raw[0])) or torch.zeros(()), 0

    taken = step.Prepared(
        found.cell, found.network, found.optimizer, found.inputs.load, next(found.batches), capture=noting
    )
    assert [taken(*raw).item() > 0 for raw in found.inputs.epoch()] == [False, False, True]
    assert sizes == [8, 8]


def test_a_compiled_step_learns_what_an_eager_one_learns(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    layout = {"channels_last": True, "pointwise": "linear", "small_maps": "linear"}
    axes = {"model": "samples:few_layers", "input": "resident", **layout}
    assert losses(execution="compile", **axes) == pytest.approx(losses(**axes), rel=1e-4)


def test_what_was_compiled_is_found_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    data, axes = image_data(20), {"model": "samples:few_layers", "input": "resident", "batch_size": 8}
    eager = bench(data, **axes)
    expected = eager.train_step(*next(eager.batches)).item()
    for cache in ("cold", "warm"):
        found = bench(data, execution="compile", **axes)
        assert found.train_step(*next(found.batches)).item() == pytest.approx(expected, rel=1e-4)
        first = visit(found, seconds=0.01, startup_seconds=1000.0, progress=lambda rate: None).measurement
        assert first.compile_cache == cache
        assert first.compile_seconds > 0
        assert first.startup_seconds == 1000.0 - first.compile_seconds
        second = visit(found, seconds=0.01, startup_seconds=0.0, progress=lambda rate: None).measurement
        assert (second.compile_seconds, second.compile_cache) == (None, None)


def test_what_the_warm_up_trained_is_no_part_of_an_epochs_losses():
    found = bench(input="resident")
    train_epochs(found, epochs=1, startup_seconds=0.0, progress=lambda rate: None)
    assert found.steps_trained == 5
    assert len(found.recent_losses()) == 5


def test_each_worker_brings_in_its_share_of_what_its_machine_used(monkeypatch):
    """Four workers on two machines, all of which read the same."""
    found = bench(input="resident", num_workers=4, num_nodes=2)
    found.world = 4
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(4))
    one = {"seconds": 2.0, "cpu_seconds": 1.5, "busy_cpu_seconds": 4.0, "steal_cpu_seconds": 1.0, "energy_joules": 10.0}
    used = found.over_workers(Usage(**one, major_faults=0, swapped_bytes=0))
    assert (used.cpu_seconds, used.busy_cpu_seconds, used.steal_cpu_seconds) == (6.0, 8.0, 2.0)
    assert (used.foreign_cpu_seconds, used.energy_joules, used.seconds) == (2.0, 20.0, 2.0)


def test_a_trained_model_and_its_trace_are_kept_where_they_are_asked_for():
    found = bench(input="resident", epochs=1)
    how = How(seconds=0.01, profile=True, save_model=True)
    record = train(found, how, startup_seconds=0.0, progress=lambda rate: None)
    assert set(record.files) == {".pt", ".trace.json.gz"}
    kept = torch.load(io.BytesIO(record.files[".pt"]), weights_only=True)
    assert kept.keys() == found.network.state_dict().keys()
    events = json.loads(gzip.decompress(record.files[".trace.json.gz"]))["traceEvents"]
    assert any("conv" in event.get("name", "") for event in events)
    assert record.losses == ()  # ten steps: no hundredth
    timed = train(bench(), How(seconds=0.01, save_model=True), startup_seconds=0.0, progress=lambda rate: None)
    assert timed.files == {}  # a timed trial has trained no model worth keeping


def test_the_model_that_is_kept_is_the_one_that_was_evaluated(monkeypatch):
    def other_clocks(self, measured):
        for raw in itertools.islice(self.batches, 5):  # as the real ones do: they train on
            self.take_step(raw)
        return {}

    monkeypatch.setattr(Workbench, "other_clocks", other_clocks)
    found = bench(input="resident", epochs=1)
    record = train(found, How(seconds=0.01, save_model=True), startup_seconds=0.0, progress=lambda rate: None)
    found.network.load_state_dict(torch.load(io.BytesIO(record.files[".pt"]), weights_only=True))
    assert evaluate(found) == (record.epochs[-1].test_loss, record.epochs[-1].test_accuracy)


def test_the_loss_of_every_hundredth_step_is_kept(monkeypatch):
    monkeypatch.setattr("rresnet.training.train.LOSS_STEPS", 4)
    found = train_epochs(bench(input="resident"), epochs=2, startup_seconds=0.0, progress=lambda rate: None)
    assert [(loss.epoch, loss.step) for loss in found.losses] == [(0, 4), (1, 4)]  # of five steps
    assert all(loss.loss > 0 for loss in found.losses)


def test_bf16_learns_what_fp32_learns_within_its_precision():
    """bfloat16 has 8 bits: a relative error of 2^-8 = 0.4 % in each of 20 layers, which adds up to 8 % at most.

    Two steps: from the second on, Adam's first updates, which are as large for a small gradient as for a large one,
    let differences grow.
    """
    first = []
    for changes in ({}, {"recipe": "tuned", "input": "resident", "channels_last": True, "precision": "bf16"}):
        found = bench(**changes)
        first.append([found.train_step(*batch).item() for batch in itertools.islice(found.batches, 2)])
    assert first[1] == pytest.approx(first[0], rel=0.08)
    assert first[1] != first[0]


def test_a_loss_that_is_not_a_number_is_an_error():
    found = bench()
    with torch.no_grad():
        next(found.network.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="the loss became nan after"):
        visit(found, seconds=0.1, startup_seconds=0, progress=lambda rate: None)


def test_warming_up_does_not_train_the_model():
    found = bench(input="resident")
    before = {k: v.clone() for k, v in found.network.state_dict().items()}
    random = torch.get_rng_state()
    state = step.State(found.network, found.optimizer)
    for batch in itertools.islice(found.batches, 3):
        found.train_step(*batch)
    torch.rand(1)
    assert not torch.equal(found.network.state_dict()["conv1.weight"], before["conv1.weight"])
    state.restore()
    assert all(torch.equal(v, before[k]) for k, v in found.network.state_dict().items())
    assert all(not t.any() for s in found.optimizer.state.values() for t in s.values())
    assert torch.equal(torch.get_rng_state(), random)


def test_epochs_start_from_the_seed_whatever_the_warm_up_did():
    found = bench(input="resident")
    epoch = train_epochs(found, epochs=1, startup_seconds=0.0, progress=lambda rate: None).epochs[0]
    cold = bench(input="resident")
    expected = torch.tensor([cold.train_step(*batch).item() for batch in cold.inputs.epoch()]).mean().item()
    assert epoch.train_loss == pytest.approx(expected, rel=1e-4)


def test_convolutions_as_products_are_the_same_network():
    conv, _ = model.build(make_cell(model="resnet50", channels_last=True), 4, CPU)
    axes = {"channels_last": True, "pointwise": "linear", "small_maps": "linear"}
    products, _ = model.build(make_cell(model="resnet50", **axes), 4, CPU)
    kinds = Counter(type(module) for module in products.modules())
    assert kinds[convolution.PointwiseConv2d] == 36  # two a block, and four downsamplings
    assert kinds[convolution.SmallMapConv2d] == 17  # one a block, and the first
    assert all(torch.equal(v, conv.state_dict()[k]) for k, v in products.state_dict().items())
    images = torch.randn(16, 3, 32, 32, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    outputs = [network.double().train()(images) for network in (conv, products)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-8, atol=1e-8)
    for output in outputs:
        output.square().sum().backward()
    for (name, one), other in zip(conv.named_parameters(), products.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-8, msg=name)


def test_the_seed_and_the_model_alone_decide_the_weights():
    one, _ = model.build(make_cell(), 4, CPU)
    other, _ = model.build(make_cell(recipe="tuned", channels_last=True, batch_size=2, fused_optimizer=True), 4, CPU)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    third, _ = model.build(make_cell(seed=1), 4, CPU)
    assert not torch.equal(one.conv1.weight, third.conv1.weight)


def test_threads_are_what_the_cell_asks_for():
    bench(cpu_threads=1)
    assert torch.get_num_threads() == 1
    bench(cpu_threads=2)
    assert torch.get_num_threads() == 2


def test_pytorchs_switches_are_set_by_effect():
    for cell, conv, matmul in (
        (make_cell(precision="fp32"), "ieee", "ieee"),
        (make_cell(precision="tf32"), "tf32", "ieee"),  # the blog's script, by PyTorch's defaults
        (make_cell(precision="tf32", recipe="tuned"), "tf32", "tf32"),
    ):
        step.set_switches(cell)
        assert torch.backends.cudnn.conv.fp32_precision == conv
        assert torch.backends.cuda.matmul.fp32_precision == matmul
    for wanted in (True, False):
        step.set_switches(make_cell(cudnn_benchmark=wanted))
        assert torch.backends.cudnn.benchmark == wanted
    with step.autocast(make_cell(precision="bf16")):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16
    with step.autocast(make_cell(precision="fp32")):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32


def test_an_unknown_model_suggests_the_right_one():
    with pytest.raises(
        UsageError, match="--model resnet5 is not a torchvision classification model: did you mean resnet50"
    ):
        model.check("resnet5", 32)
    model.check("squeezenet1_1", 32)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_memory_that_is_short_for_the_other_clocks_does_not_cost_the_trial(monkeypatch, error):
    def short(*_, **__):
        raise error

    monkeypatch.setattr(limits, "measure", short)
    monkeypatch.setattr(limits, "_fastest_looks", {})
    found = visit(bench(), seconds=0.1, startup_seconds=0, progress=lambda rate: None).measurement
    assert (found.status, found.percent_of_limit, found.matrix_flops_per_second) == ("ok", None, None)
    assert found.images_per_second > 0


def test_a_model_that_is_wrapped_for_several_workers_is_saved_as_itself():
    found = bench()
    names = list(found.network.state_dict())
    found.network = torch.nn.ModuleDict({"module": found.network})
    found.network.module = found.network["module"]
    assert list(torch.load(io.BytesIO(found.state_dict_bytes()))) == names


def test_the_loss_scale_of_a_warm_up_is_undone(monkeypatch):
    kept, made = [], step.State.__init__
    monkeypatch.setattr(step.State, "__init__", lambda self, *of: kept.append(of[2:]) or made(self, *of))
    whole = bench(input="resident")
    train_epochs(whole, epochs=1, startup_seconds=0.0, progress=lambda rate: None)
    assert kept == [(whole.train_step.scaler,)]
    found = bench()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    state = step.State(found.network, found.optimizer, scaler)
    for batch in itertools.islice(found.batches, 2):
        torch.autograd.backward(scaler.scale(found.train_step.forward(*batch)))
        scaler.step(found.optimizer)
        scaler.update()
    assert scaler.get_scale() > 1024
    state.restore()
    assert scaler.get_scale() == 1024


def test_models_with_losses_of_their_own_are_refused():
    for name in model.AUXILIARY:
        with pytest.raises(UsageError, match=f"--model {name} has auxiliary classifiers.*take another"):
            model.check(name, 32)
