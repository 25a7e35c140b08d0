"""The first and last row of an image that things depend on, and what joining and moving things makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espan_deploy.graph.sizes import Shape

Rows = NDArray[np.int16]

NOTHING = (np.int16(1 << 14), np.int16(-1))
"""First and last row of what depends on no pixel."""


@dataclass(frozen=True)
class Hull:
    """First and last row that each element depends on; ``hidden`` elements are zero, or weigh nothing in a softmax."""

    low: Rows
    high: Rows
    hidden: NDArray[np.bool_] | None = None

    @cached_property
    def extent(self) -> int:
        """The most rows that one element spans."""
        spans = self.high - self.low + 1
        return max(0, int(spans.max(initial=0)))

    def moved(self, move: Callable[[NDArray[Any]], NDArray[Any]]) -> Hull:
        """The same elements at other places."""
        hidden = None if self.hidden is None else move(self.hidden)
        return Hull(move(self.low), move(self.high), hidden)

    def joined(self, axes: tuple[int, ...], *, keepdims: bool = True) -> Hull:
        """All along these axes as one element."""
        return Hull(self.low.min(axes, keepdims=keepdims), self.high.max(axes, keepdims=keepdims))

    def to(self, shape: Shape) -> Hull:
        """Repeated to a shape."""
        return self.moved(lambda part: np.broadcast_to(part, shape))


def join(hulls: Sequence[Hull]) -> Hull:
    """Elements that depend on all of these, broadcast."""
    first, *rest = hulls
    low, high = first.low, first.high
    for hull in rest:
        low, high = np.minimum(low, hull.low), np.maximum(high, hull.high)
    return Hull(low, high)


def nothing(shape: Shape) -> Hull:
    """Elements that depend on no pixel."""
    return Hull(*(np.broadcast_to(bound, shape) for bound in NOTHING))
