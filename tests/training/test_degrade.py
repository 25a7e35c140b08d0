import dataclasses

import numpy as np
import pytest
from made_up import picture

from training.degrade import MARGIN, Degradations, degraded_crop, jpeg, shrunk, spoiled, window_around
from training.resize import shrink

EVERYTHING = Degradations(jpeg=1.0, twice=0.5, blur=1.0, noise=1.0, kernel=1.0)
NOTHING = Degradations()


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    high = picture(320, 400, seed=1)
    return high, shrink(high, 4)


def crop(pair: tuple[np.ndarray, np.ndarray], degradations: Degradations, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return degraded_crop(*pair, corner=(20, 30), patch=32, degradations=degradations, rng=rng)


def test_nothing_drawn_leaves_the_crop_alone(pair: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_array_equal(crop(pair, NOTHING), pair[1][20:52, 30:62])


@pytest.mark.parametrize("kind", ["jpeg", "blur", "noise", "kernel"])
def test_each_degradation_changes_something_and_not_too_much(pair: tuple[np.ndarray, np.ndarray], kind: str) -> None:
    clean = crop(pair, NOTHING).astype(int)
    change = np.abs(crop(pair, dataclasses.replace(NOTHING, **{kind: 1.0})) - clean)
    assert 0 < change.mean() < 20


def test_the_same_seed_spoils_alike(pair: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_array_equal(crop(pair, EVERYTHING, 3), crop(pair, EVERYTHING, 3))
    assert (crop(pair, EVERYTHING, 3) != crop(pair, EVERYTHING, 4)).any()


def test_windows_hold_the_crop_stay_inside_and_shift_the_grid() -> None:
    rng = np.random.default_rng(0)
    offsets = set()
    for _ in range(300):
        top, left = (int(v) for v in rng.integers(0, 70, 2))
        window = window_around(top, left, 32, (102, 102), rng)
        assert (window.top + window.row, window.left + window.column) == (top, left)
        assert window.top >= 0
        assert window.top + window.height <= 102
        assert window.row + 32 <= window.height
        assert window.column + 32 <= window.width
        if top >= MARGIN:
            offsets.add(window.row % 16)
    assert offsets == set(range(16))


def test_a_lower_quality_is_farther_from_the_picture() -> None:
    image = picture(64, 64, seed=2)
    errors = [np.abs(jpeg(image, quality).astype(int) - image).mean() for quality in (95, 50, 25)]
    assert errors == sorted(errors)
    subsampled = np.abs(jpeg(image, 95, "4:2:0").astype(int) - image).mean()
    assert subsampled > np.abs(jpeg(image, 95, "4:4:4").astype(int) - image).mean()


def test_noise_has_the_deviation_asked_for() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    noisy = spoiled(grey, Degradations(noise=1.0, noise_sigma=(3.0, 3.0)), np.random.default_rng(0))
    assert noisy.std() == pytest.approx(3.0, rel=0.05)
    assert noisy.mean() == pytest.approx(128, abs=0.1)


def test_other_kernels_keep_the_grid(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """Mirrored before or after: a kernel off the pixels' centres would give two pictures."""
    high, low = pair
    for seed in range(8):
        other, mirrored = (
            shrunk(image, 4, Degradations(kernel=1.0), np.random.default_rng(seed)) for image in (high, high[:, ::-1])
        )
        assert other is not None
        assert mirrored is not None
        assert other.shape == low.shape
        assert np.abs(other.astype(int) - mirrored[:, ::-1]).max() <= 1
