"""Windows against plain loops, at sizes that are no multiple of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from espan_deploy.networks.windows.blocks import (
    APART,
    ShiftMask,
    heads_of,
    map_of,
    map_of_heads,
    mirrored,
    position_index,
    rolled,
    windows_of,
)
from espan_deploy.networks.windows.hitsr import PositionBias, SpatialChannelCorrelation
from espan_deploy.networks.windows.sampled import corner, cross, star
from espan_deploy.networks.windows.scmsr import warped

ROUNDING = 1e-5
"""Float32, another order of the same sums."""


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 16), (7, 30), (33, 1)])
@pytest.mark.parametrize(("repeat_edge", "mode"), [(False, "reflect"), (True, "symmetric")])
def test_mirroring_is_numpy_s_however_small_the_map(size: tuple[int, int], repeat_edge: bool, mode: str) -> None:
    x = torch.rand(2, 3, *size)
    below, right = (-side % 16 for side in size)

    padded = mirrored(x, 16, repeat_edge=repeat_edge)

    expected = np.pad(x.numpy(), ((0, 0), (0, 0), (0, below), (0, right)), mode=mode)  # type: ignore[call-overload]
    assert np.array_equal(padded.numpy(), expected)


def test_windows_come_row_by_row_and_go_back() -> None:
    x = torch.rand(2, 6, 8, 12)

    windows, heads = windows_of(x, 4), heads_of(x, 3, 4)

    assert torch.equal(windows[5], x[0, :, 4:, 8:].flatten(1))
    assert torch.equal(heads[1, 1, 2, 2], x[1, 4:, 4:, 8:].flatten(1).T)
    assert torch.equal(map_of(windows, 4, 8, 12), x)
    assert torch.equal(map_of_heads(heads, 4), x)


def test_rolling_is_undone() -> None:
    x = torch.rand(1, 2, 8, 12)

    assert torch.equal(rolled(x, 3), torch.roll(x, (-3, -3), (2, 3)))
    assert torch.equal(rolled(rolled(x, 3), -3), x)


@pytest.mark.parametrize("key", [8, 4])
def test_rolled_pixels_from_two_sides_do_not_see_each_other(key: int) -> None:
    window, shift = 8, 4
    per_key = window // key
    mask = ShiftMask(shift, window, key)(torch.zeros(1, 2, 3, 1, window**2, key**2))[0, :, :, 0]
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(24), indexing="ij")
    came_around = (rolled(torch.stack([rows, columns])[None], shift) < shift).long()
    queries = windows_of(came_around, window).reshape(2, 3, 2, window**2)
    keys = windows_of(came_around[:, :, ::per_key, ::per_key], key).reshape(2, 3, 2, key**2)

    apart = (queries[..., :, None] != keys[..., None, :]).any(2)

    assert torch.equal(mask <= APART, apart)
    assert (mask[~apart] == 0).all()


def test_positions_are_counted_from_the_key() -> None:
    index = position_index(4, 4)

    assert index[0, 0] == 3 * 7 + 3
    assert index[1 * 4 + 2, 3 * 4 + 0] == (1 - 3 + 3) * 7 + 2 - 0 + 3
    assert torch.equal(position_index(4, 2)[5], position_index(2, 2)[0])  # row 1, column 1: of the first key


def test_pooled_position_biases_are_the_mean_over_what_is_pooled() -> None:
    window, pooling = 6, 3
    bias = PositionBias(8, 2, window, pooling)
    flat: Tensor = bias.pos_proj(bias.offsets)
    for name in ("pos1", "pos2", "pos3"):
        flat = bias.get_submodule(name)(flat)
    table = flat.reshape(2 * window - 1, 2 * window - 1, 2)

    got = bias().reshape(2, 2, 2, window, window)

    for head, (row, column), (y, x) in ((0, (0, 0), (0, 0)), (1, (1, 0), (2, 5)), (0, (1, 1), (5, 3))):
        keys = [(row * pooling + i, column * pooling + j) for i in range(pooling) for j in range(pooling)]
        expected = torch.stack([table[y - i + window - 1, x - j + window - 1, head] for i, j in keys]).mean()
        torch.testing.assert_close(got[head, row, column, y, x], expected)


def test_correlation_in_a_cheaper_order_is_the_published_one() -> None:
    torch.manual_seed(0)
    window, heads, channels = 16, 2, 40
    layer = SpatialChannelCorrelation(channels, window, heads).eval()
    query, value = torch.randn(1, 20, 16, 16), torch.randn(1, 20, 16, 16)
    with torch.inference_mode():
        got = layer.correlate(query, value)[0]
        q, v = (t.reshape(heads, 10, 256).transpose(1, 2) for t in (query, value))
        blocks = v.reshape(heads, 8, 2, 8, 2, 10).permute(0, 1, 3, 5, 2, 4).reshape(heads, 64, 10, 4)
        pooled = layer.spatial_linear(blocks)[..., 0]
        correlation = q @ pooled.transpose(1, 2) / 10 + layer.pos().transpose(1, 2)
        spatial = (correlation @ pooled).transpose(1, 2).reshape(20, 256)
        flat_q, flat_v = query.reshape(20, 256), value.reshape(20, 256)
        between_channels = (flat_q @ flat_v.T / 256) @ flat_v

    torch.testing.assert_close(got, torch.cat([spatial, between_channels]), atol=ROUNDING, rtol=ROUNDING)


def test_warping_by_whole_pixels_moves_them() -> None:
    x = torch.rand(1, 2, 6, 9)
    offsets = torch.zeros(1, 2, 6, 9)
    offsets[:, 0], offsets[:, 1] = 2, -1

    moved = warped(x, offsets)

    torch.testing.assert_close(moved[:, :, 1:, :-2], x[:, :, :-1, 2:], atol=ROUNDING, rtol=0)
    torch.testing.assert_close(moved[:, :, 0, :-2], x[:, :, 0, 2:], atol=ROUNDING, rtol=0)  # beyond the border: at it


def test_what_a_window_sees_around_it() -> None:
    around = [(row, column) for row in range(16) for column in range(16) if not {row, column} <= set(range(4, 12))]

    assert [sum(seen(row, column, 16) for row, column in around) for seen in (star, cross, corner)] == [32, 32, 36]
    assert star(3, 8, 16)
    assert star(2, 13, 16)
    assert cross(7, 0, 16)
    assert not cross(3, 3, 16)
    assert corner(2, 13, 16)
    assert not corner(3, 0, 16)
