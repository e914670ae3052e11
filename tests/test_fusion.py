"""What a captured step computes with on a GPU: on a processor its kernels are interpreted, and its streams are one."""

import contextlib
import copy
import subprocess
from dataclasses import replace
from unittest import mock

import pytest
import torch
import torchvision
from benches import image_data, replaying, small_bench
from small_nets import DEVICE, ON_GPU, as_kind, far, images, laid_out, small_resnet
from torch import nn

from rresnet.training import step
from rresnet.training.layers import AllLayers

pytest.importorskip("triton", reason="Triton comes with PyTorch's CUDA")
from triton import errors

from rresnet.training import adam, kernels, norm, pool, side
from rresnet.training.captured import FusedLayers


class OneStream:
    """In place of a stream: everything runs at once and in order."""

    def wait_stream(self, other):
        pass

    def wait_event(self, event):
        pass

    def record_event(self):
        return object()


@pytest.fixture(autouse=True)
def one_stream(monkeypatch):
    if ON_GPU:
        monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee")
    else:
        monkeypatch.setattr(torch.cuda, "Stream", OneStream)
        monkeypatch.setattr(torch.cuda, "current_stream", OneStream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())


POOLS = [((3, 40, 7, 9), (3, 2, 1)), ((2, 70, 6, 5), (2, 2, 0)), ((1, 8, 9, 9), (3, 1, 1)), ((2, 8, 8, 8), (3, 3, 0))]


@pytest.mark.parametrize(("shape", "pooling"), POOLS)
def test_a_max_pooling_is_pytorchs_also_where_values_are_equal(shape, pooling):
    plain = nn.MaxPool2d(*pooling)
    leaves = [images(*shape).relu().requires_grad_() for _ in range(2)]
    results = [layer(leaf) for layer, leaf in zip((plain, as_kind(pool.FastMaxPool2d, plain)), leaves, strict=True)]
    for result in results:
        result.backward(images(*result.shape, seed=1))
    assert torch.equal(*results)
    torch.testing.assert_close(*(leaf.grad for leaf in leaves), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        (nn.MaxPool2d(3, 2, 1), True),
        (nn.MaxPool2d(11), True),
        (nn.MaxPool2d(12), False),
        (nn.MaxPool2d((3, 2)), False),
        (nn.MaxPool2d(3, (2, 1)), False),
        (nn.MaxPool2d(3, dilation=2), False),
        (nn.MaxPool2d(3, ceil_mode=True), False),
        (nn.MaxPool2d(3, return_indices=True), False),
    ],
)
def test_other_poolings_are_left_to_pytorch(plain, expected):
    assert pool.is_square(plain) is expected


@pytest.mark.parametrize("shape", [(70, 64, 3, 3), (2, 3, 5, 5), (33,)])
@pytest.mark.parametrize("programs", [1, 64])
def test_adam_is_pytorchs(monkeypatch, shape, programs):
    monkeypatch.setattr(adam, "_PROGRAMS", programs)
    weights = [nn.Parameter(images(*shape)) for _ in range(2)]
    theirs, ours = (torch.optim.Adam([weight], lr=1e-3, fused=True) for weight in weights)
    for turn in range(4):
        gradient = images(*shape, seed=turn, dtype=torch.bfloat16) * 10.0 ** (turn - 2)
        weights[0].grad = gradient.float()
        theirs.step()
        (count,) = adam.steps_of([weights[1]], ours)
        count += 1
        given = gradient.contiguous() if turn % 2 else gradient  # laid out otherwise than the weight
        adam.update(weights[1], adam.laid_out(given, weights[1]), ours)
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-6)
    for name in ("step", "exp_avg", "exp_avg_sq"):
        of_both = (optimizer.state[weight][name] for optimizer, weight in zip((theirs, ours), weights, strict=True))
        torch.testing.assert_close(*of_both, rtol=1e-4, atol=1e-7)


def learnt(model, layers_of, inputs, dtype=None, steps=1):
    """Losses of some steps, and Adam's first moments after them: after one step a tenth of the gradients."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    layers = layers_of(model, dtype, optimizer)
    losses = []
    for _ in range(steps):
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=dtype is not None):
            scores = layers.scores(layers.begin(), inputs).flatten(1)
            loss = nn.functional.cross_entropy(scores, torch.arange(len(inputs), device=DEVICE) % 4)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        layers.finish()
        losses.append(loss.item())
    moments = {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}
    assert all(state["step"] == steps for state in moments.values())
    return losses, {name: state["exp_avg"] for name, state in moments.items()}


def unfused(model, dtype, optimizer):
    return AllLayers(model, dtype)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("pointwise", [False, True])
def test_a_model_learns_what_its_layers_by_themselves_learn(dtype, pointwise):
    torch.manual_seed(0)
    model = laid_out(small_resnet(), pointwise, DEVICE)
    other, inputs = copy.deepcopy(model), images(4, 3, 16, 16)
    _, exact = learnt(copy.deepcopy(model), unfused, inputs)
    expected, theirs = learnt(model, unfused, inputs, dtype)
    found, ours = learnt(other, FusedLayers, inputs, dtype)
    assert found == pytest.approx(expected, rel=1e-5 if dtype is None else 0.02)
    if dtype:  # both are as far from the exact gradients
        theirs, ours = ([far(moments[name], moment) for name, moment in exact.items()] for moments in (theirs, ours))
        assert sum(ours) < 1.2 * sum(theirs)
    else:
        assert max(far(ours[name], moment) for name, moment in exact.items()) < 1e-3
    buffers = dict(other.named_buffers())
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, rtol=1e-3 if dtype is None else 0.1, atol=5e-3)
    expected, _ = learnt(model, unfused, inputs, dtype, steps=2)
    found, _ = learnt(other, FusedLayers, inputs, dtype, steps=2)
    assert found == pytest.approx(expected, rel=1e-3 if dtype is None else 0.05)


class Rows(nn.Module):
    """Images as rows of pixels, of which a linear layer sees each."""

    def forward(self, x):
        return x.flatten(2).transpose(1, 2)


LAYERS = {
    "few channels": (nn.Conv2d(3, 16, 5, 2, 2, bias=False), 8),
    "one pixel": (nn.Conv2d(3, 8, 3, 1, 1, bias=False), 1),
    "one pixel, through a corner": (nn.Conv2d(3, 8, 3, 3, 2, bias=False), 1),
    "one pixel, dilated": (nn.Conv2d(3, 8, 3, 1, 2, dilation=2, bias=False), 1),
    "one pixel, in groups": (nn.Conv2d(3, 9, 3, 1, 1, groups=3, bias=False), 1),
    "groups": (nn.Conv2d(3, 9, 3, 1, 1, groups=3, bias=False), 6),
    "dilated": (nn.Conv2d(3, 8, 3, 1, 2, dilation=2, bias=False), 6),
    "with a bias": (nn.Conv2d(3, 8, 3, 1, 1), 6),
    "pixels passed over": (nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 8, 1, (2, 3), bias=False)), 7),
    "padding by name": (nn.Conv2d(3, 8, 3, padding="same", bias=False), 6),
    "padding that mirrors": (nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect", bias=False), 6),
    "rows": (nn.Sequential(Rows(), nn.Linear(3, 8)), 4),
    "rows without a bias": (nn.Sequential(Rows(), nn.Linear(3, 8, bias=False)), 4),
}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_learns_on_the_side_what_it_learns_by_itself(kind, dtype):
    layer, size = LAYERS[kind]
    torch.manual_seed(0)
    inputs, layer = images(8, 3, size, size), copy.deepcopy(layer).to(DEVICE)
    model = laid_out(nn.Sequential(layer, nn.Flatten(), nn.Linear(layer(inputs)[0].numel(), 4)), device=DEVICE)
    other = copy.deepcopy(model)
    expected, theirs = learnt(model, unfused, inputs, dtype)
    found, ours = learnt(other, FusedLayers, inputs, dtype)
    assert found == pytest.approx(expected, rel=1e-6 if dtype is None else 0.02)
    limit = 1e-5 if dtype is None else 0.25  # of 8 bits
    assert max(far(ours[name], moment) for name, moment in theirs.items()) < limit


def test_one_pixel_is_multiplied_and_few_channels_are_made_eight(monkeypatch):
    widened, widen = [], side._widened
    monkeypatch.setattr(side, "_widened", lambda tensor: widened.append(tensor.shape[1]) or widen(tensor))
    for kind, channels in (
        ("few channels", [3, 3]),
        ("groups", []),
        ("dilated", [3, 3]),
        ("one pixel, dilated", [3, 3]),
    ):
        layer, size = LAYERS[kind]
        model = laid_out(nn.Sequential(copy.deepcopy(layer), nn.AdaptiveAvgPool2d(1), nn.Flatten()), device=DEVICE)
        learnt(model, FusedLayers, images(8, 3, size, size), torch.bfloat16)
        assert widened == channels
        widened.clear()
    monkeypatch.setattr(side._Convolution, "apply", None)  # which is not called
    for kind in ("one pixel", "one pixel, through a corner"):
        model = laid_out(nn.Sequential(copy.deepcopy(LAYERS[kind][0]), nn.Flatten()), device=DEVICE)
        learnt(model, FusedLayers, images(8, 3, 1, 1), torch.bfloat16)


class Twice(nn.Module):
    """Layers that are used twice: nothing of them may be learnt before the second time."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(self.norm(self.conv(x))))


class Additions(nn.Module):
    """Sums of what a batch norm gives, in each form."""

    def __init__(self, form):
        super().__init__()
        self.form, self.norm, self.other = form, nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        y, z = self.norm(x), self.other(x.sin())
        if self.form == "over another's":  # which is used again
            w = z.cos()
            w += y
            return w * z
        if self.form == "over its own":
            y += z
            return y.relu() + z
        if self.form == "scaled":
            return torch.add(y, z, alpha=2).relu()
        return (y + y).relu() + z if self.form == "with itself" else (1 + y) * z


@pytest.mark.parametrize("form", ["twice", "over another's", "over its own", "scaled", "with itself", "a number"])
def test_models_of_any_form_stay_what_they_are(form):
    torch.manual_seed(0)
    first = Twice() if form == "twice" else Additions(form)
    model = laid_out(nn.Sequential(first, nn.Flatten(), nn.Linear(3 * 36, 4)), device=DEVICE)
    other, inputs = copy.deepcopy(model), images(8, 3, 6, 6)
    expected, theirs = learnt(model, unfused, inputs, steps=2)
    found, ours = learnt(other, FusedLayers, inputs, steps=2)
    assert found == pytest.approx(expected, rel=1e-5)
    assert max(far(ours[name], moment) for name, moment in theirs.items()) < 1e-4


def test_a_resnet_is_fused_throughout_and_stays_what_it_was():
    model = laid_out(torchvision.models.resnet50(num_classes=4), device=DEVICE)
    kinds = [type(module) for module in model.modules()]
    layers = FusedLayers(model, torch.bfloat16, torch.optim.Adam(model.parameters(), fused=True))
    assert [type(module) for module in model.modules()] == kinds
    modules = list(layers._model.modules())
    norms = [module for module in modules if type(module) is norm.BatchNormReLU]
    assert (len(norms), sum(one.relu for one in norms), sum(one.twice for one in norms)) == (53, 49, 12)
    sides = [module for module in modules if isinstance(module, side.SideConv2d | side.SidePointwiseConv2d)]
    assert [one.place for one in sides] == list(range(53))
    assert sum(type(module) is pool.FastMaxPool2d for module in modules) == 1
    assert not any("relu" in str(node.target) for node in layers._model.graph.nodes)
    assert list(layers._weights) == ["fc.bias"]
    shared = dict(layers._model.named_parameters())
    assert all(shared[name] is parameter for name, parameter in model.named_parameters())


class Offset(nn.Module):
    """A linear layer whose input is shifted by what is made of a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("offset", torch.arange(4.0))
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x + self.offset.view(1, -1))


def test_tracing_leaves_nothing_on_a_model():
    model = Offset()
    held = set(vars(model))
    FusedLayers(model, None, torch.optim.Adam(model.parameters()))
    assert set(vars(model)) == held


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (torch.optim.SGD, {}),
        (torch.optim.AdamW, {}),
        *((torch.optim.Adam, {name: value}) for name, value in (("weight_decay", 0.1), ("amsgrad", True))),
        (torch.optim.Adam, {"maximize": True}),
    ],
)
def test_an_optimizer_that_does_more_than_the_kernel_is_refused(kind, more):
    model = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=f"which this {kind.__name__} is not: use --kernels pytorch"):
        FusedLayers(model, None, kind(model.parameters(), lr=0.1, **more))
    groups = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.2}]
    with pytest.raises(ValueError, match="Adam alike for all weights"):
        FusedLayers(model, None, torch.optim.Adam(groups))


@pytest.mark.parametrize("error", [errors.TritonError("no ptxas"), subprocess.CalledProcessError(1, "gcc")])
def test_a_kernel_that_can_not_be_made_says_what_to_do(error):
    kernel = mock.MagicMock(__name__="adam", **{"__getitem__.return_value.side_effect": error})
    with pytest.raises(RuntimeError, match=r"kernel adam can't be made here .*(ptxas|gcc).*use --kernels pytorch"):
        kernels.launch(kernel, (1,))


@pytest.mark.skipif(ON_GPU, reason="the streams are real there")
def test_what_is_read_on_the_side_is_waited_for_before_it_is_too_much(monkeypatch):
    waited = []
    monkeypatch.setattr(OneStream, "wait_event", lambda self, event: waited.append(event))
    monkeypatch.setattr(OneStream, "record_event", lambda self: len(events.append(0) or events))
    events = []
    weight = nn.Parameter(images(4, 4))
    streams = side.SideStreams([weight], None, torch.optim.Adam([weight], fused=True))
    streams.begin()
    monkeypatch.setattr(side, "READ_BYTES", 100)
    for _ in range(4):
        streams.learn(0, lambda: torch.ones_like(weight), torch.ones(10))  # of 40 bytes
    assert waited == [2, 3]  # the first is that of the cast
    streams.join()
    streams.learn(0, lambda: torch.ones_like(weight), torch.ones(10))
    assert waited == [2, 3]


def test_a_step_that_fails_leaves_nothing_on_the_side(monkeypatch):
    joined = []
    monkeypatch.setattr(side.SideStreams, "join", lambda self: joined.append(self))
    one = small_bench(image_data(8), batch_size=8, channels_last=True, fused_optimizer=True)
    cell = replace(one.cell, device="gpu", execution="graph", kernels="fused", model="few_layers")
    with mock.patch.object(adam, "update", side_effect=torch.OutOfMemoryError), pytest.raises(torch.OutOfMemoryError):
        step.Prepared(cell, one.network, one.optimizer, one.inputs.load, one.inputs.examples(), replaying)
    assert len(joined) == 1
