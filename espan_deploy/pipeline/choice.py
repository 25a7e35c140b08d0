"""Which of the package's models fits a picture: by what its file says of how it was kept."""

from __future__ import annotations

from dataclasses import dataclass

from espan_deploy.pipeline.origin import Origin


@dataclass(frozen=True)
class Fitting:
    """A model's name, and why it was taken."""

    model: str
    because: str


CLEAN_FROM = 93
"""JPEG quality from which ``clean`` is ahead in the mean of Set5 and Set14: by 0.05 dB, and behind by 0.02 at 92. On
Set14 alone it is ahead from 90 on, on Set5 alone from 95."""


def fitting_model(origin: Origin) -> Fitting:
    """``photo`` for what a lossy compression left its traces in, ``clean`` for all else."""
    traces = origin.lossy and (origin.jpeg_quality is None or origin.jpeg_quality < CLEAN_FROM)
    return Fitting("photo" if traces else "clean", origin.told_by)


LOSSLESS_ENDINGS = (".png", ".apng", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".jxl")


def likely_model(name: str) -> str:
    """By a file's name alone: what to open first."""
    return "clean" if not name or name.lower().endswith(LOSSLESS_ENDINGS) else "photo"
