"""Reading an ONNX graph: what it costs, and how far each output pixel sees."""
