"""What the modulation networks compute in a way of their own, beside plain calculations of what it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from espan_deploy.networks.safmn.blocks import variance_in_windows, variance_over_image
from espan_deploy.networks.safmn.distillation import local_variance
from espan_deploy.networks.safmn.hannahsr import SparseAttention
from espan_deploy.networks.safmn.local_attention import GatedSelfAttention, cover, in_local_windows
from espan_deploy.networks.safmn.moasr import MixtureOfExperts
from espan_deploy.networks.safmn.mvfmnet import even_stretches

EXACT = 1e-12
"""Float64, another order of the same sums."""

SIZES = ((5, 6), (6, 7), (7, 12), (13, 24), (25, 18), (20, 31))
"""Around windows of 6 and of 8 pixels: less than one, just one, one more, and several."""


def features(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def window_starts(size: int, side: int) -> list[int]:
    """As TLC's loop finds them: a rounded-up step, and the window that would leave the image moved back into it."""
    side = min(size, side)
    steps = math.ceil(size / side) - 1
    step = math.ceil((size - side) / steps) if steps else side
    starts = [0]
    while starts[-1] + side < size:
        starts.append(min(starts[-1] + step, size - side))
    return starts


def averaged_windows(x: Tensor, side: int, attend: Callable[[Tensor], Tensor]) -> Tensor:
    """One window of one image after another, summed where it lies and divided by how many lie there."""
    height, width = x.shape[2:]
    rows, columns = min(height, side), min(width, side)
    images = []
    for image in x:
        total, count = torch.zeros(()), torch.zeros(height, width, dtype=x.dtype)
        for top in window_starts(height, side):
            for left in window_starts(width, side):
                window = image[:, top : top + rows, left : left + columns]
                out = attend(window.flatten(1)[None])[0].unflatten(1, window.shape[1:])
                total = total + F.pad(out, (left, width - left - columns, top, height - top - rows))
                count[top : top + rows, left : left + columns] += 1
        images.append(total / count)
    return torch.stack(images)


@pytest.mark.parametrize("side", [6, 8])
def test_local_windows_are_those_of_a_plain_loop(side: int) -> None:
    def attend(x: Tensor) -> Tensor:
        return x[:, :2] * x.mean((1, 2), keepdim=True)

    for height, width in SIZES:
        x = features(2, 3, height, width)

        expected = averaged_windows(x, side, attend)

        assert (in_local_windows(x, side, attend) - expected).abs().max() <= EXACT, (height, width)


@pytest.mark.parametrize("side", [72, 96])
def test_windows_of_the_released_networks_stand_where_tlc_s_stand(side: int) -> None:
    for size in range(1, 1200):
        assert cover(size, side, torch.device("cpu")).starts().tolist() == window_starts(size, side), size


def test_gated_attention_is_a_softmax_of_cosines_between_channels() -> None:
    attention = GatedSelfAttention(4).double()
    attention.temperature.data.fill_(1.7)
    query, value = features(1, 4, 30), features(1, 4, 31)[..., :30]

    def cosine(a: int, b: int) -> Tensor:
        return F.cosine_similarity(query[0, a], value[0, b], dim=0)

    weights = torch.stack([torch.stack([cosine(a, b) for b in range(4)]) for a in range(4)])
    expected = (1.7 * weights).softmax(1) @ value

    assert (attention.attend(torch.cat([query, value], 1)) - expected).abs().max() <= EXACT


def test_sparse_attention_attends_within_each_head_and_drops_negative_cosines() -> None:
    attention = SparseAttention(6, heads=3).double()
    attention.temperature.data.copy_(torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1))
    qkv = features(2, 18, 30)

    expected = torch.zeros(2, 6, 30, dtype=torch.float64)
    for image in range(2):
        query, key, value = qkv[image].chunk(3)
        for channel in range(6):
            head = channel // 2
            for other in (2 * head, 2 * head + 1):
                cosine = F.cosine_similarity(query[channel], key[other], dim=0)
                expected[image, channel] += F.relu(cosine * attention.temperature[head, 0, 0]) * value[other]

    assert (attention.attend(qkv) - expected).abs().max() <= EXACT


def test_variances_are_pytorch_s() -> None:
    x = features(2, 3, 23, 31)

    assert (variance_over_image(x) - x.var((2, 3), keepdim=True)).abs().max() <= EXACT
    for size in (5, 7):
        mirrored = F.pad(x, (1, 1, 1, 1), mode="reflect")
        expected = mirrored.unfold(2, size, 3).unfold(3, size, 3).var((-1, -2))
        assert (local_variance(x, size) - expected).abs().max() <= EXACT


@pytest.mark.parametrize("divisor", [5, 7])
def test_variance_on_a_grid_is_that_of_evenly_spaced_windows(divisor: int) -> None:
    for height, width in ((7, 13), (23, 31), (48, 64)):
        x = features(1, 2, height, width)
        expected = x
        for axis, size in ((2, height), (3, width)):
            count = size // divisor
            step = size // count
            expected = expected.unfold(axis, size - (count - 1) * step, step)

        got = variance_in_windows(x, *(even_stretches(x, axis, divisor) for axis in (2, 3)))

        assert (got - expected.var((-1, -2))).abs().max() <= EXACT


def test_each_image_of_a_batch_has_the_expert_that_weighs_most_for_it() -> None:
    torch.manual_seed(5)
    mixture = MixtureOfExperts(6, (2, 3, 4)).double()
    a, b = features(8, 6, 5, 7) * 20, features(8, 6, 7, 5).transpose(2, 3)

    with torch.inference_mode():
        together = mixture(a, b)
        chosen = set()
        for image in range(8):
            weights = (mixture.gate.body[2](a[image].mean((1, 2)))).softmax(0)
            best = int(weights.argmax())
            chosen.add(best)
            one = slice(image, image + 1)
            expected = a[one] + mixture.experts[best](a[one], b[one]) * weights[best]
            assert (together[one] - expected).abs().max() <= EXACT

    assert len(chosen) > 1
