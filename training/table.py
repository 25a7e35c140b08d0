"""What JPEG does to each enlarger: Y-PSNR with the low-resolution side compressed, set by set.

The low-resolution image goes through JPEG as Pillow writes it by default (4:2:0), and the result is compared with the
untouched high-resolution image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from espan_deploy.networks.span.espan import ESPAN
from espan_deploy.sources import network_source
from training.data import open_photograph, photographs_in
from training.degrade import jpeg
from training.drawings import enlarged
from training.evaluate import Pair, deploy_form, psnr_y, upscale
from training.merge import rep_convs
from training.resize import shrink

QUALITIES = (None, 90, 70, 50, 30)
"""JPEG quality of the low-resolution side; None: as it is."""
SCALE = 4
HELD_OUT_SIDE = 1000
"""Photographs longer than this are shrunk by a whole number: camera pixels are no truth."""

Pixels = NDArray[np.uint8]
Enlarger = Callable[[Pixels], Pixels]
Figures = dict[str, dict[str, list[float]]]
"""Set -> enlarger -> dB at each of QUALITIES."""


def bicubic(image: Pixels) -> Pixels:
    """What a network has to be better than."""
    return enlarged(image, SCALE)


def enlarger_of(checkpoint: Path) -> Enlarger:
    """A checkpoint of any network in the catalogue, in float32, ours folded. Raises CheckpointError."""
    network, _ = network_source(checkpoint)
    trained = isinstance(network.module, ESPAN) and rep_convs(network.module)
    module = (deploy_form(network.module) if trained else network.module).to(memory_format=torch.channels_last)
    span = network.value_range

    def in_unit_range(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = module(x * span) / span
        return y

    return lambda image: upscale(in_unit_range, image)


def held_out_pairs(folder: Path) -> Iterable[Pair]:
    """Photographs of one's own as pairs, made as the training's are."""
    for path in photographs_in([folder]):
        high = open_photograph(path, HELD_OUT_SIDE)
        yield path.stem, shrink(high, SCALE), high


def measured(sets: Mapping[str, Iterable[Pair]], enlargers: Mapping[str, Enlarger]) -> Figures:
    """The mean over each set's images, in dB."""
    figures: Figures = {}
    for name, pairs in sets.items():
        sums = {enlarger: np.zeros(len(QUALITIES)) for enlarger in enlargers}
        count = 0
        for _, low, high in pairs:
            count += 1
            for column, quality in enumerate(QUALITIES):
                image = low if quality is None else jpeg(low, quality)
                for enlarger, enlarge in enlargers.items():
                    sums[enlarger][column] += psnr_y(enlarge(image), high)
        figures[name] = {enlarger: [float(value) for value in total / count] for enlarger, total in sums.items()}
    return figures


def markdown(figures: Figures) -> str:
    """As it stands in the README: a row per set and enlarger."""
    head = ["", *("none" if quality is None else str(quality) for quality in QUALITIES)]
    lines = ["| " + " | ".join(["Y-PSNR, dB; JPEG quality", *head[1:]]) + " |", "|---" * len(head) + "|"]
    for name, rows in figures.items():
        for enlarger, values in rows.items():
            lines.append(f"| {name}, {enlarger} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    return "\n".join(lines)
