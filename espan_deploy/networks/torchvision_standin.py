"""torchvision, or what little of it spandrel asks for when it is imported.

torchvision's wheels fit one build of PyTorch each: beside another they fail when they are imported ("operator
torchvision::nms does not exist"), and beside PyTorch for the CPU that is the usual case. Of its forty-two architectures
spandrel uses it in two: RestoreFormer normalises the image by it, and LaMa, which is not for us, rotates its features.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

from torch import Tensor

PARTS = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")


class InterpolationMode(enum.Enum):
    """The names that spandrel mentions."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"


def normalize(tensor: Tensor, mean: Sequence[float], std: Sequence[float], inplace: bool = False) -> Tensor:
    """(tensor - mean) / std, channel by channel, of (..., C, H, W); a new tensor."""
    assert not inplace
    shape = (-1, 1, 1)
    return (tensor - tensor.new_tensor(mean).view(shape)) / tensor.new_tensor(std).view(shape)


def rotate(*_: object, **__: object) -> Tensor:
    """Not to be had without torchvision."""
    raise NotImplementedError("rotating images needs a torchvision that fits this PyTorch")


@contextmanager
def torchvision_or_standin() -> Iterator[None]:
    """While something is imported that imports torchvision: the real one if it works, else this."""
    try:
        import torchvision.transforms.functional  # noqa: F401
    except (ImportError, RuntimeError, OSError, AttributeError):
        pass
    else:
        yield
        return
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # what a failed import left
    parts = [ModuleType(name) for name in PARTS]
    functional = parts[-1]
    vars(functional).update(InterpolationMode=InterpolationMode, normalize=normalize, rotate=rotate)
    sys.modules.update(zip(PARTS, parts, strict=True))
    try:
        yield
    finally:
        for name in PARTS:
            del sys.modules[name]
