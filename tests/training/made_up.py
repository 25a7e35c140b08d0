"""What the training's tests learn on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth blobs, stripes and a little noise: something to learn on, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [
        np.sin(x * a + y * b + phase) for a, b, phase in zip(*rng.uniform(-0.4, 0.4, (2, 3)), range(3), strict=True)
    ]
    image = 128 + 60 * np.stack(waves, -1) + rng.normal(0, 4, (height, width, 3))
    image[(x // 13 + y // 9) % 5 == 0] *= 0.4
    return np.clip(image, 0, 255).astype(np.uint8)
