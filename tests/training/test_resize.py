from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.resize import resize_matrix, shrink

LEVELS = 1
"""MATLAB's own rounding is not known to the bit; away from the border the test images differ by at most this."""
BORDER = 2
"""The Set5 files were cropped after MATLAB shrank them, so their borders saw pixels we do not have."""


@pytest.mark.parametrize(("size", "divisor"), [(8, 2), (64, 4), (37, 3), (6, 4)])
def test_rows_sum_to_one(size: int, divisor: int) -> None:
    matrix = resize_matrix(size, divisor)
    assert matrix.shape == (-(-size // divisor), size)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)


def test_flat_stays_flat() -> None:
    image = np.full((24, 32, 3), 201, np.uint8)
    assert (shrink(image, 4) == 201).all()


def test_is_antialiased() -> None:
    checkerboard = np.indices((32, 32)).sum(0)[..., None] % 2 * np.full(3, 255, np.uint8)
    inner = shrink(checkerboard.astype(np.uint8), 4)[2:-2, 2:-2]
    assert np.abs(inner.astype(int) - 127.5).max() <= 2


@pytest.mark.shared
@pytest.mark.parametrize("name", ["baby", "bird", "butterfly", "head", "woman"])
def test_matches_the_test_pairs(shared: Path, name: str) -> None:
    low = np.asarray(Image.open(shared / f"images/Set5/LR/{name}_LRBI_x4.png").convert("RGB")).astype(int)
    high = np.asarray(Image.open(shared / f"images/Set5/HR/{name}_HR_x4.png").convert("RGB"))
    ours = shrink(high[: 4 * low.shape[0], : 4 * low.shape[1]], 4).astype(int)
    inner = (slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    assert np.abs(ours - low)[inner].max() <= LEVELS
