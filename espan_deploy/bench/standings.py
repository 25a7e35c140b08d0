"""This run's contenders in the challenge's published table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from espan_deploy.bench.contenders import Contender, Model
from espan_deploy.bench.score import Challenge

PARAMETERS_CLOSE = 0.02
"""Relative difference from the baseline's published parameters, up to which a network is the baseline."""


def standings(challenge: Challenge, contenders: Sequence[Contender], p50_ms: Mapping[str, float]) -> dict[str, Any]:
    """The published table, and what was measured, scaled by the baseline where that was measured too.

    p50_ms: by contender, those that were measured. A runtime of another machine says nothing by itself: it is scaled by
    the baseline's runtime in the same run, engine and precision, and left without a score where there is none.
    """
    measured = [contender for contender in contenders if contender.name in p50_ms]
    baselines = {_setting(c): p50_ms[c.name] for c in measured if is_baseline(c.model, challenge)}
    note = (
        f"runtimes measured here times {challenge.runtime_ms} ms, the baseline's on the {challenge.device}, over the "
        "baseline's measured in the same run, engine and precision: an estimate, not a measurement on that GPU"
        if baselines
        else f"the baseline ({challenge.network}) was not in this run, so runtimes from here cannot be scored"
    )
    rows = [_row(challenge, c, p50_ms[c.name], baselines.get(_setting(c))) for c in measured]
    return {**challenge.to_json(), "scaling": note, "measured": rows}


def is_baseline(model: Model, challenge: Challenge) -> bool:
    """The baseline's network at the baseline's own size, as trained or folded."""
    description = model.file.description
    sizes = (description.parameters, description.unfolded.get("parameters") or 0)
    return description.network == challenge.network and any(
        math.isclose(size / 1e6, challenge.params_m, rel_tol=PARAMETERS_CLOSE) for size in sizes
    )


def _setting(contender: Contender) -> tuple[str, str, str]:
    return contender.engine, contender.precision, contender.form


def _row(challenge: Challenge, contender: Contender, p50: float, baseline: float | None) -> dict[str, Any]:
    description = contender.model.file.description
    scaled = None if baseline is None else p50 / baseline * challenge.runtime_ms
    flops = None if description.multiply_adds is None else description.multiply_adds / 1e9
    params = description.parameters / 1e6
    score = None if scaled is None or flops is None else challenge.score(scaled, flops, params)
    return {
        "contender": contender.name,
        "measured_ms": p50,
        "scaled_ms": scaled,
        "params_m": params,
        "flops_g": flops,
        "score": score if score is not None and math.isfinite(score) else None,
    }
