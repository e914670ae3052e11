import io
from collections import Counter

import pytest
import torch
from benches import CPU, bench, losses
from samples import make_cell

from rresnet.cell import UsageError
from rresnet.training import convolution, limits, model, relu, step
from rresnet.training.train import train_epochs


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


def test_relus_for_the_compiler_are_the_same_network(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    cells = [make_cell(model="resnet18", execution=execution) for execution in ("eager", "compile")]
    plain, compiled = (model.build(cell, 4, CPU)[0].double().train() for cell in cells)
    kinds = [Counter(type(module) for module in network.modules()) for network in (plain, compiled)]
    assert kinds[1][relu.CompiledReLU] == kinds[0][torch.nn.ReLU] == 9
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    for network in (plain, compiled):
        network(images).square().sum().backward()
    gradients = [[parameter.grad for parameter in network.parameters()] for network in (plain, compiled)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_the_seed_and_the_model_alone_decide_the_weights():
    one, _ = model.build(make_cell(), 4, CPU)
    other, _ = model.build(make_cell(recipe="tuned", channels_last=True, batch_size=2, fused_optimizer=True), 4, CPU)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    third, _ = model.build(make_cell(seed=1), 4, CPU)
    assert not torch.equal(one.conv1.weight, third.conv1.weight)


def test_the_fused_optimizer_of_a_cpu_copies_no_weights_and_takes_the_steps_of_adam():
    axes = {"model": "resnet18", "channels_last": True}
    fused, plain = (model.build(make_cell(fused_optimizer=is_fused, **axes), 4, CPU) for is_fused in (True, False))
    images = torch.randn(8, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    for network, _ in (fused, plain):
        network(images).square().sum().backward()
    for _ in range(3):
        with torch.profiler.profile() as profile:
            fused[1].step()
        plain[1].step()
    assert "aten::_fused_adam_" in (names := {event.name for event in profile.events()})
    assert "aten::clone" not in names
    torch.testing.assert_close(list(fused[0].parameters()), list(plain[0].parameters()), rtol=1e-5, atol=1e-7)
    states = [optimizer.state_dict()["state"] for _, optimizer in (fused, plain)]
    torch.testing.assert_close(states[0][0], states[1][0])


def test_an_unknown_model_suggests_the_right_one():
    with pytest.raises(
        UsageError, match="--model resnet5 is not a torchvision classification model: did you mean resnet50"
    ):
        model.check("resnet5", 32)
    model.check("squeezenet1_1", 32)


@pytest.mark.parametrize(("name", "fits", "why"), [("vit_b_16", 224, "Wrong image height"), ("alexnet", 64, "small")])
def test_a_model_that_does_not_take_the_image_size_is_refused_before_the_run(name, fits, why):
    with pytest.raises(UsageError, match=rf"{name} can't take images \[2, 3, 32, 32\] .*{why}.*another --image-size"):
        model.check(name, 32)
    model.check(name, fits)
    model.check("regnet_y_400mf", 32)  # which can't be made without values


def test_models_with_losses_of_their_own_are_refused():
    for name in model.AUXILIARY:
        with pytest.raises(UsageError, match=f"--model {name} has auxiliary classifiers.*choose another"):
            model.check(name, 32)


class _Auxiliary(torch.nn.Linear):
    """Scores for evaluation; for training, those of an auxiliary classifier as well, as in GoogLeNet."""

    def __init__(self, classes):
        super().__init__(3, classes)

    def forward(self, images):
        scores = super().forward(images.mean((2, 3)))
        return (scores, scores) if self.training else scores


def test_a_model_of_ones_own_is_tried_as_it_trains_and_as_it_is_evaluated(monkeypatch):
    monkeypatch.setattr(model, "_own", lambda name, classes: _Auxiliary(classes))
    with pytest.raises(UsageError, match=r"--model nets:f in training returned tuple .* must return scores \[2, 10\]"):
        model.check("nets:f", 32)
    monkeypatch.setattr(
        _Auxiliary, "forward", lambda self, images: self.weight[:2, :1] * torch.zeros(10 if self.training else 9)
    )
    with pytest.raises(UsageError, match=r"--model nets:f in evaluation returned \[2, 9\]"):
        model.check("nets:f", 32)
    monkeypatch.setattr(_Auxiliary, "forward", lambda self, images: self.weight[:2, :1] * torch.zeros(10))
    model.check("nets:f", 32)


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(10)), "uninitialized parameter"),
        (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.AdaptiveAvgPool1d(10)), "empty parameter list"),
        (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10).requires_grad_(False)), "require grad"),
    ],
)
def test_a_model_of_ones_own_that_every_trial_would_fail_with_is_refused_before_any(network, why, monkeypatch):
    monkeypatch.setattr(model, "_own", lambda name, classes: network)
    with pytest.raises(UsageError, match=rf"--model nets:f can't be (laid out|trained) \(.*{why}"):
        model.check("nets:f", 32)


TUNED = {
    "recipe": "tuned",
    "channels_last": True,
    "fused_optimizer": True,
    "pointwise": "linear",
    "small_maps": "linear",
}


def test_a_model_of_ones_own_that_only_one_recipe_can_train_is_refused_with_what_to_do():
    blog, tuned = make_cell(model="odd_nets:Viewed"), make_cell(model="odd_nets:Viewed", **TUNED)
    model.check("odd_nets:Viewed", 32, cells=[blog])
    told = r"can't be trained as the recipe tuned does \(.*view size.*x\.flatten\(1\).* or give --recipe blog"
    with pytest.raises(UsageError, match=told):
        model.check("odd_nets:Viewed", 32, cells=[blog, tuned])


@pytest.mark.parametrize("name", ["OverDepth", "OneByOne"])
def test_models_of_other_dimensions_are_trained_alike_by_both_recipes(name):
    found = [losses(model=f"odd_nets:{name}", batch_size=8, **recipe) for recipe in ({}, TUNED)]
    model.check(f"odd_nets:{name}", 32, cells=[make_cell(model=f"odd_nets:{name}", **TUNED)])
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    assert found[0][0] != found[0][1]


def test_a_kernel_that_is_larger_than_the_map_in_one_dimension_is_refused_as_pytorch_does():
    small = convolution.SmallMapConv2d(2, 2, (5, 4))
    with pytest.raises(RuntimeError, match="can't be greater than actual input size"):
        small(torch.zeros(1, 2, 3, 9))


def test_what_a_model_sets_for_the_process_is_set_back_and_its_state_put_back_and_kept():
    rows = []
    limits._canary_product.cache_clear()
    for _ in range(2):  # the canary's matrices are made in the first
        found = bench(model="odd_nets:Averaging", batch_size=8, cpu_threads=2)
        record = train_epochs(found, epochs=1, startup_seconds=0.0, progress=lambda rate: None, save_model=True)
        measured = record.measurement
        assert (measured.matmul_precision, measured.observed_threads, torch.get_num_threads()) == ("ieee", 2, 2)
        assert measured.flops_per_image == 2 * 2 * 3 * 4  # of 3 colours to 4 classes, forward and back to weights
        rows.append((measured.first_loss, measured.final_loss, record.epochs[0].test_loss))
        saved = torch.load(io.BytesIO(record.files[".pt"]), weights_only=False)
        assert saved["_extra_state"] == {"version": 3}
    assert rows[0] == rows[1]


def test_a_buffer_that_was_assigned_anew_is_put_back():
    found = bench(model="odd_nets:Averaging", batch_size=8)
    held, state = found.network.mean, step.State(found.network, found.optimizer)
    found.take_step(next(found.batches))
    assert found.network.mean is not held
    state.restore()
    assert found.network.mean is held
    assert held.tolist() == [0, 0, 0]


def test_a_model_that_is_wrapped_for_several_workers_is_saved_as_itself():
    found = bench()
    names = list(found.network.state_dict())
    found.network = torch.nn.ModuleDict({"module": found.network})
    found.network.module = found.network["module"]
    assert list(torch.load(io.BytesIO(found.state_dict_bytes()))) == names
