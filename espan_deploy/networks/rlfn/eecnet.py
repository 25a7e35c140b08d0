"""EECNet: NTIRE 2025 efficient SR, team ChanSR ("Edge Enhanced Convolutional Network").

Blocks of two edge-enhanced convolutions, a PReLU between them, and enhanced spatial attention.

Deploy form: each convolution is one ``rep_conv``. Training form: a 1x1 expansion, an edge-enhanced block of six
branches and a skip, a 1x1 reduction, and a skip around all, with the original's keys.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import ESA, bias_padded, same_conv
from espan_deploy.networks.entry import Architecture, Form, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.rlfn.blocks import EDGES, EdgeBranch, Filter

SHARPEN: Filter = ((-0.0625, -0.125, -0.0625), (-0.125, 0.75, -0.125), (-0.0625, -0.125, -0.0625))
"""The pixel minus its blurred surroundings."""

BRANCHES = {**EDGES, "conv1x1_subBlur": SHARPEN}


class WideBranch(nn.Module):
    """A 1x1 convolution to more channels, whose bias fills its padding, then a 3x3. Keys: ``k0, b0``, ``k1, b1``."""

    def __init__(self, channels: int, mid_channels: int) -> None:
        super().__init__()
        first, second = nn.Conv2d(channels, mid_channels, 1), nn.Conv2d(mid_channels, channels, 3)
        assert first.bias is not None
        assert second.bias is not None
        self.k0, self.b0, self.k1, self.b1 = first.weight, first.bias, second.weight, second.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(bias_padded(x, self.k0, self.b0), self.k1, self.b1)


class SixBranches(nn.Module):
    """A 3x3, a 1x1, a wide 1x1-3x3, edges, a sharpening, and a skip, summed."""

    def __init__(self, channels: int, wide_channels: int) -> None:
        super().__init__()
        self.rep_conv = same_conv(channels, channels)
        self.conv1x1 = nn.Conv2d(channels, channels, 1)
        self.conv1x1_3x3 = WideBranch(channels, wide_channels)
        for name, kernel in BRANCHES.items():
            self.add_module(name, EdgeBranch(channels, channels, kernel))

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for branch in self.children():
            out = out + branch(x)
        return out


class EEC(nn.Module):
    """The edge-enhanced convolution in either form, and its PReLU where it has one.

    widths: the training form's, (behind the expansion, inside its widest branch); None gives the deploy form.
    """

    deploy_key = "rep_conv"

    def __init__(self, channels: int, *, widths: tuple[int, int] | None, activate: bool) -> None:
        super().__init__()
        self.training_form = widths is not None
        if widths is None:
            self.rep_conv = same_conv(channels, channels)
        else:
            self.expand_conv = nn.Conv2d(channels, widths[0], 1, bias=False)
            self.fea_conv = SixBranches(*widths)
            self.reduce_conv = nn.Conv2d(widths[0], channels, 1)
        self.act = nn.PReLU(channels) if activate else nn.Identity()

    def linear(self, x: Tensor) -> Tensor:
        """The chain and the skip."""
        out: Tensor = self.reduce_conv(self.fea_conv(self.expand_conv(x))) + x
        return out

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.act(self.linear(x) if self.training_form else self.rep_conv(x))
        return activated


class EEB(nn.Module):
    """Two edge-enhanced convolutions, then the attention."""

    def __init__(self, channels: int, esa_channels: int, *, widths: tuple[int, int] | None) -> None:
        super().__init__()
        self.eec1 = EEC(channels, widths=widths, activate=True)
        self.eec2 = EEC(channels, widths=widths, activate=False)
        self.esa = ESA(channels, esa_channels, same_conv(esa_channels, esa_channels), skip_conv=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.esa(self.eec2(self.eec1(x)))
        return out


class EECNet(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least 15. Returns (N, 3, scale * H, scale * W), not clipped."""

    def __init__(
        self,
        *,
        channels: int = 32,
        blocks: int = 8,
        esa_channels: int = 16,
        scale: int = 4,
        widths: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.head = same_conv(3, channels)
        self.blocks = nn.Sequential(*(EEB(channels, esa_channels, widths=widths) for _ in range(blocks)))
        self.conv1x1 = nn.Conv2d(channels, channels, 1)
        self.tail = same_conv(channels, 3 * scale**2)
        self.pixel_shuffle = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.head(x)
        deep = self.conv1x1(self.blocks(shallow))
        upscaled: Tensor = self.pixel_shuffle(self.tail(deep + shallow))
        return upscaled


def build(shapes: Shapes) -> Architecture:
    """An EECNet of the widths, depth, scale and form that the shapes tell."""
    expansion = shapes.get("blocks.0.eec1.expand_conv.weight")
    widths = (expansion[0], shapes["blocks.0.eec1.fea_conv.conv1x1_3x3.k0"][0]) if expansion else None
    scale = scale_of_tail(shapes["tail.weight"][0])
    module = EECNet(
        channels=shapes["head.weight"][0],
        blocks=count_numbered(shapes, "blocks.{}.", first=0),
        esa_channels=shapes["blocks.0.esa.conv1.weight"][0],
        scale=scale,
        widths=widths,
    )
    # The original keeps each convolution it would fold into beside the branches, random.
    unused = [f"blocks.{i}.{conv}.rep_conv." for i in range(len(module.blocks)) for conv in ("eec1", "eec2")]
    stale = frozenset(key for key in shapes if widths and key.startswith(tuple(unused)))
    form: Form = "training" if widths else "deploy"
    return Architecture(module, scale, form, redundant=stale)


def reference() -> EECNet:
    """ChanSR's, 2025."""
    return EECNet()
