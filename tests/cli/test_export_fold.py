"""``espan-deploy export`` with a user's own class: it folds, says what it left, and names what blocks it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from espan_deploy.backends.model import read_model
from espan_deploy.cli.main import main
from espan_deploy.proof import PARITY_TOLERANCE

STRUCTURES = Path(__file__).parents[1] / "fold" / "structures.py"

EXACT = 1e-12

HEAD, TAIL = (3, 3, 3), (3, 3, 12)


def upscaler(block: str) -> nn.Module:
    spec = importlib.util.spec_from_file_location("structures_for_cli", STRUCTURES)
    assert spec is not None
    assert spec.loader is not None
    structures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(structures)
    module: nn.Module = structures.Upscaler(block)
    return module


def export(folder: Path, block: str, *options: str) -> tuple[Result, Path]:
    checkpoint, output = folder / "mine.pth", folder / "mine.onnx"
    torch.save(upscaler(block).state_dict(), checkpoint)
    network = ("--network", f"{STRUCTURES}:Upscaler", "--network-args", json.dumps({"block": block}))
    return CliRunner().invoke(main, ["export", str(checkpoint), "-o", str(output), *network, *options]), output


def run_own(folder: Path, source: str, *options: str, weights: dict[str, torch.Tensor] | None = None) -> Result:
    """Export a class ``Net`` written into a file of its own."""
    file, checkpoint = folder / "net.py", folder / "w.pth"
    file.write_text(source)
    torch.save(weights or {"conv.weight": torch.rand(3, 3, 1, 1), "conv.bias": torch.rand(3)}, checkpoint)
    arguments = ["export", str(checkpoint), "--network", f"{file}:Net", "-o", str(folder / "o.onnx"), *options]
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize("block", ["repvgg", "dbb", "conv3xc", "repmbconv-slices", "mobileone-depthwise"])
def test_a_class_of_the_user_folds_to_one_convolution_a_block(tmp_path: Path, block: str) -> None:
    result, output = export(tmp_path, block, "--json", "--fold-report", str(tmp_path / "report.json"))

    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["convolutions"] == 3
    assert document["scale"] == 2
    operators = [node.op_type for node in onnx.load(output).graph.node]
    assert sorted(set(operators)) == ["Conv", "DepthToSpace", "Mul", "Sigmoid"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report == document["fold"]
    assert all(max(site["error_inside"], site["error_border"]) <= EXACT for site in report["sites"])
    assert [site["path"].split(".")[0] for site in report["sites"]] == ["block"]


def test_without_folding_every_branch_stays(tmp_path: Path) -> None:
    result, _ = export(tmp_path, "repvgg", "--no-fold", "--json")

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["convolutions"] == 4


def test_a_bias_before_zero_padding_is_left_by_default(tmp_path: Path) -> None:
    result, _ = export(tmp_path, "bias-before-zero-padding", "--sites")

    assert result.exit_code == 0, result.output
    assert "differs at the image's border" in result.stdout


def test_approximate_borders_fold_it_and_report_the_error(tmp_path: Path) -> None:
    result, _ = export(tmp_path, "bias-before-zero-padding", "--fold-borders", "approximate", "--json")

    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["convolutions"] == 3
    (site,) = document["fold"]["sites"]
    assert not site["exact"]
    assert site["error_inside"] <= EXACT < site["error_border"]
    assert document["largest_difference"] <= PARITY_TOLERANCE < document["border_difference"]


POINTWISE = "self.conv = nn.Conv2d(3, 3, 1)"


def own(forward: str, constructor: str = POINTWISE, arguments: str = "") -> str:
    return f"""
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self{arguments}):
        super().__init__()
        {constructor}

    def forward(self, x):
        {forward}
"""


BLOCKED = {
    "fails to import": (
        "import a_module_nobody_has\n",
        "cannot be imported: ModuleNotFoundError",
    ),
    "class missing": (own("return x").replace("class Net", "class Other"), "has no network class Net; it has Other"),
    "CUDA in its constructor": (own("return self.conv(x)", f"{POINTWISE}.cuda()"), "needs CUDA"),
    "an argument missing": (own("return self.conv(x)", arguments=", scale"), "does not take these arguments"),
    "constructor fails": (own("return x", "raise ValueError('bad width')"), "failed: ValueError: bad width"),
    "forward fails": (own("return self.no_such_layer(x)"), "cannot upscale (1, 3, 48, 48) on the CPU"),
    "weights that do not fit": (own("return self.conv(x)", "self.conv = nn.Conv2d(3, 3, 3)"), "another shape"),
    "not a whole scale": (own("return self.conv(x)[:, :, 1:]"), "with a whole scale"),
}


@pytest.mark.parametrize("what", BLOCKED)
def test_what_blocks_a_class_of_the_user_is_named(tmp_path: Path, what: str) -> None:
    source, message = BLOCKED[what]

    result = run_own(tmp_path, source)

    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert not (tmp_path / "o.onnx").exists()


def test_an_argument_too_many_is_named(tmp_path: Path) -> None:
    result = run_own(tmp_path, own("return self.conv(x)"), "--network-args", '{"upscale": 4}')

    assert result.exit_code == 1
    assert "upscale" in result.stderr


def test_a_network_that_no_graph_can_hold_says_what_blocks_it(tmp_path: Path) -> None:
    result = run_own(tmp_path, own("return self.conv(x) * 2 if x.sum() > 0 else self.conv(x)"))

    assert result.exit_code == 1
    error, hint = result.stderr.strip().splitlines()
    assert error.startswith("error: the network cannot be exported with dynamic sizes: ")
    assert "torch.where" in hint


def test_a_network_that_asks_for_one_size_is_right_above_it_and_says_so(tmp_path: Path) -> None:
    result = run_own(tmp_path, own("return self.conv(x) * 2 if x.shape[2] == 24 else self.conv(x)"))

    assert result.exit_code == 0, result.output
    assert "others are continued" in result.stdout
    assert read_model(tmp_path / "o.onnx").description.min_size > 24


def test_a_network_of_one_size_is_exported_at_that_size_only_when_asked(tmp_path: Path) -> None:
    square = own("return self.conv(x) + self.grid(x)", f"{POINTWISE}; self.grid = Grid()").replace(
        "class Net",
        """
class Grid(nn.Module):
    def forward(self, x):
        return torch.linspace(0, 1, int(x.shape[2])).view(1, 1, -1, 1).to(x)

class Net""",
    )
    result = run_own(tmp_path, square, "--static", "32x40", "--json")

    assert result.exit_code == 0, result.output
    graph = onnx.load(tmp_path / "o.onnx").graph
    assert [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim[1:]] == [3, 32, 40]
