"""What all layers have in common is computed at once as each computes it by itself."""

import copy

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models import convnext

from rresnet.training import convolution
from rresnet.training.layers import AllLayers, EachLayer


def learnt(model, layers, images):
    """Scores, gradients and buffers of a step."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = layers.scores(layers.begin(), images)
    torch.autograd.backward(nn.functional.cross_entropy(scores, torch.arange(len(images))))
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"": scores.detach(), **gradients, **dict(model.named_buffers())}


def small(family):
    """What a family of torchvision's is made of: its smallest takes long where bfloat16 is emulated."""
    if family == "vit":
        sizes = {"num_layers": 2, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128, "dropout": 0.1}
        return models.VisionTransformer(image_size=64, patch_size=32, num_classes=4, **sizes)
    if family == "swin":
        sizes = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4]}
        return models.SwinTransformer(patch_size=[4, 4], stochastic_depth_prob=0.2, num_classes=4, **sizes)
    if family == "convnext":
        widths = convnext.CNBlockConfig(16, 32, 2), convnext.CNBlockConfig(32, None, 2)
        return models.ConvNeXt(list(widths), stochastic_depth_prob=0.1, num_classes=4)
    return models.DenseNet(growth_rate=8, block_config=(2, 3), num_init_features=16, bn_size=2, num_classes=4)


@pytest.fixture
def one_thread():
    """Threads that share a sum add it up in another order each time: the gradient of an indexed table, for one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "small densenet", "small convnext", "small vit", "small swin"],
)
def test_a_model_learns_the_same_bit_for_bit(name):
    torch.manual_seed(0)
    family = name.removeprefix("small ")
    model = models.get_model(name, num_classes=4) if family == name else small(family)
    convolution.as_products(model)
    other, images = copy.deepcopy(model), torch.randn(4, 3, 64, 64)
    torch.manual_seed(1)  # of what is dropped
    expected = learnt(model, EachLayer(model), images)
    torch.manual_seed(1)
    found = learnt(other, AllLayers(other, torch.bfloat16), images)
    assert found.keys() == expected.keys()
    far = {
        of: (value - expected[of]).abs().max() for of, value in found.items() if not torch.equal(value, expected[of])
    }
    assert not far


def test_without_autocast_the_batches_alone_are_counted():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    layers = AllLayers(model, None)
    assert layers.begin() == ()
    assert model[1].num_batches_tracked == 1
    layers.scores((), torch.randn(2, 3, 8, 8))
    assert model[1].num_batches_tracked == 1
    assert model[1].running_mean.any()


def test_a_batch_norm_that_averages_by_its_count_counts_itself():
    model = nn.Sequential(nn.BatchNorm2d(2, momentum=None), nn.BatchNorm2d(2, track_running_stats=False))
    layers = AllLayers(model, torch.bfloat16)
    layers.scores(layers.begin(), torch.randn(2, 2, 4, 4))
    assert model[0].num_batches_tracked == 1


def test_there_need_be_nothing_in_common():
    layers = AllLayers(nn.Flatten(), torch.bfloat16)
    assert layers.scores(layers.begin(), torch.ones(1, 2, 1)).tolist() == [[1.0, 1.0]]
