"""Reading an ONNX graph: its sizes, what it costs, and how far each output pixel sees."""

from espan_deploy.graph.complexity import REPORT_SIZE, Complexity, LayerCost, complexity
from espan_deploy.graph.lowering import lowered
from espan_deploy.graph.reach import Reach, reach
from espan_deploy.graph.sizes import Shape, SizedGraph, Sizes

__all__ = [
    "REPORT_SIZE",
    "Complexity",
    "LayerCost",
    "Reach",
    "Shape",
    "SizedGraph",
    "Sizes",
    "complexity",
    "lowered",
    "reach",
]
