"""Which backend and which precision are taken, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic import save_synthetic

from espan_deploy import backends
from espan_deploy.backends import precision as precisions
from espan_deploy.backends.model import ModelFile, read_model
from espan_deploy.backends.precision import choose_precision, measure
from espan_deploy.backends.probe import made_up_photograph
from espan_deploy.errors import BackendUnavailableError, ExportError, InputError


@pytest.fixture
def model(tmp_path: Path) -> ModelFile:
    return read_model(save_synthetic(tmp_path / "tiny.onnx"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    return tmp_path / "cache" / "espan-deploy" / "measured.json"


def absent(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    real = backends.Backend.unavailable_reason

    def reason(backend: backends.Backend) -> str | None:
        return f"{backend.name} is not installed" if backend.name in names else real(backend)

    monkeypatch.setattr(backends.Backend, "unavailable_reason", reason)


class TestBackends:
    def test_auto_takes_the_first_that_can_run_and_says_what_it_passed_over(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        others = [entry.name for entry in backends.BACKENDS if entry.name != "onnxruntime"]
        absent(monkeypatch, *others)
        choice = backends.choose("auto")
        assert choice.backend.name == "onnxruntime"
        assert "openvino is not installed" in choice.reason

    def test_what_is_asked_for_and_not_here_is_an_error_with_its_remedy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        absent(monkeypatch, "openvino")
        with pytest.raises(BackendUnavailableError, match="openvino is not installed") as caught:
            backends.choose("openvino")
        assert caught.value.hint.startswith("pip install")
        assert caught.value.exit_code == 5

    def test_nothing_at_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        absent(monkeypatch, *(entry.name for entry in backends.BACKENDS))
        with pytest.raises(BackendUnavailableError, match="no inference engine"):
            backends.choose("auto")

    def test_unknown_names_are_told_the_known_ones(self) -> None:
        with pytest.raises(BackendUnavailableError) as caught:
            backends.get("abacus")
        assert "onnxruntime" in caught.value.hint

    def test_precisions_a_backend_has_not(self, model: ModelFile) -> None:
        pytest.importorskip("onnxruntime")
        with pytest.raises(BackendUnavailableError, match="has no precision bf16"):
            backends.get("onnxruntime").open(model, precision="bf16")


class FakeBackend:
    """Prefers bf16; counts its openings."""

    name, title, version = "fake", "Fake", "1"

    class module:  # noqa: N801
        PRECISIONS = ("fp32", "bf16")

        @staticmethod
        def preferred_precision() -> str:
            return "bf16"


class TestPrecision:
    def choose(self, model: ModelFile, psnr: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
        measured: list[str] = []

        def fake(_backend: Any, _model: Any, precision: str, **_: Any) -> float:
            measured.append(precision)
            return psnr

        monkeypatch.setattr(precisions, "measure", fake)
        backend: Any = FakeBackend()
        return choose_precision(backend, model, "auto"), measured

    def test_close_enough_is_taken_and_measured_once(
        self, model: ModelFile, monkeypatch: pytest.MonkeyPatch, cache: Path
    ) -> None:
        verdict, measured = self.choose(model, 51.5, monkeypatch)
        assert (verdict.precision, verdict.psnr_db, measured) == ("bf16", 51.5, ["bf16"])
        assert "51.5 dB" in verdict.reason
        verdict, measured = self.choose(model, 0.0, monkeypatch)
        assert (verdict.precision, measured) == ("bf16", [])
        assert list(json.loads(cache.read_text()).values()) == [51.5]

    def test_too_far_off_is_fp32(self, model: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
        verdict, _ = self.choose(model, 30.0, monkeypatch)
        assert verdict.precision == "fp32"
        assert "30.0 dB" in verdict.reason

    @pytest.mark.parametrize("content", ["", "[]", "{", '{"x": "y"}'])
    def test_a_damaged_cache_is_measured_again(
        self, model: ModelFile, monkeypatch: pytest.MonkeyPatch, cache: Path, content: str
    ) -> None:
        cache.parent.mkdir(parents=True)
        cache.write_text(content)
        assert self.choose(model, 51.0, monkeypatch)[1] == ["bf16"]

    def test_what_is_asked_for_is_taken_unmeasured(self, model: ModelFile) -> None:
        backend: Any = FakeBackend()
        assert choose_precision(backend, model, "bf16").precision == "bf16"

    def test_a_model_that_overflows_is_zero(self, tmp_path: Path) -> None:
        pytest.importorskip("openvino")
        broken = read_model(save_synthetic(tmp_path / "broken.onnx", gain=8.2e37))
        assert measure(backends.get("openvino"), broken, "bf16", threads=2) == 0.0

    def test_the_photograph_is_always_the_same(self) -> None:
        image = made_up_photograph(30, 8)
        assert image.shape == (32, 32, 3)
        assert (image == made_up_photograph(30, 8)).all()


class TestModelFiles:
    def test_a_description_is_read_without_onnx(self, model: ModelFile) -> None:
        assert (model.description.network, model.description.scale, model.description.halo) == ("tiny", 4, 2)
        assert len(model.sha256) == 64

    def test_bad_files(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="cannot read"):
            read_model(tmp_path / "none.onnx")
        for name, data in (("empty", b""), ("text", b"this is a text"), ("noise", bytes(range(256)) * 9)):
            path = tmp_path / f"{name}.onnx"
            path.write_bytes(data)
            with pytest.raises(ExportError, match="not an ONNX file"):
                read_model(path)

    def test_a_truncated_file_never_passes(self, tmp_path: Path) -> None:
        data = save_synthetic(tmp_path / "tiny.onnx").read_bytes()
        path = tmp_path / "cut.onnx"
        for length in range(0, len(data), 97):
            path.write_bytes(data[:length])
            with pytest.raises(ExportError):
                read_model(path)

    def test_one_that_does_not_describe_itself(self, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="does not say what it is") as caught:
            read_model(save_synthetic(tmp_path / "bare.onnx", described=False))
        assert "export" in caught.value.hint
