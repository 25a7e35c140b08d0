from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.evaluate import folder_pairs, psnr_y

TOLERANCE_DB = 1e-9


def test_psnr_is_of_luma_within_the_border() -> None:
    reference = np.full((20, 24, 3), 100, np.uint8)
    image = reference + np.uint8(2)
    image[:4] = image[-4:] = image[:, :4] = image[:, -4:] = 255
    wanted = 20 * np.log10(255 / (2 * (65.481 + 128.553 + 24.966) / 255))
    assert psnr_y(image, reference) == pytest.approx(wanted, abs=TOLERANCE_DB)


@pytest.mark.shared
def test_bicubic_on_set5_is_what_the_literature_says(shared: Path) -> None:
    figures = []
    for _, low, high in folder_pairs(shared / "images/Set5/LR", shared / "images/Set5/HR"):
        size = (low.shape[1] * 4, low.shape[0] * 4)
        figures.append(psnr_y(np.asarray(Image.fromarray(low).resize(size, Image.Resampling.BICUBIC)), high))
    assert np.mean(figures) == pytest.approx(28.42, abs=0.02)


def test_folders_that_do_not_pair_are_refused(tmp_path: Path) -> None:
    for folder, name in (("LR", "a_1.png"), ("HR", "b_1.png")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / name)
    with pytest.raises(ValueError, match="do not pair"):
        list(folder_pairs(tmp_path / "LR", tmp_path / "HR"))
