"""Models as users write them, with what torchvision's do not have."""

import torch
from torch import nn


class Viewed(nn.Module):
    """Flattens by `view`, which channels-last maps do not allow."""

    def __init__(self, classes):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, stride=8, padding=1), nn.Linear(64, classes)

    def forward(self, images):
        maps = self.conv(images)
        return self.fc(maps.view(len(maps), -1))


class OverDepth(nn.Module):
    """A convolution in three dimensions."""

    def __init__(self, classes):
        super().__init__()
        self.conv, self.fc = nn.Conv3d(1, 4, 3, stride=8, padding=1), nn.Linear(64, classes)

    def forward(self, images):
        return self.fc(self.conv(images[:, None]).flatten(1))


class OneByOne(nn.Module):
    """Convolves each image by itself."""

    def __init__(self, classes):
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 4, 3, stride=8, padding=1), nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(64, classes)

    def forward(self, images):
        return self.fc(torch.stack([self.narrow(self.wide(image)) for image in images]).flatten(1))


class Averaging(nn.Module):
    """Assigns a buffer anew, drops out, has a state that is no tensor, and sets what is the process's."""

    def __init__(self, classes):
        super().__init__()
        [0.5 * rate.item() for rate in torch.linspace(0, 1, 2)]  # as for stochastic depth: not on the meta device
        torch.set_num_threads(1 + torch.get_num_threads() % 2)
        torch.set_float32_matmul_precision("medium")
        self.fc = nn.Linear(3, classes)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, images):
        colours = images.mean((2, 3))
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * colours.detach().mean(0)
        return self.fc(nn.functional.dropout(colours - self.mean, training=self.training))

    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        assert state == {"version": 3}
