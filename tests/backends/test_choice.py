"""Which backend is taken, and why; what is read of a model file."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from synthetic import save_synthetic

from espan_deploy import backends
from espan_deploy.backends.model import ModelFile, read_model
from espan_deploy.errors import BackendUnavailableError, ExportError, InputError


@pytest.fixture
def model(tmp_path: Path) -> ModelFile:
    return read_model(save_synthetic(tmp_path / "tiny.onnx"))


def absent(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    real = backends.Backend.unavailable_reason

    def reason(backend: backends.Backend) -> str | None:
        return f"{backend.name} is not installed" if backend.name in names else real(backend)

    monkeypatch.setattr(backends.Backend, "unavailable_reason", reason)


class TestBackends:
    @pytest.mark.parametrize("package", ["onnxruntime", "openvino", "pillow", "tensorrt-rtx-cu13-bindings", "nobodys"])
    def test_the_version_is_the_packages(self, package: str) -> None:
        try:
            expected = version(package)
        except PackageNotFoundError:
            expected = ""
        assert backends.installed_version(package) == expected

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
