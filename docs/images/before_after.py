"""Makes before-after.png: ``python docs/images/before_after.py upscaled/chelsea.png`` after the README's first command.

Three crops side by side: the input's pixels, bicubic, and the tool's output.
"""

import sys
from pathlib import Path

from PIL import Image

SCALE = 4
BOX = (54, 20, 154, 95)
"""Left, top, right and bottom of the crop, in the input's pixels."""

HERE = Path(__file__).parent


def main(upscaled: Path) -> None:
    """Write before-after.png beside this file."""
    with Image.open(HERE.parent / "photos" / "chelsea.png") as small, Image.open(upscaled) as large:
        size = (SCALE * small.width, SCALE * small.height)
        box = tuple(SCALE * side for side in BOX)
        crops = [
            small.resize(size, Image.Resampling.NEAREST).crop(box),
            small.resize(size, Image.Resampling.BICUBIC).crop(box),
            large.convert("RGB").crop(box),
        ]
    width, height = crops[0].size
    gap = 8
    sheet = Image.new("RGB", (3 * width + 2 * gap, height), "white")
    for index, crop in enumerate(crops):
        sheet.paste(crop, (index * (width + gap), 0))
    sheet.save(HERE / "before-after.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
