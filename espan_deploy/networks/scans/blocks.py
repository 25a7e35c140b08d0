"""The selective scan of Mamba, over an image's pixels in some order, from plain operators.

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023. A state h of S values per channel
is carried from pixel to pixel::

    h[l] = exp(step[l] * rate) * h[l - 1] + step[l] * x[l] * write[l]
    y[l] = sum(h[l] * read[l])
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RUN = 16
"""Pixels computed one after another, everywhere at once; and runs that are joined one after another, likewise."""

FIRST_STEP = -4.6
"""A bias for which the softplus is 0.01, in the middle of what Mamba begins its training with."""

DOUBLINGS = 16
"""Joins 2**16 stretches of RUN * RUN pixels, so that images of up to 16 million pixels are one sequence."""


def selective_scan(x: Tensor, step: Tensor, rate: Tensor, write: Tensor, read: Tensor) -> Tensor:
    """The scan over L pixels, from a state of zeros: G groups of D channels, S values of state for each channel.

    x, step: (N, G, D, L). rate: (G, D, S), negative. write, read: (N, G, S, L), shared by a group's channels.
    Returns (N, G, D, L).

    The sequence is cut into runs. All runs advance together, from zero, which gives what each adds to the state and
    how much it leaves of the state before it; runs are joined, first one after another, then by doubling; and all runs
    advance again, from the state that is right. No state is kept for longer than a step, and nothing is divided: it is
    as exact as the plain recurrence, in twice its operations and some.
    """
    length = x.shape[3]
    stretches = (length + RUN * RUN - 1) // (RUN * RUN)
    # A pixel with a step of zero leaves the state as it is.
    padding = (0, stretches * RUN * RUN - length)
    steps, inputs, writes, reads = (_in_runs(F.pad(v, padding)) for v in (step, step * x, write, read))
    rate = rate.transpose(1, 2)[:, :, :, None, None]
    # (N, G, 1 or S, D or 1, runs of a stretch, stretches) for each pixel of a run
    by_pixel = list(
        zip(
            _one_by_one(steps.transpose(2, 3), 2),
            _one_by_one(inputs.transpose(2, 3), 2),
            _one_by_one(writes, 3),
            _one_by_one(reads, 3),
            strict=True,
        )
    )

    def advanced(state: Tensor, pixel: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        step, value, write, _ = pixel
        return torch.exp(step * rate) * state + value * write

    state = by_pixel[0][1] * by_pixel[0][2]
    for pixel in by_pixel[1:]:
        state = advanced(state, pixel)
    left = torch.exp(steps.sum(3)[:, :, None] * rate)
    state = _states_before(left, state)
    read_out = []
    for pixel in by_pixel:
        state = advanced(state, pixel)
        read_out.append((state * pixel[3]).sum(2, keepdim=True))
    y = torch.cat(read_out, 2).permute(0, 1, 3, 5, 4, 2)
    return y.flatten(3)[..., :length]


def _in_runs(v: Tensor) -> Tensor:
    """(N, G, C, L) as (N, G, C, pixels of a run, runs of a stretch, stretches)."""
    groups, channels = v.shape[1:3]
    return v.reshape(-1, groups, channels, v.shape[3] // (RUN * RUN), RUN, RUN).permute(0, 1, 2, 5, 4, 3)


def _one_by_one(v: Tensor, axis: int) -> list[Tensor]:
    """The RUN slices of an axis, which they keep. (``split`` would be exported as a sequence.)"""
    return [v.narrow(axis, i, 1) for i in range(RUN)]


def _states_before(left: Tensor, added: Tensor) -> Tensor:
    """The state before each run, from what a run leaves of it and what it adds: all (..., runs, stretches)."""
    lefts, addeds = _one_by_one(left, 4), _one_by_one(added, 4)
    whole_left, whole_added = lefts[0], addeds[0]
    for run_left, run_added in zip(lefts[1:], addeds[1:], strict=True):
        whole_left, whole_added = run_left * whole_left, run_left * whole_added + run_added
    position = torch.arange(left.shape[5], device=left.device)
    for i in range(DOUBLINGS):
        earlier = position - 2**i
        present = (earlier >= 0).to(left.dtype)
        earlier = earlier.clamp(min=0)
        whole_added = whole_left * (whole_added.index_select(5, earlier) * present) + whole_added
        whole_left = whole_left * whole_left.index_select(5, earlier)
    before = (position - 1).clamp(min=0)
    states = [whole_added.index_select(5, before) * (position > 0).to(left.dtype)]
    for run_left, run_added in zip(lefts[:-1], addeds[:-1], strict=True):
        states.append(run_left * states[-1] + run_added)
    return torch.cat(states, 4)


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
