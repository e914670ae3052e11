"""What all layers have in common is computed at once as each computes it by itself."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from rresnet.training import convolution
from rresnet.training.layers import AllLayers, EachLayer


def learnt(model, layers, images):
    """Scores, gradients and buffers of a step."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = layers.scores(layers.begin(), images)
    torch.autograd.backward(nn.functional.cross_entropy(scores, torch.arange(len(images))))
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"": scores.detach(), **gradients, **dict(model.named_buffers())}


def small_vit():
    """What torchvision's vision transformers are made of: the smallest takes minutes where bfloat16 is emulated."""
    sizes = {"num_layers": 2, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128, "dropout": 0.1}
    return torchvision.models.VisionTransformer(image_size=64, patch_size=32, num_classes=4, **sizes)


@pytest.fixture
def one_thread():
    """Threads that share a sum add it up in another order each time: the gradient of an indexed table, for one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "densenet121", "convnext_tiny", "small vit", "squeezenet1_1", "swin_t"]
)
def test_a_model_learns_the_same_bit_for_bit(name):
    torch.manual_seed(0)
    model = small_vit() if name == "small vit" else torchvision.models.get_model(name, num_classes=4)
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
