"""``espan-deploy export``: what it makes, what it says, and what it refuses."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from espan_deploy import backends
from espan_deploy.backends.model import read_model
from espan_deploy.cli.main import main
from espan_deploy.networks.rlfn.efdn import EFDN
from espan_deploy.networks.span.espan import ESPAN
from espan_deploy.networks.span.tsr import TSR

PARITY = 1e-5
"""Float32 through two sets of kernels, relative to the largest output, on photographs and other soft images."""

PARAMETERS, MULTIPLY_ADDS = 192_272, 12_555_649_024
"""ESPAN's factsheet: 0.1923 M and 12.5556 G at 256x256."""


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def checkpoint(path: Path, network: torch.nn.Module) -> Path:
    torch.save({"params": network.state_dict()}, path)
    return path


@pytest.fixture
def deploy_form(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    return checkpoint(tmp_path / "espan.pth", ESPAN())


@dataclass(frozen=True)
class Exported:
    """One export, for every test that only looks at it."""

    checkpoint: Path
    model: Path
    result: Result


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(1)
    source = checkpoint(folder / "espan.pth", ESPAN())
    result = export(source, "-o", folder / "espan.onnx", "--json")
    assert result.exit_code == 0, result.output
    return Exported(source, folder / "espan.onnx", result)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--static", "64x64"], "--static"),
        (["--network", "a.py:B"], "--network"),
        (["--network-args", '{"a": 1}'], "args"),
        (["--weights", "params"], "--weights"),
    ],
)
def test_options_of_networks_are_refused_for_a_graph(exported: Exported, options: list[str], name: str) -> None:
    result = export(exported.model, "-o", exported.model.with_name("again.onnx"), *options)
    assert result.exit_code == 2
    assert name in result.stderr
    assert not exported.model.with_name("again.onnx").exists()


def test_options_of_graphs_are_refused_for_a_checkpoint(deploy_form: Path, tmp_path: Path) -> None:
    result = export(deploy_form, "-o", tmp_path / "folded.safetensors", "--no-fold")
    assert result.exit_code == 2
    assert "--no-fold" in result.stderr


def test_which_state_dict_of_several_can_be_said(tmp_path: Path) -> None:
    dicts = {key: TSR(channels=8, blocks=1, scale=2).state_dict() for key in ("params", "params_ema")}
    dicts["params"] = {key: torch.zeros_like(tensor) for key, tensor in dicts["params"].items()}
    torch.save(dicts, tmp_path / "both.pth")

    result = export(tmp_path / "both.pth", "-o", tmp_path / "params.onnx", "--weights", "params")

    assert result.exit_code == 0, result.output
    assert not infer(tmp_path / "params.onnx", np.ones((1, 3, 8, 8), np.float32)).any()
    result = export(tmp_path / "both.pth", "-o", tmp_path / "o.onnx", "--weights", "ema")
    assert result.exit_code == 1
    assert "it has params_ema, params" in result.stderr


def infer(model: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})[0]


def test_it_writes_a_model_that_describes_itself(exported: Exported) -> None:
    printed = json.loads(exported.result.stdout)
    description = read_model(exported.model).description
    assert printed["network"] == description.network == "espan"
    assert (description.scale, description.halo, description.value_range) == (4, 23, 1.0)
    assert description.unfolded == {"parameters": PARAMETERS, "multiply_adds": MULTIPLY_ADDS, "convolutions": 21}
    assert description.multiply_adds < MULTIPLY_ADDS
    assert printed["largest_difference"] <= PARITY


def test_it_says_what_it_made(deploy_form: Path, tmp_path: Path) -> None:
    result = export(deploy_form, "-o", tmp_path / "espan.onnx")
    assert "0.1923 M" in result.stdout
    assert "12.5556 G" in result.stdout
    assert "21, folded 21" in result.stdout


def test_nothing_of_the_exporting_machine_is_in_the_file(exported: Exported) -> None:
    assert str(Path(torch.__file__).parent).encode() not in exported.model.read_bytes()


def test_exporting_twice_gives_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    assert export(exported.checkpoint, "-o", tmp_path / "again.onnx").exit_code == 0
    assert (tmp_path / "again.onnx").read_bytes() == exported.model.read_bytes()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 7), (2, 9, 1), (8, 5, 6), (1, 33, 70)])
def test_any_size_and_batch(exported: Exported, shape: tuple[int, int, int]) -> None:
    network = ESPAN().eval()
    network.load_state_dict(torch.load(exported.checkpoint, weights_only=True)["params"])
    batch, height, width = shape
    x = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = network(x).numpy()
    got = infer(exported.model, x.numpy())
    assert np.abs(got - expected).max() <= PARITY * np.abs(expected).max()


def test_the_training_form_becomes_the_same_structure(exported: Exported, tmp_path: Path) -> None:
    torch.manual_seed(3)
    trained = tmp_path / "trained.onnx"
    result = export(checkpoint(tmp_path / "trained.pth", ESPAN(training_form=True)), "-o", trained)
    assert result.exit_code == 0, result.output
    assert "training form" in result.stdout
    structures = [sorted(node.op_type for node in onnx.load(path).graph.node) for path in (trained, exported.model)]
    assert structures[0] == structures[1]
    costs = [read_model(path).description.multiply_adds for path in (trained, exported.model)]
    assert costs[0] == costs[1]


def test_a_network_that_needs_a_certain_size_says_so(tmp_path: Path) -> None:
    torch.manual_seed(4)
    efdn = EFDN(channels=8)
    assert export(checkpoint(tmp_path / "efdn.pth", efdn), "-o", tmp_path / "efdn.onnx").exit_code == 0
    model = read_model(tmp_path / "efdn.onnx")
    assert model.description.min_size == 15
    with backends.get("onnxruntime").open(model) as runner:
        assert runner.infer(np.zeros((1, 14, 20, 3), np.uint8)).shape == (1, 56, 80, 3)


@pytest.mark.shared
def test_the_real_espan_on_a_photograph(espan_checkpoint: Path, shared: Path, tmp_path: Path) -> None:
    result = export(espan_checkpoint, "-o", tmp_path / "espan.onnx")
    assert result.exit_code == 0, result.output
    network = ESPAN().eval()
    network.load_state_dict(torch.load(espan_checkpoint, weights_only=True))
    with Image.open(shared / "images" / "Set5" / "LR" / "butterfly_LRBI_x4.png") as image:
        x = np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1)[None] / 255
    for part in (x, x[..., :1], x[:, :, :1], np.repeat(x[..., :20, :31], 8, 0)):
        photograph = np.ascontiguousarray(part)
        with torch.inference_mode():
            expected = network(torch.from_numpy(photograph)).numpy()
        got = infer(tmp_path / "espan.onnx", photograph)
        assert np.abs(got - expected).max() <= PARITY * np.abs(expected).max()


class TestBadInput:
    """Each with a message that says what to do, the right exit code, and nothing half-written."""

    def refused(self, result: Result, folder: Path, code: int = 1) -> str:
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        assert not list(folder.glob("*.onnx*"))
        assert not list(folder.glob(".*"))
        return result.stderr

    def test_a_missing_file(self, tmp_path: Path) -> None:
        assert "no such checkpoint" in self.refused(export(tmp_path / "no.pth", "-o", tmp_path / "o.onnx"), tmp_path)

    def test_a_text_file(self, tmp_path: Path) -> None:
        (tmp_path / "text.pth").write_text("weights, honestly")
        message = self.refused(export(tmp_path / "text.pth", "-o", tmp_path / "o.onnx"), tmp_path)
        assert "not a PyTorch checkpoint" in message

    def test_a_truncated_checkpoint(self, deploy_form: Path, tmp_path: Path) -> None:
        deploy_form.write_bytes(deploy_form.read_bytes()[:5000])
        assert "damaged" in self.refused(export(deploy_form, "-o", tmp_path / "o.onnx"), tmp_path)

    def test_a_pickle_that_would_run_code(self, tmp_path: Path) -> None:
        class Payload:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return os.system, (f"touch {tmp_path / 'ran'}",)

        torch.save({"weight": Payload()}, tmp_path / "evil.pth")
        message = self.refused(export(tmp_path / "evil.pth", "-o", tmp_path / "o.onnx"), tmp_path)
        assert "could run code" in message
        assert not (tmp_path / "ran").exists()

    def test_an_unknown_network(self, tmp_path: Path) -> None:
        save_file({"stem.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
        message = self.refused(export(tmp_path / "other.safetensors", "-o", tmp_path / "o.onnx"), tmp_path)
        assert "nearest is" in message
        assert "stem.weight" in message

    def test_wrong_shapes(self, tmp_path: Path) -> None:
        state = ESPAN().state_dict()
        state["block_2.c2_r.eval_conv.weight"] = torch.zeros(32, 31, 3, 3)
        torch.save(state, tmp_path / "wrong.pth")
        message = self.refused(export(tmp_path / "wrong.pth", "-o", tmp_path / "o.onnx"), tmp_path)
        assert "block_2.c2_r.eval_conv.weight: expected (32, 32, 3, 3), got (32, 31, 3, 3)" in message

    def test_weights_that_are_not_finite(self, tmp_path: Path) -> None:
        state = ESPAN().state_dict()
        state["tea_conv_cat.bias"][3] = torch.nan
        torch.save(state, tmp_path / "nan.pth")
        message = self.refused(export(tmp_path / "nan.pth", "-o", tmp_path / "o.onnx"), tmp_path)
        assert "not finite" in message
        assert "tea_conv_cat.bias" in message

    def test_a_folder_that_is_not_there(self, deploy_form: Path, tmp_path: Path) -> None:
        message = self.refused(export(deploy_form, "-o", tmp_path / "no" / "o.onnx"), tmp_path)
        assert "no folder" in message

    def test_an_output_that_is_the_input(self, deploy_form: Path) -> None:
        copy = deploy_form.rename(deploy_form.with_suffix(".onnx"))
        before = copy.read_bytes()
        result = export(copy, "-o", copy)
        assert result.exit_code == 1
        assert copy.read_bytes() == before

    def test_an_output_that_is_no_model(self, deploy_form: Path, tmp_path: Path) -> None:
        self.refused(export(deploy_form, "-o", tmp_path / "o.txt"), tmp_path, code=2)

    def test_errors_are_json_too(self, tmp_path: Path) -> None:
        result = export(tmp_path / "no.pth", "-o", tmp_path / "o.onnx", "--json")
        assert json.loads(result.stdout)["error"]["type"] == "CheckpointError"

    def test_no_engine_installed(self, deploy_form: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("espan_deploy.backends.onnxruntime.unavailable_reason", lambda: "it is not installed")
        message = self.refused(export(deploy_form, "-o", tmp_path / "o.onnx"), tmp_path, code=5)
        assert "pip install" in message
