"""Networks that are not in our catalogue and that spandrel knows: recognised by it, from a state dict that we read.

spandrel (https://github.com/chaiNNer-org/spandrel, MIT) recognises some forty public architectures. Files are read by
:mod:`espan_deploy.checkpoints`, never by spandrel's own loader; nothing is taken from it but the filled module and what
it says of it. `spandrel_extra_arches`, whose licences restrict use, is never imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from espan_deploy.apart import without_warnings
from espan_deploy.errors import CheckpointError
from espan_deploy.networks.torchvision_standin import torchvision_or_standin

if TYPE_CHECKING:
    from espan_deploy.checkpoints import Checkpoint

EXTRA = "pip install 'espan-deploy[spandrel]'"

RGB = 3


@dataclass(frozen=True)
class Recognised:
    """A network of spandrel's, filled and in evaluation mode.

    scale, multiple, least: of the images it takes, as spandrel says: to be tried, not believed.
    """

    module: nn.Module
    name: str
    title: str
    scale: int
    multiple: int
    least: int


class Called(nn.Module):
    """A network as its users call it: with a noise level beside the image, or without its second result."""

    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.model, x)


def installed() -> bool:
    """Whether spandrel is there."""
    return find_spec("spandrel") is not None


def recognise(checkpoint: Checkpoint) -> Recognised | None:
    """The network of a checkpoint, or None where spandrel does not know it.

    Raises CheckpointError where it knows it and the shapes do not hold together, or where it upscales no RGB image.
    """
    registry, version = _registry()
    for tensors in _as_named(checkpoint):
        for support in registry.architectures("detection"):
            if support.detect(tensors):
                architecture = support.architecture
                title = f"{architecture.name} (spandrel {version})"
                try:
                    with without_warnings():
                        found = architecture.load(tensors)
                except Exception as exc:  # each architecture fails in its own way
                    reason = f"{type(exc).__name__}: {str(exc).strip().splitlines()[0] if str(exc).strip() else ''}"
                    raise CheckpointError(
                        f"{checkpoint.path} looks like {title}, but its shapes do not hold together ({reason})"
                    ) from exc
                return _checked(found, f"spandrel-{architecture.id}", title)
    return None


def _checked(found: Any, name: str, title: str) -> Recognised:
    """What spandrel made, where it makes one RGB image of another."""
    if found.purpose == "Inpainting":
        raise CheckpointError(f"{title} fills in what a mask covers, and takes a mask beside the image")
    for channels, what in ((found.input_channels, "takes"), (found.output_channels, "makes")):
        if channels != RGB:
            counted = f"{channels} channel{'s' * (channels != 1)}"
            raise CheckpointError(
                f"{title} {what} images of {counted}; RGB, of three, is what is upscaled",
                hint="export a class that makes its input of RGB and RGB of its output: --network file.py:ClassName",
            )
    # Of how it is called there is no public word but __call__, which pads and clips as well.
    module = Called(found.model, found._call_fn)
    sizes = found.size_requirements
    return Recognised(
        module.eval(), name, title, found.scale, max(1, sizes.multiple_of), max(1, sizes.minimum, sizes.multiple_of)
    )


@cache
def _registry() -> tuple[Any, str]:
    """spandrel's architectures, and its version."""
    with without_warnings(), torchvision_or_standin():
        import spandrel
    return spandrel.MAIN_REGISTRY, spandrel.__version__


def _as_named(checkpoint: Checkpoint) -> Iterator[dict[str, Tensor]]:
    """The tensors as the file names them, then with one prefix after another stripped: some networks are named so."""
    for start in range(len(checkpoint.prefixes) + 1):
        prefix = "".join(checkpoint.prefixes[start:])
        yield {prefix + key: tensor for key, tensor in checkpoint.tensors.items()}
