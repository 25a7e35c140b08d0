from pathlib import Path

import numpy as np
from made_up import picture
from PIL import Image

from training.data import CropSampler, build_cache, open_cache, photographs_in
from training.drawings import drawing, drawn_pair, enlarged, page
from training.resize import shrink


def test_drawings_have_two_colours_or_all_and_come_from_the_seed() -> None:
    many = [[drawing(24, rng) for _ in range(40)] for rng in (np.random.default_rng(0), np.random.default_rng(0))]
    for a, b in zip(*many, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.shape == (24, 24, 3)
    colours = [len(np.unique(image.reshape(-1, 3), axis=0)) for image in many[0]]
    noisy = [count > 500 for count in colours]
    assert 0 < sum(noisy) < 20
    assert all(count <= 2 for count, noise in zip(colours, noisy, strict=True) if not noise)
    assert len({image.tobytes() for image in many[0]}) > 30


def test_pages_are_made_small_as_photographs_are_and_come_from_the_seed() -> None:
    many = [[page(20, 4, rng) for _ in range(30)] for rng in (np.random.default_rng(0), np.random.default_rng(0))]
    for (low, high), (low_again, high_again) in zip(*many, strict=True):
        np.testing.assert_array_equal(low, low_again)
        np.testing.assert_array_equal(high, high_again)
        assert (low.shape, high.shape) == ((20, 20, 3), (80, 80, 3))
        inner = np.s_[4:-4, 4:-4]  # nearer to the edge the page goes on, and this cut does not
        np.testing.assert_array_equal(shrink(high, 4)[inner], low[inner])
    assert sum(high.std() > 20 for _, high in many[0]) > 20


def test_half_of_what_is_drawn_has_a_truth() -> None:
    rng = np.random.default_rng(0)
    pairs = [drawn_pair(16, 4, rng) for _ in range(200)]
    bicubic = [np.array_equal(high, enlarged(low, 4)) for low, high in pairs]
    assert 0.35 < np.mean(bicubic) < 0.65


def test_flat_enlarges_to_flat() -> None:
    assert (enlarged(np.full((5, 6, 3), 77, np.uint8), 4) == 77).all()


def test_the_sampler_draws_its_share(tmp_path: Path) -> None:
    Image.fromarray(picture(96, 96, seed=0)).save(tmp_path / "a.png")
    build_cache(photographs_in([tmp_path]), tmp_path / "cache", long_side=1000)
    rng = np.random.default_rng(0)
    sampler = CropSampler(open_cache(tmp_path / "cache"), detail_power=0.5, rng=rng, drawn_share=0.25)
    low, _ = sampler.batch(200, 12, 4)
    drawn = [len(np.unique(crop.reshape(-1, 3), axis=0)) <= 2 for crop in low]
    assert 0.05 < np.mean(drawn) < 0.2  # half of them are pages, and a sixth of the others noise
