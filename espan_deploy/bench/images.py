"""The images of a benchmark: sizes asked for, a folder's own, or pairs of low resolution and truth."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from espan_deploy.errors import InputError
from espan_deploy.pipeline.decode import EXTENSIONS, decode

Image = NDArray[np.uint8]
"""(H, W, 3) RGB."""

SHOWN = 8
"""How many file names a message lists."""

MARK = re.compile(r"(?:[_-](?:srf[_-]?\d|lrbi|lr|hr|gt|lq|hq|bicubic)|[_-]?x\d)+$", re.IGNORECASE)
"""What tells the low-resolution file from its truth: butterfly.png, butterflyx4.png, butterfly_LR.png."""


@dataclass(frozen=True)
class Case:
    """What is timed: inputs of one size and batch, or of a folder's mix of sizes in turn.

    inputs: (N, H, W, 3) uint8 each. height, width: of the input, of the mix its mean by pixels.
    """

    label: str
    batch: int
    inputs: tuple[NDArray[np.uint8], ...]

    @property
    def pixels(self) -> float:
        """Of one input with its whole batch, on average."""
        return float(np.mean([image.shape[0] * image.shape[1] * image.shape[2] for image in self.inputs]))

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width where all inputs share them."""
        sizes = {image.shape[1:3] for image in self.inputs}
        return sizes.pop() if len(sizes) == 1 else None


@dataclass(frozen=True)
class Pair:
    """A low-resolution image and its truth."""

    name: str
    low: Image
    high: Image


def generated_case(height: int, width: int, batch: int) -> Case:
    """Soft noise with edges: speed does not depend on what is shown, but all-zero input would flatter some engines."""
    rng = np.random.default_rng(height * 100_003 + width)
    coarse = rng.integers(0, 256, (batch, height // 8 + 1, width // 8 + 1, 3))
    images = np.kron(coarse, np.ones((1, 8, 8, 1), np.int64))[:, :height, :width]
    noisy = np.clip(images + rng.integers(-12, 13, images.shape), 0, 255).astype(np.uint8)
    label = f"{height}x{width}" + (f" x{batch}" if batch > 1 else "")
    return Case(label, batch, (np.ascontiguousarray(noisy),))


def folder_case(folder: Path) -> Case:
    """Every image of a folder, one by one. Raises InputError where there is none or one cannot be read."""
    return mix_case(folder.name, [read_image(path) for path in image_files(folder)])


def mix_case(name: str, images: list[Image]) -> Case:
    """Images in turn, each alone."""
    return Case(f"{name} ({len(images)} images)", 1, tuple(image[None] for image in images))


def load_pairs(low_folder: Path, high_folder: Path, scale: int) -> list[Pair]:
    """The pairs of two folders, by name; marks such as x4, _LR and _HR do not count.

    Raises InputError that lists what has no partner, or whose truth is not ``scale`` times its size.
    """
    lows, highs = _by_key(low_folder), _by_key(high_folder)
    alone = [f"{lows[key]} has no truth" for key in lows if key not in highs]
    alone += [f"{highs[key]} has no low-resolution image" for key in highs if key not in lows]
    if alone:
        raise InputError(
            f"{low_folder} and {high_folder} do not pair: {_listing(alone)}",
            hint="pairs have the same name, apart from marks such as x4, _LR or _HR",
        )
    pairs, wrong = [], []
    for key, low_path in lows.items():
        low, high = read_image(low_path), read_image(highs[key])
        if any(abs(h - scale * s) >= scale for h, s in zip(high.shape[:2], low.shape[:2], strict=True)):
            wrong.append(f"{highs[key]} is {_size(high)}, {scale} times {low_path.name} would be {_size(low, scale)}")
        pairs.append(Pair(key, low, high))
    if wrong:
        raise InputError(f"some truths have another size than {scale} times their image's: {_listing(wrong)}")
    return pairs


def image_files(folder: Path) -> list[Path]:
    """The images of a folder, by name, subfolders left out. Raises InputError where there is none."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder", hint="name a folder of images")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not files:
        raise InputError(f"{folder} holds no images", hint=f"images end in {' '.join(sorted(EXTENSIONS))}")
    return files


def read_image(path: Path) -> Image:
    """A file as RGB bytes; grey in three equal channels, alpha and further depth left out."""
    try:
        picture = decode(path.read_bytes())
    except OSError as exc:
        raise InputError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except InputError as exc:
        raise InputError(f"cannot read {path}: {exc.message}", hint=exc.hint) from exc
    color = picture.color if picture.color.ndim == 3 else np.repeat(picture.color[..., None], 3, axis=2)
    if color.dtype != np.uint8:
        color = np.rint(np.clip(color, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(color)


def _by_key(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in image_files(folder):
        key = MARK.sub("", path.stem) or path.stem
        if key in found:
            raise InputError(f"{found[key]} and {path} count as one name, {key!r}", hint="keep one of them")
        found[key] = path
    return found


def _listing(lines: list[str]) -> str:
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more


def _size(image: Image, factor: int = 1) -> str:
    return f"{image.shape[0] * factor}x{image.shape[1] * factor}"
