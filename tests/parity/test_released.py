"""Every released checkpoint through the command line: one command to ONNX, beside what the entrants' code makes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from test_golden import RELEASED, Released

from espan_deploy.cli.main import main
from espan_deploy.description import description_from_metadata
from espan_deploy.proof import PARITY_TOLERANCE, model_function

SAMPLE = {"2025/team36_espan.pth", "2025/team30_ARRLFN.pth", "2026/team21_SAFMN_Deep15.pth"}
"""Exported on every run; a deploy form, a network that runs twice, and grids of a computed size. The others, minutes
for each of the largest, with --every; -k picks some of them."""

SIZES = 4
"""Heights and widths at which an export compares its model with the network, at least."""

CASES = [
    pytest.param(released, id=released.file, marks=() if released.file in SAMPLE else pytest.mark.every)
    for released in RELEASED
]


@pytest.mark.shared
@pytest.mark.parametrize("released", CASES)
def test_one_command_from_checkpoint_to_onnx(released: Released, shared: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    command = ["export", str(shared / "checkpoints" / released.file), "-o", str(target), "--json"]
    if released.settings:
        command += ["--network-args", json.dumps(dict(released.settings))]

    result = CliRunner().invoke(main, command)

    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["network"] == released.network
    assert facts["largest_difference"] <= PARITY_TOLERANCE
    assert facts["multiply_adds"] <= facts["unfolded"]["multiply_adds"]
    sizes = {(height, width) for _, height, width in facts["verified_at"]}
    assert len(sizes) >= SIZES
    assert facts["max_batch"] is None
    assert max(batch for batch, _, _ in facts["verified_at"]) > 1
    model = onnx.load(target)
    batch, channels, *sides = model.graph.input[0].type.tensor_type.shape.dim
    assert (bool(batch.dim_param), channels.dim_value, [bool(side.dim_param) for side in sides]) == (
        True,
        3,
        [True] * 2,
    )
    described = description_from_metadata({entry.key: entry.value for entry in model.metadata_props})
    assert described is not None
    with np.load(shared / "golden" / f"{released.file.replace('/', '_').rsplit('.', 1)[0]}.npz") as golden:
        low, expected = golden["lr"], golden["sr"]
    upscaled = model_function(model, described, target)(low)
    assert upscaled.shape == expected.shape
    assert np.abs(upscaled - expected).max() <= released.deployed_tolerance * described.value_range
