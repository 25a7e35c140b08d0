"""Take a trained efficient-super-resolution checkpoint to the fastest verified upscaler a machine can run.

The packages follow the data: ``checkpoints`` -> ``networks`` -> ``fold`` -> ``onnxio`` -> ``backends`` ->
``pipeline`` -> ``report``; ``cli`` is the only one that prints or exits.
"""

__version__ = "0.1.0"
