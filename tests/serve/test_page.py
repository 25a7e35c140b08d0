"""The page in a real browser: choose, wait, compare, zoom, download; no error, and no request to anywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import browser
import numpy as np
import pytest
from PIL import Image
from served import Served, served


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Served]:
    with served(model) as running:
        yield running


@pytest.fixture
def page() -> Iterator[browser.Page]:
    executable = browser.find()
    if executable is None:
        pytest.skip(f"no browser of {', '.join(browser.NAMES)} is installed")
    with browser.Page(executable) as opened:
        yield opened


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    rows, columns = np.mgrid[:60, :90]
    pixels = np.stack([rows * 3, columns * 2, 200 - rows], 2).astype(np.uint8)
    path = tmp_path / "holiday.jpg"
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_person_gets_a_larger_picture(
    width: int, dark: bool, page: browser.Page, server: Served, photo: Path
) -> None:
    page.open(f"{server.address}/", width=width, dark=dark)
    page.wait_for("document.getElementById('model').textContent.includes('x4')")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.choose_file("#file", photo)
    page.wait_for("!document.getElementById('result').hidden")
    assert page.evaluate("document.getElementById('facts').textContent").startswith("90x60 → 360x240")
    assert page.evaluate("document.getElementById('download').download") == "holiday_x.jpg"
    assert page.evaluate("document.getElementById('work').hidden")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.problems() == []
    assert all(url.startswith((server.address, "blob:", "data:")) for url in page.requests())


def test_which_model_was_taken_is_told(page: browser.Page, photo: Path) -> None:
    with served(None) as choosing:
        page.open(f"{choosing.address}/")
        page.choose_file("#file", photo)
        page.wait_for("!document.getElementById('result').hidden")
        assert page.evaluate("document.getElementById('facts').textContent").endswith(
            ", by camera (JPEG of quality 75)"
        )
        assert page.problems() == []


def test_the_slider_and_the_zoom_move_what_is_seen(page: browser.Page, server: Served, photo: Path) -> None:
    page.open(f"{server.address}/")
    page.choose_file("#file", photo)
    page.wait_for("!document.getElementById('result').hidden")
    shown = "parseFloat(document.getElementById('clip').style.width)"
    slide = "(s => { s.value = %d; s.dispatchEvent(new Event('input')); })(document.getElementById('slider'))"
    page.evaluate(slide % 0)
    assert page.evaluate(shown) == 0
    page.evaluate(slide % 1000)
    assert page.evaluate(shown) == 360
    before = page.evaluate("view.scale")
    page.evaluate("document.getElementById('in').click()")
    assert page.evaluate("view.scale") == pytest.approx(1.5 * before)
    page.evaluate("document.getElementById('fit').click()")
    assert page.evaluate("view.scale") == pytest.approx(before)


def test_a_dropped_file_is_taken_and_a_refusal_is_said(page: browser.Page, server: Served) -> None:
    page.open(f"{server.address}/")
    page.evaluate(
        "(d => { d.items.add(new File(['no picture'], 'notes.txt'));"
        " dispatchEvent(new DragEvent('drop', { dataTransfer: d })); })(new DataTransfer())"
    )
    page.wait_for("!document.getElementById('error').hidden")
    assert "not an image" in page.evaluate("document.getElementById('error').textContent")
    assert page.evaluate("document.getElementById('result').hidden")
