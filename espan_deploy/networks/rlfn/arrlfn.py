"""ARRLFN: NTIRE 2025 efficient SR, team SylabSR: one RLFN of scale 2, run twice for scale 4.

Deploy form: each block's convolutions are one ``conv_fused``. Training form: FMEN's residual in residual block (Du et
al., "Fast and Memory-Efficient Network Towards Efficient Image Super-Resolution", CVPR workshops 2022).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import ESA, bias_padded, same_conv
from espan_deploy.networks.entry import Architecture, Form, Shapes, count_numbered, scale_of_tail

NEGATIVE_SLOPE = 0.05


class RRRB(nn.Module):
    """1x1 expansion, 3x3 with a skip, 1x1 reduction, and a skip around all; or the one convolution they are."""

    deploy_key = "conv_fused"

    def __init__(self, channels: int, *, ratio: int | None) -> None:
        super().__init__()
        if ratio is None:
            self.conv_fused = same_conv(channels, channels)
        else:
            self.conv_expand = nn.Conv2d(channels, channels * ratio, 1)
            self.conv_feat = nn.Conv2d(channels * ratio, channels * ratio, 3)
            self.conv_reduce = nn.Conv2d(channels * ratio, channels, 1)
        self.training_form = ratio is not None

    def linear(self, x: Tensor) -> Tensor:
        """The sum of the branches. The expansion's bias fills its padding."""
        expand = self.conv_expand
        assert expand.bias is not None
        padded = bias_padded(x, expand.weight, expand.bias)
        out: Tensor = self.conv_reduce(self.conv_feat(padded) + expand(x)) + x
        return out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x) if self.training_form else self.conv_fused(x)
        return out


class RLFB(nn.Module):
    """Convolutions with leaky ReLU, the residual, a 1x1, then the attention."""

    def __init__(self, channels: int, depth: int, esa_channels: int, *, ratio: int | None) -> None:
        super().__init__()
        self.RRRBs = nn.ModuleList(RRRB(channels, ratio=ratio) for _ in range(depth))
        self.conv = nn.Conv2d(channels, channels, 1)
        self.esa = ESA(channels, esa_channels, RRRB(esa_channels, ratio=ratio), skip_conv=False)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for conv in self.RRRBs:
            out = F.leaky_relu(conv(out), NEGATIVE_SLOPE)
        attended: Tensor = self.esa(self.conv(out + x))
        return attended


class ARRLFN(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least 15. Returns (N, 3, S * H, S * W), S = step**passes, not clipped.

    step: the scale of one pass. ratio: the expansion of the training form's blocks; None gives the deploy form.
    """

    def __init__(
        self,
        *,
        channels: int = 12,
        blocks: int = 3,
        depth: int = 3,
        esa_channels: int = 32,
        step: int = 2,
        passes: int = 2,
        ratio: int | None = None,
    ) -> None:
        super().__init__()
        self.passes = passes
        self.conv1 = same_conv(3, channels)
        self.blocks = nn.ModuleList(RLFB(channels, depth, esa_channels, ratio=ratio) for _ in range(blocks))
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.conv_up = same_conv(channels, 3 * step**2)
        self.upsample = nn.PixelShuffle(step)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.passes):
            x = self.upscale(x)
        return x

    def upscale(self, x: Tensor) -> Tensor:
        """One pass: (N, 3, H, W) to (N, 3, step * H, step * W)."""
        shallow = self.conv1(x)
        out = shallow
        for block in self.blocks:
            out = block(out)
        upscaled: Tensor = self.upsample(self.conv_up(self.conv2(out) + shallow))
        return upscaled


def build(shapes: Shapes, *, passes: int = 2) -> Architecture:
    """An ARRLFN of the widths, depth, step and form that the shapes tell.

    passes: how often the network is run; 2, as trained, unless one pass is all that is wanted.
    """
    step = scale_of_tail(shapes["conv_up.weight"][0])
    expansion = shapes.get("blocks.0.RRRBs.0.conv_expand.weight")
    module = ARRLFN(
        channels=shapes["conv1.weight"][0],
        blocks=count_numbered(shapes, "blocks.{}.", first=0),
        depth=count_numbered(shapes, "blocks.0.RRRBs.{}.", first=0),
        esa_channels=shapes["blocks.0.esa.conv1.weight"][0],
        step=step,
        passes=passes,
        ratio=expansion[0] // expansion[1] if expansion else None,
    )
    # The original keeps the ones it folds with.
    ones = frozenset(key for key in shapes if key.endswith(".fuse_ones"))
    form: Form = "training" if expansion else "deploy"
    return Architecture(module, step**passes, form, redundant=ones)


def reference() -> ARRLFN:
    """SylabSR's, 2025."""
    return ARRLFN()
