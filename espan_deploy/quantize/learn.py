"""The last hundredths: scales, ranges and biases learnt against the float network's own pictures.

No truth is needed, only pictures: the quantised network is to give what the float one gives. The gradient passes the
rounding of activations as if it were not there. Weights' codes stay: learning them won nothing over rounding for the
output (released ESPAN, 100 steps at 0.001 to 0.02 of a code: less than 0.1 dB of distance).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from espan_deploy.precision.breakdown import breaks_down
from espan_deploy.quantize.arithmetic import reading_shifts
from espan_deploy.quantize.layers import Convolution
from espan_deploy.quantize.scheme import QuantizedValue, QuantizedWeight, Scheme
from espan_deploy.quantize.torch_graph import TorchGraph, convolution

if TYPE_CHECKING:
    import torch

SCALE_RATE, RANGE_RATE = 1e-4, 1e-3
"""Relative, of weights' and activations' scales. Ten times as much holds rare extremes, and costs photographs."""

BIAS_RATE = 2e-5
"""Of the network's white."""

BETAS = (0.9, 0.99)

Batches = Callable[[], NDArray[np.float32]]
"""Gives another batch (N, 3, H, W) in the network's range with every call."""


@dataclass(frozen=True)
class Learnt:
    """A scheme, and how far it was from float when the training began and when it ended, dB, means of a tenth."""

    scheme: Scheme
    before_db: float
    after_db: float
    steps: int


def learn(
    model: onnx.ModelProto,
    convolutions: Sequence[Convolution],
    scheme: Scheme,
    batches: Batches,
    *,
    steps: int,
    white: float = 1.0,
    progress: Callable[[str], None] | None = None,
) -> Learnt:
    """The scheme, fitted to the whole network; only operators that ``torch_graph`` knows may be in it.

    white: the network's value range.
    """
    import torch

    graph, student = TorchGraph(model), _Student(convolutions, scheme)
    optimizer = torch.optim.Adam(student.groups(white), betas=BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    distances: list[float] = []
    for step in range(steps):
        batch = torch.from_numpy(batches())
        with torch.no_grad():
            wanted = graph(batch)
        sound = torch.from_numpy(~breaks_down(wanted.numpy() / white))
        if not sound.any():
            continue
        batch, wanted = batch[sound], wanted[sound]
        errors = (graph(batch, student.convolve) - wanted).square().flatten(1).mean(1)
        # The root keeps a page of text, a hundred times farther off, from ruling every step.
        loss = (errors + (1e-5 * white) ** 2).sqrt().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        distances.append(float((errors.detach() + 1e-12).log10().mean()) * -10 + 20 * math.log10(white))
        if progress and step % 10 == 0:
            progress(f"learning, step {step} of {steps}: {np.mean(distances[-30:]):.1f} dB from FP32")
    tenth = max(1, len(distances) // 10)
    before, after = (float(np.mean(part)) if part else 0.0 for part in (distances[:tenth], distances[-tenth:]))
    return Learnt(student.scheme(scheme), before, after, steps)


class _Student:
    """What is learnt of a scheme."""

    def __init__(self, convolutions: Sequence[Convolution], scheme: Scheme) -> None:
        import torch

        def parameter(values: Any) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.tensor(np.asarray(values, np.float32)))

        self._through_codes = _passing_codes()
        self._value_of = {c.name: c.value for c in convolutions}
        self._values = scheme.values
        self._smoothing = {
            name: torch.tensor(how.smoothing.astype(np.float32)).view(1, -1, 1, 1)
            for name, how in scheme.values.items()
        }
        self._ranges = {name: parameter(math.log(how.codes.scale)) for name, how in scheme.values.items()}
        self._codes = {
            name: torch.tensor(np.asarray(weight.codes, np.float32)) for name, weight in scheme.weights.items()
        }
        self._scales = {name: parameter(np.log(weight.scale)) for name, weight in scheme.weights.items()}
        self._shifts = {name: reading_shifts(weight.readings) for name, weight in scheme.weights.items()}
        self._biases = {name: parameter(weight.bias) for name, weight in scheme.weights.items()}

    def groups(self, white: float) -> list[dict[str, Any]]:
        """For the optimiser. The scale of exact codes is left alone: it is what makes them exact."""
        moving = [self._ranges[name] for name, how in self._values.items() if not how.exact]
        return [
            {"params": list(self._scales.values()), "lr": SCALE_RATE},
            {"params": moving, "lr": RANGE_RATE},
            {"params": list(self._biases.values()), "lr": BIAS_RATE * white},
        ]

    def convolve(
        self, node: onnx.NodeProto, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """A convolution as the quantised network has it."""
        import torch

        if node.name not in self._codes:
            return convolution(node, x, weight, bias)
        name = self._value_of[node.name]
        how = self._values[name].codes
        scale = self._ranges[name].exp()
        ends = how.low - how.zero_point, how.high - how.zero_point
        readings = [
            self._through_codes(x, self._smoothing[name], scale, (*ends, shift)) for shift in self._shifts[node.name]
        ]
        coded = readings[0] if len(readings) == 1 else torch.cat(readings, 1)
        kernel = self._codes[node.name] * self._scales[node.name].exp().view(-1, 1, 1, 1)
        return convolution(node, coded, kernel, self._biases[node.name])

    def scheme(self, start: Scheme) -> Scheme:
        """What was learnt."""
        return replace(
            start,
            values={name: self._learnt_value(name, how) for name, how in start.values.items()},
            weights={name: self._learnt_weight(name, how) for name, how in start.weights.items()},
        )

    def _learnt_value(self, name: str, how: QuantizedValue) -> QuantizedValue:
        if how.exact:
            return how
        return replace(how, codes=replace(how.codes, scale=math.exp(self._ranges[name].item())))

    def _learnt_weight(self, name: str, how: QuantizedWeight) -> QuantizedWeight:
        scale = np.exp(self._scales[name].detach().numpy().astype(np.float64))
        return replace(how, scale=scale, bias=self._biases[name].detach().numpy().copy())


def _passing_codes() -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor, tuple[float, float, float]], torch.Tensor]:
    """What is left of x / smoothing once it went through codes; the gradient passes the rounding, not the clipping.

    The last argument is the least and the largest code, from the zero point, and what is added before rounding.
    In one piece, since ten operations on whole feature maps take longer than the convolution that follows.
    """
    import torch

    class PassingCodes(torch.autograd.Function):
        @staticmethod
        def forward(
            context: Any,
            x: torch.Tensor,
            smoothing: torch.Tensor,
            scale: torch.Tensor,
            codes: tuple[float, float, float],
        ) -> torch.Tensor:
            low, high, shift = codes
            result = (x / (smoothing * scale)).add_(shift).round_().clamp_(low, high).mul_(scale)
            context.ends = low - 0.5 - shift, high + 0.5 - shift
            context.save_for_backward(x, smoothing, scale, result)
            return result

        @staticmethod
        def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            x, smoothing, scale, result = context.saved_tensors
            ends = [end * smoothing * scale for end in context.ends]
            low, high = torch.minimum(*ends), torch.maximum(*ends)  # smoothing may be negative
            passed = torch.where((x > low) & (x < high), gradient, 0.0).div_(smoothing)
            of_scale = torch.addcmul(gradient * result, passed, x, value=-1).sum() / scale
            return passed, None, of_scale, None

    apply: Any = PassingCodes.apply
    return apply  # type: ignore[no-any-return]
