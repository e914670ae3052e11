import time
from dataclasses import replace

import pytest
import torch
from benches import CPU, bench, image_data, small_bench
from samples import LAPTOP, make_cell

from rresnet.training import clocks, limits, model, step
from rresnet.training.clocks import StepClock
from rresnet.training.limits import Limits, Work
from rresnet.training.train import visit

LIMITS = Limits(matrix_flops_per_second=100.0, copy_bytes_per_second=10.0)


def clock(seconds=1.0, optimizer=0.1, launch=None, launched=None):
    return StepClock(seconds=seconds, optimizer_seconds=optimizer, launch_seconds=launched, launch_share=launch)


def work(flops, bytes, update_bytes=0.0):
    return Work(flops=flops, bytes=bytes, update_bytes=update_bytes)


@pytest.mark.parametrize(
    ("of_step", "input_rate", "work", "expected"),
    [
        (clock(), 5.0, work(flops=1, bytes=1), "input"),  # 10 images take 2 s to fetch and 1 s to train on
        (clock(optimizer=0.6), 100.0, work(flops=1, bytes=1), "optimizer"),
        (clock(optimizer=0.6, launch=0.95), 100.0, work(flops=1, bytes=1), "launch"),
        (clock(launch=0.95), 100.0, work(flops=1, bytes=1), "launch"),
        (clock(launch=0.5), 100.0, work(flops=100, bytes=1), "compute"),  # 1 s of computing, 0.1 s of moving
        (clock(), 100.0, work(flops=100, bytes=20), "memory"),  # 1 s of computing, 2 s of moving
        (clock(), 100.0, None, None),
        (clock(optimizer=None), 100.0, work(flops=100, bytes=1), "compute"),
        # The processor fetches and launches one after the other, and the GPU waits where both take longer than it does.
        (clock(launched=0.8, launch=0.8), 20.0, work(flops=100, bytes=20), "launch"),
        (clock(launched=0.6, launch=0.6), 15.0, work(flops=100, bytes=20), "input"),
        (clock(launched=0.3, launch=0.3), 15.0, work(flops=100, bytes=20), "memory"),
    ],
)
def test_the_bottleneck_is_the_largest_part(of_step, input_rate, work, expected):
    assert clocks.bottleneck(of_step, images=10, input_rate=input_rate, work=work, limits=LIMITS) == expected


@pytest.mark.parametrize(
    ("of_step", "work", "on_gpu", "expected"),
    [
        # Computing and moving would take 0.41 s of the 0.9 s for the network.
        (clock(launch=0.1), work(flops=2, bytes=0.21), True, "latency"),
        (clock(), work(flops=2, bytes=0.21), True, "latency"),  # also where launching can't be told apart
        (clock(launch=0.1), work(flops=2, bytes=0.26), True, "memory"),
        (clock(), work(flops=2, bytes=0.21), False, "memory"),
        # Of a captured step the optimizer is a part like any other.
        (clock(optimizer=None, launch=0.1), work(flops=2, bytes=0.21, update_bytes=0.7), True, "latency"),
        (clock(optimizer=None, launch=0.1), work(flops=2, bytes=0.21, update_bytes=1.0), True, "memory"),
        (clock(launch=0.1), work(flops=2, bytes=0.21, update_bytes=1.0), True, "latency"),
    ],
)
def test_a_gpu_that_neither_computing_nor_moving_keeps_busy_is_bound_by_latency(of_step, work, on_gpu, expected):
    told = clocks.bottleneck(of_step, images=10, input_rate=100.0, work=work, limits=LIMITS, on_gpu=on_gpu)
    assert told == expected


def test_what_lies_on_the_gpu_is_not_fetched_by_the_thread_that_launches():
    step, of_images = clock(launched=0.8, launch=0.8), work(flops=100, bytes=20)
    for fetched, expected in ((True, "launch"), (False, "memory")):
        found = clocks.bottleneck(step, images=10, input_rate=20.0, work=of_images, limits=LIMITS, fetched=fetched)
        assert found == expected


@pytest.mark.parametrize(
    ("seconds", "launch", "expected"),
    [(0.5, None, "communication"), (0.4, None, "compute"), (0.5, 0.95, "launch")],
)
def test_exchanging_gradients_is_a_part_of_its_own(seconds, launch, expected):
    """Of a step of 1 s the optimizer takes 0.1 and the exchange `seconds`: the network has what is left."""
    of_images = work(flops=100, bytes=1)
    found = clocks.bottleneck(
        clock(launch=launch), images=10, input_rate=100.0, work=of_images, limits=LIMITS, communication_seconds=seconds
    )
    assert found == expected


def test_work_is_what_pytorchs_counter_says_of_resnet50():
    # 0.496 GFLOP an image at 32 x 32, forward and backward (2 a multiply-add).
    found = limits.work(make_cell(model="resnet50", batch_size=4), 10)
    assert found.flops == pytest.approx(0.496e9, rel=0.01)
    assert limits.work(make_cell(model="resnet50", batch_size=8), 10).flops == pytest.approx(found.flops)
    assert (
        limits.work(make_cell(model="resnet50", batch_size=8), 10).bytes < found.bytes
    )  # the weights are shared by more images


def test_half_precision_moves_half_the_bytes_and_adam_moves_28_for_each_parameter():
    full, half = (limits.work(make_cell(model="resnet18", precision=of), 10) for of in ("fp32", "bf16"))
    assert half == replace(full, bytes=full.bytes / 2)
    network = model.network("resnet18", 10)
    assert full.update_bytes == 28 * sum(parameter.numel() for parameter in network.parameters())


def test_a_product_over_pixels_moves_its_inputs_and_its_output_once():
    pixels, weight = torch.empty(2, 3, 3, 8), torch.empty(5, 8)
    with limits._ByteCounter() as traffic:
        torch.nn.functional.linear(pixels, weight)
    assert traffic.bytes == 4 * (2 * 9 * 8 + 5 * 8 + 2 * 9 * 5)


def test_work_is_the_same_however_it_is_run():
    eager, compiled = (limits.work(make_cell(model="resnet18", execution=one), 10) for one in ("eager", "compile"))
    assert eager == compiled


def test_products_with_the_padding_are_no_work_where_they_are_spared():
    # Over 2 x 2 pixels 16 products of pixels for 4 x 9, of 256 x 256 channels in five convolutions, and 4 instead
    # of 9 of 512 x 512 in one; over one pixel 1 instead of 9 in two. Multiply-adds, once forward and twice backward.
    spared = 2 * 3 * (5 * (36 - 16) * 256**2 + (9 - 4) * 512**2 + 2 * (9 - 1) * 512**2)
    conv = limits.work(make_cell(model="resnet50", batch_size=4), 10)
    products = limits.work(make_cell(model="resnet50", batch_size=4, pointwise="linear", small_maps="linear"), 10)
    assert conv.flops - products.flops == pytest.approx(spared, rel=1e-6)


def test_a_model_that_can_not_be_counted_has_no_work():
    too_small = make_cell(model="alexnet", image_size=8, batch_size=2)  # fewer pixels than its pooling needs
    assert limits.work(too_small, 10) is None
    asks_for_values = limits.work(make_cell(model="regnet_x_400mf", batch_size=2), 10)
    assert asks_for_values.flops > 1e6


def test_the_limits_are_work_over_the_fastest_call(monkeypatch):
    torch.set_num_threads(2)
    monkeypatch.setattr(limits, "_fastest", lambda device, call, seconds: 0.5)
    found = limits.measure("cpu", "fp32", 2)
    assert found.matrix_flops_per_second == 2 * 1024**3 / 0.5  # slow enough at the smallest size
    assert found.copy_bytes_per_second == 2 * 128 * 2**20 / 0.5


def test_a_fast_device_gets_a_larger_matrix(monkeypatch):
    torch.set_num_threads(2)
    monkeypatch.setattr(limits, "LARGEST_MATRIX", 2048)
    monkeypatch.setattr(limits, "_fastest", lambda device, call, seconds: 0.001)
    assert limits.measure("cpu", "fp32", 2).matrix_flops_per_second == 2 * 2048**3 / 0.001


@pytest.mark.parametrize(("there", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_a_processor_without_bfloat16_products_is_limited_by_those_in_fp32(there, dtype, monkeypatch):
    torch.set_num_threads(2)
    used, machine = [], replace(LAPTOP, cpu_bf16=there)
    monkeypatch.setattr(limits.hardware, "probe", lambda: machine)
    monkeypatch.setattr(limits, "_matrix_product", lambda device, dtype, size: used.append(dtype))
    monkeypatch.setattr(limits, "_fastest", lambda device, call, seconds: 0.5)
    limits.measure("cpu", "bf16", 2)
    assert used == [dtype]


def test_the_limits_are_the_fastest_of_all_looks(monkeypatch):
    looks = iter([Limits(matrix_flops_per_second=m, copy_bytes_per_second=c) for m, c in ((5, 2), (4, 3), (9, 1))])
    monkeypatch.setattr(limits, "measure", lambda *key: next(looks))
    monkeypatch.setattr(limits, "_fastest_looks", {})
    found = [limits.seen("cpu", "fp32", 2, look=look) for look in (False, False, True, False, True)]
    assert [(f.matrix_flops_per_second, f.copy_bytes_per_second) for f in found] == [
        (5, 2), (5, 2), (5, 3), (5, 3), (9, 3)
    ]  # fmt: skip


@pytest.fixture
def pause(monkeypatch):
    """A pause by a clock that nothing else moves."""
    now = [0.0]
    monkeypatch.setattr(limits.time, "perf_counter", lambda: now[0])

    def of(seconds):
        now[0] += seconds

    return of


def test_the_fastest_call_is_the_fastest(pause):
    pauses = iter([0.03, 0.01, 0.05, *[0.05] * 20])
    assert limits._fastest(CPU, lambda: pause(next(pauses)), 0.1) == pytest.approx(0.01)


def test_the_canary_times_a_product_and_a_copy(monkeypatch, pause):
    monkeypatch.setattr(limits, "_canary_product", lambda kind, dtype: lambda: pause(0.03))
    monkeypatch.setattr(limits, "_copy", lambda kind: lambda: pause(0.06))
    assert limits.canary("cpu", half=False) == pytest.approx((0.03, 0.06))


def test_the_step_alone_counts_its_optimizer():
    of_cell = small_bench()
    raw = next(of_cell.batches)
    slow = of_cell.optimizer.register_step_post_hook(lambda *_: time.sleep(0.05))
    found = clocks.step_alone(of_cell.train_step, of_cell.optimizer, raw, 3)
    slow.remove()
    assert 0.05 <= found.optimizer_seconds < found.seconds
    assert found.launch_share is None
    assert of_cell.optimizer.state[next(of_cell.network.parameters())]["step"] == 3
    assert not of_cell.optimizer._optimizer_step_pre_hooks


def test_the_other_clocks_cost_at_most_a_quarter_of_the_measured_time():
    of_cell = small_bench()
    visit(of_cell, seconds=0.3, startup_seconds=0, progress=lambda rate: None)
    of_cell.measured_seconds, of_cell._clocks_seconds = 0.4, 0.0
    of_cell.step_seconds = 0.05  # two steps make a window: 0.1 s and the input's 0.02 s
    assert of_cell.other_clocks() == {}
    of_cell.measured_seconds = 0.5
    assert of_cell.other_clocks()["input_images_per_second"] > 0
    spent = of_cell._clocks_seconds
    assert spent > 0
    assert of_cell.other_clocks() == {}


def test_peak_memory_is_the_cells_own_and_the_same_every_time():
    peaks = []
    for _ in range(2):
        of_cell = bench()
        for raw in (next(of_cell.batches), next(of_cell.batches)):
            of_cell.take_step(raw)
        with of_cell.noting_memory():
            for raw in (next(of_cell.batches), next(of_cell.batches)):
                of_cell.take_step(raw)
        peaks.append(of_cell.peak_memory_bytes)
    weights = sum(p.nbytes for p in of_cell.network.parameters())
    assert peaks[0] == pytest.approx(peaks[1], rel=0.001)
    assert 4 * weights < peaks[0] < 8 * weights  # weights, gradients and Adam's two moments, and a step's activations


def test_peak_memory_of_one_of_several_workers_holds_the_buckets_of_their_gradients():
    of_cell = bench()
    of_cell.take_step(next(of_cell.batches))
    noted = []
    for of_cell.world in (1, 2):
        with of_cell.noting_memory():
            pass
        noted.append(of_cell.peak_memory_bytes)
    weights = sum(p.nbytes for p in of_cell.network.parameters())
    assert noted == [noted[0], noted[0] + weights]


def test_a_visit_fills_the_columns_of_trust(monkeypatch):
    monkeypatch.setattr(clocks, "input_alone", lambda batches, seconds: 1e9)
    of_cell = small_bench(data=image_data(64))
    of_cell.measured_seconds = 1000.0  # pays for the other clocks
    for _ in range(2):
        record = visit(of_cell, seconds=0.5, startup_seconds=0, progress=lambda rate: None)
    found = record.measurement
    assert found.percent_of_limit == pytest.approx(
        100 * found.images_per_second * found.flops_per_image / found.matrix_flops_per_second
    )
    assert found.bottleneck in ("memory", "compute", "optimizer")  # not the input, at such a rate
    assert 0 < found.compute_images_per_second < found.input_images_per_second == 1e9
    assert found.cpu_seconds > 0
    assert found.foreign_cpu_seconds >= 0
    assert found.process_peak_bytes > found.peak_memory_bytes > 0
    assert (found.conv_precision, found.matmul_precision, found.autocast_dtype) == ("ieee", "ieee", None)
    assert isinstance(found.quality_flags, tuple)


def test_the_precision_in_effect_is_read_from_pytorch():
    cell = make_cell(device="gpu", precision="tf32", recipe="tuned")
    step.set_switches(cell)
    assert step.precision_in_effect(cell) == ("tf32", "tf32", None)
    cell = make_cell(device="gpu", precision="tf32", recipe="blog")
    step.set_switches(cell)
    assert step.precision_in_effect(cell) == ("tf32", "ieee", None)  # PyTorch's default, which the blog's script has
    for how in ("pointwise", "small_maps"):  # a rung of the ladder: its convolutions go on in TF32
        cell = make_cell(device="gpu", precision="tf32", recipe="blog", **{how: "linear"})
        step.set_switches(cell)
        assert step.precision_in_effect(cell) == ("tf32", "tf32", None)
    cell = make_cell(device="gpu", precision="fp32")
    step.set_switches(cell)
    assert step.precision_in_effect(cell) == ("ieee", "ieee", None)
    assert step.precision_in_effect(make_cell(precision="bf16"))[2] == "bfloat16"


def test_input_alone_counts_what_it_fetched():
    def batches():
        while True:
            time.sleep(0.02)
            yield torch.zeros(8, 1), torch.zeros(8)

    start = time.perf_counter()
    rate = clocks.input_alone(batches(), 0.1)
    assert 8 / (time.perf_counter() - start) < rate <= 8 / 0.02
    assert clocks.input_alone(batches(), 0.0) <= 8 / 0.02  # a batch at least


@pytest.mark.parametrize(("gib", "copied", "size"), [(80, 1024, 8192), (24, 384, 4096), (10, 160, 4096)])
def test_the_canary_keeps_little_of_a_small_gpu(monkeypatch, gib, copied, size):
    sizes = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1, gib * 2**30))
    monkeypatch.setattr(limits, "_matrix_product", lambda device, dtype, size: lambda: sizes.append(size))
    monkeypatch.setattr(limits, "seconds_of", lambda device, call: call() or 0.0)
    assert limits._copied_bytes("cuda") == copied * 2**20
    assert limits._copied_bytes("cpu") == limits.COPY_BYTES["cpu"]
    limits._canary_product.__wrapped__("cuda", torch.bfloat16)
    limits._canary_product.__wrapped__("cpu", torch.float32)
    assert sizes == [size, 1024]


def test_a_cell_on_the_cpu_does_not_start_cuda(monkeypatch):
    def started():
        raise AssertionError("CUDA was started")

    found = small_bench()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", started)
    step.State(found.network, found.optimizer).restore()
