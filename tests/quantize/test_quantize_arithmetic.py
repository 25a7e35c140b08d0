"""Codes, ranges, smoothing and rounding, on arrays alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espan_deploy.precision.breakdown import breaks_down
from espan_deploy.quantize.arithmetic import (
    ActivationCodes,
    Signs,
    histogram,
    least_error_codes,
    quantized_weight,
    smoothing,
    weight_scales,
)
from espan_deploy.quantize.rounding import Moments, compensated, corrected_bias, rounded


def through(values: np.ndarray, codes: ActivationCodes) -> np.ndarray:
    return (np.clip(np.rint(values / codes.scale) + codes.zero_point, codes.low, codes.high) - codes.zero_point) * (
        codes.scale
    )


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.sampled_from(["unsigned", "signed"]))
def test_zero_is_exact_and_the_range_is_held_to_half_a_step(first: float, second: float, signs: Signs) -> None:
    low, high = sorted((first, second))
    codes = ActivationCodes.of_range(low, high, signs)
    assert through(np.zeros(1), codes)[0] == 0
    values = np.linspace(min(low, 0), max(high, 0), 97)
    # One whole step at an end: the zero point itself is rounded.
    assert np.abs(through(values, codes) - values).max() <= codes.scale * 1.001


def test_signed_codes_have_no_zero_point() -> None:
    assert ActivationCodes.of_range(-0.28, 5.0, "signed").zero_point == 0


def test_a_picture_s_bytes_are_codes() -> None:
    values = np.arange(256) / 255
    assert np.abs(through(values, ActivationCodes(1 / 255, 0)) - values).max() < 1e-12


def test_one_peak_does_not_take_the_precision_of_all_others() -> None:
    values = np.append(np.random.default_rng(0).normal(0, 1, 1_000_000), 12.0)
    found = least_error_codes(histogram(values[None], np.ones(1)))
    whole = ActivationCodes.of_range(values.min(), values.max())
    assert found.scale < whole.scale
    assert np.square(through(values, found) - values).mean() < 0.8 * np.square(through(values, whole) - values).mean()


def test_smoothing_brings_channels_together_and_is_undone_by_the_weights() -> None:
    ranges, weights = np.array([40.0, 1.0, 0.1, 0.0]), np.array([0.1, 1.0, 0.5, 0.0])
    factors = smoothing(ranges, weights, 0.7)
    assert (factors > 0).all()
    assert factors[0] == pytest.approx(1.0)
    smooth = (ranges / factors)[:3]
    assert smooth.max() / smooth.min() < (ranges[:3].max() / ranges[:3].min()) / 10
    assert (ranges / smoothing(ranges, weights, 1.0))[:3] == pytest.approx(40.0)


def test_weight_codes_are_within_half_a_step() -> None:
    weight = np.random.default_rng(1).normal(size=(6, 20, 3, 3))
    weight[3] = 0
    scale = weight_scales(weight)
    codes = quantized_weight(weight, scale)
    assert (np.abs(codes).reshape(6, -1).max(axis=1) == [127, 127, 127, 0, 127, 127]).all()
    column = scale[:, None, None, None]
    assert (np.abs(codes * column - weight) <= column * 0.501).all()


def test_rounding_for_the_output_beats_rounding_to_nearest() -> None:
    """Inputs as correlated as neighbouring pixels are."""
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(4000, 1)) + 0.2 * rng.normal(size=(4000, 40))
    weight = rng.normal(size=(5, 40))
    scale = np.abs(weight).max(axis=1) / 15
    moments = Moments.of(inputs, inputs)
    codes = rounded(weight, scale, moments.covariance)
    assert np.array_equal(codes, np.rint(codes))
    wanted = inputs @ weight.T
    error, plain = (
        np.square(inputs @ (each * scale[:, None]).T - wanted).mean()
        for each in (codes, quantized_weight(weight, scale))
    )
    assert error < plain / 4


def test_weights_and_bias_make_up_for_what_quantised_inputs_lost() -> None:
    rng = np.random.default_rng(3)
    exact = rng.normal(0.5, 1, (5000, 12))
    given_ = np.clip(exact, -0.5, 1.2)
    weight, bias = rng.normal(size=(4, 12)), rng.normal(size=4)
    moments = Moments.of(given_, exact)
    better = compensated(weight, moments)
    wanted = exact @ weight.T + bias
    error = np.square(given_ @ better.T + corrected_bias(bias, weight, better, moments) - wanted).mean()
    assert error < 0.9 * np.square(given_ @ weight.T + bias - wanted).mean()


def test_a_network_breaks_down_where_its_output_is_no_picture() -> None:
    outputs = np.random.default_rng(4).uniform(-0.1, 1.1, (3, 3, 16, 16))
    outputs[1, 0, :2] = 40.0
    outputs[2, 0, 0, 0] = np.nan
    assert breaks_down(outputs).tolist() == [False, True, True]
