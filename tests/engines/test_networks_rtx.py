"""Every network we know becomes an FP16 engine for the A6000, on a machine without a GPU."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from espan_deploy.backends.manifest import read_engine
from espan_deploy.description import ModelDescription
from espan_deploy.engine.build import engine_from_onnx
from espan_deploy.errors import VerificationError
from espan_deploy.networks.catalogue import NETWORKS
from espan_deploy.networks.entry import NetworkEntry
from espan_deploy.recipes import Budget, load_recipe

torch = pytest.importorskip("torch")

UNTRAINED = Budget(min_psnr_db=0, max_truth_drop_db=1e9, max_share_off_by_more=1)
"""Random weights make no image worth comparing; values must be finite all the same."""


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("entry", NETWORKS, ids=lambda entry: entry.name)
def test_the_published_network_builds_for_sm86(entry: NetworkEntry, rtx: Any, tmp_path: Path) -> None:
    """As published, with weights made here: what can be built does not depend on them."""
    from dataclasses import replace

    from espan_deploy.onnx_export import onnx_from_module

    torch.manual_seed(0)
    module = getattr(import_module(entry.module), entry.reference)()
    proto = ir.to_proto(onnx_from_module(module))
    described = ModelDescription(network=entry.name, title=entry.title, scale=4, halo=None)
    for key, value in described.to_metadata().items():
        proto.metadata_props.add(key=key, value=value)
    path = tmp_path / f"{entry.name}.onnx"
    onnx.save(proto, path)
    recipe = replace(load_recipe("a6000-rtx-fp16"), budget=UNTRAINED)
    engine = engine_from_onnx(path, recipe, output=tmp_path / f"{entry.name}.engine").path
    data, manifest = read_engine(engine)
    assert manifest.backend_version == rtx.__version__
    assert manifest.compute_capability == ("8.6",)
    assert [(t["name"], t["dtype"]) for t in manifest.tensors] == [
        ("input", "uint8"),
        ("output", "uint8"),
        ("guard", "float32"),
    ]
    assert manifest.tensors[0]["profile"][2] == [16, 512, 512, 3]
    assert "float16" in {layer["dtype"] for layer in manifest.layers}
    assert len(data) == manifest.engine_bytes


RELEASED = sorted((Path(__file__).resolve().parents[2].parent / "shared" / "checkpoints").glob("*/*.pt*"))


@pytest.mark.shared
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("checkpoint", RELEASED, ids=lambda path: path.stem)
def test_the_released_checkpoint_passes_the_gate_and_builds(
    checkpoint: Path, rtx: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from espan_deploy.deploy import deploy_file

    assert rtx
    path = tmp_path / f"{checkpoint.stem}.onnx"
    onnx.save(deploy_file(checkpoint).model, path)
    recipe = load_recipe("a6000-rtx-fp16")
    try:
        result = engine_from_onnx(path, recipe)
    except VerificationError as exc:
        with capsys.disabled():
            print(f"\n{checkpoint.stem}: {exc.message} -> auto")
        result = engine_from_onnx(path, recipe, keep_fp32="auto")
    manifest = result.manifest
    figures = manifest.gate["comparison"]
    assert figures["nonfinite"] == 0
    assert manifest.engine_bytes > 100_000
    kept = json.dumps(manifest.gate["kept_fp32"])
    with capsys.disabled():
        print(
            f"\n{checkpoint.stem}: {manifest.engine_bytes / 1e6:.2f} MB, {figures['psnr_db']:.1f} dB from FP32, "
            f"kept in FP32: {kept}"
        )
