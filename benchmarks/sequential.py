"""The way everybody starts: read, run PyTorch in FP32, save, one image after another. The pipeline's yardstick.

python benchmarks/sequential.py PHOTOS OUTPUT_DIR CHECKPOINT
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from espan_deploy.checkpoints import load_checkpoint
from espan_deploy.networks import load_network


def main() -> None:
    """Do it."""
    photos, output, checkpoint = (Path(argument) for argument in sys.argv[1:4])
    output.mkdir(parents=True, exist_ok=True)
    network = load_network(load_checkpoint(checkpoint)).module.eval()
    with torch.inference_mode():
        for path in sorted(photos.iterdir()):
            pixels = np.asarray(Image.open(path).convert("RGB"))
            planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
            result = network(planes).clamp(0, 1).mul(255).round().byte()[0].permute(1, 2, 0).numpy()
            Image.fromarray(np.ascontiguousarray(result)).save(output / f"{path.stem}.png")


if __name__ == "__main__":
    main()
