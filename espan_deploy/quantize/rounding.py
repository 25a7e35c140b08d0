"""Weights rounded for what a convolution computes, not for themselves: errors of one make up for those of another.

Both steps are closed forms over second moments of a layer's inputs, so that a layer takes seconds and no training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espan_deploy.quantize.arithmetic import WEIGHT_CODES, Values

RIDGE = 1e-3
"""Of the inputs' mean variance: how strongly compensated weights are held to the float ones."""

DAMPING = 0.01
"""Of the inputs' mean variance, added to each: directions that the samples hardly show do not rule the rounding."""


@dataclass(frozen=True)
class Moments:
    """Of a convolution's input patches, D values each, as quantised and as they are in float.

    quantized_mean, float_mean: (D,). covariance: (D, D) of the quantised ones. cross: (D, D), float x quantised.
    """

    quantized_mean: Values
    float_mean: Values
    covariance: Values
    cross: Values

    @classmethod
    def of(cls, quantized: Values, exact: Values) -> Moments:
        """Of patches (N, D), the same ones in both."""
        quantized_mean, float_mean = quantized.mean(axis=0), exact.mean(axis=0)
        centred = quantized - quantized_mean
        count = len(quantized)
        return cls(quantized_mean, float_mean, centred.T @ centred / count, (exact - float_mean).T @ centred / count)


def compensated(weight: Values, moments: Moments) -> Values:
    """(O, D) -> (O, D): the weights that, on quantised inputs, come nearest to the float ones on float inputs."""
    hold = RIDGE * float(np.diag(moments.covariance).mean()) + np.finfo(np.float64).tiny
    held = moments.covariance + hold * np.eye(len(moments.covariance))
    result: Values = np.linalg.solve(held, (weight @ moments.cross + hold * weight).T).T
    return result


def rounded(weight: Values, scale: Values, covariance: Values) -> Values:
    """(O, D), (O,), (D, D) -> codes (O, D): rounded one input after the other, the next ones making up for the error.

    Frantar et al., GPTQ, 2023: the inputs of the largest variance first.
    """
    count = len(covariance)
    damping = DAMPING * float(np.diag(covariance).mean()) + np.finfo(np.float64).tiny
    order = np.argsort(-np.diag(covariance))
    ordered = (covariance + damping * np.eye(count))[np.ix_(order, order)]
    upper = np.linalg.cholesky(np.linalg.inv(ordered)).T
    left, codes = weight[:, order].copy(), np.empty_like(weight)
    for index in range(count):
        code = np.clip(np.rint(left[:, index] / scale), -WEIGHT_CODES, WEIGHT_CODES)
        codes[:, order[index]] = code
        error = (left[:, index] - code * scale) / upper[index, index]
        left[:, index:] -= np.outer(error, upper[index, index:])
    return codes


def corrected_bias(bias: Values, weight: Values, quantized: Values, moments: Moments) -> Values:
    """(O,): with it the quantised weights (O, D) give the mean that the float ones give."""
    result: Values = bias + weight @ moments.float_mean - quantized @ moments.quantized_mean
    return result
