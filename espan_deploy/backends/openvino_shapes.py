"""A model compiled by OpenVINO for any shape, and once more for each shape that keeps coming.

Where it knows the shape, OpenVINO fuses what it otherwise computes one after the other: ESPAN takes a tenth less time
in FP32 and a sixth less in bfloat16, SPAN a third. Compiling, and memory of its own, take as long as that saves on some
FREQUENT_PIXELS. Most folders hold one or two shapes, so the first two are compiled at once; where ever new ones come,
these share the network for any shape.

An image's result must not depend on what came before it. In bfloat16 fused steps would round less often, so a network
for one shape is made to round where the one for any shape does. Whether the two then agree byte for byte is measured
once for each model and kept; where they do not (in FP32, products and sums may be contracted in one of them), every
shape takes the one for any.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np

from espan_deploy.backends.base import Images, Step, scaled
from espan_deploy.backends.finite import NonFiniteError, check_finite
from espan_deploy.backends.kept import remembered
from espan_deploy.backends.model import ModelFile
from espan_deploy.backends.openvino_graph import bytes_per_pixel, round_at, rounded_operations, with_pixels
from espan_deploy.backends.openvino_runtime import openvino_module
from espan_deploy.backends.probe import made_up_photograph
from espan_deploy.errors import EngineBuildError

FREQUENT_PIXELS = 3 << 18
"""Low-resolution pixels of one shape after which it gets a network of its own."""

FIRST_SHAPES = 2
"""Get one at once."""

HELD_PIXELS = 1 << 19
"""Of all shapes that have one: each network keeps its activations' memory. One that is larger gets its own at once and
is held alone: tiles come in numbers, and the network for any shape, which keeps memory too, stays small."""

PROBE_SIDE = 160

BIAS_APART = "/WithoutBiases"
"""OpenVINO's name for a convolution of ours whose bias it reads as a sum of its own."""

MEASURE_VERSION = 1
"""Goes up when the networks or the measure change, so that kept figures do not outlive them."""


class Network:
    """A network that is compiled when first needed, and its idle requests."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._compiled: Any = None
        self._lock = threading.Lock()
        self._idle: list[Any] = []

    @property
    def compiled(self) -> Any:
        """OpenVINO's compiled model. Raises EngineBuildError."""
        with self._lock:  # its own: other networks are at work meanwhile
            if self._compiled is None:
                self._compiled = self._make()
            return self._compiled

    @contextmanager
    def request(self) -> Iterator[Any]:
        """A request for one thread at a time, given back at the end. Raises EngineBuildError."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        yield request
        self._idle.append(request)


class CompiledModel:
    """The networks of one model. May be used from several threads at once.

    hint: OpenVINO's name of the precision. bytes_per_pixel: of activations. version: OpenVINO's.
    Raises EngineBuildError where OpenVINO refuses the model, at the latest when it is first used.
    """

    def __init__(self, model: ModelFile, hint: str, threads: int, streams: int) -> None:
        openvino = openvino_module()
        self.model, self.hint, self.threads, self.streams = model, hint, threads, streams
        self.core = openvino.Core()
        self.version = openvino.get_version().split("-")[0]
        self._lock = threading.Lock()
        self._any_shape: dict[str, Network] = {}
        self._by_shape: OrderedDict[tuple[str, tuple[int, ...]], Network] = OrderedDict()
        self._seen: Counter[tuple[str, tuple[int, ...]]] = Counter()
        try:
            self._graph = self.core.read_model(model.data)
        except RuntimeError as exc:
            raise self._refused(exc) from exc
        self.bytes_per_pixel: int = remembered(
            ("bytes per pixel", model.sha256, "openvino", self.version, hint, str(MEASURE_VERSION)),
            int,
            lambda: bytes_per_pixel(self._graph, hint),
        )
        self._rounded: list[str] | None = remembered(
            ("shapes agree", model.sha256, "openvino", self.version, hint, str(MEASURE_VERSION)),
            _names_or_none,
            self._measure_agreement,
        )

    @property
    def shapes_agree(self) -> bool:
        """Whether frequent shapes get networks of their own."""
        return self._rounded is not None

    def network(self, pixels: str, shape: tuple[int, ...]) -> Network:
        """For images of this type and (N, H, W, 3)."""
        key = (pixels, shape)
        with self._lock:
            if key in self._by_shape:
                self._by_shape.move_to_end(key)
                return self._by_shape[key]
            first = key not in self._seen and len(self._seen) < FIRST_SHAPES
            self._seen[key] += _pixels(shape)
            frequent = self._seen[key] >= FREQUENT_PIXELS
            if self.shapes_agree and (first or frequent or _pixels(shape) > HELD_PIXELS):
                self._make_room(_pixels(shape))
                self._by_shape[key] = self._network(pixels, shape)
                return self._by_shape[key]
            return self._any(pixels)

    def _make_room(self, pixels: int) -> None:
        """Drop the networks not used for longest; to come back, a shape has to be seen as often again.

        What is at work in them ends first.
        """
        while self._by_shape and pixels + sum(_pixels(shape) for _, shape in self._by_shape) > HELD_PIXELS:
            dropped, _ = self._by_shape.popitem(last=False)
            self._seen[dropped] = 0

    def _any(self, pixels: str) -> Network:
        if pixels not in self._any_shape:
            self._any_shape[pixels] = self._network(pixels)
        return self._any_shape[pixels]

    def profile(self, images: Images, runs: int) -> list[Step]:
        """Median times of the kernels, slower than unobserved, of the network that images of this shape end up with."""
        network = self._network("uint8", images.shape if self.shapes_agree else None, observed=True)
        told = {
            kernel.get_friendly_name(): {key: value.astype(str) for key, value in kernel.get_rt_info().items()}
            for kernel in network.compiled.get_runtime_model().get_ordered_ops()
        }
        times: dict[tuple[str, str], list[float]] = {}
        with network.request() as request:
            upscaled(request, images, self.model.description.scale)
            for _ in range(runs):
                upscaled(request, images, self.model.description.scale)
                for kernel in request.profiling_info:
                    spent = kernel.real_time.total_seconds() * 1e3
                    times.setdefault((kernel.node_name, kernel.node_type), []).append(spent)
        return [
            Step(_names(told.get(name, {})), kind, median(spent), told.get(name, {}).get("runtimePrecision", ""))
            for (name, kind), spent in times.items()
            if any(spent)
        ]

    def _network(self, pixels: str, shape: tuple[int, ...] | None = None, *, observed: bool = False) -> Network:
        """For one shape, or for any. observed: whether it counts its kernels' time."""
        return Network(lambda: self._compile(pixels, shape, observed=observed))

    def _compile(self, pixels: str, shape: tuple[int, ...] | None, *, observed: bool) -> Any:
        network = with_pixels(self._graph.clone(), self.model.description, pixels)
        if shape is not None:
            round_at(network, self._rounded or [])
            network.reshape({0: list(shape)})
        settings = {
            "INFERENCE_PRECISION_HINT": self.hint,
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": self.streams,
            # Pinned, a stream would wait for its core while decoding or encoding has it, next to a free one.
            "ENABLE_CPU_PINNING": False,
            "PERF_COUNT": observed,
        }
        try:
            return self.core.compile_model(network, "CPU", settings)
        except RuntimeError as exc:
            raise self._refused(exc) from exc

    def _refused(self, exc: RuntimeError) -> EngineBuildError:
        return EngineBuildError(f"OpenVINO refuses {self.model.path.name}: {first_line(exc)}")

    def _measure_agreement(self) -> list[str] | None:
        """Where a network for one shape has to round to make the same bytes as the one for any; None if it does not."""
        any_shape = self._any("uint8")
        self._rounded = rounded_operations(any_shape.compiled) if self.hint == "bf16" else []
        description = self.model.description
        image = made_up_photograph(max(PROBE_SIDE, description.min_size), description.size_multiple)[None]
        results = []
        try:
            for network in (any_shape, self._network("uint8", image.shape)):
                with network.request() as request:
                    results.append(upscaled(request, image, description.scale))
        except (RuntimeError, NonFiniteError, EngineBuildError):
            return None
        return self._rounded if np.array_equal(results[0], results[1]) else None


def upscaled(request: Any, images: Images, scale: int) -> Images:
    """The whole result of checked images, (N, H, W, 3). Raises RuntimeError or NonFiniteError."""
    count, height, width, _ = images.shape
    result = np.empty((count, height * scale, width * scale, 3), images.dtype)
    upscale_into(request, images, (slice(0, height), slice(0, width)), result)
    return result


def upscale_into(request: Any, images: Images, kept: tuple[slice, slice], out: Images) -> None:
    """Upscale checked images, (N, H, W, 3), with a request, the kept part into ``out``: see :meth:`Runner.infer_into`.

    The network gives pixels, or for each pixel of the input the block of those it becomes, see :func:`with_pixels`.
    Raises RuntimeError or NonFiniteError.
    """
    import openvino

    # It shares the array's memory, and refuses read-only arrays. Without share_outputs, and in request.results, every
    # output is copied.
    images = images if images.flags.writeable else images.copy()
    request.set_input_tensor(openvino.Tensor(images, shared_memory=True))
    count, height, width, _ = images.shape
    rows, columns = kept
    kept_height, kept_width = rows.stop - rows.start, columns.stop - columns.start
    scale = out.shape[1] // kept_height
    if request.model_outputs[0].get_partial_shape()[3].get_length() == 3:
        whole = (count, height * scale, width * scale, 3)
        result = out if out.shape == whole and out.flags.c_contiguous else np.empty(whole, out.dtype)
        request.set_output_tensor(0, openvino.Tensor(result, shared_memory=True))
        request.infer(share_outputs=True)
        if result is not out:
            y, x = scaled(kept, scale)
            np.copyto(out, result[:, y, x])
    else:
        request.infer(share_outputs=True)
        # A block's row is one value to numpy and moves at once; byte by byte, in either library, it takes far longer.
        row = np.dtype((np.void, 3 * scale))
        blocks = request.get_output_tensor(0).data.reshape(count, height, width, scale, 3 * scale).view(row)[..., 0]
        pixels = out.reshape(count, kept_height, scale, kept_width, 3 * scale).view(row)[..., 0]
        np.copyto(pixels, blocks[:, rows, columns].transpose(0, 1, 3, 2))
    if len(request.model_outputs) > 1:
        check_finite(request.get_output_tensor(1).data)


def _names(kernel: Mapping[str, str]) -> tuple[str, ...]:
    """Of the graph's operations that a kernel computes."""
    return tuple(name.removesuffix(BIAS_APART) for name in kernel.get("originalLayersNames", "").split(",") if name)


def first_line(exc: Exception) -> str:
    """What OpenVINO says last, which is the reason."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[-1] if lines else type(exc).__name__


def _names_or_none(kept: object) -> list[str] | None:
    """As kept by an earlier run. Raises TypeError for what is neither."""
    if kept is not None and not (isinstance(kept, list) and all(isinstance(name, str) for name in kept)):
        raise TypeError("neither names nor null")
    return kept


def _pixels(shape: tuple[int, ...]) -> int:
    return shape[0] * shape[1] * shape[2]
