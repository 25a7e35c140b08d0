"""What reduced precision can do to an image: values that are not finite, which would come out black."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from espan_deploy.errors import InferenceError


class NonFiniteError(InferenceError):
    """The engine computed NaN or infinity: the batch is worthless in this precision, and may be fine in FP32.

    images: which of the batch, by index.
    """

    def __init__(self, images: list[int]) -> None:
        super().__init__(
            f"the engine computed non-finite values for {len(images)} image(s) of the batch",
            hint="use --precision fp32",
        )
        self.images = images


def check_finite(guard: NDArray[Any]) -> None:
    """Raise NonFiniteError unless every image's guard value, (N,), is finite."""
    if not np.isfinite(guard).all():
        raise NonFiniteError([int(index) for index in np.flatnonzero(~np.isfinite(guard))])
