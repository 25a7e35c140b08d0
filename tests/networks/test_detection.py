"""What is said of checkpoints that are no network's, or not quite."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from espan_deploy.checkpoints import Checkpoint
from espan_deploy.errors import CheckpointError, UnknownNetworkError
from espan_deploy.networks import NETWORKS, detect_network, load_network
from espan_deploy.networks.entry import conv_shape, count_numbered, every, has_keys, lacks_keys, scale_of_tail
from espan_deploy.networks.span.espan import ESPAN
from espan_deploy.networks.span.span import SPAN


def load(tensors: dict[str, Tensor]) -> None:
    load_network(Checkpoint(Path("weights.pth"), "", tensors))


def test_an_unknown_network_is_compared_with_the_nearest() -> None:
    shapes = {key: tuple(tensor.shape) for key, tensor in ESPAN().state_dict().items()}
    del shapes["tea_conv_cat.weight"]
    shapes["my_conv.weight"] = (32, 128, 1, 1)

    with pytest.raises(UnknownNetworkError) as caught:
        detect_network(shapes)

    message = caught.value.message
    assert "the nearest is ESPAN" in message
    assert "also has tea_conv_cat.weight" in message
    assert "does not have my_conv.weight" in message
    assert "inspect --networks" in caught.value.hint


def test_long_lists_of_keys_are_cut_short() -> None:
    with pytest.raises(UnknownNetworkError, match=r"layers\.03\.weight and 16 more"):
        detect_network({f"layers.{i:02}.weight": (3, 3) for i in range(20)})


def test_nothing_at_all_is_unknown_too() -> None:
    with pytest.raises(UnknownNetworkError, match="these 0 keys"):
        detect_network({})


@pytest.mark.parametrize(
    ("key", "shape", "said"),
    [
        ("block_3.c2_r.eval_conv.weight", (8, 8, 5, 5), r"first block_3\.c2_r\.eval_conv\.weight: expected"),
        ("upsampler.0.weight", (47, 8, 3, 3), "47 channels fits no pixel shuffle"),
        ("conv_1.eval_conv.weight", (8, 3), "do not hold together"),
        ("conv_1.eval_conv.weight", (8, 4, 3, 3), r"expected \(8, 3, 3, 3\), got \(8, 4, 3, 3\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(key: str, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        load({**SPAN(channels=8).state_dict(), key: torch.zeros(shape)})


def test_keys_that_are_missing_or_too_many_are_named() -> None:
    tensors = {**SPAN(channels=8).state_dict(), "block_2.c9.weight": torch.zeros(1)}
    del tensors["block_2.c1_r.eval_conv.bias"]

    with pytest.raises(CheckpointError, match=r"lacks block_2\.c1_r\.eval_conv\.bias, and block_2\.c9\.weight should"):
        load(tensors)


def test_listing_the_networks_loads_no_torch() -> None:
    code = "import sys; from espan_deploy.networks import NETWORKS; sys.exit('torch' in sys.modules or not NETWORKS)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_network_names_its_source_and_figures() -> None:
    for entry in NETWORKS:
        assert entry.source
        assert entry.published


def test_has_keys_and_lacks_keys() -> None:
    shapes = {"head.weight": (1,), "body.0.weight": (1,)}

    assert has_keys("head.weight", "body.")(shapes)
    assert not has_keys("head.weight", "body")(shapes)
    assert lacks_keys("tail.", "head")(shapes)
    assert not lacks_keys("tail.", "body.")(shapes)
    assert every(has_keys("head."), lacks_keys("tail."))(shapes)


def test_numbered_keys_are_counted_up_to_the_first_gap() -> None:
    shapes = {f"block_{i}.weight": (1,) for i in (1, 2, 4)}

    assert count_numbered(shapes, "block_{}.") == 2
    assert count_numbered(shapes, "block_{}.", first=0) == 0
    assert count_numbered(shapes, "block_{}.", first=4) == 1


def test_a_convolution_s_shape_is_read_in_every_form() -> None:
    training = {"c.sk.weight": (8, 3, 1, 1), "c.conv.1.weight": (16, 6, 5, 5), "c.eval_conv.weight": (8, 3, 3, 3)}

    assert conv_shape(training, "c") == (8, 3, 5)
    assert conv_shape({"c.eval_conv.weight": (8, 3, 3, 3)}, "c") == (8, 3, 3)
    assert conv_shape({"c.weight": (8, 3, 1, 1)}, "c") == (8, 3, 1)
    with pytest.raises(KeyError):
        conv_shape({}, "c")


@pytest.mark.parametrize(("channels", "scale"), [(3, 1), (12, 2), (27, 3), (48, 4)])
def test_scale_of_a_tail(channels: int, scale: int) -> None:
    assert scale_of_tail(channels) == scale


@pytest.mark.parametrize("channels", [0, 2, 13, 50])
def test_no_scale_fits(channels: int) -> None:
    with pytest.raises(ValueError, match="fits no pixel shuffle"):
        scale_of_tail(channels)
