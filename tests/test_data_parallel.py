"""Two workers train as one with the doubled batch: the same images, the same losses, the same weights."""

import numpy as np
import pytest
import torch
import torch.multiprocessing
from samples import make_cell
from torch import distributed, nn

from rresnet.data import Split
from rresnet.training import model, step
from rresnet.training.inputs import Inputs

STEPS = 5
DEVICE = torch.device("cpu")
AXES = {"model": "samples:few_layers", "input": "resident", "channels_last": True, "fused_optimizer": True}


def split():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (48, 1, 16, 16), dtype=np.uint8)
    return Split(images=images, labels=random.integers(0, 3, 48))


def trained(cell, rank=0, world=1):
    """The loss of each step, over all workers; what was trained on; and the weights, in float64."""
    torch.set_num_threads(1)
    network, _ = model.build(cell, 3, DEVICE)
    network.double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # it normalises by each worker's own batch: the one thing that differs
            module.eval()
            module.train = lambda mode=True, module=module: module
    whole = nn.parallel.DistributedDataParallel(network, gradient_as_bucket_view=True) if world > 1 else network
    inputs = Inputs(split(), cell, DEVICE, rank, world)

    def load(*raw):
        images, labels = inputs.load(*raw)
        return images.double(), labels

    take, batches = step.Eager(cell, whole, model.optimizer_of(whole, cell), load), inputs.epoch()
    losses, indices = [], []
    for _ in range(STEPS):
        raw = next(batches)
        loss = take(*raw) / world
        if world > 1:
            distributed.all_reduce(loss)
        losses.append(loss.item())
        indices += raw[0].tolist()
    return losses, indices, network.state_dict()


def worker(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(trained(make_cell(batch_size=4, **AXES), rank, 2), f"{folder}/{rank}")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    torch.multiprocessing.spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / str(rank), weights_only=True) for rank in (0, 1)]


def test_two_workers_are_one_with_the_doubled_batch(both):
    losses, indices, weights = trained(make_cell(batch_size=8, **AXES))
    (of_two, first, shared), (again, second, others) = both
    assert losses[0] != pytest.approx(losses[-1], rel=1e-3)  # they did train
    assert of_two == again == pytest.approx(losses, rel=1e-9)
    assert [index for pair in zip(first, second, strict=True) for index in pair] == indices
    for name, tensor in weights.items():
        torch.testing.assert_close(shared[name], tensor, rtol=1e-6, atol=1e-9)
        assert torch.equal(shared[name], others[name])


def test_no_image_is_trained_on_twice_in_an_epoch(both):
    (_, first, _), (_, second, _) = both
    assert len(set(first + second)) == len(first + second) == STEPS * 8
