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
    redundant: keys that the state dict may hold besides, and that nothing is lost by ignoring.
    """

    module: nn.Module
    scale: int
    form: Form
    value_range: float = 1.0
    redundant: frozenset[str] = frozenset()


@dataclass(frozen=True)
class NetworkEntry:
    """One network of the catalogue.

    name: what commands call it. source: the paper or report it was written from.
    detect: whether a state dict of these shapes is this network's; the first entry that says yes wins.
    module: the Python module, imported only when needed, that offers
    ``build(shapes) -> Architecture`` (raises KeyError or CheckpointError where shapes do not hold together) and
    a function without arguments that gives the network as published, in deploy form.
    reference: that function's name; the entries of one family share a module, and each has its own.
    weights: which state dict its authors use, where a file holds several; None for the averaged one.
    """

    name: str
    title: str
    source: str
    module: str
    detect: Callable[[Shapes], bool]
    published: tuple[Published, ...] = ()
    reference: str = "reference"
    weights: str | None = None


def has_keys(*keys: str) -> Callable[[Shapes], bool]:
    """A detector: every one of these keys is there. A key that ends in ``.`` stands for any key it begins."""

    def detect(shapes: Shapes) -> bool:
        return all(any(k.startswith(key) for k in shapes) if key.endswith(".") else key in shapes for key in keys)

    return detect


def lacks_keys(*keys: str) -> Callable[[Shapes], bool]:
    """A detector: not one of these keys is there; keys as in :func:`has_keys`."""
    one_each = [has_keys(key) for key in keys]
    return lambda shapes: not any(detect(shapes) for detect in one_each)


def every(*detectors: Callable[[Shapes], bool]) -> Callable[[Shapes], bool]:
    """A detector: all of these say yes. One that stumbles over shapes it did not expect says no."""

    def detect(shapes: Shapes) -> bool:
        try:
            return all(detector(shapes) for detector in detectors)
        except (KeyError, IndexError, ValueError):
            return False

    return detect


def conv_shape(shapes: Shapes, key: str) -> tuple[int, int, int]:
    """(out_channels, in_channels, kernel_size) of the convolution under this key, in whichever form it is.

    Raises KeyError where there is none.
    """
    if f"{key}.sk.weight" in shapes:
        out_channels, in_channels = shapes[f"{key}.sk.weight"][:2]
        return out_channels, in_channels, shapes[f"{key}.conv.1.weight"][-1]
    deploy = f"{key}.eval_conv.weight"
    out_channels, in_channels, _, kernel_size = shapes[deploy if deploy in shapes else f"{key}.weight"]
    return out_channels, in_channels, kernel_size


def count_numbered(shapes: Shapes, pattern: str, *, first: int = 1) -> int:
    """How many of ``pattern.format(first)``, ``pattern.format(first + 1)``... begin a key, without a gap."""
    count = 0
    while any(key.startswith(pattern.format(first + count)) for key in shapes):
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
