"""The PyTorch baseline computes what the engines compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic import save_synthetic

from espan_deploy import backends
from espan_deploy.backends.model import ModelFile, read_model
from espan_deploy.bench.contenders import Model, load_models, open_contenders
from espan_deploy.bench.torch_runner import graph_module, torch_runner
from espan_deploy.errors import ExportError, InputError

LEVELS = 1
"""Two float32 kernels may round to either side."""


@pytest.mark.parametrize("settings", [{}, {"skip": True}, {"value_range": 255.0}], ids=str)
def test_a_graph_in_torch_is_the_graph(tmp_path: Path, settings: dict[str, object]) -> None:
    model = read_model(save_synthetic(tmp_path / "tiny.onnx", **settings))
    images = np.random.default_rng(1).integers(0, 256, (2, 13, 9, 3), dtype=np.uint8)
    with torch_runner(graph_module(model), model.description, 2) as ours:
        got = ours.infer(images)
        assert set(ours.last_stages_ms) == {"prepare", "network", "finish"}
        assert all(value >= 0 for value in ours.last_stages_ms.values())
    with backends.get("onnxruntime").open(model, threads=2) as theirs:
        assert np.abs(theirs.infer(images).astype(int) - got).max() <= LEVELS


def test_floats_stay_floats(tmp_path: Path) -> None:
    model = read_model(save_synthetic(tmp_path / "tiny.onnx"))
    images = np.random.default_rng(2).random((1, 8, 8, 3), dtype=np.float32)
    result = torch_runner(graph_module(model), model.description, 1).infer(images)
    assert result.dtype == np.float32
    assert result.shape == (1, 32, 32, 3)


def test_unknown_operators_are_named(tmp_path: Path) -> None:
    import onnx

    model = read_model(save_synthetic(tmp_path / "tiny.onnx"))
    proto = onnx.load_from_string(model.data)
    proto.graph.node[1].op_type = "Softmax"
    with pytest.raises(ExportError, match="Softmax"):
        graph_module(ModelFile(model.path, proto.SerializeToString(), model.description))


def test_against_torch_needs_the_checkpoint(tmp_path: Path) -> None:
    models = load_models([save_synthetic(tmp_path / "tiny.onnx")])
    with pytest.raises(InputError, match="needs the checkpoint"):
        open_contenders(models, [], threads=1, against_torch=True)


def test_a_network_runs_as_trained_and_folded(tmp_path: Path) -> None:
    from espan_deploy.networks import Network

    file = read_model(save_synthetic(tmp_path / "tiny.onnx"))
    network = Network(graph_module(file), 4, "training", 1.0, None, "tiny", "tiny")
    trained, folded = open_contenders([Model("Tiny", file, network)], [], threads=2, against_torch=True)
    assert (trained.form, folded.form) == ("as trained", "folded")
    images = np.random.default_rng(3).integers(0, 256, (1, 11, 14, 3), dtype=np.uint8)
    assert np.array_equal(trained.runner.infer(images), folded.runner.infer(images))
    assert trained(images) is not None
