"""The proof: an exported model beside the network it was made of, on images of several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from espan_deploy import backends
from espan_deploy.backends.model import INT8, ModelFile
from espan_deploy.backends.onnxruntime import OnnxRuntimeRunner, Sessions
from espan_deploy.description import ModelDescription
from espan_deploy.errors import InferenceError, VerificationError
from espan_deploy.facts import Forward, Planes, Takes, soft_noise

PARITY_TOLERANCE = 1e-4
"""Largest difference from the network itself, relative to its largest output: float32 through thirty layers of other
kernels, with room for networks that work in [0, 255] inside. ESPAN measures 1e-6."""

PROOF_SEED = 36

ImageSize = tuple[int, int, int]
"""Batch, height, width."""


PROVEN_SIZES = ((24, 41), (37, 52), (33, 76), (100, 35))
"""Heights and widths compared, or the next larger that the network takes, the small ones first. A second size is
what shows a graph that was frozen at the first; the last two are larger than most networks' windows, one way each."""

LARGER_SIZES = ((128, 100), (131, 163))
"""Compared too where the small ones among PROVEN_SIZES do not agree."""

GLANCE_SIZE = (100, 35)
"""Compared before anything else is done with a graph, where there are others to try: no size it was traced at."""

SMALL_SIDES = (2, 3, 4, 6, 8, 12, 16, 20, 24)
"""The smallest side at which a model agrees is looked for among these, and the smallest its network takes."""


@dataclass(frozen=True)
class Proof:
    """How far a model is from its network, relative to the network's largest output, at worst.

    inside, border: without and in the ring of ``margin`` input pixels along the image's edge; border is 0 without one.
    least: the smallest side of an image from which on they agree. max_batch: 1 where they agree on single images only.
    sizes: those compared that agree, batch first. reason: what the model said where it failed, or "".
    """

    inside: float
    border: float
    least: int
    max_batch: int | None
    sizes: tuple[ImageSize, ...]
    reason: str = ""

    @property
    def holds(self) -> bool:
        """Whether the model is the network, up to what float32 rounds."""
        return self.inside <= PARITY_TOLERANCE


def model_function(model: onnx.ModelProto, description: ModelDescription, path: Path) -> Forward:
    """The model in ONNX Runtime, as it will be run, by one thread: (N, 3, H, W) in the network's own range.

    path: for messages.
    """
    backends.get("onnxruntime").require()
    file = ModelFile(path, model.SerializeToString(), description)
    precision = INT8 if file.only_int8 else "fp32"
    sessions = Sessions(file.in_precision(precision), 1)
    sessions.get("float32")  # the only one: of a graph of thousands of operators each takes seconds
    runner = OnnxRuntimeRunner(sessions, precision)
    value_range = np.float32(description.value_range)

    def forward(x: NDArray[np.float32]) -> NDArray[np.float32]:
        images = runner.infer(np.ascontiguousarray(x.transpose(0, 2, 3, 1)) / value_range)
        result: NDArray[np.float32] = images.transpose(0, 3, 1, 2) * value_range
        return result

    return forward


def prove(model: Forward, network: Forward, takes: Takes, *, value_range: float, margin: int = 0) -> Proof:
    """Compare a model with its network at several sizes, the network seeing each image of a batch alone.

    A model may be right from some size on only, where its network decides on sizes: that is found as well.
    margin: input pixels along the edge that are compared apart; sizes grow by them.
    """
    comparison = _Comparison(model, network, value_range, margin)
    if takes.fixed is not None:
        return comparison.proof([takes.fixed], min(takes.fixed))
    sizes = _fitted(PROVEN_SIZES, takes, margin)
    if comparison.agree(sizes):
        sides = [takes.least, *(side for side in SMALL_SIDES if side > takes.least)]
        small = dict.fromkeys(takes.fit(side, side)[0] for side in sides)
        found = (least for least in small if comparison.agree([(least, least), (least, least + takes.multiple)]))
        return comparison.proof(sizes, next(found, max(sizes[0])))
    sizes += _fitted(LARGER_SIZES, takes, margin)
    for first in range(1, len(sizes) - 1):
        if comparison.agree(sizes[first:]):
            return comparison.proof(sizes[first:], max(sizes[first]))
    return comparison.proof(sizes[: len(PROVEN_SIZES)], takes.least)


def disproved(proof: Proof, title: str, *, exact: bool) -> VerificationError:
    """What to say of a proof that does not hold. exact: whether no border was folded approximately."""
    how = f"by {proof.inside:.1e} of its largest value, allowed is {PARITY_TOLERANCE:.0e}"
    agrees = ", ".join(f"{height}x{width}" for _, height, width in proof.sizes)
    message = f"the exported model differs from {title} {how}"
    if proof.reason:
        message = f"the exported model fails where {title} does not: {proof.reason}"
    return VerificationError(
        f"{message}; it agrees at {agrees}" if agrees else message,
        hint="a network that is right at one size only was frozen at it: --static HEIGHTxWIDTH exports that size"
        if exact
        else "--fold-borders exact keeps the image's border as it was",
    )


def agree_at(model: Forward, network: Forward, size: tuple[int, int], *, value_range: float = 1.0) -> bool:
    """Whether a model is its network on one image of this height and width."""
    return _Comparison(model, network, value_range, 0).agree([size])


def proof_image(batch: int, height: int, width: int, value_range: float) -> Planes:
    """(batch, 3, height, width) in [0, value_range]: what is compared at this size."""
    image: Planes = soft_noise(np.random.default_rng(PROOF_SEED), (batch, 3, height, width)) * np.float32(value_range)
    return image


class _Comparison:
    """A model beside its network; each size is compared once."""

    def __init__(self, model: Forward, network: Forward, value_range: float, margin: int) -> None:
        self._model, self._network, self._value_range, self._margin = model, network, value_range, margin
        self._found: dict[ImageSize, tuple[float, float]] = {}
        self._reason = ""

    def agree(self, sizes: list[tuple[int, int]], batch: int = 1) -> bool:
        """Whether the model is the network at all these sizes; the first that differs ends the question."""
        return all(self._at((batch, *size))[0] <= PARITY_TOLERANCE for size in sizes)

    def proof(self, sizes: list[tuple[int, int]], least: int) -> Proof:
        """What was found at these sizes, all others that agree named as well."""
        inside = max(self._at((1, *size))[0] for size in sizes)
        max_batch = None if inside > PARITY_TOLERANCE or self.agree(sizes[:1], batch=2) else 1
        agreeing = {size: found for size, found in self._found.items() if found[0] <= PARITY_TOLERANCE}
        border = max((found[1] for found in agreeing.values()), default=0.0)
        return Proof(inside, border, least, max_batch, tuple(sorted(agreeing)), self._reason)

    def _at(self, size: ImageSize) -> tuple[float, float]:
        """The largest difference inside and in the margin; infinite where the model fails."""
        if size not in self._found:
            self._found[size] = self._compare(*size)
        return self._found[size]

    def _compare(self, batch: int, height: int, width: int) -> tuple[float, float]:
        x = proof_image(batch, height, width, self._value_range)
        expected = np.concatenate([self._network(image[None]) for image in x])
        try:
            got = self._model(x)
        except InferenceError as exc:
            self._reason = self._reason or exc.message
            return np.inf, np.inf
        difference = np.abs(got - expected) / max(np.abs(expected).max(), np.finfo(np.float32).tiny)
        # A small image may have no inside: then the whole of it counts.
        margin = self._margin if min(height, width) > 2 * self._margin else 0
        band = margin * (expected.shape[2] // height)
        core = difference[:, :, band : expected.shape[2] - band, band : expected.shape[3] - band]
        return _worst(core), _worst(difference) if band else 0.0


def _fitted(sizes: Sequence[tuple[int, int]], takes: Takes, margin: int) -> list[tuple[int, int]]:
    """The next larger sizes that the network takes."""
    return [takes.fit(height + 2 * margin, width + 2 * margin) for height, width in sizes]


def _worst(difference: NDArray[np.float32]) -> float:
    """The largest; infinite where there is a NaN, which no maximum would show."""
    worst = float(difference.max())
    return float("inf") if np.isnan(worst) else worst
