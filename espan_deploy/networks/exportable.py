"""Operators of users' networks that PyTorch's exporter gets wrong, computed from operators that it gets right.

``F.adaptive_avg_pool2d`` and ``F.adaptive_max_pool2d`` to more than one cell export without complaint and are right at
the size they were traced with only: the kernels become numbers. Here the cells are places, computed from sizes.
``torch.sort`` told whether to be stable has no ONNX function; told nothing, it has. A float that is read from a tensor,
such as a learnt exponent, stays a tensor.

What such a graph is compared with is the network under :class:`Stable`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Side = int | torch.SymInt


class Exportable(TorchFunctionMode):
    """While it is active, calls of such operators are answered by what can be exported at every size."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The same values as the function's own, up to rounding."""
        given = dict(kwargs or {})
        pool = _POOLS.get(func)
        if pool is not None and not given.get("return_indices") and len(args) <= 2:
            x, size = (*args, given.get("output_size"))[:2] if args else (given.get("input"), given.get("output_size"))
            sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
            if isinstance(x, Tensor) and x.ndim == 4 and len(sides) == 2 and any(side != 1 for side in sides):
                return pool_to(x, sides, pool)
        if func is torch.Tensor.item and args and args[0].is_floating_point():
            return args[0].reshape(())  # a number of Python's has no ONNX function in most operators; a tensor has
        if func in _SORTS:
            given.pop("stable", None)  # what ONNX sorts stays in order where it is equal, asked or not
        return func(*args, **given)


class Stable(TorchFunctionMode):
    """While it is active, what a sort finds equal stays in order, as ONNX's TopK leaves it.

    ``torch.sort`` that was not asked to be stable leaves it in any order, and in another one on each kind of processor.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The function's own values, of one order among equal ones."""
        given = dict(kwargs or {})
        if func in _SORTS:
            given |= dict(zip(("dim", "descending"), args[1:], strict=False)) | {"stable": True}
            args = args[:1]
        return func(*args, **given)


def pool_to(x: Tensor, sides: tuple[Side | None, ...], pool: Callable[[Tensor, int, Tensor, Tensor], Tensor]) -> Tensor:
    """(N, C, H, W) to a grid of so many cells, cut as PyTorch's adaptive pooling cuts them; None leaves a side alone.

    pool: joins the pixels of each cell along one axis. Cells overlap where the grid does not divide the image.
    """
    for axis, count in zip((2, 3), sides, strict=True):
        if count is None:
            continue
        size = x.shape[axis]
        number = torch.arange(count, device=x.device)  # type: ignore[arg-type]  # may be a size that stays open
        first, last = number * size // count, ((number + 1) * size - 1) // count
        longest = (size + count - 1) // count + 1
        position = first[:, None] + torch.arange(longest, device=x.device)
        cells = x.index_select(axis, torch.minimum(position, last[:, None]).flatten())
        cut = [*x.shape]
        cut[axis : axis + 1] = [count, longest]
        inside = (position <= last[:, None]).to(x.dtype)
        x = pool(cells.view(cut), axis + 1, inside, (last - first + 1)[:, None].to(x.dtype))
    return x


def _mean(cells: Tensor, axis: int, inside: Tensor, length: Tensor) -> Tensor:
    weight = inside / length
    return (cells * (weight[:, :, None] if axis == 3 else weight)).sum(axis)


def _largest(cells: Tensor, axis: int, inside: Tensor, length: Tensor) -> Tensor:
    """A cell's last pixel, repeated, is no larger than itself."""
    del inside, length
    return cells.amax(axis)


_SORTS = (torch.sort, torch.Tensor.sort, torch.argsort, torch.Tensor.argsort)

_POOLS: dict[Any, Callable[[Tensor, int, Tensor, Tensor], Tensor]] = {
    F.adaptive_avg_pool2d: _mean,
    torch._C._nn.adaptive_avg_pool2d: _mean,
    F.adaptive_max_pool2d: _largest,
}
