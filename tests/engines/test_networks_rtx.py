"""Networks become FP16 engines for the A6000, on a machine without a GPU."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from espan_deploy.backends.manifest import read_engine
from espan_deploy.backends.model import ModelFile
from espan_deploy.description import ModelDescription
from espan_deploy.engine.build import engine_from_onnx
from espan_deploy.networks import rlfn, span
from espan_deploy.networks.entry import NetworkEntry
from espan_deploy.recipes import Budget, load_recipe

torch = pytest.importorskip("torch")

UNTRAINED = Budget(min_psnr_db=0, max_truth_drop_db=1e9, max_share_off_by_more=1)
"""Random weights make no image worth comparing; values must be finite all the same."""


SAMPLE = {"espan", "span", "spanf", "dscf-fused", "nanosr", "rfdn-span", "efdn"}
"""Built on every run; the others of these lineages with --every."""

KEPT = {"ecas", "depth-ibn"}
"""Their sums of squares do not fit FP16 as they are: layers must be chosen first, which takes minutes."""

BUILT = [
    pytest.param(entry, id=entry.name, marks=() if entry.name in SAMPLE else pytest.mark.every)
    for entry in (*span.ENTRIES, *rlfn.ENTRIES)
    if entry.name not in KEPT
]
"""Not the lineages that see the whole image, window by window or token by token: of those none was built whole yet."""


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("entry", BUILT)
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


RELEASED = ("2025/team36_espan.pth", "2025/team07_NanoSR.pth", "2026/team15_DSCF_Fused.pth")
"""The fastest, the largest, and a merged one; docs/engines.md has the figures of all."""


@pytest.mark.shared
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("checkpoint", RELEASED)
def test_the_released_checkpoint_passes_the_gate_and_builds(
    checkpoint: str, rtx: Any, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from espan_deploy.deploy import deploy_file

    assert rtx
    deployment = deploy_file(shared / "checkpoints" / checkpoint)
    model = ModelFile(Path(checkpoint), deployment.model.SerializeToString(), deployment.description)
    manifest = engine_from_onnx(model, load_recipe("a6000-rtx-fp16")).manifest
    figures = manifest.gate["comparison"]
    assert figures["nonfinite"] == 0
    assert manifest.gate["kept_fp32"] == []
    with capsys.disabled():
        print(f"\n{checkpoint}: {manifest.engine_bytes / 1e6:.2f} MB, {figures['psnr_db']:.1f} dB from FP32")
