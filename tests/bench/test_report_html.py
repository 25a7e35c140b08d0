"""The page in a real browser: no errors, no requests, and every figure is the document's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from clocks import FakeClock, TimedRunner, contender
from test_suite import suite

from espan_deploy.bench import report_html
from espan_deploy.bench.contenders import Contender
from espan_deploy.bench.images import Pair, generated_case
from espan_deploy.bench.score import CHALLENGES
from espan_deploy.bench.suite import Suite

PHONE, DESKTOP = 390, 1280

MIN_FIGURES = 150
"""On a page with all its sections; fewer means that one of them was not drawn."""

NONE = "\N{EN DASH}"

FIGURES = """[...document.querySelectorAll("[data-json]")].map((node) =>
  [node.dataset.json, node.dataset.factor || "1", node.textContent])"""


def contenders(clock: FakeClock) -> list[Contender]:
    rng = np.random.default_rng(11)
    found = []
    for index, (title, network) in enumerate((("ESPAN", "espan"), ("EFDN", "efdn"), ("<b>Odd & name</b>", "odd"))):
        for engine, precision in (("openvino", "fp32"), ("openvino", "bf16"), ("torch", "fp32")):
            seconds = list(rng.lognormal(-3 + index / 3, 0.1, 300))
            stages = {"prepare": 1.0, "network": 20.0, "finish": 2.0} if engine == "torch" else None
            runner = TimedRunner(clock, seconds, stages=stages, noise=index + 1 + (precision == "bf16"))
            found.append(contender(title, runner, engine=engine, precision=precision, network=network))
    return found


def finished_suite(**settings: Any) -> Suite:
    clock = FakeClock()
    rng = np.random.default_rng(12)
    lows = [rng.integers(0, 256, (20, 24, 3), dtype=np.uint8) for _ in range(2)]
    pairs = [Pair(f"image {i}", low, low.repeat(4, 0).repeat(4, 1)) for i, low in enumerate(lows)]
    run = suite(
        clock,
        contenders(clock),
        pairs=pairs,
        shown=[(pair.name, pair.low, pair.high) for pair in pairs],
        cases=[generated_case(16, 16, 1), generated_case(16, 24, 4)],
        settings={"runs": 25, "challenge": CHALLENGES[2025], "layers": True, "command": "</script> --html", **settings},
    )
    run.run()
    return run


@pytest.fixture(scope="module")
def page() -> Iterator[browser.Page]:
    executable = browser.find()
    if executable is None:
        pytest.skip(f"no browser of {', '.join(browser.NAMES)} is installed")
    with browser.Page(executable) as page:
        yield page


@pytest.fixture(scope="module")
def document_and_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    run = finished_suite()
    path = tmp_path_factory.mktemp("page") / "bench.html"
    path.write_text(report_html.render(run.document, run.pictures), encoding="utf-8")
    return run.document, path


def figure(document: Any, pointer: str) -> Any:
    for key in pointer.split("/")[1:]:
        document = document[int(key)] if isinstance(document, list | tuple) else (document or {}).get(key)
    return document


def check_figures(page: browser.Page, document: dict[str, Any]) -> int:
    """Each is the document's value, rounded to the digits it shows."""
    shown = page.evaluate(FIGURES)
    for pointer, factor, text in shown:
        value = figure(document, pointer)
        if text == NONE:
            assert value is None, pointer
            continue
        exact = value * float(factor)
        plain = text.removeprefix("+").replace(",", "")
        if "e" in plain:
            assert float(plain) == pytest.approx(exact, rel=0.006), pointer
        else:
            digits = len(plain.partition(".")[2])
            assert abs(float(plain) - exact) <= 0.5 * 10**-digits * (1 + 1e-9), (pointer, text, exact)
    return len(shown)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_page(page: browser.Page, document_and_file: tuple[dict[str, Any], Path], width: int, dark: bool) -> None:
    document, path = document_and_file
    page.events.clear()
    page.open(path, width=width, dark=dark)
    assert page.evaluate("document.documentElement.dataset.ready") == "true"
    assert page.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    assert page.problems() == []
    assert [url for url in page.requests() if not url.startswith("data:")] == [path.resolve().as_uri()[:100]]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert check_figures(page, document) > MIN_FIGURES


def test_every_section_is_drawn_and_every_case_can_be_chosen(
    page: browser.Page, document_and_file: tuple[dict[str, Any], Path]
) -> None:
    document, path = document_and_file
    page.open(path)
    sections = page.evaluate("[...document.querySelectorAll('section')].map((s) => [s.id, s.textContent.length])")
    names = "pictures latency figures trade-off parts roofline layers time quality challenge complexity surroundings"
    assert [name for name, _ in sections] == names.split()
    assert all(length > 60 for _, length in sections)
    latency = "[...document.querySelectorAll('#latency [data-json]')].map((n) => n.dataset.json)"
    first = page.evaluate(latency)
    page.evaluate("[...document.querySelectorAll('.bar button')].find((b) => b.textContent === '16x24 x4').click()")
    second = page.evaluate(latency)
    assert first
    assert len(second) == len(first)
    assert not set(first) & set(second)
    check_figures(page, document)


def test_engines_can_be_left_out(page: browser.Page, document_and_file: tuple[dict[str, Any], Path]) -> None:
    _, path = document_and_file
    page.open(path)
    rows = "document.querySelectorAll('#latency .row:not(.head)').length"
    assert page.evaluate(rows) == 9
    page.evaluate("document.querySelector('#latency .chip').click()")
    assert page.evaluate(rows) == 6
    assert page.problems() == []


def test_pictures_are_compared(page: browser.Page, document_and_file: tuple[dict[str, Any], Path]) -> None:
    _, path = document_and_file
    page.open(path)
    assert page.evaluate("[...document.querySelectorAll('.viewer img')].every((i) => i.complete && i.naturalWidth)")
    assert page.evaluate("document.querySelectorAll('.thumbs button').length") == 2
    names = page.evaluate("[...document.querySelectorAll('#pick-left option')].map((o) => o.textContent)")
    assert names == ["Bicubic", "ESPAN", "EFDN", "<b>Odd & name</b>", "Truth"]
    page.evaluate(
        "const edge = document.querySelector('#split'); edge.value = 0.25; edge.dispatchEvent(new Event('input'))"
    )
    assert "25.00%" in page.evaluate("document.querySelector('.viewer .edge').getAttribute('style')")
    source = "document.querySelector('.viewer img').src"
    before = page.evaluate(source)
    page.evaluate(
        "[...document.querySelectorAll('#pictures button')].find((b) => b.textContent.startsWith('Difference')).click()"
    )
    assert page.evaluate(source) != before
    assert page.problems() == []


def test_an_interrupted_run_has_a_page_too(page: browser.Page, tmp_path: Path) -> None:
    clock, calls = FakeClock(), 0

    def interrupt() -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise KeyboardInterrupt

    run = suite(clock, [contender("One", TimedRunner(clock, [0.01], before=interrupt))])
    path = tmp_path / "bench.html"
    path.write_text(report_html.render(run.run()), encoding="utf-8")
    page.events.clear()
    page.open(path, width=PHONE)
    assert page.problems() == []
    assert "Interrupted" in page.evaluate("document.body.textContent")


def test_the_page_holds_the_document_whole(document_and_file: tuple[dict[str, Any], Path]) -> None:
    """Also without a browser: the embedded JSON is the document, and nothing in it can end its element."""
    document, path = document_and_file
    html = path.read_text(encoding="utf-8")
    embedded = html.partition('id="report">')[2].partition("</script>")[0]
    assert json.loads(embedded) == json.loads(json.dumps(document))
    without_data = html.replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in without_data
    assert "https://" not in without_data
    assert "default-src 'none'" in html


def test_the_kept_page_shows_the_kept_document(page: browser.Page) -> None:
    kept = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
    document = json.loads((kept / "cpu.json").read_text(encoding="utf-8"))
    page.events.clear()
    page.open(kept / "cpu.html", width=PHONE)
    assert page.problems() == []
    assert check_figures(page, document) > MIN_FIGURES
