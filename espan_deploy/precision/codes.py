"""A graph that came in INT8: held to what it computes in floats, since its FP32 original did not come along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx
import onnx_ir as ir

from espan_deploy.description import ModelDescription
from espan_deploy.errors import VerificationError
from espan_deploy.graph.quantised import without_quantisation
from espan_deploy.precision.breakdown import sound_images
from espan_deploy.precision.gate import Comparison, compare_levels, graph_upscaler
from espan_deploy.precision.images import VerifyImage
from espan_deploy.recipes import Budget

CODES_BUDGET = Budget(min_psnr_db=40.0, max_truth_drop_db=0.03, max_share_off_by_more=1.0)
"""Codes are a level off and more in many places; what counts is the truth, and the distance where there is none."""


def codes_within_budget(
    model: onnx.ModelProto,
    description: ModelDescription,
    images: Sequence[VerifyImage],
    budget: Budget = CODES_BUDGET,
) -> tuple[Comparison, list[str]]:
    """Hold a graph in INT8, with float pixels, to a budget; the same graph without its quantisers is the reference.

    Weights are in that what their codes stand for, so what rounding did to them is not seen. Both run in ONNX Runtime.
    Returns what was measured, and what is to be noted. Raises VerificationError with the figures.
    """
    floats = ir.to_proto(without_quantisation(ir.from_proto(model)))
    sound, levels, notes = sound_images(graph_upscaler(floats, description), images)
    comparison = compare_levels(levels, graph_upscaler(model, description), sound)
    problems = comparison.violations(budget)
    if problems:
        raise VerificationError(
            f"{description.title} in INT8 is outside of its budget: {'; '.join(problems)} ({comparison.summary()})",
            hint="give the FP32 file to `espan-deploy export --precision int8`, which keeps in floats what needs it; "
            "--budget-db allows more",
        )
    return comparison, notes


def budget_of(allowed_db: float | None) -> Budget:
    """CODES_BUDGET, or what a user allows to be lost against the truth, however far that is from FP32."""
    return CODES_BUDGET if allowed_db is None else replace(CODES_BUDGET, max_truth_drop_db=allowed_db, min_psnr_db=0.0)
