import copy
import itertools
import os
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
import torch
from benches import bench, image_data, losses, replaying, small_bench
from samples import make_cell

from rresnet.training import model, step
from rresnet.training.train import train_epochs


def test_tuned_learns_what_the_blogs_script_learns():
    blog = losses()
    axes = {"input": "resident", "channels_last": True, "fused_optimizer": True}
    tuned = losses(recipe="tuned", pointwise="linear", small_maps="linear", **axes)
    assert tuned == pytest.approx(blog, rel=1e-4)
    assert blog[2] != pytest.approx(blog[0], rel=1e-2)


@pytest.mark.parametrize("axes", [{"input": "resident"}, {}, {"precision": "bf16", "channels_last": True}])
def test_a_captured_step_trains_as_an_eager_one_short_batches_included(axes):
    data = image_data(20)  # batches of 8, 8 and 4
    plain, other = (small_bench(data, batch_size=8, **axes) for _ in range(2))
    (network, optimizer), examples = (other.network, other.optimizer), other.inputs.examples()
    assert [len(example[0]) for example in examples] == [8, 4]
    other.start_over()
    random = torch.get_rng_state()
    cell = replace(other.cell, model="few_layers")  # as one of torchvision's
    captured = step.Prepared(cell, network, optimizer, other.inputs.load, examples, replaying)
    assert torch.equal(torch.get_rng_state(), random)
    assert captured.held_bytes == 123
    assert captured.compile_seconds > 0
    expected = [plain.train_step(*raw).item() for _ in range(2) for raw in plain.inputs.epoch()]
    assert [captured(*raw).item() for _ in range(2) for raw in other.inputs.epoch()] == expected
    assert len(set(expected)) == 6
    theirs = plain.network.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in other.network.state_dict().items())
    assert theirs["1.num_batches_tracked"] == 6


def test_a_batch_is_replayed_by_the_graph_of_its_size_and_one_of_another_size_by_none():
    found = small_bench(image_data(20), input="resident", batch_size=8)
    replayed = []

    def noting(steps, restore):
        def replay_of(size):
            return lambda *raw: replayed.append((size, len(raw[0]))) or torch.zeros(())

        return [replay_of(len(example[0])) for _, example in steps], 0

    taken = step.Prepared(
        found.cell, found.network, found.optimizer, found.inputs.load, found.inputs.examples(), capture=noting
    )
    assert [taken(*raw).item() > 0 for raw in [*found.inputs.epoch(), (torch.arange(5),)]] == [False] * 3 + [True]
    assert replayed == [(8, 8), (8, 8), (4, 4)]


def test_a_cell_is_captured_on_the_stream_it_has_warmed_up_on_and_no_other_cell_is(monkeypatch):
    gpu = MagicMock(**{"memory_allocated.return_value": 0, "max_memory_allocated.return_value": 0})
    gpu.Stream.side_effect = lambda priority: MagicMock()
    monkeypatch.setattr(torch, "cuda", gpu)
    batch = MagicMock(**{"to.return_value.nbytes": 8})
    for _ in range(2):
        step.capture([(MagicMock(), [batch])] * 2, restore=lambda: None)
    warmed = [call.args[0] for call in gpu.stream.call_args_list]
    assert [call.kwargs["stream"] for call in gpu.graph.call_args_list] == [warmed[0]] * 2 + [warmed[1]] * 2
    assert warmed[0] is not warmed[1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "AllLayers"),
        ({"execution": "compile"}, "AllLayers"),
        ({"model": "samples:few_layers"}, "EachLayer"),
        ({"kernels": "fused"}, "FusedLayers"),
    ],
)
def test_a_captured_step_goes_through_its_layers_as_the_cell_says(monkeypatch, tmp_path, changes, expected):
    monkeypatch.setattr(torch.cuda, "Stream", MagicMock())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    tuned = {"device": "gpu", "execution": "graph", "precision": "bf16", "channels_last": True, "fused_optimizer": True}
    cell = make_cell(**{**tuned, "model": "resnet18", **changes})
    network = model.network(cell.model, 4)
    assert type(step.layers_of(cell, network, model.optimizer_of(network, cell))).__name__ == expected
    cache = os.environ.pop("TRITON_CACHE_DIR", None)
    assert cache == (str(tmp_path / "rresnet/inductor/triton/0") if expected == "FusedLayers" else None)


def test_a_rehearsal_takes_a_step_of_each_size_and_trains_nothing():
    found = small_bench(image_data(20), input="resident", batch_size=8)
    before, sizes, load = copy.deepcopy(found.network.state_dict()), [], found.inputs.load
    made = step.Eager(found.cell, found.network, found.optimizer, lambda *raw: sizes.append(len(raw[0])) or load(*raw))
    made.rehearse(found.inputs.examples())
    assert sizes == [8, 4]
    assert all(torch.equal(value, before[name]) for name, value in found.network.state_dict().items())
    assert all(parameter.grad is None for parameter in found.network.parameters())
    assert not any(tensor.any() for tensor in step.optimizer_tensors(found.optimizer))


def test_an_eager_step_of_a_gpu_alone_is_rehearsed(monkeypatch):
    found, rehearsed = small_bench(image_data(20), input="resident", batch_size=8), []
    monkeypatch.setattr(step.Eager, "rehearse", lambda self, examples: rehearsed.append(len(examples)))
    for device in ("cpu", "gpu"):
        cell = replace(found.cell, device=device)
        step.build(cell, found.network, found.optimizer, found.inputs.load, found.inputs.examples)
    assert rehearsed == [2]


def test_there_is_no_short_example_where_no_batch_is_short():
    found = [small_bench(image_data(20), batch_size=size).inputs.examples() for size in (10, 20, 19)]
    sizes = [[len(one[0]) for one in examples] for examples in found]
    assert sizes == [[10], [20], [19]]  # of 19 a single image is left, which is not trained on


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


def test_warming_up_does_not_train_the_model():
    found = small_bench(input="resident")
    before = {k: v.clone() for k, v in found.network.state_dict().items()}
    random = torch.get_rng_state()
    state = step.State(found.network, found.optimizer)
    for batch in itertools.islice(found.batches, 3):
        found.train_step(*batch)
    torch.rand(1)
    assert not torch.equal(found.network.state_dict()["0.weight"], before["0.weight"])
    state.restore()
    assert all(torch.equal(v, before[k]) for k, v in found.network.state_dict().items())
    assert all(not t.any() for s in found.optimizer.state.values() for t in s.values())
    assert torch.equal(torch.get_rng_state(), random)


def test_the_loss_scale_of_a_warm_up_is_undone(monkeypatch):
    kept, made = [], step.State.__init__
    monkeypatch.setattr(step.State, "__init__", lambda self, *of: kept.append(of[2:]) or made(self, *of))
    whole = small_bench(input="resident")
    train_epochs(whole, epochs=1, startup_seconds=0.0, progress=lambda rate: None)
    assert kept == [(whole.train_step.scaler,)]
    found = small_bench()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    state = step.State(found.network, found.optimizer, scaler)
    for batch in itertools.islice(found.batches, 2):
        torch.autograd.backward(scaler.scale(found.train_step.forward(*batch)))
        scaler.step(found.optimizer)
        scaler.update()
    assert scaler.get_scale() > 1024
    state.restore()
    assert scaler.get_scale() == 1024


def test_pytorchs_switches_are_set_by_effect():
    for cell, conv, matmul in (
        (make_cell(precision="fp32"), "ieee", "ieee"),
        (make_cell(precision="tf32"), "tf32", "ieee"),  # the blog's script, by PyTorch's defaults
        (make_cell(precision="tf32", recipe="tuned"), "tf32", "tf32"),
    ):
        step.set_switches(cell)
        assert torch.backends.cudnn.conv.fp32_precision == torch.backends.cudnn.rnn.fp32_precision == conv
        assert torch.backends.cuda.matmul.fp32_precision == matmul
    for wanted in (True, False):
        step.set_switches(make_cell(cudnn_benchmark=wanted))
        assert torch.backends.cudnn.benchmark == wanted
    with step.autocast(make_cell(precision="bf16")):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16
    with step.autocast(make_cell(precision="fp32")):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32
