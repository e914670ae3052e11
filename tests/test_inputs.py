import itertools

import pytest
import torch
from benches import CPU, bench, split
from hypothesis import given
from hypothesis import strategies as st
from samples import make_cell

from rresnet.training.inputs import EpochSampler, Inputs, normalise


def test_the_sampler_draws_what_the_blogs_random_sampler_draws():
    expected = list(torch.utils.data.RandomSampler(range(20), generator=torch.Generator().manual_seed(7)))
    assert list(EpochSampler(20, 8, seed=7)) == expected


@given(st.integers(2, 300), st.integers(1, 64), st.integers(1, 5), st.integers(0, 100))
def test_workers_share_an_epoch_without_using_an_image_twice(images, batch_size, world, seed):
    if images < world:
        return
    shares = [list(EpochSampler(images, batch_size, seed, rank, world)) for rank in range(world)]
    used = list(itertools.chain.from_iterable(shares))
    assert len(set(used)) == len(used)
    assert len({len(share) for share in shares}) == 1  # all take as many steps
    assert images - len(used) <= 2 * world - 1
    assert len(shares[0]) == 1 or len(shares[0]) % batch_size != 1 or batch_size == 1


def test_the_last_short_batch_is_trained_and_counted():
    inputs = Inputs(split(20), make_cell(batch_size=8, input="resident"), CPU)
    assert [len(inputs.load(*raw)[1]) for raw in inputs.epoch()] == [8, 8, 4]
    assert inputs.images_per_epoch == 20


def test_a_last_batch_of_one_is_left_out_because_batchnorm_can_not_train_on_it():
    inputs = Inputs(split(17), make_cell(batch_size=8, input="resident"), CPU)
    assert [len(inputs.load(*raw)[1]) for raw in inputs.epoch()] == [8, 8]
    assert inputs.images_per_epoch == 16


@pytest.mark.parametrize("channels", [1, 3])
def test_both_input_paths_give_the_same_batches(channels):
    data = split(20, channels)
    paths = [Inputs(data, make_cell(input=path), CPU) for path in ("dataloader", "resident")]
    for _ in range(2):  # the second epoch is in another order, again the same for both
        batches = (itertools.starmap(path.load, path.epoch()) for path in paths)
        for (images, labels), (resident_images, resident_labels) in zip(*batches, strict=True):
            assert images.shape[1:] == (3, 32, 32)
            torch.testing.assert_close(images, resident_images, rtol=0, atol=1e-6)
            assert labels.tolist() == resident_labels.tolist()


def test_pixels_are_brought_to_minus_one_to_one():
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).reshape(1, 1, 1, 3)
    assert (
        normalise(images)[0, :, 0].tolist() == [[-1.0, 1.0, pytest.approx(-0.6)]] * 3
    )  # 51 / 255 = 0.2, (0.2 - 0.5) / 0.5


def test_channels_last_lays_out_images_and_weights():
    found = bench(channels_last=True, input="resident")
    images, _ = found.inputs.load(*next(found.inputs.epoch()))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert found.network.conv1.weight.is_contiguous(memory_format=torch.channels_last)
