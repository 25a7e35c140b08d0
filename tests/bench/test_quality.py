"""PSNR and SSIM against values worked out by hand, a slow version of the definition, and published figures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from espan_deploy import backends
from espan_deploy.bench.contenders import Model
from espan_deploy.bench.images import load_pairs
from espan_deploy.bench.quality import C1, C2, luma, psnr, quality, ssim
from espan_deploy.errors import InputError

PUBLISHED_DB, PUBLISHED_SSIM = 0.06, 0.002
"""Pillow's bicubic filter is MATLAB's but for its rounding and the pixels at the border."""

ESPAN_DB = 0.002
"""Two CPUs' float32 kernels, rounded to 8 bits."""


def constant(value: int, height: int = 32, width: int = 40) -> NDArray[np.uint8]:
    return np.full((height, width, 3), value, np.uint8)


def test_luma_of_black_white_and_primaries() -> None:
    colours = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.float64)
    assert luma(colours) == pytest.approx([16.0, 235.0, 81.481, 144.553, 40.966], abs=1e-3)


def test_psnr_of_known_differences() -> None:
    assert psnr(np.zeros((4, 4)), np.full((4, 4), 255.0)) == 0.0
    assert psnr(np.zeros((4, 4)), np.ones((4, 4))) == pytest.approx(48.1308, abs=1e-4)
    assert math.isinf(quality(constant(7), constant(7), 4).psnr_rgb_db)


def test_y_weighs_grey_by_its_own_range() -> None:
    """One level of grey is 219/255 levels of Y."""
    figures = quality(constant(100), constant(101), 4)
    assert figures.psnr_rgb_db == pytest.approx(48.1308, abs=1e-4)
    assert figures.psnr_y_db == pytest.approx(48.1308 + 20 * math.log10(255 / 219), abs=1e-3)


def test_border_is_cut_off() -> None:
    ours, theirs = constant(90), constant(90)
    ours[:4], ours[-4:], ours[:, :4], ours[:, -4:] = 0, 0, 0, 0
    assert math.isinf(quality(ours, theirs, 4).psnr_rgb_db)
    assert quality(ours, theirs, 3).psnr_rgb_db < 30


def test_common_size_is_compared() -> None:
    assert math.isinf(quality(constant(90), constant(90, 35, 43), 4).psnr_y_db)


def test_what_is_too_small_is_refused() -> None:
    with pytest.raises(InputError, match="18x40 is too small"):
        quality(constant(1, 18), constant(1, 18), 4)


def test_ssim_of_constants_is_their_luminance_term() -> None:
    a, b = np.full((16, 16), 60.0), np.full((16, 16), 90.0)
    assert ssim(a, b) == pytest.approx((2 * 60 * 90 + C1) / (60**2 + 90**2 + C1))
    assert ssim(a, a) == 1.0


def test_ssim_is_the_definition() -> None:
    rng = np.random.default_rng(1)
    a = rng.random((15, 18)) * 255
    b = np.clip(a + rng.normal(0, 20, a.shape), 0, 255)
    kernel = np.exp(-(np.arange(-5, 6)[:, None] ** 2 + np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    values = []
    for top in range(15 - 10):
        for left in range(18 - 10):
            x, y = a[top : top + 11, left : left + 11], b[top : top + 11, left : left + 11]
            mx, my = (kernel * x).sum(), (kernel * y).sum()
            vx, vy = (kernel * (x - mx) ** 2).sum(), (kernel * (y - my) ** 2).sum()
            cov = (kernel * (x - mx) * (y - my)).sum()
            values.append((2 * mx * my + C1) * (2 * cov + C2) / ((mx**2 + my**2 + C1) * (vx + vy + C2)))
    assert ssim(a, b) == pytest.approx(np.mean(values), abs=1e-9)


@pytest.mark.shared
def test_bicubic_has_its_published_figures(shared: Path) -> None:
    """Set5: 28.42 dB and 0.8104 in every paper. (Set14's figures differ between papers by 0.1 dB.)"""
    folder = shared / "images" / "Set5"
    found = []
    for pair in load_pairs(folder / "LR", folder / "HR", 4):
        size = (pair.low.shape[1] * 4, pair.low.shape[0] * 4)
        large = np.asarray(Image.fromarray(pair.low).resize(size, Image.Resampling.BICUBIC))
        found.append(quality(large, pair.high, 4))
    assert np.mean([q.psnr_y_db for q in found]) == pytest.approx(28.42, abs=PUBLISHED_DB)
    assert np.mean([q.ssim_y for q in found]) == pytest.approx(0.8104, abs=PUBLISHED_SSIM)


@pytest.mark.shared
def test_espan_has_its_figures_on_set5(shared: Path, espan_model: Model) -> None:
    runner = backends.choose("auto").backend.open(espan_model.file, precision="fp32")
    folder = shared / "images" / "Set5"
    figures = [
        quality(runner.infer(pair.low[None])[0], pair.high, 4) for pair in load_pairs(folder / "LR", folder / "HR", 4)
    ]
    assert np.mean([q.psnr_rgb_db for q in figures]) == pytest.approx(30.043, abs=ESPAN_DB)
    assert np.mean([q.psnr_y_db for q in figures]) == pytest.approx(31.942, abs=ESPAN_DB)
