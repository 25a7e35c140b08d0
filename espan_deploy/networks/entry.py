"""What the catalogue knows of a network, and what building one gives. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn

Shapes = Mapping[str, tuple[int, ...]]
"""State dict key -> tensor shape: all that detection and building may look at."""

Form = Literal["training", "deploy"]


@dataclass(frozen=True)
class Published:
    """A row of a challenge report's result table: what one team's entry was measured at.

    psnr_db: on the challenge's validation and test images (LSDIR_DIV2K). runtime_ms: mean of both, RTX A6000.
    params_m: millions. flops_g: giga multiply-adds at 256x256 (the reports call them FLOPs).
    """

    challenge: str
    team: str
    psnr_valid_db: float
    psnr_test_db: float
    runtime_ms: float
    params_m: float
    flops_g: float


@dataclass(frozen=True)
class Architecture:
    """A network built from shapes alone, its weights not loaded yet.

    module: takes (N, 3, H, W) and gives (N, 3, scale*H, scale*W), both in [0, value_range], RGB.
    form: "training" where branches are still to be folded, "deploy" where every one already is.
    """

    module: nn.Module
    scale: int
    form: Form
    value_range: float = 1.0


@dataclass(frozen=True)
class NetworkEntry:
    """One network of the catalogue.

    name: what commands call it. source: the paper or report it was written from.
    detect: whether a state dict of these shapes is this network's; the first entry that says yes wins.
    module: the Python module, imported only when needed, that offers
    ``build(shapes) -> Architecture`` (raises KeyError or CheckpointError where shapes do not hold together) and
    ``reference() -> nn.Module``, the network as published, in deploy form.
    """

    name: str
    title: str
    source: str
    module: str
    detect: Callable[[Shapes], bool]
    published: tuple[Published, ...] = ()


def has_keys(*keys: str) -> Callable[[Shapes], bool]:
    """A detector: every one of these keys is there. A key that ends in ``.`` stands for any key it begins."""

    def detect(shapes: Shapes) -> bool:
        return all(any(k.startswith(key) for k in shapes) if key.endswith(".") else key in shapes for key in keys)

    return detect


def count_numbered(shapes: Shapes, pattern: str) -> int:
    """How many of ``pattern.format(1)``, ``pattern.format(2)``... begin a key, counting from 1 without a gap."""
    count = 0
    while any(key.startswith(pattern.format(count + 1)) for key in shapes):
        count += 1
    return count


def scale_of_tail(out_channels: int, image_channels: int = 3) -> int:
    """The factor r of a pixel shuffle behind a convolution of image_channels * r**2 outputs.

    Raises ValueError where no whole r fits.
    """
    scale = math.isqrt(out_channels // image_channels)
    if scale < 1 or image_channels * scale**2 != out_channels:
        raise ValueError(f"a tail of {out_channels} channels fits no pixel shuffle of {image_channels} channels")
    return scale
