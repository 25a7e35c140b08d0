"""What a series of timings says."""

from __future__ import annotations

import numpy as np
import pytest

from espan_deploy.bench.statistics import decimals, drift, ratio_of_medians, summarise, verdicts

COVERAGE = 0.88
"""Least share of 95 % intervals that hold the true median, over 200 series: 0.95 less what a bootstrap of 60 values
and 200 tries may miss."""


def test_percentiles_of_known_values() -> None:
    summary = summarise(np.arange(1.0, 102.0))
    assert (summary.p50, summary.p90, summary.p99) == (51.0, 91.0, 100.0)
    assert (summary.min, summary.max, summary.mean) == (1.0, 101.0, 51.0)
    assert summary.std == pytest.approx(np.std(np.arange(1, 102), ddof=1))
    assert summary.spread == pytest.approx((91 - 11) / 51)


def test_no_percentile_without_samples_beyond_it() -> None:
    assert summarise(np.ones(99)).p99 is None
    assert summarise(np.ones(9)).p90 is None
    assert summarise(np.ones(1)).std == 0.0


def test_interval_holds_the_true_median() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        low, high = summarise(rng.lognormal(3, 0.2, 60)).ci95
        held += low <= np.exp(3) <= high
    assert held / 200 >= COVERAGE


def test_slow_spells_widen_the_interval() -> None:
    """Runs that are slow in rows say less than as many that are slow at random."""
    rng = np.random.default_rng(6)
    scattered = np.where(rng.random(240) < 0.5, 10.0, 12.0) + rng.normal(0, 0.1, 240)
    spells = np.sort(scattered.reshape(12, 20), axis=None).reshape(12, 20)[rng.permutation(12)].ravel()

    def width(values: np.ndarray) -> float:
        low, high = summarise(values).ci95
        return high - low

    assert np.allclose(np.sort(spells), np.sort(scattered))
    assert width(spells) >= width(scattered)


def test_interval_is_the_same_every_time() -> None:
    values = np.random.default_rng(7).random(50)
    assert summarise(values).ci95 == summarise(values.copy()).ci95


def test_drift_compares_the_thirds() -> None:
    assert drift(np.array([10.0] * 10 + [99.0] * 10 + [12.0] * 10)) == pytest.approx(0.2)
    assert drift(np.ones(5)) == 0.0


def test_what_hits_both_cancels_in_the_ratio() -> None:
    rng = np.random.default_rng(8)
    weather = rng.lognormal(0, 0.5, 120)  # the machine, worse than any difference between the two
    base, other = 10 * weather, 8 * weather * rng.normal(1, 0.01, 120)
    ratio = ratio_of_medians(base, other)
    assert ratio.ratio == pytest.approx(0.8, abs=0.02)
    assert ratio.ci95[0] <= 0.8 <= ratio.ci95[1]
    assert ratio.ci95[1] - ratio.ci95[0] < 0.05
    alone = summarise(base).ci95
    assert (alone[1] - alone[0]) / 10 > 0.1


def test_verdicts_name_what_speaks_against_the_figures() -> None:
    assert verdicts(summarise(np.full(60, 5.0))) == []
    assert "too short" in verdicts(summarise(np.full(3, 5.0)))[0]
    noisy = np.tile([5.0, 9.0], 30)
    assert any("noisy" in text for text in verdicts(summarise(noisy)))
    falling = np.linspace(12, 9, 60)
    assert any("drifting (-" in text for text in verdicts(summarise(falling)))


@pytest.mark.parametrize(
    ("interval", "expected"),
    [((10.0, 10.0), 3), ((10.0, 10.002), 3), ((10.0, 10.2), 1), ((9.9, 10.5), 1), ((8.0, 12.0), 0), ((0.0, 500.0), 0)],
)
def test_decimals_follow_the_interval(interval: tuple[float, float], expected: int) -> None:
    assert decimals(interval) == expected
