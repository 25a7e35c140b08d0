import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from training.losses import (
    FLOOR,
    LossWeights,
    dct_loss,
    dct_matrix,
    distillation_loss,
    edge_loss,
    psnr_loss,
    reconstruction_loss,
)

FLOAT32 = 1e-5
"""Relative; sums of a few thousand float32 terms."""


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 48, 6, 8, generator=generator), torch.rand(2, 48, 6, 8, generator=generator)


def test_l1_and_mse_do_not_mind_the_layout(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    images = [F.pixel_shuffle(part, 4) for part in pair]
    assert reconstruction_loss(*pair, LossWeights(l1=2)) == pytest.approx(2 * float(F.l1_loss(*images)), rel=FLOAT32)
    assert reconstruction_loss(*pair, LossWeights(mse=3)) == pytest.approx(3 * float(F.mse_loss(*images)), rel=FLOAT32)


def test_psnr_counts_crops_by_their_ratio(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    difference = pair[0] - pair[1]
    halved = torch.stack([difference[0] / 2, difference[1]])
    gain = float(psnr_loss(difference) - psnr_loss(halved))
    assert gain == pytest.approx(math.log(4) / 2, rel=5e-3)  # but for the floor, either crop alike
    assert float(psnr_loss(torch.zeros_like(difference))) == pytest.approx(math.log(FLOOR), rel=FLOAT32)
    assert reconstruction_loss(*pair, LossWeights(psnr=0.5)) == pytest.approx(float(psnr_loss(difference)) / 2)


def test_terms_add_up(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    image = F.pixel_shuffle(pair[0] - pair[1], 4)
    wanted = image.square().mean() + 0.1 * dct_loss(image) + 0.2 * edge_loss(image)
    loss = reconstruction_loss(*pair, LossWeights(mse=1, dct=0.1, edge=0.2))
    assert loss == pytest.approx(float(wanted), rel=FLOAT32)


def test_dct_is_the_orthonormal_dct_2() -> None:
    matrix = dct_matrix(8).numpy()
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(8), atol=1e-6)
    wanted = [
        [math.sqrt((1 if k == 0 else 2) / 8) * math.cos(math.pi * (2 * n + 1) * k / 16) for n in range(8)]
        for k in range(8)
    ]
    np.testing.assert_allclose(matrix, wanted, atol=1e-6)


def test_dct_loss_takes_each_block_by_itself() -> None:
    image = torch.zeros(1, 1, 16, 16)
    image[..., :8, 8:] = 0.5  # one flat block: all of it in one coefficient of 0.5 * 8
    assert dct_loss(image) == pytest.approx(4 / 256, rel=FLOAT32)


def test_edge_loss_sees_edges_only() -> None:
    assert edge_loss(torch.full((1, 3, 12, 12), 0.7)) == pytest.approx(0, abs=1e-6)
    impulse = torch.zeros(1, 1, 5, 5)
    impulse[..., 2, 2] = 1
    assert edge_loss(impulse) == pytest.approx(1 - (6 / 16) ** 2, rel=FLOAT32)


def test_distillation_leaves_the_teacher_alone() -> None:
    student, teacher = (torch.rand(2, 3, requires_grad=True) for _ in range(2))
    distillation_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None
