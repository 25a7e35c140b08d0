"""Every network of the catalogue, in each form it has, from weights to a folded graph that equals it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_forms import FORMS, PASSES, Make, checkpoint_of
from torch import nn

from espan_deploy.deploy import deploy_network
from espan_deploy.networks import NETWORKS, load_network, reference_network
from espan_deploy.networks.entry import Form
from espan_deploy.proof import PARITY_TOLERANCE
from espan_deploy.sources import Source

EXACT = 1e-12

SEES_ALL = {
    *("dipnet-slim", "iesrnet", "efdn", "rep-rlfn", "arrlfn", "rcunet", "eecnet", "eaglesr", "sepsrnet", "fean"),
    *("glorenet", "teninonesr"),
    *("depth-ibn", "ecas"),
    *("fsanet", "sfnet"),
    *("hit-srf", "bvi-srf", "partial-srformer", "scmsr", "haesr"),
    *("safmnv3", "frnet", "expand-rep-net", "safmn", "dan", "zenosr", "vscinet", "mvfmnet", "moasr"),
    *("amcanet", "hfenet", "fmdn", "hannahsr"),
    *("pfvm", "mambairv2", "dwmamba", "spanmamba"),
}
"""Networks that pool to a coarse grid and resize it (ESA), that average over the image, that transform it; and those
with windows, the place of which in the image matters, or with scans, which carry a state through it."""

SAMPLE = {
    *("espan", "dscf", "nanosr", "efdn", "dipnet-slim", "arrlfn", "depth-ibn", "fean", "ecas", "fsanet"),
    *("frnet", "zenosr"),
}
"""Tried by default: one of each kind of branch, border, pooling and computed size."""


def published_convolutions(name: str) -> int:
    reference = reference_network(next(entry for entry in NETWORKS if entry.name == name))
    return sum(isinstance(part, nn.Conv2d) for part in reference.modules())


CASES = [
    pytest.param(*case, id=f"{case[0]}-{case[1]}", marks=() if case[0] in SAMPLE else pytest.mark.every)
    for case in FORMS
]


@pytest.mark.parametrize(("name", "form", "make"), CASES)
def test_network_exports_folds_and_stays_itself(name: str, form: Form, make: Make) -> None:
    torch.manual_seed(0)
    network = load_network(checkpoint_of(make(2)))
    source = Source(Path(f"{name}.pth"), "0" * 64, name, name, form)

    deployment = deploy_network(network, source)  # compares at three sizes, and raises where they differ

    assert deployment.largest_difference <= PARITY_TOLERANCE
    assert all(max(site.error_inside, site.error_border) <= EXACT for site in deployment.report.sites)
    assert deployment.after.multiply_adds <= deployment.before.multiply_adds
    assert deployment.description.scale == 2 ** PASSES.get(name, 1)
    assert deployment.description.halo is not None or name in SEES_ALL
    if form == "training":
        assert deployment.after.convolutions <= published_convolutions(name) * PASSES.get(name, 1)
