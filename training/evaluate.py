"""Y-PSNR of a trained network, as the super-resolution literature measures it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from espan_deploy.networks.span.espan import ESPAN
from training.data import Photographs
from training.degrade import Degradations, degraded_crop
from training.merge import deploy_state

BORDER = 4
LUMA = np.array([65.481, 128.553, 24.966]) / 255
Upscaler = Callable[[Tensor], Tensor]
"""(1, 3, H, W) float32 in [0, 1] on the CPU to the same, enlarged."""
Pair = tuple[str, NDArray[np.uint8], NDArray[np.uint8]]
"""Name, low-resolution and high-resolution image, (H, W, 3) each."""


def psnr_y(image: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """dB, on luma (not rounded), BORDER pixels off every side of the common size."""
    height, width = (min(pair) for pair in zip(image.shape[:2], reference.shape[:2], strict=True))
    luma = [
        part[BORDER : height - BORDER, BORDER : width - BORDER].astype(np.float64) @ LUMA for part in (image, reference)
    ]
    return float(10 * np.log10(255**2 / np.mean((luma[0] - luma[1]) ** 2)))


def deploy_form(network: ESPAN) -> ESPAN:
    """The deploy form of a training-form ESPAN, in its dtype."""
    state = deploy_state(network)
    kernel = state["tea_upsampler.0.eval_conv.weight"]
    deployed = ESPAN(scale=round((len(kernel) / 3) ** 0.5)).to(kernel.dtype)
    deployed.load_state_dict(state)
    return deployed.eval()


@torch.no_grad()
def upscale(network: Upscaler, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 to the network's multiple of it."""
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    y = network(x.contiguous(memory_format=torch.channels_last))[0].permute(1, 2, 0)
    return (y * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def mean_psnr_y(network: Upscaler, pairs: Iterable[Pair]) -> float:
    """Mean over images, in dB."""
    return float(np.mean([psnr_y(upscale(network, low), high) for _, low, high in pairs]))


def validation_pairs(
    photographs: Photographs, scale: int, side: int, degradations: Degradations | None = None
) -> list[Pair]:
    """The middle of each photograph, at most ``side`` low-resolution pixels square; spoiled alike at every call."""
    pairs = []
    rng = np.random.default_rng(0)
    for name, low, high in zip(photographs.names, photographs.lr[scale], photographs.hr, strict=True):
        rows, columns = (min(size, side) for size in low.shape[:2])
        top, left = (low.shape[0] - rows) // 2, (low.shape[1] - columns) // 2
        window = high[top * scale : (top + rows) * scale, left * scale : (left + columns) * scale]
        small = np.array(low[top : top + rows, left : left + columns])
        if degradations is not None:
            small = degraded_crop(
                high, low, corner=(top, left), patch=min(rows, columns), degradations=degradations, rng=rng
            )
        pairs.append((name, small, np.array(window)))
    return pairs


def folder_pairs(low: Path, high: Path) -> Iterator[Pair]:
    """Images of two folders, in the order of their names; each name must begin alike up to its first underscore."""
    for a, b in zip(sorted(low.iterdir()), sorted(high.iterdir()), strict=True):
        if a.stem.split("_")[0] != b.stem.split("_")[0]:
            raise ValueError(f"the folders do not pair: {a.name} beside {b.name}")
        images = [np.asarray(Image.open(path).convert("RGB")) for path in (a, b)]
        yield a.stem, images[0], images[1]
