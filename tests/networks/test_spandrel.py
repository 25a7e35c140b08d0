"""What spandrel recognises, and what is said where it is not there, or where a network is none for us."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from espan_deploy.checkpoints import load_checkpoint
from espan_deploy.errors import CheckpointError, UnknownNetworkError
from espan_deploy.networks import load_network, spandrel, torchvision_standin

needs_spandrel = pytest.mark.skipif(find_spec("spandrel") is None, reason="spandrel, an extra, is not installed")


def saved(folder: Path, state: dict[str, Tensor]) -> Path:
    torch.save(state, folder / "w.pth")
    return folder / "w.pth"


def srgb(name: str, **arguments: object) -> nn.Module:
    """A network of spandrel's; its package is imported as the tool imports it."""
    from importlib import import_module

    spandrel._registry()
    torch.manual_seed(0)
    module: nn.Module = getattr(import_module(f"spandrel.architectures.{name}"), name)(**arguments)
    return module.eval()


@needs_spandrel
def test_a_network_of_spandrels_is_filled_and_described(tmp_path: Path) -> None:
    module = srgb("Compact", num_feat=8, num_conv=1, upscale=2)

    network = load_network(load_checkpoint(saved(tmp_path, {"params_ema": module.state_dict()})))

    assert (network.name, network.scale, network.value_range, network.entry) == ("spandrel-Compact", 2, 1.0, None)
    assert network.title.startswith("RealESRGAN Compact (spandrel ")
    x = torch.rand(1, 3, 9, 7)
    with torch.inference_mode():
        assert torch.equal(network.module(x), module(x))


@needs_spandrel
def test_a_prefix_that_belongs_to_the_names_is_put_back(tmp_path: Path) -> None:
    """The first ESRGANs call everything ``model.``, which is a wrapper's prefix elsewhere."""
    module = srgb("ESRGAN", num_filters=8, num_blocks=1)
    assert all(key.startswith("model.") for key in module.state_dict())

    network = load_network(load_checkpoint(saved(tmp_path, module.state_dict())))

    assert network.name == "spandrel-ESRGAN"


@needs_spandrel
def test_a_network_is_called_as_its_users_call_it(tmp_path: Path) -> None:
    """DRUNet takes the level of the noise beside the image, as a fourth channel."""
    module = srgb("DRUNet", in_nc=4, out_nc=3, nc=[8, 8, 8, 8], nb=2)

    network = load_network(load_checkpoint(saved(tmp_path, module.state_dict())))

    assert (network.multiple, network.least) == (8, 8)
    x = torch.rand(1, 3, 16, 8)
    with torch.inference_mode():
        expected = module(torch.cat([x, torch.full((1, 1, 16, 8), 15 / 255)], 1))
        assert torch.equal(network.module(x), expected)


@needs_spandrel
@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Compact", {"num_in_ch": 1, "num_out_ch": 1, "num_feat": 8, "num_conv": 1}, "takes images of 1 channel;"),
        ("Compact", {"num_in_ch": 4, "num_out_ch": 4, "num_feat": 8, "num_conv": 1}, "takes images of 4 channels;"),
        ("LaMa", {"in_nc": 4}, "takes a mask beside the image"),
    ],
)
def test_what_upscales_no_rgb_image_is_refused(
    tmp_path: Path, name: str, arguments: dict[str, object], message: str
) -> None:
    checkpoint = load_checkpoint(saved(tmp_path, srgb(name, **arguments).state_dict()))

    with pytest.raises(CheckpointError, match=message):
        load_network(checkpoint)


@needs_spandrel
def test_settings_and_shapes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = srgb("Compact", num_feat=8, num_conv=1, upscale=2).state_dict()
    checkpoint = load_checkpoint(saved(tmp_path, state))
    with pytest.raises(CheckpointError, match=r"Compact .* has no settings, and upscale was given"):
        load_network(checkpoint, upscale=2)

    state["body.2.weight"] = torch.zeros(8, 9, 3, 3)
    with pytest.raises(CheckpointError, match=r"looks like RealESRGAN Compact .* do not hold together"):
        load_network(load_checkpoint(saved(tmp_path, state)))


def test_without_the_extra_an_unknown_network_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spandrel, "installed", lambda: False)
    checkpoint = load_checkpoint(saved(tmp_path, {"stem.weight": torch.zeros(3, 3)}))

    with pytest.raises(UnknownNetworkError) as caught:
        load_network(checkpoint)

    assert "pip install 'espan-deploy[spandrel]'" in caught.value.hint


DIFFUSION = {
    "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": "low-rank adapters",
    "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": "a diffusion model",
    "transformer_blocks.3.attn.add_k_proj.weight": "a diffusion model",
    "decoder.mid_block.attentions.0.to_q.weight": "a latent autoencoder",
}


@pytest.mark.parametrize("key", DIFFUSION)
def test_weights_of_a_diffusion_model_are_refused_as_such(tmp_path: Path, key: str) -> None:
    checkpoint = load_checkpoint(saved(tmp_path, {key: torch.zeros(4, 4), "norm.weight": torch.zeros(4)}))

    with pytest.raises(CheckpointError, match=DIFFUSION[key]) as caught:
        load_network(checkpoint)

    assert "TSD-SR" in caught.value.hint


@pytest.fixture
def without_torchvision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where it is not installed: importing it fails."""
    loaded = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torchvision"}
    monkeypatch.setitem(sys.modules, "torchvision", None)  # type: ignore[arg-type]  # the import system's own sign
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.modules.update(loaded)


@pytest.mark.usefixtures("without_torchvision")
def test_torchvision_is_stood_in_for_while_something_is_imported_and_no_longer() -> None:
    with torchvision_standin.torchvision_or_standin():
        from torchvision.transforms.functional import normalize

        stand_in = sys.modules["torchvision"]

    assert isinstance(stand_in, ModuleType)
    assert "torchvision" not in sys.modules
    x = torch.rand(2, 3, 4, 5)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 2.0])
    expected = (x - mean[:, None, None]) / std[:, None, None]
    assert torch.equal(normalize(x, mean.tolist(), std.tolist()), expected)
