"""Which precision is taken, and which of the images decided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import save_synthetic

from espan_deploy import backends
from espan_deploy.backends import precision as precisions
from espan_deploy.backends.model import ModelFile, read_model
from espan_deploy.backends.precision import Nearness, choose_precision, measure, nearness, psnr_db
from espan_deploy.backends.probe import PROBES, made_up_page, made_up_photograph

PHOTOGRAPH, PAGE = PROBES


@pytest.fixture
def model(tmp_path: Path) -> ModelFile:
    return read_model(save_synthetic(tmp_path / "tiny.onnx"))


class FakeBackend:
    """Prefers bf16."""

    name, title, version = "fake", "Fake", "1"

    class module:  # noqa: N801
        PRECISIONS = ("fp32", "bf16")

        @staticmethod
        def preferred_precision() -> str:
            return "bf16"


class TestPrecision:
    def choose(
        self, model: ModelFile, monkeypatch: pytest.MonkeyPatch, *, photograph: float, page: float
    ) -> tuple[Any, list[str]]:
        measured: list[str] = []

        def fake(_backend: Any, _model: Any, precision: str, **_: Any) -> Nearness:
            measured.append(precision)
            return Nearness({PHOTOGRAPH: photograph, PAGE: page})

        monkeypatch.setattr(precisions, "measure", fake)
        backend: Any = FakeBackend()
        return choose_precision(backend, model, "auto"), measured

    def test_close_enough_is_taken_and_measured_once(self, model: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
        verdict, measured = self.choose(model, monkeypatch, photograph=51.5, page=60)
        assert (verdict.precision, measured) == ("bf16", ["bf16"])
        verdict, measured = self.choose(model, monkeypatch, photograph=0, page=0)
        assert (verdict.precision, measured) == ("bf16", [])
        assert verdict.nearness.psnr_db == {PHOTOGRAPH: 51.5, PAGE: 60}

    @pytest.mark.parametrize(
        ("photograph", "page", "reason"),
        [
            (30.0, 55.0, f"30.0 dB from fp32 on a made-up {PHOTOGRAPH}, which decides; 55.0 on a {PAGE}; 48 asked for"),
            (52.0, 24.0, f"24.0 dB from fp32 on a made-up {PAGE}, which decides; 52.0 on a {PHOTOGRAPH}; 48 asked for"),
        ],
    )
    def test_too_far_off_on_either_is_fp32_and_it_says_on_which(
        self, model: ModelFile, monkeypatch: pytest.MonkeyPatch, photograph: float, page: float, reason: str
    ) -> None:
        verdict, _ = self.choose(model, monkeypatch, photograph=photograph, page=page)
        assert verdict.precision == "fp32"
        assert verdict.reason == f"bf16 is {reason}"

    @pytest.mark.parametrize("content", ["", "[]", "{", '{"key": 1}', '{"key": [], "at": 0, "finding": {}}'])
    def test_a_damaged_cache_is_measured_again(
        self, model: ModelFile, monkeypatch: pytest.MonkeyPatch, cache: Path, content: str
    ) -> None:
        self.choose(model, monkeypatch, photograph=51, page=51)
        (kept,) = (cache / "measured").iterdir()
        kept.write_text(content)
        assert self.choose(model, monkeypatch, photograph=51, page=51)[1] == ["bf16"]

    def test_figures_of_another_kind_are_measured_again(
        self, model: ModelFile, monkeypatch: pytest.MonkeyPatch, cache: Path
    ) -> None:
        self.choose(model, monkeypatch, photograph=51, page=51)
        (kept,) = (cache / "measured").iterdir()
        kept.write_text(kept.read_text().replace("51", "null"))
        assert self.choose(model, monkeypatch, photograph=51, page=51)[1] == ["bf16"]

    def test_what_is_asked_for_is_taken_unmeasured(self, model: ModelFile) -> None:
        backend: Any = FakeBackend()
        assert choose_precision(backend, model, "bf16").precision == "bf16"


class TestMeasure:
    def test_a_model_that_overflows_is_zero(self, tmp_path: Path) -> None:
        pytest.importorskip("openvino")
        broken = read_model(save_synthetic(tmp_path / "broken.onnx", gain=8.2e37))
        assert measure(backends.get("openvino"), broken, "bf16", threads=2).psnr_db == {PHOTOGRAPH: 0.0, PAGE: 0.0}

    def test_a_precision_beside_itself_is_as_near_as_can_be(self, model: ModelFile) -> None:
        pytest.importorskip("onnxruntime")
        assert measure(backends.get("onnxruntime"), model, "fp32", threads=2).passes

    def test_decibels(self) -> None:
        image = made_up_photograph(16, 1)
        assert psnr_db(image, image) == precisions.SAME_DB
        assert psnr_db(image, image ^ 1) == pytest.approx(10 * np.log10(255**2))
        assert nearness([image, None], [image, image], "bf16").psnr_db == {PHOTOGRAPH: precisions.SAME_DB, PAGE: 0.0}


@pytest.mark.parametrize("make", PROBES.values(), ids=PROBES)
@pytest.mark.parametrize(("side", "multiple", "made"), [(30, 8, 32), (96, 1, 96), (192, 1, 192)])
def test_probes_are_always_the_same(make: Any, side: int, multiple: int, made: int) -> None:
    image = make(side, multiple)
    assert (image.shape, image.dtype) == ((made, made, 3), np.uint8)
    assert (image == make(side, multiple)).all()


def test_the_page_has_the_hardest_edges() -> None:
    page = made_up_page(96, 1)[..., 0].astype(int)
    assert set(np.unique(page)) == {0, 90, 255}
    assert (np.abs(np.diff(page, axis=1)) == 255).mean() > 0.1
