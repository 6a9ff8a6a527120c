"""Images in other colours: what changes, what stays, and that every process draws the same."""

import numpy as np
import torch
from end2race.augment import colour_maps, mix_colours
from end2race.config import TrainSection
from end2race.data.batches import BatchReader
from end2race.data.dataset import open_dataset
from end2race.data.windows import windows
from end2race.training import Batches
from loom.loop import Shard


def pictures(windows=3):
    """Windows of two frames in three flat colours: few, so that a colour can be followed."""
    generator = torch.Generator().manual_seed(0)
    palette = torch.randint(0, 256, (3, 3), dtype=torch.uint8, generator=generator)
    place = torch.randint(0, 3, (windows, 2, 8, 16), generator=generator)
    return palette[place], place


def test_one_colour_stays_one_colour_in_every_frame_of_a_window():
    images, place = pictures()
    mixed = mix_colours(images, colour_maps(np.random.default_rng(0), 3, share=1.0))
    assert mixed.dtype == torch.uint8
    for window in range(3):
        colours = [mixed[window][place[window] == colour].unique(dim=0) for colour in range(3)]
        assert [len(found) for found in colours] == [1, 1, 1]
        assert not torch.equal(mixed[window], images[window])
        assert len(torch.cat(colours).unique(dim=0)) == 3  # what differed still does


def test_a_share_of_the_windows_keeps_its_colours():
    images, _ = pictures(windows=200)
    mixed = mix_colours(images, colour_maps(np.random.default_rng(0), 200, share=0.25))
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(images, mixed, strict=True)])
    assert 0.68 < kept.float().mean() < 0.82


def test_a_black_image_stays_even():
    black = torch.zeros(1, 1, 4, 4, 3, dtype=torch.uint8)
    mixed = mix_colours(black, np.ones((1, 3, 3), np.float32))
    assert len(mixed.flatten().unique()) == 1


def test_any_number_of_processes_paints_the_same(small):
    dataset = open_dataset(small({"train": (9, 9)}, target=True))
    reader = BatchReader(dataset, windows(dataset, "train", 3), images=True, points=False)
    draw = Batches(reader, [(np.arange(len(reader)), 8)], TrainSection(colour_mixing=0.5), seed=1)
    whole = draw(0, Shard()).images
    parts = torch.cat([draw(0, Shard(rank, 4)).images for rank in range(4)])
    assert torch.equal(whole, parts)
    plain = Batches(reader, [(np.arange(len(reader)), 8)], TrainSection(colour_mixing=0), seed=1)
    assert not torch.equal(whole, plain(0, Shard()).images)
