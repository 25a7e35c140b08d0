"""The factsheet's losses. Images here are (N, 3, H, W) in [0, 1]; sub-pixel layout is (N, 3 * scale**2, h, w)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

DCT_SIDE = 8
"""Side of the blocks the DCT loss transforms; the factsheet gives none, and this is JPEG's."""
BLUR = (1.0, 4.0, 6.0, 4.0, 1.0)
"""The edge loss's blur, a binomial; the factsheet gives none."""
FLOOR = 1e-4
"""Mean square beneath which a crop counts no more for being better still (40 dB): a sky would count for all others."""


@dataclass(frozen=True)
class LossWeights:
    """What each term counts for; a term at zero is not computed."""

    l1: float = 0.0
    mse: float = 0.0
    psnr: float = 0.0
    dct: float = 0.0
    edge: float = 0.0
    distillation: float = 0.0


def psnr_loss(difference: Tensor) -> Tensor:
    """Natural logarithm of each crop's mean square, mean over crops: what a mean of dB over pictures asks for."""
    return (difference.square().mean((1, 2, 3)) + FLOOR).log().mean()


@lru_cache(maxsize=4)
def dct_matrix(side: int) -> Tensor:
    """The orthonormal DCT-II, (side, side): row k is the k-th cosine."""
    n = torch.arange(side, dtype=torch.float64)
    matrix = torch.cos(math.pi * (n + 0.5) * n[:, None] / side) * math.sqrt(2 / side)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def dct_loss(difference: Tensor) -> Tensor:
    """Mean absolute difference of the DCTs of all whole blocks (the transform is linear: that of the difference)."""
    count, channels, height, width = difference.shape
    rows, columns = height // DCT_SIDE, width // DCT_SIDE
    blocks = difference[..., : rows * DCT_SIDE, : columns * DCT_SIDE]
    blocks = blocks.reshape(count, channels, rows, DCT_SIDE, columns, DCT_SIDE).transpose(3, 4)
    matrix = dct_matrix(DCT_SIDE).to(difference)
    return (matrix @ blocks @ matrix.T).abs().mean()


def edge_loss(difference: Tensor) -> Tensor:
    """Mean absolute difference of the images less their blur (linear as well). The blur's border is left out."""
    taps = torch.tensor(BLUR).to(difference)
    taps = taps / taps.sum()
    channels, margin = difference.shape[1], len(BLUR) // 2
    kernel = (taps[:, None] * taps).expand(channels, 1, -1, -1)
    blurred = F.conv2d(difference, kernel, groups=channels)
    return (difference[..., margin:-margin, margin:-margin] - blurred).abs().mean()


def reconstruction_loss(output: Tensor, target: Tensor, weights: LossWeights) -> Tensor:
    """Output and target in sub-pixel layout, which L1, MSE and PSNR do not mind; the other terms shuffle first."""
    difference = output.float() - target
    loss = torch.zeros((), dtype=difference.dtype)
    if weights.l1:
        loss = loss + weights.l1 * difference.abs().mean()
    if weights.mse:
        loss = loss + weights.mse * difference.square().mean()
    if weights.psnr:
        loss = loss + weights.psnr * psnr_loss(difference)
    if weights.dct or weights.edge:
        image = F.pixel_shuffle(difference, math.isqrt(difference.shape[1] // 3))
        if weights.dct:
            loss = loss + weights.dct * dct_loss(image)
        if weights.edge:
            loss = loss + weights.edge * edge_loss(image)
    return loss


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute distance of the student from the teacher, which is held fixed (RIFE's form)."""
    return (student.float() - teacher.detach().float()).abs().mean()
