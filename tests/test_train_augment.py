"""Training pixels: transparency comes back out of two views, harm stays in the frame, and nothing vanishes on its background."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moderation_client.contract import ImageSpec
from train.augment import Augment, Strength
from train.data import Example
from train.errors import DataError
from train.pixels import all_views, collate_views, layered, worst_view
from train.sampling import Draw


def square(side: int = 64) -> torch.Tensor:
    """Layers of a black square that touches the frame on all sides, opaque in the middle half."""
    layers = torch.zeros(1, 4, side, side, dtype=torch.uint8)
    layers[:, 3, side // 4 : -side // 4, side // 4 : -side // 4] = 255
    return layers


def test_layers_composite_to_what_the_service_sees(tmp_path: Path) -> None:
    """Colour times opacity plus ground gives back both views of a half-transparent picture, to a level."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 40, 4), dtype=np.uint8), "RGBA").save(tmp_path / "a.png")
    example = Example(path=tmp_path / "a.png")
    layers = layered(example, 32).astype(np.float64)
    views = all_views(example, ImageSpec(height=32, width=32))
    for ground, view in ((255.0, views[0]), (0.0, views[1])):
        composite = layers[:3] + (1.0 - layers[3] / 255.0) * ground
        assert np.abs(composite.transpose(1, 2, 0) - view).max() <= 2.0


def test_opaque_pictures_have_full_opacity(tmp_path: Path) -> None:
    """A photograph is left as it is, with opacity 255 everywhere."""
    Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / "a.png")
    layers = layered(Example(path=tmp_path / "a.png"), 8)
    np.testing.assert_array_equal(layers[:, 0, 0], [10, 20, 30, 255])


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    """The decoder's own reason comes with the path."""
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"a\.png cannot be used"):
        layered(Example(path=tmp_path / "a.png"), 8)


def test_nothing_leaves_the_frame() -> None:
    """However turned, shrunk and moved, the picture's corners stay inside: no crop removes the harm."""
    layers = torch.zeros(256, 4, 64, 64, dtype=torch.uint8)
    layers[:, 3] = 255
    augment = Augment(size=64, strength=Strength(plain=0.0))
    moved = augment._move(layers.float(), torch.zeros(256, dtype=torch.bool), Draw(seed=0, epoch=0, step=0))
    border = torch.cat([moved[:, 3, 0], moved[:, 3, -1], moved[:, 3, :, 0], moved[:, 3, :, -1]], 1)
    # A full square may touch the frame with an edge or a corner, never lie across it: its area is kept.
    area = moved[:, 3].sum((1, 2)) / 255.0
    assert float(area.min()) > 0.5 * (0.55 * 64) ** 2
    assert float((border > 127).float().mean()) < 0.5


def test_plain_pictures_are_left_as_they_are_or_mirrored_and_others_are_not() -> None:
    """To the last level, both ways occur; what is not plain is moved in the same batch."""
    generator = torch.Generator().manual_seed(0)
    layers = torch.randint(0, 256, (64, 4, 32, 32), dtype=torch.uint8, generator=generator)
    plain = torch.arange(64) < 32
    moved = Augment(size=32)._move(layers, plain, Draw(seed=0, epoch=0, step=0))
    same = (moved == layers).flatten(1).all(1)
    mirrored = (moved == layers.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored)[:32].all())
    assert bool(same.any())
    assert bool(mirrored.any())
    assert not bool((same | mirrored)[32:].any())


def test_hidden_art_gets_a_ground_it_stands_out_from() -> None:
    """A black square is never left on black: in every draw some pixels differ from the ground by the contrast."""
    augment = Augment(size=64, strength=Strength(recolour=0.0, invert=0.0, grey=0.0, soften=0.0, noise=0.0))
    images = augment(square().expand(256, -1, -1, -1), Draw(seed=1, epoch=0, step=0))
    spread = images.mean(3).flatten(1)
    assert float((spread.amax(1) - spread.amin(1)).min()) > 24.0


def test_augmentation_is_a_function_of_the_generator() -> None:
    """The same seed gives the same pixels, another one others; values stay in 0..255."""
    augment = Augment(size=32)
    layers = torch.randint(0, 256, (16, 4, 64, 64), dtype=torch.uint8)
    layers[:, :3] = torch.minimum(layers[:, :3], layers[:, 3:])
    first, second, other = (augment(layers, Draw(seed=seed, epoch=0, step=0)) for seed in (3, 3, 4))
    assert first.shape == (16, 32, 32, 3)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert 0.0 <= float(first.min()) <= float(first.max()) <= 255.0


def test_worst_view_is_the_maximum_of_each_image() -> None:
    """Views of several images are stacked; per image and label the largest counts."""
    first, second = np.zeros((2, 4, 4, 3), np.uint8), np.ones((1, 4, 4, 3), np.uint8)
    views, counts, targets = collate_views([(first, torch.zeros(2)), (second, torch.ones(2))])
    assert views.shape == (3, 4, 4, 3)
    assert counts.tolist() == [2, 1]
    assert targets.tolist() == [[0, 0], [1, 1]]
    values = torch.tensor([[0.1, 0.9], [0.5, 0.2], [0.3, 0.3]])
    np.testing.assert_allclose(worst_view(values, counts), [[0.5, 0.9], [0.3, 0.3]])


def test_two_processes_draw_what_one_draws() -> None:
    """Rank r of two gets every second row of the batch that one process would see."""
    augment = Augment(size=32, strength=Strength(noise=0.0))
    layers = torch.randint(0, 256, (8, 4, 32, 32), dtype=torch.uint8)
    whole = augment._move(layers.float(), torch.zeros(8, dtype=torch.bool), Draw(seed=0, epoch=2, step=3))
    for rank in range(2):
        draw = Draw(seed=0, epoch=2, step=3, rank=rank, num_replicas=2)
        half = augment._move(layers[rank::2].float(), torch.zeros(4, dtype=torch.bool), draw)
        assert torch.equal(half, whole[rank::2])
