"""Folded checkpoints: the deploy form of a training-form network, in PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_forms import PASSES, TRAINING
from torch import nn

from espan_deploy.checkpoints import Checkpoint
from espan_deploy.errors import FoldError
from espan_deploy.networks import Network, load_network
from espan_deploy.networks.folded import deploy_state

RELATIVE = 1e-4
"""The folded weights are rounded to float32, and so are both networks' sums."""

SAME_GRAPH = {"dscf": "span"}
"""Folded, EMSR's DSCF is a SPAN; only its published width of 26 tells them apart."""


def loaded(module: nn.Module) -> Network:
    return load_network(Checkpoint(Path("random.pth"), "0" * 64, module.state_dict()))


@pytest.mark.parametrize("name", TRAINING)
def test_the_deploy_form_is_recognised_and_gives_the_same_images(name: str) -> None:
    torch.manual_seed(11)
    trained = loaded(TRAINING[name](4))
    assert trained.form == "training"
    folded = load_network(Checkpoint(Path("folded.pth"), "0" * 64, deploy_state(trained)))
    assert folded.entry is not None
    assert (folded.entry.name, folded.form, folded.scale) == (
        SAME_GRAPH.get(name, name),
        "deploy",
        4 ** PASSES.get(name, 1),
    )
    x = torch.rand(1, 3, 21, 26)
    with torch.inference_mode():
        expected, got = trained.module(x), folded.module(x)
    assert (got - expected).abs().max() <= RELATIVE * expected.abs().max()


def test_a_block_that_is_not_one_convolution_is_refused() -> None:
    trained = loaded(TRAINING["espan"](4))
    chain = trained.module.get_submodule("block_1.c1_r.rep.chains.0.0")
    assert isinstance(chain, nn.Conv2d)
    chain.bias = nn.Parameter(torch.ones(chain.out_channels))  # behind the border the 3x3 sees zeros, not this
    with pytest.raises(FoldError, match=r"block_1\.c1_r is not one convolution"):
        deploy_state(trained)


def test_a_class_of_ones_own_has_no_known_deploy_form() -> None:
    with pytest.raises(FoldError, match="not known"):
        deploy_state(Network(nn.Identity(), 1, "training", 1.0, None, "mine", "mine"))
