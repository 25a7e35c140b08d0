"""What a calibration found, for its callers, manifests and whoever asks why a layer stayed in float."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import onnx

from espan_deploy.description import ModelDescription
from espan_deploy.precision.gate import Comparison
from espan_deploy.quantize.learn import Learnt
from espan_deploy.quantize.recipe import CalibrationRecipe
from espan_deploy.quantize.scheme import Scheme
from espan_deploy.quantize.sensitivity import Sensitivity, error_shares


@dataclass(frozen=True)
class Int8Report:
    """The INT8 graph that passed, with what was found.

    description: of it. scheme: all its codes. kept: layers in float. twice: layers that read their input twice.
    layers: every layer's error and cost.
    notes: what a user should know.
    """

    model: onnx.ModelProto
    description: ModelDescription
    scheme: Scheme
    comparison: Comparison
    recipe: CalibrationRecipe
    kept: tuple[str, ...]
    twice: tuple[str, ...]
    layers: tuple[Sensitivity, ...]
    learnt: Learnt | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For a manifest and ``--json``."""
        shares = error_shares(self.layers)
        return {
            "comparison": self.comparison.to_dict(),
            "budget": asdict(self.recipe.budget),
            "calibration_recipe": self.recipe.name,
            "kept_in_float": list(self.kept),
            "read_twice": list(self.twice),
            "layers": [
                {
                    "layer": each.layer,
                    "decision": "float" if each.layer in self.kept else "twice" if each.layer in self.twice else "int8",
                    "error": each.error,
                    "error_share": shares[each.layer],
                    "multiply_adds_share": each.multiply_adds,
                    "float_ms": each.float_ms,
                    "twice_ms": each.twice_ms,
                }
                for each in self.layers
            ],
            "skipped": [asdict(each) for each in self.scheme.skipped],
            "learnt": None
            if self.learnt is None
            else {
                "steps": self.learnt.steps,
                "before_db": self.learnt.before_db,
                "after_db": self.learnt.after_db,
            },
            "notes": list(self.notes),
            "scheme": self.scheme.to_dict(),
        }
