"""What a series of timings says, and whether it may be believed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espan_deploy.timing import Values

RESAMPLES = 2000
SEED = 2025
CONFIDENCE = (2.5, 97.5)

MIN_SAMPLES = 20
"""Below this a median is a guess, and the run is called too short."""

NOISY_SPREAD = 0.15
"""(p90 - p10) / p50 above which the machine, not the model, sets the last digits."""

DRIFT_LIMIT = 0.05
"""Change of the median from the first third to the last that is called drift."""


@dataclass(frozen=True)
class Summary:
    """One series of latencies, in milliseconds.

    p90: None below 10 samples, p99 below 100: no sample lies beyond them. ci95: of the median, by a block bootstrap.
    spread: (p90 - p10) / p50. drift: median of the last third over that of the first, less one.
    """

    samples: int
    p50: float
    p90: float | None
    p99: float | None
    min: float
    max: float
    mean: float
    std: float
    ci95: tuple[float, float]
    spread: float
    drift: float


@dataclass(frozen=True)
class Ratio:
    """Of two medians, the second over the first: 0.5 is twice as fast. ci95: from the same rounds of both."""

    ratio: float
    ci95: tuple[float, float]


def summarise(values_ms: Values) -> Summary:
    """The summary of at least one latency."""
    p10, p50, p90, p99 = (float(p) for p in np.percentile(values_ms, (10, 50, 90, 99)))
    medians = np.median(values_ms[_block_indices(len(values_ms))], axis=1)
    return Summary(
        samples=len(values_ms),
        p50=p50,
        p90=p90 if len(values_ms) >= 10 else None,
        p99=p99 if len(values_ms) >= 100 else None,
        min=float(values_ms.min()),
        max=float(values_ms.max()),
        mean=float(values_ms.mean()),
        std=float(values_ms.std(ddof=1)) if len(values_ms) > 1 else 0.0,
        ci95=_interval(medians),
        spread=(p90 - p10) / p50 if p50 else 0.0,
        drift=drift(values_ms),
    )


def drift(values: Values) -> float:
    """Median of the last third over the median of the first, less one; 0 below six values."""
    third = len(values) // 3
    if third < 2:
        return 0.0
    return float(np.median(values[-third:]) / np.median(values[:third]) - 1)


def ratio_of_medians(baseline_ms: Values, other_ms: Values) -> Ratio:
    """Of two series measured in the same rounds: what slowed a round slowed both, and cancels."""
    rounds = min(len(baseline_ms), len(other_ms))
    base, other = baseline_ms[:rounds], other_ms[:rounds]
    chosen = _block_indices(rounds)
    ratios = np.median(other[chosen], axis=1) / np.median(base[chosen], axis=1)
    return Ratio(float(np.median(other) / np.median(base)), _interval(ratios))


def verdicts(summary: Summary) -> list[str]:
    """What a reader must know before believing the figures; empty where nothing speaks against them."""
    found = []
    if summary.samples < MIN_SAMPLES:
        found.append(f"too short ({summary.samples} of {MIN_SAMPLES} runs)")
    if summary.spread > NOISY_SPREAD:
        found.append(f"noisy ({summary.spread:.0%} from p10 to p90)")
    if abs(summary.drift) > DRIFT_LIMIT:
        found.append(f"drifting ({summary.drift:+.0%} from first to last third)")
    return found


def decimals(ci95: tuple[float, float]) -> int:
    """How many decimals of a figure its interval bears out, at most three."""
    half = (ci95[1] - ci95[0]) / 2
    if half <= 0:
        return 3
    return int(np.clip(np.ceil(-np.log10(half) - 1e-9), 0, 3))


def _block_indices(count: int) -> NDArray[np.intp]:
    """(RESAMPLES, count) indices, drawn in runs of neighbours: slow spells come in rows, and single draws would
    make the interval too narrow."""
    length = max(1, round(count ** (1 / 3)))
    starts = np.random.default_rng(SEED).integers(0, count, (RESAMPLES, -(-count // length)))
    return ((starts[..., None] + np.arange(length)) % count).reshape(RESAMPLES, -1)[:, :count]


def _interval(values: Values) -> tuple[float, float]:
    low, high = np.percentile(values, CONFIDENCE)
    return float(low), float(high)
