"""The proof: an exported model beside the network it was made of, on images of several sizes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from espan_deploy import backends
from espan_deploy.backends.model import ModelFile
from espan_deploy.description import ModelDescription
from espan_deploy.errors import InferenceError, VerificationError
from espan_deploy.facts import Forward, soft_noise

PARITY_TOLERANCE = 1e-4
"""Largest difference from the network itself, relative to its largest output: float32 through thirty layers of other
kernels, with room for networks that work in [0, 255] inside. ESPAN measures 1e-6."""

PROOF_SEED = 36

ImageSize = tuple[int, int, int]
"""Batch, height, width."""


@dataclass(frozen=True)
class Proof:
    """How far a model is from its network, relative to the network's largest output, at worst.

    inside, border: without and in the ring of ``margin`` input pixels along the image's edge; border is 0 without one.
    sizes: those compared, batch first.
    """

    inside: float
    border: float
    sizes: tuple[ImageSize, ...]


def model_function(model: onnx.ModelProto, description: ModelDescription, path: Path) -> Forward:
    """The model in ONNX Runtime, as it will be run: (N, 3, H, W) in the network's own range. path: for messages."""
    runner = backends.get("onnxruntime").open(ModelFile(path, model.SerializeToString(), description))
    value_range = np.float32(description.value_range)

    def forward(x: NDArray[np.float32]) -> NDArray[np.float32]:
        images = runner.infer(np.ascontiguousarray(x.transpose(0, 2, 3, 1)) / value_range)
        result: NDArray[np.float32] = images.transpose(0, 3, 1, 2) * value_range
        return result

    return forward


def compare(
    model: Forward, network: Forward, sizes: Iterable[ImageSize], *, value_range: float, margin: int = 0
) -> Proof:
    """Compare a model with its network, the network seeing each image of a batch alone.

    margin: input pixels along the edge that are compared apart; sizes grow by them.
    Raises VerificationError where the model fails or makes another size.
    """
    random = np.random.default_rng(PROOF_SEED)
    inside, border = 0.0, 0.0
    compared = []
    for batch, height, width in sizes:
        compared.append((batch, height, width))
        x = soft_noise(random, (batch, 3, height, width)) * np.float32(value_range)
        expected = np.concatenate([network(image[None]) for image in x])
        try:
            got = model(x)
        except InferenceError as exc:
            raise VerificationError(f"the exported model does not take {x.shape}: {exc.message}") from exc
        if expected.shape != got.shape:
            raise VerificationError(f"the exported model makes {got.shape} of {x.shape}, the network {expected.shape}")
        difference = np.abs(got - expected) / max(np.abs(expected).max(), np.finfo(np.float32).tiny)
        # A small image may have no inside: then the whole of it counts.
        band = margin * (expected.shape[2] // height) if min(height, width) > 2 * margin else 0
        core = difference[:, :, band : expected.shape[2] - band, band : expected.shape[3] - band]
        inside = max(inside, _worst(core))
        if band:
            border = max(border, _worst(difference))
    return Proof(inside, border, tuple(compared))


def _worst(difference: NDArray[np.float32]) -> float:
    """The largest; infinite where there is a NaN, which no maximum would show."""
    worst = float(difference.max())
    return float("inf") if np.isnan(worst) else worst
