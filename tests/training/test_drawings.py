from pathlib import Path

import numpy as np
from made_up import picture
from PIL import Image

from training.data import CropSampler, build_cache, open_cache, photographs_in
from training.drawings import drawing, enlarged


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


def test_flat_enlarges_to_flat() -> None:
    assert (enlarged(np.full((5, 6, 3), 77, np.uint8), 4) == 77).all()


def test_the_sampler_draws_its_share(tmp_path: Path) -> None:
    Image.fromarray(picture(96, 96, seed=0)).save(tmp_path / "a.png")
    build_cache(photographs_in([tmp_path]), tmp_path / "cache", long_side=1000)
    rng = np.random.default_rng(0)
    sampler = CropSampler(open_cache(tmp_path / "cache"), detail_power=0.5, rng=rng, drawn_share=0.25)
    low, _ = sampler.batch(200, 12, 4)
    drawn = [len(np.unique(crop.reshape(-1, 3), axis=0)) <= 2 for crop in low]
    assert 0.13 < np.mean(drawn) < 0.3  # a sixth of them is noise
