"""Which of the package's models fits a picture: by what its file says of how it was kept."""

from __future__ import annotations

from dataclasses import dataclass

from espan_deploy.pipeline.origin import Origin


@dataclass(frozen=True)
class Fitting:
    """A model's name, and why it was taken."""

    model: str
    because: str


CAMERA_FROM = 75
"""JPEG quality from which ``camera`` is ahead of ``photo`` on the 20 photographs kept apart (docs/training.md)."""
CLEAN_FROM = 96
"""JPEG quality from which ``clean`` is ahead of ``camera`` there."""


def fitting_model(origin: Origin) -> Fitting:
    """``clean`` where a compression left next to no traces, ``camera`` where few, ``photo`` where many or who knows."""
    return Fitting(_model_for(origin), origin.told_by)


def _model_for(origin: Origin) -> str:
    quality = origin.jpeg_quality
    if not origin.lossy or (quality is not None and quality >= CLEAN_FROM):
        return "clean"
    gentle = origin.newer if quality is None else quality >= CAMERA_FROM
    return "camera" if gentle else "photo"


LOSSLESS_ENDINGS = (".png", ".apng", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".jxl")
STILL_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".heic", ".heif", ".hif")
"""Of lossy pictures. Most are a camera's or come with a quality above ``CAMERA_FROM``."""


def likely_model(name: str) -> str:
    """By a file's name alone: what to open first."""
    ending = name.lower()
    if not name or ending.endswith(LOSSLESS_ENDINGS):
        return "clean"
    return "camera" if ending.endswith(STILL_ENDINGS) else "photo"
