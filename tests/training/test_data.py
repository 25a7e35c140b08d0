from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import picture
from PIL import Image

from training.data import CropSampler, build_cache, dihedral, open_cache, open_photograph, photographs_in
from training.degrade import Degradations
from training.resize import shrink


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, size in enumerate([(131, 170), (160, 120), (200, 203)]):
        Image.fromarray(picture(*size, seed=i)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_cache_holds_aligned_pairs(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    build_cache(photographs_in([folder]), cache, long_side=1000)
    photographs = open_cache(cache)
    assert [image.shape for image in photographs.hr] == [(128, 168, 3), (160, 120, 3), (200, 200, 3)]
    for scale in (2, 4):
        for high, low in zip(photographs.hr, photographs.lr[scale], strict=True):
            np.testing.assert_array_equal(low, shrink(np.asarray(high), scale))


def test_cache_is_rebuilt_for_other_photographs(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    files = photographs_in([folder])
    build_cache(files, cache, long_side=1000)
    build_cache(files[:2], cache, long_side=1000)
    assert len(open_cache(cache)) == 2


def test_large_photographs_are_shrunk(folder: Path) -> None:
    assert open_photograph(folder / "2.png", long_side=100).shape == (96, 96, 3)


def test_held_out_photographs_are_not_trained_on(folder: Path, tmp_path: Path) -> None:
    build_cache(photographs_in([folder]), tmp_path / "cache", long_side=1000)
    training, held_out = open_cache(tmp_path / "cache").split(3)
    assert (training.names, held_out.names) == (["0.png", "2.png"], ["1.png"])


@pytest.mark.parametrize("scale", [2, 4])
def test_crops_are_aligned_and_in_pixel_shuffle_order(folder: Path, tmp_path: Path, scale: int) -> None:
    build_cache(photographs_in([folder]), tmp_path / "cache", long_side=1000)
    sampler = CropSampler(open_cache(tmp_path / "cache"), detail_power=0.5, rng=np.random.default_rng(3))
    low, target = sampler.batch(16, 16, scale)
    assert low.shape == (16, 16, 16, 3)
    assert target.shape == (16, 16, 16, 3 * scale**2)
    subpixels = torch.from_numpy(target).permute(0, 3, 1, 2).float()
    high = torch.nn.functional.pixel_shuffle(subpixels, scale).permute(0, 2, 3, 1).numpy().astype(np.uint8)
    for crop, wanted in zip(low, high, strict=True):  # the symmetries commute with shrinking, up to rounding
        inner = (slice(4, -4), slice(4, -4))
        assert np.abs(shrink(wanted, scale)[inner].astype(int) - crop[inner]).max() <= 1


def test_degradations_spoil_the_low_resolution_side_alone(folder: Path, tmp_path: Path) -> None:
    build_cache(photographs_in([folder]), tmp_path / "cache", long_side=1000)
    photographs = open_cache(tmp_path / "cache")
    sampler = CropSampler(
        photographs,
        detail_power=0.5,
        rng=np.random.default_rng(3),
        degradations=Degradations(jpeg=1, quality=(90, 90), subsampled=0),
    )
    low, target = sampler.batch(16, 16, 4)
    subpixels = torch.from_numpy(target).permute(0, 3, 1, 2).float()
    high = torch.nn.functional.pixel_shuffle(subpixels, 4).permute(0, 2, 3, 1).numpy().astype(np.uint8)
    inner = (slice(4, -4), slice(4, -4))
    errors = [
        np.abs(shrink(wanted, 4)[inner].astype(int) - crop[inner]).mean()
        for crop, wanted in zip(low, high, strict=True)
    ]
    assert min(errors) > 1  # spoiled
    assert max(errors) < 6  # and the same place


def test_the_symmetries_are_eight() -> None:
    image = picture(6, 6, seed=0)
    assert len({dihedral(image, turn).tobytes() for turn in range(8)}) == 8


def test_detail_is_drawn_more_often(tmp_path: Path) -> None:
    image = np.full((128, 256, 3), 90, np.uint8)
    image[:, 128:] = np.random.default_rng(0).integers(0, 255, (128, 128, 3))
    Image.fromarray(image).save(tmp_path / "half.png")
    build_cache(photographs_in([tmp_path]), tmp_path / "cache", long_side=1000)
    photographs = open_cache(tmp_path / "cache")
    shares = []
    for power in (0.0, 1.0):
        low, _ = CropSampler(photographs, detail_power=power, rng=np.random.default_rng(0)).batch(200, 8, 4)
        shares.append(np.mean(low.std((1, 2, 3)) > 1))
    assert shares[0] < 0.7
    assert shares[1] > 0.95


def test_the_same_seed_draws_the_same(folder: Path, tmp_path: Path) -> None:
    build_cache(photographs_in([folder]), tmp_path / "cache", long_side=1000)
    photographs = open_cache(tmp_path / "cache")
    batches = [
        CropSampler(photographs, detail_power=0.5, rng=np.random.default_rng(7)).batch(4, 12, 4) for _ in range(2)
    ]
    for a, b in zip(*batches, strict=True):
        np.testing.assert_array_equal(a, b)
