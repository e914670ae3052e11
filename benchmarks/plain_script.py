"""The blog's script as a person writes it, without Ray or rresnet's training code, answering to a stopwatch.

Reads lines "STEPS" from standard input; for each it trains that many steps after one to warm up, and prints
"IMAGES SECONDS". Started by the benchmarks beside it; the data set alone comes from rresnet.

Use: echo 5 | python benchmarks/plain_script.py --batch-size 64 --threads 2 [--device cuda]
"""

import argparse
import sys
import time

import numpy as np
import torch
from PIL import Image
from torch import nn, optim
from torchvision import models, transforms

from rresnet import data


class ResNet50(nn.Module):
    """The blog's model: ResNet-50 with a new last layer of ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.model = models.resnet50(weights=None)
        self.model.fc = nn.Linear(2048, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, 10] of images [N, 3, S, S]."""
        return self.model(x)


class Images(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Arrays, through Pillow and the blog's transforms, widened to three channels so that the script runs."""

    def __init__(self, split: data.Split) -> None:
        self.images, self.labels = split.images, split.labels
        self.transform = transforms.Compose(
            [transforms.Grayscale(3), transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(np.asarray(self.images[index, 0]))), int(self.labels[index])


def main() -> None:
    """Train when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(42)
    dataset = Images(data.load("fashion-mnist-12k", image_size=32).train)
    train_loader = torch.utils.data.DataLoader(dataset=dataset, batch_size=arguments.batch_size, shuffle=True)
    device = torch.device(arguments.device)
    model = ResNet50().to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.Adam(model.parameters(), lr=0.001)

    def train(steps: int) -> int:
        """Train so many steps; returns on how many images, the last batch of an epoch being shorter."""
        seen = 0
        for _ in range(steps):
            images, labels = next(stream)
            seen += len(labels)
            images, labels = images.to(device), labels.to(device)
            outputs = model(images)
            loss = criterion(outputs, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return seen

    def wait() -> None:
        """Until a GPU has done what it was given."""
        if device.type == "cuda":
            torch.cuda.synchronize()

    stream = (batch for _ in iter(int, 1) for batch in train_loader)
    train(3)
    print("ready", flush=True)
    for line in sys.stdin:
        steps = int(line)
        train(1)
        wait()
        start = time.perf_counter()
        seen = train(steps)
        wait()
        print(seen, time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
