import pytest
import torch

from training.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(32, 288), (48, 32), (8, 8)])
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    matrices[1] *= 1e-4  # however small the gradient is
    made = orthogonalised(matrices) / max(shape) ** 0.5
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.5
    assert values.max() < 1.3
    for before, after in zip(matrices, made, strict=True):  # the same directions, weighted alike
        left, _, right = torch.linalg.svd(before, full_matrices=False)
        diagonal = left.T @ after @ right.T
        assert (diagonal - torch.diag(torch.diagonal(diagonal))).abs().max() < 1e-4
        assert torch.diagonal(diagonal).min() > 0.5


def test_a_step_is_as_long_as_its_rate_and_goes_down() -> None:
    generator = torch.Generator().manual_seed(1)
    kernels = [torch.nn.Parameter(torch.randn(16, 8, 3, 3, generator=generator)) for _ in range(2)]
    still = torch.nn.Parameter(torch.ones(16, 8, 3, 3))
    before = [kernel.detach().clone() for kernel in kernels]
    optimizer = Muon([{"params": [*kernels, still]}], lr=0.01)
    loss = sum((scale * kernel).square().sum() for scale, kernel in zip((1.0, 100.0), kernels, strict=True))
    loss.backward()  # type: ignore[union-attr]
    optimizer.step()
    for kernel, old in zip(kernels, before, strict=True):
        step = kernel.detach() - old
        assert step.square().mean().sqrt() == pytest.approx(0.01, rel=0.2)
        assert (step * old).sum() < 0
    assert torch.equal(still, torch.ones_like(still))
