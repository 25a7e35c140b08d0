"""Pictures on which a network itself breaks down in float: there is nothing there for INT8 or FP16 to be near to.

The released ESPAN turns text into noise: its activations grow to thousands of what they are on photographs. INT8, whose
codes end, gives readable text there, and would be condemned for being far from the noise. SAFMNv3 makes values of 8e8
of gratings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from espan_deploy.precision.gate import Upscaler
from espan_deploy.precision.images import VerifyImage

WHITE = 255.0

SOUND = (-0.5, 1.5)
"""Of white: networks overshoot a little at edges."""

SHARE = 1e-3
"""Of a picture's values that may lie outside."""


def breaks_down(outputs: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(N, ...) float outputs, white being 1 -> (N,): whether the network has broken down on each picture."""
    outside = (outputs < SOUND[0]) | (outputs > SOUND[1]) | ~np.isfinite(outputs)
    result: NDArray[np.bool_] = outside.reshape(len(outputs), -1).mean(axis=1) > SHARE
    return result


def sound_images(
    reference: Upscaler, images: Sequence[VerifyImage]
) -> tuple[list[VerifyImage], list[NDArray[np.float64]], list[str]]:
    """The images on which a network in floats does not break down, their outputs, and a note on the others.

    Stress images stay: they must be finite, as far as they are in floats. Where it breaks down on all others, all stay.
    """
    levels = [reference(image.low) for image in images]
    broken = [
        not image.stress and bool(breaks_down(made[None] / WHITE)[0])
        for image, made in zip(images, levels, strict=True)
    ]
    if all(lost or image.stress for image, lost in zip(images, broken, strict=True)):
        return list(images), levels, []
    names = [image.name for image, lost in zip(images, broken, strict=True) if lost]
    return (
        [image for image, lost in zip(images, broken, strict=True) if not lost],
        [made for made, lost in zip(levels, broken, strict=True) if not lost],
        [f"left out, since FP32 itself breaks down on them: {', '.join(names)}"] if names else [],
    )
