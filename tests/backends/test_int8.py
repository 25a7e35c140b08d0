"""INT8: which file is taken, what may run it, and that its pictures do not depend on how they were cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from quantising import quantised, save_quantised
from synthetic import HALO, SCALE, save_synthetic

from espan_deploy import backends
from espan_deploy.backends.base import Images
from espan_deploy.backends.candidates import candidates
from espan_deploy.backends.model import ModelFile, read_model
from espan_deploy.backends.precision import MIN_INT8_PSNR_DB, choose_precision, measure, psnr_db
from espan_deploy.backends.probe import made_up_photograph
from espan_deploy.errors import BackendUnavailableError
from espan_deploy.models import default_model

BETWEEN_ENGINES_DB = 45.0
"""Values on the boundary of two codes fall to either side."""


@pytest.fixture
def pair(tmp_path: Path) -> ModelFile:
    plain = save_synthetic(tmp_path / "tiny.onnx")
    save_quantised(tmp_path / "tiny_int8.onnx", of=plain)
    return read_model(plain)


class TestFiles:
    def test_the_form_beside_is_found(self, pair: ModelFile) -> None:
        assert pair.int8 is not None
        assert (pair.has("fp32"), pair.has("bf16"), pair.has("int8")) == (True, True, True)
        assert pair.in_precision("int8") is pair.int8
        assert pair.in_precision("bf16") is pair
        assert len(set(pair.sha256s)) == 2

    def test_one_of_another_model_is_not(self, pair: ModelFile) -> None:
        """As after the FP32 file was exported again."""
        save_synthetic(pair.path, seed=8)
        again = read_model(pair.path)
        assert again.int8 is None
        with pytest.raises(BackendUnavailableError, match="has no INT8 form beside it") as caught:
            again.in_precision("int8")
        assert "tiny_int8.onnx" in caught.value.hint

    def test_an_int8_file_alone_runs_in_nothing_else(self, pair: ModelFile) -> None:
        assert pair.int8 is not None
        alone = read_model(pair.int8.path)
        assert alone.only_int8
        assert alone.in_precision("int8") is alone
        backend = backends.get("onnxruntime")
        assert backend.usable_precisions(alone) == ["int8"]
        assert choose_precision(backend, alone, "auto").precision == "int8"
        with pytest.raises(BackendUnavailableError, match="computes in INT8 only, not in fp32"):
            backend.open(alone, precision="fp32")

    def test_an_fp32_file_beside_of_that_name_is_no_form(self, pair: ModelFile) -> None:
        save_synthetic(pair.path.with_name("tiny_int8.onnx"), seed=8)
        assert read_model(pair.path).int8 is None

    def test_candidates(self, pair: ModelFile) -> None:
        usable: list[Any] = [backends.get("onnxruntime")]
        assert [each.precision for each in candidates([pair], usable, "auto")] == ["fp32", "int8"]
        assert [each.precision for each in candidates([pair], usable, "int8")] == ["int8"]
        assert candidates([read_model(save_synthetic(pair.path, seed=9))], usable, "int8") == []


@pytest.fixture(params=["openvino", "onnxruntime"])
def backend(request: pytest.FixtureRequest) -> backends.Backend:
    pytest.importorskip(request.param)
    return backends.get(request.param)


class TestResults:
    def test_are_near_fp32(self, backend: backends.Backend, pair: ModelFile) -> None:
        near = measure(backend, pair, "int8")
        assert near.least_db == MIN_INT8_PSNR_DB
        assert near.psnr_db["photograph"] < 100, "codes that change nothing are none"
        # The hardest image of two; the synthetic network's codes are crude, but not wrong.
        assert min(near.psnr_db.values()) > 30

    def test_16_bits_go_in_as_floats(self, backend: backends.Backend, pair: ModelFile) -> None:
        image = made_up_photograph(24, 1)[None]
        with backend.open(pair, precision="int8") as runner:
            floats = runner.infer(image.astype(np.float32) / 255)
            assert psnr_db(runner.infer(image), np.rint(floats.clip(0, 1) * 255).astype(np.uint8)) > BETWEEN_ENGINES_DB

    def test_a_batch_is_its_images(self, backend: backends.Backend, pair: ModelFile) -> None:
        images = np.stack([made_up_photograph(20, 1), made_up_photograph(20, 1)[::-1]])
        with backend.open(pair, precision="int8") as runner:
            together = runner.infer(images)
            assert all(
                np.array_equal(runner.infer(image[None])[0], own) for image, own in zip(images, together, strict=True)
            )


def test_openvino_and_onnx_runtime_agree(pair: ModelFile) -> None:
    image = made_up_photograph(48, 1)[None]
    results = []
    for name in ("openvino", "onnxruntime"):
        pytest.importorskip(name)
        with backends.get(name).open(pair, precision="int8") as runner:
            results.append(runner.infer(image))
    assert psnr_db(results[0], results[1]) > BETWEEN_ENGINES_DB


class TestOpenVino:
    def test_a_tile_is_a_part_of_the_whole_byte_for_byte(self, pair: ModelFile) -> None:
        """In the network for any shape and in those for one, whatever their sizes."""
        compiled = _compiled(pair)
        assert compiled.shapes_agree
        image = made_up_photograph(90, 1)
        whole = _run(compiled, image, own=False)
        assert np.array_equal(whole, _run(compiled, image, own=True))
        for y, x, height, width in ((0, 0, 33, 90), (20, 13, 41, 30), (57, 60, 33, 30)):
            part = np.ascontiguousarray(image[y : y + height, x : x + width])
            inside = np.s_[HALO * SCALE : (height - HALO) * SCALE, HALO * SCALE : (width - HALO) * SCALE]
            expected = whole[y * SCALE : (y + height) * SCALE, x * SCALE : (x + width) * SCALE][inside]
            for own in (False, True):
                assert np.array_equal(_run(compiled, part, own=own)[inside], expected), (y, x, own)

    def test_convolutions_compute_in_eight_bits_and_the_last_writes_bytes(self, pair: ModelFile) -> None:
        compiled = _compiled(pair)
        network = compiled._network("uint8", (1, 16, 16, 3)).compiled
        info = [{k: v.astype(str) for k, v in op.get_rt_info().items()} for op in network.get_runtime_model().get_ops()]
        convolutions = [each for each in info if each["layerType"] == "Convolution"]
        assert len(convolutions) == 2
        if "avx512_vnni" in Path("/proc/cpuinfo").read_text():
            assert all(each["runtimePrecision"] == "u8" for each in convolutions)
            assert all(each["outputPrecisions"] == "u8" for each in convolutions)
        assert len(network.outputs) == 1, "there is nothing for a guard to see"

    @pytest.mark.parametrize("biases", [True, False])
    def test_a_network_with_gates_gives_the_same_codes_for_one_shape_and_for_any(
        self, tmp_path: Path, biases: bool
    ) -> None:
        """What is quantised behind a gate ends no convolution's kernel, and without a bias nor do its weights' scales:
        OpenVINO computes either in one of two ways."""
        model = onnx.load(default_model())
        if not biases:
            for node in model.graph.node:
                if node.op_type == "Conv":
                    del node.input[2:]
        described = replace(read_model(default_model()).description, precision="int8")
        codes = quantised(model)
        onnx.helper.set_model_props(codes, described.to_metadata())
        (path := tmp_path / "clean_int8.onnx").write_bytes(codes.SerializeToString())
        compiled = _compiled(read_model(path))
        image = made_up_photograph(150, 1)
        whole = _run(compiled, image, own=False)
        assert np.array_equal(_run(compiled, image, own=True), whole)
        halo = described.halo or 0
        part = np.ascontiguousarray(image[:, 40:131])
        inside = np.s_[:, halo * SCALE : (91 - halo) * SCALE]
        assert np.array_equal(_run(compiled, part, own=True)[inside], whole[:, 40 * SCALE : 131 * SCALE][inside])


def _compiled(model: ModelFile) -> Any:
    pytest.importorskip("openvino")
    from espan_deploy.backends.openvino import HINTS
    from espan_deploy.backends.openvino_shapes import CompiledModel

    return CompiledModel(model.in_precision("int8"), HINTS["int8"], 1, 1)


def _run(compiled: Any, image: Images, *, own: bool) -> Images:
    from espan_deploy.backends.openvino_shapes import upscaled

    images = image[None]
    with compiled._network("uint8", images.shape if own else None).request() as request:
        return upscaled(request, images, SCALE)[0]
