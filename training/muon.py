"""Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"): momentum, orthogonalised.

torch.optim.Muon takes matrices alone; here a convolution's kernel is the matrix (O, I * k * k), and kernels of one
shape are stepped together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz iteration, as published: it brings singular values near one, not to one."""
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For parameters of two or more dimensions. One step moves a kernel's entries by ``lr`` in the root mean square."""

    def __init__(self, params: Iterable[dict[str, Any]], *, lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Parameters without a gradient stay."""
        del closure
        for group in self.param_groups:
            alike: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for parameters in alike.values():
                updates = torch.stack([self._nesterov(each, group["momentum"]).flatten(1) for each in parameters])
                for parameter, step in zip(parameters, orthogonalised(updates).unbind(0), strict=True):
                    parameter.sub_(step.view_as(parameter), alpha=group["lr"])

    def _nesterov(self, parameter: torch.nn.Parameter, momentum: float) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["exp_avg"], momentum)


def orthogonalised(matrices: Tensor) -> Tensor:
    """(N, rows, columns) to the nearest semi-orthogonal ones, roughly, scaled to a root mean square of about one."""
    rows, columns = matrices.shape[1:]
    x = matrices if rows <= columns else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-12)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if rows <= columns else x.mT) * max(rows, columns) ** 0.5
