"""RLFN's descendants: four blocks of three 3x3 convolutions, a 1x1 and enhanced spatial attention.

RLFN: Kong et al., "Residual Local Feature Network for Efficient Super-Resolution", CVPR workshops 2022.
DIPNet: Yu et al., "DIPNet: Efficiency Distillation and Iterative Pruning", CVPR workshops 2023.

- DIPNet-slim (NTIRE 2025, team ASR): DIPNet without pruning, 32 channels, SiLU, no biases outside the attention.
- IESRNet (2025, team IESR): the same, without the residual and one convolution of the two middle blocks.
- RepRLFN (2025, team JNU620): RLFN with 48 channels and re-parameterised convolutions.

Training form: DIPNet's 3x3 convolutions are :class:`~espan_deploy.networks.blocks.Conv3XC`, as what is left of it in
the entrants' code names them; RepRLFN's are a :class:`RepConv` each.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import (
    ESA,
    Activation,
    Conv,
    EvalConv,
    conv_form,
    same_conv,
    shuffle_tail,
    stale_keys,
)
from espan_deploy.networks.entry import Architecture, Form, Shapes, conv_shape, count_numbered, scale_of_tail
from espan_deploy.networks.rlfn.blocks import ResidualChain

RESIDUAL, SHORT = ("c1_r", "c2_r", "c3_r"), ("c1_r", "c3_r")
"""The convolutions of a block with its residual, and of one without."""

REP_BRANCHES: dict[str, tuple[int, int]] = {"3x3": (3, 3), "3x1": (3, 1), "1x3": (1, 3), "1x1": (1, 1)}


class RepConv(nn.Module):
    """RepRLFN's convolution: 3x3, 3x1, 1x3 and 1x1 side by side and a skip, or the one ``rbr_reparam`` they are."""

    deploy_key = "rbr_reparam"

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True, training_form: bool = False) -> None:
        super().__init__()
        if training_form:
            for name, (height, width) in REP_BRANCHES.items():
                padding = (height // 2, width // 2)
                branch = nn.Conv2d(in_channels, out_channels, (height, width), padding=padding, bias=bias)
                self.add_module(f"rbr_{name}_branch", branch)
        else:
            self.rbr_reparam = same_conv(in_channels, out_channels, bias=bias)

    def linear(self, x: Tensor) -> Tensor:
        """The sum of the branches."""
        out = x
        for branch in self.children():
            out = out + branch(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "rbr_reparam"):
            out: Tensor = self.rbr_reparam(x)
            return out
        return self.linear(x)


class RRFB(nn.Module):
    """Convolutions with an activation, the residual where there are three of them, a 1x1, then the attention."""

    def __init__(
        self,
        conv: Conv,
        channels: int,
        mid_channels: int,
        names: tuple[str, ...],
        esa: ESA,
        *,
        bias: bool,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.names = names
        self.activation = activation
        widths = [channels] + [mid_channels] * (len(names) - 1) + [channels]
        for name, in_channels, out_channels in zip(names, widths, widths[1:], strict=False):
            self.add_module(name, conv(in_channels, out_channels, bias=bias))
        self.c5 = nn.Conv2d(channels, channels, 1, bias=bias)
        self.esa = esa

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for name in self.names:
            out = self.activation(self.get_submodule(name)(out))
        attended: Tensor = self.esa(self.c5(out + x if self.names == RESIDUAL else out))
        return attended


class RLFN(ResidualChain):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least 15. Returns (N, 3, scale * H, scale * W), not clipped.

    blocks: the convolutions of each block. conv: the blocks' own. outer_conv: of the network's head, end and tail.
    bias: of all of these and the blocks' 1x1. esa_conv: of the attention's 3x3, which has a bias in any case.
    skip_conv: a 1x1 in the attention. end_kernel: of the convolution that ends the body, a plain one where it is 1.
    """

    def __init__(
        self,
        *,
        blocks: tuple[tuple[str, ...], ...] = (RESIDUAL,) * 4,
        channels: int = 32,
        mid_channels: int = 32,
        esa_channels: int = 16,
        scale: int = 4,
        conv: Conv = EvalConv,
        outer_conv: Conv = EvalConv,
        bias: bool = False,
        activation: Activation = F.silu,
        esa_conv: Conv = EvalConv,
        skip_conv: bool = True,
        end_kernel: int = 1,
    ) -> None:
        end = same_conv if end_kernel == 1 else outer_conv
        super().__init__(
            outer_conv(3, channels, bias=bias),
            [
                RRFB(
                    conv,
                    channels,
                    mid_channels,
                    names,
                    ESA(channels, esa_channels, esa_conv(esa_channels, esa_channels), skip_conv=skip_conv),
                    bias=bias,
                    activation=activation,
                )
                for names in blocks
            ],
            end(channels, channels, end_kernel, bias=bias),
            shuffle_tail(outer_conv(channels, 3 * scale**2, bias=bias), scale),
        )


def leaky_twice(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.05 behind each of RepRLFN's convolutions, and again behind that: 0.0025 below zero."""
    return F.leaky_relu(x, 0.05**2)


def build(shapes: Shapes) -> Architecture:
    """The network of this family of the widths, depth, scale and form that the shapes tell."""
    scale = scale_of_tail(conv_shape(shapes, "upsampler.0")[0])
    esa_conv = same_conv if "block_1.esa.conv3.weight" in shapes else conv_form(shapes, "block_1.esa.conv3")[0]
    form: Form
    if "conv_1.weight" in shapes:
        training_form = "block_1.c1_r.rbr_reparam.weight" not in shapes
        first = "block_1.c1_r.rbr_3x3_branch" if training_form else "block_1.c1_r.rbr_reparam"
        form = "training" if training_form else "deploy"
        blocks = (RESIDUAL,) * count_numbered(shapes, "block_{}.")
        channels, esa_channels = shapes["conv_1.weight"][0], shapes["block_1.esa.conv1.weight"][0]
        if conv_shape(shapes, first)[0] != channels:
            raise ValueError("RepRLFN's blocks keep their width")
        module = rep_rlfn(
            blocks=blocks, channels=channels, esa_channels=esa_channels, scale=scale, training_form=training_form
        )
        return Architecture(module, scale, form)
    conv, form = conv_form(shapes, "conv_1")
    names = [
        RESIDUAL if any(key.startswith(f"block_{i + 1}.c2_r.") for key in shapes) else SHORT
        for i in range(count_numbered(shapes, "block_{}."))
    ]
    module = RLFN(
        blocks=tuple(names),
        channels=conv_shape(shapes, "conv_1")[0],
        mid_channels=conv_shape(shapes, "block_1.c1_r")[0],
        esa_channels=shapes["block_1.esa.conv1.weight"][0],
        scale=scale,
        conv=conv,
        outer_conv=conv,
        esa_conv=esa_conv,
        skip_conv="block_1.esa.conv_f.weight" in shapes,
        end_kernel=conv_shape(shapes, "conv_2")[2],
    )
    return Architecture(module, scale, form, redundant=stale_keys(shapes))


def reference() -> RLFN:
    """ASR's DIPNet_slim_v2, 2025."""
    return RLFN()


def iesrnet() -> RLFN:
    """IESR's, 2025."""
    return RLFN(blocks=(RESIDUAL, SHORT, SHORT, RESIDUAL), esa_conv=same_conv, skip_conv=False, end_kernel=3)


def rep_rlfn(
    *,
    blocks: tuple[tuple[str, ...], ...] = (RESIDUAL,) * 4,
    channels: int = 48,
    esa_channels: int = 15,
    scale: int = 4,
    training_form: bool = False,
) -> RLFN:
    """JNU620's, 2025."""
    return RLFN(
        blocks=blocks,
        channels=channels,
        mid_channels=channels,
        esa_channels=esa_channels,
        scale=scale,
        conv=partial(RepConv, training_form=training_form),
        outer_conv=same_conv,
        bias=True,
        activation=leaky_twice,
        esa_conv=same_conv,
        end_kernel=3,
    )
