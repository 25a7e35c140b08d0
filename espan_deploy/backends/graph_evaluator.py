"""Any ONNX graph, evaluated on the CPU: for the gates, which look inside graphs where a Runner only upscales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from espan_deploy.backends.onnxruntime import FATAL, one_line
from espan_deploy.errors import BackendUnavailableError, ExportError, InferenceError


class GraphEvaluator:
    """A graph with one input, on ONNX Runtime's CPU provider.

    model: not changed. outputs: further values of the graph to give out, after its own.
    Raises BackendUnavailableError where ONNX Runtime is not installed, ExportError where it refuses the graph.
    """

    def __init__(self, model: onnx.ModelProto, *, outputs: Sequence[str] = ()) -> None:
        try:
            import onnxruntime
        except ImportError as exc:
            raise BackendUnavailableError(
                "checking a graph's precision needs ONNX Runtime", hint="pip install 'espan-deploy[cpu]'"
            ) from exc
        if outputs:
            extended = onnx.ModelProto()
            extended.CopyFrom(model)
            own = {value.name for value in model.graph.output}
            extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in own)
            model = extended
        options = onnxruntime.SessionOptions()
        options.log_severity_level = FATAL
        # A thread that waits for work burns a core meanwhile, which others may want: many small operators wait often.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as exc:  # its exceptions share no base below Exception
            raise ExportError(f"ONNX Runtime refuses the graph: {one_line(exc)}") from exc
        self._input = self._session.get_inputs()[0].name

    def run(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """The graph's outputs, then the further ones. Raises InferenceError where it fails."""
        try:
            results = self._session.run(None, {self._input: values})
        except Exception as exc:
            raise InferenceError(f"ONNX Runtime failed: {one_line(exc)}") from exc
        return [np.asarray(result) for result in results]
