"""The selective scan of Mamba, over an image's pixels in some order.

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023. A state h of S values per channel
is carried from pixel to pixel::

    h[l] = exp(step[l] * rate) * h[l - 1] + step[l] * x[l] * write[l]
    y[l] = sum(h[l] * read[l])
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RUN = 64
"""Pixels computed one after another, in all runs of an image at once; then the runs are joined one after another."""

FIRST_STEP = -4.6
"""A bias for which the softplus is 0.01, in the middle of what Mamba begins its training with."""


def selective_scan(x: Tensor, step: Tensor, rate: Tensor, write: Tensor, read: Tensor) -> Tensor:
    """The scan over L pixels, from a state of zeros: G groups of D channels, S values of state for each channel.

    x, step: (N, G, D, L). rate: (G, D, S), negative. write, read: (N, G, S, L), shared by a group's channels.
    Returns (N, G, D, L).

    The sequence is cut into runs. All runs advance together, from zero, which gives what each adds to the state and
    how much it leaves of the state before it; runs are joined one after another; and all runs advance again, from the
    state that is right. No state of a pixel is kept for longer than a step, and nothing is divided: it is as exact as
    the plain recurrence, in twice its operations. An exporter sees one operator (``graph/selective_scan.py``).
    """
    if torch.onnx.is_in_onnx_export():
        inputs = (x, step, rate, write, read)
        return torch.onnx.ops.symbolic(
            "espan_deploy::SelectiveScan", inputs, {"run": [RUN]}, dtype=x.dtype, shape=x.shape, version=1
        )
    length = x.shape[3]
    # A pixel with a step of zero leaves the state as it is.
    padding = (0, -length % RUN)
    steps, values, writes, reads = (_in_runs(F.pad(v, padding)) for v in (step, step * x, write, read))
    # (pixels of a run, S or nothing, N, G, D or 1, runs)
    writes, reads = (v.movedim(3, 1)[:, :, :, :, None] for v in (writes, reads))
    rate = rate.movedim(2, 0)[:, None, :, :, None]

    def advanced(state: Tensor, i: int) -> Tensor:
        return torch.exp(steps[i] * rate) * state + values[i] * writes[i]

    left = torch.exp(steps.sum(0) * rate)
    added = torch.zeros_like(left)
    for i in range(RUN):
        added = advanced(added, i)
    before = [torch.zeros_like(added[..., 0])]
    for j in range(left.shape[4] - 1):
        before.append(left[..., j] * before[-1] + added[..., j])
    state = torch.stack(before, 4)
    read_out = []
    for i in range(RUN):
        state = advanced(state, i)
        read_out.append((state * reads[i]).sum(0))
    return torch.stack(read_out, 4).flatten(3)[..., :length]


def _in_runs(v: Tensor) -> Tensor:
    """(N, G, C, L) as (pixels of a run, N, G, C, runs)."""
    return v.reshape(*v.shape[:3], v.shape[3] // RUN, RUN).movedim(4, 0)


class SelectiveScan(nn.Module):
    """The scan with what it selects by: steps, and what is written and read, are computed from the sequence itself.

    groups: sequences side by side, each with weights of its own. Keys: ``x_proj_weight`` (G, rank + 2S, D),
    ``dt_projs_weight`` (G, D, rank), ``dt_projs_bias`` (G, D), ``A_logs`` (G * D, S), ``Ds`` (G * D).
    """

    def __init__(self, groups: int, channels: int, state: int, rank: int) -> None:
        super().__init__()
        self.rank, self.state = rank, state
        self.x_proj_weight = nn.Parameter(torch.randn(groups, rank + 2 * state, channels) * channels**-0.5)
        self.dt_projs_weight = nn.Parameter(torch.randn(groups, channels, rank) * rank**-0.5)
        self.dt_projs_bias = nn.Parameter(torch.full((groups, channels), FIRST_STEP))
        rates = torch.arange(1.0, state + 1).log()
        self.A_logs = nn.Parameter(rates.repeat(groups * channels, 1))
        self.Ds = nn.Parameter(torch.ones(groups * channels))

    def scanned(self, x: Tensor, prompt: Tensor | None = None) -> Tensor:
        """x: (N, G, D, L). prompt: (N, 1, S, L), added to what is read by. Returns (N, G, D, L)."""
        groups, channels = x.shape[1:3]
        selected = self.x_proj_weight @ x
        step = self.dt_projs_weight @ selected[:, :, : self.rank]
        step = F.softplus(step + self.dt_projs_bias[:, :, None])
        write = selected[:, :, self.rank : self.rank + self.state]
        read = selected[:, :, self.rank + self.state :]
        if prompt is not None:
            read = read + prompt
        rate = -torch.exp(self.A_logs).reshape(groups, channels, self.state)
        return selective_scan(x, step, rate, write, read) + self.Ds.reshape(groups, channels, 1) * x
