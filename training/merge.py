"""General re-parameterised convolutions merged into single kernels, differentiably.

Training on merged kernels costs the deploy form's forward: the branches only exist in the weights, where merging them
is a few small matrix products. Gradients flow back through those to every branch.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from espan_deploy.networks.blocks import GeneralRepConv

Kernel = tuple[Tensor, Tensor]
"""Weight (O, I, k, k) and bias (O,) of one convolution."""


def rep_convs(network: nn.Module) -> dict[str, GeneralRepConv]:
    """Every general re-parameterised convolution of a network under the name of its position (without ``.rep``)."""
    return {
        name.removesuffix(".rep"): module
        for name, module in network.named_modules()
        if isinstance(module, GeneralRepConv)
    }


def branch_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters of every 1x1 and every chain: all of a re-parameterised convolution but its kxk."""
    return [
        parameter
        for module in rep_convs(network).values()
        for branch in (module.pointwise, module.chains)
        for parameter in branch.parameters()
    ]


def merged_kernels(network: nn.Module) -> dict[str, Kernel]:
    """One kernel per position, in the parameters' dtype. Positions of one shape are merged together, for speed."""
    by_shape: dict[tuple[int, ...], list[tuple[str, GeneralRepConv]]] = defaultdict(list)
    for name, module in rep_convs(network).items():
        by_shape[tuple(module.kxk.weight.shape)].append((name, module))
    kernels: dict[str, Kernel] = {}
    for members in by_shape.values():
        weights, biases = merge_alike([module for _, module in members])
        for (name, _), weight, bias in zip(members, weights.unbind(0), biases.unbind(0), strict=True):
            kernels[name] = (weight, bias)
    return kernels


def merge_alike(modules: list[GeneralRepConv]) -> Kernel:
    """Merge L modules of one shape: weights (L, O, I, k, k), biases (L, O).

    A chain's 1x1 mixes its input channels before the kxk sees them, so its kernel is
    ``sum_m kxk[o, m] * one[m, i]``; the 1x1 branch adds to the centre tap.
    """
    out_channels, in_channels, side, _ = modules[0].kxk.weight.shape
    chains = [chain_layers(module) for module in modules]
    shape = (len(modules), len(chains[0]), out_channels)
    ones = torch.cat([one.weight for layers in chains for one, _ in layers]).view(*shape, in_channels)
    seconds = torch.cat([second.weight for layers in chains for _, second in layers]).view(*shape, out_channels, -1)
    weights = torch.einsum("lcomk,lcmi->loik", seconds, ones)
    weights = weights.view(len(modules), out_channels, in_channels, side, side)
    weights = weights + torch.stack([module.kxk.weight for module in modules])
    points = torch.stack([module.pointwise.weight for module in modules])
    weights = weights + nn.functional.pad(points, [side // 2] * 4)
    biases = torch.cat([bias_of(second) for layers in chains for _, second in layers]).view(shape).sum(1)
    biases = biases + torch.stack([bias_of(module.kxk) for module in modules])
    return weights, biases + torch.stack([bias_of(module.pointwise) for module in modules])


def chain_layers(module: GeneralRepConv) -> list[tuple[nn.Conv2d, nn.Conv2d]]:
    """The 1x1 and the kxk of each chain."""
    pairs = []
    for chain in module.chains:
        assert isinstance(chain, nn.Sequential)
        one, second = chain
        assert isinstance(one, nn.Conv2d)
        assert isinstance(second, nn.Conv2d)
        pairs.append((one, second))
    return pairs


def bias_of(layer: nn.Conv2d) -> Tensor:
    """The bias of a layer that has one."""
    assert layer.bias is not None
    return layer.bias


def deploy_state(network: nn.Module) -> dict[str, Tensor]:
    """The deploy form's state dict of a training-form ESPAN: ``X.rep.*`` becomes ``X.eval_conv.{weight,bias}``."""
    state = {name: value.detach().clone() for name, value in network.state_dict().items() if ".rep." not in name}
    with torch.no_grad():
        for name, (weight, bias) in merged_kernels(network).items():
            state[f"{name}.eval_conv.weight"] = weight.clone()
            state[f"{name}.eval_conv.bias"] = bias.clone()
    return state
