"""Take a trained efficient-super-resolution checkpoint to the fastest verified upscaler a machine can run.

The packages follow the data: ``checkpoints`` -> ``networks`` -> ``onnx_export`` -> ``fold`` -> ``precision`` ->
``engine`` and ``backends`` -> ``stores`` and ``pipeline`` -> ``bench``; ``cli`` is the only one that prints or exits.
``Upscaler`` is the front door for Python.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from espan_deploy.upscaler import Upscaler

__version__ = "0.1.0"
__all__ = ["Upscaler", "__version__"]


def __getattr__(name: str) -> Any:
    """``Upscaler``, imported when it is asked for: everything else here is light."""
    if name == "Upscaler":
        from espan_deploy.upscaler import Upscaler

        return Upscaler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
