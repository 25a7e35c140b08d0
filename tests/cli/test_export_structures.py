"""Networks of one's own through the command line, each with one structure that exporters stumble over."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from espan_deploy import backends
from espan_deploy.apart import can_run_apart
from espan_deploy.backends.model import read_model
from espan_deploy.cli.main import main
from espan_deploy.networks.exportable import Stable
from espan_deploy.sources import network_source

PARITY = 1e-4
"""What ``export`` itself allows: float32 in other kernels, relative to the largest value."""

HEAD = """
import os, torch
from torch import nn
from torch.nn import functional as F
from sized import *
"""


@dataclass(frozen=True)
class Structure:
    """code: of the class ``Net``. facts: what the description must say. sizes: heights and widths compared."""

    code: str
    facts: dict[str, object]
    sizes: tuple[tuple[int, int], ...] = ((17, 30), (70, 41))


def around(structure: str, frame: str = "Sized") -> str:
    return f"class Net({frame}):\n    def __init__(self):\n        super().__init__({structure})\n"


def forward(body: str, frame: str = "Sized", scale: int = 2) -> str:
    """A network whose forward has x, height and width, and returns y: 12 channels of features."""
    lines = "\n".join(f"        {line}" for line in body.splitlines())
    return (
        f"class Net({frame}):\n"
        "    def __init__(self):\n        super().__init__()\n"
        f"        self.tail = nn.Conv2d(12, {3 * scale**2}, 3, padding=1)\n"
        f"    def forward(self, x):\n        height, width = x.shape[2:]\n        y = self.head(x)\n{lines}\n"
        f"        return F.pixel_shuffle(self.tail(y), {scale})\n"
    )


MESHGRID = """rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width))
y = y + 0.01 * torch.sin(rows + columns)"""

TO_A_GRID = """cells = F.adaptive_max_pool2d(y, (height // 8, width // 8)) + F.adaptive_avg_pool2d(y, (3, None)).mean()
y = y * torch.sigmoid(F.interpolate(cells, size=(height, width), mode="bilinear"))"""

PADDED_BY_NUMBERS = """y = F.pad(y, (0, int(-width % 8), 0, int(-height % 8)), mode="replicate")
y = y + F.interpolate(F.avg_pool2d(y, 8), scale_factor=8)
y = y[:, :, :height, :width]"""

EVEN_AND_HALVED = """even = 2 * ((height - 1) // 2 + 1), 2 * ((width - 1) // 2 + 1)
y = F.pixel_unshuffle(F.pad(y, (0, even[1] - width, 0, even[0] - height), mode="reflect"), 2)
y = F.pixel_shuffle(y + F.interpolate(F.avg_pool2d(y, 2), scale_factor=2.0), 2)
if height != even[0] or width != even[1]:
    y = y[:, :, :height, :width]"""

IN_NO_ORDER = """order = torch.sort(torch.arange(height * width) % 3, dim=-1).indices
y = y + y.flatten(2)[:, :, order].reshape(y.shape)"""

CHANNELS_AS_IMAGES = """parts = F.conv2d(y.reshape(-1, 3, height, width), self.tail.weight[:3, :3], padding=1)
y = parts.reshape(-1, 12, height, width)"""

BRIGHT = """tokens = y.permute(0, 2, 3, 1)[x.mean(1) > 0.5]
y = y + self.head.weight.mean() * tokens.mean(0)[:, None, None]"""

WRITING = """    def forward(self, x):
        x *= 4
        return super().forward(x) / 4
"""

STRUCTURES: dict[str, Structure] = {
    "padded to a multiple": Structure(around("Pooled()", "Padded"), {"size_multiple": 1, "halo": None}),
    "windows, shifted and padded": Structure(around("WindowAttention(shift=2)", "Padded"), {"size_multiple": 1}),
    "u shape": Structure(around("UShape()"), {"size_multiple": 2, "halo": 4, "tile_multiple": 2}),
    "channels shuffled": Structure(around("Shuffled()"), {"size_multiple": 2, "halo": 5}),
    "mirrored beyond small images": Structure(
        forward('y = F.avg_pool2d(F.pad(y, (10, 10, 10, 10), mode="reflect"), 21, 1)'), {"min_size": 11}, ((5, 30),)
    ),
    "batch of one": Structure(forward("y = y.reshape(1, 12, height, width)"), {"max_batch": 1}),
    "meshgrid": Structure(forward(MESHGRID), {"size_multiple": 1}),
    "adaptive pooling": Structure(forward(TO_A_GRID), {"min_size": 8}),
    "decided by the size": Structure(
        forward("y = torch.relu(y) if height > 64 else y"), {"min_size": 100}, ((110, 120),)
    ),
    "sizes that depend on pixels": Structure(forward(BRIGHT), {"halo": None}),
    "a buffer called as a result is": Structure(
        forward("y = y + self.mean * y.mean()").replace(
            "        self.tail", '        self.register_buffer("mean", torch.ones(1, 12, 1, 1))\n        self.tail'
        ),
        {"size_multiple": 1},
    ),
    "input written into": Structure(around("nn.Identity()") + WRITING, {"halo": 2}),
    "padded by Python's numbers": Structure(forward(PADDED_BY_NUMBERS), {"size_multiple": 8, "padding": "edge"}),
    "even, then halved": Structure(forward(EVEN_AND_HALVED), {"size_multiple": 4}),
    "sorted, stable": Structure(forward("y = y + torch.sort(y, dim=1, stable=True).values.roll(1, 1)"), {"halo": 2}),
    "sorted in no order": Structure(forward(IN_NO_ORDER), {"halo": None}),
    "a learnt exponent, as a number": Structure(
        forward("y = (y.abs() + 0.1).pow(self.tail.bias[:1].item())"), {"halo": 2}
    ),
    "channels as images": Structure(forward(CHANNELS_AS_IMAGES), {"halo": 3}),
    "x1": Structure(forward("y = y * 2", scale=1), {"scale": 1}),
    "x3": Structure(forward("y = y * 2", scale=3), {"scale": 3}),
    "x8": Structure(forward("y = y * 2", scale=8), {"scale": 8}),
}

SAMPLE = ("windows, shifted and padded", "mirrored beyond small images", "batch of one", "meshgrid", "adaptive pooling")
SAMPLE += ("decided by the size", "sizes that depend on pixels", "a buffer called as a result is", "x8")


def export(folder: Path, code: str, *options: object) -> Result:
    """Write the class and random weights of it, and export them."""
    torch.manual_seed(0)
    (folder / "model.py").write_text(HEAD + code)
    scope: dict[str, type[torch.nn.Module]] = {}
    exec(HEAD + code, scope)
    torch.save(scope["Net"]().state_dict(), folder / "w.pth")
    network = ("--network", folder / "model.py:Net")
    arguments = ("export", folder / "w.pth", *network, "-o", folder / "m.onnx", "--json", *options)
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.every) for name in STRUCTURES]
)
def test_a_structure_exports_and_is_right_at_other_sizes(tmp_path: Path, name: str) -> None:
    structure = STRUCTURES[name]

    result = export(tmp_path, structure.code)

    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    said = json.loads(result.stdout)
    assert {key: said[key] for key in structure.facts} == structure.facts
    network, _ = network_source(tmp_path / "w.pth", network_class=f"{tmp_path}/model.py:Net")
    model = read_model(tmp_path / "m.onnx")
    least = model.description.min_size
    with backends.get("onnxruntime").open(model) as runner:
        for height, width in structure.sizes:
            images = np.random.default_rng(1).random((2, height, width, 3), np.float32)
            got = runner.infer(images)
            assert got.shape == (2, said["scale"] * height, said["scale"] * width, 3)
            if height < least or height % said["size_multiple"] or width % said["size_multiple"]:
                continue  # it was padded: there is no other to compare with
            with torch.inference_mode(), Stable():
                alone = [network.module(torch.from_numpy(x.transpose(2, 0, 1)[None].copy())) for x in images]
            expected = np.concatenate([x.numpy() for x in alone]).transpose(0, 2, 3, 1)
            assert np.abs(got - expected).max() <= PARITY * np.abs(expected).max()


def test_what_depends_on_pixels_is_unknown(tmp_path: Path) -> None:
    """A linear layer on as many tokens as there are bright pixels: its cost is no number."""
    code = forward("y = y + F.linear(x.permute(0, 2, 3, 1)[x.mean(1) > 0.5], self.tail.weight[:3, :3, 0, 0]).mean()")

    result = export(tmp_path, code)

    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["multiply_adds"] is None


REFUSED: dict[str, tuple[str, int, str]] = {
    "grey only": ("class Net(nn.Conv2d):\n    def __init__(self): super().__init__(1, 1, 3, padding=1)\n", 1, "grey"),
    "four channels": (
        "class Net(nn.Conv2d):\n    def __init__(self): super().__init__(4, 4, 3, padding=1)\n",
        1,
        "images of four channels",
    ),
    "an operator that ONNX has not": (
        forward("y = y + torch.linalg.eigvalsh(y @ y.mT)[..., :1, None]"),
        1,
        "linalg_eigh",
    ),
    "a decision on pixels": (
        forward("if x.mean() > 0.5:\n    y = y * 2"),
        1,
        "model.py, line 13: if x.mean() > 0.5:)",
    ),
    "a size made a number": (
        forward("half = int(height / 2)\ny = y * F.avg_pool2d(y, half, 1, half // 2).mean() + half"),
        3,
        "(model.py, line 14: y = y * F.avg_pool2d(",
    ),
}


@pytest.mark.skipif(not can_run_apart(), reason="only a child's time is limited")
def test_an_exporter_that_does_not_end_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that runs once for each row is traced once for each."""
    monkeypatch.setattr("espan_deploy.onnx_export.MOST_COMPUTING_S", 3)
    result = export(tmp_path, forward("while torch.compiler.is_exporting(): y = y + 1"))

    assert result.exit_code == 1
    assert "still at work after 0 minutes (model.py, line 13: while torch.compiler" in result.stderr


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_one_clear_message(tmp_path: Path, name: str) -> None:
    code, exit_code, message = REFUSED[name]

    result = export(tmp_path, code)

    assert result.exit_code == exit_code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.skipif(not can_run_apart(), reason="this system has no safe fork: the exporter runs in this process")
def test_an_exporter_that_crashes_is_one_message(tmp_path: Path) -> None:
    result = export(tmp_path, forward("if torch.compiler.is_exporting():\n    os._exit(3)"))

    assert result.exit_code == 1
    assert "PyTorch's exporter crashed on this network (exit code 3" in result.stderr


def test_tokens_whose_rows_are_known_are_no_channels(tmp_path: Path) -> None:
    """Of one size, (N, H, W, C) has as many channels as rows for who looks at its shape alone."""
    code = forward(
        "y = F.silu(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)\n"
        "y = F.conv2d(y, self.head.weight[:, :1], padding=1, groups=12)"
    )

    result = export(tmp_path, code, "--static", "24x32")

    assert result.exit_code == 0, result.output


def test_a_model_of_one_size_upscales_images_of_any_in_exact_tiles(tmp_path: Path) -> None:
    """Its tiles are of that size; where the image ends, they end."""
    code = around("nn.Identity()")
    result = export(tmp_path, code, "--static", "24x32")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert (said["fixed_size"], said["halo"]) == ([24, 32], 2)
    (tmp_path / "m.onnx").rename(tmp_path / "static.onnx")
    assert export(tmp_path, code).exit_code == 0
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (61, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")

    made = []
    for model in ("static.onnx", "m.onnx"):
        folders = (tmp_path / "in", tmp_path / model.removesuffix(".onnx"))
        engine = ("--model", tmp_path / model, "--engine", "onnxruntime", "--precision", "fp32")
        result = CliRunner().invoke(main, [*map(str, ("upscale", *folders, *engine))])
        assert result.exit_code == 0, result.output
        assert "approximate" not in result.stderr
        made.append(np.asarray(Image.open(folders[1] / "a.png")).astype(int))

    assert np.abs(made[0] - made[1]).max() <= 1  # what float32 rounds to either side


def test_a_graph_of_batch_one_from_elsewhere_takes_any(tmp_path: Path) -> None:
    assert export(tmp_path, around("Pooled()"), "--no-fold").exit_code == 0
    model = onnx.load(tmp_path / "m.onnx")
    del model.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "one.onnx")

    result = CliRunner().invoke(main, ["export", str(tmp_path / "one.onnx"), "-o", str(tmp_path / "any.onnx")])

    assert result.exit_code == 0, result.output
    assert read_model(tmp_path / "any.onnx").description.max_batch is None
    assert onnx.load(tmp_path / "any.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_param
