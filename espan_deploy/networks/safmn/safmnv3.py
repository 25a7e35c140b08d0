"""SAFMNv3 and two relatives: NTIRE 2025 efficient SR, teams VPEG_O (SAFMNv3), MiSR (ExpandRepNet) and mmSR (FRNet).

SAFMN (Sun et al., "Spatially-Adaptive Feature Modulation for Efficient Image Super-Resolution", ICCV 2023), slimmed: of
the features a third is pooled to a coarse grid, convolved, enlarged and multiplied with itself. A feed-forward of two
convolutions follows, one residual spans both, and the network adds to the bilinearly enlarged image.

What tells the three apart: SAFMNv3 makes the two parts of the features in two convolutions, adds the variance over the
image to the coarse grid and has a 1x1 in its feed-forward. ExpandRepNet and FRNet have one 3x3 for both parts and a
3x3 in the feed-forward; ExpandRepNet's convolutions have biases and stand under ``eval_conv``; FRNet pools to half
the grid.

Training form: FRNet's released checkpoint is one. Its 3x3 is ``proj(x) + conv6_proj(conv5_proj(x))``, the inner
convolution a 1x1; in deploy form it is ``conv_fuse2``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import EvalConv, shuffle_tail
from espan_deploy.networks.entry import Architecture, Form, Shapes, conv_shape, count_numbered, scale_of_tail
from espan_deploy.networks.grids import adaptive_max_pool
from espan_deploy.networks.safmn.blocks import depthwise, variance_over_image


@dataclass(frozen=True)
class Design:
    """What distinguishes one member of the family.

    eval_convs: convolutions with biases, under ``eval_conv``. mixer_kernel: of the feed-forward's first convolution.
    divisor: the coarse grid is the image's size over this.
    """

    eval_convs: bool
    mixer_kernel: int
    divisor: int

    def conv(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Module:
        """A "same" convolution as this member has them."""
        if self.eval_convs:
            return EvalConv(in_channels, out_channels, kernel_size)
        return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)


SAFMNV3 = Design(eval_convs=False, mixer_kernel=1, divisor=8)
EXPAND_REP_NET = Design(eval_convs=True, mixer_kernel=3, divisor=8)
FRNET = Design(eval_convs=False, mixer_kernel=3, divisor=16)


class SplitModulation(nn.Module):
    """SAFMNv3's: the modulated part and the rest are convolutions of their own; the variance joins the coarse grid."""

    def __init__(self, channels: int, pooled: int, design: Design) -> None:
        super().__init__()
        self.divisor = design.divisor
        self.conv1 = design.conv(channels, pooled)
        self.conv2 = design.conv(channels, channels - pooled)
        self.conv3 = design.conv(pooled, pooled, 1)
        self.dwconv = depthwise(pooled, 3, bias=False)
        self.out = design.conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv1(x)
        coarse = self.conv3(self.dwconv(adaptive_max_pool(features, self.divisor)) + variance_over_image(features))
        out: Tensor = self.out(F.gelu(torch.cat([self.conv2(x), modulated(features, coarse)], 1)))
        return out


class JointModulation(nn.Module):
    """One convolution, under ``conv_name``, makes all features; the first of them are modulated."""

    def __init__(self, channels: int, pooled: int, design: Design, conv_name: str) -> None:
        super().__init__()
        self.divisor, self.widths, self.conv_name = design.divisor, [pooled, channels - pooled], conv_name
        self.add_module(conv_name, design.conv(channels, channels))
        self.dwconv = depthwise(pooled, 3, bias=False)
        self.out = design.conv(channels, channels, 1)

    def all_features(self, x: Tensor) -> Tensor:
        out: Tensor = self.get_submodule(self.conv_name)(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        features, rest = torch.split(self.all_features(x), self.widths, 1)
        coarse = self.dwconv(adaptive_max_pool(features, self.divisor))
        out: Tensor = self.out(F.gelu(torch.cat([rest, modulated(features, coarse)], 1)))
        return out


class BranchedModulation(JointModulation):
    """FRNet's in training form: a 1x1-3x3 chain beside the 3x3."""

    def __init__(self, channels: int, pooled: int, design: Design) -> None:
        super().__init__(channels, pooled, design, "proj")
        self.conv5_proj = design.conv(channels, channels, 1)
        self.conv6_proj = design.conv(channels, channels)

    def all_features(self, x: Tensor) -> Tensor:
        out: Tensor = super().all_features(x) + self.conv6_proj(self.conv5_proj(x))
        return out

    def deploy_state(self) -> dict[str, Tensor]:
        """The same with one convolution, ``conv_fuse2``, for the three."""
        own = self.state_dict()
        inner, outer = own["conv5_proj.weight"], own["conv6_proj.weight"]
        fused = own["proj.weight"] + F.conv2d(outer, inner.transpose(0, 1))
        return {"conv_fuse2.weight": fused, **{f"{name}.weight": own[f"{name}.weight"] for name in ("dwconv", "out")}}


class Mixer(nn.Module):
    """The feed-forward: a convolution to ``hidden`` channels, GELU, a 1x1 back."""

    def __init__(self, channels: int, hidden: int, design: Design) -> None:
        super().__init__()
        self.conv1 = design.conv(channels, hidden, design.mixer_kernel)
        self.conv2 = design.conv(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(F.gelu(self.conv1(x)))
        return out


class Block(nn.Module):
    """Modulation under ``conv1``, feed-forward under ``conv2``, and one residual."""

    def __init__(self, modulation: nn.Module, mixer: Mixer) -> None:
        super().__init__()
        self.conv1 = modulation
        self.conv2 = mixer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x)) + x
        return out


class SAFMNv3(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least ``design.divisor``. Returns (N, 3, scale * H, scale * W), not
    clipped.

    pooled: channels that are modulated. hidden: of the feed-forward.
    modulation: makes a block's, of (channels, pooled, design).
    """

    def __init__(
        self,
        *,
        channels: int = 40,
        pooled: int = 12,
        hidden: int = 60,
        blocks: int = 6,
        scale: int = 4,
        design: Design = SAFMNV3,
        modulation: Callable[[int, int, Design], nn.Module] = SplitModulation,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.to_feat = design.conv(3, channels)
        self.feats = nn.Sequential(
            *(Block(modulation(channels, pooled, design), Mixer(channels, hidden, design)) for _ in range(blocks))
        )
        self.to_img = shuffle_tail(design.conv(channels, 3 * scale**2), scale)

    def forward(self, x: Tensor) -> Tensor:
        enlarged = F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
        upscaled: Tensor = self.to_img(self.feats(self.to_feat(x))) + enlarged
        return upscaled


JOINT = partial(JointModulation, conv_name="proj")
FUSED = partial(JointModulation, conv_name="conv_fuse2")


def modulated(features: Tensor, coarse: Tensor) -> Tensor:
    """The features times GELU of the coarse grid, enlarged to their size."""
    return F.gelu(F.interpolate(coarse, size=features.shape[2:], mode="bilinear", align_corners=False)) * features


def build(shapes: Shapes) -> Architecture:
    """The member, of the widths, depth, scale and form that the shapes tell."""
    first = "feats.0.conv1"
    form: Form = "training" if f"{first}.conv5_proj.weight" in shapes else "deploy"
    design = SAFMNV3
    modulation: Callable[[int, int, Design], nn.Module] = SplitModulation
    if "to_feat.eval_conv.weight" in shapes:
        design, modulation = EXPAND_REP_NET, JOINT
    elif f"{first}.conv3.weight" not in shapes:
        design, modulation = FRNET, BranchedModulation if form == "training" else FUSED
    scale = scale_of_tail(conv_shape(shapes, "to_img.0")[0])
    module = SAFMNv3(
        channels=conv_shape(shapes, "to_feat")[0],
        pooled=shapes[f"{first}.dwconv.weight"][0],
        hidden=conv_shape(shapes, "feats.0.conv2.conv1")[0],
        blocks=count_numbered(shapes, "feats.{}.", first=0),
        scale=scale,
        design=design,
        modulation=modulation,
    )
    return Architecture(module, scale, form)


def reference() -> SAFMNv3:
    """VPEG_O's, 2025."""
    return SAFMNv3()


def expand_rep_net() -> SAFMNv3:
    """MiSR's, 2025."""
    return SAFMNv3(channels=36, hidden=54, design=EXPAND_REP_NET, modulation=JOINT)


def frnet() -> SAFMNv3:
    """mmSR's, 2025, as it is once its convolutions are one."""
    return SAFMNv3(channels=36, hidden=54, design=FRNET, modulation=FUSED)
