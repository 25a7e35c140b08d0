"""Every network in its published form, in other widths and scales, and in its training form."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from espan_deploy.checkpoints import Checkpoint
from espan_deploy.errors import CheckpointError
from espan_deploy.networks import NETWORKS, NetworkEntry, detect_network, fill_module, load_network, reference_network
from espan_deploy.networks.blocks import Conv3XC, LoRAConv, same_conv
from espan_deploy.networks.entry import Form
from espan_deploy.networks.fourier.fsanet import FSANet
from espan_deploy.networks.fourier.sfnet import SFNet
from espan_deploy.networks.rlfn.arrlfn import ARRLFN
from espan_deploy.networks.rlfn.bsrn import BSRN, IBMDN
from espan_deploy.networks.rlfn.eecnet import EECNet
from espan_deploy.networks.rlfn.efdn import EFDN
from espan_deploy.networks.rlfn.errn import ERRN2
from espan_deploy.networks.rlfn.fean import FEAN
from espan_deploy.networks.rlfn.rcunet import RCUNet
from espan_deploy.networks.rlfn.rfdn import RFDNSPAN
from espan_deploy.networks.rlfn.rlfn import RESIDUAL, RLFN, SHORT, rep_rlfn
from espan_deploy.networks.rlfn.sepsr import SepSRNet
from espan_deploy.networks.safmn.amcanet import AMCANet
from espan_deploy.networks.safmn.dan import DAN
from espan_deploy.networks.safmn.fmdn import FMDN
from espan_deploy.networks.safmn.hannahsr import HannahSR
from espan_deploy.networks.safmn.hfenet import HFENet
from espan_deploy.networks.safmn.maan import MAAN
from espan_deploy.networks.safmn.moasr import MoASR
from espan_deploy.networks.safmn.mvfmnet import MVFMNet
from espan_deploy.networks.safmn.safmn import SAFMN
from espan_deploy.networks.safmn.safmnv3 import EXPAND_REP_NET, FRNET, FUSED, JOINT, BranchedModulation, SAFMNv3
from espan_deploy.networks.safmn.sgsdn import SGSDN
from espan_deploy.networks.safmn.vscinet import VSCINet
from espan_deploy.networks.scans.dwmamba import dwmamba
from espan_deploy.networks.scans.mambairv2 import mambairv2
from espan_deploy.networks.scans.pfvm import pfvm
from espan_deploy.networks.scans.spanmamba import SPANMamba
from espan_deploy.networks.span.dscf import DSCFFused
from espan_deploy.networks.span.ecas import ECAS
from espan_deploy.networks.span.espan import ESPAN
from espan_deploy.networks.span.glorenet import GLoReNet
from espan_deploy.networks.span.nanosr import NanoSR
from espan_deploy.networks.span.span import SPAN
from espan_deploy.networks.span.spanf import SPANF
from espan_deploy.networks.span.spanv2 import SPANV2
from espan_deploy.networks.span.tdesr import TDESR
from espan_deploy.networks.span.teninone import TenInOneConv, TenInOneSR
from espan_deploy.networks.span.tsr import TSR
from espan_deploy.networks.windows.haesr import HAESR
from espan_deploy.networks.windows.hitsr import bvi_srf, hit_srf
from espan_deploy.networks.windows.scmsr import SCMSR
from espan_deploy.networks.windows.srformer import PartialSRFormer

Make = Callable[[int], nn.Module]

IESR: dict[str, Any] = {
    "blocks": (RESIDUAL, SHORT, SHORT, RESIDUAL),
    "esa_conv": same_conv,
    "skip_conv": False,
    "end_kernel": 3,
}


def dscf_with_lora(scale: int) -> SPAN:
    module = SPAN(channels=12, scale=scale)
    for path, rank in (("conv_2.eval_conv", 4), ("block_3.c2_r.eval_conv", 2), ("upsampler.0", 4)):
        conv = module.get_submodule(path)
        assert isinstance(conv, nn.Conv2d)
        module.set_submodule(path, LoRAConv(conv.in_channels, conv.out_channels, 3, rank))
    return module


DEPLOY: dict[str, Make] = {
    "espan": lambda scale: ESPAN(channels=8, mid_channels=12, blocks=3, scale=scale, head_kernel=5),
    "esrnet": lambda scale: SPAN(channels=8, scale=scale, side_conv=True),
    "span-pruned": lambda scale: SPAN(channels=8, tail_channels=5, scale=scale),
    "dscf": lambda scale: SPAN(channels=26, blocks=3, scale=scale),
    "span": lambda scale: SPAN(channels=8, blocks=4, scale=scale),
    "dscf-fused": lambda scale: DSCFFused(channels=8, blocks=3, scale=scale),
    "pds": lambda scale: SPANF(channels=8, tail_channels=5, scale=scale, tail_suffix="_1"),
    "pkdsr": lambda scale: SPANF(channels=8, tail_channels=5, blocks=3, scale=scale),
    "spanf": lambda scale: SPANF(channels=8, scale=scale),
    "spanv2": lambda scale: SPANV2(channels=8, blocks=3, scale=scale, bias=True),
    "tsr": lambda scale: TSR(channels=8, blocks=2, extra_convs=2, scale=scale),
    "tssr": lambda scale: TSR(channels=8, scale=scale, pointwise_end=True),
    "nanosr": lambda scale: NanoSR(channels=8, blocks=3, scale=scale),
    "dipnet-slim": lambda scale: RLFN(channels=8, mid_channels=12, esa_channels=4, scale=scale),
    "iesrnet": lambda scale: RLFN(channels=8, esa_channels=4, scale=scale, **IESR),
    "errn2": lambda scale: ERRN2(channels=8, blocks=3, depth=3, scale=scale),
    "rfdn-span": lambda scale: RFDNSPAN(channels=8, distilled=3, blocks=3, scale=scale),
    "efdn": lambda scale: EFDN(channels=8, scale=scale),
    "rep-rlfn": lambda scale: rep_rlfn(blocks=(RESIDUAL,) * 2, channels=8, esa_channels=4, scale=scale),
    "arrlfn": lambda scale: ARRLFN(channels=8, blocks=2, depth=2, esa_channels=4, step=scale),
    "rcunet": lambda scale: RCUNet(channels=8, mid_channels=5, esa_channels=4, scale=scale),
    "eecnet": lambda scale: EECNet(channels=8, blocks=2, esa_channels=4, scale=scale),
    "paedn": lambda scale: EFDN(channels=8, scale=scale, gated=True),
    "eaglesr": lambda scale: BSRN(channels=16, distilled=6, blocks=2, esa_channels=4, scale=scale),
    "depth-ibn": lambda scale: IBMDN(
        channels=16, distilled=6, mid_channels=4, involutions=((), (2,), (1, 3)), scale=scale
    ),
    "sepsrnet": lambda scale: SepSRNet(channels=8, mid_channels=5, esa_channels=3, reduction=4, blocks=2, scale=scale),
    "fean": lambda scale: FEAN(channels=8, blocks=1, esa_channels=16, scale=scale),
    "tdesr": lambda scale: TDESR(channels=8, blocks=2, scale=scale),
    "teninonesr": lambda scale: TenInOneSR(channels=8, attention_channels=4, blocks=2, scale=scale),
    "ecas": lambda scale: ECAS(channels=8, blocks=3, eca_kernel=3, scale=scale),
    "glorenet": lambda scale: GLoReNet(channels=8, esa_blocks=1, esa_channels=4, scale=scale),
    "fsanet": lambda scale: FSANet(channels=8, attention_channels=3, blocks=2, kernel_sizes=(3,), scale=scale),
    "sfnet": lambda scale: SFNet(channels=8, blocks=2, experts=2, scale=scale),
    "hit-srf": lambda scale: hit_srf(channels=40, hidden=24, heads=2, groups=1, scale=scale),
    "bvi-srf": lambda scale: bvi_srf(channels=20, hidden=24, scale=scale),
    "partial-srformer": lambda scale: PartialSRFormer(
        channels=8, hidden=12, heads=2, depths=(2, 1), window=8, scale=scale
    ),
    "scmsr": lambda scale: SCMSR(channels=14, depths=(1, 2), window=8, scale=scale),
    "haesr": lambda scale: HAESR(channels=16, esa_channels=4, blocks=2, kernel_size=5, scale=scale),
    "safmnv3": lambda scale: SAFMNv3(channels=8, pooled=3, hidden=10, blocks=2, scale=scale),
    "frnet": lambda scale: SAFMNv3(
        channels=8, pooled=3, hidden=10, blocks=2, scale=scale, design=FRNET, modulation=FUSED
    ),
    "expand-rep-net": lambda scale: SAFMNv3(
        channels=8, pooled=3, hidden=10, blocks=2, scale=scale, design=EXPAND_REP_NET, modulation=JOINT
    ),
    "safmn": lambda scale: SAFMN(channels=9, hidden=10, blocks=2, levels=3, scale=scale),
    "dan": lambda scale: DAN(channels=8, blocks=2, scale=scale),
    "zenosr": lambda scale: DAN(channels=6, blocks=2, scale=scale, weighted=True),
    "vscinet": lambda scale: VSCINet(channels=8, blocks=2, scale=scale),
    "mvfmnet": lambda scale: MVFMNet(channels=6, blocks=2, scale=scale),
    "moasr": lambda scale: MoASR(channels=6, expert_widths=(2, 3), kernel_size=5, blocks=2, scale=scale),
    "maan": lambda scale: MAAN(channels=8, hidden=12, depths=(1, 2), scale=scale),
    "sgsdn": lambda scale: SGSDN(channels=6, blocks=2, scale=scale),
    "amcanet": lambda scale: AMCANet(channels=6, hidden=8, blocks=2, heads=3, scale=scale),
    "hfenet": lambda scale: HFENet(channels=5, wide=6, squeezed=2, hidden=8, kernel_size=5, blocks=2, scale=scale),
    "fmdn": lambda scale: FMDN(channels=12, distilled=4, esa_channels=3, hidden=8, blocks=3, scale=scale),
    "hannahsr": lambda scale: HannahSR(
        channels=12, distilled=4, esa_channels=3, hidden=8, heads=2, blocks=2, scale=scale
    ),
    "pfvm": lambda scale: pfvm(channels=8, inner=10, state=3, rank=2, depths=(1,), scale=scale),
    "mambairv2": lambda scale: mambairv2(
        channels=8, heads=2, window=8, hidden=12, inner=10, state=3, rank=2, prompts=(6, 4), depths=(2,), scale=scale
    ),
    "dwmamba": lambda scale: dwmamba(
        channels=8, heads=2, window=4, hidden=12, inner=10, state=3, rank=2, prompts=(6, 4), depths=(2,), scale=scale
    ),
    "spanmamba": lambda scale: SPANMamba(channels=8, width=6, inner=10, state=3, rank=2, blocks=2, scale=scale),
}

TRAINING: dict[str, Make] = {
    "espan": lambda scale: ESPAN(channels=8, mid_channels=12, scale=scale, training_form=True),
    "esrnet": lambda scale: SPAN(channels=8, scale=scale, side_conv=True, conv=Conv3XC),
    "span-pruned": lambda scale: SPAN(channels=8, tail_channels=5, scale=scale, conv=Conv3XC),
    "dscf": dscf_with_lora,
    "span": lambda scale: SPAN(channels=8, scale=scale, conv=Conv3XC),
    "pds": lambda scale: SPANF(channels=8, tail_channels=5, scale=scale, tail_suffix="_1", conv=Conv3XC),
    "pkdsr": lambda scale: SPANF(channels=8, tail_channels=5, scale=scale, conv=Conv3XC),
    "spanf": lambda scale: SPANF(channels=8, scale=scale, conv=Conv3XC),
    "nanosr": lambda scale: NanoSR(channels=8, scale=scale, ratio=2),
    "dipnet-slim": lambda scale: RLFN(
        channels=8, esa_channels=4, scale=scale, conv=Conv3XC, outer_conv=Conv3XC, esa_conv=Conv3XC
    ),
    "iesrnet": lambda scale: RLFN(channels=8, esa_channels=4, scale=scale, conv=Conv3XC, outer_conv=Conv3XC, **IESR),
    "efdn": lambda scale: EFDN(channels=8, scale=scale, training_form=True),
    "spanmamba": lambda scale: SPANMamba(
        channels=8, width=6, inner=10, state=3, rank=2, blocks=2, scale=scale, conv=Conv3XC
    ),
    "rep-rlfn": lambda scale: rep_rlfn(blocks=(RESIDUAL,) * 2, channels=8, scale=scale, training_form=True),
    "arrlfn": lambda scale: ARRLFN(channels=8, blocks=2, depth=2, esa_channels=4, step=scale, ratio=2),
    "eecnet": lambda scale: EECNet(channels=8, blocks=2, esa_channels=4, scale=scale, widths=(12, 20)),
    "paedn": lambda scale: EFDN(channels=8, scale=scale, gated=True, training_form=True),
    "teninonesr": lambda scale: TenInOneSR(
        channels=8, attention_channels=4, blocks=2, scale=scale, conv=partial(TenInOneConv, gains=(1, 2))
    ),
    "fsanet": lambda scale: FSANet(
        channels=8, attention_channels=3, blocks=2, kernel_sizes=(1, 3), scale=scale, training_form=True
    ),
    "sfnet": lambda scale: SFNet(channels=8, blocks=2, experts=2, scale=scale, conv=Conv3XC),
    "frnet": lambda scale: SAFMNv3(
        channels=8, pooled=3, hidden=10, blocks=2, scale=scale, design=FRNET, modulation=BranchedModulation
    ),
}

PASSES = {"arrlfn": 2}
"""Networks that are run more than once: the whole scale is so many times the scale of one pass."""

FORMS: list[tuple[str, Form, Make]] = [
    *((name, "deploy", make) for name, make in DEPLOY.items()),
    *((name, "training", make) for name, make in TRAINING.items()),
]


def checkpoint_of(module: nn.Module, **added: torch.Tensor) -> Checkpoint:
    return Checkpoint(Path("weights.pth"), "", {**module.state_dict(), **added})


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def test_every_network_is_made_here() -> None:
    assert set(DEPLOY) == {entry.name for entry in NETWORKS}


def test_names_are_unique() -> None:
    assert len({entry.name for entry in NETWORKS}) == len(NETWORKS)


@pytest.mark.parametrize("entry", NETWORKS, ids=lambda entry: entry.name)
def test_published_form_is_detected_and_rebuilt(entry: NetworkEntry) -> None:
    reference = reference_network(entry)

    network = load_network(checkpoint_of(reference))

    assert network.entry is entry
    assert (network.scale, network.form, network.value_range) == (4, "deploy", 1.0)
    assert shapes_of(network.module) == shapes_of(reference)
    assert not network.module.training


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize(("name", "form", "make"), FORMS, ids=[f"{name}-{form}" for name, form, _ in FORMS])
def test_other_widths_scales_and_forms_are_read_from_shapes(name: str, form: Form, make: Make, scale: int) -> None:
    torch.manual_seed(0)
    module = make(scale).eval()

    network = load_network(checkpoint_of(module))

    assert network.name == name
    whole_scale = scale ** PASSES.get(name, 1)
    assert (network.scale, network.form) == (whole_scale, form)
    assert shapes_of(network.module) == shapes_of(module)
    height, width = 19, 17  # what each of them takes
    images = torch.rand(2, 3, height, width)
    with torch.inference_mode():
        upscaled = network.module(images)
        assert torch.equal(upscaled, module(images))
    assert upscaled.shape == (2, 3, whole_scale * height, whole_scale * width)
    assert upscaled.isfinite().all()


@pytest.mark.parametrize("name", ["span", "pkdsr", "iesrnet", "sfnet"])
def test_stale_deploy_weights_beside_training_ones_are_ignored(name: str) -> None:
    module = TRAINING[name](2).eval()
    stale = {
        key.replace(".sk.", ".eval_conv."): torch.full((tensor.shape[0], tensor.shape[1], 3, 3), 1e3)
        for key, tensor in module.state_dict().items()
        if key.endswith(".sk.weight")
    }

    network = load_network(checkpoint_of(module, **stale))

    assert network.form == "training"
    images = torch.rand(1, 3, 17, 15)
    assert torch.equal(network.module(images), module(images))


def test_efdn_ignores_the_branch_it_does_not_compute() -> None:
    module = TRAINING["efdn"](4)

    network = load_network(checkpoint_of(module, **{"cells.0.conv2.conv1x1_3x3.k0": torch.ones(8, 8, 1, 1)}))

    assert network.form == "training"


def test_span_without_normalisation_says_so_by_a_key() -> None:
    module = SPAN(channels=8, scale=2, normalise=False)

    network = load_network(checkpoint_of(module))

    images = torch.rand(1, 3, 7, 5)
    assert torch.equal(network.module(images), module(images))


def test_what_original_checkpoints_hold_besides_is_ignored() -> None:
    besides = {
        "arrlfn": "blocks.0.RRRBs.0.fuse_ones",
        "eecnet": "blocks.0.eec1.rep_conv.weight",
        "teninonesr": "conv_2.eval_conv.weight",
    }
    for name, key in besides.items():
        assert load_network(checkpoint_of(TRAINING[name](2), **{key: torch.ones(8)})).form == "training"
    assert load_network(checkpoint_of(DEPLOY["fean"](2), **{"eswrb2.theta": torch.ones(8)})).name == "fean"


def test_img_range_can_be_set_where_shapes_do_not_tell_it() -> None:
    module = SPAN(channels=8, img_range=1.0)

    network = load_network(checkpoint_of(module), img_range=1.0)

    images = torch.rand(1, 3, 7, 5)
    assert torch.equal(network.module(images), module(images))


def test_of_several_state_dicts_the_one_that_the_authors_use_is_taken() -> None:
    used, other = (DEPLOY["fsanet"](2).state_dict() for _ in range(2))
    averaged = Checkpoint(Path("w.pth"), "", other, ("params_ema",), others={"params": used})

    assert torch.equal(load_network(averaged).module.state_dict()["c1.weight"], used["c1.weight"])


def test_a_setting_that_a_network_does_not_have_is_named() -> None:
    with pytest.raises(CheckpointError, match="TSR has no setting img_range"):
        load_network(checkpoint_of(DEPLOY["tsr"](4)), img_range=1.0)


def test_a_class_may_hold_everything_under_a_wrapper_s_name() -> None:
    class Wrapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Conv2d(3, 3, 1)

    weights = nn.Conv2d(3, 3, 1).state_dict()
    module = Wrapping()

    fill_module(module, Checkpoint(Path("w.pth"), "", weights, prefixes=("module.", "model.")), "Wrapping")

    assert torch.equal(module.model.weight, weights["weight"])


def test_forward_leaves_the_weights_alone() -> None:
    for make in (*DEPLOY.values(), *TRAINING.values()):
        module = make(2).eval()
        before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
        module(torch.rand(1, 3, 16, 16))
        assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


def test_detection_needs_no_weights() -> None:
    shapes = shapes_of(DEPLOY["spanv2"](4))

    assert detect_network(shapes).name == "spanv2"
