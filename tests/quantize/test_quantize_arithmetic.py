"""Codes, ranges, smoothing and rounding, on arrays alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espan_deploy.precision.breakdown import breaks_down
from espan_deploy.quantize.arithmetic import (
    ActivationCodes,
    SeenChannels,
    Signs,
    quantized_weight,
    weight_scales,
)
from espan_deploy.quantize.layers import Convolution
from espan_deploy.quantize.reconstruct import least_error_value
from espan_deploy.quantize.rounding import Moments, compensated, corrected_bias, rounded


def through(values: np.ndarray, codes: ActivationCodes) -> np.ndarray:
    return (np.clip(np.rint(values / codes.scale) + codes.zero_point, codes.low, codes.high) - codes.zero_point) * (
        codes.scale
    )


@given(
    st.floats(-1e4, 1e4),
    st.floats(-1e4, 1e4),
    st.sampled_from([("unsigned", 60), ("unsigned", 128), ("signed", 0)]),
)
def test_zero_is_exact_and_steps_hold_what_was_seen(first: float, second: float, kind: tuple[Signs, int]) -> None:
    values = np.linspace(min(first, second, 0), max(first, second, 0), 97)
    codes = ActivationCodes(1.0, kind[1], kind[0])
    step = SeenChannels.of(values[None]).least_error_steps(codes)[0]
    found = through(values, ActivationCodes(step, kind[1], kind[0]))
    assert found[values == 0].tolist() == [0.0] * (values == 0).sum()
    assert np.abs(found - values).max() <= max(step, 1e-30) * 1.001


def test_channels_without_values_below_zero_need_no_codes_there() -> None:
    """What lies a little below is clipped: the steps stay as fine."""
    values = np.append(np.linspace(0, 1, 1000), -1e-3)
    step = SeenChannels.of(values[None]).least_error_steps(ActivationCodes(1.0, 0))[0]
    assert step == pytest.approx(1 / 255, rel=0.1)


def test_a_channel_s_error_is_what_rounding_and_clipping_do() -> None:
    values = np.random.default_rng(6).normal(0, 1, (3, 200_000)) * np.array([[1.0], [5.0], [0.2]])
    seen, codes = SeenChannels.of(values), ActivationCodes(1.0, 100)
    steps = np.array([0.01, 0.04, 0.001])
    wanted = [np.square(through(x, replace(codes, scale=s)) - x).mean() for x, s in zip(values, steps, strict=True)]
    assert seen.errors(steps, codes) == pytest.approx(wanted, rel=0.02)


def test_an_empty_channel_has_a_step() -> None:
    steps = SeenChannels.of(np.array([[0.0, 0.0], [0.0, 1.0]])).least_error_steps(ActivationCodes(1.0, 0))
    assert (steps > 0).all()


def test_a_picture_s_bytes_are_codes() -> None:
    values = np.arange(256) / 255
    assert np.abs(through(values, ActivationCodes(1 / 255, 0)) - values).max() < 1e-12


def test_one_peak_does_not_take_the_precision_of_all_others() -> None:
    values = np.append(np.random.default_rng(0).normal(0, 1, 1_000_000), 12.0)
    codes = ActivationCodes(1.0, 128)
    step = SeenChannels.of(values[None]).least_error_steps(codes)[0]
    whole, found = (replace(codes, scale=each) for each in (12 / 127, step))
    assert np.square(through(values, found) - values).mean() < 0.8 * np.square(through(values, whole) - values).mean()


@pytest.mark.parametrize("signs", ["unsigned", "signed"])
def test_a_map_is_read_in_codes_of_its_channels_own(signs: Signs) -> None:
    """One channel is all negative, one is fifty times as large, one is both: each has its share of the codes."""
    rng = np.random.default_rng(7)
    values = np.abs(rng.normal(0, 1, (4, 100_000))).astype(np.float32) * [[1], [-1], [50], [1]]
    values[3, ::2] *= -0.25
    weight = rng.normal(0, [[[[0.1]], [[0.1]], [[0.002]], [[0.1]]]], (8, 4, 1, 1)).astype(np.float32)
    reader = Convolution("conv", "x", weight, np.zeros(8, np.float32), 1, (0, 0, 0, 0), (1, 1), (1, 1))

    how = least_error_value(values.astype(np.float32), [reader], signs)

    assert (how.smoothing < 0).tolist() == [False, signs == "unsigned", False, False]
    smooth = values / how.smoothing[:, None]
    errors = np.square(through(smooth, how.codes) - smooth).mean(axis=1) * how.smoothing**2
    relative = errors / np.square(values).mean(axis=1)
    assert relative[:3].max() < (4e-5 if signs == "unsigned" else 1e-4)  # half of the codes would be 1e-4
    assert relative[3] < 2e-4
    if signs == "unsigned":
        assert 0 < how.codes.zero_point < 90


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
