"""Machines, cells and a model that the tests share."""

from types import SimpleNamespace

from rresnet.cell import Cell
from rresnet.hardware import Hardware

LAPTOP = Hardware(
    hostname="laptop",
    cpu_model="A CPU",
    cpu_count=8,
    cpu_cores=4,
    cpu_bf16=False,
    gpu_count=0,
    gpu_name=None,
    driver_version=None,
    gpu_capability=None,
    compiler=True,
    triton=True,
    gcc=True,
)
A100 = Hardware(
    hostname="a100",
    cpu_model="B CPU",
    cpu_count=16,
    cpu_cores=16,
    cpu_bf16=True,
    gpu_count=1,
    gpu_name="NVIDIA A100",
    driver_version="570.1",
    gpu_capability=(8, 0),
    compiler=True,
    triton=True,
    gcc=True,
)

IMAGES = SimpleNamespace(  # as far as they are looked at before they are trained on
    train=SimpleNamespace(labels=range(1000)),
    test=SimpleNamespace(labels=range(10)),
    classes=("a", "b"),
    short_side=None,
    fingerprint="9f3a",
)


def make_cell(**changes):
    values = {
        "device": "cpu",
        "recipe": "blog",
        "precision": "fp32",
        "input": "dataloader",
        "execution": "eager",
        "channels_last": False,
        "fused_optimizer": False,
        "model": "resnet18",
        "dataset": "fashion-mnist-12k",
        "image_size": 32,
        "batch_size": 8,
        "num_workers": 1,
        "cpu_threads": 2,
        "seed": 42,
    }
    return Cell(**{**values, **changes})


def in_place():
    """A block whose ReLU writes over what its shortcut adds."""
    from torch import nn

    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.conv = nn.ReLU(inplace=True), nn.Conv2d(16, 16, 1, bias=False)

        def forward(self, x):
            return self.conv(self.relu(x)) + x

    return InPlace()


def few_layers(classes):
    """One of each kind of layer that ResNet-50 has, for what takes long with many: `--model samples:few_layers`."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False),  # to a map of 4 x 4
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(8, 16, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),  # over a map of 2 x 2, of images of 32 x 32
        nn.BatchNorm2d(16),
        in_place(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, classes),
    )


def dropping_most(classes):
    """Whose scores are those of other inputs at every call: `--model samples:dropping_most`."""
    from torch import nn

    return nn.Sequential(nn.Dropout(0.9), nn.Flatten(), nn.Linear(3 * 32 * 32, classes))
