"""Networks compiled for one shape: they make the same bytes, and no more of them are held than fit."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espan_deploy.backends import openvino_shapes
from espan_deploy.backends.base import Images
from espan_deploy.backends.model import ModelFile, read_model
from espan_deploy.backends.openvino import HINTS, OpenVinoRunner, preferred_precision
from espan_deploy.backends.openvino_shapes import FREQUENT_PIXELS, CompiledModel
from espan_deploy.models import default_model

pytest.importorskip("openvino")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPAN_DEPLOY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model() -> ModelFile:
    return read_model(default_model())


@pytest.fixture(params=["fp32", "bf16"])
def compiled(request: pytest.FixtureRequest, model: ModelFile) -> Iterator[CompiledModel]:
    if request.param == "bf16" and preferred_precision() != "bf16":
        pytest.skip("this CPU does not compute in bfloat16")
    return CompiledModel(model, HINTS[request.param], 1, 1)


def photograph(height: int, width: int) -> Images:
    rng = np.random.default_rng(height)
    smooth = np.add.outer(np.arange(height), np.arange(width))[..., None] % 200 + rng.normal(0, 12, (height, width, 3))
    return smooth.clip(0, 255).astype(np.uint8)[None]


def test_an_image_comes_out_the_same_however_often_its_shape_came_before(compiled: CompiledModel) -> None:
    assert compiled.shapes_agree
    use_up_first_shapes(compiled)
    image = photograph(230, 254)
    runner = OpenVinoRunner(compiled, "whatever")
    first = runner.infer(image)
    before = compiled.network("uint8", image.shape)
    for _ in range(FREQUENT_PIXELS // image[..., 0].size):
        later = runner.infer(image)
    own = compiled.network("uint8", image.shape)
    assert own is not before
    assert own.compiled.inputs[0].get_partial_shape().is_static
    assert np.array_equal(later, first)
    floats = (image / 255).astype(np.float32)
    first = runner.infer(floats)
    for _ in range(FREQUENT_PIXELS // image[..., 0].size):
        runner.infer(floats)
    assert ("float32", image.shape) in compiled._by_shape
    assert np.abs(runner.infer(floats) - first).max() < 1e-2


def use_up_first_shapes(compiled: CompiledModel) -> None:
    for side in range(openvino_shapes.FIRST_SHAPES):
        compiled.network("uint8", (1, 8, 8 + side, 3))


def test_what_was_prepared_is_compiled_and_taken(compiled: CompiledModel) -> None:
    image = np.random.default_rng(4).integers(0, 256, (1, 24, 32, 3), dtype=np.uint8)
    runner = OpenVinoRunner(compiled, "whatever")
    runner.prepare(image.shape)
    network = compiled.network("uint8", image.shape)
    made = network.compiled
    expected = runner.infer(image)
    assert compiled.network("uint8", image.shape) is network
    assert network.compiled is made
    assert np.array_equal(runner.infer(image), expected)


def test_only_the_first_shapes_get_networks_at_once(compiled: CompiledModel) -> None:
    networks = [compiled.network("uint8", (1, 16, width, 3)) for width in range(16, 64)]
    assert len({id(network) for network in networks}) == openvino_shapes.FIRST_SHAPES + 1
    assert len({id(network) for network in networks[openvino_shapes.FIRST_SHAPES :]}) == 1
    large = (1, 16, openvino_shapes.HELD_PIXELS // 16 + 1, 3)
    assert compiled.network("uint8", large) not in networks
    assert list(compiled._by_shape) == [("uint8", large)]


def test_what_was_not_used_for_longest_goes_first(compiled: CompiledModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_shapes, "FREQUENT_PIXELS", 64 * 64 + 1)
    monkeypatch.setattr(openvino_shapes, "HELD_PIXELS", 64 * 64 * 2)
    a, b, c = ((1, 64, 64, 3), (1, 32, 128, 3), (1, 128, 32, 3))
    first = compiled.network("uint8", a)
    compiled.network("uint8", b)
    assert compiled.network("uint8", a) is first
    compiled.network("uint8", c)
    compiled.network("uint8", c)
    assert compiled.network("uint8", a) is first
    assert ("uint8", b) not in compiled._by_shape
    assert compiled.network("uint8", b) is compiled.network("uint8", (1, 8, 8, 3)), "it has to be seen often again"
    # One larger than the room is held alone.
    large = compiled.network("uint8", (1, 128, 128, 3))
    assert compiled.network("uint8", (1, 128, 128, 3)) is large


def test_where_shapes_do_not_agree_all_take_the_one_for_any(model: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_shapes, "rounded_operations", lambda compiled: [])
    if preferred_precision() != "bf16":
        pytest.skip("this CPU does not compute in bfloat16")
    compiled = CompiledModel(model, "bf16", 1, 1)
    assert not compiled.shapes_agree, "fusing changes where bfloat16 is rounded: the measure must see it"
    shape = (1, 1 << 9, FREQUENT_PIXELS >> 8, 3)
    assert compiled.network("uint8", shape) is compiled.network("uint8", (1, 8, 8, 3))


def test_the_measure_is_taken_once(model: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    CompiledModel(model, "f32", 1, 1)
    monkeypatch.setattr(CompiledModel, "_measure_agreement", lambda self: pytest.fail("measured again"))
    assert CompiledModel(model, "f32", 1, 1).shapes_agree


def test_networks_compile_at_once(model: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = CompiledModel(model, HINTS["fp32"], 2, 2)
    both, real = threading.Barrier(2, timeout=60), CompiledModel._compile

    def compile_together(self: CompiledModel, *arguments: Any, **options: Any) -> Any:
        both.wait()  # breaks if one compiles only after the other
        return real(self, *arguments, **options)

    monkeypatch.setattr(CompiledModel, "_compile", compile_together)
    networks = [compiled.network("uint8", (1, FREQUENT_PIXELS // 256, 256 + index, 3)) for index in range(2)]
    with ThreadPoolExecutor(2) as pool:
        shapes = list(pool.map(lambda network: network.compiled.inputs[0].get_shape()[2], networks))
    assert shapes == [256, 257]


def test_the_converter_is_imported_when_called() -> None:
    script = """
import sys
from espan_deploy.backends.openvino import preferred_precision
preferred_precision()
assert "openvino.tools.ovc" not in sys.modules
import openvino
try:
    openvino.convert_model(b"no model")
except Exception as exc:
    assert "openvino.tools.ovc" in sys.modules, exc
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)
