"""How steady a network is on drawings: what it makes of text, lines and noise must stay near the range of pixels.

A network that trained on photographs enlarges a few drawings of a thousand into black and white rubble, by raw values
far off the range. Mean dB does not show it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.drawings import drawing, page
from training.evaluate import Pair, mean_psnr_y
from training.table import SCALE

NEAR = (-1.0, 2.0)
"""Raw values, black being 0 and white 1: what overshoots less is clipped and not seen."""
BATCH = 20
PAGES = 100


@dataclass(frozen=True)
class Steadiness:
    """beyond: how many drawings have a raw value that is not NEAR. lowest, highest: of all raw values.

    pages: Y-PSNR on PAGES pages, whose truth is known, in dB.
    """

    beyond: int
    lowest: float
    highest: float
    pages: float


@torch.no_grad()
def steadiness(network: Callable[[Tensor], Tensor], *, count: int, side: int, seed: int) -> Steadiness:
    """network: (N, 3, H, W) in [0, 1] to raw values. count drawings of side x side pixels, and PAGES pages."""
    rng = np.random.default_rng(seed)
    extremes = []
    for start in range(0, count, BATCH):
        low = np.stack([drawing(side, rng) for _ in range(min(BATCH, count - start))])
        raw = network(torch.from_numpy(low).permute(0, 3, 1, 2).float() / 255).flatten(1)
        extremes.append(torch.stack([raw.amin(1), raw.amax(1)], 1))
    lowest, highest = torch.cat(extremes).unbind(1)
    beyond = ~((lowest >= NEAR[0]) & (highest <= NEAR[1]))  # so that what is no number counts
    pairs: list[Pair] = [("page", *page(side, SCALE, rng)) for _ in range(PAGES)]
    return Steadiness(int(beyond.sum()), float(lowest.min()), float(highest.max()), mean_psnr_y(network, pairs))
