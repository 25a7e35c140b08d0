"""Reading an ONNX graph: what it costs, and how far each output pixel sees."""

from espan_deploy.graph.complexity import REPORT_SIZE, Complexity, LayerCost, complexity
from espan_deploy.graph.lowering import lowered
from espan_deploy.graph.reach import Reach, reach

__all__ = ["REPORT_SIZE", "Complexity", "LayerCost", "Reach", "complexity", "lowered", "reach"]
