"""Pictures on which a network itself breaks down in float: there is nothing there for INT8 to be near to.

The released ESPAN turns text into noise: its activations grow to thousands of what they are on photographs. INT8, whose
codes end, gives readable text there, and would be condemned for being far from the noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SOUND = (-0.5, 1.5)
"""Of white: networks overshoot a little at edges."""

SHARE = 1e-3
"""Of a picture's values that may lie outside."""


def breaks_down(outputs: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(N, ...) float outputs, white being 1 -> (N,): whether the network has broken down on each picture."""
    outside = (outputs < SOUND[0]) | (outputs > SOUND[1]) | ~np.isfinite(outputs)
    result: NDArray[np.bool_] = outside.reshape(len(outputs), -1).mean(axis=1) > SHARE
    return result
