"""One chunk on its way through a TensorRT engine: in, through and out, on streams of their own."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from espan_deploy.backends.trt_module import FLAVOURS, listening
from espan_deploy.errors import InferenceError, InputShapeError
from espan_deploy.pixels import GUARD

if TYPE_CHECKING:
    from espan_deploy.backends.cuda_memory import Buffer, Device, Graph, PinnedBuffer
    from espan_deploy.backends.trt import LoadedEngine

REPEATS = 8
"""Chunks of one shape, one after another, before they are captured; and replays before those are judged."""

SLOWER = 1.02
"""Replays that take longer than this, compared with launches, are given up: less is what clocks differ by."""

KEPT_RATIOS = 16
"""Shapes whose ratio is told, the latest."""


class Streams:
    """A runner's streams: of copies in, of the engine, of copies out. all: in this order."""

    def __init__(self, device: Device) -> None:
        self.all = tuple(device.stream() for _ in range(3))
        self.copy_in, self.run, self.copy_out = self.all

    def close(self) -> None:
        """Give them back. Calling it twice does no harm."""
        for stream in self.all:
            stream.free()


class Slot:
    """Buffers on the device and pinned on the host, the events of a chunk's way, and an execution context.

    The context is the slot's own: a captured graph dies with its context's shape (NVIDIA/TensorRT#3798), and
    TensorRT-RTX, which captures by itself, would do so again whenever an address changes. So a slot holds one graph at
    most, of the shape that keeps coming, and a folder of mixed sizes captures none.

    details: of the runner, where the slot tells what capturing brought. Every method wants the device's ``current()``.
    """

    def __init__(self, loaded: LoadedEngine, streams: Streams, details: dict[str, Any]) -> None:
        self._loaded, self._device, self._streams, self._details = loaded, loaded.device, streams, details
        self._context = loaded.create_context()
        self._buffers: dict[str, tuple[Buffer, PinnedBuffer]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._bound: tuple[int, ...] = ()
        self._captures = loaded.backend == "tensorrt" and loaded.run.cuda_graph
        self._graph: Graph | None = None
        self._launched_ms: list[float] = []
        self._replayed_ms: list[float] = []
        self._events = {name: self._device.event() for name in ("in", "in done", "run", "run done", "out", "out done")}

    def start(self, images: NDArray[Any], count: int, output_shape: tuple[int, ...]) -> None:
        """Copy images in, run and copy out, each on its own stream, each waiting for the one before.

        images: in the engine's own type and layout, at most ``count``: the last one fills the batch up.
        """
        loaded, streams, events = self._loaded, self._streams, self._events
        name = loaded.input_name
        shapes = {name: (count, *images.shape[1:]), loaded.output_name: output_shape}
        if loaded.guard_name:
            shapes[GUARD] = (count,)
        self._reserve({each: int(np.prod(shape)) * loaded.dtypes[each].itemsize for each, shape in shapes.items()})
        self._shapes = shapes
        staged = self.output(name)
        staged[: len(images)] = images
        staged[len(images) :] = images[-1:]
        events["in"].record(streams.copy_in)
        self._device.copy_in(self._buffers[name][0], self._bytes(name), streams.copy_in)
        events["in done"].record(streams.copy_in)
        events["in done"].make_wait(streams.run)
        events["run"].record(streams.run)
        self._launch(shapes[name])
        events["run done"].record(streams.run)
        events["run done"].make_wait(streams.copy_out)
        events["out"].record(streams.copy_out)
        for each in shapes:
            if each != name:
                self._device.copy_out(self._bytes(each), self._buffers[each][0], streams.copy_out)
        events["out done"].record(streams.copy_out)

    def wait(self) -> dict[str, float]:
        """Wait for the chunk, and say what its stages took, in milliseconds."""
        events = self._events
        events["out done"].synchronize()
        stages = {
            "copy in": events["in done"].time_since(events["in"]),
            "engine": events["run done"].time_since(events["run"]),
            "copy out": events["out done"].time_since(events["out"]),
        }
        self._judge(stages["engine"])
        return stages

    def output(self, name: str) -> NDArray[Any]:
        """A tensor's pinned memory, as the chunk at hand has it; overwritten by the next."""
        view: NDArray[Any] = self._bytes(name).view(self._loaded.dtypes[name]).reshape(self._shapes[name])
        return view

    def _bytes(self, name: str) -> NDArray[np.uint8]:
        nbytes = int(np.prod(self._shapes[name])) * self._loaded.dtypes[name].itemsize
        array: NDArray[np.uint8] = self._buffers[name][1].array[:nbytes]
        return array

    def _reserve(self, sizes: dict[str, int]) -> None:
        """Grow to at least these sizes. Where memory runs out, what is kept is whole: a smaller chunk may come next."""
        for name, nbytes in sizes.items():
            if name in self._buffers and self._buffers[name][0].nbytes >= nbytes:
                continue
            self._unbind()
            for buffer in self._buffers.pop(name, ()):
                buffer.free()
            allocated = self._device.allocate(nbytes)
            try:
                self._buffers[name] = allocated, self._device.pinned(nbytes)
            except BaseException:
                allocated.free()
                raise

    def _launch(self, shape: tuple[int, ...]) -> None:
        if shape != self._bound:
            self._bind(shape)
        if self._graph is not None:
            self._graph.launch(self._streams.run)
        elif self._captures and len(self._launched_ms) >= REPEATS and not self._replayed_ms:
            self._capture()
        else:
            self._execute()

    def _execute(self) -> None:
        with listening(self._loaded.trt) as messages:
            if not self._context.execute_async_v3(self._streams.run.handle):
                title = FLAVOURS[self._loaded.backend].title
                raise InferenceError(f"{title} failed to run: {messages.explanation()}")

    def _capture(self) -> None:
        """Capture the launch and replay it; launch it, now and from now on, where that is refused."""
        try:
            self._graph = self._device.capture(self._streams.run, self._execute)
        except InferenceError as exc:
            self._captures = False
            self._details["cuda_graph"] = f"refused: {exc.message}"
            self._execute()
        else:
            self._graph.launch(self._streams.run)

    def _judge(self, engine_ms: float) -> None:
        """Keep the graph only while its replays are not slower than the launches were."""
        if not self._captures:
            return
        if self._graph is None:
            self._launched_ms = [*self._launched_ms, engine_ms][-REPEATS:]
            return
        if len(self._replayed_ms) == REPEATS:
            return
        self._replayed_ms.append(engine_ms)
        if len(self._replayed_ms) == REPEATS:
            ratio = median(self._replayed_ms) / max(median(self._launched_ms), 1e-6)
            ratios: dict[str, float] = self._details["cuda_graph_ratio"]
            ratios["x".join(map(str, self._bound))] = ratio
            while len(ratios) > KEPT_RATIOS:
                ratios.pop(next(iter(ratios)))
            if ratio > SLOWER:
                self._drop_graph()

    def _bind(self, shape: tuple[int, ...]) -> None:
        self._unbind()
        with listening(self._loaded.trt) as messages:
            if not self._context.set_input_shape(self._loaded.input_name, shape):
                raise InputShapeError(f"the engine refuses {shape}: {messages.explanation()}")
            for name, (buffer, _) in self._buffers.items():
                if not self._context.set_tensor_address(name, buffer.address):
                    raise InferenceError(f"the engine refuses an address for {name}: {messages.explanation()}")
        self._bound = shape

    def _unbind(self) -> None:
        """Forget shape and addresses, and what was captured and measured with them."""
        self._drop_graph()
        self._bound = ()
        self._launched_ms, self._replayed_ms = [], []

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.free()
            self._graph = None

    def close(self) -> None:
        """Give everything back, when nothing is under way. Calling it twice does no harm."""
        if self._context is None:
            return
        self._unbind()
        for pair in self._buffers.values():
            for buffer in pair:
                buffer.free()
        self._buffers.clear()
        for event in self._events.values():
            event.free()
        self._context = None
        self._loaded.release_context()
