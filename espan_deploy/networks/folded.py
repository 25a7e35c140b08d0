"""A training-form checkpoint as the deploy-form checkpoint of the same network, for those whose deploy form we know.

Deployment itself does not need this: the fold works on the exported graph. It is for people who go on in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from importlib import import_module
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.errors import FoldError
from espan_deploy.networks import Network
from espan_deploy.networks.entry import Architecture

TOLERANCE = 1e-12
"""Of one convolution, relative to its largest output, in float64."""

NETWORK_TOLERANCE = 1e-9
"""Of the whole network, likewise: thirty layers amplify what each one rounds."""

PROOF_SEED = 2025

PROOF_SIDES = (24, 27)
"""Height and width of the image: every network with a deploy form takes it."""


@runtime_checkable
class Foldable(Protocol):
    """A training-form block. deploy_key: where the deploy form has its convolution, below it; "" for in its place."""

    deploy_key: str

    def linear(self, x: Tensor) -> Tensor:
        """What becomes the convolution: the block without its activation."""


@runtime_checkable
class SelfFolding(Protocol):
    """A training-form block whose deploy form is not one dense convolution, and which knows it."""

    def deploy_state(self) -> dict[str, Tensor]:
        """The deploy form's tensors, by their keys below the block."""


def deploy_state(network: Network) -> dict[str, Tensor]:
    """The float32 state dict of the network's deploy form, each block replaced by the convolution it is.

    Raises FoldError where the deploy form is not known, or a block is not one convolution, border included.
    """
    if network.entry is None:
        raise FoldError(
            f"the deploy form of {network.name} is not known, so its checkpoint cannot be written",
            hint="write the ONNX model: -o model.onnx",
        )
    state: dict[str, Tensor] = {}
    replaced: list[str] = []
    for path, module in network.module.named_modules():
        if isinstance(module, SelfFolding) and network.form == "training":
            block = cast(SelfFolding, _double(cast(nn.Module, module)))
            with torch.inference_mode():
                state.update({f"{path}.{key}": tensor for key, tensor in block.deploy_state().items()})
            replaced.append(f"{path}.")
        if isinstance(module, Foldable) and network.form == "training":
            weight, bias = _equivalent(cast(nn.Module, module), path)
            prefix = ".".join(filter(None, (path, module.deploy_key)))
            state[f"{prefix}.weight"] = weight
            if bias is not None:
                state[f"{prefix}.bias"] = bias
            replaced.append(f"{path}.")
    for key, tensor in network.module.state_dict().items():
        owner = network.module.get_submodule(key.rpartition(".")[0])
        # Of a block only its activation stays as it was.
        if isinstance(owner, nn.PReLU) or not key.startswith(tuple(replaced)):
            state[key] = tensor
    architecture: Architecture = import_module(network.entry.module).build(
        {key: tuple(tensor.shape) for key, tensor in state.items()}, **network.settings
    )
    architecture.module.double().load_state_dict(state)
    _prove(architecture.module, network)
    return {key: tensor.float().contiguous() if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def _equivalent(block: nn.Module, path: str) -> tuple[Tensor, Tensor | None]:
    """The kernel and bias (None where it has none) of a block, measured by impulses in float64 and proven."""
    wide = _double(block)
    linear = cast(Callable[[Tensor], Tensor], wide.linear)
    convolutions = [m for m in wide.modules() if isinstance(m, nn.Conv2d)]
    channels = convolutions[0].in_channels
    radius = max(int(m.kernel_size[0]) // 2 for m in convolutions)
    size = 2 * radius + 3
    with torch.inference_mode():
        silence = linear(torch.zeros(1, channels, size, size, dtype=torch.float64))
        impulses = torch.zeros(channels, channels, size, size, dtype=torch.float64)
        impulses[range(channels), range(channels), size // 2, size // 2] = 1
        response = (linear(impulses) - silence)[:, :, 1:-1, 1:-1]
        # An impulse answers with the kernel reversed.
        weight = response.flip(2, 3).transpose(0, 1).contiguous()
        bias = silence[0, :, size // 2, size // 2].clone()
        x = torch.randn(1, channels, size + 2, size + 3, dtype=torch.float64, generator=_generator())
        expected, got = linear(x), F.conv2d(x, weight, bias, padding=radius)
        error = float((got - expected).abs().max() / expected.abs().max())
    if error > TOLERANCE:
        raise FoldError(f"{path} is not one convolution: off by {error:.1e} of its largest value, border included")
    # A block trained without biases answers silence with silence, exactly.
    return weight, bias if bool(bias.any()) else None


def _double(module: nn.Module) -> nn.Module:
    return deepcopy(module).double().eval()


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(PROOF_SEED)


def _prove(folded: nn.Module, network: Network) -> None:
    x = torch.rand(1, 3, *PROOF_SIDES, dtype=torch.float64, generator=_generator()) * network.value_range
    with torch.inference_mode():
        expected, got = _double(network.module)(x), _double(folded)(x)
    error = float((got - expected).abs().max() / expected.abs().max())
    if not error <= NETWORK_TOLERANCE:
        raise FoldError(f"the folded {network.name} differs from the network by {error:.1e} of its largest value")
