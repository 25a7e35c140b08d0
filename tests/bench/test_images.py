"""Cases and pairs from folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from espan_deploy.bench.images import folder_case, generated_case, load_pairs, read_image
from espan_deploy.errors import InputError


def save(path: Path, height: int, width: int, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height), 80 if mode == "L" else (10, 20, 30)).save(path)
    return path


def test_a_generated_case_is_the_same_every_time() -> None:
    case = generated_case(24, 40, 3)
    assert case.label == "24x40 x3"
    assert case.inputs[0].shape == (3, 24, 40, 3)
    assert case.inputs[0].dtype == np.uint8
    assert np.array_equal(case.inputs[0], generated_case(24, 40, 3).inputs[0])
    assert case.inputs[0].std() > 20
    assert (case.size, case.pixels) == ((24, 40), 3 * 24 * 40)


def test_a_folder_is_timed_image_by_image(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 8, 10)
    save(tmp_path / "b.png", 6, 6)
    (tmp_path / "notes.txt").write_text("no image")
    case = folder_case(tmp_path)
    assert [image.shape for image in case.inputs] == [(1, 8, 10, 3), (1, 6, 6, 3)]
    assert case.size is None
    assert case.pixels == (80 + 36) / 2


def test_grey_counts_as_three_equal_channels(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "grey.png", 4, 5, "L"))
    assert image.shape == (4, 5, 3)
    assert (image == 80).all()


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ("baby_LRBI_x4.png", "baby_HR_x4.png"),
        ("img_001_SRF_4_LR.png", "img_001_SRF_4_HR.png"),
        ("0801x4.png", "0801.png"),
        ("same.png", "same.png"),
    ],
)
def test_pairs_are_found_by_name(tmp_path: Path, low: str, high: str) -> None:
    save(tmp_path / "LR" / low, 8, 9)
    save(tmp_path / "HR" / high, 34, 36)
    (pair,) = load_pairs(tmp_path / "LR", tmp_path / "HR", 4)
    assert (pair.low.shape[:2], pair.high.shape[:2]) == ((8, 9), (34, 36))


def test_what_has_no_partner_is_listed(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        save(tmp_path / "LR" / f"{name}x4.png", 8, 8)
    for name in ("one", "four"):
        save(tmp_path / "HR" / f"{name}.png", 32, 32)
    with pytest.raises(InputError) as caught:
        load_pairs(tmp_path / "LR", tmp_path / "HR", 4)
    for expected in ("twox4.png has no truth", "threex4.png has no truth", "four.png has no low-resolution image"):
        assert expected in caught.value.message
    assert "onex4" not in caught.value.message


def test_truths_of_another_size_are_listed(tmp_path: Path) -> None:
    save(tmp_path / "LR" / "a.png", 8, 8)
    save(tmp_path / "HR" / "a.png", 24, 24)
    with pytest.raises(InputError, match=r"a\.png is 24x24, 4 times a\.png would be 32x32"):
        load_pairs(tmp_path / "LR", tmp_path / "HR", 4)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "LR" / "a.png", 8, 8)
    save(tmp_path / "LR" / "ax4.png", 8, 8)
    save(tmp_path / "HR" / "a.png", 32, 32)
    with pytest.raises(InputError, match="count as one name"):
        load_pairs(tmp_path / "LR", tmp_path / "HR", 4)


def test_bad_folders_and_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        folder_case(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        folder_case(tmp_path / "empty")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(InputError, match=r"cannot read .*broken\.png"):
        folder_case(tmp_path / "bad")
